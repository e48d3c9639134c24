/*
 * kvarn-bench attention: one KV head's query heads over a long cache, in packed tiles and in the
 * forms it is compared with (rivals.h), side by side; and what fast adds to exact's error.
 *
 * All forms hold the same values: what the tiles decode to. Hot: one cache, over and over. Cold:
 * caches follow each other through an arena far larger than a core's share of any cache.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kvarn/attention.h"
#include "kvarn/cpu.h"
#include "tests/bench/bench.h"
#include "tests/bench/rivals.h"
#include "tests/support/npy_read.h"
#include "tests/support/tiles.h"

#define GROUP       128
#define PATTERNS    8 /* different tiles; the arenas repeat them */
#define ARENA_BYTES ((size_t)256 << 20)
#define TOKENS_MAX  131072u

/* How a cache is kept, and who reads it. */
enum form {
    FORM_FAST,
    FORM_FAST_AVX2,
    FORM_EXACT,
    FORM_HALF,
    FORM_BF16,
    FORM_BLAS,
    FORM_READ, /* of the tiles' bytes */
    FORM_COUNT,
};

static const char *const form_names[FORM_COUNT] = {
    "fast", "fast avx2", "exact", "fp16", "bf16", "OpenBLAS fp32", "plain read"};

/* Arenas of one head_dim. */
struct arena {
    struct kvarn_tile_spec spec;
    size_t tile_bytes;
    size_t tokens[FORM_COUNT];          /* that each form has */
    uint8_t *tiles;                     /* owned */
    uint16_t *half_k, *half_v;          /* owned */
    uint16_t *bf16_k, *bf16_v;          /* owned */
    float *float_k, *float_v;           /* owned */
    struct kvarn_attention_span *spans; /* owned, one a tile */
};

/* One point of the grid. */
struct point {
    struct arena *arena; /* borrowed */
    uint32_t heads, tokens;
    bool is_cold;
};

/* One form at one point. */
struct runner {
    const struct point *point; /* borrowed */
    enum form form;
    size_t next, caches;
    float *q, *out, *lse, *partial, *scratch, *logits; /* owned */
    uint64_t sum;
};

static void arena_pattern(struct arena *arena, struct kvt_rng *rng, unsigned i)
{
    const uint32_t dim = arena->spec.k_dim;
    const size_t count = (size_t)GROUP * dim, at = i * count;
    float *k = kvb_alloc(count * sizeof(float)), *v = kvb_alloc(count * sizeof(float));

    kvt_rows_fill(rng, k, GROUP, dim, 1.0);
    kvt_rows_fill(rng, v, GROUP, dim, 1.0);
    void *tile = kvt_tile_make(&arena->spec, KVARN_ENCODER_REFERENCE, k, v);
    memcpy(arena->tiles + i * arena->tile_bytes, tile, arena->tile_bytes);
    kvarn_tile_decode(&arena->spec, tile, k, v);
    memcpy(arena->float_k + at, k, count * sizeof(float));
    memcpy(arena->float_v + at, v, count * sizeof(float));
    kvarn_from_f32(arena->half_k + at, KVARN_F16, k, count);
    kvarn_from_f32(arena->half_v + at, KVARN_F16, v, count);
    kvarn_from_f32(arena->bf16_k + at, KVARN_BF16, k, count);
    kvarn_from_f32(arena->bf16_v + at, KVARN_BF16, v, count);
    free(tile);
    free(k);
    free(v);
}

/* Repeat the first `unit` bytes over the whole. */
static void repeat(void *memory, size_t unit, size_t bytes)
{
    for (size_t at = unit; at < bytes; at += unit) {
        memcpy((uint8_t *)memory + at, memory, bytes - at < unit ? bytes - at : unit);
    }
}

/* Tokens of a form whose token takes so many bytes: a whole number of patterns, at least two of the
 * longest caches. */
static size_t arena_tokens(size_t token_bytes)
{
    size_t tokens = ARENA_BYTES / token_bytes;
    const size_t unit = (size_t)PATTERNS * GROUP;

    tokens = tokens < 2 * (size_t)TOKENS_MAX ? 2 * (size_t)TOKENS_MAX : tokens;
    return tokens / unit * unit;
}

