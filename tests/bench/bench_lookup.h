/*
 * Rows of kvarn-bench sessions: requests that name a session, by how many there are.
 *
 * Thread: one.
 */
#ifndef TESTS_BENCH_LOOKUP_H
#define TESTS_BENCH_LOOKUP_H

#include "tests/bench/bench.h"

/* OpenSession of a name that is there, and Touch by handle, with 1k, 10k and 100k sessions. */
void kvb_lookup_rows(struct kvb_report *report);

#endif
