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
    kernels->round_row(x, 8, 3, line, codes);
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
    kernels->std_columns(x, ROWS, COLS, mean, got);
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
    kernels->std_rows(x, ROWS, COLS, mean, got);
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
        kernels->range_row(x, 64, &low, &high);
        assert_true(low == -7.0f && high == 5.0f);
    }
}

/* Values that lie on a line of levels are found exactly, with weights or without. */
static void fit_finds_levels_that_are_there(void **state)
{
    struct kvt_rng rng = {.state = 52};
    float x[128], weights[128];

    (void)state;
    for (int weighted = 0; weighted < 2; weighted++) {
        struct kvarn__line line = {.step = 0.52f, .low = -1.04f};
        for (int i = 0; i < 128; i++) {
            x[i] = (float)kvt_rng_below(&rng, 4) * 0.5f - 1.0f;
            weights[i] = 0.1f + (float)kvt_rng_unit(&rng);
        }
        kernels->fit_row(x, weighted ? weights : NULL, 128, &line);
        assert_true(fabsf(line.step - 0.5f) < 1e-6f);
        assert_true(fabsf(line.low + 1.0f) < 1e-6f);
    }
    /* All codes alike: no slope; the step is the smallest, the level the mean. */
    struct kvarn__line line = {.step = 1.0f, .low = 0.0f};
    for (int i = 0; i < 128; i++) {
        x[i] = 0.25f;
    }
    kernels->fit_row(x, NULL, 128, &line);
    assert_true(line.step == 1e-10f && line.low == 0.25f);
}

static void columns_take_weighted_shares(void **state)
{
    const float x[8] = {2, 4, 6, 8, 0, 0, 0, 0}, weights[8] = {1, 2, 1, 1, 1, 1, 1, 1};
    const float ratio[8] = {0, 1, 2, 3, 0, 0, 0, 0};
    float num[8] = {10}, den[8] = {20};
    struct kvarn__columns in = {x, ratio, weights, 8, num, den};

    (void)state;
    kernels->fit_columns(&in, (struct kvarn__line){.step = 1.0f, .low = 0.0f});
    assert_true(num[0] == 10 && den[0] == 20); /* level 0 */
    assert_true(num[1] == 8 && den[1] == 2);
    assert_true(num[2] == 12 && den[2] == 4);
    assert_true(num[3] == 24 && den[3] == 9);
}

static void balance_divides_by_both(void **state)
{
    const float x[16] = {8, 8, 8, 8, 8, 8, 8, 8, 6, 6, 6, 6, 6, 6, 6, 6};
    const float col[8] = {1, 2, 1, 2, 1, 2, 1, 2}, row[2] = {4, 3};
    const struct kvarn__grid grid = {2, 8, col, row};
    float got[16];

    (void)state;
    kernels->balance(x, &grid, got);
    assert_true(got[0] == 2 && got[1] == 1 && got[8] == 2 && got[9] == 1);
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
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
