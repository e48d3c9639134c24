/*
 * Tests of server/cold/cold_tail.c: rows that are not sealed leave memory and come back, and what a
 * crash, a failing disk or a client does meanwhile.
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
#define TOKENS_MAX 1024

struct world {
    struct kvd_fake_disk *disk;
    struct kvt_rig rig;
    struct kvd_session *session; /* "s" */
    struct kvt_model model;      /* what it holds */
    uint64_t life;
};

static void world_start(struct world *world)
{
    kvt_rig_init(
        &world->rig, &(struct kvt_rig_options){.disk = world->disk, .life = ++world->life});
}

/* A session of so many tokens, whose blocks are stored. */
static void world_init(struct world *world, uint32_t token_count)
{
    *world = (struct world){.disk = kvd_fake_disk_create()};
    world_start(world);
    world->session = kvt_session_open(&world->rig, "s", 0);
    kvt_model_init(&world->model, world->session, TOKENS_MAX);
    kvt_cold_append(&world->rig, world->session, &world->model, token_count, 1);
    kvt_cold_spill(&world->rig);
}

/* The same session, in the life that begins now. */
static void world_find(struct world *world)
{
    world->session = kvt_cold_find(&world->rig, "s");
    assert_non_null(world->session);
    kvt_cold_adopt(&world->model, world->session);
}

static void world_stop_and_start(struct world *world)
{
    kvd_session_unref(world->session);
    kvt_cold_life_stop(&world->rig);
    kvd_fake_disk_close_all(world->disk);
    world_start(world);
    world_find(world);
}

static void world_kill_and_start(struct world *world)
{
    kvd_session_unref(world->session);
    world->disk = kvt_cold_life_kill(&world->rig, world->disk);
    world_start(world);
    world_find(world);
}

static void world_fini(struct world *world)
{
    kvd_session_unref(world->session);
    kvt_model_fini(&world->model);
    kvt_cold_life_stop(&world->rig);
    kvd_fake_disk_destroy(world->disk);
}

static uint64_t metric(const struct world *world, enum kvd_metric which)
{
    return world->rig.service.metrics.values[which];
}

/* All that the session should hold is there, byte for byte. */
static void assert_holds(struct world *world)
{
    assert_int_equal(kvd_session_length(world->session), world->model.layers[0].length);
    assert_int_equal(kvt_cold_load(&world->rig, world->session), 0);
    assert_int_equal(kvt_model_check(&world->model, world->session), 0);
    assert_int_equal(world->rig.service.cold.leaving_bytes, 0);
}

static void assert_tail_is_out(const struct world *world)
{
    uint32_t count = kvd_session_block_count(world->session);

    assert_int_equal(kvd_session_block(world->session, count - 1)->state, KVD_BLOCK_COLD);
    assert_int_equal(world->session->missing_last, count);
    assert_int_equal(world->rig.service.pages.classes[KVD_PAGE_TAIL].pages, 0);
    assert_int_equal(world->rig.service.cold.leaving_bytes, 0);
}

/* Out, and wait until it is. */
static void tail_out(struct world *world)
{
    assert_true(kvd_cold_tail_out(world->session) > 0);
    kvt_cold_spill(&world->rig);
    assert_tail_is_out(world);
}

static void append(struct world *world, uint32_t token_count, uint64_t seed)
{
    kvt_cold_append(&world->rig, world->session, &world->model, token_count, seed);
}

static void cut(struct world *world, uint64_t length)
{
    assert_int_equal(kvt_truncate_now(&world->rig, world->session, length), 0);
    (void)kvt_model_truncate(&world->model, length);
}

