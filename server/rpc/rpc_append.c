/*
 * Append and AppendTiles: the messages, their checks and their replies.
 *
 * Owner: the request. Thread: loop only.
 */
#include <inttypes.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/append/append.h"
#include "server/rpc/rpc.h"
#include "server/rpc/rpc_check.h"

/* A layer as it is read back has three runs at most: sink rows, records, tail rows. */
#define RUNS_MAX (3 * KVARN_LAYERS_MAX)

/* An Append or AppendTiles under way; in the request's memory. */
struct append_call {
    struct kvd_request *request;
    struct kvd_session *session; /* borrowed from the append */
    struct kvd_append *append;   /* borrowed until done_cb */
    uint32_t layer_first, layer_count;
    struct kvd_append_run *runs; /* AppendTiles only */
    uint32_t run_count;
};

/* The call's own memory, and its session; NULL: `why` says so. */
static struct append_call *append_call_create(
    struct kvd_request *request, uint64_t handle, struct kvd_failure *why)
{
    struct kvd_session *session = kvd_request_session(request, handle, why);

    if (session == NULL) {
        return NULL;
    }
    struct append_call *call = kvarn_wire_alloc_take(&request->alloc, sizeof(*call));
    if (call == NULL) {
        kvd_fail(why, KVARN_ENOMEM, "no memory for the request");
        return NULL;
    }
    *call = (struct append_call){.request = request, .session = session};
    request->handler = call;
    return call;
}

/* What an append's payload says of its tokens before K and V; `data` is not set. */
static struct kvd_prefix_note append_note(const Kvarnd__Append *message)
{
    return (struct kvd_prefix_note){.start = message->start,
        .token_count = message->token_count,
        .kind = message->block_hashes ? KVD_PREFIX_HASHES : KVD_PREFIX_TOKENS};
}

static size_t append_note_bytes(const Kvarnd__Append *message, const struct kvd_shape *shape)
{
    struct kvd_prefix_note note = append_note(message);

    return message->token_ids || message->block_hashes ? kvd_prefix_note_bytes(shape, &note) : 0;
}

int kvd_rpc_append_payload(
    const struct kvd_request *request, uint64_t *ret, struct kvd_failure *why)
{
    const Kvarnd__Append *message = (const void *)request->message;
    const struct kvd_session *session = kvd_request_session(request, message->handle, why);

    if (session == NULL) {
        return why->err;
    }
    int err = kvd_rpc_check_layers(session->shape, message->layer_first, message->layer_count, why);
    if (err == 0) {
        err = kvd_rpc_check_tokens(message->start, message->token_count, why);
    }
    if (err == 0) {
        err = kvd_rpc_check_numbers(message->dtype, message->layout, why);
    }
    if (err == 0) {
        err = kvd_rpc_check_note(message->token_ids, message->block_hashes, why);
    }
    if (err != 0) {
        return err;
    }
    *ret = append_note_bytes(message, session->shape);
    *ret += kvd_append_payload_bytes(session->shape, message->layer_first, message->layer_count,
        message->token_count, (enum kvarn_dtype)message->dtype);
    return 0;
}

/* Tokens that every one of the layers has sealed; due ones count, since whoever comes next waits
 * for them. */
static uint64_t layers_sealed_tokens(const struct append_call *call)
{
    const struct kvd_session *session = call->session;
    uint32_t blocks = UINT32_MAX;

    for (uint32_t i = call->layer_first; i < call->layer_first + call->layer_count; i++) {
        if (session->layers[i].sealed_blocks < blocks) {
            blocks = session->layers[i].sealed_blocks;
        }
    }
    return (uint64_t)blocks * session->shape->group;
}

static void append_call_done_cb(void *ctx, const struct kvd_failure *why, bool is_repeat)
{
    struct append_call *call = ctx;
    Kvarnd__Status status = KVARND__STATUS__INIT;
    Kvarnd__AppendReply reply = KVARND__APPEND_REPLY__INIT;

    if (why->err != 0) {
        kvd_request_fail(call->request, why);
        return;
    }
    reply.status = &status;
    reply.has_epoch = 1;
    reply.epoch = call->session->epoch;
    reply.has_length = 1;
    reply.length = call->session->layers[call->layer_first].length;
    reply.has_sealed_tokens = 1;
    reply.sealed_tokens = layers_sealed_tokens(call);
    reply.has_repeated_request = 1;
    reply.repeated_request = is_repeat;
    kvd_request_reply(call->request, &reply.base, NULL, 0);
}

