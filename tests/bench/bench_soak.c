/*
 * kvarn-bench soak: a daemon of its own is filled beyond its limit, emptied and filled again with
 * pages of other sizes, some sessions staying from each cycle to the next. Its resident memory,
 * measured by the kernel after every append, must stay within the limit + 10 %, and not grow from
 * cycle to cycle.
 *
 * Figures are of the whole run: the quartiles of a row are its value.
 */
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kvarn/client.h"
#include "lib/base/assert.h"
#include "server/config/config.h"
#include "tests/bench/bench.h"
#include "tests/support/rng.h"

#define TOKENS        1024 /* of a session */
#define SHAPES        10
#define MIXED         3   /* shapes of one cycle */
#define OVERFILL      1.2 /* of the limit */
#define KEPT_ONE_IN   25
#define CYCLES_MAX    10000
#define SESSIONS_MAX  100000
#define PAYLOAD_BYTES ((size_t)8 * TOKENS * 2 * 256 * sizeof(uint16_t))

/* What pages are cut from: most keep rows (a sink of all tokens), so that filling is fast. */
static const struct soak_shape {
    uint32_t kv_heads, k_dim, group, sink_tokens;
} soak_shapes[SHAPES] = {
    {1, 64, 128, TOKENS},
    {2, 64, 64, TOKENS},
    {3, 80, 128, TOKENS},
    {4, 96, 64, TOKENS},
    {8, 128, 128, TOKENS},
    {5, 128, 128, TOKENS},
    {2, 192, 128, TOKENS},
    {7, 256, 64, TOKENS},
    {8, 128, 128, 128},
    {4, 64, 64, 64},
};

struct soak {
    const char *daemon_path;
    uint64_t limit_bytes;
    unsigned cycles;
    pid_t pid;
    char folder[64];
    struct kvarn_client *client;
    uint32_t shape_ids[SHAPES];
    uint16_t *payload; /* PAYLOAD_BYTES */
    struct kvt_rng rng;
    char kept[SESSIONS_MAX / 100][32]; /* names that stay for one more cycle */
    size_t kept_count;
    uint64_t sessions, appended_bytes;
    uint64_t rss_max, lowered_max;
    double *cycle_rss; /* most of each cycle */
};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "kvarn-bench soak: %s: %s\n", what, why);
    exit(1);
}

/* Start the daemon and wait for its first line. */
static void daemon_start(struct soak *soak, char *ret_address, size_t address_bytes)
{
    char limit[32], socket_path[80], line[160] = "";
    int fds[2];

    (void)snprintf(soak->folder, sizeof(soak->folder), "/tmp/kvarn-soak-XXXXXX");
    if (mkdtemp(soak->folder) == NULL || pipe(fds) != 0) {
        die("set-up", "no folder or no pipe");
    }
    (void)snprintf(socket_path, sizeof(socket_path), "%s/sock", soak->folder);
    (void)snprintf(limit, sizeof(limit), "%" PRIu64, soak->limit_bytes);
    soak->pid = fork();
    if (soak->pid == 0) {
        (void)dup2(fds[1], STDOUT_FILENO);
        (void)close(fds[0]);
        (void)execl(soak->daemon_path, "kvarnd", "--listen-unix", socket_path, "--memory-limit",
            limit, "--log-level", "warn", (char *)NULL);
        _exit(127);
    }
    (void)close(fds[1]);
    FILE *out = fdopen(fds[0], "r");
    if (soak->pid < 0 || out == NULL || fgets(line, sizeof(line), out) == NULL ||
        strncmp(line, "kvarnd ready", 12) != 0) {
        die(soak->daemon_path, "it did not say that it is ready");
    }
    (void)fclose(out);
    (void)snprintf(ret_address, address_bytes, "unix:%s", socket_path);
}

static void daemon_stop(struct soak *soak)
{
    int status = 0;

    kvarn_client_destroy(soak->client);
    (void)kill(soak->pid, SIGTERM);
    if (waitpid(soak->pid, &status, 0) != soak->pid || status != 0) {
        die("the daemon", "it did not end well");
    }
    (void)rmdir(soak->folder);
}

