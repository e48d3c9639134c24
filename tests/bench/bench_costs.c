/*
 * kvarn-bench costs: the figures of server/base/kernel_cost.c, by which the loop decides what it
 * computes itself, measured beside them.
 *
 * head_dim 128, group 128. Walks are over 1,024 tokens for 1 and for 8 query heads: what differs is
 * a row's, the rest is the reading's. Memory is cold, as the loop meets it: each run takes the next
 * stretch of 64 MiB.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kvarn/attention.h"
#include "kvarn/cpu.h"
#include "server/base/kernel_cost.h"
#include "tests/bench/bench.h"
#include "tests/support/tiles.h"

#define DIM         128
#define GROUP       128
#define TOKENS      1024
#define HEADS_MANY  8
#define BLOCKS      (TOKENS / GROUP)
#define ARENA_BYTES ((size_t)64 << 20)
#define HALF_BYTES  ((size_t)2 * GROUP * DIM * sizeof(uint16_t)) /* K and V rows of a block */

/* What is measured. */
enum cost {
    COST_FAST,
    COST_FAST_MANY,
    COST_EXACT,
    COST_EXACT_MANY,
    COST_HALF,
    COST_HALF_MANY,
    COST_EDGE,
    COST_READ,
    COST_APPEND,
    COST_COUNT,
};

struct arena {
    struct kvarn_tile_spec spec;
    size_t tile_bytes;
    uint8_t *tiles;    /* owned */
    uint8_t *halves;   /* owned */
    uint16_t *numbers; /* owned: what workers send */
};

struct runner {
    const struct arena *arena; /* borrowed */
    enum cost cost;
    uint32_t heads;
    size_t next;                               /* bytes into the arena */
    float *q, *rows, *lse, *partial, *scratch; /* owned */
    uint16_t *out;                             /* owned */
};

static struct kvarn_attention_params params_of(const struct runner *runner)
{
    bool is_exact = runner->cost == COST_EXACT || runner->cost == COST_EXACT_MANY;

    return (struct kvarn_attention_params){.spec = runner->arena->spec,
        .q_heads = runner->heads,
        .q_tokens = 1,
        .position = TOKENS - 1,
        .last = TOKENS,
        .scale = 1.0f / sqrtf(DIM),
        .causal = true,
        .accuracy = is_exact ? KVARN_ACCURACY_EXACT : KVARN_ACCURACY_FAST};
}

/* The next `bytes` of the arena. */
static const uint8_t *arena_next(struct runner *runner, const void *memory, size_t bytes)
{
    if (runner->next + bytes > ARENA_BYTES) {
        runner->next = 0;
    }
    const uint8_t *at = (const uint8_t *)memory + runner->next;
    runner->next += bytes;
    return at;
}

static void walk_run(struct runner *runner)
{
    const struct kvarn_attention_params params = params_of(runner);
    const struct arena *arena = runner->arena;
    struct kvarn_attention_span spans[BLOCKS];
    bool is_half = runner->cost == COST_HALF || runner->cost == COST_HALF_MANY;

    for (uint32_t b = 0; b < BLOCKS; b++) {
        spans[b] = (struct kvarn_attention_span){
            .form = KVARN_SPAN_TILE, .first_token = b * GROUP, .token_count = GROUP};
        if (is_half) {
            const uint8_t *rows = arena_next(runner, arena->halves, HALF_BYTES);
            spans[b].form = KVARN_SPAN_HALF;
            spans[b].k_rows = (const void *)rows;
            spans[b].v_rows = (const void *)(rows + HALF_BYTES / 2);
        } else {
            spans[b].tile = arena_next(runner, arena->tiles, arena->tile_bytes);
        }
    }
    kvarn_attention_partial_init(&params, runner->partial);
    kvarn_attention_walk(&params, runner->q, spans, BLOCKS, runner->partial, runner->scratch);
}

