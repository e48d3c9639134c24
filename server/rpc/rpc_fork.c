/*
 * Fork: copies of sessions, many in one call, each done or refused by itself.
 *
 * Owner: the request. Thread: loop only.
 */
#include "lib/base/limits.h"
#include "server/conn/conn.h"
#include "server/rpc/rpc.h"
#include "server/rpc/rpc_batch.h"
#include "server/rpc/rpc_check.h"
#include "server/session/fork.h"
#include "server/session/session_blocks.h"

struct fork_batch;

struct fork_item {
    struct fork_batch *batch;
    struct kvd_session *parent; /* ref: `why` may name its epoch; NULL: there is none */
    struct kvd_fork *fork;      /* borrowed; NULL while there is none to cancel */
    struct kvd_failure why;
    Kvarnd__ForkItemReply reply;
    Kvarnd__Status status;
    uint64_t handle, epoch, length;
    bool is_created;
    bool is_lossy;
};

struct fork_batch {
    struct kvd_rpc_batch base;
    Kvarnd__ForkItemReply *replies[KVARN_BATCH_ITEMS_MAX];
    struct fork_item items[];
};

static const Kvarnd__Fork *fork_message(const struct kvd_request *request)
{
    return (const void *)request->message;
}

/* The wire's view of one item. */
static void item_to_wire(struct fork_item *item)
{
    Kvarnd__ForkItemReply *reply = &item->reply;

    kvarnd__fork_item_reply__init(reply);
    kvd_rpc_batch_status(&item->batch->base, &item->why, &item->status);
    reply->status = &item->status;
    if (item->why.err == 0) {
        reply->has_handle = reply->has_epoch = reply->has_length = 1;
        reply->handle = item->handle;
        reply->epoch = item->epoch;
        reply->length = item->length;
        reply->has_created = reply->has_lossy_tail = 1;
        reply->created = item->is_created;
        reply->lossy_tail = item->is_lossy;
    }
}

static void batch_answer(struct kvd_rpc_batch *base)
{
    struct fork_batch *batch = (struct fork_batch *)base;
    Kvarnd__ForkReply message = KVARND__FORK_REPLY__INIT;
    Kvarnd__Status ok = KVARND__STATUS__INIT;

    for (uint32_t i = 0; i < base->count; i++) {
        item_to_wire(&batch->items[i]);
        batch->replies[i] = &batch->items[i].reply;
    }
    message.status = &ok;
    message.n_items = base->count;
    message.items = batch->replies;
    kvd_rpc_batch_reply(base, &message.base);
    for (uint32_t i = 0; i < base->count; i++) {
        if (batch->items[i].parent != NULL) {
            kvd_session_unref(batch->items[i].parent);
        }
    }
    kvd_rpc_batch_destroy(base);
}

/* Give the connection a handle of what was made; without one nobody would end it. */
static int item_take(struct fork_item *item, struct kvd_session *session)
{
    struct kvd_conn *conn = item->batch->base.request->conn;

    if (conn == NULL) {
        return kvd_fail(&item->why, KVARN_ECANCELLED, "the connection has gone");
    }
    int err = kvd_conn_handle_add(conn, session, &item->handle);
    if (err == KVARN_ETOO_LARGE) {
        return kvd_fail(
            &item->why, err, "a connection holds at most %d handles", KVD_CONN_HANDLES_MAX);
    }
    return err == 0 ? 0 : kvd_fail(&item->why, err, "no memory for a handle");
}

static void item_done_cb(
    void *ctx, const struct kvd_failure *why, const struct kvd_fork_result *result)
{
    struct fork_item *item = ctx;

    item->fork = NULL;
    item->why = *why;
    if (item->why.session != item->parent) {
        item->why.session = NULL; /* it may be gone when the batch is answered */
    }
    if (why->err == 0 && item_take(item, result->session) == 0) {
        item->epoch = result->session->epoch;
        item->length = kvd_session_length(result->session);
        item->is_created = result->is_created;
        item->is_lossy = result->is_lossy;
    } else if (why->err == 0 && result->is_created) {
        kvd_session_table_drop(&item->batch->base.service->sessions, result->session);
    }
    kvd_rpc_batch_part_done(&item->batch->base);
}

static int item_check(const Kvarnd__ForkItem *wire, struct kvd_failure *why)
{
    if ((unsigned)wire->mode > KVARND__OPEN_MODE__CREATE) {
        return kvd_fail(
            why, KVARN_EINVALID, "mode must be EITHER or CREATE, got %d", (int)wire->mode);
    }
    return wire->name == NULL ? 0 : kvd_rpc_check_name(wire->name, why);
}

static void item_start(struct fork_item *item, const Kvarnd__ForkItem *wire)
{
    struct kvd_request *request = item->batch->base.request;
    struct kvd_session *parent = kvd_request_session(request, wire->handle, &item->why);

    if (parent == NULL || item_check(wire, &item->why) != 0) {
        kvd_rpc_batch_part_done(&item->batch->base);
        return;
    }
    item->parent = kvd_session_ref(parent);
    struct kvd_fork_args args = {.parent = parent,
        .has_epoch = wire->has_epoch,
        .epoch = wire->epoch,
        .has_length = wire->has_length,
        .length = wire->length,
        .name = wire->name,
        .may_exist = wire->mode == KVARND__OPEN_MODE__EITHER,
        .deadline_ns = request->deadline_ns,
        .ctx = item,
        .done_cb = item_done_cb};
    if (kvd_fork_start(request->service, &args, &item->fork) != 0) {
        kvd_fail(&item->why, KVARN_ENOMEM, "no memory for the item");
        kvd_rpc_batch_part_done(&item->batch->base);
    }
}

static void fork_cancel_cb(struct kvd_request *request, int err)
{
    struct fork_batch *batch = request->handler;

    batch->base.parts_left++; /* keeps the batch while its items end */
    for (uint32_t i = 0; i < batch->base.count; i++) {
        if (batch->items[i].fork != NULL) {
            kvd_fork_cancel(batch->items[i].fork, err);
        }
    }
    kvd_rpc_batch_part_done(&batch->base);
}

void kvd_rpc_fork(struct kvd_request *request)
{
    const Kvarnd__Fork *message = fork_message(request);
    struct kvd_failure why = {0};
    struct fork_batch *batch =
        kvd_rpc_batch_create(request, sizeof(*batch) + message->n_items * sizeof(batch->items[0]),
            message->n_items, batch_answer, &why);

    if (batch == NULL) {
        kvd_request_fail(request, &why);
        return;
    }
    request->handler = batch;
    request->cancel_cb = fork_cancel_cb;
    for (uint32_t i = 0; i < batch->base.count; i++) {
        batch->items[i].batch = batch;
        item_start(&batch->items[i], message->items[i]);
    }
    kvd_rpc_batch_part_done(&batch->base);
}
