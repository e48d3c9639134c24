/*
 * Tests of server/cold/cold_tombstone.c: what ended does not come back, whenever the power fails,
 * and who waits for that is told the truth.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "server/evict/session_evict.h"
#include "tests/support/cold_rig.h"
#include "tests/support/session_cold.h"

#define TURNS_MAX 500

struct world {
    struct kvd_fake_disk *disk;
    struct kvt_rig rig;
};

static void world_init(struct world *world)
{
    world->disk = kvd_fake_disk_create();
    kvt_rig_init(&world->rig, &(struct kvt_rig_options){.disk = world->disk});
}

static void world_fini(struct world *world)
{
    kvt_cold_life_stop(&world->rig);
    kvd_fake_disk_destroy(world->disk);
}

/* A session of four blocks, on disk. */
static struct kvd_session *stored_session(struct world *world, const char *name)
{
    struct kvd_session *session = kvt_session_open(&world->rig, name, 0);

    kvt_cold_append(&world->rig, session, NULL, 256, 1);
    kvt_cold_spill(&world->rig);
    return session;
}

/* Tokens of a session that a start would find if the power failed now; -1: no such session. */
static int64_t found_after_cut(const struct world *world, const char *name, uint64_t seed)
{
    struct world cut = {
        .disk = kvd_fake_disk_cut(world->disk, kvd_fake_disk_op_count(world->disk), seed)};
    int64_t length = -1;

    kvt_rig_init(&cut.rig, &(struct kvt_rig_options){.disk = cut.disk, .life = 1 + seed});
    struct kvd_session *session = kvt_cold_find(&cut.rig, name);
    if (session != NULL) {
        length = (int64_t)kvd_session_length(session);
        kvd_session_unref(session);
    }
    world_fini(&cut);
    return length;
}

static void assert_gone(const struct world *world, const char *name)
{
    for (uint64_t seed = 1; seed < 3; seed++) {
        assert_int_equal(found_after_cut(world, name, seed), -1);
    }
}

struct outcome {
    unsigned count;
    int err;
};

static void outcome_cb(void *ctx, int err)
{
    struct outcome *outcome = ctx;

    outcome->count++;
    outcome->err = err;
}

/* Turns, with time passing, until it has happened. */
static void wait_for(struct world *world, const unsigned *count)
{
    for (unsigned i = 0; i < TURNS_MAX && *count == 0; i++) {
        (void)kvd_io_fake_turn(world->rig.fake);
        kvd_io_fake_advance_ms(world->rig.fake, 1);
    }
    assert_int_equal(*count, 1);
}

/* Each of two who drop it hears of it when it is durable, not before. */
static void test_s23_both_of_two_drops_wait(void **state)
{
    (void)state;
    struct world world;
    struct outcome first = {0}, second = {0};
    world_init(&world);
    struct kvd_session *session = stored_session(&world, "s");
    kvd_io_fake_hold_files(world.rig.fake, true);
    assert_int_equal(kvd_cold_bury(session, outcome_cb, &first), 0);
    kvt_rig_settle(&world.rig);
    assert_int_equal(kvd_cold_bury(session, outcome_cb, &second), 0);
    kvt_rig_settle(&world.rig);
    assert_int_equal(first.count + second.count, 0);
    kvd_io_fake_hold_files(world.rig.fake, false);
    wait_for(&world, &first.count);
    assert_int_equal(first.err, 0);
    assert_gone(&world, "s");
    wait_for(&world, &second.count);
    assert_int_equal(second.err, 0);
    kvt_session_drop(&world.rig, session);
    world_fini(&world);
}

