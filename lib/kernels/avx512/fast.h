/*
 * Fast attention on AVX-512: dot products of packed codes with whole numbers, and what the two
 * files of it share.
 */
#ifndef KVARN_KERNELS_AVX512_FAST_H
#define KVARN_KERNELS_AVX512_FAST_H

#include <immintrin.h>

#include "lib/kernels/kernels.h"

/* Query rows that share an unpacked register: their accumulators and four masked ones fit in 32. */
#define FAST_ROWS 4

/* Values of a row of whole numbers, and lanes of its sums: the longest head, rounded up. */
#define FAST_COUNT KVARN__ROW_MAX

/* A plane's codes: `steps` times 4 rows of `row_bytes` each. */
struct fast_codes {
    const uint8_t *data; /* borrowed */
    size_t row_bytes;
    uint32_t steps;
    uint32_t bits;
    uint32_t rows; /* query rows, 1 .. FAST_ROWS */
};

/* One whole number a code row and query row; dword i of a query row goes with step i. */
struct fast_numbers {
    uint8_t of[FAST_ROWS][FAST_COUNT] __attribute__((aligned(64)));
};

/* Sums in packed order. Codes at bit b of a byte come out multiplied by 2^b. */
struct fast_sums {
    int32_t of[FAST_ROWS][FAST_COUNT] __attribute__((aligned(64)));
};

/* sums[r][column] = sum over code rows of signed numbers[r] times codes. */
void kvarn__fast_dot_signed_avx512(
    const struct fast_codes *codes, const struct fast_numbers *numbers, struct fast_sums *sums);

/*
 * The same with unsigned numbers. The top codes of a byte come out 128 times the sum of a row's
 * numbers too small: the caller adds it.
 */
void kvarn__fast_dot_unsigned_avx512(
    const struct fast_codes *codes, const struct fast_numbers *numbers, struct fast_sums *sums);

#endif
