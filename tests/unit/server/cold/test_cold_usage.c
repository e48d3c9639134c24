/*
 * Tests of server/cold/cold_usage.c: what is not in memory, by what became of it, and what of it is
 * on disk, to the byte.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "server/cold/cold_usage.h"
#include "server/evict/session_evict.h"
#include "tests/support/fake_disk.h"
#include "tests/support/session_cold.h"

#define GROUP  64u
#define BLOCKS 4u
#define TOKENS (BLOCKS * GROUP + 10)

static struct kvd_cold_usage usage_of(const struct kvd_session *session)
{
    struct kvd_cold_usage usage = {0};

    for (uint32_t span = 0; span * KVD_SPAN_BLOCKS < kvd_session_block_count(session); span++) {
        kvd_cold_usage_add_span(session, span, &usage);
    }
    kvd_cold_usage_add_records(session, &usage);
    return usage;
}

/* Bytes of a sealed block of all layers. */
static uint64_t tiles_bytes(const struct kvt_rig *rig)
{
    return rig->shape->block_tiles_bytes;
}

/* Of the records of a session, in whole blocks of the disk. */
static uint64_t disk_bytes(const struct kvt_rig *rig, const struct kvd_session *session)
{
    struct kvd_cold *tier = rig->service.cold.tier;
    struct kvd_cold_info info;
    uint64_t bytes = 0;

    for (uint32_t b = 0; b < kvd_session_block_count(session); b++) {
        const struct kvd_block *block = kvd_session_block(session, b);
        if (block != NULL && kvd_cold_copy_is_durable(block->cold)) {
            tier->ops->info(block->cold->record, &info);
            bytes += info.stored_bytes;
        }
    }
    tier->ops->info(session->cold.session_rec, &info);
    bytes += info.stored_bytes;
    tier->ops->info(session->cold.map_rec, &info);
    return bytes + info.stored_bytes;
}

static void admit_cb(struct kvd_session_op *op)
{
    op->layer_count = 0; /* seen */
}

