/*
 * Reorder: the sessions of an item become copies of each other; each item is done or refused by
 * itself.
 *
 * Owner: the request. Thread: loop only.
 */
#include <inttypes.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/rpc/rpc.h"
#include "server/rpc/rpc_batch.h"
#include "server/rpc/rpc_check.h"
#include "server/session/reorder.h"
#include "server/session/session_blocks.h"

struct reorder_batch;

struct reorder_item {
    struct reorder_batch *batch;
    struct kvd_reorder *reorder; /* borrowed; NULL while there is none to cancel */
    struct kvd_failure why;
    Kvarnd__ReorderItemReply reply;
    Kvarnd__Status status;
    uint32_t first, count; /* its sessions, in the batch's arrays */
    bool has_state;        /* epochs and lengths are filled in */
};

struct reorder_batch {
    struct kvd_rpc_batch base;
    uint32_t session_count;                              /* of all items */
    struct kvd_session *sessions[KVARN_BATCH_ITEMS_MAX]; /* refs; NULL: no such handle */
    uint64_t epochs[KVARN_BATCH_ITEMS_MAX];
    uint64_t lengths[KVARN_BATCH_ITEMS_MAX];
    Kvarnd__ReorderItemReply *replies[KVARN_BATCH_ITEMS_MAX];
    struct reorder_item items[];
};

static const Kvarnd__Reorder *reorder_message(const struct kvd_request *request)
{
    return (const void *)request->message;
}

static void batch_destroy(struct reorder_batch *batch)
{
    for (uint32_t i = 0; i < batch->session_count; i++) {
        if (batch->sessions[i] != NULL) {
            kvd_session_unref(batch->sessions[i]);
        }
    }
    kvd_rpc_batch_destroy(&batch->base);
}

/* The wire's view of one item. */
static void item_to_wire(struct reorder_item *item)
{
    Kvarnd__ReorderItemReply *reply = &item->reply;

    kvarnd__reorder_item_reply__init(reply);
    kvd_rpc_batch_status(&item->batch->base, &item->why, &item->status);
    reply->status = &item->status;
    if (item->has_state) {
        reply->n_epochs = reply->n_lengths = item->count;
        reply->epochs = &item->batch->epochs[item->first];
        reply->lengths = &item->batch->lengths[item->first];
    }
}

static void batch_answer(struct kvd_rpc_batch *base)
{
    struct reorder_batch *batch = (struct reorder_batch *)base;
    Kvarnd__ReorderReply message = KVARND__REORDER_REPLY__INIT;
    Kvarnd__Status ok = KVARND__STATUS__INIT;

    for (uint32_t i = 0; i < base->count; i++) {
        item_to_wire(&batch->items[i]);
        batch->replies[i] = &batch->items[i].reply;
    }
    message.status = &ok;
    message.n_items = base->count;
    message.items = batch->replies;
    kvd_rpc_batch_reply(base, &message.base);
    batch_destroy(batch);
}

static void item_done_cb(void *ctx, const struct kvd_failure *why)
{
    struct reorder_item *item = ctx;
    struct reorder_batch *batch = item->batch;

    item->reorder = NULL;
    item->why = *why;
    item->has_state = why->err == 0 || why->err == KVARN_ESTALE_EPOCH;
    for (uint32_t i = item->first; i < item->first + item->count; i++) {
        batch->epochs[i] = batch->sessions[i]->epoch;
        batch->lengths[i] = kvd_session_length(batch->sessions[i]);
    }
    kvd_rpc_batch_part_done(&batch->base);
}

/* Is everything the item names there, of one shape, and within its own list? */
static int item_check(
    const struct reorder_item *item, const Kvarnd__ReorderItem *wire, struct kvd_failure *why)
{
    struct kvd_session *const *sessions = &item->batch->sessions[item->first];

    for (uint32_t i = 0; i < item->count; i++) {
        if (sessions[i] == NULL) {
            return kvd_fail(
                why, KVARN_ENOT_FOUND, "no session with handle %" PRIu64, wire->handles[i]);
        }
        if (wire->sources[i] >= item->count) {
            return kvd_fail(why, KVARN_EINVALID,
                "source of session %" PRIu32 " must be below %" PRIu32 ", got %" PRIu32, i,
                item->count, wire->sources[i]);
        }
        if (sessions[i]->shape != sessions[0]->shape) {
            return kvd_fail(why, KVARN_EINVALID,
                "session %" PRIu32 " has shape %" PRIu32 ", session 0 has shape %" PRIu32, i,
                sessions[i]->shape->id, sessions[0]->shape->id);
        }
    }
    return 0;
}

