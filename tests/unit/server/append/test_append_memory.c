/*
 * Tests of server/append/append.c when memory is short: refused at block boundaries only, whole,
 * and nothing stays charged (SEMANTICS.md 5); allocations that fail one by one.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/session/session_blocks.h"
#include "tests/support/alloc_fail.h"
#include "tests/support/session_case.h"
#include "tests/support/tiles.h"

#define MIB ((uint64_t)1 << 20)

/* Pages of 256 KiB of rows and some 40 KiB of tiles: 8 and 52 a chunk. */
static const struct kvd_layer_group wide_groups[] = {
    {.layers = 3, .kv_heads = 4, .k_dim = 128, .v_dim = 128},
};
static const struct kvd_shape_desc wide = {.model = "wide",
    .group = 128,
    .k_bits = 2,
    .v_bits = 2,
    .sink_tokens = 128,
    .layer_groups = wide_groups,
    .layer_group_count = 1};

/* What is held when empty chunks are given back. */
static uint64_t held(struct kvt_case *c)
{
    (void)kvd_page_store_reclaim(&c->rig.service.pages, UINT64_MAX);
    return c->rig.service.budget.used_bytes;
}

static bool is_refusal(int err)
{
    return err == KVARN_ENOSPC || err == KVARN_ERETRY_LATER;
}

/* A decode step: where the committed length is, the first layer takes pages for all. */
static void test_s05_the_first_layer_reserves_for_all(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, &(struct kvt_rig_options){.shape = &wide}, 0);
    kvt_case_grow(&c, 256);
    struct kvt_append append = kvt_append_of(c.session, 1, 1);
    append.layer_first = 1;
    append.layer_count = 1;
    kvt_case_store(&c, append);
    assert_int_equal(kvd_session_block_count(c.session), 3);
    for (uint32_t i = 0; i < 3; i++) {
        assert_non_null(kvd_session_rows(c.session, 2, i));
        assert_non_null(kvd_session_tiles(c.session, 2, i));
    }
    /* So the rest of this block needs no memory for pages. */
    c.rig.source.is_empty = true;
    for (uint32_t i = 0; i < 3; i++) {
        append = kvt_append_of(c.session, i == 1 ? 127 : 128, 2);
        append.layer_first = i;
        append.layer_count = 1;
        append.start = c.session->layers[i].length;
        kvt_case_store(&c, append);
    }
    c.rig.source.is_empty = false;
    kvt_case_fini(&c);
}

/* Prefill layer by layer: who runs ahead takes tiles for all layers, and rows for itself. */
static void test_s05_a_layer_that_runs_ahead_takes_its_own_rows(void **state)
{
    static const struct kvd_layer_group groups[] = {
        {.layers = 32, .kv_heads = 8, .k_dim = 128, .v_dim = 128}};
    struct kvd_shape_desc shape = wide;
    struct kvd_session_usage usage;
    struct kvt_rig rig;
    (void)state;

    shape.layer_groups = groups;
    kvt_rig_init(
        &rig, &(struct kvt_rig_options){.shape = &shape, .memory_limit = (uint64_t)4 << 30});
    struct kvd_session *session = kvt_session_open(&rig, NULL, 0);
    struct kvt_append append = kvt_append_of(session, 1024, 1);
    append.layer_count = 1;
    append.is_batched = true; /* a job: its blocks are reserved, and not sealed yet */
    assert_int_equal(kvt_append_begin(&rig, &append), 0);
    kvd_session_usage(session, &usage);
    size_t rows_bytes = rig.shape->layers[0].rows_page_bytes;
    size_t tile_bytes = rig.shape->layers[0].tile_page_bytes;
    assert_int_equal(usage.pages[KVD_PAGE_SINK], 32);
    assert_int_equal(usage.pages[KVD_PAGE_TAIL], 7); /* of layer 0, of 32 layers before */
    assert_int_equal(usage.reserved_bytes, 7 * 32 * tile_bytes);
    printf("1,024 tokens of one of 32 layers of 8 heads of 128: %.1f MiB of rows, %.1f MiB with"
           " those of all layers\n",
        (double)(usage.bytes[KVD_PAGE_SINK] + usage.bytes[KVD_PAGE_TAIL]) / (double)MIB,
        (double)(8 * 32 * rows_bytes) / (double)MIB);
    kvt_rig_settle(&rig);
    kvt_append_fini(&append);
    /* The others follow, and at last the tail has rows in all layers. */
    for (uint32_t i = 1; i < 32; i++) {
        append = kvt_append_of(session, 1030, i);
        append.start = 0;
        append.layer_first = i;
        append.layer_count = 1;
        assert_int_equal(kvt_append_now(&rig, &append), 0);
    }
    kvd_session_usage(session, &usage);
    assert_int_equal(usage.pages[KVD_PAGE_TAIL], 31);
    kvt_session_drop(&rig, session);
    kvt_rig_fini(&rig);
}

