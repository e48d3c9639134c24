/* Presets, the check of a tile's dimensions, and the sizes that follow from them. */
#include <string.h>

#include "kvarn/codec.h"
#include "lib/base/limits.h"
#include "lib/format/layout.h"

#define RECORD_ALIGN 8
#define TILE_ALIGN   64

int kvarn_preset_parse(const char *name, uint8_t *ret_k_bits, uint8_t *ret_v_bits)
{
    static const struct {
        const char *name;
        uint8_t k_bits, v_bits;
    } presets[] = {{"k2v2", 2, 2}, {"k4v2", 4, 2}, {"k4v4", 4, 4}};

    for (size_t i = 0; i < sizeof(presets) / sizeof(presets[0]); i++) {
        if (strcmp(name, presets[i].name) == 0) {
            *ret_k_bits = presets[i].k_bits;
            *ret_v_bits = presets[i].v_bits;
            return 0;
        }
    }
    return KVARN_EINVALID;
}

static bool is_dim(uint32_t dim)
{
    return dim > 0 && dim <= KVARN_HEAD_DIM_MAX && dim % KVARN_HEAD_DIM_STEP == 0;
}

int kvarn_tile_spec_check(const struct kvarn_tile_spec *spec)
{
    if (!is_dim(spec->k_dim) || !is_dim(spec->v_dim)) {
        return KVARN_EINVALID;
    }
    if (spec->group != 64 && spec->group != 128) {
        return KVARN_EINVALID;
    }
    if ((spec->k_bits != 2 && spec->k_bits != 4) || (spec->v_bits != 2 && spec->v_bits != 4)) {
        return KVARN_EINVALID;
    }
    return 0;
}

static size_t round_up(size_t bytes, size_t align)
{
    return (bytes + align - 1) / align * align;
}

size_t kvarn_record_bytes(const struct kvarn_tile_spec *spec)
{
    struct kvarn__layout at;

    kvarn__layout_init(&at, spec);
    return round_up(at.end, RECORD_ALIGN);
}

size_t kvarn_tile_bytes(const struct kvarn_tile_spec *spec)
{
    struct kvarn__layout at;

    kvarn__layout_init(&at, spec);
    return round_up(at.end, TILE_ALIGN);
}

void kvarn_tile_map_init(struct kvarn_tile_map *map, const struct kvarn_tile_spec *spec)
{
    struct kvarn__layout at;

    kvarn__layout_init(&at, spec);
    *map = (struct kvarn_tile_map){
        .part = {{at.k_codes, at.v_channel - at.k_codes}, {at.k_scale, at.k_codes - at.k_scale},
            {at.v_codes, at.end - at.v_codes}, {at.v_channel, at.v_codes - at.v_channel}},
        .pad = (uint32_t)(kvarn_record_bytes(spec) - at.end),
    };
}
