/*
 * A service on the fake io, and the calls of the session layer with what came of them.
 *
 * Thread: one; the service's workers are its own. Nothing here asserts with cmocka but for what a
 * test cannot go on without.
 */
#ifndef TESTS_SESSION_RIG_H
#define TESTS_SESSION_RIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/append/append.h"
#include "server/config/config.h"
#include "server/read/attend.h"
#include "server/service.h"
#include "server/session/fork.h"
#include "server/session/reorder.h"
#include "server/session/truncate.h"
#include "tests/support/io_fake.h"

/* A chunk source that asks another one, or says no. */
struct kvt_rig_source {
    struct kvd_chunk_source base;
    struct kvd_chunk_source *inner; /* borrowed from the service */
    bool is_empty;
    uint64_t asked, refused; /* chunks */
};

struct kvt_rig {
    struct kvd_io_fake *fake;
    struct kvd_config config;
    struct kvd_service service;
    struct kvt_rig_source source;
    const struct kvd_shape *shape;
    uint64_t budget_start; /* used bytes of a service without sessions and records */
};

struct kvt_rig_options {
    uint64_t memory_limit; /* 0: 1 GiB */
    unsigned workers;
    unsigned jitter_us_max; /* as kvd_workers_options */
    uint64_t jitter_seed;
    const struct kvd_shape_desc *shape; /* NULL: kvt_shape_small */
    const char *evict_policy;           /* NULL: none */
    struct kvd_fake_disk *disk;         /* borrowed; holds the cold tier. NULL: none */
    uint64_t cold_segment;              /* bytes, of a tier of 4; 0: 64 of 1 MiB */
    unsigned cold_segments;             /* of such a tier; 0: 4 */
    uint64_t life;                      /* of services on one disk, each has another number */
};

/*
 * Three layers of two kinds and different dimensions, group 64, a sink of one block:
 * 2 x {2 KV heads, K and V 16}, 1 x {1 KV head, K 24, V 8, window 100}.
 */
extern const struct kvd_shape_desc kvt_shape_small;

/* One layer, 8 KV heads of 128, group 128, sink 128: a rows page has 512 KiB. */
extern const struct kvd_shape_desc kvt_shape_large;

/* Fails the test when the service cannot be built. */
void kvt_rig_init(struct kvt_rig *rig, const struct kvt_rig_options *options);

/* All jobs must have ended. Fails the test when dropping all sessions leaves memory charged. */
void kvt_rig_fini(struct kvt_rig *rig);

/* Turn until no job is in flight and nothing moves; waits for threads, within 60 seconds. */
void kvt_rig_settle(struct kvt_rig *rig);

/* A session with one reference, the caller's; name NULL: unnamed. Named ones are inserted. */
struct kvd_session *kvt_session_open(struct kvt_rig *rig, const char *name, uint32_t seal_lag);

/* Drop and unref. */
void kvt_session_drop(struct kvt_rig *rig, struct kvd_session *session);

/* What became of a call. */
struct kvt_outcome {
    bool is_done;
    bool is_flagged;        /* repeat of an append, loss of a truncate */
    unsigned done_count;    /* more than 1 is a bug */
    struct kvd_failure why; /* session pointer cleared: epoch and lengths are copied */
    uint64_t epoch;         /* of the session, when why names one */
};

/* Where made-up values come from: the same seed gives the same value at the same place. */
struct kvt_values {
    uint64_t seed;
    float scale; /* 0: 1 */
};
float kvt_value(const struct kvt_values *values, uint32_t layer, bool is_v, uint32_t head,
    uint64_t token, uint32_t dim);

struct kvt_append {
    struct kvd_session *session;
    uint32_t layer_first, layer_count;
    uint64_t start;
    uint32_t token_count;
    enum kvarn_dtype dtype;
    bool is_token_major;
    bool is_rotated;
    bool is_batched;
    struct kvt_values values;
    enum kvd_prefix_kind prefix_kind;
    const void *prefix_data; /* borrowed; NULL: nothing is said of the tokens */
    uint64_t epoch;
    uint64_t deadline_ns;
    void (*committed_cb)(void *ctx, uint32_t sealed_blocks);
    /* Filled in. */
    uint8_t *payload; /* owned; made by begin unless it is there */
    size_t payload_bytes;
    struct kvd_append *token; /* NULL once it is done */
    struct kvt_outcome outcome;
};

/* An append of all layers at their common length, halves, head-major, the session's epoch. */
struct kvt_append kvt_append_of(
    struct kvd_session *session, uint32_t token_count, uint64_t values_seed);

