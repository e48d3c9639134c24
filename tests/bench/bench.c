/* Timing of cases side by side, and the report's table and JSON. */
#include "tests/bench/bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kvarn/cpu.h"
#include "lib/base/assert.h"

#define REPEATS_MAX (1u << 24)

static double thread_seconds(void)
{
    struct timespec now;

    int err = clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    KVARN_ASSERT(err == 0);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void level_set(const char *level)
{
    char why[128];

    if (level != NULL && kvarn_cpu_init(level, why, sizeof(why)) != 0) {
        fprintf(stderr, "kvarn-bench: %s\n", why);
        exit(2);
    }
}

/* Seconds of one run, over `repeats` runs. */
static double case_sample(const struct kvb_case *item, uint32_t repeats)
{
    level_set(item->level);
    double began = thread_seconds();
    for (uint32_t i = 0; i < repeats; i++) {
        item->run(item->arg);
    }
    return (thread_seconds() - began) / repeats;
}

/* Warm up, and find how many runs take the sample's time. */
static void case_calibrate(struct kvb_case *item, double sample_ms)
{
    uint32_t repeats = 1;
    double seconds = case_sample(item, repeats);

    while (
        item->repeats == 0 && seconds * repeats < 1e-3 * sample_ms / 2 && repeats < REPEATS_MAX) {
        repeats *= 2;
        seconds = case_sample(item, repeats);
    }
    if (item->repeats == 0) {
        double wanted = ceil(1e-3 * sample_ms / fmax(seconds, 1e-9));
        item->repeats = (uint32_t)fmin(fmax(wanted, 1.0), (double)REPEATS_MAX);
    }
}

static int double_compare(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;

    return (x > y) - (x < y);
}

void kvb_stats_take(double samples[KVB_SAMPLES], struct kvb_stats *ret)
{
    qsort(samples, KVB_SAMPLES, sizeof(double), double_compare);
    *ret = (struct kvb_stats){.median = samples[KVB_SAMPLES / 2],
        .low = samples[KVB_SAMPLES / 4],
        .high = samples[KVB_SAMPLES - 1 - KVB_SAMPLES / 4]};
}

void kvb_time(struct kvb_case *cases, size_t count, double sample_ms)
{
    static double seconds[KVB_CASES_MAX][KVB_SAMPLES];
    char active[16];

    KVARN_ASSERT(count > 0 && count <= KVB_CASES_MAX);
    (void)snprintf(active, sizeof(active), "%s", kvarn_cpu_active());
    for (size_t i = 0; i < count; i++) {
        case_calibrate(&cases[i], sample_ms);
    }
    for (unsigned s = 0; s < KVB_SAMPLES; s++) {
        for (size_t i = 0; i < count; i++) {
            seconds[i][s] = case_sample(&cases[i], cases[i].repeats);
        }
    }
    for (size_t i = 0; i < count; i++) {
        kvb_stats_take(seconds[i], &cases[i].stats);
    }
    level_set(active);
}

void kvb_report_table(struct kvb_report *report, const char *title)
{
    (void)report;
    printf("\n%s\n%-34s %-18s %-26s %10s %21s %-8s %s\n", title, "what", "variant", "parameters",
        "median", "quartiles", "unit", "goal: must / stretch");
}

static bool is_met(const struct kvb_goal *goal, double value, double mark)
{
    return goal->is_limit ? value <= mark : value >= mark;
}

static const char *verdict_of(const struct kvb_goal *goal, double value)
{
    if (!is_met(goal, value, goal->must)) {
        return "MISSED";
    }
    if (goal->stretch == KVB_NO_GOAL) {
        return "met";
    }
    return is_met(goal, value, goal->stretch) ? "met, stretch met" : "met";
}

/* Texts here are our own: no character needs an escape. */
static void json_row(struct kvb_report *report, const struct kvb_row *row, const char *verdict)
{
    fprintf(report->json,
        "%s\n{\"what\": \"%s\", \"variant\": \"%s\", \"params\": \"%s\", \"unit\": \"%s\", "
        "\"median\": %.9g, \"q1\": %.9g, \"q3\": %.9g",
        report->rows == 0 ? "" : ",", row->what, row->variant, row->params, row->unit, row->value,
        row->low, row->high);
    if (row->goal.must != KVB_NO_GOAL) {
        fprintf(report->json, ", \"must\": %.9g, \"stretch\": %.9g, \"verdict\": \"%s\"",
            row->goal.must, row->goal.stretch, verdict);
    }
    if (row->note != NULL) {
        fprintf(report->json, ", \"note\": \"%s\"", row->note);
    }
    fputs("}", report->json);
}

void kvb_report_row(struct kvb_report *report, const struct kvb_row *row)
{
    bool has_goal = row->goal.must != KVB_NO_GOAL;
    const char *verdict = has_goal ? verdict_of(&row->goal, row->value) : "";

    printf("%-34s %-18s %-26s %10.4g [%9.4g %9.4g] %-8s", row->what, row->variant, row->params,
        row->value, row->low, row->high, row->unit);
    if (has_goal) {
        printf(" %s%.4g", row->goal.is_limit ? "<= " : ">= ", row->goal.must);
        if (row->goal.stretch != KVB_NO_GOAL) {
            printf(" / %.4g", row->goal.stretch);
        }
        printf(" %s", verdict);
    }
    printf("%s%s\n", row->note != NULL ? "  " : "", row->note != NULL ? row->note : "");
    (void)fflush(stdout);
    if (report->json != NULL) {
        json_row(report, row, verdict);
    }
    report->rows++;
    report->musts += has_goal;
    report->missed += has_goal && !is_met(&row->goal, row->value, row->goal.must);
}

void kvb_row_rate(struct kvb_row *row, const struct kvb_stats *stats, double work_per_run)
{
    row->value = work_per_run / stats->median;
    row->low = work_per_run / stats->high;
    row->high = work_per_run / stats->low;
}

void kvb_row_ratio(
    struct kvb_row *row, const struct kvb_stats *dividend, const struct kvb_stats *divisor)
{
    row->value = dividend->median / divisor->median;
    row->low = dividend->low / divisor->high;
    row->high = dividend->high / divisor->low;
}

size_t kvb_levels(const char *ret_levels[KVB_LEVELS_MAX])
{
    static const char *const names[KVB_LEVELS_MAX] = {"scalar", "neon", "avx2", "avx512"};
    size_t count = 0;

    for (size_t i = 0; i < KVB_LEVELS_MAX; i++) {
        if (kvarn_cpu_has(names[i])) {
            ret_levels[count++] = names[i];
        }
    }
    return count;
}

void *kvb_alloc(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);

    KVARN_ASSERT(memory != NULL);
    memset(memory, 0, bytes);
    return memory;
}
