/*
 * Calls about what comes back ahead of its use: Prefetch and ListJobs.
 *
 * Owner: the request. Thread: loop only. A Prefetch of a session takes its turn in it, so that it
 * sees what an Evict before it did; then its blocks are counted, in slices, and the job begins.
 */
#include <inttypes.h>
#include <stddef.h>

#include "proto/wire_error.h"
#include "server/rpc/rpc.h"
#include "server/rpc/rpc_check.h"
#include "server/rpc/rpc_prefix_walk.h"

/* A Prefetch under way; in the request's memory. */
struct prefetch_call {
    struct kvd_session_op op; /* first: the queue's handle */
    struct kvd_slice slice;   /* listed while more blocks are to be counted */
    struct kvd_request *request;
    struct kvd_prefetch_job *job; /* owned until it is started; NULL before its turn */
};

static const Kvarnd__Prefetch *prefetch_message(const struct kvd_request *request)
{
    return (const void *)request->message;
}

static void prefetch_cancel_cb(struct kvd_request *request, int err)
{
    struct prefetch_call *call = request->handler;
    struct kvd_failure why = {0};

    kvd_fail(&why, err, "the prefetch had not begun; nothing is loaded");
    if (call->op.is_queued) {
        kvd_session_op_cancel(&call->op);
    } else {
        kvd_slices_remove(&request->service->sessions.slices, &call->slice);
        kvd_prefetch_discard(call->job);
    }
    kvd_request_fail(request, &why);
}

static struct kvd_prefix_words prefetch_words(const Kvarnd__Prefetch *message)
{
    return (struct kvd_prefix_words){.shape_id = message->shape_id,
        .salt = &message->salt,
        .has_token_count = message->has_token_count,
        .has_hash_count = message->has_hash_count,
        .token_count = message->token_count,
        .hash_count = message->hash_count};
}

int kvd_rpc_prefetch_payload(
    const struct kvd_request *request, uint64_t *ret, struct kvd_failure *why)
{
    const Kvarnd__Prefetch *message = prefetch_message(request);
    struct kvd_prefix_words words = prefetch_words(message);
    bool is_session = message->has_handle || message->name != NULL || message->has_last_blocks;
    bool is_prefix =
        message->has_shape_id || message->has_salt || words.has_token_count || words.has_hash_count;

    if (is_session && is_prefix) {
        return kvd_fail(why, KVARN_EINVALID,
            "give a session or a prefix (shape_id, salt, token_count, hash_count), got both");
    }
    if (!is_prefix) {
        *ret = 0;
        return 0;
    }
    return kvd_prefix_words_payload(&words, ret, why);
}

static void prefetch_finish(struct prefetch_call *call)
{
    struct kvd_prefetch_job *job = call->job;
    struct kvd_request *request = call->request;
    Kvarnd__PrefetchReply reply = KVARND__PREFETCH_REPLY__INIT;
    Kvarnd__Status status = KVARND__STATUS__INIT;

    request->cancel_cb = NULL;
    reply.status = &status;
    reply.has_blocks = reply.has_bytes = 1;
    reply.blocks = job->blocks;
    reply.bytes = job->bytes;
    if (job->lease != NULL) {
        reply.has_tokens = 1;
        reply.tokens = (uint64_t)job->lease->chain.blocks * job->lease->shape->group;
    }
    if (job->blocks == 0) {
        kvd_prefetch_discard(job);
    } else {
        kvd_prefetch_start(job); /* it may have ended, but is kept: the id is good */
        reply.has_job_id = 1;
        reply.job_id = job->id;
    }
    kvd_request_reply(request, &reply.base, NULL, 0);
}

static void prefetch_go_on(struct prefetch_call *call)
{
    struct kvd_slices *slices = &call->request->service->sessions.slices;

    while (kvd_prefetch_measure(call->job)) {
        if (!kvd_slices_has_time(slices)) {
            kvd_slices_add(slices, &call->slice);
            return;
        }
    }
    prefetch_finish(call);
}

static void prefetch_slice_run(struct kvd_slice *slice)
{
    prefetch_go_on((void *)((uint8_t *)slice - offsetof(struct prefetch_call, slice)));
}

static void prefetch_admit_cb(struct kvd_session_op *op)
{
    struct prefetch_call *call = (void *)op;
    struct kvd_request *request = call->request;
    const Kvarnd__Prefetch *message = prefetch_message(request);
    struct kvd_failure why = {0};
    uint32_t last_blocks = message->has_last_blocks ? message->last_blocks : UINT32_MAX;
    int err = op->session->is_dropped ? kvd_fail(&why, KVARN_ENOT_FOUND, "the session was dropped")
                                      : kvd_prefetch_create(&request->service->prefetches,
                                            op->session, last_blocks, &call->job, &why);

    if (err != 0) {
        request->cancel_cb = NULL;
        kvd_request_fail(request, &why);
        return;
    }
    kvd_lifetime_touch(op->session);
    prefetch_go_on(call);
}

