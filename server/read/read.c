/*
 * Reading blocks back: snapshot, cut, convert on workers, one reply buffer. Records are not copied:
 * they leave from the pages, which the snapshot holds until the kernel has them.
 *
 * Owner: the request. Thread: loop; read_job_run() on a worker.
 */
#include "server/read/read.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/base/cache_line.h"
#include "server/read/hits.h"
#include "server/read/verify.h"
#include "server/rpc/reply_buffer.h"
#include "server/service.h"
#include "server/session/session_blocks.h"

/* What the loop may convert itself: half of the 100 us that SEMANTICS.md 18 allows, since the
 * snapshot and the reply are its work as well. */
#define INLINE_NS_MAX 50000

/* A job: large enough that the 50 us of a wake-up do not count, small enough to spread. */
#define JOB_NS_MIN 250000

/*
 * Records from this size on leave from where they lie, in five stretches: below it the stretches
 * cost more than a copy.
 */
#define SPANNED_RECORD_BYTES_MIN 4096

/* Sink rows, sealed tiles, tail rows. */
#define RUNS_PER_LAYER_MAX 3

/* Units that the loop looks at between two looks at the clock: some 50 to 100 ns each. */
#define UNITS_PER_STEP 64

/* What is done on the loop, in steps (SEMANTICS.md 18). */
enum read_phase {
    PHASE_SNAPSHOT, /* the layers stay pending meanwhile */
    PHASE_SUBMIT,
    PHASE_RUN, /* jobs are at it */
    PHASE_RELEASE,
};

struct read_job {
    struct kvd_job job; /* first: the worker's handle */
    struct kvd_read *read;
    uint32_t unit_first, unit_last;
    struct kvd_read_fault fault;
};

struct kvd_read {
    struct kvd_session_op op; /* first: the queue's handle */
    struct kvd_service *service;
    struct kvd_session *session; /* ref; NULL once it has succeeded */
    struct kvd_read_args args;
    uint64_t epoch;
    uint64_t bytes, copied_bytes;   /* of the reply; of its runs that are not spanned */
    struct kvd_reply_buffer *reply; /* owned until it is handed over: the runs that are copied */
    unsigned buf_count;             /* of all runs; 0: none is spanned */
    struct kvd_buf *bufs;           /* with units */
    size_t charged_bytes;           /* of this struct */
    size_t units_bytes;             /* taken for units, jobs and scratch */
    uint32_t unit_count, unit_room;
    uint32_t job_count, job_room;
    uint32_t jobs_left;
    struct kvd_read_unit *units; /* owned; jobs and scratch follow in the same allocation */
    struct read_job *jobs;
    void *scratch; /* for work on the loop that converts */
    bool is_inline;
    struct kvd_slice slice; /* listed while steps go on over several turns */
    enum read_phase phase;
    uint32_t unit_next;  /* SUBMIT, RELEASE */
    uint32_t run_idx;    /* SNAPSHOT: where it has come to */
    uint64_t block_next; /* of that run; UINT64_MAX: it has not begun */
    uint8_t *dst_next;
    struct kvd_buf *buf_next;
    uint32_t run_count;
    struct kvd_read_run runs[]; /* room for RUNS_PER_LAYER_MAX a layer */
};

/* All pages are given back. */
static void read_free(struct kvd_read *read)
{
    struct kvd_service *service = read->service;

    kvd_large_give(&service->large, KVD_BUDGET_REPLIES, read->units, read->units_bytes);
    kvd_budget_release(&service->budget, KVD_BUDGET_REPLIES, read->charged_bytes);
    kvd_reply_buffer_destroy(read->reply);
    if (read->session != NULL) {
        kvd_session_unref(read->session);
    }
    free(read);
}

static bool units_release_some(struct kvd_read *read)
{
    for (int n = 0; n < UNITS_PER_STEP && read->unit_next < read->unit_count; n++) {
        kvd_page_unref(&read->service->pages, read->units[read->unit_next++].page);
    }
    return read->unit_next == read->unit_count;
}

