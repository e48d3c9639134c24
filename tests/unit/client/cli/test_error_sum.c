/* Sums of errors against figures computed by hand. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "client/cli/error_sum.h"

static void relative_error_is_squares_over_squares(void **state)
{
    const float got[] = {1.0f, 2.5f, -3.0f};
    const float want[] = {1.0f, 2.0f, -4.0f};
    struct error_sum sum = {0};

    (void)state;
    error_sum_add(&sum, got, want, 2);
    error_sum_add(&sum, got + 2, want + 2, 1);
    assert_int_equal(sum.count, 3);
    assert_true(sum.error == 0.25 + 1.0);
    assert_true(sum.power == 1.0 + 4.0 + 16.0);
    assert_true(error_sum_relative(&sum) == 1.25 / 21.0);
}

static void doubles_are_not_rounded_to_floats(void **state)
{
    const float got = 1.0f;
    const double want = 1.0 + 1e-12;
    struct error_sum sum = {0};

    (void)state;
    error_sum_add_f64(&sum, &got, &want, 1);
    assert_true(sum.error > 0.9e-24 && sum.error < 1.1e-24);
}

static void nothing_wanted_and_something_got_is_infinite(void **state)
{
    const float zero = 0.0f;
    const float one = 1.0f;
    struct error_sum sum = {0};

    (void)state;
    assert_true(error_sum_relative(&sum) == 0.0);
    error_sum_add(&sum, &zero, &zero, 1);
    assert_true(error_sum_relative(&sum) == 0.0);
    error_sum_add(&sum, &one, &zero, 1);
    assert_true(isinf(error_sum_relative(&sum)));
}

static void values_that_are_not_finite_are_never_lost(void **state)
{
    const float bad[] = {NAN, INFINITY, -INFINITY};
    const float one = 1.0f;

    (void)state;
    for (int i = 0; i < 3; i++) {
        struct error_sum got_bad = {0};
        struct error_sum want_bad = {0};

        error_sum_add(&got_bad, &bad[i], &one, 1);
        error_sum_add(&want_bad, &one, &bad[i], 1);
        assert_true(isinf(error_sum_relative(&got_bad)));
        assert_true(isinf(error_sum_relative(&want_bad)));
    }
}

static void lse_errors_are_absolute(void **state)
{
    const float got[] = {2.0f, -1.0f, -INFINITY};
    const double want[] = {1.0, -1.0, -INFINITY};
    struct lse_error sum = {0};

    (void)state;
    assert_true(lse_error_rms(&sum) == 0.0);
    lse_error_add(&sum, got, want, 3);
    assert_int_equal(sum.count, 3);
    assert_true(sum.max == 1.0);
    assert_true(fabs(lse_error_rms(&sum) - sqrt(1.0 / 3.0)) < 1e-15);
    lse_error_add(&sum, got + 2, want, 1); /* an empty range where tokens were expected */
    assert_true(isinf(sum.max) && isinf(lse_error_rms(&sum)));
}

static void lse_that_is_not_a_number_is_an_infinite_error(void **state)
{
    const float got = NAN;
    const double want = 1.0;
    struct lse_error sum = {0};

    (void)state;
    lse_error_add(&sum, &got, &want, 1);
    assert_true(isinf(sum.max) && isinf(lse_error_rms(&sum)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(relative_error_is_squares_over_squares),
        cmocka_unit_test(doubles_are_not_rounded_to_floats),
        cmocka_unit_test(nothing_wanted_and_something_got_is_infinite),
        cmocka_unit_test(values_that_are_not_finite_are_never_lost),
        cmocka_unit_test(lse_errors_are_absolute),
        cmocka_unit_test(lse_that_is_not_a_number_is_an_infinite_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
