/* Elementary functions of attention on AVX-512, and sums across lanes in one fixed order. */
#ifndef KVARN_KERNELS_AVX512_ATTENTION_MATH_H
#define KVARN_KERNELS_AVX512_ATTENTION_MATH_H

#include <immintrin.h>

/* Adding it to a float within 2^22 rounds to a whole number, which its lowest bits then hold. */
#define KVARN__ROUND_MAGIC 12582912.0f

/* exp(-87) is about the smallest normal float: what is less weighs nothing. */
#define KVARN__EXP_MIN (-87.0f)

/* p * 2^n for the whole number n that `rounded` (x + magic) holds; the product stays normal. */
static inline __m512 kvarn__scale_by_rounded(__m512 p, __m512 rounded)
{
    __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(rounded), 23);

    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
}

/*
 * exp(x) for x <= 0 to 3e-6: 2^(x log2 e) by the nearest whole power of two and a polynomial of
 * degree 4 (minimax in relative error over [-0.5, 0.5]).
 */
static inline __m512 kvarn__exp_fast(__m512 x)
{
    const __m512 log2e = _mm512_set1_ps(1.44269504f);
    const __m512 magic = _mm512_set1_ps(KVARN__ROUND_MAGIC);

    x = _mm512_max_ps(x, _mm512_set1_ps(KVARN__EXP_MIN));
    __m512 rounded = _mm512_fmadd_ps(x, log2e, magic);
    __m512 f = _mm512_fmsub_ps(x, log2e, _mm512_sub_ps(rounded, magic));
    __m512 p = _mm512_set1_ps(0.00957010210f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.05591785908f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.24024744332f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.69312179089f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.99999928474f));
    return kvarn__scale_by_rounded(p, rounded);
}

/* exp(x) to 2 units in the last place for x in [-87, 88]: ln 2 in two parts, degree 6. */
static inline __m512 kvarn__exp(__m512 x)
{
    const __m512 magic = _mm512_set1_ps(KVARN__ROUND_MAGIC);

    x = _mm512_max_ps(x, _mm512_set1_ps(KVARN__EXP_MIN));
    x = _mm512_min_ps(x, _mm512_set1_ps(88.0f));
    __m512 rounded = _mm512_fmadd_ps(x, _mm512_set1_ps(1.44269504f), magic);
    __m512 n = _mm512_sub_ps(rounded, magic);
    __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    f = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), f);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(f, f), _mm512_add_ps(f, _mm512_set1_ps(1.0f)));
    return kvarn__scale_by_rounded(p, rounded);
}

/* tanh(x): a polynomial near 0, where 1 - 2 / (exp(2x) + 1) cancels; Cephes' coefficients. */
static inline __m512 kvarn__tanh(__m512 x)
{
    const __m512 one = _mm512_set1_ps(1.0f), two = _mm512_set1_ps(2.0f);
    __m512 a = _mm512_abs_ps(x), z = _mm512_mul_ps(x, x);
    __m512 e = kvarn__exp(_mm512_mul_ps(two, a));
    __m512 far = _mm512_sub_ps(one, _mm512_div_ps(two, _mm512_add_ps(e, one)));
    __m512 p = _mm512_set1_ps(-5.70498872745e-3f);

    p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(2.06390887954e-2f));
    p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(-5.37397155531e-2f));
    p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(1.33314422036e-1f));
    p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(-3.33332819422e-1f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, z), a, a);
    __mmask16 is_far = _mm512_cmp_ps_mask(a, _mm512_set1_ps(0.625f), _CMP_GT_OQ);
    __m512 magnitude = _mm512_mask_mov_ps(p, is_far, far);
    return _mm512_or_ps(magnitude, _mm512_and_ps(x, _mm512_set1_ps(-0.0f)));
}

/* The four registers' lanes, folded to 4 each by the same tree: lane i of the result is of i. */
#define KVARN__FOLD4(result, combine, a, b, c, d)                                                \
    do {                                                                                         \
        __m512 ab_ = combine(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));                \
        __m512 cd_ = combine(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));                \
        __m512 all_ = combine(                                                                   \
            _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab_), _mm512_castps_pd(cd_))),  \
            _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab_), _mm512_castps_pd(cd_)))); \
        all_ = combine(all_, _mm512_shuffle_f32x4(all_, all_, 0x4e));                            \
        all_ = combine(all_, _mm512_shuffle_f32x4(all_, all_, 0xb1));                            \
        (result) = _mm512_castps512_ps128(all_);                                                 \
    } while (0)

/* Lane i: the sum of x[i]'s lanes. */
static inline __m128 kvarn__sum4(const __m512 x[4])
{
    __m128 result;

    KVARN__FOLD4(result, _mm512_add_ps, x[0], x[1], x[2], x[3]);
    return result;
}

/* Lane i: the largest of x[i]'s lanes. */
static inline __m128 kvarn__max4(const __m512 x[4])
{
    __m128 result;

    KVARN__FOLD4(result, _mm512_max_ps, x[0], x[1], x[2], x[3]);
    return result;
}

#endif
