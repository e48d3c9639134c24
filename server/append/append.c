/*
 * Storing tokens: the life of an append, from its turn to its commit.
 *
 * Owner: the request that appends. Thread: loop; kvd_append_job_run() on a worker, which reads
 * staging and writes rows above the length, or tile pages not yet sealed: memory that no reader
 * looks at.
 */
#include "server/append/append.h"

#include "lib/base/xxh3.h"
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/append/append_impl.h"
#include "server/base/cache_line.h"
#include "server/base/kernel_cost.h"
#include "server/evict/session_evict.h"
#include "server/service.h"
#include "server/session/session_blocks.h"

/* SEMANTICS.md 18. */
#define INLINE_BYTES_MAX (64 * 1024)
#define INLINE_NS_MAX    30000

size_t kvd_append_inline_bytes_max(void)
{
    /* Of halves, which have most values a byte. */
    size_t bytes = (size_t)INLINE_NS_MAX * 1000 / kvd_kernel_cost()->append_ps * sizeof(uint16_t);

    return bytes < INLINE_BYTES_MAX ? bytes : INLINE_BYTES_MAX;
}

static void append_destroy(struct kvd_append *append)
{
    struct kvd_service *service = append->service;

    KVARN_ASSERT(append->copied == 0 && SLIST_EMPTY(&append->seals));
    KVARN_ASSERT(SLIST_EMPTY(&append->owned));
    for (uint32_t i = 0; i < append->plan.layer_count; i++) {
        kvd_metric_sum_unref(append->plan.layers[i].metric);
    }
    kvd_session_unref(append->session);
    kvd_large_give(&service->large, KVD_BUDGET_STAGING, append, append->taken_bytes);
}

/* Tell the owner and free. */
static void append_finish(struct kvd_append *append, const struct kvd_failure *why, bool is_repeat)
{
    append->done_cb(append->ctx, why, is_repeat);
    append_destroy(append);
}

/* The layers are nobody's any more: tell the owner, free, let others go on. */
static void append_end(struct kvd_append *append, const struct kvd_failure *why)
{
    struct kvd_session *session = kvd_session_ref(append->session);

    append_finish(append, why, false);
    kvd_session_kick(session);
    kvd_session_unref(session);
}

/* What was taken for it is given back: the block table becomes what it was, without a trace. */
static void append_abort(struct kvd_append *append)
{
    for (uint32_t i = 0; i < append->plan.layer_count; i++) {
        uint32_t layer = append->plan.layers[i].layer;
        append->session->work->layers[layer].pending_length = append->session->layers[layer].length;
    }
    kvd_append_release(append);
    kvd_session_trim(append->session);
    append_end(append, &append->why);
}

static void lengths_commit(struct kvd_append *append)
{
    struct kvd_session *session = append->session;
    struct kvd_metrics *metrics = &append->service->metrics;

    for (uint32_t i = 0; i < append->plan.layer_count; i++) {
        const struct kvd_append_layer *al = &append->plan.layers[i];
        struct kvd_layer_work *work = &session->work->layers[al->layer];
        session->layers[al->layer].length = (uint32_t)(al->start + al->token_count);
        KVARN_ASSERT(session->layers[al->layer].length == work->pending_length);
        work->last_count = al->token_count;
        work->last_hash = append->hash;
        kvd_metrics_add(metrics, KVD_METRIC_tokens_appended, al->token_count);
    }
    kvd_lifetime_touch(session);
}

/* Its attend takes its snapshot now. */
static void committed_tell(const struct kvd_append *append, uint32_t sealed_blocks)
{
    if (append->ret_cold != NULL) {
        *append->ret_cold = append->op.cold;
    }
    if (append->committed_cb != NULL) {
        append->committed_cb(append->ctx, sealed_blocks);
    }
}

/*
 * Everything is in place: one step on the loop makes it visible (SEMANTICS.md 8). Its layers stay
 * pending until what follows from it is done, in slices, so that nobody meets less.
 */
static void append_commit(struct kvd_append *append)
{
    struct kvd_session *session = append->session;
    uint32_t sealed_before = session->layers[append->plan.layers[0].layer].sealed_blocks;

    KVARN_ASSERT(append->unhashed == NULL);
    lengths_commit(append);
    committed_tell(append, sealed_before);
}

/* Nothing is stored for a session that was dropped, or too late, or against its owner's wish. */
static int append_check_wanted(const struct kvd_append *append, struct kvd_failure *why)
{
    struct kvd_io *io = append->service->io;

    if (append->session->is_dropped) {
        return kvd_fail(why, KVARN_ENOT_FOUND, "the session was dropped");
    }
    if (append->cancel_err != 0) {
        return kvd_fail(why, append->cancel_err, "nothing was stored");
    }
    if (append->deadline_ns != 0 && io->ops->now_ns(io) > append->deadline_ns) {
        return kvd_fail(why, KVARN_EDEADLINE, "nothing was stored");
    }
    return 0;
}

