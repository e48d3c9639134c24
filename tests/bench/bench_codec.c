/*
 * kvarn-bench codec: rotating, encoding and decoding of tiles, per level and encoder.
 *
 * Rates are bytes of fp16 a second: what goes into an encoder or comes out of a decoder. Several
 * tiles are walked in turn, so that what is measured does not stay in the first cache. Rows are a
 * real model's (tests/data/kv, head_dim 64), heads side by side where more channels are asked for:
 * how long an encoder iterates depends on the data.
 */
#include <stdlib.h>
#include <string.h>

#include "kvarn/codec.h"
#include "tests/bench/bench.h"
#include "tests/bench/plain.h"
#include "tests/support/npy_read.h"

/* Each recorded layer twice: how long an encoder iterates depends on the layer. */
#define TILES 12

#define METRIC_ROWS 64 /* queries of a tile's metric */

/* tests/data/kv: K and V [KV head][token][head_dim], queries [query head][token][head_dim]. */
#define DATA_TOKENS  1024
#define DATA_HEADS   3
#define DATA_QUERIES (9 * 128)
#define DATA_DIM     64
#define DATA_LAYERS  6
static const int data_layers[DATA_LAYERS] = {0, 1, 7, 15, 22, 29};

/* Rows of some heads: as a worker sends them, rotated, and encoded. */
struct codec_bench {
    struct kvarn_tile_spec spec;
    enum kvarn_encoder encoder;
    uint16_t *raw_k, *raw_v; /* owned, [TILES][group][dim] */
    uint16_t *k, *v;         /* owned, rotated */
    uint16_t *k_out, *v_out; /* owned, one tile */
    float *floats;           /* owned, K then V of one tile */
    uint8_t *tiles;          /* owned */
    float *queries;          /* owned, [METRIC_ROWS][k_dim] */
    float *metric, *factors; /* owned, [k_dim][k_dim], [TILES] of them: each tile has its own */
    void *scratch;           /* owned */
    const struct kvb_plain *plain;
    unsigned next;
};

static size_t k_count(const struct codec_bench *b)
{
    return (size_t)b->spec.group * b->spec.k_dim;
}

static size_t v_count(const struct codec_bench *b)
{
    return (size_t)b->spec.group * b->spec.v_dim;
}

static unsigned tile_next(struct codec_bench *b)
{
    b->next = (b->next + 1) % TILES;
    return b->next;
}

static void rows_rotate(const uint16_t *src, uint16_t *dst, size_t rows, uint32_t dim)
{
    const struct kvarn_rows_in in = {
        .src = src, .dtype = KVARN_F16, .src_stride = dim, .rows = rows, .head_dim = dim};
    size_t row;

    if (kvarn_rows_to_half(&in, dst, &row) != 0) {
        abort(); /* our own rows are in range */
    }
}

static void rotate_run(void *arg)
{
    struct codec_bench *b = arg;
    unsigned i = tile_next(b);

    rows_rotate(b->raw_k + i * k_count(b), b->k + i * k_count(b), b->spec.group, b->spec.k_dim);
    rows_rotate(b->raw_v + i * v_count(b), b->v + i * v_count(b), b->spec.group, b->spec.v_dim);
}

static void tile_encode(struct codec_bench *b, unsigned i)
{
    float *v = b->floats + k_count(b);

    kvarn_to_f32(b->floats, b->k + i * k_count(b), KVARN_F16, k_count(b));
    kvarn_to_f32(v, b->v + i * v_count(b), KVARN_F16, v_count(b));
    void *tile = b->tiles + i * kvarn_tile_bytes(&b->spec);
    if (b->encoder == KVARN_ENCODER_AWARE) {
        const float *factor = b->factors + i * (size_t)b->spec.k_dim * b->spec.k_dim;
        (void)kvarn_tile_encode_aware(&b->spec, factor, b->floats, v, tile, b->scratch);
    } else {
        (void)kvarn_tile_encode(&b->spec, b->encoder, b->floats, v, tile, b->scratch);
    }
}

