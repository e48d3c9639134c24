/*
 * Tests of server/session/session_blocks.c: blocks of pages, made whole or not at all, dropped in
 * time.
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

#define MIB ((uint64_t)1 << 20)

struct fixture {
    struct kvt_rig rig;
    struct kvd_session *session;
};

static void fixture_init(struct fixture *fx, const struct kvt_rig_options *options)
{
    kvt_rig_init(&fx->rig, options);
    fx->session = kvt_session_open(&fx->rig, NULL, 0);
}

static void fixture_fini(struct fixture *fx)
{
    kvt_session_drop(&fx->rig, fx->session);
    kvt_rig_fini(&fx->rig);
}

/* Claim tokens for which no layer has rows, so that a trim keeps their blocks. */
static void claim(struct fixture *fx, uint64_t tokens)
{
    assert_int_equal(kvd_session_want_work(fx->session), 0);
    fx->session->work->layers[0].pending_length = (uint32_t)tokens;
}

static int add(struct fixture *fx, enum kvd_reserve kind)
{
    struct kvd_failure why = {0};

    return kvd_session_add_block(fx->session, kind, &why);
}

static void test_s05_a_block_has_pages_for_all_layers(void **state)
{
    struct fixture fx;
    (void)state;

    fixture_init(&fx, &(struct kvt_rig_options){0});
    claim(&fx, 192);
    assert_int_equal(add(&fx, KVD_RESERVE_TILES), 0); /* the sink has rows in any case */
    assert_int_equal(add(&fx, KVD_RESERVE_ROWS), 0);
    assert_int_equal(add(&fx, KVD_RESERVE_TILES), 0);
    for (uint32_t i = 0; i < 3; i++) {
        const struct kvd_layer_shape *ls = &fx.rig.shape->layers[i];
        const struct kvd_page *rows[3], *tiles[3];
        for (unsigned b = 0; b < 3; b++) {
            rows[b] = kvd_session_rows(fx.session, b, i);
            tiles[b] = kvd_session_tiles(fx.session, b, i);
        }
        assert_int_equal(kvd_page_bytes(rows[0]), ls->rows_page_bytes);
        assert_int_equal(rows[0]->page_class, KVD_PAGE_SINK);
        assert_null(tiles[0]);
        assert_int_equal(rows[1]->page_class, KVD_PAGE_TAIL);
        assert_int_equal(kvd_page_bytes(tiles[1]), ls->tile_page_bytes);
        assert_null(rows[2]);
        assert_int_equal(tiles[2]->page_class, KVD_PAGE_TILES);
        assert_int_equal(kvd_session_tail_pages(fx.session, i), 1);
    }
    fixture_fini(&fx);
}

/* The last layers' pages do not fit: none is kept. */
static void test_s05_a_block_is_made_whole_or_not_at_all(void **state)
{
    static const struct kvd_layer_group groups[] = {
        {.layers = 20, .kv_heads = 8, .k_dim = 128, .v_dim = 128}};
    struct kvd_shape_desc shape = kvt_shape_large;
    struct fixture fx;
    (void)state;

    shape.layer_groups = groups; /* 20 pages of 512 KiB: five chunks a block */
    fixture_init(&fx, &(struct kvt_rig_options){.shape = &shape, .memory_limit = 9 * MIB});
    uint64_t used = fx.rig.service.budget.used_bytes;
    assert_int_equal(add(&fx, KVD_RESERVE_ROWS), KVARN_ENOSPC);
    assert_int_equal(kvd_session_block_count(fx.session), 0);
    (void)kvd_page_store_reclaim(&fx.rig.service.pages, UINT64_MAX);
    assert_int_equal(
        fx.rig.service.budget.used_bytes, used + kvd_block_table_bytes(&fx.session->table));
    fx.rig.service.budget.limit_bytes = 40 * MIB;
    assert_int_equal(add(&fx, KVD_RESERVE_ROWS), 0);
    fx.rig.source.is_empty = true; /* the system has none, though the limit would allow it */
    assert_int_equal(add(&fx, KVD_RESERVE_ROWS), KVARN_ENOSPC);
    fx.rig.source.is_empty = false;
    fixture_fini(&fx);
}

