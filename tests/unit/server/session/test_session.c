/*
 * Tests of server/session/session.c: life and memory of a session, and what readers and writers
 * check.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/session/session_blocks.h"
#include "tests/support/alloc_fail.h"
#include "tests/support/session_case.h"

static void test_create_is_charged_until_it_is_freed(void **state)
{
    struct kvd_session_options options = {.seal_lag = 64};
    struct kvd_session *session;
    struct kvt_rig rig;
    (void)state;

    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    uint64_t used = rig.service.budget.used_bytes;
    assert_int_equal(kvd_session_create(&rig.service, rig.shape, "name", &options, &session), 0);
    assert_true(rig.service.budget.used_bytes > used);
    assert_int_equal(rig.service.sessions.count, 1);
    assert_string_equal(session->name, "name");
    assert_int_equal(session->tenant_id, KVD_TENANT_DEFAULT);
    assert_int_equal(session->options.seal_lag, 64);
    assert_int_equal(kvd_session_length(session), 0);
    assert_ptr_equal(kvd_session_ref(session), session);
    kvd_session_unref(session);
    assert_int_equal(rig.service.sessions.count, 1);
    kvd_session_unref(session);
    assert_int_equal(rig.service.sessions.count, 0);
    assert_true(rig.service.budget.used_bytes > used); /* freed by the reaper, in a later turn */
    kvt_rig_settle(&rig);
    assert_int_equal(rig.service.budget.used_bytes, used);
    kvt_rig_fini(&rig);
}

static void test_create_without_memory_leaves_nothing(void **state)
{
    struct kvd_session_options options = {0};
    struct kvd_session *session = NULL;
    struct kvt_rig rig;
    (void)state;

    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    uint64_t used = rig.service.budget.used_bytes;
    kvt_alloc_fail_at(1);
    assert_int_equal(
        kvd_session_create(&rig.service, rig.shape, NULL, &options, &session), KVARN_ENOMEM);
    kvt_alloc_fail_at(0);
    rig.service.budget.limit_bytes = used + 10;
    assert_int_equal(
        kvd_session_create(&rig.service, rig.shape, NULL, &options, &session), KVARN_ENOSPC);
    assert_null(session);
    assert_int_equal(rig.service.budget.used_bytes, used);
    assert_int_equal(rig.service.sessions.count, 0);
    kvt_rig_fini(&rig);
}

static void test_s02_sealable_blocks(void **state)
{
    static const struct {
        uint32_t lag;
        uint64_t length;
        uint32_t blocks;
    } cases[] = {{0, 0, 0}, {0, 63, 0}, {0, 64, 1}, {0, 1000, 15}, {1, 0, 0}, {1, 64, 0},
        {1, 65, 1}, {64, 64, 0}, {64, 127, 0}, {64, 128, 1}, {64, 1 << 27, (1 << 21) - 1}};
    struct kvt_rig rig;
    (void)state;

    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    struct kvd_session *session = kvt_session_open(&rig, NULL, 0);
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        session->options.seal_lag = cases[i].lag;
        assert_int_equal(kvd_session_sealable_blocks(session, cases[i].length), cases[i].blocks);
    }
    kvt_session_drop(&rig, session);
    kvt_rig_fini(&rig);
}

static void test_committed_length_is_the_smallest(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 50);
    struct kvt_append append = kvt_append_of(c.session, 5, 1);
    append.layer_first = 1;
    append.layer_count = 2;
    kvt_case_store(&c, append);
    assert_int_equal(kvd_session_length(c.session), 50);
    append.layer_first = 0;
    append.layer_count = 1;
    kvt_case_store(&c, append);
    assert_int_equal(kvd_session_length(c.session), 55);
    kvt_case_fini(&c);
}

static void test_s07_check_epoch(void **state)
{
    struct kvd_failure why = {0};
    struct kvt_rig rig;
    (void)state;

    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    struct kvd_session *session = kvt_session_open(&rig, "s", 0);
    assert_int_equal(kvd_session_check_epoch(session, session->epoch, &why), 0);
    assert_int_equal(
        kvd_session_check_epoch(session, session->epoch + 1, &why), KVARN_ESTALE_EPOCH);
    assert_ptr_equal(why.session, session); /* the reply carries epoch and lengths */
    assert_int_equal(why.layer_first, 0);
    assert_int_equal(why.layer_count, 3);
    kvd_session_table_drop(&rig.service.sessions, session);
    why = (struct kvd_failure){0};
    assert_int_equal(kvd_session_check_epoch(session, session->epoch, &why), KVARN_ENOT_FOUND);
    kvd_session_unref(session);
    kvt_rig_fini(&rig);
}

