/*
 * sd_notify: through libsystemd, or by the one datagram that the protocol consists of.
 *
 * Owner: daemon. Thread: loop only.
 */
#include "server/base/sd_notify.h"

#include <stdio.h>
#include <string.h>

#if defined(KVARND_SYSTEMD) && KVARND_SYSTEMD
#include <systemd/sd-daemon.h>
#else
#include <stddef.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#endif

#define MESSAGE_BYTES_MAX 512

#if defined(KVARND_SYSTEMD) && KVARND_SYSTEMD
static void notify_send(const char *message)
{
    (void)sd_notify(0, message); /* the daemon serves whether or not its manager listens */
}
#else
static void notify_send(const char *message)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    const char *path = getenv("NOTIFY_SOCKET");

    if (path == NULL || (path[0] != '/' && path[0] != '@') ||
        strlen(path) >= sizeof(name.sun_path)) {
        return;
    }
    memcpy(name.sun_path, path, strlen(path));
    if (name.sun_path[0] == '@') {
        name.sun_path[0] = '\0'; /* Linux's abstract names */
    }
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        socklen_t bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
        (void)sendto(fd, message, strlen(message), MSG_NOSIGNAL,
            (const struct sockaddr *)(const void *)&name, bytes);
        (void)close(fd);
    }
}
#endif

/* A newline in `status` would start an assignment of its own. */
static void notify(const char *state, const char *status)
{
    char message[MESSAGE_BYTES_MAX];
    int cut = (int)strcspn(status, "\n");

    (void)snprintf(message, sizeof(message), "%sSTATUS=%.*s", state, cut, status);
    notify_send(message);
}

void kvd_sd_notify_ready(const char *status)
{
    notify("READY=1\n", status);
}

void kvd_sd_notify_stopping(const char *status)
{
    notify("STOPPING=1\n", status);
}

void kvd_sd_notify_status(const char *status)
{
    notify("", status);
}