static void release_slice(struct kvd_read *read)
{
    struct kvd_slices *slices = &read->service->sessions.slices;

    while (!units_release_some(read)) {
        if (!kvd_slices_has_time(slices)) {
            kvd_slices_add(slices, &read->slice);
            return;
        }
    }
    read_free(read);
}

static void read_destroy(struct kvd_read *read)
{
    read->phase = PHASE_RELEASE;
    read->unit_next = 0;
    kvd_slices_begin(&read->service->sessions.slices);
    release_slice(read);
}

/* The kernel has what the pages and the buffer held. */
static void read_release_cb(void *ctx)
{
    read_destroy(ctx);
}

static uint64_t asked_tokens(const struct kvd_read *read)
{
    return (read->args.last - read->args.first) * read->args.layer_count;
}

/* Tell the owner and free. */
static void read_fail(struct kvd_read *read, const struct kvd_failure *why)
{
    KVARN_ASSERT(why->err != 0);
    if (why->err == KVARN_EMISS) {
        kvd_hits_miss(&read->service->metrics, KVD_HITS_READ, asked_tokens(read), (int)why->reason);
    }
    read->args.done_cb(read->args.ctx, why, NULL);
    read_destroy(read);
}

static void read_succeed(struct kvd_read *read)
{
    const struct kvd_read_args *args = &read->args;
    struct kvd_failure none = {0};
    struct kvd_read_result result = {
        .runs = read->runs, .run_count = read->run_count, .epoch = read->epoch};

    uint64_t cold =
        kvd_hits_cold_tokens(&read->op.cold, read->session->shape->group, args->first, args->last);
    kvd_metrics_add(&read->service->metrics, KVD_METRIC_tokens_read, asked_tokens(read));
    kvd_hits_add(
        &read->service->metrics, KVD_HITS_READ, asked_tokens(read), cold * args->layer_count);
    if (read->buf_count > 0) {
        /* The reply is the pages themselves: all of this lives until it has been sent. */
        result.payload = (struct kvd_reply_payload){.bufs = read->bufs,
            .buf_count = read->buf_count,
            .bytes = read->bytes,
            .release_cb = read_release_cb,
            .ctx = read};
        kvd_session_unref(read->session);
        read->session = NULL;
        args->done_cb(args->ctx, &none, &result);
        return;
    }
    if (read->reply != NULL) {
        result.payload = kvd_reply_buffer_payload(read->reply);
        read->reply = NULL;
    }
    args->done_cb(args->ctx, &none, &result);
    read_destroy(read);
}

/* A page does not match: this answer is a MISS, and the next one gets it from disk if it can. */
static void page_is_wrong(const struct kvd_read *read, const struct kvd_read_fault *fault)
{
    if (fault->err == KVARN_EMISS) {
        kvd_metrics_add(&read->service->metrics, KVD_METRIC_misses_checksum, 1);
        kvd_verify_suspect(read->session, (uint32_t)(fault->token / read->session->shape->group));
    }
}

static void read_conclude(struct kvd_read *read)
{
    struct kvd_failure why = {0};

    for (uint32_t i = 0; i < read->job_count; i++) {
        if (read->jobs[i].fault.err != 0) {
            kvd_read_fault_describe(&read->jobs[i].fault, &why);
            page_is_wrong(read, &read->jobs[i].fault);
            read_fail(read, &why);
            return;
        }
    }
    read_succeed(read);
}

static void read_job_run(struct kvd_job *job, void *scratch)
{
    struct read_job *rj = (struct read_job *)job;
    const struct kvd_read *read = rj->read;

    for (uint32_t i = rj->unit_first; i < rj->unit_last && rj->fault.err == 0; i++) {
        kvd_read_unit_run(&read->units[i], &read->args.format, scratch, &rj->fault);
    }
}

