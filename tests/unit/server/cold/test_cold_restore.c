/*
 * Tests of server/cold/cold_restore.c: what is not in memory comes back once, whole and right, or
 * not at all.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "server/evict/session_evict.h"
#include "server/session/session_blocks.h"
#include "tests/support/fake_disk.h"
#include "tests/support/session_cold.h"

/* Group 64, a sink of one block, and room for what these tests append. */
#define TOKENS_MAX 512

struct world {
    struct kvd_fake_disk *disk;
    struct kvt_rig rig;
    struct kvd_session *session;
    struct kvt_model model;
};

/* 200 tokens: a sink, 2 sealed blocks and 8 rows, all of which are stored. */
static void world_init(struct world *world)
{
    *world = (struct world){.disk = kvd_fake_disk_create()};
    kvt_rig_init(&world->rig, &(struct kvt_rig_options){.disk = world->disk});
    world->session = kvt_session_open(&world->rig, "s", 0);
    kvt_model_init(&world->model, world->session, TOKENS_MAX);
    kvt_cold_append(&world->rig, world->session, &world->model, 200, 1);
    kvt_cold_spill(&world->rig);
}

/* Out with all of it. */
static void evict_all(struct world *world)
{
    uint64_t freed = 0;

    assert_true(kvd_cold_tail_out(world->session) > 0 || kvd_tail_is_stored(world->session));
    kvt_cold_spill(&world->rig);
    (void)kvd_session_evict(world->session, UINT32_MAX, &freed);
    for (unsigned i = 0; i < KVD_PAGE_CLASS_COUNT; i++) {
        assert_int_equal(world->rig.service.pages.classes[i].pages, 0);
    }
}

static void world_fini(struct world *world)
{
    kvt_model_fini(&world->model);
    kvd_session_unref(world->session);
    kvt_cold_life_stop(&world->rig);
    kvd_fake_disk_destroy(world->disk);
}

static uint64_t metric(const struct world *world, enum kvd_metric which)
{
    return world->rig.service.metrics.values[which];
}

static void assert_right(struct world *world)
{
    assert_int_equal(kvt_cold_load(&world->rig, world->session), 0);
    assert_int_equal(kvt_model_check(&world->model, world->session), 0);
}

/* All of a layer, and whatever of it is cold. */
static struct kvt_attend attend_all(const struct world *world, uint32_t layer)
{
    struct kvt_attend attend = kvt_attend_of(world->session, layer, 1, 3);

    attend.op.block_first = world->session->layers[layer].dropped_blocks;
    attend.args.first = (uint64_t)attend.op.block_first * world->session->shape->group;
    attend.op.block_last = UINT32_MAX;
    return attend;
}

/* Two that need the same blocks at once wait for one read of each. */
static void test_operations_join_a_load(void **state)
{
    (void)state;
    struct world world;
    struct kvt_attend attends[2];
    world_init(&world);
    evict_all(&world);
    kvd_io_fake_hold_files(world.rig.fake, true);
    for (unsigned i = 0; i < 2; i++) {
        attends[i] = attend_all(&world, i);
        kvt_attend_begin(&world.rig, &attends[i]);
    }
    kvt_rig_settle(&world.rig);
    assert_int_equal(attends[0].outcome.done_count + attends[1].outcome.done_count, 0);
    kvd_io_fake_hold_files(world.rig.fake, false);
    kvt_rig_settle(&world.rig);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(attends[i].outcome.done_count, 1);
        assert_int_equal(attends[i].outcome.why.err, 0);
        kvt_attend_fini(&attends[i]);
    }
    assert_int_equal(metric(&world, KVD_METRIC_cold_blocks_loaded), 3);
    assert_int_equal(metric(&world, KVD_METRIC_cold_tails_loaded), 1);
    assert_right(&world);
    world_fini(&world);
}

