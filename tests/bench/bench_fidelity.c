/*
 * kvarn-bench fidelity: error of each encoder on a real model's cache, beside FORMAT.md's bars, and
 * how far the attention weights that it gives are from exact K's.
 *
 * Errors are not timed: the quartiles of a row are its value.
 */
#include "tests/bench/bench.h"
#include "tests/support/fidelity.h"

/* Most of refined's divergence that aware may keep. */
#define AWARE_SHARE_MUST 0.60

struct bar {
    const char *encoder_name;
    enum kvarn_encoder encoder;
    const char *preset;
    double k, v, output; /* must stay at or below; KVB_NO_GOAL: none */
};

static const struct bar bars[] = {
    {"reference", KVARN_ENCODER_REFERENCE, "k2v2", KVB_NO_GOAL, KVB_NO_GOAL, KVB_NO_GOAL},
    {"refined", KVARN_ENCODER_REFINED, "k2v2", 0.042, 0.110, 0.018},
    {"aware", KVARN_ENCODER_AWARE, "k2v2", KVB_NO_GOAL, 0.110, 0.018},
    {"default", KVARN_ENCODER_DEFAULT, "k4v2", KVB_NO_GOAL, KVB_NO_GOAL, KVB_NO_GOAL},
    {"default", KVARN_ENCODER_DEFAULT, "k4v4", KVB_NO_GOAL, KVB_NO_GOAL, KVB_NO_GOAL},
};

static void error_row(struct kvb_report *report, const struct bar *bar, const char *what,
    const char *unit, double value, double must)
{
    struct kvb_row row = {.what = what,
        .variant = bar->encoder_name,
        .params = bar->preset,
        .value = value,
        .low = value,
        .high = value,
        .unit = unit,
        .goal = {.must = must, .is_limit = true}};

    kvb_report_row(report, &row);
}

/* aware's divergence as a share of refined's. */
static void share_row(struct kvb_report *report, double aware, double refined)
{
    const struct bar bar = {.encoder_name = "aware / refined", .preset = "k2v2"};

    error_row(report, &bar, "attention weights", "x", aware / refined, AWARE_SHARE_MUST);
}

int kvb_fidelity(struct kvb_report *report, int argc, char **argv)
{
    double kl[KVARN_ENCODER_AWARE + 1] = {0}; /* by encoder, k2v2 */

    (void)argv;
    if (argc != 0) {
        fputs("kvarn-bench fidelity: takes no arguments\n", stderr);
        return 2;
    }
    kvb_report_table(report, "Error on a real model's cache (tests/data/kv), lower is better");
    for (size_t i = 0; i < sizeof(bars) / sizeof(bars[0]); i++) {
        struct kvt_fidelity got;
        if (kvt_fidelity_measure(KVT_DATA_DIR, bars[i].encoder, bars[i].preset, &got) != 0) {
            return 1;
        }
        error_row(report, &bars[i], "K", "relMSE", got.k, bars[i].k);
        error_row(report, &bars[i], "V", "relMSE", got.v, bars[i].v);
        error_row(report, &bars[i], "attention output", "relMSE", got.output, bars[i].output);
        error_row(report, &bars[i], "attention weights", "KL", got.kl, KVB_NO_GOAL);
        kl[bars[i].encoder] = got.kl;
    }
    share_row(report, kl[KVARN_ENCODER_AWARE], kl[KVARN_ENCODER_REFINED]);
    return 0;
}
