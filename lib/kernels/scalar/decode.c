/* Packed codes -> floats and halves, scalar: (code * scale + zero) * other, each step rounded. */
#include "lib/base/assert.h"
#include "lib/kernels/kernels.h"

/* Row r of the view. */
static void row_decode(
    const struct kvarn__tile_view *view, const float *other, uint32_t r, float *dst)
{
    uint8_t codes[KVARN__ROW_MAX];
    float scale, zero;

    kvarn_unpack_u8_u8_scalar(
        view->codes + (size_t)r * view->cols * view->bits / 8, view->cols, view->bits, codes);
    kvarn_convert_f16_f32_scalar(&scale, view->scale + r, 1);
    kvarn_convert_f16_f32_scalar(&zero, view->zero + r, 1);
    for (uint32_t c = 0; c < view->cols; c++) {
        dst[c] = ((float)codes[c] * scale + zero) * other[c];
    }
}

void kvarn_decode_rows_f32_scalar(const struct kvarn__tile_view *view, float *dst)
{
    float other[KVARN__ROW_MAX];

    KVARN_ASSERT(view->cols <= KVARN__ROW_MAX);
    kvarn_convert_f16_f32_scalar(other, view->other, view->cols);
    for (uint32_t r = 0; r < view->rows; r++) {
        row_decode(view, other, r, dst + (size_t)r * view->cols);
    }
}

void kvarn_decode_columns_f32_scalar(const struct kvarn__tile_view *view, float *dst)
{
    float other[KVARN__ROW_MAX], row[KVARN__ROW_MAX];

    KVARN_ASSERT(view->cols <= KVARN__ROW_MAX);
    kvarn_convert_f16_f32_scalar(other, view->other, view->cols);
    for (uint32_t r = 0; r < view->rows; r++) {
        row_decode(view, other, r, row);
        for (uint32_t c = 0; c < view->cols; c++) {
            dst[(size_t)c * view->rows + r] = row[c];
        }
    }
}

void kvarn_decode_rows_f16_scalar(const struct kvarn__tile_view *view, uint16_t *dst)
{
    float other[KVARN__ROW_MAX], row[KVARN__ROW_MAX];

    KVARN_ASSERT(view->cols <= KVARN__ROW_MAX);
    kvarn_convert_f16_f32_scalar(other, view->other, view->cols);
    for (uint32_t r = 0; r < view->rows; r++) {
        row_decode(view, other, r, row);
        kvarn_convert_f32_f16_scalar(dst + (size_t)r * view->cols, row, view->cols);
    }
}

void kvarn_decode_columns_f16_scalar(const struct kvarn__tile_view *view, uint16_t *dst)
{
    float other[KVARN__ROW_MAX], row[KVARN__ROW_MAX];
    uint16_t halves[KVARN__ROW_MAX];

    KVARN_ASSERT(view->cols <= KVARN__ROW_MAX);
    kvarn_convert_f16_f32_scalar(other, view->other, view->cols);
    for (uint32_t r = 0; r < view->rows; r++) {
        row_decode(view, other, r, row);
        kvarn_convert_f32_f16_scalar(halves, row, view->cols);
        for (uint32_t c = 0; c < view->cols; c++) {
            dst[(size_t)c * view->rows + r] = halves[c];
        }
    }
}
