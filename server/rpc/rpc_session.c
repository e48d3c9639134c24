/*
 * Calls that make, open, cut and end sessions.
 *
 * Owner: the request. Thread: loop only.
 */
#include <inttypes.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/conn/conn.h"
#include "server/prefix/prefix_lease.h"
#include "server/rpc/rpc.h"
#include "server/rpc/rpc_check.h"
#include "server/session/session_blocks.h"
#include "server/session/truncate.h"

static void fail_memory(struct kvd_request *request)
{
    struct kvd_failure why = {0};

    kvd_fail(&why, KVARN_ENOMEM, "no memory for the request");
    kvd_request_fail(request, &why);
}

/* OpenSession. */

/* An open that waits for its turn in the session; in the request's memory. */
struct open_call {
    struct kvd_session_op op; /* first: the queue's handle */
    struct kvd_request *request;
};

static const Kvarnd__OpenSession *open_message(const struct kvd_request *request)
{
    return (const void *)request->message;
}

static int open_check(const Kvarnd__OpenSession *message, struct kvd_failure *why)
{
    if ((unsigned)message->mode > KVARND__OPEN_MODE__EXISTING) {
        return kvd_fail(why, KVARN_EINVALID, "unknown mode %d", (int)message->mode);
    }
    if ((unsigned)message->encoder > KVARND__ENCODER__AWARE) {
        return kvd_fail(why, KVARN_EINVALID, "unknown encoder %d", (int)message->encoder);
    }
    int err = kvd_rpc_check_lifetime(message->ttl_ms, message->priority, why);
    if (err == 0) {
        err = kvd_rpc_check_salt(&message->salt, why);
    }
    if (err == 0 && message->name != NULL) {
        err = kvd_rpc_check_name(message->name, why);
    }
    if (err != 0 || message->name != NULL) {
        return err;
    }
    if (message->mode == KVARND__OPEN_MODE__EXISTING) {
        return kvd_fail(why, KVARN_EINVALID, "an existing session is found by its name: give one");
    }
    return 0;
}

static int open_handle(struct kvd_request *request, struct kvd_session *session,
    uint64_t *ret_handle, struct kvd_failure *why)
{
    int err = kvd_conn_handle_add(request->conn, session, ret_handle);

    if (err == KVARN_ETOO_LARGE) {
        return kvd_fail(why, err, "a connection holds at most %d handles", KVD_CONN_HANDLES_MAX);
    }
    return err == 0 ? 0 : kvd_fail(why, err, "no memory for a handle");
}

static void open_reply(
    struct kvd_request *request, struct kvd_session *session, uint64_t handle, bool is_created)
{
    uint64_t lengths[KVARN_LAYERS_MAX];
    Kvarnd__Status status = KVARND__STATUS__INIT;
    Kvarnd__OpenSessionReply reply = KVARND__OPEN_SESSION_REPLY__INIT;

    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        lengths[i] = session->layers[i].length;
    }
    kvd_lifetime_touch(session);
    reply.status = &status;
    reply.has_handle = 1;
    reply.handle = handle;
    reply.has_epoch = 1;
    reply.epoch = session->epoch;
    reply.n_layer_lengths = session->shape->layer_count;
    reply.layer_lengths = lengths;
    reply.has_created = 1;
    reply.created = is_created;
    reply.has_shape_id = 1;
    reply.shape_id = session->shape->id;
    kvd_request_reply(request, &reply.base, NULL, 0);
}

/* Let a new session share, and begin with what a lease holds; others may begin with it too. */
static int open_share(
    struct kvd_request *request, struct kvd_session *session, struct kvd_failure *why)
{
    const Kvarnd__OpenSession *message = open_message(request);
    struct kvd_prefix_lease *lease = NULL;
    struct kvd_prefix_chain root;
    int err = 0;

