/*
 * Where everything lies inside a tile: all scales of K, K's codes, all scales of V, V's codes
 * (FORMAT.md, Tile). One place computes offsets; encoder, decoder, records and attention use it.
 */
#ifndef KVARN_FORMAT_LAYOUT_H
#define KVARN_FORMAT_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#include "kvarn/codec.h"
#include "lib/kernels/kernels.h"

/* Offsets in bytes from the start of a tile. */
struct kvarn__layout {
    uint32_t k_scale, k_zero, k_token, k_codes;
    uint32_t v_channel, v_scale, v_zero, v_codes;
    uint32_t end; /* of the information; padding follows */
};

void kvarn__layout_init(struct kvarn__layout *layout, const struct kvarn_tile_spec *spec);

/* K and V of a tile as the kernels take them; all tokens. The tile must outlive the view. */
void kvarn__tile_k_view(
    const struct kvarn_tile_spec *spec, const void *tile, struct kvarn__tile_view *ret_view);
void kvarn__tile_v_view(
    const struct kvarn_tile_spec *spec, const void *tile, struct kvarn__tile_view *ret_view);

/*
 * Whether a view can be served: every scale finite and every decoded value within
 * KVARN_DECODED_ABS_MAX. Returns 0 or KVARN_EDOMAIN.
 */
int kvarn__view_check(const struct kvarn__tile_view *view) KVARN_MUST_CHECK;

#endif
