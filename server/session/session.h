/*
 * A session: one sequence's cache. Blocks of pages, a length per layer, an epoch, and the queue
 * that gives every operation its turn.
 *
 * Owner: session table; handles and operations hold references. Thread: loop only.
 *
 * Order (SEMANTICS.md 3, 16): an operation names the layers it concerns and is admitted when no
 * earlier one waits on any of them and nothing is pending there (an append being rotated, a due
 * seal being computed). Readers take a snapshot (page references) when admitted and leave the
 * queue; writers keep their layers pending until they commit. So what a reader sees depends on
 * arrival alone.
 *
 * Storage: block b of a layer is rows (sink or open) or tiles (sealed). layer->sealed_blocks counts
 * the leading blocks that are sealed or due; when nothing is pending on the layer all of them are
 * done. When the first layer enters a block tiles are reserved for all layers, and rows too where
 * the committed length has come to (SEMANTICS.md 5); further ahead rows are taken as layers enter.
 * Blocks may be shared with other sessions (block_table.h): who changes one makes it the session's
 * own first (session_blocks.h).
 */
#ifndef KVD_SESSION_H
#define KVD_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <bsd/sys/queue.h>
#include <bsd/sys/tree.h>

#include "server/cold/cold_sessions.h"
#include "server/evict/evict_policy.h"
#include "server/io/slices.h"
#include "server/prefix/prefix_index.h"
#include "server/session/block_table.h"
#include "server/session/failure.h"
#include "server/session/lifetime.h"
#include "server/session/session_work.h"
#include "server/session/shape.h"
#include "server/store/page_store.h"

struct kvd_service;

/* What is kept of a layer for good; for work in progress: session_work.h. */
struct kvd_layer {
    uint32_t length;         /* tokens stored */
    uint32_t sealed_blocks;  /* leading blocks sealed or due, sinks counted */
    uint32_t dropped_blocks; /* leading blocks that left the window */
};
_Static_assert(KVARN_SESSION_TOKENS_MAX < UINT32_MAX, "lengths fit");

struct kvd_session_options {
    enum kvarn_encoder encoder;
    uint32_t seal_lag;
};

TAILQ_HEAD(kvd_session_op_queue, kvd_session_op);

struct kvd_session {
    RB_ENTRY(kvd_session) name_link;
    SLIST_ENTRY(kvd_session) hash_link; /* named: in its bucket of the table */
    union {
        LIST_ENTRY(kvd_session) all_link;  /* while somebody refers to it */
        LIST_ENTRY(kvd_session) dead_link; /* then */
    };
    struct kvd_service *service;   /* borrowed */
    const struct kvd_shape *shape; /* borrowed from the registry */
    char *name;                    /* owned; NULL: unnamed, ends with its connection */
    uint32_t tenant_id;
    uint32_t refs; /* table, handles, operations, jobs */
    uint32_t handle_count;
    bool is_dropped;             /* out of the table; operations get NOT_FOUND */
    bool is_kicking;             /* guards kvd_session_kick() against itself */
    bool is_husk;                /* dropped, its blocks are being freed */
    struct kvd_slice kick_slice; /* listed, with a reference, while the queue waits for a turn */
    uint64_t epoch;
    uint64_t touched_ns; /* last use: kvd_lifetime_touch() */
    struct kvd_lifetime lifetime;
    struct kvd_session_options options;
    struct kvd_session_op_queue ops; /* waiting, in arrival order; each holds a reference */
    struct kvd_block_table table;
    uint32_t missing_first, missing_last; /* blocks that are missing: session_evict.h */
    struct kvd_evict_entry evict;         /* the evictor's */
    struct kvd_prefix *prefix;            /* owned; NULL: it shares nothing by what it holds */
    uint32_t prefix_tokens;               /* leading tokens that it began with, by a lease */
    uint32_t adopted_blocks; /* blocks replaced by what another session stored before */
    struct kvd_session_cold cold;
    uint32_t pages_by_encoder[4];  /* kvd_session_count_sealed(); [0] came as records */
    struct kvd_session_work *work; /* owned; NULL: nothing is in flight, or was lately */
    struct kvd_layer layers[];     /* shape->layer_count */
};
/* An idle session costs <= 1 KiB besides its pages: with 32 layers and a name of 24 bytes. */
_Static_assert(sizeof(struct kvd_session) + 32 * sizeof(struct kvd_layer) + 25 <= 1024,
    "what only work in progress needs belongs to session_work.h");