    if (message->has_lease) {
        lease = kvd_prefix_lease_find(kvd_conn_leases(request->conn), message->lease);
        if (lease == NULL) {
            return kvd_fail(why, KVARN_ENOT_FOUND, "no lease %" PRIu64, message->lease);
        }
        kvd_prefix_chain_init(&request->service->prefixes, session->shape, message->salt.data,
            message->salt.len, lease->chain.kind, &root);
        if (lease->shape != session->shape ||
            memcmp(root.name, lease->root, sizeof(root.name)) != 0) {
            return kvd_fail(why, KVARN_EINVALID, "the lease is of another shape or salt");
        }
    }
    if (message->share_prefix) {
        err = kvd_prefix_enable(session, message->salt.data, message->salt.len);
    }
    if (err == 0 && lease != NULL) {
        err = kvd_prefix_begin(session, &lease->blocks, &lease->chain);
    }
    if (err != 0) {
        return kvd_session_fail_space(request->service, sizeof(struct kvd_prefix), why);
    }
    return 0;
}

/* A new session of what the message asks for, not in any table; the caller holds its reference. */
static int open_make(struct kvd_request *request, struct kvd_session **ret, struct kvd_failure *why)
{
    const Kvarnd__OpenSession *message = open_message(request);
    struct kvd_service *service = request->service;
    const struct kvd_session_table *table = &service->sessions;
    const struct kvd_shape *shape =
        kvd_shape_find(&service->shapes, KVD_TENANT_DEFAULT, message->shape_id);

    if (!message->has_shape_id) {
        return kvd_fail(why, KVARN_EINVALID, "a new session needs a shape_id");
    }
    if (shape == NULL) {
        return kvd_fail(why, KVARN_ENOT_FOUND, "no shape %" PRIu32, message->shape_id);
    }
    if (message->seal_lag > shape->group) {
        return kvd_fail(why, KVARN_EINVALID,
            "seal_lag must be at most the group, %" PRIu32 ", got %" PRIu32, shape->group,
            message->seal_lag);
    }
    if (table->count >= table->count_max) {
        return kvd_fail(why, KVARN_ENOSPC, "%" PRIu32 " sessions of at most %" PRIu32, table->count,
            table->count_max);
    }
    struct kvd_session_options options = {
        .encoder = (enum kvarn_encoder)message->encoder, .seal_lag = message->seal_lag};
    int err = kvd_session_create(service, shape, message->name, &options, ret);
    if (err == 0) {
        err = open_share(request, *ret, why);
        if (err != 0) {
            kvd_session_unref(*ret);
            return err;
        }
    }
    if (err == KVARN_ENOSPC) {
        size_t bytes = sizeof(struct kvd_session) + shape->layer_count * sizeof(struct kvd_layer);
        return kvd_session_fail_space(service, bytes, why);
    }
    return err == 0 ? 0 : kvd_fail(why, err, "no memory for the session");
}

static void open_new(struct kvd_request *request)
{
    struct kvd_session *session = NULL;
    struct kvd_failure why = {0};
    uint64_t handle = 0;
    int err = open_make(request, &session, &why);

    KVARN_ASSERT(err != 0 || session != NULL);
    if (err == 0) {
        err = open_handle(request, session, &handle, &why);
        if (err == 0 && session->name != NULL) {
            kvd_session_table_insert(&request->service->sessions, session);
        }
        if (err == 0) {
            kvd_lifetime_set_ttl(session, open_message(request)->ttl_ms);
            kvd_lifetime_set_priority(session, open_message(request)->priority);
            open_reply(request, session, handle, true);
        }
        kvd_session_unref(session);
    }
    if (err != 0) {
        kvd_request_fail(request, &why);
    }
}

static int open_check_existing(
    const Kvarnd__OpenSession *message, const struct kvd_session *session, struct kvd_failure *why)
{
    if (message->mode == KVARND__OPEN_MODE__CREATE) {
        return kvd_fail(why, KVARN_ECONFLICT, "a session of this name exists");
    }
    if (message->has_shape_id && message->shape_id != session->shape->id) {
        return kvd_fail(why, KVARN_ECONFLICT,
            "the session has shape %" PRIu32 ", got shape %" PRIu32, session->shape->id,
            message->shape_id);
    }
    return 0;
}

