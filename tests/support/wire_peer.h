/*
 * A service on the fake io, and peers that talk to it in frames: what tests of calls, the dispatch
 * fuzzer and simulations share. Needs no cmocka: set-up that fails is an assertion.
 *
 * Thread: one; the service's workers are its own.
 */
#ifndef TESTS_WIRE_PEER_H
#define TESTS_WIRE_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kvarnd.pb-c.h"
#include "proto/frame.h"
#include "proto/wire_alloc.h"
#include "server/config/config.h"
#include "server/service.h"
#include "tests/support/io_fake.h"

struct kvt_host {
    struct kvd_io_fake *fake;
    struct kvd_config config;
    struct kvd_service service;
    uint64_t budget_start; /* what the service itself is charged with */
};

/* Zero: the daemon's default, except that there are no worker threads. */
struct kvt_host_options {
    uint64_t memory_limit;
    uint64_t payload_max;
    uint64_t sessions_max;
    unsigned workers;
    uint64_t seed; /* of random bytes */
};

void kvt_host_init(struct kvt_host *host, const struct kvt_host_options *options);

/* Turn until no job is in flight and nothing moves; waits for threads, within 60 seconds. */
void kvt_host_settle(struct kvt_host *host);

/* Peers were closed. Asserts that nothing is charged any more once all sessions are dropped. */
void kvt_host_fini(struct kvt_host *host);

/* A client's end of a connection. */
struct kvt_peer {
    struct kvt_host *host; /* borrowed */
    struct kvd_fake_peer *far;
    uint64_t last_id;
};

/* Connect; says nothing yet. */
void kvt_peer_open(struct kvt_peer *peer, struct kvt_host *host);

/* Say that nothing more comes, settle, free. Accepts a zeroed peer. */
void kvt_peer_close(struct kvt_peer *peer);

/*
 * Send a request (type: enum kvarn_frame_type); what it leads to runs inside, or in later turns.
 * Returns its id, or 0 when the daemon takes no more bytes.
 */
uint64_t kvt_peer_send(struct kvt_peer *peer, unsigned type, const ProtobufCMessage *message,
    const void *payload, size_t payload_bytes);

/* A reply taken apart. */
struct kvt_answer {
    struct kvarn_frame_header header;
    struct kvarn_wire_alloc alloc; /* holds the message */
    const void *message;           /* the type's reply; an ErrorReply when `err` */
    const Kvarnd__Status *status;
    int err;       /* of the status: 0 or KVARN_E... */
    void *payload; /* owned; aligned for any number */
    size_t payload_bytes;
};

/* The next reply that has arrived whole, to be finished; false and an empty one if none has. */
bool kvt_peer_take(struct kvt_peer *peer, struct kvt_answer *ret);
void kvt_answer_fini(struct kvt_answer *answer);

/* Send, settle, take: exactly one reply must have come. */
struct kvt_answer kvt_peer_call(struct kvt_peer *peer, unsigned type,
    const ProtobufCMessage *message, const void *payload, size_t payload_bytes);

/* Hello, without features; asserts that it is answered OK. */
void kvt_peer_hello(struct kvt_peer *peer);

#endif
