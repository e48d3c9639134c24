/*
 * Tests of server/session/block_table.c: spans shared whole, copied before they change, counted
 * exactly.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "server/session/block_table.h"
#include "tests/support/alloc_fail.h"
#include "tests/support/session_rig.h"

#define PAGE_BYTES 4096

struct fixture {
    struct kvt_rig rig;
    struct kvd_service *service;
    struct kvd_block_table table;
};

static void fixture_init(struct fixture *fx)
{
    kvt_rig_init(&fx->rig, &(struct kvt_rig_options){0});
    fx->service = &fx->rig.service;
    fx->table = (struct kvd_block_table){0};
}

/* Everything must have come back by itself. */
static void fixture_fini(struct fixture *fx)
{
    kvt_rig_settle(&fx->rig);
    assert_int_equal(fx->service->pages.classes[KVD_PAGE_TILES].pages, 0);
    kvt_rig_fini(&fx->rig);
}

/* Add blocks of one layer with a page each. */
static void grow(struct fixture *fx, struct kvd_block_table *table, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct kvd_block *block = kvd_block_create(fx->service, 1);
        assert_non_null(block);
        struct kvd_page *page = NULL;
        assert_int_equal(kvd_page_take(&fx->service->pages, KVD_TENANT_DEFAULT, PAGE_BYTES,
                             KVD_PAGE_TILES, &page),
            0);
        assert_int_equal(kvd_block_want_tiles(fx->service, block), 0);
        kvd_block_set_tiles(block, 0, page);
        assert_int_equal(kvd_block_table_reserve(fx->service, table), 0);
        kvd_block_table_push(table, block);
    }
}

static void test_a_clone_shares_whole_spans_and_single_blocks(void **state)
{
    struct kvd_block_table clone = {0};
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    grow(&fx, &fx.table, 130);
    assert_int_equal(kvd_block_table_clone(fx.service, &fx.table, &clone), 0);
    assert_int_equal(clone.count, 130);
    for (unsigned i = 0; i < 130; i++) {
        assert_ptr_equal(kvd_block_table_at(&clone, i), kvd_block_table_at(&fx.table, i));
        assert_int_equal(kvd_block_table_at(&clone, i)->refs, i < 128 ? 1 : 2);
    }
    assert_ptr_equal(clone.spans[0], fx.table.spans[0]);
    assert_int_equal(clone.spans[1]->refs, 2);
    assert_ptr_not_equal(clone.spans[2], fx.table.spans[2]);
    kvd_block_table_clear(fx.service, &fx.table); /* in either order */
    kvt_rig_settle(&fx.rig);
    assert_int_equal(fx.service->pages.classes[KVD_PAGE_TILES].pages, 130);
    assert_int_equal(kvd_block_table_at(&clone, 129)->refs, 1);
    kvd_block_table_clear(fx.service, &clone);
    fixture_fini(&fx);
}

static void test_a_span_is_copied_before_it_changes(void **state)
{
    struct kvd_block_table clone = {0};
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    grow(&fx, &fx.table, 64);
    assert_int_equal(kvd_block_table_clone(fx.service, &fx.table, &clone), 0);
    assert_true(kvd_block_table_last_is_shared(&clone));
    assert_int_equal(kvd_block_table_own_span(fx.service, &clone, 10), 0);
    assert_false(kvd_block_table_last_is_shared(&clone));
    assert_int_equal(fx.table.spans[0]->refs, 1);
    assert_int_equal(kvd_block_table_at(&clone, 10)->refs, 2);
    struct kvd_span *span = clone.spans[0];
    assert_int_equal(kvd_block_table_own_span(fx.service, &clone, 20), 0);
    assert_ptr_equal(clone.spans[0], span); /* once is enough */
    struct kvd_block *old = kvd_block_table_swap(&clone, 10, NULL);
    assert_ptr_equal(old, kvd_block_table_at(&fx.table, 10));
    kvd_block_unref(fx.service, old);
    assert_int_equal(old->refs, 1);
    struct kvd_block *last = kvd_block_table_pop(fx.service, &clone);
    assert_int_equal(last->refs, 2);
    kvd_block_unref(fx.service, last);
    assert_int_equal(fx.table.count, 64);
    kvd_block_table_clear(fx.service, &clone);
    kvd_block_table_clear(fx.service, &fx.table);
    fixture_fini(&fx);
}

