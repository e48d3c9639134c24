/*
 * Inside the blocking client: its connection, and what it remembers to restore one.
 *
 * client.c holds the connection and the life of a call; client_calls.c the typed calls on it.
 */
#ifndef KVARN_CLIENT_CLIENT_H
#define KVARN_CLIENT_CLIENT_H

#include <bsd/sys/queue.h>

#include "client/src/address.h"
#include "client/src/call.h"
#include "client/src/reply.h"

/* A registered shape, kept to be registered again. Its id towards the caller never changes. */
struct client_shape {
    TAILQ_ENTRY(client_shape) link;
    struct kvarn_shape shape; /* owned, texts and layer groups too */
    uint32_t local_id;        /* 1, 2, ... in the order of registration */
    uint32_t server_id;       /* valid on connection `serial` */
    uint64_t serial;
};

/* A session, kept to be opened again. */
struct client_session {
    struct kvarn_session pub; /* first: callers hold its address */
    TAILQ_ENTRY(client_session) link;
    char *name;         /* owned; NULL: it ended with its connection */
    uint64_t serial;    /* connection that pub.handle belongs to */
    bool is_stale;      /* its epoch changed while we were away */
    uint64_t epoch_now; /* is_stale: the epoch seen instead */
};

TAILQ_HEAD(client_shape_list, client_shape);
TAILQ_HEAD(client_session_list, client_session);

struct kvarn_client {
    struct kvarn__address address;
    struct kvarn_client_options options; /* name owned */
    int fd;                              /* -1: not connected */
    uint64_t serial;                     /* connections made */
    uint64_t request_id;                 /* of the last request sent */
    uint32_t shape_count;
    bool was_begun; /* the last call may have reached the daemon before its connection broke */
    struct client_shape_list shapes;     /* owned */
    struct client_session_list sessions; /* owned */
    struct kvarn_reply hello;            /* backs `server` */
    struct kvarn_hello_result server;
    struct kvarn_reply reply;   /* backs the result of the last call */
    struct kvarn_status status; /* of the last call; backed by reply or static texts */
    char error[KVARN_CLIENT_ERROR_MAX];
};

/* One typed call. args and result are the public structs of `type`. */
struct client_exchange {
    enum kvarn_frame_type type;
    const void *args; /* borrowed; NULL for calls without */
    void *result;     /* borrowed */
    /* Sessions that the call names: one, or the first field of each item of an array. */
    const struct kvarn_session *session;
    const void *items;
    size_t item_count;
    size_t item_bytes;
    bool is_repeatable; /* safe to send again when the reply was lost */
    bool is_bound;      /* its ids belong to the present connection: never sent on another */
};

/* Do a call, with all that kvarn/client.h says of reconnecting and retrying. */
int kvarn__client_perform(
    struct kvarn_client *client, const struct client_exchange *exchange) KVARN_MUST_CHECK;

/* Note a failure that happened before or after the wire. Returns err. */
int kvarn__client_fail(
    struct kvarn_client *client, enum kvarn_frame_type type, int err, const char *text);

/* The client's own object behind a session of its. */
struct client_session *kvarn__client_session_of(const struct kvarn_session *session);

#endif
