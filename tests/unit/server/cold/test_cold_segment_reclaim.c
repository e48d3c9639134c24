/*
 * Tests of server/cold/cold_segment_reclaim.c and of tombstones' stay: what goes while puts go on.
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

struct result {
    unsigned done;
    int err;
    struct kvd_cold_record *record;
};

static void result_cb(
    void *ctx, uint64_t id, uint64_t version, int err, struct kvd_cold_record *record)
{
    (void)id;
    (void)version;
    *(struct result *)ctx = (struct result){((struct result *)ctx)->done + 1, err, record};
}

/* The last record of a segment that is being rewritten is forgotten while puts wait. */
static void test_removed_segment_is_not_rewritten(void **state)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvd_cold_record *records[40];
    struct kvd_cold_stats stats;
    struct kvt_cold_rig rig;
    struct result result = {0};
    unsigned taken = 0;

    (void)state;
    start(&rig, disk);
    for (unsigned i = 0; i < 40; i++) {
        assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_PAGE, i, 1, 3000, &records[i]), 0);
    }
    /* All but two of the first segment's go: these two are to move. */
    for (unsigned i = 2; i < 10; i++) {
        rig.cold->ops->forget(rig.cold, records[i]);
    }
    struct kvt_cold_want want = {
        .type = KVD_COLD_PAGE, .id = 1000, .bytes = 15000, .done = result_cb, .ctx = &result};
    rig.cold->ops->stats(rig.cold, &stats);
    for (unsigned i = 0; i < 2000 && stats.rewritten_bytes == 0; i++) {
        /* More is queued, once a copy is on its way, than the active segment has room for. */
        bool is_copying = stats.queued_bytes > 0;
        while (is_copying && taken < 12 && kvt_cold_put(&rig, &want) == 0) {
            taken++;
        }
        (void)kvd_io_fake_turn(rig.fake);
        rig.cold->ops->stats(rig.cold, &stats);
    }
    assert_true(stats.rewritten_bytes > 0);
    rig.cold->ops->forget(rig.cold, records[0]);
    rig.cold->ops->forget(rig.cold, records[1]);
    kvd_io_fake_settle(rig.fake);
    assert_true(taken > 0);
    assert_int_equal(result.done, taken);
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

/* A segment with a record that cannot be read goes once nobody needs anything of it. */
static void test_segment_with_a_damaged_record_goes_in_the_end(void **state)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvd_cold_record *records[40];
    struct kvt_cold_rig rig;
    size_t bytes;

    (void)state;
    start(&rig, disk);
    for (unsigned i = 0; i < 40; i++) {
        assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_PAGE, i, 1, 3000, &records[i]), 0);
    }
    uint8_t *data = kvd_fake_disk_data(disk, "/cold/0000000000000001.kvs", &bytes);
    assert_non_null(data);
    for (unsigned i = 0; i < 2; i++) {
        data[8192 + 4096 * i + 1000] ^= 1;
    }
    for (unsigned i = 2; i < 10; i++) {
        rig.cold->ops->forget(rig.cold, records[i]);
    }
    kvd_io_fake_settle(rig.fake);
    assert_non_null(kvd_fake_disk_data(disk, "/cold/0000000000000001.kvs", &bytes));
    for (unsigned i = 0; i < 12; i++) {
        if (i < 2 || i >= 10) {
            rig.cold->ops->forget(rig.cold, records[i]);
        }
    }
    kvd_io_fake_settle(rig.fake);
    assert_null(kvd_fake_disk_data(disk, "/cold/0000000000000001.kvs", &bytes));
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_removed_segment_is_not_rewritten),
        cmocka_unit_test(test_segment_with_a_damaged_record_goes_in_the_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
