/*
 * Tests of server/cold/cold_segment_recover.c and its scan: what single damaged places and crashes
 * at the end of a segment cost.
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

static void count_maps_cb(
    void *ctx, struct kvd_cold_record *record, const struct kvd_cold_info *info)
{
    (void)record;
    *(unsigned *)ctx += info->type == KVD_COLD_MAP ? 1 : 0;
}

static unsigned maps_found(struct kvt_cold_rig *rig)
{
    unsigned count = 0;

    rig->cold->ops->each(rig->cold, count_maps_cb, &count);
    return count;
}

/* Where the first block of a segment is that holds a record of a type. NULL: there is none. */
static uint8_t *block_of(struct kvd_fake_disk *disk, const char *path, enum kvd_cold_type type)
{
    size_t bytes;
    uint8_t *data = kvd_fake_disk_data(disk, path, &bytes);

    assert_non_null(data);
    for (size_t offset = 8192; offset < bytes; offset += 4096) {
        if (memcmp(data + offset, "KVRC", 4) == 0 && data[offset + 5] == (uint8_t)type) {
            return data + offset;
        }
    }
    return NULL;
}

#define FIRST_SEGMENT "/cold/0000000000000001.kvs"

/* A session's map and its tombstone in one segment that a clean stop sealed. */
static struct kvd_fake_disk *buried(void)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvt_cold_rig rig;

    start(&rig, disk);
    assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_MAP, 5, 1, 3000, NULL), 0);
    assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_TOMBSTONE, 5, 2, 0, NULL), 0);
    kvt_cold_stop(&rig);
    return disk;
}

static void test_s23_tombstone_with_a_blank_sector_holds(void **state)
{
    static const size_t lengths[] = {512, 4096};

    (void)state;
    for (unsigned second = 0; second < 2; second++) {
        for (unsigned i = 0; i < 2; i++) {
            struct kvd_fake_disk *disk = buried();
            struct kvt_cold_rig rig;
            uint8_t *block = block_of(disk, FIRST_SEGMENT, KVD_COLD_TOMBSTONE);
            assert_non_null(block);
            memset(block + (size_t)second * 4096, 0, lengths[i]);
            start(&rig, disk);
            assert_int_equal(rig.found.scanned_segments, 0);
            assert_int_equal(maps_found(&rig), 0);
            kvt_cold_stop(&rig);
            kvd_fake_disk_destroy(disk);
        }
    }
}

/* What a crash left is sealed behind both copies of its last record. */
static void test_sealing_at_start_spares_the_second_copy(void **state)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvt_cold_rig rig;

    (void)state;
    start(&rig, disk);
    assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_MAP, 5, 1, 3000, NULL), 0);
    assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_TOMBSTONE, 5, 2, 0, NULL), 0);
    struct kvd_fake_disk *cut = kvd_fake_disk_cut(disk, kvd_fake_disk_op_count(disk), 0);
    kvt_cold_crash(&rig);
    kvd_fake_disk_destroy(disk);

    start(&rig, cut);
    assert_int_equal(rig.found.scanned_segments, 1);
    assert_int_equal(rig.found.torn + rig.found.damaged, 0);
    /* It dies at once: nothing is punched yet, and the segment is as the start sealed it. */
    disk = kvd_fake_disk_cut(cut, kvd_fake_disk_op_count(cut), 0);
    kvt_cold_crash(&rig);
    kvd_fake_disk_destroy(cut);

    uint8_t *block = block_of(disk, FIRST_SEGMENT, KVD_COLD_TOMBSTONE);
    assert_non_null(block);
    assert_memory_equal(block, block + 4096, 4096);
    memset(block, 0xa5, 4096);
    start(&rig, disk);
    assert_int_equal(rig.found.scanned_segments, 0);
    assert_int_equal(rig.found.damaged, 0);
    assert_int_equal(maps_found(&rig), 0);
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

/* A map in the first segment, its tombstone in the second, sealed both. */
static struct kvd_fake_disk *buried_in_the_next(void)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvt_cold_rig rig;
    struct kvd_cold_stats stats = {0};

    start(&rig, disk);
    assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_MAP, 5, 1, 3000, NULL), 0);
    for (uint64_t i = 100; i < 120 && stats.segments < 2; i++) {
        assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_PAGE, i, 1, 9000, NULL), 0);
        rig.cold->ops->stats(rig.cold, &stats);
    }
    assert_int_equal(kvt_cold_put_wait(&rig, KVD_COLD_TOMBSTONE, 5, 2, 0, NULL), 0);
    kvt_cold_stop(&rig);
    assert_null(block_of(disk, FIRST_SEGMENT, KVD_COLD_TOMBSTONE));
    return disk;
}

/* A segment that could not be read once may be read at the next start: nothing is found there. */
static void test_s23_segment_that_is_readable_again_brings_nothing_back(void **state)
{
    struct kvd_fake_disk *disk = buried_in_the_next();
    struct kvt_cold_rig rig;

    (void)state;
    kvd_fake_disk_fail(disk, KVD_FILE_READ, 0, 1, KVARN_EIO);
    start(&rig, disk);
    assert_true(rig.found.is_suspect);
    kvd_io_fake_settle(rig.fake);
    kvt_cold_stop(&rig);
    start(&rig, disk);
    assert_false(rig.found.is_suspect); /* the loss is told of once */
    assert_int_equal(maps_found(&rig), 0);
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

/* The power fails while a start gives up what it suspects: the next one still knows, or is done. */
static void test_s23_loss_of_a_tombstone_is_known_until_all_is_gone(void **state)
{
    struct kvd_fake_disk *disk = buried_in_the_next();
    struct kvt_cold_rig rig;
    unsigned tried = 0;

    (void)state;
    size_t bytes;
    uint8_t *second = kvd_fake_disk_data(disk, "/cold/0000000000000002.kvs", &bytes);
    assert_non_null(second);
    memset(second, 0xa5, bytes); /* the whole segment */
    size_t first_op = kvd_fake_disk_op_count(disk);
    start(&rig, disk);
    assert_true(rig.found.is_suspect);
    assert_int_equal(maps_found(&rig), 0);
    kvd_io_fake_settle(rig.fake);
    for (size_t op = first_op; op <= kvd_fake_disk_op_count(disk); op++) {
        for (uint64_t seed = 0; seed < 4; seed++) {
            struct kvd_fake_disk *cut = kvd_fake_disk_cut(disk, op, seed);
            struct kvt_cold_rig next;
            start(&next, cut);
            assert_true(next.found.is_suspect || maps_found(&next) == 0);
            kvt_cold_crash(&next);
            kvd_fake_disk_destroy(cut);
            tried++;
        }
    }
    assert_true(tried >= 4 * 4);
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_s23_tombstone_with_a_blank_sector_holds),
        cmocka_unit_test(test_s23_segment_that_is_readable_again_brings_nothing_back),
        cmocka_unit_test(test_s23_loss_of_a_tombstone_is_known_until_all_is_gone),
        cmocka_unit_test(test_sealing_at_start_spares_the_second_copy),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
