/*
 * A plane: K or V of one tile on its way through an encoder, as rows of floats of which each row is
 * quantised. K's rows are channels, V's are tokens.
 *
 * The encoders share one work space, carved by kvarn__work_init() from the caller's scratch.
 */
#ifndef KVARN_CODEC_PLANE_H
#define KVARN_CODEC_PLANE_H

#include <stddef.h>
#include <stdint.h>

#include "lib/kernels/kernels.h"

struct kvarn__plane {
    const float *values; /* borrowed, rotated, [rows][cols] */
    uint32_t rows, cols, bits;
    uint8_t *codes;  /* borrowed from the tile, packed [rows][cols * bits / 8] */
    uint16_t *scale; /* borrowed from the tile, half [rows] */
    uint16_t *zero;  /* borrowed from the tile, half [rows] */
    uint16_t *other; /* borrowed from the tile, half [cols] */
};

/* All borrowed from the caller's scratch. */
struct kvarn__work {
    float *balanced;                               /* [rows][cols] */
    float *weights;                                /* [rows][cols] */
    float *col, *row;                              /* factors of the best state */
    float *log_col, *exp_col, *std_col, *mean_col; /* [cols] */
    float *log_row, *exp_row, *std_row, *mean_row; /* [rows] */
    float *step, *low;                             /* [rows]: levels */
    float *num, *den;                              /* [cols] */
};

/* Floats of work space for planes of up to rows x cols. */
size_t kvarn__work_floats(uint32_t rows, uint32_t cols);

/* Carve a work space from `floats`. */
void kvarn__work_init(struct kvarn__work *work, uint32_t rows, uint32_t cols, float *floats);

/*
 * Variance normalisation (FORMAT.md, Balancing): sets work->col and work->row to the factors of
 * the best of 16 states, and work->balanced = values / col / row.
 */
void kvarn__plane_normalise(const struct kvarn__plane *plane, struct kvarn__work *work);

/*
 * Encode by min-max rounding: FORMAT.md, Encoder `reference`. Where columns differ by orders of
 * magnitude, half a step of a row times the factor of a loud column may leave the range of the
 * format: the caller checks.
 */
void kvarn__plane_encode_reference(const struct kvarn__plane *plane, struct kvarn__work *work);

/*
 * The same without balancing, of values clamped to KVARN_ROTATED_ABS_MAX: every level lies between
 * its row's smallest and largest value, so that any finite plane comes out in range.
 */
void kvarn__plane_encode_unbalanced(const struct kvarn__plane *plane, struct kvarn__work *work);

/*
 * Encode 2 bits by weighted least squares: FORMAT.md, Encoder `refined`. The scales may come out
 * not finite or out of range: the caller checks.
 */
void kvarn__plane_encode_refined(const struct kvarn__plane *plane, struct kvarn__work *work);

#endif
