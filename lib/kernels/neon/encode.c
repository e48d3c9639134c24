/* The encoders' planes, NEON: the templates of lib/kernels/vector/. */
#include "lib/kernels/neon/vec.h"

#define KVARN__VECTOR_PACK kvarn_pack_u8_u8_neon
#define DIFFUSE_ROWS       4

#include "lib/kernels/vector/aware.h"
#include "lib/kernels/vector/normalise.h"
#include "lib/kernels/vector/refine.h"
#include "lib/kernels/vector/round.h"

static bool is_whole(const struct kvarn__plane *plane)
{
    return plane->rows % VF_LANES == 0 && plane->cols % VF_LANES == 0;
}

void kvarn_normalise_f32_neon(const struct kvarn__plane *plane, const struct kvarn__work *work)
{
    if (!is_whole(plane)) {
        kvarn_normalise_f32_scalar(plane, work);
        return;
    }
    norm_plane(plane, work);
}

void kvarn_balance_f32_neon(const struct kvarn__plane *plane, const struct kvarn__work *work)
{
    if (!is_whole(plane)) {
        kvarn_balance_f32_scalar(plane, work);
        return;
    }
    norm_balance(plane, work);
}

void kvarn_round_plane_f32_neon(
    const float *x, const struct kvarn__plane *plane, const struct kvarn__work *work)
{
    if (!is_whole(plane)) {
        kvarn_round_plane_f32_scalar(x, plane, work);
        return;
    }
    round_rows(x, plane, work);
}

void kvarn_refine_plane_f32_neon(const struct kvarn__plane *plane, const struct kvarn__work *work)
{
    if (!is_whole(plane)) {
        kvarn_refine_plane_f32_scalar(plane, work);
        return;
    }
    refine_rows(plane, work);
}

void kvarn_diffuse_plane_f32_neon(
    const float *factor, const struct kvarn__plane *plane, const struct kvarn__work *work)
{
    if (!diffuse_is_whole(plane)) {
        kvarn_diffuse_plane_f32_scalar(factor, plane, work);
        return;
    }
    diffuse_rows(factor, plane, work);
}

void kvarn_metric_add_f32_f32_neon(float *a, const float *q, size_t rows, uint32_t dim)
{
    if (dim % VF_LANES != 0) {
        kvarn_metric_add_f32_f32_scalar(a, q, rows, dim);
        return;
    }
    metric_rows(a, q, rows, dim);
}
