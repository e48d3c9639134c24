/*
 * Tests of server/cold/cold_spill.c and cold_flush.c: what is written behind, in which order, and
 * what a disk that is slow, full or failing makes of it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "server/evict/session_evict.h"
#include "tests/support/fake_disk.h"
#include "tests/support/session_cold.h"

/* Group 64, a sink of one block, and room for what these tests append. */
#define TOKENS_MAX 2048

struct world {
    struct kvd_fake_disk *disk;
    struct kvt_rig rig;
    uint64_t life;
};

static void world_start(struct world *world)
{
    kvt_rig_init(
        &world->rig, &(struct kvt_rig_options){.disk = world->disk, .life = ++world->life});
}

static void world_init(struct world *world)
{
    *world = (struct world){.disk = kvd_fake_disk_create()};
    world_start(world);
}

static void world_kill_and_start(struct world *world)
{
    world->disk = kvt_cold_life_kill(&world->rig, world->disk);
    world_start(world);
}

static void world_stop_and_start(struct world *world)
{
    kvt_cold_life_stop(&world->rig);
    kvd_fake_disk_close_all(world->disk);
    world_start(world);
}

static void world_fini(struct world *world)
{
    kvt_cold_life_stop(&world->rig);
    kvd_fake_disk_destroy(world->disk);
}

static uint64_t metric(const struct world *world, enum kvd_metric which)
{
    return world->rig.service.metrics.values[which];
}

static struct kvd_cold_stats stats_of(const struct world *world)
{
    const struct kvd_cold *tier = world->rig.service.cold.tier;
    struct kvd_cold_stats stats;

    tier->ops->stats(tier, &stats);
    return stats;
}

static void assert_stored(const struct kvd_session *session, uint32_t blocks)
{
    for (uint32_t b = 0; b < blocks; b++) {
        assert_true(kvd_cold_copy_is_durable(kvd_session_block(session, b)->cold));
    }
    assert_int_equal(session->cold.mapped_blocks, blocks);
}

/* All blocks that are complete, a while later, once; what a fork shares is not written again. */
static void test_complete_blocks_are_written_once(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    struct kvd_session *session = kvt_session_open(&world.rig, "s", 0);
    kvt_cold_append(&world.rig, session, NULL, 200, 1);
    assert_int_equal(metric(&world, KVD_METRIC_cold_blocks_written), 0); /* they gather */
    kvt_cold_spill(&world.rig);
    assert_int_equal(metric(&world, KVD_METRIC_cold_blocks_written), 3);
    assert_stored(session, 3);
    struct kvt_fork fork = {
        .parent = session, .epoch = session->epoch, .length = UINT64_MAX, .name = "f"};
    assert_int_equal(kvt_fork_begin(&world.rig, &fork), 0);
    kvt_cold_spill(&world.rig);
    assert_stored(fork.child, 3);
    assert_int_equal(metric(&world, KVD_METRIC_cold_blocks_written), 3);
    kvt_cold_append(&world.rig, fork.child, NULL, 60, 2);
    kvt_cold_append(&world.rig, session, NULL, 60, 3);
    kvt_cold_spill(&world.rig);
    assert_int_equal(metric(&world, KVD_METRIC_cold_blocks_written), 5);
    kvd_session_unref(fork.child);
    kvd_session_unref(session);
    world_fini(&world);
}

static void test_unnamed_sessions_are_not_written(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    struct kvd_session *session = kvt_session_open(&world.rig, NULL, 0);
    kvt_cold_append(&world.rig, session, NULL, 200, 1);
    kvt_cold_spill(&world.rig);
    assert_int_equal(stats_of(&world).put_bytes, 0);
    kvd_session_unref(session);
    world_fini(&world);
}

#define STATES 3

/*
 * What one crash left: whole blocks of the beginning of one of the states, all of them there; or
 * nothing.
 */
