/* Non-blocking sockets driven by poll(), so that every wait has an end. */
#include "client/src/socket.h"

#include <errno.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "lib/base/assert.h"

uint64_t kvarn__time_now_ms(void)
{
    struct timespec now;
    int rc = clock_gettime(CLOCK_MONOTONIC, &now);

    KVARN_ASSERT(rc == 0);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

uint64_t kvarn__time_in_ms(uint32_t ms)
{
    return ms == UINT32_MAX ? KVARN__TIME_NEVER : kvarn__time_now_ms() + ms;
}

void kvarn__time_sleep(uint32_t ms, uint64_t until_ms)
{
    uint64_t end = kvarn__time_now_ms() + ms;
    uint64_t now;

    if (end > until_ms) {
        end = until_ms;
    }
    while ((now = kvarn__time_now_ms()) < end) {
        struct timespec pause = {.tv_sec = (time_t)((end - now) / 1000),
            .tv_nsec = (long)((end - now) % 1000) * 1000000};

        nanosleep(&pause, NULL);
    }
}

/* Wait until `events` are ready. */
static int socket_wait(int fd, short events, uint64_t until_ms)
{
    for (;;) {
        struct pollfd p = {.fd = fd, .events = events};
        uint64_t now = kvarn__time_now_ms();
        int timeout = -1;
        int count;

        if (now >= until_ms) {
            return KVARN_EDEADLINE;
        }
        if (until_ms != KVARN__TIME_NEVER) {
            timeout = until_ms - now > INT_MAX ? INT_MAX : (int)(until_ms - now);
        }
        count = poll(&p, 1, timeout);
        if (count > 0) {
            return 0;
        }
        if (count < 0 && errno != EINTR) {
            return KVARN_EIO;
        }
    }
}

static int connect_wait(int fd, const struct sockaddr *sa, socklen_t sa_bytes, uint64_t until_ms)
{
    int failure = 0;
    socklen_t failure_bytes = sizeof failure;
    int err;

    if (connect(fd, sa, sa_bytes) == 0) {
        return 0;
    }
    /* A unix socket whose backlog is full says EAGAIN and does not become ready: it is an error. */
    if (errno != EINPROGRESS) {
        return KVARN_EIO;
    }
    err = socket_wait(fd, POLLOUT, until_ms);
    if (err != 0) {
        return err;
    }
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &failure, &failure_bytes) != 0) {
        return KVARN_EIO;
    }
    errno = failure;
    return failure == 0 ? 0 : KVARN_EIO;
}

static int socket_open(
    int family, const struct sockaddr *sa, socklen_t sa_bytes, uint64_t until_ms, int *ret_fd)
{
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int saved;
    int err;

    if (fd < 0) {
        return KVARN_EIO;
    }
    err = connect_wait(fd, sa, sa_bytes, until_ms);
    if (err != 0) {
        saved = errno;
        close(fd);
        errno = saved;
        return err;
    }
    *ret_fd = fd;
    return 0;
}

static int unix_connect(const struct kvarn__address *address, uint64_t until_ms, int *ret_fd)
{
    union {
        struct sockaddr sa;
        struct sockaddr_un un;
    } u = {.un = {.sun_family = AF_UNIX}};

    _Static_assert(sizeof address->path == sizeof u.un.sun_path, "a path fits by its type");
    memcpy(u.un.sun_path, address->path, sizeof u.un.sun_path);
    return socket_open(AF_UNIX, &u.sa, sizeof u.un, until_ms, ret_fd);
}

static int tcp_connect(const struct kvarn__address *address, uint64_t until_ms, int *ret_fd)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *list = NULL;
    int one = 1;
    int err = KVARN_EIO;

    if (getaddrinfo(address->host, address->port, &hints, &list) != 0) {
        errno = EHOSTUNREACH;
        return KVARN_EIO;
    }
    for (const struct addrinfo *ai = list; ai != NULL; ai = ai->ai_next) {
        err = socket_open(ai->ai_family, ai->ai_addr, ai->ai_addrlen, until_ms, ret_fd);
        if (err == 0) {
            break;
        }
    }
    freeaddrinfo(list);
    /* Small frames must not wait for acknowledgements; slower is all that failing here costs. */
    if (err == 0) {
        (void)setsockopt(*ret_fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }
    return err;
}

int kvarn__socket_connect(const struct kvarn__address *address, uint64_t until_ms, int *ret_fd)
{
    return address->is_tcp ? tcp_connect(address, until_ms, ret_fd)
                           : unix_connect(address, until_ms, ret_fd);
}

int kvarn__socket_send(
    int fd, const struct iovec *iov, int iov_count, uint64_t until_ms, size_t *ret_bytes)
{
    struct msghdr message = {0};

    KVARN_ASSERT(iov_count > 0);
    memcpy(&message.msg_iov, &iov, sizeof iov); /* sendmsg() reads it only */
    message.msg_iovlen = (size_t)iov_count;
    for (;;) {
        ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL);
        int err;

        if (sent > 0) {
            *ret_bytes = (size_t)sent;
            return 0;
        }
        if (sent < 0 && errno == EINTR) {
            continue;
        }
        if (sent == 0 || (errno != EAGAIN && errno != EWOULDBLOCK)) {
            return KVARN_EIO;
        }
        err = socket_wait(fd, POLLOUT, until_ms);
        if (err != 0) {
            return err;
        }
    }
}

int kvarn__socket_receive(int fd, void *to, size_t room, uint64_t until_ms, size_t *ret_bytes)
{
    KVARN_ASSERT(room > 0);
    for (;;) {
        ssize_t got = recv(fd, to, room, 0);
        int err;

        if (got > 0) {
            *ret_bytes = (size_t)got;
            return 0;
        }
        if (got == 0) {
            errno = 0;
            return KVARN_EIO;
        }
        if (errno == EINTR) {
            continue;
        }
        if (errno != EAGAIN && errno != EWOULDBLOCK) {
            return KVARN_EIO;
        }
        err = socket_wait(fd, POLLIN, until_ms);
        if (err != 0) {
            return err;
        }
    }
}
