/*
 * Prefetch jobs: which blocks are wanted next, and what became of them.
 *
 * Owner: service. Thread: loop only.
 */
#include "server/cold/prefetch.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/prefix/prefix_lease.h"
#include "server/service.h"

/* Blocks that one step of measuring looks at: a cache miss each. */
#define MEASURE_BLOCKS 64

#define NS_PER_MS 1000000

static uint64_t now_ns(const struct kvd_prefetches *prefetches)
{
    struct kvd_io *io = prefetches->service->io;

    return io->ops->now_ns(io);
}

void kvd_prefetches_init(struct kvd_prefetches *prefetches, struct kvd_service *service)
{
    *prefetches = (struct kvd_prefetches){.service = service};
    TAILQ_INIT(&prefetches->running);
    TAILQ_INIT(&prefetches->ended);
}

/* Let go of what it loads. */
static void job_release(struct kvd_prefetch_job *job)
{
    if (job->session != NULL) {
        kvd_session_unref(job->session);
        job->session = NULL;
    }
    kvd_prefix_lease_destroy(job->lease);
    job->lease = NULL;
}

static void job_free(struct kvd_prefetch_job *job)
{
    job_release(job);
    free(job->name);
    free(job);
}

static void list_free(struct kvd_prefetch_job_list *list)
{
    struct kvd_prefetch_job *job;

    while ((job = TAILQ_FIRST(list)) != NULL) {
        TAILQ_REMOVE(list, job, link);
        job_free(job);
    }
}

void kvd_prefetches_fini(struct kvd_prefetches *prefetches)
{
    if (prefetches->service == NULL) {
        return;
    }
    list_free(&prefetches->running);
    list_free(&prefetches->ended);
    *prefetches = (struct kvd_prefetches){0};
}

void kvd_prefetches_expire(struct kvd_prefetches *prefetches)
{
    uint64_t now = now_ns(prefetches);
    struct kvd_prefetch_job *job;
    struct kvd_prefetch_job *newer;

    TAILQ_FOREACH_REVERSE_SAFE(job, &prefetches->ended, kvd_prefetch_job_list, link, newer)
    {
        bool is_old = now - job->end_ns > (uint64_t)KVARN_PREFETCH_ENDED_MS_MAX * NS_PER_MS;
        if (!is_old && prefetches->ended_count <= KVARN_PREFETCH_ENDED_MAX) {
            break;
        }
        TAILQ_REMOVE(&prefetches->ended, job, link);
        prefetches->ended_count--;
        job_free(job);
    }
}

static void job_end(struct kvd_prefetch_job *job, Kvarnd__JobState state)
{
    struct kvd_prefetches *prefetches = job->prefetches;

    KVARN_ASSERT(job->state == KVARND__JOB_STATE__JOB_RUNNING);
    job->state = state;
    job->end_ns = now_ns(prefetches);
    if (state == KVARND__JOB_STATE__JOB_DONE) {
        /* Operations may have brought some of them, and some may be gone, by a cut. */
        job->blocks_done = job->blocks;
        job->bytes_done = job->bytes;
    }
    TAILQ_REMOVE(&prefetches->running, job, link);
    prefetches->running_count--;
    prefetches->count--;
    job_release(job);
    TAILQ_INSERT_HEAD(&prefetches->ended, job, link);
    prefetches->ended_count++;
    kvd_prefetches_expire(prefetches);
}

/* Blocks that there are now. */
static uint32_t block_count(const struct kvd_prefetch_job *job)
{
    return job->session != NULL ? kvd_session_block_count(job->session) : job->lease->chain.blocks;
}

/* One of them; NULL: all layers dropped it. */
static const struct kvd_block *block_at(const struct kvd_prefetch_job *job, uint32_t block_idx)
{
    return job->session != NULL ? kvd_session_block(job->session, block_idx)
                                : kvd_prefix_lease_block(job->lease, block_idx);
}

static bool is_loading(const struct kvd_prefetch_job *job, uint32_t block_idx)
{
    return job->session != NULL
               ? kvd_cold_is_loading(job->session, block_idx)
               : kvd_prefix_lease_block(job->lease, block_idx)->state == KVD_BLOCK_LOADING;
}

