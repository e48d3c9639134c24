/*
 * Tests of server/cold/cold_reopen.c, and of what a stop must have written for it: lives of a
 * service over one fake disk.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/cold/cold_catalog.h"
#include "server/evict/session_evict.h"
#include "tests/support/cold_edit.h"
#include "tests/support/fake_disk.h"
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

static void flushed_cb(void *ctx)
{
    *(bool *)ctx = true;
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
 * The power fails after each operation since `first_op`, with one of two mixtures of what was not
 * synced (a life costs a tenth of a second under sanitizers): what comes back misses nothing, and
 * has one of two lengths.
 */
static void assert_whole_at_each_cut(
    const struct world *world, size_t first_op, uint64_t length_before, uint64_t length_after)
{
    size_t last_op = kvd_fake_disk_op_count(world->disk);
    unsigned seen_before = 0, seen_after = 0, tried = 0;

    for (size_t op = first_op; op <= last_op; op++) {
        uint64_t length = length_after_cut(world, op, 2 + op % 2);
        seen_before += length == length_before ? 1 : 0;
        seen_after += length == length_after ? 1 : 0;
        tried++;
        assert_int_equal(seen_before + seen_after, tried);
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

/* Loads that nobody waits for any more are in flight at the stop: it waits for them, and ends. */
static void test_a_stop_ends_though_loads_are_in_flight(void **state)
{
    (void)state;
    for (unsigned late = 0; late < 8; late++) {
        struct world world;
        world_init(&world);
        struct kvd_session *session = kvt_session_open(&world.rig, "s", 0);
        kvt_cold_append(&world.rig, session, NULL, 64 * 10, 1);
        kvd_session_unref(session);
        world_stop_and_start(&world);
        session = kvt_cold_find(&world.rig, "s");
        struct kvt_attend attend = kvt_attend_of(session, 0, 1, 3);
        attend.op.block_last = 10;
        kvt_attend_begin(&world.rig, &attend);
        assert_int_equal(world.rig.service.cold.loads, 10);
        kvd_session_op_cancel(&attend.op);
        kvt_attend_fini(&attend);
        kvd_session_unref(session);
        bool is_flushed = false;
        kvd_cold_flush(&world.rig.service.cold, flushed_cb, &is_flushed);
        /* All that the stop writes is done before the last reads are. */
        for (unsigned i = 0; i < late; i++) {
            (void)kvd_io_fake_turn(world.rig.fake);
        }
        kvd_io_fake_hold_files(world.rig.fake, true);
        kvt_rig_settle(&world.rig);
        kvd_io_fake_hold_files(world.rig.fake, false);
        for (unsigned i = 0; i < 1000 && !is_flushed; i++) {
            (void)kvd_io_fake_turn(world.rig.fake);
            kvd_io_fake_advance_ms(world.rig.fake, 10);
        }
        assert_true(is_flushed);
        kvt_rig_fini(&world.rig);
        kvd_fake_disk_destroy(world.disk);
    }
}

/* A session of four blocks and a tail, and its disk after a clean stop. */
static struct kvd_fake_disk *disk_with(const char *const *names, unsigned count)
{
    struct world world;

    world_init(&world);
    for (unsigned i = 0; i < count; i++) {
        struct kvd_session *session = kvt_session_open(&world.rig, names[i], 0);
        kvt_cold_append(&world.rig, session, NULL, 270 + i, 1 + i);
        kvt_cold_spill(&world.rig);
        kvd_session_unref(session);
    }
    kvt_cold_life_stop(&world.rig);
    kvd_fake_disk_close_all(world.disk);
    return world.disk;
}

/* What a callback makes of records of one type. */
struct edit {
    enum kvd_cold_type type;
    uint32_t tenant_id;     /* 0: as it is */
    uint64_t at, value;     /* of the head: 4 bytes there; 0: none */
    int head_cut, body_cut; /* bytes */
    bool is_left_out;
    unsigned skip; /* records of that type that stay as they are */
    unsigned changed;
};

static void edit_cb(void *ctx, struct kvt_cold_edit *record)
{
    struct edit *edit = ctx;
    uint32_t value = (uint32_t)edit->value;

    if (record->type != edit->type) {
        return;
    }
    if (edit->skip > 0) {
        edit->skip--;
        return;
    }
    record->tenant_id = edit->tenant_id != 0 ? edit->tenant_id : record->tenant_id;
    record->is_left_out = edit->is_left_out;
    if (edit->at > 0) {
        assert_true(edit->at + sizeof(value) <= record->head_bytes);
        memcpy(record->head + edit->at, &value, sizeof(value));
    }
    record->head_bytes -= (size_t)edit->head_cut;
    record->body_bytes -= (size_t)edit->body_cut;
    edit->changed++;
}

static void world_edit(struct world *world, struct edit *edit)
{
    static const char *const names[] = {"s"};
    struct kvd_fake_disk *disk = disk_with(names, 1);

    *world = (struct world){.disk = kvt_cold_edit(disk, edit_cb, edit), .life = 10};
    kvd_fake_disk_close_all(world->disk);
    kvd_fake_disk_destroy(disk);
    assert_true(edit->changed > 0);
    world_start(world);
}

/* What is read of a session that lost something is told to be missing. */
static void assert_misses(struct world *world, uint64_t length)
{
    struct kvd_session *session = kvt_cold_find(&world->rig, "s");

    assert_non_null(session);
    assert_int_equal(kvd_session_length(session), length);
    assert_int_equal(kvt_cold_load(&world->rig, session), KVARN_EMISS);
    kvd_session_unref(session);
    world_fini(world);
}

static void test_s14_a_page_of_another_tenant_is_missing(void **state)
{
    (void)state;
    struct world world;
    world_edit(&world, &(struct edit){.type = KVD_COLD_PAGE, .tenant_id = 2, .skip = 1});
    assert_misses(&world, 270);
}

static void test_s14_a_page_of_another_place_is_missing(void **state)
{
    (void)state;
    struct world world;
    /* The block's number follows the fingerprint. */
    world_edit(&world,
        &(struct edit){.type = KVD_COLD_PAGE, .at = KVD_FINGERPRINT_BYTES, .value = 3, .skip = 1});
    assert_misses(&world, 270);
}

static void test_s14_a_tail_of_another_tenant_is_missing(void **state)
{
    (void)state;
    struct world world;
    world_edit(&world, &(struct edit){.type = KVD_COLD_TAIL, .tenant_id = 2});
    assert_misses(&world, 270);
}

/* Whatever is wrong with what a session is made of: it is not there, at a later start either. */
static void test_s23_a_session_that_makes_no_sense_is_given_up(void **state)
{
    (void)state;
    const struct edit edits[] = {
        {.type = KVD_COLD_MAP, .tenant_id = 2}, {.type = KVD_COLD_MAP, .is_left_out = true},
        {.type = KVD_COLD_MAP, .head_cut = 1}, {.type = KVD_COLD_MAP, .body_cut = 16},
        {.type = KVD_COLD_MAP, .at = 28, .value = 2}, /* layers */
        {.type = KVD_COLD_MAP, .at = 28, .value = UINT32_MAX},
        {.type = KVD_COLD_MAP, .at = 40, .value = 100}, /* sealed blocks of layer 0 */
        {.type = KVD_COLD_MAP, .at = 44, .value = 100}, /* dropped blocks of layer 0 */
        {.type = KVD_COLD_SHAPE, .is_left_out = true}, {.type = KVD_COLD_SHAPE, .tenant_id = 2},
        {.type = KVD_COLD_SESSION, .tenant_id = 2}, {.type = KVD_COLD_SESSION, .head_cut = 1},
        {.type = KVD_COLD_SESSION, .at = KVD_FINGERPRINT_BYTES, .value = 77},     /* encoder */
        {.type = KVD_COLD_SESSION, .at = KVD_FINGERPRINT_BYTES + 4, .value = 65}, /* seal lag */
    };

    for (size_t i = 0; i < sizeof(edits) / sizeof(edits[0]); i++) {
        struct edit edit = edits[i];
        struct world world;
        world_edit(&world, &edit);
        assert_null(kvt_cold_find(&world.rig, "s"));
        assert_int_equal(world.rig.service.sessions.count, 0);
        kvt_cold_spill(&world.rig);
        world_stop_and_start(&world);
        assert_int_equal(world.rig.service.sessions.count, 0);
        struct kvd_cold_stats stats;
        world.rig.service.cold.tier->ops->stats(world.rig.service.cold.tier, &stats);
        assert_true(stats.records <= 2); /* its shape; its tombstone, until space is reclaimed */
        world_fini(&world);
    }
}

/* Of two sessions with one name the one that was made later is meant. */
static void test_of_two_with_one_name_the_later_comes_back(void **state)
{
    (void)state;
    static const char *const names[] = {"a", "b", "c", "d"};
    struct kvd_fake_disk *disk = disk_with(names, 4);
    struct edit edit = {.type = KVD_COLD_SESSION};
    struct world world = {.life = 10};

    /* The last four bytes: three of the name's length, which are 0, and the name. */
    edit.at = KVD_FINGERPRINT_BYTES + 9;
    edit.value = (uint64_t)'s' << 24;
    world.disk = kvt_cold_edit(disk, edit_cb, &edit);
    kvd_fake_disk_destroy(disk);
    kvd_fake_disk_close_all(world.disk);
    world_start(&world);
    assert_int_equal(world.rig.service.sessions.count, 1);
    struct kvd_session *session = kvt_cold_find(&world.rig, "s");
    assert_non_null(session);
    assert_int_equal(kvd_session_length(session), 270 + 3);
    kvd_session_unref(session);
    world_fini(&world);
}

/* The segments of a disk, by name. */
struct segments {
    char paths[8][64];
    unsigned count;
};

static void segment_add(void *ctx, const char *path)
{
    struct segments *segments = ctx;

    if (strstr(path, ".kvs") != NULL) {
        assert_true(segments->count < 8);
        (void)snprintf(segments->paths[segments->count++], sizeof(segments->paths[0]), "%s", path);
    }
}

/* A segment that cannot be read may hide a tombstone: nothing comes back, and that is told. */
static void test_s23_a_suspect_start_tells_what_it_lost(void **state)
{
    (void)state;
    static const char *const names[] = {"a", "b", "c"};
    struct world world = {.disk = disk_with(names, 3), .life = 10};
    struct segments segments = {.count = 0};
    size_t bytes;

    world_start(&world);
    kvt_session_drop(&world.rig, kvt_cold_find(&world.rig, "c"));
    kvt_cold_spill(&world.rig);
    world_stop_and_start(&world);
    assert_int_equal(world.rig.service.sessions.count, 2);
    kvt_cold_life_stop(&world.rig);
    kvd_fake_disk_close_all(world.disk);
    (void)kvd_fake_disk_names(world.disk, segment_add, &segments);
    assert_true(segments.count > 0);
    /* One more, of which nobody knows what it held. */
    kvd_fake_disk_put(world.disk, "/cold/00000000000000ff.kvs", "nothing", 7);
    uint8_t *data = kvd_fake_disk_data(world.disk, "/cold/00000000000000ff.kvs", &bytes);
    assert_non_null(data);
    world_start(&world);
    assert_true(world.rig.service.cold.found.is_suspect);
    assert_int_equal(world.rig.service.sessions.count, 0);
    assert_int_equal(world.rig.service.cold.found.sessions_lost, 2);
    world_stop_and_start(&world);
    assert_false(world.rig.service.cold.found.is_suspect);
    assert_int_equal(world.rig.service.cold.found.sessions_lost, 0);
    assert_int_equal(world.rig.service.sessions.count, 0);
    world_fini(&world);
}

/* Start and end at once, as where a socket cannot be had. Returns the error of the start. */
static int start_and_end(
    struct kvd_fake_disk *disk, uint64_t life, uint64_t memory_limit, uint32_t *ret_sessions)
{
    struct kvd_io_fake *fake = kvd_io_fake_create(life);
    struct kvd_config config;
    struct kvd_service service;

    assert_int_equal(kvd_config_init(&config), 0);
    kvd_io_fake_set_disk(fake, disk);
    free(config.cold_dir);
    config.cold_dir = strdup("/cold");
    config.cold_segment = UINT64_C(1) << 20;
    config.cold_limit = 64 * config.cold_segment;
    config.memory_limit = memory_limit;
    config.workers = 0;
    int err = kvd_service_init(&service, &config, kvd_io_fake_io(fake));
    if (err == 0) {
        *ret_sessions = service.sessions.count;
        kvd_service_fini(&service);
    }
    kvd_io_fake_io(fake)->ops->destroy(kvd_io_fake_io(fake));
    kvd_config_fini(&config);
    kvd_fake_disk_close_all(disk);
    return err;
}

/* What a start gave up is not half put when the start fails after that. */
static void test_a_start_that_ends_at_once_leaves_the_folder(void **state)
{
    (void)state;
    static const char *const names[] = {"s", "t"};
    struct kvd_fake_disk *before = disk_with(names, 2);
    struct edit edit = {.type = KVD_COLD_MAP, .body_cut = 16, .skip = 1};
    struct world world = {.disk = kvt_cold_edit(before, edit_cb, &edit), .life = 10};
    uint32_t sessions = 0;

    kvd_fake_disk_destroy(before);
    kvd_fake_disk_close_all(world.disk);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(start_and_end(world.disk, 20 + i, UINT64_C(1) << 30, &sessions), 0);
        assert_int_equal(sessions, 1);
    }
    world_start(&world);
    assert_int_equal(world.rig.service.sessions.count, 1);
    world_fini(&world);
}

/* A start without memory for the sessions fails; they stay for one that has it. */
static void test_a_start_without_memory_loses_nothing(void **state)
{
    (void)state;
    static const char *const names[] = {"a", "b", "c", "d"};
    struct kvd_fake_disk *disk = disk_with(names, 4);
    uint64_t too_little = 1024, enough = UINT64_C(1) << 30;
    uint64_t life = 20;
    uint32_t sessions = 0;

    /* Limits just below what is enough are those that some of the sessions fit in. */
    while (enough - too_little > 512) {
        uint64_t limit = (enough + too_little) / 2;
        int err = start_and_end(disk, life++, limit, &sessions);
        assert_true(err == 0 || err == KVARN_ENOMEM);
        assert_true(err != 0 || sessions == 4);
        *(err == 0 ? &enough : &too_little) = limit;
    }
    assert_int_equal(start_and_end(disk, life++, too_little, &sessions), KVARN_ENOMEM);
    assert_int_equal(start_and_end(disk, life, enough, &sessions), 0);
    assert_int_equal(sessions, 4);
    kvd_fake_disk_destroy(disk);
}

/* Make the records of a type unreadable where the next start looks: no index, no headers. */
struct ruin {
    struct kvd_fake_disk *disk;
    uint8_t type;
    unsigned count;
};

static void ruin_cb(void *ctx, const char *path)
{
    struct ruin *ruin = ctx;
    size_t bytes = 0;
    uint8_t *data = kvd_fake_disk_data(ruin->disk, path, &bytes);

    for (size_t at = 0; data != NULL && at + KVD_FAKE_BLOCK <= bytes; at += KVD_FAKE_BLOCK) {
        bool is_record = memcmp(data + at, "KVRC", 4) == 0;
        if ((is_record && data[at + 5] == ruin->type) || memcmp(data + at, "KVFOOTER", 8) == 0) {
            memset(data + at, 0, 64);
            ruin->count += is_record ? 1 : 0;
        }
    }
}

/* SEMANTICS.md 7: who comes back without a page, or without its tail, has a new epoch. */
static void test_s07_what_is_gone_gives_a_new_epoch(void **state)
{
    (void)state;
    static const uint8_t types[] = {0, KVD_COLD_PAGE, KVD_COLD_TAIL};
    for (unsigned i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        struct world world;
        world_init(&world);
        struct kvd_session *session = kvt_session_open(&world.rig, "s", 0);
        kvt_cold_append(&world.rig, session, NULL, i == 1 ? 64 : 200, 1);
        uint64_t epoch = session->epoch;
        kvd_session_unref(session);
        kvt_cold_life_stop(&world.rig);
        kvd_fake_disk_close_all(world.disk);
        struct ruin ruin = {.disk = world.disk, .type = types[i]};
        (void)kvd_fake_disk_names(world.disk, ruin_cb, &ruin);
        assert_int_equal(ruin.count, i > 0 ? 1 : 0);
        world_start(&world);
        session = kvt_cold_find(&world.rig, "s");
        assert_non_null(session);
        assert_int_equal(session->epoch == epoch, i == 0);
        assert_int_equal(kvt_cold_load(&world.rig, session) == 0, i == 0);
        kvd_session_unref(session);
        world_fini(&world);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_s23_a_clean_stop_loses_no_token),
        cmocka_unit_test(test_s23_a_clean_stop_keeps_a_cut_sink),
        cmocka_unit_test(test_s23_what_a_map_names_stays_until_the_next_is_durable),
        cmocka_unit_test(test_s23_a_cut_sink_stays_until_it_is_written_anew),
        cmocka_unit_test(test_a_stop_ends_though_loads_are_in_flight),
        cmocka_unit_test(test_s14_a_page_of_another_tenant_is_missing),
        cmocka_unit_test(test_s14_a_page_of_another_place_is_missing),
        cmocka_unit_test(test_s14_a_tail_of_another_tenant_is_missing),
        cmocka_unit_test(test_s23_a_session_that_makes_no_sense_is_given_up),
        cmocka_unit_test(test_of_two_with_one_name_the_later_comes_back),
        cmocka_unit_test(test_s23_a_suspect_start_tells_what_it_lost),
        cmocka_unit_test(test_a_start_that_ends_at_once_leaves_the_folder),
        cmocka_unit_test(test_a_start_without_memory_loses_nothing),
        cmocka_unit_test(test_s07_what_is_gone_gives_a_new_epoch),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
