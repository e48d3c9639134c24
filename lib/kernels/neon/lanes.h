/* Lanes of a register that are not all there, and what exp and tanh need, for NEON. */
#ifndef KVARN_KERNELS_NEON_LANES_H
#define KVARN_KERNELS_NEON_LANES_H

#include "lib/kernels/neon/vec.h"

/* What is there of a register. */
VF_INLINE vf vf_load_some(const float *p, uint32_t count)
{
    float some[VF_LANES] = {0};

    memcpy(some, p, count * sizeof(*some));
    return vf_load(some);
}

VF_INLINE void vf_store_some(float *p, vf x, uint32_t count)
{
    float some[VF_LANES];

    vf_store(some, x);
    memcpy(p, some, count * sizeof(*some));
}

VF_INLINE vf vf_half_load_some(const uint16_t *p, uint32_t count)
{
    uint16_t some[VF_LANES] = {0};

    memcpy(some, p, count * sizeof(*some));
    return vf_half_load(some);
}

VF_INLINE vf vf_scale_by_rounded(vf p, vf rounded)
{
    int32x4_t exponent = vshlq_n_s32(vreinterpretq_s32_f32(rounded), 23);

    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), exponent));
}

VF_INLINE vf vf_copysign(vf magnitude, vf sign)
{
    return vbslq_f32(vdupq_n_u32(0x80000000u), sign, magnitude);
}

#endif
