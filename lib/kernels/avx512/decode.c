/* Packed codes -> floats and halves, AVX-512. */
#include "lib/kernels/avx512/vec.h"

#include <string.h>

#include "lib/kernels/kernels.h"

/* Levels by code: a look-up takes 4 bits of its index, so for 2 bits the table is there 4 times. */
struct decode_row {
    vf table;
};

VF_INLINE struct decode_row decode_row_init(float scale, float zero, uint32_t bits)
{
    const vf two = _mm512_setr_ps(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
    const vf four = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    vf code = bits == 2 ? two : four;

    return (struct decode_row){vf_add(vf_mul(code, vf_set1(scale)), vf_set1(zero))};
}

/* Whatever lies above the low bits of a lane does not matter to the look-up. */
VF_INLINE vf decode_vector(
    const uint8_t *codes, uint32_t c, uint32_t bits, const struct decode_row *row)
{
    const __m512i by2 =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i by4 = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    __m512i index;

    if (bits == 2) {
        int32_t packed;
        memcpy(&packed, codes + c / 4, sizeof(packed));
        index = _mm512_srlv_epi32(_mm512_set1_epi32(packed), by2);
    } else {
        int32_t packed[2];
        memcpy(packed, codes + c / 2, sizeof(packed));
        __m512i both = _mm512_mask_set1_epi32(_mm512_set1_epi32(packed[0]), 0xff00, packed[1]);
        index = _mm512_srlv_epi32(both, by4);
    }
    return _mm512_permutexvar_ps(index, row->table);
}

#include "lib/kernels/vector/decode.h"

void kvarn_decode_rows_f32_avx512(const struct kvarn__tile_view *view, float *dst)
{
    if (!decode_is_whole(view)) {
        kvarn_decode_rows_f32_avx2(view, dst);
        return;
    }
    decode_rows(view, dst, NULL);
}

void kvarn_decode_columns_f32_avx512(const struct kvarn__tile_view *view, float *dst)
{
    if (!decode_is_whole(view)) {
        kvarn_decode_columns_f32_avx2(view, dst);
        return;
    }
    decode_columns(view, dst, NULL);
}

void kvarn_decode_rows_f16_avx512(const struct kvarn__tile_view *view, uint16_t *dst)
{
    if (!decode_is_whole(view)) {
        kvarn_decode_rows_f16_avx2(view, dst);
        return;
    }
    decode_rows(view, NULL, dst);
}

void kvarn_decode_columns_f16_avx512(const struct kvarn__tile_view *view, uint16_t *dst)
{
    if (!decode_is_whole(view)) {
        kvarn_decode_columns_f16_avx2(view, dst);
        return;
    }
    decode_columns(view, NULL, dst);
}
