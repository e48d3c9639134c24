/*
 * Encoder `aware` after `refined`, and the metric that it needs: FORMAT.md 7.4. Include it after a
 * vec.h, with DIFFUSE_ROWS defined: rows whose sums over 4 vectors of columns fit the registers.
 *
 * Columns do not feel each other, so that they go in chunks of 4 vectors, and the errors of a chunk
 * lie together. At D 128 they stay in the first cache while all rows pass; where there are more
 * rows, the errors of each span of 128 are carried to all rows to come while they are there. A
 * block of DIFFUSE_ROWS rows first takes the errors of all rows before it, sums in registers, and
 * is then rounded row after row, which carries errors on within the block. Rounding a row waits for
 * itself (8 operations, one after the other); the sums of the next block, which need none of it but
 * at their end, fill that time.
 */
#ifndef KVARN_KERNELS_VECTOR_AWARE_H
#define KVARN_KERNELS_VECTOR_AWARE_H

#include "lib/kernels/vector/levels.h"

#define DIFFUSE_VECTORS 4 /* of columns in a chunk: what vf_codes2_store() takes */
#define DIFFUSE_COLS    (DIFFUSE_VECTORS * VF_LANES)
#define DIFFUSE_SPAN    128 /* rows whose errors go to all rows to come before more are rounded */
#define METRIC_ROWS     4   /* queries that share a pass over the metric */

/* One chunk of columns. */
struct diffuse {
    const float *x;       /* borrowed: row 0 of the chunk; rows are `cols` apart */
    const float *factor;  /* borrowed */
    const float *col;     /* borrowed, [DIFFUSE_COLS] */
    const float *inv_col; /* borrowed, [DIFFUSE_COLS] */
    float *errors;        /* borrowed, [rows][DIFFUSE_COLS]: of the rows rounded so far */
    float *carried;       /* borrowed, [rows][DIFFUSE_COLS]: rows with the errors of spans before */
    uint8_t *codes;       /* borrowed: row 0 of the chunk; rows are `cols` / 4 apart */
    const struct kvarn__work *work;
    uint32_t rows, cols;
};

typedef vf diffuse_sums[DIFFUSE_ROWS][DIFFUSE_VECTORS];

/* Rows r .. r + DIFFUSE_ROWS - 1 as they are, or as far as errors were carried on to them. */
VF_INLINE void diffuse_load(const struct diffuse *d, uint32_t r, bool is_carried, diffuse_sums sums)
{
    const float *src =
        is_carried ? d->carried + (size_t)r * DIFFUSE_COLS : d->x + (size_t)r * d->cols;
    const size_t stride = is_carried ? DIFFUSE_COLS : d->cols;

    for (uint32_t a = 0; a < DIFFUSE_ROWS; a++) {
        for (uint32_t v = 0; v < DIFFUSE_VECTORS; v++) {
            sums[a][v] = vf_load(src + a * stride + v * VF_LANES);
        }
    }
}

/* Carry the errors of rows first .. last - 1 on to the block of rows at r. */
VF_INLINE void diffuse_gather(
    const struct diffuse *d, uint32_t r, uint32_t first, uint32_t last, diffuse_sums sums)
{
    const float *panel = d->factor + kvarn__factor_at(first, r);
    const float *errors = d->errors + (size_t)first * DIFFUSE_COLS;

    for (uint32_t i = first; i < last; i++) {
        vf e[DIFFUSE_VECTORS];
        for (uint32_t v = 0; v < DIFFUSE_VECTORS; v++) {
            e[v] = vf_load(errors + v * VF_LANES);
        }
        for (uint32_t a = 0; a < DIFFUSE_ROWS; a++) {
            vf by = vf_set1(panel[a]);
            for (uint32_t v = 0; v < DIFFUSE_VECTORS; v++) {
                sums[a][v] = vf_fma(by, e[v], sums[a][v]);
            }
        }
        panel += KVARN__FACTOR_PANEL;
        errors += DIFFUSE_COLS;
    }
}

