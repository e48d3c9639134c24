/* Fast attention's inner loops on AVX-512 VNNI. */
#ifndef KVARN_KERNELS_AVX512_FAST_DOT_H
#define KVARN_KERNELS_AVX512_FAST_DOT_H

#include <immintrin.h>

#include "lib/kernels/vector/fast_codes.h"

/* Codes at bit b of a byte come out multiplied by 2^b. */
#define FAST_PLANE_FACTOR(bits) ((bits) == 2 ? 0.25f : 0.0625f)

/* Unsigned numbers times the top codes of a byte lack this times the sum of a row's numbers. */
#define FAST_TOP_LOST 128

/* sums[r][column] = the sum over code rows of signed numbers[r] times codes. */
void kvarn__fast_dot_signed_avx512(
    const struct fast_codes *codes, const struct fast_numbers *numbers, struct fast_sums *sums);

/* The same with unsigned numbers. */
void kvarn__fast_dot_unsigned_avx512(
    const struct fast_codes *codes, const struct fast_numbers *numbers, struct fast_sums *sums);

#endif