static void test_s04_check_range(void **state)
{
    static const struct {
        uint64_t first, last;
        int err;
        Kvarnd__MissReason reason;
    } cases[] = {{0, 0, 0, 0}, {700, 700, 0, 0}, {384, 600, 0, 0}, {599, 600, 0, 0},
        {600, 601, KVARN_EMISS, KVARND__MISS_REASON__MISS_NEVER_STORED},
        {0, 601, KVARN_EMISS, KVARND__MISS_REASON__MISS_NEVER_STORED},
        {383, 600, KVARN_EMISS, KVARND__MISS_REASON__MISS_WINDOW},
        {0, 1, KVARN_EMISS, KVARND__MISS_REASON__MISS_WINDOW}};
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 600);
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct kvd_failure why = {0};
        assert_int_equal(kvd_session_check_range(c.session, 2, cases[i].first, cases[i].last, &why),
            cases[i].err);
        assert_int_equal(why.reason, cases[i].reason);
        why = (struct kvd_failure){0};
        if (cases[i].last <= 600) { /* a layer without a window has them all */
            assert_int_equal(
                kvd_session_check_range(c.session, 0, cases[i].first, cases[i].last, &why), 0);
        }
    }
    kvt_case_fini(&c);
}

static void test_usage_of_a_session(void **state)
{
    struct kvd_session_usage usage;
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvd_session_usage(c.session, &usage);
    assert_int_equal(usage.bytes[KVD_PAGE_SINK] + usage.reserved_bytes, 0);
    kvt_case_grow(&c, 150); /* a sink, a sealed and an open block; the model counts pages */
    kvd_session_usage(c.session, &usage);
    const struct kvd_layer_shape *layers = c.rig.shape->layers;
    size_t rows_bytes = 2 * layers[0].rows_page_bytes + layers[2].rows_page_bytes;
    size_t tile_bytes = 2 * layers[0].tile_page_bytes + layers[2].tile_page_bytes;
    for (unsigned i = 0; i < KVD_PAGE_CLASS_COUNT; i++) {
        assert_int_equal(usage.pages[i], 3);
        assert_int_equal(usage.bytes[i], i == KVD_PAGE_TILES ? tile_bytes : rows_bytes);
    }
    assert_int_equal(usage.reserved_bytes, tile_bytes);
    kvt_case_fini(&c);
}

static void test_s11_a_session_is_freed_block_by_block(void **state)
{
    struct kvt_rig rig;
    (void)state;

    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    struct kvd_session *session = kvt_session_open(&rig, NULL, 0);
    struct kvt_append append = kvt_append_of(session, 600, 1); /* 10 blocks */
    assert_int_equal(kvt_append_now(&rig, &append), 0);
    uint64_t pages = rig.service.pages.classes[KVD_PAGE_TILES].pages;
    kvd_session_clear(session); /* lets go of the blocks, and frees none yet */
    assert_int_equal(kvd_session_block_count(session), 0);
    assert_int_equal(rig.service.pages.classes[KVD_PAGE_TILES].pages, pages);
    assert_true(kvd_session_table_has_dead(&rig.service.sessions));
    kvt_rig_settle(&rig);
    assert_int_equal(rig.service.pages.classes[KVD_PAGE_TILES].pages, 0);
    kvt_session_drop(&rig, session);
    kvt_rig_fini(&rig);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_create_is_charged_until_it_is_freed),
    cmocka_unit_test(test_create_without_memory_leaves_nothing),
    cmocka_unit_test(test_s02_sealable_blocks),
    cmocka_unit_test(test_committed_length_is_the_smallest),
    cmocka_unit_test(test_s07_check_epoch),
    cmocka_unit_test(test_s04_check_range),
    cmocka_unit_test(test_usage_of_a_session),
    cmocka_unit_test(test_s11_a_session_is_freed_block_by_block),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