static void read_job_done(struct kvd_job *job)
{
    struct kvd_read *read = ((struct read_job *)job)->read;

    KVARN_ASSERT(read->jobs_left > 0);
    read->jobs_left--;
    if (read->jobs_left == 0) {
        read_conclude(read);
    }
}

/* A job of the next units, of about `job_ns`; the last one there is room for takes all. */
static struct read_job *job_cut(struct kvd_read *read, uint64_t job_ns)
{
    struct read_job *rj = &read->jobs[read->job_count++];
    uint64_t ns = 0;

    KVARN_ASSERT(read->job_count <= read->job_room);
    *rj = (struct read_job){.read = read, .unit_first = read->unit_next};
    rj->job.run = read_job_run;
    rj->job.done = read_job_done;
    while (
        read->unit_next < read->unit_count && (ns < job_ns || read->job_count == read->job_room)) {
        ns += kvd_read_unit_ns(&read->units[read->unit_next++], &read->args.format);
    }
    rj->unit_last = read->unit_next;
    return rj;
}

/* Hand the next job to the workers; true: it was the last. */
static bool submit_some(struct kvd_read *read)
{
    if (read->job_count == 0) {
        read->jobs_left = 1; /* this: a job that ends meanwhile is not the last */
    }
    read->jobs_left++;
    kvd_workers_submit(read->service->workers, &job_cut(read, JOB_NS_MIN)->job);
    if (read->unit_next < read->unit_count) {
        return false;
    }
    read->jobs_left--;
    return true;
}

/* Blocks of a layer that this read sees as tiles: [first, last). */
static void tiles_range(
    const struct kvd_session *session, uint32_t layer, uint32_t *ret_first, uint32_t *ret_last)
{
    uint32_t sinks = kvd_session_sink_blocks(session);
    uint32_t sealed = session->layers[layer].sealed_blocks;

    *ret_first = sinks;
    *ret_last = sealed > sinks ? sealed : sinks;
}

static void run_add(struct kvd_read *read, const struct kvd_read_run *run)
{
    if (run->token_count > 0) {
        KVARN_ASSERT(read->run_count < read->args.layer_count * RUNS_PER_LAYER_MAX);
        read->runs[read->run_count++] = *run;
    }
}

static uint64_t clamp(uint64_t token, uint64_t low, uint64_t high)
{
    return token < low ? low : (token > high ? high : token);
}

/* Records are whole blocks: a range that cuts one cannot be read as stored. */
static int check_whole(const struct kvd_session *session, uint32_t layer, uint64_t token,
    const char *name, struct kvd_failure *why)
{
    uint32_t group = session->shape->group;
    uint64_t block = token / group;
    uint32_t first, last;

    tiles_range(session, layer, &first, &last);
    if (token % group == 0 || block < first || block >= last) {
        return 0;
    }
    return kvd_fail(why, KVARN_EINVALID,
        "%s %" PRIu64 " cuts the block of tokens %" PRIu64 " to %" PRIu64
        ", which is sealed in layer %" PRIu32 ": stored blocks are read whole",
        name, token, block * group, (block + 1) * group, layer);
}

/* The runs of one layer: as stored up to three, else one. */
static int layer_plan(struct kvd_read *read, uint32_t layer, struct kvd_failure *why)
{
    const struct kvd_session *session = read->session;
    const struct kvd_read_args *args = &read->args;
    uint32_t first_block, last_block;
    int err = kvd_session_check_range(session, layer, args->first, args->last, why);

    if (err != 0 || !args->is_stored) {
        run_add(read, &(struct kvd_read_run){.layer = layer,
                          .form = KVARND__RUN_FORM__ROWS,
                          .first_token = args->first,
                          .token_count = args->last - args->first});
        return err;
    }
    err = check_whole(session, layer, args->first, "token_first", why);
    if (err == 0) {
        err = check_whole(session, layer, args->last, "token_last", why);
    }
    if (err != 0) {
        return err;
    }
    tiles_range(session, layer, &first_block, &last_block);
    struct kvd_read_run run = {.layer = layer, .form = KVARND__RUN_FORM__ROWS_STORED};
    uint64_t tiles = clamp((uint64_t)first_block * session->shape->group, args->first, args->last);
    uint64_t tail = clamp((uint64_t)last_block * session->shape->group, args->first, args->last);
    run.first_token = args->first;
    if (tiles == tail) { /* no tiles in between: one run of rows */
        run.token_count = args->last - args->first;
        run_add(read, &run);
        return 0;
    }
    run.token_count = tiles - args->first;
    run_add(read, &run);
    run_add(read, &(struct kvd_read_run){.layer = layer,
                      .form = KVARND__RUN_FORM__RECORDS,
                      .first_token = tiles,
                      .token_count = tail - tiles});
    run.first_token = tail;
    run.token_count = args->last - tail;
    run_add(read, &run);
    return 0;
}

