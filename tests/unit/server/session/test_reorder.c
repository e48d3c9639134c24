/*
 * Tests of server/session/reorder.c: contents change places in one step, after all that was before.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/support/alloc_fail.h"
#include "tests/support/session_model.h"
#include "tests/support/session_refs.h"

#define BEAMS 4

struct fixture {
    struct kvt_rig rig;
    struct kvd_session *sessions[BEAMS];
    struct kvt_model models[BEAMS];
};

static void grow(struct fixture *fx, unsigned i, uint32_t count, uint64_t seed)
{
    struct kvt_append append = kvt_append_of(fx->sessions[i], count, seed);

    kvt_append_fill(&append);
    kvt_model_append(&fx->models[i], &append);
    assert_int_equal(kvt_append_now(&fx->rig, &append), 0);
}

static void check(struct fixture *fx)
{
    struct kvt_refs refs;

    kvt_refs_init(&refs);
    for (unsigned i = 0; i < BEAMS; i++) {
        assert_int_equal(kvt_model_check(&fx->models[i], fx->sessions[i]), 0);
        kvt_refs_add_session(&refs, fx->sessions[i]);
    }
    assert_int_equal(kvt_refs_check(&refs, &fx->rig.service), 0);
    kvt_refs_fini(&refs);
}

static void fixture_init(struct fixture *fx)
{
    kvt_rig_init(&fx->rig, &(struct kvt_rig_options){0});
    for (unsigned i = 0; i < BEAMS; i++) {
        fx->sessions[i] = kvt_session_open(&fx->rig, NULL, i * 16);
        kvt_model_init(&fx->models[i], fx->sessions[i], 1000);
        grow(fx, i, 100 + 70 * i, i);
    }
    check(fx);
}

static void fixture_fini(struct fixture *fx)
{
    check(fx);
    for (unsigned i = 0; i < BEAMS; i++) {
        kvt_model_fini(&fx->models[i]);
        kvt_session_drop(&fx->rig, fx->sessions[i]);
    }
    kvt_rig_fini(&fx->rig);
}

static struct kvt_reorder reorder_of(
    struct fixture *fx, struct kvd_reorder_member *members, const uint32_t *sources, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        members[i] = (struct kvd_reorder_member){
            .session = fx->sessions[i], .epoch = fx->sessions[i]->epoch, .source_idx = sources[i]};
    }
    return (struct kvt_reorder){.members = members, .count = count};
}

static void models_move(struct fixture *fx, const uint32_t *sources, uint32_t count)
{
    struct kvt_model models[BEAMS];

    for (uint32_t i = 0; i < count; i++) {
        kvt_model_copy(&models[i], &fx->models[sources[i]]);
    }
    for (uint32_t i = 0; i < count; i++) {
        kvt_model_fini(&fx->models[i]);
        fx->models[i] = models[i];
    }
}

static void test_sessions_become_copies_of_each_other(void **state)
{
    static const uint32_t orders[][BEAMS] = {
        {0, 1, 2, 3}, {1, 2, 3, 0}, {0, 0, 0, 0}, {3, 3, 0, 3}, {1, 0, 2, 2}};
    struct kvd_reorder_member members[BEAMS];
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    for (unsigned n = 0; n < sizeof(orders) / sizeof(orders[0]); n++) {
        struct kvt_reorder reorder = reorder_of(&fx, members, orders[n], BEAMS);
        assert_int_equal(kvt_reorder_begin(&fx.rig, &reorder), 0);
        kvt_rig_settle(&fx.rig);
        assert_int_equal(reorder.outcome.done_count, 1);
        assert_int_equal(reorder.outcome.why.err, 0);
        models_move(&fx, orders[n], BEAMS);
        for (unsigned i = 0; i < BEAMS; i++) { /* who is its own source keeps its epoch */
            assert_int_equal(fx.sessions[i]->epoch == members[i].epoch, orders[n][i] == i ? 1 : 0);
        }
        check(&fx);
        for (unsigned i = 0; i < BEAMS; i++) {
            grow(&fx, i, 1, 100 * n + i); /* each its own next token */
        }
        check(&fx);
    }
    fixture_fini(&fx);
}

