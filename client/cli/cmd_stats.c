/* kvarnctl stats: the server's counters. */
#include <inttypes.h>
#include <string.h>

#include "client/cli/ctl.h"
#include "lib/base/assert.h"

static bool ends_with(const char *text, const char *end)
{
    size_t text_bytes = strlen(text);
    size_t end_bytes = strlen(end);

    return text_bytes >= end_bytes && strcmp(text + text_bytes - end_bytes, end) == 0;
}

static void ops_json(struct json *json, const struct kvarn_stats_result *stats)
{
    json_array_open(json, "ops");
    for (size_t i = 0; i < stats->op_count; i++) {
        const struct kvarn_op_stats *op = &stats->ops[i];

        json_object_open(json, NULL);
        json_text(json, "op", op->op);
        json_u64(json, "count", op->count);
        json_u64(json, "errors", op->errors);
        json_u64(json, "bytes_in", op->bytes_in);
        json_u64(json, "bytes_out", op->bytes_out);
        json_u64(json, "latency_us_p50", op->latency_us_p50);
        json_u64(json, "latency_us_p99", op->latency_us_p99);
        json_u64(json, "latency_us_max", op->latency_us_max);
        json_object_close(json);
    }
    json_array_close(json);
}

static void stats_json(struct json *json, const struct kvarn_stats_result *stats)
{
    KVARN_ASSERT(json->depth == 0);
    json_object_open(json, NULL);
    ops_json(json, stats);
    json_object_open(json, "counters");
    for (size_t i = 0; i < stats->counter_count; i++) {
        json_u64(json, stats->counters[i].name, stats->counters[i].value);
    }
    json_object_close(json);
    json_object_close(json);
}

/* A counter by who asks and what: "read_tokens_cold". 0 when a server has no such one. */
static uint64_t hits_counter(
    const struct kvarn_stats_result *stats, const char *who, const char *what)
{
    char name[64];

    (void)snprintf(name, sizeof name, "%s_tokens_%s", who, what);
    for (size_t i = 0; i < stats->counter_count; i++) {
        if (strcmp(stats->counters[i].name, name) == 0) {
            return stats->counters[i].value;
        }
    }
    return 0;
}

/* Where the tokens that were asked for came from. */
static void hits_print(const struct kvarn_stats_result *stats)
{
    static const char *const askers[] = {"read", "attend", "match"};
    static const char *const places[] = {"memory", "cold", "missed"};

    printf("%-16s %16s %10s %10s %10s\n", "TOKENS", "ASKED", "MEMORY", "COLD", "MISSED");
    for (size_t i = 0; i < sizeof askers / sizeof askers[0]; i++) {
        uint64_t asked = hits_counter(stats, askers[i], "asked");

        printf("%-16s %16" PRIu64, askers[i], asked);
        for (size_t j = 0; j < sizeof places / sizeof places[0]; j++) {
            uint64_t count = hits_counter(stats, askers[i], places[j]);

            printf(" %8.2f %%", asked == 0 ? 0.0 : 100.0 * (double)count / (double)asked);
        }
        printf("\n");
    }
    printf("\n");
}

static void stats_print(const struct kvarn_stats_result *stats)
{
    char in[CTL_BYTES_TEXT_MAX];
    char out[CTL_BYTES_TEXT_MAX];

    printf("%-16s %10s %8s %12s %12s %10s %10s %10s\n", "CALL", "COUNT", "ERRORS", "IN", "OUT",
        "p50 us", "p99 us", "max us");
    for (size_t i = 0; i < stats->op_count; i++) {
        const struct kvarn_op_stats *op = &stats->ops[i];

        printf("%-16s %10" PRIu64 " %8" PRIu64 " %12s %12s %10" PRIu64 " %10" PRIu64 " %10" PRIu64
               "\n",
            op->op, op->count, op->errors, ctl_bytes_text(op->bytes_in, in),
            ctl_bytes_text(op->bytes_out, out), op->latency_us_p50, op->latency_us_p99,
            op->latency_us_max);
    }
    printf("\n");
    hits_print(stats);
    for (size_t i = 0; i < stats->counter_count; i++) {
        const struct kvarn_counter *c = &stats->counters[i];

        printf("%-26s %16" PRIu64, c->name, c->value);
        if (ends_with(c->name, "_bytes") || strncmp(c->name, "bytes_", 6) == 0) {
            printf("  %s", ctl_bytes_text(c->value, in));
        }
        printf("\n");
    }
}

int cmd_stats(struct ctl *ctl)
{
    struct kvarn_stats_result stats;
    int err = kvarn_client_stats(ctl->client, &stats);

    if (err != 0) {
        return ctl_refused(ctl, err);
    }
    if (ctl->is_json) {
        stats_json(&ctl->json, &stats);
    } else {
        stats_print(&stats);
    }
    return CTL_OK;
}