static void arena_init(struct arena *arena, uint16_t dim, const char *preset)
{
    struct kvt_rng rng = {.state = dim};

    *arena = (struct arena){.spec = {.k_dim = dim, .v_dim = dim, .group = GROUP}};
    if (kvarn_preset_parse(preset, &arena->spec.k_bits, &arena->spec.v_bits) != 0) {
        abort();
    }
    arena->tile_bytes = kvarn_tile_bytes(&arena->spec);
    size_t packed = arena_tokens(arena->tile_bytes / GROUP);
    size_t half = arena_tokens(2 * sizeof(uint16_t) * dim);
    size_t whole = arena_tokens(2 * sizeof(float) * dim);
    for (int form = 0; form < FORM_COUNT; form++) {
        arena->tokens[form] = form == FORM_BLAS                        ? whole
                              : form == FORM_HALF || form == FORM_BF16 ? half
                                                                       : packed;
    }
    arena->tiles = kvb_alloc(packed / GROUP * arena->tile_bytes);
    arena->spans = kvb_alloc(packed / GROUP * sizeof(*arena->spans));
    arena->half_k = kvb_alloc(half * dim * sizeof(uint16_t));
    arena->half_v = kvb_alloc(half * dim * sizeof(uint16_t));
    arena->bf16_k = kvb_alloc(half * dim * sizeof(uint16_t));
    arena->bf16_v = kvb_alloc(half * dim * sizeof(uint16_t));
    arena->float_k = kvb_alloc(whole * dim * sizeof(float));
    arena->float_v = kvb_alloc(whole * dim * sizeof(float));
    for (unsigned i = 0; i < PATTERNS; i++) {
        arena_pattern(arena, &rng, i);
    }
    size_t unit = (size_t)PATTERNS * GROUP * dim;
    repeat(arena->tiles, PATTERNS * arena->tile_bytes, packed / GROUP * arena->tile_bytes);
    repeat(arena->half_k, unit * sizeof(uint16_t), half * dim * sizeof(uint16_t));
    repeat(arena->half_v, unit * sizeof(uint16_t), half * dim * sizeof(uint16_t));
    repeat(arena->bf16_k, unit * sizeof(uint16_t), half * dim * sizeof(uint16_t));
    repeat(arena->bf16_v, unit * sizeof(uint16_t), half * dim * sizeof(uint16_t));
    repeat(arena->float_k, unit * sizeof(float), whole * dim * sizeof(float));
    repeat(arena->float_v, unit * sizeof(float), whole * dim * sizeof(float));
}

static void arena_fini(struct arena *arena)
{
    free(arena->tiles);
    free(arena->spans);
    free(arena->half_k);
    free(arena->half_v);
    free(arena->bf16_k);
    free(arena->bf16_v);
    free(arena->float_k);
    free(arena->float_v);
}

/* Caches of `tokens` tokens lie one after the other. */
static void arena_cut(struct arena *arena, uint32_t tokens)
{
    const size_t tiles = arena->tokens[FORM_FAST] / GROUP, per_cache = tokens / GROUP;

    for (size_t i = 0; i < tiles; i++) {
        arena->spans[i] = (struct kvarn_attention_span){.form = KVARN_SPAN_TILE,
            .first_token = i % per_cache * GROUP,
            .token_count = GROUP,
            .tile = arena->tiles + i * arena->tile_bytes};
    }
}

static void tiles_run(struct runner *runner, size_t token)
{
    const struct point *point = runner->point;
    struct arena *arena = point->arena;
    const struct kvarn_attention_params params = {.spec = arena->spec,
        .q_heads = point->heads,
        .q_tokens = 1,
        .position = point->tokens - 1,
        .last = point->tokens,
        .scale = 1.0f / sqrtf((float)arena->spec.k_dim),
        .causal = true,
        .accuracy = runner->form == FORM_EXACT ? KVARN_ACCURACY_EXACT : KVARN_ACCURACY_FAST};

    kvarn_attention_partial_init(&params, runner->partial);
    kvarn_attention_walk(&params, runner->q, arena->spans + token / GROUP, point->tokens / GROUP,
        runner->partial, runner->scratch);
    kvarn_attention_finish(&params, runner->partial, runner->out, runner->lse);
}

