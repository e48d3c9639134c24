/*
 * The io in memory.
 *
 * Thread: one, except fake_wake_send(). Callbacks may create and destroy any object, so no list is
 * walked across a callback: each step looks again for the first object that this turn has not
 * served.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "lib/base/assert.h"
#include "tests/support/io_fake_impl.h"

#define NS_PER_MS      UINT64_C(1000000)
#define START_NS       UINT64_C(1000000000)
#define TURNS_MAX      1000000 /* a loop that has not come to rest by then never will */
#define FIRST_TCP_PORT 40000

struct kvd_timer {
    LIST_ENTRY(kvd_timer) link;
    struct kvd_io_fake *fake; /* borrowed */
    kvd_io_cb cb;
    void *ctx; /* borrowed */
    uint64_t due_ns, repeat_ns;
    uint64_t started; /* sequence: orders timers of one instant */
    uint64_t turn;    /* in which it was started */
    bool is_armed;
};

struct kvd_wake {
    LIST_ENTRY(kvd_wake) link;
    struct kvd_io_fake *fake; /* borrowed */
    kvd_io_cb cb;
    void *ctx;       /* borrowed */
    bool is_pending; /* under the fake's mutex */
    uint64_t turn;   /* the last that called it */
};

struct kvd_listener {
    LIST_ENTRY(kvd_listener) link;
    kvd_accept_cb cb;
    void *ctx; /* borrowed */
    char address[160];
};

struct fake_signal {
    LIST_ENTRY(fake_signal) link;
    int signum;
    kvd_signal_cb cb;
    void *ctx; /* borrowed */
};

static struct kvd_io_fake *fake_of(struct kvd_io *io)
{
    return (struct kvd_io_fake *)(void *)io;
}

void *kvd_io_fake__calloc(size_t bytes)
{
    void *memory = calloc(1, bytes);
    KVARN_ASSERT(memory != NULL);
    return memory;
}

/* Clock and random bytes. */

static uint64_t cpu_ns(void)
{
    struct timespec now;

    KVARN_ASSERT(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) == 0);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

static uint64_t fake_now_ns(struct kvd_io *io)
{
    struct kvd_io_fake *fake = fake_of(io);

    fake->now_ns += fake->tick_ns;
    if (fake->is_running) {
        uint64_t now_ns = cpu_ns();
        fake->now_ns += now_ns - fake->cpu_ns;
        fake->cpu_ns = now_ns;
    }
    return fake->now_ns;
}

void kvd_io_fake_run_clock(struct kvd_io_fake *fake)
{
    fake->is_running = true;
    fake->cpu_ns = cpu_ns();
}

uint64_t kvd_io_fake_longest_ns(struct kvd_io_fake *fake)
{
    uint64_t longest_ns = fake->callback_longest_ns;

    fake->callback_longest_ns = 0;
    return longest_ns;
}

void kvd_io_fake__callback_begin(struct kvd_io_fake *fake)
{
    if (fake->is_running) {
        fake->callback_ns = cpu_ns();
    }
}

void kvd_io_fake__callback_end(struct kvd_io_fake *fake)
{
    if (fake->is_running) {
        uint64_t took_ns = cpu_ns() - fake->callback_ns;
        fake->callback_longest_ns =
            took_ns > fake->callback_longest_ns ? took_ns : fake->callback_longest_ns;
    }
}

void kvd_io_fake_set_tick(struct kvd_io_fake *fake, uint64_t ns)
{
    fake->tick_ns = ns;
}

static int fake_random(struct kvd_io *io, void *dst, size_t bytes)
{
    struct kvd_io_fake *fake = fake_of(io);
    uint8_t *out = dst;

    for (size_t i = 0; i < bytes; i++) {
        /* splitmix64 */
        fake->random_state += UINT64_C(0x9e3779b97f4a7c15);
        uint64_t z = fake->random_state;
        z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
        out[i] = (uint8_t)(z >> 56);
    }
    return 0;
}

/* Timers. */

static struct kvd_timer *fake_timer_create(struct kvd_io *io, kvd_io_cb cb, void *ctx)
{
    struct kvd_timer *timer = kvd_io_fake__calloc(sizeof(*timer));

    timer->fake = fake_of(io);
    timer->cb = cb;
    timer->ctx = ctx;
    LIST_INSERT_HEAD(&timer->fake->timers, timer, link);
    return timer;
}

