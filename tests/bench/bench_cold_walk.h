/* kvarn-bench cold: the rows that need daemons. */
#ifndef KVARN_TESTS_BENCH_BENCH_COLD_WALK_H
#define KVARN_TESTS_BENCH_BENCH_COLD_WALK_H

#include "tests/bench/bench.h"

/* Print them; files are made in folders of their own in `parent`, and removed. */
void kvb_cold_walk(struct kvb_report *report, const char *parent);

#endif