static void test_a_shared_span_goes_whole(void **state)
{
    struct kvd_block_table clone = {0};
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    grow(&fx, &fx.table, 128);
    assert_int_equal(kvd_block_table_clone(fx.service, &fx.table, &clone), 0);
    kvd_block_table_pop_span(fx.service, &clone);
    assert_int_equal(clone.count, 64);
    assert_int_equal(fx.table.spans[1]->refs, 1);
    grow(&fx, &clone, 1); /* the place is free for a span of its own */
    assert_int_equal(kvd_block_table_at(&clone, 64)->refs, 1);
    kvd_block_table_pop_span(fx.service, &clone);
    kvt_rig_settle(&fx.rig);
    assert_int_equal(fx.service->pages.classes[KVD_PAGE_TILES].pages, 128);
    kvd_block_table_clear(fx.service, &fx.table);
    kvd_block_table_clear(fx.service, &clone);
    fixture_fini(&fx);
}

static void test_what_a_table_holds_is_charged_and_given_back(void **state)
{
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    uint64_t used = fx.service->budget.used_bytes;
    assert_int_equal(kvd_block_table_reserve(fx.service, &fx.table), 0);
    assert_int_equal(fx.service->budget.used_bytes, used + kvd_block_table_bytes(&fx.table));
    assert_true(kvd_block_table_bytes(&fx.table) < 128); /* a short session is small */
    grow(&fx, &fx.table, 200);
    while (fx.table.count > 0) {
        kvd_block_unref(fx.service, kvd_block_table_pop(fx.service, &fx.table));
    }
    (void)kvd_page_store_reclaim(&fx.service->pages, UINT64_MAX);
    assert_int_equal(fx.service->budget.used_bytes, used + kvd_block_table_bytes(&fx.table));
    kvd_block_table_clear(fx.service, &fx.table);
    assert_int_equal(fx.service->budget.used_bytes, used);
    fixture_fini(&fx);
}

/* Each allocation of a clone and of a copy refused in turn: nothing has changed. */
static void test_without_room_nothing_is_shared(void **state)
{
    struct kvd_block_table clone = {0};
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    grow(&fx, &fx.table, 70);
    uint64_t used = fx.service->budget.used_bytes;
    for (unsigned i = 1; i <= 2; i++) {
        kvt_alloc_fail_at(i);
        assert_int_equal(kvd_block_table_clone(fx.service, &fx.table, &clone), KVARN_ENOSPC);
        kvt_alloc_fail_at(0);
        assert_int_equal(clone.count, 0);
        assert_int_equal(fx.table.spans[0]->refs, 1);
        kvt_rig_settle(&fx.rig);
        assert_int_equal(fx.service->budget.used_bytes, used);
    }
    assert_int_equal(kvd_block_table_clone(fx.service, &fx.table, &clone), 0);
    fx.service->budget.limit_bytes = fx.service->budget.used_bytes;
    assert_int_equal(kvd_block_table_own_span(fx.service, &clone, 0), KVARN_ENOSPC);
    assert_true(clone.spans[0] == fx.table.spans[0] && clone.spans[0]->refs == 2);
    kvd_block_table_clear(fx.service, &clone);
    kvd_block_table_clear(fx.service, &fx.table);
    fixture_fini(&fx);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_a_clone_shares_whole_spans_and_single_blocks),
    cmocka_unit_test(test_a_span_is_copied_before_it_changes),
    cmocka_unit_test(test_a_shared_span_goes_whole),
    cmocka_unit_test(test_what_a_table_holds_is_charged_and_given_back),
    cmocka_unit_test(test_without_room_nothing_is_shared),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
