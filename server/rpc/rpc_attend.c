/*
 * Attend: attention on one layer for a batch of sessions, each in its own turn.
 *
 * Owner: the request. Thread: loop only.
 */
#include <inttypes.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/read/attend_batch.h"
#include "server/rpc/rpc.h"

int kvd_rpc_attend_payload(
    const struct kvd_request *request, uint64_t *ret, struct kvd_failure *why)
{
    const Kvarnd__Attend *message = (const void *)request->message;
    uint64_t bytes = 0;
    int err = kvd_attend_params_check(message->params, why);

    if (err != 0) {
        return err;
    }
    if (message->n_items == 0 || message->n_items > KVARN_BATCH_ITEMS_MAX) {
        return kvd_fail(why, KVARN_EINVALID, "items must be 1 to %d, got %zu",
            KVARN_BATCH_ITEMS_MAX, message->n_items);
    }
    for (uint32_t i = 0; i < message->n_items; i++) {
        const Kvarnd__AttendItem *item = message->items[i];
        const struct kvd_session *session =
            kvd_attend_item_session(request, message->params, item->handle, i, why);
        if (session == NULL) {
            return why->err;
        }
        bytes += kvd_attend_q_bytes(message->params, session, item->query_tokens);
    }
    *ret = bytes;
    return 0;
}

static void item_admit_cb(struct kvd_session_op *op)
{
    struct kvd_attend_item *item = (struct kvd_attend_item *)(void *)op;
    const struct kvd_session *session = item->session;

    if (session->is_dropped) {
        kvd_fail(&item->why, KVARN_ENOT_FOUND, "the session was dropped");
        kvd_attend_item_end(item);
        return;
    }
    kvd_attend_item_start(item, session->layers[item->batch->params->layer].sealed_blocks);
}

/* A deadline or a Cancel: what still waits is answered with it, what runs ends by itself. */
static void attend_cancel_cb(struct kvd_request *request, int err)
{
    struct kvd_attend_batch *batch = request->handler;

    batch->parts_left++;
    for (uint32_t i = 0; i < batch->item_count; i++) {
        struct kvd_attend_item *item = &batch->items[i];
        if (item->op.is_queued) {
            kvd_session_op_cancel(&item->op);
            kvd_fail(&item->why, err, "the item had not begun");
            kvd_attend_item_end(item);
        }
    }
    kvd_attend_batch_part_done(batch);
}

static int items_fill(struct kvd_attend_batch *batch, struct kvd_failure *why)
{
    const Kvarnd__Attend *message = (const void *)batch->request->message;
    const uint8_t *q = batch->request->payload;

    for (uint32_t i = 0; i < batch->item_count; i++) {
        const Kvarnd__AttendItem *wire = message->items[i];
        struct kvd_attend_item *item = &batch->items[i];
        struct kvd_session *session =
            kvd_attend_item_session(batch->request, batch->params, wire->handle, i, why);
        if (session == NULL) {
            return why->err;
        }
        item->session = kvd_session_ref(session);
        item->handle = wire->handle;
        item->q_tokens = wire->query_tokens;
        item->has_position = wire->has_position;
        item->position = wire->position;
        item->first = wire->token_first;
        item->has_last = wire->has_token_last;
        item->last = wire->token_last;
        item->q = q;
        item->op.layer_first = batch->params->layer;
        item->op.layer_count = 1;
        item->op.block_first = (uint32_t)(item->first / session->shape->group);
        item->op.block_last = UINT32_MAX;
        if (item->has_last && item->last < KVARN_SESSION_TOKENS_MAX) {
            uint64_t group = session->shape->group;
            item->op.block_last = (uint32_t)((item->last + group - 1) / group);
        }
        item->op.admit_cb = item_admit_cb;
        if (q != NULL) { /* without any query tokens there is no payload */
            q += kvd_attend_q_bytes(batch->params, session, item->q_tokens);
        }
    }
    return kvd_attend_batch_reserve(batch, why);
}

void kvd_rpc_attend(struct kvd_request *request)
{
    const Kvarnd__Attend *message = (const void *)request->message;
    struct kvd_failure why = {0};
    struct kvd_attend_batch *batch =
        kvd_attend_batch_create(request, message->params, message->n_items, &why);

    if (batch == NULL) {
        kvd_request_fail(request, &why);
        return;
    }
    if (items_fill(batch, &why) != 0) {
        kvd_attend_batch_destroy(batch);
        kvd_request_fail(request, &why);
        return;
    }
    request->handler = batch;
    request->cancel_cb = attend_cancel_cb;
    kvd_attend_batch_sample(batch);
    batch->parts_left += batch->item_count;
    for (uint32_t i = 0; i < batch->item_count; i++) {
        struct kvd_attend_item *item = &batch->items[i];
        if (kvd_attend_item_check(item) != 0) {
            kvd_attend_item_end(item);
        } else {
            kvd_session_enqueue(item->session, &item->op);
        }
    }
    kvd_attend_batch_part_done(batch);
}
