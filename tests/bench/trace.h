/*
 * Traces of requests over prefix blocks, as kvarn-bench evict replays them: read from a file of the
 * Mooncake format, or made up.
 *
 * Thread: one.
 */
#ifndef KVARN_TESTS_BENCH_TRACE_H
#define KVARN_TESTS_BENCH_TRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KVB_TRACE_BLOCK_TOKENS 512

/* One look-up of a block. A block's parent is the one before it in its request, always the same. */
struct kvb_trace_block {
    uint32_t id;     /* 0 to id_count - 1 */
    uint32_t tokens; /* KVB_TRACE_BLOCK_TOKENS, or fewer in the last block of a request */
};

struct kvb_trace_request {
    uint64_t time_ns; /* never falls */
    size_t block_first;
    size_t block_count;
};

struct kvb_trace {
    struct kvb_trace_request *requests; /* owned */
    size_t request_count, request_room;
    struct kvb_trace_block *blocks; /* owned */
    size_t block_count, block_room;
    uint32_t id_count; /* distinct blocks */
};

/*
 * Read a file of one JSON object a line: "timestamp" (ms), "input_length" (tokens), "hash_ids".
 * Returns 0, or -1 after saying on stderr what was expected and got.
 */
int kvb_trace_read(const char *path, struct kvb_trace *ret);

/*
 * Make one up: "scan" (a hot set under sequential passes over much more), "loop" (sessions that
 * take turns in a fixed order), "zipf" (prompts of Zipf popularity), "agents" (growing sessions of
 * many turns, with sub-agents that fork them), "bursts" (sessions that come back once, soon or
 * never). Returns 0, or -1 when there is no such kind.
 */
int kvb_trace_make(const char *kind, struct kvb_trace *ret);

void kvb_trace_fini(struct kvb_trace *trace);

#endif
