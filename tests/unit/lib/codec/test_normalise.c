/* Variance normalisation: it balances, never ends worse than it starts, and keeps its bounds. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "lib/codec/plane.h"
#include "lib/kernels/scalar/plane.h"
#include "tests/support/tiles.h"

#define ROWS 64
#define COLS 128

static double imbalance(const float *x)
{
    float mean[COLS], col[COLS], row[ROWS], low = INFINITY, high = 0;

    kvarn__std_columns_scalar(x, ROWS, COLS, mean, col);
    kvarn__std_rows_scalar(x, ROWS, COLS, mean, row);
    for (int c = 0; c < COLS; c++) {
        low = fminf(low, col[c]);
        high = fmaxf(high, col[c]);
    }
    double columns = (double)high / fmax((double)low, 1e-8);
    low = INFINITY;
    high = 0;
    for (int r = 0; r < ROWS; r++) {
        low = fminf(low, row[r]);
        high = fmaxf(high, row[r]);
    }
    return columns + (double)high / fmax((double)low, 1e-8);
}

struct fixture {
    float *values, *floats;
    struct kvarn__plane plane;
    struct kvarn__work work;
};

static void fixture_init(struct fixture *f)
{
    f->values = kvt_alloc(ROWS * COLS * sizeof(float));
    f->floats = kvt_alloc(kvarn__work_floats(ROWS, COLS) * sizeof(float));
    f->plane = (struct kvarn__plane){.values = f->values, .rows = ROWS, .cols = COLS, .bits = 2};
    kvarn__work_init(&f->work, ROWS, COLS, f->floats);
}

/* Normalise; work.balanced becomes the plane divided by the factors found. */
static void fixture_run(struct fixture *f)
{
    kvarn__kernels_get()->normalise(&f->plane, &f->work);
    for (int r = 0; r < ROWS; r++) {
        kvarn__balance_row_scalar(
            f->values + r * COLS, COLS, f->work.col, f->work.row[r], f->work.balanced + r * COLS);
    }
}

static void fixture_fini(struct fixture *f)
{
    free(f->values);
    free(f->floats);
}

static void loud_rows_and_columns_are_balanced(void **state)
{
    struct kvt_rng rng = {.state = 31};
    struct fixture f;

    (void)state;
    fixture_init(&f);
    for (int r = 0; r < ROWS; r++) {
        for (int c = 0; c < COLS; c++) {
            double gain = (r == 5 ? 40.0 : 2.0) * (c == 9 ? 25.0 : 2.0);
            f.values[r * COLS + c] = (float)(gain * kvt_rng_normal(&rng));
        }
    }
    double before = imbalance(f.values);
    fixture_run(&f);
    double after = imbalance(f.work.balanced);
    assert_true(before > 20);
    assert_true(after < 2.2); /* 2 is perfect */
    assert_true(f.work.row[5] / f.work.row[6] > 15);
    assert_true(f.work.col[9] / f.work.col[10] > 8);
    fixture_fini(&f);
}

static void it_never_ends_worse_than_it_starts(void **state)
{
    struct kvt_rng rng = {.state = 32};
    struct fixture f;

    (void)state;
    fixture_init(&f);
    for (int i = 0; i < 40; i++) {
        kvt_rows_fill(&rng, f.values, ROWS, COLS, pow(10, i % 9 - 5));
        double before = imbalance(f.values);
        fixture_run(&f);
        assert_true(imbalance(f.work.balanced) <= before * (1 + 1e-5));
        for (int c = 0; c < COLS; c++) {
            assert_true(f.work.col[c] >= 0.7408f && f.work.col[c] <= 22027.0f);
        }
        for (int r = 0; r < ROWS; r++) {
            assert_true(f.work.row[r] >= 0.7408f && f.work.row[r] <= 22027.0f);
        }
    }
    fixture_fini(&f);
}

/* A tile of one value: deviations are 0, scales go to their lower clamp at once and stay. */
static void ties_go_to_the_later_state(void **state)
{
    struct fixture f;

    (void)state;
    fixture_init(&f);
    fixture_run(&f);
    for (int c = 0; c < COLS; c++) {
        assert_true(fabsf(f.work.col[c] / expf(-0.3f) - 1.0f) < 1e-6f);
    }
    assert_true(fabsf(f.work.row[0] / expf(-0.3f) - 1.0f) < 1e-6f);
    assert_true(f.work.balanced[0] == 0.0f);
    fixture_fini(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loud_rows_and_columns_are_balanced),
        cmocka_unit_test(it_never_ends_worse_than_it_starts),
        cmocka_unit_test(ties_go_to_the_later_state),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
