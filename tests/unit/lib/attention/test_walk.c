/*
 * Masks of the walk, read off the output: V of token j is one-hot in j, so that out shows the
 * weight of every token, and K is zero, so that all tokens seen weigh alike.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kvarn/attention.h"
#include "tests/support/attention_f64.h"
#include "tests/support/tiles.h"

#define DIM    64
#define TOKENS 64

static uint16_t k_rows[TOKENS * DIM], v_rows[TOKENS * DIM];

static void rows_fill(void)
{
    memset(k_rows, 0, sizeof(k_rows));
    memset(v_rows, 0, sizeof(v_rows));
    for (int t = 0; t < TOKENS; t++) {
        v_rows[t * DIM + t] = 0x3c00; /* 1 */
    }
}

static void attend(const struct kvarn_attention_params *params, const float *q,
    const struct kvarn_attention_span *spans, size_t count, float *out, float *lse)
{
    float *partial = kvt_alloc(kvarn_attention_partial_floats(params) * sizeof(float));
    float *scratch = kvt_alloc(kvarn_attention_scratch_floats(params) * sizeof(float));

    kvarn_attention_partial_init(params, partial);
    kvarn_attention_walk(params, q, spans, count, partial, scratch);
    kvarn_attention_finish(params, partial, out, lse);
    free(partial);
    free(scratch);
}

/* Rows of query token 0 of `params` see exactly [low, high), which start at token `base`. */
static void sees(struct kvarn_attention_params params, uint64_t base, uint64_t low, uint64_t high)
{
    /* Two spans, to cross from one to the other. */
    const struct kvarn_attention_span spans[2] = {{KVARN_SPAN_HALF, base, 20, NULL, k_rows, v_rows},
        {KVARN_SPAN_HALF, base + 20, TOKENS - 20, NULL, k_rows + 20 * DIM, v_rows + 20 * DIM}};
    float q[DIM] = {0}, out[DIM], lse;

    params.spec = (struct kvarn_tile_spec){DIM, DIM, 64, 2, 2};
    params.q_heads = params.q_tokens = 1;
    params.scale = 1.0f;
    rows_fill();
    attend(&params, q, spans, 2, out, &lse);
    for (uint64_t t = base; t < base + TOKENS; t++) {
        float want = t >= low && t < high ? 1.0f / (float)(high - low) : 0.0f;
        assert_true(fabsf(out[t - base] - want) < 1e-6f);
    }
    if (low < high) {
        assert_true(fabsf(lse - logf((float)(high - low))) < 1e-5f);
    } else {
        assert_true(isinf(lse) && lse < 0);
    }
}

static void semantics_19_ranges_windows_and_causality(void **state)
{
    const uint64_t far = UINT64_C(1) << 26;

    (void)state;
    sees((struct kvarn_attention_params){.last = 64}, 0, 0, 64);
    sees((struct kvarn_attention_params){.first = 5, .last = 30}, 0, 5, 30);
    sees((struct kvarn_attention_params){.first = 30, .last = 30}, 0, 0, 0);
    sees((struct kvarn_attention_params){.first = 40, .last = 5}, 0, 0, 0);
    sees((struct kvarn_attention_params){.last = 64, .causal = true}, 0, 0, 1);
    sees((struct kvarn_attention_params){.last = 64, .causal = true, .position = 19}, 0, 0, 20);
    sees((struct kvarn_attention_params){.last = 64, .causal = true, .position = 20}, 0, 0, 21);
    sees((struct kvarn_attention_params){.last = 64, .causal = true, .position = 999}, 0, 0, 64);
    sees((struct kvarn_attention_params){.last = 64, .causal = true, .position = 9, .window = 1}, 0,
        9, 10);
    sees((struct kvarn_attention_params){.last = 64, .causal = true, .position = 30, .window = 12},
        0, 19, 31);
    sees((struct kvarn_attention_params){.last = 64, .causal = true, .position = 30, .window = 31},
        0, 0, 31);
    sees((struct kvarn_attention_params){.last = 64, .causal = true, .position = 30, .window = 999},
        0, 0, 31);
    sees(
        (struct kvarn_attention_params){
            .first = 25, .last = 28, .causal = true, .position = 30, .window = 12},
        0, 25, 28);
    sees((struct kvarn_attention_params){.last = 64, .causal = true, .position = 99, .window = 10},
        0, 0, 0);
    sees(
        (struct kvarn_attention_params){
            .last = far + 64, .causal = true, .position = far + 3, .window = 9},
        far, far, far + 4);
}

/* The rows of a strip boundary: more query rows than go at once, each with its own position. */
static void many_query_rows_each_see_their_own_prefix(void **state)
{
    enum { HEADS = 3, ROWS = 40 };
    const struct kvarn_attention_params params = {.spec = {DIM, DIM, 64, 2, 2},
        .q_heads = HEADS,
        .q_tokens = ROWS,
        .position = 10,
        .last = TOKENS,
        .scale = 1.0f,
        .causal = true};
    const struct kvarn_attention_span span = {KVARN_SPAN_HALF, 0, TOKENS, NULL, k_rows, v_rows};
    float *q = kvt_alloc(HEADS * ROWS * DIM * sizeof(float));
    float *out = kvt_alloc(HEADS * ROWS * DIM * sizeof(float));
    float lse[HEADS * ROWS];

    (void)state;
    rows_fill();
    attend(&params, q, &span, 1, out, lse);
    for (int r = 0; r < HEADS * ROWS; r++) {
        int seen = 11 + r % ROWS;
        assert_true(fabsf(out[r * DIM] - 1.0f / (float)seen) < 1e-6f);
        assert_true(fabsf(out[r * DIM + seen - 1] - 1.0f / (float)seen) < 1e-6f);
        assert_true(out[r * DIM + seen] == 0.0f);
    }
    free(q);
    free(out);
}

