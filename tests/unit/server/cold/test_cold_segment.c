/*
 * Tests of server/cold/cold_segment.c and its parts on a fake disk: storing, reading, limits,
 * faults.
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

static void start(struct kvt_cold_rig *rig, struct kvd_fake_disk *disk)
{
    struct kvd_cold_segment_options options = kvt_cold_options();

    kvt_cold_start(rig, disk, &options, 1);
    assert_int_equal(rig->err, 0);
}

static struct kvd_cold_stats stats_of(struct kvt_cold_rig *rig)
{
    struct kvd_cold_stats stats;

    rig->cold->ops->stats(rig->cold, &stats);
    return stats;
}

static void test_put_get_and_restart(void **state)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvd_cold_record *records[20];
    struct kvt_cold_rig rig;
    struct kvt_cold_head head;

    (void)state;
    start(&rig, disk);
    for (uint64_t i = 0; i < 20; i++) {
        /* From nothing to more than what is hashed at once, across several segments. */
        size_t bytes = i == 7 ? 0 : 1 + 1500 * (size_t)i;
        assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_PAGE, i, 3, bytes, &records[i]), 0);
    }
    for (uint64_t i = 0; i < 20; i++) {
        assert_int_equal(kvt_cold_check_async(&rig, records[i], &head), 0);
        assert_int_equal(head.id, i);
        assert_int_equal(head.version, 3);
    }
    assert_true(stats_of(&rig).segments > 1);
    kvt_cold_stop(&rig);

    start(&rig, disk);
    assert_true(rig.found.is_clean);
    assert_false(rig.found.is_suspect);
    assert_int_equal(rig.found.torn + rig.found.damaged, 0);
    assert_int_equal(rig.found.scanned_segments, 0);
    assert_int_equal(stats_of(&rig).records, 20);
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

static void test_p18_folder_in_use_is_refused(void **state)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvd_cold_segment_options options = kvt_cold_options();
    struct kvt_cold_rig rig;
    struct kvt_cold_rig other;

    (void)state;
    start(&rig, disk);
    kvt_cold_start(&other, disk, &options, 2);
    assert_int_equal(other.err, KVARN_ECONFLICT);
    kvd_workers_destroy(other.workers);
    other.io->ops->destroy(other.io);
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

static void test_options_are_checked(void **state)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvd_cold_segment_options good = kvt_cold_options();
    struct kvd_cold_segment_options bad[3] = {good, good, good};
    struct kvt_cold_rig rig;

    (void)state;
    bad[0].segment_bytes = 65536 + 512;
    bad[1].segment_bytes = 4096;
    bad[2].limit_bytes = 3 * 65536;
    for (unsigned i = 0; i < 3; i++) {
        kvt_cold_start(&rig, disk, &bad[i], 1);
        assert_int_equal(rig.err, KVARN_EINVALID);
        kvt_cold_stop(&rig);
    }
    kvd_fake_disk_destroy(disk);
}

static void test_limit_is_never_exceeded(void **state)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvt_cold_rig rig;
    struct kvd_cold_record *first = NULL;
    struct kvt_cold_head head;
    unsigned stored = 0;
    int err = 0;

    (void)state;
    start(&rig, disk);
    for (uint64_t i = 0; i < 200 && err == 0; i++) {
        struct kvd_cold_record *record = NULL;
        err = kvt_cold_put_wait(&rig, KVD_COLD_PAGE, i, 1, 15000, &record);
        first = first == NULL ? record : first;
        stored += err == 0 ? 1 : 0;
    }
    assert_int_equal(err, KVARN_ENOSPC);
    assert_true(stored > 20);
    assert_true(kvd_fake_disk_used_max(disk) <= 16 * 65536);
    assert_true(stats_of(&rig).is_resting);
    /* What must not wait still has room, and what was stored is still there. */
    assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_TOMBSTONE, 900, 1, 0, NULL), 0);
    assert_int_equal(kvt_cold_check_async(&rig, first, &head), 0);
    kvt_cold_stop(&rig);
    assert_true(kvd_fake_disk_used_max(disk) <= 16 * 65536);
    kvd_fake_disk_destroy(disk);
}

static void test_p5_full_tier_recovers_when_space_is_given_back(void **state)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvd_cold_record *records[200];
    struct kvt_cold_rig rig;
    unsigned stored = 0;

    (void)state;
    start(&rig, disk);
    while (kvt_cold_put_wait(&rig, KVD_COLD_PAGE, stored, 1, 15000, &records[stored]) == 0) {
        stored++;
    }
    for (unsigned i = 0; i < stored; i++) {
        rig.cold->ops->forget(rig.cold, records[i]);
    }
    kvd_io_fake_settle(rig.fake);
    assert_true(stats_of(&rig).used_bytes <= 2 * 65536);
    kvd_io_fake_advance_ms(rig.fake, 1500);
    assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_PAGE, 1000, 1, 15000, &records[0]), 0);
    assert_false(stats_of(&rig).is_resting);
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

