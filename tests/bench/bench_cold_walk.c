/*
 * kvarn-bench cold, what a client sees: two daemons with the same session on disk, one of which
 * reads ahead. A walk reads block after block, all layers of each, and waits for every answer; an
 * attention over the whole session waits for all of its blocks at once.
 *
 * Times are of the wall clock, samples of the competitors alternate. "disk": the files' pages are
 * dropped from the page cache before each sample, as far as the system heeds posix_fadvise().
 * Thread: one.
 */
#include "tests/bench/bench_cold_walk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "kvarn/client.h"
#include "tests/bench/link.h"
#include "tests/bench/peers.h"

#define LAYERS    8u
#define HEADS     8u
#define DIM       128u
#define GROUP     128u
#define CHUNK     8u /* blocks of one append */
#define NAME      "walk"
#define SIDES     2
#define WRITTEN_S 30 /* that a side has to write its blocks: far more than it takes */

/* One daemon and what it holds. */
struct side {
    struct kvb_daemon daemon;
    struct kvarn_client *client; /* owned */
    struct kvarn_session *session;
    char dir[300];
};

struct walk {
    struct kvb_report *report;
    struct side sides[SIDES];
    uint32_t blocks;
    uint64_t bytes; /* of its records */
};

static void must(const struct side *side, int err, const char *what)
{
    if (err != 0) {
        kvb_die(what, kvarn_client_error(side->client));
    }
}

