/*
 * kvarn-bench cold: the cold tier's files against plain sequential writes and reads of the same
 * bytes in the same run, round by round: MB/s, write amplification, restart time.
 *
 * Times are of the wall clock. Reads come from the page cache where the system kept the files; both
 * sides alike. Thread: one, besides the tier's worker and the io's own.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/cold/cold_segment.h"
#include "tests/bench/bench.h"
#include "tests/bench/bench_cold_turns.h"
#include "tests/bench/bench_cold_walk.h"

#define BLOCK_PAGES   32u /* layers */
#define PAGE_BYTES    77824u
#define BLOCK_BYTES   ((size_t)BLOCK_PAGES * PAGE_BYTES)
#define PLAIN_BYTES   ((size_t)8 << 20) /* of one plain write or read */
#define ROUNDS        5                 /* odd */
#define FIGURES       7
#define GETS_MAX      16u /* in flight */
#define SEGMENT_BYTES ((uint64_t)256 << 20)

struct bench {
    struct kvd_io *io;
    struct kvd_workers *workers;
    struct kvd_budget budget;
    struct kvd_cold *cold;
    struct kvd_cold_found found;
    char dir[256], plain_path[300];
    uint8_t *data; /* owned: PLAIN_BYTES */
    struct kvd_cold_record **records;
    size_t blocks, next, done, failed;
    uint64_t seen_bytes; /* written, when it was last looked at */
    unsigned still_ticks;
    bool is_reading, is_closed;
};

struct transfer {
    struct kvd_cold_put put; /* first, as get is */
    struct kvd_cold_get get;
    struct bench *bench;
    struct iovec vecs[BLOCK_PAGES];
    uint8_t *room; /* owned: of a get */
    size_t idx;
};

static void bench_must(bool is_good, const char *what)
{
    if (!is_good) {
        fprintf(stderr, "kvarn-bench cold: %s failed\n", what);
        exit(1);
    }
}

static double wall_s(const struct bench *bench)
{
    return (double)bench->io->ops->now_ns(bench->io) / 1e9;
}

static void advance(struct transfer *transfer);

static void transfer_done(struct transfer *transfer, int err)
{
    struct bench *bench = transfer->bench;

    bench->done++;
    bench->failed += err != 0 ? 1 : 0;
    advance(transfer);
}

static void put_done(struct kvd_cold_put *put, int err)
{
    struct transfer *transfer = (struct transfer *)(void *)put;

    transfer->bench->records[transfer->idx] = put->record;
    transfer_done(transfer, err);
}

static void get_done(struct kvd_cold_get *get, int err)
{
    struct transfer *transfer =
        (struct transfer *)(void *)((char *)get - offsetof(struct transfer, get));

    transfer_done(transfer, err);
}

/* The next block of this slot, or, after the last one, the end of the run. */
static void advance(struct transfer *transfer)
{
    struct bench *bench = transfer->bench;
    struct kvd_cold *cold = bench->cold;

    if (bench->next == bench->blocks) {
        if (bench->done == bench->blocks) {
            bench->io->ops->stop(bench->io);
        }
        return;
    }
    transfer->idx = bench->next++;
    for (unsigned i = 0; i < BLOCK_PAGES; i++) {
        uint8_t *base = bench->is_reading ? transfer->room : bench->data;
        transfer->vecs[i] = (struct iovec){base + (size_t)i * PAGE_BYTES, PAGE_BYTES};
    }
    if (bench->is_reading) {
        transfer->get = (struct kvd_cold_get){.record = bench->records[transfer->idx],
            .vecs = transfer->vecs,
            .vec_count = BLOCK_PAGES,
            .done = get_done};
        bench_must(cold->ops->get(cold, &transfer->get) == 0, "get");
    } else {
        transfer->put = (struct kvd_cold_put){.type = KVD_COLD_PAGE,
            .id = {1, transfer->idx + 1},
            .vecs = transfer->vecs,
            .vec_count = BLOCK_PAGES,
            .done = put_done};
        bench_must(cold->ops->put(cold, &transfer->put) == 0, "put");
    }
}

/* Move all blocks, GETS_MAX at a time. Returns seconds. */
static double transfers_run(struct bench *bench, bool is_reading)
{
    struct transfer *transfers = calloc(GETS_MAX, sizeof(*transfers));

    bench_must(transfers != NULL, "memory");
    bench->is_reading = is_reading;
    bench->next = bench->done = 0;
    for (unsigned i = 0; i < GETS_MAX; i++) {
        transfers[i].bench = bench;
        transfers[i].room = is_reading ? kvb_alloc(BLOCK_BYTES) : NULL;
    }
    double start = wall_s(bench);
    for (unsigned i = 0; i < GETS_MAX; i++) {
        advance(&transfers[i]);
    }
    bench_must(bench->io->ops->run(bench->io) == 0, "the loop");
    double seconds = wall_s(bench) - start;
    for (unsigned i = 0; i < GETS_MAX; i++) {
        free(transfers[i].room);
    }
    free(transfers);
    return seconds;
}

