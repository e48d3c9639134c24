/*
 * Tests of server/io/large.c: what is charged, and that large pieces go back in slices.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "server/io/large.h"
#include "tests/support/io_fake.h"

#define MIB ((size_t)1 << 20)

struct fixture {
    struct kvd_io_fake *fake;
    struct kvd_slices slices;
    struct kvd_budget budget;
    struct kvd_large large;
};

static void fixture_init(struct fixture *fx)
{
    fx->fake = kvd_io_fake_create(1);
    assert_non_null(fx->fake);
    assert_int_equal(kvd_slices_init(&fx->slices, kvd_io_fake_io(fx->fake)), 0);
    kvd_budget_init(&fx->budget, 64 * MIB);
    kvd_large_init(&fx->large, &fx->budget, &fx->slices);
}

static void fixture_fini(struct fixture *fx)
{
    kvd_slices_fini(&fx->slices);
    assert_int_equal(fx->budget.used_bytes, 0);
    kvd_io_fake_io(fx->fake)->ops->destroy(kvd_io_fake_io(fx->fake));
}

static void *take(struct fixture *fx, size_t bytes)
{
    void *memory = NULL;

    assert_int_equal(kvd_large_take(&fx->large, KVD_BUDGET_STAGING, bytes, &memory), 0);
    assert_int_equal((uintptr_t)memory % 64, 0);
    memset(memory, 0xa5, bytes);
    return memory;
}

static void test_small_pieces_go_back_at_once(void **state)
{
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    static const size_t sizes[] = {1, 64, 1000, KVD_LARGE_BYTES_MIN - 1};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        void *memory = take(&fx, sizes[i]);
        assert_true(fx.budget.used_bytes >= sizes[i]);
        kvd_large_give(&fx.large, KVD_BUDGET_STAGING, memory, sizes[i]);
        assert_int_equal(fx.budget.used_bytes, 0);
        assert_false(kvd_large_has_dead(&fx.large));
    }
    kvd_large_give(&fx.large, KVD_BUDGET_STAGING, NULL, 0);
    fixture_fini(&fx);
}

static void test_s18_large_pieces_go_back_in_slices(void **state)
{
    struct fixture fx;
    uint64_t used = 0;
    unsigned turns = 0;
    (void)state;

    fixture_init(&fx);
    void *a = take(&fx, 9 * MIB + 5), *b = take(&fx, KVD_LARGE_BYTES_MIN);
    used = fx.budget.used_bytes;
    assert_in_range(used, 11 * MIB + 5, 12 * MIB);
    kvd_io_fake_set_tick(fx.fake, 30000); /* two or three steps a turn */
    kvd_large_give(&fx.large, KVD_BUDGET_STAGING, a, 9 * MIB + 5);
    kvd_large_give(&fx.large, KVD_BUDGET_STAGING, b, KVD_LARGE_BYTES_MIN);
    assert_int_equal(fx.budget.used_bytes, used); /* charged until it is gone */
    assert_true(kvd_large_has_dead(&fx.large));
    while (kvd_large_has_dead(&fx.large)) {
        (void)kvd_io_fake_turn(fx.fake);
        assert_true(fx.budget.used_bytes < used);
        assert_true(used - fx.budget.used_bytes <= 2 * MIB);
        used = fx.budget.used_bytes;
        turns++;
    }
    assert_true(turns > 4);
    fixture_fini(&fx);
}

static void test_no_more_than_the_budget(void **state)
{
    struct fixture fx;
    void *memory = NULL;
    (void)state;

    fixture_init(&fx);
    assert_int_equal(
        kvd_large_take(&fx.large, KVD_BUDGET_STAGING, 64 * MIB + 1, &memory), KVARN_ENOSPC);
    assert_null(memory);
    assert_int_equal(fx.budget.used_bytes, 0);
    kvd_large_give(&fx.large, KVD_BUDGET_REPLIES, NULL, 5);
    fixture_fini(&fx);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_small_pieces_go_back_at_once),
    cmocka_unit_test(test_s18_large_pieces_go_back_in_slices),
    cmocka_unit_test(test_no_more_than_the_budget),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
