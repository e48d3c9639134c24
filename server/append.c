/*
 * Storing tokens: the life of an append, from its turn to its commit.
 *
 * Owner: the request that appends. Thread: loop; append_job_run() on a worker, which reads staging and
 * writes rows above the length, or tile pages not yet sealed: memory that no reader looks at.
 */
#include "server/append.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/append_unit.h"
#include "server/seal.h"
#include "server/service.h"
#include "server/session_blocks.h"

/* Up to this much payload is rotated on the loop, within its 100 us (SEMANTICS.md 18). */
#define INLINE_BYTES_MAX (64 * 1024)

/* Payload per job: large enough that the 50 us of a wake-up do not count. */
#define JOB_BYTES_MIN (256 * 1024)

/* One layer's part of an append. */
struct append_layer {
    uint32_t layer;
    uint32_t token_count;
    uint64_t start;
    uint32_t records_end; /* blocks below it come as records; 0: none do */
};

struct append_job {
    struct kvd_job job; /* first: the worker's handle */
    struct kvd_append *append;
    uint32_t unit_first, unit_last;
    struct kvd_append_fault fault;
};

struct kvd_append {
    struct kvd_session_op op; /* first: the queue's handle */
    struct kvd_service *service;
    struct kvd_session *session; /* ref */
    uint64_t epoch;
    uint64_t hash;            /* of payload and meaning; of the meaning alone while unhashed */
    const uint8_t *unhashed;  /* borrowed: payload that the first job hashes; NULL: it is done */
    size_t unhashed_bytes;
    bool is_batched;
    bool is_probing; /* layers pending only to learn whether this is a retry */
    uint64_t deadline_ns;
    void *ctx;
    void (*committed_cb)(void *ctx, uint32_t sealed_blocks);
    void (*done_cb)(void *ctx, const struct kvd_failure *why, bool is_repeat);
    bool is_running; /* admitted, layers pending */
    int cancel_err;
    uint32_t layer_count;
    uint32_t unit_count;
    uint32_t job_count;
    uint32_t jobs_left;
    struct append_layer *layers;     /* owned */
    struct kvd_append_unit *units;   /* owned */
    struct append_job *jobs;         /* owned */
};

static void append_destroy(struct kvd_append *append)
{
    for (uint32_t i = 0; i < append->unit_count; i++) {
        kvd_page_unref(&append->service->pages, append->units[i].copied);
    }
    kvd_session_unref(append->session);
    free(append->layers);
    free(append->units);
    free(append->jobs);
    free(append);
}

/* Tell the owner and free. */
static void append_finish(struct kvd_append *append, const struct kvd_failure *why, bool is_repeat)
{
    append->done_cb(append->ctx, why, is_repeat);
    append_destroy(append);
}

/* Nothing was stored: where shared rows were to be copied on write, the old page comes back. */
static void append_unplace(struct kvd_append *append)
{
    for (uint32_t i = 0; i < append->unit_count; i++) {
        kvd_append_unit_unplace(&append->units[i], append->session);
    }
    kvd_session_trim(append->session);
}

/* Give the layers back without a trace. */
static void append_abort(struct kvd_append *append, const struct kvd_failure *why)
{
    struct kvd_session *session = append->session;

    for (uint32_t i = 0; i < append->layer_count; i++) {
        struct kvd_layer *ly = &session->layers[append->layers[i].layer];
        ly->pending_length = ly->length;
        ly->pending--;
    }
    append_unplace(append);
    kvd_session_ref(session);
    append_finish(append, why, false);
    kvd_session_kick(session);
    kvd_session_unref(session);
}

static void layer_commit(struct kvd_append *append, const struct append_layer *al)
{
    struct kvd_session *session = append->session;
    struct kvd_layer *ly = &session->layers[al->layer];
    uint32_t first_block = (uint32_t)(al->start / session->shape->group);

    for (uint32_t b = first_block; b < al->records_end; b++) {
        if (b >= kvd_session_sink_blocks(session)) {
            kvd_session_drop_rows(session, al->layer, b);
            session->pages_by_encoder[KVARN_ENCODER_DEFAULT]++;
        }
    }
    if (al->records_end > ly->sealed_blocks) {
        ly->sealed_blocks = al->records_end;
    }
    KVARN_ASSERT(ly->pending > 0);
    ly->pending--;
    kvd_seal_due(session, al->layer);
}

