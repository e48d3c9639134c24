/* Lanes of a register that are not all there, and what exp and tanh need, for AVX2. */
#ifndef KVARN_KERNELS_AVX2_LANES_H
#define KVARN_KERNELS_AVX2_LANES_H

#include "lib/kernels/avx2/vec.h"

/* What is there of a register: no mask loads, since fewer than 8 never come where speed counts. */
VF_INLINE vf vf_load_some(const float *p, uint32_t count)
{
    float some[VF_LANES] = {0};

    __builtin_memcpy(some, p, count * sizeof(*some));
    return vf_load(some);
}

VF_INLINE void vf_store_some(float *p, vf x, uint32_t count)
{
    float some[VF_LANES];

    vf_store(some, x);
    __builtin_memcpy(p, some, count * sizeof(*some));
}

VF_INLINE vf vf_half_load_some(const uint16_t *p, uint32_t count)
{
    uint16_t some[VF_LANES] = {0};

    __builtin_memcpy(some, p, count * sizeof(*some));
    return vf_half_load(some);
}

VF_INLINE vf vf_scale_by_rounded(vf p, vf rounded)
{
    __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(rounded), 23);

    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
}

VF_INLINE vf vf_copysign(vf magnitude, vf sign)
{
    return _mm256_or_ps(magnitude, _mm256_and_ps(sign, _mm256_set1_ps(-0.0f)));
}

#endif