/* New epoch: what others hold of the session becomes stale, their retries too (SEMANTICS.md 7). */
static void session_take_over(struct kvd_session *session)
{
    session->epoch = kvd_session_table_new_epoch(&session->service->sessions);
    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        KVARN_ASSERT(kvd_session_pending(session, i) == 0);
        if (session->work != NULL) {
            session->work->layers[i].last_count = 0;
        }
    }
}

static void open_dispatch(struct kvd_request *request);

static void open_admit_cb(struct kvd_session_op *op)
{
    struct kvd_request *request = ((struct open_call *)op)->request;
    struct kvd_session *session = op->session;
    struct kvd_failure why = {0};
    uint64_t handle = 0;

    request->cancel_cb = NULL;
    if (session->is_dropped) {
        open_dispatch(request); /* the name may be free now, or another session's */
        return;
    }
    if (request->conn == NULL) {
        kvd_fail(&why, KVARN_ECANCELLED, "the connection has gone");
    } else if (open_handle(request, session, &handle, &why) == 0) {
        if (open_message(request)->takeover) {
            session_take_over(session);
        }
        open_reply(request, session, handle, false);
        return;
    }
    kvd_request_fail(request, &why);
}

static void open_cancel_cb(struct kvd_request *request, int err)
{
    struct open_call *call = request->handler;
    struct kvd_failure why = {0};

    kvd_fail(&why, err, "the session is busy; it was not opened");
    kvd_session_op_cancel(&call->op);
    kvd_request_fail(request, &why);
}

/*
 * Wait until nothing is in flight: the lengths then answered are those that the next request meets,
 * and no append of another holder commits behind a takeover.
 */
static void open_existing(struct kvd_request *request, struct kvd_session *session)
{
    struct open_call *call = kvarn_wire_alloc_take(&request->alloc, sizeof(*call));

    if (call == NULL) {
        fail_memory(request);
        return;
    }
    *call = (struct open_call){.request = request};
    call->op.layer_count = session->shape->layer_count;
    call->op.admit_cb = open_admit_cb;
    request->handler = call;
    request->cancel_cb = open_cancel_cb;
    kvd_session_enqueue(session, &call->op);
}

/* Find what the name means now and go on from there. */
static void open_dispatch(struct kvd_request *request)
{
    const Kvarnd__OpenSession *message = open_message(request);
    struct kvd_session *session = NULL;
    struct kvd_failure why = {0};

    if (request->conn == NULL) {
        kvd_fail(&why, KVARN_ECANCELLED, "the connection has gone");
        kvd_request_fail(request, &why);
        return;
    }
    if (message->name != NULL) {
        session =
            kvd_session_table_find(&request->service->sessions, KVD_TENANT_DEFAULT, message->name);
    }
    if (session == NULL && message->mode != KVARND__OPEN_MODE__EXISTING) {
        open_new(request);
        return;
    }
    if (session == NULL) {
        kvd_fail(&why, KVARN_ENOT_FOUND, "no session has this name");
    } else if (open_check_existing(message, session, &why) == 0) {
        open_existing(request, session);
        return;
    }
    kvd_request_fail(request, &why);
}

void kvd_rpc_open_session(struct kvd_request *request)
{
    struct kvd_failure why = {0};

    if (open_check(open_message(request), &why) != 0) {
        kvd_request_fail(request, &why);
        return;
    }
    open_dispatch(request);
}

/* CloseSession, DropSession. */

void kvd_rpc_close_session(struct kvd_request *request)
{
    const Kvarnd__CloseSession *message = (const void *)request->message;
    Kvarnd__CloseSessionReply reply = KVARND__CLOSE_SESSION_REPLY__INIT;
    Kvarnd__Status status = KVARND__STATUS__INIT;
    struct kvd_failure why = {0};

    if (!kvd_conn_handle_remove(request->conn, message->handle)) {
        kvd_fail(&why, KVARN_ENOT_FOUND, "no handle %" PRIu64, message->handle);
        kvd_request_fail(request, &why);
        return;
    }
    reply.status = &status;
    kvd_request_reply(request, &reply.base, NULL, 0);
}

/* A drop that waits until the cold tier has it; in the request's memory. */
struct drop_call {
    struct kvd_request *request;
    struct kvd_session *session; /* ref */
};