/* Round row r, whose sums these are: its codes packed, its errors kept and returned. */
VF_INLINE void diffuse_round(
    const struct diffuse *d, uint32_t r, const vf sums[DIFFUSE_VECTORS], vf errors[DIFFUSE_VECTORS])
{
    const float step = d->work->step[r], zero = d->work->low[r];
    const vf low = vf_set1(zero), inv_step = vf_set1(d->work->now_row[r]);
    const vf minus_step = vf_set1(-step), minus_low = vf_set1(-zero);
    const vf top = vf_set1(LEVELS_SHIFT + 3.0f);
    const float *x = d->x + (size_t)r * d->cols;
    float *kept = d->errors + (size_t)r * DIFFUSE_COLS;
    vf q[DIFFUSE_VECTORS];

    for (uint32_t v = 0; v < DIFFUSE_VECTORS; v++) {
        vf u = vf_fms(sums[v], vf_load(d->inv_col + v * VF_LANES), low);
        q[v] = vf_sub(levels_code(u, inv_step, top), vf_set1(LEVELS_SHIFT));
        vf minus_level = vf_fma(q[v], minus_step, minus_low);
        errors[v] = vf_fma(minus_level, vf_load(d->col + v * VF_LANES), vf_load(x + v * VF_LANES));
        vf_store(kept + v * VF_LANES, errors[v]);
    }
    vf_codes2_store(d->codes + (size_t)r * (d->cols / 4), q);
}

/* Round row r + a, where the block has one, and carry its errors to the block's later rows. */
VF_INLINE void diffuse_step(const struct diffuse *d, uint32_t r, uint32_t a, diffuse_sums sums)
{
    vf errors[DIFFUSE_VECTORS];

    if (a >= DIFFUSE_ROWS) {
        return;
    }
    diffuse_round(d, r + a, sums[a], errors);
    for (uint32_t b = a + 1; b < DIFFUSE_ROWS; b++) {
        vf by = vf_set1(d->factor[kvarn__factor_at(r + a, r + b)]);
        for (uint32_t v = 0; v < DIFFUSE_VECTORS; v++) {
            sums[b][v] = vf_fma(by, errors[v], sums[b][v]);
        }
    }
}

/*
 * Round the block of rows at r of the span that starts at `first`. Steps are written out so that
 * compilers keep the sums in registers.
 */
VF_INLINE void diffuse_block(const struct diffuse *d, uint32_t r, uint32_t first)
{
    diffuse_sums sums;

    diffuse_load(d, r, first > 0, sums);
    diffuse_gather(d, r, first, r, sums);
    diffuse_step(d, r, 0, sums);
    diffuse_step(d, r, 1, sums);
    diffuse_step(d, r, 2, sums);
    diffuse_step(d, r, 3, sums);
}

/* Carry the errors of a span's rows on to the block of rows at r, beyond it. */
VF_INLINE void diffuse_carry(const struct diffuse *d, uint32_t r, uint32_t first, uint32_t last)
{
    diffuse_sums sums;

    diffuse_load(d, r, first > 0, sums);
    diffuse_gather(d, r, first, last, sums);
    for (uint32_t a = 0; a < DIFFUSE_ROWS; a++) {
        for (uint32_t v = 0; v < DIFFUSE_VECTORS; v++) {
            vf_store(d->carried + (size_t)(r + a) * DIFFUSE_COLS + v * VF_LANES, sums[a][v]);
        }
    }
}

static void diffuse_chunk(const struct diffuse *d)
{
    for (uint32_t first = 0; first < d->rows; first += DIFFUSE_SPAN) {
        uint32_t left = d->rows - first, last = first + (left < DIFFUSE_SPAN ? left : DIFFUSE_SPAN);
        for (uint32_t r = first; r < last; r += DIFFUSE_ROWS) {
            diffuse_block(d, r, first);
        }
        for (uint32_t r = last; r < d->rows; r += DIFFUSE_ROWS) {
            diffuse_carry(d, r, first, last);
        }
    }
}