/* Everything is in place: one step on the loop makes it visible (SEMANTICS.md 8). */
static void append_commit(struct kvd_append *append)
{
    struct kvd_session *session = append->session;
    uint32_t sealed_before = session->layers[append->layers[0].layer].sealed_blocks;
    struct kvd_failure none = {0};

    for (uint32_t i = 0; i < append->layer_count; i++) {
        const struct append_layer *al = &append->layers[i];
        struct kvd_layer *ly = &session->layers[al->layer];
        ly->length = al->start + al->token_count;
        KVARN_ASSERT(ly->length == ly->pending_length);
        ly->last_start = al->start;
        ly->last_count = al->token_count;
        ly->last_hash = append->hash;
        kvd_metrics_add(
            &append->service->metrics, KVD_METRIC_tokens_appended, al->token_count);
    }
    session->touched_ns = append->service->io->ops->now_ns(append->service->io);
    if (append->committed_cb != NULL) {
        append->committed_cb(append->ctx, sealed_before);
    }
    for (uint32_t i = 0; i < append->unit_count; i++) {
        kvd_append_unit_commit(&append->units[i], session);
    }
    for (uint32_t i = 0; i < append->layer_count; i++) {
        layer_commit(append, &append->layers[i]);
    }
    kvd_session_ref(session);
    append_finish(append, &none, false);
    kvd_session_kick(session);
    kvd_session_unref(session);
}

/* All units have been converted: commit, unless one had a fault or the append came too late. */
static void append_conclude(struct kvd_append *append)
{
    struct kvd_io *io = append->service->io;
    struct kvd_failure why = {0};

    for (uint32_t i = 0; i < append->job_count; i++) {
        if (append->jobs[i].fault.err != 0) {
            kvd_append_fault_describe(&append->jobs[i].fault, &why);
            append_abort(append, &why);
            return;
        }
    }
    if (append->session->is_dropped) {
        kvd_fail(&why, KVARN_ENOT_FOUND, "the session was dropped");
    } else if (append->cancel_err != 0) {
        kvd_fail(&why, append->cancel_err, "nothing was stored");
    } else if (append->deadline_ns != 0 && io->ops->now_ns(io) > append->deadline_ns) {
        kvd_fail(&why, KVARN_EDEADLINE, "nothing was stored");
    }
    if (why.err != 0) {
        append_abort(append, &why);
        return;
    }
    append_commit(append);
}

/* Is this the last append of each of its layers, sent again, but for the hash? (SEMANTICS.md 9) */
static bool append_may_repeat(const struct kvd_append *append)
{
    for (uint32_t i = 0; i < append->layer_count; i++) {
        const struct append_layer *al = &append->layers[i];
        const struct kvd_layer *ly = &append->session->layers[al->layer];
        if (ly->last_count != al->token_count || ly->last_start != al->start ||
            ly->length != al->start + al->token_count) {
            return false;
        }
    }
    return true;
}

/* The same with the hash, which is known. */
static bool append_is_repeat(const struct kvd_append *append)
{
    KVARN_ASSERT(append->unhashed == NULL);
    for (uint32_t i = 0; i < append->layer_count; i++) {
        if (append->session->layers[append->layers[i].layer].last_hash != append->hash) {
            return false;
        }
    }
    return append_may_repeat(append);
}

static int append_check(struct kvd_append *append, struct kvd_failure *why)
{
    struct kvd_session *session = append->session;
    int err = kvd_session_check_epoch(session, append->epoch, why);

    if (err != 0) {
        return err;
    }
    for (uint32_t i = 0; i < append->layer_count; i++) {
        const struct append_layer *al = &append->layers[i];
        const struct kvd_layer *ly = &session->layers[al->layer];
        if (ly->length != al->start) {
            why->session = session;
            why->layer_first = append->op.layer_first;
            why->layer_count = append->op.layer_count;
            return kvd_fail(why, KVARN_ECONFLICT,
                "layer %" PRIu32 " has %" PRIu64 " tokens, got start %" PRIu64, al->layer,
                ly->length, al->start);
        }
    }
    return 0;
}

