/*
 * Tests of server/append/append_plan.c: how an append is laid out in layers and units, and what its
 * meaning depends on.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "server/append/append_plan.h"
#include "tests/support/session_rig.h"

/* The plan of some arguments, in room of the fixture's. */
struct fixture {
    struct kvt_rig rig;
    struct kvd_session *session;
    struct kvd_append_layer layers[8];
    struct kvd_append_unit units[64];
    struct kvd_append_plan plan;
};

static void fixture_init(struct fixture *fx)
{
    kvt_rig_init(&fx->rig, &(struct kvt_rig_options){0});
    fx->session = kvt_session_open(&fx->rig, NULL, 0);
}

static void fixture_fini(struct fixture *fx)
{
    kvt_session_drop(&fx->rig, fx->session);
    kvt_rig_fini(&fx->rig);
}

static void plan_rows(struct fixture *fx, const struct kvd_append_args *args)
{
    fx->plan = (struct kvd_append_plan){.layers = fx->layers, .units = fx->units};
    assert_true(kvd_append_plan_units(args) <= 64);
    kvd_append_plan_rows(&fx->plan, args);
    while (!kvd_append_plan_more(&fx->plan)) {
    }
    assert_int_equal(fx->plan.unit_count, kvd_append_plan_units(args));
}

static void plan_runs(struct fixture *fx, const struct kvd_append_tiles_args *args)
{
    fx->plan = (struct kvd_append_plan){.layers = fx->layers, .units = fx->units};
    assert_true(kvd_append_plan_run_units(args) <= 64);
    kvd_append_plan_runs(&fx->plan, args);
    while (!kvd_append_plan_more(&fx->plan)) {
    }
    assert_int_equal(fx->plan.unit_count, kvd_append_plan_run_units(args));
}

static void test_s20_payload_bytes_of_the_layers(void **state)
{
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    /* 2 x 2 heads of 16 + 16, then 1 head of 24 + 8. */
    assert_int_equal(kvd_append_payload_bytes(fx.rig.shape, 0, 1, 1, KVARN_F16), 128);
    assert_int_equal(kvd_append_payload_bytes(fx.rig.shape, 0, 3, 1, KVARN_F16), 320);
    assert_int_equal(kvd_append_payload_bytes(fx.rig.shape, 2, 1, 10, KVARN_F32), 1280);
    assert_int_equal(
        kvd_append_payload_bytes(fx.rig.shape, 0, 3, UINT32_MAX, KVARN_F32), 640ull * UINT32_MAX);
    fixture_fini(&fx);
}

static void test_rows_become_a_unit_for_each_block_and_layer(void **state)
{
    static const uint8_t payload[1 << 16];
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    struct kvd_append_args args = {.session = fx.session,
        .layer_first = 1,
        .layer_count = 2,
        .start = 60,
        .token_count = 70,
        .dtype = KVARN_F32,
        .payload = payload};
    plan_rows(&fx, &args);
    assert_int_equal(fx.plan.layer_count, 2);
    assert_int_equal(fx.plan.unit_count, 6); /* 60..64, 64..128, 128..130, twice */
    static const struct {
        uint32_t block, row_first, row_count, src_row;
    } expected[3] = {{0, 60, 4, 0}, {1, 0, 64, 4}, {2, 0, 2, 68}};
    for (unsigned i = 0; i < 6; i++) {
        const struct kvd_append_unit *unit = &fx.plan.units[i];
        size_t token_bytes = i < 3 ? 256 : 128;
        assert_int_equal(unit->layer, 1 + i / 3);
        assert_int_equal(unit->block_idx, expected[i % 3].block);
        assert_int_equal(unit->row_first, expected[i % 3].row_first);
        assert_int_equal(unit->row_count, expected[i % 3].row_count);
        assert_int_equal(unit->src_row, expected[i % 3].src_row);
        assert_int_equal(unit->src_tokens, 70);
        assert_int_equal(unit->first_token, 60 + expected[i % 3].src_row);
        assert_int_equal(unit->src_bytes, expected[i % 3].row_count * token_bytes);
        assert_ptr_equal(unit->src, payload + (i < 3 ? 0 : 70 * 256));
        assert_false(unit->is_records);
    }
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(fx.plan.layers[i].start, 60);
        assert_int_equal(fx.plan.layers[i].token_count, 70);
        assert_int_equal(fx.plan.layers[i].records.last, 0);
    }
    fixture_fini(&fx);
}