static uint64_t daemon_rss(const struct soak *soak)
{
    unsigned long long all = 0, resident = 0;
    char path[48];

    (void)snprintf(path, sizeof(path), "/proc/%d/statm", (int)soak->pid);
    FILE *file = fopen(path, "re");
    if (file == NULL || fscanf(file, "%llu %llu", &all, &resident) != 2) {
        die(path, "no figures");
    }
    (void)fclose(file);
    return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t counter(struct soak *soak, const char *name)
{
    struct kvarn_stats_result stats;

    if (kvarn_client_stats(soak->client, &stats) != 0) {
        die("Stats", kvarn_client_error(soak->client));
    }
    for (size_t i = 0; i < stats.counter_count; i++) {
        if (strcmp(stats.counters[i].name, name) == 0) {
            return stats.counters[i].value;
        }
    }
    die(name, "no such counter");
    return 0;
}

static void shapes_register(struct soak *soak)
{
    for (unsigned i = 0; i < SHAPES; i++) {
        const struct soak_shape *from = &soak_shapes[i];
        struct kvarn_layer_group group = {
            .layers = 1, .kv_heads = from->kv_heads, .k_dim = from->k_dim, .v_dim = from->k_dim};
        struct kvarn_register_shape_result result;
        struct kvarn_shape shape = {.model = "soak",
            .layer_groups = &group,
            .layer_group_count = 1,
            .group = from->group,
            .k_bits = 2,
            .v_bits = 2,
            .sink_tokens = from->sink_tokens};
        if (kvarn_client_register_shape(soak->client, &shape, &result) != 0) {
            die("RegisterShape", kvarn_client_error(soak->client));
        }
        soak->shape_ids[i] = result.shape_id;
    }
}

/* One session of a shape, filled; returns its bytes as rows. */
static uint64_t session_fill(struct soak *soak, const char *name, unsigned shape_idx)
{
    const struct soak_shape *shape = &soak_shapes[shape_idx];
    uint64_t bytes = (uint64_t)shape->kv_heads * TOKENS * 2 * shape->k_dim * sizeof(uint16_t);
    struct kvarn_open_session_args open = {.name = name,
        .shape_id = soak->shape_ids[shape_idx],
        .mode = KVARN_OPEN_CREATE,
        .encoder = KVARN_ENCODER_REFERENCE};
    struct kvarn_span span = {soak->payload, bytes};
    struct kvarn_append_args append = {
        .layer_count = 1, .token_count = TOKENS, .payload = &span, .payload_count = 1};
    struct kvarn_session *session = NULL;

    KVARN_ASSERT(bytes <= PAYLOAD_BYTES);
    if (kvarn_client_open_session(soak->client, &open, &session, NULL) != 0) {
        die("OpenSession", kvarn_client_error(soak->client));
    }
    append.session = session;
    if (kvarn_client_append(soak->client, &append, NULL) != 0 ||
        kvarn_client_close_session(soak->client, session) != 0) {
        die("Append", kvarn_client_error(soak->client));
    }
    soak->sessions++;
    soak->appended_bytes += bytes;
    return bytes;
}

static void session_drop(struct soak *soak, const char *name)
{
    if (kvarn_client_drop_name(soak->client, name) != 0) {
        die("DropSession", kvarn_client_error(soak->client));
    }
}

/* Fill beyond the limit with sessions of a few shapes, then drop all but some. */
static void cycle_run(struct soak *soak, unsigned cycle)
{
    static char names[SESSIONS_MAX][32];
    size_t old_count = soak->kept_count, count = 0;
    unsigned mixed[MIXED];
    uint64_t bytes = 0, rss = 0;

    for (unsigned i = 0; i < MIXED; i++) {
        mixed[i] = kvt_rng_below(&soak->rng, SHAPES);
    }
    while ((double)bytes < OVERFILL * (double)soak->limit_bytes && count < SESSIONS_MAX) {
        (void)snprintf(names[count], sizeof(names[count]), "c%u-%zu", cycle, count);
        bytes += session_fill(soak, names[count], mixed[kvt_rng_below(&soak->rng, MIXED)]);
        count++;
        uint64_t now = daemon_rss(soak);
        rss = now > rss ? now : rss;
    }
    soak->rss_max = rss > soak->rss_max ? rss : soak->rss_max;
    uint64_t lowered = counter(soak, "evict_lowered_bytes");
    soak->lowered_max = lowered > soak->lowered_max ? lowered : soak->lowered_max;
    soak->cycle_rss[cycle] = (double)rss;
    for (size_t i = 0; i < old_count; i++) {
        session_drop(soak, soak->kept[i]);
    }
    soak->kept_count = 0;
    for (size_t i = 0; i < count; i++) {
        if (kvt_rng_below(&soak->rng, KEPT_ONE_IN) == 0 &&
            soak->kept_count < sizeof(soak->kept) / sizeof(soak->kept[0])) {
            memcpy(soak->kept[soak->kept_count++], names[i], sizeof(names[i]));
        } else {
            session_drop(soak, names[i]);
        }
    }
}

/* Least squares over the last half of the cycles: percent of the mean a cycle. */
static double slope_percent(const double *values, unsigned count)
{
    unsigned first = count / 2, n = count - first;
    double mean_x = (n - 1) / 2.0, mean_y = 0.0, up = 0.0, down = 0.0;

    for (unsigned i = 0; i < n; i++) {
        mean_y += values[first + i] / n;
    }
    for (unsigned i = 0; i < n; i++) {
        up += (i - mean_x) * (values[first + i] - mean_y);
        down += (i - mean_x) * (i - mean_x);
    }
    return down > 0.0 ? 100.0 * up / down / mean_y : 0.0;
}

static void soak_row(struct kvb_report *report, const struct soak *soak, const char *what,
    double value, const char *unit, double must)
{
    char params[64];
    (void)snprintf(params, sizeof(params), "%u cycles, %" PRIu64 " MiB", soak->cycles,
        soak->limit_bytes >> 20);
    struct kvb_row row = {.what = what,
        .variant = "kvarnd",
        .params = params,
        .value = value,
        .low = value,
        .high = value,
        .unit = unit,
        .goal = {.must = must, .is_limit = true}};

    kvb_report_row(report, &row);
}

static void soak_report(struct kvb_report *report, struct soak *soak)
{
    double limit = (double)soak->limit_bytes;
    /* A slope of a few short cycles is noise: it counts from 40 cycles on. */
    double slope_must = soak->cycles >= 40 ? 0.1 : KVB_NO_GOAL;

    kvb_report_table(
        report, "Soak: filled beyond the limit, emptied, filled with other page sizes");
    soak_row(report, soak, "VmRSS, most, of the limit", 100.0 * (double)soak->rss_max / limit, "%",
        110.0);
    soak_row(report, soak, "VmRSS, slope of the last half",
        slope_percent(soak->cycle_rss, soak->cycles), "%/cycle", slope_must);
    soak_row(report, soak, "marks of eviction, lowered most by",
        (double)soak->lowered_max / (1 << 20), "MiB", KVB_NO_GOAL);
    soak_row(
        report, soak, "appended", (double)soak->appended_bytes / (1 << 30), "GiB", KVB_NO_GOAL);
    soak_row(report, soak, "sessions", (double)soak->sessions, "", KVB_NO_GOAL);
    soak_row(
        report, soak, "RETRY_LATER", (double)counter(soak, "refused_retry_later"), "", KVB_NO_GOAL);
    soak_row(report, soak, "NO_SPACE", (double)counter(soak, "refused_no_space"), "", 0.5);
    soak_row(report, soak, "pages moved to other chunks", (double)counter(soak, "pages_moved"), "",
        KVB_NO_GOAL);
    soak_row(report, soak, "blocks evicted",
        (double)(counter(soak, "evicted_blocks_watermark") +
                 counter(soak, "evicted_blocks_reservation")),
        "", KVB_NO_GOAL);
}

static int options_parse(struct soak *soak, int argc, char **argv)
{
    for (int i = 0; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--cycles") == 0) {
            soak->cycles = (unsigned)strtoul(argv[i + 1], NULL, 10);
        } else if (strcmp(argv[i], "--kvarnd") == 0) {
            soak->daemon_path = argv[i + 1];
        } else if (strcmp(argv[i], "--memory-limit") != 0 ||
                   kvd_config_parse_size(argv[i + 1], &soak->limit_bytes) != 0) {
            return -1;
        }
    }
    return argc % 2 == 0 && soak->cycles > 0 && soak->cycles <= CYCLES_MAX ? 0 : -1;
}

