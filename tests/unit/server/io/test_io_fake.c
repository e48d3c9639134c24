/*
 * Tests of tests/support/io_fake.c: it must keep the promises of server/io/io.h, or tests on it
 * prove nothing.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <pthread.h>
#include <signal.h>

#include "tests/support/io_fake.h"

struct env {
    struct kvd_io_fake *fake;
    struct kvd_io *io;
    const struct kvd_io_ops *ops;
    struct kvd_listener *listener;
    struct kvd_stream *stream;
    struct kvd_timer *timer;
    char room[4];
    char got[64];
    size_t got_bytes;
    unsigned fired, reads, ends;
    int read_err, write_err;
    char order[32];
    bool is_closing_on_read, is_stopping_on_read;
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
    env->fake = kvd_io_fake_create(7);
    assert_non_null(env->fake);
    env->io = kvd_io_fake_io(env->fake);
    env->ops = env->io->ops;
    *state = env;
    return 0;
}

static int env_teardown(void **state)
{
    struct env *env = *state;

    if (env->io != NULL) {
        env->ops->destroy(env->io);
    }
    free(env);
    return 0;
}

static void letter_a_cb(void *ctx)
{
    order_add(ctx, 'a');
}

static void letter_b_cb(void *ctx)
{
    order_add(ctx, 'b');
}

static void letter_c_cb(void *ctx)
{
    order_add(ctx, 'c');
}

static void timers_fire_in_order_of_time(void **state)
{
    struct env *env = *state;
    struct kvd_timer *a = env->ops->timer_create(env->io, letter_a_cb, env);
    struct kvd_timer *b = env->ops->timer_create(env->io, letter_b_cb, env);
    struct kvd_timer *c = env->ops->timer_create(env->io, letter_c_cb, env);
    uint64_t start_ns = env->ops->now_ns(env->io);

    env->ops->timer_start(a, 30, 0);
    env->ops->timer_start(b, 10, 15);
    env->ops->timer_start(c, 25, 0);
    kvd_io_fake_advance_ms(env->fake, 9);
    assert_string_equal(env->order, "");
    kvd_io_fake_advance_ms(env->fake, 31);
    assert_string_equal(env->order, "bcbab"); /* 10, 25, 25, 30, 40: by time, then by start */
    assert_int_equal(env->ops->now_ns(env->io) - start_ns, UINT64_C(40000000));
    env->ops->timer_stop(b);
    kvd_io_fake_advance_ms(env->fake, 100);
    assert_string_equal(env->order, "bcbab");
    env->ops->timer_destroy(a);
    env->ops->timer_destroy(NULL);
}

static void again_cb(void *ctx)
{
    struct env *env = ctx;
    if (++env->fired < 5) {
        env->ops->timer_start(env->timer, 0, 0);
    }
}

static void a_timer_of_0_ms_fires_once_a_turn(void **state)
{
    struct env *env = *state;

    env->timer = env->ops->timer_create(env->io, again_cb, env);
    env->ops->timer_start(env->timer, 0, 0);
    assert_int_equal(env->fired, 0);
    assert_true(kvd_io_fake_turn(env->fake));
    assert_int_equal(env->fired, 1);
    assert_true(kvd_io_fake_turn(env->fake));
    assert_int_equal(env->fired, 2);
    kvd_io_fake_settle(env->fake);
    assert_int_equal(env->fired, 5);
    assert_false(kvd_io_fake_turn(env->fake));
}

static void random_follows_the_seed(void **state)
{
    struct env *env = *state;
    struct kvd_io *same = kvd_io_fake_io(kvd_io_fake_create(7));
    struct kvd_io *other = kvd_io_fake_io(kvd_io_fake_create(8));
    uint8_t bytes[3][16];

    assert_int_equal(env->ops->random(env->io, bytes[0], 16), 0);
    assert_int_equal(same->ops->random(same, bytes[1], 16), 0);
    assert_int_equal(other->ops->random(other, bytes[2], 16), 0);
    assert_memory_equal(bytes[0], bytes[1], 16);
    assert_memory_not_equal(bytes[0], bytes[2], 16);
    same->ops->destroy(same);
    other->ops->destroy(other);
}

