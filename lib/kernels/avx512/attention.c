/* Exact attention on AVX-512: lib/kernels/vector/attention.h with 16 floats. */
#include "lib/kernels/avx512/lanes.h"
#include "lib/kernels/kernels.h"

#define ATTENTION_NAME(op) op##_avx512

/* 12 query rows x 2 registers, 4 x 4, 1 x 8: of 32 registers, levels and factors need the rest. */
#define SUM_ROWS     12
#define SUM_WIDE     2
#define SUM_WIDE_4   4
#define SUM_WIDE_2   8
#define SUM_WIDE_1   8
#define SUM_DOT_ROWS 1

/* `vpermps` looks at the lowest 4 bits of an index: of 2-bit codes, two. */
struct row_levels {
    vf table;
    uint32_t bits;
};

VF_INLINE float half_value(uint16_t half)
{
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
}

VF_INLINE void row_levels_init(
    struct row_levels *levels, uint16_t scale, uint16_t zero, uint32_t bits)
{
    const vf two = _mm512_set_ps(3, 2, 1, 0, 3, 2, 1, 0, 3, 2, 1, 0, 3, 2, 1, 0);
    const vf four = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    vf codes = bits == 2 ? two : four;

    levels->table = vf_add(vf_mul(codes, vf_set1(half_value(scale))), vf_set1(half_value(zero)));
    levels->bits = bits;
}

VF_INLINE vf row_levels_at(const struct row_levels *levels, const uint8_t *packed)
{
    const __m512i by_two =
        _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i by_four =
        _mm512_set_epi32(28, 24, 20, 16, 12, 8, 4, 0, 28, 24, 20, 16, 12, 8, 4, 0);
    const __m512i halves = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    __m512i idx;

    if (levels->bits == 2) {
        int32_t four_bytes;
        __builtin_memcpy(&four_bytes, packed, sizeof(four_bytes));
        idx = _mm512_srlv_epi32(_mm512_set1_epi32(four_bytes), by_two);
    } else {
        __m512i bytes = _mm512_castsi128_si512(_mm_loadl_epi64((const void *)packed));
        idx = _mm512_srlv_epi32(_mm512_permutexvar_epi32(halves, bytes), by_four);
    }
    return _mm512_permutexvar_ps(idx, levels->table);
}

#include "lib/kernels/vector/attention.h"