static uint64_t run_bytes(const struct kvd_read *read, const struct kvd_read_run *run)
{
    const struct kvd_layer_shape *ls = &read->session->shape->layers[run->layer];

    return run->form == KVARND__RUN_FORM__RECORDS
               ? kvd_read_records_bytes(ls, run->token_count)
               : kvd_read_rows_bytes(ls, &read->args.format, run->token_count);
}

static bool run_is_spanned(const struct kvd_read *read, const struct kvd_read_run *run)
{
    const struct kvd_layer_shape *ls = &read->session->shape->layers[run->layer];

    return run->form == KVARND__RUN_FORM__RECORDS && ls->record_bytes >= SPANNED_RECORD_BYTES_MIN;
}

/* Stretches that one block of a spanned run leaves in. */
static unsigned block_bufs(const struct kvd_read *read, const struct kvd_read_run *run)
{
    const struct kvd_layer_shape *ls = &read->session->shape->layers[run->layer];

    return ls->kv_heads * kvd_read_record_parts(ls);
}

/* A run's part of one block. The page has no reference yet. */
static struct kvd_read_unit unit_of(
    const struct kvd_read *read, const struct kvd_read_run *run, uint64_t block)
{
    const struct kvd_session *session = read->session;
    uint32_t group = session->shape->group;
    uint64_t end = run->first_token + run->token_count;
    uint64_t first = clamp(block * group, run->first_token, end);
    uint64_t last = clamp((block + 1) * group, run->first_token, end);
    uint32_t tiles_first, tiles_last;

    tiles_range(session, run->layer, &tiles_first, &tiles_last);
    return (struct kvd_read_unit){.ls = &session->shape->layers[run->layer],
        .page = kvd_session_reader_page(session, run->layer, (uint32_t)block, tiles_last),
        .layer = run->layer,
        .row_first = (uint16_t)(first - block * group),
        .row_count = (uint16_t)(last - first),
        .is_tiles = block >= tiles_first && block < tiles_last,
        .is_records = run->form == KVARND__RUN_FORM__RECORDS,
        .is_spanned = run_is_spanned(read, run),
        .is_copied = run->form == KVARND__RUN_FORM__ROWS_STORED,
        .first_token = first,
        .run_row = first - run->first_token,
        .run_tokens = run->token_count};
}

/* Blocks that a run touches: [first, last). */
static void run_blocks(const struct kvd_read *read, const struct kvd_read_run *run,
    uint64_t *ret_first, uint64_t *ret_last)
{
    uint32_t group = read->session->shape->group;

    *ret_first = run->first_token / group;
    *ret_last = (run->first_token + run->token_count + group - 1) / group;
}

