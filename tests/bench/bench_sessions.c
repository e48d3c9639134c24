/*
 * kvarn-bench sessions: what it costs to open, find and copy sessions, and what an idle one holds.
 *
 * In process, on a service over the fake io, whose clock stands still: what is timed is the
 * daemon's own work in its loop, without a socket. Every operation is timed by itself, in processor
 * time; what it leaves is put away untimed.
 */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "lib/base/assert.h"
#include "server/session/session_blocks.h"
#include "tests/bench/bench.h"
#include "tests/bench/bench_lookup.h"
#include "tests/bench/bench_tails.h"
#include "tests/support/session_rig.h"

#define LAYERS            32
#define GROUP             128
#define SAMPLES           301
#define SAMPLES_COLD      31
#define CHILL_BYTES       ((size_t)64 << 20)
#define SESSIONS_MAX      100000
#define FORK_US_MAX       50.0
#define LOOKUP_US_MAX     5.0
#define EVICT_US_MAX      5000.0 /* the longest stall of the loop that is allowed */
#define SESSION_BYTES_MAX 1024.0
#define PAGE_BYTES_MAX    16.0
#define SESSIONS_IDLE     2000
#define TOKENS_IDLE       2000
#define NS_PER_US         1000.0
#define NAME_BYTES_MAX    32

/* The layers of an 8B model with the smallest heads: pages are not touched, only counted. */
static const struct kvd_layer_group groups[] = {
    {.layers = LAYERS, .kv_heads = 1, .k_dim = 8, .v_dim = 8}};
static const struct kvd_shape_desc shape = {.model = "bench",
    .group = GROUP,
    .k_bits = 2,
    .v_bits = 2,
    .sink_tokens = GROUP,
    .layer_groups = groups,
    .layer_group_count = 1};

static uint64_t cpu_ns(void)
{
    struct timespec now;

    KVARN_ASSERT(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) == 0);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static int u64_compare(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;

    return left < right ? -1 : left > right;
}

/* A row of times, in microseconds. */
static void row_times(
    struct kvb_report *report, struct kvb_row *row, uint64_t *samples_ns, size_t count)
{
    qsort(samples_ns, count, sizeof(samples_ns[0]), u64_compare);
    row->value = (double)samples_ns[count / 2] / NS_PER_US;
    row->low = (double)samples_ns[count / 4] / NS_PER_US;
    row->high = (double)samples_ns[count * 3 / 4] / NS_PER_US;
    row->unit = "us";
    kvb_report_row(report, row);
}

/* A session of so many tokens, all of whose blocks are sealed, as far as tables can tell. */
static struct kvd_session *session_make(struct kvt_rig *rig, uint64_t tokens)
{
    struct kvd_session *session = kvt_session_open(rig, NULL, 0);
    uint32_t blocks = (uint32_t)((tokens + GROUP - 1) / GROUP);
    struct kvd_failure why = {0};

    KVARN_ASSERT(kvd_session_want_work(session) == 0);
    session->work->layers[0].pending_length = (uint32_t)tokens;
    for (uint32_t b = 0; b < blocks; b++) {
        enum kvd_reserve kind = b + 1 == blocks ? KVD_RESERVE_ROWS : KVD_RESERVE_TILES;
        KVARN_ASSERT(kvd_session_add_block(session, kind, &why) == 0);
    }
    for (uint32_t i = 0; i < LAYERS; i++) {
        session->layers[i].length = session->work->layers[i].pending_length = (uint32_t)tokens;
        session->layers[i].sealed_blocks = (uint32_t)(tokens / GROUP);
    }
    return session;
}

/* Fill the caches with something else. */
static void caches_chill(void)
{
    static uint8_t *buffer;

    buffer = buffer == NULL ? kvb_alloc(CHILL_BYTES) : buffer;
    for (size_t i = 0; i < CHILL_BYTES; i += 64) {
        buffer[i]++;
    }
}

/* `is_cold`: before each fork, nothing of the session is in a cache. */
static void fork_row(struct kvb_report *report, struct kvt_rig *rig, struct kvd_session *parent,
    struct kvb_row *row, bool is_cold)
{
    uint64_t samples_ns[SAMPLES];
    size_t count = is_cold ? SAMPLES_COLD : SAMPLES;