/* 3 sealed blocks and 8 rows: those go, and no more; then they come back when they are needed. */
static void test_a_tail_goes_out_and_comes_back(void **state)
{
    (void)state;
    struct world world;
    world_init(&world, 200);
    uint64_t pages = world.rig.service.pages.classes[KVD_PAGE_TILES].pages;
    tail_out(&world);
    assert_int_equal(world.session->missing_first, 3);
    assert_int_equal(world.rig.service.pages.classes[KVD_PAGE_TILES].pages, pages - 3);
    assert_int_equal(metric(&world, KVD_METRIC_cold_tails_written), 1);
    assert_int_equal(kvd_cold_tail_out(world.session), 0);
    assert_holds(&world);
    assert_int_equal(metric(&world, KVD_METRIC_cold_tails_loaded), 1);
    append(&world, 20, 2);
    assert_holds(&world);
    tail_out(&world);
    append(&world, 30, 3); /* waits for it */
    append(&world, 100, 4);
    assert_holds(&world);
    world_fini(&world);
}

/* What is shorter than a sink is a tail too. */
static void test_a_sink_that_is_not_full_goes_with_it(void **state)
{
    (void)state;
    struct world world;
    world_init(&world, 5);
    tail_out(&world);
    assert_int_equal(world.rig.service.pages.classes[KVD_PAGE_SINK].pages, 0);
    world_kill_and_start(&world);
    assert_holds(&world);
    append(&world, 70, 2);
    assert_holds(&world);
    world_fini(&world);
}

/* Layers at different lengths: what the one that is ahead has sealed is in the tail. */
static void test_layers_that_are_ahead_go_too(void **state)
{
    (void)state;
    struct world world;
    world_init(&world, 100);
    struct kvt_append ahead = kvt_append_of(world.session, 150, 7);
    ahead.layer_count = 1;
    assert_int_equal(kvt_append_begin(&world.rig, &ahead), 0);
    kvt_rig_settle(&world.rig);
    assert_int_equal(ahead.outcome.why.err, 0);
    kvt_model_append(&world.model, &ahead);
    kvt_append_fini(&ahead);
    kvt_cold_spill(&world.rig);
    tail_out(&world);
    world_kill_and_start(&world);
    assert_int_equal(world.session->layers[0].length, 250);
    assert_int_equal(world.session->layers[1].length, 100);
    assert_int_equal(kvt_cold_load(&world.rig, world.session), 0);
    assert_int_equal(kvt_model_check(&world.model, world.session), 0);
    world_fini(&world);
}

/* A crash after the tail is out loses nothing. */
static void test_s23_a_crash_keeps_a_tail_that_is_out(void **state)
{
    (void)state;
    struct world world;
    world_init(&world, 200);
    tail_out(&world);
    world_kill_and_start(&world);
    assert_holds(&world);
    assert_true(kvd_tail_is_stored(world.session)); /* it need not be written again */
    uint64_t freed = 0;
    assert_int_equal(kvd_session_evict_tail(world.session, &freed), 1);
    assert_true(freed > 0);
    assert_int_equal(metric(&world, KVD_METRIC_cold_tails_written), 0);
    assert_holds(&world);
    world_fini(&world);
}

static void test_s23_a_clean_stop_keeps_a_tail_that_is_out(void **state)
{
    (void)state;
    struct world world;
    world_init(&world, 200);
    tail_out(&world);
    uint64_t epoch = world.session->epoch;
    world_stop_and_start(&world);
    assert_int_equal(world.session->epoch, epoch);
    assert_holds(&world);
    world_fini(&world);
}

/* Used while it was written: the rows stay, and may go at once the next time. */
static void test_a_session_in_use_keeps_its_rows(void **state)
{
    (void)state;
    struct world world;
    world_init(&world, 200);
    kvd_io_fake_hold_files(world.rig.fake, true);
    assert_true(kvd_cold_tail_out(world.session) > 0);
    kvt_rig_settle(&world.rig);
    kvd_io_fake_advance_ms(world.rig.fake, 1);
    kvd_lifetime_touch(world.session);
    kvd_io_fake_hold_files(world.rig.fake, false);
    kvt_cold_spill(&world.rig);
    assert_false(kvd_session_has_missing(world.session));
    assert_true(kvd_tail_is_stored(world.session));
    assert_int_equal(world.rig.service.cold.leaving_bytes, 0);
    assert_holds(&world);
    world_fini(&world);
}

