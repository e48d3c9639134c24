/* Error of an encoder on the recorded cache: see fidelity.h. */
#include "tests/support/fidelity.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvarn/attention.h"
#include "lib/kernels/scalar/lanes.h"
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
#define LEARNT   64 /* first of Q_TOKENS: aware's metric; the others' weights are compared */
#define SCALE    0.125f

static const int layers[LAYERS] = {0, 1, 7, 15, 22, 29};

/* Squared errors and squares of K, V and attention output. */
struct figures {
    double error[3], power[3];
    double divergence; /* sum over KV heads */
    unsigned tiles;
};

/* One layer's K, V and queries, rotated. */
struct layer {
    float *k, *v, *q; /* owned */
};

static float *tensor_load(const char *dir, int layer, const char *what, size_t count)
{
    char name[32];
    struct kvt_npy npy;

    (void)snprintf(name, sizeof(name), "layer%02d_%s.npy", layer, what);
    if (kvt_npy_read_at(dir, name, &npy) != 0) {
        return NULL;
    }
    float *values = NULL;
    if (npy.count == count) {
        values = kvt_npy_floats(&npy);
        kvarn_rotate(values, count / DIM, DIM);
    } else {
        fprintf(stderr, "%s/%s: not %zu values\n", dir, name, count);
    }
    kvt_npy_fini(&npy);
    return values;
}

static void layer_fini(struct layer *layer)
{
    free(layer->k);
    free(layer->v);
    free(layer->q);
}

