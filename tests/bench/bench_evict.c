/*
 * kvarn-bench evict: a trace replayed against each eviction policy at several sizes. Hit rates in
 * tokens (a block hits when it and all before it in its request are held), beside a cache without
 * bounds and the offline optimum.
 *
 * Rates are not timed: the quartiles of a row are its value.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/evict/evict_policy.h"
#include "tests/bench/bench.h"
#include "tests/bench/trace.h"

#define SIZES_MAX   16
#define BLOCK_BYTES 512 /* room of a block, whatever it holds */
#define SEED        1

struct options {
    const char *trace_path; /* borrowed; NULL: made up */
    const char *made;       /* borrowed */
    uint64_t sizes[SIZES_MAX];
    size_t size_count;
    bool is_untimed; /* with --quick: rates alone */
};

/* What a replay counts. */
struct rates {
    uint64_t blocks, blocks_hit;
    uint64_t tokens, tokens_hit;
};

/* Look-ups of a request that hit, given what is held. */
static size_t request_count_hits(
    const struct kvb_trace_block *blocks, size_t count, const bool *is_held, struct rates *rates)
{
    size_t hits = 0;

    while (hits < count && is_held[blocks[hits].id]) {
        rates->tokens_hit += blocks[hits].tokens;
        hits++;
    }
    for (size_t b = 0; b < count; b++) {
        rates->tokens += blocks[b].tokens;
    }
    rates->blocks += count;
    rates->blocks_hit += hits;
    return hits;
}

struct replay {
    const struct kvb_trace *trace;
    struct kvd_evict_policy *policy;
    struct kvd_evict_entry *entries; /* by id */
    uint32_t *parents;               /* by id, UINT32_MAX: none */
    bool *is_held;                   /* by id */
};

static void block_use(
    struct replay *replay, const struct kvb_trace_block *block, size_t block_idx, uint64_t now_ns)
{
    struct kvd_evict_entry *entry = &replay->entries[block->id];

    if (entry->is_inserted) {
        kvd_evict_use(replay->policy, entry, now_ns);
        return;
    }
    uint32_t parent = block_idx == 0 ? UINT32_MAX : (block - 1)->id;
    *entry = (struct kvd_evict_entry){.key = block->id + UINT64_C(1),
        .bytes = BLOCK_BYTES,
        .cost = block->tokens,
        .group = block->tokens < KVB_TRACE_BLOCK_TOKENS};
    int err = kvd_evict_insert(replay->policy, entry, now_ns);
    KVARN_ASSERT(err == 0);
    replay->parents[block->id] = parent;
    replay->is_held[block->id] = true;
    if (parent != UINT32_MAX && replay->entries[parent].is_inserted) {
        kvd_evict_depend(replay->policy, &replay->entries[parent], 1);
    }
}

static void block_evict(struct replay *replay, uint64_t now_ns)
{
    struct kvd_evict_entry *entry = kvd_evict_victim(replay->policy, now_ns, NULL, NULL);
    KVARN_ASSERT(entry != NULL);
    size_t id = (size_t)(entry - replay->entries);
    uint32_t parent = replay->parents[id];

    kvd_evict_remove(replay->policy, entry, KVD_EVICT_EVICTED);
    replay->is_held[id] = false;
    if (parent != UINT32_MAX && replay->entries[parent].is_inserted &&
        replay->entries[parent].dependents > 0) {
        kvd_evict_depend(replay->policy, &replay->entries[parent], -1);
    }
}

static struct rates replay_run(
    const struct kvb_trace *trace, enum kvd_evict_kind kind, uint64_t size_blocks)
{
    struct rates rates = {0};
    struct replay replay = {.trace = trace};
    int err = kvd_evict_policy_create(kind, SEED, &replay.policy);

    KVARN_ASSERT(err == 0);
    replay.entries = kvb_alloc(trace->id_count * sizeof(*replay.entries));
    replay.parents = kvb_alloc(trace->id_count * sizeof(*replay.parents));
    replay.is_held = kvb_alloc(trace->id_count * sizeof(*replay.is_held));
    for (size_t r = 0; r < trace->request_count; r++) {
        const struct kvb_trace_request *request = &trace->requests[r];
        const struct kvb_trace_block *blocks = &trace->blocks[request->block_first];
        (void)request_count_hits(blocks, request->block_count, replay.is_held, &rates);
        for (size_t b = 0; b < request->block_count; b++) {
            block_use(&replay, &blocks[b], b, request->time_ns);
        }
        while (kvd_evict_policy_count(replay.policy) > size_blocks) {
            block_evict(&replay, request->time_ns);
        }
    }
    for (uint32_t id = 0; id < trace->id_count; id++) {
        if (replay.entries[id].is_inserted) {
            kvd_evict_remove(replay.policy, &replay.entries[id], KVD_EVICT_GONE);
        }
    }
    kvd_evict_policy_destroy(replay.policy);
    free(replay.entries);
    free(replay.parents);
    free(replay.is_held);
    return rates;
}