static void scale_and_softcap_shape_the_logits(void **state)
{
    struct kvarn_attention_params params = {
        .spec = {DIM, DIM, 64, 2, 2}, .q_heads = 1, .q_tokens = 1, .last = 1, .scale = 0.5f};
    const struct kvarn_attention_span span = {KVARN_SPAN_HALF, 0, 1, NULL, k_rows, v_rows};
    float q[DIM] = {8.0f}, out[DIM], lse;

    (void)state;
    rows_fill();
    k_rows[0] = 0x4200; /* 3: q.k is 24 */
    attend(&params, q, &span, 1, out, &lse);
    assert_true(lse == 12.0f && out[0] == 1.0f);
    params.softcap = 10.0f;
    attend(&params, q, &span, 1, out, &lse);
    assert_true(fabsf(lse - 10.0f * tanhf(1.2f)) < 1e-5f);
    params.scale = -1e6f;
    attend(&params, q, &span, 1, out, &lse);
    assert_true(lse == -10.0f);
}

/* A tile may be used up to any token: its first tokens weigh as the same rows decoded. */
static void part_of_a_tile(void **state)
{
    const struct kvarn_tile_spec spec = {DIM, 80, 128, 4, 2};
    struct kvt_rng rng = {.state = 61};
    float *k = kvt_alloc(128 * DIM * sizeof(float)), *v = kvt_alloc(128 * 80 * sizeof(float));
    float q[DIM], out[80], lse;
    double want[80], want_lse;

    (void)state;
    kvt_rows_fill(&rng, k, 128, DIM, 1.0);
    kvt_rows_fill(&rng, v, 128, 80, 1.0);
    void *tile = kvt_tile_make(&spec, KVARN_ENCODER_DEFAULT, k, v);
    kvarn_tile_decode(&spec, tile, k, v);
    for (int i = 0; i < DIM; i++) {
        q[i] = (float)kvt_rng_normal(&rng);
    }
    for (uint32_t count = 1; count <= 128; count++) {
        const struct kvarn_attention_params params = {.spec = spec,
            .q_heads = 1,
            .q_tokens = 1,
            .last = count,
            .scale = 0.125f,
            .accuracy = KVARN_ACCURACY_EXACT};
        const struct kvarn_attention_span span = {
            .form = KVARN_SPAN_TILE, .token_count = count, .tile = tile};
        attend(&params, q, &span, 1, out, &lse);
        kvt_attention_f64(&params, q, k, v, count, want, &want_lse);
        assert_true(fabs((double)lse - want_lse) < 1e-4);
        for (int i = 0; i < 80; i++) {
            assert_true(fabs((double)out[i] - want[i]) < 1e-4);
        }
    }
    free(k);
    free(v);
    free(tile);
}

/* The largest query and the largest tile values that may arrive: no Inf, no NaN. */
static void semantics_10_extremes_stay_finite(void **state)
{
    const struct kvarn_tile_spec spec = {512, 512, 64, 2, 2};
    const struct kvarn_attention_params params = {
        .spec = spec, .q_heads = 2, .q_tokens = 1, .last = 64, .scale = 1e6f};
    float *x = kvt_alloc(64 * 512 * sizeof(float)), *q = kvt_alloc(1024 * sizeof(float));
    float *out = kvt_alloc(1024 * sizeof(float)), lse[2];

    (void)state;
    for (int i = 0; i < 64 * 512; i++) {
        x[i] = i / 512 % 2 == 0 ? 32768.0f : -32768.0f;
    }
    for (int i = 0; i < 1024; i++) {
        q[i] = i < 512 ? 32768.0f : -32768.0f;
    }
    void *tile = kvt_tile_make(&spec, KVARN_ENCODER_DEFAULT, x, x);
    const struct kvarn_attention_span span = {
        .form = KVARN_SPAN_TILE, .token_count = 64, .tile = tile};
    attend(&params, q, &span, 1, out, lse);
    assert_true(isfinite(lse[0]) && isfinite(lse[1]));
    for (int i = 0; i < 1024; i++) {
        assert_true(fabsf(fabsf(out[i]) - 32768.0f) < 100.0f);
    }
    free(x);
    free(q);
    free(out);
    free(tile);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(semantics_19_ranges_windows_and_causality),
        cmocka_unit_test(many_query_rows_each_see_their_own_prefix),
        cmocka_unit_test(scale_and_softcap_shape_the_logits),
        cmocka_unit_test(part_of_a_tile),
        cmocka_unit_test(semantics_10_extremes_stay_finite),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