static void encode_run(void *arg)
{
    struct codec_bench *b = arg;

    tile_encode(b, tile_next(b));
}

static void encode_plain_run(void *arg)
{
    struct codec_bench *b = arg;
    unsigned i = tile_next(b);
    float *v = b->floats + k_count(b);

    b->plain->to_f32(b->floats, b->k + i * k_count(b), KVARN_F16, k_count(b));
    b->plain->to_f32(v, b->v + i * v_count(b), KVARN_F16, v_count(b));
    (void)b->plain->tile_encode(
        &b->spec, b->encoder, b->floats, v, b->tiles + i * kvarn_tile_bytes(&b->spec), b->scratch);
}

static void decode_k_run(void *arg)
{
    struct codec_bench *b = arg;
    unsigned i = tile_next(b);

    kvarn_tile_decode_half(&b->spec, b->tiles + i * kvarn_tile_bytes(&b->spec), b->k_out, NULL);
}

static void decode_v_run(void *arg)
{
    struct codec_bench *b = arg;
    unsigned i = tile_next(b);

    kvarn_tile_decode_half(&b->spec, b->tiles + i * kvarn_tile_bytes(&b->spec), NULL, b->v_out);
}

static void metric_run(void *arg)
{
    struct codec_bench *b = arg;
    unsigned i = tile_next(b);

    kvarn_metric_add(b->metric, b->queries + i * (size_t)b->spec.k_dim, 1, b->spec.k_dim);
}

static void factor_run(void *arg)
{
    struct codec_bench *b = arg;
    size_t count = (size_t)b->spec.k_dim * b->spec.k_dim;
    float *factor = b->factors + tile_next(b) * count;

    if (kvarn_metric_factor(b->metric, METRIC_ROWS, b->spec.k_dim, factor, b->scratch) != 0) {
        abort(); /* recorded queries have one */
    }
}

/* A recorded tensor of `rows` rows; the process ends where there is none. */
static float *data_load(int layer, char which, size_t rows)
{
    char name[32];
    struct kvt_npy npy;

    (void)snprintf(name, sizeof(name), "layer%02d_%c.npy", layer, which);
    if (kvt_npy_read_at(KVT_DATA_DIR, name, &npy) != 0 || npy.count != rows * DATA_DIM) {
        exit(2);
    }
    float *values = kvt_npy_floats(&npy);
    kvt_npy_fini(&npy);
    return values;
}

/* Rows of one tile: block `tile` of a layer that changes with it, as many heads as fill a row. */
static void rows_fill(unsigned tile, char which, uint32_t rows, uint32_t dim, uint16_t *dst)
{
    float *data =
        data_load(data_layers[tile % DATA_LAYERS], which, (size_t)DATA_HEADS * DATA_TOKENS);
    unsigned block = 1 + tile % (DATA_TOKENS / rows - 1); /* not the first: huge tokens */

    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t c = 0; c < dim; c += DATA_DIM) {
            size_t head = (tile + c / DATA_DIM) % DATA_HEADS;
            const float *src = data + (head * DATA_TOKENS + block * rows + r) * DATA_DIM;
            kvarn_from_f32(dst + (size_t)r * dim + c, KVARN_F16, src, DATA_DIM);
        }
    }
    free(data);
}

/* The factor of a tile: of its layer's queries, heads side by side as in rows_fill(). */
static void factor_fill(struct codec_bench *b, unsigned tile)
{
    const uint32_t dim = b->spec.k_dim;
    float *data = data_load(data_layers[tile % DATA_LAYERS], 'q', DATA_QUERIES);

    for (uint32_t r = 0; r < METRIC_ROWS; r++) {
        for (uint32_t c = 0; c < dim; c += DATA_DIM) {
            size_t row = (r + c * 5) % DATA_QUERIES;
            memcpy(
                b->queries + (size_t)r * dim + c, data + row * DATA_DIM, DATA_DIM * sizeof(float));
        }
    }
    free(data);
    kvarn_rotate(b->queries, METRIC_ROWS, dim);
    memset(b->metric, 0, (size_t)dim * dim * sizeof(float));
    kvarn_metric_add(b->metric, b->queries, METRIC_ROWS, dim);
    b->next = tile + TILES - 1;
    factor_run(b);
}

