/* Packed codes -> floats and halves, AVX2. */
#include "lib/kernels/avx2/vec.h"

#include <string.h>

#include "lib/kernels/kernels.h"

/* For 2 bits levels by code, there twice: a look-up takes 3 bits of its index. */
struct decode_row {
    vf table, scale, zero;
};

VF_INLINE struct decode_row decode_row_init(float scale, float zero, uint32_t bits)
{
    const vf code = _mm256_setr_ps(0, 1, 2, 3, 0, 1, 2, 3);
    struct decode_row row = {.scale = vf_set1(scale), .zero = vf_set1(zero)};

    row.table = bits == 2 ? vf_add(vf_mul(code, row.scale), row.zero) : row.zero;
    return row;
}

VF_INLINE vf decode_vector(
    const uint8_t *codes, uint32_t c, uint32_t bits, const struct decode_row *row)
{
    const __m256i by2 = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
    const __m256i by4 = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);

    if (bits == 2) {
        uint16_t packed;
        memcpy(&packed, codes + c / 4, sizeof(packed));
        return _mm256_permutevar8x32_ps(
            row->table, _mm256_srlv_epi32(_mm256_set1_epi32(packed), by2));
    }
    int32_t packed;
    memcpy(&packed, codes + c / 2, sizeof(packed));
    __m256i code =
        _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(packed), by4), _mm256_set1_epi32(15));
    return vf_add(vf_mul(_mm256_cvtepi32_ps(code), row->scale), row->zero);
}

#include "lib/kernels/vector/decode.h"

void kvarn_decode_rows_f32_avx2(const struct kvarn__tile_view *view, float *dst)
{
    if (!decode_is_whole(view)) {
        kvarn_decode_rows_f32_scalar(view, dst);
        return;
    }
    decode_rows(view, dst, NULL);
}

void kvarn_decode_columns_f32_avx2(const struct kvarn__tile_view *view, float *dst)
{
    if (!decode_is_whole(view)) {
        kvarn_decode_columns_f32_scalar(view, dst);
        return;
    }
    decode_columns(view, dst, NULL);
}

void kvarn_decode_rows_f16_avx2(const struct kvarn__tile_view *view, uint16_t *dst)
{
    if (!decode_is_whole(view)) {
        kvarn_decode_rows_f16_scalar(view, dst);
        return;
    }
    decode_rows(view, NULL, dst);
}

void kvarn_decode_columns_f16_avx2(const struct kvarn__tile_view *view, uint16_t *dst)
{
    if (!decode_is_whole(view)) {
        kvarn_decode_columns_f16_scalar(view, dst);
        return;
    }
    decode_columns(view, NULL, dst);
}
