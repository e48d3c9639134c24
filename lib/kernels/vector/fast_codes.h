/*
 * Fast attention's loops over codes: what goes into them and what comes out, in every instruction
 * set. attention.h has the arithmetic.
 */
#ifndef KVARN_KERNELS_VECTOR_FAST_CODES_H
#define KVARN_KERNELS_VECTOR_FAST_CODES_H

#include <stdbool.h>

#include "lib/kernels/kernels.h"

/* Query rows that share an unpacked register. */
#define FAST_ROWS 4

/* Whole numbers of a query row, and its sums: the longest head, a multiple of 64. */
#define FAST_COUNT KVARN__ROW_MAX

/* Rows of codes, and how many query rows to multiply them with. */
struct fast_codes {
    const uint8_t *data; /* borrowed, [count][row_bytes] */
    size_t row_bytes;
    uint32_t count; /* a multiple of 8 */
    uint32_t bits;
    uint32_t rows; /* query rows, 1 .. FAST_ROWS */
};

/* One whole number a code row and query row. */
struct fast_numbers {
    uint8_t of[FAST_ROWS][FAST_COUNT] __attribute__((aligned(64)));
};

/* Sums in packed order. */
struct fast_sums {
    int32_t of[FAST_ROWS][FAST_COUNT] __attribute__((aligned(64)));
};

#endif
