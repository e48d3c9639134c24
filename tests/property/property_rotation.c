/* The rotation is orthonormal, symmetric, block-diagonal and its own inverse, for every head_dim.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kvarn/codec.h"
#include "lib/base/limits.h"
#include "tests/support/tiles.h"

/* Sign of entry (i, j) of Sylvester's matrix: the parity of the bits that i and j share. */
static double sylvester(uint32_t i, uint32_t j)
{
    return __builtin_parity(i & j) ? -1.0 : 1.0;
}

static void rotation_is_the_scaled_sylvester_matrix(void **state)
{
    float x[KVARN_HEAD_DIM_MAX];
    unsigned tried = 0;

    (void)state;
    for (uint32_t dim = 8; dim <= KVARN_HEAD_DIM_MAX; dim += 8) {
        uint32_t block = kvarn_rotation_block(dim);
        assert_int_equal(dim % block, 0);
        assert_int_not_equal(dim / block % 2, 0);
        for (uint32_t i = 0; i < dim; i++) {
            memset(x, 0, sizeof(x));
            x[i] = 1.0f;
            kvarn_rotate(x, 1, dim);
            for (uint32_t j = 0; j < dim; j++) {
                double want = i / block != j / block
                                  ? 0.0
                                  : sylvester(i % block, j % block) / sqrt((double)block);
                assert_true(fabs((double)x[j] - want) < 1e-7);
            }
            tried++;
        }
    }
    printf("rotation: %u unit vectors\n", tried);
}

static void rotation_keeps_dot_products_and_is_its_own_inverse(void **state)
{
    struct kvt_rng rng = {.state = 1};
    float a[KVARN_HEAD_DIM_MAX], b[KVARN_HEAD_DIM_MAX], back[KVARN_HEAD_DIM_MAX];
    unsigned tried = 0;

    (void)state;
    for (uint32_t dim = 8; dim <= KVARN_HEAD_DIM_MAX; dim += 8) {
        for (int repeat = 0; repeat < 20; repeat++) {
            double before = 0, after = 0, norms = 0;
            for (uint32_t i = 0; i < dim; i++) {
                a[i] = back[i] = (float)kvt_rng_normal(&rng);
                b[i] = (float)kvt_rng_normal(&rng);
                before += (double)a[i] * (double)b[i];
                norms += fabs((double)a[i] * (double)b[i]);
            }
            kvarn_rotate(a, 1, dim);
            kvarn_rotate(b, 1, dim);
            for (uint32_t i = 0; i < dim; i++) {
                after += (double)a[i] * (double)b[i];
            }
            assert_true(fabs(after - before) < 1e-6 * norms);
            kvarn_rotate(a, 1, dim);
            assert_true(kvt_rel_mse(a, back, dim) < 1e-12);
            tried++;
        }
    }
    printf("rotation: %u pairs of vectors\n", tried);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rotation_is_the_scaled_sylvester_matrix),
        cmocka_unit_test(rotation_keeps_dot_products_and_is_its_own_inverse),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
