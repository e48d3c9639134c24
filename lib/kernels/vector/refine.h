/*
 * Encoder `refined` after normalisation: FORMAT.md 7.3. Include it after a vec.h.
 *
 * Rows are taken as u = x / col, without their own factor: fits do not care about it and scale and
 * zero come out with it in them. Sums are of d = u - low, which the rounding needs anyway; with
 * codes q and weights w, five sums give a fit: w, wq, wqq, wd, wqd. A group of VF_LANES rows stays
 * in the first cache for all its starting fits, for the first round's fit and for its share of the
 * columns' sums.
 */
#ifndef KVARN_KERNELS_VECTOR_REFINE_H
#define KVARN_KERNELS_VECTOR_REFINE_H

#include <string.h>

#include "lib/kernels/vector/levels.h"

#define REFINE_TOP   (LEVELS_SHIFT + 3.0f)
#define REFINE_CHUNK 4 /* vectors of a row whose column sums stay in registers */

/* A variance below this share of the sum that it is a difference of is rounding: no slope. */
#define REFINE_VAR_SHARE 1e-6f

/* Sums over one group, one lane a row. */
struct refine_sums {
    vf w, wq, wqq, wd, wqd;
};

/* Levels from the sums: weighted least squares. `low` is what d was taken from. */
VF_INLINE void refine_solve(const struct refine_sums *s, vf row, struct levels *levels)
{
    vf inv = vf_div(vf_set1(1.0f), s->w);
    vf code_mean = vf_mul(s->wq, inv), d_mean = vf_mul(s->wd, inv);
    vf var = vf_sub(s->wqq, vf_mul(s->wq, code_mean));
    vf cov = vf_sub(s->wqd, vf_mul(s->wd, code_mean));
    vf least = vf_mul(row, vf_set1(LEVELS_STEP_MIN));
    vf enough = vf_max(vf_mul(s->wqq, vf_set1(REFINE_VAR_SHARE)), vf_set1(KVARN__FIT_VAR_MIN));
    vf step = vf_select_gt(var, enough, vf_max(vf_div(cov, var), least), least);

    levels_set(levels, step, vf_sub(vf_add(vf_load(levels->low), d_mean), vf_mul(step, code_mean)));
}

/*
 * Set the weights of VF_LANES rows: their distances from the mean in units of the row's factor, at
 * least KVARN__WEIGHT_MIN.
 */
VF_INLINE void refine_weights_set(const float *x, uint32_t cols, const float *inv_col,
    const float *mean, const float *inv_row, float *weights)
{
    for (uint32_t i = 0; i < VF_LANES; i++) {
        const float *row = x + (size_t)i * cols;
        float *dst = weights + (size_t)i * cols;
        vf m = vf_set1(mean[i]), inv = vf_set1(inv_row[i]);
        for (uint32_t c = 0; c < cols; c += VF_LANES) {
            vf distance = vf_abs(vf_fms(vf_load(row + c), vf_load(inv_col + c), m));
            vf_store(dst + c, vf_max(vf_mul(distance, inv), vf_set1(KVARN__WEIGHT_MIN)));
        }
    }
}

/*
 * Round VF_LANES rows on their levels and sum. square_col: weights are times it, and codes are kept
 * in `codes`; NULL: neither.
 */
VF_INLINE void refine_rows_sum(const float *x, uint32_t cols, const float *inv_col,
    const float *weights, const float *square_col, const struct levels *levels, float *codes,
    struct refine_sums *ret)
{
    vf w_rows[VF_LANES], wq_rows[VF_LANES], wqq_rows[VF_LANES], wd_rows[VF_LANES];
    vf wqd_rows[VF_LANES];

    for (uint32_t i = 0; i < VF_LANES; i++) {
        const float *row = x + (size_t)i * cols;
        const float *weight = weights + (size_t)i * cols;
        vf inv_step = vf_set1(levels->inv[i]), low = vf_set1(levels->low[i]);
        vf zero = vf_set1(0.0f);
        struct refine_sums s = {zero, zero, zero, zero, zero};
        for (uint32_t c = 0; c < cols; c += VF_LANES) {
            vf d = vf_fms(vf_load(row + c), vf_load(inv_col + c), low);
            vf q = vf_sub(levels_code(d, inv_step, vf_set1(REFINE_TOP)), vf_set1(LEVELS_SHIFT));
            vf w = vf_load(weight + c);
            if (square_col != NULL) {
                w = vf_mul(w, vf_load(square_col + c));
                vf_store(codes + (size_t)i * cols + c, q);
            }
            vf wq = vf_mul(w, q);
            s.w = vf_add(s.w, w);
            s.wq = vf_add(s.wq, wq);
            s.wqq = vf_fma(wq, q, s.wqq);
            s.wd = vf_fma(w, d, s.wd);
            s.wqd = vf_fma(wq, d, s.wqd);
        }
        w_rows[i] = s.w;
        wq_rows[i] = s.wq;
        wqq_rows[i] = s.wqq;
        wd_rows[i] = s.wd;
        wqd_rows[i] = s.wqd;
    }
    ret->w = vf_reduce_add(w_rows);
    ret->wq = vf_reduce_add(wq_rows);
    ret->wqq = vf_reduce_add(wqq_rows);
    ret->wd = vf_reduce_add(wd_rows);
    ret->wqd = vf_reduce_add(wqd_rows);
}

