/*
 * Tests of server/read/hits.c and of those who count: reads, attention and prefix matches, from
 * memory, from the cold tier, and missed by reason. All counts exact.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "server/evict/session_evict.h"
#include "server/read/hits.h"
#include "server/read/read.h"
#include "tests/support/fake_disk.h"
#include "tests/support/session_cold.h"

#define GROUP  64u
#define BLOCKS 6u
#define TOKENS (BLOCKS * GROUP + 10)

static uint64_t metric(const struct kvt_rig *rig, enum kvd_metric which)
{
    return rig->service.metrics.values[which];
}

/* Asked, in memory, cold, missed: of one who asks. */
static void assert_hits(const struct kvt_rig *rig, enum kvd_metric asked, uint64_t memory,
    uint64_t cold, uint64_t missed)
{
    assert_int_equal(metric(rig, asked), memory + cold + missed);
    assert_int_equal(metric(rig, asked + 1), memory);
    assert_int_equal(metric(rig, asked + 2), cold);
    assert_int_equal(metric(rig, asked + 3), missed);
}

static void read_done_cb(
    void *ctx, const struct kvd_failure *why, const struct kvd_read_result *result)
{
    *(int *)ctx = why->err;
    if (why->err == 0 && result->payload.release_cb != NULL) {
        result->payload.release_cb(result->payload.ctx);
    }
}

/* Layers 0 and 1. */
static int read_now(struct kvt_rig *rig, struct kvd_session *session, uint64_t first, uint64_t last)
{
    int err = 1;
    struct kvd_read *token = NULL;
    struct kvd_read_args args = {.session = session,
        .layer_count = 2,
        .first = first,
        .last = last,
        .format = kvd_read_format_stored(),
        .ctx = &err,
        .done_cb = read_done_cb};

    assert_int_equal(kvd_read_start(&rig->service, &args, &token), 0);
    kvt_rig_settle(rig);
    assert_true(err <= 0);
    return err;
}

static int attend_now(
    struct kvt_rig *rig, struct kvd_session *session, uint64_t first, uint64_t last)
{
    struct kvt_attend attend = kvt_attend_of(session, 1, 1, 3);

    attend.args.is_causal = false;
    attend.args.first = first;
    attend.args.last = last;
    attend.op.block_first = (uint32_t)(first / GROUP);
    attend.op.block_last = UINT32_MAX;
    int err = kvt_attend_now(rig, &attend);
    kvt_attend_fini(&attend);
    return err;
}

