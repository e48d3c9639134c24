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

#define FAST_LINE 64 /* bytes of a line of cache */

/* Lines to fetch while loops run, a few each step: processors do not look past a page. */
struct fast_ahead {
    const uint8_t *at;   /* borrowed: the next line */
    const uint8_t *last; /* borrowed: the last one, fetched over and over when all are */
};

/* Rows of codes, and how many query rows to multiply them with. */
struct fast_codes {
    const uint8_t *data; /* borrowed, [count][row_bytes] */
    size_t row_bytes;
    uint32_t count; /* a multiple of 8 */
    uint32_t bits;
    uint32_t rows;            /* query rows, 1 .. FAST_ROWS */
    struct fast_ahead *ahead; /* borrowed; moves on */
};

/* Fetch so many lines; into the second cache only where they come too fast for the first. */
static inline __attribute__((always_inline)) struct fast_ahead fast_fetch(
    struct fast_ahead ahead, uint32_t lines, bool is_second)
{
    for (uint32_t i = 0; i < lines; i++) {
        if (is_second) {
            __builtin_prefetch(ahead.at + i * FAST_LINE, 0, 2);
        } else {
            __builtin_prefetch(ahead.at + i * FAST_LINE);
        }
    }
    ahead.at += lines * FAST_LINE;
    ahead.at = ahead.at < ahead.last ? ahead.at : ahead.last;
    return ahead;
}

/* One whole number a code row and query row, and their sums. */
struct fast_numbers {
    uint8_t of[FAST_ROWS][FAST_COUNT] __attribute__((aligned(64)));
    int32_t sum[FAST_ROWS];
};

/* Sums in packed order. */
struct fast_sums {
    int32_t of[FAST_ROWS][FAST_COUNT] __attribute__((aligned(64)));
};

#endif