/* Count a page sealed, by enum kvarn_encoder; no further than 2^32 - 1. */
static inline void kvd_session_count_sealed(struct kvd_session *session, unsigned encoder)
{
    uint32_t *pages = &session->pages_by_encoder[encoder];

    *pages += *pages < UINT32_MAX ? 1 : 0;
}

/* Appends, re-opens and seals in flight on a layer. */
static inline uint32_t kvd_session_pending(const struct kvd_session *session, uint32_t layer)
{
    return session->work == NULL ? 0 : session->work->layers[layer].pending;
}

/* A layer's length once the append in flight commits. */
static inline uint64_t kvd_session_pending_length(const struct kvd_session *session, uint32_t layer)
{
    return session->work == NULL ? session->layers[layer].length
                                 : session->work->layers[layer].pending_length;
}

/* Blocks that were not in memory when an operation came to its turn: `blocks` of the stretch. */
struct kvd_op_cold {
    uint32_t block_first, block_last;
    uint32_t blocks; /* 0: all was there */
};

/*
 * An operation waiting for its turn. Embedded in its owner; link and session are the queue's.
 * admit_cb runs exactly once, on the loop, possibly inside kvd_session_enqueue(): it does its work
 * (check session->is_dropped first). It may free the op.
 */
struct kvd_session_op {
    TAILQ_ENTRY(kvd_session_op) link;
    struct kvd_session *session; /* ref from enqueue until admit_cb has returned, or cancel */
    uint32_t layer_first;
    uint32_t layer_count;
    /*
     * What must be in memory when it is admitted, if a cold tier has it: these blocks, or what an
     * append to its layers adds to.
     */
    uint32_t block_first, block_last;
    bool needs_tail;
    bool is_queued;
    struct kvd_op_cold cold; /* what it had to wait for; the queue's until admit_cb */
    void (*admit_cb)(struct kvd_session_op *op);
};

/*
 * Make a session with one reference, not in any table. name NULL for an unnamed one.
 * Returns 0, KVARN_ENOMEM or KVARN_ENOSPC (budget).
 */
int kvd_session_create(struct kvd_service *service, const struct kvd_shape *shape, const char *name,
    const struct kvd_session_options *options, struct kvd_session **ret) KVARN_MUST_CHECK;

/*
 * Make a session that holds what an idle one holds, by reference: some 10 ns for 64 blocks. It has
 * a new epoch and one reference and is in no table. Returns 0, KVARN_ENOSPC, KVARN_ERETRY_LATER or
 * KVARN_ENOMEM.
 */
int kvd_session_copy(const struct kvd_session *from, const char *name, struct kvd_session **ret,
    struct kvd_failure *why) KVARN_MUST_CHECK;

/*
 * Exchange what two sessions of one shape hold; who they are, epochs and queues stay. Both idle,
 * but for one operation that keeps all layers of one of them pending.
 */
void kvd_session_swap_contents(struct kvd_session *a, struct kvd_session *b);

struct kvd_session *kvd_session_ref(struct kvd_session *session);

/* The last reference hands the session to the table's reaper, which frees its pages in slices. */
void kvd_session_unref(struct kvd_session *session);

/*
 * Let go of all blocks, of a session on which nothing is pending: some 10 ns for 64 blocks. Those
 * that nobody else holds are freed in slices.
 */
void kvd_session_clear(struct kvd_session *session);

/* Free a session that nobody refers to. For the reaper. */
void kvd_session_free(struct kvd_session *session);

/* Give an operation its place; layers [layer_first, +layer_count) must be within the shape. */
void kvd_session_enqueue(struct kvd_session *session, struct kvd_session_op *op);