    for (size_t n = 0; n < count; n++) {
        struct kvt_fork fork = {.parent = parent, .epoch = parent->epoch, .length = UINT64_MAX};
        if (is_cold) {
            caches_chill();
        }
        uint64_t start_ns = cpu_ns();
        KVARN_ASSERT(kvt_fork_begin(rig, &fork) == 0);
        samples_ns[n] = cpu_ns() - start_ns;
        KVARN_ASSERT(fork.outcome.done_count == 1 && fork.child != NULL);
        kvt_session_drop(rig, fork.child);
        kvt_rig_settle(rig);
    }
    row_times(report, row, samples_ns, count);
}

static void fork_rows(struct kvb_report *report, struct kvt_rig *rig)
{
    /* The last one: 63 blocks in the span that is not full, which are counted one by one. */
    static const uint64_t lengths[] = {1000, 10000, 100000, 1000000, (127 * 64 + 63) * GROUP};
    static const char *const params[] = {
        "1k tokens", "10k tokens", "100k tokens", "1M tokens", "1.05M tokens, 63 blocks"};

    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        struct kvd_session *parent = session_make(rig, lengths[i]);
        for (int is_cold = 0; is_cold < 2; is_cold++) {
            struct kvb_row row = {.what = "fork",
                .variant = is_cold ? "cold caches" : "warm caches",
                .params = params[i],
                .goal = {.must = FORK_US_MAX, .is_limit = true}};
            fork_row(report, rig, parent, &row, is_cold != 0);
        }
        kvt_session_drop(rig, parent);
        kvt_rig_settle(rig);
    }
}

/* Four sequences of 100k tokens become copies of the first. */
static void reorder_row(struct kvb_report *report, struct kvt_rig *rig)
{
    struct kvd_reorder_member members[4];
    uint64_t samples_ns[SAMPLES];

    for (size_t i = 0; i < 4; i++) {
        members[i].session = session_make(rig, 100000);
        members[i].source_idx = 0;
    }
    for (size_t n = 0; n < SAMPLES; n++) {
        struct kvt_reorder reorder = {.members = members, .count = 4};
        for (size_t i = 0; i < 4; i++) {
            members[i].epoch = members[i].session->epoch;
        }
        uint64_t start_ns = cpu_ns();
        KVARN_ASSERT(kvt_reorder_begin(rig, &reorder) == 0);
        samples_ns[n] = cpu_ns() - start_ns;
        KVARN_ASSERT(reorder.outcome.done_count == 1 && reorder.outcome.why.err == 0);
        kvt_rig_settle(rig);
    }
    struct kvb_row row = {.what = "reorder", .variant = "4 sessions", .params = "100k tokens"};
    row_times(report, &row, samples_ns, SAMPLES);
    for (size_t i = 0; i < 4; i++) {
        kvt_session_drop(rig, members[i].session);
    }
    kvt_rig_settle(rig);
}

static void row_bytes(struct kvb_report *report, struct kvb_row *row, double bytes)
{
    row->value = row->low = row->high = bytes;
    kvb_report_row(report, row);
}

static void name_of(char name[NAME_BYTES_MAX], uint32_t i)
{
    /* Neighbours in the order of names are far from each other in memory. */
    (void)snprintf(name, NAME_BYTES_MAX, "session/%08" PRIx32, i * UINT32_C(2654435761));
}

