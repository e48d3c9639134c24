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

/* A put that owns what it needs, whatever it is of. */
struct kvd_spill_put {
    struct kvd_cold_put put; /* first */
    STAILQ_ENTRY(kvd_spill_put) retry_link;
    struct kvd_cold_sessions *cold;
    struct kvd_session *session; /* ref; NULL: of no session any more */
    struct kvd_cold_copy *copy;  /* ref; of a page */
    struct kvd_cold_bytes head, body;
    struct kvd_page **pages; /* owned array; refs */
    struct iovec *vecs;      /* owned */
    struct iovec body_vec;
    uint32_t page_count;
    uint32_t block_idx;
    uint64_t tokens; /* of a map */
    bool is_final;
    struct kvd_cold_record *victims[3]; /* of a tombstone: owned, given up when it is durable */
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

/* Have kvd_cold_timer_cb() run in `ms`, or sooner; 0: at the end of this turn. */
void kvd_spill_arm(struct kvd_cold_sessions *cold, uint64_t ms);

/* Put tombstones again that failed a while ago and that nobody waits for. */
void kvd_tombstones_retry(struct kvd_cold_sessions *cold);

/* Give a record up; NULL ok. */
void kvd_spill_forget(struct kvd_cold_sessions *cold, struct kvd_cold_record *record);

#endif