/* Lay out the runs and count what they need. */
static int read_plan(struct kvd_read *read, struct kvd_failure *why)
{
    const struct kvd_read_args *args = &read->args;
    uint64_t limit = read->service->config->payload_max;
    uint64_t units = 0, bytes, spanned = 0, copied = 0;

    for (uint32_t i = 0; i < args->layer_count; i++) {
        int err = layer_plan(read, args->layer_first + i, why);
        if (err != 0) {
            return err;
        }
    }
    for (uint32_t i = 0; i < read->run_count; i++) {
        uint64_t first, last;
        run_blocks(read, &read->runs[i], &first, &last);
        bytes = run_bytes(read, &read->runs[i]);
        read->bytes += bytes; /* <= 2^58 in all */
        if (run_is_spanned(read, &read->runs[i])) {
            spanned += (last - first) * block_bufs(read, &read->runs[i]);
        } else {
            read->copied_bytes += bytes;
            copied++;
        }
        units += last - first;
    }
    limit = limit < KVARN_PAYLOAD_BYTES_MAX ? limit : KVARN_PAYLOAD_BYTES_MAX;
    if (read->bytes > limit) {
        return kvd_fail(why, KVARN_ETOO_LARGE,
            "the reply has %" PRIu64 " bytes, the limit is %" PRIu64, read->bytes, limit);
    }
    /* A whole block has hundreds of bytes and every run has two that may be less: this fits. */
    KVARN_ASSERT(units <= UINT32_MAX && spanned + copied <= UINT32_MAX);
    read->unit_room = (uint32_t)units;
    read->buf_count = spanned == 0 ? 0 : (unsigned)(spanned + copied);
    return 0;
}

static uint64_t block_ns(
    const struct kvd_read *read, const struct kvd_read_run *run, uint64_t block)
{
    struct kvd_read_unit unit = unit_of(read, run, block);

    return kvd_read_unit_ns(&unit, &read->args.format);
}

/* About how long all of it takes: the blocks at both ends as they are cut, the rest like one. */
static uint64_t read_cost_ns(const struct kvd_read *read)
{
    uint64_t ns = 0;

    for (uint32_t i = 0; i < read->run_count; i++) {
        const struct kvd_read_run *run = &read->runs[i];
        uint64_t first, last;
        run_blocks(read, run, &first, &last);
        ns += block_ns(read, run, first);
        if (last - first > 1) {
            ns += block_ns(read, run, last - 1);
        }
        if (last - first > 2) {
            ns += (last - first - 2) * block_ns(read, run, first + 1);
        }
    }
    return ns;
}

static size_t scratch_bytes_max(const struct kvd_read *read)
{
    size_t bytes = 0;

    if (read->args.is_stored) {
        return 0; /* nothing is converted */
    }
    for (uint32_t i = 0; i < read->args.layer_count; i++) {
        uint32_t layer = read->args.layer_first + i;
        size_t needed = kvd_read_scratch_bytes(&read->session->shape->layers[layer]);
        bytes = needed > bytes ? needed : bytes;
    }
    KVARN_ASSERT(bytes <= KVD_WORKER_SCRATCH_BYTES);
    return bytes;
}

/* One charged allocation for units, jobs and scratch. */
static int work_create(struct kvd_read *read, struct kvd_failure *why)
{
    struct kvd_service *service = read->service;
    uint64_t ns = read_cost_ns(read);
    bool is_inline = ns <= INLINE_NS_MAX;

    read->job_room = is_inline ? 1 : (uint32_t)(ns / JOB_NS_MIN + 1);
    size_t units = kvd_round_64(read->unit_room * sizeof(struct kvd_read_unit));
    size_t jobs = kvd_round_64(read->job_room * sizeof(struct read_job));
    size_t bufs = kvd_round_64(read->buf_count * sizeof(struct kvd_buf));
    size_t bytes = units + jobs + bufs + (is_inline ? kvd_round_64(scratch_bytes_max(read)) : 0);
    void *taken = NULL;
    int err = kvd_large_take(&service->large, KVD_BUDGET_REPLIES, bytes, &taken);
    if (err == KVARN_ENOSPC) {
        return kvd_session_fail_space(service, bytes, why);
    }
    if (err != 0) {
        return kvd_fail(why, err, "the read needs %zu bytes", bytes);
    }
    uint8_t *memory = taken;
    read->units_bytes = bytes;
    read->units = (void *)memory;
    read->jobs = (void *)(memory + units);
    read->bufs = (void *)(memory + units + jobs);
    read->scratch = memory + units + jobs + bufs;
    read->is_inline = is_inline;
    return 0;
}