static void item_start(struct reorder_item *item, const Kvarnd__ReorderItem *wire)
{
    struct reorder_batch *batch = item->batch;
    struct kvd_reorder_member members[KVARN_REORDER_SESSIONS_MAX];

    if (item_check(item, wire, &item->why) != 0) {
        kvd_rpc_batch_part_done(&batch->base);
        return;
    }
    for (uint32_t i = 0; i < item->count; i++) {
        members[i] = (struct kvd_reorder_member){.session = batch->sessions[item->first + i],
            .epoch = wire->epochs[i],
            .source_idx = wire->sources[i]};
    }
    struct kvd_reorder_args args = {.members = members,
        .count = item->count,
        .deadline_ns = batch->base.request->deadline_ns,
        .ctx = item,
        .done_cb = item_done_cb};
    if (kvd_reorder_start(batch->base.service, &args, &item->reorder) != 0) {
        kvd_fail(&item->why, KVARN_ENOMEM, "no memory for the item");
        kvd_rpc_batch_part_done(&batch->base);
    }
}

static void reorder_cancel_cb(struct kvd_request *request, int err)
{
    struct reorder_batch *batch = request->handler;

    batch->base.parts_left++; /* keeps the batch while its items end */
    for (uint32_t i = 0; i < batch->base.count; i++) {
        if (batch->items[i].reorder != NULL) {
            kvd_reorder_cancel(batch->items[i].reorder, err);
        }
    }
    kvd_rpc_batch_part_done(&batch->base);
}

/* What makes the request itself senseless; *ret_sessions: of all items. */
static int message_check(
    const Kvarnd__Reorder *message, size_t *ret_sessions, struct kvd_failure *why)
{
    size_t sessions = 0;

    if (message->n_items == 0 || message->n_items > KVARN_BATCH_ITEMS_MAX) {
        return kvd_fail(why, KVARN_EINVALID, "items must be 1 to %d, got %zu",
            KVARN_BATCH_ITEMS_MAX, message->n_items);
    }
    for (size_t i = 0; i < message->n_items; i++) {
        const Kvarnd__ReorderItem *wire = message->items[i];
        if (wire->n_handles == 0 || wire->n_handles > KVARN_REORDER_SESSIONS_MAX ||
            wire->n_epochs != wire->n_handles || wire->n_sources != wire->n_handles) {
            return kvd_fail(why, KVARN_EINVALID,
                "item %zu: 1 to %d handles, and as many epochs and sources, got %zu, %zu and %zu",
                i, KVARN_REORDER_SESSIONS_MAX, wire->n_handles, wire->n_epochs, wire->n_sources);
        }
        sessions += wire->n_handles;
    }
    if (sessions > KVARN_BATCH_ITEMS_MAX) {
        return kvd_fail(why, KVARN_EINVALID, "at most %d sessions in a request, got %zu",
            KVARN_BATCH_ITEMS_MAX, sessions);
    }
    *ret_sessions = sessions;
    return 0;
}

/* Find all sessions, each of which may occur once: two items would undo each other. */
static int sessions_find(struct reorder_batch *batch, struct kvd_failure *why)
{
    const Kvarnd__Reorder *message = reorder_message(batch->base.request);
    const struct kvd_session *distinct[KVARN_BATCH_ITEMS_MAX];
    struct kvd_failure ignored = {0}; /* the item that names it says so */
    size_t found = 0;

    for (uint32_t i = 0; i < batch->base.count; i++) {
        const Kvarnd__ReorderItem *wire = message->items[i];
        struct reorder_item *item = &batch->items[i];
        *item = (struct reorder_item){
            .batch = batch, .first = batch->session_count, .count = (uint32_t)wire->n_handles};
        for (size_t j = 0; j < wire->n_handles; j++) {
            struct kvd_session *session =
                kvd_request_session(batch->base.request, wire->handles[j], &ignored);
            if (session != NULL) {
                distinct[found++] = kvd_session_ref(session);
            }
            batch->sessions[batch->session_count++] = session;
        }
    }
    return kvd_rpc_check_distinct(distinct, found, why);
}

void kvd_rpc_reorder(struct kvd_request *request)
{
    size_t count = reorder_message(request)->n_items;
    struct kvd_failure why = {0};
    struct reorder_batch *batch = NULL;
    size_t sessions = 0;

    if (message_check(reorder_message(request), &sessions, &why) == 0) {
        batch = kvd_rpc_batch_create(
            request, sizeof(*batch) + count * sizeof(batch->items[0]), count, batch_answer, &why);
    }
    if (batch == NULL) {
        kvd_request_fail(request, &why);
        return;
    }
    if (sessions_find(batch, &why) != 0) {
        batch_destroy(batch);
        kvd_request_fail(request, &why);
        return;
    }
    KVARN_ASSERT(batch->session_count == sessions);
    request->handler = batch;
    request->cancel_cb = reorder_cancel_cb;
    for (uint32_t i = 0; i < batch->base.count; i++) {
        item_start(&batch->items[i], reorder_message(request)->items[i]);
    }
    kvd_rpc_batch_part_done(&batch->base);
}
