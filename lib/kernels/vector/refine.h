/*
 * Encoder `refined` after balancing: FORMAT.md 7.3. Include it after a vec.h.
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

/* Levels from the sums: weighted least squares. The levels' low is what d was taken from. */
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
 * least KVARN__WEIGHT_MIN. Their sum, and that of weight times (u - mean), which every starting fit
 * of the row needs, come back.
 */
VF_INLINE void refine_weights_set(const float *x, uint32_t cols, const float *inv_col,
    const float *mean, const float *inv_row, float *weights, struct refine_sums *ret)
{
    vf w_rows[VF_LANES], wd_rows[VF_LANES];

    for (uint32_t i = 0; i < VF_LANES; i++) {
        const float *row = x + (size_t)i * cols;
        float *dst = weights + (size_t)i * cols;
        vf m = vf_set1(mean[i]), inv = vf_set1(inv_row[i]);
        vf w_sum = vf_set1(0.0f), wd_sum = w_sum;
        for (uint32_t c = 0; c < cols; c += VF_LANES) {
            vf d = vf_fms(vf_load(row + c), vf_load(inv_col + c), m);
            vf w = vf_max_abs(vf_mul(d, inv), vf_set1(KVARN__WEIGHT_MIN));
            vf_store(dst + c, w);
            w_sum = vf_add(w_sum, w);
            wd_sum = vf_fma(w, d, wd_sum);
        }
        w_rows[i] = w_sum;
        wd_rows[i] = wd_sum;
    }
    ret->w = vf_reduce_add(w_rows);
    ret->wd = vf_reduce_add(wd_rows);
}

/* VF_LANES rows: values, weights, and where their codes go (NULL: nowhere) or are. */
struct refine_rows {
    const float *x;       /* borrowed */
    const float *weights; /* borrowed */
    float *codes;         /* borrowed */
};

/*
 * Round VF_LANES rows on their levels, keep the codes where `codes` is not NULL, and add up what
 * depends on codes; with `has_wd` also weight times d, where the caller does not have it.
 */
VF_INLINE void refine_rows_sum(struct refine_rows rows, uint32_t cols, const float *inv_col,
    const struct levels *levels, bool has_wd, struct refine_sums *ret)
{
    vf wq_rows[VF_LANES], wqq_rows[VF_LANES], wqd_rows[VF_LANES], wd_rows[VF_LANES];

    for (uint32_t i = 0; i < VF_LANES; i++) {
        size_t at = (size_t)i * cols;
        vf inv_step = vf_set1(levels->inv[i]), low = vf_set1(levels->low[i]);
        vf zero = vf_set1(0.0f);
        struct refine_sums s = {zero, zero, zero, zero, zero};
        for (uint32_t c = 0; c < cols; c += VF_LANES) {
            vf d = vf_fms(vf_load(rows.x + at + c), vf_load(inv_col + c), low);
            vf q = vf_sub(levels_code(d, inv_step, vf_set1(REFINE_TOP)), vf_set1(LEVELS_SHIFT));
            vf w = vf_load(rows.weights + at + c);
            vf wq = vf_mul(w, q);
            if (rows.codes != NULL) {
                vf_store(rows.codes + at + c, q);
            }
            s.wq = vf_add(s.wq, wq);
            s.wqq = vf_fma(wq, q, s.wqq);
            s.wqd = vf_fma(wq, d, s.wqd);
            s.wd = has_wd ? vf_fma(w, d, s.wd) : zero;
        }
        wq_rows[i] = s.wq;
        wqq_rows[i] = s.wqq;
        wqd_rows[i] = s.wqd;
        wd_rows[i] = s.wd;
    }
    ret->wq = vf_reduce_add(wq_rows);
    ret->wqq = vf_reduce_add(wqq_rows);
    ret->wqd = vf_reduce_add(wqd_rows);
    if (has_wd) {
        ret->wd = vf_reduce_add(wd_rows);
    }
}

/* Add VF_LANES rows' shares to the column factors' numerators and denominators. */
VF_INLINE void refine_columns_chunk(struct refine_rows rows, uint32_t cols,
    const struct levels *levels, const struct kvarn__work *work, uint32_t c, uint32_t chunk)
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
            vf y = vf_fma(vf_load(rows.codes + at), step, low);
            vf wy = vf_mul(vf_load(rows.weights + at), y);
            num[j] = vf_fma(wy, vf_load(rows.x + at), num[j]);
            den[j] = vf_fma(wy, y, den[j]);
        }
    }
    for (uint32_t j = 0; j < chunk; j++) {
        vf_store(work->num + c + j * VF_LANES, num[j]);
        vf_store(work->den + c + j * VF_LANES, den[j]);
    }
}

/* Add VF_LANES rows to all columns' sums. */
VF_INLINE void refine_columns_add(struct refine_rows rows, uint32_t cols,
    const struct levels *levels, const struct kvarn__work *work)
{
    uint32_t c = 0;

    for (; c + REFINE_CHUNK * VF_LANES <= cols; c += REFINE_CHUNK * VF_LANES) {
        refine_columns_chunk(rows, cols, levels, work, c, REFINE_CHUNK);
    }
    for (; c < cols; c += VF_LANES) {
        refine_columns_chunk(rows, cols, levels, work, c, 1);
    }
}

