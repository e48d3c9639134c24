/* The option parser: order, forms, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client/cli/options.h"

static const struct option_row own_rows[] = {
    {"layer", OPTION_UINT, "L", NULL, "", 0, true},
    {"scale", OPTION_REAL, "X", NULL, "", 0, false},
    {"group", OPTION_UINT, "G", "128", "", 0, false},
    {"out", OPTION_TEXT, "FILE", NULL, "", 'o', false},
};
static const struct option_row global_rows[] = {
    {"server", OPTION_TEXT, "ADDRESS", NULL, "", 's', false},
    {"json", OPTION_FLAG, NULL, NULL, "", 'j', false},
};

static int parse(struct option_parse *p, char error[OPTION_ERROR_MAX], const char *const *args)
{
    char *copy[16];
    int count = 0;
    int err;

    memset(p, 0, sizeof *p);
    p->sets[0] = (struct option_set){own_rows, 4};
    p->sets[1] = (struct option_set){global_rows, 2};
    p->position_max = 1;
    error[0] = '\0';
    while (args[count] != NULL) {
        copy[count] = (char *)(uintptr_t)args[count];
        count++;
    }
    err = option_parse_args(p, count, copy, error);
    return err != 0 ? err : option_parse_finish(p, error);
}

static void order_and_forms_are_free(void **state)
{
    static const char *const forms[][12] = {
        {"S", "--layer", "3", "--scale=-0.5", "-o", "f", "--json", NULL},
        {"--json", "--layer=3", "-o", "f", "S", "--scale", "-0.5", NULL},
        {"-j", "-o", "f", "--scale", "-0.5", "--layer", "3", "--", "S", NULL},
    };

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        struct option_parse p;
        char error[OPTION_ERROR_MAX];

        assert_int_equal(parse(&p, error, forms[i]), 0);
        assert_int_equal(option_find(&p, "layer")->number, 3);
        assert_true(option_find(&p, "scale")->real == -0.5);
        assert_int_equal(option_find(&p, "group")->number, 128);
        assert_false(option_find(&p, "group")->is_given);
        assert_string_equal(option_find(&p, "out")->text, "f");
        assert_true(option_find(&p, "json")->is_set);
        assert_false(option_find(&p, "server")->is_set);
        assert_int_equal(p.position_count, 1);
        assert_string_equal(p.positions[0], "S");
    }
}

static void numbers_may_have_a_unit(void **state)
{
    static const char *const args[] = {"--layer", "32k", "--group=2M", NULL};
    struct option_parse p;
    char error[OPTION_ERROR_MAX];

    (void)state;
    assert_int_equal(parse(&p, error, args), 0);
    assert_int_equal(option_find(&p, "layer")->number, 32768);
    assert_int_equal(option_find(&p, "group")->number, 2097152);
}

static void mistakes_are_named(void **state)
{
    static const struct {
        const char *args[6];
        const char *text;
    } cases[] = {
        {{NULL}, "--layer L is needed"},
        {{"--layer", NULL}, "needs a value: L"},
        {{"--layer", "-1", NULL}, "expected a whole number, got \"-1\""},
        {{"--layer", "1x", NULL}, "expected a whole number"},
        {{"--layer", "99999999999999999999", NULL}, "expected a whole number"},
        {{"--layer", "18446744073709551615k", NULL}, "expected a whole number"},
        {{"--layer=1", "--scale", "nan", NULL}, "expected a finite number"},
        {{"--layer=1", "--layer=2", NULL}, "given twice"},
        {{"--layer=1", "--json=yes", NULL}, "takes no value"},
        {{"--layer=1", "--nope", NULL}, "unknown option --nope"},
        {{"--layer=1", "--lay", "2", NULL}, "unknown option --lay"},
        {{"--layer=1", "a", "b", NULL}, "unexpected argument \"b\""},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct option_parse p;
        char error[OPTION_ERROR_MAX];

        assert_int_equal(parse(&p, error, cases[i].args), KVARN_EINVALID);
        if (strstr(error, cases[i].text) == NULL) {
            fail_msg("\"%s\" does not say \"%s\"", error, cases[i].text);
        }
    }
}

static void command_is_found_behind_global_options(void **state)
{
    static const struct option_set set = {global_rows, 2};
    char a[] = "-s", b[] = "x", c[] = "--json", d[] = "ping", e[] = "--server=x", f[] = "--other";
    char *first[] = {a, b, c, d};
    char *second[] = {e, d};
    char *third[] = {f, d};

    (void)state;
    assert_int_equal(option_first_position(&set, 4, first), 3);
    assert_int_equal(option_first_position(&set, 2, second), 1);
    assert_int_equal(option_first_position(&set, 2, third), 2);
    assert_int_equal(option_first_position(&set, 0, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order_and_forms_are_free),
        cmocka_unit_test(numbers_may_have_a_unit),
        cmocka_unit_test(mistakes_are_named),
        cmocka_unit_test(command_is_found_behind_global_options),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
