/*
 * The pieces of the scalar encoders, apart so that tests can hold each to plain arithmetic. Rows of
 * `count` or `cols` values, a multiple of 8.
 */
#ifndef KVARN_KERNELS_SCALAR_PLANE_H
#define KVARN_KERNELS_SCALAR_PLANE_H

#include <stddef.h>
#include <stdint.h>

#include "lib/kernels/plane.h"

/* One row on its way into the column factors: x ~ y * col, y the level of the row's code. */
struct kvarn__columns {
    const float *x;       /* borrowed, [count]: the row as it is */
    const float *codes;   /* borrowed, [count] */
    const float *weights; /* borrowed, [count] */
    uint32_t count;
    float *num; /* borrowed, [count]: += weights * x * y */
    float *den; /* borrowed, [count]: += weights * y * y */
};

/* mean[cols], dst[cols] = mean and standard deviation (ddof 1) of each column. */
void kvarn__std_columns_scalar(
    const float *x, uint32_t rows, uint32_t cols, float *mean, float *dst);

/* mean[rows], dst[rows] = the same of each row. */
void kvarn__std_rows_scalar(const float *x, uint32_t rows, uint32_t cols, float *mean, float *dst);

/* dst = x / col / row of one row. */
void kvarn__balance_row_scalar(
    const float *x, uint32_t cols, const float *col, float row, float *dst);

/* Smallest and largest of a row. */
void kvarn__range_row_scalar(const float *x, uint32_t count, float *ret_low, float *ret_high);

/*
 * One step of weighted least squares: quantise x on `line` to codes[count] in 0..3, then move
 * `line` to the best fit of x by those codes.
 */
void kvarn__fit_row_scalar(
    const float *x, const float *weights, uint32_t count, float *codes, struct kvarn__line *line);

/* Add one row's share to the numerators and denominators of the column factors. */
void kvarn__fit_columns_scalar(const struct kvarn__columns *in, struct kvarn__line line);

/* codes = clamp(rint((x - low) / step), 0, top); NaN gives 0. */
void kvarn__round_row_scalar(
    const float *x, uint32_t count, uint32_t top, struct kvarn__line line, uint8_t *codes);

#endif
