/* Exact attention against the tests' own definition of it, and against results known by hand. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "client/cli/exact.h"
#include "tests/support/attention_f64.h"
#include "tests/support/rng.h"

#define TOKENS   37
#define QUERIES  9
#define K_DIM    24 /* not a multiple of every number of lanes */
#define V_DIM    13
#define KV_HEADS 2
#define Q_HEADS  6

static float q[Q_HEADS * QUERIES * K_DIM];
static float k[KV_HEADS * TOKENS * K_DIM];
static float v[KV_HEADS * TOKENS * V_DIM];

static struct exact_in input(void)
{
    return (struct exact_in){
        .q = q,
        .k = k,
        .v = v,
        .q_heads = Q_HEADS,
        .kv_heads = KV_HEADS,
        .k_dim = K_DIM,
        .v_dim = V_DIM,
        .tokens = TOKENS,
        .query_tokens = QUERIES,
        .position = TOKENS - QUERIES,
        .scale = 0.25, /* a float too */
    };
}

static void fill(float *x, size_t count, struct kvt_rng *rng)
{
    for (size_t i = 0; i < count; i++) {
        x[i] = (float)kvt_rng_normal(rng);
    }
}

static void semantics_19_heads_of_a_group_read_their_kv_head(void **state)
{
    struct exact_in in = input();
    struct kvarn_attention_params params = {
        .spec = {.k_dim = K_DIM, .v_dim = V_DIM},
        .q_heads = Q_HEADS / KV_HEADS,
        .q_tokens = QUERIES,
        .position = TOKENS - QUERIES,
        .last = TOKENS,
        .scale = 0.25f,
        .causal = true,
    };
    double logits[TOKENS];
    double worst = 0.0;

    (void)state;
    for (uint32_t head = 0; head < KV_HEADS; head++) {
        static double want[Q_HEADS / KV_HEADS * QUERIES * V_DIM];
        static double want_lse[Q_HEADS / KV_HEADS * QUERIES];

        kvt_attention_f64(&params, q + head * params.q_heads * QUERIES * K_DIM,
            k + head * TOKENS * K_DIM, v + head * TOKENS * V_DIM, TOKENS, want, want_lse);
        for (uint32_t g = 0; g < params.q_heads; g++) {
            double out[QUERIES * V_DIM];
            double lse[QUERIES];

            exact_attend_head(&in, head * params.q_heads + g, out, lse, logits);
            for (size_t i = 0; i < QUERIES * V_DIM; i++) {
                worst = fmax(worst, fabs(out[i] - want[g * QUERIES * V_DIM + i]));
            }
            for (size_t i = 0; i < QUERIES; i++) {
                worst = fmax(worst, fabs(lse[i] - want_lse[g * QUERIES + i]));
            }
        }
    }
    assert_true(worst < 1e-13);
}

static void semantics_19_a_query_does_not_see_later_tokens(void **state)
{
    struct exact_in in = input();
    double before[QUERIES * V_DIM], after[QUERIES * V_DIM];
    double before_lse[QUERIES], after_lse[QUERIES];
    double logits[TOKENS];
    float kept = v[(TOKENS - 1) * V_DIM];

    (void)state;
    exact_attend_head(&in, 0, before, before_lse, logits);
    v[(TOKENS - 1) * V_DIM] = kept + 100.0f; /* only the last query sees the last token */
    exact_attend_head(&in, 0, after, after_lse, logits);
    v[(TOKENS - 1) * V_DIM] = kept;
    assert_memory_equal(before, after, (QUERIES - 1) * V_DIM * sizeof(double));
    assert_true(before[(QUERIES - 1) * V_DIM] != after[(QUERIES - 1) * V_DIM]);
    assert_memory_equal(before_lse, after_lse, sizeof before_lse);
}

static void equal_logits_give_the_mean(void **state)
{
    const float zero[4] = {0};
    const float values[] = {1.0f, 2.0f, 6.0f};
    const struct exact_in in = {
        .q = zero,
        .k = zero,
        .v = values,
        .q_heads = 1,
        .kv_heads = 1,
        .k_dim = 1,
        .v_dim = 1,
        .tokens = 3,
        .query_tokens = 3,
        .scale = 1.0,
    };
    double out[3], lse[3], logits[3];

    (void)state;
    exact_attend_head(&in, 0, out, lse, logits);
    assert_true(out[0] == 1.0 && out[1] == 1.5 && out[2] == 3.0);
    assert_true(lse[0] == 0.0 && lse[1] == log(2.0) && lse[2] == log(3.0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(semantics_19_heads_of_a_group_read_their_kv_head),
        cmocka_unit_test(semantics_19_a_query_does_not_see_later_tokens),
        cmocka_unit_test(equal_logits_give_the_mean),
    };
    struct kvt_rng rng = {.state = 19};

    fill(q, sizeof q / sizeof q[0], &rng);
    fill(k, sizeof k / sizeof k[0], &rng);
    fill(v, sizeof v / sizeof v[0], &rng);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
