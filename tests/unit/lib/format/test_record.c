/* The check of records at the edge of the format's range, by hand-made records. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/limits.h"
#include "tests/support/tiles.h"

static const struct kvarn_tile_spec spec = {64, 64, 64, 2, 2};

#define K_SCALE 1024 /* after 64 rows of 16 bytes of codes */
#define K_ZERO  (K_SCALE + 128)
#define K_TOKEN (K_ZERO + 128)

static void put(uint8_t *record, size_t at, size_t idx, float value)
{
    uint16_t half = kvarn_half_from_f32(value);

    memcpy(record + at + 2 * idx, &half, 2);
}

static int verdict(const uint8_t *record)
{
    return kvarn_record_validate(&spec, record, kvarn_record_bytes(&spec));
}

static void values_up_to_the_limit_pass(void **state)
{
    uint8_t *record = kvt_alloc(kvarn_record_bytes(&spec));

    (void)state;
    assert_int_equal(verdict(record), 0);
    put(record, K_TOKEN, 5, 1.0f);
    put(record, K_ZERO, 3, KVARN_DECODED_ABS_MAX);
    assert_int_equal(verdict(record), 0);
    put(record, K_ZERO, 3, -KVARN_DECODED_ABS_MAX);
    assert_int_equal(verdict(record), 0);
    put(record, K_ZERO, 3, KVARN_DECODED_ABS_MAX + 32); /* the next half */
    assert_int_equal(verdict(record), KVARN_EDOMAIN);
    free(record);
}

/* The bound over a row is too high, but no code reaches it: such tiles exist and must pass. */
static void what_no_code_reaches_does_not_count(void **state)
{
    uint8_t *record = kvt_alloc(kvarn_record_bytes(&spec));

    (void)state;
    put(record, K_SCALE, 7, 30000.0f);
    put(record, K_TOKEN, 9, 1.0f);
    assert_int_equal(verdict(record), 0); /* all codes are 0 */
    record[7 * 16 + 9 / 4] = 1 << (9 % 4 * 2);
    assert_int_equal(verdict(record), 0); /* 30,000 */
    record[7 * 16 + 9 / 4] = 2 << (9 % 4 * 2);
    assert_int_equal(verdict(record), KVARN_EDOMAIN); /* 60,000 */
    record[7 * 16 + 9 / 4] = 2 << (8 % 4 * 2);
    assert_int_equal(verdict(record), 0); /* token 8 has factor 0 */
    free(record);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_up_to_the_limit_pass),
        cmocka_unit_test(what_no_code_reaches_does_not_count),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
