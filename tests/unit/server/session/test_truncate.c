/*
 * Tests of server/session/truncate.c: cutting into tail, sealed blocks, sink and window, held to
 * the model of a session.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/session/session_blocks.h"
#include "tests/support/session_case.h"
#include "tests/support/tiles.h"

/* Two layers without windows. */
static const struct kvd_layer_group full_groups[] = {
    {.layers = 2, .kv_heads = 2, .k_dim = 16, .v_dim = 24},
};
static const struct kvd_shape_desc full = {.model = "full",
    .group = 64,
    .k_bits = 2,
    .v_bits = 2,
    .sink_tokens = 64,
    .layer_groups = full_groups,
    .layer_group_count = 1};
static const struct kvt_rig_options full_options = {.shape = &full};

static void test_s11_every_cut_of_a_session(void **state)
{
    static const uint32_t lags[] = {0, 20, 64};
    (void)state;

    for (unsigned i = 0; i < 3; i++) {
        for (uint64_t length = 0; length <= 200; length += 11) {
            struct kvt_case c;
            kvt_case_init(&c, &full_options, lags[i]);
            kvt_case_grow(&c, 200);
            uint64_t epoch = c.session->epoch;
            bool is_in_sealed =
                length % 64 != 0 && length > 64 && length / 64 < c.session->layers[0].sealed_blocks;
            assert_int_equal(kvt_case_cut(&c, length), is_in_sealed);
            kvt_case_check(&c);
            assert_int_not_equal(c.session->epoch, epoch);
            /* And on from there, so that what was re-opened is sealed again. */
            kvt_case_grow(&c, 150);
            kvt_case_fini(&c);
        }
    }
}

static void test_s11_layers_become_the_smaller_length(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, &full_options, 0);
    kvt_case_grow(&c, 100);
    struct kvt_append more = kvt_append_of(c.session, 90, 3);
    more.layer_first = 1;
    more.layer_count = 1;
    kvt_case_store(&c, more);
    assert_false(kvt_case_cut(&c, 140));
    assert_int_equal(c.session->layers[0].length, 100);
    assert_int_equal(c.session->layers[1].length, 140);
    kvt_case_check(&c);
    assert_true(kvt_case_cut(&c, 70)); /* both, in block 1; only one layer had it sealed */
    kvt_case_check(&c);
    kvt_case_fini(&c);
}

static void test_s07_a_cut_that_removes_nothing_keeps_the_epoch(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, &full_options, 0);
    struct kvt_append append = kvt_append_of(c.session, 100, 3);
    kvt_case_store(&c, append);
    uint64_t epoch = c.session->epoch;
    assert_false(kvt_case_cut(&c, 100));
    assert_false(kvt_case_cut(&c, UINT64_MAX));
    assert_int_equal(c.session->epoch, epoch);
    /* The last append can still be retried. */
    assert_int_equal(kvt_append_now(&c.rig, &append), 0);
    assert_true(append.outcome.is_flagged);
    assert_false(kvt_case_cut(&c, 99));
    assert_int_not_equal(c.session->epoch, epoch);
    assert_int_equal(kvt_append_now(&c.rig, &append), KVARN_ESTALE_EPOCH);
    kvt_case_fini(&c);
}

static void test_s07_epochs_are_never_reused(void **state)
{
    uint64_t seen[20];
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, &full_options, 0);
    for (unsigned i = 0; i < 20; i++) {
        seen[i] = c.session->epoch;
        for (unsigned k = 0; k < i; k++) {
            assert_int_not_equal(seen[k], seen[i]);
        }
        kvt_case_grow(&c, 2);
        kvt_case_cut(&c, c.session->layers[0].length - 1);
    }
    kvt_case_fini(&c);
}

static void test_s07_stale_epoch_cuts_nothing(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, &full_options, 0);
    kvt_case_grow(&c, 100);
    struct kvt_truncate truncate = {
        .session = c.session, .epoch = c.session->epoch + 1, .length = 3};
    assert_int_equal(kvt_truncate_begin(&c.rig, &truncate), 0);
    assert_int_equal(truncate.outcome.why.err, KVARN_ESTALE_EPOCH);
    assert_int_equal(truncate.outcome.epoch, c.session->epoch);
    kvt_case_fini(&c);
}