/* A few tokens at a time until the limit is met. */
static void test_s05_refused_at_block_boundaries_only(void **state)
{
    (void)state;

    for (uint32_t step = 16; step <= 64; step *= 2) {
        struct kvt_case c;
        unsigned refused = 0;
        kvt_case_init(&c, &(struct kvt_rig_options){.shape = &wide, .memory_limit = 7 * MIB}, 3);
        for (unsigned i = 0; i < 60 && refused < 3; i++) {
            uint64_t length = c.session->layers[0].length;
            struct kvt_append append = kvt_append_of(c.session, step, i);
            kvt_append_fill(&append);
            assert_int_equal(kvt_append_begin(&c.rig, &append), 0);
            kvt_rig_settle(&c.rig);
            if (append.outcome.why.err == 0) {
                kvt_model_append(&c.model, &append);
                assert_int_equal(refused, 0);
            } else {
                assert_int_equal(append.outcome.why.err, KVARN_ENOSPC); /* nothing is in flight */
                assert_int_equal(length % 128, 0);
                refused++;
            }
            kvt_append_fini(&append);
            kvt_case_check(&c);
        }
        assert_int_equal(refused, 3);
        assert_true(c.session->layers[0].length >= 256);
        kvt_case_fini(&c);
    }
}

static void test_s05_many_blocks_are_refused_whole(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, &(struct kvt_rig_options){.shape = &wide, .memory_limit = 16 * MIB}, 0);
    kvt_case_grow(&c, 200);
    uint64_t before = held(&c) - kvd_block_table_bytes(&c.session->table);
    struct kvt_append append = kvt_append_of(c.session, 2000, 1);
    (void)kvt_case_refuse(&c, append, KVARN_ENOSPC);
    kvt_rig_settle(&c.rig);
    assert_int_equal(held(&c) - kvd_block_table_bytes(&c.session->table), before);
    assert_int_equal(kvd_session_block_count(c.session), 2);
    kvt_case_fini(&c);
}

static void test_s05_retry_later_while_something_may_free_memory(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, &(struct kvt_rig_options){.shape = &wide, .memory_limit = 24 * MIB}, 0);
    struct kvt_append first = kvt_append_of(c.session, 500, 1);
    kvt_append_fill(&first);
    kvt_model_append(&c.model, &first);
    assert_int_equal(kvt_append_begin(&c.rig, &first), 0);
    assert_false(first.outcome.is_done);
    /* Jobs are in flight on one session; another one wants more than there is. */
    struct kvd_session *other = kvt_session_open(&c.rig, NULL, 0);
    struct kvt_append append = kvt_append_of(other, 3000, 1);
    kvt_append_fill(&append);
    assert_int_equal(kvt_append_begin(&c.rig, &append), 0);
    assert_int_equal(append.outcome.why.err, KVARN_ERETRY_LATER);
    assert_true(append.outcome.why.retry_after_ms > 0);
    kvt_rig_settle(&c.rig);
    assert_int_equal(first.outcome.why.err, 0);
    kvt_append_fini(&first);
    /* Nothing is in flight any more. */
    assert_int_equal(kvt_append_begin(&c.rig, &append), 0);
    assert_int_equal(append.outcome.why.err, KVARN_ENOSPC);
    kvt_append_fini(&append);
    kvt_session_drop(&c.rig, other);
    kvt_case_fini(&c);
}

/* Rows that a reader holds are copied on write; without room for that the append comes later. */
static void test_s05_copy_on_write_without_room_is_retried(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, &(struct kvt_rig_options){.shape = &kvt_shape_large}, 0);
    kvt_case_grow(&c, 200);
    struct kvd_page *page = kvd_page_ref(kvd_session_rows(c.session, 1, 0));
    uint8_t *seen = kvt_alloc(c.rig.shape->layers[0].rows_page_bytes);
    memcpy(seen, kvd_page_data(page), c.rig.shape->layers[0].rows_page_bytes);
    assert_false(kvt_case_cut(&c, 190));
    c.rig.service.budget.limit_bytes = c.rig.service.budget.used_bytes + MIB;
    /* Fill what is left of the chunks. */
    struct kvd_page *fill[8];
    unsigned filled = 0;
    while (filled < 8 &&
           kvd_page_take(&c.rig.service.pages, KVD_TENANT_DEFAULT,
               c.rig.shape->layers[0].rows_page_bytes, KVD_PAGE_TAIL, &fill[filled]) == 0) {
        filled++;
    }
    struct kvt_append append = kvt_append_of(c.session, 5, 9);
    struct kvt_outcome outcome = kvt_case_refuse(&c, append, KVARN_ERETRY_LATER);
    assert_true(outcome.why.retry_after_ms > 0);
    while (filled > 0) {
        kvd_page_unref(&c.rig.service.pages, fill[--filled]);
    }
    kvt_case_store(&c, append);
    assert_ptr_not_equal(kvd_session_rows(c.session, 1, 0), page);
    assert_memory_equal(seen, kvd_page_data(page), c.rig.shape->layers[0].rows_page_bytes);
    kvd_page_unref(&c.rig.service.pages, page);
    free(seen);
    c.rig.service.budget.limit_bytes = 1024 * MIB;
    kvt_case_fini(&c);
}

