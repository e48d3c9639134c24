/* Variance normalisation of a plane, scalar: FORMAT.md 7.1 as it is written. */
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/kernels/kernels.h"
#include "lib/kernels/scalar/lanes.h"
#include "lib/kernels/scalar/plane.h"

#define STD_MIN       1e-3f
#define STD_MAX       1e3f
#define LOG_MIN       (-0.3f)
#define LOG_MAX       10.0f
#define IMBALANCE_MIN 1e-8f /* smallest deviation that an imbalance divides by */

void kvarn__std_columns_scalar(
    const float *x, uint32_t rows, uint32_t cols, float *mean, float *dst)
{
    KVARN_ASSERT(rows > 1);
    memset(mean, 0, cols * sizeof(*mean));
    for (uint32_t r = 0; r < rows; r++) {
        const float *row = x + (size_t)r * cols;
        for (uint32_t c = 0; c < cols; c++) {
            mean[c] += row[c];
        }
    }
    for (uint32_t c = 0; c < cols; c++) {
        mean[c] /= (float)rows;
        dst[c] = 0;
    }
    for (uint32_t r = 0; r < rows; r++) {
        const float *row = x + (size_t)r * cols;
        for (uint32_t c = 0; c < cols; c++) {
            float d = row[c] - mean[c];
            dst[c] += d * d;
        }
    }
    for (uint32_t c = 0; c < cols; c++) {
        dst[c] = sqrtf(dst[c] / (float)(rows - 1));
    }
}

static float row_std(const float *x, uint32_t count, float *ret_mean)
{
    float lane[KVARN__LANES] = {0};
    float square[KVARN__LANES] = {0};

    for (uint32_t i = 0; i < count; i += KVARN__LANES) {
        for (uint32_t j = 0; j < KVARN__LANES; j++) {
            lane[j] += x[i + j];
        }
    }
    float mean = kvarn__lanes_sum(lane) / (float)count;
    for (uint32_t i = 0; i < count; i += KVARN__LANES) {
        for (uint32_t j = 0; j < KVARN__LANES; j++) {
            float d = x[i + j] - mean;
            square[j] += d * d;
        }
    }
    *ret_mean = mean;
    return sqrtf(kvarn__lanes_sum(square) / (float)(count - 1));
}

void kvarn__std_rows_scalar(const float *x, uint32_t rows, uint32_t cols, float *mean, float *dst)
{
    KVARN_ASSERT(cols > 0 && cols % KVARN__LANES == 0);
    for (uint32_t r = 0; r < rows; r++) {
        dst[r] = row_std(x + (size_t)r * cols, cols, &mean[r]);
    }
}

void kvarn__balance_row_scalar(
    const float *x, uint32_t cols, const float *col, float row, float *dst)
{
    for (uint32_t c = 0; c < cols; c++) {
        dst[c] = x[c] / col[c] / row;
    }
}

static void plane_balance(const struct kvarn__plane *plane, const struct kvarn__work *work)
{
    for (uint32_t r = 0; r < plane->rows; r++) {
        size_t at = (size_t)r * plane->cols;
        kvarn__balance_row_scalar(
            plane->values + at, plane->cols, work->inv_col, work->inv_row[r], work->balanced + at);
    }
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

/* The state as it is becomes the best one. */
static void best_take(const struct kvarn__plane *plane, const struct kvarn__work *work)
{
    memcpy(work->col, work->inv_col, plane->cols * sizeof(float));
    memcpy(work->row, work->inv_row, plane->rows * sizeof(float));
}

/* Here now_... hold logarithms of the factors and inv_... the factors. */
void kvarn_normalise_f32_scalar(const struct kvarn__plane *plane, const struct kvarn__work *work)
{
    const uint32_t rows = plane->rows, cols = plane->cols;

    fill(work->now_col, cols, 0.0f);
    fill(work->now_row, rows, 0.0f);
    fill(work->inv_col, cols, 1.0f);
    fill(work->inv_row, rows, 1.0f);
    best_take(plane, work);
    kvarn__std_columns_scalar(plane->values, rows, cols, work->mean_col, work->std_col);
    kvarn__std_rows_scalar(plane->values, rows, cols, work->mean_row, work->std_row);
    float imbalance_min = spread(work->std_col, cols) + spread(work->std_row, rows);
    for (int i = 0; i < KVARN__ITERATIONS; i++) {
        bool moved = scales_update(work->now_col, work->inv_col, work->std_col, cols);
        plane_balance(plane, work);
        kvarn__std_rows_scalar(work->balanced, rows, cols, work->mean_row, work->std_row);
        moved |= scales_update(work->now_row, work->inv_row, work->std_row, rows);
        plane_balance(plane, work);
        kvarn__std_columns_scalar(work->balanced, rows, cols, work->mean_col, work->std_col);
        kvarn__std_rows_scalar(work->balanced, rows, cols, work->mean_row, work->std_row);
        float imbalance = spread(work->std_col, cols) + spread(work->std_row, rows);
        if (imbalance <= imbalance_min) {
            imbalance_min = imbalance;
            best_take(plane, work);
        }
        /* Scales that stay put stay put for good: the iterations left would repeat this one. */
        if (!moved) {
            break;
        }
    }
}

void kvarn_balance_f32_scalar(const struct kvarn__plane *plane, const struct kvarn__work *work)
{
    const uint32_t rows = plane->rows, cols = plane->cols;
    float ratio[KVARN__ROW_MAX];

    KVARN_ASSERT(cols <= KVARN__ROW_MAX);
    fill(work->now_col, cols, 0.0f);
    fill(work->now_row, rows, 0.0f);
    kvarn__std_columns_scalar(plane->values, rows, cols, work->mean_col, work->std_col);
    (void)scales_update(work->now_col, work->col, work->std_col, cols);
    for (uint32_t r = 0; r < rows; r++) {
        kvarn__balance_row_scalar(plane->values + (size_t)r * cols, cols, work->col, 1.0f, ratio);
        kvarn__std_rows_scalar(ratio, 1, cols, &work->mean_row[r], &work->std_row[r]);
    }
    (void)scales_update(work->now_row, work->row, work->std_row, rows);
}