/* What each query row costs besides the walk. */
static void edge_run(struct runner *runner)
{
    const struct kvarn_attention_params params = params_of(runner);
    const uint16_t *q = (const void *)arena_next(
        runner, runner->arena->numbers, runner->heads * DIM * sizeof(uint16_t));
    struct kvarn_rows_out to = {.dst = runner->out,
        .dtype = KVARN_F16,
        .dst_stride = DIM,
        .rows = runner->heads,
        .head_dim = DIM};
    size_t bad_row = 0;

    kvarn_to_f32(runner->q, q, KVARN_F16, runner->heads * DIM);
    kvarn_rotate(runner->q, runner->heads, DIM);
    kvarn_attention_partial_init(&params, runner->partial);
    kvarn_attention_finish(&params, runner->partial, runner->rows, runner->lse);
    if (kvarn_rows_from_f32(runner->rows, &to, &bad_row) != 0) {
        abort();
    }
}

static void read_run(struct runner *runner)
{
    struct kvarn_rows_out to = {
        .dst = runner->out, .dtype = KVARN_F16, .dst_stride = DIM, .rows = GROUP, .head_dim = DIM};
    size_t bad_row = 0;

    const uint8_t *tile = arena_next(runner, runner->arena->tiles, runner->arena->tile_bytes);
    kvarn_tile_decode(&runner->arena->spec, tile, runner->rows, NULL);
    if (kvarn_rows_from_f32(runner->rows, &to, &bad_row) != 0) {
        abort();
    }
}

static void append_run(struct runner *runner)
{
    struct kvarn_rows_in in = {
        .src = arena_next(runner, runner->arena->numbers, (size_t)GROUP * DIM * sizeof(uint16_t)),
        .dtype = KVARN_F16,
        .src_stride = DIM,
        .rows = GROUP,
        .head_dim = DIM};
    size_t bad_row = 0;

    if (kvarn_rows_to_half(&in, runner->out, &bad_row) != 0) {
        abort();
    }
}

static void runner_run(void *arg)
{
    struct runner *runner = arg;

    switch (runner->cost) {
    case COST_EDGE:
        edge_run(runner);
        return;
    case COST_READ:
        read_run(runner);
        return;
    case COST_APPEND:
        append_run(runner);
        return;
    default:
        walk_run(runner);
    }
}

static void runner_init(struct runner *runner, const struct arena *arena, enum cost cost)
{
    bool is_many = cost == COST_FAST_MANY || cost == COST_EXACT_MANY || cost == COST_HALF_MANY ||
                   cost == COST_EDGE;
    struct kvt_rng rng = {.state = 3};

    *runner = (struct runner){.arena = arena, .cost = cost, .heads = is_many ? HEADS_MANY : 1};
    const struct kvarn_attention_params params = params_of(runner);
    runner->q = kvb_alloc(HEADS_MANY * DIM * sizeof(float));
    runner->rows = kvb_alloc((size_t)GROUP * DIM * sizeof(float));
    runner->lse = kvb_alloc(HEADS_MANY * sizeof(float));
    runner->partial = kvb_alloc(kvarn_attention_partial_floats(&params) * sizeof(float));
    runner->scratch = kvb_alloc(kvarn_attention_scratch_floats(&params) * sizeof(float));
    runner->out = kvb_alloc((size_t)GROUP * DIM * sizeof(uint16_t));
    for (uint32_t i = 0; i < HEADS_MANY * DIM; i++) {
        runner->q[i] = (float)kvt_rng_normal(&rng);
    }
}

static void runner_fini(struct runner *runner)
{
    free(runner->q);
    free(runner->rows);
    free(runner->lse);
    free(runner->partial);
    free(runner->scratch);
    free(runner->out);
}

static void arena_init(struct arena *arena)
{
    struct kvt_rng rng = {.state = 5};
    float *rows = kvb_alloc((size_t)2 * GROUP * DIM * sizeof(float));

    *arena = (struct arena){
        .spec = {.k_dim = DIM, .v_dim = DIM, .group = GROUP, .k_bits = 2, .v_bits = 2}};
    arena->tile_bytes = kvarn_tile_bytes(&arena->spec);
    arena->tiles = kvb_alloc(ARENA_BYTES);
    arena->halves = kvb_alloc(ARENA_BYTES);
    arena->numbers = kvb_alloc(ARENA_BYTES);
    kvt_rows_fill(&rng, rows, (size_t)2 * GROUP, DIM, 1.0);
    void *tile =
        kvt_tile_make(&arena->spec, KVARN_ENCODER_REFERENCE, rows, rows + (size_t)GROUP * DIM);
    for (size_t at = 0; at + arena->tile_bytes <= ARENA_BYTES; at += arena->tile_bytes) {
        memcpy(arena->tiles + at, tile, arena->tile_bytes);
    }
    for (size_t at = 0; at < ARENA_BYTES; at += HALF_BYTES) {
        kvarn_from_f32(arena->halves + at, KVARN_F16, rows, (size_t)2 * GROUP * DIM);
    }
    memcpy(arena->numbers, arena->halves, ARENA_BYTES);
    free(tile);
    free(rows);
}

