/*
 * Tests of the tier's use of room: memory of its index, turns of the loop, punches that fail, and
 * how a tier that is full gets room again (server/cold/cold_segment_reclaim.c, cold_segment_move.c,
 * cold_segment_record.c, cold_segment_index.c).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/cold_rig.h"

#define MANY       3000u
#define TURN_MAX   64u /* records that one turn tells of, or frees */
#define RECORD     64u /* bytes in memory */
#define SMALL_BODY 3000u

static struct kvd_cold_segment_options options_of(uint64_t segment_bytes, unsigned segments)
{
    struct kvd_cold_segment_options options = kvt_cold_options();

    options.segment_bytes = segment_bytes;
    options.limit_bytes = segments * segment_bytes;
    options.queue_bytes = UINT64_C(1) << 28;
    return options;
}

static void start(
    struct kvt_cold_rig *rig, struct kvd_fake_disk *disk, uint64_t segment_bytes, unsigned segments)
{
    struct kvd_cold_segment_options options = options_of(segment_bytes, segments);

    kvt_cold_start(rig, disk, &options, 1);
    assert_int_equal(rig->err, 0);
}

static struct kvd_cold_stats stats_of(struct kvt_cold_rig *rig)
{
    struct kvd_cold_stats stats;

    rig->cold->ops->stats(rig->cold, &stats);
    return stats;
}

struct results {
    struct kvd_cold_record *records[MANY];
    unsigned done, failed;
    int err; /* of the last that failed */
};

static void result_cb(
    void *ctx, uint64_t id, uint64_t version, int err, struct kvd_cold_record *record)
{
    struct results *results = ctx;

    (void)version;
    results->done++;
    results->failed += err != 0 ? 1 : 0;
    results->err = err != 0 ? err : results->err;
    results->records[id] = err == 0 ? record : NULL;
}

static void count_cb(
    void *ctx, uint64_t id, uint64_t version, int err, struct kvd_cold_record *record)
{
    (void)id;
    (void)version;
    (void)record;
    *(unsigned *)ctx += err == 0 ? 1 : 1000;
}

/* Put `count` small records at once; returns how many were taken. */
static unsigned put_many(struct kvt_cold_rig *rig, struct results *results, unsigned count)
{
    struct kvt_cold_want want = {
        .type = KVD_COLD_PAGE, .bytes = SMALL_BODY, .done = result_cb, .ctx = results};

    for (unsigned i = 0; i < count; i++) {
        want.id = i;
        if (kvt_cold_put(rig, &want) != 0) {
            return i;
        }
    }
    return count;
}

static uint64_t cold_memory(const struct kvt_cold_rig *rig)
{
    return rig->budget.kind_bytes[KVD_BUDGET_COLD];
}

/* However many records end, or lie in what is removed, one turn deals with some of them. */
static void test_s18_turns_deal_with_some_records(void **state)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct results *results = calloc(1, sizeof(*results));
    struct kvt_cold_rig rig;
    unsigned most_told = 0;
    uint64_t most_freed = 0;

    (void)state;
    assert_non_null(results);
    start(&rig, disk, 8u << 20, 16);
    assert_int_equal(put_many(&rig, results, MANY), MANY);
    for (unsigned told = 0; told < MANY; told = results->done) {
        (void)kvd_io_fake_turn(rig.fake);
        most_told = results->done - told > most_told ? results->done - told : most_told;
    }
    assert_int_equal(results->failed, 0);
    /* A turn may pump twice: for an operation that ended, and for its timer. */
    assert_in_range(most_told, 2, 2 * TURN_MAX);

    /* One file takes no more records once the next is there; all of its records are forgotten. */
    for (unsigned i = 0; i < MANY; i++) {
        rig.cold->ops->forget(rig.cold, results->records[i]);
    }
    uint64_t before = cold_memory(&rig);
    for (uint64_t last = before; kvd_io_fake_turn(rig.fake);) {
        uint64_t now = cold_memory(&rig);
        most_freed = last > now && last - now > most_freed ? last - now : most_freed;
        last = now;
    }
    assert_true(before - cold_memory(&rig) > MANY / 2 * RECORD);
    assert_in_range(most_freed, RECORD, 2 * TURN_MAX * RECORD + 1024); /* and a file's own */
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
    free(results);
}