static void append_call_cancel_cb(struct kvd_request *request, int err)
{
    struct append_call *call = request->handler;

    kvd_append_cancel(call->append, err);
}

void kvd_rpc_append(struct kvd_request *request)
{
    const Kvarnd__Append *message = (const void *)request->message;
    struct kvd_failure why = {0};
    struct append_call *call = append_call_create(request, message->handle, &why);

    if (call == NULL) {
        kvd_request_fail(request, &why);
        return;
    }
    call->layer_first = message->layer_first;
    call->layer_count = message->layer_count;
    size_t note_bytes = append_note_bytes(message, call->session->shape);
    struct kvd_append_args args = {.session = call->session,
        .epoch = message->epoch,
        .layer_first = message->layer_first,
        .layer_count = message->layer_count,
        .start = message->start,
        .token_count = message->token_count,
        .dtype = (enum kvarn_dtype)message->dtype,
        .is_token_major = message->layout == KVARND__LAYOUT__TOKEN_MAJOR,
        .is_rotated = message->rotated,
        .payload = (const uint8_t *)request->payload + note_bytes,
        .payload_hash = request->payload_hash,
        .prefix_kind = append_note(message).kind,
        .prefix_data = note_bytes > 0 ? request->payload : NULL,
        .deadline_ns = request->deadline_ns,
        .ctx = call,
        .done_cb = append_call_done_cb};
    request->cancel_cb = append_call_cancel_cb;
    if (kvd_append_start(request->service, &args, &call->append) != 0) {
        kvd_fail(&why, KVARN_ENOMEM, "no memory for the append");
        kvd_request_fail(request, &why);
    }
}

/* A run alone: its layer, form, tokens and blocks. */
static int run_check(const struct kvd_shape *shape, const Kvarnd__Run *run, struct kvd_failure *why)
{
    int err = kvd_rpc_check_layers(shape, run->layer, 1, why);

    if (err == 0) {
        err = kvd_rpc_check_tokens(run->first_token, run->token_count, why);
    }
    if (err != 0) {
        return err;
    }
    if (run->form == KVARND__RUN_FORM__ROWS_STORED) {
        return 0;
    }
    if (run->form != KVARND__RUN_FORM__RECORDS) {
        return kvd_fail(
            why, KVARN_EINVALID, "form must be RECORDS or ROWS_STORED, got %d", (int)run->form);
    }
    if (run->first_token % shape->group != 0 || run->token_count % shape->group != 0) {
        return kvd_fail(why, KVARN_EINVALID,
            "records are whole blocks of %" PRIu32 " tokens, got %" PRIu64 " from %" PRIu64,
            shape->group, run->token_count, run->first_token);
    }
    if (run->first_token < shape->sink_tokens) {
        return kvd_fail(why, KVARN_EINVALID,
            "the first %" PRIu32 " tokens are the sink, which is rows, got records from %" PRIu64,
            shape->sink_tokens, run->first_token);
    }
    return 0;
}

/* A run against the one before it (NULL: it is the first): ascending, no gaps, the tail last. */
static int run_check_order(const struct kvd_shape *shape, const Kvarnd__Run *before,
    const Kvarnd__Run *run, struct kvd_failure *why)
{
    if (before != NULL && run->layer < before->layer) {
        return kvd_fail(why, KVARN_EINVALID,
            "runs ascend by layer, got layer %" PRIu32 " after %" PRIu32, run->layer,
            before->layer);
    }
    if (before == NULL || run->layer != before->layer) {
        if (run->first_token % shape->group == 0) {
            return 0;
        }
        return kvd_fail(why, KVARN_EINVALID,
            "a layer's first run starts at a multiple of %" PRIu32 ", got %" PRIu64, shape->group,
            run->first_token);
    }
    uint64_t end = before->first_token + before->token_count;
    if (run->first_token != end) {
        return kvd_fail(why, KVARN_EINVALID,
            "runs of a layer leave no gap: expected one from %" PRIu64 ", got %" PRIu64, end,
            run->first_token);
    }
    if (run->form == KVARND__RUN_FORM__RECORDS && before->form != run->form &&
        end > shape->sink_tokens) {
        return kvd_fail(why, KVARN_EINVALID,
            "behind the sink rows come last, got records from %" PRIu64 " after rows", end);
    }
    return 0;
}

