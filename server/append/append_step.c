/*
 * Steps of an append: what it does on the loop, in pieces of some microseconds, so that an append
 * of a hundred thousand units does not hold it (SEMANTICS.md 18).
 *
 * Owner: the request that appends. Thread: loop, except kvd_append_job_run().
 */
#include <stddef.h>

#include "lib/base/assert.h"
#include "lib/base/xxh3.h"
#include "server/append/append_impl.h"
#include "server/service.h"
#include "server/session/session_blocks.h"

/* Units, or blocks of a layer, that a step looks at: up to half a microsecond each. */
#define UNITS_PER_STEP 32

static int step_plan(struct kvd_append *append)
{
    if (!kvd_append_plan_more(&append->plan)) {
        return 0;
    }
    KVARN_ASSERT(append->plan.unit_count == append->unit_count);
    return 1;
}

/* The blocks that a layer needs: as the plan has them, or one more. */
static uint64_t layer_blocks(const struct kvd_append *append, const struct kvd_append_layer *al)
{
    uint64_t group = append->session->shape->group;

    return (al->start + al->token_count + group - 1) / group;
}

/*
 * Rows of all layers for the block that the committed length has come to: so a decode step finds
 * room at its first layer or not at all (SEMANTICS.md 5). A layer that runs ahead, as in a prefill
 * layer by layer, takes rows for itself alone: the others would hold theirs unused until it is
 * their turn, when its own are sealed and given back.
 */
static enum kvd_reserve next_reserve(const struct kvd_session *session)
{
    uint64_t next = kvd_session_length(session) / session->shape->group;

    return kvd_session_block_count(session) <= next ? KVD_RESERVE_ROWS : KVD_RESERVE_TILES;
}

/* A block more; without memory for it the next step tries again while eviction makes some. */
static int block_add(struct kvd_session *session, enum kvd_reserve kind, struct kvd_failure *why)
{
    int err = kvd_session_add_block(session, kind, why);

    return err < 0 ? err : 0;
}

/* Make the next block that is missing. */
static int step_reserve(struct kvd_append *append, struct kvd_failure *why)
{
    struct kvd_session *session = append->session;

    for (uint32_t i = 0; i < append->plan.layer_count; i++) {
        const struct kvd_append_layer *al = &append->plan.layers[i];
        if (kvd_session_block_count(session) < al->records.last) {
            return block_add(session, KVD_RESERVE_TILES, why);
        }
        if (kvd_session_block_count(session) < layer_blocks(append, al)) {
            return block_add(session, next_reserve(session), why);
        }
    }
    return 1;
}

static int step_name(struct kvd_append *append)
{
    return kvd_prefix_names_add(append->session, &append->prefix_note, &append->prefix_names) ? 0
                                                                                              : 1;
}

static int step_seals(struct kvd_append *append, struct kvd_failure *why)
{
    struct kvd_seal_want *want = &append->want;

    for (int n = 0; n < UNITS_PER_STEP; n++) {
        const struct kvd_append_layer *al = &append->plan.layers[append->layer_idx];
        want->layer = al->layer;
        want->length = al->start + al->token_count;
        want->records = al->records;
        int err = kvd_seal_prepare(&append->seals, append->session, want, &append->owned, why);
        if (err != 0 || !want->is_done) {
            return err;
        }
        *want = (struct kvd_seal_want){0};
        if (++append->layer_idx == append->plan.layer_count) {
            append->layer_idx = 0;
            return 1;
        }
    }
    return 0;
}

static int step_place(struct kvd_append *append, struct kvd_failure *why)
{
    for (int n = 0; n < UNITS_PER_STEP && append->placed < append->unit_count; n++) {
        struct kvd_append_unit *unit = &append->plan.units[append->placed];
        int err = kvd_append_unit_place(unit, append->session, &append->owned, why);
        if (err != 0) {
            return err;
        }
        append->placed++;
        append->copied += unit->copied != NULL;
    }
    return append->placed == append->unit_count;
}

void kvd_append_job_run(struct kvd_job *job, void *scratch)
{
    struct kvd_append_job *aj = (struct kvd_append_job *)(void *)job;
    struct kvd_append *append = aj->append;
    (void)scratch;

    if (aj == append->jobs && append->unhashed != NULL) {
        uint64_t payload_hash = XXH3_64bits(append->unhashed, append->unhashed_bytes);
        append->hash = kvd_append_hash_join(append->hash, payload_hash);
        append->unhashed = NULL;
    }
    for (uint32_t i = aj->unit_first; i < aj->unit_last && aj->fault.err == 0; i++) {
        kvd_append_unit_run(&append->plan.units[i], &aj->fault);
    }
}

/* A job of the next units: each but the last has KVD_APPEND_JOB_BYTES_MIN of payload or more. */
static struct kvd_append_job *job_cut(struct kvd_append *append, size_t bytes_min)
{
    size_t bytes = 0;

    KVARN_ASSERT(append->job_count < append->job_room);
    struct kvd_append_job *aj = &append->jobs[append->job_count++];
    *aj = (struct kvd_append_job){.append = append, .unit_first = append->unit_idx};
    aj->job.run = kvd_append_job_run;
    aj->job.done = kvd_append_job_done;
    while (append->unit_idx < append->unit_count && bytes < bytes_min) {
        bytes += append->plan.units[append->unit_idx++].src_bytes;
    }
    aj->unit_last = append->unit_idx;
    return aj;
}