static void metric_init(struct codec_bench *b)
{
    const size_t dim = b->spec.k_dim;

    b->queries = kvb_alloc(METRIC_ROWS * dim * sizeof(float));
    b->metric = kvb_alloc(dim * dim * sizeof(float));
    b->factors = kvb_alloc(TILES * dim * dim * sizeof(float));
    for (unsigned i = 0; i < TILES; i++) {
        factor_fill(b, i);
    }
}

static void bench_init(struct codec_bench *b, uint16_t dim, const char *preset)
{
    *b = (struct codec_bench){.spec = {.k_dim = dim, .v_dim = dim, .group = 128}};
    if (kvarn_preset_parse(preset, &b->spec.k_bits, &b->spec.v_bits) != 0) {
        abort();
    }
    b->raw_k = kvb_alloc(TILES * k_count(b) * sizeof(uint16_t));
    b->raw_v = kvb_alloc(TILES * v_count(b) * sizeof(uint16_t));
    b->k = kvb_alloc(TILES * k_count(b) * sizeof(uint16_t));
    b->v = kvb_alloc(TILES * v_count(b) * sizeof(uint16_t));
    b->k_out = kvb_alloc(k_count(b) * sizeof(uint16_t));
    b->v_out = kvb_alloc(v_count(b) * sizeof(uint16_t));
    b->floats = kvb_alloc((k_count(b) + v_count(b)) * sizeof(float));
    b->tiles = kvb_alloc(TILES * kvarn_tile_bytes(&b->spec));
    size_t scratch_bytes = kvarn_encode_scratch_bytes(&b->spec);
    size_t factor_bytes = kvarn_metric_factor_scratch_bytes(dim);
    b->scratch = kvb_alloc(scratch_bytes > factor_bytes ? scratch_bytes : factor_bytes);
    metric_init(b);
    for (unsigned i = 0; i < TILES; i++) {
        rows_fill(i, 'k', b->spec.group, dim, b->raw_k + i * k_count(b));
        rows_fill(i, 'v', b->spec.group, dim, b->raw_v + i * v_count(b));
    }
    for (unsigned i = 0; i < TILES; i++) {
        rotate_run(b); /* each in turn */
    }
    for (unsigned i = 0; i < TILES; i++) {
        tile_encode(b, i);
    }
}

static void bench_fini(struct codec_bench *b)
{
    free(b->raw_k);
    free(b->raw_v);
    free(b->k);
    free(b->v);
    free(b->k_out);
    free(b->v_out);
    free(b->floats);
    free(b->tiles);
    free(b->queries);
    free(b->metric);
    free(b->factors);
    free(b->scratch);
}

/* What is timed, at every level, with the goal of the best one. */
struct subject {
    const char *what;
    void (*run)(void *arg);
    enum kvarn_encoder encoder;
    bool has_k, has_v;     /* neither: microseconds are shown instead of a rate */
    struct kvb_goal rate;  /* GB/s; microseconds where they are shown */
    struct kvb_goal plain; /* times plain C's; not compared where there is none */
    bool is_plain;         /* one function for all levels: one row */
};

static const struct subject subjects[] = {
    {.what = "rotate, fp16 to fp16", .run = rotate_run, .has_k = true, .has_v = true},
    {.what = "encode reference",
        .run = encode_run,
        .encoder = KVARN_ENCODER_REFERENCE,
        .has_k = true,
        .has_v = true,
        .rate = {0.8, 1.1, false},
        .plain = {100, 200, false}},
    {.what = "encode refined",
        .run = encode_run,
        .encoder = KVARN_ENCODER_REFINED,
        .has_k = true,
        .has_v = true},
    {.what = "encode aware",
        .run = encode_run,
        .encoder = KVARN_ENCODER_AWARE,
        .has_k = true,
        .has_v = true},
    {.what = "sample a query for aware", .run = metric_run, .rate = {1, 0.5, true}},
    {.what = "factor of a query metric", .run = factor_run, .is_plain = true},
    {.what = "decode K to rotated fp16",
        .run = decode_k_run,
        .has_k = true,
        .rate = {5, 10, false}},
    {.what = "decode V to rotated fp16",
        .run = decode_v_run,
        .has_v = true,
        .rate = {12, 18, false}},
};

