/*
 * The vector type of the templates in lib/kernels/vector/ for AVX-512: 16 floats.
 *
 * Products are fused with sums only where a name says fma.
 */
#ifndef KVARN_KERNELS_AVX512_VEC_H
#define KVARN_KERNELS_AVX512_VEC_H

#include <immintrin.h>
#include <stdint.h>

typedef __m512 vf;

#define VF_LANES  16
#define VF_INLINE static inline __attribute__((always_inline))

VF_INLINE vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

VF_INLINE void vf_store(float *p, vf a)
{
    _mm512_storeu_ps(p, a);
}

VF_INLINE vf vf_set1(float x)
{
    return _mm512_set1_ps(x);
}

VF_INLINE vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}

VF_INLINE vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}

VF_INLINE vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}

VF_INLINE vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}

VF_INLINE vf vf_sqrt(vf a)
{
    return _mm512_sqrt_ps(a);
}

/* a * b + c */
VF_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}

/* a * b - c */
VF_INLINE vf vf_fms(vf a, vf b, vf c)
{
    return _mm512_fmsub_ps(a, b, c);
}

/* b where a is NaN */
VF_INLINE vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}

VF_INLINE vf vf_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}

VF_INLINE vf vf_abs(vf a)
{
    return _mm512_abs_ps(a);
}

/* The larger of both magnitudes; b is not negative. */
VF_INLINE vf vf_max_abs(vf a, vf b)
{
    return _mm512_range_ps(a, b, 0x0b);
}

/* a > b ? x : y */
VF_INLINE vf vf_select_gt(vf a, vf b, vf x, vf y)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x);
}

/* The low byte of each lane's bits. */
VF_INLINE void vf_bytes_store(uint8_t *p, vf a)
{
    _mm_storeu_si128((void *)p, _mm512_cvtepi32_epi8(_mm512_castps_si512(a)));
}

/*
 * Round 4 vectors to 0..3 and pack them: 16 bytes. Packing with saturation clamps at 0; NaN gives
 * 0.
 */
VF_INLINE void vf_codes2_store(uint8_t *p, const vf v[4])
{
    const __m512i by4 = _mm512_set1_epi16(0x0401), by16 = _mm512_set1_epi32(0x00100001);
    const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const vf most = _mm512_set1_ps(4.0f); /* keeps large values in the range of an integer */
    __m512i i[4];

    for (int j = 0; j < 4; j++) {
        /* min's second operand is what it gives for NaN, and that converts to the least integer */
        i[j] = _mm512_cvtps_epi32(_mm512_min_ps(most, v[j]));
    }
    __m512i words =
        _mm512_packus_epi16(_mm512_packs_epi32(i[0], i[1]), _mm512_packs_epi32(i[2], i[3]));
    __m512i codes = _mm512_min_epu8(words, _mm512_set1_epi8(3));
    __m512i quads = _mm512_madd_epi16(_mm512_maddubs_epi16(codes, by4), by16);

    _mm_storeu_si128((void *)p, _mm_shuffle_epi8(_mm512_cvtepi32_epi8(quads), order));
}

VF_INLINE vf vf_half_load(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
}

