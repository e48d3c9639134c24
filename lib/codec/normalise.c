/* Variance normalisation of a plane, and the encoders' work space. */
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/codec/plane.h"

#define ITERATIONS    16
#define STD_MIN       1e-3f
#define STD_MAX       1e3f
#define LOG_MIN       (-0.3f)
#define LOG_MAX       10.0f
#define IMBALANCE_MIN 1e-8f /* smallest deviation that an imbalance divides by */

#define COL_VECTORS 7
#define ROW_VECTORS 7

size_t kvarn__work_floats(uint32_t rows, uint32_t cols)
{
    return 2 * (size_t)rows * cols + COL_VECTORS * (size_t)cols + ROW_VECTORS * (size_t)rows;
}

static float *carve(float **at, size_t count)
{
    float *start = *at;

    *at += count;
    return start;
}

void kvarn__work_init(struct kvarn__work *work, uint32_t rows, uint32_t cols, float *floats)
{
    float *at = floats;

    work->balanced = carve(&at, (size_t)rows * cols);
    work->weights = carve(&at, (size_t)rows * cols);
    work->col = carve(&at, cols);
    work->log_col = carve(&at, cols);
    work->exp_col = carve(&at, cols);
    work->std_col = carve(&at, cols);
    work->mean_col = carve(&at, cols);
    work->num = carve(&at, cols);
    work->den = carve(&at, cols);
    work->row = carve(&at, rows);
    work->log_row = carve(&at, rows);
    work->exp_row = carve(&at, rows);
    work->std_row = carve(&at, rows);
    work->mean_row = carve(&at, rows);
    work->step = carve(&at, rows);
    work->low = carve(&at, rows);
    KVARN_ASSERT((size_t)(at - floats) == kvarn__work_floats(rows, cols));
}

static float clamp(float x, float low, float high)
{
    return x < low ? low : x > high ? high : x;
}

static float spread(const float *std, uint32_t count)
{
    float low = std[0], high = std[0];

    for (uint32_t i = 1; i < count; i++) {
        low = std[i] < low ? std[i] : low;
        high = std[i] > high ? std[i] : high;
    }
    return high / (low > IMBALANCE_MIN ? low : IMBALANCE_MIN);
}

/* Take the deviations of one axis into its scales; whether any scale moved. */
static bool scales_update(float *log_scale, float *scale, const float *std, uint32_t count)
{
    bool moved = false;

    for (uint32_t i = 0; i < count; i++) {
        float next = clamp(log_scale[i] + logf(clamp(std[i], STD_MIN, STD_MAX)), LOG_MIN, LOG_MAX);
        moved |= next != log_scale[i];
        log_scale[i] = next;
        scale[i] = expf(next);
    }
    return moved;
}

static void fill(float *x, uint32_t count, float value)
{
    for (uint32_t i = 0; i < count; i++) {
        x[i] = value;
    }
}

void kvarn__plane_normalise(const struct kvarn__plane *plane, struct kvarn__work *work)
{
    const struct kvarn__kernels *kernels = kvarn__kernels_get();
    const uint32_t rows = plane->rows, cols = plane->cols;
    struct kvarn__grid now = {rows, cols, work->exp_col, work->exp_row};
    struct kvarn__grid best = {rows, cols, work->col, work->row};

    fill(work->log_col, cols, 0.0f);
    fill(work->log_row, rows, 0.0f);
    fill(work->exp_row, rows, 1.0f);
    fill(work->col, cols, 1.0f);
    fill(work->row, rows, 1.0f);
    kernels->std_columns(plane->values, rows, cols, work->mean_col, work->std_col);
    kernels->std_rows(plane->values, rows, cols, work->mean_row, work->std_row);
    float imbalance_min = spread(work->std_col, cols) + spread(work->std_row, rows);
    for (int i = 0; i < ITERATIONS; i++) {
        bool moved = scales_update(work->log_col, work->exp_col, work->std_col, cols);
        kernels->balance(plane->values, &now, work->balanced);
        kernels->std_rows(work->balanced, rows, cols, work->mean_row, work->std_row);
        moved |= scales_update(work->log_row, work->exp_row, work->std_row, rows);
        kernels->balance(plane->values, &now, work->balanced);
        kernels->std_columns(work->balanced, rows, cols, work->mean_col, work->std_col);
        kernels->std_rows(work->balanced, rows, cols, work->mean_row, work->std_row);
        float imbalance = spread(work->std_col, cols) + spread(work->std_row, rows);
        if (imbalance <= imbalance_min) {
            imbalance_min = imbalance;
            memcpy(work->col, work->exp_col, cols * sizeof(float));
            memcpy(work->row, work->exp_row, rows * sizeof(float));
        }
        /* Scales that stay put stay put for good: the iterations left would repeat this one. */
        if (!moved) {
            break;
        }
    }
    kernels->balance(plane->values, &best, work->balanced);
}