/* An append that is under way in one of them is before it; one sent after it meets new contents. */
static void test_s16_a_reorder_waits_for_its_turn_in_all(void **state)
{
    static const uint32_t order[] = {1, 0};
    struct kvd_reorder_member members[BEAMS];
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    struct kvt_append before = kvt_append_of(fx.sessions[0], 40, 9);
    before.is_batched = true; /* a job: it is pending for a while */
    assert_int_equal(kvt_append_begin(&fx.rig, &before), 0);
    assert_int_equal(before.outcome.done_count, 0);
    struct kvt_reorder reorder = reorder_of(&fx, members, order, 2);
    assert_int_equal(kvt_reorder_begin(&fx.rig, &reorder), 0);
    assert_int_equal(reorder.outcome.done_count, 0);
    struct kvt_append stale = kvt_append_of(fx.sessions[1], 1, 9);
    assert_int_equal(kvt_append_begin(&fx.rig, &stale), 0);
    assert_int_equal(stale.outcome.done_count, 0); /* behind the reorder */
    kvt_rig_settle(&fx.rig);
    assert_int_equal(before.outcome.why.err, 0);
    assert_int_equal(reorder.outcome.why.err, 0);
    assert_int_equal(stale.outcome.why.err, KVARN_ESTALE_EPOCH);
    kvt_model_append(&fx.models[0], &before);
    models_move(&fx, order, 2);
    kvt_append_fini(&before);
    kvt_append_fini(&stale);
    fixture_fini(&fx);
}

static void test_nothing_happens_when_one_of_them_is_stale_or_gone(void **state)
{
    static const uint32_t order[] = {1, 0, 2};
    struct kvd_reorder_member members[BEAMS];
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    struct kvt_reorder reorder = reorder_of(&fx, members, order, 3);
    members[2].epoch++;
    assert_int_equal(kvt_reorder_begin(&fx.rig, &reorder), 0);
    kvt_rig_settle(&fx.rig);
    assert_int_equal(reorder.outcome.why.err, KVARN_ESTALE_EPOCH);
    check(&fx);
    /* Cancelled while it waits for one, and holds the other. */
    struct kvt_append before = kvt_append_of(fx.sessions[0], 1, 9);
    before.is_batched = true;
    assert_int_equal(kvt_append_begin(&fx.rig, &before), 0);
    reorder = reorder_of(&fx, members, order, 3);
    assert_int_equal(kvt_reorder_begin(&fx.rig, &reorder), 0);
    kvd_reorder_cancel(reorder.token, KVARN_ECANCELLED);
    assert_int_equal(reorder.outcome.why.err, KVARN_ECANCELLED);
    kvt_rig_settle(&fx.rig);
    kvt_model_append(&fx.models[0], &before);
    kvt_append_fini(&before);
    check(&fx);
    for (unsigned i = 0; i < BEAMS; i++) {
        grow(&fx, i, 3, i); /* nobody is held any more */
    }
    fixture_fini(&fx);
}

static void test_without_memory_nothing_is_exchanged(void **state)
{
    static const uint32_t order[] = {1, 2, 3, 0};
    struct kvd_reorder_member members[BEAMS];
    struct fixture fx;
    unsigned refused = 0;
    (void)state;

    fixture_init(&fx);
    uint64_t used = fx.rig.service.budget.used_bytes;
    for (unsigned n = 1; n < 40; n++) {
        struct kvt_reorder reorder = reorder_of(&fx, members, order, BEAMS);
        kvt_alloc_fail_at(n);
        int err = kvt_reorder_begin(&fx.rig, &reorder);
        kvt_alloc_fail_at(0);
        kvt_rig_settle(&fx.rig);
        if (err == 0 && reorder.outcome.why.err == 0) {
            models_move(&fx, order, BEAMS);
            break;
        }
        refused++;
        assert_int_equal(fx.rig.service.budget.used_bytes, used);
        check(&fx);
    }
    assert_in_range(refused, 5, 30);
    fixture_fini(&fx);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_sessions_become_copies_of_each_other),
    cmocka_unit_test(test_s16_a_reorder_waits_for_its_turn_in_all),
    cmocka_unit_test(test_nothing_happens_when_one_of_them_is_stale_or_gone),
    cmocka_unit_test(test_without_memory_nothing_is_exchanged),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