/* All units have been converted; had one a fault? */
static int append_conclude(const struct kvd_append *append, struct kvd_failure *why)
{
    for (uint32_t i = 0; i < append->job_count; i++) {
        if (append->jobs[i].fault.err != 0) {
            kvd_append_fault_describe(&append->jobs[i].fault, why);
            return why->err;
        }
    }
    return 0;
}

/* Is this the last append of each of its layers, sent again, but for the hash? (SEMANTICS.md 9) */
static bool append_may_repeat(const struct kvd_append *append)
{
    for (uint32_t i = 0; i < append->plan.layer_count; i++) {
        const struct kvd_append_layer *al = &append->plan.layers[i];
        const struct kvd_session *session = append->session;
        if (session->work == NULL ||
            session->work->layers[al->layer].last_count != al->token_count ||
            session->layers[al->layer].length != al->start + al->token_count) {
            return false;
        }
    }
    return true;
}

/* The same with the hash, which is known. */
static bool append_is_repeat(const struct kvd_append *append)
{
    KVARN_ASSERT(append->unhashed == NULL);
    if (!append_may_repeat(append)) {
        return false;
    }
    for (uint32_t i = 0; i < append->plan.layer_count; i++) {
        const struct kvd_session_work *work = append->session->work;
        if (work->layers[append->plan.layers[i].layer].last_hash != append->hash) {
            return false;
        }
    }
    return true;
}

static int append_check(struct kvd_append *append, struct kvd_failure *why)
{
    struct kvd_session *session = append->session;
    int err = kvd_session_check_epoch(session, append->epoch, why);

    if (err != 0) {
        return err;
    }
    for (uint32_t i = 0; i < append->plan.layer_count; i++) {
        const struct kvd_append_layer *al = &append->plan.layers[i];
        const struct kvd_layer *ly = &session->layers[al->layer];
        if (ly->length != al->start) {
            why->session = session;
            why->layer_first = append->op.layer_first;
            why->layer_count = append->op.layer_count;
            return kvd_fail(why, KVARN_ECONFLICT,
                "layer %" PRIu32 " has %" PRIu32 " tokens, got start %" PRIu64, al->layer,
                ly->length, al->start);
        }
    }
    for (uint32_t i = 0; i < append->plan.layer_count && err == 0; i++) {
        err = kvd_session_check_tail(session, append->plan.layers[i].layer, why);
    }
    return err;
}

/* Stored before: what follows an append is done again (SEMANTICS.md 9). */
static void append_finish_repeat(struct kvd_append *append)
{
    const struct kvd_session *session = append->session;
    struct kvd_failure none = {0};

    committed_tell(append, session->layers[append->plan.layers[0].layer].sealed_blocks);
    append_finish(append, &none, true);
}

/* The payload is hashed: it was a retry, or it is in conflict. */
static void append_probe_conclude(struct kvd_append *append)
{
    struct kvd_session *session = kvd_session_ref(append->session);
    struct kvd_failure why = {0};

    for (uint32_t i = 0; i < append->plan.layer_count; i++) {
        struct kvd_layer_work *work = &session->work->layers[append->plan.layers[i].layer];
        KVARN_ASSERT(work->pending > 0);
        work->pending--;
    }
    if (append_check(append, &why) == KVARN_ECONFLICT && append_is_repeat(append)) {
        append_finish_repeat(append);
    } else {
        append_finish(append, &why, false);
    }
    kvd_session_kick(session);
    kvd_session_unref(session);
}

uint64_t kvd_append_hash_join(uint64_t meaning, uint64_t payload_hash)
{
    return XXH3_64bits_withSeed(&payload_hash, sizeof(payload_hash), meaning);
}

/* One step of the phase, whatever it is. Returns as kvd_append_step(). */
static int append_step(struct kvd_append *append, struct kvd_failure *why)
{
    int err;

    switch (append->phase) {
    case KVD_APPEND_RUN:
        err = append_conclude(append, why);
        return err == 0 ? 1 : err;
    case KVD_APPEND_COMMIT:
        err = append_check_wanted(append, why);
        if (err == 0) {
            append_commit(append);
        }
        return err == 0 ? 1 : err;
    default:
        return kvd_append_step(append, why);
    }
}