/* Stored before: what follows an append is done again (SEMANTICS.md 9). */
static void append_finish_repeat(struct kvd_append *append)
{
    const struct kvd_session *session = append->session;
    struct kvd_failure none = {0};

    if (append->committed_cb != NULL) {
        append->committed_cb(
            append->ctx, session->layers[append->layers[0].layer].sealed_blocks);
    }
    append_finish(append, &none, true);
}

/* The payload is hashed: it was a retry, or it is in conflict. */
static void append_probe_conclude(struct kvd_append *append)
{
    struct kvd_session *session = kvd_session_ref(append->session);
    struct kvd_failure why = {0};

    for (uint32_t i = 0; i < append->layer_count; i++) {
        struct kvd_layer *ly = &session->layers[append->layers[i].layer];
        KVARN_ASSERT(ly->pending > 0);
        ly->pending--;
    }
    if (append_check(append, &why) == KVARN_ECONFLICT && append_is_repeat(append)) {
        append_finish_repeat(append);
    } else {
        append_finish(append, &why, false);
    }
    kvd_session_kick(session);
    kvd_session_unref(session);
}

/* The hash that the session keeps: of what gives the payload its meaning, and of the payload. */
static uint64_t hash_join(uint64_t meaning, uint64_t payload_hash)
{
    return XXH3_64bits_withSeed(&payload_hash, sizeof(payload_hash), meaning);
}

static void append_job_run(struct kvd_job *job, void *scratch)
{
    struct append_job *aj = (struct append_job *)job;
    struct kvd_append *append = aj->append;
    (void)scratch;

    if (aj == append->jobs && append->unhashed != NULL) {
        uint64_t payload_hash = XXH3_64bits(append->unhashed, append->unhashed_bytes);
        append->hash = hash_join(append->hash, payload_hash);
        append->unhashed = NULL;
    }
    for (uint32_t i = aj->unit_first; i < aj->unit_last && aj->fault.err == 0; i++) {
        kvd_append_unit_run(&append->units[i], &aj->fault);
    }
}

static void append_job_done(struct kvd_job *job)
{
    struct kvd_append *append = ((struct append_job *)job)->append;

    KVARN_ASSERT(append->jobs_left > 0);
    append->jobs_left--;
    if (append->jobs_left == 0 && append->is_probing) {
        append_probe_conclude(append);
    } else if (append->jobs_left == 0) {
        append_conclude(append);
    }
}

/* Cut the units into jobs of about JOB_BYTES_MIN; room for one job a unit is there. */
static void append_cut(struct kvd_append *append, size_t job_bytes)
{
    size_t bytes = 0;

    append->job_count = 0;
    for (uint32_t i = 0; i < append->unit_count; i++) {
        if (append->job_count == 0 || bytes >= job_bytes) {
            struct append_job *aj = &append->jobs[append->job_count++];
            *aj = (struct append_job){.append = append, .unit_first = i};
            aj->job.run = append_job_run;
            aj->job.done = append_job_done;
            bytes = 0;
        }
        append->jobs[append->job_count - 1].unit_last = i + 1;
        bytes += append->units[i].src_bytes;
    }
}

static void append_run(struct kvd_append *append)
{
    size_t bytes = 0;

    for (uint32_t i = 0; i < append->unit_count; i++) {
        bytes += append->units[i].src_bytes;
    }
    bool is_inline = bytes <= INLINE_BYTES_MAX && !append->is_batched;
    append_cut(append, is_inline ? SIZE_MAX : JOB_BYTES_MIN);
    append->jobs_left = append->job_count;
    append->is_running = true;
    if (is_inline) {
        append_job_run(&append->jobs[0].job, NULL);
        append_conclude(append);
        return;
    }
    for (uint32_t i = 0; i < append->job_count; i++) {
        kvd_workers_submit(append->service->workers, &append->jobs[i].job);
    }
}

/* Reserve blocks and give every unit its page. On failure nothing has changed but spare blocks. */
static int append_place(struct kvd_append *append, struct kvd_failure *why)
{
    struct kvd_session *session = append->session;

    for (uint32_t i = 0; i < append->layer_count; i++) {
        const struct append_layer *al = &append->layers[i];
        uint64_t end = al->start + al->token_count;
        uint64_t blocks = (end + session->shape->group - 1) / session->shape->group;
        int err = kvd_session_reserve(session, al->records_end, KVD_RESERVE_TILES, why);
        if (err == 0) {
            err = kvd_session_reserve(session, blocks, KVD_RESERVE_ROWS, why);
        }
        if (err != 0) {
            return err;
        }
    }
    for (uint32_t i = 0; i < append->unit_count; i++) {
        int err = kvd_append_unit_place(&append->units[i], session, why);
        if (err != 0) {
            return err;
        }
    }
    return 0;
}

