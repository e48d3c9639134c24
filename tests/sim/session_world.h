/*
 * A world of sessions: a seeded script of operations on several of them, each predicted by a model
 * when it is sent and held to that when it is done.
 *
 * The script depends on its seed alone; how many turns the loop makes between two operations, and
 * when workers finish, depends on `timing`. So two runs of one seed must give the same digest.
 */
#ifndef TESTS_SESSION_WORLD_H
#define TESTS_SESSION_WORLD_H

#include <bsd/sys/queue.h>

#include "tests/support/rng.h"
#include "tests/support/session_model.h"
#include "tests/support/session_refs.h"
#include "tests/support/session_rig.h"

#define WORLD_SESSIONS    3
#define WORLD_TOKENS_MAX  1600
#define WORLD_TOKENS_LONG 9000 /* whole spans of blocks are shared */
#define WORLD_LAYERS_MAX  4
#define WORLD_SHAPES      5

enum world_kind {
    WORLD_APPEND, /* with an attention in its commit, if has_attend */
    WORLD_TILES,
    WORLD_TRUNCATE,
    WORLD_ATTEND,
    WORLD_FORK,    /* the copy takes another session's place */
    WORLD_REORDER, /* of some of the sessions */
    WORLD_READ,    /* holds pages, as a reply does, and looks at them later */
    WORLD_KIND_COUNT,
};

struct world_op {
    TAILQ_ENTRY(world_op) link;
    struct world *world;
    enum world_kind kind;
    unsigned number;
    int expected_err;
    bool expected_flag;
    bool may_fail; /* memory is short: a refusal is as good, and then nothing has changed */
    bool has_attend;
    int expected_attend_err;
    struct kvt_append append;
    struct kvt_tiles tiles;
    struct kvd_append_run runs[3 * WORLD_LAYERS_MAX];
    struct kvt_truncate truncate;
    struct kvt_fork fork;
    struct kvt_model fork_model; /* what the copy should hold; layers NULL: nothing */
    uint32_t fork_slot;          /* whose place it takes */
    struct kvt_reorder reorder;
    struct kvd_reorder_member members[WORLD_SESSIONS];
    uint32_t member_slots[WORLD_SESSIONS];
    struct kvt_attend attend;
    struct world_read *read;
};

TAILQ_HEAD(world_op_list, world_op);

/* A session and what it should hold. */
struct world_session {
    struct kvd_session *session;
    struct kvt_model model;
    uint64_t last_id[WORLD_LAYERS_MAX]; /* append that was last on each layer; 0: none */
    struct kvt_append last;             /* the last append, without its payload */
    uint64_t last_append_id;
};

struct world {
    struct kvt_rig rig;
    struct kvt_rng script; /* decides what is done */
    struct kvt_rng timing; /* decides when */
    uint32_t tokens_max;   /* of a session */
    bool is_short;         /* one at a time, with memory refused now and then */
    bool is_evicting;      /* blocks are evicted now and then, between two operations */
    unsigned evicted, missed;
    struct world_session sessions[WORLD_SESSIONS];
    struct world_op_list ops;   /* sent, not looked at */
    struct world_op_list reads; /* they hold their pages a little longer */
    struct world_op *born;      /* a fork that was done: its copy waits for its place; or NULL */
    unsigned op_count;
    uint64_t append_ids;
    uint64_t digest; /* of every outcome and answer, in order */
    unsigned tried, wrong;
    unsigned tried_by_kind[WORLD_KIND_COUNT];
    unsigned refused; /* for memory */
};

struct world_options {
    uint64_t seed;
    uint64_t timing_seed;
    unsigned workers;
    unsigned jitter_us_max;
    bool is_short;
    bool is_evicting;
};

void world_init(struct world *world, const struct world_options *options);

/* Send one operation; perhaps turn the loop a little. */
void world_step(struct world *world);

/* Wait for everything, and compare. */
void world_settle(struct world *world);

void world_fini(struct world *world);

/* Pages that a read holds, for who counts them. */
void world_read_refs(const struct world_op *op, struct kvt_refs *refs);

/* session_world_share.c: the same for forks and reorders. */
bool world_draw_fork(struct world *world, struct world_op *op, struct world_session *ws);
bool world_draw_reorder(struct world *world, struct world_op *op);
void world_apply_reorder(struct world *world, struct world_op *op);

/* Does a cut to this length miss tokens that left a window (SEMANTICS.md 4)? */
bool world_cut_misses(const struct world_session *ws, uint64_t length);

/* session_world_ops.c: draw and predict one operation; false: it does not fit now. */
bool world_draw(struct world *world, struct world_op *op, struct world_session *ws);

/* Send what was drawn. Returns what the start returned. */
int world_send(struct world *world, struct world_op *op, struct world_session *ws);

/* Tell the model that the operation happened. */
void world_apply(struct world *world, struct world_op *op, struct world_session *ws);

/* Compare a finished operation with its prediction. */
void world_judge(struct world *world, struct world_op *op);

/* A read still holds its pages: are they what they were? Then let go. */
void world_read_end(struct world *world, struct world_op *op);

void world_op_free(struct world_op *op);

#endif
