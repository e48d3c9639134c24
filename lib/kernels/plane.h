/*
 * A plane: K or V of one tile on its way through an encoder, as rows of floats of which each row is
 * quantised. K's rows are channels, V's are tokens. And the work space that the encoders' kernels
 * share.
 */
#ifndef KVARN_KERNELS_PLANE_H
#define KVARN_KERNELS_PLANE_H

#include <stddef.h>
#include <stdint.h>

/* Iterations of the variance normalisation: FORMAT.md 7.1. */
#define KVARN__ITERATIONS 16

/* Encoder `refined`: FORMAT.md 7.3. */
#define KVARN__STEP_START  0.996f /* step of the best uniform 4-level quantiser of a Gaussian */
#define KVARN__LOW_START   1.5f   /* its lowest level lies this many steps below the mean */
#define KVARN__WEIGHT_MIN  0.1f
#define KVARN__FITS        2 /* of the first round; later ones have one */
#define KVARN__ROUNDS      3
#define KVARN__FIT_VAR_MIN 1e-9f
#define KVARN__DEN_MIN     1e-12f

/*
 * Encoder `aware`: FORMAT.md 7.4. The factor holds R, upper triangular with ones on the diagonal,
 * in panels of KVARN__FACTOR_PANEL columns, one after the other, each with its rows from 0 down to
 * the diagonal: panel p is [(p + 1) * KVARN__FACTOR_PANEL][KVARN__FACTOR_PANEL], so that a kernel
 * walks it forward. Below the diagonal, in a panel's last rows, is 0.
 */
#define KVARN__FACTOR_PANEL 4

/*
 * No entry of a metric's factor is larger: the damped metric is at least the mean m of its diagonal
 * and no diagonal value exceeds (dim + 1) m, so that |R| <= sqrt(dim + 1) < 23.
 */
#define KVARN__FACTOR_ABS_MAX 32.0f

/* Floats of a factor: of the [dim][dim] that a caller gives room for, about half. */
static inline size_t kvarn__factor_floats(uint32_t dim)
{
    return (size_t)dim * (dim + KVARN__FACTOR_PANEL) / 2;
}

/* Where R[i][j] lies in a factor; i is at most the last column of j's panel. */
static inline size_t kvarn__factor_at(uint32_t i, uint32_t j)
{
    return kvarn__factor_floats(j - j % KVARN__FACTOR_PANEL) + (size_t)i * KVARN__FACTOR_PANEL +
           j % KVARN__FACTOR_PANEL;
}

struct kvarn__plane {
    const float *values; /* borrowed, rotated, [rows][cols] */
    uint32_t rows, cols, bits;
    uint8_t *codes;  /* borrowed from the tile, packed [rows][cols * bits / 8] */
    uint16_t *scale; /* borrowed from the tile, half [rows] */
    uint16_t *zero;  /* borrowed from the tile, half [rows] */
    uint16_t *other; /* borrowed from the tile, half [cols] */
};

/* Levels of a row: code c stands for c * step + low. */
struct kvarn__line {
    float step, low;
};

/*
 * All borrowed from the caller's scratch. `col` and `row` are what `normalise` and `balance` leave
 * and what `round_plane` and `refine_plane` take; the rest is theirs while they run.
 */
struct kvarn__work {
    float *col, *row;                              /* factors of the best state */
    float *now_col, *inv_col, *std_col, *mean_col; /* [cols] */
    float *num, *den;                              /* [cols] */
    float *now_row, *inv_row, *std_row, *mean_row; /* [rows] */
    float *step, *low;                             /* [rows]: levels */
    float *balanced;                               /* [rows][cols] */
    float *weights;                                /* [rows][cols] */
};

#endif
