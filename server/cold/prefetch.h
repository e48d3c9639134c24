/*
 * Prefetch: jobs that bring cold blocks of a session, or of a prefix, back before an operation asks
 * for them.
 *
 * Owner: service. Thread: loop only.
 *
 * A job walks blocks in their order, which is the order that attention needs them in, and keeps
 * some of them on their way by the same loads that operations wait for (cold_sessions.h); a load
 * brings all layers of its block. It goes on whenever a load ends. Loads of operations come first:
 * jobs take no more than half of those that run at once. A job ends when it has seen all of its
 * blocks, when there is no memory for one, or when its session goes; it is then kept for a while,
 * so that whoever asks how it went hears of it.
 */
#ifndef KVD_PREFETCH_H
#define KVD_PREFETCH_H

#include <stdbool.h>
#include <stdint.h>

#include <bsd/sys/queue.h>

#include "kvarnd.pb-c.h"
#include "lib/base/limits.h"
#include "server/session/failure.h"

struct kvd_block;
struct kvd_prefix_lease;
struct kvd_service;
struct kvd_session;

/* Blocks that a job has on their way. */
#define KVD_PREFETCH_FLIGHT_MAX 32

/* A block on its way. */
struct kvd_prefetch_flight {
    uint32_t block_idx;
    uint64_t bytes;
};

struct kvd_prefetch_job {
    TAILQ_ENTRY(kvd_prefetch_job) link; /* once it is started */
    struct kvd_prefetches *prefetches;  /* borrowed from the service */
    uint64_t id;                        /* 0: not started */
    struct kvd_session *session;        /* ref until it has ended; NULL: of a prefix */
    struct kvd_prefix_lease *lease;     /* owned until it has ended: blocks of a prefix; or NULL */
    char *name;                         /* owned: of the session; "" without */
    uint32_t tenant_id;
    Kvarnd__JobState state;
    int err;                       /* FAILED: why */
    uint32_t measured, next, last; /* blocks that it has not come to: [next, last) */
    uint32_t flight_count;
    struct kvd_prefetch_flight flight[KVD_PREFETCH_FLIGHT_MAX];
    uint32_t blocks, blocks_done; /* that were cold when it began; of these */
    uint64_t bytes, bytes_done;   /* of their pages */
    uint64_t start_ns, end_ns;    /* end_ns 0: it runs */
};
TAILQ_HEAD(kvd_prefetch_job_list, kvd_prefetch_job);

struct kvd_prefetches {
    struct kvd_service *service;          /* borrowed */
    struct kvd_prefetch_job_list running; /* owned, oldest first */
    struct kvd_prefetch_job_list ended;   /* owned, newest first */
    uint32_t count;                       /* of jobs made that have not ended, started or not */
    uint32_t running_count, ended_count;
    uint64_t id_last;
};

void kvd_prefetches_init(struct kvd_prefetches *prefetches, struct kvd_service *service);

/* Free all jobs, whatever their state. Accepts a zeroed struct. */
void kvd_prefetches_fini(struct kvd_prefetches *prefetches);

/*
 * Make a job for what is cold among the last `last_blocks` blocks; it is the caller's until it is
 * started. Returns 0; KVARN_EUNSUPPORTED: there is no cold tier; KVARN_ERETRY_LATER: there are
 * KVARN_PREFETCH_JOBS_MAX of them; KVARN_ENOMEM.
 */
int kvd_prefetch_create(struct kvd_prefetches *prefetches, struct kvd_session *session,
    uint32_t last_blocks, struct kvd_prefetch_job **ret, struct kvd_failure *why) KVARN_MUST_CHECK;

/*
 * The same for the blocks of a lease that is in no table, which the job takes over; on failure it
 * stays the caller's.
 */
int kvd_prefetch_create_prefix(struct kvd_prefetches *prefetches, struct kvd_prefix_lease *lease,
    struct kvd_prefetch_job **ret, struct kvd_failure *why) KVARN_MUST_CHECK;

/*
 * Look at some more of its blocks, for what there is to load: some microseconds. Returns false once
 * all were looked at; `blocks` and `bytes` are known then.
 */
bool kvd_prefetch_measure(struct kvd_prefetch_job *job);

/* Begin to load; the job is the service's now, and may have ended already. */
void kvd_prefetch_start(struct kvd_prefetch_job *job);

/* Give up a job that was not started. NULL ok. */
void kvd_prefetch_discard(struct kvd_prefetch_job *job);

/* The session goes, or its blocks are not wanted any more: its jobs end. Loads go on. */
void kvd_prefetch_cancel(const struct kvd_session *session);

/* A load has ended; sessions that wait for it are kicked afterwards. */
void kvd_prefetches_run(struct kvd_prefetches *prefetches);

/* Drop ended jobs that are too old, or too many, to be told of. */
void kvd_prefetches_expire(struct kvd_prefetches *prefetches);

#endif
