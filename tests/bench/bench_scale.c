/*
 * kvarn-bench scale: the same attention on 1, 2, 4, ... threads at once, up to the processors that
 * this process may use; caches of 32k tokens, cold, GQA 4.
 *
 * Thread: each has its query and walks its own part of one arena; all start together. Rates are
 * counted by each thread's processor time: what threads take from each other (memory, caches, the
 * other half of a core) shows in it, and what other programs take of the machine does not. Beside
 * them stand rates by the clock, from the common start to the last one's end.
 */
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

#include "kvarn/cpu.h"
#include "lib/base/assert.h"
#include "tests/bench/bench.h"
#include "tests/bench/cache.h"

#define DIM         128
#define HEADS       4
#define TOKENS      32768u
#define THREADS_MAX 64
#define COUNTS_MAX  7 /* 1, 2, 4 .. 64 */
#define SAMPLE_LONG 5 /* times the usual sample: threads must meet */
#define GOAL_COUNT  2 /* threads with a goal */

static const struct kvb_goal goal = {1.5, 1.8, false};

/* Threads of one sample. */
struct squad {
    const struct kvb_tiles *tiles; /* borrowed */
    pthread_barrier_t start;
    uint32_t repeats;
};

struct worker {
    struct squad *squad; /* borrowed */
    struct kvb_query query;
    size_t next, caches; /* of the arena */
    double began, ended; /* by the clock */
    double busy;         /* seconds of processor time */
};

/* Rates of so many threads. */
struct scaling {
    unsigned threads;
    double by_busy[KVB_SAMPLES], by_clock[KVB_SAMPLES];
    struct kvb_stats busy, clock;
};

static double seconds(clockid_t clock)
{
    struct timespec now;

    int err = clock_gettime(clock, &now);
    KVARN_ASSERT(err == 0);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void *worker_run(void *arg)
{
    struct worker *worker = arg;
    struct squad *squad = worker->squad;

    (void)pthread_barrier_wait(&squad->start);
    worker->began = seconds(CLOCK_MONOTONIC);
    double busy = seconds(CLOCK_THREAD_CPUTIME_ID);
    for (uint32_t i = 0; i < squad->repeats; i++) {
        struct kvb_place place = {TOKENS, worker->next * TOKENS};
        kvb_attend(squad->tiles, place, KVARN_ACCURACY_FAST, &worker->query);
        worker->next = (worker->next + 1) % worker->caches;
    }
    worker->busy = seconds(CLOCK_THREAD_CPUTIME_ID) - busy;
    worker->ended = seconds(CLOCK_MONOTONIC);
    return NULL;
}

/* Run `count` workers at once. Gives tokens a second by both measures. */
static void squad_run(struct squad *squad, struct worker *workers, unsigned count,
    double *ret_by_busy, double *ret_by_clock)
{
    const double work = (double)TOKENS * squad->repeats;
    pthread_t threads[THREADS_MAX];
    double began = 0, ended = 0, rate = 0;

    KVARN_ASSERT(count > 0 && count <= THREADS_MAX);
    if (pthread_barrier_init(&squad->start, NULL, count) != 0) {
        abort();
    }
    for (unsigned i = 0; i < count; i++) {
        if (pthread_create(&threads[i], NULL, worker_run, &workers[i]) != 0) {
            abort(); /* the others would wait for ever */
        }
    }
    for (unsigned i = 0; i < count; i++) {
        if (pthread_join(threads[i], NULL) != 0) {
            abort();
        }
        const struct worker *worker = &workers[i];
        began = i == 0 || worker->began < began ? worker->began : began;
        ended = i == 0 || worker->ended > ended ? worker->ended : ended;
        rate += work / worker->busy;
    }
    (void)pthread_barrier_destroy(&squad->start);
    *ret_by_busy = rate;
    *ret_by_clock = work * count / (ended - began);
}

static void scaling_rows(
    struct kvb_report *report, const struct scaling *one, const struct scaling *many)
{
    char variant[32];
    struct kvb_row row = {.what = "fast attention",
        .variant = variant,
        .params = "D128 k2v2 GQA4 32k cold",
        .unit = "Mtok/s",
        .note = "by processor time"};
    const struct kvb_stats *stats[2] = {&many->busy, &many->clock};
    const struct kvb_stats *base[2] = {&one->busy, &one->clock};
    static const char *const notes[2] = {"by processor time", "by the clock"};

    (void)snprintf(
        variant, sizeof(variant), "%u thread%s", many->threads, many->threads == 1 ? "" : "s");
    for (int i = 0; i < 2; i++) {
        row.note = notes[i];
        row.value = 1e-6 * stats[i]->median;
        row.low = 1e-6 * stats[i]->low;
        row.high = 1e-6 * stats[i]->high;
        kvb_report_row(report, &row);
    }
    if (many->threads == 1) {
        return;
    }
    row.what = "times one thread's rate";
    row.unit = "x";
    for (int i = 0; i < 2; i++) {
        row.note = notes[i];
        row.goal = i == 0 && many->threads == GOAL_COUNT ? goal : (struct kvb_goal){0};
        kvb_row_ratio(&row, stats[i], base[i]);
        kvb_report_row(report, &row);
    }
}

static unsigned processors_count(void)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    int err = sched_getaffinity(0, sizeof(set), &set);
    unsigned count = err == 0 ? (unsigned)CPU_COUNT(&set) : 1; /* more than 1,024: the first ones */
    return count < THREADS_MAX ? count : THREADS_MAX;
}