static uint64_t load_bytes(const struct kvd_prefetch_job *job, uint32_t block_idx)
{
    return job->session != NULL ? kvd_cold_load_bytes(job->session, block_idx)
                                : kvd_cold_block_bytes(job->prefetches->service,
                                      kvd_prefix_lease_block(job->lease, block_idx));
}

static int fetch(const struct kvd_prefetch_job *job, uint32_t block_idx)
{
    return job->session != NULL ? kvd_cold_fetch(job->session, block_idx, KVD_COLD_FOR_JOB)
                                : kvd_cold_fetch_shared(job->prefetches->service, job->lease->shape,
                                      block_idx, kvd_prefix_lease_block(job->lease, block_idx));
}

/* A block is no longer on its way. */
static void block_settle(struct kvd_prefetch_job *job, const struct kvd_prefetch_flight *flight)
{
    const struct kvd_block *block =
        flight->block_idx < block_count(job) ? block_at(job, flight->block_idx) : NULL;

    if (block != NULL && block->state == KVD_BLOCK_COLD) {
        job->err = KVARN_ENOSPC;
        job->last = job->next; /* there is no room: nor for others */
    } else if (block != NULL && block->state == KVD_BLOCK_MISSING) {
        job->err = job->err == 0 ? KVARN_EMISS : job->err;
    } else {
        job->blocks_done++;
        job->bytes_done += flight->bytes;
        kvd_metrics_add(&job->prefetches->service->metrics, KVD_METRIC_prefetch_blocks, 1);
    }
}

/* What became of the blocks on their way. */
static void flight_look(struct kvd_prefetch_job *job)
{
    uint32_t count = block_count(job);
    uint32_t flight_count = job->flight_count;

    job->last = job->last < count ? job->last : count;
    job->flight_count = 0;
    for (uint32_t i = 0; i < flight_count; i++) {
        struct kvd_prefetch_flight flight = job->flight[i];
        if (flight.block_idx < count && is_loading(job, flight.block_idx)) {
            job->flight[job->flight_count++] = flight;
        } else {
            block_settle(job, &flight);
        }
    }
}

/* Whether a block is to be loaded, or is being loaded. */
static bool is_away(const struct kvd_prefetch_job *job, uint32_t block_idx)
{
    const struct kvd_block *block = block_at(job, block_idx);

    return block != NULL && (block->state == KVD_BLOCK_COLD || block->state == KVD_BLOCK_LOADING);
}

static void flight_fill(struct kvd_prefetch_job *job)
{
    while (job->next < job->last && job->flight_count < KVD_PREFETCH_FLIGHT_MAX) {
        if (!is_away(job, job->next)) {
            job->next++;
            continue;
        }
        int err = fetch(job, job->next);
        if (err == KVARN_ERETRY_LATER) {
            return; /* something is being loaded, and its end comes here */
        }
        if (err != 0) {
            job->err = err;
            job->last = job->next;
            return;
        }
        job->flight[job->flight_count++] =
            (struct kvd_prefetch_flight){job->next, load_bytes(job, job->next)};
        job->next++;
    }
}

static void job_run(struct kvd_prefetch_job *job)
{
    if (job->prefetches->service->is_draining) {
        job_end(job, KVARND__JOB_STATE__JOB_CANCELLED);
        return;
    }
    flight_look(job);
    flight_fill(job);
    if (job->flight_count == 0 && job->next >= job->last) {
        job_end(job, job->err != 0 ? KVARND__JOB_STATE__JOB_FAILED : KVARND__JOB_STATE__JOB_DONE);
    }
}

void kvd_prefetches_run(struct kvd_prefetches *prefetches)
{
    struct kvd_prefetch_job *job;
    struct kvd_prefetch_job *next;

    TAILQ_FOREACH_SAFE(job, &prefetches->running, link, next)
    {
        if (job->session != NULL) {
            kvd_cold_wait(job->session); /* its missing range is seen to */
        }
        job_run(job);
    }
}