/* Take the page of the run's next block. */
static void snapshot_one(struct kvd_read *read, const struct kvd_read_run *run)
{
    struct kvd_read_unit *unit = &read->units[read->unit_count++];

    *unit = unit_of(read, run, read->block_next++);
    unit->page = kvd_page_ref(unit->page);
    unit->checksum = kvd_page_checksum(unit->page);
    if (unit->is_spanned) {
        unit->bufs = read->buf_next; /* the job fills them in */
        read->buf_next += block_bufs(read, run);
    } else {
        unit->dst = read->dst_next;
    }
}

/* All blocks of a run are taken. */
static void snapshot_end_run(struct kvd_read *read, const struct kvd_read_run *run)
{
    if (!run_is_spanned(read, run)) {
        size_t bytes = (size_t)run_bytes(read, run);
        if (read->buf_count > 0) {
            *read->buf_next++ = (struct kvd_buf){read->dst_next, bytes};
        }
        read->dst_next += bytes;
    }
    read->run_idx++;
    read->block_next = UINT64_MAX;
}

/* Take some pages; true: all. From then on nothing that happens to the session matters. */
static bool snapshot_some(struct kvd_read *read)
{
    for (int n = 0; n < UNITS_PER_STEP && read->run_idx < read->run_count; n++) {
        const struct kvd_read_run *run = &read->runs[read->run_idx];
        uint64_t first, last;
        run_blocks(read, run, &first, &last);
        read->block_next = read->block_next == UINT64_MAX ? first : read->block_next;
        snapshot_one(read, run);
        if (read->block_next == last) {
            snapshot_end_run(read, run);
        }
    }
    return read->run_idx == read->run_count;
}

static void snapshot_begin(struct kvd_read *read)
{
    read->dst_next = read->reply == NULL ? NULL : read->reply->data;
    read->buf_next = read->bufs;
    read->block_next = UINT64_MAX;
}

static void snapshot_end(const struct kvd_read *read)
{
    KVARN_ASSERT(read->unit_count == read->unit_room);
    KVARN_ASSERT(read->buf_next == read->bufs + read->buf_count);
    KVARN_ASSERT(read->copied_bytes == 0 ||
                 (uint64_t)(read->dst_next - read->reply->data) == read->copied_bytes);
}

static void submit_slice(struct kvd_read *read)
{
    struct kvd_slices *slices = &read->service->sessions.slices;

    while (!submit_some(read)) {
        if (!kvd_slices_has_time(slices)) {
            kvd_slices_add(slices, &read->slice);
            return;
        }
    }
    read->phase = PHASE_RUN;
    if (read->jobs_left == 0) {
        read_conclude(read);
    }
}

/* All pages are taken: convert. */
static void read_convert(struct kvd_read *read)
{
    snapshot_end(read);
    if (read->is_inline) {
        read_job_run(&job_cut(read, UINT64_MAX)->job, read->scratch);
        read_conclude(read);
        return;
    }
    read->phase = PHASE_SUBMIT;
    submit_slice(read);
}

/* The snapshot in several turns: later operations on the layers wait until it is taken. */
static void snapshot_slice(struct kvd_read *read)
{
    struct kvd_slices *slices = &read->service->sessions.slices;
    const struct kvd_read_args args = read->args;
    struct kvd_session *session = read->session;

    while (!snapshot_some(read)) {
        if (!kvd_slices_has_time(slices)) {
            kvd_slices_add(slices, &read->slice);
            return;
        }
    }
    read_convert(read); /* it may be gone now */
    kvd_session_release_layers(session, args.layer_first, args.layer_count);
}

