/*
 * Tests of server/io/io_uv.c on a real loop: listeners, streams, and what a destroy does to them.
 * test_io_uv.c has the rest.
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
#include <unistd.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <time.h>

#include "server/base/net_address.h"
#include "server/io/io.h"
#include "tests/unit/server/io/io_uv_env.h"

#define PART_BYTES     8192
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

/* Streams. */

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

static bool echo_step(struct io_env *env)
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

static bool has_end(struct io_env *env)
{
    return env->ends > 0;
}

/* Hello there and back, then the far end leaves. */
static void echo_and_leave(struct io_env *env)
{
    assert_int_equal(send(env->client, "hello", 5, 0), 5);
    io_env_run_until(env, echo_step);
    assert_int_equal(env->accepts, 1);
    assert_int_equal(env->echoed_bytes, 5);
    assert_int_equal(env->ops->stream_write_left(env->stream), 0);
    (void)close(env->client);
    env->client = -1;
    io_env_run_until(env, has_end);
    env->ops->stream_close(env->stream, io_env_closed_cb, env);
    assert_int_equal(env->closes, 0); /* never from inside */
    io_env_run_until(env, io_env_has_closed);
    assert_int_equal(env->writes, 1);
    assert_int_equal(env->closes, 1);
}

static void unix_echo(void **state)
{
    struct io_env *env = *state;
    char address[80];
    struct stat st;

    io_env_listen_and_connect(env);
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
    struct io_env *env = *state;

    assert_int_equal(
        env->ops->listen_tcp(env->io, "127.0.0.1:0", io_env_accept_cb, env, &env->listener), 0);
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
    struct io_env *env = *state;
    struct kvd_listener *listener = NULL;

    io_env_listen_and_connect(env);
    assert_int_equal(env->ops->listen_unix(env->io, env->path, io_env_accept_cb, env, &listener),
        KVARN_ECONFLICT);
    assert_int_equal(
        env->ops->listen_unix(env->io, "", io_env_accept_cb, env, &listener), KVARN_EINVALID);
    assert_int_equal(
        env->ops->listen_tcp(env->io, "nohost", io_env_accept_cb, env, &listener), KVARN_EINVALID);
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

static void gathered_send(struct io_env *env, struct gathered *gathered)
{
    env->is_echo = false;
    env->is_inside_write = true;
    env->ops->stream_write(env->stream, gathered->bufs, KVD_IO_BUFS_MAX, io_env_write_cb, env);
    env->is_inside_write = false;
    memset(gathered->bufs, 0, sizeof(gathered->bufs)); /* the array is ours again */
}

static bool slow_reader_step(struct io_env *env)
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

static bool has_written(struct io_env *env)
{
    return env->writes > 0;
}

static void a_large_gathered_write_to_a_slow_reader(void **state)
{
    struct io_env *env = *state;
    struct gathered *gathered = gathered_create();

    io_env_listen_and_connect(env);
    io_env_run_until(env, io_env_has_stream);
    gathered_send(env, gathered);
    assert_true(env->ops->stream_write_left(env->stream) > 0);
    io_env_run_until(env, slow_reader_step);
    io_env_run_until(env, has_written);
    assert_int_equal(env->writes, 1);
    assert_int_equal(env->write_err, 0);
    assert_int_equal(env->ops->stream_write_left(env->stream), 0);
    gathered_destroy(gathered);
}

static void a_close_cancels_the_write_first(void **state)
{
    struct io_env *env = *state;
    struct gathered *gathered = gathered_create();

    io_env_listen_and_connect(env);
    io_env_run_until(env, io_env_has_stream);
    gathered_send(env, gathered);
    env->ops->stream_close(env->stream, io_env_closed_cb, env);
    assert_int_equal(env->writes, 0);
    io_env_run_until(env, io_env_has_closed);
    assert_int_equal(env->writes, 1);
    assert_int_equal(env->write_err, KVARN_ECANCELLED);
    assert_int_equal(env->closes, 1);
    assert_string_equal(env->order, "wc");
    gathered_destroy(gathered);
}

static void a_write_to_a_peer_that_left_fails(void **state)
{
    struct io_env *env = *state;
    struct gathered *gathered = gathered_create();

    io_env_listen_and_connect(env);
    io_env_run_until(env, io_env_has_stream);
    env->ops->stream_read_stop(env->stream);
    (void)close(env->client);
    env->client = -1;
    gathered_send(env, gathered); /* and no SIGPIPE */
    io_env_run_until(env, has_written);
    assert_int_equal(env->writes, 1);
    assert_int_equal(env->write_err, KVARN_EIO);
    gathered_destroy(gathered);
}

static void refused_write(struct io_env *env)
{
    static const struct kvd_buf buf = {.data = "x", .bytes = 1};

    io_env_listen_and_connect(env);
    io_env_run_until(env, io_env_has_stream);
    env->is_echo = false;
    env->is_inside_write = true;
    is_uv_write_refusing = true;
    env->ops->stream_write(env->stream, &buf, 1, io_env_write_cb, env);
    is_uv_write_refusing = false;
    env->is_inside_write = false;
    assert_int_equal(env->writes, 0);
}

static void a_write_refused_at_once_fails_later(void **state)
{
    struct io_env *env = *state;

    refused_write(env);
    io_env_run_until(env, has_written);
    assert_int_equal(env->writes, 1);
    assert_int_equal(env->write_err, KVARN_EIO);
}

static void a_close_cancels_a_refused_write_too(void **state)
{
    struct io_env *env = *state;

    refused_write(env);
    env->ops->stream_close(env->stream, io_env_closed_cb, env);
    io_env_run_until(env, io_env_has_closed);
    io_env_run_until(env, io_env_has_waited);
    assert_int_equal(env->writes, 1);
    assert_true(env->write_err < 0);
    assert_string_equal(env->order, "wc");
}

static void a_destroy_cancels_a_refused_write_too(void **state)
{
    struct io_env *env = *state;

    refused_write(env);
    env->ops->destroy(env->io);
    env->io = NULL;
    assert_int_equal(env->writes, 1);
    assert_int_equal(env->write_err, KVARN_ECANCELLED);
}

static bool has_read_something(struct io_env *env)
{
    return env->reads > 0;
}

static void nothing_is_read_while_stopped(void **state)
{
    struct io_env *env = *state;

    env->is_echo = false;
    io_env_listen_and_connect(env);
    io_env_run_until(env, io_env_has_stream);
    env->ops->stream_read_stop(env->stream);
    assert_int_equal(send(env->client, "hello", 5, 0), 5);
    io_env_run_until(env, io_env_has_waited);
    assert_int_equal(env->reads, 0);
    env->ops->stream_read_start(env->stream, &io_env_echo_handler, env);
    env->ops->stream_read_start(env->stream, &io_env_echo_handler, env); /* again: harmless */
    io_env_run_until(env, has_read_something);
    assert_memory_equal(env->room, "hello", 5);
}

/* Listeners under pressure. */

#define CLIENTS 8

static void refuse_cb(void *ctx, struct kvd_stream *stream, const struct kvd_peer *peer)
{
    struct io_env *env = ctx;

    (void)peer;
    env->accepts++;
    env->ops->stream_close(stream, NULL, NULL);
    env->ops->listener_destroy(env->listener); /* with others still waiting in its queue */
    env->listener = NULL;
}

static bool has_accept(struct io_env *env)
{
    return env->accepts > 0;
}

static void a_listener_may_go_in_its_own_callback(void **state)
{
    struct io_env *env = *state;
    int fds[CLIENTS];

    assert_int_equal(env->ops->listen_unix(env->io, env->path, refuse_cb, env, &env->listener), 0);
    for (int i = 0; i < CLIENTS; i++) {
        fds[i] = io_env_connect_unix(env->path);
    }
    io_env_run_until(env, has_accept);
    io_env_run_until(env, io_env_has_waited);
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

static bool all_refused_step(struct io_env *env)
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
    struct io_env *env = *state;
    struct kvd_listener *other = NULL;
    struct rlimit limit;

    assert_int_equal(env->ops->listen_unix(env->io, env->path, accept_none_cb, env, &other), 0);
    io_env_run_until(env, io_env_has_waited); /* the loop has opened all that it needs */
    for (int i = 0; i < CLIENTS; i++) {
        starved_clients[i] = io_env_connect_unix(env->path);
    }
    int next = dup(STDIN_FILENO);
    (void)close(next);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    rlim_t before = limit.rlim_cur;
    limit.rlim_cur = (rlim_t)next;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    io_env_run_until(env, all_refused_step);

    clock_t cpu = clock();
    io_env_run_until(env, io_env_has_waited); /* some 20 ms: a loop that spins would use them all */
    assert_true(clock() - cpu < CLOCKS_PER_SEC / 100);
    limit.rlim_cur = before;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    for (int i = 0; i < CLIENTS; i++) {
        (void)close(starved_clients[i]);
    }
    env->ops->listener_destroy(other);
    io_env_listen_and_connect(env); /* and it serves again */
    io_env_run_until(env, io_env_has_stream);
}

/* Destroy. */

static void never_cb(void *ctx)
{
    (void)ctx;
    fail();
}

static void never_signal_cb(void *ctx, int signum)
{
    (void)ctx;
    (void)signum;
    fail();
}

static void destroy_closes_what_is_open(void **state)
{
    struct io_env *env = *state;
    struct gathered *gathered = gathered_create();
    struct stat st;

    io_env_listen_and_connect(env);
    io_env_run_until(env, io_env_has_stream);
    gathered_send(env, gathered);
    struct kvd_timer *timer = env->ops->timer_create(env->io, never_cb, NULL);
    struct kvd_timer *now = env->ops->timer_create(env->io, never_cb, NULL);
    struct kvd_wake *wake = env->ops->wake_create(env->io, never_cb, NULL);
    env->ops->timer_start(timer, 1, 1);
    env->ops->timer_start(now, 0, 0);
    env->ops->wake_send(wake);
    assert_int_equal(env->ops->signal_start(env->io, SIGUSR1, never_signal_cb, env), 0);
    env->ops->timer_destroy(env->step_timer); /* its handle still closes */
    env->ops->destroy(env->io);
    env->io = NULL;
    assert_int_equal(env->writes, 1);
    assert_int_equal(env->write_err, KVARN_ECANCELLED);
    assert_int_equal(stat(env->path, &st), -1); /* the socket's file went with its listener */
    gathered_destroy(gathered);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, io_env_setup, io_env_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
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
        TEST(destroy_closes_what_is_open),
    };
    (void)alarm(50); /* a hang fails with a signal, before the runner's own limit */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
