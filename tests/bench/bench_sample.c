/*
 * kvarn-bench attention --sample on,off: what sampling queries (encoder aware) adds to attention.
 *
 * The unit of work is what the daemon computes for one decode step of a model: for each layer, the
 * queries are offered to the query metric by the daemon's own function, then rotated, walked over
 * the cache's tiles and turned back. The caches of the layers lie one after the other, as do their
 * sums: both come from memory. Times of whole steps with sampling and without differ by less than a
 * shared machine drifts; so the offers that take a sample are timed one by one within the steps,
 * clock included, and set against the rest of the same steps; one that passes over is timed apart.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kvarn/attention.h"
#include "kvarn/cpu.h"
#include "server/append/metric_sample.h"
#include "server/session/shape.h"
#include "tests/bench/bench.h"
#include "tests/support/tiles.h"

#define LAYERS   32
#define KV_HEADS 8
#define GROUP    128
#define Q_SETS   16 /* different queries, one after the other */
#define PATTERNS 8  /* different tiles; the arena repeats them */

/* How the queries are met. */
enum way {
    WAY_FIRST, /* no version is in force yet: one query token in KVD_METRIC_GAP_FIRST */
    WAY_LATER, /* one in KVD_METRIC_GAP_LATER */
    WAY_COUNT,
};
static const char *const way_names[WAY_COUNT] = {"until there is a metric", "once there is one"};

static const struct kvb_goal share_goal = {2.0, 1.0, true};

/* A model of one point: shape, tiles of all layers, queries. */
struct model {
    struct kvd_shape_registry shapes;
    const struct kvd_shape *shape; /* borrowed from the registry */
    const struct kvd_layer_shape *ls;
    uint32_t gqa, tokens;
    uint8_t *tiles;                              /* owned: [layer][KV head][block] */
    uint16_t *q;                                 /* owned: [Q_SETS][query head][k_dim] */
    struct kvarn_attention_span *spans;          /* owned: of one KV head */
    float *rows, *out, *lse, *partial, *scratch; /* owned */
};

struct stepper {
    struct model *model; /* borrowed */
    enum way way;
    struct kvd_budget budget;
    struct kvd_metrics metrics;
    struct kvd_metric_store store;
    unsigned step;
    double sample_s; /* in offers that took a sample */
    unsigned samples;
};

