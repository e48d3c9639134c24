/* Names, labels and texts of errors. */
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "kvarn/err.h"

static const int codes[] = {
#define X(code, name, label, text) KVARN_E##name,
#include "kvarn/err.def"
#undef X
};
#define COUNT ((int)(sizeof(codes) / sizeof(codes[0])))

static void every_error_has_its_own_name_label_and_text(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT; i++) {
        assert_true(codes[i] < 0);
        assert_string_not_equal(kvarn_err_name(codes[i]), "UNKNOWN");
        assert_true(strlen(kvarn_err_text(codes[i])) > 10);
        for (int j = 0; j < i; j++) {
            assert_int_not_equal(codes[i], codes[j]);
            assert_string_not_equal(kvarn_err_name(codes[i]), kvarn_err_name(codes[j]));
            assert_string_not_equal(kvarn_err_label(codes[i]), kvarn_err_label(codes[j]));
        }
    }
}

static void known_errors_read_as_documents_write_them(void **state)
{
    (void)state;
    assert_int_equal(KVARN_EDOMAIN, -13); /* a wire value: never renumbered */
    assert_string_equal(kvarn_err_name(KVARN_EDOMAIN), "DOMAIN");
    assert_string_equal(kvarn_err_label(KVARN_ENOSPC), "no_space");
    assert_string_equal(kvarn_err_name(0), "OK");
    assert_string_equal(kvarn_err_label(0), "ok");
}

static void numbers_that_are_no_error_are_unknown(void **state)
{
    static const int numbers[] = {1, 13, INT_MAX, INT_MIN, INT_MIN + 1, -1000, -(COUNT + 1)};

    (void)state;
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        assert_string_equal(kvarn_err_name(numbers[i]), "UNKNOWN");
        assert_string_equal(kvarn_err_label(numbers[i]), "unknown");
        assert_non_null(kvarn_err_text(numbers[i]));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_error_has_its_own_name_label_and_text),
        cmocka_unit_test(known_errors_read_as_documents_write_them),
        cmocka_unit_test(numbers_that_are_no_error_are_unknown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
