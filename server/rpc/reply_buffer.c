/*
 * A reply's payload in one piece of memory of its own.
 *
 * Owner: who computes it, until it is handed over. Thread: loop only.
 */
#include "server/rpc/reply_buffer.h"

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/base/cache_line.h"
#include "server/service.h"
#include "server/session/session_blocks.h"

int kvd_reply_buffer_create(struct kvd_service *service, uint64_t bytes,
    struct kvd_reply_buffer **ret, struct kvd_failure *why)
{
    KVARN_ASSERT(bytes <= KVARN_PAYLOAD_BYTES_MAX);
    size_t room = kvd_round_64(sizeof(struct kvd_reply_buffer) + (size_t)bytes);
    void *memory = NULL;
    int err = kvd_large_take(&service->large, KVD_BUDGET_REPLIES, room, &memory);
    if (err == KVARN_ENOSPC) {
        return kvd_session_fail_space(service, room, why);
    }
    if (err != 0) {
        return kvd_fail(why, err, "the reply needs %zu bytes", room);
    }
    struct kvd_reply_buffer *buffer = memory;
    buffer->service = service;
    buffer->taken_bytes = room;
    buffer->buf = (struct kvd_buf){.data = buffer->data, .bytes = (size_t)bytes};
    *ret = buffer;
    return 0;
}

void kvd_reply_buffer_destroy(struct kvd_reply_buffer *buffer)
{
    if (buffer != NULL) {
        kvd_large_give(&buffer->service->large, KVD_BUDGET_REPLIES, buffer, buffer->taken_bytes);
    }
}

static void release_cb(void *ctx)
{
    kvd_reply_buffer_destroy(ctx);
}

struct kvd_reply_payload kvd_reply_buffer_payload(struct kvd_reply_buffer *buffer)
{
    return (struct kvd_reply_payload){.bufs = &buffer->buf,
        .buf_count = 1,
        .bytes = buffer->buf.bytes,
        .release_cb = release_cb,
        .ctx = buffer};
}
