/*
 * Tests of server/append/append.c: an append's life from its turn to its commit, held to the model
 * of a session. What needs memory to be short is in test_append_memory.c.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/session/session_blocks.h"
#include "tests/support/session_case.h"
#include "tests/support/tiles.h"

static void test_s01_sink_blocks_stay_halves(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 64);
    kvt_case_grow(&c, 200);
    const struct kvd_page *rows = kvd_session_rows(c.session, 0, 0);
    assert_non_null(rows);
    assert_null(kvd_session_tiles(c.session, 0, 0));
    assert_int_equal(rows->page_class, KVD_PAGE_SINK);
    assert_null(kvd_session_rows(c.session, 1, 0));
    kvt_case_fini(&c);
}

static void test_s02_blocks_are_sealed_at_their_lag(void **state)
{
    static const uint32_t lags[] = {0, 1, 13, 64};
    (void)state;

    for (unsigned i = 0; i < sizeof(lags) / sizeof(lags[0]); i++) {
        struct kvt_case c;
        kvt_case_init(&c, NULL, lags[i]);
        /* Block 1 ends at 128: sealed with token 128 + lag, not with the one before. */
        kvt_case_grow(&c, 127);
        if (lags[i] > 0) {
            kvt_case_grow(&c, lags[i]);
        }
        assert_int_equal(c.session->layers[0].sealed_blocks, 1);
        kvt_case_grow(&c, 1);
        assert_int_equal(c.session->layers[0].sealed_blocks, 2);
        kvt_case_check(&c);
        kvt_case_fini(&c);
    }
}

/* An attention in the commit of its append, and how it read. */
static struct kvt_attend own;
static struct kvt_rig *own_rig;

static void own_committed_cb(void *ctx, uint32_t sealed_blocks)
{
    (void)ctx;
    kvt_attend_snapshot(own_rig, &own, sealed_blocks);
}

static void test_s03_own_rows_are_read_as_halves(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 120);
    own = kvt_attend_of(c.session, 0, 1, 5);
    own_rig = &c.rig;
    struct kvt_append append = kvt_append_of(c.session, 10, 7);
    append.committed_cb = own_committed_cb;
    uint32_t sealed_before = c.session->layers[0].sealed_blocks;
    kvt_append_fill(&append);
    kvt_model_append(&c.model, &append);
    kvt_model_attend(&c.model, &own, sealed_before);
    assert_int_equal(kvt_append_now(&c.rig, &append), 0);
    assert_int_equal(own.args.sealed_blocks, sealed_before);
    assert_int_equal(own.outcome.why.err, 0);
    assert_true(kvt_attend_error(&own) < 1e-4);
    /* The block that the append filled is tiles for whoever comes next. */
    assert_int_equal(c.session->layers[0].sealed_blocks, sealed_before + 1);
    kvt_attend_fini(&own);
    kvt_case_fini(&c);
}

static void test_s03_a_later_request_waits_for_the_seal(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 100);
    struct kvt_append append = kvt_append_of(c.session, 30, 3);
    append.layer_count = 1;
    kvt_append_fill(&append);
    kvt_model_append(&c.model, &append);
    assert_int_equal(kvt_append_begin(&c.rig, &append), 0);
    struct kvt_attend attend = kvt_attend_of(c.session, 0, 1, 9);
    kvt_model_attend(&c.model, &attend, 2);
    kvt_attend_begin(&c.rig, &attend);
    assert_true(append.outcome.is_done); /* small: stored at once, its seal is due */
    assert_false(attend.outcome.is_done);
    assert_int_equal(kvd_session_pending(c.session, 0), 1);
    kvt_rig_settle(&c.rig);
    assert_int_equal(attend.outcome.why.err, 0);
    assert_int_equal(attend.args.sealed_blocks, 2);
    assert_true(kvt_attend_error(&attend) < 1e-4);
    kvt_attend_fini(&attend);
    kvt_append_fini(&append);
    kvt_case_fini(&c);
}