static struct rates infinite_run(const struct kvb_trace *trace)
{
    struct rates rates = {0};
    bool *is_held = kvb_alloc(trace->id_count * sizeof(*is_held));

    for (size_t r = 0; r < trace->request_count; r++) {
        const struct kvb_trace_request *request = &trace->requests[r];
        const struct kvb_trace_block *blocks = &trace->blocks[request->block_first];
        (void)request_count_hits(blocks, request->block_count, is_held, &rates);
        for (size_t b = 0; b < request->block_count; b++) {
            is_held[blocks[b].id] = true;
        }
    }
    free(is_held);
    return rates;
}

/* A block that may go: the one that is used again last does, of equals the deepest. */
struct future {
    uint64_t rank;
    uint32_t id;
};

struct future_heap {
    struct future *items;
    size_t count;
};

static void heap_push(struct future_heap *heap, struct future item)
{
    size_t i = heap->count++;

    while (i > 0 && heap->items[(i - 1) / 2].rank < item.rank) {
        heap->items[i] = heap->items[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap->items[i] = item;
}

static struct future heap_pop(struct future_heap *heap)
{
    KVARN_ASSERT(heap->count > 0);
    struct future top = heap->items[0];
    struct future item = heap->items[--heap->count];
    size_t i = 0;

    for (size_t child = 1; child < heap->count; child = 2 * i + 1) {
        child += child + 1 < heap->count && heap->items[child + 1].rank > heap->items[child].rank;
        if (heap->items[child].rank <= item.rank) {
            break;
        }
        heap->items[i] = heap->items[child];
        i = child;
    }
    heap->items[i] = item;
    return top;
}

/* Request that looks each block up next, by look-up; request_count: none. */
static uint32_t *next_uses(const struct kvb_trace *trace)
{
    uint32_t *next = kvb_alloc(trace->block_count * sizeof(*next));
    uint32_t *seen = kvb_alloc(trace->id_count * sizeof(*seen));

    for (uint32_t id = 0; id < trace->id_count; id++) {
        seen[id] = (uint32_t)trace->request_count;
    }
    for (size_t r = trace->request_count; r-- > 0;) {
        const struct kvb_trace_request *request = &trace->requests[r];
        for (size_t b = request->block_first; b < request->block_first + request->block_count;
             b++) {
            next[b] = seen[trace->blocks[b].id];
            seen[trace->blocks[b].id] = (uint32_t)r;
        }
    }
    free(seen);
    return next;
}

/*
 * Belady's MIN. With prefixes it is optimal too: whoever uses a block uses those before it, so that
 * those are never used later, and it drops the deepest first.
 */
static struct rates optimum_run(const struct kvb_trace *trace, uint64_t size_blocks)
{
    struct rates rates = {0};
    uint32_t *next = next_uses(trace);
    bool *is_held = kvb_alloc(trace->id_count * sizeof(*is_held));
    uint64_t *ranks = kvb_alloc(trace->id_count * sizeof(*ranks));
    struct future_heap heap = {.items = kvb_alloc(trace->block_count * sizeof(struct future))};
    uint64_t held = 0;

    for (size_t r = 0; r < trace->request_count; r++) {
        const struct kvb_trace_request *request = &trace->requests[r];
        const struct kvb_trace_block *blocks = &trace->blocks[request->block_first];
        (void)request_count_hits(blocks, request->block_count, is_held, &rates);
        for (size_t b = 0; b < request->block_count; b++) {
            uint32_t id = blocks[b].id;
            ranks[id] = ((uint64_t)next[request->block_first + b] << 32) | b;
            heap_push(&heap, (struct future){.rank = ranks[id], .id = id});
            held += !is_held[id];
            is_held[id] = true;
        }
        while (held > size_blocks) {
            struct future top = heap_pop(&heap);
            if (is_held[top.id] && ranks[top.id] == top.rank) {
                is_held[top.id] = false;
                held--;
            }
        }
    }
    free(next);
    free(is_held);
    free(ranks);
    free(heap.items);
    return rates;
}

static double percent(uint64_t part, uint64_t whole)
{
    return 100.0 * (double)part / (double)whole;
}

static void rate_row(struct kvb_report *report, const char *variant, const char *params,
    double value, const struct kvb_goal *goal)
{
    struct kvb_row row = {.what = "tokens that hit",
        .variant = variant,
        .params = params,
        .value = value,
        .low = value,
        .high = value,
        .unit = "%"};

    if (goal != NULL) {
        row.goal = *goal;
    }
    kvb_report_row(report, &row);
}

/* LRU's figures for known traces, by the README beside them: blocks that hit, rounded to 0.01 %. */
struct known_size {
    uint64_t blocks;
    double percent;
};

struct known_trace {
    size_t requests, lookups;
    uint32_t distinct;
    double unbounded;
    struct known_size sizes[8];
    size_t size_count;
};

static const struct known_trace known_traces[] = {
    {12031, 288500, 182790, 36.64,
        {{2000, 5.37}, {5000, 11.04}, {10000, 21.12}, {20000, 28.75}, {33500, 33.65}}, 5},
    {2500, 67694, 47330, 30.08,
        {{1000, 4.01}, {2000, 4.77}, {5000, 10.52}, {10000, 20.48}, {20000, 27.40}}, 5},
};

static const struct known_trace *known_find(const struct kvb_trace *trace)
{
    for (size_t i = 0; i < sizeof(known_traces) / sizeof(known_traces[0]); i++) {
        const struct known_trace *known = &known_traces[i];
        if (known->requests == trace->request_count && known->lookups == trace->block_count &&
            known->distinct == trace->id_count) {
            return known;
        }
    }
    return NULL;
}

/* The distance from the known figure, which must be rounding alone. */
static void known_row(
    struct kvb_report *report, const char *variant, const char *params, double got, double known)
{
    double off = got > known ? got - known : known - got;
    struct kvb_row row = {.what = "blocks that hit: off the README",
        .variant = variant,
        .params = params,
        .value = off,
        .low = off,
        .high = off,
        .unit = "points",
        .goal = {.must = 0.00501, .is_limit = true}};

    kvb_report_row(report, &row);
}

static void known_rows(
    struct kvb_report *report, const struct kvb_trace *trace, const struct known_trace *known)
{
    char params[32];
    struct rates rates = infinite_run(trace);

    kvb_report_table(report, "LRU and a cache without bounds, beside the trace's README");
    known_row(report, "unbounded", "", percent(rates.blocks_hit, rates.blocks), known->unbounded);
    for (size_t i = 0; i < known->size_count; i++) {
        (void)snprintf(params, sizeof(params), "%" PRIu64 " blocks", known->sizes[i].blocks);
        rates = replay_run(trace, KVD_EVICT_LRU, known->sizes[i].blocks);
        known_row(report, "lru", params, percent(rates.blocks_hit, rates.blocks),
            known->sizes[i].percent);
    }
}

/*
 * The default must beat LRU. Where LRU has all but 2.5 % of what a cache without bounds has, there
 * is next to nothing to win: there it must not lose more than 0.2 % of it.
 */
static struct kvb_goal goal_of(double lru, double unbounded)
{
    bool is_nearly_all = lru > 0.975 * unbounded;

    return (struct kvb_goal){.must = is_nearly_all ? 0.998 * lru : lru + 1e-6};
}

static void size_rows(struct kvb_report *report, const struct kvb_trace *trace, uint64_t blocks)
{
    static const enum kvd_evict_kind kinds[] = {KVD_EVICT_LRU, KVD_EVICT_S3FIFO, KVD_EVICT_COST};
    struct rates rates = infinite_run(trace);
    double lru = 0.0, unbounded = percent(rates.tokens_hit, rates.tokens);
    char params[32];

    (void)snprintf(params, sizeof(params), "%" PRIu64 " blocks", blocks);
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        rates = replay_run(trace, kinds[i], blocks);
        double got = percent(rates.tokens_hit, rates.tokens);
        lru = kinds[i] == KVD_EVICT_LRU ? got : lru;
        struct kvb_goal goal = goal_of(lru, unbounded);
        rate_row(report, kvd_evict_kind_name(kinds[i]), params, got,
            kinds[i] == KVD_EVICT_COST ? &goal : NULL);
    }
    rates = optimum_run(trace, blocks);
    rate_row(report, "offline optimum", params, percent(rates.tokens_hit, rates.tokens), NULL);
}

struct timed {
    const struct kvb_trace *trace; /* borrowed */
    enum kvd_evict_kind kind;
    uint64_t blocks;
};

static void timed_run(void *arg)
{
    const struct timed *timed = arg;

    (void)replay_run(timed->trace, timed->kind, timed->blocks);
}

/* Time of a look-up with all that follows from it: use or insert, and an eviction where due. */
static void time_rows(struct kvb_report *report, const struct kvb_trace *trace, uint64_t blocks)
{
    struct timed timed[KVD_EVICT_KIND_COUNT];
    struct kvb_case cases[KVD_EVICT_KIND_COUNT];
    char params[32];

    (void)snprintf(params, sizeof(params), "%" PRIu64 " blocks", blocks);
    for (unsigned i = 0; i < KVD_EVICT_KIND_COUNT; i++) {
        timed[i] = (struct timed){trace, (enum kvd_evict_kind)i, blocks};
        cases[i] = (struct kvb_case){.run = timed_run, .arg = &timed[i], .repeats = 1};
    }
    kvb_time(cases, KVD_EVICT_KIND_COUNT, report->sample_ms);
    kvb_report_table(report, "Cost of a look-up, its insert and its evictions");
    for (unsigned i = 0; i < KVD_EVICT_KIND_COUNT; i++) {
        double per_ns = 1e9 / (double)trace->block_count;
        struct kvb_row row = {.what = "look-up",
            .variant = kvd_evict_kind_name((enum kvd_evict_kind)i),
            .params = params,
            .value = cases[i].stats.median * per_ns,
            .low = cases[i].stats.low * per_ns,
            .high = cases[i].stats.high * per_ns,
            .unit = "ns"};
        kvb_report_row(report, &row);
    }
}

static int sizes_parse(struct options *options, const char *text)
{
    char *end;

    while (options->size_count < SIZES_MAX) {
        unsigned long long size = strtoull(text, &end, 10);
        if (end == text || size == 0 || (*end != ',' && *end != '\0')) {
            return -1;
        }
        options->sizes[options->size_count++] = size;
        if (*end == '\0') {
            return 0;
        }
        text = end + 1;
    }
    return -1;
}

static int options_parse(struct options *options, int argc, char **argv)
{
    for (int i = 0; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--trace") == 0) {
            options->trace_path = argv[i + 1];
        } else if (strcmp(argv[i], "--made") == 0) {
            options->made = argv[i + 1];
        } else if (strcmp(argv[i], "--sizes") != 0 || sizes_parse(options, argv[i + 1]) != 0) {
            return -1;
        }
    }
    return argc % 2 == 0 && (options->trace_path == NULL) != (options->made == NULL) ? 0 : -1;
}

