/*
 * Reorder: sessions become copies of each other in one step, as a beam search's sequences do.
 *
 * Owner: the request. Thread: loop only.
 *
 * It takes its turn in the queue of each session and keeps each pending until it has all; then it
 * copies what they hold, by reference, and exchanges it at once. All its places are taken in one
 * turn of the loop, so that two reorders never wait for each other.
 */
#ifndef KVD_REORDER_H
#define KVD_REORDER_H

#include <stdint.h>

#include "server/session/session.h"

struct kvd_reorder_member {
    struct kvd_session *session; /* the reorder takes a reference of its own */
    uint64_t epoch;
    uint32_t source_idx; /* of the member that it becomes a copy of; its own: nothing changes */
};

struct kvd_reorder_args {
    const struct kvd_reorder_member *members; /* distinct, of one shape; copied */
    uint32_t count;
    uint64_t deadline_ns;
    void *ctx;
    /*
     * Exactly once, possibly inside start, before anything later has its turn in these sessions:
     * their epochs and lengths are those that hold now. why->err not 0: nothing was changed.
     */
    void (*done_cb)(void *ctx, const struct kvd_failure *why);
};

struct kvd_reorder;

/*
 * Begin. Returns 0 and a token for kvd_reorder_cancel() in *ret, written before done_cb can run and
 * valid until then; on KVARN_ENOMEM nothing was begun and done_cb will not run.
 */
int kvd_reorder_start(struct kvd_service *service, const struct kvd_reorder_args *args,
    struct kvd_reorder **ret) KVARN_MUST_CHECK;

/* Give it up, with `err`: done_cb runs now. */
void kvd_reorder_cancel(struct kvd_reorder *reorder, int err);

#endif
