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
#include "server/io/io.h"
#include "server/service.h"
#include "server/session/failure.h"

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
    size_t payload_room;       /* bytes taken for it */
    size_t charged_bytes;      /* of the request and its message */
    uint64_t arrived_ns;       /* last header byte: deadlines and latency count from it */
    uint64_t deadline_ns;      /* 0: none */
    uint64_t reply_bytes_expected; /* of payload; see kvd_request_expect_reply() */
    bool is_started;               /* complete and handed to its handler; counted in the service */
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

/* Made by the connection when a header was accepted. NULL: `why` says NO_SPACE or NOMEM. */
struct kvd_request *kvd_request_create(
    struct kvd_conn *conn, const struct kvarn_frame_header *header, struct kvd_failure *why);

/* Room for a message that comes in pieces: charged, and the request's. NULL: `why` says so. */
void *kvd_request_message_room(struct kvd_request *request, struct kvd_failure *why);

/*
 * The message has come: unpack it, find out its deadline. Returns 0; KVARN_EPROTOCOL when the bytes
 * are no such message; KVARN_ENOSPC.
 */
int kvd_request_unpack(
    struct kvd_request *request, const void *message, struct kvd_failure *why) KVARN_MUST_CHECK;

/* Staging for the payload that the header announces. */
int kvd_request_stage(struct kvd_request *request, struct kvd_failure *why) KVARN_MUST_CHECK;

/* All of it has come: hand it to its handler, or answer that it is too late. */
void kvd_request_start(struct kvd_request *request);

/*
 * Say, at most once and from within `start`, how much payload the reply may have: until it is
 * answered this counts as output of the connection, which takes no more requests while it has too
 * much of that.
 */
void kvd_request_expect_reply(struct kvd_request *request, uint64_t bytes);

/*
 * Ask its handler to end it, for a deadline or a Cancel: at most once. False: nobody waits for
 * that. The request may be gone afterwards.
 */
bool kvd_request_cancel(struct kvd_request *request, int err);

/* Free a request that was not started. NULL ok. */
void kvd_request_destroy(struct kvd_request *request);

/*
 * Answer a frame for which there is no request: a status of the frame's type (type 0: an
 * ErrorReply). Counted as one call of that type.
 */
void kvd_request_refuse(
    struct kvd_conn *conn, const struct kvarn_frame_header *header, const struct kvd_failure *why);

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