static void test_s04_a_cut_needs_the_window_before_it(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0); /* layer 2 has a window of 100 */
    kvt_case_grow(&c, 600);
    uint64_t kept_first = (uint64_t)c.session->layers[2].dropped_blocks * 64;
    assert_int_equal(kept_first, 384);
    /* A token at position p sees p - 99 .. p: the cut at 483 needs 384 and on. */
    assert_int_equal(kvt_truncate_now(&c.rig, c.session, 482), KVARN_EMISS);
    kvt_case_check(&c);
    struct kvt_truncate truncate = {.session = c.session, .epoch = c.session->epoch, .length = 10};
    assert_int_equal(kvt_truncate_begin(&c.rig, &truncate), 0);
    assert_int_equal(truncate.outcome.why.err, KVARN_EMISS);
    assert_int_equal(truncate.outcome.why.reason, KVARND__MISS_REASON__MISS_WINDOW);
    assert_true(kvt_case_cut(&c, 483));
    kvt_case_check(&c);
    kvt_case_grow(&c, 1);
    struct kvt_attend attend = kvt_attend_of(c.session, 2, 1, 1);
    kvt_model_attend(&c.model, &attend, c.session->layers[2].sealed_blocks);
    assert_int_equal(kvt_attend_now(&c.rig, &attend), 0);
    assert_true(kvt_attend_error(&attend) < 1e-4);
    kvt_attend_fini(&attend);
    kvt_case_grow(&c, 100);
    kvt_case_fini(&c);
}

static void test_s04_a_cut_to_nothing_needs_nothing(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 600);
    assert_true(c.session->layers[2].dropped_blocks > 0);
    assert_false(kvt_case_cut(&c, 0));
    assert_int_equal(kvd_session_block_count(c.session), 0);
    assert_int_equal(c.session->layers[2].dropped_blocks, 0);
    kvt_case_grow(&c, 300);
    kvt_case_fini(&c);
}

static void test_s16_a_cut_waits_for_what_was_sent_before(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, &(struct kvt_rig_options){.shape = &full, .workers = 2}, 0);
    struct kvt_append append = kvt_append_of(c.session, 500, 1);
    kvt_append_fill(&append);
    kvt_model_append(&c.model, &append);
    assert_int_equal(kvt_append_begin(&c.rig, &append), 0);
    struct kvt_truncate truncate = {.session = c.session, .epoch = c.session->epoch, .length = 333};
    bool is_lossy = kvt_model_truncate(&c.model, 333);
    assert_int_equal(kvt_truncate_begin(&c.rig, &truncate), 0);
    assert_false(truncate.outcome.is_done);
    /* What comes after it carries the old epoch. */
    struct kvt_append late = kvt_append_of(c.session, 1, 1);
    late.start = 500;
    assert_int_equal(kvt_append_begin(&c.rig, &late), 0);
    kvt_rig_settle(&c.rig);
    assert_int_equal(append.outcome.why.err, 0);
    assert_int_equal(truncate.outcome.why.err, 0);
    assert_int_equal(truncate.outcome.is_flagged, is_lossy);
    assert_int_equal(late.outcome.why.err, KVARN_ESTALE_EPOCH);
    kvt_append_fini(&append);
    kvt_append_fini(&late);
    kvt_case_fini(&c);
}

static void test_s17_cancelled_or_late_cuts_nothing(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, &full_options, 0);
    kvt_case_grow(&c, 200);
    for (unsigned i = 0; i < 4; i++) {
        bool is_lossy = i % 2 == 0; /* a job, or none */
        struct kvt_truncate truncate = {
            .session = c.session, .epoch = c.session->epoch, .length = is_lossy ? 100 : 196};
        truncate.deadline_ns = i < 2 ? 1 : 0;
        assert_int_equal(kvt_truncate_begin(&c.rig, &truncate), 0);
        if (i == 3) { /* not lossy, no deadline: it happened at once */
            assert_int_equal(truncate.outcome.why.err, 0);
            (void)kvt_model_truncate(&c.model, 196);
            continue;
        }
        if (i == 2) {
            assert_false(truncate.outcome.is_done);
            kvd_truncate_cancel(truncate.token, KVARN_ECANCELLED);
        }
        kvt_rig_settle(&c.rig);
        assert_int_equal(truncate.outcome.why.err, i == 2 ? KVARN_ECANCELLED : KVARN_EDEADLINE);
        kvt_case_check(&c);
    }
    kvt_case_fini(&c);
}

static void test_s17_cancelled_while_waiting(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, &full_options, 0);
    struct kvt_append append = kvt_append_of(c.session, 500, 1);
    kvt_append_fill(&append);
    kvt_model_append(&c.model, &append);
    assert_int_equal(kvt_append_begin(&c.rig, &append), 0);
    struct kvt_truncate truncate = {.session = c.session, .epoch = c.session->epoch};
    assert_int_equal(kvt_truncate_begin(&c.rig, &truncate), 0);
    struct kvt_append next = kvt_append_of(c.session, 1, 2);
    next.start = 500;
    kvt_append_fill(&next);
    kvt_model_append(&c.model, &next);
    assert_int_equal(kvt_append_begin(&c.rig, &next), 0);
    kvd_truncate_cancel(truncate.token, KVARN_EDEADLINE);
    assert_int_equal(truncate.outcome.why.err, KVARN_EDEADLINE);
    kvt_rig_settle(&c.rig);
    assert_int_equal(next.outcome.why.err, 0);
    kvt_append_fini(&append);
    kvt_append_fini(&next);
    kvt_case_fini(&c);
}

