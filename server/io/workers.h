/*
 * Compute workers: threads that run jobs and hand them back to the loop through one wake-up.
 *
 * Owner: service. Thread: loop for every call here; job->run on a worker. With 0 threads jobs run
 * on the loop, one a turn, so that the same code path serves and no job runs inside its submit. A
 * job's inputs are immutable while it runs (pages it holds a reference on through the loop, spans
 * of the tail below the length); it writes only into buffers of its own.
 */
#ifndef KVD_WORKERS_H
#define KVD_WORKERS_H

#include <stddef.h>
#include <stdint.h>

#include <bsd/sys/queue.h>

#include "kvarn/err.h"
#include "server/io/io.h"

/* Room each worker offers a job: rows and encoder work space of the largest tile. 64-byte aligned.
 */
#define KVD_WORKER_SCRATCH_BYTES (8u << 20)

struct kvd_job {
    void (*run)(struct kvd_job *job, void *scratch); /* on a worker */
    void (*done)(struct kvd_job *job);               /* on the loop, exactly once, after run */
    STAILQ_ENTRY(kvd_job) link;
};

struct kvd_workers;

struct kvd_workers_options {
    unsigned thread_count;
    /*
     * Tests only: each completion is delayed by a random 0..this, from `jitter_seed`; 0 = none.
     * With 0 threads nothing sleeps: jobs run in a random order that the seed alone decides.
     */
    unsigned jitter_us_max;
    uint64_t jitter_seed;
};

/* Returns 0, KVARN_ENOMEM, or KVARN_EINTERNAL when threads cannot be started. */
int kvd_workers_create(struct kvd_io *io, const struct kvd_workers_options *options,
    struct kvd_workers **ret) KVARN_MUST_CHECK;

/* Stop and join; no job may be in flight (drain first). NULL ok. */
void kvd_workers_destroy(struct kvd_workers *workers);

/* Queue a job; never fails. What bounds the queue is admission: callers look at the backlog first.
 */
void kvd_workers_submit(struct kvd_workers *workers, struct kvd_job *job);

/* Jobs submitted whose done has not run yet. */
size_t kvd_workers_backlog(const struct kvd_workers *workers);

unsigned kvd_workers_thread_count(const struct kvd_workers *workers);

#endif