static void fake_timer_start(struct kvd_timer *timer, uint64_t after_ms, uint64_t repeat_ms)
{
    timer->due_ns = timer->fake->now_ns + after_ms * NS_PER_MS;
    timer->repeat_ns = repeat_ms * NS_PER_MS;
    timer->started = timer->fake->started++;
    timer->turn = timer->fake->turn;
    timer->is_armed = true;
}

static void fake_timer_stop(struct kvd_timer *timer)
{
    timer->is_armed = false;
}

static void fake_timer_destroy(struct kvd_timer *timer)
{
    if (timer != NULL) {
        LIST_REMOVE(timer, link);
        free(timer);
    }
}

/* The next timer due by `until_ns`, of those started before this turn or of all. */
static struct kvd_timer *timer_next(
    const struct kvd_io_fake *fake, uint64_t until_ns, uint64_t turn_end)
{
    struct kvd_timer *timer;
    struct kvd_timer *best = NULL;

    LIST_FOREACH(timer, &fake->timers, link)
    {
        if (!timer->is_armed || timer->due_ns > until_ns || timer->turn >= turn_end) {
            continue;
        }
        if (best == NULL || timer->due_ns < best->due_ns ||
            (timer->due_ns == best->due_ns && timer->started < best->started)) {
            best = timer;
        }
    }
    return best;
}

static void timer_fire(struct kvd_timer *timer)
{
    struct kvd_io_fake *fake = timer->fake;

    if (timer->due_ns > fake->now_ns) {
        fake->now_ns = timer->due_ns;
    }
    timer->is_armed = timer->repeat_ns > 0;
    timer->due_ns += timer->repeat_ns;
    timer->turn = fake->turn;
    timer->started = fake->started++;
    kvd_io_fake__callback_begin(fake);
    timer->cb(timer->ctx);
    kvd_io_fake__callback_end(fake);
}

void kvd_io_fake_advance_ms(struct kvd_io_fake *fake, uint64_t ms)
{
    uint64_t until_ns = fake->now_ns + ms * NS_PER_MS;
    struct kvd_timer *timer;
    unsigned fired = 0;

    while ((timer = timer_next(fake, until_ns, UINT64_MAX)) != NULL) {
        KVARN_ASSERT(fired++ < TURNS_MAX);
        timer_fire(timer);
    }
    fake->now_ns = until_ns;
}

/* Wake-ups. */

static struct kvd_wake *fake_wake_create(struct kvd_io *io, kvd_io_cb cb, void *ctx)
{
    struct kvd_wake *wake = kvd_io_fake__calloc(sizeof(*wake));

    wake->fake = fake_of(io);
    wake->cb = cb;
    wake->ctx = ctx;
    LIST_INSERT_HEAD(&wake->fake->wakes, wake, link);
    return wake;
}

static void fake_wake_send(struct kvd_wake *wake)
{
    struct kvd_io_fake *fake = wake->fake;

    (void)pthread_mutex_lock(&fake->mutex);
    wake->is_pending = true;
    (void)pthread_cond_signal(&fake->woken);
    (void)pthread_mutex_unlock(&fake->mutex);
}

static void fake_wake_destroy(struct kvd_wake *wake)
{
    if (wake != NULL) {
        LIST_REMOVE(wake, link);
        free(wake);
    }
}

/* Under the mutex: the first pending one that was last called before `turn_end`. */
static struct kvd_wake *wake_pending(const struct kvd_io_fake *fake, uint64_t turn_end)
{
    struct kvd_wake *wake;

    LIST_FOREACH(wake, &fake->wakes, link)
    {
        if (wake->is_pending && wake->turn < turn_end) {
            break;
        }
    }
    return wake;
}

static struct kvd_wake *wake_take(struct kvd_io_fake *fake)
{
    (void)pthread_mutex_lock(&fake->mutex);
    struct kvd_wake *wake = wake_pending(fake, fake->turn);
    if (wake != NULL) {
        wake->turn = fake->turn;
        wake->is_pending = false;
    }
    (void)pthread_mutex_unlock(&fake->mutex);
    return wake;
}

bool kvd_io_fake_wait(struct kvd_io_fake *fake, unsigned timeout_ms)
{
    struct timespec until;
    int rc = 0;

    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * (long)NS_PER_MS;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000L;
    }
    (void)pthread_mutex_lock(&fake->mutex);
    while (wake_pending(fake, UINT64_MAX) == NULL && rc == 0) {
        rc = pthread_cond_timedwait(&fake->woken, &fake->mutex, &until);
    }
    bool is_pending = wake_pending(fake, UINT64_MAX) != NULL;
    (void)pthread_mutex_unlock(&fake->mutex);
    return is_pending;
}

