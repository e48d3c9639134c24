/*
 * Batches of items: memory, parts, statuses, the reply.
 *
 * Owner: the request. Thread: loop only.
 */
#include "server/rpc/rpc_batch.h"

#include <stdlib.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/service.h"
#include "server/session/session_blocks.h"

#define ITEM_TEXTS_MAX 64

void *kvd_rpc_batch_create(struct kvd_request *request, size_t bytes, size_t count,
    void (*answer)(struct kvd_rpc_batch *batch), struct kvd_failure *why)
{
    struct kvd_budget *budget = &request->service->budget;

    KVARN_ASSERT(bytes >= sizeof(struct kvd_rpc_batch));
    if (count == 0 || count > KVARN_BATCH_ITEMS_MAX) {
        kvd_fail(
            why, KVARN_EINVALID, "items must be 1 to %d, got %zu", KVARN_BATCH_ITEMS_MAX, count);
        return NULL;
    }
    if (kvd_budget_charge(budget, KVD_BUDGET_REPLIES, bytes) != 0) {
        (void)!kvd_session_fail_space(request->service, bytes, why);
        return NULL;
    }
    struct kvd_rpc_batch *batch = calloc(1, bytes);
    if (batch == NULL) {
        kvd_budget_release(budget, KVD_BUDGET_REPLIES, bytes);
        kvd_fail(why, KVARN_ENOMEM, "a batch needs %zu bytes", bytes);
        return NULL;
    }
    batch->service = request->service;
    batch->request = request;
    batch->answer = answer;
    batch->charged_bytes = bytes;
    batch->count = (uint32_t)count;
    batch->parts_left = 1 + batch->count;
    return batch;
}

void kvd_rpc_batch_destroy(struct kvd_rpc_batch *batch)
{
    struct kvd_budget *budget = &batch->service->budget;
    size_t charged_bytes = batch->charged_bytes;

    free(batch);
    kvd_budget_release(budget, KVD_BUDGET_REPLIES, charged_bytes);
}

void kvd_rpc_batch_part_done(struct kvd_rpc_batch *batch)
{
    KVARN_ASSERT(batch->parts_left > 0);
    batch->parts_left--;
    if (batch->parts_left == 0) {
        batch->answer(batch);
    }
}

void kvd_rpc_batch_status(
    struct kvd_rpc_batch *batch, const struct kvd_failure *why, Kvarnd__Status *ret)
{
    kvarnd__status__init(ret);
    kvd_failure_to_status(why, ret, NULL);
    if (why->err == 0) {
        return;
    }
    if (batch->text_count == ITEM_TEXTS_MAX) {
        ret->text = NULL;
    } else {
        batch->text_count++;
    }
    if (batch->err == 0) {
        batch->err = why->err;
    }
}

void kvd_rpc_batch_reply(struct kvd_rpc_batch *batch, const ProtobufCMessage *message)
{
    struct kvd_request *request = batch->request;

    request->cancel_cb = NULL;
    kvd_request_reply(request, message, NULL, batch->err);
}
