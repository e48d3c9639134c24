/*
 * Tests of server/base/budget.c: exact sums, a limit that holds, the question to the one who can
 * free.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "server/base/budget.h"

static void charges_by_kind(void **state)
{
    (void)state;
    struct kvd_budget budget;
    kvd_budget_init(&budget, 100);
    assert_int_equal(kvd_budget_charge(&budget, KVD_BUDGET_CHUNKS, 60), 0);
    assert_int_equal(kvd_budget_charge(&budget, KVD_BUDGET_REPLIES, 40), 0);
    assert_int_equal(budget.used_bytes, 100);
    assert_int_equal(budget.kind_bytes[KVD_BUDGET_CHUNKS], 60);
    assert_int_equal(budget.kind_bytes[KVD_BUDGET_REPLIES], 40);
    kvd_budget_release(&budget, KVD_BUDGET_CHUNKS, 60);
    kvd_budget_release(&budget, KVD_BUDGET_REPLIES, 39);
    assert_int_equal(budget.used_bytes, 1);
    assert_int_equal(budget.kind_bytes[KVD_BUDGET_CHUNKS], 0);
    assert_int_equal(budget.kind_bytes[KVD_BUDGET_REPLIES], 1);
}

static void semantics_05_limit_is_on_the_sum(void **state)
{
    (void)state;
    struct kvd_budget budget;
    kvd_budget_init(&budget, 100);
    assert_int_equal(kvd_budget_charge(&budget, KVD_BUDGET_STAGING, 99), 0);
    assert_int_equal(kvd_budget_charge(&budget, KVD_BUDGET_CONNS, 2), KVARN_ENOSPC);
    assert_int_equal(budget.used_bytes, 99);
    assert_int_equal(budget.kind_bytes[KVD_BUDGET_CONNS], 0);
    assert_int_equal(kvd_budget_charge(&budget, KVD_BUDGET_CONNS, 1), 0);
    assert_int_equal(kvd_budget_charge(&budget, KVD_BUDGET_CONNS, 0), 0);
    assert_int_equal(kvd_budget_charge(&budget, KVD_BUDGET_CONNS, 1), KVARN_ENOSPC);
}

static void huge_charges_do_not_wrap(void **state)
{
    (void)state;
    struct kvd_budget budget;
    kvd_budget_init(&budget, UINT64_MAX);
    assert_int_equal(kvd_budget_charge(&budget, KVD_BUDGET_CHUNKS, SIZE_MAX), 0);
    assert_int_equal(kvd_budget_charge(&budget, KVD_BUDGET_CHUNKS, 1), KVARN_ENOSPC);
    assert_int_equal(kvd_budget_charge(&budget, KVD_BUDGET_CHUNKS, SIZE_MAX), KVARN_ENOSPC);
    kvd_budget_release(&budget, KVD_BUDGET_CHUNKS, SIZE_MAX);
    assert_int_equal(budget.used_bytes, 0);
}

struct reclaimer {
    struct kvd_budget *budget;
    uint64_t held;
    uint64_t asked;
    int calls;
};

static void reclaim_cb(void *ctx, uint64_t bytes)
{
    struct reclaimer *self = ctx;
    self->asked = bytes;
    self->calls++;
    kvd_budget_release(self->budget, KVD_BUDGET_CHUNKS, self->held);
    self->held = 0;
}

static void semantics_05_reclaims_before_refusing(void **state)
{
    (void)state;
    struct kvd_budget budget;
    kvd_budget_init(&budget, 100);
    struct reclaimer reclaimer = {.budget = &budget, .held = 50};
    assert_int_equal(kvd_budget_charge(&budget, KVD_BUDGET_CHUNKS, 50), 0);
    budget.reclaim_cb = reclaim_cb;
    budget.reclaim_ctx = &reclaimer;

    assert_int_equal(kvd_budget_charge(&budget, KVD_BUDGET_SESSIONS, 50), 0);
    assert_int_equal(reclaimer.calls, 0);
    assert_int_equal(kvd_budget_charge(&budget, KVD_BUDGET_SESSIONS, 30), 0);
    assert_int_equal(reclaimer.calls, 1);
    assert_int_equal(reclaimer.asked, 30);
    assert_int_equal(budget.used_bytes, 80);
    /* Nothing is left to give: refused, and nothing is charged. */
    assert_int_equal(kvd_budget_charge(&budget, KVD_BUDGET_SESSIONS, 21), KVARN_ENOSPC);
    assert_int_equal(reclaimer.calls, 2);
    assert_int_equal(budget.used_bytes, 80);
    /* What could never fit does not cost anyone a kept chunk. */
    assert_int_equal(kvd_budget_charge(&budget, KVD_BUDGET_SESSIONS, 101), KVARN_ENOSPC);
    assert_int_equal(reclaimer.calls, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(charges_by_kind),
        cmocka_unit_test(semantics_05_limit_is_on_the_sum),
        cmocka_unit_test(huge_charges_do_not_wrap),
        cmocka_unit_test(semantics_05_reclaims_before_refusing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
