/*
 * Listening sockets made with care: who may reach them, and who owned the path before.
 *
 * Owner: io_uv's listeners. Thread: before the loop runs (may wait up to a second for another
 * daemon that starts in the same folder). Failures are logged here, with their reason.
 */
#ifndef KVD_LISTEN_SOCKET_H
#define KVD_LISTEN_SOCKET_H

#include <stdbool.h>
#include <sys/types.h>

#include "kvarn/err.h"

/* A listening, non-blocking, close-on-exec socket. */
struct kvd_listen_socket {
    int fd; /* owned */
    bool is_unix;
    dev_t dev; /* of the file we bound: another daemon's later file is not ours to remove */
    ino_t ino;
    char address[128]; /* "unix:PATH" or "tcp:HOST:PORT" with the real port */
};

/*
 * Listen at `path`, mode 0600 from its first moment. Makes the parent folder, 0700, when it is
 * missing. A socket file that nobody listens on is replaced. Returns 0; KVARN_EINVALID (path empty,
 * too long, or something that is not a socket), KVARN_ECONFLICT (a daemon listens there),
 * KVARN_EIO.
 */
int kvd_listen_socket_unix(const char *path, struct kvd_listen_socket *ret) KVARN_MUST_CHECK;

/* Listen at a numeric "HOST:PORT". Returns 0, KVARN_EINVALID, KVARN_ECONFLICT (in use), KVARN_EIO.
 */
int kvd_listen_socket_tcp(const char *host_port, struct kvd_listen_socket *ret) KVARN_MUST_CHECK;

/* Close; remove the unix socket's file if it is still the one we bound. */
void kvd_listen_socket_close(struct kvd_listen_socket *listening);

#endif