/* A disk that fails: who waits is told, and the session is on disk as it was. */
static void test_s23_a_drop_that_failed_leaves_the_session(void **state)
{
    (void)state;
    struct world world;
    struct outcome drop = {0};
    world_init(&world);
    struct kvd_session *session = stored_session(&world, "s");
    kvd_fake_disk_fail(world.disk, KVD_FILE_WRITE, 0, 1, KVARN_EIO);
    assert_int_equal(kvd_cold_bury(session, outcome_cb, &drop), 0);
    wait_for(&world, &drop.count);
    assert_int_equal(drop.err, KVARN_EIO);
    kvt_cold_spill(&world.rig); /* the tombstone may be there: what stands above it is put */
    assert_int_equal(found_after_cut(&world, "s", 1), 256);
    kvt_cold_append(&world.rig, session, NULL, 64, 2);
    kvt_cold_spill(&world.rig);
    assert_int_equal(found_after_cut(&world, "s", 1), 320);
    drop = (struct outcome){0};
    assert_int_equal(kvd_cold_bury(session, outcome_cb, &drop), 0);
    wait_for(&world, &drop.count);
    assert_int_equal(drop.err, 0);
    assert_gone(&world, "s");
    kvt_session_drop(&world.rig, session);
    world_fini(&world);
}

/* Nobody waits, and the tier had no memory for it: it is put again. */
static void test_s23_a_tombstone_that_is_refused_is_put_again(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    struct kvd_session *session = stored_session(&world, "s");
    struct kvd_budget *budget = &world.rig.service.budget;
    uint64_t rest = budget->limit_bytes - budget->used_bytes;
    assert_int_equal(kvd_budget_charge(budget, KVD_BUDGET_STAGING, rest), 0);
    kvt_session_drop(&world.rig, session);
    kvd_budget_release(budget, KVD_BUDGET_STAGING, rest);
    kvt_cold_spill(&world.rig);
    assert_gone(&world, "s");
    world_fini(&world);
}

/* One that expires stays until that is on disk. */
static void test_s23_what_expired_does_not_come_back(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    struct kvd_session *session = stored_session(&world, "s");
    kvd_lifetime_set_ttl(session, 1000);
    kvd_io_fake_hold_files(world.rig.fake, true);
    kvd_io_fake_advance_ms(world.rig.fake, 1500);
    kvt_rig_settle(&world.rig);
    assert_false(session->is_dropped);
    kvd_io_fake_hold_files(world.rig.fake, false);
    for (unsigned i = 0; i < TURNS_MAX && !session->is_dropped; i++) {
        assert_int_equal(world.rig.service.metrics.values[KVD_METRIC_sessions_expired], 0);
        (void)kvd_io_fake_turn(world.rig.fake);
    }
    assert_true(session->is_dropped);
    assert_int_equal(world.rig.service.metrics.values[KVD_METRIC_sessions_expired], 1);
    assert_gone(&world, "s");
    kvd_session_unref(session);
    world_fini(&world);
}

/* Without the disk it is tried again, and the session can be used meanwhile. */
static void test_s23_what_cannot_expire_stays(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    struct kvd_session *session = stored_session(&world, "s");
    kvd_lifetime_set_ttl(session, 1000);
    kvd_fake_disk_fail(world.disk, KVD_FILE_WRITE, 0, 1, KVARN_EIO);
    kvd_io_fake_advance_ms(world.rig.fake, 1500);
    kvt_rig_settle(&world.rig);
    assert_false(session->is_dropped);
    for (unsigned i = 0; i < 20 && !session->is_dropped; i++) {
        kvd_io_fake_advance_ms(world.rig.fake, 200);
        kvt_rig_settle(&world.rig);
    }
    assert_true(session->is_dropped);
    assert_gone(&world, "s");
    kvd_session_unref(session);
    world_fini(&world);
}

/*
 * A session of which only pages are on disk is exchanged, which takes as long as the tombstone of
 * the other: nothing that says what it held may be put meanwhile.
 */
