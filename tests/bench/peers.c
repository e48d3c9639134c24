/* The far ends of kvarn-bench server. */
#include "tests/bench/peers.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/frame.h"
#include "tests/bench/bench.h"
#include "tests/bench/link.h"

#define REPLIES_MAX 31                 /* gathered in one write: two stretches each */
#define SINK_BYTES  ((size_t)64 << 20) /* where large requests go */
#define READ_BYTES  ((size_t)512 << 10)

#define EXTRA_ARGS_MAX 8

/* In the child: do not outlive the bench. */
static void child_begin(pid_t parent)
{
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) {
        _exit(1);
    }
}

/* A port of the loopback that nobody listens on now. */
static unsigned port_free(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t bytes = sizeof(at);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || bind(fd, (struct sockaddr *)&at, bytes) != 0 ||
        getsockname(fd, (struct sockaddr *)&at, &bytes) != 0) {
        kvb_die("a port", strerror(errno));
    }
    (void)close(fd);
    return ntohs(at.sin_port);
}

/* In the child: become the daemon. */
_Noreturn static void daemon_exec(
    const char *path, const char *const *args, size_t count, const char *const *extra)
{
    const char *argv[32] = {0};

    for (size_t i = 0; i < count; i++) {
        argv[i] = args[i];
    }
    for (size_t i = 0; i < EXTRA_ARGS_MAX && extra[i] != NULL; i++) {
        argv[count + i] = extra[i];
    }
    (void)execv(path, (char *const *)(uintptr_t)argv);
    _exit(127);
}

void kvb_daemon_start(struct kvb_daemon *daemon, const char *path, const char *memory_limit)
{
    const char *none = NULL;

    kvb_daemon_start_with(daemon, path, memory_limit, &none);
}

void kvb_daemon_start_with(
    struct kvb_daemon *daemon, const char *path, const char *memory_limit, const char *const *extra)
{
    char line[160] = "", socket_path[96], tcp[32];
    pid_t parent = getpid();
    int fds[2];

    (void)snprintf(daemon->folder, sizeof(daemon->folder), "/tmp/kvarn-server-XXXXXX");
    if (mkdtemp(daemon->folder) == NULL || pipe(fds) != 0) {
        kvb_die("set-up", strerror(errno));
    }
    (void)snprintf(socket_path, sizeof(socket_path), "%s/sock", daemon->folder);
    (void)snprintf(tcp, sizeof(tcp), "127.0.0.1:%u", port_free());
    daemon->pid = fork();
    if (daemon->pid == 0) {
        child_begin(parent);
        (void)dup2(fds[1], STDOUT_FILENO);
        (void)close(fds[0]);
        /* Memory is touched once: what was dropped is used again, as in a daemon that is full. */
        (void)setenv("MALLOC_CONF", "dirty_decay_ms:-1", 1);
        const char *const args[] = {"kvarnd", "--listen-unix", socket_path, "--listen-tcp", tcp,
            "--insecure-tcp", "--memory-limit", memory_limit, "--log-level", "warn"};
        daemon_exec(path, args, sizeof(args) / sizeof(*args), extra);
    }
    (void)close(fds[1]);
    FILE *out = fdopen(fds[0], "r");
    if (daemon->pid < 0 || out == NULL || fgets(line, sizeof(line), out) == NULL ||
        strncmp(line, "kvarnd ready", 12) != 0) {
        kvb_die(path, "it did not say that it is ready");
    }
    (void)fclose(out);
    (void)snprintf(daemon->unix_address, KVB_ADDRESS_BYTES, "unix:%s", socket_path);
    (void)snprintf(daemon->tcp_address, KVB_ADDRESS_BYTES, "tcp:%s", tcp);
}

void kvb_daemon_stop(struct kvb_daemon *daemon)
{
    int status = 0;

    (void)kill(daemon->pid, SIGTERM);
    if (waitpid(daemon->pid, &status, 0) != daemon->pid || status != 0) {
        kvb_die("the daemon", "it did not end well");
    }
    (void)rmdir(daemon->folder);
}

