/* The encoders of a plane, from kernels; their work space; and the last resort of `reference`. */
#include "lib/codec/plane.h"

#include "lib/base/assert.h"
#include "lib/base/limits.h"

#define COL_VECTORS 7
#define ROW_VECTORS 7

/* Vectors of 16 floats start on whole ones: cols and rows are multiples of 8. */
static uint32_t padded(uint32_t count)
{
    return (count + 15) / 16 * 16;
}

size_t kvarn__work_floats(uint32_t rows, uint32_t cols)
{
    return 2 * (size_t)rows * cols + COL_VECTORS * (size_t)padded(cols) +
           ROW_VECTORS * (size_t)padded(rows);
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
    float **const of_cols[COL_VECTORS] = {&work->col, &work->now_col, &work->inv_col,
        &work->std_col, &work->mean_col, &work->num, &work->den};
    float **const of_rows[ROW_VECTORS] = {&work->row, &work->now_row, &work->inv_row,
        &work->std_row, &work->mean_row, &work->step, &work->low};

    for (int i = 0; i < COL_VECTORS; i++) {
        *of_cols[i] = carve(&at, padded(cols));
    }
    for (int i = 0; i < ROW_VECTORS; i++) {
        *of_rows[i] = carve(&at, padded(rows));
    }
    work->balanced = carve(&at, (size_t)rows * cols);
    work->weights = carve(&at, (size_t)rows * cols);
    KVARN_ASSERT((size_t)(at - floats) == kvarn__work_floats(rows, cols));
}

void kvarn__plane_encode_reference(const struct kvarn__plane *plane, struct kvarn__work *work)
{
    const struct kvarn__kernels *kernels = kvarn__kernels_get();

    kernels->normalise(plane, work);
    kernels->round_plane(plane->values, plane, work);
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
    kvarn__kernels_get()->round_plane(work->balanced, plane, work);
}

void kvarn__plane_encode_refined(const struct kvarn__plane *plane, struct kvarn__work *work)
{
    const struct kvarn__kernels *kernels = kvarn__kernels_get();

    KVARN_ASSERT(plane->bits == 2);
    kernels->balance(plane, work);
    kernels->refine_plane(plane, work);
}

void kvarn__plane_round_aware(
    const struct kvarn__plane *plane, const float *factor, struct kvarn__work *work)
{
    KVARN_ASSERT(plane->bits == 2);
    kvarn__kernels_get()->diffuse_plane(factor, plane, work);
}