/* Scales as they are stored: step, low and col, and what divides by step and col. */
static void diffuse_scales(const struct kvarn__plane *plane, const struct kvarn__work *work)
{
    const vf one = vf_set1(1.0f);

    for (uint32_t r = 0; r < plane->rows; r += VF_LANES) {
        vf step = vf_half_load(plane->scale + r);
        vf_store(work->step + r, step);
        vf_store(work->now_row + r, vf_div(one, step));
        vf_store(work->low + r, vf_half_load(plane->zero + r));
    }
    for (uint32_t c = 0; c < plane->cols; c += VF_LANES) {
        vf col = vf_half_load(plane->other + c);
        vf_store(work->col + c, col);
        vf_store(work->inv_col + c, vf_div(one, col));
    }
}

/* Whether diffuse_rows() takes a plane. */
static bool diffuse_is_whole(const struct kvarn__plane *plane)
{
    return plane->rows % VF_LANES == 0 && plane->cols % DIFFUSE_COLS == 0;
}

/* The operation `diffuse_plane`, of planes that are whole. */
static void diffuse_rows(
    const float *factor, const struct kvarn__plane *plane, const struct kvarn__work *work)
{
    const uint32_t rows = plane->rows, cols = plane->cols;

    KVARN_ASSERT(plane->bits == 2 && diffuse_is_whole(plane));
    KVARN_ASSERT(rows % KVARN__FACTOR_PANEL == 0 && KVARN__FACTOR_PANEL % DIFFUSE_ROWS == 0);
    diffuse_scales(plane, work);
    for (uint32_t c = 0; c < cols; c += DIFFUSE_COLS) {
        const struct diffuse d = {.x = plane->values + c,
            .factor = factor,
            .col = work->col + c,
            .inv_col = work->inv_col + c,
            .errors = work->balanced + (size_t)c * rows,
            .carried = work->weights + (size_t)c * rows,
            .codes = plane->codes + c / 4,
            .work = work,
            .rows = rows,
            .cols = cols};
        diffuse_chunk(&d);
    }
}

/*
 * Add `count` queries, at most METRIC_ROWS, to the metric: two of its rows at a time, so that what
 * is loaded of a query serves both.
 */
VF_INLINE void metric_rows_add(float *a, const float *q, uint32_t count, uint32_t dim)
{
    for (uint32_t i = 0; i < dim; i += 2) {
        float *row = a + (size_t)i * dim;
        vf by[METRIC_ROWS][2];
        for (uint32_t k = 0; k < count; k++) {
            by[k][0] = vf_set1(q[(size_t)k * dim + i]);
            by[k][1] = vf_set1(q[(size_t)k * dim + i + 1]);
        }
        for (uint32_t j = i - i % VF_LANES; j < dim; j += VF_LANES) {
            vf one = vf_load(row + j), two = vf_load(row + dim + j);
            for (uint32_t k = 0; k < count; k++) {
                vf x = vf_load(q + (size_t)k * dim + j);
                one = vf_fma(by[k][0], x, one);
                two = vf_fma(by[k][1], x, two);
            }
            vf_store(row + j, one);
            vf_store(row + dim + j, two);
        }
    }
}

/* The operation `metric_add`, of a dim in whole vectors. */
static void metric_rows(float *a, const float *q, size_t rows, uint32_t dim)
{
    size_t r = 0;

    KVARN_ASSERT(dim % VF_LANES == 0);
    for (; r + METRIC_ROWS <= rows; r += METRIC_ROWS) {
        metric_rows_add(a, q + r * dim, METRIC_ROWS, dim);
    }
    for (; r < rows; r++) {
        metric_rows_add(a, q + r * dim, 1, dim);
    }
}

#endif