/* Appended to while it was written: given up, and what is found after a crash is what was once. */
static void test_s23_a_tail_that_was_added_to_is_given_up(void **state)
{
    (void)state;
    struct world world;
    world_init(&world, 200);
    kvd_io_fake_hold_files(world.rig.fake, true);
    assert_true(kvd_cold_tail_out(world.session) > 0);
    kvt_rig_settle(&world.rig);
    append(&world, 10, 2);
    kvd_io_fake_hold_files(world.rig.fake, false);
    kvt_cold_spill(&world.rig);
    assert_false(kvd_tail_is_stored(world.session));
    assert_false(kvd_session_has_missing(world.session));
    assert_int_equal(metric(&world, KVD_METRIC_cold_tails_written), 1);
    assert_holds(&world);
    world_kill_and_start(&world);
    (void)kvt_model_truncate(&world.model, 192);
    assert_holds(&world);
    world_fini(&world);
}

/* Rows that were added later are not in it. */
static void test_a_tail_has_the_rows_of_its_time(void **state)
{
    (void)state;
    struct world world;
    world_init(&world, 200);
    tail_out(&world);
    assert_holds(&world);
    append(&world, 20, 2); /* in the same pages */
    world_kill_and_start(&world);
    (void)kvt_model_truncate(&world.model, 200);
    assert_holds(&world);
    world_fini(&world);
}

/* A cut while the tail is out: at a block, within the rows, and back to sealed blocks. */
static void test_s23_what_was_cut_from_a_cold_tail_is_gone(void **state)
{
    (void)state;
    static const uint32_t lengths[] = {192, 195, 130, 64, 3, 0};
    for (unsigned i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        struct world world;
        world_init(&world, 200);
        tail_out(&world);
        cut(&world, lengths[i]);
        assert_holds(&world);
        append(&world, 9, 2);
        assert_holds(&world);
        if (kvd_cold_may_tail_out(world.session)) {
            tail_out(&world);
        }
        kvt_cold_spill(&world.rig);
        world_kill_and_start(&world);
        assert_holds(&world);
        world_fini(&world);
    }
}

/* Layers ahead, cut to a block: the record's rows behind the cut never come back (rule 23). */
static void test_s23_a_cold_tail_is_not_joined_with_newer_rows(void **state)
{
    (void)state;
    struct world world;
    world_init(&world, 180);
    struct kvt_append ahead = kvt_append_of(world.session, 30, 7);
    ahead.layer_count = 1;
    assert_int_equal(kvt_append_begin(&world.rig, &ahead), 0);
    kvt_rig_settle(&world.rig);
    kvt_model_append(&world.model, &ahead);
    kvt_append_fini(&ahead);
    kvt_cold_spill(&world.rig);
    tail_out(&world);
    cut(&world, 192); /* layer 0 from 210, the others have 180 and stay cold */
    ahead = kvt_append_of(world.session, 15, 8);
    ahead.layer_count = 1;
    assert_int_equal(kvt_append_begin(&world.rig, &ahead), 0);
    kvt_rig_settle(&world.rig);
    assert_int_equal(ahead.outcome.why.err, 0);
    kvt_model_append(&world.model, &ahead);
    kvt_append_fini(&ahead);
    world_stop_and_start(&world);
    assert_int_equal(world.session->layers[0].length, 207);
    assert_int_equal(kvt_cold_load(&world.rig, world.session), 0);
    assert_int_equal(kvt_model_check(&world.model, world.session), 0);
    world_fini(&world);
}

