/* The encoders after normalisation, scalar: FORMAT.md 7.2 and 7.3 as they are written. */
#include <math.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/kernels/kernels.h"
#include "lib/kernels/scalar/plane.h"

#define STEP_MIN 1e-10f
#define TOP      3

static void row_pack(const struct kvarn__plane *plane, uint32_t r, const uint8_t *codes)
{
    const size_t row_bytes = (size_t)plane->cols * plane->bits / 8;

    kvarn_pack_u8_u8_scalar(codes, plane->cols, plane->bits, plane->codes + r * row_bytes);
}

static void scales_store(const struct kvarn__plane *plane, const struct kvarn__work *work)
{
    kvarn_convert_f32_f16_scalar(plane->scale, work->step, plane->rows);
    kvarn_convert_f32_f16_scalar(plane->zero, work->low, plane->rows);
    kvarn_convert_f32_f16_scalar(plane->other, work->col, plane->cols);
}

void kvarn_round_plane_f32_scalar(
    const float *x, const struct kvarn__plane *plane, const struct kvarn__work *work)
{
    const uint32_t top = (1u << plane->bits) - 1;
    float balanced[KVARN__ROW_MAX];
    uint8_t codes[KVARN__ROW_MAX];

    KVARN_ASSERT(plane->cols <= KVARN__ROW_MAX);
    for (uint32_t r = 0; r < plane->rows; r++) {
        float low, high;
        kvarn__balance_row_scalar(
            x + (size_t)r * plane->cols, plane->cols, work->col, work->row[r], balanced);
        kvarn__range_row_scalar(balanced, plane->cols, &low, &high);
        float step = (high - low) / (float)top;
        struct kvarn__line line = {.step = step > STEP_MIN ? step : STEP_MIN, .low = low};
        kvarn__round_row_scalar(balanced, plane->cols, top, line, codes);
        row_pack(plane, r, codes);
        work->step[r] = work->row[r] * line.step;
        work->low[r] = work->row[r] * line.low;
    }
    scales_store(plane, work);
}

/* Levels of one row from a Gaussian's start; leaves the row's weights in `weights`. */
static struct kvarn__line row_start(const float *balanced, uint32_t count, float *weights)
{
    float mean, std, codes[KVARN__ROW_MAX];

    kvarn__std_rows_scalar(balanced, 1, count, &mean, &std);
    float step = KVARN__STEP_START * std;
    struct kvarn__line line = {.step = step > STEP_MIN ? step : STEP_MIN};
    line.low = mean - KVARN__LOW_START * line.step;
    for (uint32_t i = 0; i < count; i++) {
        float distance = fabsf(balanced[i] - mean);
        weights[i] = distance > KVARN__WEIGHT_MIN ? distance : KVARN__WEIGHT_MIN;
    }
    for (int i = 0; i < KVARN__FITS; i++) {
        kvarn__fit_row_scalar(balanced, weights, count, codes, &line);
    }
    return line;
}

/* One row of a round: its levels by the columns' factors, its share of the columns' sums by them.
 */
static void row_round(const struct kvarn__plane *plane, const struct kvarn__work *work, uint32_t r)
{
    const uint32_t cols = plane->cols;
    const float *x = plane->values + (size_t)r * cols;
    const float *row_weights = work->weights + (size_t)r * cols;
    float ratio[KVARN__ROW_MAX], weights[KVARN__ROW_MAX], codes[KVARN__ROW_MAX];
    struct kvarn__line line = {.step = work->step[r], .low = work->low[r]};

    kvarn__balance_row_scalar(x, cols, work->col, 1.0f, ratio);
    for (uint32_t c = 0; c < cols; c++) {
        weights[c] = row_weights[c] * work->col[c] * work->col[c];
    }
    kvarn__fit_row_scalar(ratio, weights, cols, codes, &line);
    struct kvarn__columns share = {.x = x,
        .codes = codes,
        .weights = row_weights,
        .count = cols,
        .num = work->num,
        .den = work->den};
    kvarn__fit_columns_scalar(&share, line);
    work->step[r] = line.step;
    work->low[r] = line.low;
}

/* One round: every row's levels, then every column's factor by the levels. */
static void round_run(const struct kvarn__plane *plane, const struct kvarn__work *work)
{
    const uint32_t cols = plane->cols;

    memset(work->num, 0, cols * sizeof(float));
    memset(work->den, 0, cols * sizeof(float));
    for (uint32_t r = 0; r < plane->rows; r++) {
        row_round(plane, work, r);
    }
    for (uint32_t c = 0; c < cols; c++) {
        if (work->den[c] > KVARN__DEN_MIN && work->num[c] > 0) {
            work->col[c] = work->num[c] / work->den[c];
        }
    }
}

void kvarn_refine_plane_f32_scalar(const struct kvarn__plane *plane, const struct kvarn__work *work)
{
    const uint32_t cols = plane->cols;
    float balanced[KVARN__ROW_MAX];
    uint8_t codes[KVARN__ROW_MAX];

    KVARN_ASSERT(plane->bits == 2 && cols <= KVARN__ROW_MAX);
    for (uint32_t r = 0; r < plane->rows; r++) {
        size_t at = (size_t)r * cols;
        kvarn__balance_row_scalar(plane->values + at, cols, work->col, work->row[r], balanced);
        struct kvarn__line line = row_start(balanced, cols, work->weights + at);
        work->step[r] = line.step * work->row[r];
        work->low[r] = line.low * work->row[r];
    }
    for (int i = 0; i < KVARN__ROUNDS; i++) {
        round_run(plane, work);
    }
    for (uint32_t r = 0; r < plane->rows; r++) {
        struct kvarn__line line = {.step = work->step[r], .low = work->low[r]};
        kvarn__balance_row_scalar(
            plane->values + (size_t)r * cols, cols, work->col, 1.0f, balanced);
        kvarn__round_row_scalar(balanced, cols, TOP, line, codes);
        row_pack(plane, r, codes);
    }
    scales_store(plane, work);
}