/* It may be a retry: hash the payload on a worker while nobody else changes the layers. */
static void append_probe(struct kvd_append *append)
{
    struct append_job *aj = &append->jobs[0];

    for (uint32_t i = 0; i < append->layer_count; i++) {
        append->session->layers[append->layers[i].layer].pending++;
    }
    *aj = (struct append_job){.append = append}; /* no units: the hash alone */
    aj->job.run = append_job_run;
    aj->job.done = append_job_done;
    append->is_probing = true;
    append->jobs_left = 1;
    kvd_workers_submit(append->service->workers, &aj->job);
}

static void append_admit_cb(struct kvd_session_op *op)
{
    struct kvd_append *append = (struct kvd_append *)op;
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
    if (err == 0) {
        err = append_place(append, &why);
        if (err != 0) {
            append_unplace(append);
        }
    }
    if (err != 0) {
        append_finish(append, &why, false);
        return;
    }
    for (uint32_t i = 0; i < append->layer_count; i++) {
        struct kvd_layer *ly = &session->layers[append->layers[i].layer];
        ly->pending_length = append->layers[i].start + append->layers[i].token_count;
        ly->pending++;
    }
    append_run(append);
}

/* Room for everything; layers and units are filled by the caller. */
static struct kvd_append *append_create(
    struct kvd_service *service, struct kvd_session *session, uint32_t layers, uint64_t units)
{
    struct kvd_append *append = calloc(1, sizeof(*append));

    if (append == NULL) {
        return NULL;
    }
    append->op.admit_cb = append_admit_cb;
    append->service = service;
    append->session = kvd_session_ref(session);
    append->layers = calloc(layers, sizeof(*append->layers));
    append->units = calloc(units, sizeof(*append->units));
    append->jobs = calloc(units, sizeof(*append->jobs));
    if (append->layers == NULL || append->units == NULL || append->jobs == NULL) {
        append_destroy(append);
        return NULL;
    }
    return append;
}

uint64_t kvd_append_payload_bytes(const struct kvd_shape *shape, uint32_t layer_first,
    uint32_t layer_count, uint64_t token_count, enum kvarn_dtype dtype)
{
    uint64_t values = 0;

    KVARN_ASSERT(layer_first + layer_count <= shape->layer_count);
    for (uint32_t i = layer_first; i < layer_first + layer_count; i++) {
        const struct kvd_layer_shape *ls = &shape->layers[i];
        values += (uint64_t)ls->kv_heads * (ls->spec.k_dim + ls->spec.v_dim);
    }
    return values * token_count * kvarn_dtype_bytes(dtype);
}

/* What gives the numbers of a payload their meaning; start and count are kept beside it. */
static uint64_t rows_meaning(const struct kvd_append_args *args)
{
    uint8_t words[] = {0, (uint8_t)args->dtype, args->is_token_major, args->is_rotated};

    return XXH3_64bits(words, sizeof(words));
}

int kvd_append_start(struct kvd_service *service, const struct kvd_append_args *args,
    struct kvd_append **ret)
{
    const struct kvd_shape *shape = args->session->shape;
    uint32_t blocks = kvd_append_block_span(shape, args->start, args->token_count);
    struct kvd_append *append = append_create(
        service, args->session, args->layer_count, (uint64_t)args->layer_count * blocks);

