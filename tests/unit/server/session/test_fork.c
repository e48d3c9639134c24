/*
 * Tests of server/session/fork.c: copies that share, rows copied when both write, cuts, drops in
 * any order.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "server/evict/session_evict.h"
#include "server/session/session_blocks.h"
#include "tests/support/alloc_fail.h"
#include "tests/support/session_case.h"
#include "tests/support/session_refs.h"

static uint64_t page_count(const struct kvt_rig *rig)
{
    uint64_t pages = 0;

    for (unsigned i = 0; i < KVD_PAGE_CLASS_COUNT; i++) {
        pages += rig->service.pages.classes[i].pages;
    }
    return pages;
}

/* A copy of the case's session in a case of its own, with a model of its own. */
static struct kvt_case case_fork(struct kvt_case *c, uint64_t length)
{
    struct kvt_case child = {.session = kvt_fork_now(&c->rig, c->session, length)};

    kvt_model_copy(&child.model, &c->model);
    (void)kvt_model_truncate(&child.model, length);
    assert_int_equal(kvt_model_check(&child.model, child.session), 0);
    return child;
}

static void refs_check(struct kvt_case *c, const struct kvt_case *child)
{
    struct kvt_refs refs;

    kvt_refs_init(&refs);
    kvt_refs_add_session(&refs, c->session);
    kvt_refs_add_session(&refs, child->session);
    assert_int_equal(kvt_refs_check(&refs, &c->rig.service), 0);
    kvt_refs_fini(&refs);
}

/* Append to a case whose rig is another's. */
static void child_grow(struct kvt_case *c, struct kvt_case *child, uint32_t count, uint64_t seed)
{
    struct kvt_append append = kvt_append_of(child->session, count, seed);

    kvt_append_fill(&append);
    kvt_model_append(&child->model, &append);
    assert_int_equal(kvt_append_now(&c->rig, &append), 0);
    assert_int_equal(kvt_model_check(&child->model, child->session), 0);
}

static void child_fini(struct kvt_case *c, struct kvt_case *child)
{
    assert_int_equal(kvt_model_check(&child->model, child->session), 0);
    kvt_session_drop(&c->rig, child->session);
    kvt_rig_settle(&c->rig);
    kvt_model_fini(&child->model);
}

static void test_s11_a_fork_shares_every_page(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 300);
    uint64_t pages = page_count(&c.rig);
    uint64_t forked = c.rig.service.metrics.values[KVD_METRIC_sessions_forked];
    struct kvt_case child = case_fork(&c, UINT64_MAX);
    assert_int_equal(page_count(&c.rig), pages);
    assert_int_equal(c.rig.service.metrics.values[KVD_METRIC_sessions_forked], forked + 1);
    assert_int_not_equal(child.session->epoch, c.session->epoch);
    assert_int_equal(kvd_session_length(child.session), 300);
    refs_check(&c, &child);
    child_fini(&c, &child);
    assert_int_equal(page_count(&c.rig), pages);
    kvt_case_fini(&c);
}

/* Whoever writes first goes on in place, the other copies; neither sees the other's rows. */
static void test_s11_the_tail_is_copied_on_write(void **state)
{
    struct kvt_case c;
    (void)state;

    for (int parent_first = 0; parent_first < 2; parent_first++) {
        kvt_case_init(&c, NULL, 0);
        kvt_case_grow(&c, 300); /* block 4 has 44 rows */
        const struct kvd_page *rows = kvd_session_rows(c.session, 4, 0);
        struct kvt_case child = case_fork(&c, UINT64_MAX);
        for (int i = 0; i < 2; i++) {
            if ((i == 0) == (parent_first != 0)) {
                kvt_case_grow(&c, 3);
            } else {
                child_grow(&c, &child, 5, 77);
            }
        }
        assert_int_equal(kvd_session_rows(c.session, 4, 0) == rows, parent_first);
        assert_int_equal(kvd_session_rows(child.session, 4, 0) == rows, !parent_first);
        assert_ptr_equal(kvd_session_block(child.session, 3), kvd_session_block(c.session, 3));
        kvt_case_check(&c);
        refs_check(&c, &child);
        kvt_case_grow(&c, 200); /* both seal the block, each for itself */
        child_grow(&c, &child, 150, 78);
        kvt_case_check(&c);
        child_fini(&c, &child);
        kvt_case_fini(&c);
    }
}

