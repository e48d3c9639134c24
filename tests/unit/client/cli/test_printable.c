/* Text of others: control characters never reach a terminal, other text does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "client/cli/printable.h"

static void control_characters_become_question_marks(void **state)
{
    char to[PRINTABLE_MAX];

    (void)state;
    assert_string_equal(printable_text("a\x1b[31mb\r\n\t\x7f", to, sizeof to), "a?[31mb????");
    assert_string_equal(printable_text("\xc2\x9b"
                                       "0m",
                            to, sizeof to),
        "?0m");
}

static void other_text_is_kept(void **state)
{
    static const char *const kept[] = {
        "", "llama 3.1", "gr\xc3\xbc\xc3\x9f", "\xc2\xa0", "\xe2\x82\xac"};
    char to[PRINTABLE_MAX];

    (void)state;
    for (size_t i = 0; i < sizeof kept / sizeof kept[0]; i++) {
        assert_string_equal(printable_text(kept[i], to, sizeof to), kept[i]);
    }
    assert_string_equal(printable_text(NULL, to, sizeof to), "");
}

static void long_text_is_cut(void **state)
{
    char to[4];

    (void)state;
    assert_string_equal(printable_text("abcdef", to, sizeof to), "abc");
    assert_string_equal(printable_text("ab\xc2", to, sizeof to), "ab\xc2"); /* ends in a sequence */
    assert_string_equal(printable_text("abc", to, 1), "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(control_characters_become_question_marks),
        cmocka_unit_test(other_text_is_kept),
        cmocka_unit_test(long_text_is_cut),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
