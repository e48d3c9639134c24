/* Fast attention over one tile on AVX-512: lib/kernels/vector/fast.h with 16 floats. */
#include "lib/kernels/avx512/fast_dot.h"
#include "lib/kernels/avx512/lanes.h"

#define FAST_NAME(op)     op##_avx512
#define fast_dot_signed   kvarn__fast_dot_signed_avx512
#define fast_dot_unsigned kvarn__fast_dot_unsigned_avx512

VF_INLINE vf vf_from_numbers(const int32_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_loadu_si512(p));
}

VF_INLINE bool vf_has_negative(vf x)
{
    return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ) != 0;
}

VF_INLINE vf vf_zero_masked(vf x, vf logit)
{
    const vf none = _mm512_set1_ps(-__builtin_inff());

    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(logit, none, _CMP_GT_OQ), x);
}

VF_INLINE __m512i lane_idx(uint32_t first, uint32_t step)
{
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);

    return _mm512_add_epi32(
        _mm512_mullo_epi32(lanes, _mm512_set1_epi32((int)step)), _mm512_set1_epi32((int)first));
}

VF_INLINE vf vf_mask(vf x, uint32_t first, uint32_t step, uint32_t low, uint32_t high)
{
    __m512i idx = lane_idx(first, step);
    __mmask16 is_in = _mm512_cmpge_epu32_mask(idx, _mm512_set1_epi32((int)low)) &
                      _mm512_cmplt_epu32_mask(idx, _mm512_set1_epi32((int)high));

    return _mm512_mask_mov_ps(_mm512_set1_ps(-__builtin_inff()), is_in, x);
}

/* Four registers' lanes, folded to 4 each by the same tree: lane i of the result is of i. */
#define FOLD4(OP, x, dst)                                                                   \
    do {                                                                                    \
        vf ab_ = OP(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));        \
        vf cd_ = OP(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));        \
        vf all_ = OP(_mm512_shuffle_ps(ab_, cd_, 0x44), _mm512_shuffle_ps(ab_, cd_, 0xee)); \
        all_ = OP(all_, _mm512_shuffle_f32x4(all_, all_, 0x4e));                            \
        all_ = OP(all_, _mm512_shuffle_f32x4(all_, all_, 0xb1));                            \
        _mm_storeu_ps(dst, _mm512_castps512_ps128(all_));                                   \
    } while (0)

VF_INLINE void fold_sum(const vf x[FAST_ROWS], float dst[FAST_ROWS])
{
    FOLD4(_mm512_add_ps, x, dst);
}

VF_INLINE void fold_max(const vf x[FAST_ROWS], float dst[FAST_ROWS])
{
    FOLD4(_mm512_max_ps, x, dst);
}

/* 32 halves from `p`, of which `count` are there. */
VF_INLINE __m512i halves_some(const uint16_t *p, uint32_t count)
{
    return _mm512_maskz_loadu_epi16(count >= 32 ? 0xffffffffu : (1u << count) - 1, p);
}

VF_INLINE void halves_store(float *dst, __m512i planes)
{
    vf_store(dst, _mm512_cvtph_ps(_mm512_castsi512_si256(planes)));
    vf_store(dst + 16, _mm512_cvtph_ps(_mm512_extracti64x4_epi64(planes, 1)));
}

/* Which halves make two planes of 16: the first, first + step, ..., then those one further. */
VF_INLINE __m512i planes_from(uint32_t first, uint32_t step)
{
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(lane_idx(first, step))),
        _mm512_cvtepi32_epi16(lane_idx(first + 1, step)), 1);
}

static void halves_pack(const uint16_t *src, uint32_t count, uint32_t bits, float *dst)
{
    if (bits == 4) {
        for (uint32_t i = 0; i < count; i += 32) {
            __m512i halves = halves_some(src + i, count - i);
            halves_store(dst + i, _mm512_permutexvar_epi16(planes_from(0, 2), halves));
        }
        return;
    }
    for (uint32_t i = 0; i < count; i += 64) {
        __m512i low = halves_some(src + i, count - i);
        __m512i high =
            count - i > 32 ? halves_some(src + i + 32, count - i - 32) : _mm512_setzero_si512();
        halves_store(dst + i, _mm512_permutex2var_epi16(low, planes_from(0, 4), high));
        halves_store(dst + i + 32, _mm512_permutex2var_epi16(low, planes_from(2, 4), high));
    }
}

/* rint(q * scale * inverse) of 16 channels, of which those before `end` are there. */
VF_INLINE __m512i round_channels(
    const float *q, const float *scale, vf inverse, uint32_t at, uint32_t end)
{
    vf x = _mm512_setzero_ps();

    if (at + VF_LANES <= end) {
        x = vf_load(q + at);
    } else if (at < end) {
        x = vf_load_some(q + at, end - at);
    }
    return _mm512_cvtps_epi32(vf_mul(vf_mul(x, vf_load(scale + at)), inverse));
}

VF_INLINE vf numbers_signed(
    const float *q, const float *scale, float inverse, uint32_t count, uint8_t *dst)
{
    /* Packing works within 128-bit lanes: dword 4 k + l comes out at 4 l + k. */
    const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    const vf by = vf_set1(inverse);
    __m512i sum = _mm512_setzero_si512();

    for (uint32_t i = 0; i < count; i += 64) {
        __m512i low = _mm512_packs_epi32(
            round_channels(q, scale, by, i, count), round_channels(q, scale, by, i + 16, count));
        __m512i high = _mm512_packs_epi32(round_channels(q, scale, by, i + 32, count),
            round_channels(q, scale, by, i + 48, count));
        __m512i bytes = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high));
        _mm512_store_si512(dst + i, bytes);
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), bytes);
    }
    return _mm512_cvtepi32_ps(sum);
}

VF_INLINE __m512i round_positive(const float *y, vf inverse)
{
    return _mm512_cvtps_epi32(_mm512_max_ps(vf_mul(vf_load(y), inverse), _mm512_setzero_ps()));
}

VF_INLINE __m512i pairs_of(const float *y, vf inverse)
{
    return _mm512_or_si512(
        round_positive(y, inverse), _mm512_slli_epi32(round_positive(y + 16, inverse), 8));
}

VF_INLINE vf numbers_unsigned(
    const float *y, float inverse, uint32_t count, uint32_t bits, uint8_t *dst)
{
    const vf by = vf_set1(inverse);
    __m512i sum = _mm512_setzero_si512();

    for (uint32_t i = 0; i < count; i += 64) {
        __m512i low = pairs_of(y + i, by), high = pairs_of(y + i + 32, by), bytes;
        if (bits == 2) {
            /* Four planes: four bytes of one column are four tokens. */
            bytes = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
        } else {
            /* Two blocks of two planes: two bytes of one column are two tokens. */
            bytes = _mm512_inserti64x4(
                _mm512_castsi256_si512(_mm512_cvtepi32_epi16(low)), _mm512_cvtepi32_epi16(high), 1);
        }
        _mm512_store_si512(dst + i, bytes);
        sum = _mm512_dpbusd_epi32(sum, bytes, _mm512_set1_epi8(1));
    }
    return _mm512_cvtepi32_ps(sum);
}

#include "lib/kernels/vector/fast.h"
