/* Presets, the check of dimensions, and sizes against the table of FORMAT.md. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kvarn/codec.h"

static void presets(void **state)
{
    static const char *const bad[] = {"", "k2", "k2v4", "K2V2", "k2v2 ", "k3v3"};
    uint8_t k = 9, v = 9;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(kvarn_preset_parse(bad[i], &k, &v), KVARN_EINVALID);
    }
    assert_true(k == 9 && v == 9); /* untouched on failure */
    assert_int_equal(kvarn_preset_parse("k2v2", &k, &v), 0);
    assert_true(k == 2 && v == 2);
    assert_int_equal(kvarn_preset_parse("k4v2", &k, &v), 0);
    assert_true(k == 4 && v == 2);
    assert_int_equal(kvarn_preset_parse("k4v4", &k, &v), 0);
    assert_true(k == 4 && v == 4);
}

static void sizes_are_those_of_the_format(void **state)
{
    static const struct {
        struct kvarn_tile_spec spec;
        size_t record_bytes, tile_bytes;
    } rows[] = {
        {{128, 128, 128, 2, 2}, 9728, 9728},
        {{128, 128, 128, 4, 2}, 13824, 13824},
        {{128, 128, 128, 4, 4}, 17920, 17920},
        {{64, 64, 128, 2, 2}, 5248, 5248},
        {{256, 256, 128, 2, 2}, 18688, 18688},
        {{128, 128, 64, 2, 2}, 5248, 5248},
        {{128, 128, 64, 4, 2}, 7296, 7296},
        {{80, 80, 128, 2, 2}, 6368, 6400},
        {{192, 128, 128, 2, 2}, 12032, 12032},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        assert_int_equal(kvarn_tile_spec_check(&rows[i].spec), 0);
        assert_int_equal(kvarn_record_bytes(&rows[i].spec), rows[i].record_bytes);
        assert_int_equal(kvarn_tile_bytes(&rows[i].spec), rows[i].tile_bytes);
    }
}

static void dimensions_outside_the_format_are_refused(void **state)
{
    static const struct kvarn_tile_spec bad[] = {
        {0, 64, 128, 2, 2},
        {64, 0, 128, 2, 2},
        {60, 64, 128, 2, 2},
        {64, 4, 128, 2, 2},
        {520, 64, 128, 2, 2},
        {64, 65528, 128, 2, 2},
        {64, 64, 0, 2, 2},
        {64, 64, 32, 2, 2},
        {64, 64, 256, 2, 2},
        {64, 64, 128, 3, 2},
        {64, 64, 128, 0, 2},
        {64, 64, 128, 2, 8},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(kvarn_tile_spec_check(&bad[i]), KVARN_EINVALID);
        assert_int_equal(kvarn_record_validate(&bad[i], "", 0), KVARN_EINVALID);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(presets),
        cmocka_unit_test(sizes_are_those_of_the_format),
        cmocka_unit_test(dimensions_outside_the_format_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