static uint64_t crash_check(
    const struct world *world, const struct kvt_model *states, size_t op, uint64_t seed)
{
    struct world other = {.life = 1000 + op * 4 + seed};
    struct kvt_model part;
    uint64_t length = 0;

    other.disk = kvd_fake_disk_cut(world->disk, op, seed);
    world_start(&other);
    struct kvd_session *session = kvt_cold_find(&other.rig, "s");
    if (session != NULL) {
        const struct kvt_model *state = states;
        length = kvd_session_length(session);
        while (state->layers[0].length < length) {
            state++;
            assert_true(state < states + STATES);
        }
        kvt_model_copy(&part, state);
        kvt_cold_adopt(&part, session);
        (void)kvt_model_truncate(&part, length);
        assert_int_equal(length % 64, 0);
        assert_int_equal(kvt_cold_load(&other.rig, session), 0);
        assert_int_equal(kvt_model_check(&part, session), 0);
        kvt_model_fini(&part);
        kvd_session_unref(session);
    }
    kvd_session_unref(kvt_session_open(&other.rig, "other", 0));
    world_fini(&other);
    return length;
}

/* The power fails after each operation: a map never names what is not there. */
static void test_s23_a_map_is_put_after_its_pages(void **state)
{
    (void)state;
    struct world world;
    struct kvt_model model, states[STATES];
    unsigned tried = 0, back = 0;
    world_init(&world);
    struct kvd_session *session = kvt_session_open(&world.rig, "s", 0);
    kvt_model_init(&model, session, TOKENS_MAX);
    for (unsigned i = 0; i < STATES; i++) {
        kvt_cold_append(&world.rig, session, &model, 150, 1 + i);
        kvt_cold_spill(&world.rig);
        kvt_model_copy(&states[i], &model);
    }
    size_t last = kvd_fake_disk_op_count(world.disk);
    for (size_t op = 0; op <= last; op++) {
        for (uint64_t seed = 0; seed < 4; seed++, tried++) {
            back += crash_check(&world, states, op, seed) > 0;
        }
    }
    printf("%u crashes, a session came back after %u\n", tried, back);
    assert_true(back > 0 && back < tried);
    for (unsigned i = 0; i < STATES; i++) {
        kvt_model_fini(&states[i]);
    }
    kvt_model_fini(&model);
    kvd_session_unref(session);
    world_fini(&world);
}

/* A disk that hangs: no more than an eighth of the memory waits for it, and appends go on. */
static void test_a_slow_disk_has_a_bound(void **state)
{
    (void)state;
    struct world world = {.disk = kvd_fake_disk_create()};
    kvt_rig_init(&world.rig,
        &(struct kvt_rig_options){.disk = world.disk, .memory_limit = UINT64_C(16) << 20});
    struct kvd_session *session = kvt_session_open(&world.rig, "s", 0);
    kvd_io_fake_hold_files(world.rig.fake, true);
    uint64_t bound = world.rig.config.memory_limit / 8, most = 0;
    for (unsigned i = 0; i < 90; i++) {
        kvt_cold_append(&world.rig, session, NULL, 640, 1 + i);
        kvd_io_fake_advance_ms(world.rig.fake, 100);
        kvt_rig_settle(&world.rig);
        uint64_t queued = stats_of(&world).queued_bytes;
        most = queued > most ? queued : most;
    }
    assert_true(most > bound / 2 && most <= bound + 65536);
    kvd_io_fake_hold_files(world.rig.fake, false);
    kvt_cold_spill(&world.rig);
    assert_stored(session, 900);
    kvd_session_unref(session);
    world_fini(&world);
}

/* A write that fails is put again, into another segment. */
static void test_a_block_that_failed_is_put_again(void **state)
{
    (void)state;
    struct world world;
    struct kvt_model model;
    world_init(&world);
    struct kvd_session *session = kvt_session_open(&world.rig, "s", 0);
    kvt_model_init(&model, session, TOKENS_MAX);
    kvt_cold_append(&world.rig, session, &model, 100, 1);
    kvt_cold_spill(&world.rig);
    kvd_fake_disk_fail(world.disk, KVD_FILE_WRITE, 0, 1, KVARN_EIO);
    kvt_cold_append(&world.rig, session, &model, 100, 2);
    kvt_cold_spill(&world.rig);
    assert_int_equal(kvd_fake_disk_fault_count(world.disk), 1);
    assert_stored(session, 3);
    kvd_session_unref(session);
    world_kill_and_start(&world);
    session = kvt_cold_find(&world.rig, "s");
    assert_non_null(session);
    kvt_cold_adopt(&model, session);
    (void)kvt_model_truncate(&model, 192);
    assert_int_equal(kvt_cold_load(&world.rig, session), 0);
    assert_int_equal(kvt_model_check(&model, session), 0);
    kvd_session_unref(session);
    kvt_model_fini(&model);
    world_fini(&world);
}

