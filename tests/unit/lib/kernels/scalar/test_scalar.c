/* The scalar kernels against plain loops in double precision. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lib/kernels/kernels.h"
#include "lib/kernels/scalar/plane.h"
#include "tests/support/tiles.h"

static const struct kvarn__kernels *kernels;

static void values_fill(struct kvt_rng *rng, float *x, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        x[i] = (float)kvt_rng_normal(rng);
    }
}

static void every_op_has_a_kernel(void **state)
{
    (void)state;
    kernels = kvarn__kernels_of(KVARN__ISA_scalar);
    assert_string_equal(kernels->isa, "scalar");
#define KVARN_OP(op, params) assert_non_null(kernels->op);
#include "lib/kernels/kernels.def"
#undef KVARN_OP
}

static void pack_is_little_end_first(void **state)
{
    const uint8_t two[8] = {1, 2, 3, 0, 0, 0, 0, 3}, four[4] = {1, 15, 8, 0};
    uint8_t packed[2], back[8];

    (void)state;
    kernels->pack(two, 8, 2, packed);
    assert_true(packed[0] == (1 | 2 << 2 | 3 << 4) && packed[1] == 3 << 6);
    kernels->unpack(packed, 8, 2, back);
    assert_memory_equal(back, two, 8);
    kernels->pack(four, 4, 4, packed);
    assert_true(packed[0] == (1 | 15 << 4) && packed[1] == 8);
    kernels->unpack(packed, 4, 4, back);
    assert_memory_equal(back, four, 4);
}

static void rounding_is_half_to_even_and_clamped(void **state)
{
    const float x[8] = {-9.0f, 0.5f, 1.5f, 2.5f, 2.500001f, 99.0f, NAN, INFINITY};
    const struct kvarn__line line = {.step = 1.0f, .low = 0.0f};
    const uint8_t want[8] = {0, 0, 2, 2, 3, 3, 0, 3};
    uint8_t codes[8];

    (void)state;
    kvarn__round_row_scalar(x, 8, 3, line, codes);
    assert_memory_equal(codes, want, 8);
}

static void deviations_match_double_precision(void **state)
{
    enum { ROWS = 96, COLS = 80 };
    struct kvt_rng rng = {.state = 51};
    float *x = kvt_alloc(ROWS * COLS * sizeof(float));
    float mean[ROWS], got[ROWS];

    (void)state;
    values_fill(&rng, x, ROWS * COLS);
    kvarn__std_columns_scalar(x, ROWS, COLS, mean, got);
    for (int c = 0; c < COLS; c++) {
        double m = 0, square = 0;
        for (int r = 0; r < ROWS; r++) {
            m += (double)x[r * COLS + c] / ROWS;
        }
        for (int r = 0; r < ROWS; r++) {
            square += pow((double)x[r * COLS + c] - m, 2);
        }
        assert_true(fabs((double)mean[c] - m) < 1e-6);
        assert_true(fabs((double)got[c] - sqrt(square / (ROWS - 1))) < 1e-6);
    }
    kvarn__std_rows_scalar(x, ROWS, COLS, mean, got);
    for (int r = 0; r < ROWS; r++) {
        double m = 0, square = 0;
        for (int c = 0; c < COLS; c++) {
            m += (double)x[r * COLS + c] / COLS;
        }
        for (int c = 0; c < COLS; c++) {
            square += pow((double)x[r * COLS + c] - m, 2);
        }
        assert_true(fabs((double)mean[r] - m) < 1e-6);
        assert_true(fabs((double)got[r] - sqrt(square / (COLS - 1))) < 1e-6);
    }
    free(x);
}

static void range_finds_the_ends_wherever_they_are(void **state)
{
    float x[64], low, high;

    (void)state;
    for (int at = 0; at < 64; at++) {
        memset(x, 0, sizeof(x));
        x[at] = 5.0f;
        x[(at + 13) % 64] = -7.0f;
        kvarn__range_row_scalar(x, 64, &low, &high);
        assert_true(low == -7.0f && high == 5.0f);
    }
}

/* Values that lie on a line of levels are found exactly, with weights or without. */
static void fit_finds_levels_that_are_there(void **state)
{
    struct kvt_rng rng = {.state = 52};
    float x[128], weights[128], codes[128];

    (void)state;
    for (int weighted = 0; weighted < 2; weighted++) {
        struct kvarn__line line = {.step = 0.52f, .low = -1.04f};
        for (int i = 0; i < 128; i++) {
            x[i] = (float)kvt_rng_below(&rng, 4) * 0.5f - 1.0f;
            weights[i] = weighted ? 0.1f + (float)kvt_rng_unit(&rng) : 1.0f;
        }
        kvarn__fit_row_scalar(x, weights, 128, codes, &line);
        assert_true(fabsf(line.step - 0.5f) < 1e-6f);
        assert_true(fabsf(line.low + 1.0f) < 1e-6f);
    }
    /* All codes alike: no slope; the step is the smallest, the level the mean. */
    struct kvarn__line line = {.step = 1.0f, .low = 0.0f};
    for (int i = 0; i < 128; i++) {
        x[i] = 0.25f;
    }
    kvarn__fit_row_scalar(x, weights, 128, codes, &line);
    assert_true(line.step == 1e-10f && line.low == 0.25f);
}

static void columns_take_weighted_shares(void **state)
{
    const float x[8] = {2, 4, 6, 8, 0, 0, 0, 0}, weights[8] = {1, 2, 1, 1, 1, 1, 1, 1};
    const float codes[8] = {0, 1, 2, 3, 0, 0, 0, 0};
    float num[8] = {10}, den[8] = {20};
    struct kvarn__columns in = {x, codes, weights, 8, num, den};

    (void)state;
    kvarn__fit_columns_scalar(&in, (struct kvarn__line){.step = 1.0f, .low = 0.0f});
    assert_true(num[0] == 10 && den[0] == 20); /* level 0 */
    assert_true(num[1] == 8 && den[1] == 2);
    assert_true(num[2] == 12 && den[2] == 4);
    assert_true(num[3] == 24 && den[3] == 9);
}

static void balance_divides_by_both(void **state)
{
    const float x[8] = {8, 8, 8, 8, 8, 8, 8, 8}, col[8] = {1, 2, 1, 2, 1, 2, 1, 2};
    float got[8];

    (void)state;
    kvarn__balance_row_scalar(x, 8, col, 4.0f, got);
    assert_true(got[0] == 2 && got[1] == 1 && got[6] == 2 && got[7] == 1);
}

static void largest_magnitude_sees_nan(void **state)
{
    float x[9] = {1, -7, 3, 0, 0, 0, 0, 0, 5}, max = -1;

    (void)state;
    kernels->abs_max(x, 9, &max);
    assert_true(max == 7.0f);
    x[4] = NAN;
    kernels->abs_max(x, 9, &max);
    assert_true(isinf(max));
    kernels->abs_max(x, 0, &max);
    assert_true(max == 0.0f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_op_has_a_kernel),
        cmocka_unit_test(pack_is_little_end_first),
        cmocka_unit_test(rounding_is_half_to_even_and_clamped),
        cmocka_unit_test(deviations_match_double_precision),
        cmocka_unit_test(range_finds_the_ends_wherever_they_are),
        cmocka_unit_test(fit_finds_levels_that_are_there),
        cmocka_unit_test(columns_take_weighted_shares),
        cmocka_unit_test(balance_divides_by_both),
        cmocka_unit_test(largest_magnitude_sees_nan),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