static void test_dropped_while_blocks_are_reopened(void **state)
{
    struct kvt_rig rig;
    (void)state;

    kvt_rig_init(&rig, &full_options);
    struct kvd_session *session = kvt_session_open(&rig, "s", 0);
    struct kvt_append append = kvt_append_of(session, 200, 1);
    assert_int_equal(kvt_append_now(&rig, &append), 0);
    struct kvt_truncate truncate = {.session = session, .epoch = session->epoch, .length = 100};
    assert_int_equal(kvt_truncate_begin(&rig, &truncate), 0);
    assert_false(truncate.outcome.is_done);
    kvt_session_drop(&rig, session);
    kvt_rig_settle(&rig);
    assert_int_equal(truncate.outcome.why.err, KVARN_ENOT_FOUND);
    kvt_rig_fini(&rig);
}

/* A reader that holds pages while they are cut, written again and sealed again. */
static void test_s03_readers_keep_what_they_took(void **state)
{
    struct kvt_case c;
    struct kvd_page *pages[4];
    uint8_t *seen[4];
    size_t bytes[4];
    (void)state;

    kvt_case_init(&c, &full_options, 0);
    kvt_case_grow(&c, 240);
    uint32_t sealed = c.session->layers[0].sealed_blocks;
    assert_int_equal(sealed, 3);
    for (uint32_t b = 0; b < 4; b++) {
        pages[b] = kvd_page_ref(kvd_session_reader_page(c.session, 0, b, sealed));
        bytes[b] = kvd_page_bytes(pages[b]);
        seen[b] = kvt_alloc(bytes[b]);
        memcpy(seen[b], kvd_page_data(pages[b]), bytes[b]);
    }
    assert_false(kvt_case_cut(&c, 230)); /* tail */
    kvt_case_grow(&c, 60);
    assert_true(kvt_case_cut(&c, 180)); /* sealed */
    kvt_case_grow(&c, 60);
    assert_false(kvt_case_cut(&c, 30)); /* sink */
    kvt_case_grow(&c, 300);
    kvt_case_check(&c);
    for (uint32_t b = 0; b < 4; b++) {
        size_t below = b == 3 ? 48 * 16 * 2 : bytes[b]; /* the tail had 48 rows of K first */
        assert_memory_equal(kvd_page_data(pages[b]), seen[b], below);
        kvd_page_unref(&c.rig.service.pages, pages[b]);
        free(seen[b]);
    }
    kvt_case_fini(&c);
}

static void test_s05_no_room_to_reopen_cuts_nothing(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, &(struct kvt_rig_options){.shape = &kvt_shape_large}, 0);
    kvt_case_grow(&c, 256);
    (void)kvd_page_store_reclaim(&c.rig.service.pages, UINT64_MAX);
    struct kvd_page *fill[8];
    unsigned filled = 0;
    c.rig.source.is_empty = true;
    while (filled < 8 &&
           kvd_page_take(&c.rig.service.pages, KVD_TENANT_DEFAULT,
               c.rig.shape->layers[0].rows_page_bytes, KVD_PAGE_TAIL, &fill[filled]) == 0) {
        filled++;
    }
    uint64_t before = c.rig.service.budget.used_bytes;
    assert_int_equal(kvt_truncate_now(&c.rig, c.session, 200), KVARN_ENOSPC);
    assert_int_equal(c.rig.service.budget.used_bytes, before);
    kvt_case_check(&c);
    c.rig.source.is_empty = false;
    assert_true(kvt_case_cut(&c, 200));
    while (filled > 0) {
        kvd_page_unref(&c.rig.service.pages, fill[--filled]);
    }
    kvt_case_fini(&c);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_s11_every_cut_of_a_session),
    cmocka_unit_test(test_s11_layers_become_the_smaller_length),
    cmocka_unit_test(test_s07_a_cut_that_removes_nothing_keeps_the_epoch),
    cmocka_unit_test(test_s07_epochs_are_never_reused),
    cmocka_unit_test(test_s07_stale_epoch_cuts_nothing),
    cmocka_unit_test(test_s04_a_cut_needs_the_window_before_it),
    cmocka_unit_test(test_s04_a_cut_to_nothing_needs_nothing),
    cmocka_unit_test(test_s16_a_cut_waits_for_what_was_sent_before),
    cmocka_unit_test(test_s17_cancelled_or_late_cuts_nothing),
    cmocka_unit_test(test_s17_cancelled_while_waiting),
    cmocka_unit_test(test_dropped_while_blocks_are_reopened),
    cmocka_unit_test(test_s03_readers_keep_what_they_took),
    cmocka_unit_test(test_s05_no_room_to_reopen_cuts_nothing),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
