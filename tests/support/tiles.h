/* Tiles for tests: made-up rows, and buffers with the alignment that the codec asks for. */
#ifndef KVARN_TESTS_SUPPORT_TILES_H
#define KVARN_TESTS_SUPPORT_TILES_H

#include <stddef.h>

#include "kvarn/codec.h"
#include "tests/support/rng.h"

/* Zeroed memory aligned to 64 bytes; aborts when there is none. free() it. */
void *kvt_alloc(size_t bytes);

/* Every pair of dimensions that the format is tested on. */
struct kvt_dims {
    uint16_t k_dim, v_dim;
};
#define KVT_DIMS_COUNT 7
extern const struct kvt_dims kvt_dims[KVT_DIMS_COUNT];

/* Every preset and group: index 0 .. KVT_VARIANTS - 1. */
#define KVT_VARIANTS 6
struct kvarn_tile_spec kvt_spec(struct kvt_dims dims, unsigned variant);

/*
 * Rows like a model's: Gaussian, a mean per channel, token norms that vary, a few loud channels.
 * Rotated in place; `scale` multiplies all.
 */
void kvt_rows_fill(struct kvt_rng *rng, float *x, size_t rows, uint32_t head_dim, double scale);

/* Encode into a fresh tile (free() it). */
void *kvt_tile_make(
    const struct kvarn_tile_spec *spec, enum kvarn_encoder encoder, const float *k, const float *v);

/* The same by encoder aware. */
void *kvt_tile_make_aware(
    const struct kvarn_tile_spec *spec, const float *k_factor, const float *k, const float *v);

/* sum (a - b)^2 / sum b^2; 0 where both are zero. */
double kvt_rel_mse(const float *a, const float *b, size_t count);

#endif