static void rival_run(struct runner *runner, size_t token)
{
    const struct point *point = runner->point;
    const struct arena *arena = point->arena;
    const size_t at = token * arena->spec.k_dim;
    struct kvb_rival rival = {.q = runner->q,
        .out = runner->out,
        .logits = runner->logits,
        .tokens = point->tokens,
        .dim = arena->spec.k_dim,
        .heads = point->heads};

    if (runner->form == FORM_HALF) {
        rival.k = arena->half_k + at;
        rival.v = arena->half_v + at;
        kvb_rival_half(&rival);
    } else if (runner->form == FORM_BF16) {
        rival.k = arena->bf16_k + at;
        rival.v = arena->bf16_v + at;
        kvb_rival_bf16(&rival);
    } else {
        rival.k = arena->float_k + at;
        rival.v = arena->float_v + at;
        kvb_rival_blas(&rival);
    }
}

static void runner_run(void *arg)
{
    struct runner *runner = arg;
    const struct point *point = runner->point;
    const size_t token = runner->next * point->tokens;

    runner->next = (runner->next + 1) % runner->caches;
    if (runner->form == FORM_READ) {
        const struct arena *arena = point->arena;
        runner->sum += kvb_rival_read(arena->tiles + token / GROUP * arena->tile_bytes,
            point->tokens / GROUP * arena->tile_bytes);
    } else if (runner->form <= FORM_EXACT) {
        tiles_run(runner, token);
    } else {
        rival_run(runner, token);
    }
}

static void runner_init(struct runner *runner, const struct point *point, enum form form)
{
    const uint32_t dim = point->arena->spec.k_dim;
    const struct kvarn_attention_params params = {.spec = point->arena->spec,
        .q_heads = point->heads,
        .q_tokens = 1,
        .accuracy = KVARN_ACCURACY_FAST};
    struct kvt_rng rng = {.state = 3};

    *runner = (struct runner){.point = point, .form = form};
    runner->caches = point->is_cold ? point->arena->tokens[form] / point->tokens : 1;
    runner->q = kvb_alloc(point->heads * dim * sizeof(float));
    runner->out = kvb_alloc(point->heads * dim * sizeof(float));
    runner->lse = kvb_alloc(point->heads * sizeof(float));
    runner->partial = kvb_alloc(kvarn_attention_partial_floats(&params) * sizeof(float));
    runner->scratch = kvb_alloc(kvarn_attention_scratch_floats(&params) * sizeof(float));
    runner->logits = kvb_alloc((size_t)point->heads * point->tokens * sizeof(float));
    for (uint32_t i = 0; i < point->heads * dim; i++) {
        runner->q[i] = (float)kvt_rng_normal(&rng);
    }
}

static void runner_fini(struct runner *runner)
{
    free(runner->q);
    free(runner->out);
    free(runner->lse);
    free(runner->partial);
    free(runner->scratch);
    free(runner->logits);
}

static bool form_is_there(enum form form)
{
    switch (form) {
    case FORM_FAST_AVX2:
        return strcmp(kvarn_cpu_active(), "avx512") == 0;
    case FORM_HALF:
    case FORM_READ:
        return kvb_rival_has_half();
    case FORM_BF16:
        return kvb_rival_has_bf16();
    case FORM_BLAS:
        return kvb_rival_has_blas();
    default:
        return true;
    }
}

/* Goals of PERFORMANCE.md: head_dim 128, 2 bits, cold 32k and hot 8k. */
struct goals {
    uint32_t heads;
    struct kvb_goal half_cold, half_hot, blas_cold, read_cold;
};
static const struct goals goal_table[] = {
    {1, {4.5, 5.8, false}, {3.5, 4.8, false}, {20, 30, false}, {0.70, 0.90, false}},
    {4, {4.5, 6.0, false}, {2.7, 3.6, false}, {16, 26, false}, {0, 0, false}},
    {8, {3.5, 4.8, false}, {2.7, 3.5, false}, {10, 14, false}, {0, 0, false}},
};
static const struct kvb_goal avx2_goal = {2.5, KVB_NO_GOAL, true};
static const struct kvb_goal error_goal = {3e-4, 1e-5, true};

static bool is_goal_point(const struct point *point)
{
    return point->arena->spec.k_dim == 128 && point->arena->spec.k_bits == 2 &&
           point->tokens == (point->is_cold ? 32768u : 8192u);
}