/* Repeats of a sample, by one thread's rate. */
static void squad_calibrate(struct squad *squad, struct worker *worker, double sample_ms)
{
    double rate, by_clock;

    squad->repeats = 4;
    squad_run(squad, worker, 1, &rate, &by_clock);
    squad->repeats = 1 + (uint32_t)(1e-3 * sample_ms * SAMPLE_LONG * rate / TOKENS);
}

static void scale_bench(struct kvb_report *report, unsigned processors)
{
    static struct scaling scalings[COUNTS_MAX];
    static struct worker workers[THREADS_MAX];
    struct kvb_tiles tiles;
    struct squad squad = {.tiles = &tiles};
    size_t count = 0;

    kvb_tiles_init(&tiles, DIM, "k2v2");
    kvb_tiles_cut(&tiles, TOKENS);
    for (unsigned i = 0; i < processors; i++) {
        size_t caches = tiles.tokens / TOKENS;
        workers[i] =
            (struct worker){.squad = &squad, .caches = caches, .next = caches * i / processors};
        kvb_query_init(&workers[i].query, &tiles, HEADS);
    }
    for (unsigned threads = 1; threads <= processors; threads *= 2) {
        scalings[count++] = (struct scaling){.threads = threads};
    }
    squad_calibrate(&squad, workers, report->sample_ms);
    for (unsigned s = 0; s < KVB_SAMPLES; s++) {
        for (size_t i = 0; i < count; i++) {
            squad_run(&squad, workers, scalings[i].threads, &scalings[i].by_busy[s],
                &scalings[i].by_clock[s]);
        }
    }
    for (size_t i = 0; i < count; i++) {
        kvb_stats_take(scalings[i].by_busy, &scalings[i].busy);
        kvb_stats_take(scalings[i].by_clock, &scalings[i].clock);
        scaling_rows(report, &scalings[0], &scalings[i]);
    }
    for (unsigned i = 0; i < processors; i++) {
        kvb_query_fini(&workers[i].query);
    }
    kvb_tiles_fini(&tiles);
}

int kvb_scale(struct kvb_report *report, int argc, char **argv)
{
    const unsigned processors = processors_count();

    (void)argv;
    if (argc != 0) {
        fputs("kvarn-bench scale: takes no arguments\n", stderr);
        return 2;
    }
    kvb_report_table(report, "attention on several threads");
    scale_bench(report, processors);
    if (processors < GOAL_COUNT) {
        fputs("kvarn-bench: one processor: what two threads gain is not measured\n", stderr);
        return report->is_check ? 1 : 0;
    }
    return 0;
}