/* What needs nothing that is cold passes; what comes after it keeps its turn. */
static void test_s16_the_queue_keeps_its_order(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    evict_all(&world);
    kvd_io_fake_hold_files(world.rig.fake, true);
    struct kvt_attend attend = attend_all(&world, 0);
    kvt_attend_begin(&world.rig, &attend);
    struct kvt_append append = kvt_append_of(world.session, 20, 2);
    assert_int_equal(kvt_append_begin(&world.rig, &append), 0);
    struct kvt_truncate cut = {
        .session = world.session, .epoch = world.session->epoch, .length = 210};
    assert_int_equal(kvt_truncate_begin(&world.rig, &cut), 0);
    kvt_rig_settle(&world.rig);
    assert_false(attend.outcome.is_done || append.outcome.is_done || cut.outcome.is_done);
    kvd_io_fake_hold_files(world.rig.fake, false);
    kvt_rig_settle(&world.rig);
    kvt_cold_spill(&world.rig);
    assert_int_equal(attend.outcome.why.err, 0);
    assert_int_equal(append.outcome.why.err, 0);
    assert_int_equal(cut.outcome.done_count, 1);
    assert_int_equal(cut.outcome.why.err, 0);
    kvt_model_append(&world.model, &append);
    (void)kvt_model_truncate(&world.model, 210);
    kvt_append_fini(&append);
    kvt_attend_fini(&attend);
    assert_right(&world);
    world_fini(&world);
}

/* The session is dropped while its blocks are read: nothing is left of either. */
static void test_a_drop_during_a_load(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    struct kvd_session *other = kvt_session_open(&world.rig, "other", 0);
    evict_all(&world);
    kvd_io_fake_hold_files(world.rig.fake, true);
    struct kvt_attend attend = attend_all(&world, 0);
    kvt_attend_begin(&world.rig, &attend);
    kvt_rig_settle(&world.rig);
    kvd_session_table_drop(&world.rig.service.sessions, world.session);
    kvd_io_fake_hold_files(world.rig.fake, false);
    kvt_cold_spill(&world.rig);
    assert_int_equal(attend.outcome.done_count, 1);
    assert_int_equal(attend.outcome.why.err, KVARN_ENOT_FOUND);
    kvt_attend_fini(&attend);
    for (unsigned i = 0; i < KVD_PAGE_CLASS_COUNT; i++) {
        assert_int_equal(world.rig.service.pages.classes[i].pages, 0);
    }
    kvd_session_unref(other);
    world_fini(&world);
}

/* Blocks are cut off, or written anew, while they are on their way back: those do not return. */
static void test_s23_a_cut_during_a_load(void **state)
{
    (void)state;
    static const uint32_t lengths[] = {192, 128, 64, 0};
    for (unsigned i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        struct world world;
        world_init(&world);
        evict_all(&world);
        kvd_io_fake_hold_files(world.rig.fake, true);
        for (uint32_t b = 0; b < 4; b++) {
            assert_int_equal(kvd_cold_fetch(world.session, b, KVD_COLD_FOR_OPERATION), 0);
        }
        struct kvt_truncate cut = {
            .session = world.session, .epoch = world.session->epoch, .length = lengths[i]};
        assert_int_equal(kvt_truncate_begin(&world.rig, &cut), 0);
        kvt_rig_settle(&world.rig);
        (void)kvt_model_truncate(&world.model, lengths[i]);
        kvd_io_fake_hold_files(world.rig.fake, false);
        kvt_cold_spill(&world.rig);
        assert_int_equal(cut.outcome.done_count, 1);
        assert_int_equal(cut.outcome.why.err, 0);
        kvt_cold_append(&world.rig, world.session, &world.model, 150, 5);
        assert_right(&world);
        world_fini(&world);
    }
}

/* Where bytes lie in the files of the disk. */
struct place {
    struct kvd_fake_disk *disk;
    const void *bytes;
    uint8_t *found;
    unsigned count;
};

static void place_find_cb(void *ctx, const char *path)
{
    struct place *place = ctx;
    size_t file_bytes = 0;
    uint8_t *data = kvd_fake_disk_data(place->disk, path, &file_bytes);

    for (size_t i = 0; data != NULL && i + 32 <= file_bytes; i++) {
        if (memcmp(data + i, place->bytes, 32) == 0) {
            place->found = data + i;
            place->count++;
        }
    }
}

/* Flip a bit of what is stored of a page; its block is in memory still. */
static void damage(const struct world *world, const struct kvd_page *page)
{
    struct place place = {.disk = world->disk, .bytes = kvd_page_data(page)};

    (void)kvd_fake_disk_names(world->disk, place_find_cb, &place);
    assert_int_equal(place.count, 1);
    place.found[7] ^= 4;
}