static void *send_run(void *ctx)
{
    struct kvd_wake *wake = ((void **)ctx)[0];
    const struct kvd_io_ops *ops = ((void **)ctx)[1];

    ops->wake_send(wake);
    ops->wake_send(wake);
    return NULL;
}

static void wakes_come_at_a_turn_and_merge(void **state)
{
    struct env *env = *state;
    struct kvd_wake *wake = env->ops->wake_create(env->io, letter_a_cb, env);
    void *ctx[2] = {wake, (void *)(uintptr_t)env->ops};
    pthread_t thread;

    assert_false(kvd_io_fake_wait(env->fake, 1));
    assert_int_equal(pthread_create(&thread, NULL, send_run, ctx), 0);
    assert_true(kvd_io_fake_wait(env->fake, 20000));
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_string_equal(env->order, "");
    kvd_io_fake_settle(env->fake);
    assert_string_equal(env->order, "a");
    env->ops->wake_send(wake);
    env->ops->wake_destroy(wake);
    assert_false(kvd_io_fake_turn(env->fake));
}

static void read_buffer_cb(void *ctx, void **ret_data, size_t *ret_bytes)
{
    struct env *env = ctx;
    *ret_data = env->room;
    *ret_bytes = sizeof(env->room);
}

static void stream_closed_cb(void *ctx)
{
    struct env *env = ctx;
    env->stream = NULL;
    order_add(env, 'c');
}

static void read_cb(void *ctx, ssize_t bytes)
{
    struct env *env = ctx;

    env->reads++;
    if (bytes <= 0) {
        env->ends += bytes == 0 ? 1 : 0;
        env->read_err = (int)bytes;
        return;
    }
    assert_true(env->got_bytes + (size_t)bytes < sizeof(env->got));
    memcpy(env->got + env->got_bytes, env->room, (size_t)bytes);
    env->got_bytes += (size_t)bytes;
    if (env->is_stopping_on_read) {
        env->ops->stream_read_stop(env->stream);
    }
    if (env->is_closing_on_read) {
        env->ops->stream_close(env->stream, stream_closed_cb, env);
    }
}

static const struct kvd_stream_handler handler = {read_buffer_cb, read_cb};

static void write_cb(void *ctx, int err)
{
    struct env *env = ctx;
    env->write_err = err;
    order_add(env, 'w');
}

static void accept_cb(void *ctx, struct kvd_stream *stream, const struct kvd_peer *peer)
{
    struct env *env = ctx;

    assert_true(peer->text[0] != '\0');
    env->stream = stream;
    env->ops->stream_read_start(stream, &handler, env);
}

static struct kvd_fake_peer *env_connect(struct env *env)
{
    assert_int_equal(env->ops->listen_unix(env->io, "/k", accept_cb, env, &env->listener), 0);
    struct kvd_fake_peer *peer = kvd_io_fake_connect(env->fake, "unix:/k", NULL);
    assert_non_null(peer);
    assert_non_null(env->stream);
    return peer;
}

static void listeners_have_addresses(void **state)
{
    struct env *env = *state;
    struct kvd_listener *tcp = NULL;
    struct kvd_listener *second = NULL;

    assert_null(kvd_io_fake_connect(env->fake, NULL, NULL));
    assert_int_equal(env->ops->listen_tcp(env->io, "127.0.0.1:0", accept_cb, env, &tcp), 0);
    const char *address = env->ops->listener_address(tcp);
    assert_string_equal(address, "tcp:127.0.0.1:40000");
    assert_int_equal(
        env->ops->listen_tcp(env->io, address + 4, accept_cb, env, &second), KVARN_ECONFLICT);
    assert_null(kvd_io_fake_connect(env->fake, "unix:/k", NULL));
    struct kvd_fake_peer *peer = kvd_io_fake_connect(env->fake, address, NULL);
    assert_non_null(peer);
    env->ops->listener_destroy(tcp);
    assert_null(kvd_io_fake_connect(env->fake, NULL, NULL));
    kvd_fake_peer_free(peer);
}

