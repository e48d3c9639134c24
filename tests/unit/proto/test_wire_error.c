/*
 * Tests of proto/wire_error.c: each error has its wire number and comes back; strangers map safely.
 *
 * Owner: ctest. Thread: one.
 */
#include <ctype.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "kvarnd.pb-c.h"
#include "proto/wire_error.h"

static const int codes[] = {
#define X(code, name, label, text) KVARN_E##name,
#include "kvarn/err.def"
#undef X
};
#define COUNT (sizeof(codes) / sizeof(codes[0]))

static void every_error_travels_and_comes_back(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT; i++) {
        const uint32_t status = kvarn_wire_status(codes[i]);

        assert_int_equal(status, -codes[i]);
        assert_int_equal(kvarn_wire_error(status), codes[i]);
    }
    assert_int_equal(kvarn_wire_status(0), 0);
    assert_int_equal(kvarn_wire_error(0), 0);
    /* Wire values that clients know by number. */
    assert_int_equal(kvarn_wire_status(KVARN_ESTALE_EPOCH), 7);
    assert_int_equal(kvarn_wire_status(KVARN_EPROTOCOL), 17);
}

static void numbers_that_are_no_error_become_internal(void **state)
{
    static const int strangers[] = {1, 7, INT_MAX, INT_MIN, -21, -1000};
    static const uint32_t newer[] = {21, 1000, INT32_MAX, UINT32_C(0x80000000), UINT32_MAX};

    (void)state;
    for (size_t i = 0; i < sizeof strangers / sizeof *strangers; i++) {
        assert_int_equal(kvarn_wire_status(strangers[i]), -KVARN_EINTERNAL);
    }
    for (size_t i = 0; i < sizeof newer / sizeof *newer; i++) {
        assert_int_equal(kvarn_wire_error(newer[i]), KVARN_EINTERNAL);
    }
}

/* The labels are the enum's names, lower case and without MISS_: a reason added to kvarnd.proto
 * alone fails here. */
static void every_miss_reason_has_its_label(void **state)
{
    (void)state;
    const ProtobufCEnumDescriptor *reasons = &kvarnd__miss_reason__descriptor;

    assert_true(reasons->n_values >= 7);
    for (unsigned i = 0; i < reasons->n_values; i++) {
        const char *label = kvarn_miss_reason_label((uint32_t)reasons->values[i].value);
        const char *name = reasons->values[i].name + strlen("MISS_");

        assert_int_equal(strlen(label), strlen(name));
        for (size_t at = 0; name[at] != '\0'; at++) {
            assert_int_equal(label[at], tolower((unsigned char)name[at]));
        }
    }
    assert_string_equal(kvarn_miss_reason_label(7), "unknown");
    assert_string_equal(kvarn_miss_reason_label(UINT32_MAX), "unknown");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_error_travels_and_comes_back),
        cmocka_unit_test(numbers_that_are_no_error_become_internal),
        cmocka_unit_test(every_miss_reason_has_its_label),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
