/* Offsets inside a tile, written out for the two shapes that FORMAT.md shows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "lib/format/layout.h"

static void offsets_of_the_default_tile(void **state)
{
    const struct kvarn_tile_spec spec = {128, 128, 128, 2, 2};
    struct kvarn__layout at;

    (void)state;
    kvarn__layout_init(&at, &spec);
    assert_int_equal(at.k_scale, 0);
    assert_int_equal(at.k_zero, 256);
    assert_int_equal(at.k_token, 512);
    assert_int_equal(at.k_codes, 768);
    assert_int_equal(at.v_channel, 4864);
    assert_int_equal(at.v_scale, 5120);
    assert_int_equal(at.v_zero, 5376);
    assert_int_equal(at.v_codes, 5632);
    assert_int_equal(at.end, 9728);
}

static void map_is_in_the_order_of_the_record(void **state)
{
    const struct kvarn_tile_spec spec = {192, 128, 64, 4, 2};
    struct kvarn_tile_map map;

    (void)state;
    kvarn_tile_map_init(&map, &spec);
    /* K: 192 scales, 192 zeros, 64 tokens; codes of 192 rows of 32 bytes. */
    assert_int_equal(map.part[0].offset, 896);
    assert_int_equal(map.part[0].bytes, 6144);
    assert_int_equal(map.part[1].offset, 0);
    assert_int_equal(map.part[1].bytes, 896);
    /* V: 128 channels, 64 scales, 64 zeros; codes of 64 rows of 32 bytes. */
    assert_int_equal(map.part[2].offset, 7552);
    assert_int_equal(map.part[2].bytes, 2048);
    assert_int_equal(map.part[3].offset, 7040);
    assert_int_equal(map.part[3].bytes, 512);
    assert_int_equal(map.pad, 0);
}

static void views_point_into_the_tile(void **state)
{
    const struct kvarn_tile_spec spec = {64, 80, 128, 4, 2};
    _Alignas(64) static uint8_t tile[16384];
    struct kvarn__tile_view view;
    struct kvarn__layout at;

    (void)state;
    kvarn__layout_init(&at, &spec);
    kvarn__tile_k_view(&spec, tile, &view);
    assert_true(view.rows == 64 && view.cols == 128 && view.bits == 4 && view.token_count == 128);
    assert_ptr_equal(view.codes, tile + at.k_codes);
    assert_ptr_equal(view.other, tile + at.k_token);
    kvarn__tile_v_view(&spec, tile, &view);
    assert_true(view.rows == 128 && view.cols == 80 && view.bits == 2 && view.token_count == 128);
    assert_ptr_equal(view.codes, tile + at.v_codes);
    assert_ptr_equal(view.other, tile + at.v_channel);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(offsets_of_the_default_tile),
        cmocka_unit_test(map_is_in_the_order_of_the_record),
        cmocka_unit_test(views_point_into_the_tile),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
