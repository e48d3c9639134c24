/*
 * The vector type of the templates in lib/kernels/vector/ for AVX2: 8 floats.
 *
 * Products are fused with sums only where a name says fma.
 */
#ifndef KVARN_KERNELS_AVX2_VEC_H
#define KVARN_KERNELS_AVX2_VEC_H

#include <immintrin.h>
#include <stdint.h>

typedef __m256 vf;

#define VF_LANES  8
#define VF_INLINE static inline __attribute__((always_inline))

VF_INLINE vf vf_load(const float *p)
{
    return _mm256_loadu_ps(p);
}

VF_INLINE void vf_store(float *p, vf a)
{
    _mm256_storeu_ps(p, a);
}

VF_INLINE vf vf_set1(float x)
{
    return _mm256_set1_ps(x);
}

VF_INLINE vf vf_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}

VF_INLINE vf vf_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}

VF_INLINE vf vf_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}

VF_INLINE vf vf_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}

VF_INLINE vf vf_sqrt(vf a)
{
    return _mm256_sqrt_ps(a);
}

/* a * b + c */
VF_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}

/* a * b - c */
VF_INLINE vf vf_fms(vf a, vf b, vf c)
{
    return _mm256_fmsub_ps(a, b, c);
}

/* b where a is NaN */
VF_INLINE vf vf_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}

VF_INLINE vf vf_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}

VF_INLINE vf vf_abs(vf a)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}

/* The larger of both magnitudes; b is not negative. */
VF_INLINE vf vf_max_abs(vf a, vf b)
{
    return vf_max(vf_abs(a), b);
}

/* a > b ? x : y */
VF_INLINE vf vf_select_gt(vf a, vf b, vf x, vf y)
{
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
}

/* The low byte of each lane's bits. */
VF_INLINE void vf_bytes_store(uint8_t *p, vf a)
{
    const __m256i pick = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
        -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    __m256i bytes = _mm256_shuffle_epi8(_mm256_castps_si256(a), pick);
    __m128i both =
        _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));

    _mm_storel_epi64((void *)p, both);
}

/*
 * Round 4 vectors to 0..3 and pack them: 8 bytes. Packing with saturation clamps at 0; NaN gives 0.
 */
VF_INLINE void vf_codes2_store(uint8_t *p, const vf v[4])
{
    const __m256i by4 = _mm256_set1_epi16(0x0401), by16 = _mm256_set1_epi32(0x00100001);
    const __m128i order = _mm_setr_epi8(0, 8, 2, 10, 4, 12, 6, 14, -1, -1, -1, -1, -1, -1, -1, -1);
    const vf most = _mm256_set1_ps(4.0f); /* keeps large values in the range of an integer */
    __m256i i[4];

    for (int j = 0; j < 4; j++) {
        /* min's second operand is what it gives for NaN, and that converts to the least integer */
        i[j] = _mm256_cvtps_epi32(_mm256_min_ps(most, v[j]));
    }
    __m256i words =
        _mm256_packus_epi16(_mm256_packs_epi32(i[0], i[1]), _mm256_packs_epi32(i[2], i[3]));
    __m256i codes = _mm256_min_epu8(words, _mm256_set1_epi8(3));
    __m256i quads = _mm256_madd_epi16(_mm256_maddubs_epi16(codes, by4), by16);
    __m128i halves =
        _mm_packus_epi32(_mm256_castsi256_si128(quads), _mm256_extracti128_si256(quads, 1));

    _mm_storel_epi64((void *)p, _mm_shuffle_epi8(halves, order));
}

VF_INLINE vf vf_half_load(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p));
}

VF_INLINE void vf_half_store(uint16_t *p, vf a)
{
    _mm_storeu_si128((void *)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

VF_INLINE vf vf_bf16_load(const uint16_t *p)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p));

    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

