/*
 * Dot products with K, weighted sums of V, on packed codes and on half rows, and the softmax
 * between them, scalar.
 *
 * A tile's rows are decoded to their levels, code * scale + zero, one row at a time, and used for
 * all query rows while they are in the first cache; neither K nor V of a tile is ever written out.
 * The other axis's scale is a common factor of the whole sum and is applied once at its end. Taking
 * scale and zero out of the sums too would save a multiplication per value but loses digits where
 * they cancel: tokens beside a huge one.
 */
#include <math.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/kernels/kernels.h"
#include "lib/kernels/scalar/lanes.h"

/* The first `count` values of a row, short of the other axis's scale. */
static void levels_load(
    const struct kvarn__tile_view *view, uint32_t row, uint32_t count, float *dst)
{
    uint8_t codes[KVARN__ROW_MAX];
    float scale, zero;
    size_t row_bytes = (size_t)view->cols * view->bits / 8;

    kvarn_unpack_u8_u8_scalar(view->codes + row * row_bytes, view->cols, view->bits, codes);
    kvarn_convert_f16_f32_scalar(&scale, view->scale + row, 1);
    kvarn_convert_f16_f32_scalar(&zero, view->zero + row, 1);
    for (uint32_t i = 0; i < count; i++) {
        dst[i] = (float)codes[i] * scale + zero;
    }
}

static void add_scaled(float *dst, const float *x, float factor, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        dst[i] += factor * x[i];
    }
}

void kvarn_qk_tile_f32_scalar(
    const struct kvarn__tile_view *k, const float *q, uint32_t rows, float *dst)
{
    float levels[KVARN__ROW_MAX], other[KVARN__ROW_MAX];
    uint32_t tokens = k->token_count;

    KVARN_ASSERT(rows <= KVARN__QUERY_ROWS_MAX && tokens <= k->cols && k->cols <= KVARN__ROW_MAX);
    memset(dst, 0, (size_t)rows * tokens * sizeof(*dst));
    for (uint32_t c = 0; c < k->rows; c++) {
        levels_load(k, c, tokens, levels);
        for (uint32_t r = 0; r < rows; r++) {
            add_scaled(dst + (size_t)r * tokens, levels, q[(size_t)r * k->rows + c], tokens);
        }
    }
    kvarn_convert_f16_f32_scalar(other, k->other, tokens);
    for (uint32_t r = 0; r < rows; r++) {
        float *logits = dst + (size_t)r * tokens;
        for (uint32_t t = 0; t < tokens; t++) {
            logits[t] *= other[t];
        }
    }
}

/* One query row's share of a V tile: at most this many rows share an unpacked token. */
#define AV_ROWS 8

static void av_tile_some(
    const struct kvarn__tile_view *v, const float *p, uint32_t rows, float *acc)
{
    float levels[KVARN__ROW_MAX], other[KVARN__ROW_MAX];
    float sum[AV_ROWS][KVARN__ROW_MAX];

    for (uint32_t r = 0; r < rows; r++) {
        memset(sum[r], 0, v->cols * sizeof(float));
    }
    for (uint32_t t = 0; t < v->token_count; t++) {
        levels_load(v, t, v->cols, levels);
        for (uint32_t r = 0; r < rows; r++) {
            add_scaled(sum[r], levels, p[(size_t)r * v->token_count + t], v->cols);
        }
    }
    kvarn_convert_f16_f32_scalar(other, v->other, v->cols);
    for (uint32_t r = 0; r < rows; r++) {
        float *out = acc + (size_t)r * v->cols;
        for (uint32_t c = 0; c < v->cols; c++) {
            out[c] += other[c] * sum[r][c];
        }
    }
}

void kvarn_av_tile_f32_scalar(
    const struct kvarn__tile_view *v, const float *p, uint32_t rows, float *acc)
{
    KVARN_ASSERT(v->token_count <= v->rows && v->cols <= KVARN__ROW_MAX);
    for (uint32_t r = 0; r < rows; r += AV_ROWS) {
        uint32_t some = rows - r < AV_ROWS ? rows - r : AV_ROWS;
        av_tile_some(v, p + (size_t)r * v->token_count, some, acc + (size_t)r * v->cols);
    }
}

void kvarn_qk_f16_f32_scalar(
    const struct kvarn__rows_view *k, const float *q, uint32_t rows, float *dst)
{
    float x[KVARN__ROW_MAX];

    KVARN_ASSERT(k->dim <= KVARN__ROW_MAX);
    for (uint32_t t = 0; t < k->token_count; t++) {
        kvarn_convert_f16_f32_scalar(x, k->rows + (size_t)t * k->dim, k->dim);
        for (uint32_t r = 0; r < rows; r++) {
            const float *query = q + (size_t)r * k->dim;
            dst[(size_t)r * k->token_count + t] = kvarn__lanes_dot(query, x, k->dim);
        }
    }
}

void kvarn_av_f16_f32_scalar(
    const struct kvarn__rows_view *v, const float *p, uint32_t rows, float *acc)
{
    float x[KVARN__ROW_MAX];

    KVARN_ASSERT(v->dim <= KVARN__ROW_MAX);
    for (uint32_t t = 0; t < v->token_count; t++) {
        kvarn_convert_f16_f32_scalar(x, v->rows + (size_t)t * v->dim, v->dim);
        for (uint32_t r = 0; r < rows; r++) {
            add_scaled(acc + (size_t)r * v->dim, x, p[(size_t)r * v->token_count + t], v->dim);
        }
    }
}

void kvarn_softmax_logits_f32_f32_scalar(
    float *x, uint32_t count, float scale, float softcap, float *ret_max)
{
    float max = -INFINITY;

    for (uint32_t i = 0; i < count; i++) {
        float logit = scale * x[i];
        if (softcap > 0) {
            logit = softcap * tanhf(logit / softcap);
        }
        x[i] = logit;
        max = logit > max ? logit : max;
    }
    *ret_max = max;
}

void kvarn_softmax_weights_f32_f32_scalar(float *x, uint32_t count, float max, double *sum)
{
    for (uint32_t i = 0; i < count; i++) {
        x[i] = expf(x[i] - max);
        *sum += (double)x[i];
    }
}
