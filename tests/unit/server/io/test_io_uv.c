/*
 * Tests of server/io/io_uv.c on a real loop: clock, timers, wake-ups, signals, stop.
 * test_io_uv_stream.c has its listeners and streams.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include <cmocka.h>

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#include "server/io/io.h"
#include "tests/unit/server/io/io_uv_env.h"

/* Timers. */

struct ticker {
    struct io_env *env;
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

static void ticker_start(struct ticker *ticker, struct io_env *env, uint64_t after, uint64_t repeat)
{
    ticker->env = env;
    ticker->timer = env->ops->timer_create(env->io, ticker_cb, ticker);
    assert_non_null(ticker->timer);
    ticker->started_ns = env->ops->now_ns(env->io);
    env->ops->timer_start(ticker->timer, after, repeat);
}

static void timers_fire_in_order_and_not_early(void **state)
{
    struct io_env *env = *state;
    struct ticker late = {.stop_at = 1};
    struct ticker soon = {.stop_at = 1};
    struct ticker often = {.stop_at = 3};
    struct ticker stopped = {.stop_at = 1};

    ticker_start(&late, env, 300, 0); /* later than a busy machine stalls us */
    while (env->ops->now_ns(env->io) - late.started_ns < UINT64_C(3000000)) {
        /* The loop's own clock stands still meanwhile, and is behind. */
    }
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
    assert_true(late.fired_ns - late.started_ns > UINT64_C(299000000));
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
    struct io_env *env = *state;
    struct ticker busy = {.env = env};

    busy.timer = env->ops->timer_create(env->io, restart_cb, &busy);
    env->ops->timer_start(busy.timer, 0, 0);
    io_env_listen_and_connect(env); /* the connection is only seen by polling */
    io_env_run_until(env, io_env_has_stream);
    assert_true(busy.fired > 1);
    env->ops->timer_destroy(busy.timer);
    env->ops->listener_destroy(env->listener);
}

static void a_timer_of_0_ms_repeats(void **state)
{
    struct io_env *env = *state;
    struct ticker ticker = {.stop_at = 3};

    ticker_start(&ticker, env, 0, 1);
    assert_int_equal(ticker.fired, 0); /* never from inside */
    assert_int_equal(env->ops->run(env->io), 0);
    assert_int_equal(ticker.fired, 3);
}

static void a_timer_of_0_ms_can_be_stopped(void **state)
{
    struct io_env *env = *state;
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
    struct io_env *env = *state;
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
    struct io_env *env;
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
    struct io_env *env = *state;
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

static bool has_many_calls(struct io_env *env)
{
    return env->fired >= 3;
}

static void count_cb(void *ctx)
{
    struct io_env *env = ctx;
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
    struct io_env *env = *state;
    struct waker waker = {.env = env};
    pthread_t thread;

    waker.wake = env->ops->wake_create(env->io, count_cb, env);
    assert_int_equal(pthread_create(&thread, NULL, sender_run, &waker), 0);
    io_env_run_until(env, has_many_calls);
    atomic_store(&waker.sent, 1);
    assert_int_equal(pthread_join(thread, NULL), 0);
    unsigned before = env->fired;
    env->ops->wake_send(waker.wake);
    env->ops->wake_destroy(waker.wake); /* no callback after it, even of one that is pending */
    env->ops->timer_destroy(env->step_timer);
    assert_int_equal(env->ops->run(env->io), 0);
    assert_int_equal(env->fired, before);
}

/* Signals, stop, destroy. */

static void signal_cb(void *ctx, int signum)
{
    struct io_env *env = ctx;
    assert_int_equal(signum, SIGUSR1);
    env->fired++;
}

static bool has_fired(struct io_env *env)
{
    return env->fired > 0;
}

static void signals_arrive(void **state)
{
    struct io_env *env = *state;

    assert_int_equal(env->ops->signal_start(env->io, SIGUSR1, signal_cb, env), 0);
    assert_int_equal(env->ops->run(env->io), 0); /* a signal alone keeps nothing going */
    assert_int_equal(kill(getpid(), SIGUSR1), 0);
    io_env_run_until(env, has_fired);
    assert_int_equal(env->fired, 1);
    assert_true(env->ops->signal_start(env->io, SIGKILL, signal_cb, env) < 0);
}

static void a_stop_before_the_run_ends_it(void **state)
{
    struct io_env *env = *state;
    struct ticker ticker = {.stop_at = 100};

    ticker_start(&ticker, env, 1, 1);
    env->ops->stop(env->io);
    assert_int_equal(env->ops->run(env->io), 0);
    assert_int_equal(ticker.fired, 0);
    env->ops->stop(env->io); /* unseen by any run when it is destroyed */
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, io_env_setup, io_env_teardown)

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
        TEST(signals_arrive),
        TEST(a_stop_before_the_run_ends_it),
    };
    (void)alarm(50); /* a hang fails with a signal, before the runner's own limit */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