/* A fork of a session whose tail is out brings it back, and both go their ways. */
static void test_a_fork_has_a_tail_of_its_own(void **state)
{
    (void)state;
    struct world world;
    struct kvt_model model;
    world_init(&world, 200);
    tail_out(&world);
    struct kvt_fork fork = {.parent = world.session,
        .epoch = world.session->epoch,
        .length = UINT64_MAX,
        .name = "child"};
    assert_int_equal(kvt_fork_begin(&world.rig, &fork), 0);
    kvt_rig_settle(&world.rig);
    assert_int_equal(fork.outcome.why.err, 0);
    struct kvd_session *child = fork.child;
    kvt_model_copy(&model, &world.model);
    kvt_cold_append(&world.rig, child, &model, 5, 2);
    append(&world, 7, 3);
    assert_true(kvd_cold_tail_out(child) > 0);
    kvt_cold_spill(&world.rig);
    tail_out(&world);
    assert_int_equal(child->missing_first, 3);
    assert_holds(&world);
    assert_int_equal(kvt_cold_load(&world.rig, child), 0);
    assert_int_equal(kvt_model_check(&model, child), 0);
    kvd_session_unref(child);
    world_kill_and_start(&world);
    assert_holds(&world);
    child = kvt_cold_find(&world.rig, "child");
    assert_non_null(child);
    kvt_cold_adopt(&model, child);
    assert_int_equal(kvt_cold_load(&world.rig, child), 0);
    assert_int_equal(kvt_model_check(&model, child), 0);
    kvd_session_unref(child);
    kvt_model_fini(&model);
    world_fini(&world);
}

/* The power fails after each operation of the disk: what comes back is whole, and was so once. */
static void test_s23_the_map_is_put_after_its_tail(void **state)
{
    (void)state;
    struct world world;
    unsigned with_tail = 0, tried = 0;
    world_init(&world, 200);
    size_t first = kvd_fake_disk_op_count(world.disk);
    tail_out(&world);
    size_t last = kvd_fake_disk_op_count(world.disk);
    assert_true(last > first);
    for (size_t op = first; op <= last; op++) {
        for (uint64_t seed = 0; seed < 4; seed++, tried++) {
            struct world other = {.life = 100 + tried};
            other.disk = kvd_fake_disk_cut(world.disk, op, seed);
            world_start(&other);
            other.session = kvt_cold_find(&other.rig, "s");
            assert_non_null(other.session);
            kvt_model_copy(&other.model, &world.model);
            kvt_cold_adopt(&other.model, other.session);
            uint64_t length = kvd_session_length(other.session);
            assert_true(length == 192 || length == 200);
            (void)kvt_model_truncate(&other.model, length);
            assert_holds(&other);
            with_tail += length == 200;
            world_fini(&other);
            kvt_cold_adopt(&world.model, world.session);
        }
    }
    printf("%u crashes, %u after which the tail was there\n", tried, with_tail);
    assert_true(with_tail > 0 && with_tail < tried);
    world_fini(&world);
}

/* The disk fails the TAIL: nothing has happened, and when it is well again it goes. */
static void test_s23_a_tail_that_fails_leaves_no_map(void **state)
{
    (void)state;
    struct world world;
    world_init(&world, 200);
    kvd_fake_disk_fail(world.disk, KVD_FILE_WRITE, 0, 1, KVARN_EIO);
    assert_true(kvd_cold_tail_out(world.session) > 0);
    kvt_cold_spill(&world.rig);
    assert_false(kvd_session_has_missing(world.session));
    assert_false(kvd_tail_is_stored(world.session));
    assert_int_equal(world.rig.service.cold.leaving_bytes, 0);
    assert_holds(&world);
    assert_int_equal(kvd_cold_tail_out(world.session), 0); /* the tier rests */
    kvd_io_fake_advance_ms(world.rig.fake, 3000);
    tail_out(&world);
    world_kill_and_start(&world);
    assert_holds(&world);
    world_fini(&world);
}

