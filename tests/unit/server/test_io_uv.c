/*
 * Tests of server/io_uv.c on a real loop. The far ends are plain non-blocking sockets that a
 * repeating timer serves, so one thread plays both sides.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

#include "server/io.h"
#include "server/net_address.h"

#define STEPS_MAX      20000 /* of a millisecond: a test that gets there has hung */
#define PART_BYTES     8192
#define ECHO_BYTES     4096
#define GATHERED_BYTES (PART_BYTES * KVD_IO_BUFS_MAX)

/*
 * uv_write(), wrapped by the linker: libuv refuses a write at once only when memory is short. Types
 * are libuv's, spelled without its header.
 */
#define ENOMEM_OF_UV (-ENOMEM)
int __real_uv_write(void *write, void *stream, const void *bufs, unsigned count, void *cb);
int __wrap_uv_write(void *write, void *stream, const void *bufs, unsigned count, void *cb);
static bool is_uv_write_refusing;

int __wrap_uv_write(void *write, void *stream, const void *bufs, unsigned count, void *cb)
{
    return is_uv_write_refusing ? ENOMEM_OF_UV : __real_uv_write(write, stream, bufs, count, cb);
}

struct env {
    struct kvd_io *io;
    const struct kvd_io_ops *ops;
    char folder[32];
    char path[64];
    struct kvd_listener *listener;
    /* The far end. */
    struct kvd_timer *step_timer;
    bool (*step)(struct env *env); /* returns true when the test is over */
    unsigned steps;
    int client;
    /* The near end. */
    struct kvd_stream *stream;
    struct kvd_peer peer;
    char room[ECHO_BYTES];
    size_t echoed_bytes;
    unsigned accepts, reads, ends, writes, closes, fired;
    int write_err, read_err;
    bool is_inside_write, is_echo;
    char order[32]; /* a letter for each callback */
};

static void order_add(struct env *env, char letter)
{
    size_t bytes = strlen(env->order);
    assert_true(bytes + 1 < sizeof(env->order));
    env->order[bytes] = letter;
}

static int env_setup(void **state)
{
    struct env *env = calloc(1, sizeof(*env));

    assert_non_null(env);
    env->io = kvd_io_uv_create();
    assert_non_null(env->io);
    env->ops = env->io->ops;
    env->client = -1;
    env->is_echo = true;
    (void)snprintf(env->folder, sizeof(env->folder), "/tmp/kvd_io_XXXXXX");
    assert_non_null(mkdtemp(env->folder));
    (void)snprintf(env->path, sizeof(env->path), "%s/k.sock", env->folder);
    *state = env;
    return 0;
}

static int env_teardown(void **state)
{
    struct env *env = *state;

    if (env->io != NULL) {
        env->ops->destroy(env->io);
    }
    if (env->client >= 0) {
        (void)close(env->client);
    }
    assert_int_equal(rmdir(env->folder), 0);
    free(env);
    return 0;
}

static void step_cb(void *ctx)
{
    struct env *env = ctx;

    assert_true(env->steps++ < STEPS_MAX);
    if (env->step(env)) {
        env->ops->timer_stop(env->step_timer);
        env->ops->stop(env->io);
    }
}

/* Run the loop, calling `step` every millisecond, until it says true. */
static void run_until(struct env *env, bool (*step)(struct env *env))
{
    env->steps = 0;
    env->step = step;
    if (env->step_timer == NULL) {
        env->step_timer = env->ops->timer_create(env->io, step_cb, env);
        assert_non_null(env->step_timer);
    }
    env->ops->timer_start(env->step_timer, 1, 1);
    assert_int_equal(env->ops->run(env->io), 0);
}

/* Near end: echo. */

static void echo_buffer_cb(void *ctx, void **ret_data, size_t *ret_bytes)
{
    struct env *env = ctx;
    *ret_data = env->room;
    *ret_bytes = sizeof(env->room);
}

static void write_cb(void *ctx, int err);