/* Listen where only one connection is expected. */
static int listen_unix(char ret_address[KVB_ADDRESS_BYTES])
{
    static unsigned serial;
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    (void)snprintf(
        at.sun_path, sizeof(at.sun_path), "/tmp/kvarn-raw-%d-%u", (int)getpid(), serial++);
    (void)snprintf(ret_address, KVB_ADDRESS_BYTES, "unix:%s", at.sun_path);
    return fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof(at)) != 0 || listen(fd, 1) != 0 ? -1
                                                                                             : fd;
}

static int listen_tcp(char ret_address[KVB_ADDRESS_BYTES])
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t bytes = sizeof(at);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || bind(fd, (struct sockaddr *)&at, bytes) != 0 || listen(fd, 1) != 0 ||
        getsockname(fd, (struct sockaddr *)&at, &bytes) != 0) {
        return -1;
    }
    (void)snprintf(ret_address, KVB_ADDRESS_BYTES, "tcp:127.0.0.1:%u", ntohs(at.sin_port));
    return fd;
}

/* ---- In the raw sender ---- */

struct sender {
    struct kvb_raw raw;
    int fd;
    size_t at;     /* in the payload's arena */
    uint8_t *room; /* READ_BYTES: where small requests go */
    uint8_t *sink; /* SINK_BYTES: large ones, one after the other; NULL until the first */
    size_t sink_at;
    uint8_t head[KVARN_FRAME_HEADER_BYTES]; /* of the request that is coming */
    size_t head_bytes;
    uint64_t rest_bytes; /* of it, behind its header */
};

static void sender_write(struct sender *sender, size_t replies)
{
    struct iovec parts[2 * REPLIES_MAX];
    size_t filled = 0, left = 0;

    for (size_t i = 0; i < replies; i++) {
        if (sender->at + sender->raw.payload_bytes > sender->raw.arena_bytes) {
            sender->at = 0;
        }
        parts[filled++] =
            (struct iovec){(void *)(uintptr_t)sender->raw.head, sender->raw.head_bytes};
        parts[filled++] = (struct iovec){
            (void *)(uintptr_t)(sender->raw.payload + sender->at), sender->raw.payload_bytes};
        sender->at += sender->raw.payload_bytes;
        left += sender->raw.head_bytes + sender->raw.payload_bytes;
    }
    for (struct iovec *part = parts; left > 0;) {
        ssize_t sent = writev(sender->fd, part, (int)filled);
        if (sent < 0) {
            _exit(0); /* the bench has gone */
        }
        left -= (size_t)sent;
        while (filled > 0 && (size_t)sent >= part->iov_len) {
            sent -= (ssize_t)part->iov_len;
            part++;
            filled--;
        }
        if (filled > 0) {
            part->iov_base = (uint8_t *)part->iov_base + sent;
            part->iov_len -= (size_t)sent;
        }
    }
}

/* Count the requests that end within these bytes. */
static size_t sender_walk(struct sender *sender, const uint8_t *data, size_t bytes)
{
    struct kvarn_frame_header header;
    size_t at = 0, requests = 0;

    while (at < bytes) {
        if (sender->rest_bytes == 0) {
            size_t chunk = sizeof(sender->head) - sender->head_bytes;
            chunk = chunk < bytes - at ? chunk : bytes - at;
            memcpy(sender->head + sender->head_bytes, data + at, chunk);
            sender->head_bytes += chunk;
            at += chunk;
            if (sender->head_bytes < sizeof(sender->head)) {
                break;
            }
            if (kvarn_frame_decode(sender->head, &header) != 0) {
                _exit(3);
            }
            sender->head_bytes = 0;
            sender->rest_bytes = header.message_bytes + header.payload_bytes;
            requests += sender->rest_bytes == 0;
            continue;
        }
        uint64_t used = bytes - at < sender->rest_bytes ? bytes - at : sender->rest_bytes;
        sender->rest_bytes -= used;
        at += (size_t)used;
        requests += sender->rest_bytes == 0;
    }
    return requests;
}

