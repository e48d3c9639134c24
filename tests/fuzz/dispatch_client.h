/*
 * A client that keeps count: what it asked, what was answered, and whether an answer may be so.
 *
 * Owner: fuzz_dispatch. Thread: one. Whatever the daemon sends must be frames of replies, each to a
 * request that was sent and not answered; what they carry must have the size that they say.
 */
#ifndef TESTS_DISPATCH_CLIENT_H
#define TESTS_DISPATCH_CLIENT_H

#include <stdbool.h>

#include "server/conn/conn.h"
#include "tests/fuzz/dispatch_message.h"
#include "tests/support/frame_parts.h"
#include "tests/support/wire_peer.h"

#define DISPATCH_SENT_MAX 128

/* A request as it was sent, with what its answer is checked against. */
struct dispatch_sent {
    uint64_t id;
    uint8_t type;
    bool is_answered;
    bool is_corrupt;               /* its trailer is not its payload's: it must not succeed */
    uint32_t code;                 /* once answered: of the status */
    uint64_t payload_bytes;        /* that the message implies and the header announces */
    const struct kvd_shape *shape; /* ReadBlocks: of the session; NULL: none */
    bool has_k, has_v;             /* ReadBlocks */
    enum kvarn_dtype dtype;        /* ReadBlocks, Attend, AppendAttend: of what comes back */
    uint64_t lse_count;            /* Attend, AppendAttend */
};

struct dispatch_frame {
    uint8_t type;
    uint16_t flags;
    const uint8_t *message; /* borrowed */
    size_t message_bytes;
    const uint8_t *payload; /* borrowed */
    size_t payload_bytes;
    size_t announced_bytes; /* of payload; more than there are: the frame stays cut */
    bool has_wrong_trailer;
};

struct dispatch_client {
    struct kvt_host *host;     /* borrowed */
    struct kvd_fake_peer *far; /* owned; NULL: not connected */
    struct kvd_conn *conn;     /* borrowed; while the far end is not closed */
    struct dispatch_hints hints;
    struct dispatch_sent sent[DISPATCH_SENT_MAX];
    unsigned sent_count;
    /* A frame stayed cut: what follows may be swallowed, so which answers come is not known. */
    bool is_cut;
    bool is_loose;       /* bytes went out that are no frame at all: nothing is known */
    bool is_refused;     /* the daemon does not trust what came: it must close */
    uint8_t *last_bytes; /* owned: the last frame, for a retry */
    size_t last_count;
    uint8_t *kept_message; /* owned: AppendTiles' runs, from the last ReadBlocks{stored} */
    size_t kept_message_bytes;
    uint8_t *kept_payload; /* owned */
    size_t kept_payload_bytes;
};

/* Connect, with our own uid or as somebody else; a connection that is refused is closed at once. */
void dispatch_client_open(struct dispatch_client *client, struct kvt_host *host, bool is_stranger);

/* Leave, politely or by breaking the connection. Accepts one that is not connected. */
void dispatch_client_close(struct dispatch_client *client, bool is_broken);

bool dispatch_client_is_open(const struct dispatch_client *client);

/* Payload that a message implies to the daemon now, 0 for one that it refuses. */
uint64_t dispatch_client_implied_bytes(const struct dispatch_client *client, uint8_t type,
    const uint8_t *message, size_t message_bytes);

/* Send a frame, with a header that is right and an id of its own. */
void dispatch_client_send(struct dispatch_client *client, const struct dispatch_frame *frame);

/* Send bytes as they are. */
void dispatch_client_send_raw(struct dispatch_client *client, const uint8_t *bytes, size_t count);

/* Send the last frame again under a new id, as a client does that lost the reply. */
void dispatch_client_send_again(struct dispatch_client *client);

/* Take and check all replies that have come whole. */
void dispatch_client_take(struct dispatch_client *client);

/* Nothing is in flight any more: all that was asked must have been answered. */
void dispatch_client_check_answered(struct dispatch_client *client);

/* Nor may any credit be in use: a request with all that there is must not be told to wait. */
void dispatch_client_check_credit(struct dispatch_client *client);

/* Bytes of staging that requests not answered yet may be charged for. */
uint64_t dispatch_client_staging_bound(const struct dispatch_client *client);

#endif
