/*
 * Fork: copies of sessions, many in one call, each done or refused by itself.
 *
 * Owner: the request. Thread: loop only.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/conn/conn.h"
#include "server/rpc/rpc.h"
#include "server/rpc/rpc_check.h"
#include "server/session/fork.h"
#include "server/session/session_blocks.h"

/* Statuses with words; the rest have numbers only, so that the reply's message stays small. */
#define ITEM_TEXTS_MAX 64

struct fork_batch;

struct fork_item {
    struct fork_batch *batch;
    struct kvd_session *parent; /* ref: `why` may name its epoch; NULL: there is none */
    struct kvd_fork *fork;      /* borrowed; NULL while there is none to cancel */
    struct kvd_failure why;
    uint64_t handle, epoch, length;
    bool is_created;
    bool is_lossy;
};

struct fork_batch {
    struct kvd_service *service; /* borrowed */
    struct kvd_request *request;
    size_t charged_bytes;
    uint32_t count;
    uint32_t parts_left; /* items, and the handler itself */
    struct fork_item items[];
};

static const Kvarnd__Fork *fork_message(const struct kvd_request *request)
{
    return (const void *)request->message;
}

/* The wire's view of one item. */
static void item_to_wire(const struct fork_item *item, Kvarnd__ForkItemReply *reply,
    Kvarnd__Status *status, bool with_text)
{
    kvarnd__fork_item_reply__init(reply);
    kvarnd__status__init(status);
    kvd_failure_to_status(&item->why, status, NULL);
    if (!with_text) {
        status->text = NULL;
    }
    reply->status = status;
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

struct wire_item {
    Kvarnd__ForkItemReply reply;
    Kvarnd__Status status;
};

static void batch_destroy(struct fork_batch *batch)
{
    struct kvd_budget *budget = &batch->service->budget;
    size_t charged_bytes = batch->charged_bytes;

    for (uint32_t i = 0; i < batch->count; i++) {
        if (batch->items[i].parent != NULL) {
            kvd_session_unref(batch->items[i].parent);
        }
    }
    free(batch);
    kvd_budget_release(budget, KVD_BUDGET_REPLIES, charged_bytes);
}

static void batch_answer(struct fork_batch *batch)
{
    struct kvd_request *request = batch->request;
    struct wire_item *items = calloc(batch->count, sizeof(*items));
    Kvarnd__ForkItemReply **replies = calloc(batch->count, sizeof(Kvarnd__ForkItemReply *));
    Kvarnd__ForkReply message = KVARND__FORK_REPLY__INIT;
    Kvarnd__Status ok = KVARND__STATUS__INIT;
    struct kvd_failure why = {0};
    uint32_t texts = 0;
    int err = 0;

    if (items == NULL || replies == NULL) {
        kvd_fail(&why, KVARN_ENOMEM, "no memory for the reply's items");
        batch_destroy(batch);
        kvd_request_fail(request, &why);
        goto out;
    }
    for (uint32_t i = 0; i < batch->count; i++) {
        texts += batch->items[i].why.err != 0;
        item_to_wire(&batch->items[i], &items[i].reply, &items[i].status, texts <= ITEM_TEXTS_MAX);
        replies[i] = &items[i].reply;
        err = err == 0 ? batch->items[i].why.err : err;
    }
    message.status = &ok;
    message.n_items = batch->count;
    message.items = replies;
    request->cancel_cb = NULL;
    kvd_request_reply(request, &message.base, NULL, err);
    batch_destroy(batch);
out:
    free(items);
    free(replies);
}

static void batch_part_done(struct fork_batch *batch)
{
    KVARN_ASSERT(batch->parts_left > 0);
    batch->parts_left--;
    if (batch->parts_left == 0) {
        batch_answer(batch);
    }
}

/* Give the connection a handle of what was made; without one nobody would end it. */
static int item_take(struct fork_item *item, struct kvd_session *session)
{
    struct kvd_conn *conn = item->batch->request->conn;

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
        kvd_session_table_drop(&item->batch->service->sessions, result->session);
    }
    batch_part_done(item->batch);
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
    struct kvd_request *request = item->batch->request;
    struct kvd_session *parent = kvd_request_session(request, wire->handle, &item->why);

    if (parent == NULL || item_check(wire, &item->why) != 0) {
        batch_part_done(item->batch);
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
        batch_part_done(item->batch);
    }
}

static void fork_cancel_cb(struct kvd_request *request, int err)
{
    struct fork_batch *batch = request->handler;

    batch->parts_left++; /* keeps the batch while its items end */
    for (uint32_t i = 0; i < batch->count; i++) {
        if (batch->items[i].fork != NULL) {
            kvd_fork_cancel(batch->items[i].fork, err);
        }
    }
    batch_part_done(batch);
}

static struct fork_batch *batch_create(struct kvd_request *request, struct kvd_failure *why)
{
    size_t count = fork_message(request)->n_items;
    struct fork_batch *batch = NULL;
    size_t bytes = sizeof(*batch) + count * sizeof(batch->items[0]);

    if (count == 0 || count > KVARN_BATCH_ITEMS_MAX) {
        kvd_fail(
            why, KVARN_EINVALID, "items must be 1 to %d, got %zu", KVARN_BATCH_ITEMS_MAX, count);
        return NULL;
    }
    if (kvd_budget_charge(&request->service->budget, KVD_BUDGET_REPLIES, bytes) != 0) {
        (void)!kvd_session_fail_space(request->service, bytes, why);
        return NULL;
    }
    batch = calloc(1, bytes);
    if (batch == NULL) {
        kvd_budget_release(&request->service->budget, KVD_BUDGET_REPLIES, bytes);
        kvd_fail(why, KVARN_ENOMEM, "a batch needs %zu bytes", bytes);
        return NULL;
    }
    batch->service = request->service;
    batch->request = request;
    batch->charged_bytes = bytes;
    batch->count = (uint32_t)count;
    batch->parts_left = 1 + batch->count;
    return batch;
}

void kvd_rpc_fork(struct kvd_request *request)
{
    struct kvd_failure why = {0};
    struct fork_batch *batch = batch_create(request, &why);

    if (batch == NULL) {
        kvd_request_fail(request, &why);
        return;
    }
    request->handler = batch;
    request->cancel_cb = fork_cancel_cb;
    for (uint32_t i = 0; i < batch->count; i++) {
        batch->items[i].batch = batch;
        item_start(&batch->items[i], fork_message(request)->items[i]);
    }
    batch_part_done(batch);
}