static struct kvd_append_run run_of(const Kvarnd__Run *wire)
{
    return (struct kvd_append_run){.layer = wire->layer,
        .first_token = wire->first_token,
        .token_count = wire->token_count,
        .is_records = wire->form == KVARND__RUN_FORM__RECORDS};
}

int kvd_rpc_append_tiles_payload(
    const struct kvd_request *request, uint64_t *ret, struct kvd_failure *why)
{
    const Kvarnd__AppendTiles *message = (const void *)request->message;
    const struct kvd_session *session = kvd_request_session(request, message->handle, why);
    uint64_t bytes = 0;

    if (session == NULL) {
        return why->err;
    }
    if (message->n_runs == 0 || message->n_runs > RUNS_MAX) {
        return kvd_fail(
            why, KVARN_EINVALID, "runs must be 1 to %d, got %zu", RUNS_MAX, message->n_runs);
    }
    for (size_t i = 0; i < message->n_runs; i++) {
        const Kvarnd__Run *wire = message->runs[i];
        int err = run_check(session->shape, wire, why);
        if (err == 0) {
            const Kvarnd__Run *before = i == 0 ? NULL : message->runs[i - 1];
            err = run_check_order(session->shape, before, wire, why);
        }
        if (err != 0) {
            return err;
        }
        struct kvd_append_run run = run_of(wire);
        bytes += kvd_append_run_bytes(session->shape, &run); /* <= 1536 runs of < 2^50 bytes */
    }
    *ret = bytes;
    return 0;
}

static void tiles_call_done_cb(void *ctx, const struct kvd_failure *why, bool is_repeat)
{
    struct append_call *call = ctx;
    uint64_t lengths[KVARN_LAYERS_MAX];
    Kvarnd__Status status = KVARND__STATUS__INIT;
    Kvarnd__AppendTilesReply reply = KVARND__APPEND_TILES_REPLY__INIT;

    (void)is_repeat;
    if (why->err != 0) {
        kvd_request_fail(call->request, why);
        return;
    }
    for (uint32_t i = 0; i < call->run_count; i++) {
        uint32_t layer = call->runs[i].layer;
        if (i == 0 || layer != call->runs[i - 1].layer) {
            KVARN_ASSERT(reply.n_lengths < KVARN_LAYERS_MAX);
            lengths[reply.n_lengths++] = call->session->layers[layer].length;
        }
    }
    reply.status = &status;
    reply.has_epoch = 1;
    reply.epoch = call->session->epoch;
    reply.lengths = lengths;
    kvd_request_reply(call->request, &reply.base, NULL, 0);
}

/* The runs in the append's own form, in the request's memory. */
static int tiles_call_fill(
    struct append_call *call, const Kvarnd__AppendTiles *message, struct kvd_failure *why)
{
    size_t bytes = message->n_runs * sizeof(*call->runs);

    call->runs = kvarn_wire_alloc_take(&call->request->alloc, bytes);
    if (call->runs == NULL) {
        return kvd_fail(why, KVARN_ENOMEM, "no memory for %zu runs", message->n_runs);
    }
    call->run_count = (uint32_t)message->n_runs;
    for (uint32_t i = 0; i < call->run_count; i++) {
        call->runs[i] = run_of(message->runs[i]);
    }
    return 0;
}

void kvd_rpc_append_tiles(struct kvd_request *request)
{
    const Kvarnd__AppendTiles *message = (const void *)request->message;
    struct kvd_failure why = {0};
    struct append_call *call = append_call_create(request, message->handle, &why);

    if (call == NULL || tiles_call_fill(call, message, &why) != 0) {
        kvd_request_fail(request, &why);
        return;
    }
    struct kvd_append_tiles_args args = {.session = call->session,
        .epoch = message->epoch,
        .runs = call->runs,
        .run_count = call->run_count,
        .payload = request->payload,
        .payload_hash = request->payload_hash,
        .deadline_ns = request->deadline_ns,
        .ret_append = &call->append,
        .ctx = call,
        .done_cb = tiles_call_done_cb};
    request->cancel_cb = append_call_cancel_cb;
    if (kvd_append_tiles_start(request->service, &args) != 0) {
        kvd_fail(&why, KVARN_ENOMEM, "no memory for the append");
        kvd_request_fail(request, &why);
    }
}
