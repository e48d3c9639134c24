/* Fast attention's inner loops on AVX2. */
#ifndef KVARN_KERNELS_AVX2_FAST_DOT_H
#define KVARN_KERNELS_AVX2_FAST_DOT_H

#include <immintrin.h>

#include "lib/kernels/vector/fast_codes.h"

/* Codes are shifted down: every plane counts as it is, and nothing is left out. */
#define FAST_PLANE_FACTOR(bits) 1.0f
#define FAST_TOP_LOST           0

/* sums[r][column] = the sum over code rows of signed numbers[r] times codes. */
void kvarn__fast_dot_signed_avx2(
    const struct fast_codes *codes, const struct fast_numbers *numbers, struct fast_sums *sums);

/* The same with unsigned numbers. */
void kvarn__fast_dot_unsigned_avx2(
    const struct fast_codes *codes, const struct fast_numbers *numbers, struct fast_sums *sums);

#endif
