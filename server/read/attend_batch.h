/*
 * What Attend and AppendAttend share: their parameters, their items, and the one reply.
 *
 * Owner: the request. Thread: loop only.
 */
#ifndef KVD_ATTEND_BATCH_H
#define KVD_ATTEND_BATCH_H

#include "server/append/append.h"
#include "server/read/attend.h"
#include "server/rpc/reply_buffer.h"

struct kvd_attend_batch;

struct kvd_attend_item {
    struct kvd_session_op op; /* first: the queue's handle; Attend only */
    struct kvd_attend_batch *batch;
    struct kvd_session *session; /* ref */
    struct kvd_append *append;   /* borrowed; not NULL while it can be cancelled */
    uint64_t handle;
    uint32_t q_tokens;
    bool has_position, has_last;
    uint64_t position, first, last;
    const void *q;
    uint64_t out_offset, lse_offset; /* bytes, within the reply */
    struct kvd_failure why;
    bool is_attended; /* why holds the outcome */
    bool has_state;   /* length and what follows were seen */
    bool is_appended;
    uint64_t length, sealed_tokens, epoch;
};

struct kvd_attend_batch {
    struct kvd_service *service; /* borrowed */
    struct kvd_request *request;
    const Kvarnd__AttendParams *params; /* borrowed from the request's message */
    uint32_t item_count;
    uint32_t parts_left; /* items, appends and the handler itself */
    int cancel_err;
    size_t charged_bytes;
    struct kvd_reply_buffer *reply; /* owned until it is sent: outs, then lses */
    struct kvd_attend_item items[];
};

/* Check what concerns the parameters alone. */
int kvd_attend_params_check(
    const Kvarnd__AttendParams *params, struct kvd_failure *why) KVARN_MUST_CHECK;

/*
 * The session of an item whose layer its shape has; without it no payload size is known, so the
 * whole request fails, naming the item.
 */
struct kvd_session *kvd_attend_item_session(const struct kvd_request *request,
    const Kvarnd__AttendParams *params, uint64_t handle, uint32_t item_idx,
    struct kvd_failure *why);

/* Bytes of one item's q. Cannot overflow within limits.h. */
uint64_t kvd_attend_q_bytes(
    const Kvarnd__AttendParams *params, const struct kvd_session *session, uint32_t q_tokens);

/* Items zeroed but for batch; one part for the handler. NULL: no memory, `why` says so. */
struct kvd_attend_batch *kvd_attend_batch_create(struct kvd_request *request,
    const Kvarnd__AttendParams *params, size_t item_count, struct kvd_failure *why);

/* handle, session (a reference) and q_tokens of all items are set: make room for the reply. */
int kvd_attend_batch_reserve(
    struct kvd_attend_batch *batch, struct kvd_failure *why) KVARN_MUST_CHECK;

/*
 * Let the items' queries be sampled for query metrics: once, when the request arrives, before any
 * item begins (SEMANTICS.md 3).
 */
void kvd_attend_batch_sample(struct kvd_attend_batch *batch);

/* What depends on the item's session; on failure the item must not begin. */
int kvd_attend_item_check(struct kvd_attend_item *item) KVARN_MUST_CHECK;

/* Take the snapshot now and compute; ends with one part less. */
void kvd_attend_item_start(struct kvd_attend_item *item, uint32_t sealed_blocks);

/* End the item's attend part with item->why; one part less. */
void kvd_attend_item_end(struct kvd_attend_item *item);

/* One part has ended; the last one answers and frees the batch. */
void kvd_attend_batch_part_done(struct kvd_attend_batch *batch);

/* Free a batch that never began. */
void kvd_attend_batch_destroy(struct kvd_attend_batch *batch);

#endif
