/* Records: the way to a tile and back keeps every byte; hostile ones are refused or harmless. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/limits.h"
#include "tests/support/tiles.h"

#define HALF_INF 0x7c00
#define HALF_NAN 0x7e01

static void bytes_fill(struct kvt_rng *rng, uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        bytes[i] = (uint8_t)kvt_rng_u64(rng);
    }
}

static void record_to_tile_to_record_is_byte_equal(void **state)
{
    struct kvt_rng rng = {.state = 5};
    unsigned tried = 0;

    (void)state;
    for (unsigned d = 0; d < KVT_DIMS_COUNT; d++) {
        for (unsigned variant = 0; variant < KVT_VARIANTS; variant++) {
            struct kvarn_tile_spec spec = kvt_spec(kvt_dims[d], variant);
            size_t bytes = kvarn_record_bytes(&spec);
            uint8_t *record = kvt_alloc(bytes), *back = kvt_alloc(bytes);
            uint8_t *tile = kvt_alloc(kvarn_tile_bytes(&spec));
            struct kvarn_tile_map map;
            kvarn_tile_map_init(&map, &spec);
            bytes_fill(&rng, record, bytes - map.pad);
            kvarn_tile_from_record(&spec, record, tile);
            memset(back, 0xa5, bytes);
            kvarn_tile_to_record(&spec, tile, back);
            assert_memory_equal(back, record, bytes);
            /* The map names the same stretches: a tile is sent as a record without a copy. */
            size_t at = 0;
            for (int i = 0; i < 4; i++) {
                assert_memory_equal(tile + map.part[i].offset, record + at, map.part[i].bytes);
                at += map.part[i].bytes;
            }
            assert_int_equal(at + map.pad, bytes);
            free(record);
            free(back);
            free(tile);
            tried++;
        }
    }
    printf("record: %u shapes there and back\n", tried);
}

/* Offset in the record of the halves of K (part 1) or of V (part 3). */
static size_t scales_at(const struct kvarn_tile_map *map, int part)
{
    size_t at = 0;

    for (int i = 0; i < part; i++) {
        at += map->part[i].bytes;
    }
    return at;
}

static void semantics_21_scales_not_finite_are_refused(void **state)
{
    static const uint16_t bad[] = {HALF_INF, 0x8000 | HALF_INF, HALF_NAN, 0xffff};
    struct kvt_rng rng = {.state = 6};
    unsigned tried = 0;

    (void)state;
    for (unsigned i = 0; i < 4000; i++) {
        struct kvarn_tile_spec spec =
            kvt_spec(kvt_dims[i % KVT_DIMS_COUNT], kvt_rng_below(&rng, KVT_VARIANTS));
        size_t bytes = kvarn_record_bytes(&spec);
        uint8_t *record = kvt_alloc(bytes); /* zeros: valid */
        struct kvarn_tile_map map;
        kvarn_tile_map_init(&map, &spec);
        assert_int_equal(kvarn_record_validate(&spec, record, bytes), 0);
        int part = kvt_rng_below(&rng, 2) == 0 ? 1 : 3;
        size_t at = scales_at(&map, part) + 2 * kvt_rng_below(&rng, map.part[part].bytes / 2);
        memcpy(record + at, &bad[i % 4], 2);
        assert_int_equal(kvarn_record_validate(&spec, record, bytes), KVARN_EDOMAIN);
        free(record);
        tried++;
    }
    printf("record: %u with one scale not finite refused\n", tried);
}

static void decoded_is_harmless(const struct kvarn_tile_spec *spec, const uint8_t *record)
{
    size_t k_count = (size_t)spec->group * spec->k_dim, v_count = (size_t)spec->group * spec->v_dim;
    float *values = kvt_alloc((k_count + v_count) * sizeof(float));
    uint8_t *tile = kvt_alloc(kvarn_tile_bytes(spec));

    kvarn_tile_from_record(spec, record, tile);
    kvarn_tile_decode(spec, tile, values, values + k_count);
    for (size_t i = 0; i < k_count + v_count; i++) {
        assert_true(fabsf(values[i]) <= KVARN_DECODED_ABS_MAX);
    }
    free(values);
    free(tile);
}