/* The payload alone, for tests that spoil it before begin. */
void kvt_append_fill(struct kvt_append *append);

/* Where a value of the payload lies, in bytes. */
size_t kvt_append_offset(
    const struct kvt_append *append, uint32_t layer, bool is_v, uint32_t head, uint64_t token);

/* Start; it may be done when this returns. Returns what kvd_append_start() does. */
int kvt_append_begin(struct kvt_rig *rig, struct kvt_append *append);

/* Free what begin made. */
void kvt_append_fini(struct kvt_append *append);

/* Begin, settle, fini; returns the outcome's error. */
int kvt_append_now(struct kvt_rig *rig, struct kvt_append *append);

/* Runs with their payload, as a client read them. */
struct kvt_tiles {
    struct kvd_session *session;
    uint64_t epoch;
    struct kvd_append_run *runs; /* borrowed */
    uint32_t run_count;
    const uint8_t *payload; /* borrowed */
    size_t payload_bytes;
    uint64_t deadline_ns;
    struct kvt_outcome outcome;
};
int kvt_tiles_begin(struct kvt_rig *rig, struct kvt_tiles *tiles);

struct kvt_truncate {
    struct kvd_session *session;
    uint64_t epoch;
    uint64_t length;
    uint64_t deadline_ns;
    struct kvd_truncate *token; /* NULL once it is done */
    struct kvt_outcome outcome;
};
int kvt_truncate_begin(struct kvt_rig *rig, struct kvt_truncate *truncate);

/* Begin at the session's epoch, settle; returns the outcome's error. */
int kvt_truncate_now(struct kvt_rig *rig, struct kvd_session *session, uint64_t length);

struct kvt_fork {
    struct kvd_session *parent;
    uint64_t epoch;
    uint64_t length; /* UINT64_MAX: the committed length */
    const char *name;
    bool may_exist;
    uint64_t deadline_ns;
    struct kvd_fork *token;     /* NULL once it is done */
    struct kvt_outcome outcome; /* flagged: lossy */
    struct kvd_session *child;  /* a reference, the caller's; NULL: it failed */
    bool is_created;
};
int kvt_fork_begin(struct kvt_rig *rig, struct kvt_fork *fork);

/* Fork at the parent's epoch and settle; fails the test where that fails. Returns the child. */
struct kvd_session *kvt_fork_now(struct kvt_rig *rig, struct kvd_session *parent, uint64_t length);

struct kvt_reorder {
    const struct kvd_reorder_member *members; /* borrowed until begin returns */
    uint32_t count;
    uint64_t deadline_ns;
    struct kvd_reorder *token; /* NULL once it is done */
    struct kvt_outcome outcome;
};
int kvt_reorder_begin(struct kvt_rig *rig, struct kvt_reorder *reorder);

/*
 * An attention in its session's queue, as Attend has it. args.session and what the test wants are
 * set by the caller; q is filled from `values` as `args.q_dtype`; `last` UINT64_MAX is the length
 * when its turn comes, `position` UINT64_MAX the last q_tokens of that.
 */
struct kvt_attend {
    struct kvd_session_op op; /* first */
    struct kvt_rig *rig;
    struct kvd_attend_args args;
    struct kvt_values values;
    uint8_t *q; /* owned */
    void *out;  /* owned */
    float *lse; /* owned */
    size_t q_bytes, out_bytes, lse_bytes;
    struct kvt_outcome outcome;
    float *out_expected;  /* owned: by kvt_model_attend(), turned as out is; NULL without */
    double *lse_expected; /* owned */
};

/* One query token over all of a layer, halves in and floats out, causal. */
struct kvt_attend kvt_attend_of(
    struct kvd_session *session, uint32_t layer, uint32_t q_tokens, uint64_t values_seed);
void kvt_attend_fill(struct kvt_attend *attend);
/* Put numbers for what counts from the length. */
void kvt_attend_resolve(struct kvt_attend *attend, uint64_t length);
void kvt_attend_begin(struct kvt_rig *rig, struct kvt_attend *attend);
/* Without the queue: for committed_cb. */
void kvt_attend_snapshot(struct kvt_rig *rig, struct kvt_attend *attend, uint32_t sealed_blocks);
int kvt_attend_now(struct kvt_rig *rig, struct kvt_attend *attend);
void kvt_attend_fini(struct kvt_attend *attend);

/* Any outcome's done callback body. */
void kvt_outcome_set(struct kvt_outcome *outcome, const struct kvd_failure *why, bool is_flagged);

#endif