/* Listeners and signals. */

static struct kvd_listener *listener_find(const struct kvd_io_fake *fake, const char *address)
{
    struct kvd_listener *listener;

    LIST_FOREACH(listener, &fake->listeners, link)
    {
        if (address == NULL || strcmp(listener->address, address) == 0) {
            break;
        }
    }
    return listener;
}

static int listener_add(struct kvd_io_fake *fake, struct kvd_listener *listener, kvd_accept_cb cb,
    void *ctx, struct kvd_listener **ret)
{
    if (listener_find(fake, listener->address) != NULL) {
        free(listener);
        return KVARN_ECONFLICT;
    }
    listener->cb = cb;
    listener->ctx = ctx;
    LIST_INSERT_HEAD(&fake->listeners, listener, link);
    *ret = listener;
    return 0;
}

static int fake_listen_unix(
    struct kvd_io *io, const char *path, kvd_accept_cb cb, void *ctx, struct kvd_listener **ret)
{
    struct kvd_listener *listener = kvd_io_fake__calloc(sizeof(*listener));

    (void)snprintf(listener->address, sizeof(listener->address), "unix:%s", path);
    return listener_add(fake_of(io), listener, cb, ctx, ret);
}

static int fake_listen_tcp(struct kvd_io *io, const char *host_port, kvd_accept_cb cb, void *ctx,
    struct kvd_listener **ret)
{
    struct kvd_io_fake *fake = fake_of(io);
    struct kvd_listener *listener = kvd_io_fake__calloc(sizeof(*listener));
    const char *colon = strrchr(host_port, ':');

    KVARN_ASSERT(colon != NULL);
    if (strcmp(colon, ":0") == 0) {
        (void)snprintf(listener->address, sizeof(listener->address), "tcp:%.*s:%u",
            (int)(colon - host_port), host_port, fake->tcp_port++);
    } else {
        (void)snprintf(listener->address, sizeof(listener->address), "tcp:%s", host_port);
    }
    return listener_add(fake, listener, cb, ctx, ret);
}

static const char *fake_listener_address(const struct kvd_listener *listener)
{
    return listener->address;
}

static void fake_listener_destroy(struct kvd_listener *listener)
{
    if (listener != NULL) {
        LIST_REMOVE(listener, link);
        free(listener);
    }
}

static int fake_signal_start(struct kvd_io *io, int signum, kvd_signal_cb cb, void *ctx)
{
    struct fake_signal *watch = kvd_io_fake__calloc(sizeof(*watch));

    watch->signum = signum;
    watch->cb = cb;
    watch->ctx = ctx;
    LIST_INSERT_HEAD(&fake_of(io)->signals, watch, link);
    return 0;
}

/* Watches are never removed before the fake is destroyed, so this walk is safe. */
unsigned kvd_io_fake_raise(struct kvd_io_fake *fake, int signum)
{
    struct fake_signal *watch;
    unsigned count = 0;

    LIST_FOREACH(watch, &fake->signals, link)
    {
        if (watch->signum == signum) {
            watch->cb(watch->ctx, signum);
            count++;
        }
    }
    return count;
}

bool kvd_io_fake_turn(struct kvd_io_fake *fake)
{
    bool did_something = false;
    struct kvd_wake *wake;
    struct kvd_timer *timer;

    KVARN_ASSERT(!fake->is_turning);
    fake->is_turning = true;
    fake->turn++;
    while ((wake = wake_take(fake)) != NULL) {
        kvd_io_fake__callback_begin(fake);
        wake->cb(wake->ctx);
        kvd_io_fake__callback_end(fake);
        did_something = true;
    }
    while ((timer = timer_next(fake, fake->now_ns, fake->turn)) != NULL) {
        timer_fire(timer);
        did_something = true;
    }
    if (kvd_io_fake__files_turn(fake)) {
        did_something = true;
    }
    if (kvd_io_fake__streams_turn(fake)) {
        did_something = true;
    }
    fake->is_turning = false;
    return did_something;
}

void kvd_io_fake_settle(struct kvd_io_fake *fake)
{
    unsigned turns = 0;

    while (kvd_io_fake_turn(fake)) {
        KVARN_ASSERT(turns++ < TURNS_MAX);
    }
}