static void test_s04_window_layers_drop_old_blocks(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    for (unsigned i = 0; i < 12; i++) {
        kvt_case_grow(&c, 50);
        kvt_case_check(&c);
    }
    /* 600 tokens; window 100 and a block are kept: from block (600 - 164) / 64 on. */
    assert_int_equal(c.session->layers[2].dropped_blocks, 6);
    assert_int_equal(c.session->layers[0].dropped_blocks, 0);
    kvt_case_fini(&c);
}

static void test_s04_one_append_longer_than_the_window(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 64);
    kvt_case_grow(&c, 1000);
    kvt_case_check(&c);
    assert_true(c.session->layers[2].dropped_blocks > 10);
    kvt_case_fini(&c);
}

static void test_s07_stale_epoch_is_refused_with_the_current_one(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 10);
    struct kvt_append append = kvt_append_of(c.session, 1, 1);
    append.epoch--;
    struct kvt_outcome outcome = kvt_case_refuse(&c, append, KVARN_ESTALE_EPOCH);
    assert_int_equal(outcome.epoch, c.session->epoch);
    assert_int_equal(outcome.why.layer_count, 3);
    kvt_case_fini(&c);
}

static void test_s08_nothing_is_seen_before_the_commit(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 30);
    struct kvt_append append = kvt_append_of(c.session, 2000, 1); /* large: by workers */
    kvt_append_fill(&append);
    assert_int_equal(kvt_append_begin(&c.rig, &append), 0);
    assert_false(append.outcome.is_done);
    assert_int_equal(c.session->layers[0].length, 30);
    assert_int_equal(kvd_session_length(c.session), 30);
    kvt_model_append(&c.model, &append);
    kvt_rig_settle(&c.rig);
    assert_int_equal(append.outcome.why.err, 0);
    assert_int_equal(c.session->layers[0].length, 2030);
    kvt_append_fini(&append);
    kvt_case_fini(&c);
}

/* Cancelled in all three states: waiting, being rotated, and waiting behind another layer's. */
static void test_s17_cancelled_leaves_no_trace(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 70);
    struct kvt_append first = kvt_append_of(c.session, 900, 1);
    struct kvt_append second = kvt_append_of(c.session, 1, 2);
    assert_int_equal(kvt_append_begin(&c.rig, &first), 0);
    second.start = 970;
    assert_int_equal(kvt_append_begin(&c.rig, &second), 0);
    assert_non_null(second.token);
    kvd_append_cancel(second.token, KVARN_ECANCELLED);
    assert_int_equal(second.outcome.why.err, KVARN_ECANCELLED); /* it waited: at once */
    kvd_append_cancel(first.token, KVARN_EDEADLINE);
    assert_false(first.outcome.is_done); /* workers write its rows: when they have ended */
    kvt_rig_settle(&c.rig);
    assert_int_equal(first.outcome.why.err, KVARN_EDEADLINE);
    kvt_case_check(&c);
    kvt_append_fini(&first);
    kvt_append_fini(&second);
    kvt_case_grow(&c, 5);
    kvt_case_fini(&c);
}

static void test_s17_late_append_is_not_stored(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    for (unsigned i = 0; i < 2; i++) {
        uint32_t tokens = i == 0 ? 1 : 900; /* on the loop, and by workers */
        struct kvt_append append = kvt_append_of(c.session, tokens, 1);
        append.deadline_ns = 1;
        (void)kvt_case_refuse(&c, append, KVARN_EDEADLINE);
    }
    struct kvt_append append = kvt_append_of(c.session, 900, 1);
    append.deadline_ns = UINT64_MAX;
    kvt_case_store(&c, append);
    kvt_case_fini(&c);
}

