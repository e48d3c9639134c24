/*
 * Listening sockets.
 *
 * Thread: before the loop runs. Two daemons that start at once would each find the other's stale
 * file and remove a live one; looking and binding therefore happen under a lock on the folder,
 * which the kernel drops with its holder.
 */
#include "server/io/listen_socket.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "lib/base/assert.h"
#include "server/base/log.h"
#include "server/base/net_address.h"

#define UNIX_PREFIX       "unix:"
#define UNIX_PREFIX_BYTES (sizeof(UNIX_PREFIX) - 1)
#define SUN_PATH_BYTES    sizeof(((struct sockaddr_un *)NULL)->sun_path)

/* A start takes about a millisecond under the lock; a second is a stuck neighbour. */
#define LOCK_TRIES   100
#define LOCK_WAIT_NS 10000000L

_Static_assert(
    UNIX_PREFIX_BYTES + SUN_PATH_BYTES <= sizeof(((struct kvd_listen_socket *)NULL)->address),
    "every path fits its address");

static int refuse(int err, const char *address, const char *reason, int os_error)
{
    KVARN_ASSERT(err < 0);
    if (os_error != 0) {
        kvd_log(KVD_LOG_ERROR, "listen_failed", "address=%s reason=%s error=%s", address, reason,
            strerror(os_error));
    } else {
        kvd_log(KVD_LOG_ERROR, "listen_failed", "address=%s reason=%s", address, reason);
    }
    return err;
}

/* Make the folder of `path` if it is missing, open it and lock it. */
static int folder_lock(const char *path, int *ret_fd)
{
    char folder[SUN_PATH_BYTES];
    const char *slash = strrchr(path, '/');
    size_t bytes = slash == NULL ? 0 : (size_t)(slash - path);
    const struct timespec wait = {.tv_nsec = LOCK_WAIT_NS};

    KVARN_ASSERT(bytes < sizeof(folder));
    memcpy(folder, path, bytes);
    folder[bytes] = '\0';
    if (bytes == 0) {
        (void)snprintf(folder, sizeof(folder), "%s", slash == NULL ? "." : "/");
    } else if (mkdir(folder, 0700) != 0 && errno != EEXIST) {
        return refuse(KVARN_EIO, path, "the folder cannot be made", errno);
    }
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return refuse(KVARN_EIO, path, "the folder cannot be opened", errno);
    }
    for (int i = 0; flock(fd, LOCK_EX | LOCK_NB) != 0; i++) {
        if ((errno != EWOULDBLOCK && errno != EINTR) || i == LOCK_TRIES) {
            int os_error = errno;
            (void)close(fd);
            return refuse(KVARN_EIO, path, "the folder cannot be locked", os_error);
        }
        (void)nanosleep(&wait, NULL);
    }
    *ret_fd = fd;
    return 0;
}

/* Make way: a socket file that refuses connections is left over from a daemon that died. */
static int path_clear(const struct sockaddr_un *name)
{
    const char *path = name->sun_path;
    struct stat st;

    if (lstat(path, &st) != 0) {
        return errno == ENOENT ? 0 : refuse(KVARN_EIO, path, "the path is not reachable", errno);
    }
    if (!S_ISSOCK(st.st_mode)) {
        return refuse(KVARN_EINVALID, path, "the path exists and is not a socket", 0);
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return refuse(KVARN_EIO, path, "no socket", errno);
    }
    int rc = connect(fd, (const struct sockaddr *)(const void *)name, sizeof(*name));
    int os_error = rc == 0 ? 0 : errno;
    (void)close(fd);
    if (os_error != ECONNREFUSED) {
        return refuse(KVARN_ECONFLICT, path, "in use by another process", os_error);
    }
    if (unlink(path) != 0 && errno != ENOENT) {
        return refuse(KVARN_EIO, path, "the stale socket cannot be removed", errno);
    }
    kvd_log(KVD_LOG_INFO, "stale_socket_removed", "path=%s", path);
    return 0;
}