static void test_s05_no_space_or_retry_later(void **state)
{
    struct kvd_failure why = {0};
    struct fixture fx;
    (void)state;

    fixture_init(&fx, &(struct kvt_rig_options){0});
    assert_int_equal(kvd_session_fail_space(&fx.rig.service, 1000, &why), KVARN_ENOSPC);
    assert_int_equal(why.retry_after_ms, 0);
    assert_non_null(strstr(why.text, "1000"));
    struct kvd_session *other = kvt_session_open(&fx.rig, NULL, 0);
    kvt_session_drop(&fx.rig, other); /* its memory will come back */
    assert_int_equal(kvd_session_fail_space(&fx.rig.service, 1000, &why), KVARN_ERETRY_LATER);
    assert_true(why.retry_after_ms > 0);
    kvt_rig_settle(&fx.rig);
    assert_int_equal(kvd_session_fail_space(&fx.rig.service, 1000, &why), KVARN_ENOSPC);
    fixture_fini(&fx);
}

static void test_block_table_grows(void **state)
{
    struct fixture fx;
    (void)state;

    fixture_init(&fx, &(struct kvt_rig_options){0});
    claim(&fx, 64 * 1000);
    for (unsigned i = 0; i < 1000; i++) {
        assert_int_equal(add(&fx, KVD_RESERVE_TILES), 0);
        assert_int_equal(kvd_session_block_count(fx.session), i + 1);
    }
    kvd_session_trim(fx.session);
    assert_int_equal(kvd_session_block_count(fx.session), 1000);
    fixture_fini(&fx);
}

static void test_trim_keeps_what_any_layer_needs(void **state)
{
    struct fixture fx;
    (void)state;

    fixture_init(&fx, &(struct kvt_rig_options){0});
    for (unsigned i = 0; i < 10; i++) {
        assert_int_equal(add(&fx, KVD_RESERVE_ROWS), 0);
    }
    assert_int_equal(kvd_session_want_work(fx.session), 0);
    fx.session->work->layers[1].pending_length = 65; /* an append in flight counts */
    kvd_session_trim(fx.session);
    assert_int_equal(kvd_session_block_count(fx.session), 2);
    assert_int_equal(kvd_session_tail_pages(fx.session, 0), 1);
    fx.session->work->layers[1].pending_length = 0;
    kvd_session_trim(fx.session);
    assert_int_equal(kvd_session_block_count(fx.session), 0);
    assert_int_equal(kvd_session_tail_pages(fx.session, 0), 0);
    assert_false(kvd_session_table_has_dead(&fx.rig.service.sessions));
    fixture_fini(&fx);
}

static void test_s18_a_large_trim_frees_later(void **state)
{
    struct fixture fx;
    (void)state;

    fixture_init(&fx, &(struct kvt_rig_options){0});
    for (unsigned i = 0; i < 200; i++) {
        assert_int_equal(add(&fx, KVD_RESERVE_TILES), 0);
    }
    uint64_t pages = fx.rig.service.pages.classes[KVD_PAGE_TILES].pages;
    assert_int_equal(pages, 3 * 199);
    kvd_session_trim(fx.session);
    assert_int_equal(kvd_session_block_count(fx.session), 0);
    pages -= fx.rig.service.pages.classes[KVD_PAGE_TILES].pages;
    assert_true(pages > 0 && pages < 150); /* some at once */
    assert_true(kvd_session_table_has_dead(&fx.rig.service.sessions));
    kvt_rig_settle(&fx.rig);
    assert_int_equal(fx.rig.service.pages.classes[KVD_PAGE_TILES].pages, 0);
    fixture_fini(&fx);
}