static void test_s09_identical_retry_answers_ok(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 20);
    for (unsigned i = 0; i < 8; i++) {
        bool is_batched = i % 2 == 1; /* hashed by a worker */
        uint32_t tokens = i < 4 ? 3 : 400;
        struct kvt_append append = kvt_append_of(c.session, tokens, i);
        append.is_batched = is_batched;
        kvt_case_store(&c, append);
        append.is_batched = i % 4 < 2;
        for (unsigned n = 0; n < 2; n++) {
            assert_int_equal(kvt_append_now(&c.rig, &append), 0);
            assert_true(append.outcome.is_flagged);
            kvt_case_check(&c);
        }
    }
    kvt_case_fini(&c);
}

static void test_s09_retry_of_part_of_the_layers_is_a_conflict(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    struct kvt_append append = kvt_append_of(c.session, 3, 1);
    kvt_case_store(&c, append);
    struct kvt_append part = append;
    part.layer_count = 2;
    (void)kvt_case_refuse(&c, part, KVARN_ECONFLICT);
    /* Another append of one layer in between: the first is no longer the last of all of its. */
    struct kvt_append more = kvt_append_of(c.session, 1, 2);
    more.layer_count = 1;
    kvt_case_store(&c, more);
    (void)kvt_case_refuse(&c, append, KVARN_ECONFLICT);
    kvt_case_fini(&c);
}

static void test_s09_other_contents_are_a_conflict(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    struct kvt_append append = kvt_append_of(c.session, 3, 1);
    kvt_case_store(&c, append);
    struct kvt_append others[5];
    for (unsigned i = 0; i < 5; i++) {
        others[i] = append;
    }
    others[0].values.seed = 2;
    others[1].is_rotated = true;     /* the same bytes, */
    others[2].dtype = KVARN_BF16;    /* with another */
    others[3].is_token_major = true; /* meaning */
    others[4].token_count = 2;
    for (unsigned i = 0; i < 5; i++) {
        if (i >= 1 && i <= 3) {
            kvt_append_fill(&append);
            others[i].payload = append.payload;
            others[i].payload_bytes = append.payload_bytes;
            append.payload = NULL;
        }
        for (unsigned batched = 0; batched < 2; batched++) {
            others[i].is_batched = batched == 1;
            assert_int_equal(kvt_append_begin(&c.rig, &others[i]), 0);
            kvt_rig_settle(&c.rig);
            assert_int_equal(others[i].outcome.why.err, KVARN_ECONFLICT);
            assert_int_equal(others[i].outcome.why.layer_count, 3);
        }
        kvt_append_fini(&others[i]);
        kvt_case_check(&c);
    }
    kvt_case_fini(&c);
}

static void test_s09_start_must_be_the_length(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 70);
    for (uint64_t start = 68; start < 73; start++) {
        struct kvt_append append = kvt_append_of(c.session, 2, 99);
        append.start = start;
        if (start != 70) {
            struct kvt_outcome outcome = kvt_case_refuse(&c, append, KVARN_ECONFLICT);
            assert_non_null(strstr(outcome.why.text, "70"));
        }
    }
    /* One layer apart from the others: an append of all of them fits none of the starts. */
    struct kvt_append one = kvt_append_of(c.session, 1, 5);
    one.layer_first = 1;
    one.layer_count = 1;
    kvt_case_store(&c, one);
    struct kvt_append all = kvt_append_of(c.session, 1, 5);
    (void)kvt_case_refuse(&c, all, KVARN_ECONFLICT);
    all.start = 71;
    (void)kvt_case_refuse(&c, all, KVARN_ECONFLICT);
    kvt_case_fini(&c);
}

static void test_s09_a_truncate_ends_what_can_be_retried(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    struct kvt_append append = kvt_append_of(c.session, 30, 1);
    kvt_case_store(&c, append);
    assert_false(kvt_case_cut(&c, 29));
    (void)kvt_case_refuse(&c, append, KVARN_ESTALE_EPOCH);
    append.epoch = c.session->epoch;
    (void)kvt_case_refuse(&c, append, KVARN_ECONFLICT);
    kvt_case_fini(&c);
}

