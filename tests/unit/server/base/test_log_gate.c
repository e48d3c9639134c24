/*
 * Tests of server/base/log_gate.c: how many lines get through, and that none is forgotten.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "server/base/log_gate.h"

static void test_a_flood_leaves_some_lines_a_stretch(void **state)
{
    struct kvd_log_gate gate = {0};
    uint64_t now_ns = 7, said = 0, suppressed = 99;
    unsigned lines = 0, tries = 0;
    (void)state;

    for (; now_ns < 10 * KVD_LOG_GATE_NS; now_ns += KVD_LOG_GATE_NS / 1000) {
        tries++;
        if (kvd_log_gate_pass(&gate, now_ns, &suppressed)) {
            lines++;
            said += suppressed;
        }
    }
    assert_in_range(lines, 10 * KVD_LOG_GATE_LINES, 11 * KVD_LOG_GATE_LINES);
    assert_int_equal(lines + said + gate.suppressed, tries);
    assert_true(said > 0);
}

static void test_what_is_rare_always_gets_through(void **state)
{
    struct kvd_log_gate gate = {0};
    uint64_t suppressed = 99;
    (void)state;

    for (uint64_t i = 0; i < 100; i++) {
        assert_true(kvd_log_gate_pass(&gate, i * KVD_LOG_GATE_NS / 4, &suppressed));
        assert_int_equal(suppressed, 0);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_a_flood_leaves_some_lines_a_stretch),
    cmocka_unit_test(test_what_is_rare_always_gets_through),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
