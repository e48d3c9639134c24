/*
 * Error on a real model's keys, values and queries (tests/data/kv): first and last block exact, the
 * 768 tokens between quantised, the recorded queries attending causally. Figures are the mean over
 * layers of each layer's relative squared error; FORMAT.md quotes them.
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

#include "kvarn/attention.h"
#include "tests/support/attention_f64.h"
#include "tests/support/npy_read.h"
#include "tests/support/tiles.h"

#define TOKENS   1024
#define KV_HEADS 3
#define GQA      3
#define DIM      64
#define GROUP    128
#define Q_TOKENS 128
#define LAYERS   6

static const int layers[LAYERS] = {0, 1, 7, 15, 22, 29};

/* Squared errors and squares of K, V and attention output. */
struct figures {
    double error[3], power[3];
};

static float *tensor_load(int layer, const char *what, size_t count)
{
    char name[32];
    struct kvt_npy npy;

    snprintf(name, sizeof(name), "layer%02d_%s.npy", layer, what);
    assert_int_equal(kvt_npy_read_at(KVT_DATA_DIR, name, &npy), 0);
    assert_int_equal(npy.count, count);
    float *values = kvt_npy_floats(&npy);
    kvt_npy_fini(&npy);
    kvarn_rotate(values, count / DIM, DIM);
    return values;
}

static void error_add(
    struct figures *figures, int which, const float *mine, const float *want, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        double d = (double)mine[i] - (double)want[i];
        figures->error[which] += d * d;
        figures->power[which] += (double)want[i] * (double)want[i];
    }
}

static void output_add(struct figures *figures, const float *q, const float *const kv[4])
{
    static double want[GQA * Q_TOKENS * DIM], mine[GQA * Q_TOKENS * DIM], lse[GQA * Q_TOKENS];
    struct kvarn_attention_params params = {.spec = {DIM, DIM, GROUP, 2, 2},
        .q_heads = GQA,
        .q_tokens = Q_TOKENS,
        .position = TOKENS - Q_TOKENS,
        .last = TOKENS,
        .scale = 0.125f,
        .causal = true};

    kvt_attention_f64(&params, q, kv[0], kv[1], TOKENS, want, lse);
    kvt_attention_f64(&params, q, kv[2], kv[3], TOKENS, mine, lse);
    for (size_t i = 0; i < GQA * Q_TOKENS * DIM; i++) {
        figures->error[2] += (mine[i] - want[i]) * (mine[i] - want[i]);
        figures->power[2] += want[i] * want[i];
    }
}

static void head_add(struct figures *figures, enum kvarn_encoder encoder,
    const struct kvarn_tile_spec *spec, const float *k, const float *v, const float *q)
{
    const size_t count = (size_t)TOKENS * DIM, block = (size_t)GROUP * DIM;
    float *k_back = kvt_alloc(count * sizeof(float)), *v_back = kvt_alloc(count * sizeof(float));

    memcpy(k_back, k, count * sizeof(float));
    memcpy(v_back, v, count * sizeof(float));
    for (size_t at = block; at < count - block; at += block) {
        void *tile = kvt_tile_make(spec, encoder, k + at, v + at);
        kvarn_tile_decode(spec, tile, k_back + at, v_back + at);
        free(tile);
    }
    error_add(figures, 0, k_back + block, k + block, count - 2 * block);
    error_add(figures, 1, v_back + block, v + block, count - 2 * block);
    output_add(figures, q, (const float *const[]){k, v, k_back, v_back});
    free(k_back);
    free(v_back);
}

/* Mean over layers of relMSE of K, V and output. */
static void measure(enum kvarn_encoder encoder, const char *preset, double ret[3])
{
    const size_t head = (size_t)TOKENS * DIM, queries = (size_t)GQA * Q_TOKENS * DIM;
    struct kvarn_tile_spec spec = {.k_dim = DIM, .v_dim = DIM, .group = GROUP};
    unsigned tiles = 0;

    assert_int_equal(kvarn_preset_parse(preset, &spec.k_bits, &spec.v_bits), 0);
    ret[0] = ret[1] = ret[2] = 0;
    for (int l = 0; l < LAYERS; l++) {
        struct figures figures = {0};
        float *k = tensor_load(layers[l], "k", KV_HEADS * head);
        float *v = tensor_load(layers[l], "v", KV_HEADS * head);
        float *q = tensor_load(layers[l], "q", KV_HEADS * queries);
        for (size_t h = 0; h < KV_HEADS; h++) {
            head_add(&figures, encoder, &spec, k + h * head, v + h * head, q + h * queries);
            tiles += TOKENS / GROUP - 2;
        }
        for (int i = 0; i < 3; i++) {
            ret[i] += figures.error[i] / figures.power[i] / LAYERS;
        }
        free(k);
        free(v);
        free(q);
    }
    printf("%s encoder %d: relMSE K %.4f V %.4f output %.4f (%u tiles)\n", preset, (int)encoder,
        ret[0], ret[1], ret[2], tiles);
}

static void semantics_22_refined_meets_its_bars_and_beats_reference(void **state)
{
    double reference[3], refined[3], by_default[3];

    (void)state;
    measure(KVARN_ENCODER_REFERENCE, "k2v2", reference);
    measure(KVARN_ENCODER_REFINED, "k2v2", refined);
    /* What NumPy's implementation of the paper gives: .078, .192, .050. */
    assert_true(reference[0] > 0.075 && reference[0] < 0.081);
    assert_true(reference[1] > 0.189 && reference[1] < 0.195);
    assert_true(reference[2] > 0.047 && reference[2] < 0.053);
    assert_true(refined[0] <= 0.042);
    assert_true(refined[1] <= 0.110);
    assert_true(refined[2] <= 0.018);
    /* SEMANTICS 22: held to its error. NumPy's implementation gives .038730 and .102265. */
    assert_true(fabs(refined[0] / 0.038730 - 1) < 0.005);
    assert_true(fabs(refined[1] / 0.102265 - 1) < 0.005);
    for (int i = 0; i < 3; i++) {
        assert_true(refined[i] < 0.6 * reference[i]);
    }
    measure(KVARN_ENCODER_DEFAULT, "k2v2", by_default);
    assert_memory_equal(by_default, refined, sizeof(refined));
}

static void four_bits_are_better_than_two(void **state)
{
    double k2v2[3], k4v2[3], k4v4[3];

    (void)state;
    measure(KVARN_ENCODER_DEFAULT, "k2v2", k2v2);
    measure(KVARN_ENCODER_DEFAULT, "k4v2", k4v2);
    measure(KVARN_ENCODER_DEFAULT, "k4v4", k4v4);
    assert_true(k4v2[0] < 0.1 * k2v2[0]);
    assert_true(k4v2[1] == k2v2[1]); /* V of k4v2 is refined too */
    assert_true(k4v4[0] == k4v2[0]);
    assert_true(k4v4[1] < 0.15 * k4v2[1]);
    assert_true(k4v4[2] < k4v2[2] && k4v2[2] < k2v2[2]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(semantics_22_refined_meets_its_bars_and_beats_reference),
        cmocka_unit_test(four_bits_are_better_than_two),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
