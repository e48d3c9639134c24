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
#include "tests/support/npy_read.h"

/* Each recorded layer twice: how long an encoder iterates depends on the layer. */
#define TILES 12

/* tests/data/kv: [KV head][token][head_dim]. */
#define DATA_TOKENS 1024
#define DATA_HEADS  3
#define DATA_DIM    64
#define DATA_LAYERS 6
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
    void *scratch;           /* owned */
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
    (void)kvarn_tile_encode(
        &b->spec, b->encoder, b->floats, v, b->tiles + i * kvarn_tile_bytes(&b->spec), b->scratch);
}

static void encode_run(void *arg)
{
    struct codec_bench *b = arg;

    tile_encode(b, tile_next(b));
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

/* A recorded tensor; the process ends where there is none. */
static float *data_load(int layer, char which)
{
    char name[32];
    struct kvt_npy npy;

    (void)snprintf(name, sizeof(name), "layer%02d_%c.npy", layer, which);
    if (kvt_npy_read_at(KVT_DATA_DIR, name, &npy) != 0 ||
        npy.count != (size_t)DATA_HEADS * DATA_TOKENS * DATA_DIM) {
        exit(2);
    }
    float *values = kvt_npy_floats(&npy);
    kvt_npy_fini(&npy);
    return values;
}

/* Rows of one tile: block `tile` of a layer that changes with it, as many heads as fill a row. */
static void rows_fill(unsigned tile, char which, uint32_t rows, uint32_t dim, uint16_t *dst)
{
    float *data = data_load(data_layers[tile % DATA_LAYERS], which);
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
    b->scratch = kvb_alloc(kvarn_encode_scratch_bytes(&b->spec));
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
    free(b->scratch);
}

/* What is timed, at every level, with the goal of the best one. */
struct subject {
    const char *what;
    void (*run)(void *arg);
    enum kvarn_encoder encoder;
    bool has_k, has_v;
    struct kvb_goal rate;   /* GB/s */
    struct kvb_goal scalar; /* times scalar's */
};

static const struct subject subjects[] = {
    {"rotate, fp16 to fp16", rotate_run, KVARN_ENCODER_DEFAULT, true, true, {0, 0, false},
        {0, 0, false}},
    {"encode reference", encode_run, KVARN_ENCODER_REFERENCE, true, true, {0.8, 1.1, false},
        {0, 0, false}},
    {"encode refined", encode_run, KVARN_ENCODER_REFINED, true, true, {0, 0, false}, {0, 0, false}},
    {"decode K to rotated fp16", decode_k_run, KVARN_ENCODER_DEFAULT, true, false, {5, 10, false},
        {0, 0, false}},
    {"decode V to rotated fp16", decode_v_run, KVARN_ENCODER_DEFAULT, false, true, {12, 18, false},
        {0, 0, false}},
};

#define SUBJECT_COUNT (sizeof(subjects) / sizeof(subjects[0]))
#define REFERENCE     1
#define REFINED       2

static const struct kvb_goal refined_goal = {1.6, 1.25, true};
static const struct kvb_goal avx2_goal = {2.5, KVB_NO_GOAL, true};

static double run_bytes(const struct subject *subject, const struct codec_bench *b)
{
    size_t values = (subject->has_k ? k_count(b) : 0) + (subject->has_v ? v_count(b) : 0);

    return (double)(values * sizeof(uint16_t));
}

/* Rows of one subject from the stats of its levels, low to high. */
static void subject_rows(struct kvb_report *report, const struct subject *subject,
    const struct codec_bench *b, const struct kvb_case *cases, size_t levels)
{
    char params[32];
    bool is_tuned = b->spec.k_dim == 128 && b->spec.k_bits == 2;

    (void)snprintf(params, sizeof(params), "D%u G%u k%uv%u", b->spec.k_dim, b->spec.group,
        b->spec.k_bits, b->spec.v_bits);
    for (size_t i = 0; i < levels; i++) {
        bool is_best = i > 0 && i + 1 == levels;
        struct kvb_row row = {
            .what = subject->what, .variant = cases[i].level, .params = params, .unit = "GB/s"};
        kvb_row_rate(&row, &cases[i].stats, 1e-9 * run_bytes(subject, b));
        row.goal = is_best && is_tuned ? subject->rate : (struct kvb_goal){0};
        kvb_report_row(report, &row);
        if (is_best) {
            row.unit = "x scalar";
            kvb_row_ratio(&row, &cases[0].stats, &cases[i].stats);
            row.goal = is_tuned ? subject->scalar : (struct kvb_goal){0};
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

static void shape_bench(struct kvb_report *report, uint16_t dim, const char *preset)
{
    struct codec_bench b[SUBJECT_COUNT];
    struct kvb_case cases[SUBJECT_COUNT][KVB_LEVELS_MAX] = {0};
    const char *levels[KVB_LEVELS_MAX];
    struct kvb_case all[SUBJECT_COUNT * KVB_LEVELS_MAX];
    size_t level_count = kvb_levels(levels), count = 0;

    for (size_t s = 0; s < SUBJECT_COUNT; s++) {
        bench_init(&b[s], dim, preset);
        b[s].encoder = subjects[s].encoder;
        for (size_t i = 0; i < level_count; i++) {
            all[count++] =
                (struct kvb_case){.run = subjects[s].run, .arg = &b[s], .level = levels[i]};
        }
    }
    kvb_time(all, count, report->sample_ms);
    for (size_t s = 0; s < SUBJECT_COUNT; s++) {
        memcpy(cases[s], all + s * level_count, level_count * sizeof(all[0]));
        subject_rows(report, &subjects[s], &b[s], cases[s], level_count);
    }
    char params[32];
    (void)snprintf(params, sizeof(params), "D%u G%u %s", dim, b[0].spec.group, preset);
    for (size_t i = 0; i < level_count && b[0].spec.k_bits == 2; i++) {
        struct kvb_row row = {.what = "encode refined / reference, time",
            .variant = levels[i],
            .params = params,
            .unit = "x"};
        kvb_row_ratio(&row, &cases[REFINED][i].stats, &cases[REFERENCE][i].stats);
        row.goal = i + 1 == level_count && dim == 128 ? refined_goal : (struct kvb_goal){0};
        kvb_report_row(report, &row);
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