static void echo_read_cb(void *ctx, ssize_t bytes)
{
    struct env *env = ctx;

    env->reads++;
    if (bytes == 0) {
        env->ends++;
        order_add(env, 'e');
    } else if (bytes < 0) {
        env->read_err = (int)bytes;
        order_add(env, 'x');
    } else if (env->is_echo) {
        const struct kvd_buf buf = {.data = env->room, .bytes = (size_t)bytes};
        env->echoed_bytes += (size_t)bytes;
        env->ops->stream_read_stop(env->stream); /* until the write is done: one room */
        env->is_inside_write = true;
        env->ops->stream_write(env->stream, &buf, 1, write_cb, env);
        env->is_inside_write = false;
    }
}

static const struct kvd_stream_handler echo_handler = {echo_buffer_cb, echo_read_cb};

static void write_cb(void *ctx, int err)
{
    struct env *env = ctx;

    assert_false(env->is_inside_write);
    env->writes++;
    env->write_err = err;
    order_add(env, 'w');
    if (env->is_echo && err == 0) {
        env->ops->stream_read_start(env->stream, &echo_handler, env);
    }
}

static void closed_cb(void *ctx)
{
    struct env *env = ctx;

    env->stream = NULL;
    env->closes++;
    order_add(env, 'c');
}

static void accept_cb(void *ctx, struct kvd_stream *stream, const struct kvd_peer *peer)
{
    struct env *env = ctx;

    assert_null(env->stream);
    env->accepts++;
    env->stream = stream;
    env->peer = *peer;
    env->ops->stream_read_start(stream, &echo_handler, env);
}

/* Far end. */

static int client_connect_unix(const char *path)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    assert_true(fd >= 0);
    assert_true(strlen(path) < sizeof(name.sun_path));
    memcpy(name.sun_path, path, strlen(path));
    assert_int_equal(connect(fd, (const struct sockaddr *)(const void *)&name, sizeof(name)), 0);
    return fd;
}

static int client_connect_tcp(const char *host_port)
{
    struct sockaddr_storage address;
    socklen_t bytes;

    assert_int_equal(kvd_net_parse(host_port, &address, &bytes), 0);
    int fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)(const void *)&address, bytes), 0);
    assert_int_equal(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
    return fd;
}

static void listen_and_connect(struct env *env)
{
    assert_int_equal(env->ops->listen_unix(env->io, env->path, accept_cb, env, &env->listener), 0);
    env->client = client_connect_unix(env->path);
}

static bool has_stream(struct env *env)
{
    return env->stream != NULL;
}

static bool has_waited(struct env *env)
{
    return env->steps > 20;
}

static bool has_closed(struct env *env)
{
    return env->closes > 0;
}

/* Timers. */

struct ticker {
    struct env *env;
    struct kvd_timer *timer;
    uint64_t started_ns, fired_ns;
    unsigned fired, stop_at;
};

static void ticker_cb(void *ctx)
{
    struct ticker *ticker = ctx;

    ticker->fired++;
    ticker->fired_ns = ticker->env->ops->now_ns(ticker->env->io);
    if (ticker->fired == ticker->stop_at) {
        ticker->env->ops->timer_destroy(ticker->timer); /* from inside its own callback */
        ticker->timer = NULL;
    }
}

static void ticker_start(struct ticker *ticker, struct env *env, uint64_t after, uint64_t repeat)
{
    ticker->env = env;
    ticker->timer = env->ops->timer_create(env->io, ticker_cb, ticker);
    assert_non_null(ticker->timer);
    ticker->started_ns = env->ops->now_ns(env->io);
    env->ops->timer_start(ticker->timer, after, repeat);
}

static void timers_fire_in_order_and_not_early(void **state)
{
    struct env *env = *state;
    struct ticker late = {.stop_at = 1};
    struct ticker soon = {.stop_at = 1};
    struct ticker often = {.stop_at = 3};
    struct ticker stopped = {.stop_at = 1};
    const struct timespec pause = {.tv_nsec = 3000000};

    ticker_start(&late, env, 20, 0);
    (void)nanosleep(&pause, NULL); /* the loop's own clock is behind by now */
    ticker_start(&soon, env, 5, 0);
    ticker_start(&often, env, 2, 3);
    ticker_start(&stopped, env, 1, 0);
    env->ops->timer_stop(stopped.timer);
    assert_int_equal(env->ops->run(env->io), 0); /* ends: nothing is left */
    assert_int_equal(late.fired, 1);
    assert_int_equal(soon.fired, 1);
    assert_int_equal(often.fired, 3);
    assert_int_equal(stopped.fired, 0);
    assert_true(soon.fired_ns < late.fired_ns);
    /* Milliseconds are cut off at both ends. */
    assert_true(late.fired_ns - late.started_ns > UINT64_C(19000000));
    assert_true(soon.fired_ns - soon.started_ns > UINT64_C(4000000));
    env->ops->timer_destroy(stopped.timer);
    env->ops->timer_destroy(NULL);
}

