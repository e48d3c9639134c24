/* Builders and parsers by type of call, for code that treats all calls alike. */
#ifndef KVARN_CLIENT_EXCHANGE_H
#define KVARN_CLIENT_EXCHANGE_H

#include "client/src/call.h"
#include "client/src/reply.h"

/*
 * args: the public struct of `type` (NULL for calls without); RegisterShape's is
 * kvarn_register_metric_args. As kvarn_call_x().
 */
int kvarn__exchange_build(enum kvarn_frame_type type, const void *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call) KVARN_MUST_CHECK;

/* result: the public struct of `type` (NULL for calls without). As kvarn_reply_x(). */
int kvarn__exchange_parse(
    enum kvarn_frame_type type, struct kvarn_reply *reply, void *result) KVARN_MUST_CHECK;

#endif
