/*
 * Taking connections off a listening socket: who they are, how their sockets are tuned, and what
 * happens when there is no descriptor left for them.
 *
 * Owner: io. Thread: loop only.
 */
#ifndef KVD_ACCEPT_SOCKET_H
#define KVD_ACCEPT_SOCKET_H

#include <stdint.h>

#include "server/io/io.h"
#include "server/io/listen_socket.h"

/* A descriptor to give up for a moment, so that a connection can be taken and refused. */
struct kvd_accept_reserve {
    int fd; /* owned; -1: could not be opened again */
    uint64_t refused_count;
    uint64_t log_ns; /* of the last line about it; 0: none */
};

enum kvd_accept {
    KVD_ACCEPT_TAKEN,   /* a connection: the caller owns the descriptor */
    KVD_ACCEPT_SKIPPED, /* one that is gone or was refused; there may be more */
    KVD_ACCEPT_EMPTY,   /* nobody waits */
    KVD_ACCEPT_REST,    /* neither taking nor refusing works now: try again later */
};

void kvd_accept_reserve_init(struct kvd_accept_reserve *reserve);
void kvd_accept_reserve_fini(struct kvd_accept_reserve *reserve);

/* Take one connection: non-blocking, close-on-exec. Outputs are set for KVD_ACCEPT_TAKEN only. */
enum kvd_accept kvd_accept_take(const struct kvd_listen_socket *listening,
    struct kvd_accept_reserve *reserve, int *ret_fd, struct kvd_peer *ret_peer);

/* Count a connection that was dropped for `os_error`; logged at most once a second. */
void kvd_accept_count_refused(struct kvd_accept_reserve *reserve, int os_error);

#endif
