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
#include "tests/bench/cache.h"
#include "tests/bench/rivals.h"
#include "tests/support/npy_read.h"
#include "tests/support/tiles.h"

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
    struct kvb_tiles tiles;
    size_t tokens[FORM_COUNT]; /* that each form has */
    uint16_t *half_k, *half_v; /* owned */
    uint16_t *bf16_k, *bf16_v; /* owned */
    float *float_k, *float_v;  /* owned */
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
    struct kvb_query query;
    float *logits; /* owned */
    uint64_t sum;
};

/* What a tile holds, in the other forms. */
static void arena_pattern(struct arena *arena, size_t i)
{
    const struct kvb_tiles *tiles = &arena->tiles;
    const size_t count = (size_t)KVB_GROUP * tiles->spec.k_dim, at = i * count;
    float *k = arena->float_k + at, *v = arena->float_v + at;

    kvarn_tile_decode(&tiles->spec, tiles->data + i * tiles->tile_bytes, k, v);
    kvarn_from_f32(arena->half_k + at, KVARN_F16, k, count);
    kvarn_from_f32(arena->half_v + at, KVARN_F16, v, count);
    kvarn_from_f32(arena->bf16_k + at, KVARN_BF16, k, count);
    kvarn_from_f32(arena->bf16_v + at, KVARN_BF16, v, count);
}

static void arena_init(struct arena *arena, uint16_t dim, const char *preset)
{
    const size_t unit = (size_t)KVB_PATTERNS * KVB_GROUP * dim;

    *arena = (struct arena){0};
    kvb_tiles_init(&arena->tiles, dim, preset);
    size_t half = kvb_arena_tokens(2 * sizeof(uint16_t) * dim);
    size_t whole = kvb_arena_tokens(2 * sizeof(float) * dim);
    for (int form = 0; form < FORM_COUNT; form++) {
        arena->tokens[form] = form == FORM_BLAS                        ? whole
                              : form == FORM_HALF || form == FORM_BF16 ? half
                                                                       : arena->tiles.tokens;
    }
    arena->half_k = kvb_alloc(half * dim * sizeof(uint16_t));
    arena->half_v = kvb_alloc(half * dim * sizeof(uint16_t));
    arena->bf16_k = kvb_alloc(half * dim * sizeof(uint16_t));
    arena->bf16_v = kvb_alloc(half * dim * sizeof(uint16_t));
    arena->float_k = kvb_alloc(whole * dim * sizeof(float));
    arena->float_v = kvb_alloc(whole * dim * sizeof(float));
    for (size_t i = 0; i < KVB_PATTERNS; i++) {
        arena_pattern(arena, i);
    }
    kvb_repeat(arena->half_k, unit * sizeof(uint16_t), half * dim * sizeof(uint16_t));
    kvb_repeat(arena->half_v, unit * sizeof(uint16_t), half * dim * sizeof(uint16_t));
    kvb_repeat(arena->bf16_k, unit * sizeof(uint16_t), half * dim * sizeof(uint16_t));
    kvb_repeat(arena->bf16_v, unit * sizeof(uint16_t), half * dim * sizeof(uint16_t));
    kvb_repeat(arena->float_k, unit * sizeof(float), whole * dim * sizeof(float));
    kvb_repeat(arena->float_v, unit * sizeof(float), whole * dim * sizeof(float));
}

static void arena_fini(struct arena *arena)
{
    kvb_tiles_fini(&arena->tiles);
    free(arena->half_k);
    free(arena->half_v);
    free(arena->bf16_k);
    free(arena->bf16_v);
    free(arena->float_k);
    free(arena->float_v);
}

