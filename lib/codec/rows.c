/*
 * Rows of a worker <-> rotated rows: the way into sink and tail, and the way out to readers. Rows
 * go in batches that fit the first cache, so that the cost of a call is shared.
 */
#include "kvarn/codec.h"
#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "lib/kernels/kernels.h"

#define BATCH_FLOATS 4096

/* First of `rows` rows that has a value beyond the limit, or one that is not finite; `rows` if
 * none. */
static size_t rows_find_beyond(const float *x, size_t rows, uint32_t dim, float limit)
{
    const struct kvarn__kernels *kernels = kvarn__kernels_get();
    float max;

    kernels->abs_max(x, rows * dim, &max);
    if (max <= limit) {
        return rows;
    }
    for (size_t r = 0; r < rows; r++) {
        kernels->abs_max(x + r * dim, dim, &max);
        if (!(max <= limit)) {
            return r;
        }
    }
    return rows;
}

/* Rows `stride_bytes` apart -> contiguous floats. */
static void rows_load(
    const uint8_t *src, size_t stride_bytes, const struct kvarn_rows_in *in, size_t rows, float *x)
{
    const uint32_t dim = in->head_dim;

    if (in->src_stride == dim) {
        kvarn_to_f32(x, src, in->dtype, rows * dim);
        return;
    }
    for (size_t r = 0; r < rows; r++) {
        kvarn_to_f32(x + r * dim, src + r * stride_bytes, in->dtype, dim);
    }
}

int kvarn_rows_to_half(const struct kvarn_rows_in *in, uint16_t *dst, size_t *ret_row)
{
    const uint32_t dim = in->head_dim;
    const size_t stride_bytes = in->src_stride * kvarn_dtype_bytes(in->dtype);
    const uint8_t *src = in->src;
    _Alignas(64) float x[BATCH_FLOATS];

    KVARN_ASSERT(dim > 0 && dim <= KVARN_HEAD_DIM_MAX && in->src_stride >= dim);
    const size_t batch = BATCH_FLOATS / dim;
    for (size_t r = 0; r < in->rows; r += batch) {
        size_t some = in->rows - r < batch ? in->rows - r : batch;
        rows_load(src + r * stride_bytes, stride_bytes, in, some, x);
        /*
         * A value that is not finite makes the whole rotated block not finite, and huge ones either
         * leave the range or overflow to it: one check after the rotation finds all of them.
         */
        if (!in->rotated) {
            kvarn_rotate(x, some, dim);
        }
        size_t bad = rows_find_beyond(x, some, dim, KVARN_ROTATED_ABS_MAX);
        if (bad < some) {
            *ret_row = r + bad;
            return KVARN_EDOMAIN;
        }
        kvarn_from_f32(dst + r * dim, KVARN_F16, x, some * dim);
    }
    return 0;
}

int kvarn_rows_from_f32(float *x, const struct kvarn_rows_out *out, size_t *ret_row)
{
    const uint32_t dim = out->head_dim;
    const size_t stride_bytes = out->dst_stride * kvarn_dtype_bytes(out->dtype);
    uint8_t *dst = out->dst;

    KVARN_ASSERT(dim > 0 && dim <= KVARN_HEAD_DIM_MAX && out->dst_stride >= dim);
    const size_t batch = BATCH_FLOATS / dim;
    for (size_t r = 0; r < out->rows; r += batch) {
        size_t some = out->rows - r < batch ? out->rows - r : batch;
        float *rows = x + r * dim;
        if (!out->rotated) {
            kvarn_rotate(rows, some, dim);
        }
        size_t bad =
            out->dtype == KVARN_F16 ? rows_find_beyond(rows, some, dim, KVARN_HALF_MAX) : some;
        if (bad < some) {
            *ret_row = r + bad;
            return KVARN_EDOMAIN;
        }
        if (out->dst_stride == dim) {
            kvarn_from_f32(dst + r * stride_bytes, out->dtype, rows, some * dim);
            continue;
        }
        for (size_t i = 0; i < some; i++) {
            kvarn_from_f32(dst + (r + i) * stride_bytes, out->dtype, rows + i * dim, dim);
        }
    }
    return 0;
}