#define SUBJECT_COUNT (sizeof(subjects) / sizeof(subjects[0]))
#define REFERENCE     1
#define REFINED       2
#define AWARE         3

static const struct kvb_goal refined_goal = {1.6, 1.25, true};
static const struct kvb_goal aware_goal = {2.0, KVB_NO_GOAL, true};
static const struct kvb_goal avx2_goal = {2.5, KVB_NO_GOAL, true};

static double run_bytes(const struct subject *subject, const struct codec_bench *b)
{
    size_t values = (subject->has_k ? k_count(b) : 0) + (subject->has_v ? v_count(b) : 0);

    return (double)(values * sizeof(uint16_t));
}

static void row_time(struct kvb_row *row, const struct kvb_stats *stats)
{
    row->unit = "us";
    row->value = 1e6 * stats->median;
    row->low = 1e6 * stats->low;
    row->high = 1e6 * stats->high;
}

/* Rows of one subject from the stats of its levels, low to high. */
static void subject_rows(struct kvb_report *report, const struct subject *subject,
    const struct codec_bench *b, const struct kvb_case *cases, size_t levels)
{
    char params[32];
    bool is_tuned = b->spec.k_dim == 128 && b->spec.k_bits == 2;

    (void)snprintf(params, sizeof(params), "D%u G%u k%uv%u", b->spec.k_dim, b->spec.group,
        b->spec.k_bits, b->spec.v_bits);
    for (size_t i = 0; i < (subject->is_plain ? 1 : levels); i++) {
        bool is_best = i > 0 && i + 1 == levels;
        struct kvb_row row = {.what = subject->what,
            .variant = subject->is_plain ? "plain C" : cases[i].level,
            .params = params,
            .unit = "GB/s"};
        if (subject->has_k || subject->has_v) {
            kvb_row_rate(&row, &cases[i].stats, 1e-9 * run_bytes(subject, b));
        } else {
            row_time(&row, &cases[i].stats);
        }
        row.goal = is_best && is_tuned ? subject->rate : (struct kvb_goal){0};
        kvb_report_row(report, &row);
        if (is_best) {
            row.unit = "x scalar";
            kvb_row_ratio(&row, &cases[0].stats, &cases[i].stats);
            row.goal = (struct kvb_goal){0};
            kvb_report_row(report, &row);
        }
        if (i > 0 && strcmp(cases[i].level, "avx2") == 0 && !is_best) {
            row.unit = "x avx512";
            kvb_row_ratio(&row, &cases[i].stats, &cases[levels - 1].stats);
            row.goal = is_tuned ? avx2_goal : (struct kvb_goal){0};
            kvb_report_row(report, &row);
        }
    }
}

/* The best level against plain C. */
static void plain_rows(struct kvb_report *report, const struct subject *subject,
    const struct codec_bench *b, const struct kvb_case *plain, const struct kvb_case *best)
{
    char params[32];
    struct kvb_row row = {
        .what = subject->what, .variant = "plain C", .params = params, .unit = "GB/s"};

    (void)snprintf(params, sizeof(params), "D%u G%u k%uv%u", b->spec.k_dim, b->spec.group,
        b->spec.k_bits, b->spec.v_bits);
    kvb_row_rate(&row, &plain->stats, 1e-9 * run_bytes(subject, b));
    kvb_report_row(report, &row);
    row.variant = best->level;
    row.unit = "x plain C";
    kvb_row_ratio(&row, &plain->stats, &best->stats);
    row.goal = subject->plain;
    kvb_report_row(report, &row);
}

