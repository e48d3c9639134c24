/* Fast attention over one tile on AVX2: lib/kernels/vector/fast.h with 8 floats. */
#include <string.h>

#include "lib/kernels/avx2/fast_dot.h"
#include "lib/kernels/avx2/lanes.h"

#define FAST_NAME(op)     op##_avx2
#define fast_dot_signed   kvarn__fast_dot_signed_avx2
#define fast_dot_unsigned kvarn__fast_dot_unsigned_avx2

VF_INLINE vf vf_from_numbers(const int32_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_loadu_si256((const void *)p));
}

VF_INLINE bool vf_has_negative(vf x)
{
    return _mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ)) != 0;
}

VF_INLINE vf vf_zero_masked(vf x, vf logit)
{
    const vf none = _mm256_set1_ps(-__builtin_inff());

    return _mm256_and_ps(x, _mm256_cmp_ps(logit, none, _CMP_GT_OQ));
}

/* Positions in a tile are far below 2^31, so that signed comparisons serve. */
VF_INLINE vf vf_mask(vf x, uint32_t first, uint32_t step, uint32_t low, uint32_t high)
{
    const __m256i lanes = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    __m256i idx = _mm256_add_epi32(
        _mm256_mullo_epi32(lanes, _mm256_set1_epi32((int)step)), _mm256_set1_epi32((int)first));
    __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)low), idx);
    __m256i within = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)high), idx);
    vf is_in = _mm256_castsi256_ps(_mm256_andnot_si256(below, within));

    return _mm256_blendv_ps(_mm256_set1_ps(-__builtin_inff()), x, is_in);
}

/* Four registers' lanes, folded to 4 each by the same tree: lane i of the result is of i. */
#define FOLD4(OP, OP128, x, dst)                                                                 \
    do {                                                                                         \
        vf ab_ = OP(_mm256_unpacklo_ps(x[0], x[1]), _mm256_unpackhi_ps(x[0], x[1]));             \
        vf cd_ = OP(_mm256_unpacklo_ps(x[2], x[3]), _mm256_unpackhi_ps(x[2], x[3]));             \
        vf all_ = OP(_mm256_shuffle_ps(ab_, cd_, 0x44), _mm256_shuffle_ps(ab_, cd_, 0xee));      \
        _mm_storeu_ps(dst, OP128(_mm256_castps256_ps128(all_), _mm256_extractf128_ps(all_, 1))); \
    } while (0)

VF_INLINE void fold_sum(const vf x[FAST_ROWS], float dst[FAST_ROWS])
{
    FOLD4(_mm256_add_ps, _mm_add_ps, x, dst);
}

VF_INLINE void fold_max(const vf x[FAST_ROWS], float dst[FAST_ROWS])
{
    FOLD4(_mm256_max_ps, _mm_max_ps, x, dst);
}

VF_INLINE __m128i eight_shuffled(const uint16_t *p, __m128i order)
{
    return _mm_shuffle_epi8(_mm_loadu_si128((const void *)p), order);
}

/* 32 halves of four planes -> 8 floats of each, at dst, dst + 16, ... */
VF_INLINE void planes_of_four(const uint16_t *src, float *dst)
{
    /* Halves m and 4 + m side by side: the dword of plane m. */
    const __m128i order = _mm_set_epi8(15, 14, 7, 6, 13, 12, 5, 4, 11, 10, 3, 2, 9, 8, 1, 0);
    __m128i a = eight_shuffled(src, order), b = eight_shuffled(src + 8, order);
    __m128i c = eight_shuffled(src + 16, order), d = eight_shuffled(src + 24, order);
    __m128i ab_low = _mm_unpacklo_epi32(a, b), ab_high = _mm_unpackhi_epi32(a, b);
    __m128i cd_low = _mm_unpacklo_epi32(c, d), cd_high = _mm_unpackhi_epi32(c, d);

    vf_store(dst, _mm256_cvtph_ps(_mm_unpacklo_epi64(ab_low, cd_low)));
    vf_store(dst + 16, _mm256_cvtph_ps(_mm_unpackhi_epi64(ab_low, cd_low)));
    vf_store(dst + 32, _mm256_cvtph_ps(_mm_unpacklo_epi64(ab_high, cd_high)));
    vf_store(dst + 48, _mm256_cvtph_ps(_mm_unpackhi_epi64(ab_high, cd_high)));
}

