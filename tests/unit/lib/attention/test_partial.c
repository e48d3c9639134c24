/* Partials: nothing seen, merging, finishing. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "lib/attention/partial.h"

static const struct kvarn_attention_params params = {
    .spec = {64, 8, 64, 2, 2}, .q_heads = 2, .q_tokens = 1, .scale = 1.0f};

#define STRIDE (KVARN__PARTIAL_ACC + 8)

static void semantics_19_nothing_seen_gives_zero_and_minus_infinity(void **state)
{
    float partial[2 * STRIDE], out[16], lse[2];

    (void)state;
    assert_int_equal(kvarn_attention_partial_floats(&params), 2 * STRIDE);
    kvarn_attention_partial_init(&params, partial);
    kvarn_attention_merge(&params, partial, partial);
    memset(out, 0x7f, sizeof(out));
    kvarn_attention_finish(&params, partial, out, lse);
    for (int i = 0; i < 16; i++) {
        assert_true(out[i] == 0.0f);
    }
    assert_true(isinf(lse[0]) && lse[0] < 0 && isinf(lse[1]) && lse[1] < 0);
}

/* One token of logit l and value v in row 0. */
static void token_set(float *partial, float logit, float value)
{
    kvarn_attention_partial_init(&params, partial);
    partial[KVARN__PARTIAL_MAX] = logit;
    partial[KVARN__PARTIAL_SUM] = 1.0f;
    for (int i = 0; i < 8; i++) {
        partial[KVARN__PARTIAL_ACC + i] = value;
    }
}

static void merging_weighs_by_exp_of_logit(void **state)
{
    float a[2 * STRIDE], b[2 * STRIDE], out[16], lse[2];

    (void)state;
    for (int swapped = 0; swapped < 2; swapped++) {
        token_set(swapped ? b : a, logf(3.0f), 1.0f);
        token_set(swapped ? a : b, 0.0f, 5.0f);
        kvarn_attention_merge(&params, a, b);
        kvarn_attention_finish(&params, a, out, lse);
        assert_true(fabsf(out[0] - 2.0f) < 1e-6f); /* (3 * 1 + 1 * 5) / 4 */
        assert_true(fabsf(lse[0] - logf(4.0f)) < 1e-6f);
        assert_true(isinf(lse[1]));
    }
}

static void an_empty_side_changes_no_bit(void **state)
{
    float a[2 * STRIDE], empty[2 * STRIDE], want[2 * STRIDE];

    (void)state;
    token_set(a, -80000.0f, 0.3f);
    memcpy(want, a, sizeof(want));
    kvarn_attention_partial_init(&params, empty);
    kvarn_attention_merge(&params, a, empty);
    assert_memory_equal(a, want, sizeof(want));
    kvarn_attention_merge(&params, empty, a);
    assert_memory_equal(empty, want, sizeof(want));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(semantics_19_nothing_seen_gives_zero_and_minus_infinity),
        cmocka_unit_test(merging_weighs_by_exp_of_logit),
        cmocka_unit_test(an_empty_side_changes_no_bit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
