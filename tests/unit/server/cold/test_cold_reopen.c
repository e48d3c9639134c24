/*
 * Tests of server/cold/cold_reopen.c, and of what a stop must have written for it: lives of a
 * service over one fake disk.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "server/evict/session_evict.h"
#include "tests/support/session_cold.h"

/* Group 64, a sink of one block, and room for what these tests append. */
#define TOKENS_MAX 1024

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

static void world_stop_and_start(struct world *world)
{
    kvt_cold_life_stop(&world->rig);
    kvd_fake_disk_close_all(world->disk);
    world_start(world);
}

static void world_kill_and_start(struct world *world)
{
    world->disk = kvt_cold_life_kill(&world->rig, world->disk);
    world_start(world);
}

static void world_fini(struct world *world)
{
    kvt_cold_life_stop(&world->rig);
    kvd_fake_disk_destroy(world->disk);
}

/* All that a session should hold is there, byte for byte. */
static void assert_holds(struct world *world, struct kvd_session *session, struct kvt_model *model)
{
    assert_non_null(session);
    kvt_cold_adopt(model, session);
    assert_int_equal(kvd_session_length(session), model->layers[0].length);
    assert_int_equal(kvt_cold_load(&world->rig, session), 0);
    assert_int_equal(kvt_model_check(model, session), 0);
}

/* Out of memory with all of it that is stored. */
static void evict_all(struct kvd_session *session)
{
    uint64_t freed = 0;

    (void)kvd_session_evict(session, UINT32_MAX, &freed);
}

/* Whole blocks and a tail, twice over. */
static void test_s23_a_clean_stop_loses_no_token(void **state)
{
    (void)state;
    struct world world;
    struct kvt_model model;
    world_init(&world);
    struct kvd_session *session = kvt_session_open(&world.rig, "s", 0);
    kvt_model_init(&model, session, TOKENS_MAX);
    kvt_cold_append(&world.rig, session, &model, 210, 1);
    uint64_t epoch = session->epoch;
    kvd_session_unref(session);
    for (unsigned i = 0; i < 2; i++) {
        world_stop_and_start(&world);
        session = kvt_cold_find(&world.rig, "s");
        assert_non_null(session);
        assert_int_equal(session->epoch, epoch);
        assert_holds(&world, session, &model);
        kvt_cold_append(&world.rig, session, &model, 100, 2 + i);
        assert_holds(&world, session, &model);
        kvd_session_unref(session);
    }
    kvt_model_fini(&model);
    world_fini(&world);
}

/* A sink that was cut and then evicted is whole on disk, though not all of it is the session's. */
static void test_s23_a_clean_stop_keeps_a_cut_sink(void **state)
{
    (void)state;
    struct world world;
    struct kvt_model model;
    world_init(&world);
    struct kvd_session *session = kvt_session_open(&world.rig, "s", 0);
    kvt_model_init(&model, session, TOKENS_MAX);
    kvt_cold_append(&world.rig, session, &model, 200, 1);
    kvt_cold_spill(&world.rig);
    assert_int_equal(kvt_truncate_now(&world.rig, session, 50), 0);
    (void)kvt_model_truncate(&model, 50);
    kvt_cold_spill(&world.rig);
    evict_all(session);
    assert_int_equal(kvd_session_block(session, 0)->state, KVD_BLOCK_COLD);
    kvd_session_unref(session);
    world_stop_and_start(&world);
    session = kvt_cold_find(&world.rig, "s");
    assert_holds(&world, session, &model);
    /* What is behind it now is written anew. */
    kvt_cold_append(&world.rig, session, &model, 150, 2);
    kvt_cold_spill(&world.rig);
    kvd_session_unref(session);
    world_kill_and_start(&world);
    session = kvt_cold_find(&world.rig, "s");
    assert_non_null(session);
    kvt_cold_adopt(&model, session);
    (void)kvt_model_truncate(&model, 192);
    assert_holds(&world, session, &model);
    kvd_session_unref(session);
    kvt_model_fini(&model);
    world_fini(&world);
}

