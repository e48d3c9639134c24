/* The encoders after normalisation, scalar: FORMAT.md 7.2 and 7.3 as they are written. */
#include <math.h>
#include <stdbool.h>
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

/* A row's weights: distances from its mean. */
static void row_weigh(const float *balanced, uint32_t count, float mean, float *weights)
{
    for (uint32_t i = 0; i < count; i++) {
        float distance = fabsf(balanced[i] - mean);
        weights[i] = distance > KVARN__WEIGHT_MIN ? distance : KVARN__WEIGHT_MIN;
    }
}

/* The first round of row r: weights, and levels from a Gaussian's start. Leaves the codes. */
static void row_start(
    const struct kvarn__plane *plane, const struct kvarn__work *work, uint32_t r, float *codes)
{
    const uint32_t cols = plane->cols;
    float *weights = work->weights + (size_t)r * cols;
    float balanced[KVARN__ROW_MAX], mean, std;

    kvarn__balance_row_scalar(
        plane->values + (size_t)r * cols, cols, work->col, work->row[r], balanced);
    kvarn__std_rows_scalar(balanced, 1, cols, &mean, &std);
    row_weigh(balanced, cols, mean, weights);
    float step = KVARN__STEP_START * std;
    struct kvarn__line line = {.step = step > STEP_MIN ? step : STEP_MIN};
    line.low = mean - KVARN__LOW_START * line.step;
    for (int i = 0; i < KVARN__FITS; i++) {
        kvarn__fit_row_scalar(balanced, weights, cols, codes, &line);
    }
    work->step[r] = line.step * work->row[r];
    work->low[r] = line.low * work->row[r];
}

/* A later round of row r: levels by the columns' new factors. Leaves the codes. */
static void row_again(
    const struct kvarn__plane *plane, const struct kvarn__work *work, uint32_t r, float *codes)
{
    const uint32_t cols = plane->cols;
    float ratio[KVARN__ROW_MAX];
    struct kvarn__line line = {.step = work->step[r], .low = work->low[r]};

    kvarn__balance_row_scalar(plane->values + (size_t)r * cols, cols, work->col, 1.0f, ratio);
    kvarn__fit_row_scalar(ratio, work->weights + (size_t)r * cols, cols, codes, &line);
    work->step[r] = line.step;
    work->low[r] = line.low;
}

/* One round: every row's levels, then every column's factor by the levels of the codes. */
static void round_run(
    const struct kvarn__plane *plane, const struct kvarn__work *work, bool is_first)
{
    const uint32_t cols = plane->cols;
    float codes[KVARN__ROW_MAX];

    memset(work->num, 0, cols * sizeof(float));
    memset(work->den, 0, cols * sizeof(float));
    for (uint32_t r = 0; r < plane->rows; r++) {
        if (is_first) {
            row_start(plane, work, r, codes);
        } else {
            row_again(plane, work, r, codes);
        }
        struct kvarn__columns share = {.x = plane->values + (size_t)r * cols,
            .codes = codes,
            .weights = work->weights + (size_t)r * cols,
            .count = cols,
            .num = work->num,
            .den = work->den};
        kvarn__fit_columns_scalar(
            &share, (struct kvarn__line){.step = work->step[r], .low = work->low[r]});
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
    float ratio[KVARN__ROW_MAX];
    uint8_t codes[KVARN__ROW_MAX];

    KVARN_ASSERT(plane->bits == 2 && cols <= KVARN__ROW_MAX);
    for (int i = 0; i < KVARN__ROUNDS; i++) {
        round_run(plane, work, i == 0);
    }
    for (uint32_t r = 0; r < plane->rows; r++) {
        struct kvarn__line line = {.step = work->step[r], .low = work->low[r]};
        kvarn__balance_row_scalar(plane->values + (size_t)r * cols, cols, work->col, 1.0f, ratio);
        kvarn__round_row_scalar(ratio, cols, TOP, line, codes);
        row_pack(plane, r, codes);
    }
    scales_store(plane, work);
}
