/*
 * Calls that say how long sessions stay: Touch, Pin, Evict.
 *
 * Owner: the request. Thread: loop only.
 */
#include <inttypes.h>
#include <stddef.h>

#include "server/evict/session_evict.h"
#include "server/rpc/rpc.h"
#include "server/rpc/rpc_check.h"
#include "server/session/session_blocks.h"

/* Blocks that an Evict takes before it looks at the clock: up to 80 us for 32 layers. */
#define EVICT_STEP_BLOCKS 1

void kvd_rpc_touch(struct kvd_request *request)
{
    const Kvarnd__Touch *message = (const void *)request->message;
    Kvarnd__TouchReply reply = KVARND__TOUCH_REPLY__INIT;
    Kvarnd__Status status = KVARND__STATUS__INIT;
    struct kvd_failure why = {0};
    struct kvd_session *session =
        kvd_rpc_find_session(request, message->has_handle, message->handle, message->name, &why);

    if (session == NULL || kvd_rpc_check_lifetime(message->ttl_ms, message->priority, &why) != 0) {
        kvd_request_fail(request, &why);
        return;
    }
    if (message->has_ttl_ms) {
        kvd_lifetime_set_ttl(session, message->ttl_ms);
    }
    if (message->has_priority) {
        kvd_lifetime_set_priority(session, message->priority);
    }
    kvd_lifetime_touch(session);
    reply.status = &status;
    reply.has_ttl_left_ms = reply.has_priority = 1;
    reply.ttl_left_ms = kvd_lifetime_ttl_left_ms(session);
    reply.priority = kvd_lifetime_priority(session);
    kvd_request_reply(request, &reply.base, NULL, 0);
}

/* A Pin or Evict that waits for its turn in the session; in the request's memory. */
struct turn_call {
    struct kvd_session_op op; /* first: the queue's handle */
    struct kvd_request *request;
    /* Evict */
    struct kvd_slice slice;
    struct kvd_session *session;   /* ref, from its turn on */
    struct kvd_cold_waiter waiter; /* for what can go once it is stored */
    uint32_t blocks_left, blocks;
    uint64_t freed_bytes;
    bool has_waited;
};

static void turn_cancel_cb(struct kvd_request *request, int err)
{
    struct turn_call *call = request->handler;
    struct kvd_failure why = {0};

    kvd_fail(&why, err, "the session is busy; nothing has changed");
    kvd_session_op_cancel(&call->op);
    kvd_request_fail(request, &why);
}

/* Find the session and wait for all of its layers. */
static void turn_start(struct kvd_request *request, struct kvd_session *session, uint32_t blocks,
    void (*admit_cb)(struct kvd_session_op *op))
{
    struct turn_call *call = kvarn_wire_alloc_take(&request->alloc, sizeof(*call));
    struct kvd_failure why = {0};

    if (call == NULL) {
        kvd_fail(&why, KVARN_ENOMEM, "no memory for the request");
        kvd_request_fail(request, &why);
        return;
    }
    *call = (struct turn_call){.request = request, .blocks_left = blocks};
    call->op.layer_count = session->shape->layer_count;
    call->op.admit_cb = admit_cb;
    request->handler = call;
    request->cancel_cb = turn_cancel_cb;
    kvd_session_enqueue(session, &call->op);
}

static void pin_reply(struct kvd_request *request, const struct kvd_session *session)
{
    const struct kvd_lifetimes *lifetimes = &request->service->lifetimes;
    Kvarnd__PinReply reply = KVARND__PIN_REPLY__INIT;
    Kvarnd__Status status = KVARND__STATUS__INIT;

    reply.status = &status;
    reply.has_pinned_bytes = reply.has_budget_left_bytes = 1;
    reply.pinned_bytes = session->lifetime.pinned_bytes;
    reply.budget_left_bytes = lifetimes->pin_bytes_max - lifetimes->pinned_bytes;
    kvd_request_reply(request, &reply.base, NULL, 0);
}

static void pin_admit_cb(struct kvd_session_op *op)
{
    struct kvd_request *request = ((struct turn_call *)(void *)op)->request;
    const Kvarnd__Pin *message = (const void *)request->message;
    struct kvd_session *session = op->session;
    struct kvd_failure why = {0};

    request->cancel_cb = NULL;
    if (session->is_dropped) {
        kvd_fail(&why, KVARN_ENOT_FOUND, "the session was dropped");
    } else if (message->unpin) {
        kvd_lifetime_unpin(session);
    } else if (kvd_lifetime_pin(session, message->pin_ms, &why) == 0) {
        kvd_lifetime_touch(session);
    }
    if (why.err != 0) {
        kvd_request_fail(request, &why);
        return;
    }
    pin_reply(request, session);
}

void kvd_rpc_pin(struct kvd_request *request)
{
    const Kvarnd__Pin *message = (const void *)request->message;
    struct kvd_failure why = {0};
    struct kvd_session *session =
        kvd_rpc_find_session(request, message->has_handle, message->handle, message->name, &why);

    if (session != NULL && message->pin_ms == 0 && !message->unpin) {
        session = NULL;
        kvd_fail(&why, KVARN_EINVALID, "pin_ms must be at least 1; unpin ends a pin");
    }
    if (session == NULL || kvd_rpc_check_lifetime(message->pin_ms, 0, &why) != 0) {
        kvd_request_fail(request, &why);
        return;
    }
    turn_start(request, session, 0, pin_admit_cb);
}