    KVARN_ASSERT(args->token_count > 0 && args->layer_count > 0);
    if (append == NULL) {
        return KVARN_ENOMEM;
    }
    append->epoch = args->epoch;
    append->hash = rows_meaning(args);
    append->is_batched = args->is_batched;
    if (args->is_batched) {
        append->unhashed = args->payload;
        append->unhashed_bytes = (size_t)kvd_append_payload_bytes(
            shape, args->layer_first, args->layer_count, args->token_count, args->dtype);
    } else {
        append->hash = hash_join(append->hash, args->payload_hash);
    }
    append->deadline_ns = args->deadline_ns;
    append->ctx = args->ctx;
    append->committed_cb = args->committed_cb;
    append->done_cb = args->done_cb;
    append->op.layer_first = args->layer_first;
    append->op.layer_count = args->layer_count;
    append->layer_count = args->layer_count;
    const uint8_t *src = args->payload;
    for (uint32_t i = 0; i < args->layer_count; i++) {
        uint32_t layer = args->layer_first + i;
        append->layers[i] = (struct append_layer){
            .layer = layer, .token_count = args->token_count, .start = args->start};
        struct kvd_append_rows rows = {.layer = layer,
            .start = args->start,
            .token_count = args->token_count,
            .src = src,
            .dtype = args->dtype,
            .is_token_major = args->is_token_major,
            .is_rotated = args->is_rotated};
        append->unit_count +=
            kvd_append_units_from_rows(&append->units[append->unit_count], shape, &rows);
        src += kvd_append_payload_bytes(shape, layer, 1, args->token_count, args->dtype);
    }
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

uint64_t kvd_append_run_bytes(const struct kvd_shape *shape, const struct kvd_append_run *run)
{
    const struct kvd_layer_shape *ls = &shape->layers[run->layer];

    if (run->is_records) {
        return run->token_count / shape->group * ls->kv_heads * kvarn_record_bytes(&ls->spec);
    }
    return kvd_append_payload_bytes(shape, run->layer, 1, run->token_count, KVARN_F16);
}

static void append_add_run(
    struct kvd_append *append, const struct kvd_append_run *run, const uint8_t *src)
{
    const struct kvd_shape *shape = append->session->shape;
    struct append_layer *al =
        append->layer_count == 0 ? NULL : &append->layers[append->layer_count - 1];

    if (al == NULL || al->layer != run->layer) {
        al = &append->layers[append->layer_count++];
        *al = (struct append_layer){.layer = run->layer, .start = run->first_token};
    }
    al->token_count += (uint32_t)run->token_count;
    struct kvd_append_unit *units = &append->units[append->unit_count];
    if (run->is_records) {
        al->records_end = (uint32_t)((run->first_token + run->token_count) / shape->group);
        append->unit_count += kvd_append_units_from_records(
            units, shape, run->layer, run->first_token, run->token_count, src);
        return;
    }
    struct kvd_append_rows rows = {.layer = run->layer,
        .start = run->first_token,
        .token_count = (uint32_t)run->token_count,
        .src = src,
        .dtype = KVARN_F16,
        .is_rotated = true};
    append->unit_count += kvd_append_units_from_rows(units, shape, &rows);
}

/* As rows_meaning(): where each form begins. The seed sets them apart from rows. */
static uint64_t runs_meaning(const struct kvd_append_tiles_args *args)
{
    uint64_t hash = 1;

    for (uint32_t i = 0; i < args->run_count; i++) {
        const struct kvd_append_run *run = &args->runs[i];
        uint64_t words[] = {run->layer, run->first_token, run->token_count, run->is_records};
        hash = XXH3_64bits_withSeed(words, sizeof(words), hash);
    }
    return hash;
}

int kvd_append_tiles_start(struct kvd_service *service, const struct kvd_append_tiles_args *args)
{
    const struct kvd_shape *shape = args->session->shape;
    uint64_t units = 0;

    KVARN_ASSERT(args->run_count > 0);
    for (uint32_t i = 0; i < args->run_count; i++) {
        units += kvd_append_block_span(shape, args->runs[i].first_token, args->runs[i].token_count);
    }
    struct kvd_append *append = append_create(service, args->session, args->run_count, units);
    if (append == NULL) {
        return KVARN_ENOMEM;
    }
    append->epoch = args->epoch;
    append->hash = hash_join(runs_meaning(args), args->payload_hash);
    append->deadline_ns = args->deadline_ns;
    append->ctx = args->ctx;
    append->done_cb = args->done_cb;
    const uint8_t *src = args->payload;
    for (uint32_t i = 0; i < args->run_count; i++) {
        append_add_run(append, &args->runs[i], src);
        src += kvd_append_run_bytes(shape, &args->runs[i]);
    }
    append->op.layer_first = args->runs[0].layer;
    append->op.layer_count =
        args->runs[args->run_count - 1].layer - append->op.layer_first + 1;
    kvd_session_enqueue(args->session, &append->op);
    return 0;
}