/* Those that the README of a known trace names, else shares of the distinct blocks. */
static void sizes_default(
    struct options *options, const struct kvb_trace *trace, const struct known_trace *known)
{
    static const unsigned shares[] = {2, 5, 10, 20, 40, 70};

    for (size_t i = 0; known != NULL && i < known->size_count; i++) {
        options->sizes[options->size_count++] = known->sizes[i].blocks;
    }
    for (size_t i = 0; known == NULL && i < sizeof(shares) / sizeof(shares[0]); i++) {
        options->sizes[options->size_count++] = trace->id_count * UINT64_C(1) * shares[i] / 100 + 1;
    }
}

int kvb_evict(struct kvb_report *report, int argc, char **argv)
{
    struct options options = {.is_untimed = report->is_quick};
    struct kvb_trace trace;
    char title[160];

    if (options_parse(&options, argc, argv) != 0) {
        fputs("kvarn-bench evict: expected --trace FILE or --made scan|loop|zipf|agents|bursts, "
              "and perhaps --sizes BLOCKS,BLOCKS,...\n",
            stderr);
        return 2;
    }
    if (options.trace_path != NULL && kvb_trace_read(options.trace_path, &trace) != 0) {
        return 2;
    }
    if (options.made != NULL && kvb_trace_make(options.made, &trace) != 0) {
        fprintf(stderr, "kvarn-bench evict: no kind of trace is called %s\n", options.made);
        return 2;
    }
    const struct known_trace *known = known_find(&trace);
    if (known != NULL) {
        known_rows(report, &trace, known);
    }
    if (options.size_count == 0) {
        sizes_default(&options, &trace, known);
    }
    (void)snprintf(title, sizeof(title),
        "Hit rates: %zu requests, %zu look-ups, %" PRIu32 " distinct blocks", trace.request_count,
        trace.block_count, trace.id_count);
    kvb_report_table(report, title);
    for (size_t i = 0; i < options.size_count; i++) {
        size_rows(report, &trace, options.sizes[i]);
    }
    struct rates rates = infinite_run(&trace);
    rate_row(report, "unbounded", "", percent(rates.tokens_hit, rates.tokens), NULL);
    if (!options.is_untimed) {
        time_rows(report, &trace, options.sizes[options.size_count / 2]);
    }
    kvb_trace_fini(&trace);
    return 0;
}