static void bytes_come_as_the_buffer_takes_them(void **state)
{
    struct env *env = *state;
    struct kvd_fake_peer *peer = env_connect(env);

    assert_int_equal(kvd_fake_peer_send(peer, "hello, io", 9), 9);
    assert_int_equal(env->reads, 3); /* 4 + 4 + 1 */
    kvd_fake_peer_set_piece(peer, 1);
    assert_int_equal(kvd_fake_peer_send(peer, "xyz", 3), 3);
    assert_int_equal(env->reads, 6);
    assert_string_equal(env->got, "hello, ioxyz");
    kvd_fake_peer_free(peer);
}

static void nothing_comes_while_reading_is_stopped(void **state)
{
    struct env *env = *state;
    struct kvd_fake_peer *peer = env_connect(env);

    env->is_stopping_on_read = true;
    assert_int_equal(kvd_fake_peer_send(peer, "hello", 5), 4);
    assert_false(kvd_fake_peer_is_read(peer));
    assert_int_equal(kvd_fake_peer_send(peer, "o", 1), 0);
    assert_false(kvd_fake_peer_end(peer));
    env->ops->stream_read_start(env->stream, &handler, env);
    assert_int_equal(kvd_fake_peer_send(peer, "o", 1), 1);
    env->ops->stream_read_start(env->stream, &handler, env);
    assert_true(kvd_fake_peer_end(peer));
    assert_int_equal(env->ends, 1);
    kvd_fake_peer_free(peer);
}

static void writes_end_at_the_next_turn(void **state)
{
    struct env *env = *state;
    struct kvd_fake_peer *peer = env_connect(env);
    const struct kvd_buf bufs[3] = {{"ab", 2}, {"", 0}, {"cde", 3}};
    size_t bytes;

    env->ops->stream_write(env->stream, bufs, 3, write_cb, env);
    assert_string_equal(env->order, "");
    assert_int_equal(env->ops->stream_write_left(env->stream), 5);
    assert_true(kvd_io_fake_turn(env->fake));
    assert_string_equal(env->order, "w");
    assert_int_equal(env->write_err, 0);
    assert_int_equal(env->ops->stream_write_left(env->stream), 0);
    assert_memory_equal(kvd_fake_peer_received(peer, &bytes), "abcde", 5);
    assert_int_equal(bytes, 5);
    kvd_fake_peer_drop(peer, 2);
    assert_memory_equal(kvd_fake_peer_received(peer, &bytes), "cde", 3);
    assert_int_equal(bytes, 3);
    kvd_fake_peer_free(peer);
}

static void a_slow_reader_takes_its_rate(void **state)
{
    struct env *env = *state;
    struct kvd_fake_peer *peer = env_connect(env);
    const struct kvd_buf bufs[2] = {{"abcd", 4}, {"efg", 3}};
    size_t bytes;

    kvd_fake_peer_set_rate(peer, 0);
    env->ops->stream_write(env->stream, bufs, 2, write_cb, env);
    kvd_io_fake_settle(env->fake); /* comes to rest, stalled */
    assert_int_equal(env->ops->stream_write_left(env->stream), 7);
    kvd_fake_peer_set_rate(peer, 3);
    assert_true(kvd_io_fake_turn(env->fake));
    assert_int_equal(env->ops->stream_write_left(env->stream), 4);
    assert_true(kvd_io_fake_turn(env->fake));
    assert_int_equal(env->ops->stream_write_left(env->stream), 1);
    assert_string_equal(env->order, "");
    assert_true(kvd_io_fake_turn(env->fake));
    assert_string_equal(env->order, "w");
    assert_memory_equal(kvd_fake_peer_received(peer, &bytes), "abcdefg", 7);
    assert_int_equal(bytes, 7);
    kvd_fake_peer_free(peer);
}

static void a_close_cancels_the_write_first(void **state)
{
    struct env *env = *state;
    struct kvd_fake_peer *peer = env_connect(env);
    const struct kvd_buf buf = {"ab", 2};
    size_t bytes;

    env->ops->stream_write(env->stream, &buf, 1, write_cb, env);
    env->ops->stream_close(env->stream, stream_closed_cb, env);
    assert_string_equal(env->order, "");
    assert_false(kvd_fake_peer_is_closed(peer));
    kvd_io_fake_settle(env->fake);
    assert_string_equal(env->order, "wc");
    assert_int_equal(env->write_err, KVARN_ECANCELLED);
    assert_true(kvd_fake_peer_is_closed(peer));
    assert_int_equal(kvd_fake_peer_send(peer, "x", 1), 0);
    (void)kvd_fake_peer_received(peer, &bytes);
    assert_int_equal(bytes, 0);
    kvd_fake_peer_free(peer);
}

