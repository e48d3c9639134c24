/*
 * Encoder `refined`: levels and column factors by alternating weighted least squares, 2 bits.
 *
 * Weights are each value's distance from its row's mean: plain least squares clips the large
 * deviations that carry the logits.
 */
#include <math.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/codec/plane.h"

#define BITS        2
#define TOP         3
#define STEP_MIN    1e-10f
#define WEIGHT_MIN  0.1f
#define STEP_START  0.996f /* step of the best uniform 4-level quantiser of a unit Gaussian */
#define LOW_START   1.5f   /* its lowest level lies this many steps below the mean */
#define FITS_PLAIN  4
#define FITS_WEIGHT 2
#define ROUNDS      3
#define DEN_MIN     1e-12f

/* Levels of one balanced row, from a Gaussian's start; leaves the row's weights in `weights`. */
static struct kvarn__line row_start(
    const float *x, uint32_t count, float mean, float std, float *weights)
{
    const struct kvarn__kernels *kernels = kvarn__kernels_get();
    float step = STEP_START * std;
    struct kvarn__line line = {.step = step > STEP_MIN ? step : STEP_MIN};

    line.low = mean - LOW_START * line.step;
    for (uint32_t i = 0; i < count; i++) {
        float distance = fabsf(x[i] - mean);
        weights[i] = distance > WEIGHT_MIN ? distance : WEIGHT_MIN;
    }
    for (int i = 0; i < FITS_PLAIN; i++) {
        kernels->fit_row(x, NULL, count, &line);
    }
    for (int i = 0; i < FITS_WEIGHT; i++) {
        kernels->fit_row(x, weights, count, &line);
    }
    return line;
}

/* ratio = x / col */
static void row_divide(const float *x, const float *col, uint32_t count, float *ratio)
{
    const float one = 1.0f;
    const struct kvarn__grid grid = {.rows = 1, .cols = count, .col = col, .row = &one};

    kvarn__kernels_get()->balance(x, &grid, ratio);
}

/* One round: every row's levels by the columns' factors, then every column's factor by the levels.
 */
static void round_run(const struct kvarn__plane *plane, struct kvarn__work *work)
{
    const struct kvarn__kernels *kernels = kvarn__kernels_get();
    const uint32_t cols = plane->cols;
    float ratio[KVARN__ROW_MAX], weights[KVARN__ROW_MAX];

    memset(work->num, 0, cols * sizeof(float));
    memset(work->den, 0, cols * sizeof(float));
    for (uint32_t r = 0; r < plane->rows; r++) {
        const float *x = plane->values + (size_t)r * cols;
        const float *row_weights = work->weights + (size_t)r * cols;
        struct kvarn__line line = {.step = work->step[r], .low = work->low[r]};
        row_divide(x, work->col, cols, ratio);
        for (uint32_t c = 0; c < cols; c++) {
            weights[c] = row_weights[c] * work->col[c] * work->col[c];
        }
        kernels->fit_row(ratio, weights, cols, &line);
        struct kvarn__columns share = {.x = x,
            .ratio = ratio,
            .weights = row_weights,
            .count = cols,
            .num = work->num,
            .den = work->den};
        kernels->fit_columns(&share, line);
        work->step[r] = line.step;
        work->low[r] = line.low;
    }
    for (uint32_t c = 0; c < cols; c++) {
        if (work->den[c] > DEN_MIN && work->num[c] > 0) {
            work->col[c] = work->num[c] / work->den[c];
        }
    }
}

void kvarn__plane_encode_refined(const struct kvarn__plane *plane, struct kvarn__work *work)
{
    const struct kvarn__kernels *kernels = kvarn__kernels_get();
    const uint32_t rows = plane->rows, cols = plane->cols;
    float ratio[KVARN__ROW_MAX];
    uint8_t codes[KVARN__ROW_MAX];

    KVARN_ASSERT(plane->bits == BITS && cols <= KVARN__ROW_MAX);
    kvarn__plane_normalise(plane, work);
    kernels->std_rows(work->balanced, rows, cols, work->mean_row, work->std_row);
    for (uint32_t r = 0; r < rows; r++) {
        size_t at = (size_t)r * cols;
        struct kvarn__line line = row_start(
            work->balanced + at, cols, work->mean_row[r], work->std_row[r], work->weights + at);
        work->step[r] = line.step * work->row[r];
        work->low[r] = line.low * work->row[r];
    }
    for (int i = 0; i < ROUNDS; i++) {
        round_run(plane, work);
    }
    for (uint32_t r = 0; r < rows; r++) {
        struct kvarn__line line = {.step = work->step[r], .low = work->low[r]};
        row_divide(plane->values + (size_t)r * cols, work->col, cols, ratio);
        kernels->round_row(ratio, cols, TOP, line, codes);
        kernels->pack(codes, cols, BITS, plane->codes + (size_t)r * (cols * BITS / 8));
    }
    kernels->half_from_f32(plane->scale, work->step, rows);
    kernels->half_from_f32(plane->zero, work->low, rows);
    kernels->half_from_f32(plane->other, work->col, cols);
}
