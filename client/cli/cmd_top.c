/*
 * kvarnctl top: what the server does, refreshed each second, from Stats and ListSessions.
 *
 * Plain ANSI, no terminal library. q, or the end of stdin, ends it; so does a screen that cannot be
 * written.
 */
#include <inttypes.h>
#include <poll.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "client/cli/ctl.h"
#include "client/cli/printable.h"
#include "lib/base/assert.h"

#define OPS_MAX       32 /* more than there are calls */
#define SESSIONS_MAX  20 /* shown */
#define KEY_INTERRUPT 3  /* ^C */
#define CLEAR         "\x1b[H\x1b[2J"

/* Counts of the screen before, to show rates. */
struct top {
    bool has_before;
    uint64_t count_before[OPS_MAX];
    double seconds;
};

static uint64_t counter_find(const struct kvarn_stats_result *stats, const char *name)
{
    for (size_t i = 0; i < stats->counter_count; i++) {
        if (strcmp(stats->counters[i].name, name) == 0) {
            return stats->counters[i].value;
        }
    }
    return 0;
}

static void stats_show(struct ctl *ctl, struct top *top, const struct kvarn_stats_result *stats)
{
    char used[CTL_BYTES_TEXT_MAX];
    char limit[CTL_BYTES_TEXT_MAX];
    char version[PRINTABLE_MAX];

    printf("kvarnd %s  memory %s of %s  sessions %" PRIu64 "  connections %" PRIu64
           "  backlog %" PRIu64 "\n\n",
        printable_text(kvarn_client_server(ctl->client)->server_version, version, sizeof version),
        ctl_bytes_text(counter_find(stats, "memory_used_bytes"), used),
        ctl_bytes_text(counter_find(stats, "memory_limit_bytes"), limit),
        counter_find(stats, "sessions_open"), counter_find(stats, "connections_open"),
        counter_find(stats, "workers_backlog"));
    printf(
        "%-16s %10s %10s %8s %10s %10s\n", "CALL", "COUNT", "per s", "ERRORS", "p50 us", "p99 us");
    for (size_t i = 0; i < stats->op_count && i < OPS_MAX; i++) {
        const struct kvarn_op_stats *op = &stats->ops[i];
        double rate = 0.0;

        if (top->has_before && op->count >= top->count_before[i]) {
            rate = (double)(op->count - top->count_before[i]) / top->seconds;
        }
        top->count_before[i] = op->count;
        if (op->count != 0) {
            printf("%-16s %10" PRIu64 " %10.1f %8" PRIu64 " %10" PRIu64 " %10" PRIu64 "\n", op->op,
                op->count, rate, op->errors, op->latency_us_p50, op->latency_us_p99);
        }
    }
    top->has_before = true;
}

static void sessions_show(const struct kvarn_list_sessions_result *list)
{
    char text[CTL_BYTES_TEXT_MAX];
    char name[PRINTABLE_MAX];

    printf("\n%-32s %10s %12s %8s %11s\n", "SESSION", "TOKENS", "BYTES", "HANDLES", "IDLE");
    for (size_t i = 0; i < list->session_count; i++) {
        const struct kvarn_session_summary *s = &list->sessions[i];

        printf("%-32.32s %10" PRIu64 " %12s %8" PRIu32 " %9.1f s\n",
            printable_text(s->name, name, sizeof name), s->length, ctl_bytes_text(s->bytes, text),
            s->handles, (double)s->idle_ms / 1000.0);
    }
    if (list->more) {
        printf("... and more\n");
    }
}

static void screen_json(struct ctl *ctl, const struct kvarn_stats_result *stats)
{
    json_u64(&ctl->json, "memory_used_bytes", counter_find(stats, "memory_used_bytes"));
    json_u64(&ctl->json, "memory_limit_bytes", counter_find(stats, "memory_limit_bytes"));
    json_u64(&ctl->json, "sessions_open", counter_find(stats, "sessions_open"));
    json_u64(&ctl->json, "connections_open", counter_find(stats, "connections_open"));
    json_object_open(&ctl->json, "calls");
    for (size_t i = 0; i < stats->op_count; i++) {
        json_u64(&ctl->json, stats->ops[i].op, stats->ops[i].count);
    }
    json_object_close(&ctl->json);
}

/* One screen. The first result's memory is the client's: it is shown before the second call. */
static int screen_show(struct ctl *ctl, struct top *top)
{
    const struct kvarn_list_sessions_args args = {.limit = SESSIONS_MAX};
    struct kvarn_list_sessions_result list;
    struct kvarn_stats_result stats;
    int err = kvarn_client_stats(ctl->client, &stats);

    if (err != 0) {
        return ctl_refused(ctl, err);
    }
    if (ctl->is_json) {
        json_object_open(&ctl->json, NULL);
        screen_json(ctl, &stats);
    } else {
        stats_show(ctl, top, &stats);
    }
    err = kvarn_client_list_sessions(ctl->client, &args, &list);
    if (err != 0) {
        return ctl_refused(ctl, err);
    }
    if (!ctl->is_json) {
        sessions_show(&list);
        return CTL_OK;
    }
    json_array_open(&ctl->json, "sessions");
    for (size_t i = 0; i < list.session_count; i++) {
        json_text(&ctl->json, NULL, list.sessions[i].name);
    }
    json_array_close(&ctl->json);
    json_object_close(&ctl->json);
    return CTL_OK;
}

/* Wait for a key or the interval; true when it is time to end. */
static bool wait_key(int interval_ms)
{
    struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
    char key;

    if (poll(&p, 1, interval_ms) <= 0) {
        return false;
    }
    return read(STDIN_FILENO, &key, 1) != 1 || key == 'q' || key == 'Q' || key == KEY_INTERRUPT;
}

static int screens_show(struct ctl *ctl, struct top *top)
{
    for (;;) {
        int code;

        printf("%s", CLEAR);
        code = screen_show(ctl, top);
        if (code != CTL_OK) {
            return code;
        }
        if (fflush(stdout) != 0) {
            return CTL_FAILED;
        }
        if (wait_key((int)(top->seconds * 1000.0))) {
            return CTL_OK;
        }
    }
}

int cmd_top(struct ctl *ctl)
{
    struct top top = {.seconds = (double)ctl_number(ctl, "interval-ms") / 1000.0};
    struct termios before;
    struct termios raw;
    bool has_terminal;
    int code;

    if (ctl_number(ctl, "interval-ms") == 0 || ctl_number(ctl, "interval-ms") > 3600000) {
        return ctl_usage(ctl, "--interval-ms: expected 1 to 3600000");
    }
    if (ctl_is_set(ctl, "once") || ctl->is_json) {
        return screen_show(ctl, &top);
    }
    KVARN_ASSERT(!ctl->is_json);
    has_terminal = tcgetattr(STDIN_FILENO, &before) == 0;
    if (has_terminal) {
        raw = before;
        /* ^C comes as a key, so that the terminal is always put back. */
        raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO | ISIG);
        has_terminal = tcsetattr(STDIN_FILENO, TCSANOW, &raw) == 0;
    }
    code = screens_show(ctl, &top);
    if (has_terminal) {
        (void)tcsetattr(STDIN_FILENO, TCSANOW, &before);
    }
    return code;
}