static void test_p5_disk_full_recovers_by_itself(void **state)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvd_cold_record *record;
    struct kvt_cold_head head;
    struct kvt_cold_rig rig;

    (void)state;
    start(&rig, disk);
    assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_PAGE, 1, 1, 9000, &record), 0);
    kvd_fake_disk_set_room(disk, kvd_fake_disk_used(disk) + 8192);
    int err = 0;
    for (uint64_t i = 2; i < 20 && err == 0; i++) {
        err = kvt_cold_put_wait(&rig, KVD_COLD_PAGE, i, 1, 15000, NULL);
    }
    assert_int_equal(err, KVARN_ENOSPC);
    assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_PAGE, 50, 1, 15000, NULL), KVARN_ENOSPC);
    assert_int_equal(kvt_cold_check_async(&rig, record, &head), 0);
    kvd_fake_disk_set_room(disk, 0);
    kvd_io_fake_advance_ms(rig.fake, 1500);
    assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_PAGE, 51, 1, 15000, NULL), 0);
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

static void test_p6_failed_sync_quarantines_the_segment(void **state)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvd_cold_record *before;
    struct kvd_cold_record *after;
    struct kvt_cold_head head;
    struct kvt_cold_rig rig;

    (void)state;
    start(&rig, disk);
    assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_PAGE, 1, 1, 9000, &before), 0);
    kvd_fake_disk_fail(disk, KVD_FILE_SYNC, 0, 1, KVARN_EIO);
    assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_PAGE, 2, 1, 9000, NULL), KVARN_EIO);
    assert_int_equal(stats_of(&rig).quarantined, 1);
    assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_PAGE, 3, 1, 9000, NULL), KVARN_EIO);
    kvd_io_fake_advance_ms(rig.fake, 1500);
    assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_PAGE, 4, 1, 9000, &after), 0);
    assert_true(stats_of(&rig).segments >= 1);
    assert_int_equal(kvt_cold_check_async(&rig, before, &head), 0);
    assert_int_equal(kvt_cold_check_async(&rig, after, &head), 0);
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

static void test_failed_write_costs_its_batch_only(void **state)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvd_cold_record *before;
    struct kvt_cold_head head;
    struct kvt_cold_rig rig;

    (void)state;
    start(&rig, disk);
    assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_PAGE, 1, 1, 9000, &before), 0);
    kvd_fake_disk_fail(disk, KVD_FILE_WRITE, 0, 1, KVARN_EIO);
    assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_PAGE, 2, 1, 9000, NULL), KVARN_EIO);
    assert_int_equal(kvt_cold_check_async(&rig, before, &head), 0);
    /* A tombstone does not wait for the rest to end. */
    assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_TOMBSTONE, 7, 1, 0, NULL), 0);
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

static void test_too_large_and_queue_limit(void **state)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvd_cold_segment_options options = kvt_cold_options();
    struct kvt_cold_rig rig;
    struct kvt_cold_want want = {.type = KVD_COLD_PAGE, .id = 1, .bytes = 40000};

    (void)state;
    options.queue_bytes = 20000;
    kvt_cold_start(&rig, disk, &options, 1);
    assert_int_equal(kvt_cold_put(&rig, &want), KVARN_ETOO_LARGE);
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

static void count_cb(
    void *ctx, uint64_t id, uint64_t version, int err, struct kvd_cold_record *record)
{
    (void)id;
    (void)version;
    (void)record;
    *(unsigned *)ctx += err == 0 ? 1 : 1000;
}

static void test_queue_limit_says_retry_later(void **state)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvd_cold_segment_options options = kvt_cold_options();
    struct kvt_cold_rig rig;
    unsigned done = 0;
    struct kvt_cold_want want = {
        .type = KVD_COLD_PAGE, .id = 1, .bytes = 15000, .done = count_cb, .ctx = &done};

    (void)state;
    options.queue_bytes = 40000;
    kvt_cold_start(&rig, disk, &options, 1);
    assert_int_equal(kvt_cold_put(&rig, &want), 0);
    assert_int_equal(kvt_cold_put(&rig, &want), 0);
    assert_int_equal(kvt_cold_put(&rig, &want), KVARN_ERETRY_LATER);
    assert_int_equal(done, 0); /* never from inside */
    kvd_io_fake_settle(rig.fake);
    assert_int_equal(done, 2);
    assert_int_equal(stats_of(&rig).queued_bytes, 0);
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

