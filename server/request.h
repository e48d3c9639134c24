/*
 * A request: one message with its payload, from its arrival to its reply.
 *
 * Owner: its connection until the handler starts, then itself: it lives until exactly one of
 * kvd_request_reply() and kvd_request_fail() is called, even when the connection has gone (the
 * reply then goes nowhere). Thread: loop only.
 */
#ifndef KVD_REQUEST_H
#define KVD_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/frame.h"
#include "proto/wire_alloc.h"
#include "server/failure.h"
#include "server/io.h"
#include "server/service.h"

struct kvd_conn;

struct kvd_request {
    TAILQ_ENTRY(kvd_request) link; /* the connection's requests in flight */
    struct kvd_conn *conn;         /* borrowed; NULL once the connection has gone */
    struct kvd_service *service;   /* borrowed */
    struct kvarn_frame_header header;
    struct kvarn_wire_alloc
        alloc;                 /* memory of the message; also for the handler: wire_alloc_take */
    ProtobufCMessage *message; /* in alloc */
    void *payload;             /* owned staging, 64-byte aligned, charged to the budget; or NULL */
    uint64_t payload_hash;     /* XXH3-64 of the payload */
    uint64_t arrived_ns;       /* last header byte: deadlines and latency count from it */
    uint64_t deadline_ns;      /* 0: none */
    uint64_t credit_bytes;
    /*
     * Set by a handler that waits: called at most once, for a deadline (KVARN_EDEADLINE) or a
     * Cancel (KVARN_ECANCELLED), while the request is unanswered. The handler answers now or later,
     * as SEMANTICS.md 17 says; the request may be gone when it returns.
     */
    void (*cancel_cb)(struct kvd_request *request, int err);
    void *handler; /* the handler's own state */
};

/* Payload of a reply: spans sent as they lie, then released. */
struct kvd_reply_payload {
    struct kvd_buf *bufs; /* array owned by ctx */
    unsigned buf_count;
    uint64_t bytes;                /* sum of bufs */
    void (*release_cb)(void *ctx); /* exactly once, when the kernel took the bytes or never will */
    void *ctx;
};

/*
 * Answer with a packed message of the request's reply type, and payload (NULL: none). Counts
 * metrics, frees the request. `err`: what the metrics count (0, or the first failure of a batch).
 */
void kvd_request_reply(struct kvd_request *request, const ProtobufCMessage *message,
    const struct kvd_reply_payload *payload, int err);

/* Answer with a failure: a reply that holds the status alone. Frees the request. */
void kvd_request_fail(struct kvd_request *request, const struct kvd_failure *why);

/* The session of a handle of this request's connection; NOT_FOUND in `why` and NULL otherwise. */
struct kvd_session *kvd_request_session(
    const struct kvd_request *request, uint64_t handle, struct kvd_failure *why);

#endif
