/*
 * The vector type of the templates in lib/kernels/vector/ for AArch64: 4 floats.
 *
 * Products are fused with sums only where a name says fma.
 */
#ifndef KVARN_KERNELS_NEON_VEC_H
#define KVARN_KERNELS_NEON_VEC_H

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

typedef float32x4_t vf;

#define VF_LANES  4
#define VF_INLINE static inline __attribute__((always_inline))

VF_INLINE vf vf_load(const float *p)
{
    return vld1q_f32(p);
}

VF_INLINE void vf_store(float *p, vf a)
{
    vst1q_f32(p, a);
}

VF_INLINE vf vf_set1(float x)
{
    return vdupq_n_f32(x);
}

VF_INLINE vf vf_add(vf a, vf b)
{
    return vaddq_f32(a, b);
}

VF_INLINE vf vf_sub(vf a, vf b)
{
    return vsubq_f32(a, b);
}

VF_INLINE vf vf_mul(vf a, vf b)
{
    return vmulq_f32(a, b);
}

VF_INLINE vf vf_div(vf a, vf b)
{
    return vdivq_f32(a, b);
}

VF_INLINE vf vf_sqrt(vf a)
{
    return vsqrtq_f32(a);
}

/* a * b + c */
VF_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return vfmaq_f32(c, a, b);
}

/* a * b - c */
VF_INLINE vf vf_fms(vf a, vf b, vf c)
{
    return vfmaq_f32(vnegq_f32(c), a, b);
}

/* b where a is NaN */
VF_INLINE vf vf_max(vf a, vf b)
{
    return vmaxnmq_f32(a, b);
}

VF_INLINE vf vf_min(vf a, vf b)
{
    return vminnmq_f32(a, b);
}

VF_INLINE vf vf_abs(vf a)
{
    return vabsq_f32(a);
}

/* The larger of both magnitudes; b is not negative. */
VF_INLINE vf vf_max_abs(vf a, vf b)
{
    return vf_max(vf_abs(a), b);
}

/* a > b ? x : y */
VF_INLINE vf vf_select_gt(vf a, vf b, vf x, vf y)
{
    return vbslq_f32(vcgtq_f32(a, b), x, y);
}

/* Four bytes: the low one of each lane. */
VF_INLINE void vf_four_store(uint8_t *p, uint32x4_t lanes)
{
    uint16x4_t words = vmovn_u32(lanes);
    uint8x8_t bytes = vmovn_u16(vcombine_u16(words, words));
    uint32_t four = vget_lane_u32(vreinterpret_u32_u8(bytes), 0);

    memcpy(p, &four, sizeof(four));
}

/* The low byte of each lane's bits. */
VF_INLINE void vf_bytes_store(uint8_t *p, vf a)
{
    vf_four_store(p, vreinterpretq_u32_f32(a));
}

/*
 * Round 4 vectors to 0..3 and pack them: 4 bytes. Narrowing with saturation clamps at 0; NaN gives
 * 0. A dot product with (1, 4, 16, 64) joins the codes of a byte.
 */
VF_INLINE void vf_codes2_store(uint8_t *p, const vf v[4])
{
    const uint8x16_t places = vreinterpretq_u8_u32(vdupq_n_u32(0x40100401));
    uint16x4_t a = vqmovun_s32(vcvtnq_s32_f32(v[0])), b = vqmovun_s32(vcvtnq_s32_f32(v[1]));
    uint16x4_t c = vqmovun_s32(vcvtnq_s32_f32(v[2])), d = vqmovun_s32(vcvtnq_s32_f32(v[3]));
    uint8x16_t codes = vcombine_u8(vqmovn_u16(vcombine_u16(a, b)), vqmovn_u16(vcombine_u16(c, d)));

    codes = vminq_u8(codes, vdupq_n_u8(3));
    vf_four_store(p, vdotq_u32(vdupq_n_u32(0), codes, places));
}

VF_INLINE vf vf_half_load(const uint16_t *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}

VF_INLINE void vf_half_store(uint16_t *p, vf a)
{
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a)));
}

VF_INLINE vf vf_bf16_load(const uint16_t *p)
{
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}

/* Nearest even; a NaN stays one. */
VF_INLINE void vf_bf16_store(uint16_t *p, vf a)
{
    uint32x4_t u = vreinterpretq_u32_f32(a);
    uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
    uint32x4_t up = vaddq_u32(vaddq_u32(u, vdupq_n_u32(0x7fff)), odd);
    uint32x4_t quiet = vorrq_u32(u, vdupq_n_u32(0x400000));

    vst1_u16(p, vshrn_n_u32(vbslq_u32(vceqq_f32(a, a), up, quiet), 16));
}

/* Even or odd pairs of lanes of two vectors. */
VF_INLINE vf vf_pairs_low(vf a, vf b)
{
    return vcombine_f32(vget_low_f32(a), vget_low_f32(b));
}

VF_INLINE vf vf_pairs_high(vf a, vf b)
{
    return vcombine_f32(vget_high_f32(a), vget_high_f32(b));
}

/* 4 x 4 */
VF_INLINE void vf_transpose(vf v[VF_LANES])
{
    vf ab_even = vtrn1q_f32(v[0], v[1]), ab_odd = vtrn2q_f32(v[0], v[1]);
    vf cd_even = vtrn1q_f32(v[2], v[3]), cd_odd = vtrn2q_f32(v[2], v[3]);

    v[0] = vf_pairs_low(ab_even, cd_even);
    v[1] = vf_pairs_low(ab_odd, cd_odd);
    v[2] = vf_pairs_high(ab_even, cd_even);
    v[3] = vf_pairs_high(ab_odd, cd_odd);
}

/* Lane i of the result is the sum over all lanes of v[i]. */
VF_INLINE vf vf_reduce_add(const vf v[VF_LANES])
{
    return vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3]));
}

VF_INLINE vf vf_reduce_min(const vf v[VF_LANES])
{
    return vpminnmq_f32(vpminnmq_f32(v[0], v[1]), vpminnmq_f32(v[2], v[3]));
}

VF_INLINE vf vf_reduce_max(const vf v[VF_LANES])
{
    return vpmaxnmq_f32(vpmaxnmq_f32(v[0], v[1]), vpmaxnmq_f32(v[2], v[3]));
}

/* Flip the signs of those lanes whose bit is set. */
VF_INLINE vf vf_flip(vf x, uint32_t lanes)
{
    const uint32x4_t bit = {1, 2, 4, 8};
    uint32x4_t is_set = vtstq_u32(vdupq_n_u32(lanes), bit);

    return vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(x), vshlq_n_u32(is_set, 31)));
}

/* The Walsh-Hadamard transform of the lanes, not scaled: at each step a + b and a - b. */
VF_INLINE vf vf_fwht_lanes(vf x)
{
    x = vaddq_f32(vf_flip(x, 0xa), vrev64q_f32(x));
    return vaddq_f32(vf_flip(x, 0xc), vextq_f32(x, x, 2));
}

#endif
