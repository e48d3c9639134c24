/*
 * Encoder `reference`: each balanced row rounded between its smallest and its largest value. And
 * its last resort, the same without balancing.
 */
#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "lib/codec/plane.h"

#define STEP_MIN 1e-10f /* of a row whose values are all alike */

/* Round work->balanced and fold the levels into work->row. */
static void plane_round(const struct kvarn__plane *plane, struct kvarn__work *work)
{
    const struct kvarn__kernels *kernels = kvarn__kernels_get();
    const uint32_t top = (1u << plane->bits) - 1;
    const size_t row_bytes = (size_t)plane->cols * plane->bits / 8;
    uint8_t codes[KVARN__ROW_MAX];

    KVARN_ASSERT(plane->cols <= KVARN__ROW_MAX);
    for (uint32_t r = 0; r < plane->rows; r++) {
        const float *x = work->balanced + (size_t)r * plane->cols;
        float low, high;
        kernels->range_row(x, plane->cols, &low, &high);
        float step = (high - low) / (float)top;
        struct kvarn__line line = {.step = step > STEP_MIN ? step : STEP_MIN, .low = low};
        kernels->round_row(x, plane->cols, top, line, codes);
        kernels->pack(codes, plane->cols, plane->bits, plane->codes + r * row_bytes);
        work->step[r] = work->row[r] * line.step;
        work->low[r] = work->row[r] * line.low;
    }
    kernels->half_from_f32(plane->scale, work->step, plane->rows);
    kernels->half_from_f32(plane->zero, work->low, plane->rows);
    kernels->half_from_f32(plane->other, work->col, plane->cols);
}

void kvarn__plane_encode_reference(const struct kvarn__plane *plane, struct kvarn__work *work)
{
    kvarn__plane_normalise(plane, work);
    plane_round(plane, work);
}

void kvarn__plane_encode_unbalanced(const struct kvarn__plane *plane, struct kvarn__work *work)
{
    const size_t count = (size_t)plane->rows * plane->cols;

    for (size_t i = 0; i < count; i++) {
        float x = plane->values[i];
        x = x < -KVARN_ROTATED_ABS_MAX ? -KVARN_ROTATED_ABS_MAX : x;
        work->balanced[i] = x > KVARN_ROTATED_ABS_MAX ? KVARN_ROTATED_ABS_MAX : x;
    }
    for (uint32_t c = 0; c < plane->cols; c++) {
        work->col[c] = 1.0f;
    }
    for (uint32_t r = 0; r < plane->rows; r++) {
        work->row[r] = 1.0f;
    }
    plane_round(plane, work);
}
