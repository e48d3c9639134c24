/*
 * Query metrics: sums of outer products of rotated queries, and the factor of one that encoder
 * `aware` rounds by (FORMAT.md 7.4).
 *
 * The damped metric A is taken apart as A = R E R^T, R upper triangular with ones on its diagonal
 * and E diagonal, from the last column to the first, in double. There is no inverse to compute: R
 * is what carries the errors of channels already rounded to those still to come.
 */
#include <math.h>
#include <string.h>

#include "kvarn/codec.h"
#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "lib/codec/plane.h"

static bool is_dim(uint32_t dim)
{
    return dim > 0 && dim <= KVARN_HEAD_DIM_MAX && dim % KVARN_HEAD_DIM_STEP == 0;
}

void kvarn_metric_add(float *a, const float *q, size_t rows, uint32_t dim)
{
    KVARN_ASSERT(is_dim(dim));
    kvarn__kernels_get()->metric_add(a, q, rows, dim);
}

/* The matrix and one of its columns. */
size_t kvarn_metric_factor_scratch_bytes(uint32_t dim)
{
    return ((size_t)dim * dim + dim) * sizeof(double);
}

/* m = upper triangle of a / count + mean of the diagonal. False where that is not positive. */
static bool metric_damp(const float *a, double count, uint32_t dim, double *m)
{
    double trace = 0;

    for (uint32_t i = 0; i < dim; i++) {
        for (uint32_t j = i; j < dim; j++) {
            m[(size_t)i * dim + j] = (double)a[(size_t)i * dim + j] / count;
        }
        trace += m[(size_t)i * dim + i];
    }
    double mean = trace / dim;
    for (uint32_t i = 0; i < dim; i++) {
        m[(size_t)i * dim + i] += mean;
    }
    return mean > 0 && isfinite(mean);
}

/* x[k] -= by * y[k] */
static void row_subtract(double *restrict x, const double *restrict y, uint32_t count, double by)
{
    for (uint32_t k = 0; k < count; k++) {
        x[k] -= by * y[k];
    }
}

/* Take m apart in place: above its diagonal comes R, on it E. False where E is not positive. */
static bool metric_decompose(double *m, uint32_t dim, double *column)
{
    for (uint32_t j = dim; j-- > 0;) {
        double e = m[(size_t)j * dim + j];
        if (!(e > 0) || !isfinite(e)) {
            return false;
        }
        for (uint32_t i = 0; i < j; i++) {
            double *at = &m[(size_t)i * dim + j];
            column[i] = *at;
            *at /= e;
        }
        for (uint32_t i = 0; i < j; i++) {
            double *row = m + (size_t)i * dim;
            row_subtract(row + i, column + i, j - i, row[j]);
        }
    }
    return true;
}

/* Whether R is a factor's; a metric that is no sum of squares may be positive and yet not. */
static bool is_bounded(const double *m, uint32_t dim)
{
    for (uint32_t i = 0; i < dim; i++) {
        for (uint32_t j = i + 1; j < dim; j++) {
            if (!(fabs(m[(size_t)i * dim + j]) <= (double)KVARN__FACTOR_ABS_MAX)) {
                return false;
            }
        }
    }
    return true;
}

/* R as kernels take it; the rest of the caller's room is 0. */
static void factor_store(const double *m, uint32_t dim, float *factor)
{
    const size_t used = kvarn__factor_floats(dim), room = (size_t)dim * dim;

    for (uint32_t j = 0; j < dim; j++) {
        uint32_t panel_rows = j - j % KVARN__FACTOR_PANEL + KVARN__FACTOR_PANEL;
        for (uint32_t i = 0; i < panel_rows; i++) {
            float r = i < j ? (float)m[(size_t)i * dim + j] : i == j ? 1.0f : 0.0f;
            factor[kvarn__factor_at(i, j)] = r;
        }
    }
    memset(factor + used, 0, (room - used) * sizeof(float));
}

int kvarn_metric_factor(const float *a, double count, uint32_t dim, float *factor, void *scratch)
{
    double *m = scratch;

    KVARN_ASSERT(is_dim(dim));
    if (!(count > 0) || !isfinite(count) || !metric_damp(a, count, dim, m) ||
        !metric_decompose(m, dim, m + (size_t)dim * dim) || !is_bounded(m, dim)) {
        return KVARN_EDOMAIN;
    }
    factor_store(m, dim, factor);
    return 0;
}

bool kvarn__factor_is_valid(const float *factor, uint32_t dim)
{
    float max;

    kvarn__kernels_get()->abs_max(factor, kvarn__factor_floats(dim), &max);
    return max <= KVARN__FACTOR_ABS_MAX;
}
