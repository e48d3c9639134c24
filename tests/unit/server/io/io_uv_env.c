/* The io on libuv between a near end that echoes and a far end, for its tests. */
#include "tests/unit/server/io/io_uv_env.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#define STEPS_MAX 20000 /* of a millisecond: a test that gets there has hung */

static void order_add(struct io_env *env, char letter)
{
    size_t bytes = strlen(env->order);
    assert_true(bytes + 1 < sizeof(env->order));
    env->order[bytes] = letter;
}

int io_env_setup(void **state)
{
    struct io_env *env = calloc(1, sizeof(*env));

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

int io_env_teardown(void **state)
{
    struct io_env *env = *state;

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
    struct io_env *env = ctx;

    assert_true(env->steps++ < STEPS_MAX);
    if (env->step(env)) {
        env->ops->timer_stop(env->step_timer);
        env->ops->stop(env->io);
    }
}

void io_env_run_until(struct io_env *env, bool (*step)(struct io_env *env))
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
    struct io_env *env = ctx;
    *ret_data = env->room;
    *ret_bytes = sizeof(env->room);
}

static void echo_read_cb(void *ctx, ssize_t bytes)
{
    struct io_env *env = ctx;

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
        env->ops->stream_write(env->stream, &buf, 1, io_env_write_cb, env);
        env->is_inside_write = false;
    }
}

const struct kvd_stream_handler io_env_echo_handler = {echo_buffer_cb, echo_read_cb};

void io_env_write_cb(void *ctx, int err)
{
    struct io_env *env = ctx;

    assert_false(env->is_inside_write);
    env->writes++;
    env->write_err = err;
    order_add(env, 'w');
    if (env->is_echo && err == 0) {
        env->ops->stream_read_start(env->stream, &io_env_echo_handler, env);
    }
}

void io_env_closed_cb(void *ctx)
{
    struct io_env *env = ctx;

    env->stream = NULL;
    env->closes++;
    order_add(env, 'c');
}

void io_env_accept_cb(void *ctx, struct kvd_stream *stream, const struct kvd_peer *peer)
{
    struct io_env *env = ctx;

    assert_null(env->stream);
    env->accepts++;
    env->stream = stream;
    env->peer = *peer;
    env->ops->stream_read_start(stream, &io_env_echo_handler, env);
}

/* Far end. */

int io_env_connect_unix(const char *path)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    assert_true(fd >= 0);
    assert_true(strlen(path) < sizeof(name.sun_path));
    memcpy(name.sun_path, path, strlen(path));
    assert_int_equal(connect(fd, (const struct sockaddr *)(const void *)&name, sizeof(name)), 0);
    return fd;
}

void io_env_listen_and_connect(struct io_env *env)
{
    assert_int_equal(
        env->ops->listen_unix(env->io, env->path, io_env_accept_cb, env, &env->listener), 0);
    env->client = io_env_connect_unix(env->path);
}

bool io_env_has_stream(struct io_env *env)
{
    return env->stream != NULL;
}

bool io_env_has_waited(struct io_env *env)
{
    return env->steps > 20;
}

bool io_env_has_closed(struct io_env *env)
{
    return env->closes > 0;
}