/* One figure beside the one that the daemon has. */
static void cost_row(
    struct kvb_report *report, const char *what, const char *level, double ps, unsigned listed_ps)
{
    char note[48];

    (void)snprintf(note, sizeof(note), "server/base/kernel_cost.c: %u", listed_ps);
    kvb_report_row(report, &(struct kvb_row){.what = what,
                               .variant = level,
                               .params = "D128 k2v2 cold",
                               .value = ps,
                               .low = ps,
                               .high = ps,
                               .unit = "ps",
                               .goal = {1.5 * listed_ps, listed_ps, true},
                               .note = note});
}

/* Rows of a walk: what the reading costs, and what a row adds. */
static void walk_rows(struct kvb_report *report, const char *what, const char *level,
    const struct kvb_case cases[2], struct kvd_walk_cost listed)
{
    const double values = 2.0 * TOKENS * DIM;
    const double one = 1e12 * cases[0].stats.median / values;
    const double many = 1e12 * cases[1].stats.median / values;
    const double row = (many - one) / (HEADS_MANY - 1);
    char text[64];

    (void)snprintf(text, sizeof(text), "%s: a value, read once", what);
    cost_row(report, text, level, fmax(0, one - row), listed.value_ps);
    (void)snprintf(text, sizeof(text), "%s: a value, for each row", what);
    cost_row(report, text, level, row, listed.row_ps);
}

static void level_bench(
    struct kvb_report *report, const struct arena *arena, const struct kvd_kernel_cost *listed)
{
    struct runner runners[COST_COUNT];
    struct kvb_case cases[COST_COUNT];

    for (int i = 0; i < COST_COUNT; i++) {
        runner_init(&runners[i], arena, (enum cost)i);
        cases[i] = (struct kvb_case){.run = runner_run, .arg = &runners[i], .level = listed->level};
    }
    kvb_time(cases, COST_COUNT, report->sample_ms);
    walk_rows(report, "tiles, fast", listed->level, &cases[COST_FAST], listed->fast);
    walk_rows(report, "tiles, exact", listed->level, &cases[COST_EXACT], listed->exact);
    walk_rows(report, "halves", listed->level, &cases[COST_HALF], listed->half);
    cost_row(report, "q and out: a value", listed->level,
        1e12 * cases[COST_EDGE].stats.median / (2.0 * HEADS_MANY * DIM), listed->edge_ps);
    cost_row(report, "read of tiles: a value", listed->level,
        1e12 * cases[COST_READ].stats.median / (GROUP * DIM), listed->read_ps);
    cost_row(report, "append: a value", listed->level,
        1e12 * cases[COST_APPEND].stats.median / (GROUP * DIM), listed->append_ps);
    for (int i = 0; i < COST_COUNT; i++) {
        runner_fini(&runners[i]);
    }
}

int kvb_costs(struct kvb_report *report, int argc, char **argv)
{
    struct arena arena;
    (void)argv;

    if (argc > 0) {
        fputs("usage: kvarn-bench costs\n", stderr);
        return 2;
    }
    arena_init(&arena);
    kvb_report_table(report, "what the loop reckons with, beside what it is here");
    for (unsigned i = 0; i < kvd_kernel_cost_count; i++) {
        if (kvarn_cpu_has(kvd_kernel_costs[i].level)) {
            level_bench(report, &arena, &kvd_kernel_costs[i]);
        }
    }
    free(arena.tiles);
    free(arena.halves);
    free(arena.numbers);
    return 0;
}
