/*
 * Tests of server/session/session_work.c: what an idle session gives back, and that nothing else
 * changes by it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "server/session/session_blocks.h"
#include "tests/support/session_case.h"

static uint64_t sessions_bytes(const struct kvt_case *c)
{
    return c->rig.service.budget.kind_bytes[KVD_BUDGET_SESSIONS];
}

/* A tick when the session was last used so long ago. */
static void tick(struct kvt_case *c, uint64_t idle_ns)
{
    kvd_session_work_tick(&c->rig.service.sessions, c->session->touched_ns + idle_ns);
}

static void test_an_idle_session_gives_its_work_back(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    assert_null(c.session->work);
    kvt_case_grow(&c, 300);
    assert_non_null(c.session->work);
    uint64_t bytes = sessions_bytes(&c), work_bytes = kvd_session_work_bytes(c.session);
    assert_true(work_bytes > 0);
    tick(&c, KVD_SESSION_WORK_KEEP_NS - 1);
    assert_non_null(c.session->work);
    tick(&c, KVD_SESSION_WORK_KEEP_NS);
    assert_null(c.session->work);
    assert_int_equal(sessions_bytes(&c), bytes - work_bytes);
    kvt_case_check(&c); /* counts rows where they are */
    kvt_case_grow(&c, 77);
    assert_non_null(c.session->work);
    assert_int_equal(c.session->work->layers[0].tail_pages, kvd_session_tail_pages(c.session, 0));
    kvt_case_fini(&c);
}

static void test_s09_a_retry_is_known_until_the_work_is_gone(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    struct kvt_append append = kvt_append_of(c.session, 100, 7);
    kvt_append_fill(&append);
    kvt_model_append(&c.model, &append);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(kvt_append_begin(&c.rig, &append), 0);
        kvt_rig_settle(&c.rig);
        assert_int_equal(append.outcome.why.err, 0);
        append.outcome = (struct kvt_outcome){0};
    }
    tick(&c, KVD_SESSION_WORK_KEEP_NS);
    assert_int_equal(kvt_append_begin(&c.rig, &append), 0);
    kvt_rig_settle(&c.rig);
    assert_int_equal(append.outcome.why.err, KVARN_ECONFLICT);
    kvt_append_fini(&append);
    kvt_case_check(&c);
    kvt_case_fini(&c);
}

/* Pages kept for copies of shared rows go too; they are taken anew when they are needed. */
static void test_spare_rows_go_with_it(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 300);
    struct kvd_session *child = kvt_fork_now(&c.rig, c.session, UINT64_MAX);
    struct kvt_append append = kvt_append_of(c.session, 1, 9);
    append.layer_count = 1;
    kvt_append_fill(&append);
    kvt_model_append(&c.model, &append);
    assert_int_equal(kvt_append_now(&c.rig, &append), 0);
    assert_true(kvd_session_has_spare(c.session, 1));
    uint64_t pages = c.rig.service.pages.classes[KVD_PAGE_TAIL].pages;
    tick(&c, KVD_SESSION_WORK_KEEP_NS);
    assert_false(kvd_session_has_spare(c.session, 1));
    assert_true(c.rig.service.pages.classes[KVD_PAGE_TAIL].pages < pages);
    kvt_session_drop(&c.rig, child);
    kvt_rig_settle(&c.rig);
    kvt_case_fini(&c);
}

static void test_what_is_at_work_keeps_it(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 100);
    c.session->work->layers[1].pending++;
    tick(&c, 2 * KVD_SESSION_WORK_KEEP_NS);
    assert_non_null(c.session->work);
    c.session->work->layers[1].pending--;
    tick(&c, 2 * KVD_SESSION_WORK_KEEP_NS);
    assert_null(c.session->work);
    kvt_case_fini(&c);
}

static void test_s05_without_room_nothing_begins(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 100);
    tick(&c, KVD_SESSION_WORK_KEEP_NS);
    (void)kvd_page_store_reclaim(&c.rig.service.pages, UINT64_MAX);
    struct kvd_budget *budget = &c.rig.service.budget;
    uint64_t limit = budget->limit_bytes, used = budget->used_bytes;
    budget->limit_bytes = used;
    assert_int_equal(kvd_session_want_work(c.session), KVARN_ENOSPC);
    assert_null(c.session->work);
    assert_int_equal(budget->used_bytes, used);
    budget->limit_bytes = limit;
    kvt_case_check(&c);
    kvt_case_fini(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_an_idle_session_gives_its_work_back),
        cmocka_unit_test(test_s09_a_retry_is_known_until_the_work_is_gone),
        cmocka_unit_test(test_spare_rows_go_with_it),
        cmocka_unit_test(test_what_is_at_work_keeps_it),
        cmocka_unit_test(test_s05_without_room_nothing_begins),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
