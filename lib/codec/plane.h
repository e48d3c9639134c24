/*
 * The encoders of a plane, and the work space that they share, carved by kvarn__work_init() from
 * the caller's scratch.
 */
#ifndef KVARN_CODEC_PLANE_H
#define KVARN_CODEC_PLANE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/kernels/kernels.h"

/* Floats of work space for planes of up to rows x cols. */
size_t kvarn__work_floats(uint32_t rows, uint32_t cols);

/* Carve a work space from `floats`. */
void kvarn__work_init(struct kvarn__work *work, uint32_t rows, uint32_t cols, float *floats);

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

/*
 * Round a plane that was just encoded by refined again, under a metric: FORMAT.md, Encoder `aware`.
 * Scales stay; other codes may be out of range: the caller checks.
 */
void kvarn__plane_round_aware(
    const struct kvarn__plane *plane, const float *factor, struct kvarn__work *work);

/* Whether a factor of [dim][dim] holds only what a metric's factor can hold. */
bool kvarn__factor_is_valid(const float *factor, uint32_t dim);

#endif
