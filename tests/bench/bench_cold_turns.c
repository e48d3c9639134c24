/*
 * Part of kvarn-bench cold: how long the tier holds the loop when it has many records.
 *
 * In process, on the fake io, over a disk that keeps the beginning of each block and nothing else:
 * records here have no body, so that a million of them fit. What is shown is the processor time of
 * the longest callback of the tier, and of all of them by record (SEMANTICS.md 18). Thread: one.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "lib/base/assert.h"
#include "server/cold/cold_segment.h"
#include "tests/bench/bench_cold_turns.h"
#include "tests/support/io_fake.h"

#define BLOCK         4096u
#define KEPT_BYTES    128u /* of each block: a header, and a head of up to 32 bytes */
#define FILES_MAX     256u
#define SEGMENT_BYTES ((uint64_t)32 << 20)
#define FLIGHT_MAX    2000u
#define FORGET_STEP   64u
#define US_MAX        1000.0 /* a shared machine has its moments */
#define US_WANTED     100.0  /* SEMANTICS.md 18 */

struct thin_file {
    char path[64];
    uint8_t *kept; /* owned */
    bool is_there;
};

struct waiting {
    TAILQ_ENTRY(waiting) link;
    struct kvd_file_op *op; /* borrowed */
};

TAILQ_HEAD(waiting_list, waiting);

struct turns {
    struct kvd_io_ops ops; /* the fake's, with other files and timers */
    const struct kvd_io_ops *fake_ops;
    struct kvd_io_fake *fake;
    struct kvd_io *io;
    struct kvd_workers *workers;
    struct kvd_budget budget;
    struct kvd_cold *cold;
    struct thin_file files[FILES_MAX];
    struct waiting_list ops_waiting;
    struct kvd_cold_record **records;
    uint64_t count, put_next, done;
    uint64_t longest_ns, total_ns, touched; /* touched: records put or forgotten */
};

/* One for all: what the io calls back knows it not. */
static struct turns *turns;

