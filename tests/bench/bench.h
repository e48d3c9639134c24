/*
 * Frame of kvarn-bench: cases timed side by side, rows with goals, a table and JSON.
 *
 * Thread: one. Times are processor time of the calling thread; competitors are interleaved sample
 * by sample in one process, since machines are shared and drift. Touch all buffers before timing.
 */
#ifndef KVARN_TESTS_BENCH_BENCH_H
#define KVARN_TESTS_BENCH_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define KVB_SAMPLES    11 /* of each case: odd, at least 9 */
#define KVB_CASES_MAX  32 /* timed side by side */
#define KVB_LEVELS_MAX 4
#define KVB_NO_GOAL    0.0

/* Seconds of one run: median and quartiles of the samples. */
struct kvb_stats {
    double median, low, high;
};

/* One competitor: `run` does one unit of work. */
struct kvb_case {
    void (*run)(void *arg);
    void *arg;              /* borrowed */
    const char *level;      /* KVARN_CPU level to run at; NULL: the one that is active */
    uint32_t repeats;       /* runs a sample; 0: as many as take the sample's time */
    struct kvb_stats stats; /* out */
};

/*
 * Time the cases: one warm-up, then KVB_SAMPLES rounds in which each case runs once for a sample.
 * The active level is put back. sample_ms: least processor time of a sample.
 */
void kvb_time(struct kvb_case *cases, size_t count, double sample_ms);

/* Sort KVB_SAMPLES samples, of any unit; their median and quartiles. */
void kvb_stats_take(double samples[KVB_SAMPLES], struct kvb_stats *ret);

/* A goal of PERFORMANCE.md. KVB_NO_GOAL where there is none. */
struct kvb_goal {
    double must, stretch;
    bool is_limit; /* the value must stay at or below the goal; else reach it */
};

/* One line of a table. Borrowed texts. */
struct kvb_row {
    const char *what;        /* "encode reference" */
    const char *variant;     /* level or competitor */
    const char *params;      /* "D128 G128 k2v2" */
    double value, low, high; /* median and quartiles */
    const char *unit;
    struct kvb_goal goal; /* of value */
    const char *note;     /* NULL: none */
};

struct kvb_report {
    FILE *json; /* owned; NULL: none */
    double sample_ms;
    bool is_check;
    bool is_quick;
    unsigned rows, musts, missed;
};

/* Start a table: prints its title and column names. */
void kvb_report_table(struct kvb_report *report, const char *title);

/* Print a row, and write it to the JSON file. A missed must is counted. */
void kvb_report_row(struct kvb_report *report, const struct kvb_row *row);

/* A rate from seconds a run: units of work a run / seconds, quartiles the right way round. */
void kvb_row_rate(struct kvb_row *row, const struct kvb_stats *stats, double work_per_run);

/* Ratio of two medians, as a row's value; its quartiles are the worst and best that both allow. */
void kvb_row_ratio(
    struct kvb_row *row, const struct kvb_stats *dividend, const struct kvb_stats *divisor);

/* Levels that this machine has, low to high. Returns how many. */
size_t kvb_levels(const char *ret_levels[KVB_LEVELS_MAX]);

/* Touched memory, aligned to 64 bytes; aborts when there is none. free() it. */
void *kvb_alloc(size_t bytes);

/*
 * A subcommand: its own arguments only. Returns 0, or 2 for wrong usage after saying why.
 */
typedef int kvb_command_fn(struct kvb_report *report, int argc, char **argv);

/* bench_sample.c: rows of attention with query sampling and without. */
void kvb_attention_sample(struct kvb_report *report);

kvb_command_fn kvb_attention;
kvb_command_fn kvb_codec;
kvb_command_fn kvb_cold;
kvb_command_fn kvb_costs;
kvb_command_fn kvb_evict;
kvb_command_fn kvb_fidelity;
kvb_command_fn kvb_scale;
kvb_command_fn kvb_server;
kvb_command_fn kvb_sessions;
kvb_command_fn kvb_soak;
kvb_command_fn kvb_turns;

#endif
