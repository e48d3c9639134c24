/* JSON text: escapes, commas, numbers that JSON has not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client/cli/json.h"

static void text_is_escaped(void **state)
{
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"plain", "\"plain\"\n"}, {"a\"b\\c", "\"a\\\"b\\\\c\"\n"},
        {"\n\t\x01\x7f", "\"\\u000a\\u0009\\u0001\\u007f\"\n"},
        {"h\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80",
            "\"h\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80\"\n"},
        {"\xff\xc3", "\"\\ufffd\\ufffd\"\n"},            /* no UTF-8 */
        {"\xc0\xaf", "\"\\ufffd\\ufffd\"\n"},            /* overlong */
        {"\xed\xa0\x80", "\"\\ufffd\\ufffd\\ufffd\"\n"}, /* a surrogate */
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[256] = "";
        FILE *out = fmemopen(text, sizeof text, "w");
        struct json json;

        assert_non_null(out);
        json_init(&json, out);
        json_text(&json, NULL, cases[i].in);
        fputc('\n', out);
        fclose(out);
        assert_string_equal(text, cases[i].out);
    }
}

static void groups_are_nested(void **state)
{
    const uint64_t numbers[] = {1, UINT64_MAX};
    const uint8_t bytes[] = {0, 0xab};
    char text[512] = "";
    FILE *out = fmemopen(text, sizeof text, "w");
    struct json json;

    (void)state;
    assert_non_null(out);
    json_init(&json, out);
    json_object_open(&json, NULL);
    json_array_open(&json, "empty");
    json_array_close(&json);
    json_array_open(&json, "list");
    json_f64(&json, NULL, 0.5);
    json_f64(&json, NULL, 1.0 / 0.0);
    json_bool(&json, NULL, true);
    json_array_close(&json);
    json_u64_array(&json, "n", numbers, 2);
    json_hex(&json, "h", bytes, 2);
    json_object_close(&json);
    fclose(out);
    assert_string_equal(text, "{\n  \"empty\": [],\n  \"list\": [\n    0.5,\n    null,\n    true\n"
                              "  ],\n  \"n\": [1, 18446744073709551615],\n  \"h\": \"00ab\"\n}\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_is_escaped),
        cmocka_unit_test(groups_are_nested),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