/* Go on as far as this turn has time; the append may be gone when this returns. */
static void append_go_on(struct kvd_append *append)
{
    struct kvd_slices *slices = &append->service->sessions.slices;
    struct kvd_failure why = {0};
    int err = append->phase < KVD_APPEND_SUBMIT ? append_check_wanted(append, &why) : 0;

    while (append->phase != KVD_APPEND_DONE && append->phase != KVD_APPEND_UNDONE) {
        if (append->phase == KVD_APPEND_RUN && append->jobs_left > 0) {
            return;
        }
        err = err == 0 ? append_step(append, &why) : err;
        if (err < 0) {
            append->why = why;
            append->phase = KVD_APPEND_UNDO;
        } else if (err > 0) {
            append->phase = (enum kvd_append_phase)(append->phase + 1);
            append->unit_idx = 0;
        } else if (!kvd_slices_has_time(slices)) {
            kvd_slices_add(slices, &append->slice);
            return;
        }
        err = 0;
    }
    if (append->phase == KVD_APPEND_DONE) {
        append_end(append, &(struct kvd_failure){0});
    } else {
        append_abort(append);
    }
}

void kvd_append_job_done(struct kvd_job *job)
{
    struct kvd_append *append = ((struct kvd_append_job *)(void *)job)->append;

    KVARN_ASSERT(append->jobs_left > 0);
    append->jobs_left--;
    if (append->jobs_left == 0 && append->is_probing) {
        append_probe_conclude(append);
    } else if (append->jobs_left == 0) {
        kvd_slices_begin(&append->service->sessions.slices);
        append_go_on(append);
    }
}

static void append_slice_run(struct kvd_slice *slice)
{
    append_go_on((void *)((uint8_t *)slice - offsetof(struct kvd_append, slice)));
}

/* It may be a retry: hash the payload on a worker while nobody else changes the layers. */
static void append_probe(struct kvd_append *append)
{
    struct kvd_append_job *aj = &append->jobs[0];

    for (uint32_t i = 0; i < append->plan.layer_count; i++) {
        append->session->work->layers[append->plan.layers[i].layer].pending++;
    }
    *aj = (struct kvd_append_job){.append = append}; /* no units: the hash alone */
    aj->job.run = kvd_append_job_run;
    aj->job.done = kvd_append_job_done;
    append->is_probing = true;
    append->jobs_left = 1;
    kvd_workers_submit(append->service->workers, &aj->job);
}

static void append_admit_cb(struct kvd_session_op *op)
{
    struct kvd_append *append = (struct kvd_append *)(void *)op;
    struct kvd_session *session = append->session;
    struct kvd_failure why = {0};

    int err = append_check(append, &why);
    if (err == KVARN_ECONFLICT && append_may_repeat(append)) {
        if (append->unhashed != NULL) {
            append_probe(append);
            return;
        }
        if (append_is_repeat(append)) {
            append_finish_repeat(append);
            return;
        }
    }
    if (err == 0 && kvd_session_want_work(session) != 0) {
        err = kvd_session_fail_space(append->service, sizeof(struct kvd_session_work), &why);
    }
    if (err != 0) {
        append_finish(append, &why, false);
        return;
    }
    for (uint32_t i = 0; i < append->plan.layer_count; i++) {
        const struct kvd_append_layer *al = &append->plan.layers[i];
        struct kvd_layer_work *work = &session->work->layers[al->layer];
        work->pending_length = (uint32_t)(al->start + al->token_count);
        work->pending++;
    }
    append_go_on(append);
}

/* Sizes of an append. */
struct append_room {
    uint32_t layers;
    uint64_t units;
    uint64_t src_bytes;
    uint32_t names; /* of blocks, made ahead */
};

/*
 * One allocation for all of it, charged with the payload; the plan is filled by the caller. Returns
 * 0; KVARN_ENOMEM; or what `why` says about the budget.
 */
static int append_create(struct kvd_service *service, struct kvd_session *session,
    const struct append_room *room, struct kvd_append **ret, struct kvd_failure *why)
{
    uint64_t job_room = room->src_bytes / KVD_APPEND_JOB_BYTES_MIN + 1;
    size_t head = kvd_round_64(sizeof(struct kvd_append));
    size_t layers = kvd_round_64(room->layers * sizeof(struct kvd_append_layer));
    size_t units = kvd_round_64(room->units * sizeof(struct kvd_append_unit));
    size_t jobs = kvd_round_64(job_room * sizeof(struct kvd_append_job));
    size_t bytes = head + layers + units + jobs + (size_t)room->names * KVD_BLOCK_NAME_BYTES;

    void *taken = NULL;
    int err = kvd_large_take(&service->large, KVD_BUDGET_STAGING, bytes, &taken);
    if (err != 0) {
        return err == KVARN_ENOSPC ? kvd_session_fail_space(service, bytes, why) : err;
    }
    uint8_t *memory = taken;
    /* The rest may be megabytes: it is written before it is read. */
    memset(memory, 0, head + layers);
    struct kvd_append *append = (void *)memory;
    append->op.admit_cb = append_admit_cb;
    append->slice.run = append_slice_run;
    append->service = service;
    append->session = kvd_session_ref(session);
    append->taken_bytes = bytes;
    append->plan.layers = (void *)(memory + head);
    append->plan.units = (void *)(memory + head + layers);
    append->plan.src_bytes = room->src_bytes;
    append->jobs = (void *)(memory + head + layers + units);
    append->job_room = (uint32_t)job_room;
    append->prefix_names.names = room->names == 0 ? NULL : memory + head + layers + units + jobs;
    SLIST_INIT(&append->seals);
    SLIST_INIT(&append->owned);
    *ret = append;
    return 0;
}

