/* Building traces: for the reader and for those that are made up. */
#ifndef KVARN_TESTS_BENCH_TRACE_BUILD_H
#define KVARN_TESTS_BENCH_TRACE_BUILD_H

#include "tests/bench/trace.h"

/* A request without blocks yet; time_ns must not be below the last one's. */
void kvb_trace_add_request(struct kvb_trace *trace, uint64_t time_ns);

/* The next block of the last request. */
void kvb_trace_add_block(struct kvb_trace *trace, uint32_t id, uint32_t tokens);

#endif
