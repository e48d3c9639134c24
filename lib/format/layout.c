/* Offsets inside a tile, and a tile's K and V as views. */
#include "lib/format/layout.h"

#include "lib/base/assert.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "tiles and records are little-endian and used in place: a big-endian port must swap scales"
#endif

#define HALF_BYTES ((uint32_t)sizeof(uint16_t))

void kvarn__layout_init(struct kvarn__layout *layout, const struct kvarn_tile_spec *spec)
{
    const uint32_t group = spec->group;

    layout->k_scale = 0;
    layout->k_zero = layout->k_scale + spec->k_dim * HALF_BYTES;
    layout->k_token = layout->k_zero + spec->k_dim * HALF_BYTES;
    layout->k_codes = layout->k_token + group * HALF_BYTES;
    layout->v_channel = layout->k_codes + spec->k_dim * (group * spec->k_bits / 8);
    layout->v_scale = layout->v_channel + spec->v_dim * HALF_BYTES;
    layout->v_zero = layout->v_scale + group * HALF_BYTES;
    layout->v_codes = layout->v_zero + group * HALF_BYTES;
    layout->end = layout->v_codes + group * ((uint32_t)spec->v_dim * spec->v_bits / 8);
}

static const uint16_t *halves_at(const void *tile, uint32_t offset)
{
    const uint8_t *bytes = tile;

    KVARN_ASSERT(offset % HALF_BYTES == 0);
    return (const void *)(bytes + offset);
}

void kvarn__tile_k_view(
    const struct kvarn_tile_spec *spec, const void *tile, struct kvarn__tile_view *ret_view)
{
    struct kvarn__layout at;

    kvarn__layout_init(&at, spec);
    *ret_view = (struct kvarn__tile_view){.codes = (const uint8_t *)tile + at.k_codes,
        .scale = halves_at(tile, at.k_scale),
        .zero = halves_at(tile, at.k_zero),
        .other = halves_at(tile, at.k_token),
        .rows = spec->k_dim,
        .cols = spec->group,
        .bits = spec->k_bits,
        .token_count = spec->group};
}

void kvarn__tile_v_view(
    const struct kvarn_tile_spec *spec, const void *tile, struct kvarn__tile_view *ret_view)
{
    struct kvarn__layout at;

    kvarn__layout_init(&at, spec);
    *ret_view = (struct kvarn__tile_view){.codes = (const uint8_t *)tile + at.v_codes,
        .scale = halves_at(tile, at.v_scale),
        .zero = halves_at(tile, at.v_zero),
        .other = halves_at(tile, at.v_channel),
        .rows = spec->group,
        .cols = spec->v_dim,
        .bits = spec->v_bits,
        .token_count = spec->group};
}