/* The goal of the ratio to a form at a point; none at most points. */
static struct kvb_goal goal_of(const struct point *point, enum form form)
{
    if (!is_goal_point(point)) {
        return (struct kvb_goal){0};
    }
    for (size_t i = 0; i < sizeof(goal_table) / sizeof(goal_table[0]); i++) {
        const struct goals *goals = &goal_table[i];
        if (goals->heads != point->heads) {
            continue;
        }
        if (form == FORM_HALF) {
            return point->is_cold ? goals->half_cold : goals->half_hot;
        }
        if (form == FORM_BLAS && point->is_cold) {
            return goals->blas_cold;
        }
        if (form == FORM_READ && point->is_cold) {
            return goals->read_cold;
        }
    }
    return form == FORM_FAST_AVX2 ? avx2_goal : (struct kvb_goal){0};
}

/* Bytes of cache that a form reads per token. */
static double token_bytes(const struct point *point, enum form form)
{
    const struct arena *arena = point->arena;
    const double values = 2.0 * arena->spec.k_dim;

    if (form == FORM_HALF || form == FORM_BF16) {
        return values * sizeof(uint16_t);
    }
    return form == FORM_BLAS ? values * sizeof(float) : (double)arena->tile_bytes / GROUP;
}

/* One form's rows: its rate, its share of the read limit, and fast's ratio to it. */
static void form_rows(struct kvb_report *report, const struct point *point, const char *params,
    const struct kvb_stats stats[FORM_COUNT], enum form form)
{
    char note[64] = "";
    struct kvb_row row = {
        .what = form_names[form], .variant = "", .params = params, .unit = "Mtok/s", .note = note};
    double rate = token_bytes(point, form) * point->tokens / stats[form].median;

    if (stats[FORM_READ].median > 0 && form != FORM_READ) {
        double limit = token_bytes(point, FORM_READ) * point->tokens / stats[FORM_READ].median;
        (void)snprintf(
            note, sizeof(note), "%.1f GB/s, %.2f of the read limit", 1e-9 * rate, rate / limit);
    } else {
        (void)snprintf(note, sizeof(note), "%.1f GB/s", 1e-9 * rate);
    }
    kvb_row_rate(&row, &stats[form], 1e-6 * point->tokens);
    kvb_report_row(report, &row);
    if (form == FORM_FAST) {
        return;
    }
    row.what = form == FORM_READ ? "fast: share of the read limit" : "fast: times faster than";
    row.variant = form_names[form];
    row.unit = "x";
    row.note = NULL;
    if (point->is_cold && stats[FORM_READ].median > 0 && form != FORM_READ) {
        (void)snprintf(note, sizeof(note), "(reading alone would allow %.3g)",
            stats[form].median / stats[FORM_READ].median);
        row.note = note;
    }
    row.goal = goal_of(point, form);
    kvb_row_ratio(&row, &stats[form], &stats[FORM_FAST]);
    kvb_report_row(report, &row);
}

static void point_bench(struct kvb_report *report, const struct point *point)
{
    struct runner runners[FORM_COUNT];
    struct kvb_case cases[FORM_COUNT];
    struct kvb_stats stats[FORM_COUNT] = {{0}};
    enum form forms[FORM_COUNT];
    char params[64];
    size_t count = 0;

    for (int form = 0; form < FORM_COUNT; form++) {
        if (!form_is_there((enum form)form)) {
            continue;
        }
        forms[count] = (enum form)form;
        runner_init(&runners[count], point, (enum form)form);
        cases[count] = (struct kvb_case){.run = runner_run,
            .arg = &runners[count],
            .level = form == FORM_FAST_AVX2 ? "avx2" : kvarn_cpu_active()};
        count++;
    }
    (void)snprintf(params, sizeof(params), "D%u k%uv%u GQA%u %uk %s", point->arena->spec.k_dim,
        point->arena->spec.k_bits, point->arena->spec.v_bits, point->heads, point->tokens / 1024,
        point->is_cold ? "cold" : "hot");
    kvb_time(cases, count, report->sample_ms);
    for (size_t i = 0; i < count; i++) {
        stats[forms[i]] = cases[i].stats;
    }
    for (size_t i = 0; i < count; i++) {
        form_rows(report, point, params, stats, forms[i]);
        runner_fini(&runners[i]);
    }
}

