/* Payload spans: which bytes of an array are the rows of some tokens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "client/cli/spans.h"

static void spans_are_the_rows_of_each_head(void **state)
{
    uint16_t data[3 * 5 * 4]; /* [heads][tokens][dim] */
    const struct npy_array array = {
        .type = NPY_F16, .rank = 3, .shape = {3, 5, 4}, .data = data, .data_bytes = sizeof data};
    struct kvarn_span spans[3];

    (void)state;
    assert_int_equal(spans_of_tokens(spans, &array, 2, 3), 3);
    for (size_t head = 0; head < 3; head++) {
        assert_ptr_equal(spans[head].data, data + (head * 5 + 2) * 4);
        assert_int_equal(spans[head].bytes, 3 * 4 * 2);
    }
}

static void spans_of_floats_are_twice_as_long(void **state)
{
    float data[2 * 2 * 8];
    const struct npy_array array = {
        .type = NPY_F32, .rank = 3, .shape = {2, 2, 8}, .data = data, .data_bytes = sizeof data};
    struct kvarn_span spans[2];

    (void)state;
    assert_int_equal(spans_of_tokens(spans, &array, 1, 1), 2);
    assert_ptr_equal(spans[1].data, data + 24);
    assert_int_equal(spans[1].bytes, 32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(spans_are_the_rows_of_each_head),
        cmocka_unit_test(spans_of_floats_are_twice_as_long),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
