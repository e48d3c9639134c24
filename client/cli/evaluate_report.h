/*
 * What an evaluation found, and its table and JSON.
 *
 * Owner: the command. Thread: main. Printing computes nothing but ratios and means of what is here.
 */
#ifndef KVARNCTL_EVALUATE_REPORT_H
#define KVARNCTL_EVALUATE_REPORT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "client/cli/error_sum.h"
#include "client/cli/json.h"
#include "kvarn/err.h"

struct evaluate_bytes {
    uint64_t fp16;           /* the tokens in plain fp16 */
    uint64_t format;         /* tile pages of sealed blocks */
    uint64_t sink;           /* first tokens, rotated fp16 */
    uint64_t tail;           /* open blocks, rotated fp16 */
    uint64_t reserved;       /* tile pages that open blocks will need */
    uint64_t quantised_fp16; /* what the tokens in tile pages take in fp16 */
};

struct evaluate_layer_report {
    uint32_t number; /* NN of its files */
    uint32_t kv_heads, q_heads, k_dim, v_dim;
    struct error_sum k_quantised, v_quantised; /* tokens that are stored in tiles */
    struct error_sum k_all, v_all;
    /* Attention output. decode: as AppendAttend answered when each token came, the newest block
     * still exact; attend: by Attend, after all tokens were stored. */
    struct error_sum decode, attend;
    struct lse_error decode_lse, attend_lse;
};

struct evaluate_round_trip {
    uint64_t count;
    double median_us, p99_us;
};

/* Tokens of all layers moved in a time. */
struct evaluate_rate {
    uint64_t tokens;
    uint64_t bytes; /* of payload */
    double seconds;
};

/* Answers of the daemon that must not contradict each other. */
enum evaluate_check {
    EVALUATE_CHECK_STORED,  /* both sessions hold the same records and rows */
    EVALUATE_CHECK_ATTEND,  /* both sessions give the same out and lse */
    EVALUATE_CHECK_DECODED, /* records decoded here are the rows that the daemon reads back */
    EVALUATE_CHECK_ROTATED, /* rotated and un-rotated rows are the same vectors */
    EVALUATE_CHECK_SINGLE,  /* one query token at a time gives what many at once give */
    EVALUATE_CHECK_BYTES,   /* the session takes what the capacity calculator says */
    EVALUATE_CHECK_COUNT,
};

#define EVALUATE_SIZES 3 /* lengths at which the effective ratio is given: 1k, 4k, 32k tokens */

struct evaluate_report {
    const char *folder;         /* borrowed */
    const char *server_version; /* borrowed */
    const char *preset;         /* borrowed */
    const char *encoder;        /* borrowed; as asked for */
    uint32_t group, sink_tokens, seal_lag;
    uint64_t tokens, query_tokens;
    struct evaluate_layer_report *layers; /* owned */
    uint32_t layer_count;
    uint64_t pages_reference, pages_refined, pages_aware; /* pages sealed by each encoder */
    struct evaluate_bytes bytes;
    uint64_t size_tokens[EVALUATE_SIZES];
    double size_ratio[EVALUATE_SIZES]; /* fp16 / stored, sink and tail included */
    struct evaluate_round_trip append, append_attend, attend;
    struct evaluate_rate in_steps, in_bulk, out_records, out_rows;
    bool has_passed[EVALUATE_CHECK_COUNT];
};

/* Take memory for the layers. Returns 0 or KVARN_ENOMEM; freed by evaluate_report_fini(). */
int evaluate_report_init(struct evaluate_report *report, uint32_t layer_count) KVARN_MUST_CHECK;

/* Accepts a zeroed struct. */
void evaluate_report_fini(struct evaluate_report *report);

/* True when every check passed. */
bool evaluate_report_is_good(const struct evaluate_report *report);

/* "token by token and in bulk store the same records and rows". */
const char *evaluate_check_text(enum evaluate_check check);

/*
 * Median and 99th percentile (nearest rank) of times in microseconds; sorts `us` in place. All 0
 * without times.
 */
struct evaluate_round_trip evaluate_round_trip_of(double *us, uint64_t count);

/* As text for people, and as one JSON object. */
void evaluate_report_print(const struct evaluate_report *report, FILE *out);
void evaluate_report_json(const struct evaluate_report *report, struct json *json);

#endif