static void test_p16_hanging_disk_bounds_the_queue(void **state)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvd_cold_segment_options options = kvt_cold_options();
    struct kvt_cold_rig rig;
    unsigned done = 0;
    unsigned taken = 0;
    struct kvt_cold_want want = {
        .type = KVD_COLD_PAGE, .id = 1, .bytes = 15000, .done = count_cb, .ctx = &done};

    (void)state;
    options.queue_bytes = 200000;
    kvt_cold_start(&rig, disk, &options, 1);
    kvd_io_fake_hold_files(rig.fake, true);
    while (kvt_cold_put(&rig, &want) == 0) {
        taken++;
        kvd_io_fake_settle(rig.fake);
        assert_true(taken < 100);
    }
    assert_int_equal(done, 0);
    assert_int_equal(taken, 200000 / 15000);
    kvd_io_fake_hold_files(rig.fake, false);
    kvd_io_fake_settle(rig.fake);
    assert_int_equal(done, taken);
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

/* No segment, and none can be made: what must not wait fails too, and the tier ends. */
static void test_p5_put_and_close_end_when_no_segment_can_be_made(void **state)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvt_cold_rig rig;

    (void)state;
    kvd_fake_disk_set_room(disk, 32768);
    start(&rig, disk);
    assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_TOMBSTONE, 7, 1, 0, NULL), KVARN_ENOSPC);
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

struct flag_put {
    struct kvd_cold_put put; /* first */
    bool is_done;
};

static void flag_put_done(struct kvd_cold_put *put, int err)
{
    assert_int_equal(err, 0);
    ((struct flag_put *)(void *)put)->is_done = true;
}

static void test_compressed_where_it_gains(void **state)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvd_cold_segment_options options = kvt_cold_options();
    struct kvd_cold_record *noise;
    struct kvt_cold_head head;
    struct kvt_cold_rig rig;
    uint8_t data[30000];
    uint8_t back[30000];
    struct iovec vecs[2] = {{data, 11}, {data + 11, sizeof(data) - 11}};
    struct iovec back_vecs[3] = {{back, 7}, {back + 7, 20000}, {back + 20007, 9993}};
    struct flag_put put = {.put = {.type = KVD_COLD_PAGE,
                               .id = {9, 9},
                               .vecs = vecs,
                               .vec_count = 2,
                               .done = flag_put_done}};

    (void)state;
    for (size_t i = 0; i < sizeof(data); i++) {
        data[i] = (uint8_t)(i / 900);
    }
    options.compress_level = 1;
    kvt_cold_start(&rig, disk, &options, 1);
    assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_PAGE, 5, 1, 20000, &noise), 0);
    assert_int_equal(stats_of(&rig).compress_raw_bytes, 0); /* noise does not shrink */
    assert_int_equal(kvt_cold_check_async(&rig, noise, &head), 0);

    assert_int_equal(rig.cold->ops->put(rig.cold, &put.put), 0);
    kvd_io_fake_settle(rig.fake);
    assert_true(put.is_done);
    assert_int_equal(stats_of(&rig).compress_raw_bytes, sizeof(data));
    assert_true(stats_of(&rig).compress_bytes < sizeof(data) / 10);
    assert_true(stats_of(&rig).compress_ns > 0);
    struct kvd_cold_get get = {.record = put.put.record, .vecs = back_vecs, .vec_count = 3};
    assert_int_equal(rig.cold->ops->get_now(rig.cold, &get), 0);
    assert_memory_equal(back, data, sizeof(data));
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_put_get_and_restart),
        cmocka_unit_test(test_p18_folder_in_use_is_refused),
        cmocka_unit_test(test_options_are_checked),
        cmocka_unit_test(test_limit_is_never_exceeded),
        cmocka_unit_test(test_p5_full_tier_recovers_when_space_is_given_back),
        cmocka_unit_test(test_p5_disk_full_recovers_by_itself),
        cmocka_unit_test(test_p6_failed_sync_quarantines_the_segment),
        cmocka_unit_test(test_failed_write_costs_its_batch_only),
        cmocka_unit_test(test_too_large_and_queue_limit),
        cmocka_unit_test(test_queue_limit_says_retry_later),
        cmocka_unit_test(test_p16_hanging_disk_bounds_the_queue),
        cmocka_unit_test(test_p5_put_and_close_end_when_no_segment_can_be_made),
        cmocka_unit_test(test_compressed_where_it_gains),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