static void rival_run(struct runner *runner, size_t token)
{
    const struct point *point = runner->point;
    const struct arena *arena = point->arena;
    const uint32_t dim = arena->tiles.spec.k_dim;
    const size_t at = token * dim;
    struct kvb_rival rival = {.q = runner->query.q,
        .out = runner->query.out,
        .logits = runner->logits,
        .tokens = point->tokens,
        .dim = dim,
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
        const struct kvb_tiles *tiles = &point->arena->tiles;
        runner->sum += kvb_rival_read(tiles->data + token / KVB_GROUP * tiles->tile_bytes,
            point->tokens / KVB_GROUP * tiles->tile_bytes);
    } else if (runner->form <= FORM_EXACT) {
        bool is_exact = runner->form == FORM_EXACT;
        kvb_attend(&point->arena->tiles, (struct kvb_place){point->tokens, token},
            is_exact ? KVARN_ACCURACY_EXACT : KVARN_ACCURACY_FAST, &runner->query);
    } else {
        rival_run(runner, token);
    }
}

static void runner_init(struct runner *runner, const struct point *point, enum form form)
{
    *runner = (struct runner){.point = point, .form = form};
    runner->caches = point->is_cold ? point->arena->tokens[form] / point->tokens : 1;
    kvb_query_init(&runner->query, &point->arena->tiles, point->heads);
    runner->logits = kvb_alloc((size_t)point->heads * point->tokens * sizeof(float));
}