/* Spoil one value; the error names layer, head and token. */
static void check_domain(struct kvt_case *c, uint32_t tokens, bool is_v, float value, bool rotated)
{
    struct kvt_append append = kvt_append_of(c->session, tokens, 1);
    char place[80];
    uint64_t token = append.start + tokens - 1;

    append.dtype = KVARN_F32;
    append.is_rotated = rotated;
    kvt_append_fill(&append);
    memcpy(append.payload + kvt_append_offset(&append, 1, is_v, 1, token), &value, sizeof(value));
    (void)snprintf(
        place, sizeof(place), "%s of layer 1, head 1, token %u", is_v ? "V" : "K", (unsigned)token);
    struct kvt_outcome outcome = kvt_case_refuse(c, append, KVARN_EDOMAIN);
    if (strstr(outcome.why.text, place) == NULL) {
        fail_msg("%s is not in: %s", place, outcome.why.text);
    }
}

static void test_s10_domain_names_layer_head_token_and_stores_nothing(void **state)
{
    static const uint32_t counts[] = {1, 40, 700}; /* the last by workers */
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 66);
    for (unsigned i = 0; i < 3; i++) {
        for (unsigned is_v = 0; is_v < 2; is_v++) {
            check_domain(&c, counts[i], is_v == 1, NAN, false);
            check_domain(&c, counts[i], is_v == 1, -INFINITY, true);
            check_domain(&c, counts[i], is_v == 1, 32769.0f, true);
            check_domain(&c, counts[i], is_v == 1, 3.0e38f, false);
        }
    }
    struct kvt_append edge = kvt_append_of(c.session, 1, 1);
    edge.dtype = KVARN_F32;
    edge.is_rotated = true;
    kvt_append_fill(&edge);
    float most = 32768.0f;
    memcpy(edge.payload, &most, sizeof(most));
    kvt_case_store(&c, edge);
    kvt_case_fini(&c);
}

/* Several jobs find something: the first in the payload's order is named, whoever ends first. */
static void test_s03_the_first_fault_is_named_with_any_workers(void **state)
{
    const float bad = NAN;
    (void)state;

    for (unsigned workers = 0; workers <= 4; workers += 2) {
        struct kvt_case c;
        kvt_case_init(&c,
            &(struct kvt_rig_options){
                .workers = workers, .jitter_us_max = 300, .jitter_seed = workers},
            0);
        struct kvt_append append = kvt_append_of(c.session, 2000, 1); /* 1.2 MiB: five jobs */
        append.dtype = KVARN_F32;
        kvt_append_fill(&append);
        for (uint32_t layer = 0; layer < 3; layer++) {
            size_t offset = kvt_append_offset(&append, layer, true, 0, 1500 - layer);
            memcpy(append.payload + offset, &bad, sizeof(bad));
        }
        struct kvt_outcome outcome = kvt_case_refuse(&c, append, KVARN_EDOMAIN);
        assert_non_null(strstr(outcome.why.text, "V of layer 0, head 0, token 1500"));
        kvt_case_fini(&c);
    }
}

static void test_s16_appends_keep_their_order(void **state)
{
    struct kvt_append appends[40];
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, &(struct kvt_rig_options){.workers = 2, .jitter_us_max = 100}, 5);
    uint64_t start = 0;
    for (unsigned i = 0; i < 40; i++) {
        uint32_t tokens = i % 5 == 0 ? 130 : 1; /* large ones leave the loop, small ones follow */
        appends[i] = kvt_append_of(c.session, tokens, i);
        appends[i].start = start;
        start += tokens;
        kvt_append_fill(&appends[i]);
        kvt_model_append(&c.model, &appends[i]);
        assert_int_equal(kvt_append_begin(&c.rig, &appends[i]), 0);
    }
    kvt_rig_settle(&c.rig);
    for (unsigned i = 0; i < 40; i++) {
        assert_int_equal(appends[i].outcome.done_count, 1);
        assert_int_equal(appends[i].outcome.why.err, 0);
        kvt_append_fini(&appends[i]);
    }
    kvt_case_fini(&c);
}

