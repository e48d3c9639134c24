/* Record (wire) <-> tile (rest), and the check of records and tiles from outside. */
#include <math.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/format/layout.h"

#define PARTS 4

void kvarn_tile_from_record(const struct kvarn_tile_spec *spec, const void *record, void *tile)
{
    const uint8_t *src = record;
    uint8_t *dst = tile;
    struct kvarn_tile_map map;
    size_t end = 0;

    kvarn_tile_map_init(&map, spec);
    for (int i = 0; i < PARTS; i++) {
        memcpy(dst + map.part[i].offset, src + end, map.part[i].bytes);
        end += map.part[i].bytes;
    }
    memset(dst + end, 0, kvarn_tile_bytes(spec) - end);
}

void kvarn_tile_to_record(const struct kvarn_tile_spec *spec, const void *tile, void *record)
{
    const uint8_t *src = tile;
    uint8_t *dst = record;
    struct kvarn_tile_map map;

    kvarn_tile_map_init(&map, spec);
    for (int i = 0; i < PARTS; i++) {
        memcpy(dst, src + map.part[i].offset, map.part[i].bytes);
        dst += map.part[i].bytes;
    }
    memset(dst, 0, map.pad);
}

/* Halves -> floats; returns their largest magnitude, Inf where one is not finite. */
static float halves_load(const uint16_t *src, uint32_t count, float *dst)
{
    float max;

    kvarn__kernels_get()->half_to_f32(dst, src, count);
    kvarn__kernels_get()->abs_max(dst, count, &max);
    return max;
}

/* Whether every value of one row is in range, by its codes. */
static bool is_row_in_range(
    const struct kvarn__tile_view *view, uint32_t row, struct kvarn__line line, const float *other)
{
    uint8_t codes[KVARN__ROW_MAX];

    kvarn__kernels_get()->unpack(
        view->codes + (size_t)row * (view->cols * view->bits / 8), view->cols, view->bits, codes);
    for (uint32_t i = 0; i < view->cols; i++) {
        float value = ((float)codes[i] * line.step + line.low) * other[i];
        if (!(fabsf(value) <= KVARN_DECODED_ABS_MAX)) {
            return false;
        }
    }
    return true;
}

int kvarn__view_check(const struct kvarn__tile_view *view)
{
    float scale[KVARN__ROW_MAX], zero[KVARN__ROW_MAX], other[KVARN__ROW_MAX];
    float high[KVARN__ROW_MAX], high_max;
    float top = (float)((1u << view->bits) - 1);

    KVARN_ASSERT(view->rows <= KVARN__ROW_MAX && view->cols <= KVARN__ROW_MAX);
    float scale_max = halves_load(view->scale, view->rows, scale);
    float zero_max = halves_load(view->zero, view->rows, zero);
    float other_max = halves_load(view->other, view->cols, other);
    if (isinf(scale_max) || isinf(zero_max) || isinf(other_max)) {
        return KVARN_EDOMAIN;
    }
    /* Both ends of a row's levels bound all of it, and the largest ends bound all rows. */
    for (uint32_t r = 0; r < view->rows; r++) {
        high[r] = top * scale[r] + zero[r];
    }
    kvarn__kernels_get()->abs_max(high, view->rows, &high_max);
    if (fmaxf(zero_max, high_max) * other_max <= KVARN_DECODED_ABS_MAX) {
        return 0;
    }
    for (uint32_t r = 0; r < view->rows; r++) {
        /* Only a row that could leave the range is looked at value by value. */
        struct kvarn__line line = {.step = scale[r], .low = zero[r]};
        float bound = fmaxf(fabsf(line.low), fabsf(high[r])) * other_max;
        if (bound > KVARN_DECODED_ABS_MAX && !is_row_in_range(view, r, line, other)) {
            return KVARN_EDOMAIN;
        }
    }
    return 0;
}

/* One half of a record: `scales` holds the arrays in the order of the record. */
struct record_half {
    const uint8_t *codes;
    const uint8_t *scales;
    uint32_t rows, cols, bits;
    bool is_other_first; /* V: v_channel, v_scale, v_zero; K: k_scale, k_zero, k_token */
};

static int record_half_check(const struct record_half *half)
{
    /* A record may lie at any address: its scales are copied to where halves may be read. */
    uint16_t scales[3 * KVARN__ROW_MAX];
    uint32_t other_at = half->is_other_first ? 0 : 2 * half->rows;
    uint32_t scale_at = half->is_other_first ? half->cols : 0;

    memcpy(scales, half->scales, (2 * half->rows + half->cols) * sizeof(*scales));
    struct kvarn__tile_view view = {.codes = half->codes,
        .scale = scales + scale_at,
        .zero = scales + scale_at + half->rows,
        .other = scales + other_at,
        .rows = half->rows,
        .cols = half->cols,
        .bits = half->bits,
        .token_count = 0};
    return kvarn__view_check(&view);
}

int kvarn_record_validate(const struct kvarn_tile_spec *spec, const void *record, size_t bytes)
{
    const uint8_t *at = record;
    const uint8_t *part[PARTS];
    struct kvarn_tile_map map;

    if (kvarn_tile_spec_check(spec) != 0 || bytes != kvarn_record_bytes(spec)) {
        return KVARN_EINVALID;
    }
    kvarn_tile_map_init(&map, spec);
    for (int i = 0; i < PARTS; i++) {
        part[i] = at;
        at += map.part[i].bytes;
    }
    for (uint32_t i = 0; i < map.pad; i++) {
        if (at[i] != 0) {
            return KVARN_EINVALID;
        }
    }
    struct record_half k = {part[0], part[1], spec->k_dim, spec->group, spec->k_bits, false};
    struct record_half v = {part[2], part[3], spec->group, spec->v_dim, spec->v_bits, true};
    int err = record_half_check(&k);
    return err != 0 ? err : record_half_check(&v);
}
