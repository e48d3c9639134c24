/*
 * Tests of server/cold/read_ahead.c, and of what cold_restore.c loads for an operation: reads that
 * follow each other find the next blocks on their way, others do not; and a missing range whose
 * blocks came back in any order is what is missing.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "server/evict/session_evict.h"
#include "tests/support/cold_scene.h"

/* Blocks [first, last) and no others are in memory; the open one is not looked at. */
static void assert_resident(const struct kvt_scene *scene, uint32_t first, uint32_t last)
{
    for (uint32_t b = 0; b < scene->blocks; b++) {
        bool is_resident = kvd_session_block(scene->session, b)->state == KVD_BLOCK_RESIDENT;
        if (is_resident != (b >= first && b < last)) {
            fail_msg("block %u is %s", b, is_resident ? "in memory" : "not there");
        }
    }
}

static void test_reads_in_a_row_are_met_ahead(void **state)
{
    (void)state;
    struct kvt_scene scene;
    kvt_scene_init(&scene, 100);
    scene.rig.config.cold_read_ahead = 16;
    uint32_t ahead[] = {0, 2, 4, 8, 16, 16, 16};
    for (uint32_t b = 0; b < 7; b++) {
        assert_int_equal(kvt_scene_attend(&scene, b, b + 1), 0);
        assert_resident(&scene, 0, b + 1 + ahead[b]);
        assert_int_equal(scene.session->missing_first, b + 1 + ahead[b]);
    }
    assert_int_equal(kvt_scene_metric(&scene, KVD_METRIC_cold_blocks_loaded), 23);
    /* The first two were asked for, the rest was there. */
    assert_int_equal(kvt_scene_metric(&scene, KVD_METRIC_cold_blocks_read_ahead), 21);
    for (uint32_t b = 7; b < 100; b++) {
        assert_int_equal(kvt_scene_attend(&scene, b, b + 1), 0);
    }
    assert_int_equal(kvt_scene_metric(&scene, KVD_METRIC_cold_blocks_loaded), 100);
    assert_int_equal(kvt_scene_metric(&scene, KVD_METRIC_cold_blocks_read_ahead), 98);
    assert_false(kvd_session_has_missing(scene.session));
    kvt_scene_fini(&scene);
}

static void test_a_read_that_waits_has_the_next_ones_under_way(void **state)
{
    (void)state;
    struct kvt_scene scene;
    kvt_scene_init(&scene, 100);
    scene.rig.config.cold_read_ahead = 8;
    assert_int_equal(kvt_scene_attend(&scene, 10, 12), 0);
    kvd_io_fake_hold_files(scene.rig.fake, true);
    struct kvt_attend attend = kvt_scene_attend_of(&scene, 12, 14);
    kvt_attend_begin(&scene.rig, &attend);
    kvt_rig_settle(&scene.rig);
    assert_int_equal(scene.rig.service.cold.loads, 2 + 4);
    kvd_io_fake_hold_files(scene.rig.fake, false);
    kvt_rig_settle(&scene.rig);
    assert_true(attend.outcome.is_done && attend.outcome.why.err == 0);
    kvt_attend_fini(&attend);
    assert_resident(&scene, 10, 18);
    kvt_scene_fini(&scene);
}

/* The same blocks of other layers go on where they are; the last block once more is a row, too. */
static void test_layers_in_turn_are_one_walk(void **state)
{
    (void)state;
    struct kvt_scene scene;
    kvt_scene_init(&scene, 40);
    scene.rig.config.cold_read_ahead = 4;
    for (uint32_t b = 0; b < 3; b++) {
        for (uint32_t layer = 0; layer < 2; layer++) {
            struct kvt_attend attend = kvt_scene_attend_of(&scene, b, b + 1);
            attend.args.layer = layer;
            assert_int_equal(kvt_attend_now(&scene.rig, &attend), 0);
            kvt_attend_fini(&attend);
        }
    }
    assert_resident(&scene, 0, 3 + 4);
    assert_int_equal(kvt_scene_attend(&scene, 2, 4), 0); /* from the middle of block 2 on */
    assert_resident(&scene, 0, 4 + 4);
    kvt_scene_fini(&scene);
}

static void test_reads_here_and_there_bring_nothing_else(void **state)
{
    (void)state;
    struct kvt_scene scene;
    kvt_scene_init(&scene, 60);
    scene.rig.config.cold_read_ahead = 16;
    static const uint32_t places[] = {50, 10, 30, 31 + 9, 20, 0, 5};
    for (unsigned i = 0; i < sizeof(places) / sizeof(*places); i++) {
        assert_int_equal(kvt_scene_attend(&scene, places[i], places[i] + 1), 0);
    }
    assert_int_equal(kvt_scene_metric(&scene, KVD_METRIC_cold_blocks_loaded), 7);
    assert_int_equal(kvt_scene_metric(&scene, KVD_METRIC_cold_blocks_read_ahead), 0);
    /* What is missing, and how many of those between came back. */
    assert_int_equal(scene.session->missing_first, 1);
    assert_int_equal(scene.session->missing_last, 60);
    assert_int_equal(scene.session->cold.restored_blocks, 6);
    /* They are what goes first. */
    assert_int_equal(kvd_session_next_victim(scene.session), 50);
    kvt_scene_fini(&scene);
}