/* The first layer of a step takes room for the rows of all: the rest of the step finds it. */
static void test_s05_a_step_of_a_copy_finds_room_at_its_first_layer(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 300);
    struct kvt_case child = case_fork(&c, UINT64_MAX);
    kvt_case_grow(&c, 1); /* the parent has the page: the copy must copy */
    struct kvt_append append = kvt_append_of(child.session, 1, 5);
    append.layer_count = 1;
    kvt_append_fill(&append);
    kvt_model_append(&child.model, &append);
    assert_int_equal(kvt_append_now(&c.rig, &append), 0);
    assert_false(kvd_session_has_spare(child.session, 0));
    assert_true(kvd_session_has_spare(child.session, 1));
    assert_int_equal(kvt_model_check(&child.model, child.session), 0);
    refs_check(&c, &child);
    c.rig.source.is_empty = true; /* no more memory */
    uint64_t limit = c.rig.service.budget.limit_bytes;
    for (uint32_t layer = 1; layer < 3; layer++) {
        append = kvt_append_of(child.session, 1, 5);
        append.start = 300;
        append.layer_first = layer;
        append.layer_count = 1;
        kvt_append_fill(&append);
        kvt_model_append(&child.model, &append);
        assert_int_equal(kvt_append_now(&c.rig, &append), 0);
    }
    c.rig.source.is_empty = false;
    c.rig.service.budget.limit_bytes = limit;
    refs_check(&c, &child);
    child_fini(&c, &child);
    kvt_case_fini(&c);
}

static void test_s11_a_shorter_copy_is_cut_like_a_truncate(void **state)
{
    static const struct {
        uint64_t length;
        bool is_lossy;
    } cases[] = {{0, false}, {163, true}, {192, false}, {200, true}, {256, false}, {257, false},
        {300, false}};
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 32);
    kvt_case_grow(&c, 300); /* sealed up to 256 */
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct kvt_fork fork = {
            .parent = c.session, .epoch = c.session->epoch, .length = cases[i].length};
        assert_int_equal(kvt_fork_begin(&c.rig, &fork), 0);
        kvt_rig_settle(&c.rig);
        assert_int_equal(fork.outcome.why.err, 0);
        assert_int_equal(fork.outcome.is_flagged, cases[i].is_lossy);
        struct kvt_model model;
        kvt_model_copy(&model, &c.model);
        (void)kvt_model_truncate(&model, cases[i].length);
        assert_int_equal(kvt_model_check(&model, fork.child), 0);
        kvt_model_fini(&model);
        kvt_session_drop(&c.rig, fork.child);
        kvt_rig_settle(&c.rig);
        kvt_case_check(&c); /* the parent saw nothing of it */
    }
    kvt_case_fini(&c);
}

static void test_s04_a_copy_needs_its_window(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 600); /* the window layer has dropped 6 blocks */
    struct kvt_fork fork = {.parent = c.session, .epoch = c.session->epoch, .length = 200};
    assert_int_equal(kvt_fork_begin(&c.rig, &fork), 0);
    kvt_rig_settle(&c.rig);
    assert_int_equal(fork.outcome.why.err, KVARN_EMISS);
    assert_int_equal(fork.outcome.why.reason, KVARND__MISS_REASON__MISS_WINDOW);
    assert_null(fork.child);
    assert_int_equal(c.rig.service.sessions.count, 1);
    struct kvt_case child = case_fork(&c, 590);
    child_grow(&c, &child, 300, 3); /* its window moves over blocks that are shared */
    kvt_case_check(&c);
    refs_check(&c, &child);
    child_fini(&c, &child);
    kvt_case_fini(&c);
}

static void test_s11_what_is_not_stored_is_not_copied(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 100);
    struct kvt_append append = kvt_append_of(c.session, 50, 1);
    append.layer_count = 1;
    kvt_case_store(&c, append); /* layer 0 is ahead */
    struct kvt_fork fork = {.parent = c.session, .epoch = c.session->epoch, .length = 101};
    assert_int_equal(kvt_fork_begin(&c.rig, &fork), 0);
    kvt_rig_settle(&c.rig);
    assert_int_equal(fork.outcome.why.err, KVARN_EMISS);
    assert_int_equal(fork.outcome.why.reason, KVARND__MISS_REASON__MISS_NEVER_STORED);
    fork.length = UINT64_MAX;
    fork.epoch++;
    assert_int_equal(kvt_fork_begin(&c.rig, &fork), 0);
    kvt_rig_settle(&c.rig);
    assert_int_equal(fork.outcome.why.err, KVARN_ESTALE_EPOCH);
    struct kvt_case child = case_fork(&c, 100); /* what layer 0 has beyond is cut off */
    assert_int_equal(child.session->layers[0].length, 100);
    child_fini(&c, &child);
    kvt_case_fini(&c);
}

