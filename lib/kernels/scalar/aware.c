/* Encoder `aware`, scalar: FORMAT.md 7.4 as it is written, and the metric that it needs. */
#include <string.h>

#include "lib/base/assert.h"
#include "lib/kernels/kernels.h"
#include "lib/kernels/scalar/plane.h"

#define TOP 3

/* want += by * error */
static void row_add(float *restrict want, const float *restrict error, uint32_t cols, float by)
{
    for (uint32_t c = 0; c < cols; c++) {
        want[c] += by * error[c];
    }
}

/* What the levels of the codes miss of x. */
static void row_error(const float *x, const uint8_t *codes, uint32_t cols, struct kvarn__line line,
    const float *col, float *error)
{
    for (uint32_t c = 0; c < cols; c++) {
        error[c] = x[c] - ((float)codes[c] * line.step + line.low) * col[c];
    }
}

void kvarn_diffuse_plane_f32_scalar(
    const float *factor, const struct kvarn__plane *plane, const struct kvarn__work *work)
{
    const uint32_t rows = plane->rows, cols = plane->cols;
    float *errors = work->balanced; /* of the rows rounded so far */
    float want[KVARN__ROW_MAX];
    uint8_t codes[KVARN__ROW_MAX];

    KVARN_ASSERT(plane->bits == 2 && cols <= KVARN__ROW_MAX && rows % KVARN__FACTOR_PANEL == 0);
    kvarn_convert_f16_f32_scalar(work->step, plane->scale, rows);
    kvarn_convert_f16_f32_scalar(work->low, plane->zero, rows);
    kvarn_convert_f16_f32_scalar(work->col, plane->other, cols);
    for (uint32_t r = 0; r < rows; r++) {
        const float *x = plane->values + (size_t)r * cols;
        struct kvarn__line line = {.step = work->step[r], .low = work->low[r]};
        memcpy(want, x, cols * sizeof(float));
        for (uint32_t i = 0; i < r; i++) {
            row_add(want, errors + (size_t)i * cols, cols, factor[kvarn__factor_at(i, r)]);
        }
        kvarn__balance_row_scalar(want, cols, work->col, 1.0f, want);
        kvarn__round_row_scalar(want, cols, TOP, line, codes);
        kvarn_pack_u8_u8_scalar(codes, cols, 2, plane->codes + (size_t)r * (cols / 4));
        row_error(x, codes, cols, line, work->col, errors + (size_t)r * cols);
    }
}

void kvarn_metric_add_f32_f32_scalar(float *a, const float *q, size_t rows, uint32_t dim)
{
    for (size_t r = 0; r < rows; r++) {
        const float *x = q + r * dim;
        for (uint32_t i = 0; i < dim; i++) {
            row_add(a + (size_t)i * dim + i, x + i, dim - i, x[i]);
        }
    }
}
