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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_s23_a_clean_stop_loses_no_token),
        cmocka_unit_test(test_s23_a_clean_stop_keeps_a_cut_sink),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
