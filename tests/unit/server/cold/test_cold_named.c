/*
 * Tests of server/cold/cold_named.c: what maps name is held, and given up. That it must be held is
 * shown over lives, in test_cold_reopen.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "tests/support/session_cold.h"

static uint64_t records_of(const struct kvt_rig *rig)
{
    struct kvd_cold_stats stats;

    rig->service.cold.tier->ops->stats(rig->service.cold.tier, &stats);
    return stats.records;
}

/* Blocks that were cut off are given up with the next map, those of a session with its drop. */
static void test_what_no_map_names_is_given_up(void **state)
{
    (void)state;
    struct kvt_rig rig;
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    kvt_rig_init(&rig, &(struct kvt_rig_options){.disk = disk});
    struct kvd_session *session = kvt_session_open(&rig, "s", 0);
    kvt_cold_append(&rig, session, NULL, 64 * 8, 1);
    kvt_cold_spill(&rig);
    assert_int_equal(records_of(&rig), 8 + 3); /* blocks; shape, session, map */
    assert_false(kvd_cold_named_is_stale(session));
    assert_int_equal(kvt_truncate_now(&rig, session, 64 * 7), 0);
    kvt_cold_spill(&rig);
    assert_int_equal(records_of(&rig), 7 + 3);
    kvt_cold_append(&rig, session, NULL, 64 * 2, 2);
    kvt_cold_spill(&rig);
    assert_int_equal(records_of(&rig), 9 + 3);
    assert_false(kvd_cold_named_is_stale(session));
    kvt_session_drop(&rig, session);
    kvt_cold_spill(&rig);
    assert_true(records_of(&rig) <= 2); /* shape; a tombstone, while it is needed */
    kvt_cold_life_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

/* A copy keeps what both name. */
static void test_a_fork_holds_for_itself(void **state)
{
    (void)state;
    struct kvt_rig rig;
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    kvt_rig_init(&rig, &(struct kvt_rig_options){.disk = disk});
    struct kvd_session *session = kvt_session_open(&rig, "s", 0);
    kvt_cold_append(&rig, session, NULL, 64 * 4, 1);
    kvt_cold_spill(&rig);
    struct kvt_fork fork = {
        .parent = session, .epoch = session->epoch, .length = UINT64_MAX, .name = "f"};
    assert_int_equal(kvt_fork_begin(&rig, &fork), 0);
    kvt_cold_spill(&rig);
    assert_int_equal(fork.outcome.why.err, 0);
    assert_int_equal(records_of(&rig), 4 + 5); /* blocks; shape, two sessions, two maps */
    kvt_session_drop(&rig, session);
    kvt_cold_spill(&rig);
    assert_true(records_of(&rig) >= 4 + 3);
    kvd_session_unref(fork.child);
    kvt_cold_life_stop(&rig);
    kvd_fake_disk_close_all(disk);
    kvt_rig_init(&rig, &(struct kvt_rig_options){.disk = disk, .life = 1});
    struct kvd_session *back = kvt_cold_find(&rig, "f");
    assert_non_null(back);
    assert_null(kvt_cold_find(&rig, "s"));
    assert_int_equal(kvt_cold_load(&rig, back), 0);
    kvd_session_unref(back);
    kvt_cold_life_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

/* A window that slides over a full tier: maps go on, so that what they named makes room. */
static void test_a_full_tier_is_relieved(void **state)
{
    (void)state;
    static const struct kvd_layer_group groups[] = {
        {.layers = 1, .kv_heads = 4, .k_dim = 128, .v_dim = 128, .window = 256}};
    static const struct kvd_shape_desc shape = {.model = "window",
        .group = 64,
        .k_bits = 2,
        .v_bits = 2,
        .layer_groups = groups,
        .layer_group_count = 1};
    struct kvt_rig rig;
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    kvt_rig_init(
        &rig, &(struct kvt_rig_options){.disk = disk, .shape = &shape, .cold_segment = 64 << 10});
    struct kvd_session *session = kvt_session_open(&rig, "s", 0);
    bool has_rested = false;
    uint64_t written = 0;
    for (unsigned i = 0; i < 60; i++) {
        if (i == 30) {
            written = rig.service.metrics.values[KVD_METRIC_cold_blocks_written];
        }
        kvt_cold_append(&rig, session, NULL, 64, 1 + i);
        for (unsigned turns = 0; turns < 25; turns++) {
            kvd_io_fake_advance_ms(rig.fake, 50);
            kvt_rig_settle(&rig);
        }
        struct kvd_cold_stats stats;
        rig.service.cold.tier->ops->stats(rig.service.cold.tier, &stats);
        has_rested = has_rested || stats.is_resting;
    }
    assert_true(has_rested);
    assert_true(rig.service.metrics.values[KVD_METRIC_cold_blocks_written] > written);
    kvd_session_unref(session);
    kvt_cold_life_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_no_map_names_is_given_up),
        cmocka_unit_test(test_a_fork_holds_for_itself),
        cmocka_unit_test(test_a_full_tier_is_relieved),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
