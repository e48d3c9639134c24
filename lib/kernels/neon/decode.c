/* Packed codes -> floats and halves, NEON. */
#include "lib/kernels/neon/decode_row.h"

#include "lib/kernels/kernels.h"

struct decode_row {
    struct neon_levels levels;
};

VF_INLINE struct decode_row decode_row_init(float scale, float zero, uint32_t bits)
{
    return (struct decode_row){neon_levels_init(vf_set1(scale), vf_set1(zero), bits)};
}

VF_INLINE vf decode_vector(
    const uint8_t *codes, uint32_t c, uint32_t bits, const struct decode_row *row)
{
    return neon_levels_at(&row->levels, codes + (size_t)c * bits / 8, bits);
}

#include "lib/kernels/vector/decode.h"

void kvarn_decode_rows_f32_neon(const struct kvarn__tile_view *view, float *dst)
{
    if (!decode_is_whole(view)) {
        kvarn_decode_rows_f32_scalar(view, dst);
        return;
    }
    decode_rows(view, dst, NULL);
}

void kvarn_decode_columns_f32_neon(const struct kvarn__tile_view *view, float *dst)
{
    if (!decode_is_whole(view)) {
        kvarn_decode_columns_f32_scalar(view, dst);
        return;
    }
    decode_columns(view, dst, NULL);
}

void kvarn_decode_rows_f16_neon(const struct kvarn__tile_view *view, uint16_t *dst)
{
    if (!decode_is_whole(view)) {
        kvarn_decode_rows_f16_scalar(view, dst);
        return;
    }
    decode_rows(view, NULL, dst);
}

void kvarn_decode_columns_f16_neon(const struct kvarn__tile_view *view, uint16_t *dst)
{
    if (!decode_is_whole(view)) {
        kvarn_decode_columns_f16_scalar(view, dst);
        return;
    }
    decode_columns(view, NULL, dst);
}
