/*
 * A request of many items, each done or refused by itself, answered when the last one has ended.
 *
 * Owner: the request. Thread: loop only. Fork and Reorder embed struct kvd_rpc_batch as the first
 * member of their own batches.
 */
#ifndef KVD_RPC_BATCH_H
#define KVD_RPC_BATCH_H

#include <stddef.h>
#include <stdint.h>

#include "server/rpc/request.h"

struct kvd_rpc_batch {
    struct kvd_service *service; /* borrowed */
    struct kvd_request *request;
    void (*answer)(struct kvd_rpc_batch *batch); /* all parts have ended; destroys the batch */
    size_t charged_bytes;
    uint32_t count;      /* items */
    uint32_t parts_left; /* items, and the handler itself */
    uint32_t text_count; /* statuses that kept their words */
    int err;             /* of the first item that failed; 0: none */
};

/*
 * A zeroed batch of `bytes` bytes, which begins with a struct kvd_rpc_batch, charged as a reply;
 * 1 + count parts are left. NULL, with words in `why`: the count is not 1 to KVARN_BATCH_ITEMS_MAX,
 * or there is no room.
 */
void *kvd_rpc_batch_create(struct kvd_request *request, size_t bytes, size_t count,
    void (*answer)(struct kvd_rpc_batch *batch), struct kvd_failure *why);

/* Free the batch and its charge; what its items hold must have been let go. */
void kvd_rpc_batch_destroy(struct kvd_rpc_batch *batch);

/* An item, or the handler, has ended. May answer and destroy the batch. */
void kvd_rpc_batch_part_done(struct kvd_rpc_batch *batch);

/*
 * How an item ended, for the reply; borrows the words of `why`. Statuses beyond the first 64
 * failures have numbers only, so that the reply's message stays small.
 */
void kvd_rpc_batch_status(
    struct kvd_rpc_batch *batch, const struct kvd_failure *why, Kvarnd__Status *ret);

/* Send the reply, whose own status is OK; the first item's error is what is logged and counted. */
void kvd_rpc_batch_reply(struct kvd_rpc_batch *batch, const ProtobufCMessage *message);

#endif
