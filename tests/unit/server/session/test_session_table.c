/*
 * Tests of server/session/session_table.c: names by tenant and in order, epochs, and the reaper.
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
#include "tests/support/session_rig.h"

struct fixture {
    struct kvt_rig rig;
    struct kvd_session_table *table;
};

static void fixture_init(struct fixture *fx)
{
    kvt_rig_init(&fx->rig, &(struct kvt_rig_options){0});
    fx->table = &fx->rig.service.sessions;
}

/* A named session of a tenant, held by the table alone. */
static struct kvd_session *insert(struct fixture *fx, uint32_t tenant_id, const char *name)
{
    struct kvd_session_options options = {0};
    struct kvd_session *session;

    assert_int_equal(
        kvd_session_create(&fx->rig.service, fx->rig.shape, name, &options, &session), 0);
    session->tenant_id = tenant_id;
    kvd_session_table_insert(fx->table, session);
    kvd_session_unref(session);
    return session;
}

static void test_names_are_found_by_tenant(void **state)
{
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    struct kvd_session *one = insert(&fx, 1, "same"), *two = insert(&fx, 2, "same");
    assert_ptr_equal(kvd_session_table_find(fx.table, 1, "same"), one);
    assert_ptr_equal(kvd_session_table_find(fx.table, 2, "same"), two);
    assert_null(kvd_session_table_find(fx.table, 3, "same"));
    assert_null(kvd_session_table_find(fx.table, 1, "sam"));
    assert_null(kvd_session_table_find(fx.table, 1, ""));
    kvd_session_table_drop(fx.table, one);
    assert_null(kvd_session_table_find(fx.table, 1, "same"));
    assert_ptr_equal(kvd_session_table_find(fx.table, 2, "same"), two);
    kvt_rig_fini(&fx.rig); /* ends those that are left */
}

static void test_names_are_listed_in_order(void **state)
{
    static const char *const names[] = {"b", "a", "ab", "c/1", "B"};
    static const char *const sorted[] = {"B", "a", "ab", "b", "c/1"};
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    for (unsigned i = 0; i < 5; i++) {
        (void)insert(&fx, 2, names[i]);
    }
    (void)insert(&fx, 1, "z");
    (void)insert(&fx, 3, "0");
    const char *after = NULL;
    for (unsigned i = 0; i < 5; i++) {
        struct kvd_session *session = kvd_session_table_next(fx.table, 2, after);
        assert_non_null(session);
        assert_string_equal(session->name, sorted[i]);
        after = sorted[i];
    }
    assert_null(kvd_session_table_next(fx.table, 2, after));
    /* A name that is not there: what comes after it. */
    assert_string_equal(kvd_session_table_next(fx.table, 2, "aa")->name, "ab");
    assert_null(kvd_session_table_next(fx.table, 2, "zz"));
    assert_null(kvd_session_table_next(fx.table, 4, NULL));
    kvt_rig_fini(&fx.rig);
}

static void test_s07_epochs_ascend_and_start_at_random(void **state)
{
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    uint64_t first = kvd_session_table_new_epoch(fx.table);
    assert_true(first > UINT64_C(1) << 32 && first < UINT64_C(1) << 63);
    for (unsigned i = 1; i < 1000; i++) {
        assert_true(kvd_session_table_new_epoch(fx.table) == first + i);
    }
    kvt_rig_fini(&fx.rig);
}

static void test_a_dropped_session_is_freed_though_it_is_held(void **state)
{
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    struct kvd_session *session = kvt_session_open(&fx.rig, "s", 0);
    struct kvt_append append = kvt_append_of(session, 600, 1);
    assert_int_equal(kvt_append_now(&fx.rig, &append), 0);
    assert_int_equal(fx.table->count, 1);
    kvd_session_table_drop(fx.table, session);
    kvd_session_table_drop(fx.table, session); /* once is enough */
    assert_int_equal(fx.table->count, 0);
    assert_true(kvd_session_table_has_dead(fx.table));
    kvt_rig_settle(&fx.rig);
    assert_int_equal(kvd_session_block_count(session), 0);
    assert_int_equal(session->refs, 1);
    assert_false(kvd_session_table_has_dead(fx.table));
    kvd_session_unref(session);
    assert_int_equal(fx.table->count, 0);
    kvt_rig_fini(&fx.rig);
}

static void test_a_name_is_free_once_it_is_dropped(void **state)
{
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    struct kvd_session *old = kvt_session_open(&fx.rig, "s", 0);
    kvd_session_table_drop(fx.table, old);
    struct kvd_session *session = kvt_session_open(&fx.rig, "s", 0);
    assert_ptr_equal(kvd_session_table_find(fx.table, KVD_TENANT_DEFAULT, "s"), session);
    assert_int_not_equal(session->epoch, old->epoch);
    kvd_session_unref(old);
    kvt_session_drop(&fx.rig, session);
    kvt_rig_fini(&fx.rig);
}

static void test_s11_the_reaper_works_in_slices(void **state)
{
    struct fixture fx;
    uint32_t blocks = 0;
    unsigned turns = 0;
    (void)state;

    fixture_init(&fx);
    struct kvd_session *sessions[3];
    for (unsigned i = 0; i < 3; i++) {
        sessions[i] = kvt_session_open(&fx.rig, NULL, 0);
        struct kvt_append append = kvt_append_of(sessions[i], 2000, i);
        assert_int_equal(kvt_append_now(&fx.rig, &append), 0);
        blocks += kvd_session_block_count(sessions[i]);
    }
    uint64_t used = fx.rig.service.pages.classes[KVD_PAGE_TILES].pages;
    kvd_io_fake_set_tick(fx.rig.fake, 50000); /* a block seems to take 50 us */
    for (unsigned i = 0; i < 3; i++) {
        kvt_session_drop(&fx.rig, sessions[i]);
    }
    while (kvd_session_table_has_dead(fx.table)) {
        uint64_t before = fx.rig.service.pages.classes[KVD_PAGE_TILES].pages;
        (void)kvd_io_fake_turn(fx.rig.fake);
        uint64_t freed = before - fx.rig.service.pages.classes[KVD_PAGE_TILES].pages;
        assert_true(freed <= 30); /* 250 us: some blocks of three pages, not all */
        turns++;
    }
    assert_true(used > 60 && blocks == 96);
    assert_true(turns > blocks / 10 && turns < 2 * blocks);
    assert_int_equal(fx.rig.service.pages.classes[KVD_PAGE_TILES].pages, 0);
    kvd_io_fake_set_tick(fx.rig.fake, 0);
    kvt_rig_fini(&fx.rig);
}

static void test_fini_of_a_table_that_was_never_made(void **state)
{
    struct kvd_session_table table;
    (void)state;

    memset(&table, 0, sizeof(table));
    kvd_session_table_fini(&table);
    assert_int_equal(table.count, 0);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_names_are_found_by_tenant),
    cmocka_unit_test(test_names_are_listed_in_order),
    cmocka_unit_test(test_s07_epochs_ascend_and_start_at_random),
    cmocka_unit_test(test_a_dropped_session_is_freed_though_it_is_held),
    cmocka_unit_test(test_a_name_is_free_once_it_is_dropped),
    cmocka_unit_test(test_s11_the_reaper_works_in_slices),
    cmocka_unit_test(test_fini_of_a_table_that_was_never_made),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
