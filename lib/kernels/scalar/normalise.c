/* Standard deviations of a tile's columns and rows, and division by both scales, scalar. */
#include <math.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/kernels/kernels.h"
#include "lib/kernels/scalar/lanes.h"

void kvarn_std_columns_f32_f32_scalar(
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

void kvarn_std_rows_f32_f32_scalar(
    const float *x, uint32_t rows, uint32_t cols, float *mean, float *dst)
{
    KVARN_ASSERT(cols > 0 && cols % KVARN__LANES == 0);
    for (uint32_t r = 0; r < rows; r++) {
        dst[r] = row_std(x + (size_t)r * cols, cols, &mean[r]);
    }
}

void kvarn_balance_f32_f32_scalar(const float *x, const struct kvarn__grid *grid, float *dst)
{
    const float *col = grid->col;

    for (uint32_t r = 0; r < grid->rows; r++) {
        const float *src_row = x + (size_t)r * grid->cols;
        float *dst_row = dst + (size_t)r * grid->cols;
        float row = grid->row[r];
        for (uint32_t c = 0; c < grid->cols; c++) {
            dst_row[c] = src_row[c] / col[c] / row;
        }
    }
}