/* A copy that nobody uses is a candidate of the evictor like any session. */
static void test_a_copy_can_be_evicted(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, &(struct kvt_rig_options){.evict_policy = "cost"}, 0);
    kvt_case_grow(&c, 300);
    struct kvt_case child = case_fork(&c, UINT64_MAX);
    assert_true(child.session->evict.is_inserted);
    assert_true(child.session->evict.bytes > 1);
    uint64_t freed = 0;
    assert_int_equal(kvd_session_evict(child.session, 2, &freed), 2);
    assert_int_equal(freed, 0); /* the parent has them still */
    assert_true(kvd_session_has_missing(child.session));
    kvt_case_check(&c);
    refs_check(&c, &child);
    kvt_session_drop(&c.rig, child.session);
    kvt_rig_settle(&c.rig);
    kvt_model_fini(&child.model);
    kvt_case_fini(&c);
}

/* Each allocation refused in turn: no copy, nothing charged, the parent as it was. */
static void test_a_fork_without_memory_leaves_nothing(void **state)
{
    struct kvt_case c;
    unsigned refused = 0;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 300);
    (void)kvd_page_store_reclaim(&c.rig.service.pages, UINT64_MAX);
    uint64_t used = c.rig.service.budget.used_bytes;
    for (unsigned n = 1; n < 40; n++) {
        struct kvt_fork fork = {.parent = c.session, .epoch = c.session->epoch, .length = 250};
        kvt_alloc_fail_at(n);
        int err = kvt_fork_begin(&c.rig, &fork);
        kvt_rig_settle(&c.rig);
        kvt_alloc_fail_at(0);
        if (err == 0 && fork.outcome.why.err == 0) {
            kvt_session_drop(&c.rig, fork.child);
            kvt_rig_settle(&c.rig);
            break;
        }
        refused++;
        assert_null(fork.child);
        assert_int_equal(c.rig.service.sessions.count, 1);
        (void)kvd_page_store_reclaim(&c.rig.service.pages, UINT64_MAX);
        assert_int_equal(c.rig.service.budget.used_bytes, used);
    }
    assert_in_range(refused, 4, 30);
    kvt_case_check(&c);
    kvt_case_fini(&c);
}

/* A refused append of a copy leaves no copies of shared blocks behind. */
static void test_s17_a_refused_append_shares_again(void **state)
{
    static const uint32_t counts[] = {1, 40, 1000}; /* the last over several turns */
    const float bad = NAN;
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 300);
    struct kvt_case child = case_fork(&c, UINT64_MAX);
    uint32_t last = kvd_session_block_count(child.session) - 1;
    const struct kvd_block *block = kvd_session_block(child.session, last);
    assert_int_equal(block->refs, 2);
    for (unsigned i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        kvd_io_fake_set_tick(c.rig.fake, i == 2 ? 20000 : 0);
        struct kvt_append append = kvt_append_of(child.session, counts[i], 7);
        append.dtype = KVARN_F32;
        kvt_append_fill(&append);
        size_t offset = kvt_append_offset(&append, 2, true, 0, append.start + counts[i] - 1);
        memcpy(append.payload + offset, &bad, sizeof(bad));
        assert_int_equal(kvt_append_now(&c.rig, &append), KVARN_EDOMAIN);
        assert_int_equal(kvd_session_block_count(child.session), last + 1);
        assert_ptr_equal(kvd_session_block(child.session, last), block);
        assert_int_equal(block->refs, 2);
        for (uint32_t l = 0; l < block->layer_count; l++) {
            assert_false(kvd_session_has_spare(child.session, l));
        }
        refs_check(&c, &child);
        kvt_case_check(&c);
    }
    kvd_io_fake_set_tick(c.rig.fake, 0);
    /* What comes is copied, as ever. */
    struct kvt_append append = kvt_append_of(child.session, 1, 9);
    assert_int_equal(kvt_append_now(&c.rig, &append), 0);
    assert_ptr_not_equal(kvd_session_block(child.session, last), block);
    assert_int_equal(block->refs, 1);
    refs_check(&c, &child);
    kvt_session_drop(&c.rig, child.session);
    kvt_rig_settle(&c.rig);
    kvt_model_fini(&child.model);
    kvt_case_fini(&c);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_s17_a_refused_append_shares_again),
    cmocka_unit_test(test_s11_a_fork_shares_every_page),
    cmocka_unit_test(test_s11_the_tail_is_copied_on_write),
    cmocka_unit_test(test_s05_a_step_of_a_copy_finds_room_at_its_first_layer),
    cmocka_unit_test(test_s11_a_shorter_copy_is_cut_like_a_truncate),
    cmocka_unit_test(test_s04_a_copy_needs_its_window),
    cmocka_unit_test(test_s11_what_is_not_stored_is_not_copied),
    cmocka_unit_test(test_a_copy_can_be_evicted),
    cmocka_unit_test(test_a_fork_without_memory_leaves_nothing),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