static void test_states_of_blocks(void **state)
{
    (void)state;
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvt_rig rig;
    uint64_t freed = 0;
    kvt_rig_init(&rig, &(struct kvt_rig_options){.disk = disk});
    struct kvd_session *session = kvt_session_open(&rig, "s", 0);
    assert_int_equal(kvd_cold_restart_tokens(session), 0);
    kvt_cold_append(&rig, session, NULL, TOKENS, 1);
    assert_int_equal(usage_of(session).stored_blocks, 0);
    kvt_cold_spill(&rig);
    struct kvd_cold_usage usage = usage_of(session);
    assert_int_equal(usage.stored_blocks, BLOCKS);
    assert_int_equal(usage.stored_bytes, disk_bytes(&rig, session));
    assert_true(usage.stored_bytes >= (BLOCKS - 1) * tiles_bytes(&rig));
    assert_int_equal(usage.cold.count + usage.loading.count + usage.missing.count, 0);
    assert_int_equal(kvd_cold_away_blocks(session), 0);
    assert_int_equal(kvd_cold_restart_tokens(session), BLOCKS * GROUP);

    assert_int_equal(kvd_session_evict(session, 2, &freed), 2);
    usage = usage_of(session);
    assert_int_equal(usage.cold.count, 2);
    assert_int_equal(usage.cold.bytes, 2 * tiles_bytes(&rig));
    assert_int_equal(usage.stored_blocks, BLOCKS);
    assert_int_equal(kvd_cold_away_blocks(session), 2);

    /* One of them is on its way back. */
    struct kvd_session_op op = {.layer_count = session->shape->layer_count,
        .block_first = BLOCKS - 1,
        .block_last = BLOCKS,
        .admit_cb = admit_cb};
    kvd_io_fake_hold_files(rig.fake, true);
    kvd_session_enqueue(session, &op);
    usage = usage_of(session);
    assert_int_equal(usage.loading.count, 1);
    assert_int_equal(usage.loading.bytes, tiles_bytes(&rig));
    assert_int_equal(usage.cold.count, 1);
    assert_int_equal(kvd_cold_away_blocks(session), 2);
    kvd_io_fake_hold_files(rig.fake, false);
    kvt_rig_settle(&rig);
    assert_int_equal(op.layer_count, 0);
    usage = usage_of(session);
    assert_int_equal(usage.loading.count, 0);
    assert_int_equal(usage.cold.count, 1);
    assert_int_equal(kvd_cold_away_blocks(session), 1);

    /* A copy knows as much; of one that lost a block before what is there, too. */
    assert_int_equal(kvd_session_lose_block(session, 1, &freed), 0);
    assert_int_equal(kvd_cold_away_blocks(session), 2);
    struct kvd_session *copy = kvt_fork_now(&rig, session, UINT64_MAX);
    assert_int_equal(kvd_cold_away_blocks(copy), 2);
    assert_int_equal(usage_of(copy).cold.count, 2);
    kvt_session_drop(&rig, copy);
    kvd_session_enqueue(
        session, &(struct kvd_session_op){
                     .layer_count = 3, .block_first = 1, .block_last = 2, .admit_cb = admit_cb});
    kvt_rig_settle(&rig);
    assert_int_equal(kvd_cold_away_blocks(session), 1);

    /* And the other is lost. */
    kvd_cold_block_lost(kvd_block_table_at(&session->table, BLOCKS - 2));
    usage = usage_of(session);
    assert_int_equal(usage.cold.count, 0);
    assert_int_equal(usage.missing.count, 1);
    assert_int_equal(usage.missing.bytes, tiles_bytes(&rig));
    kvd_session_unref(session);
    kvt_cold_life_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

/* What it says a crash would bring back is what one brings back; of a clean stop it is all. */
static void test_restart_tokens_come_back(void **state)
{
    (void)state;
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvt_rig rig;
    kvt_rig_init(&rig, &(struct kvt_rig_options){.disk = disk});
    struct kvd_session *session = kvt_session_open(&rig, "s", 0);
    kvt_cold_append(&rig, session, NULL, TOKENS, 1);
    kvt_cold_spill(&rig);
    kvt_cold_append(&rig, session, NULL, 2 * GROUP, 2); /* not written yet */
    uint64_t said = kvd_cold_restart_tokens(session);
    assert_int_equal(said, BLOCKS * GROUP);
    kvd_session_unref(session);
    kvd_io_fake_hold_files(rig.fake, true);
    disk = kvt_cold_life_kill(&rig, disk);

    kvt_rig_init(&rig, &(struct kvt_rig_options){.disk = disk, .life = 1});
    session = kvt_cold_find(&rig, "s");
    assert_non_null(session);
    assert_int_equal(kvd_session_length(session), said);
    assert_int_equal(kvd_cold_restart_tokens(session), said);
    assert_int_equal(usage_of(session).cold.count, BLOCKS);
    kvt_cold_append(&rig, session, NULL, 7, 3);
    kvd_session_unref(session);
    kvt_cold_life_stop(&rig);

    kvt_rig_init(&rig, &(struct kvt_rig_options){.disk = disk, .life = 2});
    session = kvt_cold_find(&rig, "s");
    assert_non_null(session);
    assert_int_equal(kvd_session_length(session), said + 7);
    assert_int_equal(kvd_cold_restart_tokens(session), said + 7);
    assert_true(session->cold.is_tail_cold);
    struct kvd_cold_usage usage = usage_of(session);
    assert_int_equal(usage.cold.count, BLOCKS + 1);
    assert_int_equal(usage.stored_blocks, BLOCKS);
    assert_true(usage.stored_bytes > disk_bytes(&rig, session)); /* the tail's record */
    assert_int_equal(kvt_truncate_now(&rig, session, 3 * GROUP), 0);
    kvt_cold_spill(&rig);
    assert_int_equal(kvd_cold_restart_tokens(session), 3 * GROUP);
    kvd_session_unref(session);
    kvt_cold_life_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

/* Without a tier what is evicted is missing, and nothing comes back. */
static void test_without_a_tier(void **state)
{
    (void)state;
    struct kvt_rig rig;
    uint64_t freed = 0;
    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    struct kvd_session *session = kvt_session_open(&rig, "s", 0);
    kvt_cold_append(&rig, session, NULL, TOKENS, 1);
    assert_int_equal(kvd_session_evict(session, 1, &freed), 1);
    struct kvd_cold_usage usage = usage_of(session);
    assert_int_equal(usage.missing.count, 1);
    assert_int_equal(usage.missing.bytes, tiles_bytes(&rig));
    assert_int_equal(usage.missing.bytes, freed);
    assert_int_equal(usage.stored_bytes, 0);
    assert_int_equal(kvd_cold_restart_tokens(session), 0);
    assert_int_equal(kvd_cold_away_blocks(session), 1);
    kvt_session_drop(&rig, session);
    kvt_rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_states_of_blocks),
        cmocka_unit_test(test_restart_tokens_come_back),
        cmocka_unit_test(test_without_a_tier),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
