/*
 * Compute workers: a queue under a mutex in, a list under the same mutex and one wake-up out.
 *
 * Owner: service. Thread: loop, except worker_main() and what it calls.
 */
#include "server/io/workers.h"

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "lib/base/assert.h"

STAILQ_HEAD(job_queue, kvd_job);

/* What one turn hands back before it leaves the rest to the next one (SEMANTICS.md 18). */
#define DRAIN_NS_MAX UINT64_C(60000)

struct worker {
    struct kvd_workers *pool; /* borrowed */
    void *scratch;            /* owned: KVD_WORKER_SCRATCH_BYTES */
    uint64_t rng;             /* for jitter; the thread's own */
    pthread_t thread;
};

struct kvd_workers {
    struct kvd_io *io;       /* borrowed */
    struct kvd_wake *wake;   /* owned */
    struct worker *workers;  /* owned: thread_count of them, at least one for its scratch */
    size_t backlog;          /* loop only */
    struct job_queue back;   /* loop only: taken from `ended`, not handed back yet */
    unsigned thread_count;   /* asked for */
    unsigned started_count;  /* running */
    unsigned jitter_us_max;  /* immutable */
    pthread_mutex_t lock;    /* guards what follows */
    pthread_cond_t has_work; /* queue not empty, or stopping */
    struct job_queue queue;  /* submitted, not begun */
    struct job_queue ended;  /* run, not handed back */
    bool is_stopping;
};

static void mutex_lock(struct kvd_workers *pool)
{
    int rc = pthread_mutex_lock(&pool->lock);
    KVARN_ASSERT(rc == 0);
}

static void mutex_unlock(struct kvd_workers *pool)
{
    int rc = pthread_mutex_unlock(&pool->lock);
    KVARN_ASSERT(rc == 0);
}