static void runner_fini(struct runner *runner)
{
    kvb_query_fini(&runner->query);
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

/* Others' forms: ours are not limited by how fast others read. */
static bool is_rival(enum form form)
{
    return form == FORM_HALF || form == FORM_BF16 || form == FORM_BLAS;
}

/*
 * Shares of what reading the compressed bytes alone would allow, beyond which no goal against a
 * competitor goes: those that `read_cold` asks for. A competitor that reads a cache k times as
 * large at the limit itself cannot be beaten by more than k.
 */
#define LIMIT_SHARE_MUST    0.70
#define LIMIT_SHARE_STRETCH 0.90

/* Goals of PERFORMANCE.md: head_dim 128, 2 bits, cold 32k and hot 8k. */
struct goals {
    uint32_t heads;
    struct kvb_goal half_cold, half_hot, blas_cold, read_cold;
};
static const struct goals goal_table[] = {
    {1, {4.5, 5.8, false}, {3.5, 4.8, false}, {20, 30, false},
        {LIMIT_SHARE_MUST, LIMIT_SHARE_STRETCH, false}},
    {4, {4.5, 6.0, false}, {2.7, 3.6, false}, {16, 26, false}, {0, 0, false}},
    {8, {3.5, 4.8, false}, {2.7, 3.5, false}, {10, 14, false}, {0, 0, false}},
};
static const struct kvb_goal avx2_goal = {2.5, KVB_NO_GOAL, true};
static const struct kvb_goal error_goal = {3e-4, 1e-5, true};

static bool is_goal_point(const struct point *point)
{
    return point->arena->tiles.spec.k_dim == 128 && point->arena->tiles.spec.k_bits == 2 &&
           point->tokens == (point->is_cold ? 32768u : 8192u);
}

/* The goal of the ratio to a form at a point, as PERFORMANCE.md has it; none at most points. */
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

/*
 * Cap a cold goal against a competitor by the read limit of the same run, and say so in `note`.
 * limit: how many times faster than the competitor reading the tiles' bytes alone would be.
 */
static void goal_cap(struct kvb_goal *goal, double limit, char *note, size_t note_bytes)
{
    const double must = LIMIT_SHARE_MUST * limit, stretch = LIMIT_SHARE_STRETCH * limit;
    char capped[112] = "";

    if (goal->must != KVB_NO_GOAL && must < goal->must) {
        (void)snprintf(capped, sizeof(capped), "; must %.3gx, capped by the read limit to %.3gx",
            goal->must, must);
        goal->must = must;
    }
    if (goal->stretch != KVB_NO_GOAL && stretch < goal->stretch) {
        size_t at = strlen(capped);
        (void)snprintf(
            capped + at, sizeof(capped) - at, "; stretch %.3gx, to %.3gx", goal->stretch, stretch);
        goal->stretch = stretch;
    }
    (void)snprintf(note, note_bytes, "(reading alone would allow %.3g%s)", limit, capped);
}

/* Bytes of cache that a form reads per token. */
static double token_bytes(const struct point *point, enum form form)
{
    const struct arena *arena = point->arena;
    const double values = 2.0 * arena->tiles.spec.k_dim;

    if (form == FORM_HALF || form == FORM_BF16) {
        return values * sizeof(uint16_t);
    }
    return form == FORM_BLAS ? values * sizeof(float) : (double)arena->tiles.tile_bytes / KVB_GROUP;
}

/* One form's rows: its rate, its share of the read limit, and fast's ratio to it. */
static void form_rows(struct kvb_report *report, const struct point *point, const char *params,
    const struct kvb_stats stats[FORM_COUNT], enum form form)
{
    char note[160] = "";
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
    row.goal = goal_of(point, form);
    if (point->is_cold && stats[FORM_READ].median > 0 && is_rival(form)) {
        double limit = stats[form].median / stats[FORM_READ].median;
        goal_cap(&row.goal, limit, note, sizeof(note));
        row.note = note;
    }
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
    (void)snprintf(params, sizeof(params), "D%u k%uv%u GQA%u %uk %s",
        point->arena->tiles.spec.k_dim, point->arena->tiles.spec.k_bits,
        point->arena->tiles.spec.v_bits, point->heads, point->tokens / 1024,
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

    kvb_tiles_cut(&arena->tiles, point.tokens);
    runner_init(&exact, &point, FORM_EXACT);
    runner_run(&exact);
    for (int form = 0; form < FORM_READ; form++) {
        if (!form_is_there((enum form)form)) {
            continue;
        }
        runner_init(&other, &point, (enum form)form);
        runner_run(&other);
        double error = kvt_rel_mse(
            other.query.out, exact.query.out, (size_t)point.heads * arena->tiles.spec.v_dim);
        if (!(error < 1e-3)) {
            fprintf(stderr, "kvarn-bench: %s is off by a relMSE of %g at head_dim %u\n",
                form_names[form], error, arena->tiles.spec.k_dim);
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
        kvb_tiles_cut(&arena.tiles, tokens[t]);
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
    const size_t count = (size_t)KVB_GROUP * MODEL_DIM;

    for (size_t b = 0; b < MODEL_TOKENS / KVB_GROUP; b++) {
        spans[b] =
            (struct kvarn_attention_span){.first_token = b * KVB_GROUP, .token_count = KVB_GROUP};
        if (b > 0 && b + 1 < MODEL_TOKENS / KVB_GROUP) {
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
    kvarn_attention_walk(&params, q, spans, MODEL_TOKENS / KVB_GROUP, partial, scratch);
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
    uint16_t *halves = kvb_alloc(4 * (size_t)KVB_GROUP * MODEL_DIM * sizeof(uint16_t));
    float *exact = outs, *fast = outs + MODEL_KV_HEADS * queries;
    struct kvarn_attention_span spans[MODEL_TOKENS / KVB_GROUP];

    for (size_t h = 0; h < MODEL_KV_HEADS; h++) {
        model_spans(spec, k + h * head, v + h * head, halves, spans);
        model_attend(spec, KVARN_ACCURACY_EXACT, q + h * queries, spans, exact + h * queries);
        model_attend(spec, KVARN_ACCURACY_FAST, q + h * queries, spans, fast + h * queries);
        for (size_t b = 0; b < MODEL_TOKENS / KVB_GROUP; b++) {
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
        struct kvarn_tile_spec spec = {.k_dim = MODEL_DIM, .v_dim = MODEL_DIM, .group = KVB_GROUP};
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
    const bool is_asked = argc == 1 && strcmp(argv[0], "--goals") == 0;
    const bool is_goals_only = is_asked || report->is_check;
    int err = 0;

    if (argc == 2 && strcmp(argv[0], "--sample") == 0 && strcmp(argv[1], "on,off") == 0) {
        kvb_attention_sample(report);
        return 0;
    }
    if (argc > 0 && !is_asked) {
        fputs("usage: kvarn-bench attention [--goals | --sample on,off]\n"
              "  --goals          only what has a goal; --check does so too\n"
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