/* Dropped while its tail is on its way out, or back: nothing of it is left. */
static void test_s23_a_drop_meets_a_tail_on_its_way(void **state)
{
    (void)state;
    for (unsigned way = 0; way < 2; way++) {
        struct world world;
        world_init(&world, 200);
        kvd_session_unref(kvt_session_open(&world.rig, "other", 0));
        if (way == 1) {
            tail_out(&world);
        }
        kvd_io_fake_hold_files(world.rig.fake, true);
        struct kvt_append more = kvt_append_of(world.session, 1, 2);
        if (way == 0) {
            assert_true(kvd_cold_tail_out(world.session) > 0);
        } else {
            assert_int_equal(kvt_append_begin(&world.rig, &more), 0);
        }
        kvt_rig_settle(&world.rig);
        kvd_session_table_drop(&world.rig.service.sessions, world.session);
        kvd_io_fake_hold_files(world.rig.fake, false);
        kvt_cold_spill(&world.rig);
        assert_int_equal(world.rig.service.cold.leaving_bytes, 0);
        if (way == 1) {
            assert_int_equal(more.outcome.done_count, 1);
            assert_int_equal(more.outcome.why.err, KVARN_ENOT_FOUND);
            kvt_append_fini(&more);
        }
        kvd_session_unref(world.session);
        kvt_model_fini(&world.model);
        world.disk = kvt_cold_life_kill(&world.rig, world.disk);
        world_start(&world);
        assert_null(kvt_cold_find(&world.rig, "s"));
        kvd_session_unref(kvt_session_open(&world.rig, "other", 0));
        kvt_cold_life_stop(&world.rig);
        kvd_fake_disk_destroy(world.disk);
    }
}

/* A waiter hears once, whether it goes well or not, and not at all when it has given up. */
struct waiting {
    struct kvd_cold_waiter waiter; /* first */
    unsigned told;
};

static void stored_cb(struct kvd_cold_waiter *waiter)
{
    ((struct waiting *)(void *)waiter)->told++;
}

static void test_who_waits_for_a_store_is_told_once(void **state)
{
    (void)state;
    struct world world;
    struct waiting list[3] = {{.told = 0}};
    world_init(&world, 200);
    for (unsigned i = 0; i < 3; i++) {
        list[i].waiter.stored_cb = stored_cb;
        assert_true(kvd_cold_store(world.session, &list[i].waiter));
    }
    kvd_cold_store_cancel(&world.rig.service.cold, &list[1].waiter);
    kvt_cold_spill(&world.rig);
    assert_int_equal(list[0].told, 1);
    assert_int_equal(list[1].told, 0);
    assert_int_equal(list[2].told, 1);
    assert_true(kvd_tail_is_stored(world.session));
    assert_false(kvd_session_has_missing(world.session)); /* what goes is the waiter's business */
    kvd_fake_disk_fail(world.disk, KVD_FILE_WRITE, 0, 1, KVARN_EIO);
    append(&world, 1, 2);
    assert_true(kvd_cold_store(world.session, &list[1].waiter));
    kvt_cold_spill(&world.rig);
    assert_int_equal(list[1].told, 1);
    assert_false(kvd_tail_is_stored(world.session));
    world_fini(&world);
}

/* Sessions of one layer of 8 heads of 128: 512 KiB of rows in a sink, and again in a tail. */
#define MANY 100

struct crowd {
    struct kvd_fake_disk *disk;
    struct kvt_rig rig;
    struct kvd_session *sessions[MANY];
    struct kvt_model models[MANY];
    unsigned count;
};

static void crowd_init(struct crowd *crowd, const char *policy, uint64_t memory_limit)
{
    *crowd = (struct crowd){.disk = kvd_fake_disk_create()};
    kvt_rig_init(&crowd->rig, &(struct kvt_rig_options){.disk = crowd->disk,
                                  .memory_limit = memory_limit,
                                  .shape = &kvt_shape_large,
                                  .evict_policy = policy});
}

/* As clients do: told to try again later, they do, while what is on its way to the disk goes. */
static void crowd_append(struct crowd *crowd, unsigned i, uint32_t token_count, uint64_t seed)
{
    struct kvt_append append;
    int err = KVARN_ERETRY_LATER;

    for (unsigned n = 0; n < 50 && err == KVARN_ERETRY_LATER; n++) {
        append = kvt_append_of(crowd->sessions[i], token_count, seed);
        assert_int_equal(kvt_append_begin(&crowd->rig, &append), 0);
        kvt_cold_spill(&crowd->rig);
        assert_int_equal(append.outcome.done_count, 1);
        err = append.outcome.why.err;
        if (err == 0) {
            kvt_model_append(&crowd->models[i], &append);
        }
        kvt_append_fini(&append);
    }
    assert_int_equal(err, 0);
}