static void evict_hold(struct turn_call *call)
{
    for (uint32_t i = 0; i < call->session->shape->layer_count; i++) {
        call->session->work->layers[i].pending++;
    }
}

static void evict_release(struct turn_call *call)
{
    for (uint32_t i = 0; i < call->session->shape->layer_count; i++) {
        call->session->work->layers[i].pending--;
    }
}

/* Its layers are free again. */
static void evict_finish(struct turn_call *call)
{
    struct kvd_session *session = call->session;
    Kvarnd__EvictReply reply = KVARND__EVICT_REPLY__INIT;
    Kvarnd__Status status = KVARND__STATUS__INIT;

    kvd_evictor_count(session, KVD_EVICT_CAUSE_CALL, call->blocks, call->freed_bytes);
    kvd_evictor_settle(session);
    reply.status = &status;
    reply.has_blocks = reply.has_freed_bytes = 1;
    reply.blocks = call->blocks;
    reply.freed_bytes = call->freed_bytes;
    reply.has_missing_first = reply.has_missing_last = 1;
    kvd_session_missing_tokens(session, &reply.missing_first, &reply.missing_last);
    kvd_request_reply(call->request, &reply.base, NULL, 0); /* call is gone */
    kvd_session_kick(session);
    kvd_session_unref(session);
}

/* Nobody waits for it any more: what is stored by now has gone. */
static void evict_cancel_cb(struct kvd_request *request, int err)
{
    struct turn_call *call = request->handler;
    struct kvd_session *session = call->session;
    struct kvd_failure why = {0};

    kvd_cold_store_cancel(&request->service->cold, &call->waiter);
    kvd_evictor_count(session, KVD_EVICT_CAUSE_CALL, call->blocks, call->freed_bytes);
    kvd_fail(&why, err, "%" PRIu32 " blocks went; others are still being stored", call->blocks);
    kvd_request_fail(request, &why);
    kvd_session_unref(session);
}

static void evict_stored_cb(struct kvd_cold_waiter *waiter);

/* All that could go at once has gone: wait for what must be stored first, or answer. */
static void evict_rest(struct turn_call *call)
{
    bool is_more = call->blocks_left > 0 && !call->has_waited;

    evict_release(call);
    call->has_waited = true;
    call->waiter.stored_cb = evict_stored_cb;
    if (is_more && kvd_session_has_evictable(call->session) &&
        kvd_cold_store(call->session, &call->waiter)) {
        call->request->cancel_cb = evict_cancel_cb;
        kvd_session_kick(call->session);
        return;
    }
    evict_finish(call);
}

static void evict_go_on(struct turn_call *call)
{
    struct kvd_slices *slices = &call->session->service->sessions.slices;
    uint32_t blocks = 0, step = 0;

    while (call->blocks_left > 0 && blocks == step) {
        step = call->blocks_left < EVICT_STEP_BLOCKS ? call->blocks_left : EVICT_STEP_BLOCKS;
        blocks = kvd_session_evict(call->session, step, &call->freed_bytes);
        call->blocks += blocks;
        call->blocks_left -= blocks;
        if (call->blocks_left > 0 && blocks == step && !kvd_slices_has_time(slices)) {
            kvd_slices_add(slices, &call->slice);
            return;
        }
    }
    evict_rest(call);
}

static void evict_slice_run(struct kvd_slice *slice)
{
    evict_go_on((void *)((uint8_t *)slice - offsetof(struct turn_call, slice)));
}

/* What could be stored is: it may go, unless somebody is at work in the session by now. */
static void evict_stored_cb(struct kvd_cold_waiter *waiter)
{
    struct turn_call *call = (void *)((uint8_t *)waiter - offsetof(struct turn_call, waiter));

    call->request->cancel_cb = NULL;
    if (call->session->is_dropped || kvd_session_is_busy(call->session) ||
        kvd_session_want_work(call->session) != 0) {
        evict_finish(call);
        return;
    }
    evict_hold(call);
    evict_go_on(call);
}

static void evict_admit_cb(struct kvd_session_op *op)
{
    struct turn_call *call = (void *)op;
    struct kvd_request *request = call->request;
    struct kvd_failure why = {0};

    request->cancel_cb = NULL; /* it is short, and each block is whole or gone */
    if (op->session->is_dropped) {
        kvd_fail(&why, KVARN_ENOT_FOUND, "the session was dropped");
        kvd_request_fail(request, &why);
        return;
    }
    if (kvd_session_want_work(op->session) != 0 &&
        kvd_session_fail_space(op->session->service, sizeof(struct kvd_session_work), &why) != 0) {
        kvd_request_fail(request, &why);
        return;
    }
    kvd_prefetch_cancel(op->session); /* nobody wants it now */
    call->session = kvd_session_ref(op->session);
    call->slice.run = evict_slice_run;
    evict_hold(call);
    evict_go_on(call);
}

void kvd_rpc_evict(struct kvd_request *request)
{
    const Kvarnd__Evict *message = (const void *)request->message;
    struct kvd_failure why = {0};
    struct kvd_session *session =
        kvd_rpc_find_session(request, message->has_handle, message->handle, message->name, &why);

    if (session == NULL) {
        kvd_request_fail(request, &why);
        return;
    }
    turn_start(
        request, session, message->has_blocks ? message->blocks : UINT32_MAX, evict_admit_cb);
}