void kvd_prefetch_cancel(const struct kvd_session *session)
{
    struct kvd_prefetches *prefetches = &session->service->prefetches;
    struct kvd_prefetch_job *job;
    struct kvd_prefetch_job *next;

    TAILQ_FOREACH_SAFE(job, &prefetches->running, link, next)
    {
        if (job->session == session) {
            job_end(job, KVARND__JOB_STATE__JOB_CANCELLED);
        }
    }
}

/* A job, of what the caller puts into it. */
static int job_create(struct kvd_prefetches *prefetches, const char *name,
    struct kvd_prefetch_job **ret, struct kvd_failure *why)
{
    if (prefetches->service->cold.tier == NULL) {
        return kvd_fail(why, KVARN_EUNSUPPORTED,
            "this daemon has no cold tier to prefetch from: it was started without --cold-dir");
    }
    if (prefetches->count >= KVARN_PREFETCH_JOBS_MAX) {
        return kvd_fail(why, KVARN_ERETRY_LATER, "%d prefetches are under way, the most there are",
            KVARN_PREFETCH_JOBS_MAX);
    }
    struct kvd_prefetch_job *job = calloc(1, sizeof(*job));
    char *copy = strdup(name == NULL ? "" : name);
    if (job == NULL || copy == NULL) {
        free(job);
        free(copy);
        return kvd_fail(why, KVARN_ENOMEM, "no memory for a job");
    }
    job->prefetches = prefetches;
    job->name = copy;
    job->state = KVARND__JOB_STATE__JOB_RUNNING;
    prefetches->count++;
    *ret = job;
    return 0;
}

int kvd_prefetch_create(struct kvd_prefetches *prefetches, struct kvd_session *session,
    uint32_t last_blocks, struct kvd_prefetch_job **ret, struct kvd_failure *why)
{
    uint32_t count = kvd_session_block_count(session);
    int err = job_create(prefetches, session->name, ret, why);

    if (err != 0) {
        return err;
    }
    struct kvd_prefetch_job *job = *ret;
    job->session = kvd_session_ref(session);
    job->tenant_id = session->tenant_id;
    job->last = count;
    job->measured = job->next = count - (last_blocks < count ? last_blocks : count);
    if (session->missing_last == session->missing_first) {
        job->measured = count; /* nothing can be cold */
    }
    return 0;
}

int kvd_prefetch_create_prefix(struct kvd_prefetches *prefetches, struct kvd_prefix_lease *lease,
    struct kvd_prefetch_job **ret, struct kvd_failure *why)
{
    int err = job_create(prefetches, NULL, ret, why);

    if (err == 0) {
        KVARN_ASSERT(lease->table == NULL);
        (*ret)->lease = lease;
        (*ret)->tenant_id = lease->shape->tenant_id;
        (*ret)->last = lease->chain.blocks;
    }
    return err;
}

bool kvd_prefetch_measure(struct kvd_prefetch_job *job)
{
    uint32_t count = block_count(job);
    uint32_t last = job->last < count ? job->last : count;

    for (uint32_t i = 0; i < MEASURE_BLOCKS && job->measured < last; i++, job->measured++) {
        if (is_away(job, job->measured)) {
            job->next = job->blocks == 0 ? job->measured : job->next;
            job->blocks++;
            job->bytes += load_bytes(job, job->measured);
        }
    }
    return job->measured < last;
}

void kvd_prefetch_start(struct kvd_prefetch_job *job)
{
    struct kvd_prefetches *prefetches = job->prefetches;

    job->id = ++prefetches->id_last;
    job->start_ns = now_ns(prefetches);
    TAILQ_INSERT_TAIL(&prefetches->running, job, link);
    prefetches->running_count++;
    kvd_metrics_add(&prefetches->service->metrics, KVD_METRIC_prefetch_jobs, 1);
    const struct kvd_session *session = job->session;
    if (session != NULL && (session->is_dropped || session->cold.is_buried)) {
        job_end(job, KVARND__JOB_STATE__JOB_CANCELLED);
    } else {
        job_run(job);
    }
}

void kvd_prefetch_discard(struct kvd_prefetch_job *job)
{
    if (job != NULL) {
        KVARN_ASSERT(job->id == 0);
        job->prefetches->count--;
        job_free(job);
    }
}
