/*
 * Part of kvarn-bench cold: how long the tier holds the loop.
 *
 * Thread: one.
 */
#ifndef KVARN_TESTS_BENCH_BENCH_COLD_TURNS_H
#define KVARN_TESTS_BENCH_BENCH_COLD_TURNS_H

#include <stdint.h>

#include "tests/bench/bench.h"

/* Rows of the longest turn and of the loop's time by record, with so many records. */
void kvb_cold_turns(struct kvb_report *report, uint64_t count);

#endif