static void test_rows_for_write(void **state)
{
    struct kvd_failure why = {0};
    struct kvd_page *copied;
    struct fixture fx;
    (void)state;

    fixture_init(&fx, &(struct kvt_rig_options){0});
    claim(&fx, 128);
    assert_int_equal(add(&fx, KVD_RESERVE_ROWS), 0);
    assert_int_equal(add(&fx, KVD_RESERVE_TILES), 0);
    struct kvd_page *page = kvd_session_rows(fx.session, 0, 0);
    kvd_page_set_filled(page, 30);
    assert_int_equal(kvd_session_rows_for_write(fx.session, 0, 0, 10, &copied, &why), 0);
    assert_true(
        copied == NULL && kvd_session_rows(fx.session, 0, 0) == page); /* nobody else holds it */
    (void)kvd_page_ref(page);
    assert_int_equal(kvd_session_rows_for_write(fx.session, 0, 0, 30, &copied, &why), 0);
    assert_true(
        copied == NULL && kvd_session_rows(fx.session, 0, 0) == page); /* what was written stays */
    assert_int_equal(kvd_session_rows_for_write(fx.session, 0, 0, 29, &copied, &why), 0);
    assert_ptr_equal(copied, page);
    const struct kvd_page *own = kvd_session_rows(fx.session, 0, 0);
    assert_ptr_not_equal(own, page);
    assert_int_equal(kvd_page_filled(own), 29);
    assert_int_equal(own->page_class, KVD_PAGE_SINK);
    kvd_page_unref(&fx.rig.service.pages, page);
    kvd_page_unref(&fx.rig.service.pages, copied);
    /* There is none yet: records were expected. */
    assert_int_equal(kvd_session_rows_for_write(fx.session, 1, 1, 0, &copied, &why), 0);
    assert_null(copied);
    assert_int_equal(kvd_session_rows(fx.session, 1, 1)->page_class, KVD_PAGE_TAIL);
    assert_int_equal(kvd_session_tail_pages(fx.session, 1), 1);
    kvd_session_drop_rows(fx.session, 1, 1);
    assert_null(kvd_session_rows(fx.session, 1, 1));
    assert_int_equal(kvd_session_tail_pages(fx.session, 1), 0);
    fixture_fini(&fx);
}

static void test_s04_window_blocks(void **state)
{
    static const struct {
        uint64_t length;
        uint32_t lag, blocks;
    } cases[] = {{0, 0, 0}, {164, 0, 0}, {227, 0, 0}, {228, 0, 1}, {292, 0, 2}, {292, 1, 1},
        {292, 64, 1}, {10000, 0, 153}};
    struct fixture fx;
    (void)state;

    fixture_init(&fx, &(struct kvt_rig_options){0});
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        fx.session->options.seal_lag = cases[i].lag;
        assert_int_equal(
            kvd_session_window_blocks(fx.session, 2, cases[i].length), cases[i].blocks);
        assert_int_equal(kvd_session_window_blocks(fx.session, 0, cases[i].length), 0);
    }
    fixture_fini(&fx);
}

static void test_s04_a_block_goes_with_its_last_layer(void **state)
{
    static const struct kvd_layer_group groups[] = {
        {.layers = 1, .kv_heads = 1, .k_dim = 8, .v_dim = 8, .window = 10},
        {.layers = 1, .kv_heads = 1, .k_dim = 8, .v_dim = 8, .window = 200}};
    struct kvd_shape_desc shape = kvt_shape_small;
    struct kvt_case c;
    (void)state;

    shape.layer_groups = groups;
    kvt_case_init(&c, &(struct kvt_rig_options){.shape = &shape}, 0);
    kvt_case_grow(&c, 300);
    assert_int_equal(c.session->layers[0].dropped_blocks, 3);
    assert_int_equal(c.session->layers[1].dropped_blocks, 0);
    assert_int_equal(kvd_session_block(c.session, 0)->layers_kept, 1);
    kvt_case_grow(&c, 100);
    assert_int_equal(c.session->layers[1].dropped_blocks, 2);
    assert_null(kvd_session_block(c.session, 0));
    assert_null(kvd_session_block(c.session, 1));
    assert_non_null(kvd_session_block(c.session, 2));
    kvt_case_check(&c);
    kvt_case_cut(&c, 398);
    kvt_case_grow(&c, 200);
    kvt_case_fini(&c);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_s05_a_block_has_pages_for_all_layers),
    cmocka_unit_test(test_s05_a_block_is_made_whole_or_not_at_all),
    cmocka_unit_test(test_s05_no_space_or_retry_later),
    cmocka_unit_test(test_block_table_grows),
    cmocka_unit_test(test_trim_keeps_what_any_layer_needs),
    cmocka_unit_test(test_s18_a_large_trim_frees_later),
    cmocka_unit_test(test_rows_for_write),
    cmocka_unit_test(test_s04_window_blocks),
    cmocka_unit_test(test_s04_a_block_goes_with_its_last_layer),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
