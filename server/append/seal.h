/*
 * Sealing: a full block's rows become tiles, on a worker.
 *
 * Owner: session. Thread: loop; the quantising runs as a job.
 *
 * A seal cannot fail (SEMANTICS.md 10), and which blocks are sealed depends on lengths alone
 * (SEMANTICS.md 3): so whoever makes a layer longer takes the memory of the seals that this will
 * make due before anything is stored, and hands it over at the commit.
 */
#ifndef KVD_SEAL_H
#define KVD_SEAL_H

#include "server/append/metric_store.h"
#include "server/session/session.h"
#include "server/session/session_blocks.h"

struct kvd_seal;
SLIST_HEAD(kvd_seal_list, kvd_seal);

/* Blocks [first, last): none when they are equal. */
struct kvd_block_range {
    uint32_t first, last;
};

/* What a layer is to be prepared for, and how far that has come. */
struct kvd_seal_want {
    uint32_t layer;
    uint64_t length;                /* that it will have */
    struct kvd_block_range records; /* blocks that will come as tiles */
    uint32_t next;                  /* 0 at first: where to go on */
    bool is_done;                   /* out */
};

/*
 * Take the jobs for the seals that become due, and make the blocks that this seals or drops the
 * session's own, noted in `log`. Looks at some tens of blocks; want->is_done says whether those
 * were the last. Adds to a list that the caller gives to kvd_seal_due() and, in the end, to
 * kvd_seal_list_drop_some(), on failure too. The jobs are charged.
 * Returns 0, KVARN_ENOMEM, KVARN_ENOSPC or KVARN_ERETRY_LATER.
 */
int kvd_seal_prepare(struct kvd_seal_list *seals, struct kvd_session *session,
    struct kvd_seal_want *want, struct kvd_own_log *log, struct kvd_failure *why) KVARN_MUST_CHECK;

/* Free some tens of what was prepared and not begun; true: that was all. */
bool kvd_seal_list_drop_some(struct kvd_service *service, struct kvd_seal_list *seals);

/*
 * Bring a layer up to date with its length: drop what left the window, count what is sealable (and
 * everything before records.last) as sealed, and start the jobs. Called after each commit that made
 * the layer longer, until it says that it is done; the layer stays pending for that commit, and for
 * nothing else at first. Blocks whose rows are gone, since they came as records, are passed over.
 * `metric`: what kvd_seal_pick_metric() gave when the request came. Goes through some tens of
 * blocks; true: that was all.
 */
bool kvd_seal_due(struct kvd_session *session, uint32_t layer, struct kvd_block_range records,
    struct kvd_seal_list *seals, struct kvd_metric_sum *metric);

/*
 * The query metric for what a request that arrives now makes due, with a reference for the caller;
 * NULL: none, or the session is not sealed `aware`. What the seals use is decided here, at arrival,
 * so that it does not depend on when the request has its turn (SEMANTICS.md 3).
 */
struct kvd_metric_sum *kvd_seal_pick_metric(const struct kvd_session *session, uint32_t layer);

#endif