static void test_none_when_it_is_off(void **state)
{
    (void)state;
    struct kvt_scene scene;
    kvt_scene_init(&scene, 20);
    scene.rig.config.cold_read_ahead = 0;
    for (uint32_t b = 0; b < 6; b++) {
        assert_int_equal(kvt_scene_attend(&scene, b, b + 1), 0);
        assert_resident(&scene, 0, b + 1);
    }
    kvt_scene_fini(&scene);
}

/* Without memory reads go on by themselves, and nobody is evicted for what nobody asked for. */
static void test_read_ahead_takes_no_memory_from_anybody(void **state)
{
    (void)state;
    struct kvt_scene scene;
    kvt_scene_init(&scene, 40);
    scene.rig.config.cold_read_ahead = 16;
    assert_int_equal(kvt_scene_attend(&scene, 0, 1), 0);
    struct kvd_session *hog = kvt_session_open(&scene.rig, NULL, 0);
    int err = 0;
    scene.rig.source.is_empty = true;
    while (err == 0) {
        struct kvt_append append = kvt_append_of(hog, 64, 5);
        err = kvt_append_now(&scene.rig, &append);
    }
    assert_int_equal(kvt_scene_attend(&scene, 1, 2), KVARN_EMISS); /* as without it */
    uint64_t evicted = kvt_scene_metric(&scene, KVD_METRIC_evicted_blocks_reservation);
    assert_int_equal(evicted, 0);
    assert_int_equal(kvt_scene_metric(&scene, KVD_METRIC_cold_blocks_read_ahead), 0);
    assert_int_equal(scene.rig.service.cold.loads, 0);
    scene.rig.source.is_empty = false;
    kvt_session_drop(&scene.rig, hog);
    assert_int_equal(kvt_scene_attend(&scene, 1, 2), 0);
    assert_resident(&scene, 0, 4); /* the same place once more: two ahead of it */
    kvt_scene_fini(&scene);
}

/* All of a long read is under way at once, 64 blocks of it, not one after the other. */
static void test_a_long_read_loads_many_at_once(void **state)
{
    (void)state;
    struct kvt_scene scene;
    kvt_scene_init(&scene, 150);
    kvd_io_fake_hold_files(scene.rig.fake, true);
    struct kvt_attend attend = kvt_scene_attend_of(&scene, 0, 150);
    kvt_attend_begin(&scene.rig, &attend);
    assert_int_equal(scene.rig.service.cold.loads, 64);
    kvd_io_fake_hold_files(scene.rig.fake, false);
    kvt_rig_settle(&scene.rig);
    assert_true(attend.outcome.is_done && attend.outcome.why.err == 0);
    kvt_attend_fini(&attend);
    assert_int_equal(kvt_scene_metric(&scene, KVD_METRIC_cold_blocks_loaded), 150);
    assert_false(kvd_session_has_missing(scene.session));
    kvt_scene_fini(&scene);
}

/* Two sessions that share cold blocks: what one brings back the other has, and counts. */
static void test_forks_count_what_others_brought(void **state)
{
    (void)state;
    struct kvt_scene scene;
    kvt_scene_init(&scene, 30);
    struct kvd_session *copy = kvt_fork_now(&scene.rig, scene.session, UINT64_MAX);
    assert_int_equal(kvt_scene_attend(&scene, 10, 20), 0);
    struct kvt_scene other = scene;
    other.session = copy;
    assert_int_equal(kvt_scene_attend(&other, 10, 12), 0);
    assert_int_equal(kvt_scene_metric(&scene, KVD_METRIC_cold_blocks_loaded), 10);
    assert_int_equal(kvt_scene_attend(&other, 25, 26), 0);
    assert_int_equal(scene.session->cold.restored_blocks, 10);
    assert_int_equal(scene.session->missing_last, 30);
    kvt_session_drop(&scene.rig, copy);
    kvt_scene_fini(&scene);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_in_a_row_are_met_ahead),
        cmocka_unit_test(test_a_read_that_waits_has_the_next_ones_under_way),
        cmocka_unit_test(test_layers_in_turn_are_one_walk),
        cmocka_unit_test(test_reads_here_and_there_bring_nothing_else),
        cmocka_unit_test(test_none_when_it_is_off),
        cmocka_unit_test(test_read_ahead_takes_no_memory_from_anybody),
        cmocka_unit_test(test_a_long_read_loads_many_at_once),
        cmocka_unit_test(test_forks_count_what_others_brought),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
