/* Exact attention on AVX2: lib/kernels/vector/attention.h with 8 floats. */
#include "lib/kernels/avx2/lanes.h"
#include "lib/kernels/kernels.h"

#define ATTENTION_NAME(op) op##_avx2

/* 4 query rows x 2 registers, 1 x 4: of 16 registers, levels and factors need the rest. */
#define SUM_ROWS     4
#define SUM_WIDE     2
#define SUM_WIDE_4   2
#define SUM_WIDE_2   4
#define SUM_WIDE_1   4
#define SUM_DOT_ROWS 1

/* `vpermps` looks at the lowest 3 bits of an index: 4-bit codes are computed instead. */
struct row_levels {
    vf table, scale, zero;
    uint32_t bits;
};

VF_INLINE float half_value(uint16_t half)
{
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
}

VF_INLINE void row_levels_init(
    struct row_levels *levels, uint16_t scale, uint16_t zero, uint32_t bits)
{
    const vf codes = _mm256_set_ps(3, 2, 1, 0, 3, 2, 1, 0);

    levels->scale = vf_set1(half_value(scale));
    levels->zero = vf_set1(half_value(zero));
    levels->table = vf_add(vf_mul(codes, levels->scale), levels->zero);
    levels->bits = bits;
}

VF_INLINE vf row_levels_at(const struct row_levels *levels, const uint8_t *packed)
{
    const __m256i by_two = _mm256_set_epi32(14, 12, 10, 8, 6, 4, 2, 0);
    const __m256i by_four = _mm256_set_epi32(28, 24, 20, 16, 12, 8, 4, 0);
    uint16_t two_bytes;
    int32_t four_bytes;

    if (levels->bits == 2) {
        __builtin_memcpy(&two_bytes, packed, sizeof(two_bytes));
        __m256i idx = _mm256_srlv_epi32(_mm256_set1_epi32(two_bytes), by_two);
        return _mm256_permutevar8x32_ps(levels->table, idx);
    }
    __builtin_memcpy(&four_bytes, packed, sizeof(four_bytes));
    __m256i codes = _mm256_srlv_epi32(_mm256_set1_epi32(four_bytes), by_four);
    vf code = _mm256_cvtepi32_ps(_mm256_and_si256(codes, _mm256_set1_epi32(15)));
    return vf_add(vf_mul(code, levels->scale), levels->zero);
}

#include "lib/kernels/vector/attention.h"