/* Add VF_LANES rows' shares to the column factors' numerators and denominators. */
VF_INLINE void refine_columns_chunk(const float *x, uint32_t cols, const float *weights,
    const float *codes, const struct levels *levels, const struct kvarn__work *work, uint32_t c,
    uint32_t chunk)
{
    vf num[REFINE_CHUNK], den[REFINE_CHUNK];

    for (uint32_t j = 0; j < chunk; j++) {
        num[j] = vf_load(work->num + c + j * VF_LANES);
        den[j] = vf_load(work->den + c + j * VF_LANES);
    }
    for (uint32_t i = 0; i < VF_LANES; i++) {
        size_t at = (size_t)i * cols + c;
        vf step = vf_set1(levels->step[i]), low = vf_set1(levels->low[i]);
        for (uint32_t j = 0; j < chunk; j++, at += VF_LANES) {
            vf y = vf_fma(vf_load(codes + at), step, low);
            vf wy = vf_mul(vf_load(weights + at), y);
            num[j] = vf_fma(wy, vf_load(x + at), num[j]);
            den[j] = vf_fma(wy, y, den[j]);
        }
    }
    for (uint32_t j = 0; j < chunk; j++) {
        vf_store(work->num + c + j * VF_LANES, num[j]);
        vf_store(work->den + c + j * VF_LANES, den[j]);
    }
}

/* One round's share of VF_LANES rows: levels by the columns, then the columns' sums by them. */
static void refine_rows_round(const float *x, uint32_t cols, const float *weights, const float *row,
    const struct kvarn__work *work, struct levels *levels)
{
    float codes[VF_LANES * KVARN__ROW_MAX];
    const float *square_col = work->now_col;
    struct refine_sums sums;
    uint32_t c = 0;

    refine_rows_sum(x, cols, work->inv_col, weights, square_col, levels, codes, &sums);
    refine_solve(&sums, vf_load(row), levels);
    for (; c + REFINE_CHUNK * VF_LANES <= cols; c += REFINE_CHUNK * VF_LANES) {
        refine_columns_chunk(x, cols, weights, codes, levels, work, c, REFINE_CHUNK);
    }
    for (; c < cols; c += VF_LANES) {
        refine_columns_chunk(x, cols, weights, codes, levels, work, c, 1);
    }
}

/* A group's first levels, weights and starting fits. */
static void refine_rows_start(const float *x, uint32_t cols, float *weights, uint32_t r,
    const struct kvarn__work *work, struct levels *levels)
{
    float inv_row[VF_LANES];
    struct refine_sums sums;
    vf row = vf_load(work->row + r);
    vf step = vf_mul(vf_max(vf_mul(vf_set1(KVARN__STEP_START), vf_load(work->best_std + r)),
                         vf_set1(LEVELS_STEP_MIN)),
        row);

    vf_store(inv_row, vf_div(vf_set1(1.0f), row));
    levels_set(levels, step,
        vf_sub(vf_load(work->best_mean + r), vf_mul(step, vf_set1(KVARN__LOW_START))));
    refine_weights_set(x, cols, work->inv_col, work->best_mean + r, inv_row, weights);
    for (int i = 0; i < KVARN__FITS; i++) {
        refine_rows_sum(x, cols, work->inv_col, weights, NULL, levels, NULL, &sums);
        refine_solve(&sums, row, levels);
    }
}

/* inv_col and its likes from the column factors; clears the sums. */
static void refine_columns_start(uint32_t cols, const struct kvarn__work *work)
{
    for (uint32_t c = 0; c < cols; c += VF_LANES) {
        vf col = vf_load(work->col + c);
        vf_store(work->inv_col + c, vf_div(vf_set1(1.0f), col));
        vf_store(work->now_col + c, vf_mul(col, col));
        vf_store(work->num + c, vf_set1(0.0f));
        vf_store(work->den + c, vf_set1(0.0f));
    }
}

static void refine_columns_finish(uint32_t cols, const struct kvarn__work *work)
{
    for (uint32_t c = 0; c < cols; c += VF_LANES) {
        vf num = vf_load(work->num + c), den = vf_load(work->den + c), col = vf_load(work->col + c);
        vf next = vf_select_gt(num, vf_set1(0.0f), vf_div(num, den), col);
        vf_store(work->col + c, vf_select_gt(den, vf_set1(KVARN__DEN_MIN), next, col));
    }
}

/* The operation `refine_plane`, of planes with rows and cols in whole vectors. */
static void refine_rows(const struct kvarn__plane *plane, const struct kvarn__work *work)
{
    const uint32_t rows = plane->rows, cols = plane->cols;
    struct levels levels;

    KVARN_ASSERT(plane->bits == 2 && rows % VF_LANES == 0 && cols <= KVARN__ROW_MAX);
    for (int i = 0; i < KVARN__ROUNDS; i++) {
        refine_columns_start(cols, work);
        for (uint32_t r = 0; r < rows; r += VF_LANES) {
            const float *x = plane->values + (size_t)r * cols;
            float *weights = work->weights + (size_t)r * cols;
            if (i == 0) {
                refine_rows_start(x, cols, weights, r, work, &levels);
            } else {
                levels_set(&levels, vf_load(work->step + r), vf_load(work->low + r));
            }
            refine_rows_round(x, cols, weights, work->row + r, work, &levels);
            vf_store(work->step + r, vf_load(levels.step));
            vf_store(work->low + r, vf_load(levels.low));
        }
        refine_columns_finish(cols, work);
    }
    levels_columns_start(plane, work->col, work);
    for (uint32_t r = 0; r < rows; r += VF_LANES) {
        levels_set(&levels, vf_load(work->step + r), vf_load(work->low + r));
        vf_half_store(plane->scale + r, vf_load(levels.step));
        vf_half_store(plane->zero + r, vf_load(levels.low));
        levels_rows_pack(plane, plane->values + (size_t)r * cols, work->inv_col, &levels, r);
    }
}

#endif
