/*
 * Tests of server/evict/session_evict.c and server/evict/evict.c: what goes, in which order, what
 * the rest can still do, and who is spared.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "server/evict/evict.h"
#include "server/evict/session_evict.h"
#include "tests/support/session_rig.h"

static int append(struct kvt_rig *rig, struct kvd_session *session, uint32_t tokens)
{
    struct kvt_append append = kvt_append_of(session, tokens, 1);

    return kvt_append_now(rig, &append);
}

static int attend(struct kvt_rig *rig, struct kvd_session *session, uint64_t first, uint64_t last)
{
    struct kvt_attend attend = kvt_attend_of(session, 0, 1, 3);

    attend.args.is_causal = false;
    attend.args.first = first;
    attend.args.last = last;
    int err = kvt_attend_now(rig, &attend);
    if (err == KVARN_EMISS) {
        assert_int_equal(attend.outcome.why.reason, KVARND__MISS_REASON__MISS_EVICTED);
    }
    kvt_attend_fini(&attend);
    return err;
}

static uint64_t bytes_of(const struct kvd_session *session)
{
    struct kvd_session_usage usage;
    uint64_t bytes = 0;

    kvd_session_usage(session, &usage);
    for (unsigned i = 0; i < KVD_PAGE_CLASS_COUNT; i++) {
        bytes += usage.bytes[i];
    }
    return bytes + usage.reserved_bytes;
}

static void assert_missing(const struct kvd_session *session, uint64_t first, uint64_t last)
{
    uint64_t got_first, got_last;

    kvd_session_missing_tokens(session, &got_first, &got_last);
    assert_int_equal(got_first, first);
    assert_int_equal(got_last, last);
}

/* Trailing sealed blocks first, the sink last of them, the tail with the rest. Group 64. */
static void test_the_end_goes_first(void **state)
{
    (void)state;
    struct kvt_rig rig;
    uint64_t freed = 0;
    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    struct kvd_session *session = kvt_session_open(&rig, "s", 0);
    assert_int_equal(append(&rig, session, 64 * 6 + 10), 0);
    assert_int_equal(kvd_session_next_victim(session), 5);
    assert_int_equal(kvd_session_evict(session, 2, &freed), 2);
    assert_true(freed > 0);
    assert_int_equal(session->missing_first, 4);
    assert_int_equal(session->missing_last, 6);
    assert_missing(session, 256, 384);
    assert_int_equal(attend(&rig, session, 0, 256), 0);
    assert_int_equal(attend(&rig, session, 0, 257), KVARN_EMISS);
    assert_int_equal(attend(&rig, session, 383, 394), KVARN_EMISS);
    assert_int_equal(attend(&rig, session, 384, 394), 0);
    /* The tail is there: appends go on, and what they seal goes before the front does. */
    assert_int_equal(append(&rig, session, 64), 0);
    assert_int_equal(kvd_session_next_victim(session), 6);
    assert_int_equal(kvd_session_evict(session, 100, &freed), 6);
    assert_int_equal(kvd_session_next_victim(session), UINT32_MAX);
    assert_missing(session, 0, 64 * 7 + 10); /* tokens, not whole blocks */
    assert_int_equal(bytes_of(session), 0);
    assert_int_equal(append(&rig, session, 1), KVARN_EMISS);
    assert_int_equal(attend(&rig, session, 0, 1), KVARN_EMISS);
    kvt_session_drop(&rig, session);
    kvt_rig_fini(&rig);
}

static void test_a_cut_makes_it_whole_again(void **state)
{
    (void)state;
    struct kvt_rig rig;
    uint64_t freed = 0;
    kvt_rig_init(&rig, &(struct kvt_rig_options){.shape = &kvt_shape_large});
    struct kvd_session *session = kvt_session_open(&rig, "s", 0);
    assert_int_equal(append(&rig, session, 128 * 4 + 10), 0);
    assert_int_equal(kvd_session_evict(session, 2, &freed), 2);
    /* Within what is missing: MISS, and nothing has changed. */
    assert_int_equal(kvt_truncate_now(&rig, session, 300), KVARN_EMISS);
    assert_int_equal(session->layers[0].length, 522);
    /* At a block's edge behind it: what is before it is still missing. */
    assert_int_equal(kvt_truncate_now(&rig, session, 384), 0);
    assert_int_equal(session->missing_first, 2);
    assert_int_equal(session->missing_last, 3);
    assert_int_equal(kvt_truncate_now(&rig, session, 256), 0);
    assert_false(kvd_session_has_missing(session));
    assert_int_equal(append(&rig, session, 300), 0);
    assert_int_equal(attend(&rig, session, 0, 556), 0);
    kvt_session_drop(&rig, session);
    kvt_rig_fini(&rig);
}