static void restart_cb(void *ctx)
{
    struct ticker *ticker = ctx;
    ticker->fired++;
    ticker->env->ops->timer_start(ticker->timer, 0, 0);
}

static void a_timer_of_0_ms_starves_nobody(void **state)
{
    struct env *env = *state;
    struct ticker busy = {.env = env};

    busy.timer = env->ops->timer_create(env->io, restart_cb, &busy);
    env->ops->timer_start(busy.timer, 0, 0);
    listen_and_connect(env); /* the connection is only seen by polling */
    run_until(env, has_stream);
    assert_true(busy.fired > 1);
    env->ops->timer_destroy(busy.timer);
    env->ops->listener_destroy(env->listener);
}

static void a_timer_of_0_ms_repeats(void **state)
{
    struct env *env = *state;
    struct ticker ticker = {.stop_at = 3};

    ticker_start(&ticker, env, 0, 1);
    assert_int_equal(ticker.fired, 0); /* never from inside */
    assert_int_equal(env->ops->run(env->io), 0);
    assert_int_equal(ticker.fired, 3);
}

static void a_timer_of_0_ms_can_be_stopped(void **state)
{
    struct env *env = *state;
    struct ticker stopped = {.stop_at = 9};
    struct ticker destroyed = {.stop_at = 9};
    struct ticker moved = {.stop_at = 1};

    ticker_start(&stopped, env, 0, 0);
    ticker_start(&destroyed, env, 0, 0);
    ticker_start(&moved, env, 0, 0);
    env->ops->timer_stop(stopped.timer);
    env->ops->timer_destroy(destroyed.timer);
    env->ops->timer_start(moved.timer, 2, 0);
    assert_int_equal(env->ops->run(env->io), 0);
    assert_int_equal(stopped.fired, 0);
    assert_int_equal(destroyed.fired, 0);
    assert_int_equal(moved.fired, 1);
    env->ops->timer_destroy(stopped.timer);
}

static void clock_and_random(void **state)
{
    struct env *env = *state;
    uint8_t first[32] = {0};
    uint8_t second[32] = {0};
    uint64_t before = env->ops->now_ns(env->io);

    assert_int_equal(env->ops->random(env->io, first, sizeof(first)), 0);
    assert_int_equal(env->ops->random(env->io, second, sizeof(second)), 0);
    assert_memory_not_equal(first, second, sizeof(first));
    assert_true(env->ops->now_ns(env->io) >= before);
}

/* Wake-ups. */

#define SENDS 1000

struct waker {
    struct env *env;
    struct kvd_wake *wake;
    atomic_uint sent;
    unsigned calls;
};

static void waker_cb(void *ctx)
{
    struct waker *waker = ctx;

    waker->calls++;
    /* Counted before it was sent: a callback comes after the last one. */
    if (atomic_load(&waker->sent) == SENDS) {
        waker->env->ops->wake_destroy(waker->wake);
        waker->wake = NULL;
    }
}

static void *waker_run(void *ctx)
{
    struct waker *waker = ctx;
    struct kvd_wake *wake = waker->wake;

    for (unsigned i = 0; i + 1 < SENDS; i++) {
        (void)atomic_fetch_add(&waker->sent, 1);
        waker->env->ops->wake_send(wake);
    }
    return NULL;
}