struct kvd_fake_peer *kvd_io_fake_connect(
    struct kvd_io_fake *fake, const char *address, const struct kvd_peer *who)
{
    struct kvd_listener *listener = listener_find(fake, address);
    struct kvd_peer own = kvd_io_fake_who();
    struct kvd_stream *stream;

    if (listener == NULL) {
        return NULL;
    }
    struct kvd_fake_peer *peer = kvd_io_fake_open(fake, &stream);
    listener->cb(listener->ctx, stream, who != NULL ? who : &own);
    return peer;
}

/* The loop. */

static int fake_run(struct kvd_io *io)
{
    struct kvd_io_fake *fake = fake_of(io);
    unsigned turns = 0;

    while (!fake->is_stopped && kvd_io_fake_turn(fake)) {
        KVARN_ASSERT(turns++ < TURNS_MAX);
    }
    fake->is_stopped = false;
    return 0;
}

static void fake_stop(struct kvd_io *io)
{
    fake_of(io)->is_stopped = true;
}

bool kvd_io_fake_is_stopped(const struct kvd_io_fake *fake)
{
    return fake->is_stopped;
}

static void fake_destroy(struct kvd_io *io)
{
    struct kvd_io_fake *fake = fake_of(io);
    struct fake_signal *watch;

    KVARN_ASSERT(!fake->is_turning);
    kvd_io_fake__files_drain(fake);
    while (!LIST_EMPTY(&fake->streams)) {
        kvd_io_fake__stream_free(LIST_FIRST(&fake->streams));
    }
    while (!LIST_EMPTY(&fake->timers)) {
        fake_timer_destroy(LIST_FIRST(&fake->timers));
    }
    while (!LIST_EMPTY(&fake->wakes)) {
        fake_wake_destroy(LIST_FIRST(&fake->wakes));
    }
    while (!LIST_EMPTY(&fake->listeners)) {
        fake_listener_destroy(LIST_FIRST(&fake->listeners));
    }
    while ((watch = LIST_FIRST(&fake->signals)) != NULL) {
        LIST_REMOVE(watch, link);
        free(watch);
    }
    (void)pthread_cond_destroy(&fake->woken);
    (void)pthread_mutex_destroy(&fake->mutex);
    free(fake);
}

static const struct kvd_io_ops fake_ops = {
    .now_ns = fake_now_ns,
    .random = fake_random,
    .timer_create = fake_timer_create,
    .timer_start = fake_timer_start,
    .timer_stop = fake_timer_stop,
    .timer_destroy = fake_timer_destroy,
    .wake_create = fake_wake_create,
    .wake_send = fake_wake_send,
    .wake_destroy = fake_wake_destroy,
    .listen_unix = fake_listen_unix,
    .listen_tcp = fake_listen_tcp,
    .listener_address = fake_listener_address,
    .listener_destroy = fake_listener_destroy,
    .stream_read_start = kvd_io_fake__read_start,
    .stream_read_stop = kvd_io_fake__read_stop,
    .stream_write = kvd_io_fake__write,
    .stream_write_left = kvd_io_fake__write_left,
    .stream_close = kvd_io_fake__close,
    .signal_start = fake_signal_start,
    .file_submit = kvd_io_fake__file_submit,
    .file_run = kvd_io_fake__file_run,
    .run = fake_run,
    .stop = fake_stop,
    .destroy = fake_destroy,
};

struct kvd_io_fake *kvd_io_fake_create(uint64_t seed)
{
    struct kvd_io_fake *fake = calloc(1, sizeof(*fake));

    if (fake == NULL) {
        return NULL;
    }
    fake->base.ops = &fake_ops;
    fake->now_ns = START_NS;
    fake->random_state = seed;
    fake->tcp_port = FIRST_TCP_PORT;
    (void)pthread_mutex_init(&fake->mutex, NULL);
    (void)pthread_cond_init(&fake->woken, NULL);
    LIST_INIT(&fake->timers);
    LIST_INIT(&fake->wakes);
    LIST_INIT(&fake->listeners);
    LIST_INIT(&fake->signals);
    LIST_INIT(&fake->streams);
    TAILQ_INIT(&fake->file_ops);
    return fake;
}

struct kvd_io *kvd_io_fake_io(struct kvd_io_fake *fake)
{
    return &fake->base;
}
