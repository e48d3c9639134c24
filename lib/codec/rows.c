/* Rows of a worker <-> rotated rows: the way into sink and tail, and the way out to readers. */
#include <math.h>

#include "kvarn/codec.h"
#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "lib/kernels/kernels.h"

/* False for NaN too. */
static bool is_row_within(const float *x, uint32_t count, float limit)
{
    bool within = true;

    for (uint32_t i = 0; i < count; i++) {
        within &= fabsf(x[i]) <= limit;
    }
    return within;
}

int kvarn_rows_to_half(const struct kvarn_rows_in *in, uint16_t *dst, size_t *ret_row)
{
    const uint32_t dim = in->head_dim;
    const size_t stride_bytes = in->src_stride * kvarn_dtype_bytes(in->dtype);
    const uint8_t *src = in->src;
    float x[KVARN_HEAD_DIM_MAX];

    KVARN_ASSERT(dim > 0 && dim <= KVARN_HEAD_DIM_MAX && in->src_stride >= dim);
    for (size_t r = 0; r < in->rows; r++) {
        kvarn_to_f32(x, src + r * stride_bytes, in->dtype, dim);
        /*
         * A value that is not finite makes the whole rotated block not finite, and huge ones either
         * leave the range or overflow to it: one check after the rotation finds all of them.
         */
        if (!in->rotated) {
            kvarn_rotate(x, 1, dim);
        }
        if (!is_row_within(x, dim, KVARN_ROTATED_ABS_MAX)) {
            *ret_row = r;
            return KVARN_EDOMAIN;
        }
        kvarn_from_f32(dst + r * dim, KVARN_F16, x, dim);
    }
    return 0;
}

int kvarn_rows_from_f32(float *x, const struct kvarn_rows_out *out, size_t *ret_row)
{
    const uint32_t dim = out->head_dim;
    const size_t stride_bytes = out->dst_stride * kvarn_dtype_bytes(out->dtype);
    uint8_t *dst = out->dst;

    KVARN_ASSERT(dim > 0 && dim <= KVARN_HEAD_DIM_MAX && out->dst_stride >= dim);
    for (size_t r = 0; r < out->rows; r++) {
        float *row = x + r * dim;
        if (!out->rotated) {
            kvarn_rotate(row, 1, dim);
        }
        if (out->dtype == KVARN_F16 && !is_row_within(row, dim, KVARN_HALF_MAX)) {
            *ret_row = r;
            return KVARN_EDOMAIN;
        }
        kvarn_from_f32(dst + r * stride_bytes, out->dtype, row, dim);
    }
    return 0;
}
