/*
 * Taking connections.
 *
 * Owner: io. Thread: loop only.
 */
#include "server/io/accept_socket.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "lib/base/assert.h"
#include "server/base/log.h"
#include "server/base/net_address.h"

#define REFUSED_LOG_NS    UINT64_C(1000000000)
#define USER_TIMEOUT_MS   30000 /* bytes not acknowledged for so long: the peer is gone */
#define KEEPALIVE_IDLE_S  30    /* finds a peer that vanished while nothing was under way */
#define KEEPALIVE_EVERY_S 10

static int reserve_open(void)
{
    return open("/dev/null", O_RDONLY | O_CLOEXEC);
}

void kvd_accept_reserve_init(struct kvd_accept_reserve *reserve)
{
    *reserve = (struct kvd_accept_reserve){.fd = reserve_open()};
}

void kvd_accept_reserve_fini(struct kvd_accept_reserve *reserve)
{
    if (reserve->fd >= 0) {
        (void)close(reserve->fd);
        reserve->fd = -1;
    }
}

void kvd_accept_count_refused(struct kvd_accept_reserve *reserve, int os_error)
{
    struct timespec now;

    KVARN_ASSERT(os_error > 0);
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    uint64_t now_ns = (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
    reserve->refused_count++;
    if (reserve->log_ns == 0 || now_ns - reserve->log_ns >= REFUSED_LOG_NS) {
        reserve->log_ns = now_ns;
        kvd_log(KVD_LOG_WARN, "accept_failed", "error=%s count=%" PRIu64, strerror(os_error),
            reserve->refused_count);
    }
}

/* Out of descriptors: take the connection with the reserve and close it: its client hears of it
 * now, and the listener is not ready for ever. */
static enum kvd_accept refuse_one(
    const struct kvd_listen_socket *listening, struct kvd_accept_reserve *reserve, int os_error)
{
    enum kvd_accept result = KVD_ACCEPT_REST;

    if (reserve->fd >= 0) {
        (void)close(reserve->fd);
        int fd = accept4(listening->fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0) {
            (void)close(fd);
            result = KVD_ACCEPT_SKIPPED;
        } else if (errno == EAGAIN) {
            result = KVD_ACCEPT_EMPTY; /* the kernel looks for a descriptor first */
        }
    }
    if (result != KVD_ACCEPT_EMPTY) {
        kvd_accept_count_refused(reserve, os_error);
    }
    reserve->fd = reserve_open();
    return result;
}

static enum kvd_accept take_failed(
    const struct kvd_listen_socket *listening, struct kvd_accept_reserve *reserve, int os_error)
{
    switch (os_error) {
    case EAGAIN:
        return KVD_ACCEPT_EMPTY;
    case EMFILE:
    case ENFILE:
        return refuse_one(listening, reserve, os_error);
    case EINTR:
    case ECONNABORTED:
    case EPROTO:
        return KVD_ACCEPT_SKIPPED;
    default:
        kvd_accept_count_refused(reserve, os_error);
        return KVD_ACCEPT_REST;
    }
}

static bool peer_read_unix(int fd, struct kvd_peer *ret)
{
    struct ucred cred;
    socklen_t bytes = sizeof(cred);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &bytes) != 0) {
        return false;
    }
    *ret = (struct kvd_peer){.is_unix = true, .uid = cred.uid, .gid = cred.gid, .pid = cred.pid};
    (void)snprintf(ret->text, sizeof(ret->text), "unix:uid=%" PRIu32 ",pid=%" PRId32,
        (uint32_t)cred.uid, (int32_t)cred.pid);
    return true;
}

static bool peer_read_tcp(int fd, struct kvd_peer *ret)
{
    struct sockaddr_storage address;
    socklen_t bytes = sizeof(address);
    char text[KVD_NET_TEXT_MAX];

    if (getpeername(fd, (struct sockaddr *)(void *)&address, &bytes) != 0) {
        return false; /* gone already */
    }
    kvd_net_format(&address, text, sizeof(text));
    *ret = (struct kvd_peer){.is_unix = false};
    (void)snprintf(ret->text, sizeof(ret->text), "tcp:%s", text);
    return true;
}

/* Best effort: a connection works without any of these, only slower or longer. */
static void tcp_tune(int fd)
{
    const int on = 1;
    const int idle_s = KEEPALIVE_IDLE_S;
    const int every_s = KEEPALIVE_EVERY_S;
    const unsigned user_timeout_ms = USER_TIMEOUT_MS;

    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_timeout_ms, sizeof(user_timeout_ms));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &every_s, sizeof(every_s));
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
}

enum kvd_accept kvd_accept_take(const struct kvd_listen_socket *listening,
    struct kvd_accept_reserve *reserve, int *ret_fd, struct kvd_peer *ret_peer)
{
    bool is_unix = listening->is_unix;
    struct kvd_peer peer;

    if (reserve->fd < 0) {
        reserve->fd = reserve_open();
    }
    int fd = accept4(listening->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        return take_failed(listening, reserve, errno);
    }
    if (!(is_unix ? peer_read_unix(fd, &peer) : peer_read_tcp(fd, &peer))) {
        (void)close(fd);
        return KVD_ACCEPT_SKIPPED;
    }
    if (!is_unix) {
        tcp_tune(fd);
    }
    *ret_fd = fd;
    *ret_peer = peer;
    return KVD_ACCEPT_TAKEN;
}