/* All forms compute the same: the one that does not would be compared for nothing. */
static int arena_check(struct arena *arena)
{
    struct point point = {.arena = arena, .heads = 4, .tokens = 1024};
    struct runner exact, other;
    int err = 0;

    arena_cut(arena, point.tokens);
    runner_init(&exact, &point, FORM_EXACT);
    runner_run(&exact);
    for (int form = 0; form < FORM_READ; form++) {
        if (!form_is_there((enum form)form)) {
            continue;
        }
        runner_init(&other, &point, (enum form)form);
        runner_run(&other);
        double error = kvt_rel_mse(other.out, exact.out, (size_t)point.heads * arena->spec.v_dim);
        if (!(error < 1e-3)) {
            fprintf(stderr, "kvarn-bench: %s is off by a relMSE of %g at head_dim %u\n",
                form_names[form], error, arena->spec.k_dim);
            err = 2;
        }
        runner_fini(&other);
    }
    runner_fini(&exact);
    return err;
}

static int dim_bench(struct kvb_report *report, uint16_t dim, bool is_goals_only)
{
    static const uint32_t heads[] = {1, 4, 8}, tokens[] = {1024, 8192, 32768, 131072};
    struct arena arena;
    int err;

    arena_init(&arena, dim, "k2v2");
    err = arena_check(&arena);
    for (size_t t = 0; t < sizeof(tokens) / sizeof(tokens[0]) && err == 0; t++) {
        arena_cut(&arena, tokens[t]);
        for (size_t h = 0; h < sizeof(heads) / sizeof(heads[0]); h++) {
            for (int is_cold = 0; is_cold < 2; is_cold++) {
                struct point point = {&arena, heads[h], tokens[t], is_cold != 0};
                if (!is_goals_only || is_goal_point(&point)) {
                    point_bench(report, &point);
                }
            }
        }
    }
    arena_fini(&arena);
    return err;
}

/* The recorded model: tests/data/kv/README.md. */
#define MODEL_LAYERS   6
#define MODEL_DIM      64
#define MODEL_TOKENS   1024
#define MODEL_Q_TOKENS 128
#define MODEL_KV_HEADS 3
#define MODEL_GQA      3

static float *model_load(int layer, const char *what)
{
    char name[32];
    struct kvt_npy npy;

    (void)snprintf(name, sizeof(name), "layer%02d_%s.npy", layer, what);
    if (kvt_npy_read_at(KVT_DATA_DIR, name, &npy) != 0) {
        exit(2); /* it said why */
    }
    float *values = kvt_npy_floats(&npy);
    kvarn_rotate(values, npy.count / MODEL_DIM, MODEL_DIM);
    kvt_npy_fini(&npy);
    return values;
}

/* First and last block exact, the others tiles. */
static void model_spans(const struct kvarn_tile_spec *spec, const float *k, const float *v,
    uint16_t *halves, struct kvarn_attention_span *spans)
{
    const size_t count = (size_t)GROUP * MODEL_DIM;

    for (size_t b = 0; b < MODEL_TOKENS / GROUP; b++) {
        spans[b] = (struct kvarn_attention_span){.first_token = b * GROUP, .token_count = GROUP};
        if (b > 0 && b + 1 < MODEL_TOKENS / GROUP) {
            spans[b].tile =
                kvt_tile_make(spec, KVARN_ENCODER_DEFAULT, k + b * count, v + b * count);
            continue;
        }
        uint16_t *rows = halves + (b == 0 ? 0 : 2 * count);
        kvarn_from_f32(rows, KVARN_F16, k + b * count, count);
        kvarn_from_f32(rows + count, KVARN_F16, v + b * count, count);
        spans[b].form = KVARN_SPAN_HALF;
        spans[b].k_rows = rows;
        spans[b].v_rows = rows + count;
    }
}

static void model_attend(const struct kvarn_tile_spec *spec, enum kvarn_accuracy accuracy,
    const float *q, const struct kvarn_attention_span *spans, float *out)
{
    static float lse[MODEL_GQA * MODEL_Q_TOKENS];
    const struct kvarn_attention_params params = {.spec = *spec,
        .q_heads = MODEL_GQA,
        .q_tokens = MODEL_Q_TOKENS,
        .position = MODEL_TOKENS - MODEL_Q_TOKENS,
        .last = MODEL_TOKENS,
        .scale = 0.125f,
        .causal = true,
        .accuracy = accuracy};
    float *partial = kvb_alloc(kvarn_attention_partial_floats(&params) * sizeof(float));
    float *scratch = kvb_alloc(kvarn_attention_scratch_floats(&params) * sizeof(float));

    kvarn_attention_partial_init(&params, partial);
    kvarn_attention_walk(&params, q, spans, MODEL_TOKENS / GROUP, partial, scratch);
    kvarn_attention_finish(&params, partial, out, lse);
    free(partial);
    free(scratch);
}