/* What dd does with bs=8M and conv=fdatasync, and back. Returns seconds. */
static double plain_run(struct bench *bench, bool is_reading)
{
    size_t left = bench->blocks * BLOCK_BYTES;
    double start = wall_s(bench);
    int fd = open(bench->plain_path, is_reading ? O_RDONLY : O_RDWR | O_CREAT | O_TRUNC, 0600);

    bench_must(fd >= 0, bench->plain_path);
    while (left > 0) {
        size_t step = left < PLAIN_BYTES ? left : PLAIN_BYTES;
        ssize_t moved = is_reading ? read(fd, bench->data, step) : write(fd, bench->data, step);
        bench_must(moved > 0, "plain transfer");
        left -= (size_t)moved;
    }
    bench_must(is_reading || fdatasync(fd) == 0, "fdatasync");
    bench_must(close(fd) == 0, "close");
    return wall_s(bench) - start;
}

static void closed_cb(void *ctx)
{
    struct bench *bench = ctx;

    bench->is_closed = true;
    bench->io->ops->stop(bench->io);
}

static void tier_open(struct bench *bench)
{
    struct kvd_cold_segment_options options = {.dir = bench->dir,
        .limit_bytes = (uint64_t)64 << 30,
        .segment_bytes = SEGMENT_BYTES,
        .queue_bytes = (uint64_t)64 << 20};

    bench_must(kvd_cold_segment_open(bench->io, bench->workers, &bench->budget, &options,
                   &bench->found, &bench->cold) == 0,
        bench->dir);
}

static void tier_close(struct bench *bench)
{
    bench->is_closed = false;
    bench->cold->ops->close(bench->cold, closed_cb, bench);
    while (!bench->is_closed) {
        bench_must(bench->io->ops->run(bench->io) == 0, "the loop");
    }
    bench->cold->ops->destroy(bench->cold);
    bench->cold = NULL;
}

static void relearn_cb(void *ctx, struct kvd_cold_record *record, const struct kvd_cold_info *info)
{
    struct bench *bench = ctx;

    if (info->type == KVD_COLD_PAGE && info->id.lo <= bench->blocks) {
        bench->records[info->id.lo - 1] = record;
    }
}

/* Median and extremes of the rounds. */
static void row(struct kvb_report *report, const char *what, const double *values, const char *unit,
    struct kvb_goal goal)
{
    double v[ROUNDS];

    memcpy(v, values, sizeof(v));
    for (unsigned i = 1; i < ROUNDS; i++) {
        for (unsigned j = i; j > 0 && v[j] < v[j - 1]; j--) {
            double t = v[j];
            v[j] = v[j - 1];
            v[j - 1] = t;
        }
    }
    struct kvb_row line = {.what = what,
        .variant = "cold",
        .params = "32 x 76 KiB a block",
        .value = v[ROUNDS / 2],
        .low = v[0],
        .high = v[ROUNDS - 1],
        .unit = unit,
        .goal = goal};
    kvb_report_row(report, &line);
}

/* Whether all that was forgotten is removed, and what is left moved. */
static void quiet_cb(void *ctx)
{
    struct bench *bench = ctx;
    struct kvd_cold_stats stats;

    bench->cold->ops->stats(bench->cold, &stats);
    bool is_still = stats.written_bytes == bench->seen_bytes &&
                    stats.segments * SEGMENT_BYTES <= 2 * stats.live_bytes + 2 * SEGMENT_BYTES &&
                    bench->cold->ops->is_idle(bench->cold);
    bench->seen_bytes = stats.written_bytes;
    bench->still_ticks = is_still ? bench->still_ticks + 1 : 0;
    if (bench->still_ticks == 5) {
        bench->io->ops->stop(bench->io);
    }
}

static void quiet_wait(struct bench *bench)
{
    struct kvd_timer *timer = bench->io->ops->timer_create(bench->io, quiet_cb, bench);

    bench_must(timer != NULL, "timer");
    bench->still_ticks = 0;
    bench->io->ops->timer_start(timer, 10, 10);
    bench_must(bench->io->ops->run(bench->io) == 0, "the loop");
    bench->io->ops->timer_destroy(timer);
}

/* Six blocks of ten go, and what is left of each segment moves; then all of it goes. */
static uint64_t rewrite_run(struct bench *bench)
{
    struct kvd_cold_stats stats;

    for (size_t i = 0; i < bench->blocks; i++) {
        if (i % 10 >= 4) {
            bench->cold->ops->forget(bench->cold, bench->records[i]);
        }
    }
    quiet_wait(bench);
    bench->cold->ops->stats(bench->cold, &stats);
    for (size_t i = 0; i < bench->blocks; i++) {
        if (i % 10 < 4) {
            bench->cold->ops->forget(bench->cold, bench->records[i]);
        }
    }
    quiet_wait(bench);
    return stats.written_bytes;
}

