/*
 * Fast attention over one tile, scalar: lib/kernels/attention.h as it is written there, one query
 * row after the other. Sums of floats are taken in order of channels and tokens; sums of whole
 * numbers are exact.
 */
#include <math.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/kernels/kernels.h"

/* Below it 127 / max leaves the range of floats; such rows count as 0. */
#define STEP_MIN 0x1p-100f

/* A row of a tile's codes, unpacked. */
static void codes_load(const struct kvarn__tile_view *view, uint32_t row, uint8_t *codes)
{
    size_t row_bytes = (size_t)view->cols * view->bits / 8;

    kvarn_unpack_u8_u8_scalar(view->codes + row * row_bytes, view->cols, view->bits, codes);
}

static float middle(const struct kvarn__tile_view *view)
{
    return (float)((1u << view->bits) - 1) / 2;
}

static float half_at(const uint16_t *halves, uint32_t i)
{
    float value;

    kvarn_convert_f16_f32_scalar(&value, halves + i, 1);
    return value;
}

/* Values as multiples of `step`. Returns their sum. */
static int32_t round_all(
    const float *x, uint32_t count, float largest, float top, float *ret_step, int32_t *dst)
{
    bool is_some = largest >= STEP_MIN;
    float inverse = is_some ? top / largest : 0;
    int32_t sum = 0;

    *ret_step = is_some ? largest * (1.0f / top) : 0;
    for (uint32_t i = 0; i < count; i++) {
        dst[i] = (int32_t)rintf(x[i] * inverse);
        sum += dst[i];
    }
    return sum;
}

/* logits[t] of all tokens of the tile, capped. */
static void row_logits(const struct kvarn__tile_view *k, const float *q,
    const struct kvarn__fast_rows *rows, float *logits)
{
    float w[KVARN__ROW_MAX], step, mid = 0, largest = 0;
    int32_t u[KVARN__ROW_MAX], dot[KVARN__ROW_MAX] = {0};
    uint8_t codes[KVARN__ROW_MAX];

    for (uint32_t c = 0; c < k->rows; c++) {
        float scale = half_at(k->scale, c);
        w[c] = q[c] * scale;
        largest = fmaxf(largest, fabsf(w[c]));
        mid += q[c] * (half_at(k->zero, c) + middle(k) * scale);
    }
    int32_t sum = round_all(w, k->rows, largest, 127.0f, &step, u);
    for (uint32_t c = 0; c < k->rows; c++) {
        codes_load(k, c, codes);
        for (uint32_t t = 0; t < k->cols; t++) {
            dot[t] += u[c] * codes[t];
        }
    }
    mid -= step * middle(k) * (float)sum;
    for (uint32_t t = 0; t < k->cols; t++) {
        float logit = (step * (float)dot[t] + mid) * (half_at(k->other, t) * rows->scale);
        logits[t] = rows->softcap > 0 ? rows->softcap * tanhf(logit / rows->softcap) : logit;
    }
}

/* acc += V of the tile weighted by those y that have the sign `sign`, and `mid` if it is 1. */
static void row_add_v(
    const struct kvarn__tile_view *v, const float *y, float sign, float mid, float *acc)
{
    float x[KVARN__ROW_MAX], step, largest = 0;
    int32_t n[KVARN__ROW_MAX], sums[KVARN__ROW_MAX] = {0};
    uint8_t codes[KVARN__ROW_MAX];

    for (uint32_t t = 0; t < v->rows; t++) {
        x[t] = fmaxf(sign * y[t], 0);
        largest = fmaxf(largest, fabsf(y[t]));
    }
    int32_t sum = round_all(x, v->rows, largest, 255.0f, &step, n);
    for (uint32_t t = 0; t < v->rows; t++) {
        codes_load(v, t, codes);
        for (uint32_t c = 0; c < v->cols; c++) {
            sums[c] += n[t] * codes[c];
        }
    }
    step *= sign;
    float bias = (sign > 0 ? mid : 0) - step * middle(v) * (float)sum;
    for (uint32_t c = 0; c < v->cols; c++) {
        acc[kvarn__packed_idx(c, v->bits)] += half_at(v->other, c) * (step * (float)sums[c] + bias);
    }
}

/* The largest logit seen, and what was gathered relative to it. */
static void row_raise_max(
    const struct kvarn__fast_rows *rows, uint32_t r, const float *logits, size_t acc_count)
{
    const struct kvarn__seen seen = rows->seen[r];
    float max = rows->max[r];

    for (uint32_t t = seen.low; t < seen.high; t++) {
        max = logits[t] > max ? logits[t] : max;
    }
    if (max > rows->max[r]) {
        float share = expf(rows->max[r] - max); /* expf(-inf) is 0 */
        rows->sum[r] *= (double)share;
        for (size_t i = 0; i < acc_count; i++) {
            rows->acc[r * acc_count + i] *= share;
        }
        rows->max[r] = max;
    }
}

static void row_attend(const struct kvarn__tile_view *k, const struct kvarn__tile_view *v,
    const struct kvarn__fast_rows *rows, uint32_t r)
{
    const struct kvarn__seen seen = rows->seen[r];
    const size_t acc_count = kvarn__packed_floats(v->cols, v->bits);
    float logits[KVARN__ROW_MAX], y[KVARN__ROW_MAX], sum = 0, mid = 0;
    bool is_signed = false;

    row_logits(k, rows->q + (size_t)r * k->rows, rows, logits);
    row_raise_max(rows, r, logits, acc_count);
    for (uint32_t t = 0; t < v->rows; t++) {
        float scale = half_at(v->scale, t);
        float p = t >= seen.low && t < seen.high ? expf(logits[t] - rows->max[r]) : 0;
        sum += p;
        mid += p * (half_at(v->zero, t) + middle(v) * scale);
        y[t] = p * scale;
        is_signed |= scale < 0;
    }
    bool is_skipped = (double)sum <= KVARN__FAST_SKIP * rows->sum[r];
    rows->sum[r] += (double)sum;
    if (is_skipped) {
        return;
    }
    row_add_v(v, y, 1.0f, mid, rows->acc + r * acc_count);
    if (is_signed) {
        row_add_v(v, y, -1.0f, mid, rows->acc + r * acc_count);
    }
}

void kvarn_attend_tile_u8_f32_scalar(const struct kvarn__tile_view *k,
    const struct kvarn__tile_view *v, const struct kvarn__fast_rows *rows)
{
    KVARN_ASSERT(rows->rows <= KVARN__QUERY_ROWS_MAX && k->cols == v->rows);
    KVARN_ASSERT(k->rows <= KVARN__ROW_MAX && k->cols <= KVARN__ROW_MAX);
    KVARN_ASSERT(v->cols <= KVARN__ROW_MAX);
    for (uint32_t r = 0; r < rows->rows; r++) {
        row_attend(k, v, rows, r);
    }
}