/* Receive what has come. Returns how many requests ended. */
static size_t sender_read(struct sender *sender)
{
    uint8_t *to = sender->room;
    size_t room = READ_BYTES;

    if (sender->rest_bytes >= READ_BYTES / 8) {
        if (sender->sink == NULL) {
            sender->sink = kvb_alloc(SINK_BYTES);
        }
        room = sender->rest_bytes < READ_BYTES ? (size_t)sender->rest_bytes : READ_BYTES;
        sender->sink_at = sender->sink_at + room > SINK_BYTES ? 0 : sender->sink_at;
        to = sender->sink + sender->sink_at;
    }
    ssize_t got = recv(sender->fd, to, room, 0);
    if (got <= 0) {
        _exit(0);
    }
    sender->sink_at += to == sender->room ? 0 : (size_t)got;
    return sender_walk(sender, to, (size_t)got);
}

_Noreturn static void sender_run(const struct kvb_raw *raw, int listener)
{
    struct sender sender = {.raw = *raw, .room = kvb_alloc(READ_BYTES)};
    struct sockaddr_un at;
    socklen_t at_bytes = sizeof(at);
    int yes = 1;

    (void)signal(SIGPIPE, SIG_IGN);
    sender.fd = accept(listener, NULL, NULL);
    if (sender.fd < 0) {
        _exit(2);
    }
    if (raw->is_tcp) {
        (void)setsockopt(sender.fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
    } else if (getsockname(listener, (struct sockaddr *)&at, &at_bytes) == 0) {
        (void)unlink(at.sun_path);
    }
    for (;;) {
        size_t requests = sender_read(&sender);
        while (requests > 0) {
            size_t now = requests < REPLIES_MAX ? requests : REPLIES_MAX;
            sender_write(&sender, now);
            requests -= now;
        }
    }
}

/* ---- In the bench ---- */

pid_t kvb_raw_start(const struct kvb_raw *raw, char ret_address[KVB_ADDRESS_BYTES])
{
    pid_t parent = getpid();
    int listener = raw->is_tcp ? listen_tcp(ret_address) : listen_unix(ret_address);
    pid_t pid = listener < 0 ? -1 : fork();

    if (pid < 0) {
        kvb_die("the raw sender", strerror(errno));
    }
    if (pid == 0) {
        child_begin(parent);
        sender_run(raw, listener);
    }
    (void)close(listener);
    return pid;
}

void kvb_raw_stop(pid_t pid)
{
    int status = 0;

    if (waitpid(pid, &status, 0) != pid || status != 0) {
        kvb_die("the raw sender", "it did not end well");
    }
}

/* Read what redis-server says until it is ready. Its end comes first where it is not installed. */
static bool redis_is_ready(FILE *out)
{
    char line[256];

    while (fgets(line, sizeof(line), out) != NULL) {
        if (strstr(line, "Ready to accept connections") != NULL) {
            return true;
        }
    }
    return false;
}

bool kvb_redis_start(struct kvb_redis *redis)
{
    char port[8];
    pid_t parent = getpid();
    int fds[2];

    (void)snprintf(port, sizeof(port), "%u", port_free());
    (void)snprintf(redis->address, KVB_ADDRESS_BYTES, "tcp:127.0.0.1:%s", port);
    redis->pid = pipe(fds) != 0 ? -1 : fork();
    if (redis->pid < 0) {
        kvb_die("redis-server", strerror(errno));
    }
    if (redis->pid == 0) {
        child_begin(parent);
        (void)dup2(fds[1], STDOUT_FILENO);
        (void)close(fds[0]);
        (void)execlp("redis-server", "redis-server", "--port", port, "--bind", "127.0.0.1",
            "--save", "", "--appendonly", "no", "--loglevel", "notice", (char *)NULL);
        _exit(127);
    }
    (void)close(fds[1]);
    redis->out = fdopen(fds[0], "r");
    if (redis->out != NULL && redis_is_ready(redis->out)) {
        return true;
    }
    kvb_redis_stop(redis);
    return false;
}

void kvb_redis_stop(struct kvb_redis *redis)
{
    (void)kill(redis->pid, SIGTERM);
    (void)waitpid(redis->pid, NULL, 0);
    if (redis->out != NULL) {
        (void)fclose(redis->out);
    }
}
