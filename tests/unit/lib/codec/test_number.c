/* Half and bfloat16 against their definitions: every half, and every boundary between two. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "kvarn/codec.h"

/* A half by its definition. */
static double half_value(unsigned h)
{
    int exponent = (int)(h >> 10 & 31);
    double fraction = (double)(h & 1023) / 1024;
    double magnitude = exponent == 0 ? ldexp(fraction, -14) : ldexp(1 + fraction, exponent - 15);

    return h & 0x8000 ? -magnitude : magnitude;
}

static void every_half_there_and_back(void **state)
{
    (void)state;
    for (unsigned h = 0; h <= 0xffff; h++) {
        float x = kvarn_half_to_f32((uint16_t)h);
        if ((h & 0x7c00) != 0x7c00) {
            assert_true((double)x == half_value(h));
            assert_int_equal(kvarn_half_from_f32(x), h);
        } else if ((h & 0x3ff) == 0) {
            assert_true(isinf(x) && !signbit(x) == !(h & 0x8000));
            assert_int_equal(kvarn_half_from_f32(x), h);
        } else {
            assert_true(isnan(x) && isnan(kvarn_half_to_f32(kvarn_half_from_f32(x))));
        }
    }
}

static void halfway_goes_to_even_and_its_neighbours_to_the_nearest(void **state)
{
    (void)state;
    for (unsigned h = 0; h < 0x7c00; h++) {
        /* Above the largest half the next step would be 65,536: Inf from halfway on. */
        double next = h == 0x7bff ? 65536.0 : half_value(h + 1);
        float middle = (float)((half_value(h) + next) / 2);
        unsigned even = h % 2 == 0 ? h : h + 1;
        assert_int_equal(kvarn_half_from_f32(middle), even);
        assert_int_equal(kvarn_half_from_f32(-middle), even | 0x8000);
        assert_int_equal(kvarn_half_from_f32(nextafterf(middle, 0.0f)), h);
        assert_int_equal(kvarn_half_from_f32(nextafterf(middle, INFINITY)), h + 1);
    }
    assert_int_equal(kvarn_half_from_f32(3.4e38f), 0x7c00);
    assert_int_equal(kvarn_half_from_f32(1e-45f), 0);
}

static void bfloat16_keeps_the_upper_half_of_a_float(void **state)
{
    static const struct {
        float x;
        uint16_t want;
    } rows[] = {{1.0f, 0x3f80}, {-2.0f, 0xc000}, {1.00390625f, 0x3f80}, {1.01171875f, 0x3f82},
        {1.0039064f, 0x3f81}, {3.4e38f, 0x7f80}, {0.0f, 0}, {-0.0f, 0x8000}};

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        uint16_t b;
        kvarn_from_f32(&b, KVARN_BF16, &rows[i].x, 1);
        assert_int_equal(b, rows[i].want);
    }
    for (unsigned b = 0; b <= 0xffff; b++) {
        uint16_t in = (uint16_t)b, out;
        float x;
        kvarn_to_f32(&x, &in, KVARN_BF16, 1);
        kvarn_from_f32(&out, KVARN_BF16, &x, 1);
        if (isnan(x)) {
            assert_int_equal(out, b | 0x40);
        } else {
            assert_int_equal(out, b);
        }
    }
}

static void types_have_their_sizes(void **state)
{
    const float in[3] = {1.5f, -2.0f, INFINITY};
    float out[3];

    (void)state;
    assert_int_equal(kvarn_dtype_bytes(KVARN_F16), 2);
    assert_int_equal(kvarn_dtype_bytes(KVARN_BF16), 2);
    assert_int_equal(kvarn_dtype_bytes(KVARN_F32), 4);
    assert_int_equal(kvarn_dtype_bytes((enum kvarn_dtype)3), 0);
    kvarn_to_f32(out, in, KVARN_F32, 3);
    assert_memory_equal(out, in, sizeof(in));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_half_there_and_back),
        cmocka_unit_test(halfway_goes_to_even_and_its_neighbours_to_the_nearest),
        cmocka_unit_test(bfloat16_keeps_the_upper_half_of_a_float),
        cmocka_unit_test(types_have_their_sizes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
