/*
 * Tests of server/cold/cold_room.c: who gives up what when the cold tier is at its limit.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "server/evict/session_evict.h"
#include "tests/support/fake_disk.h"
#include "tests/support/session_cold.h"

#define SESSIONS      24u
#define BLOCKS        5u
#define TOKENS        (BLOCKS * 64u) /* whole blocks: no tail */
#define SEGMENT_BYTES ((uint64_t)128 << 10)
#define SEGMENTS      8u

struct world {
    struct kvd_fake_disk *disk;
    struct kvt_rig rig;
    struct kvt_model models[SESSIONS];
    uint64_t life;
    unsigned count;       /* sessions made */
    uint32_t tail_tokens; /* of each, besides its blocks */
};

static void name_of(unsigned i, char name[8])
{
    (void)snprintf(name, 8, "s%02u", i);
}

static void world_start(struct world *world)
{
    kvt_rig_init(&world->rig, &(struct kvt_rig_options){.disk = world->disk,
                                  .life = ++world->life,
                                  .cold_segment = SEGMENT_BYTES,
                                  .cold_segments = SEGMENTS});
}

static void world_init(struct world *world)
{
    memset(world, 0, sizeof(*world));
    world->disk = kvd_fake_disk_create();
    world_start(world);
}

static uint64_t metric(const struct world *world, enum kvd_metric which)
{
    return world->rig.service.metrics.values[which];
}

static bool is_room_wanted(const struct world *world)
{
    const struct kvd_cold_sessions *cold = &world->rig.service.cold;

    return cold->tier->ops->wanted(cold->tier) > 0 || cold->gives > 0;
}

/* Time for what the tier wants given up, too. */
static void spill(struct world *world)
{
    kvt_cold_spill(&world->rig);
    for (unsigned i = 0; i < 20 && is_room_wanted(world); i++) {
        kvd_io_fake_advance_ms(world->rig.fake, 60);
        kvt_cold_spill(&world->rig);
    }
    kvd_io_fake_advance_ms(world->rig.fake, 60); /* what was refused is put again */
    kvt_cold_spill(&world->rig);
    assert_true(kvd_fake_disk_used(world->disk) <= SEGMENTS * SEGMENT_BYTES);
}

/* A session more, of which nothing stays in memory unless it is to. */
static void session_add(struct world *world, bool is_evicted)
{
    unsigned i = world->count++;
    uint64_t freed = 0;
    char name[8];

    name_of(i, name);
    struct kvd_session *session = kvt_session_open(&world->rig, name, 0);
    kvt_model_init(&world->models[i], session, TOKENS + 64);
    kvd_io_fake_advance_ms(world->rig.fake, 1);
    kvd_lifetime_touch(session);
    kvt_cold_append(&world->rig, session, &world->models[i], TOKENS + world->tail_tokens, 100 + i);
    spill(world);
    if (is_evicted) {
        assert_int_equal(kvd_session_evict(session, BLOCKS, &freed), BLOCKS);
    }
    kvd_session_unref(session);
}

static void sessions_add(struct world *world, unsigned count, bool is_evicted)
{
    for (unsigned i = 0; i < count; i++) {
        session_add(world, is_evicted);
    }
}

/* Blocks that are on disk, or in memory. */
static uint32_t blocks_held(struct world *world, unsigned i)
{
    char name[8];
    uint32_t held = 0;

    name_of(i, name);
    struct kvd_session *session = kvt_cold_find(&world->rig, name);
    for (uint32_t b = 0; session != NULL && b < kvd_session_block_count(session); b++) {
        const struct kvd_block *block = kvd_session_block(session, b);
        held += block->state != KVD_BLOCK_MISSING ? 1 : 0;
        /* What went was at the end, and says why. */
        assert_true(block->state == KVD_BLOCK_MISSING || held == b + 1);
        assert_true(block->state != KVD_BLOCK_MISSING ||
                    block->miss_reason == KVARND__MISS_REASON__MISS_EVICTED);
    }
    if (session != NULL) {
        kvd_session_unref(session);
    }
    return held;
}

static uint32_t blocks_stored(struct world *world, unsigned i)
{
    char name[8];
    uint32_t stored = 0;

    name_of(i, name);
    struct kvd_session *session = kvt_cold_find(&world->rig, name);
    for (uint32_t b = 0; session != NULL && b < kvd_session_block_count(session); b++) {
        stored += kvd_cold_copy_is_durable(kvd_session_block(session, b)->cold) ? 1 : 0;
    }
    if (session != NULL) {
        kvd_session_unref(session);
    }
    return stored;
}