VF_INLINE void vf_half_store(uint16_t *p, vf a)
{
    _mm256_storeu_si256((void *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

VF_INLINE vf vf_bf16_load(const uint16_t *p)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p));

    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

/* Nearest even; a NaN stays one. */
VF_INLINE void vf_bf16_store(uint16_t *p, vf a)
{
    __m512i u = _mm512_castps_si512(a);
    __m512i high = _mm512_srli_epi32(u, 16);
    __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    __m512i up = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    __m512i rounded = _mm512_srli_epi32(up, 16);

    rounded = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
    _mm256_storeu_si256((void *)p, _mm512_cvtepi32_epi16(rounded));
}

/* Transpose 4 x 4 blocks within 128-bit lanes of 4 vectors. */
VF_INLINE void vf_quads_transpose(vf *v, int a, int b, int c, int d)
{
    vf ab_low = _mm512_unpacklo_ps(v[a], v[b]), ab_high = _mm512_unpackhi_ps(v[a], v[b]);
    vf cd_low = _mm512_unpacklo_ps(v[c], v[d]), cd_high = _mm512_unpackhi_ps(v[c], v[d]);

    v[a] = _mm512_shuffle_ps(ab_low, cd_low, 0x44);
    v[b] = _mm512_shuffle_ps(ab_low, cd_low, 0xee);
    v[c] = _mm512_shuffle_ps(ab_high, cd_high, 0x44);
    v[d] = _mm512_shuffle_ps(ab_high, cd_high, 0xee);
}

/* Exchange 128-bit lanes so that v[i + 4 j] lane l becomes v[i + 4 l] lane j. */
VF_INLINE void vf_lanes_transpose(vf *v, int i)
{
    vf a = v[i], b = v[i + 4], c = v[i + 8], d = v[i + 12];
    vf ab_even = _mm512_shuffle_f32x4(a, b, 0x88), ab_odd = _mm512_shuffle_f32x4(a, b, 0xdd);
    vf cd_even = _mm512_shuffle_f32x4(c, d, 0x88), cd_odd = _mm512_shuffle_f32x4(c, d, 0xdd);

    v[i] = _mm512_shuffle_f32x4(ab_even, cd_even, 0x88);
    v[i + 4] = _mm512_shuffle_f32x4(ab_odd, cd_odd, 0x88);
    v[i + 8] = _mm512_shuffle_f32x4(ab_even, cd_even, 0xdd);
    v[i + 12] = _mm512_shuffle_f32x4(ab_odd, cd_odd, 0xdd);
}

/* 16 x 16 */
VF_INLINE void vf_transpose(vf v[VF_LANES])
{
    for (int i = 0; i < VF_LANES; i += 4) {
        vf_quads_transpose(v, i, i + 1, i + 2, i + 3);
    }
    for (int i = 0; i < 4; i++) {
        vf_lanes_transpose(v, i);
    }
}

/*
 * Lane i of the result is OP over all lanes of v[i]: each step halves the vectors and keeps, per
 * lane, the partial result of one of two. 15 x 3 instructions for 16 sums.
 */
#define VF_REDUCE(OP)                                                                      \
    vf s[8], t[4], u[2];                                                                   \
    for (int i = 0; i < 8; i++) {                                                          \
        /* v[i] and v[i + 8]: halves of 256 bits */                                        \
        s[i] = OP(_mm512_shuffle_f32x4(v[i], v[i + 8], 0x44),                              \
            _mm512_shuffle_f32x4(v[i], v[i + 8], 0xee));                                   \
    }                                                                                      \
    for (int i = 0; i < 4; i++) {                                                          \
        t[i] = OP(_mm512_shuffle_f32x4(s[i], s[i + 4], 0x88),                              \
            _mm512_shuffle_f32x4(s[i], s[i + 4], 0xdd));                                   \
    }                                                                                      \
    /* t[i] holds, in 128-bit lanes: v[i], v[i + 8], v[i + 4], v[i + 12] */                \
    for (int i = 0; i < 2; i++) {                                                          \
        u[i] = OP(_mm512_unpacklo_ps(t[i], t[i + 2]), _mm512_unpackhi_ps(t[i], t[i + 2])); \
    }                                                                                      \
    vf w = OP(_mm512_unpacklo_ps(u[0], u[1]), _mm512_unpackhi_ps(u[0], u[1]));             \
    return _mm512_shuffle_f32x4(w, w, 0xd8)

VF_INLINE vf vf_reduce_add(const vf v[VF_LANES])
{
    VF_REDUCE(_mm512_add_ps);
}

VF_INLINE vf vf_reduce_min(const vf v[VF_LANES])
{
    VF_REDUCE(_mm512_min_ps);
}

VF_INLINE vf vf_reduce_max(const vf v[VF_LANES])
{
    VF_REDUCE(_mm512_max_ps);
}

/* The Walsh-Hadamard transform of the lanes, not scaled: at each step a + b and a - b. */
VF_INLINE vf vf_fwht_lanes(vf x)
{
    const vf sign1 = _mm512_castsi512_ps(_mm512_set1_epi64((int64_t)UINT64_C(0x8000000000000000)));
    const vf sign2 = _mm512_castsi512_ps(_mm512_set_epi64((int64_t)UINT64_C(0x8000000080000000), 0,
        (int64_t)UINT64_C(0x8000000080000000), 0, (int64_t)UINT64_C(0x8000000080000000), 0,
        (int64_t)UINT64_C(0x8000000080000000), 0));
    const vf minus = _mm512_set1_ps(-0.0f);

    x = _mm512_add_ps(_mm512_xor_ps(x, sign1), _mm512_permute_ps(x, 0xb1));
    x = _mm512_add_ps(_mm512_xor_ps(x, sign2), _mm512_permute_ps(x, 0x4e));
    x = _mm512_add_ps(_mm512_mask_xor_ps(x, 0xf0f0, x, minus), _mm512_shuffle_f32x4(x, x, 0xb1));
    return _mm512_add_ps(_mm512_mask_xor_ps(x, 0xff00, x, minus), _mm512_shuffle_f32x4(x, x, 0x4e));
}

#endif