/* What the tier knows of records is charged, and a put that it cannot charge is refused. */
static void test_memory_of_records_is_charged_first(void **state)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct results *results = calloc(1, sizeof(*results));
    struct kvd_cold_record *record;
    struct kvt_cold_rig rig;

    (void)state;
    assert_non_null(results);
    start(&rig, disk, 8u << 20, 16);
    uint64_t before = cold_memory(&rig);
    assert_int_equal(put_many(&rig, results, 1000), 1000);
    kvd_io_fake_settle(rig.fake);
    assert_int_equal(results->failed, 0);
    /* The record, and its entry in the index of the segment that is open; nothing else is left. */
    uint64_t taken = cold_memory(&rig) - before;
    assert_in_range(taken, 1000 * (RECORD + 104), 1000 * (RECORD + 104) + 100000);

    rig.budget.limit_bytes = rig.budget.used_bytes;
    assert_int_equal(
        kvt_cold_put_wait(&rig, KVD_COLD_PAGE, 2000, 1, SMALL_BODY, &record), KVARN_ENOMEM);
    rig.budget.limit_bytes = UINT64_C(1) << 30;
    assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_PAGE, 2000, 1, SMALL_BODY, &record), 0);
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
    free(results);
}

/* Writing goes on for a while when memory is full: what it frees is what others wait for. */
static void test_full_memory_does_not_stop_the_index(void **state)
{
    enum { CHUNK_RECORDS = 630, CHUNK_BYTES = CHUNK_RECORDS * 104 };
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvd_cold_record *record;
    struct kvt_cold_rig rig;

    (void)state;
    start(&rig, disk, 8u << 20, 16);
    for (unsigned i = 0; i < 100 + CHUNK_RECORDS; i++) {
        if (i == 100) {
            rig.budget.limit_bytes = rig.budget.used_bytes + CHUNK_BYTES - 1;
        }
        assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_PAGE, i, 1, SMALL_BODY, &record), 0);
    }
    rig.budget.limit_bytes = UINT64_C(1) << 30;
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

/* Without memory for what the folder holds the start is refused, and nothing is lost. */
static void test_start_without_memory_is_refused(void **state)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvd_cold_segment_options options = options_of(8u << 20, 16);
    struct results *results = calloc(1, sizeof(*results));
    struct kvt_cold_rig rig;

    (void)state;
    assert_non_null(results);
    start(&rig, disk, 8u << 20, 16);
    uint64_t before = cold_memory(&rig);
    assert_int_equal(put_many(&rig, results, 1000), 1000);
    kvt_cold_stop(&rig);

    kvt_cold_start(&rig, disk, &options, 1);
    assert_int_equal(rig.err, 0);
    assert_int_equal(stats_of(&rig).records, 1000);
    assert_true(cold_memory(&rig) <= before + 1000 * RECORD + 1024);
    kvt_cold_stop(&rig);

    for (unsigned i = 0; i < 4; i++) {
        /* For its own tables; for the index; for part of the records; for all but their ranking. */
        uint64_t limits[4] = {10000, before + 5000, before + 120000, before + 1000 * RECORD + 4000};
        kvt_cold_start_within(&rig, disk, &options, 1, limits[i]);
        assert_int_equal(rig.err, KVARN_ENOMEM);
        assert_int_equal(rig.budget.used_bytes, 0);
        kvt_cold_stop(&rig);
    }
    kvt_cold_start(&rig, disk, &options, 1);
    assert_int_equal(rig.err, 0);
    assert_int_equal(stats_of(&rig).records, 1000);
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
    free(results);
}