static void wakes_from_a_thread_are_merged_and_not_lost(void **state)
{
    struct env *env = *state;
    struct waker waker = {.env = env};
    pthread_t thread;

    waker.wake = env->ops->wake_create(env->io, waker_cb, &waker);
    assert_non_null(waker.wake);
    assert_int_equal(pthread_create(&thread, NULL, waker_run, &waker), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    (void)atomic_fetch_add(&waker.sent, 1);
    env->ops->wake_send(waker.wake); /* the last, so that no thread holds a wake that is gone */
    assert_int_equal(env->ops->run(env->io), 0);
    assert_int_equal(waker.calls, 1); /* nothing ran meanwhile: all are one */
    assert_null(waker.wake);
    env->ops->wake_destroy(NULL);
}

static bool has_many_calls(struct env *env)
{
    return env->fired >= 3;
}

static void count_cb(void *ctx)
{
    struct env *env = ctx;
    env->fired++;
}

static void *sender_run(void *ctx)
{
    struct waker *waker = ctx;

    /* Until the loop has seen three separate ones; `sent` says so. */
    while (atomic_load(&waker->sent) == 0) {
        waker->env->ops->wake_send(waker->wake);
    }
    return NULL;
}

static void wakes_reach_a_running_loop(void **state)
{
    struct env *env = *state;
    struct waker waker = {.env = env};
    pthread_t thread;

    waker.wake = env->ops->wake_create(env->io, count_cb, env);
    assert_int_equal(pthread_create(&thread, NULL, sender_run, &waker), 0);
    run_until(env, has_many_calls);
    atomic_store(&waker.sent, 1);
    assert_int_equal(pthread_join(thread, NULL), 0);
    unsigned before = env->fired;
    env->ops->wake_send(waker.wake);
    env->ops->wake_destroy(waker.wake); /* no callback after it, even of one that is pending */
    env->ops->timer_destroy(env->step_timer);
    assert_int_equal(env->ops->run(env->io), 0);
    assert_int_equal(env->fired, before);
}

/* Streams. */

static bool echo_step(struct env *env)
{
    char text[16] = "";
    ssize_t bytes = recv(env->client, text, sizeof(text) - 1, 0);

    if (bytes < 0) {
        assert_int_equal(errno, EAGAIN);
        return false;
    }
    assert_string_equal(text, "hello");
    return true;
}

static bool has_end(struct env *env)
{
    return env->ends > 0;
}

/* Hello there and back, then the far end leaves. */
static void echo_and_leave(struct env *env)
{
    assert_int_equal(send(env->client, "hello", 5, 0), 5);
    run_until(env, echo_step);
    assert_int_equal(env->accepts, 1);
    assert_int_equal(env->echoed_bytes, 5);
    assert_int_equal(env->ops->stream_write_left(env->stream), 0);
    (void)close(env->client);
    env->client = -1;
    run_until(env, has_end);
    env->ops->stream_close(env->stream, closed_cb, env);
    assert_int_equal(env->closes, 0); /* never from inside */
    run_until(env, has_closed);
    assert_int_equal(env->writes, 1);
    assert_int_equal(env->closes, 1);
}

static void unix_echo(void **state)
{
    struct env *env = *state;
    char address[80];
    struct stat st;

    listen_and_connect(env);
    (void)snprintf(address, sizeof(address), "unix:%s", env->path);
    assert_string_equal(env->ops->listener_address(env->listener), address);
    echo_and_leave(env);
    assert_true(env->peer.is_unix);
    assert_int_equal(env->peer.uid, geteuid());
    assert_int_equal(env->peer.pid, getpid());
    env->ops->listener_destroy(env->listener);
    assert_int_equal(stat(env->path, &st), -1);
    env->ops->listener_destroy(NULL);
}

static void tcp_echo(void **state)
{
    struct env *env = *state;

    assert_int_equal(
        env->ops->listen_tcp(env->io, "127.0.0.1:0", accept_cb, env, &env->listener), 0);
    const char *address = env->ops->listener_address(env->listener);
    assert_int_equal(strncmp(address, "tcp:127.0.0.1:", 14), 0);
    env->client = client_connect_tcp(address + 4);
    echo_and_leave(env);
    assert_false(env->peer.is_unix);
    assert_int_equal(strncmp(env->peer.text, "tcp:127.0.0.1:", 14), 0);
    env->ops->listener_destroy(env->listener);
}

static void listen_failures_have_codes(void **state)
{
    struct env *env = *state;
    struct kvd_listener *listener = NULL;

    listen_and_connect(env);
    assert_int_equal(
        env->ops->listen_unix(env->io, env->path, accept_cb, env, &listener), KVARN_ECONFLICT);
    assert_int_equal(env->ops->listen_unix(env->io, "", accept_cb, env, &listener), KVARN_EINVALID);
    assert_int_equal(
        env->ops->listen_tcp(env->io, "nohost", accept_cb, env, &listener), KVARN_EINVALID);
    assert_null(listener);
}

/* A gathered write, large and slowly read. */

struct gathered {
    uint8_t *bytes; /* owned */
    struct kvd_buf bufs[KVD_IO_BUFS_MAX];
};

static uint8_t gathered_byte(size_t i)
{
    return (uint8_t)((i * 2654435761u) >> 13);
}

static struct gathered *gathered_create(void)
{
    struct gathered *gathered = calloc(1, sizeof(*gathered));

    assert_non_null(gathered);
    gathered->bytes = malloc(GATHERED_BYTES);
    assert_non_null(gathered->bytes);
    for (size_t i = 0; i < GATHERED_BYTES; i++) {
        gathered->bytes[i] = gathered_byte(i);
    }
    for (size_t i = 0; i < KVD_IO_BUFS_MAX; i++) {
        gathered->bufs[i] =
            (struct kvd_buf){.data = gathered->bytes + i * PART_BYTES, .bytes = PART_BYTES};
    }
    return gathered;
}

static void gathered_destroy(struct gathered *gathered)
{
    free(gathered->bytes);
    free(gathered);
}

static void gathered_send(struct env *env, struct gathered *gathered)
{
    env->is_echo = false;
    env->is_inside_write = true;
    env->ops->stream_write(env->stream, gathered->bufs, KVD_IO_BUFS_MAX, write_cb, env);
    env->is_inside_write = false;
    memset(gathered->bufs, 0, sizeof(gathered->bufs)); /* the array is ours again */
}

static bool slow_reader_step(struct env *env)
{
    static uint8_t room[128 * 1024];
    ssize_t bytes = recv(env->client, room, sizeof(room), 0);

    if (bytes < 0) {
        assert_int_equal(errno, EAGAIN);
        return false;
    }
    for (size_t i = 0; i < (size_t)bytes; i++) {
        assert_int_equal(room[i], gathered_byte(env->echoed_bytes + i));
    }
    env->echoed_bytes += (size_t)bytes;
    size_t left = env->ops->stream_write_left(env->stream);
    assert_true(left <= GATHERED_BYTES - env->echoed_bytes);
    return env->echoed_bytes == GATHERED_BYTES;
}

static bool has_written(struct env *env)
{
    return env->writes > 0;
}

static void a_large_gathered_write_to_a_slow_reader(void **state)
{
    struct env *env = *state;
    struct gathered *gathered = gathered_create();

    listen_and_connect(env);
    run_until(env, has_stream);
    gathered_send(env, gathered);
    assert_true(env->ops->stream_write_left(env->stream) > 0);
    run_until(env, slow_reader_step);
    run_until(env, has_written);
    assert_int_equal(env->writes, 1);
    assert_int_equal(env->write_err, 0);
    assert_int_equal(env->ops->stream_write_left(env->stream), 0);
    gathered_destroy(gathered);
}

static void a_close_cancels_the_write_first(void **state)
{
    struct env *env = *state;
    struct gathered *gathered = gathered_create();

    listen_and_connect(env);
    run_until(env, has_stream);
    gathered_send(env, gathered);
    env->ops->stream_close(env->stream, closed_cb, env);
    assert_int_equal(env->writes, 0);
    run_until(env, has_closed);
    assert_int_equal(env->writes, 1);
    assert_int_equal(env->write_err, KVARN_ECANCELLED);
    assert_int_equal(env->closes, 1);
    assert_string_equal(env->order, "wc");
    gathered_destroy(gathered);
}

static void a_write_to_a_peer_that_left_fails(void **state)
{
    struct env *env = *state;
    struct gathered *gathered = gathered_create();

    listen_and_connect(env);
    run_until(env, has_stream);
    env->ops->stream_read_stop(env->stream);
    (void)close(env->client);
    env->client = -1;
    gathered_send(env, gathered); /* and no SIGPIPE */
    run_until(env, has_written);
    assert_int_equal(env->writes, 1);
    assert_int_equal(env->write_err, KVARN_EIO);
    gathered_destroy(gathered);
}

static void refused_write(struct env *env)
{
    static const struct kvd_buf buf = {.data = "x", .bytes = 1};

    listen_and_connect(env);
    run_until(env, has_stream);
    env->is_echo = false;
    env->is_inside_write = true;
    is_uv_write_refusing = true;
    env->ops->stream_write(env->stream, &buf, 1, write_cb, env);
    is_uv_write_refusing = false;
    env->is_inside_write = false;
    assert_int_equal(env->writes, 0);
}

static void a_write_refused_at_once_fails_later(void **state)
{
    struct env *env = *state;

    refused_write(env);
    run_until(env, has_written);
    assert_int_equal(env->writes, 1);
    assert_int_equal(env->write_err, KVARN_EIO);
}

static void a_close_cancels_a_refused_write_too(void **state)
{
    struct env *env = *state;

    refused_write(env);
    env->ops->stream_close(env->stream, closed_cb, env);
    run_until(env, has_closed);
    run_until(env, has_waited);
    assert_int_equal(env->writes, 1);
    assert_true(env->write_err < 0);
    assert_string_equal(env->order, "wc");
}

static void a_destroy_cancels_a_refused_write_too(void **state)
{
    struct env *env = *state;

    refused_write(env);
    env->ops->destroy(env->io);
    env->io = NULL;
    assert_int_equal(env->writes, 1);
    assert_int_equal(env->write_err, KVARN_ECANCELLED);
}

static bool has_read_something(struct env *env)
{
    return env->reads > 0;
}

static void nothing_is_read_while_stopped(void **state)
{
    struct env *env = *state;

    env->is_echo = false;
    listen_and_connect(env);
    run_until(env, has_stream);
    env->ops->stream_read_stop(env->stream);
    assert_int_equal(send(env->client, "hello", 5, 0), 5);
    run_until(env, has_waited);
    assert_int_equal(env->reads, 0);
    env->ops->stream_read_start(env->stream, &echo_handler, env);
    env->ops->stream_read_start(env->stream, &echo_handler, env); /* again: harmless */
    run_until(env, has_read_something);
    assert_memory_equal(env->room, "hello", 5);
}

/* Listeners under pressure. */

#define CLIENTS 8

static void refuse_cb(void *ctx, struct kvd_stream *stream, const struct kvd_peer *peer)
{
    struct env *env = ctx;

    (void)peer;
    env->accepts++;
    env->ops->stream_close(stream, NULL, NULL);
    env->ops->listener_destroy(env->listener); /* with others still waiting in its queue */
    env->listener = NULL;
}

static bool has_accept(struct env *env)
{
    return env->accepts > 0;
}

static void a_listener_may_go_in_its_own_callback(void **state)
{
    struct env *env = *state;
    int fds[CLIENTS];

    assert_int_equal(env->ops->listen_unix(env->io, env->path, refuse_cb, env, &env->listener), 0);
    for (int i = 0; i < CLIENTS; i++) {
        fds[i] = client_connect_unix(env->path);
    }
    run_until(env, has_accept);
    run_until(env, has_waited);
    assert_int_equal(env->accepts, 1);
    for (int i = 0; i < CLIENTS; i++) {
        (void)close(fds[i]);
    }
}

static void accept_none_cb(void *ctx, struct kvd_stream *stream, const struct kvd_peer *peer)
{
    (void)ctx;
    (void)stream;
    (void)peer;
    fail(); /* there was no descriptor for it */
}

static int starved_clients[CLIENTS];

static bool all_refused_step(struct env *env)
{
    unsigned refused = 0;
    char byte;

    (void)env;
    for (int i = 0; i < CLIENTS; i++) {
        refused += recv(starved_clients[i], &byte, 1, MSG_PEEK) == 0 ? 1 : 0;
    }
    return refused == CLIENTS;
}

static void without_descriptors_new_clients_are_refused_at_once(void **state)
{
    struct env *env = *state;
    struct kvd_listener *other = NULL;
    struct rlimit limit;

    assert_int_equal(env->ops->listen_unix(env->io, env->path, accept_none_cb, env, &other), 0);
    run_until(env, has_waited); /* the loop has opened all that it needs */
    for (int i = 0; i < CLIENTS; i++) {
        starved_clients[i] = client_connect_unix(env->path);
    }
    int next = dup(STDIN_FILENO);
    (void)close(next);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    rlim_t before = limit.rlim_cur;
    limit.rlim_cur = (rlim_t)next;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    run_until(env, all_refused_step);

    clock_t cpu = clock();
    run_until(env, has_waited); /* some 20 ms: a loop that spins would use them all */
    assert_true(clock() - cpu < CLOCKS_PER_SEC / 100);
    limit.rlim_cur = before;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    for (int i = 0; i < CLIENTS; i++) {
        (void)close(starved_clients[i]);
    }
    env->ops->listener_destroy(other);
    listen_and_connect(env); /* and it serves again */
    run_until(env, has_stream);
}

/* Signals, stop, destroy. */

static void signal_cb(void *ctx, int signum)
{
    struct env *env = ctx;
    assert_int_equal(signum, SIGUSR1);
    env->fired++;
}

static bool has_fired(struct env *env)
{
    return env->fired > 0;
}

static void signals_arrive(void **state)
{
    struct env *env = *state;

    assert_int_equal(env->ops->signal_start(env->io, SIGUSR1, signal_cb, env), 0);
    assert_int_equal(env->ops->run(env->io), 0); /* a signal alone keeps nothing going */
    assert_int_equal(kill(getpid(), SIGUSR1), 0);
    run_until(env, has_fired);
    assert_int_equal(env->fired, 1);
    assert_true(env->ops->signal_start(env->io, SIGKILL, signal_cb, env) < 0);
}

static void a_stop_before_the_run_ends_it(void **state)
{
    struct env *env = *state;
    struct ticker ticker = {.stop_at = 100};

    ticker_start(&ticker, env, 1, 1);
    env->ops->stop(env->io);
    assert_int_equal(env->ops->run(env->io), 0);
    assert_int_equal(ticker.fired, 0);
    env->ops->stop(env->io); /* unseen by any run when it is destroyed */
}

static void never_cb(void *ctx)
{
    (void)ctx;
    fail();
}

static void destroy_closes_what_is_open(void **state)
{
    struct env *env = *state;
    struct gathered *gathered = gathered_create();
    struct stat st;

    listen_and_connect(env);
    run_until(env, has_stream);
    gathered_send(env, gathered);
    struct kvd_timer *timer = env->ops->timer_create(env->io, never_cb, NULL);
    struct kvd_timer *now = env->ops->timer_create(env->io, never_cb, NULL);
    struct kvd_wake *wake = env->ops->wake_create(env->io, never_cb, NULL);
    env->ops->timer_start(timer, 1, 1);
    env->ops->timer_start(now, 0, 0);
    env->ops->wake_send(wake);
    assert_int_equal(env->ops->signal_start(env->io, SIGUSR1, signal_cb, env), 0);
    env->ops->timer_destroy(env->step_timer); /* its handle still closes */
    env->ops->destroy(env->io);
    env->io = NULL;
    assert_int_equal(env->writes, 1);
    assert_int_equal(env->write_err, KVARN_ECANCELLED);
    assert_int_equal(stat(env->path, &st), -1); /* the socket's file went with its listener */
    gathered_destroy(gathered);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, env_setup, env_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(timers_fire_in_order_and_not_early),
        TEST(a_timer_of_0_ms_starves_nobody),
        TEST(a_timer_of_0_ms_repeats),
        TEST(a_timer_of_0_ms_can_be_stopped),
        TEST(clock_and_random),
        TEST(wakes_from_a_thread_are_merged_and_not_lost),
        TEST(wakes_reach_a_running_loop),
        TEST(unix_echo),
        TEST(tcp_echo),
        TEST(listen_failures_have_codes),
        TEST(a_large_gathered_write_to_a_slow_reader),
        TEST(a_close_cancels_the_write_first),
        TEST(a_write_to_a_peer_that_left_fails),
        TEST(a_write_refused_at_once_fails_later),
        TEST(a_close_cancels_a_refused_write_too),
        TEST(a_destroy_cancels_a_refused_write_too),
        TEST(nothing_is_read_while_stopped),
        TEST(a_listener_may_go_in_its_own_callback),
        TEST(without_descriptors_new_clients_are_refused_at_once),
        TEST(signals_arrive),
        TEST(a_stop_before_the_run_ends_it),
        TEST(destroy_closes_what_is_open),
    };
    (void)alarm(50); /* a hang fails with a signal, before the runner's own limit */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