/* All that it was is there, byte for byte. */
static void assert_whole(struct world *world, unsigned i)
{
    char name[8];

    name_of(i, name);
    struct kvd_session *session = kvt_cold_find(&world->rig, name);
    assert_non_null(session);
    kvt_cold_adopt(&world->models[i], session);
    assert_int_equal(kvd_session_length(session), TOKENS);
    assert_int_equal(kvt_cold_load(&world->rig, session), 0);
    assert_int_equal(kvt_model_check(&world->models[i], session), 0);
    kvd_session_unref(session);
}

static void world_kill_and_start(struct world *world)
{
    world->disk = kvt_cold_life_kill(&world->rig, world->disk);
    world_start(world);
}

static void world_fini(struct world *world)
{
    for (unsigned i = 0; i < world->count; i++) {
        kvt_model_fini(&world->models[i]);
    }
    kvt_cold_life_stop(&world->rig);
    kvd_fake_disk_destroy(world->disk);
}

/* New sessions are stored all the time; what is used last goes last. */
static void test_full_tier_gives_up_what_was_used_least(void **state)
{
    struct world world;
    unsigned held = 0;

    (void)state;
    world_init(&world);
    sessions_add(&world, 4, true);
    assert_int_equal(metric(&world, KVD_METRIC_cold_blocks_given_up), 0);
    sessions_add(&world, SESSIONS - 4, true);
    assert_true(metric(&world, KVD_METRIC_cold_blocks_given_up) > BLOCKS);
    assert_true(metric(&world, KVD_METRIC_cold_sessions_given_up) > 1);
    assert_int_equal(blocks_held(&world, 0), 0);
    for (unsigned i = 0; i + 1 < SESSIONS; i++) {
        assert_true(blocks_held(&world, i) <= blocks_held(&world, i + 1));
        held += blocks_held(&world, i) == BLOCKS ? 1 : 0;
    }
    assert_true(held >= 3);
    for (unsigned i = SESSIONS - 3; i < SESSIONS; i++) {
        assert_whole(&world, i);
    }
    /* Whoever asks for what is gone hears it. */
    struct kvd_session *session = kvt_cold_find(&world.rig, "s00");
    assert_int_equal(kvt_cold_load(&world.rig, session), KVARN_EMISS);
    kvd_session_unref(session);
    world_fini(&world);
}

/* A use counts: the session that was made first outlives those made after it. */
static void test_use_keeps_a_session_in_the_tier(void **state)
{
    struct world world;
    uint64_t freed = 0;

    (void)state;
    world_init(&world);
    for (unsigned i = 0; i < SESSIONS; i++) {
        session_add(&world, true);
        struct kvd_session *session = kvt_cold_find(&world.rig, "s00");
        kvd_io_fake_advance_ms(world.rig.fake, 1);
        kvd_lifetime_touch(session);
        kvd_session_unref(session);
    }
    assert_int_equal(blocks_held(&world, 1), 0);
    assert_whole(&world, 0);
    struct kvd_session *session = kvt_cold_find(&world.rig, "s00");
    (void)kvd_session_evict(session, BLOCKS, &freed);
    kvd_session_unref(session);
    world_fini(&world);
}

/* Rows that are not sealed are in memory: what is before them goes all the same, and they stay. */
static void test_tails_in_memory_do_not_keep_what_is_before_them(void **state)
{
    struct world world;
    char name[8];

    (void)state;
    world_init(&world);
    world.tail_tokens = 20;
    sessions_add(&world, 4, true);
    world.tail_tokens = 0;
    sessions_add(&world, SESSIONS - 4, true);
    for (unsigned i = 0; i < 4; i++) {
        name_of(i, name);
        struct kvd_session *session = kvt_cold_find(&world.rig, name);
        assert_int_equal(kvd_session_block(session, 0)->state, KVD_BLOCK_MISSING);
        assert_int_equal(kvd_session_block(session, BLOCKS)->state, KVD_BLOCK_RESIDENT);
        assert_int_equal(kvd_session_length(session), TOKENS + 20);
        kvt_cold_append(&world.rig, session, NULL, 10, 1); /* appends go on */
        kvd_session_unref(session);
    }
    assert_whole(&world, SESSIONS - 1);
    world_fini(&world);
}

static void test_p7_pinned_session_gives_nothing_up(void **state)
{
    struct world world;
    struct kvd_failure why = {0};

    (void)state;
    world_init(&world);
    session_add(&world, true);
    struct kvd_session *session = kvt_cold_find(&world.rig, "s00");
    assert_int_equal(kvd_lifetime_pin(session, 1000000, &why), 0);
    sessions_add(&world, SESSIONS - 1, true);
    assert_int_equal(blocks_held(&world, 1), 0);
    assert_whole(&world, 0);
    kvd_lifetime_unpin(session);
    kvd_session_unref(session);
    world_fini(&world);
}