/* One round: both write, both read, and between them a restart. Who is first takes turns. */
static void round_run(struct bench *bench, unsigned round, double t[FIGURES][ROUNDS])
{
    struct kvd_cold_stats stats;
    double bytes = (double)(bench->blocks * BLOCK_BYTES);
    bool is_first = round % 2 == 0;

    tier_open(bench);
    t[0][round] = is_first ? transfers_run(bench, false) : 0;
    t[1][round] = plain_run(bench, false);
    t[0][round] = is_first ? t[0][round] : transfers_run(bench, false);
    bench->cold->ops->stats(bench->cold, &stats);
    t[4][round] = (double)stats.written_bytes / bytes;
    tier_close(bench);
    tier_open(bench);
    t[5][round] = (double)bench->found.duration_ns / 1e9 / (bytes / 1e10);
    bench->cold->ops->each(bench->cold, relearn_cb, bench);
    t[2][round] = is_first ? transfers_run(bench, true) : 0;
    t[3][round] = plain_run(bench, true);
    t[2][round] = is_first ? t[2][round] : transfers_run(bench, true);
    t[6][round] = t[4][round] + (double)rewrite_run(bench) / bytes;
    tier_close(bench);
}

static void bench_report(struct kvb_report *report, struct bench *bench, double t[FIGURES][ROUNDS])
{
    struct kvb_goal none = {KVB_NO_GOAL, KVB_NO_GOAL, false};
    double mb = (double)(bench->blocks * BLOCK_BYTES) / 1e6;
    double rate[4][ROUNDS], spill[ROUNDS], restore[ROUNDS];

    for (unsigned i = 0; i < ROUNDS; i++) {
        spill[i] = t[1][i] / t[0][i];
        restore[i] = t[3][i] / t[2][i];
        for (unsigned j = 0; j < 4; j++) {
            rate[j][i] = mb / t[j][i];
        }
    }
    kvb_report_table(report, "cold tier, wall clock; reads by the page cache where it has them");
    row(report, "spill", rate[0], "MB/s", none);
    row(report, "sequential write and fdatasync", rate[1], "MB/s", none);
    row(report, "spill / sequential", spill, "x", (struct kvb_goal){0.8, 1.0, false});
    row(report, "restore, verified", rate[2], "MB/s", none);
    row(report, "sequential read", rate[3], "MB/s", none);
    row(report, "restore / sequential", restore, "x", (struct kvb_goal){0.7, 1.0, false});
    row(report, "write amplification", t[4], "x", (struct kvb_goal){1.05, 1.02, true});
    row(report, "the same, 4 of 10 moved", t[6], "x", none);
    row(report, "restart per 10 GB", t[5], "s", (struct kvb_goal){2.0, 0.5, true});
}

int kvb_cold(struct kvb_report *report, int argc, char **argv)
{
    static struct bench bench;
    static double t[FIGURES][ROUNDS];
    struct kvd_workers_options workers = {.thread_count = 1};
    const char *parent = argc == 2 && strcmp(argv[0], "--dir") == 0 ? argv[1] : "/var/tmp";

    if (argc != 0 && argc != 2) {
        fputs("kvarn-bench cold: expected --dir FOLDER or nothing\n", stderr);
        return 2;
    }
    (void)snprintf(bench.dir, sizeof(bench.dir), "%s/kvarn-bench-cold-%d", parent, (int)getpid());
    (void)snprintf(bench.plain_path, sizeof(bench.plain_path), "%s.plain", bench.dir);
    bench.blocks = report->is_quick ? 100 : 300;
    bench.records = calloc(bench.blocks, sizeof(struct kvd_cold_record *));
    bench.data = kvb_alloc(PLAIN_BYTES);
    for (size_t i = 0; i < PLAIN_BYTES; i++) {
        bench.data[i] = (uint8_t)(i * 2654435761u >> 13);
    }
    bench.io = kvd_io_uv_create();
    kvd_budget_init(&bench.budget, (uint64_t)1 << 32);
    bench_must(bench.records != NULL && bench.io != NULL &&
                   kvd_workers_create(bench.io, &workers, &bench.workers) == 0,
        "start");
    for (unsigned round = 0; round < ROUNDS; round++) {
        round_run(&bench, round, t);
    }
    bench_must(bench.failed == 0, "a transfer");
    bench_report(report, &bench, t);
    kvb_cold_walk(report, parent);
    kvb_report_table(report, "cold tier, how long it holds the loop: processor time");
    kvb_cold_turns(report, 100000);
    if (!report->is_quick) {
        kvb_cold_turns(report, 1000000);
    }
    kvd_workers_destroy(bench.workers);
    bench.io->ops->destroy(bench.io);
    (void)unlink(bench.plain_path);
    fprintf(stderr, "kvarn-bench cold: what is left of its files is in %s\n", bench.dir);
    free(bench.records);
    free(bench.data);
    return 0;
}