int kvb_soak(struct kvb_report *report, int argc, char **argv)
{
    static struct soak soak = {
        .daemon_path = KVB_KVARND, .limit_bytes = UINT64_C(1) << 30, .cycles = 200};
    char address[96], why[KVARN_CLIENT_ERROR_MAX];
    uint64_t lag_us = 0;

    if (options_parse(&soak, argc, argv) != 0) {
        fputs(
            "kvarn-bench soak: expected --cycles N, --memory-limit SIZE, --kvarnd PATH\n", stderr);
        return 2;
    }
    soak.rng.state = 1;
    soak.payload = kvb_alloc(PAYLOAD_BYTES);
    soak.cycle_rss = kvb_alloc(soak.cycles * sizeof(double));
    for (size_t i = 0; i < PAYLOAD_BYTES / sizeof(uint16_t); i++) {
        soak.payload[i] = kvarn_half_from_f32((float)kvt_rng_unit(&soak.rng) - 0.5f);
    }
    daemon_start(&soak, address, sizeof(address));
    if (kvarn_client_connect(address, NULL, &soak.client, why) != 0) {
        die(address, why);
    }
    shapes_register(&soak);
    for (unsigned cycle = 0; cycle < soak.cycles; cycle++) {
        cycle_run(&soak, cycle);
        uint64_t now_us = counter(&soak, "loop_lag_us_max");
        lag_us = now_us > lag_us ? now_us : lag_us;
    }
    soak_report(report, &soak);
    /* By the clock on the wall, so that others' use of the machine is in it: no goal. */
    soak_row(report, &soak, "longest turn of the loop", (double)lag_us / 1e3, "ms", KVB_NO_GOAL);
    daemon_stop(&soak);
    free(soak.payload);
    free(soak.cycle_rss);
    return 0;
}