static void test_reads_by_place(void **state)
{
    (void)state;
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvt_rig rig;
    uint64_t freed = 0;
    kvt_rig_init(&rig, &(struct kvt_rig_options){.disk = disk});
    rig.config.cold_read_ahead = 0;
    struct kvd_session *session = kvt_session_open(&rig, "s", 0);
    kvt_cold_append(&rig, session, NULL, TOKENS, 1);
    kvt_cold_spill(&rig);
    assert_int_equal(read_now(&rig, session, 10, 300), 0);
    assert_hits(&rig, KVD_METRIC_read_tokens_asked, 2 * 290, 0, 0);

    /* Blocks 4 and 5 are away: tokens 256 to 383. The read begins and ends within blocks. */
    assert_int_equal(kvd_session_evict(session, 2, &freed), 2);
    assert_int_equal(read_now(&rig, session, 100, 300), 0);
    assert_hits(&rig, KVD_METRIC_read_tokens_asked, 2 * 290 + 2 * 156, 2 * 44, 0);
    /* It is back; the other is not. */
    assert_int_equal(read_now(&rig, session, 256, 320), 0);
    assert_hits(&rig, KVD_METRIC_read_tokens_asked, 2 * 290 + 2 * 156 + 2 * 64, 2 * 44, 0);
    assert_int_equal(read_now(&rig, session, 319, 394), 0);
    assert_hits(&rig, KVD_METRIC_read_tokens_asked, 2 * (290 + 156 + 64 + 11), 2 * (44 + 64), 0);

    assert_int_equal(read_now(&rig, session, 300, 400), KVARN_EMISS);
    assert_hits(
        &rig, KVD_METRIC_read_tokens_asked, 2 * (290 + 156 + 64 + 11), 2 * (44 + 64), 2 * 100);
    assert_int_equal(metric(&rig, KVD_METRIC_missed_tokens_never_stored), 2 * 100);
    kvd_session_unref(session);
    kvt_cold_life_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

static void test_attention_by_place(void **state)
{
    (void)state;
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvt_rig rig;
    uint64_t freed = 0;
    kvt_rig_init(&rig, &(struct kvt_rig_options){.disk = disk});
    rig.config.cold_read_ahead = 0;
    struct kvd_session *session = kvt_session_open(&rig, "s", 0);
    kvt_cold_append(&rig, session, NULL, TOKENS, 1);
    kvt_cold_spill(&rig);
    assert_int_equal(attend_now(&rig, session, 0, TOKENS), 0);
    assert_hits(&rig, KVD_METRIC_attend_tokens_asked, TOKENS, 0, 0);
    assert_int_equal(kvd_session_evict(session, 3, &freed), 3);
    assert_int_equal(attend_now(&rig, session, 20, TOKENS), 0);
    assert_hits(
        &rig, KVD_METRIC_attend_tokens_asked, TOKENS + TOKENS - 20 - 3 * GROUP, 3 * GROUP, 0);
    assert_int_equal(metric(&rig, KVD_METRIC_read_tokens_asked), 0);
    kvd_session_unref(session);
    kvt_cold_life_stop(&rig);
    kvd_fake_disk_destroy(disk);
}

/* Every reason; a MISS is one for all that was asked for. */
static void test_misses_by_reason(void **state)
{
    (void)state;
    struct kvt_rig rig;
    uint64_t freed = 0;
    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    struct kvd_session *session = kvt_session_open(&rig, "s", 0);
    kvt_cold_append(&rig, session, NULL, TOKENS, 1);
    assert_int_equal(attend_now(&rig, session, 0, TOKENS + 5), KVARN_EMISS);
    assert_int_equal(metric(&rig, KVD_METRIC_missed_tokens_never_stored), TOKENS + 5);

    struct kvt_attend attend = kvt_attend_of(session, 2, 1, 3); /* a window of 100 */
    attend.args.is_causal = false;
    attend.args.first = 0;
    attend.args.last = 300;
    assert_int_equal(kvt_attend_now(&rig, &attend), KVARN_EMISS);
    kvt_attend_fini(&attend);
    assert_int_equal(metric(&rig, KVD_METRIC_missed_tokens_window), 300);

    assert_int_equal(kvd_session_evict(session, 1, &freed), 1);
    assert_int_equal(read_now(&rig, session, 300, 330), KVARN_EMISS);
    assert_int_equal(metric(&rig, KVD_METRIC_missed_tokens_evicted), 2 * 30);
    assert_int_equal(metric(&rig, KVD_METRIC_misses_evicted), 1);

    assert_int_equal(kvd_session_lose_block(session, 2, &freed), 0);
    assert_int_equal(attend_now(&rig, session, 130, 140), KVARN_EMISS);
    assert_int_equal(metric(&rig, KVD_METRIC_missed_tokens_checksum), 10);
    assert_int_equal(metric(&rig, KVD_METRIC_misses_checksum), 1);
    kvd_block_table_at(&session->table, 2)->miss_reason = KVARND__MISS_REASON__MISS_RESTART;
    assert_int_equal(attend_now(&rig, session, 130, 140), KVARN_EMISS);
    assert_int_equal(metric(&rig, KVD_METRIC_missed_tokens_restart), 10);
    assert_int_equal(metric(&rig, KVD_METRIC_misses_restart), 1);
    assert_hits(&rig, KVD_METRIC_attend_tokens_asked, 0, 0, TOKENS + 5 + 300 + 10 + 10);
    assert_hits(&rig, KVD_METRIC_read_tokens_asked, 0, 0, 2 * 30);
    kvt_session_drop(&rig, session);
    kvt_rig_fini(&rig);
}

/* Of a stretch with gaps it is at most what was away. */
static void test_tokens_of_stretches(void **state)
{
    (void)state;
    const struct kvd_op_cold away = {.block_first = 2, .block_last = 6, .blocks = 3};
    const struct kvd_op_cold none = {0};
    assert_int_equal(kvd_hits_cold_tokens(&away, 64, 0, 1000), 192);
    assert_int_equal(kvd_hits_cold_tokens(&away, 64, 0, 128), 0);
    assert_int_equal(kvd_hits_cold_tokens(&away, 64, 0, 129), 1);
    assert_int_equal(kvd_hits_cold_tokens(&away, 64, 383, 1000), 1);
    assert_int_equal(kvd_hits_cold_tokens(&away, 64, 384, 1000), 0);
    assert_int_equal(kvd_hits_cold_tokens(&away, 64, 150, 200), 50);
    assert_int_equal(kvd_hits_cold_tokens(&none, 64, 0, 1000), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_by_place),
        cmocka_unit_test(test_attention_by_place),
        cmocka_unit_test(test_misses_by_reason),
        cmocka_unit_test(test_tokens_of_stretches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
