/* Rotated rows -> tile: chooses an encoder for K and for V and runs it. */
#include <string.h>

#include "kvarn/codec.h"
#include "lib/base/assert.h"
#include "lib/codec/plane.h"
#include "lib/format/layout.h"

/* K and V share one work space; before it lies K with its rows made channels. */
size_t kvarn_encode_scratch_bytes(const struct kvarn_tile_spec *spec)
{
    size_t k_floats = (size_t)spec->k_dim * spec->group;
    size_t k_work = kvarn__work_floats(spec->k_dim, spec->group);
    size_t v_work = kvarn__work_floats(spec->group, spec->v_dim);

    return (k_floats + (k_work > v_work ? k_work : v_work)) * sizeof(float);
}

static uint16_t *halves_at(uint8_t *tile, uint32_t offset)
{
    return (void *)(tile + offset);
}

/* Whether what a plane's encoder wrote can be served. */
static bool is_plane_valid(const struct kvarn__plane *plane)
{
    struct kvarn__tile_view view = {.codes = plane->codes,
        .scale = plane->scale,
        .zero = plane->zero,
        .other = plane->other,
        .rows = plane->rows,
        .cols = plane->cols,
        .bits = plane->bits,
        .token_count = 0};

    return kvarn__view_check(&view) == 0;
}

/*
 * Encode 2 bits by refined, and by aware where there is a factor. False: what came out cannot be
 * served.
 */
static bool plane_encode_refined(const struct kvarn__plane *plane, const float *factor,
    struct kvarn__work *work, enum kvarn_encoder *ret_used)
{
    kvarn__plane_encode_refined(plane, work);
    if (!is_plane_valid(plane)) {
        return false;
    }
    *ret_used = KVARN_ENCODER_REFINED;
    if (factor != NULL) {
        kvarn__plane_round_aware(plane, factor, work);
        if (is_plane_valid(plane)) {
            *ret_used = KVARN_ENCODER_AWARE;
        } else {
            kvarn__plane_encode_refined(plane, work);
        }
    }
    return true;
}

/* `factor`: NULL but for aware. */
static enum kvarn_encoder plane_encode(const struct kvarn__plane *plane, enum kvarn_encoder encoder,
    const float *factor, float *floats)
{
    enum kvarn_encoder used = KVARN_ENCODER_REFERENCE;
    struct kvarn__work work;

    kvarn__work_init(&work, plane->rows, plane->cols, floats);
    if (encoder != KVARN_ENCODER_REFERENCE && plane->bits == 2 &&
        plane_encode_refined(plane, factor, &work, &used)) {
        return used;
    }
    kvarn__plane_encode_reference(plane, &work);
    if (!is_plane_valid(plane)) {
        kvarn__plane_encode_unbalanced(plane, &work);
        KVARN_ASSERT(is_plane_valid(plane));
    }
    return KVARN_ENCODER_REFERENCE;
}

/* What K is encoded by. */
struct how {
    enum kvarn_encoder encoder;
    const float *factor; /* borrowed; NULL: none */
};

static enum kvarn_encoder tile_encode(const struct kvarn_tile_spec *spec, struct how how,
    const float *k, const float *v, void *tile, void *scratch)
{
    struct kvarn__layout at;
    uint8_t *bytes = tile;
    float *k_channels = scratch;
    float *floats = k_channels + (size_t)spec->k_dim * spec->group;

    KVARN_ASSERT(kvarn_tile_spec_check(spec) == 0);
    kvarn__layout_init(&at, spec);
    kvarn__kernels_get()->transpose(k, spec->group, spec->k_dim, k_channels);
    struct kvarn__plane k_plane = {.values = k_channels,
        .rows = spec->k_dim,
        .cols = spec->group,
        .bits = spec->k_bits,
        .codes = bytes + at.k_codes,
        .scale = halves_at(bytes, at.k_scale),
        .zero = halves_at(bytes, at.k_zero),
        .other = halves_at(bytes, at.k_token)};
    struct kvarn__plane v_plane = {.values = v,
        .rows = spec->group,
        .cols = spec->v_dim,
        .bits = spec->v_bits,
        .codes = bytes + at.v_codes,
        .scale = halves_at(bytes, at.v_scale),
        .zero = halves_at(bytes, at.v_zero),
        .other = halves_at(bytes, at.v_channel)};
    enum kvarn_encoder used = plane_encode(&k_plane, how.encoder, how.factor, floats);
    (void)plane_encode(&v_plane, how.encoder, NULL, floats);
    memset(bytes + at.end, 0, kvarn_tile_bytes(spec) - at.end);
    return used;
}

enum kvarn_encoder kvarn_tile_encode(const struct kvarn_tile_spec *spec, enum kvarn_encoder encoder,
    const float *k, const float *v, void *tile, void *scratch)
{
    return tile_encode(spec, (struct how){encoder, NULL}, k, v, tile, scratch);
}

enum kvarn_encoder kvarn_tile_encode_aware(const struct kvarn_tile_spec *spec,
    const float *k_factor, const float *k, const float *v, void *tile, void *scratch)
{
    bool is_usable =
        k_factor != NULL && spec->k_bits == 2 && kvarn__factor_is_valid(k_factor, spec->k_dim);
    struct how how = {KVARN_ENCODER_AWARE, is_usable ? k_factor : NULL};

    return tile_encode(spec, how, k, v, tile, scratch);
}
