/*
 * Rounding of a tile's rows to levels, and the least-squares fits of encoder `refined`, scalar.
 *
 * A code is clamped before it is rounded, which gives the same as rounding first and keeps NaN and
 * huge values out of the conversion to an integer.
 */
#include "lib/base/assert.h"
#include "lib/kernels/kernels.h"
#include "lib/kernels/scalar/lanes.h"
#include "lib/kernels/scalar/plane.h"

/* Adding and taking away 1.5 * 2^23 rounds |x| < 2^22 to the nearest integer, half to even. */
#define ROUND_SHIFT 12582912.0f

#define TOP_REFINED 3.0f /* `refined` has 2 bits */
#define STEP_MIN    1e-10f

/* The code as a float: an integer in 0..top. */
static inline float code_of(float x, struct kvarn__line line, float top)
{
    float v = (x - line.low) / line.step;

    v = v > 0.0f ? v : 0.0f; /* NaN goes to 0 */
    v = v < top ? v : top;
    return (v + ROUND_SHIFT) - ROUND_SHIFT;
}

void kvarn__range_row_scalar(const float *x, uint32_t count, float *ret_low, float *ret_high)
{
    float low[KVARN__LANES], high[KVARN__LANES];

    KVARN_ASSERT(count > 0 && count % KVARN__LANES == 0);
    for (uint32_t j = 0; j < KVARN__LANES; j++) {
        low[j] = high[j] = x[j];
    }
    for (uint32_t i = KVARN__LANES; i < count; i += KVARN__LANES) {
        for (uint32_t j = 0; j < KVARN__LANES; j++) {
            low[j] = x[i + j] < low[j] ? x[i + j] : low[j];
            high[j] = x[i + j] > high[j] ? x[i + j] : high[j];
        }
    }
    for (uint32_t j = 1; j < KVARN__LANES; j++) {
        low[0] = low[j] < low[0] ? low[j] : low[0];
        high[0] = high[j] > high[0] ? high[j] : high[0];
    }
    *ret_low = low[0];
    *ret_high = high[0];
}

void kvarn__round_row_scalar(
    const float *x, uint32_t count, uint32_t top, struct kvarn__line line, uint8_t *codes)
{
    for (uint32_t i = 0; i < count; i++) {
        codes[i] = (uint8_t)(int)code_of(x[i], line, (float)top);
    }
}

/* Sums of w, w * code and w * x along a row. */
struct moments {
    float w[KVARN__LANES], wq[KVARN__LANES], wx[KVARN__LANES];
};

static void moments_take(struct moments *m, const float *x, const float *weights, uint32_t count,
    struct kvarn__line line, float *code)
{
    *m = (struct moments){0};
    for (uint32_t i = 0; i < count; i += KVARN__LANES) {
        for (uint32_t j = 0; j < KVARN__LANES; j++) {
            float w = weights[i + j];
            float q = code_of(x[i + j], line, TOP_REFINED);
            code[i + j] = q;
            m->w[j] += w;
            m->wq[j] += w * q;
            m->wx[j] += w * x[i + j];
        }
    }
}

void kvarn__fit_row_scalar(
    const float *x, const float *weights, uint32_t count, float *codes, struct kvarn__line *line)
{
    float var[KVARN__LANES] = {0}, cov[KVARN__LANES] = {0};
    struct moments m;

    KVARN_ASSERT(count <= KVARN__ROW_MAX && count % KVARN__LANES == 0);
    moments_take(&m, x, weights, count, *line, codes);
    float total = kvarn__lanes_sum(m.w);
    float code_mean = kvarn__lanes_sum(m.wq) / total;
    float x_mean = kvarn__lanes_sum(m.wx) / total;
    for (uint32_t i = 0; i < count; i += KVARN__LANES) {
        for (uint32_t j = 0; j < KVARN__LANES; j++) {
            float d = codes[i + j] - code_mean;
            float wd = weights[i + j] * d;
            var[j] += wd * d;
            cov[j] += wd * (x[i + j] - x_mean);
        }
    }
    float var_sum = kvarn__lanes_sum(var);
    float cov_sum = kvarn__lanes_sum(cov);
    /* Below the least variance all codes of a row are alike and there is no slope to fit. */
    float step = var_sum > KVARN__FIT_VAR_MIN && cov_sum > 0 ? cov_sum / var_sum : STEP_MIN;

    line->step = step > STEP_MIN ? step : STEP_MIN;
    line->low = x_mean - line->step * code_mean;
}

void kvarn__fit_columns_scalar(const struct kvarn__columns *in, struct kvarn__line line)
{
    for (uint32_t i = 0; i < in->count; i++) {
        float y = in->codes[i] * line.step + line.low;
        float wy = in->weights[i] * y;
        in->num[i] += wy * in->x[i];
        in->den[i] += wy * y;
    }
}