/* The verdict by decoding everything: what kvarn_record_validate() must agree with. */
static bool is_in_range(const struct kvarn_tile_spec *spec, const uint8_t *record)
{
    size_t k_count = (size_t)spec->group * spec->k_dim, v_count = (size_t)spec->group * spec->v_dim;
    float *values = kvt_alloc((k_count + v_count) * sizeof(float));
    uint8_t *tile = kvt_alloc(kvarn_tile_bytes(spec));
    bool in_range = true;

    kvarn_tile_from_record(spec, record, tile);
    kvarn_tile_decode(spec, tile, values, values + k_count);
    for (size_t i = 0; i < k_count + v_count; i++) {
        in_range &= fabsf(values[i]) <= KVARN_DECODED_ABS_MAX;
    }
    free(values);
    free(tile);
    return in_range;
}

/* Random codes and random finite scales below 2^(exponent_max - 15). */
static void hostile_fill(struct kvt_rng *rng, const struct kvarn_tile_map *map, uint8_t *record)
{
    uint32_t exponent_max = 1 + kvt_rng_below(rng, 31);
    size_t at = 0;

    for (int part = 0; part < 4; part++) {
        if (part % 2 == 0) {
            bytes_fill(rng, record + at, map->part[part].bytes);
        } else {
            for (uint32_t i = 0; i < map->part[part].bytes; i += 2) {
                uint16_t half = (uint16_t)(kvt_rng_below(rng, exponent_max) << 10 |
                                           (kvt_rng_u64(rng) & 0x83ff));
                memcpy(record + at + i, &half, 2);
            }
        }
        at += map->part[part].bytes;
    }
}

static void semantics_21_hostile_records_are_refused_or_harmless(void **state)
{
    struct kvt_rng rng = {.state = 7};
    unsigned tried = 0, accepted = 0;

    (void)state;
    for (unsigned i = 0; i < 2000; i++) {
        struct kvarn_tile_spec spec =
            kvt_spec(kvt_dims[i % KVT_DIMS_COUNT], kvt_rng_below(&rng, KVT_VARIANTS));
        size_t bytes = kvarn_record_bytes(&spec);
        uint8_t *memory = kvt_alloc(bytes + 1);
        uint8_t *record = memory + i % 2; /* at an odd address too */
        struct kvarn_tile_map map;
        kvarn_tile_map_init(&map, &spec);
        if (i % 4 == 0) {
            bytes_fill(&rng, record, bytes);
        } else {
            hostile_fill(&rng, &map, record);
        }
        int err = kvarn_record_validate(&spec, record, bytes);
        if (err == 0) {
            decoded_is_harmless(&spec, record);
            accepted++;
        } else if (i % 4 != 0) {
            assert_int_equal(err, KVARN_EDOMAIN);
            assert_false(is_in_range(&spec, record));
        }
        free(memory);
        tried++;
    }
    assert_true(accepted > 100 && accepted < tried - 100);
    printf("record: %u hostile, %u accepted and harmless\n", tried, accepted);
}

static void wrong_sizes_and_padding_are_refused(void **state)
{
    unsigned tried = 0;

    (void)state;
    for (unsigned d = 0; d < KVT_DIMS_COUNT; d++) {
        for (unsigned variant = 0; variant < KVT_VARIANTS; variant++) {
            struct kvarn_tile_spec spec = kvt_spec(kvt_dims[d], variant);
            size_t bytes = kvarn_record_bytes(&spec);
            uint8_t *record = kvt_alloc(bytes + 64);
            struct kvarn_tile_map map;
            assert_int_equal(bytes % 8, 0);
            assert_int_equal(kvarn_tile_bytes(&spec) % 64, 0);
            for (size_t size = 0; size < bytes + 64; size += size < 64 ? 1 : 509) {
                int want = size == bytes ? 0 : KVARN_EINVALID;
                assert_int_equal(kvarn_record_validate(&spec, record, size), want);
                tried++;
            }
            kvarn_tile_map_init(&map, &spec);
            for (uint32_t i = 0; i < map.pad; i++) {
                record[bytes - 1 - i] = 1;
                assert_int_equal(kvarn_record_validate(&spec, record, bytes), KVARN_EINVALID);
                record[bytes - 1 - i] = 0;
                tried++;
            }
            free(record);
        }
    }
    printf("record: %u sizes and paddings\n", tried);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(record_to_tile_to_record_is_byte_equal),
        cmocka_unit_test(semantics_21_scales_not_finite_are_refused),
        cmocka_unit_test(semantics_21_hostile_records_are_refused_or_harmless),
        cmocka_unit_test(wrong_sizes_and_padding_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