/* Nearest even; a NaN stays one. */
VF_INLINE void vf_bf16_store(uint16_t *p, vf a)
{
    __m256i u = _mm256_castps_si256(a);
    __m256i high = _mm256_srli_epi32(u, 16);
    __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    __m256i rounded = _mm256_blendv_epi8(_mm256_srli_epi32(up, 16), quiet, nan);

    _mm_storeu_si128((void *)p,
        _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1)));
}

/* Transpose 4 x 4 blocks within 128-bit lanes of 4 vectors. */
VF_INLINE void vf_quads_transpose(vf *v, int a, int b, int c, int d)
{
    vf ab_low = _mm256_unpacklo_ps(v[a], v[b]), ab_high = _mm256_unpackhi_ps(v[a], v[b]);
    vf cd_low = _mm256_unpacklo_ps(v[c], v[d]), cd_high = _mm256_unpackhi_ps(v[c], v[d]);

    v[a] = _mm256_shuffle_ps(ab_low, cd_low, 0x44);
    v[b] = _mm256_shuffle_ps(ab_low, cd_low, 0xee);
    v[c] = _mm256_shuffle_ps(ab_high, cd_high, 0x44);
    v[d] = _mm256_shuffle_ps(ab_high, cd_high, 0xee);
}

/* 8 x 8 */
VF_INLINE void vf_transpose(vf v[VF_LANES])
{
    vf_quads_transpose(v, 0, 1, 2, 3);
    vf_quads_transpose(v, 4, 5, 6, 7);
    for (int i = 0; i < 4; i++) {
        vf a = v[i], b = v[i + 4];
        v[i] = _mm256_permute2f128_ps(a, b, 0x20);
        v[i + 4] = _mm256_permute2f128_ps(a, b, 0x31);
    }
}

/* Lane i of the result is OP over all lanes of v[i]. */
#define VF_REDUCE(OP)                                                                      \
    vf s[4], t[2];                                                                         \
    for (int i = 0; i < 4; i++) {                                                          \
        s[i] = OP(_mm256_permute2f128_ps(v[i], v[i + 4], 0x20),                            \
            _mm256_permute2f128_ps(v[i], v[i + 4], 0x31));                                 \
    }                                                                                      \
    for (int i = 0; i < 2; i++) {                                                          \
        t[i] = OP(_mm256_unpacklo_ps(s[i], s[i + 2]), _mm256_unpackhi_ps(s[i], s[i + 2])); \
    }                                                                                      \
    return OP(_mm256_unpacklo_ps(t[0], t[1]), _mm256_unpackhi_ps(t[0], t[1]))

VF_INLINE vf vf_reduce_add(const vf v[VF_LANES])
{
    VF_REDUCE(_mm256_add_ps);
}

VF_INLINE vf vf_reduce_min(const vf v[VF_LANES])
{
    VF_REDUCE(_mm256_min_ps);
}

VF_INLINE vf vf_reduce_max(const vf v[VF_LANES])
{
    VF_REDUCE(_mm256_max_ps);
}

/* The Walsh-Hadamard transform of the lanes, not scaled: at each step a + b and a - b. */
VF_INLINE vf vf_fwht_lanes(vf x)
{
    const vf sign1 = _mm256_setr_ps(0.0f, -0.0f, 0.0f, -0.0f, 0.0f, -0.0f, 0.0f, -0.0f);
    const vf sign2 = _mm256_setr_ps(0.0f, 0.0f, -0.0f, -0.0f, 0.0f, 0.0f, -0.0f, -0.0f);
    const vf sign4 = _mm256_setr_ps(0.0f, 0.0f, 0.0f, 0.0f, -0.0f, -0.0f, -0.0f, -0.0f);

    x = _mm256_add_ps(_mm256_xor_ps(x, sign1), _mm256_permute_ps(x, 0xb1));
    x = _mm256_add_ps(_mm256_xor_ps(x, sign2), _mm256_permute_ps(x, 0x4e));
    return _mm256_add_ps(_mm256_xor_ps(x, sign4), _mm256_permute2f128_ps(x, x, 0x01));
}

#endif