static int layer_load(const char *dir, int number, struct layer *ret_layer)
{
    const size_t head = (size_t)TOKENS * DIM, queries = (size_t)GQA * Q_TOKENS * DIM;
    struct layer layer = {.k = tensor_load(dir, number, "k", KV_HEADS * head),
        .v = tensor_load(dir, number, "v", KV_HEADS * head),
        .q = tensor_load(dir, number, "q", KV_HEADS * queries)};

    if (layer.k == NULL || layer.v == NULL || layer.q == NULL) {
        layer_fini(&layer);
        return -1;
    }
    *ret_layer = layer;
    return 0;
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

/* kv: K and V as they are, K and V as decoded. */
static void output_add(struct figures *figures, const float *q, const float *const kv[4])
{
    static double want[GQA * Q_TOKENS * DIM], mine[GQA * Q_TOKENS * DIM], lse[GQA * Q_TOKENS];
    struct kvarn_attention_params params = {.spec = {DIM, DIM, GROUP, 2, 2},
        .q_heads = GQA,
        .q_tokens = Q_TOKENS,
        .position = TOKENS - Q_TOKENS,
        .last = TOKENS,
        .scale = SCALE,
        .causal = true};

    kvt_attention_f64(&params, q, kv[0], kv[1], TOKENS, want, lse);
    kvt_attention_f64(&params, q, kv[2], kv[3], TOKENS, mine, lse);
    for (size_t i = 0; i < GQA * Q_TOKENS * DIM; i++) {
        figures->error[2] += (mine[i] - want[i]) * (mine[i] - want[i]);
        figures->power[2] += want[i] * want[i];
    }
}

/* Logarithms of the attention weights of one query over all tokens. */
static void log_weights(const float *q, const float *k, double *dst)
{
    double max = -INFINITY, sum = 0;

    for (size_t t = 0; t < TOKENS; t++) {
        dst[t] = (double)(SCALE * kvarn__lanes_dot(q, k + t * DIM, DIM));
        max = fmax(max, dst[t]);
    }
    for (size_t t = 0; t < TOKENS; t++) {
        sum += exp(dst[t] - max);
    }
    for (size_t t = 0; t < TOKENS; t++) {
        dst[t] -= max + log(sum);
    }
}

/* Mean divergence of a KV head's attention weights. */
static double head_divergence(const float *q, const float *k, const float *k_back)
{
    static double want[TOKENS], mine[TOKENS];
    double sum = 0;

    for (size_t h = 0; h < GQA; h++) {
        for (size_t i = LEARNT; i < Q_TOKENS; i++) {
            const float *row = q + (h * Q_TOKENS + i) * DIM;
            log_weights(row, k, want);
            log_weights(row, k_back, mine);
            for (size_t t = 0; t < TOKENS; t++) {
                sum += exp(want[t]) * (want[t] - mine[t]);
            }
        }
    }
    return sum / (GQA * (Q_TOKENS - LEARNT));
}

/* The factor of the metric of a KV head's first queries. */
static float *head_factor(const float *q)
{
    float *a = kvt_alloc(DIM * DIM * sizeof(float)), *factor = kvt_alloc(DIM * DIM * sizeof(float));
    void *scratch = kvt_alloc(kvarn_metric_factor_scratch_bytes(DIM));

    for (size_t h = 0; h < GQA; h++) {
        kvarn_metric_add(a, q + h * Q_TOKENS * DIM, LEARNT, DIM);
    }
    if (kvarn_metric_factor(a, GQA * LEARNT, DIM, factor, scratch) != 0) {
        abort(); /* recorded queries have one */
    }
    free(a);
    free(scratch);
    return factor;
}

/* How tiles of one KV head are made. */
struct how {
    enum kvarn_encoder encoder;
    float *factor; /* owned; NULL but for aware */
};

static void *tile_make(
    const struct kvarn_tile_spec *spec, const struct how *how, const float *k, const float *v)
{
    return how->factor == NULL ? kvt_tile_make(spec, how->encoder, k, v)
                               : kvt_tile_make_aware(spec, how->factor, k, v);
}

static void head_add(struct figures *figures, enum kvarn_encoder encoder,
    const struct kvarn_tile_spec *spec, const struct layer *layer, size_t head)
{
    const size_t count = (size_t)TOKENS * DIM, block = (size_t)GROUP * DIM;
    const float *k = layer->k + head * count, *v = layer->v + head * count;
    const float *q = layer->q + head * GQA * Q_TOKENS * DIM;
    float *k_back = kvt_alloc(count * sizeof(float)), *v_back = kvt_alloc(count * sizeof(float));
    struct how how = {encoder, encoder == KVARN_ENCODER_AWARE ? head_factor(q) : NULL};

    memcpy(k_back, k, count * sizeof(float));
    memcpy(v_back, v, count * sizeof(float));
    for (size_t at = block; at < count - block; at += block) {
        void *tile = tile_make(spec, &how, k + at, v + at);
        kvarn_tile_decode(spec, tile, k_back + at, v_back + at);
        free(tile);
        figures->tiles++;
    }
    error_add(figures, 0, k_back + block, k + block, count - 2 * block);
    error_add(figures, 1, v_back + block, v + block, count - 2 * block);
    output_add(figures, q, (const float *const[]){k, v, k_back, v_back});
    figures->divergence += head_divergence(q, k, k_back);
    free(how.factor);
    free(k_back);
    free(v_back);
}

int kvt_fidelity_measure(const char *dir, enum kvarn_encoder encoder, const char *preset,
    struct kvt_fidelity *ret_fidelity)
{
    struct kvarn_tile_spec spec = {.k_dim = DIM, .v_dim = DIM, .group = GROUP};
    struct kvt_fidelity sum = {0};

    if (kvarn_preset_parse(preset, &spec.k_bits, &spec.v_bits) != 0) {
        fprintf(stderr, "%s: not a preset\n", preset);
        return -1;
    }
    for (int l = 0; l < LAYERS; l++) {
        struct figures figures = {0};
        struct layer layer;
        if (layer_load(dir, layers[l], &layer) != 0) {
            return -1;
        }
        for (size_t h = 0; h < KV_HEADS; h++) {
            head_add(&figures, encoder, &spec, &layer, h);
        }
        layer_fini(&layer);
        sum.k += figures.error[0] / figures.power[0] / LAYERS;
        sum.v += figures.error[1] / figures.power[1] / LAYERS;
        sum.output += figures.error[2] / figures.power[2] / LAYERS;
        sum.kl += figures.divergence / KV_HEADS / LAYERS;
        sum.tiles += figures.tiles;
    }
    *ret_fidelity = sum;
    return 0;
}