/* What the seals of this append will know of queries is what the daemon knows when it arrives. */
static void append_pick_metrics(struct kvd_append *append)
{
    for (uint32_t i = 0; i < append->plan.layer_count; i++) {
        struct kvd_append_layer *al = &append->plan.layers[i];
        al->metric = kvd_seal_pick_metric(append->session, al->layer);
    }
}

int kvd_append_start(
    struct kvd_service *service, const struct kvd_append_args *args, struct kvd_append **ret)
{
    struct kvd_prefix_note note = {.start = args->start,
        .token_count = args->token_count,
        .kind = args->prefix_kind,
        .data = args->prefix_data};
    struct append_room room = {.layers = args->layer_count,
        .names = kvd_prefix_names_room(args->session, &note),
        .units = kvd_append_plan_units(args),
        .src_bytes = kvd_append_payload_bytes(args->session->shape, args->layer_first,
            args->layer_count, args->token_count, args->dtype)};
    struct kvd_failure why = {0};
    struct kvd_append *append = NULL;

    int err = append_create(service, args->session, &room, &append, &why);
    if (err == KVARN_ENOMEM) {
        return err;
    }
    if (err != 0) {
        args->done_cb(args->ctx, &why, false);
        return 0;
    }
    KVARN_ASSERT(append != NULL);
    kvd_append_plan_rows(&append->plan, args);
    append->unit_count = (uint32_t)room.units;
    append_pick_metrics(append);
    append->epoch = args->epoch;
    append->hash = append->plan.meaning;
    append->is_batched = args->is_batched;
    if (args->is_batched) {
        append->unhashed = args->payload;
        append->unhashed_bytes = (size_t)room.src_bytes;
    } else {
        append->hash = kvd_append_hash_join(append->hash, args->payload_hash);
    }
    append->prefix_note = note;
    append->deadline_ns = args->deadline_ns;
    append->ctx = args->ctx;
    append->committed_cb = args->committed_cb;
    append->ret_cold = args->ret_cold;
    append->done_cb = args->done_cb;
    append->op.layer_first = args->layer_first;
    append->op.layer_count = args->layer_count;
    bool attends = args->committed_cb != NULL; /* to all there is */
    append->op.needs_tail = !attends;
    append->op.block_last = attends ? UINT32_MAX : 0;
    if (ret != NULL) {
        *ret = append;
    }
    kvd_session_enqueue(args->session, &append->op);
    return 0;
}

void kvd_append_cancel(struct kvd_append *append, int err)
{
    KVARN_ASSERT(err != 0);
    if (!append->op.is_queued) {
        append->cancel_err = err;
        return;
    }
    struct kvd_failure why = {0};
    kvd_fail(&why, err, "nothing was stored");
    kvd_session_op_cancel(&append->op);
    append_finish(append, &why, false);
}

int kvd_append_tiles_start(struct kvd_service *service, const struct kvd_append_tiles_args *args)
{
    const struct kvd_append_run *last = &args->runs[args->run_count - 1];
    struct append_room room = {.layers = args->run_count, .units = kvd_append_plan_run_units(args)};
    struct kvd_failure why = {0};
    struct kvd_append *append = NULL;

    KVARN_ASSERT(args->run_count > 0);
    for (uint32_t i = 0; i < args->run_count; i++) {
        room.src_bytes += kvd_append_run_bytes(args->session->shape, &args->runs[i]);
    }
    int err = append_create(service, args->session, &room, &append, &why);
    if (err == KVARN_ENOMEM) {
        return err;
    }
    if (err != 0) {
        args->done_cb(args->ctx, &why, false);
        return 0;
    }
    KVARN_ASSERT(append != NULL);
    kvd_append_plan_runs(&append->plan, args);
    append->unit_count = (uint32_t)room.units;
    append_pick_metrics(append);
    append->epoch = args->epoch;
    append->hash = kvd_append_hash_join(append->plan.meaning, args->payload_hash);
    append->deadline_ns = args->deadline_ns;
    append->ctx = args->ctx;
    append->done_cb = args->done_cb;
    append->op.layer_first = args->runs[0].layer;
    append->op.layer_count = last->layer - append->op.layer_first + 1;
    append->op.needs_tail = true;
    if (args->ret_append != NULL) {
        *args->ret_append = append;
    }
    kvd_session_enqueue(args->session, &append->op);
    return 0;
}