/* An encoder's time as a multiple of another's. */
struct encoder_pair {
    const char *what;
    const struct kvb_case *mine, *other; /* borrowed, [levels] */
    const struct kvb_goal *goal;         /* of the best level, D 128 */
};

static void encoder_rows(struct kvb_report *report, const struct codec_bench *b,
    const struct encoder_pair *pair, size_t level_count)
{
    char params[32];

    (void)snprintf(params, sizeof(params), "D%u G%u k%uv%u", b->spec.k_dim, b->spec.group,
        b->spec.k_bits, b->spec.v_bits);
    for (size_t i = 0; i < level_count; i++) {
        struct kvb_row row = {
            .what = pair->what, .variant = pair->mine[i].level, .params = params, .unit = "x"};
        bool has_goal = i + 1 == level_count && b->spec.k_dim == 128;
        kvb_row_ratio(&row, &pair->mine[i].stats, &pair->other[i].stats);
        row.goal = has_goal ? *pair->goal : (struct kvb_goal){0};
        kvb_report_row(report, &row);
    }
}

static void shape_bench(struct kvb_report *report, uint16_t dim, const char *preset)
{
    struct codec_bench b[SUBJECT_COUNT];
    struct kvb_case cases[SUBJECT_COUNT][KVB_LEVELS_MAX] = {0};
    const char *levels[KVB_LEVELS_MAX];
    struct kvb_case all[SUBJECT_COUNT * KVB_LEVELS_MAX + 1];
    size_t level_count = kvb_levels(levels), count = 0;
    const bool is_tuned = dim == 128 && strcmp(preset, "k2v2") == 0;

    for (size_t s = 0; s < SUBJECT_COUNT; s++) {
        bench_init(&b[s], dim, preset);
        b[s].encoder = subjects[s].encoder;
        for (size_t i = 0; i < level_count; i++) {
            all[count++] =
                (struct kvb_case){.run = subjects[s].run, .arg = &b[s], .level = levels[i]};
        }
    }
    b[REFERENCE].plain = is_tuned ? kvb_plain_load() : NULL;
    if (b[REFERENCE].plain != NULL) {
        all[count++] = (struct kvb_case){.run = encode_plain_run, .arg = &b[REFERENCE]};
    }
    kvb_time(all, count, report->sample_ms);
    for (size_t s = 0; s < SUBJECT_COUNT; s++) {
        memcpy(cases[s], all + s * level_count, level_count * sizeof(all[0]));
        subject_rows(report, &subjects[s], &b[s], cases[s], level_count);
    }
    if (b[REFERENCE].plain != NULL) {
        plain_rows(report, &subjects[REFERENCE], &b[REFERENCE], &all[count - 1],
            &cases[REFERENCE][level_count - 1]);
    }
    if (b[0].spec.k_bits == 2) {
        const struct encoder_pair pairs[] = {
            {"encode refined / reference, time", cases[REFINED], cases[REFERENCE], &refined_goal},
            {"encode aware / refined, time", cases[AWARE], cases[REFINED], &aware_goal}};
        encoder_rows(report, &b[0], &pairs[0], level_count);
        encoder_rows(report, &b[0], &pairs[1], level_count);
    }
    for (size_t s = 0; s < SUBJECT_COUNT; s++) {
        bench_fini(&b[s]);
    }
}

int kvb_codec(struct kvb_report *report, int argc, char **argv)
{
    static const struct {
        uint16_t dim;
        const char *preset;
    } shapes[] = {{128, "k2v2"}, {64, "k2v2"}, {256, "k2v2"}, {128, "k4v4"}};

    (void)argv;
    if (argc != 0) {
        fputs("kvarn-bench codec: takes no arguments\n", stderr);
        return 2;
    }
    kvb_report_table(report, "Codec, one thread: GB/s of fp16 in (encode) or out (decode)");
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        shape_bench(report, shapes[i].dim, shapes[i].preset);
    }
    return 0;
}