/* What was dropped never comes back: that is on disk before the reply (SEMANTICS.md 23). */
static void drop_stored_cb(void *ctx, int err)
{
    const struct drop_call *call = ctx;
    struct kvd_request *request = call->request;
    struct kvd_session *session = call->session;
    Kvarnd__DropSessionReply reply = KVARND__DROP_SESSION_REPLY__INIT;
    Kvarnd__Status status = KVARND__STATUS__INIT;
    struct kvd_failure why = {0};

    if (err != 0) {
        kvd_fail(&why, err, "the cold tier could not record the drop; the session is still there");
        kvd_request_fail(request, &why);
    } else {
        kvd_session_table_drop(&session->service->sessions, session);
        reply.status = &status;
        kvd_request_reply(request, &reply.base, NULL, 0);
    }
    kvd_session_unref(session);
}

void kvd_rpc_drop_session(struct kvd_request *request)
{
    const Kvarnd__DropSession *message = (const void *)request->message;
    struct kvd_failure why = {0};
    struct kvd_session *session =
        kvd_rpc_find_session(request, message->has_handle, message->handle, message->name, &why);

    if (session == NULL) {
        kvd_request_fail(request, &why);
        return;
    }
    struct drop_call *call = kvarn_wire_alloc_take(&request->alloc, sizeof(*call));
    if (call == NULL) {
        fail_memory(request);
        return;
    }
    *call = (struct drop_call){.request = request, .session = kvd_session_ref(session)};
    int err = kvd_cold_bury(session, drop_stored_cb, call);
    if (err != 0) {
        drop_stored_cb(call, err == KVD_COLD_NOTHING ? 0 : err);
    }
}

/* Truncate. */

/* A Truncate under way; in the request's memory. */
struct truncate_call {
    struct kvd_request *request;
    struct kvd_session *session;   /* borrowed from the truncate */
    struct kvd_truncate *truncate; /* borrowed until done_cb */
};

static void truncate_call_done_cb(void *ctx, const struct kvd_failure *why, bool is_lossy)
{
    const struct truncate_call *call = ctx;
    const struct kvd_session *session = call->session;
    uint64_t lengths[KVARN_LAYERS_MAX];
    Kvarnd__TruncateReply reply = KVARND__TRUNCATE_REPLY__INIT;
    Kvarnd__Status status = KVARND__STATUS__INIT;

    if (why->err != 0) {
        kvd_request_fail(call->request, why);
        return;
    }
    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        lengths[i] = session->layers[i].length;
    }
    reply.status = &status;
    reply.has_epoch = 1;
    reply.epoch = session->epoch;
    reply.n_layer_lengths = session->shape->layer_count;
    reply.layer_lengths = lengths;
    reply.has_lossy_tail = 1;
    reply.lossy_tail = is_lossy;
    kvd_request_reply(call->request, &reply.base, NULL, 0);
}

static void truncate_call_cancel_cb(struct kvd_request *request, int err)
{
    struct truncate_call *call = request->handler;

    kvd_truncate_cancel(call->truncate, err);
}

void kvd_rpc_truncate(struct kvd_request *request)
{
    const Kvarnd__Truncate *message = (const void *)request->message;
    struct kvd_failure why = {0};
    struct kvd_session *session = kvd_request_session(request, message->handle, &why);
    struct truncate_call *call = kvarn_wire_alloc_take(&request->alloc, sizeof(*call));

    if (session == NULL) {
        kvd_request_fail(request, &why);
        return;
    }
    if (call == NULL) {
        fail_memory(request);
        return;
    }
    *call = (struct truncate_call){.request = request, .session = session};
    request->handler = call;
    request->cancel_cb = truncate_call_cancel_cb;
    struct kvd_truncate_args args = {.session = session,
        .epoch = message->epoch,
        .length = message->length,
        .deadline_ns = request->deadline_ns,
        .ctx = call,
        .done_cb = truncate_call_done_cb};
    if (kvd_truncate_start(request->service, &args, &call->truncate) != 0) {
        fail_memory(request);
    }
}
