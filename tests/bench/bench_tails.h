/*
 * Rows of kvarn-bench sessions: idle sessions with a cold tier.
 *
 * Thread: one.
 */
#ifndef KVARN_TESTS_BENCH_TAILS_H
#define KVARN_TESTS_BENCH_TAILS_H

#include "tests/bench/bench.h"

/* What an idle session of an 8B model holds, and how long its tail's ways hold the loop. */
void kvb_tails_rows(struct kvb_report *report);

#endif