/* 16 halves of two planes -> 8 floats of each, at dst and dst + 16. */
VF_INLINE void planes_of_two(const uint16_t *src, float *dst)
{
    const __m128i order = _mm_set_epi8(15, 14, 11, 10, 7, 6, 3, 2, 13, 12, 9, 8, 5, 4, 1, 0);
    __m128i a = eight_shuffled(src, order), b = eight_shuffled(src + 8, order);

    vf_store(dst, _mm256_cvtph_ps(_mm_unpacklo_epi64(a, b)));
    vf_store(dst + 16, _mm256_cvtph_ps(_mm_unpackhi_epi64(a, b)));
}

static void halves_pack(const uint16_t *src, uint32_t count, uint32_t bits, float *dst)
{
    const uint32_t block = KVARN__PACKED_COLUMNS * 8 / bits;

    for (uint32_t i = 0; i < count; i += block) {
        uint16_t some[KVARN__PACKED_COLUMNS * 4] = {0};
        const uint16_t *from = src + i;
        if (count - i < block) {
            memcpy(some, from, (count - i) * sizeof(*some));
            from = some;
        }
        if (bits == 2) {
            planes_of_four(from, dst + i);
            planes_of_four(from + 32, dst + i + 8);
        } else {
            planes_of_two(from, dst + i);
            planes_of_two(from + 16, dst + i + 8);
        }
    }
}

/* rint(q * scale * inverse) of 8 channels, of which those before `end` are there. */
VF_INLINE __m256i round_channels(
    const float *q, const float *scale, vf inverse, uint32_t at, uint32_t end)
{
    vf x = _mm256_setzero_ps();

    if (at + VF_LANES <= end) {
        x = vf_load(q + at);
    } else if (at < end) {
        x = vf_load_some(q + at, end - at);
    }
    return _mm256_cvtps_epi32(vf_mul(vf_mul(x, vf_load(scale + at)), inverse));
}

/* Sums of bytes times `ones`, by lanes; bytes and ones as vpmaddubsw wants them. */
VF_INLINE __m256i bytes_sum(__m256i sum, __m256i u8, __m256i s8)
{
    __m256i words = _mm256_maddubs_epi16(u8, s8);

    return _mm256_add_epi32(sum, _mm256_madd_epi16(words, _mm256_set1_epi16(1)));
}

VF_INLINE vf numbers_signed(
    const float *q, const float *scale, float inverse, uint32_t count, uint8_t *dst)
{
    /* Packing works within 128-bit lanes: dword 4 l + k comes from register k. */
    const __m256i order = _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0);
    const vf by = vf_set1(inverse);
    __m256i sum = _mm256_setzero_si256();

    for (uint32_t i = 0; i < (count + 63) / 64 * 64; i += 32) {
        __m256i low = _mm256_packs_epi32(
            round_channels(q, scale, by, i, count), round_channels(q, scale, by, i + 8, count));
        __m256i high = _mm256_packs_epi32(round_channels(q, scale, by, i + 16, count),
            round_channels(q, scale, by, i + 24, count));
        __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
        _mm256_store_si256((void *)(dst + i), bytes);
        sum = bytes_sum(sum, _mm256_set1_epi8(1), bytes);
    }
    return _mm256_cvtepi32_ps(sum);
}

VF_INLINE __m256i round_positive(const float *y, vf inverse)
{
    return _mm256_cvtps_epi32(_mm256_max_ps(vf_mul(vf_load(y), inverse), _mm256_setzero_ps()));
}

/* Numbers of planes m and m + 1 of 8 columns, in the lower two bytes of each. */
VF_INLINE __m256i pairs_of(const float *y, vf inverse)
{
    return _mm256_or_si256(
        round_positive(y, inverse), _mm256_slli_epi32(round_positive(y + 16, inverse), 8));
}

VF_INLINE vf numbers_unsigned(
    const float *y, float inverse, uint32_t count, uint32_t bits, uint8_t *dst)
{
    const vf by = vf_set1(inverse);
    __m256i sum = _mm256_setzero_si256();

    for (uint32_t i = 0; i < count; i += 32) {
        __m256i bytes;
        if (bits == 2) {
            /* Four planes: four bytes of one of 8 columns are four tokens. */
            const float *from = y + i / 64 * 64 + i % 64 / 4;
            __m256i high = _mm256_slli_epi32(pairs_of(from + 32, by), 16);
            bytes = _mm256_or_si256(pairs_of(from, by), high);
        } else {
            /* Two planes: two bytes of one of 16 columns are two tokens. */
            __m256i words = _mm256_packus_epi32(pairs_of(y + i, by), pairs_of(y + i + 8, by));
            bytes = _mm256_permute4x64_epi64(words, 0xd8);
        }
        _mm256_store_si256((void *)(dst + i), bytes);
        sum = bytes_sum(sum, bytes, _mm256_set1_epi8(1));
    }
    return _mm256_cvtepi32_ps(sum);
}

#include "lib/kernels/vector/fast.h"
