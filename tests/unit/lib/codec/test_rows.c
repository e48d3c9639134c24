/* Rows of a worker into halves and back: strides, types, and what is refused. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/limits.h"
#include "tests/support/tiles.h"

#define DIM    80
#define ROWS   5
#define STRIDE 100

/* Rows of ones: finite and small. */
static void source_fill(float *x)
{
    for (size_t i = 0; i < ROWS * STRIDE; i++) {
        x[i] = 1.0f;
    }
}

static int take(const float *x, bool rotated, uint16_t *dst, size_t *ret_row)
{
    const struct kvarn_rows_in in = {.src = x,
        .dtype = KVARN_F32,
        .src_stride = STRIDE,
        .rows = ROWS,
        .head_dim = DIM,
        .rotated = rotated};

    return kvarn_rows_to_half(&in, dst, ret_row);
}

static void semantics_10_domain_refused_naming_the_row(void **state)
{
    static const float bad[] = {NAN, -NAN, INFINITY, -INFINITY, 3.4e38f, 32768.1f * 4.0f};
    float x[ROWS * STRIDE];
    uint16_t dst[ROWS * DIM];

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        for (size_t row = 0; row < ROWS; row++) {
            for (int rotated = 0; rotated < 2; rotated++) {
                size_t ret_row = 77;
                source_fill(x);
                x[row * STRIDE + (i * 7 + row) % DIM] = bad[i];
                assert_int_equal(take(x, rotated, dst, &ret_row), KVARN_EDOMAIN);
                assert_int_equal(ret_row, row);
            }
        }
    }
    size_t ret_row = 77;
    source_fill(x);
    x[DIM] = NAN; /* between two rows: not read */
    assert_int_equal(take(x, false, dst, &ret_row), 0);
    assert_int_equal(ret_row, 77);
}

static void semantics_10_the_limit_is_on_rotated_values(void **state)
{
    float x[ROWS * STRIDE];
    uint16_t dst[ROWS * DIM];
    size_t row;

    (void)state;
    source_fill(x);
    x[3] = 32768.0f;
    assert_int_equal(take(x, true, dst, &row), 0);
    assert_int_equal(dst[3], 0x7800); /* 32,768 is a half */
    x[3] = nextafterf(32768.0f, INFINITY);
    assert_int_equal(take(x, true, dst, &row), KVARN_EDOMAIN);
    /* One loud value spreads over its block of 16: a quarter of it arrives in each. */
    source_fill(x);
    memset(x, 0, DIM * sizeof(float));
    x[3] = 4 * 32768.0f;
    assert_int_equal(take(x, false, dst, &row), 0);
    x[3] = nextafterf(4 * 32768.0f, INFINITY);
    assert_int_equal(take(x, false, dst, &row), KVARN_EDOMAIN);
    /* 16 values of 20,000 meet in one of 80,000. */
    for (int i = 0; i < 16; i++) {
        x[i] = 20000.0f;
    }
    assert_int_equal(take(x, false, dst, &row), KVARN_EDOMAIN);
    assert_int_equal(row, 0);
}

static void rows_come_back_as_they_went(void **state)
{
    static const enum kvarn_dtype dtypes[] = {KVARN_F16, KVARN_BF16, KVARN_F32};
    struct kvt_rng rng = {.state = 21};
    float x[ROWS * STRIDE], back[ROWS * STRIDE], work[ROWS * DIM], want[DIM];
    uint8_t wire[ROWS * STRIDE * 4];
    uint16_t half[ROWS * DIM];
    size_t row;

    (void)state;
    for (size_t i = 0; i < ROWS * STRIDE; i++) {
        x[i] = (float)kvt_rng_normal(&rng);
    }
    for (int t = 0; t < 3; t++) {
        kvarn_from_f32(wire, dtypes[t], x, ROWS * STRIDE);
        const struct kvarn_rows_in in = {wire, dtypes[t], STRIDE, ROWS, DIM, false};
        assert_int_equal(kvarn_rows_to_half(&in, half, &row), 0);
        kvarn_to_f32(work, half, KVARN_F16, ROWS * DIM);
        memset(wire, 0, sizeof(wire));
        const struct kvarn_rows_out out = {wire, dtypes[t], STRIDE, ROWS, DIM, false};
        assert_int_equal(kvarn_rows_from_f32(work, &out, &row), 0);
        kvarn_to_f32(back, wire, dtypes[t], ROWS * STRIDE);
        for (size_t r = 0; r < ROWS; r++) {
            memcpy(want, x + r * STRIDE, sizeof(want));
            assert_true(kvt_rel_mse(back + r * STRIDE, want, DIM) < 2e-5);
            if (r + 1 < ROWS) {
                assert_true(back[r * STRIDE + DIM] == 0.0f); /* between rows: not written */
            }
        }
    }
}

static void rotated_rows_are_not_rotated_again(void **state)
{
    float x[ROWS * DIM], work[ROWS * DIM], back[ROWS * DIM];
    uint16_t half[ROWS * DIM];
    size_t row;

    (void)state;
    for (size_t i = 0; i < ROWS * DIM; i++) {
        x[i] = (float)(int)(i % 100) - 50.0f; /* integers: exact as halves */
    }
    const struct kvarn_rows_in in = {x, KVARN_F32, DIM, ROWS, DIM, true};
    assert_int_equal(kvarn_rows_to_half(&in, half, &row), 0);
    kvarn_to_f32(work, half, KVARN_F16, ROWS * DIM);
    const struct kvarn_rows_out out = {back, KVARN_F32, DIM, ROWS, DIM, true};
    assert_int_equal(kvarn_rows_from_f32(work, &out, &row), 0);
    assert_memory_equal(back, x, sizeof(x));
}

static void semantics_10_half_output_beyond_its_range_is_refused(void **state)
{
    float work[ROWS * DIM];
    uint16_t half[ROWS * DIM];
    float wide[ROWS * DIM];
    size_t row = 77;

    (void)state;
    memset(work, 0, sizeof(work));
    for (int i = 0; i < 16; i++) {
        work[2 * DIM + i] = 16376.0f; /* rotated back: 65,504 in one place, the largest half */
    }
    const struct kvarn_rows_out out = {half, KVARN_F16, DIM, ROWS, DIM, false};
    assert_int_equal(kvarn_rows_from_f32(work, &out, &row), 0);
    assert_int_equal(half[2 * DIM], 0x7bff);
    memset(work, 0, sizeof(work));
    for (int i = 0; i < 16; i++) {
        work[2 * DIM + i] = 16377.0f;
    }
    assert_int_equal(kvarn_rows_from_f32(work, &out, &row), KVARN_EDOMAIN);
    assert_int_equal(row, 2);
    memset(work, 0, sizeof(work));
    work[0] = 1e6f;
    const struct kvarn_rows_out as_float = {wide, KVARN_F32, DIM, ROWS, DIM, true};
    assert_int_equal(kvarn_rows_from_f32(work, &as_float, &row), 0);
    assert_true(wide[0] == 1e6f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(semantics_10_domain_refused_naming_the_row),
        cmocka_unit_test(semantics_10_the_limit_is_on_rotated_values),
        cmocka_unit_test(rows_come_back_as_they_went),
        cmocka_unit_test(rotated_rows_are_not_rotated_again),
        cmocka_unit_test(semantics_10_half_output_beyond_its_range_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