/* Where records came, other layers take rows page by page; a refused append gives them back. */
static void test_s05_rows_taken_for_a_refused_append_come_back(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, &(struct kvt_rig_options){.shape = &wide, .memory_limit = 16 * MIB}, 0);
    const struct kvd_layer_shape *ls = &c.rig.shape->layers[0];
    kvt_case_grow(&c, 128);
    uint32_t blocks = 30;
    struct kvd_append_run run = {
        .layer = 2, .first_token = 128, .token_count = (uint64_t)blocks * 128, .is_records = true};
    size_t bytes = (size_t)kvd_append_run_bytes(c.rig.shape, &run);
    uint8_t *payload = kvt_alloc(bytes); /* zeros are records: all codes and scales 0 */
    assert_int_equal(kvarn_record_validate(&ls->spec, payload, kvarn_record_bytes(&ls->spec)), 0);
    struct kvt_tiles tiles = {.session = c.session,
        .epoch = c.session->epoch,
        .runs = &run,
        .run_count = 1,
        .payload = payload,
        .payload_bytes = bytes};
    assert_int_equal(kvt_tiles_begin(&c.rig, &tiles), 0);
    kvt_rig_settle(&c.rig);
    assert_int_equal(tiles.outcome.why.err, 0);
    uint64_t before = held(&c);
    struct kvt_append append = kvt_append_of(c.session, blocks * 128, 1);
    append.layer_count = 2;
    int err = kvt_append_now(&c.rig, &append);
    assert_int_equal(err, KVARN_ENOSPC);
    assert_int_equal(held(&c), before);
    assert_int_equal(kvd_session_tail_pages(c.session, 0), 0);
    kvt_model_tiles(&c.model, &tiles);
    free(payload);
    kvt_case_fini(&c);
}

/* Every allocation that an append makes, failed one after the other. */
static void test_out_of_memory_at_every_step(void **state)
{
    struct kvt_case c;
    unsigned steps = 0;
    (void)state;

    kvt_case_init(&c, NULL, 7);
    kvt_case_grow(&c, 60);
    for (unsigned n = 1; n < 200; n++) {
        struct kvt_append append = kvt_append_of(c.session, 600, n);
        kvt_append_fill(&append);
        kvt_alloc_fail_at(n);
        int err = kvt_append_begin(&c.rig, &append);
        kvt_rig_settle(&c.rig);
        unsigned calls = kvt_alloc_calls();
        kvt_alloc_fail_at(0);
        err = err == 0 ? append.outcome.why.err : err;
        if (err == 0) {
            assert_true(calls < n);
            kvt_model_append(&c.model, &append);
            kvt_append_fini(&append);
            steps = n - 1;
            break;
        }
        assert_true(is_refusal(err) || err == KVARN_ENOMEM);
        kvt_append_fini(&append);
        kvt_case_check(&c);
    }
    assert_true(steps >= 10); /* append, blocks, seals */
    kvt_case_fini(&c);
}

/* A truncate into a sealed block, likewise. */
static void test_out_of_memory_in_a_truncate(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 200);
    kvt_alloc_fail_at(1);
    struct kvt_truncate truncate = {.session = c.session, .epoch = c.session->epoch, .length = 130};
    assert_int_equal(kvt_truncate_begin(&c.rig, &truncate), KVARN_ENOMEM);
    kvt_alloc_fail_at(0);
    kvt_rig_settle(&c.rig);
    assert_int_equal(truncate.outcome.done_count, 0);
    kvt_case_check(&c);
    assert_true(kvt_case_cut(&c, 130));
    kvt_case_fini(&c);
}

static void test_out_of_memory_in_an_attention(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 300);
    struct kvt_attend attend = kvt_attend_of(c.session, 0, 1, 1);
    kvt_model_attend(&c.model, &attend, 4);
    kvt_alloc_fail_at(1);
    assert_int_equal(kvt_attend_now(&c.rig, &attend), KVARN_ENOMEM);
    kvt_alloc_fail_at(0);
    c.rig.service.budget.limit_bytes = c.rig.service.budget.used_bytes + 100;
    assert_int_equal(kvt_attend_now(&c.rig, &attend), KVARN_ENOSPC);
    c.rig.service.budget.limit_bytes = 1024 * MIB;
    assert_int_equal(kvt_attend_now(&c.rig, &attend), 0);
    assert_true(kvt_attend_error(&attend) < 1e-4);
    kvt_attend_fini(&attend);
    kvt_case_fini(&c);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_s05_the_first_layer_reserves_for_all),
    cmocka_unit_test(test_s05_a_layer_that_runs_ahead_takes_its_own_rows),
    cmocka_unit_test(test_s05_refused_at_block_boundaries_only),
    cmocka_unit_test(test_s05_many_blocks_are_refused_whole),
    cmocka_unit_test(test_s05_retry_later_while_something_may_free_memory),
    cmocka_unit_test(test_s05_copy_on_write_without_room_is_retried),
    cmocka_unit_test(test_s05_rows_taken_for_a_refused_append_come_back),
    cmocka_unit_test(test_out_of_memory_at_every_step),
    cmocka_unit_test(test_out_of_memory_in_a_truncate),
    cmocka_unit_test(test_out_of_memory_in_an_attention),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