static void test_s16_other_layers_do_not_wait(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    struct kvt_append large = kvt_append_of(c.session, 1500, 1);
    struct kvt_append small = kvt_append_of(c.session, 2, 2);
    large.layer_count = 1;
    small.layer_first = 1;
    small.layer_count = 2;
    kvt_append_fill(&large);
    kvt_append_fill(&small);
    assert_int_equal(kvt_append_begin(&c.rig, &large), 0);
    assert_int_equal(kvt_append_begin(&c.rig, &small), 0);
    assert_false(large.outcome.is_done);
    assert_true(small.outcome.is_done);
    kvt_model_append(&c.model, &large);
    kvt_model_append(&c.model, &small);
    kvt_rig_settle(&c.rig);
    kvt_append_fini(&large);
    kvt_append_fini(&small);
    kvt_case_fini(&c);
}

static void test_s18_large_payloads_leave_the_loop(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    uint32_t token_bytes = (uint32_t)kvd_append_payload_bytes(c.rig.shape, 0, 3, 1, KVARN_F16);
    uint32_t most = (uint32_t)kvd_append_inline_bytes_max() / token_bytes;
    assert_true(kvd_append_inline_bytes_max() <= 64 * 1024);
    for (unsigned i = 0; i < 2; i++) {
        struct kvt_append append = kvt_append_of(c.session, most + i, i);
        append.start = append.start == 0 ? 0 : c.session->layers[0].length;
        kvt_append_fill(&append);
        kvt_model_append(&c.model, &append);
        assert_int_equal(kvt_append_begin(&c.rig, &append), 0);
        assert_int_equal(append.outcome.is_done, i == 0);
        kvt_rig_settle(&c.rig);
        assert_int_equal(append.outcome.why.err, 0);
        kvt_append_fini(&append);
    }
    kvt_case_fini(&c);
}

static void test_s18_blocks_are_reserved_over_several_turns(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvd_io_fake_set_tick(c.rig.fake, 12000);
    struct kvt_append append = kvt_append_of(c.session, 2000, 1); /* 32 blocks */
    kvt_append_fill(&append);
    kvt_model_append(&c.model, &append);
    assert_int_equal(kvt_append_begin(&c.rig, &append), 0);
    uint32_t blocks = kvd_session_block_count(c.session);
    unsigned turns = 0;
    assert_true(blocks > 0 && blocks < 10);
    /* What comes in between waits for its turn on these layers. */
    struct kvt_append next = kvt_append_of(c.session, 1, 2);
    next.start = 2000;
    kvt_append_fill(&next);
    kvt_model_append(&c.model, &next);
    assert_int_equal(kvt_append_begin(&c.rig, &next), 0);
    while (kvd_session_block_count(c.session) < 32) {
        (void)kvd_io_fake_turn(c.rig.fake);
        assert_true(kvd_session_block_count(c.session) <= blocks + 6);
        blocks = kvd_session_block_count(c.session);
        turns++;
    }
    assert_true(turns > 4);
    kvt_rig_settle(&c.rig);
    assert_int_equal(append.outcome.why.err, 0);
    assert_int_equal(next.outcome.why.err, 0);
    kvt_append_fini(&append);
    kvt_append_fini(&next);
    kvd_io_fake_set_tick(c.rig.fake, 0);
    kvt_case_fini(&c);
}

/* Cancelled, late or dropped while its blocks are being reserved. */
static void test_s17_cancelled_while_reserving(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 10);
    kvd_io_fake_set_tick(c.rig.fake, 30000);
    struct kvt_append append = kvt_append_of(c.session, 2000, 1);
    assert_int_equal(kvt_append_begin(&c.rig, &append), 0);
    assert_non_null(append.token);
    kvd_append_cancel(append.token, KVARN_ECANCELLED);
    kvt_rig_settle(&c.rig);
    assert_int_equal(append.outcome.why.err, KVARN_ECANCELLED);
    kvt_case_check(&c);
    kvt_append_fini(&append);
    kvd_io_fake_set_tick(c.rig.fake, 0);
    kvt_case_fini(&c);
}

