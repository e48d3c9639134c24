/*
 * Verify: what is held against its checksums, a part at a time. Stateless: a reply says where the
 * next call goes on, so that whoever asks may stop, and nothing is kept in between.
 *
 * Owner: the request. Thread: loop only.
 */
#include <inttypes.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "proto/wire_error.h"
#include "server/read/verify.h"
#include "server/rpc/rpc.h"
#include "server/rpc/rpc_check.h"
#include "server/session/session_blocks.h"

/* A call ends about here: progress can be shown, and Cancel need not be waited for. */
#define CALL_NS UINT64_C(500000000)

/* At work at once: more would only take the disk and the workers from traffic. */
#define CALLS_MAX     2
#define BUSY_RETRY_MS 200

struct verify_call {
    struct kvd_request *request;
    struct kvd_service *service;
    struct kvd_verify *verify;   /* at work; NULL: none */
    struct kvd_session *session; /* ref: at work on it */
    bool is_all;                 /* goes on with the session after it */
    int cancel_err;
    uint32_t block_first; /* of this session */
    uint32_t blocks_left;
    uint32_t named; /* findings that have their session's name */
    uint64_t sessions;
    uint64_t end_ns;
    struct kvd_verify_totals totals;
};

static int check_message(const Kvarnd__Verify *message, struct kvd_failure *why)
{
    if (message->blocks == 0 || message->blocks > KVARN_VERIFY_BLOCKS_MAX) {
        return kvd_fail(why, KVARN_EINVALID, "blocks must be 1 to %d, got %" PRIu32,
            KVARN_VERIFY_BLOCKS_MAX, message->blocks);
    }
    if (message->name_first != NULL && (message->has_handle || message->name != NULL)) {
        return kvd_fail(
            why, KVARN_EINVALID, "name_first goes with all sessions, not with a handle or a name");
    }
    if (message->name_first == NULL && message->block_first > 0 && !message->has_handle &&
        message->name == NULL) {
        return kvd_fail(why, KVARN_EINVALID, "block_first is of a session, got none");
    }
    return 0;
}

/* Names of sessions outlive them in the reply. */
static bool findings_name(struct verify_call *call)
{
    const char *name = call->session->name;
    char *copy = NULL;

    if (name != NULL && call->named < call->totals.finding_count) {
        copy = kvarn_wire_alloc_take(&call->request->alloc, strlen(name) + 1);
        if (copy == NULL) {
            return false;
        }
        memcpy(copy, name, strlen(name) + 1);
    }
    while (call->named < call->totals.finding_count) {
        call->totals.findings[call->named++].name = copy;
    }
    return true;
}

static void finding_to_wire(const struct kvd_verify_finding *finding, Kvarnd__VerifyFinding *ret)
{
    kvarnd__verify_finding__init(ret);
    ret->session = (char *)(uintptr_t)finding->name;
    ret->has_part = ret->has_block = ret->has_wrong_pages = ret->has_layer = 1;
    ret->part = (Kvarnd__VerifyPart)finding->part;
    ret->block = finding->block_idx;
    ret->wrong_pages = finding->wrong_pages;
    ret->layer = finding->layer;
    ret->has_record_error = ret->has_outcome = 1;
    ret->record_error = kvarn_wire_status(finding->record_err);
    ret->outcome = (Kvarnd__VerifyOutcome)finding->outcome;
}

static bool findings_to_wire(const struct verify_call *call, Kvarnd__VerifyReply *reply)
{
    struct kvarn_wire_alloc *alloc = &call->request->alloc;
    uint32_t count = call->totals.finding_count;

    if (count == 0) {
        return true;
    }
    reply->findings = kvarn_wire_alloc_take(alloc, count * sizeof(Kvarnd__VerifyFinding *));
    Kvarnd__VerifyFinding *findings = kvarn_wire_alloc_take(alloc, count * sizeof(*findings));
    if (reply->findings == NULL || findings == NULL) {
        return false;
    }
    for (uint32_t i = 0; i < count; i++) {
        finding_to_wire(&call->totals.findings[i], &findings[i]);
        reply->findings[i] = &findings[i];
    }
    reply->n_findings = count;
    return true;
}