/* Bind and listen; the file is 0600 at once, since chmod after bind would leave it open for a
 * moment. On failure no file of ours is left. */
static int unix_bind(const struct sockaddr_un *name, int fd, struct stat *ret_stat)
{
    mode_t mask = umask(0177);
    int rc = bind(fd, (const struct sockaddr *)(const void *)name, sizeof(*name));
    int os_error = errno;
    (void)umask(mask);

    if (rc != 0) {
        return refuse(KVARN_EIO, name->sun_path, "bind", os_error);
    }
    if (listen(fd, SOMAXCONN) != 0 || lstat(name->sun_path, ret_stat) != 0) {
        os_error = errno;
        (void)unlink(name->sun_path);
        return refuse(KVARN_EIO, name->sun_path, "listen", os_error);
    }
    return 0;
}

int kvd_listen_socket_unix(const char *path, struct kvd_listen_socket *ret)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    struct stat st;
    int folder_fd;

    if (path[0] == '\0' || strlen(path) >= sizeof(name.sun_path)) {
        return refuse(KVARN_EINVALID, path, "a socket's path has 1 to 107 bytes", 0);
    }
    memcpy(name.sun_path, path, strlen(path) + 1);
    int err = folder_lock(path, &folder_fd);
    if (err != 0) {
        return err;
    }
    int fd = -1;
    err = path_clear(&name);
    if (err != 0) {
        goto out;
    }
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        err = refuse(KVARN_EIO, path, "no socket", errno);
        goto out;
    }
    err = unix_bind(&name, fd, &st);
    if (err != 0) {
        (void)close(fd);
        goto out;
    }
    *ret =
        (struct kvd_listen_socket){.fd = fd, .is_unix = true, .dev = st.st_dev, .ino = st.st_ino};
    (void)snprintf(ret->address, sizeof(ret->address), UNIX_PREFIX "%s", path);
out:
    (void)close(folder_fd);
    return err;
}

static int tcp_bind(int fd, const struct sockaddr_storage *address, socklen_t bytes)
{
    const int one = 1;

    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) != 0) {
        return -1;
    }
    if (address->ss_family == AF_INET6 &&
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one)) != 0) {
        return -1;
    }
    if (bind(fd, (const struct sockaddr *)(const void *)address, bytes) != 0) {
        return -1;
    }
    return listen(fd, SOMAXCONN);
}

int kvd_listen_socket_tcp(const char *host_port, struct kvd_listen_socket *ret)
{
    struct sockaddr_storage address;
    socklen_t bytes;
    char text[KVD_NET_TEXT_MAX];

    if (kvd_net_parse(host_port, &address, &bytes) != 0) {
        return refuse(KVARN_EINVALID, host_port, "not a numeric HOST:PORT", 0);
    }
    int fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return refuse(KVARN_EIO, host_port, "no socket", errno);
    }
    if (tcp_bind(fd, &address, bytes) != 0 ||
        getsockname(fd, (struct sockaddr *)(void *)&address, &bytes) != 0) {
        int os_error = errno;
        (void)close(fd);
        return refuse(
            os_error == EADDRINUSE ? KVARN_ECONFLICT : KVARN_EIO, host_port, "bind", os_error);
    }
    *ret = (struct kvd_listen_socket){.fd = fd};
    kvd_net_format(&address, text, sizeof(text));
    (void)snprintf(ret->address, sizeof(ret->address), "tcp:%s", text);
    return 0;
}

void kvd_listen_socket_close(struct kvd_listen_socket *listening)
{
    const char *path = listening->address + UNIX_PREFIX_BYTES;
    struct stat st;

    KVARN_ASSERT(listening->fd >= 0);
    if (listening->is_unix && lstat(path, &st) == 0 && st.st_dev == listening->dev &&
        st.st_ino == listening->ino) {
        (void)unlink(path);
    }
    (void)close(listening->fd);
    listening->fd = -1;
}
