/* Lanes of a register that are not all there, and what exp and tanh need, for AVX-512. */
#ifndef KVARN_KERNELS_AVX512_LANES_H
#define KVARN_KERNELS_AVX512_LANES_H

#include "lib/kernels/avx512/vec.h"

VF_INLINE __mmask16 lanes_mask(uint32_t count)
{
    return (__mmask16)((1u << count) - 1);
}

VF_INLINE vf vf_load_some(const float *p, uint32_t count)
{
    return _mm512_maskz_loadu_ps(lanes_mask(count), p);
}

VF_INLINE void vf_store_some(float *p, vf x, uint32_t count)
{
    _mm512_mask_storeu_ps(p, lanes_mask(count), x);
}

VF_INLINE vf vf_half_load_some(const uint16_t *p, uint32_t count)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes_mask(count), p));
}

VF_INLINE vf vf_scale_by_rounded(vf p, vf rounded)
{
    __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(rounded), 23);

    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
}

VF_INLINE vf vf_copysign(vf magnitude, vf sign)
{
    return _mm512_or_ps(magnitude, _mm512_and_ps(sign, _mm512_set1_ps(-0.0f)));
}

#endif