/* The same for a map, and for the record of the session, which nobody else would put again. */
static void test_a_map_that_failed_is_put_again(void **state)
{
    (void)state;
    for (unsigned skip = 0; skip < 6; skip++) {
        struct world world;
        world_init(&world);
        struct kvd_session *session = kvt_session_open(&world.rig, "s", 0);
        kvd_fake_disk_fail(world.disk, KVD_FILE_SYNC, skip, 1, KVARN_EIO);
        kvt_cold_append(&world.rig, session, NULL, 200, 1);
        kvt_cold_spill(&world.rig);
        assert_stored(session, 3);
        kvd_session_unref(session);
        world_kill_and_start(&world);
        session = kvt_cold_find(&world.rig, "s");
        assert_non_null(session);
        assert_int_equal(kvd_session_length(session), 192);
        assert_int_equal(kvt_cold_load(&world.rig, session), 0);
        kvd_session_unref(session);
        world_fini(&world);
    }
}

/* A disk without room: sessions go on in memory; with room again all is stored. */
static void test_a_full_disk_is_waited_for(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    struct kvd_session *session = kvt_session_open(&world.rig, "s", 0);
    kvt_cold_append(&world.rig, session, NULL, 100, 1);
    kvt_cold_spill(&world.rig);
    kvd_fake_disk_fail(world.disk, KVD_FILE_WRITE, 0, 1, KVARN_EIO); /* that segment is done with */
    kvd_fake_disk_set_room(world.disk, kvd_fake_disk_used(world.disk) + 8192);
    kvt_cold_append(&world.rig, session, NULL, 1000, 2);
    for (unsigned i = 0; i < 300; i++) {
        kvd_io_fake_advance_ms(world.rig.fake, 10);
        kvt_rig_settle(&world.rig);
    }
    assert_true(session->cold.mapped_blocks < 17);
    assert_false(kvd_session_has_missing(session));
    kvd_fake_disk_set_room(world.disk, 0);
    kvt_cold_spill(&world.rig);
    assert_stored(session, 17);
    kvd_session_unref(session);
    world_fini(&world);
}

/* SEMANTICS.md 7: a stop that could not write a last map is not a clean one. */
static void test_s07_a_last_map_that_failed_gives_new_epochs(void **state)
{
    (void)state;
    unsigned kept = 0, renewed = 0;
    for (unsigned skip = 0; skip < 8; skip++) {
        struct world world;
        world_init(&world);
        struct kvd_session *session = kvt_session_open(&world.rig, "s", 0);
        kvt_cold_append(&world.rig, session, NULL, 200, 1);
        kvt_cold_spill(&world.rig);
        kvd_session_unref(session);
        world_stop_and_start(&world); /* its last map has the epoch */
        session = kvt_cold_find(&world.rig, "s");
        assert_non_null(session);
        kvt_cold_append(&world.rig, session, NULL, 10, 2);
        kvt_cold_spill(&world.rig);
        uint64_t epoch = session->epoch;
        kvd_session_unref(session);
        kvd_fake_disk_fail(world.disk, KVD_FILE_WRITE, skip, 1, KVARN_EIO);
        world_stop_and_start(&world);
        session = kvt_cold_find(&world.rig, "s");
        assert_non_null(session);
        bool is_whole = kvd_session_length(session) == 210;
        assert_true(is_whole || session->epoch != epoch);
        kept += session->epoch == epoch;
        renewed += session->epoch != epoch;
        kvd_session_unref(session);
        world_fini(&world);
    }
    printf("%u stops with a write that failed: epoch kept %u, new %u\n", kept + renewed, kept,
        renewed);
    assert_true(kept > 0 && renewed > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_complete_blocks_are_written_once),
        cmocka_unit_test(test_unnamed_sessions_are_not_written),
        cmocka_unit_test(test_s23_a_map_is_put_after_its_pages),
        cmocka_unit_test(test_a_slow_disk_has_a_bound),
        cmocka_unit_test(test_a_block_that_failed_is_put_again),
        cmocka_unit_test(test_a_map_that_failed_is_put_again),
        cmocka_unit_test(test_a_full_disk_is_waited_for),
        cmocka_unit_test(test_s07_a_last_map_that_failed_gives_new_epochs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
