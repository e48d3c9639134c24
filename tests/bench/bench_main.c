/*
 * kvarn-bench: speed and fidelity of libkvarn on this machine, each figure beside its goal.
 *
 * Exit codes: 0 done; 1 with --check, when a must was missed or nothing was measured; 2 usage.
 */
#include <stdlib.h>
#include <string.h>

#include "kvarn/cpu.h"
#include "tests/bench/bench.h"

#define SAMPLE_MS       20.0
#define SAMPLE_MS_QUICK 2.0
#define ARGS_MAX        32

struct command {
    const char *name;
    const char *summary;
    kvb_command_fn *run;
};

static const struct command commands[] = {
    {"attention", "attention on tiles against fp16, bf16, OpenBLAS and a plain read",
        kvb_attention},
    {"codec", "encode, decode and rotate: GB/s of fp16 per level and encoder", kvb_codec},
    {"cold", "the cold tier's files, beside plain sequential writes and reads", kvb_cold},
    {"costs", "what the daemon's loop reckons that kernels cost, beside what they do", kvb_costs},
    {"evict", "hit rates of eviction policies on a trace, beside the offline optimum", kvb_evict},
    {"server", "a daemon through sockets, beside raw senders, redis and bare kernels", kvb_server},
    {"sessions", "cost of opening, finding and copying sessions", kvb_sessions},
    {"fidelity", "error of K, V and attention output on a real model's cache", kvb_fidelity},
    {"scale", "attention on 1, 2, 4, ... threads at once", kvb_scale},
    {"soak", "resident memory of a daemon that is filled and emptied again and again", kvb_soak},
    {"turns", "how long the largest calls hold the daemon's loop", kvb_turns},
};

#define COMMAND_COUNT (sizeof(commands) / sizeof(commands[0]))

static int usage(FILE *out)
{
    fputs("usage: kvarn-bench COMMAND [--json FILE] [--check] [--quick] [arguments]\n"
          "  --json FILE  write all rows as a JSON array\n"
          "  --check      exit 1 when a must is missed; attention: only what has a goal\n"
          "  --quick      samples of 2 ms instead of 20 ms\n"
          "KVARN_CPU names the level of what has no level of its own. Commands:\n",
        out);
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].summary);
    }
    return out == stdout ? 0 : 2;
}

static const struct command *command_find(const char *name)
{
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(name, commands[i].name) == 0) {
            return &commands[i];
        }
    }
    return NULL;
}

/* Take the common options out; the rest is the command's. Returns its count, -1 for wrong usage. */
static int options_take(struct kvb_report *report, int argc, char **argv, char **rest)
{
    int count = 0;

    for (int i = 2; i < argc; i++) {
        if (strcmp(argv[i], "--check") == 0) {
            report->is_check = true;
        } else if (strcmp(argv[i], "--quick") == 0) {
            report->sample_ms = SAMPLE_MS_QUICK;
            report->is_quick = true;
        } else if (strcmp(argv[i], "--json") == 0 && i + 1 < argc && report->json == NULL) {
            report->json = fopen(argv[++i], "w");
            if (report->json == NULL) {
                perror(argv[i]);
                return -1;
            }
        } else if (count < ARGS_MAX) {
            rest[count++] = argv[i];
        } else {
            return -1;
        }
    }
    return count;
}

static int json_close(struct kvb_report *report)
{
    if (report->json == NULL) {
        return 0;
    }
    int failed = fputs("\n]\n", report->json) < 0;
    failed |= fclose(report->json) != 0;
    if (failed) {
        fputs("kvarn-bench: the JSON file could not be written\n", stderr);
    }
    return failed;
}

int main(int argc, char **argv)
{
    struct kvb_report report = {.sample_ms = SAMPLE_MS};
    char *rest[ARGS_MAX];
    char why[128];

    if (kvarn_cpu_init(NULL, why, sizeof(why)) != 0) {
        fprintf(stderr, "kvarn-bench: %s\n", why);
        return 2;
    }
    if (argc >= 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        return usage(stdout);
    }
    const struct command *command = argc < 2 ? NULL : command_find(argv[1]);
    int count = command == NULL ? -1 : options_take(&report, argc, argv, rest);
    if (count < 0) {
        return usage(stderr);
    }
    if (report.json != NULL) {
        fputs("[", report.json);
    }
    int rc = command->run(&report, count, rest);
    if (json_close(&report) != 0 && rc == 0) {
        rc = 1;
    }
    printf("\n%u rows, %u goals, %u missed\n", report.rows, report.musts, report.missed);
    if (rc == 0 && report.is_check && (report.missed > 0 || report.rows == 0)) {
        rc = 1;
    }
    return rc;
}