/* Fill the tier until it takes no more. Returns how many records it took. */
static unsigned fill(struct kvt_cold_rig *rig, struct kvd_cold_record **records, unsigned count)
{
    unsigned stored = 0;

    while (stored < count &&
           kvt_cold_put_wait(rig, KVD_COLD_PAGE, stored, 1, SMALL_BODY, &records[stored]) == 0) {
        stored++;
    }
    assert_true(stored < count);
    return stored;
}

/* A punch that fails is tried again in a while; the records are kept apart until then. */
static void test_p5_failed_punch_is_tried_again(void **state)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvd_cold_record *records[40];
    struct kvt_cold_rig rig;

    (void)state;
    start(&rig, disk, 65536, 16);
    for (unsigned i = 0; i < 40; i++) {
        assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_PAGE, i, 1, SMALL_BODY, &records[i]), 0);
    }
    kvd_fake_disk_fail(disk, KVD_FILE_PUNCH, 0, 1, KVARN_EIO);
    uint64_t used = stats_of(&rig).used_bytes;
    rig.cold->ops->forget(rig.cold, records[0]);
    rig.cold->ops->forget(rig.cold, records[2]);
    kvd_io_fake_settle(rig.fake);
    assert_int_equal(kvd_fake_disk_fault_count(disk), 1);
    assert_int_equal(stats_of(&rig).used_bytes, used);
    kvd_io_fake_advance_ms(rig.fake, 900);
    kvd_io_fake_settle(rig.fake);
    assert_int_equal(stats_of(&rig).used_bytes, used); /* not yet */
    kvd_io_fake_advance_ms(rig.fake, 200);
    kvd_io_fake_settle(rig.fake);
    assert_int_equal(stats_of(&rig).used_bytes, used - 2 * 4096);
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

/* While what was put by then is not durable, what was forgotten can still be found. */
static void test_s23_forgotten_stays_until_puts_are_durable(void **state)
{
    const char *path = "/cold/0000000000000001.kvs";
    struct kvd_cold_record *records[40];
    struct kvt_cold_rig rig;
    unsigned map_done = 0;
    size_t bytes;
    struct kvt_cold_want map = {
        .type = KVD_COLD_MAP, .id = 7, .bytes = 16, .done = count_cb, .ctx = &map_done};

    (void)state;
    for (unsigned is_first = 0; is_first < 2; is_first++) {
        struct kvd_fake_disk *disk = kvd_fake_disk_create();
        map_done = 0;
        start(&rig, disk, 65536, 16);
        for (unsigned i = 0; i < 40; i++) {
            assert_int_equal(
                kvt_cold_put_wait(&rig, KVD_COLD_PAGE, i, 1, SMALL_BODY, &records[i]), 0);
        }
        kvd_io_fake_settle(rig.fake);
        const uint8_t *data = kvd_fake_disk_data(disk, path, &bytes);
        assert_non_null(data);
        assert_int_not_equal(data[8192], 0);
        map.flags = KVD_COLD_BARRIER;
        if (is_first == 0) {
            assert_int_equal(kvt_cold_put(&rig, &map), 0);
        }
        for (unsigned i = 0; i < 12; i++) {
            rig.cold->ops->forget(rig.cold, records[i]); /* a whole segment, and some more */
        }
        if (is_first == 1) {
            assert_int_equal(kvt_cold_put(&rig, &map), 0); /* the same turn: the same step */
        }
        while (map_done == 0) {
            data = kvd_fake_disk_data(disk, path, &bytes);
            assert_non_null(data);
            assert_int_not_equal(data[8192], 0);
            assert_true(kvd_io_fake_turn(rig.fake));
        }
        assert_int_equal(map_done, 1);
        kvd_io_fake_settle(rig.fake);
        assert_null(kvd_fake_disk_data(disk, path, &bytes));
        kvt_cold_stop(&rig);
        kvd_fake_disk_destroy(disk);
    }
}

