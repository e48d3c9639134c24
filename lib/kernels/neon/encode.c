/* The encoders' planes, NEON: the templates of lib/kernels/vector/. */
#include "lib/kernels/neon/vec.h"

#define KVARN__VECTOR_PACK kvarn_pack_u8_u8_neon

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