/* A crash finds each session as it was or as it became, and never a map without its pages. */
static void test_s23_crash_after_giving_up_brings_nothing_wrong_back(void **state)
{
    struct world world;
    unsigned whole = 0;

    (void)state;
    world_init(&world);
    sessions_add(&world, SESSIONS, true);
    uint32_t stored[SESSIONS];
    for (unsigned i = 0; i < SESSIONS; i++) {
        stored[i] = blocks_stored(&world, i);
    }
    world_kill_and_start(&world);
    for (unsigned i = 0; i < SESSIONS; i++) {
        char name[8];
        name_of(i, name);
        struct kvd_session *session = kvt_cold_find(&world.rig, name);
        uint64_t length = session == NULL ? 0 : kvd_session_length(session);
        assert_int_equal(length, (uint64_t)stored[i] * 64);
        if (session != NULL) {
            kvt_cold_adopt(&world.models[i], session);
            (void)kvt_model_truncate(&world.models[i], length);
            assert_int_equal(kvt_cold_load(&world.rig, session), 0);
            assert_int_equal(kvt_model_check(&world.models[i], session), 0);
            whole += length == TOKENS ? 1 : 0;
            kvd_session_unref(session);
        }
    }
    assert_true(whole >= 3);
    world_fini(&world);
}

/* Memory is larger than the tier: the last used are on disk, the others in memory alone. */
static void test_tier_smaller_than_memory_keeps_the_last_used(void **state)
{
    struct world world;
    uint64_t freed = 0;

    (void)state;
    world_init(&world);
    sessions_add(&world, SESSIONS, false);
    assert_int_equal(blocks_stored(&world, SESSIONS - 1), BLOCKS);
    assert_int_equal(blocks_stored(&world, 0), 0);
    assert_int_equal(blocks_held(&world, 0), BLOCKS);
    uint64_t written = metric(&world, KVD_METRIC_cold_blocks_written);
    spill(&world);
    /* Nobody used them: nobody is written again. */
    assert_int_equal(metric(&world, KVD_METRIC_cold_blocks_written), written);
    assert_whole(&world, 0);

    /* It may leave memory, with loss; one that is used is written again. */
    struct kvd_session *session = kvt_cold_find(&world.rig, "s01");
    assert_int_equal(kvd_session_evict(session, BLOCKS, &freed), BLOCKS);
    kvd_session_unref(session);
    assert_int_equal(blocks_held(&world, 1), 0);
    session = kvt_cold_find(&world.rig, "s02");
    kvd_io_fake_advance_ms(world.rig.fake, 1);
    kvd_lifetime_touch(session);
    kvd_cold_note(session);
    spill(&world);
    assert_int_equal(blocks_stored(&world, 2), BLOCKS);
    kvd_session_unref(session);
    world_fini(&world);
}

/* What says that it is given up fails: nothing is, and it is tried again. */
static void test_p5_failure_gives_nothing_up(void **state)
{
    struct world world;

    (void)state;
    world_init(&world);
    while (metric(&world, KVD_METRIC_cold_blocks_given_up) == 0 && world.count < SESSIONS - 6) {
        session_add(&world, true);
    }
    uint64_t before = metric(&world, KVD_METRIC_cold_blocks_given_up);
    assert_true(before > 0);
    kvd_fake_disk_fail_rate(world.disk, 300, KVARN_EIO, 7);
    for (unsigned i = 0; i < 3; i++) {
        char name[8];
        name_of(world.count, name);
        struct kvd_session *session = kvt_session_open(&world.rig, name, 0);
        kvt_model_init(&world.models[world.count++], session, TOKENS + 64);
        kvt_cold_append(&world.rig, session, &world.models[world.count - 1], TOKENS, 100 + i);
        for (unsigned turn = 0; turn < 300; turn++) {
            kvd_io_fake_advance_ms(world.rig.fake, 10);
            kvt_rig_settle(&world.rig);
        }
        kvd_session_unref(session);
    }
    kvd_fake_disk_fail_rate(world.disk, 0, 0, 0);
    spill(&world);
    sessions_add(&world, 2, true);
    assert_whole(&world, world.count - 1);
    assert_true(metric(&world, KVD_METRIC_cold_blocks_given_up) > before);
    world_fini(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_full_tier_gives_up_what_was_used_least),
        cmocka_unit_test(test_use_keeps_a_session_in_the_tier),
        cmocka_unit_test(test_tails_in_memory_do_not_keep_what_is_before_them),
        cmocka_unit_test(test_p7_pinned_session_gives_nothing_up),
        cmocka_unit_test(test_s23_crash_after_giving_up_brings_nothing_wrong_back),
        cmocka_unit_test(test_tier_smaller_than_memory_keeps_the_last_used),
        cmocka_unit_test(test_p5_failure_gives_nothing_up),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