/*
 * Groups of VF_LANES rows that go side by side: while one waits for the long chain of operations
 * from its sums to its next levels, the other one's sums are taken. Only where both fit the first
 * cache, with a third of it left: 12 bytes a value.
 */
#define REFINE_SIDE        2
#define REFINE_SIDE_VALUES 1365 /* values of a group for which that holds in 32 KiB */

/* One group on its way through a round. */
struct refine_group {
    const float *x; /* borrowed */
    float *weights; /* borrowed */
    uint32_t r;     /* first row */
    struct levels levels;
    struct refine_sums sums;
    vf from_mean; /* sum of weight times (u - mean) */
};

/* A group's first levels, and its weights. */
static void refine_group_start(
    struct refine_group *group, uint32_t cols, const struct kvarn__work *work)
{
    float inv_row[VF_LANES];
    vf row = vf_load(work->row + group->r), mean = vf_load(work->mean_row + group->r);
    vf deviation = vf_mul(vf_set1(KVARN__STEP_START), vf_load(work->std_row + group->r));
    vf step = vf_mul(vf_max(deviation, vf_set1(LEVELS_STEP_MIN)), row);

    vf_store(inv_row, vf_div(vf_set1(1.0f), row));
    levels_set(&group->levels, step, vf_sub(mean, vf_mul(step, vf_set1(KVARN__LOW_START))));
    refine_weights_set(group->x, cols, work->inv_col, work->mean_row + group->r, inv_row,
        group->weights, &group->sums);
    group->from_mean = group->sums.wd;
    vf_store(work->now_row + group->r, group->sums.w);
}

/* A fit of the first round; only the last one's codes are of use. */
static void refine_group_fit(
    struct refine_group *group, uint32_t cols, const struct kvarn__work *work, float *codes)
{
    vf mean = vf_load(work->mean_row + group->r), low = vf_load(group->levels.low);

    /* w (u - low) = w (u - mean) + w (mean - low) */
    group->sums.wd = vf_fma(group->sums.w, vf_sub(mean, low), group->from_mean);
    struct refine_rows rows = {group->x, group->weights, codes};
    refine_rows_sum(rows, cols, work->inv_col, &group->levels, false, &group->sums);
    refine_solve(&group->sums, vf_load(work->row + group->r), &group->levels);
}

/* The fit of a later round. */
static void refine_group_again(
    struct refine_group *group, uint32_t cols, const struct kvarn__work *work, float *codes)
{
    group->sums.w = vf_load(work->now_row + group->r);
    levels_set(&group->levels, vf_load(work->step + group->r), vf_load(work->low + group->r));
    struct refine_rows rows = {group->x, group->weights, codes};
    refine_rows_sum(rows, cols, work->inv_col, &group->levels, true, &group->sums);
    refine_solve(&group->sums, vf_load(work->row + group->r), &group->levels);
}

/* One round of the groups from row r on: as many as go side by side. Returns the next row. */
static uint32_t refine_side_round(const struct kvarn__plane *plane, const struct kvarn__work *work,
    uint32_t r, bool is_first, float *codes)
{
    const uint32_t cols = plane->cols, left = (plane->rows - r) / VF_LANES;
    const uint32_t side = VF_LANES * cols <= REFINE_SIDE_VALUES ? REFINE_SIDE : 1;
    const uint32_t count = left < side ? left : side;
    const size_t group_codes = (size_t)VF_LANES * cols;
    struct refine_group group[REFINE_SIDE];

    for (uint32_t g = 0; g < count; g++) {
        size_t at = (size_t)(r + g * VF_LANES) * cols;
        group[g].x = plane->values + at;
        group[g].weights = work->weights + at;
        group[g].r = r + g * VF_LANES;
        if (is_first) {
            refine_group_start(&group[g], cols, work);
        } else {
            refine_group_again(&group[g], cols, work, codes + g * group_codes);
        }
    }
    for (uint32_t i = 0; is_first && i < KVARN__FITS; i++) {
        for (uint32_t g = 0; g < count; g++) {
            refine_group_fit(
                &group[g], cols, work, i + 1 < KVARN__FITS ? NULL : codes + g * group_codes);
        }
    }
    for (uint32_t g = 0; g < count; g++) {
        struct refine_rows rows = {group[g].x, group[g].weights, codes + g * group_codes};
        refine_columns_add(rows, cols, &group[g].levels, work);
        vf_store(work->step + group[g].r, vf_load(group[g].levels.step));
        vf_store(work->low + group[g].r, vf_load(group[g].levels.low));
    }
    return r + count * VF_LANES;
}

/* inv_col from the column factors; clears the sums. */
static void refine_columns_start(uint32_t cols, const struct kvarn__work *work)
{
    for (uint32_t c = 0; c < cols; c += VF_LANES) {
        vf_store(work->inv_col + c, vf_div(vf_set1(1.0f), vf_load(work->col + c)));
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
    _Alignas(64) float codes[REFINE_SIDE * VF_LANES * KVARN__ROW_MAX];
    struct levels levels;

    KVARN_ASSERT(plane->bits == 2 && rows % VF_LANES == 0 && cols <= KVARN__ROW_MAX);
    for (int i = 0; i < KVARN__ROUNDS; i++) {
        refine_columns_start(cols, work);
        for (uint32_t r = 0; r < rows;) {
            r = refine_side_round(plane, work, r, i == 0, codes);
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