static void totals_to_wire(const struct verify_call *call, Kvarnd__VerifyReply *reply)
{
    const struct kvd_verify_totals *totals = &call->totals;

    reply->has_sessions = reply->has_blocks = reply->has_pages = reply->has_page_bytes = 1;
    reply->sessions = call->sessions;
    reply->blocks = totals->blocks;
    reply->pages = totals->pages;
    reply->page_bytes = totals->page_bytes;
    reply->has_rows_pages = reply->has_records = reply->has_record_bytes = 1;
    reply->rows_pages = totals->rows_pages;
    reply->records = totals->records;
    reply->record_bytes = totals->record_bytes;
    reply->has_wrong_pages = reply->has_wrong_records = reply->has_unread_records = 1;
    reply->wrong_pages = totals->wrong_pages;
    reply->wrong_records = totals->wrong_records;
    reply->unread_records = totals->unread_records;
}

static void call_fail(struct verify_call *call, const struct kvd_failure *why)
{
    struct kvd_request *request = call->request;

    call->service->verify_count--;
    kvd_request_fail(request, why); /* call is gone */
}

/* `next`: where to go on, borrowed; NULL: that was all. */
static void call_reply(
    struct verify_call *call, const struct kvd_session *next, uint32_t next_block)
{
    struct kvd_request *request = call->request;
    Kvarnd__VerifyReply reply = KVARND__VERIFY_REPLY__INIT;
    Kvarnd__Status status = KVARND__STATUS__INIT;
    struct kvd_failure why = {0};

    reply.status = &status;
    reply.has_more = 1;
    reply.more = next != NULL;
    if (next != NULL) {
        reply.next_name = call->is_all ? next->name : NULL;
        reply.has_next_block = reply.has_session_blocks = 1;
        reply.next_block = next_block;
        reply.session_blocks = kvd_session_block_count(next);
    }
    totals_to_wire(call, &reply);
    if (!findings_to_wire(call, &reply)) {
        kvd_fail(&why, KVARN_ENOMEM, "no memory for the reply");
        call_fail(call, &why);
        return;
    }
    call->service->verify_count--;
    kvd_request_reply(request, &reply.base, NULL, 0);
}

static bool has_room_for_more(const struct verify_call *call)
{
    const struct kvd_service *service = call->service;

    return call->blocks_left > 0 && call->totals.finding_count < KVARN_VERIFY_FINDINGS_MAX &&
           !service->is_draining && service->io->ops->now_ns(service->io) < call->end_ns;
}

static void verify_done_cb(void *ctx, uint32_t next_block);

/* Takes over the reference to the session. */
static void session_start(struct verify_call *call, struct kvd_session *session, uint32_t first)
{
    struct kvd_verify_args args = {.session = session,
        .block_first = first,
        .blocks_max = call->blocks_left,
        .end_ns = call->end_ns,
        .totals = &call->totals,
        .ctx = call,
        .done_cb = verify_done_cb};
    struct kvd_failure why = {0};

    call->session = session;
    call->block_first = first;
    if (kvd_verify_start(&args, &call->verify) != 0) {
        kvd_session_unref(session);
        kvd_fail(&why, KVARN_ENOMEM, "no memory for the verification");
        call_fail(call, &why);
    }
}

/* One session is done to its end. */
static void session_next(struct verify_call *call, const struct kvd_session *session)
{
    struct kvd_session *next = NULL;

    call->sessions++;
    if (call->is_all) {
        next = kvd_session_table_next(&call->service->sessions, KVD_TENANT_DEFAULT, session->name);
    }
    if (next == NULL || !has_room_for_more(call)) {
        call_reply(call, next, 0);
        return;
    }
    session_start(call, kvd_session_ref(next), 0);
}