/* All of it is read and right: waits while others are evicted for it. */
static void crowd_check(struct crowd *crowd, unsigned i)
{
    struct kvt_attend attend = kvt_attend_of(crowd->sessions[i], 0, 1, 3);

    attend.op.block_last = kvd_session_block_count(crowd->sessions[i]);
    kvt_attend_begin(&crowd->rig, &attend);
    for (unsigned n = 0; n < 200 && !attend.outcome.is_done; n++) {
        kvd_io_fake_advance_ms(crowd->rig.fake, 10);
        kvt_rig_settle(&crowd->rig);
    }
    assert_int_equal(attend.outcome.done_count, 1);
    assert_int_equal(attend.outcome.why.err, 0);
    kvt_attend_fini(&attend);
    assert_int_equal(kvt_model_check(&crowd->models[i], crowd->sessions[i]), 0);
    kvt_cold_spill(&crowd->rig);
}

/* One more, whose blocks are stored; it is used last then. */
static void crowd_add(struct crowd *crowd, uint32_t token_count)
{
    char name[16];
    unsigned i = crowd->count++;

    (void)snprintf(name, sizeof(name), "s%u", i);
    crowd->sessions[i] = kvt_session_open(&crowd->rig, name, 0);
    kvt_model_init(&crowd->models[i], crowd->sessions[i], 512);
    crowd_append(crowd, i, token_count, 1 + i);
}

static void crowd_fini(struct crowd *crowd)
{
    for (unsigned i = 0; i < crowd->count; i++) {
        kvt_model_fini(&crowd->models[i]);
        kvd_session_unref(crowd->sessions[i]);
    }
    kvt_cold_life_stop(&crowd->rig);
    kvd_fake_disk_destroy(crowd->disk);
}

/* What is idle gives its tail, oldest first and no more than is needed; nothing else goes. */
static void test_idle_tails_go_first(void **state)
{
    (void)state;
    struct crowd crowd;
    unsigned out = 0;
    crowd_init(&crowd, "lru", UINT64_C(97) << 20);
    while (crowd.count < 45) {
        crowd_add(&crowd, 300);
    }
    const uint64_t *metrics = crowd.rig.service.metrics.values;
    assert_int_equal(metrics[KVD_METRIC_evicted_blocks_watermark], 0);
    kvd_io_fake_advance_ms(crowd.rig.fake, 10001);
    while (crowd.count < 80) {
        crowd_add(&crowd, 300);
        assert_true(kvd_evictor_used_bytes(&crowd.rig.service) <= (UINT64_C(97) << 20) / 100 * 90);
    }
    for (unsigned i = 0; i < crowd.count; i++) {
        const struct kvd_session *session = crowd.sessions[i];
        bool is_out = kvd_session_has_missing(session);
        assert_true(!is_out || out == i);                    /* the oldest */
        assert_true(!is_out || session->missing_first == 2); /* nothing but the tail */
        out += is_out;
    }
    assert_true(out > 0 && out < 45);
    assert_int_equal(metrics[KVD_METRIC_evicted_blocks_watermark], out);
    assert_int_equal(metrics[KVD_METRIC_cold_tails_written], out);
    printf("%u tails of 45 idle sessions went\n", out);
    for (unsigned i = 0; i < crowd.count; i++) {
        crowd_check(&crowd, i);
    }
    crowd_fini(&crowd);
}

/* Far more sessions than there is memory, busy all the time: nobody is refused, and all are right.
 */