/* Open and find by name, while so many are there. */
static void table_rows(struct kvb_report *report, struct kvt_rig *rig)
{
    static const uint32_t counts[] = {1000, 10000, SESSIONS_MAX};
    static const char *const params[] = {"1k sessions", "10k sessions", "100k sessions"};
    static struct kvd_session *sessions[SESSIONS_MAX];
    uint64_t samples_ns[SAMPLES];
    char name[NAME_BYTES_MAX];
    uint32_t made = 0;
    uint64_t used = rig->service.budget.used_bytes;

    for (size_t i = 0; i < 3; i++) {
        for (; made < counts[i]; made++) {
            name_of(name, made);
            sessions[made] = kvt_session_open(rig, name, 0);
        }
        for (size_t n = 0; n < SAMPLES; n++) {
            uint64_t start_ns = cpu_ns();
            struct kvd_session *session = kvt_session_open(rig, "another", 0);
            samples_ns[n] = cpu_ns() - start_ns;
            kvt_session_drop(rig, session);
            kvt_rig_settle(rig);
        }
        struct kvb_row row = {.what = "open", .variant = "by name", .params = params[i]};
        row_times(report, &row, samples_ns, SAMPLES);
        for (size_t n = 0; n < SAMPLES; n++) {
            name_of(name, (uint32_t)(n * 7919) % counts[i]);
            uint64_t start_ns = cpu_ns();
            const struct kvd_session *found =
                kvd_session_table_find(&rig->service.sessions, KVD_TENANT_DEFAULT, name);
            samples_ns[n] = cpu_ns() - start_ns;
            KVARN_ASSERT(found != NULL);
        }
        row = (struct kvb_row){.what = "look up",
            .variant = "by name",
            .params = params[i],
            .goal = {.must = LOOKUP_US_MAX, .is_limit = true}};
        row_times(report, &row, samples_ns, SAMPLES);
    }
    row_bytes(report,
        &(struct kvb_row){.what = "memory",
            .variant = "empty session",
            .params = "32 layers",
            .unit = "B",
            .goal = {.must = SESSION_BYTES_MAX, .is_limit = true}},
        (double)(rig->service.budget.used_bytes - used) / SESSIONS_MAX);
    for (uint32_t i = 0; i < made; i++) {
        kvt_session_drop(rig, sessions[i]);
    }
    kvt_rig_settle(rig);
}

/* What the loop does for each block whose token ids come, or are asked for. */
static void prefix_row(struct kvb_report *report, struct kvt_rig *rig)
{
    struct kvd_prefix_index *index = &rig->service.prefixes;
    struct kvd_prefix_chain chain;
    uint64_t samples_ns[SAMPLES];
    uint32_t ids[GROUP] = {0};

    kvd_prefix_chain_init(index, rig->shape, NULL, 0, KVD_PREFIX_TOKENS, &chain);
    for (size_t n = 0; n < SAMPLES; n++) {
        uint64_t start_ns = cpu_ns();
        kvd_prefix_chain_next(index, &chain, ids, sizeof(ids));
        samples_ns[n] = cpu_ns() - start_ns;
    }
    struct kvb_row row = {
        .what = "prefix", .variant = "name of a block", .params = "128 token ids"};
    row_times(report, &row, samples_ns, SAMPLES);
}

static uint64_t page_count(const struct kvt_rig *rig)
{
    uint64_t pages = 0;

    for (size_t i = 0; i < KVD_PAGE_CLASS_COUNT; i++) {
        pages += rig->service.pages.classes[i].pages;
    }
    return pages;
}

/* What a page costs besides its own bytes, and a block whose pages are not in memory. */
static void page_rows(struct kvb_report *report, struct kvt_rig *rig)
{
    const uint64_t *kind_bytes = rig->service.budget.kind_bytes;
    uint64_t before = kind_bytes[KVD_BUDGET_SESSIONS];
    struct kvd_session *session = session_make(rig, 1000000);
    uint32_t blocks = kvd_session_block_count(session);
    uint64_t freed;

    kvd_session_drop_work(session);
    row_bytes(report,
        &(struct kvb_row){.what = "memory",
            .variant = "page",
            .params = "1M tokens, 32 layers",
            .unit = "B/page",
            .note = "descriptor of the page, its place in a block, the span, the session",
            .goal = {.must = PAGE_BYTES_MAX, .is_limit = true}},
        (double)(kind_bytes[KVD_BUDGET_SESSIONS] - before) / (double)page_count(rig));
    for (uint32_t b = 0; b < blocks; b++) {
        KVARN_ASSERT(kvd_session_strip_block(session, b, 1, &freed) == 0);
    }
    (void)kvd_page_store_reclaim(&rig->service.pages, UINT64_MAX);
    row_bytes(report,
        &(struct kvb_row){.what = "memory",
            .variant = "block without pages",
            .params = "1M tokens, 32 layers",
            .unit = "B/block",
            .note = "of the tables; a cold tier has its own"},
        (double)(kind_bytes[KVD_BUDGET_SESSIONS] - before) / (double)blocks);
    kvt_session_drop(rig, session);
    kvt_rig_settle(rig);
}

