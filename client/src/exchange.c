/* Dispatch by type of call to the typed builders and parsers. */
#include "client/src/exchange.h"

#include "lib/base/assert.h"

int kvarn__exchange_build(enum kvarn_frame_type type, const void *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call)
{
    KVARN_ASSERT(args != NULL || type == KVARN_FRAME_PING || type == KVARN_FRAME_STATS ||
                 type == KVARN_FRAME_LIST_JOBS);
    switch (type) {
    case KVARN_FRAME_HELLO:
        return kvarn_call_hello(args, deadline_ms, ret_call);
    case KVARN_FRAME_PING:
        return kvarn_call_ping(deadline_ms, ret_call);
    case KVARN_FRAME_REGISTER_SHAPE:
        return kvarn_call_register_metric(args, deadline_ms, ret_call);
    case KVARN_FRAME_OPEN_SESSION:
        return kvarn_call_open_session(args, deadline_ms, ret_call);
    case KVARN_FRAME_APPEND:
        return kvarn_call_append(args, deadline_ms, ret_call);
    case KVARN_FRAME_APPEND_TILES:
        return kvarn_call_append_tiles(args, deadline_ms, ret_call);
    case KVARN_FRAME_READ_BLOCKS:
        return kvarn_call_read_blocks(args, deadline_ms, ret_call);
    case KVARN_FRAME_ATTEND:
        return kvarn_call_attend(args, deadline_ms, ret_call);
    case KVARN_FRAME_APPEND_ATTEND:
        return kvarn_call_append_attend(args, deadline_ms, ret_call);
    case KVARN_FRAME_TRUNCATE:
        return kvarn_call_truncate(args, deadline_ms, ret_call);
    case KVARN_FRAME_FORK:
        return kvarn_call_fork(args, deadline_ms, ret_call);
    case KVARN_FRAME_REORDER:
        return kvarn_call_reorder(args, deadline_ms, ret_call);
    case KVARN_FRAME_MATCH_PREFIX:
        return kvarn_call_match_prefix(args, deadline_ms, ret_call);
    case KVARN_FRAME_CLOSE_SESSION:
        return kvarn_call_close_session(args, deadline_ms, ret_call);
    case KVARN_FRAME_DROP_SESSION:
        return kvarn_call_drop_session(args, deadline_ms, ret_call);
    case KVARN_FRAME_TOUCH:
        return kvarn_call_touch(args, deadline_ms, ret_call);
    case KVARN_FRAME_PIN:
        return kvarn_call_pin(args, deadline_ms, ret_call);
    case KVARN_FRAME_EVICT:
        return kvarn_call_evict(args, deadline_ms, ret_call);
    case KVARN_FRAME_PREFETCH:
        return kvarn_call_prefetch(args, deadline_ms, ret_call);
    case KVARN_FRAME_LIST_JOBS:
        return kvarn_call_list_jobs(deadline_ms, ret_call);
    case KVARN_FRAME_VERIFY:
        return kvarn_call_verify(args, deadline_ms, ret_call);
    case KVARN_FRAME_LIST_SESSIONS:
        return kvarn_call_list_sessions(args, deadline_ms, ret_call);
    case KVARN_FRAME_INSPECT_SESSION:
        return kvarn_call_inspect_session(args, deadline_ms, ret_call);
    case KVARN_FRAME_STATS:
        return kvarn_call_stats(deadline_ms, ret_call);
    case KVARN_FRAME_CANCEL:
        return kvarn_call_cancel(args, deadline_ms, ret_call);
    case KVARN_FRAME_READ_METRIC:
        return kvarn_call_read_metric(args, deadline_ms, ret_call);
    case KVARN_FRAME_TYPE_COUNT:
        break;
    }
    return KVARN_EINVALID;
}

/* Replies that say no more than their status. */
static int bare_parse(const struct kvarn_reply *reply, enum kvarn_frame_type type)
{
    if (reply->status.err != 0) {
        return reply->status.err;
    }
    return reply->header.type == type ? 0 : KVARN_EPROTOCOL;
}

int kvarn__exchange_parse(enum kvarn_frame_type type, struct kvarn_reply *reply, void *result)
{
    KVARN_ASSERT(
        result != NULL || type == KVARN_FRAME_CLOSE_SESSION || type == KVARN_FRAME_DROP_SESSION);
    switch (type) {
    case KVARN_FRAME_HELLO:
        return kvarn_reply_hello(reply, result);
    case KVARN_FRAME_PING:
        return kvarn_reply_ping(reply, result);
    case KVARN_FRAME_REGISTER_SHAPE:
        return kvarn_reply_register_shape(reply, result);
    case KVARN_FRAME_OPEN_SESSION:
        return kvarn_reply_open_session(reply, result);
    case KVARN_FRAME_APPEND:
        return kvarn_reply_append(reply, result);
    case KVARN_FRAME_APPEND_TILES:
        return kvarn_reply_append_tiles(reply, result);
    case KVARN_FRAME_READ_BLOCKS:
        return kvarn_reply_read_blocks(reply, result);
    case KVARN_FRAME_ATTEND:
    case KVARN_FRAME_APPEND_ATTEND:
        /* The parser takes either; the flavours ask for the one that they sent. */
        return reply->status.err == 0 && reply->header.type != type
                   ? KVARN_EPROTOCOL
                   : kvarn_reply_attend(reply, result);
    case KVARN_FRAME_TRUNCATE:
        return kvarn_reply_truncate(reply, result);
    case KVARN_FRAME_FORK:
        return kvarn_reply_fork(reply, result);
    case KVARN_FRAME_REORDER:
        return kvarn_reply_reorder(reply, result);
    case KVARN_FRAME_MATCH_PREFIX:
        return kvarn_reply_match_prefix(reply, result);
    case KVARN_FRAME_CLOSE_SESSION:
    case KVARN_FRAME_DROP_SESSION:
        return bare_parse(reply, type);
    case KVARN_FRAME_TOUCH:
        return kvarn_reply_touch(reply, result);
    case KVARN_FRAME_PIN:
        return kvarn_reply_pin(reply, result);
    case KVARN_FRAME_EVICT:
        return kvarn_reply_evict(reply, result);
    case KVARN_FRAME_PREFETCH:
        return kvarn_reply_prefetch(reply, result);
    case KVARN_FRAME_LIST_JOBS:
        return kvarn_reply_list_jobs(reply, result);
    case KVARN_FRAME_VERIFY:
        return kvarn_reply_verify(reply, result);
    case KVARN_FRAME_LIST_SESSIONS:
        return kvarn_reply_list_sessions(reply, result);
    case KVARN_FRAME_INSPECT_SESSION:
        return kvarn_reply_inspect_session(reply, result);
    case KVARN_FRAME_STATS:
        return kvarn_reply_stats(reply, result);
    case KVARN_FRAME_CANCEL:
        return kvarn_reply_cancel(reply, result);
    case KVARN_FRAME_READ_METRIC:
        return kvarn_reply_read_metric(reply, result);
    case KVARN_FRAME_TYPE_COUNT:
        break;
    }
    return KVARN_EINVALID;
}