static void a_close_from_the_read_callback(void **state)
{
    struct env *env = *state;
    struct kvd_fake_peer *peer = env_connect(env);

    env->is_closing_on_read = true;
    assert_int_equal(kvd_fake_peer_send(peer, "hello", 5), 4);
    kvd_io_fake_settle(env->fake);
    assert_string_equal(env->order, "c");
    kvd_fake_peer_free(peer);
}

static void a_broken_connection_fails_both_ways(void **state)
{
    struct env *env = *state;
    struct kvd_fake_peer *peer = env_connect(env);
    const struct kvd_buf buf = {"ab", 2};

    kvd_fake_peer_break(peer);
    assert_int_equal(env->read_err, KVARN_EIO);
    env->ops->stream_write(env->stream, &buf, 1, write_cb, env);
    kvd_io_fake_settle(env->fake);
    assert_int_equal(env->write_err, KVARN_EIO);
    kvd_fake_peer_free(peer);
}

static void a_peer_may_be_freed_first(void **state)
{
    struct env *env = *state;
    struct kvd_fake_peer *peer = kvd_io_fake_open(env->fake, &env->stream);
    const struct kvd_buf buf = {"ab", 2};

    kvd_fake_peer_free(peer);
    kvd_fake_peer_free(NULL);
    env->ops->stream_write(env->stream, &buf, 1, write_cb, env);
    kvd_io_fake_settle(env->fake);
    assert_int_equal(env->write_err, 0); /* sent into the void, as a kernel would */
}

static void letter_s_cb(void *ctx, int signum)
{
    assert_int_equal(signum, SIGTERM);
    order_add(ctx, 's');
    struct env *env = ctx;
    env->ops->stop(env->io);
}

static void signals_and_stop(void **state)
{
    struct env *env = *state;

    assert_int_equal(env->ops->signal_start(env->io, SIGTERM, letter_s_cb, env), 0);
    assert_int_equal(kvd_io_fake_raise(env->fake, SIGINT), 0);
    assert_int_equal(kvd_io_fake_raise(env->fake, SIGTERM), 1);
    assert_string_equal(env->order, "s");
    assert_true(kvd_io_fake_is_stopped(env->fake));
    assert_int_equal(env->ops->run(env->io), 0);
    assert_false(kvd_io_fake_is_stopped(env->fake));
}

static void destroy_closes_what_is_open(void **state)
{
    struct env *env = *state;
    struct kvd_fake_peer *peer = env_connect(env);
    const struct kvd_buf buf = {"ab", 2};

    env->ops->stream_write(env->stream, &buf, 1, write_cb, env);
    (void)env->ops->timer_create(env->io, letter_a_cb, env);
    (void)env->ops->wake_create(env->io, letter_a_cb, env);
    assert_int_equal(env->ops->signal_start(env->io, SIGTERM, letter_s_cb, env), 0);
    env->ops->destroy(env->io);
    env->io = NULL;
    assert_string_equal(env->order, "w");
    assert_int_equal(env->write_err, KVARN_ECANCELLED);
    assert_true(kvd_fake_peer_is_closed(peer));
    kvd_fake_peer_free(peer);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, env_setup, env_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(timers_fire_in_order_of_time),
        TEST(a_timer_of_0_ms_fires_once_a_turn),
        TEST(random_follows_the_seed),
        TEST(wakes_come_at_a_turn_and_merge),
        TEST(listeners_have_addresses),
        TEST(bytes_come_as_the_buffer_takes_them),
        TEST(nothing_comes_while_reading_is_stopped),
        TEST(writes_end_at_the_next_turn),
        TEST(a_slow_reader_takes_its_rate),
        TEST(a_close_cancels_the_write_first),
        TEST(a_close_from_the_read_callback),
        TEST(a_broken_connection_fails_both_ways),
        TEST(a_peer_may_be_freed_first),
        TEST(signals_and_stop),
        TEST(destroy_closes_what_is_open),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
