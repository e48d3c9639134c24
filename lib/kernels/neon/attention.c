/* Exact attention on NEON: lib/kernels/vector/attention.h with 4 floats. */
#include "lib/kernels/neon/decode_row.h"
#include "lib/kernels/neon/lanes.h"

#include "lib/kernels/kernels.h"

#define ATTENTION_NAME(op) op##_neon

/* 16 registers of sums; of 32, what is multiplied and how it is decoded need the rest. */
#define SUM_ROWS     4
#define SUM_WIDE     4
#define SUM_WIDE_4   4
#define SUM_WIDE_2   8
#define SUM_WIDE_1   8
#define SUM_DOT_ROWS 2

struct row_levels {
    struct neon_levels levels;
    uint32_t bits;
};

VF_INLINE void row_levels_init(
    struct row_levels *levels, uint16_t scale, uint16_t zero, uint32_t bits)
{
    vf both = vcvt_f32_f16(vreinterpret_f16_u32(vdup_n_u32(scale | (uint32_t)zero << 16)));

    levels->levels = neon_levels_init(vdupq_laneq_f32(both, 0), vdupq_laneq_f32(both, 1), bits);
    levels->bits = bits;
}

VF_INLINE vf row_levels_at(const struct row_levels *levels, const uint8_t *packed)
{
    return neon_levels_at(&levels->levels, packed, levels->bits);
}

#include "lib/kernels/vector/attention.h"
