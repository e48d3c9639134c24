/*
 * An evaluation: recorded tensors stored in a daemon, read back and attended to.
 *
 * Steps, in order: open, store token by token, store in bulk, read, attend. Each returns an exit
 * code of kvarnctl after having reported what failed, and fills its part of the report.
 *
 * Owner: the command. Thread: main.
 */
#ifndef KVARNCTL_EVALUATE_RUN_H
#define KVARNCTL_EVALUATE_RUN_H

#include "client/cli/ctl.h"
#include "client/cli/evaluate_data.h"
#include "client/cli/evaluate_report.h"

/* A request or reply is kept below this, so that other clients of the daemon get their turn. */
#define EVALUATE_REQUEST_BYTES (UINT64_C(8) << 20)

struct evaluate_options {
    const char *session_name; /* of the session to keep; NULL: none is kept */
    enum kvarn_encoder encoder;
    uint32_t group, sink_tokens, seal_lag;
    uint8_t k_bits, v_bits;
};

/* Attention output of one layer. */
struct evaluate_answer {
    float *out; /* owned; [q_heads][query_tokens][v_dim] */
    float *lse; /* owned; [q_heads][query_tokens] */
};

struct evaluate {
    struct ctl *ctl;                  /* borrowed */
    const struct evaluate_data *data; /* borrowed */
    struct evaluate_options options;
    struct kvarn_session *steps;    /* borrowed from the client: filled token by token */
    struct kvarn_session *bulk;     /* borrowed from the client: filled in bulk */
    struct evaluate_answer *decode; /* owned, one a layer: what the decode steps answered */
    struct evaluate_report report;
    bool has_progress;
    uint64_t progress_us; /* of the last line of progress */
};

/* Register the shape and open both sessions. */
int evaluate_open(struct evaluate *e);

/*
 * Append one token of one layer at a time; the tokens that have a recorded query by AppendAttend,
 * whose answers are kept in e->decode.
 */
int evaluate_store_steps(struct evaluate *e);

/* Append in requests as large as they may be, and wait until all that is due is sealed. */
int evaluate_store_bulk(struct evaluate *e);

/* Read all layers back in every form; compare with what was sent; count the session's bytes. */
int evaluate_read(struct evaluate *e);

/* Attend with the recorded queries; compare with exact attention. */
int evaluate_attend(struct evaluate *e);

/* Say on a terminal how far a step is. */
void evaluate_progress(struct evaluate *e, const char *step, uint64_t done, uint64_t total);

/* Tokens of one request: `token_bytes` each, at most EVALUATE_REQUEST_BYTES and the daemon's
 * limits; at least 1. */
uint64_t evaluate_request_tokens(const struct evaluate *e, uint64_t token_bytes);

/* Memory for one layer's answer. False: none left, reported by the caller. */
bool evaluate_answer_init(
    struct evaluate_answer *answer, const struct evaluate_data *data, uint32_t layer);
void evaluate_answer_fini(struct evaluate_answer *answer);

/* An array's values as floats, the caller's to free; NULL when there is no memory. */
float *evaluate_floats(const struct npy_array *array);

#endif