static void test_s20_every_type_and_layout_is_read_alike(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    for (unsigned i = 0; i < 12; i++) {
        struct kvt_append append = kvt_append_of(c.session, 45, i);
        append.dtype = (enum kvarn_dtype)(i % 3);
        append.is_token_major = i / 3 % 2 == 1;
        append.is_rotated = i / 6 == 1;
        kvt_case_store(&c, append);
        kvt_case_check(&c);
    }
    kvt_case_fini(&c);
}

static void test_session_dropped_while_jobs_are_in_flight(void **state)
{
    struct kvt_rig rig;
    (void)state;

    kvt_rig_init(&rig, &(struct kvt_rig_options){.workers = 1, .jitter_us_max = 500});
    struct kvd_session *session = kvt_session_open(&rig, "gone", 0);
    struct kvt_append appends[4];
    uint64_t start = 0;
    for (unsigned i = 0; i < 4; i++) {
        appends[i] = kvt_append_of(session, 300, i); /* leaves seals in flight, too */
        appends[i].start = start;
        start += 300;
        assert_int_equal(kvt_append_begin(&rig, &appends[i]), 0);
    }
    struct kvt_attend attend = kvt_attend_of(session, 0, 1, 1);
    kvt_attend_begin(&rig, &attend);
    kvd_session_table_drop(&rig.service.sessions, session);
    assert_int_equal(rig.service.sessions.count, 0);
    kvt_rig_settle(&rig);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(appends[i].outcome.done_count, 1);
        assert_int_equal(appends[i].outcome.why.err, KVARN_ENOT_FOUND);
        kvt_append_fini(&appends[i]);
    }
    assert_int_equal(attend.outcome.why.err, KVARN_ENOT_FOUND);
    kvt_attend_fini(&attend);
    /* Its pages are back, though the handle is still held. */
    assert_int_equal(kvd_session_block_count(session), 0);
    kvd_session_unref(session);
    kvt_rig_fini(&rig);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_s01_sink_blocks_stay_halves),
    cmocka_unit_test(test_s02_blocks_are_sealed_at_their_lag),
    cmocka_unit_test(test_s03_own_rows_are_read_as_halves),
    cmocka_unit_test(test_s03_a_later_request_waits_for_the_seal),
    cmocka_unit_test(test_s04_window_layers_drop_old_blocks),
    cmocka_unit_test(test_s04_one_append_longer_than_the_window),
    cmocka_unit_test(test_s07_stale_epoch_is_refused_with_the_current_one),
    cmocka_unit_test(test_s08_nothing_is_seen_before_the_commit),
    cmocka_unit_test(test_s09_identical_retry_answers_ok),
    cmocka_unit_test(test_s09_retry_of_part_of_the_layers_is_a_conflict),
    cmocka_unit_test(test_s09_other_contents_are_a_conflict),
    cmocka_unit_test(test_s09_start_must_be_the_length),
    cmocka_unit_test(test_s09_a_truncate_ends_what_can_be_retried),
    cmocka_unit_test(test_s10_domain_names_layer_head_token_and_stores_nothing),
    cmocka_unit_test(test_s03_the_first_fault_is_named_with_any_workers),
    cmocka_unit_test(test_s16_appends_keep_their_order),
    cmocka_unit_test(test_s16_other_layers_do_not_wait),
    cmocka_unit_test(test_s17_cancelled_leaves_no_trace),
    cmocka_unit_test(test_s17_late_append_is_not_stored),
    cmocka_unit_test(test_s17_cancelled_while_reserving),
    cmocka_unit_test(test_s18_large_payloads_leave_the_loop),
    cmocka_unit_test(test_s18_blocks_are_reserved_over_several_turns),
    cmocka_unit_test(test_s20_every_type_and_layout_is_read_alike),
    cmocka_unit_test(test_session_dropped_while_jobs_are_in_flight),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