static void verify_done_cb(void *ctx, uint32_t next_block)
{
    struct verify_call *call = ctx;
    struct kvd_session *session = call->session;
    struct kvd_failure why = {0};
    bool is_stuck = next_block == call->block_first && call->totals.blocks == 0 &&
                    call->sessions == 0 && !call->service->is_draining;

    call->verify = NULL;
    if (call->cancel_err != 0) {
        kvd_fail(&why, call->cancel_err, "a part was verified; what was wrong is logged");
    } else if (!findings_name(call)) {
        kvd_fail(&why, KVARN_ENOMEM, "no memory for the names of sessions");
    } else if (is_stuck) {
        (void)!kvd_session_fail_space(call->service, sizeof(struct kvd_verify_check), &why);
    }
    uint32_t last = next_block == UINT32_MAX ? kvd_session_block_count(session) : next_block;
    uint32_t done = last > call->block_first ? last - call->block_first : 0;
    call->blocks_left -= done < call->blocks_left ? done : call->blocks_left;
    if (why.err != 0) {
        call_fail(call, &why);
    } else if (next_block != UINT32_MAX) {
        call_reply(call, session, next_block);
    } else {
        session_next(call, session);
    }
    kvd_session_unref(session);
}

static void verify_cancel_cb(struct kvd_request *request, int err)
{
    struct verify_call *call = request->handler;

    call->cancel_err = err;
    if (call->verify != NULL) {
        kvd_verify_stop(call->verify);
    }
}

/* The session to begin with; NULL without an error: there is none. */
static struct kvd_session *first_session(
    const struct kvd_request *request, bool is_all, uint32_t *ret_block, struct kvd_failure *why)
{
    const Kvarnd__Verify *message = (const void *)request->message;
    struct kvd_session_table *table = &request->service->sessions;

    *ret_block = message->block_first;
    if (!is_all) {
        return kvd_rpc_find_session(
            request, message->has_handle, message->handle, message->name, why);
    }
    struct kvd_session *session =
        message->name_first == NULL
            ? NULL
            : kvd_session_table_find(table, KVD_TENANT_DEFAULT, message->name_first);
    if (session == NULL) {
        *ret_block = 0; /* it is gone, or was never there */
        session = kvd_session_table_next(table, KVD_TENANT_DEFAULT, message->name_first);
    }
    return session;
}

/* When no further block is begun: early enough for the request's own deadline. */
static uint64_t end_of(const struct kvd_request *request)
{
    struct kvd_io *io = request->service->io;
    uint64_t now_ns = io->ops->now_ns(io);
    uint64_t end_ns = now_ns + CALL_NS;

    if (request->deadline_ns == 0) {
        return end_ns;
    }
    uint64_t left_ns = request->deadline_ns > now_ns ? request->deadline_ns - now_ns : 0;
    return now_ns + left_ns / 2 < end_ns ? now_ns + left_ns / 2 : end_ns;
}

void kvd_rpc_verify(struct kvd_request *request)
{
    const Kvarnd__Verify *message = (const void *)request->message;
    struct kvd_service *service = request->service;
    struct verify_call *call = kvarn_wire_alloc_take(&request->alloc, sizeof(*call));
    bool is_all = !message->has_handle && message->name == NULL;
    struct kvd_failure why = {0};
    struct kvd_session *session = NULL;
    uint32_t block_first = 0;

    if (check_message(message, &why) == 0) {
        session = first_session(request, is_all, &block_first, &why);
    }
    if (why.err == 0 && call == NULL) {
        kvd_fail(&why, KVARN_ENOMEM, "no memory for the request");
    } else if (why.err == 0 && service->verify_count >= CALLS_MAX) {
        why.retry_after_ms = BUSY_RETRY_MS;
        kvd_fail(&why, KVARN_ERETRY_LATER, "%d calls are verifying already", CALLS_MAX);
    }
    if (why.err != 0 || call == NULL) {
        kvd_request_fail(request, &why);
        return;
    }
    *call = (struct verify_call){.request = request,
        .service = service,
        .is_all = is_all,
        .blocks_left = message->blocks,
        .end_ns = end_of(request)};
    service->verify_count++;
    if (session == NULL) {
        call_reply(call, NULL, 0);
        return;
    }
    request->handler = call;
    request->cancel_cb = verify_cancel_cb;
    session_start(call, kvd_session_ref(session), block_first);
}