static void sessions_beyond_memory(const char *policy)
{
    struct crowd crowd;
    crowd_init(&crowd, policy, UINT64_C(20) << 20);
    while (crowd.count < 30) {
        crowd_add(&crowd, 350);
    }
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < crowd.count; i++) {
            kvd_io_fake_advance_ms(crowd.rig.fake, 20);
            crowd_append(&crowd, i, 1, 100 + round);
            assert_true(crowd.rig.service.budget.used_bytes <= UINT64_C(20) << 20);
        }
    }
    assert_int_equal(crowd.rig.service.cold.leaving_bytes, 0);
    for (unsigned i = 0; i < crowd.count; i++) {
        crowd_check(&crowd, i);
    }
    const uint64_t *metrics = crowd.rig.service.metrics.values;
    assert_true(metrics[KVD_METRIC_cold_tails_written] > crowd.count);
    assert_true(metrics[KVD_METRIC_cold_tails_loaded] > crowd.count);
    assert_int_equal(metrics[KVD_METRIC_misses_evicted], 0);
    crowd_fini(&crowd);
}

/* A disk that hangs has a few tails to write, however many are asked for; all come to it. */
static void test_tails_wait_for_their_turn(void **state)
{
    (void)state;
    struct crowd crowd;
    struct kvd_cold_stats stats;
    crowd_init(&crowd, "lru", UINT64_C(64) << 20);
    while (crowd.count < 20) {
        crowd_add(&crowd, 350);
    }
    const struct kvd_cold *tier = crowd.rig.service.cold.tier;
    kvd_io_fake_hold_files(crowd.rig.fake, true);
    for (unsigned i = 0; i < crowd.count; i++) {
        assert_true(kvd_cold_tail_out(crowd.sessions[i]) > 0);
    }
    for (unsigned i = 0; i < 20; i++) {
        kvd_io_fake_advance_ms(crowd.rig.fake, 100);
        kvt_rig_settle(&crowd.rig);
    }
    tier->ops->stats(tier, &stats);
    assert_true(stats.queued_bytes > UINT64_C(2) << 20);
    assert_true(stats.queued_bytes < UINT64_C(3) << 20);
    kvd_io_fake_hold_files(crowd.rig.fake, false);
    kvt_cold_spill(&crowd.rig);
    assert_int_equal(crowd.rig.service.metrics.values[KVD_METRIC_cold_tails_written], 20);
    assert_int_equal(crowd.rig.service.pages.classes[KVD_PAGE_TAIL].pages, 0);
    assert_int_equal(crowd.rig.service.cold.leaving_bytes, 0);
    for (unsigned i = 0; i < crowd.count; i++) {
        crowd_check(&crowd, i);
    }
    crowd_fini(&crowd);
}

static void test_more_sessions_than_memory(void **state)
{
    (void)state;
    sessions_beyond_memory("cost");
    sessions_beyond_memory("lru");
    sessions_beyond_memory("s3fifo");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_tail_goes_out_and_comes_back),
        cmocka_unit_test(test_a_sink_that_is_not_full_goes_with_it),
        cmocka_unit_test(test_layers_that_are_ahead_go_too),
        cmocka_unit_test(test_s23_a_crash_keeps_a_tail_that_is_out),
        cmocka_unit_test(test_s23_a_clean_stop_keeps_a_tail_that_is_out),
        cmocka_unit_test(test_a_session_in_use_keeps_its_rows),
        cmocka_unit_test(test_s23_a_tail_that_was_added_to_is_given_up),
        cmocka_unit_test(test_a_tail_has_the_rows_of_its_time),
        cmocka_unit_test(test_s23_what_was_cut_from_a_cold_tail_is_gone),
        cmocka_unit_test(test_s23_a_cold_tail_is_not_joined_with_newer_rows),
        cmocka_unit_test(test_a_fork_has_a_tail_of_its_own),
        cmocka_unit_test(test_s23_the_map_is_put_after_its_tail),
        cmocka_unit_test(test_s23_a_tail_that_fails_leaves_no_map),
        cmocka_unit_test(test_s23_a_drop_meets_a_tail_on_its_way),
        cmocka_unit_test(test_idle_tails_go_first),
        cmocka_unit_test(test_tails_wait_for_their_turn),
        cmocka_unit_test(test_more_sessions_than_memory),
        cmocka_unit_test(test_who_waits_for_a_store_is_told_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