static uint64_t cpu_ns(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void took(uint64_t start_ns)
{
    uint64_t ns = cpu_ns() - start_ns;

    turns->total_ns += ns;
    turns->longest_ns = ns > turns->longest_ns ? ns : turns->longest_ns;
}

/* Timers, measured. */

struct timed {
    kvd_io_cb cb;
    void *ctx; /* borrowed */
};

static void timed_cb(void *ctx)
{
    struct timed *timed = ctx;
    uint64_t start_ns = cpu_ns();

    timed->cb(timed->ctx);
    took(start_ns);
}

static struct kvd_timer *timed_create(struct kvd_io *io, kvd_io_cb cb, void *ctx)
{
    static struct timed room[16]; /* a tier has two */
    static unsigned used;

    KVARN_ASSERT(used < 16);
    room[used] = (struct timed){cb, ctx};
    return turns->fake_ops->timer_create(io, timed_cb, &room[used++]);
}

/* Files of which little is kept. */

static struct thin_file *file_find(const char *path)
{
    for (unsigned i = 0; i < FILES_MAX; i++) {
        if (turns->files[i].is_there && strcmp(turns->files[i].path, path) == 0) {
            return &turns->files[i];
        }
    }
    return NULL;
}

static int64_t file_open(const char *path)
{
    struct thin_file *file = file_find(path);

    for (unsigned i = 0; i < FILES_MAX && file == NULL; i++) {
        file = !turns->files[i].is_there ? &turns->files[i] : NULL;
    }
    KVARN_ASSERT(file != NULL);
    if (!file->is_there) {
        file->is_there = true;
        (void)snprintf(file->path, sizeof(file->path), "%s", path);
        file->kept = calloc(SEGMENT_BYTES / BLOCK, KEPT_BYTES);
        KVARN_ASSERT(file->kept != NULL);
    }
    return file - turns->files;
}

/* The bytes [at, at + bytes) of a file, as far as they are kept: to or from memory. */
static void stretch_move(
    const struct thin_file *file, uint64_t at, uint8_t *data, size_t bytes, bool is_reading)
{
    while (bytes > 0) {
        size_t in_block = (size_t)(at % BLOCK);
        size_t step = BLOCK - in_block < bytes ? BLOCK - in_block : bytes;
        size_t kept = in_block >= KEPT_BYTES ? 0 : KEPT_BYTES - in_block;
        kept = kept < step ? kept : step;
        uint8_t *place = file->kept + at / BLOCK * KEPT_BYTES + in_block;
        if (is_reading) {
            memset(data, 0, step);
        }
        if (kept > 0) {
            memcpy(is_reading ? data : place, is_reading ? place : data, kept);
        }
        at += step;
        data += step;
        bytes -= step;
    }
}

static int64_t file_transfer(const struct kvd_file_op *op)
{
    const struct thin_file *file = &turns->files[op->fd];
    uint64_t at = op->offset;

    for (unsigned i = 0; i < op->vec_count; i++) {
        stretch_move(
            file, at, op->vecs[i].iov_base, op->vecs[i].iov_len, op->verb == KVD_FILE_READ);
        at += op->vecs[i].iov_len;
    }
    return (int64_t)(at - op->offset);
}

static int64_t file_perform(struct kvd_file_op *op)
{
    struct thin_file *file;

    switch (op->verb) {
    case KVD_FILE_OPEN:
        return file_open(op->path);
    case KVD_FILE_READ:
    case KVD_FILE_WRITE:
        return file_transfer(op);
    case KVD_FILE_RENAME:
        file = file_find(op->path);
        KVARN_ASSERT(file != NULL);
        (void)snprintf(file->path, sizeof(file->path), "%s", op->path_to);
        return 0;
    case KVD_FILE_UNLINK:
        file = file_find(op->path);
        KVARN_ASSERT(file != NULL);
        file->is_there = false;
        free(file->kept);
        return 0;
    default:
        return 0;
    }
}

static int64_t thin_run(struct kvd_io *io, struct kvd_file_op *op)
{
    (void)io;
    op->result = file_perform(op);
    return op->result;
}

static void thin_submit(struct kvd_io *io, struct kvd_file_op *op)
{
    struct waiting *waiting = (struct waiting *)(void *)op->room;

    (void)io;
    waiting->op = op;
    TAILQ_INSERT_TAIL(&turns->ops_waiting, waiting, link);
}

/* A turn of the loop: what its timers do, then files. Returns whether there was anything. */
static bool turn(void)
{
    bool did_something = kvd_io_fake_turn(turns->fake);
    struct waiting *waiting;
    struct waiting_list due = TAILQ_HEAD_INITIALIZER(due);

    TAILQ_CONCAT(&due, &turns->ops_waiting, link);
    while ((waiting = TAILQ_FIRST(&due)) != NULL) {
        struct kvd_file_op *op = waiting->op;
        TAILQ_REMOVE(&due, waiting, link);
        op->result = file_perform(op);
        uint64_t start_ns = cpu_ns();
        op->done(op);
        took(start_ns);
        did_something = true;
    }
    return did_something;
}

static void settle(void)
{
    while (turn()) {
    }
}

/* Records. */

struct thin_put {
    struct kvd_cold_put put; /* first */
    uint64_t idx;
};

static void put_done(struct kvd_cold_put *put, int err)
{
    struct thin_put *thin = (struct thin_put *)(void *)put;

    KVARN_ASSERT(err == 0);
    turns->records[thin->idx] = put->record;
    turns->done++;
    free(thin);
}

static void put_next(void)
{
    struct thin_put *thin = calloc(1, sizeof(*thin));

    KVARN_ASSERT(thin != NULL);
    thin->idx = turns->put_next++;
    turns->touched++;
    /* One of four belongs to a session of its own, of which the tier keeps account. */
    thin->put = (struct kvd_cold_put){.type = thin->idx % 4 == 0 ? KVD_COLD_MAP : KVD_COLD_PAGE,
        .id = {1, thin->idx + 1},
        .done = put_done};
    int err = turns->cold->ops->put(turns->cold, &thin->put);
    KVARN_ASSERT(err == 0);
}

static void all_put(void)
{
    while (turns->done < turns->count) {
        while (turns->put_next < turns->count && turns->put_next - turns->done < FLIGHT_MAX) {
            put_next();
        }
        (void)turn();
    }
    settle();
}

/* Forget the records of which `of` says so, some a turn. */
static void some_forget(bool (*of)(uint64_t idx))
{
    unsigned forgotten = 0;

    for (uint64_t i = 0; i < turns->count; i++) {
        if (turns->records[i] == NULL || !of(i)) {
            continue;
        }
        turns->cold->ops->forget(turns->cold, turns->records[i]);
        turns->records[i] = NULL;
        turns->touched++;
        if (++forgotten % FORGET_STEP == 0) {
            (void)turn();
        }
    }
    settle();
}

/* Whole segments. */
static bool first_half(uint64_t idx)
{
    return idx < turns->count / 2;
}

static bool every_second(uint64_t idx)
{
    return idx % 2 == 1;
}

/* Of those left every second: a quarter of each segment stays, and all are rewritten. */
static bool every_fourth(uint64_t idx)
{
    return idx % 4 == 2;
}

/* Rows. */

static void rows_end(struct kvb_report *report, const char *what)
{
    char params[64];
    double us = (double)turns->longest_ns / 1000.0;
    double ns = (double)turns->total_ns / (double)turns->touched;
    struct kvb_row longest = {.what = what,
        .variant = "longest turn",
        .params = params,
        .value = us,
        .low = us,
        .high = us,
        .unit = "us",
        .goal = {US_MAX, US_WANTED, true}};
    struct kvb_row each = {.what = what,
        .variant = "loop, by record",
        .params = params,
        .value = ns,
        .low = ns,
        .high = ns,
        .unit = "ns"};

    (void)snprintf(params, sizeof(params), "%llu records", (unsigned long long)turns->count);
    kvb_report_row(report, &longest);
    kvb_report_row(report, &each);
    turns->longest_ns = turns->total_ns = turns->touched = 0;
}

static void run(struct kvb_report *report)
{
    struct kvd_cold_segment_options options = {.dir = "/cold",
        .limit_bytes = (uint64_t)12 << 30,
        .segment_bytes = SEGMENT_BYTES,
        .queue_bytes = (uint64_t)1 << 30};
    struct kvd_cold_found found;
    struct kvd_cold_stats stats;

    int err = kvd_cold_segment_open(
        turns->io, turns->workers, &turns->budget, &options, &found, &turns->cold);
    KVARN_ASSERT(err == 0);
    settle();
    turns->longest_ns = turns->total_ns = turns->touched = 0;
    all_put();
    rows_end(report, "put");
    some_forget(first_half);
    rows_end(report, "remove the first half");
    some_forget(every_second);
    rows_end(report, "punch every second of the rest");
    some_forget(every_fourth);
    turns->cold->ops->stats(turns->cold, &stats);
    KVARN_ASSERT(stats.rewritten_bytes > 0);
    rows_end(report, "rewrite the fourth that is left");
    turns->cold->ops->destroy(turns->cold);
}

void kvb_cold_turns(struct kvb_report *report, uint64_t count)
{
    struct kvd_workers_options options = {.thread_count = 0};

    turns = calloc(1, sizeof(*turns));
    KVARN_ASSERT(turns != NULL);
    turns->count = count;
    turns->records = calloc(count, sizeof(struct kvd_cold_record *));
    KVARN_ASSERT(turns->records != NULL);
    TAILQ_INIT(&turns->ops_waiting);
    turns->fake = kvd_io_fake_create(1);
    turns->io = kvd_io_fake_io(turns->fake);
    kvd_budget_init(&turns->budget, (uint64_t)1 << 34);
    turns->fake_ops = turns->io->ops;
    turns->ops = *turns->fake_ops;
    turns->ops.timer_create = timed_create;
    turns->ops.file_submit = thin_submit;
    turns->ops.file_run = thin_run;
    int err = kvd_workers_create(turns->io, &options, &turns->workers);
    KVARN_ASSERT(err == 0);
    turns->io->ops = &turns->ops;
    run(report);
    turns->io->ops = turns->fake_ops;
    kvd_workers_destroy(turns->workers);
    turns->io->ops->destroy(turns->io);
    for (unsigned i = 0; i < FILES_MAX; i++) {
        if (turns->files[i].is_there) {
            free(turns->files[i].kept);
        }
    }
    free(turns->records);
    free(turns);
    turns = NULL;
}
