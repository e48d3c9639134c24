/*
 * Compactor: moves pages out of chunks that are nearly empty, so that those can be given back.
 *
 * Owner: service. Thread: loop only.
 *
 * Slow on purpose: looks now and then whether many slots of page chunks are free, has the page
 * store name chunks to be emptied, and walks all sessions in slices, one page a step. What it moves
 * is held by one block of one session that nobody is at work on, so that nobody else knows where it
 * lies.
 */
#ifndef KVD_COMPACT_H
#define KVD_COMPACT_H

#include <stdbool.h>
#include <stdint.h>

#include "server/session/session.h"

struct kvd_compactor {
    struct kvd_service *service; /* borrowed */
    struct kvd_slice slice;      /* listed while it walks */
    struct kvd_session *session; /* borrowed: the next one; NULL: the walk is at its end */
    uint32_t block_idx;          /* of it */
    uint64_t moved;              /* in this walk */
    uint64_t due_ns;             /* when to look again */
    uint64_t pause_ns;           /* until then; longer after a walk that moved nothing */
    uint64_t free_bytes_min;     /* fewer bytes of free slots are nothing to do; tests lower it */
};

void kvd_compactor_init(struct kvd_compactor *compactor, struct kvd_service *service);

/* Look whether there is something to do. For the tick. */
void kvd_compactor_tick(struct kvd_compactor *compactor, uint64_t now_ns);

/* The session leaves the list of all sessions. */
void kvd_compactor_forget(struct kvd_session *session);

#endif