/* relMSE of fast against exact on one layer. */
static double layer_error(int layer, const struct kvarn_tile_spec *spec)
{
    const size_t head = (size_t)MODEL_TOKENS * MODEL_DIM;
    const size_t queries = (size_t)MODEL_GQA * MODEL_Q_TOKENS * MODEL_DIM;
    float *k = model_load(layer, "k"), *v = model_load(layer, "v"), *q = model_load(layer, "q");
    float *outs = kvb_alloc(2 * MODEL_KV_HEADS * queries * sizeof(float));
    uint16_t *halves = kvb_alloc(4 * (size_t)GROUP * MODEL_DIM * sizeof(uint16_t));
    float *exact = outs, *fast = outs + MODEL_KV_HEADS * queries;
    struct kvarn_attention_span spans[MODEL_TOKENS / GROUP];

    for (size_t h = 0; h < MODEL_KV_HEADS; h++) {
        model_spans(spec, k + h * head, v + h * head, halves, spans);
        model_attend(spec, KVARN_ACCURACY_EXACT, q + h * queries, spans, exact + h * queries);
        model_attend(spec, KVARN_ACCURACY_FAST, q + h * queries, spans, fast + h * queries);
        for (size_t b = 0; b < MODEL_TOKENS / GROUP; b++) {
            free((void *)(uintptr_t)spans[b].tile);
        }
    }
    double error = kvt_rel_mse(fast, exact, MODEL_KV_HEADS * queries);
    free(k);
    free(v);
    free(q);
    free(outs);
    free(halves);
    return error;
}

static void error_bench(struct kvb_report *report)
{
    static const int layers[MODEL_LAYERS] = {0, 1, 7, 15, 22, 29};
    static const char *const presets[] = {"k2v2", "k4v2", "k4v4"};

    kvb_report_table(report, "what fast adds: relMSE of its output against exact's, tests/data/kv");
    for (size_t p = 0; p < sizeof(presets) / sizeof(presets[0]); p++) {
        struct kvarn_tile_spec spec = {.k_dim = MODEL_DIM, .v_dim = MODEL_DIM, .group = GROUP};
        struct kvb_row row = {.what = "fast against exact, mean of layers",
            .variant = kvarn_cpu_active(),
            .params = presets[p],
            .unit = "relMSE",
            .goal = error_goal,
            .note = "in brackets: least and largest layer"};
        if (kvarn_preset_parse(presets[p], &spec.k_bits, &spec.v_bits) != 0) {
            abort();
        }
        for (size_t l = 0; l < MODEL_LAYERS; l++) {
            double error = layer_error(layers[l], &spec);
            row.value += error / MODEL_LAYERS;
            row.low = l == 0 ? error : fmin(row.low, error);
            row.high = fmax(row.high, error);
        }
        kvb_report_row(report, &row);
    }
}

int kvb_attention(struct kvb_report *report, int argc, char **argv)
{
    static const uint16_t dims[] = {64, 128, 256};
    const bool is_goals_only = argc == 1 && strcmp(argv[0], "--goals") == 0;
    int err = 0;

    if (argc == 2 && strcmp(argv[0], "--sample") == 0 && strcmp(argv[1], "on,off") == 0) {
        kvb_attention_sample(report);
        return 0;
    }
    if (argc > 0 && !is_goals_only) {
        fputs("usage: kvarn-bench attention [--goals | --sample on,off]\n"
              "  --goals          only what has a goal\n"
              "  --sample on,off  what sampling queries (encoder aware) adds\n",
            stderr);
        return 2;
    }
    error_bench(report);
    kvb_report_table(report, "attention of one KV head's query heads, one core");
    for (size_t i = 0; i < sizeof(dims) / sizeof(dims[0]) && err == 0; i++) {
        if (!is_goals_only || dims[i] == 128) {
            err = dim_bench(report, dims[i], is_goals_only);
        }
    }
    return err;
}
