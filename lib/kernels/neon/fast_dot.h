/* Fast attention's inner loops on NEON. */
#ifndef KVARN_KERNELS_NEON_FAST_DOT_H
#define KVARN_KERNELS_NEON_FAST_DOT_H

#include "lib/kernels/vector/fast_codes.h"

/* Codes are masked where they lie: a code of plane m counts 4^m or 16^m times. */
#define FAST_PLANE_FACTOR(bits) ((bits) == 2 ? 0.25f : 0.0625f)
#define FAST_TOP_LOST           0

/* sums[r][column] = the sum over code rows of signed numbers[r] times codes. */
void kvarn__fast_dot_signed_neon(
    const struct fast_codes *codes, const struct fast_numbers *numbers, struct fast_sums *sums);

/* The same with unsigned numbers. */
void kvarn__fast_dot_unsigned_neon(
    const struct fast_codes *codes, const struct fast_numbers *numbers, struct fast_sums *sums);

#endif
