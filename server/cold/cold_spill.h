/*
 * Puts of the write-behind: what cold_spill.c and cold_tombstone.c share.
 *
 * Owner: service. Thread: loop only.
 */
#ifndef KVD_COLD_SPILL_H
#define KVD_COLD_SPILL_H

#include "server/cold/cold_catalog.h"
#include "server/cold/cold_sessions.h"
#include "server/store/page_store.h"

/* A TAIL that a map names, and of what state of the session it is. */
struct kvd_spill_tail {
    struct kvd_cold_id id;          /* zeros: none */
    struct kvd_cold_record *record; /* owned, until the session has it; NULL: it has it already */
    uint32_t first;                 /* blocks before it are not in it */
    uint64_t epoch, token_sum;      /* of the session, over all layers */
    uint64_t touched_ns;
};

/* A put that owns what it needs, whatever it is of. */
struct kvd_spill_put {
    struct kvd_cold_put put; /* first */
    STAILQ_ENTRY(kvd_spill_put) retry_link;
    struct kvd_cold_sessions *cold;
    struct kvd_session *session; /* ref; NULL: of no session any more */
    struct kvd_cold_id uid;      /* of the session, then */
    struct kvd_cold_copy *copy;  /* ref; of a page */
    struct kvd_cold_bytes head, body;
    struct kvd_page **pages; /* owned array; refs */
    struct iovec *vecs;      /* owned */
    struct iovec body_vec;
    uint32_t page_count;
    uint32_t block_idx;
    uint64_t tokens;                    /* of a map: its longest layer */
    uint64_t committed;                 /* and its shortest */
    struct kvd_spill_tail tail;         /* of a tail, and of a map that names one */
    bool is_final;                      /* of the stop */
    bool is_tail_out;                   /* a map that ends what kvd_cold_tail_out() began */
    uint64_t named_round;               /* of a map */
    struct kvd_cold_record *victims[3]; /* of a tombstone: owned, given up when it is durable */
    struct kvd_cold_named *named;       /* of a tombstone: owned, likewise */
    bool has_victims;                   /* it took them from the session */
    void (*done)(void *ctx, int err);
    void *ctx; /* borrowed */
};

/* A put of a session, with a reference to it. NULL without memory. */
struct kvd_spill_put *kvd_spill_create(
    struct kvd_session *session, enum kvd_cold_type type, void (*done)(struct kvd_cold_put *, int));

/* Let go of all that it owns. */
void kvd_spill_free(struct kvd_spill_put *spill);

/* Hand a put over; on failure it is freed. Returns as kvd_cold_ops.put. */
int kvd_spill_start(struct kvd_spill_put *spill) KVARN_MUST_CHECK;

/* A put is done: free it, and go on. */
void kvd_spill_end(struct kvd_spill_put *spill);

/* Whether the session that a put is of is still the same, and not about to be dropped. */
bool kvd_spill_is_current(const struct kvd_spill_put *spill);

/* Have kvd_cold_timer_cb() run in `ms`, or sooner; 0: at the end of this turn. */
void kvd_spill_arm(struct kvd_cold_sessions *cold, uint64_t ms);

/* Put tombstones again that failed a while ago and that nobody waits for. */
void kvd_tombstones_retry(struct kvd_cold_sessions *cold);

/* Let go of those that wait for that. */
void kvd_tombstones_free(struct kvd_cold_sessions *cold);

/* So much is on its way that tails wait for their turn. */
bool kvd_spill_queue_is_full(const struct kvd_cold_sessions *cold);

/* Give a record up; NULL ok. */
void kvd_spill_forget(struct kvd_cold_sessions *cold, struct kvd_cold_record *record);

/* Give the session its id, its record and its shape's, before its first map. As cold_ops.put. */
int kvd_spill_session(struct kvd_session *session) KVARN_MUST_CHECK;

/*
 * Put what is complete and not stored. Returns 0, or why it stopped early: KVARN_ERETRY_LATER while
 * something is pending or too much is queued; KVARN_EMISS at a block that is gone; KVARN_EIO in a
 * stop, at one that failed before; or as kvd_cold_ops.put.
 */
int kvd_spill_blocks(struct kvd_session *session) KVARN_MUST_CHECK;

/* Leading blocks that recovery would find. */
uint32_t kvd_spill_durable_blocks(const struct kvd_session *session);

/*
 * The same with what follows them only on disk: a sink that was cut keeps its record, whose first
 * rows are what the session holds, and may be out of memory.
 */
uint32_t kvd_spill_stored_blocks(const struct kvd_session *session);

/*
 * The blocks that a map without a tail may end with: `count`, or none where a window layer has
 * dropped what the next token after them would see.
 */
uint32_t kvd_spill_mappable_blocks(const struct kvd_session *session, uint32_t count);

/*
 * A map of the first `count` blocks, and of all that there is where it names a tail, whose record
 * stays the caller's. NULL without memory.
 */
struct kvd_spill_put *kvd_spill_map_create(
    struct kvd_session *session, uint32_t count, const struct kvd_spill_tail *tail);

/* Hand it over (NULL: KVARN_ENOMEM); on failure it is freed. As kvd_cold_ops.put. */
int kvd_spill_map_start(
    struct kvd_session *session, struct kvd_spill_put *spill, uint32_t count) KVARN_MUST_CHECK;

/* cold_tail.c */

/* A state of a session that no other one has: what it holds changes with epoch and sum alone. */
uint64_t kvd_tail_token_sum(const struct kvd_session *session);

/*
 * Put what is behind the first `first` blocks, all of which are durable, as a TAIL, and once that
 * is durable a map that names it. Returns 0; KVD_COLD_NOTHING when there is nothing behind them;
 * KVARN_EMISS when not all of it is in memory; or as kvd_cold_ops.put. Of the stop: a tail that
 * fails later leads to kvd_flush_map().
 */
int kvd_tail_put(struct kvd_session *session, uint32_t first, bool is_final) KVARN_MUST_CHECK;

/* Go on with a tail that is wanted out. Returns whether to look again later. */
bool kvd_tail_spill(struct kvd_session *session, int blocks_err, uint32_t durable);

/* The newest map of a session is durable: it has the tail that this one names, or none. */
void kvd_tail_mapped(struct kvd_spill_put *spill);

/* What kvd_cold_tail_out() or kvd_cold_store() began has ended; NULL: without a map. */
void kvd_tail_left(struct kvd_session *session, const struct kvd_spill_put *map);

/* Whether the session's TAIL has this block as it is, named by a map or not in memory any more. */
bool kvd_tail_has(const struct kvd_session *session, uint32_t block_idx);

/* The TAIL that the session has, for a map. */
struct kvd_spill_tail kvd_tail_own(const struct kvd_session *session);

/* cold_flush.c */

/* Go on with the stop. */
void kvd_flush_pump(struct kvd_cold_sessions *cold);

/* The last map of a session. */
void kvd_flush_map(struct kvd_session *session, uint32_t count, const struct kvd_spill_tail *tail);

#endif