/* Take a waiting operation out again; its admit_cb will not run. Only while op->is_queued. */
void kvd_session_op_cancel(struct kvd_session_op *op);

/*
 * Admit what can be admitted now. Called when something pending ended. When admissions have taken
 * their share of the turn, the rest goes on in the next one (SEMANTICS.md 18).
 */
void kvd_session_kick(struct kvd_session *session);

/*
 * Keep layers as they are while a reader takes their pages in several turns: what comes later waits
 * for it as for an append in flight. Takes a reference. Returns 0 or KVARN_ENOSPC.
 */
int kvd_session_hold_layers(
    struct kvd_session *session, uint32_t layer_first, uint32_t layer_count) KVARN_MUST_CHECK;

/* The reader has its pages; waiting operations may go. */
void kvd_session_release_layers(
    struct kvd_session *session, uint32_t layer_first, uint32_t layer_count);

/* Committed length: the smallest layer length. */
uint64_t kvd_session_length(const struct kvd_session *session);

/* Blocks sealable at a layer length (SEMANTICS.md 2). */
uint32_t kvd_session_sealable_blocks(const struct kvd_session *session, uint64_t length);

static inline uint32_t kvd_session_sink_blocks(const struct kvd_session *session)
{
    return session->shape->sink_tokens / session->shape->group;
}

static inline uint32_t kvd_session_block_count(const struct kvd_session *session)
{
    return session->table.count;
}

/* One of its blocks, perhaps shared: not to be changed. NULL: all layers dropped it. */
static inline const struct kvd_block *kvd_session_block(
    const struct kvd_session *session, uint32_t block_idx)
{
    return kvd_block_table_at(&session->table, block_idx);
}

/* How a reader sees block b of a layer whose first `sealed_blocks` blocks it reads as sealed. */
struct kvd_page *kvd_session_reader_page(
    const struct kvd_session *session, uint32_t layer, uint32_t block_idx, uint32_t sealed_blocks);

/* A layer's pages of a block that is there, or NULL. */
struct kvd_page *kvd_session_rows(
    const struct kvd_session *session, uint32_t block_idx, uint32_t layer);
struct kvd_page *kvd_session_tiles(
    const struct kvd_session *session, uint32_t block_idx, uint32_t layer);

/*
 * STALE_EPOCH with the state that holds when `epoch` is not the session's; NOT_FOUND when it was
 * dropped. Returns 0 or the error.
 */
int kvd_session_check_epoch(
    const struct kvd_session *session, uint64_t epoch, struct kvd_failure *why) KVARN_MUST_CHECK;

/*
 * Check that tokens [first, last) of a layer are stored and there. Returns 0, or KVARN_EMISS with
 * its reason: NEVER_STORED, WINDOW, or what made a block go missing.
 */
int kvd_session_check_range(const struct kvd_session *session, uint32_t layer, uint64_t first,
    uint64_t last, struct kvd_failure *why) KVARN_MUST_CHECK;

/*
 * What a session holds, for InspectSession and ListSessions. Costs a few additions a layer, however
 * long the session is.
 */
struct kvd_session_usage {
    uint64_t pages[KVD_PAGE_CLASS_COUNT]; /* tiles: of blocks that are sealed or due */
    uint64_t bytes[KVD_PAGE_CLASS_COUNT];
    uint64_t reserved_bytes; /* tile pages of blocks that are not, and rows kept for copies */
};
void kvd_session_usage(const struct kvd_session *session, struct kvd_session_usage *ret);

/* Pages of blocks that others hold as well: other sessions, or the prefix index. */
struct kvd_session_shared {
    uint64_t pages;
    uint64_t bytes;
};

/* Add what the session's layers have in a block, or had, told from their lengths. */
void kvd_session_add_block_usage(
    const struct kvd_session *session, uint32_t block_idx, struct kvd_session_shared *shared);

/*
 * Add up one span's blocks; true: it was the last. A span that is shared whole is counted by what
 * the session's layers keep, others block by block: a microsecond or so.
 */
bool kvd_session_shared_add(
    const struct kvd_session *session, uint32_t span_idx, struct kvd_session_shared *shared);

#endif