static void read_slice_run(struct kvd_slice *slice)
{
    struct kvd_read *read = (void *)((uint8_t *)slice - offsetof(struct kvd_read, slice));

    if (read->phase == PHASE_SNAPSHOT) {
        snapshot_slice(read);
    } else if (read->phase == PHASE_SUBMIT) {
        submit_slice(read);
    } else {
        release_slice(read);
    }
}

/* Begin: what is little is done before this returns. */
static void read_run(struct kvd_read *read)
{
    struct kvd_slices *slices = &read->service->sessions.slices;
    const struct kvd_read_args *args = &read->args;

    snapshot_begin(read);
    while (!snapshot_some(read)) {
        /* Without room to hold them it takes one turn, however long. */
        if (!kvd_slices_has_time(slices) &&
            kvd_session_hold_layers(read->session, args->layer_first, args->layer_count) == 0) {
            kvd_slices_add(slices, &read->slice);
            return;
        }
    }
    read_convert(read);
}

static void read_admit_cb(struct kvd_session_op *op)
{
    struct kvd_read *read = (struct kvd_read *)op;
    struct kvd_session *session = read->session;
    struct kvd_failure why = {0};

    if (session->is_dropped) {
        kvd_fail(&why, KVARN_ENOT_FOUND, "the session was dropped");
        read_fail(read, &why);
        return;
    }
    read->epoch = session->epoch;
    kvd_lifetime_touch(session);
    int err = read_plan(read, &why);
    if (err == 0 && read->run_count == 0) {
        read_succeed(read);
        return;
    }
    if (err == 0 && read->copied_bytes > 0) {
        err = kvd_reply_buffer_create(read->service, read->copied_bytes, &read->reply, &why);
    }
    if (err == 0) {
        err = work_create(read, &why);
    }
    if (err != 0) {
        read_fail(read, &why);
        return;
    }
    read_run(read);
}

int kvd_read_start(
    struct kvd_service *service, const struct kvd_read_args *args, struct kvd_read **ret)
{
    struct kvd_read *read = NULL;
    size_t bytes = sizeof(*read) + args->layer_count * RUNS_PER_LAYER_MAX * sizeof(read->runs[0]);

    KVARN_ASSERT(args->layer_count > 0 && args->first <= args->last);
    /* 48 KiB with 512 layers: of reads that wait there may be a connection's whole credit. */
    if (kvd_budget_charge(&service->budget, KVD_BUDGET_REPLIES, bytes) != 0) {
        struct kvd_failure why = {0};
        *ret = NULL;
        (void)!kvd_session_fail_space(service, bytes, &why);
        args->done_cb(args->ctx, &why, NULL);
        return 0;
    }
    read = calloc(1, bytes);
    if (read == NULL) {
        kvd_budget_release(&service->budget, KVD_BUDGET_REPLIES, bytes);
        return KVARN_ENOMEM;
    }
    read->charged_bytes = bytes;
    read->op.admit_cb = read_admit_cb;
    read->slice.run = read_slice_run;
    read->op.layer_first = args->layer_first;
    read->op.layer_count = args->layer_count;
    read->op.block_first = (uint32_t)(args->first / args->session->shape->group);
    read->op.block_last = UINT32_MAX;
    if (args->last < KVARN_SESSION_TOKENS_MAX) {
        uint64_t group = args->session->shape->group;
        read->op.block_last = (uint32_t)((args->last + group - 1) / group);
    }
    read->service = service;
    read->session = kvd_session_ref(args->session);
    read->args = *args;
    if (args->is_stored) {
        read->args.format = kvd_read_format_stored();
    }
    *ret = read;
    kvd_session_enqueue(args->session, &read->op);
    return 0;
}

void kvd_read_cancel(struct kvd_read *read, int err)
{
    struct kvd_failure why = {0};

    if (!read->op.is_queued) {
        return;
    }
    kvd_fail(&why, err, "the read had not begun");
    kvd_session_op_cancel(&read->op);
    read_fail(read, &why);
}
