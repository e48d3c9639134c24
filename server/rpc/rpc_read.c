/*
 * ReadBlocks: the message, its checks and its reply.
 *
 * Owner: the request. Thread: loop only.
 */
#include <inttypes.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/append/append.h"
#include "server/read/read.h"
#include "server/rpc/rpc.h"
#include "server/rpc/rpc_check.h"

/* A ReadBlocks under way; in the request's memory. */
struct read_call {
    struct kvd_request *request;
    struct kvd_read *read; /* borrowed until done_cb */
};

static int read_message_check(
    const Kvarnd__ReadBlocks *message, const struct kvd_session *session, struct kvd_failure *why)
{
    int err = kvd_rpc_check_layers(session->shape, message->layer_first, message->layer_count, why);

    if (err == 0) {
        err = kvd_rpc_check_numbers(message->dtype, message->layout, why);
    }
    if (err != 0) {
        return err;
    }
    if ((unsigned)message->what > KVARND__READ_WHAT__V_ONLY) {
        return kvd_fail(why, KVARN_EINVALID, "unknown what %d", (int)message->what);
    }
    if (message->token_first > message->token_last) {
        return kvd_fail(why, KVARN_EINVALID, "token_first %" PRIu64 " is after token_last %" PRIu64,
            message->token_first, message->token_last);
    }
    return 0;
}

/* Payload of the reply, or somewhat more: records and K or V alone are less than all rows. */
static uint64_t reply_bytes_max(
    const Kvarnd__ReadBlocks *message, const struct kvd_session *session)
{
    uint64_t tokens = message->token_last - message->token_first;
    enum kvarn_dtype dtype = message->stored ? KVARN_F16 : (enum kvarn_dtype)message->dtype;

    if (tokens > KVARN_SESSION_TOKENS_MAX) {
        return 0; /* a miss */
    }
    return kvd_append_payload_bytes(
        session->shape, message->layer_first, message->layer_count, tokens, dtype);
}

/* The wire's view of the runs, in the request's memory; NULL without it. */
static Kvarnd__Run **runs_to_wire(
    struct kvarn_wire_alloc *alloc, const struct kvd_read_result *result)
{
    size_t count = result->run_count;
    Kvarnd__Run *runs = kvarn_wire_alloc_take(alloc, (count + 1) * sizeof(*runs));
    Kvarnd__Run **wire = kvarn_wire_alloc_take(alloc, (count + 1) * sizeof(Kvarnd__Run *));

    if (runs == NULL || wire == NULL) {
        return NULL;
    }
    for (size_t i = 0; i < count; i++) {
        const struct kvd_read_run *run = &result->runs[i];
        kvarnd__run__init(&runs[i]);
        runs[i].layer = run->layer;
        runs[i].first_token = run->first_token;
        runs[i].token_count = run->token_count;
        runs[i].form = run->form;
        wire[i] = &runs[i];
    }
    return wire;
}

static void read_call_done_cb(
    void *ctx, const struct kvd_failure *why, const struct kvd_read_result *result)
{
    struct kvd_request *request = ((struct read_call *)ctx)->request;
    Kvarnd__Status status = KVARND__STATUS__INIT;
    Kvarnd__ReadBlocksReply reply = KVARND__READ_BLOCKS_REPLY__INIT;

    if (why->err != 0) {
        kvd_request_fail(request, why);
        return;
    }
    const struct kvd_reply_payload *payload = &result->payload;
    reply.runs = runs_to_wire(&request->alloc, result);
    if (reply.runs == NULL) {
        struct kvd_failure none_left = {0};
        if (payload->release_cb != NULL) {
            payload->release_cb(payload->ctx);
        }
        kvd_fail(&none_left, KVARN_ENOMEM, "no memory for %" PRIu32 " runs", result->run_count);
        kvd_request_fail(request, &none_left);
        return;
    }
    reply.status = &status;
    reply.n_runs = result->run_count;
    reply.has_epoch = 1;
    reply.epoch = result->epoch;
    kvd_request_reply(request, &reply.base, payload->bytes > 0 ? payload : NULL, 0);
}

static void read_call_cancel_cb(struct kvd_request *request, int err)
{
    struct read_call *call = request->handler;

    kvd_read_cancel(call->read, err);
}

void kvd_rpc_read_blocks(struct kvd_request *request)
{
    const Kvarnd__ReadBlocks *message = (const void *)request->message;
    struct kvd_failure why = {0};
    struct kvd_session *session = kvd_request_session(request, message->handle, &why);
    struct read_call *call = kvarn_wire_alloc_take(&request->alloc, sizeof(*call));

    if (session == NULL || read_message_check(message, session, &why) != 0) {
        kvd_request_fail(request, &why);
        return;
    }
    struct kvd_read_args args = {.session = session,
        .layer_first = message->layer_first,
        .layer_count = message->layer_count,
        .first = message->token_first,
        .last = message->token_last,
        .is_stored = message->stored,
        .format = {.dtype = (enum kvarn_dtype)message->dtype,
            .is_token_major = message->layout == KVARND__LAYOUT__TOKEN_MAJOR,
            .is_rotated = message->rotated,
            .has_k = message->what != KVARND__READ_WHAT__V_ONLY,
            .has_v = message->what != KVARND__READ_WHAT__K_ONLY},
        .ctx = call,
        .done_cb = read_call_done_cb};
    if (call != NULL) {
        *call = (struct read_call){.request = request};
        request->handler = call;
        request->cancel_cb = read_call_cancel_cb;
    }
    kvd_request_expect_reply(request, reply_bytes_max(message, session));
    if (call == NULL || kvd_read_start(request->service, &args, &call->read) != 0) {
        kvd_fail(&why, KVARN_ENOMEM, "no memory for the read");
        kvd_request_fail(request, &why);
    }
}