static void test_pinned_blocks_stay(void **state)
{
    (void)state;
    struct kvt_rig rig;
    struct kvd_failure why = {0};
    uint64_t freed = 0;
    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    struct kvd_session *session = kvt_session_open(&rig, "s", 0);
    assert_int_equal(append(&rig, session, 64 * 4), 0);
    assert_int_equal(kvd_lifetime_pin(session, 1000, &why), 0);
    assert_int_equal(kvd_session_next_victim(session), UINT32_MAX);
    assert_int_equal(append(&rig, session, 64 * 2), 0); /* grown since: that may go */
    assert_int_equal(kvd_session_evict(session, 100, &freed), 2);
    assert_int_equal(attend(&rig, session, 0, 256), 0);
    kvd_lifetime_unpin(session);
    assert_int_equal(kvd_session_next_victim(session), 3);
    kvt_session_drop(&rig, session);
    kvt_rig_fini(&rig);
}

/* A copy keeps what its parent loses, and the memory is free when both have lost it. */
static void test_shared_blocks_stay_with_the_others(void **state)
{
    (void)state;
    struct kvt_rig rig;
    struct kvd_failure why = {0};
    struct kvd_session *copy = NULL;
    uint64_t freed = 0;
    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    struct kvd_session *session = kvt_session_open(&rig, "s", 0);
    assert_int_equal(append(&rig, session, 64 * 6), 0);
    assert_int_equal(kvd_session_copy(session, NULL, &copy, &why), 0);
    uint64_t pages = rig.service.pages.classes[KVD_PAGE_TILES].pages;
    assert_int_equal(kvd_session_evict(session, 3, &freed), 3);
    assert_int_equal(freed, 0);
    assert_int_equal(rig.service.pages.classes[KVD_PAGE_TILES].pages, pages);
    assert_int_equal(attend(&rig, session, 0, 384), KVARN_EMISS);
    assert_int_equal(attend(&rig, copy, 0, 384), 0);
    assert_int_equal(kvd_session_evict(copy, 3, &freed), 3);
    assert_true(freed > 0);
    assert_true(rig.service.pages.classes[KVD_PAGE_TILES].pages < pages);
    kvd_session_unref(copy);
    kvt_session_drop(&rig, session);
    kvt_rig_fini(&rig);
}

/* Many sessions on little memory: none is refused; the oldest pay, the one used last does not. */
static void many_sessions(const char *policy)
{
    enum { COUNT = 60 };
    struct kvt_rig rig;
    struct kvd_session *sessions[COUNT];
    kvt_rig_init(
        &rig, &(struct kvt_rig_options){
                  .memory_limit = 64 << 20, .shape = &kvt_shape_large, .evict_policy = policy});
    for (unsigned i = 0; i < COUNT; i++) {
        char name[16];
        (void)snprintf(name, sizeof(name), "s%u", i);
        sessions[i] = kvt_session_open(&rig, name, 0);
        for (unsigned n = 0; n < 8; n++) {
            assert_int_equal(append(&rig, sessions[i], 128), 0);
            assert_true(rig.service.budget.used_bytes <= rig.service.budget.limit_bytes);
        }
        assert_int_equal(attend(&rig, sessions[i], 0, 1024), 0);
        kvd_io_fake_advance_ms(rig.fake, 1000);
        kvt_rig_settle(&rig);
        assert_true(kvd_evictor_used_bytes(&rig.service) <= (UINT64_C(64) << 20) / 100 * 90);
    }
    const uint64_t *metrics = rig.service.metrics.values;
    assert_true(metrics[KVD_METRIC_evicted_blocks_watermark] > 0);
    assert_true(metrics[KVD_METRIC_evicted_bytes] > 0);
    assert_int_equal(attend(&rig, sessions[COUNT - 1], 0, 1024), 0);
    assert_int_equal(attend(&rig, sessions[0], 0, 1024), KVARN_EMISS);
    assert_true(metrics[KVD_METRIC_misses_evicted] > 0);
    for (unsigned i = 0; i < COUNT; i++) {
        kvt_session_drop(&rig, sessions[i]);
    }
    kvt_rig_fini(&rig);
}

static void test_many_sessions_on_little_memory(void **state)
{
    (void)state;
    many_sessions("cost");
    many_sessions("lru");
    many_sessions("s3fifo");
}

/* A session alone is not its own victim: it hears of the limit. */
static void test_the_session_used_last_is_spared(void **state)
{
    (void)state;
    struct kvt_rig rig;
    int err = 0;
    kvt_rig_init(
        &rig, &(struct kvt_rig_options){
                  .memory_limit = 16 << 20, .shape = &kvt_shape_large, .evict_policy = "cost"});
    struct kvd_session *session = kvt_session_open(&rig, "s", 0);
    for (unsigned n = 0; n < 1000 && err == 0; n++) {
        err = append(&rig, session, 128);
    }
    assert_int_equal(err, KVARN_ENOSPC);
    assert_false(kvd_session_has_missing(session));
    kvt_session_drop(&rig, session);
    kvt_rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_end_goes_first),
        cmocka_unit_test(test_a_cut_makes_it_whole_again),
        cmocka_unit_test(test_pinned_blocks_stay),
        cmocka_unit_test(test_shared_blocks_stay_with_the_others),
        cmocka_unit_test(test_many_sessions_on_little_memory),
        cmocka_unit_test(test_the_session_used_last_is_spared),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