static void test_s23_what_was_exchanged_does_not_come_back(void **state)
{
    (void)state;
    for (unsigned late_ms = 0; late_ms <= 50; late_ms += 50) {
        struct world world;
        world_init(&world);
        struct kvd_session *a = stored_session(&world, "a");
        struct kvd_session *b = kvt_session_open(&world.rig, "b", 0);
        kvt_cold_append(&world.rig, b, NULL, 192, 2);
        kvd_io_fake_advance_ms(world.rig.fake, late_ms);
        kvt_rig_settle(&world.rig);
        kvd_io_fake_hold_files(world.rig.fake, true);
        const struct kvd_reorder_member members[] = {
            {.session = a, .epoch = a->epoch, .source_idx = 1},
            {.session = b, .epoch = b->epoch, .source_idx = 0}};
        struct kvt_reorder reorder = {.members = members, .count = 2};
        assert_int_equal(kvt_reorder_begin(&world.rig, &reorder), 0);
        for (unsigned i = 0; i < 10; i++) {
            kvt_rig_settle(&world.rig);
            kvd_io_fake_advance_ms(world.rig.fake, 20);
        }
        kvd_io_fake_hold_files(world.rig.fake, false);
        wait_for(&world, &reorder.outcome.done_count);
        assert_int_equal(reorder.outcome.why.err, 0);
        for (uint64_t seed = 1; seed < 3; seed++) {
            assert_int_not_equal(found_after_cut(&world, "a", seed), 256);
            assert_int_not_equal(found_after_cut(&world, "b", seed), 192);
        }
        kvt_cold_spill(&world.rig);
        assert_int_equal(found_after_cut(&world, "a", 0), 192);
        assert_int_equal(found_after_cut(&world, "b", 0), 256);
        kvd_session_unref(a);
        kvd_session_unref(b);
        world_fini(&world);
    }
}

/* A client that gives up while its exchange is being recorded: it happens all the same. */
static void test_an_exchange_that_is_being_recorded_cannot_be_cancelled(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    struct kvd_session *a = stored_session(&world, "a");
    struct kvd_session *b = stored_session(&world, "b");
    const struct kvd_reorder_member members[] = {{.session = a, .epoch = a->epoch, .source_idx = 0},
        {.session = b, .epoch = b->epoch, .source_idx = 0}};
    struct kvt_reorder reorder = {.members = members, .count = 2};
    kvd_io_fake_hold_files(world.rig.fake, true);
    assert_int_equal(kvt_reorder_begin(&world.rig, &reorder), 0);
    kvt_rig_settle(&world.rig);
    assert_int_equal(reorder.outcome.done_count, 0);
    kvd_reorder_cancel(reorder.token, KVARN_ECANCELLED);
    kvd_io_fake_hold_files(world.rig.fake, false);
    wait_for(&world, &reorder.outcome.done_count);
    assert_int_equal(reorder.outcome.why.err, 0);
    kvd_session_unref(a);
    kvd_session_unref(b);
    world_fini(&world);
}

/*
 * A fork of less than all is a copy that is cut, which may have to wait for a block: nothing is on
 * disk of the copy before.
 */
static void test_s23_a_fork_is_not_stored_before_it_is_cut(void **state)
{
    (void)state;
    struct world world;
    uint64_t freed = 0;
    world_init(&world);
    struct kvd_session *parent = stored_session(&world, "s");
    assert_int_equal(kvd_session_evict(parent, UINT32_MAX, &freed), 4);
    kvd_io_fake_hold_files(world.rig.fake, true);
    struct kvt_fork fork = {.parent = parent, .epoch = parent->epoch, .length = 200, .name = "f"};
    assert_int_equal(kvt_fork_begin(&world.rig, &fork), 0);
    for (unsigned i = 0; i < 10; i++) {
        kvt_rig_settle(&world.rig);
        kvd_io_fake_advance_ms(world.rig.fake, 20);
    }
    assert_int_equal(fork.outcome.done_count, 0);
    kvd_io_fake_hold_files(world.rig.fake, false);
    for (unsigned i = 0; i < 20; i++) {
        (void)kvd_io_fake_turn(world.rig.fake);
        assert_int_not_equal(found_after_cut(&world, "f", 1), 256);
    }
    kvt_cold_spill(&world.rig);
    assert_int_equal(fork.outcome.why.err, 0);
    assert_int_equal(found_after_cut(&world, "f", 0), 192);
    kvd_session_unref(fork.child);
    kvd_session_unref(parent);
    world_fini(&world);
}