/* Convert on the loop what is little; hand a job to the workers else. */
static int step_submit(struct kvd_append *append)
{
    if (append->plan.src_bytes <= kvd_append_inline_bytes_max() && !append->is_batched) {
        kvd_append_job_run(&job_cut(append, SIZE_MAX)->job, NULL);
        return 1;
    }
    if (append->job_count == 0) {
        append->jobs_left = 1; /* this phase: those that end meanwhile are not the last */
    }
    struct kvd_append_job *aj = job_cut(append, KVD_APPEND_JOB_BYTES_MIN);
    append->jobs_left++;
    kvd_workers_submit(append->service->workers, &aj->job);
    if (append->unit_idx < append->unit_count) {
        return 0;
    }
    append->jobs_left--;
    return 1;
}

static int step_check(struct kvd_append *append)
{
    if (append->plan.runs == NULL) {
        return 1; /* no records */
    }
    for (int n = 0; n < UNITS_PER_STEP && append->unit_idx < append->unit_count; n++) {
        kvd_append_unit_commit(&append->plan.units[append->unit_idx++], append->session);
    }
    return append->unit_idx == append->unit_count;
}

static int step_note(struct kvd_append *append)
{
    return kvd_prefix_note(append->session, &append->prefix_note, &append->prefix_names) ? 1 : 0;
}

/* Rows below the records of a layer go; true: all did. */
static bool records_drop_rows(struct kvd_append *append, const struct kvd_append_layer *al)
{
    struct kvd_session *session = append->session;

    if (append->record_next == 0) {
        append->record_next = al->records.first;
    }
    for (int n = 0; n < UNITS_PER_STEP && append->record_next < al->records.last; n++) {
        kvd_session_drop_rows(session, al->layer, append->record_next++);
        kvd_session_count_sealed(session, KVARN_ENCODER_DEFAULT);
    }
    return append->record_next >= al->records.last;
}

/* Let go of pages that copies replaced; true: there are none left. */
static bool copied_release(struct kvd_append *append)
{
    for (int n = 0; n < UNITS_PER_STEP && append->copied > 0; n++) {
        struct kvd_append_unit *unit = &append->plan.units[append->unit_idx++];
        append->copied -= unit->copied != NULL;
        kvd_page_unref(&append->service->pages, unit->copied);
        unit->copied = NULL;
    }
    return append->copied == 0;
}

void kvd_append_release(struct kvd_append *append)
{
    for (uint32_t i = 0; i < append->plan.layer_count; i++) {
        struct kvd_layer_work *work = &append->session->work->layers[append->plan.layers[i].layer];
        KVARN_ASSERT(work->pending > 0);
        work->pending--;
    }
}

static int step_seal(struct kvd_append *append)
{
    struct kvd_session *session = append->session;

    if (!copied_release(append) || !kvd_own_log_keep_some(session, &append->owned)) {
        return 0;
    }
    for (int n = 0; n < UNITS_PER_STEP && append->layer_idx < append->plan.layer_count; n++) {
        const struct kvd_append_layer *al = &append->plan.layers[append->layer_idx];
        if (!records_drop_rows(append, al) ||
            !kvd_seal_due(session, al->layer, al->records, &append->seals, al->metric)) {
            return 0;
        }
        append->record_next = 0;
        append->layer_idx++;
    }
    if (append->layer_idx < append->plan.layer_count ||
        !kvd_seal_list_drop_some(append->service, &append->seals)) {
        return 0;
    }
    kvd_append_release(append);
    kvd_prefix_advance(session);
    return 1;
}

/* Give back what was placed and taken, and share again what was shared. */
static int step_undo(struct kvd_append *append)
{
    struct kvd_session *session = append->session;

    for (int n = 0; n < UNITS_PER_STEP && append->placed > 0; n++) {
        struct kvd_append_unit *unit = &append->plan.units[--append->placed];
        append->copied -= unit->copied != NULL;
        kvd_append_unit_unplace(unit, session);
    }
    if (append->placed > 0 || !kvd_seal_list_drop_some(append->service, &append->seals)) {
        return 0;
    }
    return kvd_own_log_undo_some(session, &append->owned, append->plan.layer_count) ? 1 : 0;
}

int kvd_append_step(struct kvd_append *append, struct kvd_failure *why)
{
    switch (append->phase) {
    case KVD_APPEND_PLAN:
        return step_plan(append);
    case KVD_APPEND_RESERVE:
        return step_reserve(append, why);
    case KVD_APPEND_NAME:
        return step_name(append);
    case KVD_APPEND_SEALS:
        return step_seals(append, why);
    case KVD_APPEND_PLACE:
        return step_place(append, why);
    case KVD_APPEND_SUBMIT:
        return step_submit(append);
    case KVD_APPEND_CHECK:
        return step_check(append);
    case KVD_APPEND_NOTE:
        return step_note(append);
    case KVD_APPEND_SEAL:
        return step_seal(append);
    default:
        KVARN_ASSERT(append->phase == KVD_APPEND_UNDO);
        return step_undo(append);
    }
}
