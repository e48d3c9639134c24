/*
 * Tests of server/base/kernel_cost.c: the level in use is the one reckoned with. What the figures
 * are worth, `kvarn-bench costs --check` shows.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "kvarn/cpu.h"
#include "server/append/append.h"
#include "server/base/kernel_cost.h"

static void test_the_level_in_use_counts(void **state)
{
    unsigned tried = 0;
    (void)state;

    for (unsigned i = 0; i < kvd_kernel_cost_count; i++) {
        const char *level = kvd_kernel_costs[i].level;
        if (!kvarn_cpu_has(level)) {
            continue;
        }
        assert_int_equal(kvarn_cpu_init(level, NULL, 0), 0);
        assert_string_equal(kvd_kernel_cost()->level, level);
        tried++;
    }
    assert_true(tried >= 1); /* scalar is everywhere */
    assert_int_equal(kvarn_cpu_init("auto", NULL, 0), 0);
}

static void test_vectors_cost_less(void **state)
{
    (void)state;

    assert_string_equal(kvd_kernel_costs[0].level, "scalar"); /* what others fall back to */
    for (unsigned i = 1; i < kvd_kernel_cost_count; i++) {
        const struct kvd_kernel_cost *low = &kvd_kernel_costs[i - 1], *cost = &kvd_kernel_costs[i];
        assert_true(cost->fast.row_ps > 0 && cost->fast.row_ps < low->fast.row_ps);
        assert_true(cost->exact.row_ps > 0 && cost->exact.row_ps < low->exact.row_ps);
        assert_true(cost->half.row_ps > 0 && cost->half.row_ps < low->half.row_ps);
        assert_true(cost->edge_ps > 0 && cost->edge_ps < low->edge_ps);
        assert_true(cost->read_ps > 0 && cost->read_ps < low->read_ps);
        assert_true(cost->append_ps > 0 && cost->append_ps < low->append_ps);
    }
}

static void test_s18_appends_on_the_loop_are_bounded(void **state)
{
    (void)state;

    assert_int_equal(kvarn_cpu_init("scalar", NULL, 0), 0);
    size_t scalar = kvd_append_inline_bytes_max();
    /* 30 us of it, and no more than 64 KiB at any level. */
    assert_true(scalar / 2 * kvd_kernel_costs[0].append_ps <= 30000u * 1000);
    assert_true(scalar > 4096);
    assert_int_equal(kvarn_cpu_init("auto", NULL, 0), 0);
    assert_true(kvd_append_inline_bytes_max() >= scalar);
    assert_true(kvd_append_inline_bytes_max() <= 64 * 1024);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_the_level_in_use_counts),
    cmocka_unit_test(test_vectors_cost_less),
    cmocka_unit_test(test_s18_appends_on_the_loop_are_bounded),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