/* Neighbours go by one punch. */
static void test_neighbours_are_punched_together(void **state)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct results *results = calloc(1, sizeof(*results));
    struct kvt_cold_rig rig;

    (void)state;
    assert_non_null(results);
    start(&rig, disk, 1u << 20, 16);
    assert_int_equal(put_many(&rig, results, 1000), 1000);
    kvd_io_fake_settle(rig.fake);
    uint64_t used = stats_of(&rig).used_bytes;
    size_t before = kvd_fake_disk_op_count(disk);
    for (unsigned i = 10; i < 70; i++) {
        rig.cold->ops->forget(rig.cold, results->records[i]);
    }
    kvd_io_fake_settle(rig.fake);
    assert_int_equal(stats_of(&rig).used_bytes, used - UINT64_C(60) * 4096);
    assert_int_equal(kvd_fake_disk_op_count(disk) - before, 2); /* the punch and its sync */
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
    free(results);
}

/* A full tier without holes, every second record of it dead, becomes writable by rewriting. */
static void full_half_dead(unsigned dead_of_three, bool has_punch)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    static struct kvd_cold_record *records[2000];
    struct kvt_cold_head head;
    struct kvt_cold_rig rig;

    start(&rig, disk, 65536, 16);
    if (!has_punch) {
        kvd_fake_disk_fail(disk, KVD_FILE_PUNCH, 0, UINT32_MAX, KVARN_EUNSUPPORTED);
    }
    unsigned stored = fill(&rig, records, 2000);
    assert_true(stats_of(&rig).is_resting);
    for (unsigned i = 0; i < stored; i++) {
        if (i % 3 < dead_of_three) {
            rig.cold->ops->forget(rig.cold, records[i]);
            records[i] = NULL;
        }
    }
    kvd_io_fake_settle(rig.fake);
    unsigned more = 0;
    while (kvt_cold_put_wait(&rig, KVD_COLD_PAGE, 10000 + more, 1, SMALL_BODY, NULL) == 0) {
        more++;
    }
    assert_true(more > stored / 4);
    assert_true(kvd_fake_disk_used_max(disk) <= 16 * 65536);
    for (unsigned i = 0; i < stored; i++) {
        if (records[i] != NULL) {
            assert_int_equal(kvt_cold_check(&rig, records[i], &head), 0);
            assert_int_equal(head.id, i);
        }
    }
    assert_true(
        has_punch || kvd_fake_disk_fault_count(disk) == 1); /* asked once, and never again */
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

static void test_p5_full_tier_without_holes_is_rewritten(void **state)
{
    (void)state;
    full_half_dead(2, false);
}

static void test_p5_full_tier_with_holes_is_punched(void **state)
{
    (void)state;
    full_half_dead(2, true);
    full_half_dead(1, true);
}

/* While puts keep coming to a full tier it is rewritten all the same. */
static void test_p5_rewriting_does_not_starve_when_full(void **state)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    static struct kvd_cold_record *records[2000];
    struct kvt_cold_rig rig;
    unsigned taken = 0;

    (void)state;
    start(&rig, disk, 65536, 8);
    kvd_fake_disk_fail(disk, KVD_FILE_PUNCH, 0, UINT32_MAX, KVARN_EUNSUPPORTED);
    unsigned stored = fill(&rig, records, 2000);
    for (unsigned i = 0; i < stored; i++) {
        if (i % 3 != 0) {
            rig.cold->ops->forget(rig.cold, records[i]);
        }
    }
    for (unsigned turn = 0; turn < 3000 && taken == 0; turn++) {
        struct results results = {0};
        struct kvt_cold_want want = {.type = KVD_COLD_PAGE,
            .id = 1,
            .bytes = SMALL_BODY,
            .done = result_cb,
            .ctx = &results};
        int err = kvt_cold_put(&rig, &want); /* each turn one asks */
        for (unsigned i = 0; i < 100 && err == 0 && results.done == 0; i++) {
            (void)kvd_io_fake_turn(rig.fake);
        }
        (void)kvd_io_fake_turn(rig.fake);
        taken += err == 0 && results.failed == 0 ? 1 : 0;
    }
    assert_true(stats_of(&rig).rewritten_bytes > 0);
    assert_true(taken > 0);
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

