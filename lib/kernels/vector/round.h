/*
 * Encoder `reference` after normalisation: each row rounded between its least and largest value.
 * Include it after a vec.h.
 *
 * A row's own factor cancels: with u = x / col, code = (u - min u) / ((max u - min u) / top), and
 * scale and zero come out with the factor already in them.
 */
#ifndef KVARN_KERNELS_VECTOR_ROUND_H
#define KVARN_KERNELS_VECTOR_ROUND_H

#include "lib/kernels/vector/levels.h"

/* Least and largest of x * inv_col along VF_LANES rows. */
VF_INLINE void round_rows_range(
    const float *x, uint32_t cols, const float *inv_col, vf *ret_low, vf *ret_high)
{
    vf lows[VF_LANES], highs[VF_LANES];

    for (uint32_t r = 0; r < VF_LANES; r += 4) {
        const float *row = x + (size_t)r * cols;
        vf low[4], high[4];
        for (uint32_t i = 0; i < 4; i++) {
            low[i] = vf_set1(INFINITY);
            high[i] = vf_set1(-INFINITY);
        }
        for (uint32_t c = 0; c < cols; c += VF_LANES) {
            vf inv = vf_load(inv_col + c);
            for (uint32_t i = 0; i < 4; i++) {
                vf u = vf_mul(vf_load(row + (size_t)i * cols + c), inv);
                low[i] = vf_min(u, low[i]);
                high[i] = vf_max(u, high[i]);
            }
        }
        for (uint32_t i = 0; i < 4; i++) {
            lows[r + i] = low[i];
            highs[r + i] = high[i];
        }
    }
    *ret_low = vf_reduce_min(lows);
    *ret_high = vf_reduce_max(highs);
}

/* The operation `round_plane`, of planes with rows and cols in whole vectors. */
static void round_rows(
    const float *x, const struct kvarn__plane *plane, const struct kvarn__work *work)
{
    const vf inv_top = vf_set1(1.0f / (float)((1u << plane->bits) - 1));
    struct levels levels;

    KVARN_ASSERT(plane->rows % VF_LANES == 0);
    levels_columns_start(plane, work->col, work);
    for (uint32_t r = 0; r < plane->rows; r += VF_LANES) {
        const float *rows = x + (size_t)r * plane->cols;
        vf low, high;
        round_rows_range(rows, plane->cols, work->inv_col, &low, &high);
        vf least = vf_mul(vf_set1(LEVELS_STEP_MIN), vf_load(work->row + r));
        vf step = vf_max(vf_mul(vf_sub(high, low), inv_top), least);
        levels_set(&levels, step, low);
        vf_half_store(plane->scale + r, step);
        vf_half_store(plane->zero + r, low);
        levels_rows_pack(plane, rows, work->inv_col, &levels, r);
    }
}

#endif