/* A damaged block is a MISS with its reason, and nothing else is. */
static void test_s14_a_damaged_block_is_a_miss(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    damage(&world, kvd_session_tiles(world.session, 1, 0));
    evict_all(&world);
    struct kvt_attend attend = attend_all(&world, 0);
    assert_int_equal(kvt_attend_now(&world.rig, &attend), KVARN_EMISS);
    assert_int_equal(attend.outcome.why.reason, KVARND__MISS_REASON__MISS_CHECKSUM);
    kvt_attend_fini(&attend);
    attend = attend_all(&world, 0);
    attend.args.first = 128;
    attend.op.block_first = 2;
    assert_int_equal(kvt_attend_now(&world.rig, &attend), 0);
    kvt_attend_fini(&attend);
    assert_int_equal(metric(&world, KVD_METRIC_cold_loads_failed), 1);
    kvt_cold_append(&world.rig, world.session, &world.model, 10, 2);
    assert_int_equal(kvt_truncate_now(&world.rig, world.session, 64), 0); /* whole again */
    (void)kvt_model_truncate(&world.model, 64);
    assert_right(&world);
    world_fini(&world);
}

/* A damaged tail: nothing can be added, until it is cut off. */
static void test_s14_a_damaged_tail_is_a_miss(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    kvd_io_fake_hold_files(world.rig.fake, true);
    assert_true(kvd_cold_tail_out(world.session) > 0);
    kvt_rig_settle(&world.rig);
    kvd_io_fake_advance_ms(world.rig.fake, 1);
    kvd_lifetime_touch(world.session); /* so that its rows stay, and can be looked for */
    kvd_io_fake_hold_files(world.rig.fake, false);
    kvt_cold_spill(&world.rig);
    damage(&world, kvd_session_rows(world.session, 3, 0));
    evict_all(&world);
    struct kvt_append append = kvt_append_of(world.session, 10, 2);
    assert_int_equal(kvt_append_now(&world.rig, &append), KVARN_EMISS);
    assert_int_equal(append.outcome.why.reason, KVARND__MISS_REASON__MISS_CHECKSUM);
    assert_int_equal(kvt_truncate_now(&world.rig, world.session, 195), KVARN_EMISS);
    assert_int_equal(kvt_truncate_now(&world.rig, world.session, 192), 0);
    (void)kvt_model_truncate(&world.model, 192);
    kvt_cold_append(&world.rig, world.session, &world.model, 30, 3);
    assert_right(&world);
    world_fini(&world);
}

/* No memory, and nobody to evict: told so at once; and it is there when there is memory again. */
static void test_without_memory_it_is_a_miss(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    evict_all(&world);
    (void)kvd_page_store_reclaim(&world.rig.service.pages, UINT64_MAX);
    world.rig.source.is_empty = true;
    struct kvt_attend attend = attend_all(&world, 0);
    assert_int_equal(kvt_attend_now(&world.rig, &attend), KVARN_EMISS);
    kvt_attend_fini(&attend);
    struct kvt_append append = kvt_append_of(world.session, 10, 2);
    assert_int_equal(kvt_append_now(&world.rig, &append), KVARN_EMISS);
    struct kvt_fork fork = {
        .parent = world.session, .epoch = world.session->epoch, .length = UINT64_MAX};
    assert_int_equal(kvt_fork_begin(&world.rig, &fork), 0);
    kvt_rig_settle(&world.rig);
    assert_int_equal(fork.outcome.done_count, 1);
    assert_int_not_equal(fork.outcome.why.err, 0); /* a copy would have no record of the tail */
    assert_int_equal(metric(&world, KVD_METRIC_cold_loads_failed), 0);
    world.rig.source.is_empty = false;
    assert_right(&world);
    world_fini(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_operations_join_a_load),
        cmocka_unit_test(test_s16_the_queue_keeps_its_order),
        cmocka_unit_test(test_a_drop_during_a_load),
        cmocka_unit_test(test_s23_a_cut_during_a_load),
        cmocka_unit_test(test_s14_a_damaged_block_is_a_miss),
        cmocka_unit_test(test_s14_a_damaged_tail_is_a_miss),
        cmocka_unit_test(test_without_memory_it_is_a_miss),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
