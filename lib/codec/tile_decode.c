/* Tile -> rotated float rows. */
#include "kvarn/codec.h"
#include "lib/base/assert.h"
#include "lib/format/layout.h"

/*
 * Row r, column c of the view goes to dst[r * row_stride + c * col_stride]: K comes out with its
 * tokens as rows.
 */
static void view_decode(
    const struct kvarn__tile_view *view, float *dst, size_t row_stride, size_t col_stride)
{
    const struct kvarn__kernels *kernels = kvarn__kernels_get();
    const size_t row_bytes = (size_t)view->cols * view->bits / 8;
    float scale[KVARN__ROW_MAX], zero[KVARN__ROW_MAX], other[KVARN__ROW_MAX];
    uint8_t codes[KVARN__ROW_MAX];

    KVARN_ASSERT(view->rows <= KVARN__ROW_MAX && view->cols <= KVARN__ROW_MAX);
    kernels->half_to_f32(scale, view->scale, view->rows);
    kernels->half_to_f32(zero, view->zero, view->rows);
    kernels->half_to_f32(other, view->other, view->cols);
    for (uint32_t r = 0; r < view->rows; r++) {
        kernels->unpack(view->codes + r * row_bytes, view->cols, view->bits, codes);
        for (uint32_t c = 0; c < view->cols; c++) {
            float value = ((float)codes[c] * scale[r] + zero[r]) * other[c];
            dst[r * row_stride + c * col_stride] = value;
        }
    }
}

void kvarn_tile_decode(const struct kvarn_tile_spec *spec, const void *tile, float *k, float *v)
{
    struct kvarn__tile_view view;

    if (k != NULL) {
        kvarn__tile_k_view(spec, tile, &view);
        view_decode(&view, k, 1, spec->k_dim);
    }
    if (v != NULL) {
        kvarn__tile_v_view(spec, tile, &view);
        view_decode(&view, v, spec->v_dim, 1);
    }
}