/* Tombstones of a full tier do not take the room that rewriting needs. */
static void test_p5_tombstones_leave_room_to_rewrite(void **state)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    static struct kvd_cold_record *records[2000];
    struct kvt_cold_rig rig;
    unsigned buried = 0;

    (void)state;
    start(&rig, disk, 65536, 8);
    kvd_fake_disk_fail(disk, KVD_FILE_PUNCH, 0, UINT32_MAX, KVARN_EUNSUPPORTED);
    unsigned stored = fill(&rig, records, 2000);
    /* Each stands against something, or it would go at once. */
    while (buried < stored &&
           kvt_cold_put_wait(&rig, KVD_COLD_TOMBSTONE, 5000 + buried, 1, 0, NULL) == 0) {
        buried++;
    }
    for (unsigned i = 0; i < stored; i++) {
        if (i % 3 != 0) {
            rig.cold->ops->forget(rig.cold, records[i]);
        }
    }
    /* Room is on its way: what must not wait does so for it. */
    for (unsigned i = 0; i < 6; i++) {
        (void)kvd_io_fake_turn(rig.fake);
    }
    assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_TOMBSTONE, 9002, 1, 0, NULL), 0);
    kvd_io_fake_settle(rig.fake);
    kvd_io_fake_advance_ms(rig.fake, 2500);
    kvd_io_fake_settle(rig.fake);
    assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_PAGE, 9000, 1, SMALL_BODY, NULL), 0);
    assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_TOMBSTONE, 9001, 1, 0, NULL), 0);
    assert_true(kvd_fake_disk_used_max(disk) <= 8 * 65536);
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

/* What the tier would have its caller forget, and that it is content with that. */
static void test_full_tier_says_what_it_wants(void **state)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    static struct kvd_cold_record *records[2000];
    struct kvt_cold_rig rig;
    uint64_t wanted, given = 0;

    (void)state;
    start(&rig, disk, 65536, 16);
    assert_int_equal(rig.cold->ops->wanted(rig.cold), 0);
    unsigned stored = fill(&rig, records, 2000);
    wanted = rig.cold->ops->wanted(rig.cold);
    assert_in_range(wanted, 1, 2 * 65536);
    for (unsigned i = 0; i < stored && given < wanted; i++) {
        rig.cold->ops->forget(rig.cold, records[i]);
        given += 4096;
    }
    assert_int_equal(rig.cold->ops->wanted(rig.cold), 0); /* it is coming */
    kvd_io_fake_settle(rig.fake);
    assert_int_equal(rig.cold->ops->wanted(rig.cold), 0); /* it is there */
    assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_PAGE, 9000, 1, SMALL_BODY, NULL), 0);
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_s18_turns_deal_with_some_records),
        cmocka_unit_test(test_memory_of_records_is_charged_first),
        cmocka_unit_test(test_full_memory_does_not_stop_the_index),
        cmocka_unit_test(test_start_without_memory_is_refused),
        cmocka_unit_test(test_p5_failed_punch_is_tried_again),
        cmocka_unit_test(test_s23_forgotten_stays_until_puts_are_durable),
        cmocka_unit_test(test_neighbours_are_punched_together),
        cmocka_unit_test(test_p5_full_tier_without_holes_is_rewritten),
        cmocka_unit_test(test_p5_full_tier_with_holes_is_punched),
        cmocka_unit_test(test_p5_rewriting_does_not_starve_when_full),
        cmocka_unit_test(test_p5_tombstones_leave_room_to_rewrite),
        cmocka_unit_test(test_full_tier_says_what_it_wants),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