/* splitmix64: every seed is good, zero included. */
static uint64_t rng_next(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static void jitter_sleep(struct worker *worker)
{
    uint64_t us = rng_next(&worker->rng) % ((uint64_t)worker->pool->jitter_us_max + 1);
    struct timespec delay = {
        .tv_sec = (time_t)(us / 1000000),
        .tv_nsec = (long)(us % 1000000) * 1000,
    };
    (void)nanosleep(&delay, NULL); /* signals are blocked here, and an early end does no harm */
}

/* The next job to run, or NULL when the pool is stopping. Waits. */
static struct kvd_job *job_wait(struct kvd_workers *pool)
{
    mutex_lock(pool);
    while (STAILQ_EMPTY(&pool->queue) && !pool->is_stopping) {
        int rc = pthread_cond_wait(&pool->has_work, &pool->lock);
        KVARN_ASSERT(rc == 0);
    }
    struct kvd_job *job = STAILQ_FIRST(&pool->queue);
    if (job != NULL) {
        STAILQ_REMOVE_HEAD(&pool->queue, link);
    }
    mutex_unlock(pool);
    return job;
}

static void job_hand_back(struct kvd_workers *pool, struct kvd_job *job)
{
    mutex_lock(pool);
    /* A list that is not empty has a wake-up on its way that will find this job too. */
    bool is_first = STAILQ_EMPTY(&pool->ended);
    STAILQ_INSERT_TAIL(&pool->ended, job, link);
    if (is_first) {
        /* Under the lock: once the loop has the last job back it may destroy the wake. */
        pool->io->ops->wake_send(pool->wake);
    }
    mutex_unlock(pool);
}

static void *worker_main(void *arg)
{
    struct worker *worker = arg;
    struct kvd_workers *pool = worker->pool;
    struct kvd_job *job;
    while ((job = job_wait(pool)) != NULL) {
        job->run(job, worker->scratch);
        if (pool->jitter_us_max > 0) {
            jitter_sleep(worker);
        }
        job_hand_back(pool, job);
    }
    return NULL;
}

/* Threads: give back the jobs that have ended, as many as this turn has time for. */
static void ended_drain(struct kvd_workers *pool)
{
    uint64_t start_ns = pool->io->ops->now_ns(pool->io);

    mutex_lock(pool);
    STAILQ_CONCAT(&pool->back, &pool->ended);
    mutex_unlock(pool);
    while (!STAILQ_EMPTY(&pool->back)) {
        struct kvd_job *job = STAILQ_FIRST(&pool->back);
        STAILQ_REMOVE_HEAD(&pool->back, link); /* before done: it may free or submit the job */
        KVARN_ASSERT(pool->backlog > 0);
        pool->backlog--;
        job->done(job);
        if (pool->io->ops->now_ns(pool->io) - start_ns > DRAIN_NS_MAX) {
            break;
        }
    }
    if (!STAILQ_EMPTY(&pool->back)) {
        pool->io->ops->wake_send(pool->wake);
    }
}

/* No threads: run one job of the queue. */
static void queue_run_one(struct kvd_workers *pool)
{
    struct worker *self = &pool->workers[0];
    struct kvd_job *job = STAILQ_FIRST(&pool->queue);
    if (job == NULL) {
        return;
    }
    if (pool->jitter_us_max > 0) {
        /* Pick one of the first four: enough to let any neighbours overtake each other. */
        uint64_t skip = rng_next(&self->rng) % 4;
        while (skip-- > 0 && STAILQ_NEXT(job, link) != NULL) {
            job = STAILQ_NEXT(job, link);
        }
    }
    STAILQ_REMOVE(&pool->queue, job, kvd_job, link);
    if (!STAILQ_EMPTY(&pool->queue)) {
        pool->io->ops->wake_send(pool->wake);
    }
    job->run(job, self->scratch);
    KVARN_ASSERT(pool->backlog > 0);
    pool->backlog--;
    job->done(job);
}

static void wake_cb(void *ctx)
{
    struct kvd_workers *pool = ctx;
    if (pool->thread_count == 0) {
        queue_run_one(pool);
    } else {
        ended_drain(pool);
    }
}

static int thread_start(struct worker *worker, unsigned idx)
{
    int rc = pthread_create(&worker->thread, NULL, worker_main, worker);
    if (rc != 0) {
        return KVARN_EINTERNAL;
    }
    char name[16]; /* the kernel's limit, zero included */
    (void)snprintf(name, sizeof(name), "kvarnd-w%u", idx % 100000);
    (void)pthread_setname_np(worker->thread, name);
    worker->pool->started_count++;
    return 0;
}

/* Signals are the loop's: workers are born with all of them blocked. */
static int threads_start(struct kvd_workers *pool)
{
    sigset_t all;
    sigset_t before;
    int err = 0;
    sigfillset(&all);
    if (pthread_sigmask(SIG_SETMASK, &all, &before) != 0) {
        return KVARN_EINTERNAL;
    }
    for (unsigned i = 0; i < pool->thread_count && err == 0; i++) {
        err = thread_start(&pool->workers[i], i);
    }
    int rc = pthread_sigmask(SIG_SETMASK, &before, NULL);
    KVARN_ASSERT(rc == 0);
    return err;
}

static unsigned worker_count(const struct kvd_workers *pool)
{
    return pool->thread_count > 0 ? pool->thread_count : 1;
}

static int workers_alloc(struct kvd_workers *pool, uint64_t jitter_seed)
{
    pool->workers = calloc(worker_count(pool), sizeof(*pool->workers));
    if (pool->workers == NULL) {
        return KVARN_ENOMEM;
    }
    for (unsigned i = 0; i < worker_count(pool); i++) {
        struct worker *worker = &pool->workers[i];
        worker->pool = pool;
        worker->rng = jitter_seed + i;
        worker->scratch = aligned_alloc(64, KVD_WORKER_SCRATCH_BYTES);
        if (worker->scratch == NULL) {
            return KVARN_ENOMEM;
        }
    }
    return 0;
}

int kvd_workers_create(
    struct kvd_io *io, const struct kvd_workers_options *options, struct kvd_workers **ret)
{
    int err = KVARN_ENOMEM;
    struct kvd_workers *pool = calloc(1, sizeof(*pool));
    if (pool == NULL) {
        return KVARN_ENOMEM;
    }
    pool->io = io;
    pool->thread_count = options->thread_count;
    pool->jitter_us_max = options->jitter_us_max;
    STAILQ_INIT(&pool->queue);
    STAILQ_INIT(&pool->ended);
    STAILQ_INIT(&pool->back);
    /* With default attributes neither call has a way to fail on Linux. */
    int rc = pthread_mutex_init(&pool->lock, NULL);
    KVARN_ASSERT(rc == 0);
    rc = pthread_cond_init(&pool->has_work, NULL);
    KVARN_ASSERT(rc == 0);
    pool->wake = io->ops->wake_create(io, wake_cb, pool);
    if (pool->wake == NULL) {
        goto fail;
    }
    err = workers_alloc(pool, options->jitter_seed);
    if (err != 0) {
        goto fail;
    }
    err = threads_start(pool);
    if (err != 0) {
        goto fail;
    }
    *ret = pool;
    return 0;
fail:
    kvd_workers_destroy(pool);
    return err;
}

static void threads_stop(struct kvd_workers *pool)
{
    mutex_lock(pool);
    pool->is_stopping = true;
    (void)pthread_cond_broadcast(&pool->has_work);
    mutex_unlock(pool);
    for (unsigned i = 0; i < pool->started_count; i++) {
        int rc = pthread_join(pool->workers[i].thread, NULL);
        KVARN_ASSERT(rc == 0);
    }
    pool->started_count = 0;
}

void kvd_workers_destroy(struct kvd_workers *pool)
{
    if (pool == NULL) {
        return;
    }
    KVARN_ASSERT(pool->backlog == 0);
    threads_stop(pool);
    KVARN_ASSERT(STAILQ_EMPTY(&pool->queue) && STAILQ_EMPTY(&pool->ended));
    if (pool->wake != NULL) {
        pool->io->ops->wake_destroy(pool->wake);
    }
    if (pool->workers != NULL) {
        for (unsigned i = 0; i < worker_count(pool); i++) {
            free(pool->workers[i].scratch);
        }
        free(pool->workers);
    }
    (void)pthread_cond_destroy(&pool->has_work);
    (void)pthread_mutex_destroy(&pool->lock);
    free(pool);
}

void kvd_workers_submit(struct kvd_workers *pool, struct kvd_job *job)
{
    KVARN_ASSERT(job->run != NULL && job->done != NULL);
    pool->backlog++;
    if (pool->thread_count == 0) {
        bool is_first = STAILQ_EMPTY(&pool->queue);
        STAILQ_INSERT_TAIL(&pool->queue, job, link);
        if (is_first) {
            pool->io->ops->wake_send(pool->wake);
        }
        return;
    }
    mutex_lock(pool);
    STAILQ_INSERT_TAIL(&pool->queue, job, link);
    (void)pthread_cond_signal(&pool->has_work);
    mutex_unlock(pool);
}

size_t kvd_workers_backlog(const struct kvd_workers *pool)
{
    return pool->backlog;
}

unsigned kvd_workers_thread_count(const struct kvd_workers *pool)
{
    return pool->thread_count;
}