/* What a session that nobody uses costs besides its pages, at the price of a page above. */
static void idle_row(struct kvb_report *report, struct kvt_rig *rig)
{
    static struct kvd_session *sessions[SESSIONS_IDLE];
    uint64_t before = rig->service.budget.kind_bytes[KVD_BUDGET_SESSIONS];

    for (size_t i = 0; i < SESSIONS_IDLE; i++) {
        sessions[i] = session_make(rig, TOKENS_IDLE);
        kvd_session_drop_work(sessions[i]);
    }
    uint64_t bytes = rig->service.budget.kind_bytes[KVD_BUDGET_SESSIONS] - before;
    row_bytes(report,
        &(struct kvb_row){.what = "memory",
            .variant = "idle session",
            .params = "2,000 tokens, 32 layers",
            .unit = "B",
            .note = "all but 16 B a page",
            .goal = {.must = SESSION_BYTES_MAX, .is_limit = true}},
        ((double)bytes - PAGE_BYTES_MAX * (double)page_count(rig)) / SESSIONS_IDLE);
    for (size_t i = 0; i < SESSIONS_IDLE; i++) {
        kvt_session_drop(rig, sessions[i]);
    }
    kvt_rig_settle(rig);
}

/* The layers of an 8B model: pages of 77 KB, touched, so that giving chunks back costs what it
 * does. */
static const struct kvd_layer_group wide_groups[] = {
    {.layers = LAYERS, .kv_heads = 8, .k_dim = 128, .v_dim = 128}};
static const struct kvd_shape_desc wide_shape = {.model = "bench-wide",
    .group = GROUP,
    .k_bits = 2,
    .v_bits = 2,
    .layer_groups = wide_groups,
    .layer_group_count = 1};

static void pages_touch(const struct kvd_session *session)
{
    for (uint32_t b = 0; b < kvd_session_block_count(session); b++) {
        for (uint32_t i = 0; i < session->shape->layer_count; i++) {
            const struct kvd_page *page = kvd_session_tiles(session, b, i);
            memset(kvd_page_data(page), 1, kvd_page_bytes(page));
        }
    }
}

/*
 * What eviction costs the loop: the victim's choice and one step of blocks, as a slice takes them;
 * and the longest of them, which is what holds the loop at most.
 */
static void evict_rows(struct kvb_report *report)
{
    enum { STEPS = 64 };
    struct kvt_rig rig;
    uint64_t samples_ns[STEPS], longest_ns = 0;

    kvt_rig_init(&rig, &(struct kvt_rig_options){.shape = &wide_shape, .evict_policy = "cost"});
    struct kvd_session *victim = session_make(&rig, (uint64_t)STEPS * GROUP);
    pages_touch(victim);
    kvd_lifetime_touch(victim);
    struct kvd_session *other = session_make(&rig, GROUP);
    kvd_lifetime_touch(other); /* used last: spared */
    for (size_t n = 0; n < STEPS; n++) {
        uint64_t start_ns = cpu_ns();
        bool is_freed = kvd_evictor_make_room(&rig.service, other, 1);
        samples_ns[n] = cpu_ns() - start_ns;
        KVARN_ASSERT(is_freed);
        longest_ns = samples_ns[n] > longest_ns ? samples_ns[n] : longest_ns;
    }
    struct kvb_row row = {.what = "evict a block",
        .variant = "cost",
        .params = "32 layers x 8 heads x 128",
        .goal = {.must = EVICT_US_MAX, .is_limit = true}};
    row_times(report, &row, samples_ns, STEPS);
    row.what = "evict a block: the longest";
    row.value = row.low = row.high = (double)longest_ns / NS_PER_US;
    kvb_report_row(report, &row);
    kvt_session_drop(&rig, victim);
    kvt_session_drop(&rig, other);
    kvt_rig_settle(&rig);
    kvt_rig_fini(&rig);
}

int kvb_sessions(struct kvb_report *report, int argc, char **argv)
{
    struct kvt_rig rig;

    if (argc > 0) {
        fprintf(stderr, "kvarn-bench sessions: unknown argument %s\n", argv[0]);
        return 2;
    }
    kvt_rig_init(
        &rig, &(struct kvt_rig_options){.shape = &shape, .memory_limit = (uint64_t)64 << 30});
    kvb_report_table(report, "sessions: microseconds of the loop's processor time");
    fork_rows(report, &rig);
    reorder_row(report, &rig);
    table_rows(report, &rig);
    prefix_row(report, &rig);
    page_rows(report, &rig);
    idle_row(report, &rig);
    kvt_rig_fini(&rig);
    kvb_lookup_rows(report);
    evict_rows(report);
    kvb_tails_rows(report);
    return 0;
}