/* What a session is after the power failed; returns its length. */
static uint64_t length_after_cut(const struct world *world, size_t op, uint64_t seed)
{
    struct world cut = {.disk = kvd_fake_disk_cut(world->disk, op, seed), .life = 100 + op};

    world_start(&cut);
    struct kvd_session *session = kvt_cold_find(&cut.rig, "s");
    assert_non_null(session);
    uint64_t length = kvd_session_length(session);
    assert_int_equal(kvt_cold_load(&cut.rig, session), 0);
    kvd_session_unref(session);
    world_fini(&cut);
    return length;
}

/*
 * The power fails after each operation since `first_op`, with eight mixtures of what was not
 * synced: what comes back misses nothing, and has one of two lengths.
 */
static void assert_whole_at_each_cut(
    const struct world *world, size_t first_op, uint64_t length_before, uint64_t length_after)
{
    size_t last_op = kvd_fake_disk_op_count(world->disk);
    unsigned seen_before = 0, seen_after = 0, tried = 0;

    for (size_t op = first_op; op <= last_op; op++) {
        for (uint64_t seed = 0; seed < 8; seed++) {
            uint64_t length = length_after_cut(world, op, seed);
            seen_before += length == length_before ? 1 : 0;
            seen_after += length == length_after ? 1 : 0;
            tried++;
            assert_int_equal(seen_before + seen_after, tried);
        }
    }
    assert_true(seen_before > 0);
}

/* Another session, so that what the first one leaves in their segment does not make it small. */
static void company_add(struct world *world)
{
    struct kvd_session *other = kvt_session_open(&world->rig, "other", 0);

    kvt_cold_append(&world->rig, other, NULL, 900, 7);
    kvd_session_unref(other);
}

/* A cut re-opens a block, and its map is not stored: the one before it names what was there. */
static void test_s23_what_a_map_names_stays_until_the_next_is_durable(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    company_add(&world);
    struct kvd_session *session = kvt_session_open(&world.rig, "s", 0);
    kvt_cold_append(&world.rig, session, NULL, 256, 1);
    kvd_session_unref(session);
    world_stop_and_start(&world); /* what is in a sealed segment is punched out at once */
    session = kvt_cold_find(&world.rig, "s");
    assert_int_equal(kvt_cold_load(&world.rig, session), 0);
    kvt_cold_spill(&world.rig);
    size_t first_op = kvd_fake_disk_op_count(world.disk);
    kvd_fake_disk_fail(world.disk, KVD_FILE_WRITE, 0, 1, KVARN_EIO);
    assert_int_equal(kvt_truncate_now(&world.rig, session, 200), KVARN_EIO);
    assert_int_equal(kvd_session_length(session), 200);
    kvt_cold_spill(&world.rig);
    assert_whole_at_each_cut(&world, first_op, 256, 192);
    kvd_session_unref(session);
    world_fini(&world);
}

/* The same of a sink that is written on. */
static void test_s23_a_cut_sink_stays_until_it_is_written_anew(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    company_add(&world);
    struct kvd_session *session = kvt_session_open(&world.rig, "s", 0);
    kvt_cold_append(&world.rig, session, NULL, 200, 1);
    kvt_cold_spill(&world.rig);
    assert_int_equal(kvt_truncate_now(&world.rig, session, 50), 0);
    kvt_cold_spill(&world.rig);
    evict_all(session);
    kvd_session_unref(session);
    world_stop_and_start(&world);
    session = kvt_cold_find(&world.rig, "s");
    kvt_cold_spill(&world.rig);
    size_t first_op = kvd_fake_disk_op_count(world.disk);
    kvt_cold_append(&world.rig, session, NULL, 78, 2);
    kvt_cold_spill(&world.rig);
    assert_whole_at_each_cut(&world, first_op, 50, 128);
    kvd_session_unref(session);
    world_fini(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_s23_a_clean_stop_loses_no_token),
        cmocka_unit_test(test_s23_a_clean_stop_keeps_a_cut_sink),
        cmocka_unit_test(test_s23_what_a_map_names_stays_until_the_next_is_durable),
        cmocka_unit_test(test_s23_a_cut_sink_stays_until_it_is_written_anew),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