/* The prefix is known: what of it is cold is to be loaded. */
static void prefix_found_cb(struct kvd_request *request, struct kvd_prefix_lease *lease)
{
    struct prefetch_call *call = kvarn_wire_alloc_take(&request->alloc, sizeof(*call));
    struct kvd_prefetches *prefetches = &request->service->prefetches;
    struct kvd_failure why = {0};

    if (call == NULL) {
        kvd_fail(&why, KVARN_ENOMEM, "no memory for the request");
    } else {
        *call = (struct prefetch_call){.request = request, .slice = {.run = prefetch_slice_run}};
    }
    if (call == NULL || kvd_prefetch_create_prefix(prefetches, lease, &call->job, &why) != 0) {
        kvd_prefix_lease_destroy(lease);
        kvd_request_fail(request, &why);
        return;
    }
    request->handler = call;
    request->cancel_cb = prefetch_cancel_cb;
    prefetch_go_on(call);
}

static void session_prefetch(struct kvd_request *request)
{
    const Kvarnd__Prefetch *message = prefetch_message(request);
    struct prefetch_call *call = kvarn_wire_alloc_take(&request->alloc, sizeof(*call));
    struct kvd_failure why = {0};
    struct kvd_session *session =
        kvd_rpc_find_session(request, message->has_handle, message->handle, message->name, &why);

    if (session != NULL && message->has_last_blocks && message->last_blocks == 0) {
        session = NULL;
        kvd_fail(&why, KVARN_EINVALID, "last_blocks must be at least 1; left out it means all");
    }
    if (session != NULL && call == NULL) {
        session = NULL;
        kvd_fail(&why, KVARN_ENOMEM, "no memory for the request");
    }
    if (session == NULL) {
        kvd_request_fail(request, &why);
        return;
    }
    *call = (struct prefetch_call){.request = request, .slice = {.run = prefetch_slice_run}};
    call->op.layer_count = session->shape->layer_count;
    call->op.admit_cb = prefetch_admit_cb;
    request->handler = call;
    request->cancel_cb = prefetch_cancel_cb;
    kvd_session_enqueue(session, &call->op);
}

void kvd_rpc_prefetch(struct kvd_request *request)
{
    const Kvarnd__Prefetch *message = prefetch_message(request);
    struct kvd_prefix_words words = prefetch_words(message);

    if (message->has_shape_id || words.has_token_count || words.has_hash_count) {
        kvd_prefix_walk(request, &words, KVD_PREFIX_STORED, prefix_found_cb);
    } else {
        session_prefetch(request);
    }
}

static void summary_fill(
    Kvarnd__JobSummary *summary, const struct kvd_prefetch_job *job, uint64_t now_ns)
{
    kvarnd__job_summary__init(summary);
    summary->job_id = job->id;
    summary->session = job->name;
    summary->state = job->state;
    summary->has_blocks_done = summary->has_blocks = 1;
    summary->blocks_done = job->blocks_done;
    summary->blocks = job->blocks;
    summary->has_bytes_done = summary->has_bytes = 1;
    summary->bytes_done = job->bytes_done;
    summary->bytes = job->bytes;
    summary->has_age_ms = 1;
    summary->age_ms = (now_ns - job->start_ns) / 1000000;
    if (job->end_ns != 0) {
        summary->has_run_ms = 1;
        summary->run_ms = (job->end_ns - job->start_ns) / 1000000;
    }
    if (job->state == KVARND__JOB_STATE__JOB_FAILED) {
        summary->has_error = 1;
        summary->error = kvarn_wire_status(job->err);
    }
}

static void list_fill(Kvarnd__ListJobsReply *reply, Kvarnd__JobSummary *summaries,
    const struct kvd_prefetch_job_list *list, uint64_t now_ns)
{
    const struct kvd_prefetch_job *job;

    TAILQ_FOREACH(job, list, link)
    {
        if (job->tenant_id == KVD_TENANT_DEFAULT) {
            summary_fill(&summaries[reply->n_jobs], job, now_ns);
            reply->jobs[reply->n_jobs] = &summaries[reply->n_jobs];
            reply->n_jobs++;
        }
    }
}

void kvd_rpc_list_jobs(struct kvd_request *request)
{
    struct kvd_prefetches *prefetches = &request->service->prefetches;
    struct kvd_io *io = request->service->io;
    Kvarnd__ListJobsReply reply = KVARND__LIST_JOBS_REPLY__INIT;
    Kvarnd__Status status = KVARND__STATUS__INIT;
    struct kvd_failure why = {0};

    kvd_prefetches_expire(prefetches);
    size_t count = (size_t)prefetches->running_count + prefetches->ended_count + 1;
    reply.jobs = kvarn_wire_alloc_take(&request->alloc, count * sizeof(Kvarnd__JobSummary *));
    Kvarnd__JobSummary *summaries =
        kvarn_wire_alloc_take(&request->alloc, count * sizeof(*summaries));
    if (reply.jobs == NULL || summaries == NULL) {
        kvd_fail(&why, KVARN_ENOMEM, "no memory for the reply");
        kvd_request_fail(request, &why);
        return;
    }
    uint64_t now_ns = io->ops->now_ns(io);
    list_fill(&reply, summaries, &prefetches->running, now_ns);
    list_fill(&reply, summaries, &prefetches->ended, now_ns);
    reply.status = &status;
    kvd_request_reply(request, &reply.base, NULL, 0);
}
