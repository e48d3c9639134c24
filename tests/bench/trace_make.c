/* Traces that are made up: each of a character that some policy is bad at. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "tests/bench/trace_build.h"
#include "tests/support/rng.h"

#define NS_PER_S  UINT64_C(1000000000)
#define NS_PER_MS UINT64_C(1000000)

/* Blocks id_first, id_first + 1, ... as one prompt. */
static void prompt_add(struct kvb_trace *trace, uint64_t time_ns, uint32_t id_first, uint32_t count)
{
    kvb_trace_add_request(trace, time_ns);
    for (uint32_t b = 0; b < count; b++) {
        kvb_trace_add_block(trace, id_first + b, KVB_TRACE_BLOCK_TOKENS);
    }
}

/* Every other request is of a hot set; the others pass, in order, over much more than fits. */
static void make_scan(struct kvb_trace *trace, struct kvt_rng *rng)
{
    const uint32_t hot_count = 100, blocks = 16, cold_count = 3000;

    for (uint32_t r = 0; r < 12000; r++) {
        uint32_t hot = kvt_rng_below(rng, hot_count);
        uint32_t prompt = r % 2 == 0 ? hot : hot_count + r / 2 % cold_count;
        prompt_add(trace, r * 100 * NS_PER_MS, prompt * blocks, blocks);
    }
}

/* Sessions that take turns in a fixed order: what LRU drops is always what comes next. */
static void make_loop(struct kvb_trace *trace, struct kvt_rng *rng)
{
    const uint32_t count = 400, blocks = 16;

    for (uint32_t r = 0; r < 20 * count; r++) {
        uint64_t late_ns = kvt_rng_below(rng, 90) * NS_PER_MS;
        prompt_add(trace, r * 100 * NS_PER_MS + late_ns, r % count * blocks, blocks);
    }
}

/* Prompts of Zipf popularity (exponent 0.9), drawn independently. */
static void make_zipf(struct kvb_trace *trace, struct kvt_rng *rng)
{
    enum { COUNT = 3000, BLOCKS = 12 };
    double *sums = malloc(COUNT * sizeof(*sums));
    double sum = 0.0;

    KVARN_ASSERT(sums != NULL);
    for (uint32_t p = 0; p < COUNT; p++) {
        sum += pow(p + 1.0, -0.9);
        sums[p] = sum;
    }
    for (uint32_t r = 0; r < 15000; r++) {
        double at = kvt_rng_unit(rng) * sum;
        uint32_t low = 0, high = COUNT - 1;
        while (low < high) {
            uint32_t mid = (low + high) / 2;
            low = sums[mid] < at ? mid + 1 : low;
            high = sums[mid] < at ? high : mid;
        }
        prompt_add(trace, r * 100 * NS_PER_MS, low * BLOCKS, BLOCKS);
    }
    free(sums);
}

enum { PATH_MAX_BLOCKS = 400, AGENTS = 120 };

struct agent {
    uint32_t path[PATH_MAX_BLOCKS]; /* ids */
    uint32_t length, turns_left;
    uint64_t due_ns;
};

static void agent_grow(struct agent *agent, uint32_t *next_id, uint32_t blocks)
{
    for (uint32_t b = 0; b < blocks && agent->length < PATH_MAX_BLOCKS; b++) {
        agent->path[agent->length++] = (*next_id)++;
    }
}

/* A new one takes a place: with the common head, or as a sub-agent on another's path. */
static void agent_start(struct agent *agents, uint32_t idx, struct kvt_rng *rng, uint32_t *next_id)
{
    const struct agent *parent = &agents[kvt_rng_below(rng, AGENTS)];
    struct agent *agent = &agents[idx];
    bool is_sub = parent != agent && parent->length > 8 && kvt_rng_below(rng, 100) < 44;
    uint64_t due_ns = agent->due_ns;

    *agent = (struct agent){.due_ns = due_ns};
    if (is_sub) {
        agent->length = parent->length;
        memcpy(agent->path, parent->path, parent->length * sizeof(agent->path[0]));
    } else {
        for (uint32_t b = 0; b < 8; b++) {
            agent->path[agent->length++] = b; /* ids 0 to 7: the common head */
        }
    }
    agent_grow(agent, next_id, 1 + kvt_rng_below(rng, 8));
    agent->turns_left = 1 + kvt_rng_below(rng, is_sub ? 12 : 80);
}

/* Sessions of many turns with pauses of seconds, sub-agents that fork them, and some that idle. */
static void make_agents(struct kvb_trace *trace, struct kvt_rng *rng)
{
    struct agent *agents = calloc(AGENTS, sizeof(*agents));
    uint32_t next_id = 8;

    KVARN_ASSERT(agents != NULL);
    for (uint32_t i = 0; i < AGENTS; i++) {
        agents[i].due_ns = kvt_rng_below(rng, 60000) * NS_PER_MS;
    }
    for (uint32_t r = 0; r < 8000; r++) {
        uint32_t idx = 0;
        for (uint32_t i = 1; i < AGENTS; i++) {
            idx = agents[i].due_ns < agents[idx].due_ns ? i : idx;
        }
        struct agent *agent = &agents[idx];
        if (agent->turns_left == 0) {
            agent_start(agents, idx, rng, &next_id);
        }
        kvb_trace_add_request(trace, agent->due_ns);
        for (uint32_t b = 0; b < agent->length; b++) {
            kvb_trace_add_block(trace, agent->path[b], KVB_TRACE_BLOCK_TOKENS);
        }
        agent->turns_left--;
        agent_grow(agent, &next_id, kvt_rng_below(rng, 4));
        double pause_s = exp(1.0 + 1.2 * kvt_rng_normal(rng));
        agent->due_ns += (uint64_t)(pause_s * 1e9) + NS_PER_MS;
    }
    free(agents);
}

static int request_compare(const void *a, const void *b)
{
    const struct kvb_trace_request *x = a, *y = b;

    return (x->time_ns > y->time_ns) - (x->time_ns < y->time_ns);
}

/* Sessions that come once or twice more, half a minute to some minutes later, or never. */
static void make_bursts(struct kvb_trace *trace, struct kvt_rng *rng)
{
    const uint32_t blocks = 12;

    for (uint32_t s = 0; s < 6000; s++) {
        uint64_t time_ns = s * 300 * NS_PER_MS;
        prompt_add(trace, time_ns, s * blocks, blocks);
        for (uint32_t n = 0; n < 2 && kvt_rng_below(rng, 100) < 35; n++) {
            time_ns += 30 * NS_PER_S + kvt_rng_below(rng, 240) * NS_PER_S;
            prompt_add(trace, time_ns, s * blocks, blocks);
        }
    }
    qsort(trace->requests, trace->request_count, sizeof(*trace->requests), request_compare);
}

int kvb_trace_make(const char *kind, struct kvb_trace *ret)
{
    static const struct {
        const char *kind;
        void (*make)(struct kvb_trace *trace, struct kvt_rng *rng);
    } makers[] = {{"scan", make_scan}, {"loop", make_loop}, {"zipf", make_zipf},
        {"agents", make_agents}, {"bursts", make_bursts}};
    struct kvt_rng rng = {.state = 7};

    for (size_t i = 0; i < sizeof(makers) / sizeof(makers[0]); i++) {
        if (strcmp(makers[i].kind, kind) == 0) {
            *ret = (struct kvb_trace){0};
            makers[i].make(ret, &rng);
            return 0;
        }
    }
    return -1;
}