/* What a tier tells of. */
static void told_cb(void *ctx, struct kvd_cold_record *record, const struct kvd_cold_info *info)
{
    unsigned *told = ctx;

    (void)record;
    told[info->type]++;
}

static void put_cb(
    void *ctx, uint64_t id, uint64_t version, int err, struct kvd_cold_record *record)
{
    (void)id;
    (void)version;
    (void)record;
    assert_int_equal(err, 0);
    ++*(unsigned *)ctx;
}

/*
 * A large map is still being hashed when the tombstone is put, so that it comes behind it in the
 * file: by its sequence it is below, and nothing of the session is told of, at no time after.
 */
static void test_s23_a_map_that_a_tombstone_overtook_is_dead(void **state)
{
    (void)state;
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvd_cold_segment_options options = kvt_cold_options();
    struct kvt_cold_rig rig;
    unsigned before = 0, after = 0, tried = 0;
    options.segment_bytes = 256 << 10;
    options.limit_bytes = 16 * options.segment_bytes;
    kvt_cold_start(&rig, disk, &options, 1);
    assert_int_equal(rig.err, 0);
    const struct kvt_cold_want wants[] = {
        {.type = KVD_COLD_SESSION, .id = 5, .version = 1, .bytes = 0, .done = put_cb},
        {.type = KVD_COLD_MAP, .id = 5, .version = 2, .bytes = 100 << 10, .done = put_cb},
        {.type = KVD_COLD_TOMBSTONE, .id = 5, .flags = KVD_COLD_BARRIER, .done = put_cb}};
    for (unsigned i = 0; i < 9; i++) {
        struct kvt_cold_want want = {.type = KVD_COLD_PAGE,
            .id = 10 + i,
            .bytes = 100 << 10, /* hashed one a turn, before the map */
            .done = put_cb};
        want = i < 6 ? want : wants[i - 6];
        want.ctx = want.type == KVD_COLD_TOMBSTONE ? &after : &before;
        assert_int_equal(kvt_cold_put(&rig, &want), 0);
    }
    for (unsigned i = 0; i < TURNS_MAX && (after == 0 || before < 8); i++) {
        (void)kvd_io_fake_turn(rig.fake);
        for (uint64_t seed = 0; seed < 4 && after == 1; seed++) {
            struct kvd_fake_disk *left =
                kvd_fake_disk_cut(disk, kvd_fake_disk_op_count(disk), seed);
            struct kvt_cold_rig found;
            unsigned told[KVD_COLD_TYPE_COUNT] = {0};
            kvt_cold_start(&found, left, &options, 2);
            assert_int_equal(found.err, 0);
            found.cold->ops->each(found.cold, told_cb, told);
            assert_int_equal(told[KVD_COLD_SESSION], 0);
            assert_int_equal(told[KVD_COLD_MAP], 0);
            kvt_cold_stop(&found);
            kvd_fake_disk_destroy(left);
            tried++;
        }
    }
    assert_int_equal(before, 8);
    assert_true(tried > 4); /* the map became durable after the tombstone */
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_s23_both_of_two_drops_wait),
        cmocka_unit_test(test_s23_a_drop_that_failed_leaves_the_session),
        cmocka_unit_test(test_s23_a_tombstone_that_is_refused_is_put_again),
        cmocka_unit_test(test_s23_what_expired_does_not_come_back),
        cmocka_unit_test(test_s23_what_cannot_expire_stays),
        cmocka_unit_test(test_s23_what_was_exchanged_does_not_come_back),
        cmocka_unit_test(test_an_exchange_that_is_being_recorded_cannot_be_cancelled),
        cmocka_unit_test(test_s23_a_fork_is_not_stored_before_it_is_cut),
        cmocka_unit_test(test_s23_a_map_that_a_tombstone_overtook_is_dead),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