static double now_s(void)
{
    struct timespec now = {0};

    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static struct kvarn_attention_params params_of(const struct model *model)
{
    return (struct kvarn_attention_params){.spec = model->ls->spec,
        .q_heads = model->gqa,
        .q_tokens = 1,
        .position = model->tokens - 1,
        .last = model->tokens,
        .scale = 1.0f / sqrtf((float)model->ls->spec.k_dim),
        .causal = true,
        .accuracy = KVARN_ACCURACY_FAST};
}

static void tiles_make(struct model *model)
{
    const struct kvarn_tile_spec *spec = &model->ls->spec;
    const size_t count = (size_t)GROUP * spec->k_dim;
    const size_t tiles = (size_t)LAYERS * KV_HEADS * (model->tokens / GROUP);
    float *k = kvb_alloc(count * sizeof(float)), *v = kvb_alloc(count * sizeof(float));
    struct kvt_rng rng = {.state = spec->k_dim};

    model->tiles = kvb_alloc(tiles * model->ls->tile_bytes);
    for (size_t i = 0; i < tiles; i++) {
        uint8_t *to = model->tiles + i * model->ls->tile_bytes;
        if (i >= PATTERNS) {
            memcpy(to, to - PATTERNS * model->ls->tile_bytes, model->ls->tile_bytes);
            continue;
        }
        kvt_rows_fill(&rng, k, GROUP, spec->k_dim, 1.0);
        kvt_rows_fill(&rng, v, GROUP, spec->k_dim, 1.0);
        void *tile = kvt_tile_make(spec, KVARN_ENCODER_REFERENCE, k, v);
        memcpy(to, tile, model->ls->tile_bytes);
        free(tile);
    }
    free(k);
    free(v);
}

static void model_init(struct model *model, uint32_t dim, uint32_t gqa, uint32_t tokens)
{
    const struct kvd_layer_group group = {
        .layers = LAYERS, .kv_heads = KV_HEADS, .k_dim = dim, .v_dim = dim};
    const struct kvd_shape_desc desc = {.model = "bench",
        .group = GROUP,
        .k_bits = 2,
        .v_bits = 2,
        .layer_groups = &group,
        .layer_group_count = 1};
    struct kvt_rng rng = {.state = 7};

    *model = (struct model){.gqa = gqa, .tokens = tokens};
    kvd_shape_registry_init(&model->shapes);
    if (kvd_shape_register(&model->shapes, 1, &desc, &model->shape, NULL, 0) != 0) {
        abort();
    }
    model->ls = &model->shape->layers[0];
    tiles_make(model);
    const struct kvarn_attention_params params = params_of(model);
    const size_t values = (size_t)Q_SETS * KV_HEADS * gqa * dim;
    model->q = kvb_alloc(values * sizeof(uint16_t));
    for (size_t i = 0; i < values; i++) {
        model->q[i] = kvarn_half_from_f32((float)kvt_rng_normal(&rng));
    }
    model->spans = kvb_alloc(tokens / GROUP * sizeof(*model->spans));
    model->rows = kvb_alloc(gqa * dim * sizeof(float));
    model->out = kvb_alloc(gqa * dim * sizeof(float));
    model->lse = kvb_alloc(gqa * sizeof(float));
    model->partial = kvb_alloc(kvarn_attention_partial_floats(&params) * sizeof(float));
    model->scratch = kvb_alloc(kvarn_attention_scratch_floats(&params) * sizeof(float));
}

static void model_fini(struct model *model)
{
    free(model->tiles);
    free(model->q);
    free(model->spans);
    free(model->rows);
    free(model->out);
    free(model->lse);
    free(model->partial);
    free(model->scratch);
    kvd_shape_registry_fini(&model->shapes);
}

/* One KV head of one layer, as a piece and its column do it. */
static void head_attend(struct model *model, uint32_t layer, uint32_t head, const uint16_t *q)
{
    const struct kvarn_attention_params params = params_of(model);
    const uint32_t dim = model->ls->spec.k_dim, blocks = model->tokens / GROUP;
    const uint8_t *tiles =
        model->tiles + ((size_t)layer * KV_HEADS + head) * blocks * model->ls->tile_bytes;
    struct kvarn_rows_out to = {.dst = model->out,
        .dtype = KVARN_F32,
        .dst_stride = dim,
        .rows = model->gqa,
        .head_dim = dim};
    size_t bad_row = 0;

    kvarn_to_f32(model->rows, q + (size_t)head * model->gqa * dim, KVARN_F16, model->gqa * dim);
    kvarn_rotate(model->rows, model->gqa, dim);
    for (uint32_t b = 0; b < blocks; b++) {
        model->spans[b] = (struct kvarn_attention_span){.form = KVARN_SPAN_TILE,
            .first_token = b * GROUP,
            .token_count = GROUP,
            .tile = tiles + b * model->ls->tile_bytes};
    }
    kvarn_attention_partial_init(&params, model->partial);
    kvarn_attention_walk(
        &params, model->rows, model->spans, blocks, model->partial, model->scratch);
    kvarn_attention_finish(&params, model->partial, model->rows, model->lse);
    if (kvarn_rows_from_f32(model->rows, &to, &bad_row) != 0) {
        abort();
    }
}

/* The daemon would go on with what it has: so that every step is of the same kind, it forgets. */
static void version_forget(struct stepper *stepper, struct kvd_metric_layer *layer)
{
    if (stepper->way == WAY_FIRST && layer->version != NULL) {
        kvd_metric_sum_unref(layer->version);
        layer->version = NULL;
    }
}

static void offer(struct stepper *stepper, uint32_t layer, const uint16_t *q)
{
    struct kvd_metric_turn turn = {.madds_left = KVD_METRIC_MADDS_MAX, .tokens_left = 1};

    kvd_metric_sample(&stepper->store,
        &(struct kvd_metric_queries){.shape = stepper->model->shape,
            .layer = layer,
            .q_heads = KV_HEADS * stepper->model->gqa,
            .q_tokens = 1,
            .dtype = KVARN_F16,
            .q = q},
        &turn);
}

/* One decode step. */
static void step_run(struct stepper *stepper)
{
    struct model *model = stepper->model;
    struct kvd_shape_metric *metric = kvd_metric_store_find(&stepper->store, model->shape);
    const uint16_t *q = model->q + (size_t)(stepper->step++ % Q_SETS) * KV_HEADS * model->gqa *
                                       model->ls->spec.k_dim;

    for (uint32_t i = 0; i < LAYERS; i++) {
        struct kvd_metric_layer *layer = &metric->layers[i];
        if (layer->tokens_to_skip > 0) {
            offer(stepper, i, q);
        } else {
            double begin_s = now_s();
            offer(stepper, i, q);
            stepper->sample_s += now_s() - begin_s;
            stepper->samples++;
        }
        version_forget(stepper, layer);
        for (uint32_t head = 0; head < KV_HEADS; head++) {
            head_attend(model, i, head, q);
        }
    }
}

/* Seconds of an offer that is passed over. */
static double pass_s(struct stepper *stepper)
{
    struct kvd_metric_layer *layer =
        &kvd_metric_store_find(&stepper->store, stepper->model->shape)->layers[0];
    const unsigned count = 100000;

    layer->tokens_to_skip = 2 * count;
    double begin_s = now_s();
    for (unsigned i = 0; i < count; i++) {
        offer(stepper, 0, stepper->model->q);
    }
    double pass_s = (now_s() - begin_s) / count;
    layer->tokens_to_skip = 0;
    return pass_s;
}

static void stepper_init(struct stepper *stepper, struct model *model, enum way way)
{
    *stepper = (struct stepper){.model = model, .way = way};
    kvd_budget_init(&stepper->budget, UINT64_C(4) << 30);
    kvd_metric_store_init(&stepper->store, &stepper->budget, &stepper->metrics, UINT64_C(2) << 30);
    struct kvd_shape_metric *metric = NULL;
    int err = kvd_metric_store_get(&stepper->store, model->shape, &metric);
    if (err == 0) {
        err = kvd_metric_sample_start(&stepper->store, model->shape);
    }
    for (uint32_t i = 0; err == 0 && way == WAY_LATER && i < LAYERS; i++) {
        struct kvd_metric_sum *sum = NULL;
        err = kvd_metric_sum_create(&stepper->store, model->ls, &sum);
        if (err == 0) {
            kvd_metric_put(metric, i, sum, kvd_metric_new_version(metric));
        }
    }
    if (err != 0) {
        abort();
    }
}

/* What one round measures. */
struct round {
    double share;    /* of attention's time, percent */
    double attend_s; /* one layer */
    double sample_s; /* one sample */
};

static struct round round_run(struct stepper *stepper, double least_s)
{
    const double pass = pass_s(stepper);
    unsigned steps = 0;

    stepper->sample_s = 0;
    stepper->samples = 0;
    double begin_s = now_s(), all_s = 0;
    while (all_s < least_s || stepper->samples == 0) {
        step_run(stepper);
        steps++;
        all_s = now_s() - begin_s;
    }
    double offers = (double)steps * LAYERS;
    double attend_s = (all_s - stepper->sample_s) / offers - pass;
    return (struct round){.share = 100 * (stepper->sample_s / offers + pass) / attend_s,
        .attend_s = attend_s,
        .sample_s = stepper->sample_s / stepper->samples};
}

/* A window's memory comes page by page with its first samples, one in hundreds: not what is timed.
 */
static void sums_touch(struct stepper *stepper)
{
    for (unsigned i = 0; i < 4000 * LAYERS; i++) {
        offer(stepper, i % LAYERS, stepper->model->q);
    }
}

static int round_compare(const void *a, const void *b)
{
    double left = ((const struct round *)a)->share, right = ((const struct round *)b)->share;

    return left < right ? -1 : left > right;
}

static void way_bench(struct kvb_report *report, struct stepper *stepper, const char *params)
{
    struct round rounds[KVB_SAMPLES];
    char note[96];

    sums_touch(stepper);
    (void)round_run(stepper, 0);
    for (int i = 0; i < KVB_SAMPLES; i++) {
        rounds[i] = round_run(stepper, 4e-3 * report->sample_ms);
    }
    qsort(rounds, KVB_SAMPLES, sizeof(rounds[0]), round_compare);
    const struct round *median = &rounds[KVB_SAMPLES / 2];
    (void)snprintf(note, sizeof(note), "a sample %.1f us, attention of a layer %.0f us",
        1e6 * median->sample_s, 1e6 * median->attend_s);
    kvb_report_row(report, &(struct kvb_row){.what = "sampling, share of attention",
                               .variant = way_names[stepper->way],
                               .params = params,
                               .value = median->share,
                               .low = rounds[KVB_SAMPLES / 4].share,
                               .high = rounds[KVB_SAMPLES - 1 - KVB_SAMPLES / 4].share,
                               .unit = "%",
                               .goal = share_goal,
                               .note = note});
}

static void point_bench(struct kvb_report *report, uint32_t dim, uint32_t gqa, uint32_t tokens)
{
    static struct stepper stepper;
    struct model model;
    char params[64];

    model_init(&model, dim, gqa, tokens);
    (void)snprintf(params, sizeof(params), "D%u GQA%u %uk cold", dim, gqa, tokens / 1024);
    for (int way = 0; way < WAY_COUNT; way++) {
        stepper_init(&stepper, &model, (enum way)way);
        way_bench(report, &stepper, params);
        kvd_metric_store_fini(&stepper.store);
    }
    model_fini(&model);
}

void kvb_attention_sample(struct kvb_report *report)
{
    static const struct {
        uint32_t dim, gqa, tokens;
    } points[] = {{64, 4, 1024}, {128, 1, 1024}, {128, 4, 1024}, {128, 8, 1024}, {128, 4, 8192},
        {256, 4, 1024}, {256, 8, 1024}};

    kvb_report_table(report, "sampling of queries beside the attention that they are for");
    for (size_t i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
        point_bench(report, points[i].dim, points[i].gqa, points[i].tokens);
    }
}