static double now_s(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static uint64_t counter(const struct side *side, const char *name)
{
    struct kvarn_stats_result stats;

    must(side, kvarn_client_stats(side->client, &stats), "stats");
    for (size_t i = 0; i < stats.counter_count; i++) {
        if (strcmp(stats.counters[i].name, name) == 0) {
            return stats.counters[i].value;
        }
    }
    kvb_die("stats", name);
}

static void side_fill(struct walk *walk, struct side *side, const uint16_t *rows)
{
    const struct kvarn_layer_group layers = {.layers = LAYERS, .kv_heads = HEADS, .k_dim = DIM};
    const struct kvarn_shape model = {.model = "walk",
        .layer_groups = &layers,
        .layer_group_count = 1,
        .group = GROUP,
        .k_bits = 2,
        .v_bits = 2};
    struct kvarn_register_shape_result shape;
    const struct kvarn_span span = {
        rows, (size_t)CHUNK * GROUP * LAYERS * HEADS * 2 * DIM * sizeof(*rows)};

    must(side, kvarn_client_register_shape(side->client, &model, &shape), "shape");
    const struct kvarn_open_session_args open = {.name = NAME, .shape_id = shape.shape_id};
    must(side, kvarn_client_open_session(side->client, &open, &side->session, NULL), "open");
    for (uint32_t b = 0; b < walk->blocks; b += CHUNK) {
        const struct kvarn_append_args append = {.session = side->session,
            .layer_count = LAYERS,
            .start = (uint64_t)b * GROUP,
            .token_count = CHUNK * GROUP,
            .rotated = true,
            .payload = &span,
            .payload_count = 1};
        must(side, kvarn_client_append(side->client, &append, NULL), "append");
    }
    double end = now_s() + WRITTEN_S;
    while (counter(side, "cold_blocks_written") < walk->blocks) {
        if (now_s() > end) {
            kvb_die("the cold tier", "it has not written the blocks in time");
        }
    }
}

static void side_start(struct walk *walk, unsigned idx, const char *parent, const uint16_t *rows)
{
    struct side *side = &walk->sides[idx];
    char error[KVARN_CLIENT_ERROR_MAX];
    const char *extra[] = {
        "--cold-dir", side->dir, "--cold-read-ahead", idx == 0 ? "0" : "16", NULL};

    (void)snprintf(
        side->dir, sizeof(side->dir), "%s/kvarn-bench-walk-%d-%u", parent, (int)getpid(), idx);
    kvb_daemon_start_with(&side->daemon, KVB_KVARND, "2GiB", extra);
    if (kvarn_client_connect(side->daemon.unix_address, NULL, &side->client, error) != 0) {
        kvb_die("the daemon", error);
    }
    side_fill(walk, side, rows);
}

/* Call back with the path of each file of the side's folder. */
static void files_each(const struct side *side, void (*cb)(const char *path))
{
    DIR *dir = opendir(side->dir);
    const struct dirent *entry;
    char path[600];

    if (dir == NULL) {
        kvb_die(side->dir, strerror(errno));
    }
    while ((entry = readdir(dir)) != NULL) {
        if (entry->d_name[0] != '.') {
            (void)snprintf(path, sizeof(path), "%s/%s", side->dir, entry->d_name);
            cb(path);
        }
    }
    (void)closedir(dir);
}

static void file_cool(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd >= 0) {
        (void)fdatasync(fd);
        (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        (void)close(fd);
    }
}

static void file_remove(const char *path)
{
    (void)unlink(path);
}

static void side_stop(struct side *side)
{
    kvarn_client_destroy(side->client);
    kvb_daemon_stop(&side->daemon);
    files_each(side, file_remove);
    (void)rmdir(side->dir);
}

/* Take all from memory; `is_cool`: from the page cache, too. */
static void side_evict(const struct walk *walk, struct side *side, bool is_cool)
{
    const struct kvarn_evict_args args = {.name = NAME, .blocks = walk->blocks};
    struct kvarn_evict_result result;

    must(side, kvarn_client_evict(side->client, &args, &result), "evict");
    if (result.missing_last - result.missing_first != (uint64_t)walk->blocks * GROUP) {
        kvb_die("evict", "some of it is in memory still");
    }
    if (is_cool) {
        files_each(side, file_cool);
    }
}

/* Block after block. Returns seconds. */
static double walk_run(const struct walk *walk, struct side *side)
{
    double start = now_s();

    for (uint32_t b = 0; b < walk->blocks; b++) {
        const struct kvarn_read_blocks_args args = {.session = side->session,
            .layer_count = LAYERS,
            .token_first = (uint64_t)b * GROUP,
            .token_last = (uint64_t)(b + 1) * GROUP,
            .stored = true};
        must(side, kvarn_client_read_blocks(side->client, &args, NULL), "read");
    }
    return now_s() - start;
}

/* All blocks for one answer. Returns seconds. */
static double attend_run(const struct walk *walk, struct side *side)
{
    static const float q[HEADS * DIM];
    const struct kvarn_span span = {q, sizeof(q)};
    struct kvarn_attend_item item = {.session = side->session,
        .query_tokens = 1,
        .position = KVARN_TOKEN_DEFAULT,
        .token_last = KVARN_TOKEN_DEFAULT};
    const struct kvarn_attend_args args = {.params = {.q_heads = HEADS, .q_dtype = KVARN_F32},
        .items = &item,
        .item_count = 1,
        .payload = &span,
        .payload_count = 1};
    struct kvarn_attend_result result;
    double start = now_s();

    (void)walk;
    must(side, kvarn_client_attend(side->client, &args, &result), "attend");
    must(side, result.items[0].status.err, "attend");
    return now_s() - start;
}

static void ratio_row(struct walk *walk, const char *what, const char *variant,
    double a[KVB_SAMPLES], double b[KVB_SAMPLES])
{
    struct kvb_stats ratio, first, second;
    double ratios[KVB_SAMPLES];
    char note[80];

    for (unsigned i = 0; i < KVB_SAMPLES; i++) {
        ratios[i] = a[i] / b[i];
    }
    kvb_stats_take(ratios, &ratio);
    kvb_stats_take(a, &first);
    kvb_stats_take(b, &second);
    double mb = (double)walk->bytes / 1e6;
    (void)snprintf(
        note, sizeof(note), "%.0f against %.0f MB/s", mb / second.median, mb / first.median);
    kvb_report_row(walk->report, &(struct kvb_row){.what = what,
                                     .variant = variant,
                                     .params = "8 layers x 76 KiB a block",
                                     .value = ratio.median,
                                     .low = ratio.low,
                                     .high = ratio.high,
                                     .unit = "x",
                                     .note = note});
}

static void rows_run(struct walk *walk, bool is_cool)
{
    double walks[SIDES][KVB_SAMPLES], attends[KVB_SAMPLES];
    const char *variant = is_cool ? "disk" : "page cache";

    for (unsigned s = 0; s < KVB_SAMPLES; s++) {
        for (unsigned turn = 0; turn < SIDES; turn++) {
            unsigned who = (turn + s) % SIDES;
            side_evict(walk, &walk->sides[who], is_cool);
            walks[who][s] = walk_run(walk, &walk->sides[who]);
        }
        side_evict(walk, &walk->sides[0], is_cool);
        attends[s] = attend_run(walk, &walk->sides[0]);
    }
    double plain[KVB_SAMPLES];
    memcpy(plain, walks[0], sizeof(plain));
    ratio_row(walk, "walk, read ahead / not", variant, walks[0], walks[1]);
    ratio_row(walk, "all at once (attend) / walk, not ahead", variant, plain, attends);
}

void kvb_cold_walk(struct kvb_report *report, const char *parent)
{
    static struct walk walk;
    size_t values = (size_t)CHUNK * GROUP * LAYERS * HEADS * 2 * DIM;
    uint16_t *rows = kvb_alloc(values * sizeof(*rows));
    uint32_t state = 1;

    walk = (struct walk){.report = report, .blocks = report->is_quick ? 16 : 64};
    for (size_t i = 0; i < values; i++) { /* halves of +-[1, 2) */
        state = state * 1664525u + 1013904223u;
        rows[i] = (uint16_t)(0x3c00u | (state >> 16 & 0x83ffu));
    }
    for (unsigned i = 0; i < SIDES; i++) {
        side_start(&walk, i, parent, rows);
    }
    free(rows);
    side_evict(&walk, &walk.sides[0], false);
    uint64_t before = counter(&walk.sides[0], "cold_read_bytes");
    (void)attend_run(&walk, &walk.sides[0]);
    walk.bytes = counter(&walk.sides[0], "cold_read_bytes") - before;
    kvb_report_table(report, "a session on disk, through a socket, wall clock");
    rows_run(&walk, true);
    rows_run(&walk, false);
    for (unsigned i = 0; i < SIDES; i++) {
        side_stop(&walk.sides[i]);
    }
}