static void test_runs_become_layers_and_units(void **state)
{
    static const uint8_t payload[1 << 16];
    struct kvd_append_run runs[] = {
        {.layer = 0, .first_token = 0, .token_count = 64},
        {.layer = 0, .first_token = 64, .token_count = 128, .is_records = true},
        {.layer = 0, .first_token = 192, .token_count = 64, .is_records = true},
        {.layer = 0, .first_token = 256, .token_count = 70},
        {.layer = 2, .first_token = 128, .token_count = 64, .is_records = true},
    };
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    struct kvd_append_tiles_args args = {
        .session = fx.session, .runs = runs, .run_count = 5, .payload = payload};
    plan_runs(&fx, &args);
    assert_int_equal(fx.plan.layer_count, 2);
    assert_int_equal(fx.plan.layers[0].token_count, 326);
    assert_int_equal(fx.plan.layers[0].records.first, 1);
    assert_int_equal(fx.plan.layers[0].records.last, 4);
    assert_int_equal(fx.plan.layers[1].layer, 2);
    assert_int_equal(fx.plan.layers[1].start, 128);
    assert_int_equal(fx.plan.layers[1].records.first, 2);
    assert_int_equal(fx.plan.unit_count, 1 + 2 + 1 + 2 + 1);
    size_t records = 0;
    const uint8_t *end = payload;
    for (uint32_t i = 0; i < fx.plan.unit_count; i++) {
        records += fx.plan.units[i].is_records;
    }
    for (unsigned i = 0; i < 5; i++) {
        end += kvd_append_run_bytes(fx.rig.shape, &runs[i]);
    }
    assert_int_equal(records, 4);
    const struct kvd_append_unit *last = &fx.plan.units[6];
    assert_ptr_equal(last->src + last->src_bytes, end);
    fixture_fini(&fx);
}

static void test_s09_the_meaning_is_all_but_start_and_count(void **state)
{
    struct fixture fx;
    uint64_t meanings[5];
    (void)state;

    fixture_init(&fx);
    struct kvd_append_args args = {
        .session = fx.session, .layer_count = 1, .token_count = 1, .start = 5};
    struct kvd_append_args others[5] = {args, args, args, args, args};
    others[1].dtype = KVARN_BF16;
    others[2].is_rotated = true;
    others[3].is_token_major = true;
    for (unsigned i = 0; i < 4; i++) {
        plan_rows(&fx, &others[i]);
        meanings[i] = fx.plan.meaning;
    }
    struct kvd_append_run run = {.first_token = 64, .token_count = 64, .is_records = true};
    struct kvd_append_tiles_args tiles = {.session = fx.session, .runs = &run, .run_count = 1};
    plan_runs(&fx, &tiles);
    meanings[4] = fx.plan.meaning;
    for (unsigned i = 0; i < 5; i++) {
        for (unsigned k = 0; k < i; k++) {
            assert_true(meanings[i] != meanings[k]);
        }
    }
    args.start = 9;
    plan_rows(&fx, &args);
    assert_true(fx.plan.meaning == meanings[0]);
    fixture_fini(&fx);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_s20_payload_bytes_of_the_layers),
    cmocka_unit_test(test_rows_become_a_unit_for_each_block_and_layer),
    cmocka_unit_test(test_runs_become_layers_and_units),
    cmocka_unit_test(test_s09_the_meaning_is_all_but_start_and_count),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
