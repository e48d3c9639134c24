/*
 * The io on libuv. The only file of the daemon that sees uv.h.
 *
 * Owner: daemon. Thread: loop only, except wake_send(). Every libuv handle sits at the start of its
 * object and is freed in its close callback: libuv may still touch it until then. `data` of a
 * handle points to its object; handles of the io itself have none.
 */
#include "server/io/io.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <bsd/sys/queue.h>
#include <uv.h>

#include "lib/base/assert.h"
#include "server/base/log.h"
#include "server/io/accept_socket.h"
#include "server/io/listen_socket.h"

/* Connections taken before other work gets a turn. */
#define ACCEPTS_PER_TURN 64
/* How long a listener rests when it can neither accept nor refuse. */
#define ACCEPT_REST_MS 100

/* A callback due on the next turn. */
struct deferred {
    TAILQ_ENTRY(deferred) link;
    kvd_io_cb cb;
    void *ctx;     /* borrowed: the object that holds this */
    uint64_t turn; /* in which it was queued */
    bool is_queued;
};

TAILQ_HEAD(deferred_list, deferred);
LIST_HEAD(listener_list, kvd_listener);

struct uv_io {
    struct kvd_io base;
    uv_loop_t loop;
    uv_idle_t idle;  /* runs while `deferred` is not empty */
    uv_timer_t rest; /* runs while a listener rests */
    struct deferred_list deferred;
    struct listener_list listeners;
    uint64_t turn;
    struct kvd_accept_reserve reserve;
};

struct kvd_timer {
    uv_timer_t uv;
    struct uv_io *io; /* borrowed */
    struct deferred soon;
    kvd_io_cb cb;
    void *ctx; /* borrowed from the creator */
    uint64_t repeat_ms;
};

struct kvd_wake {
    uv_async_t uv;
    kvd_io_cb cb;
    void *ctx; /* borrowed from the creator */
};

struct signal_watch {
    uv_signal_t uv;
    kvd_signal_cb cb;
    void *ctx; /* borrowed from the creator */
};

struct kvd_listener {
    uv_poll_t uv;
    LIST_ENTRY(kvd_listener) link;
    struct uv_io *io; /* borrowed */
    struct kvd_listen_socket socket;
    kvd_accept_cb cb;
    void *ctx; /* borrowed from the creator */
};

struct kvd_stream {
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_pipe_t pipe;
        uv_tcp_t tcp;
    } uv;
    struct uv_io *io;                         /* borrowed */
    const struct kvd_stream_handler *handler; /* borrowed; NULL until reading starts */
    void *read_ctx;                           /* borrowed from the reader */
    uv_write_t write;
    struct deferred write_failed; /* libuv refused the write at once: its callback comes later */
    kvd_write_cb write_cb;        /* NULL: no write in flight */
    void *write_ctx;              /* borrowed from the writer */
    kvd_io_cb closed_cb;          /* NULL: nobody waits */
    void *closed_ctx;             /* borrowed from the closer */
};

static struct uv_io *io_of(struct kvd_io *io)
{
    return (struct uv_io *)(void *)io;
}

static int from_uv(int status)
{
    switch (status) {
    case 0:
        return 0;
    case UV_ECANCELED:
        return KVARN_ECANCELLED;
    case UV_ENOMEM:
        return KVARN_ENOMEM;
    default:
        return KVARN_EIO;
    }
}

static void handle_free_cb(uv_handle_t *handle)
{
    free(handle->data);
}

/* Work of the next turn. */

static void idle_cb(uv_idle_t *idle)
{
    struct uv_io *io = idle->loop->data;
    struct deferred *deferred;

    io->turn++;
    /* What these callbacks queue belongs to the turn after this one. */
    while ((deferred = TAILQ_FIRST(&io->deferred)) != NULL && deferred->turn < io->turn) {
        TAILQ_REMOVE(&io->deferred, deferred, link);
        deferred->is_queued = false;
        deferred->cb(deferred->ctx);
    }
    if (TAILQ_EMPTY(&io->deferred)) {
        (void)uv_idle_stop(&io->idle);
    }
}

static void deferred_queue(struct uv_io *io, struct deferred *deferred)
{
    KVARN_ASSERT(deferred->cb != NULL && !deferred->is_queued);
    deferred->is_queued = true;
    deferred->turn = io->turn;
    TAILQ_INSERT_TAIL(&io->deferred, deferred, link);
    (void)uv_idle_start(&io->idle, idle_cb);
}

static void deferred_drop(struct uv_io *io, struct deferred *deferred)
{
    if (deferred->is_queued) {
        TAILQ_REMOVE(&io->deferred, deferred, link);
        deferred->is_queued = false;
    }
}

/* Clock and random bytes. */

static uint64_t io_now_ns(struct kvd_io *io)
{
    (void)io;
    return uv_hrtime();
}

static int io_random(struct kvd_io *io, void *dst, size_t bytes)
{
    (void)io;
    return from_uv(uv_random(NULL, NULL, dst, bytes, 0, NULL));
}

/* Timers. */

static void timer_cb(uv_timer_t *uv)
{
    struct kvd_timer *timer = uv->data;
    timer->cb(timer->ctx);
}

static void timer_soon_cb(void *ctx)
{
    struct kvd_timer *timer = ctx;

    if (timer->repeat_ms > 0) {
        uv_update_time(&timer->io->loop);
        (void)uv_timer_start(&timer->uv, timer_cb, timer->repeat_ms, timer->repeat_ms);
    }
    timer->cb(timer->ctx);
}

static struct kvd_timer *io_timer_create(struct kvd_io *io, kvd_io_cb cb, void *ctx)
{
    struct uv_io *self = io_of(io);
    struct kvd_timer *timer = calloc(1, sizeof(*timer));

    KVARN_ASSERT(cb != NULL);
    if (timer == NULL) {
        return NULL;
    }
    timer->io = self;
    timer->cb = cb;
    timer->ctx = ctx;
    timer->soon.cb = timer_soon_cb;
    timer->soon.ctx = timer;
    (void)uv_timer_init(&self->loop, &timer->uv); /* cannot fail */
    timer->uv.data = timer;
    return timer;
}

static void io_timer_stop(struct kvd_timer *timer)
{
    deferred_drop(timer->io, &timer->soon);
    (void)uv_timer_stop(&timer->uv);
}

static void io_timer_start(struct kvd_timer *timer, uint64_t after_ms, uint64_t repeat_ms)
{
    io_timer_stop(timer);
    if (after_ms == 0) {
        /* libuv 1.44 would fire a timer of 0 ms that restarts itself for ever in one turn. */
        timer->repeat_ms = repeat_ms;
        deferred_queue(timer->io, &timer->soon);
        return;
    }
    /* libuv counts from the start of the turn: without this a timer could fire early. */
    uv_update_time(&timer->io->loop);
    (void)uv_timer_start(&timer->uv, timer_cb, after_ms, repeat_ms);
}

static void io_timer_destroy(struct kvd_timer *timer)
{
    if (timer != NULL) {
        deferred_drop(timer->io, &timer->soon);
        uv_close((uv_handle_t *)&timer->uv, handle_free_cb);
    }
}

/* Wake-ups from other threads. */

static void wake_cb(uv_async_t *uv)
{
    struct kvd_wake *wake = uv->data;
    wake->cb(wake->ctx);
}

static struct kvd_wake *io_wake_create(struct kvd_io *io, kvd_io_cb cb, void *ctx)
{
    struct kvd_wake *wake = calloc(1, sizeof(*wake));

    KVARN_ASSERT(cb != NULL);
    if (wake == NULL || uv_async_init(&io_of(io)->loop, &wake->uv, wake_cb) != 0) {
        free(wake);
        return NULL;
    }
    wake->uv.data = wake;
    wake->cb = cb;
    wake->ctx = ctx;
    return wake;
}

static void io_wake_send(struct kvd_wake *wake)
{
    (void)uv_async_send(&wake->uv);
}

static void io_wake_destroy(struct kvd_wake *wake)
{
    if (wake != NULL) {
        uv_close((uv_handle_t *)&wake->uv, handle_free_cb);
    }
}

/* Streams. */

static void write_finish(struct kvd_stream *stream, int err)
{
    kvd_write_cb cb = stream->write_cb;

    KVARN_ASSERT(cb != NULL);
    stream->write_cb = NULL;
    cb(stream->write_ctx, err);
}

static void write_uv_cb(uv_write_t *write, int status)
{
    write_finish(write->data, from_uv(status));
}

static void write_failed_cb(void *ctx)
{
    write_finish(ctx, KVARN_EIO);
}

/* Wrap a connected socket; it is ours from here on, whatever happens. */
static struct kvd_stream *stream_open(struct uv_io *io, int fd, bool is_unix)
{
    struct kvd_stream *stream = calloc(1, sizeof(*stream));
    int rc;

    if (stream == NULL) {
        (void)close(fd);
        return NULL;
    }
    if (is_unix) {
        rc = uv_pipe_init(&io->loop, &stream->uv.pipe, 0);
    } else {
        rc = uv_tcp_init(&io->loop, &stream->uv.tcp);
    }
    KVARN_ASSERT(rc == 0); /* neither can fail as called */
    stream->uv.handle.data = stream;
    stream->io = io;
    stream->write.data = stream;
    stream->write_failed.cb = write_failed_cb;
    stream->write_failed.ctx = stream;
    rc = is_unix ? uv_pipe_open(&stream->uv.pipe, fd) : uv_tcp_open(&stream->uv.tcp, fd);
    if (rc != 0) {
        (void)close(fd);
        uv_close(&stream->uv.handle, handle_free_cb);
        return NULL;
    }
    return stream;
}

static void read_alloc_cb(uv_handle_t *handle, size_t suggested_bytes, uv_buf_t *ret)
{
    struct kvd_stream *stream = handle->data;
    void *data = NULL;
    size_t bytes = 0;

    (void)suggested_bytes;
    stream->handler->buffer_cb(stream->read_ctx, &data, &bytes);
    KVARN_ASSERT(data != NULL && bytes > 0);
    ret->base = data;
    ret->len = bytes;
}

static void read_uv_cb(uv_stream_t *uv, ssize_t bytes, const uv_buf_t *buf)
{
    struct kvd_stream *stream = uv->data;

    (void)buf;
    if (bytes == 0) {
        return; /* EAGAIN: nothing came after all */
    }
    if (bytes == UV_EOF) {
        bytes = 0;
    } else if (bytes < 0) {
        bytes = KVARN_EIO;
    }
    stream->handler->read_cb(stream->read_ctx, bytes);
}

static void io_stream_read_start(
    struct kvd_stream *stream, const struct kvd_stream_handler *handler, void *ctx)
{
    KVARN_ASSERT(!uv_is_closing(&stream->uv.handle));
    stream->handler = handler;
    stream->read_ctx = ctx;
    int rc = uv_read_start(&stream->uv.stream, read_alloc_cb, read_uv_cb);
    KVARN_ASSERT(rc == 0 || rc == UV_EALREADY);
}

static void io_stream_read_stop(struct kvd_stream *stream)
{
    (void)uv_read_stop(&stream->uv.stream);
}

static void io_stream_write(struct kvd_stream *stream, const struct kvd_buf *bufs,
    unsigned buf_count, kvd_write_cb cb, void *ctx)
{
    uv_buf_t uv_bufs[KVD_IO_BUFS_MAX]; /* 16 KiB; libuv copies it */

    KVARN_ASSERT(buf_count > 0 && buf_count <= KVD_IO_BUFS_MAX);
    KVARN_ASSERT(cb != NULL && stream->write_cb == NULL);
    KVARN_ASSERT(!uv_is_closing(&stream->uv.handle));
    for (unsigned i = 0; i < buf_count; i++) {
        /* libuv's type has no const; it only reads. */
        uv_bufs[i].base = (char *)(uintptr_t)bufs[i].data;
        uv_bufs[i].len = bufs[i].bytes;
    }
    stream->write_cb = cb;
    stream->write_ctx = ctx;
    if (uv_write(&stream->write, &stream->uv.stream, uv_bufs, buf_count, write_uv_cb) != 0) {
        deferred_queue(stream->io, &stream->write_failed);
    }
}

static size_t io_stream_write_left(const struct kvd_stream *stream)
{
    return stream->write_cb == NULL ? 0 : uv_stream_get_write_queue_size(&stream->uv.stream);
}

/* libuv has called back a write that it had taken by now. */
static void stream_closed_cb(uv_handle_t *handle)
{
    struct kvd_stream *stream = handle->data;
    kvd_io_cb closed_cb = stream->closed_cb;
    void *closed_ctx = stream->closed_ctx;

    if (stream->write_cb != NULL) {
        deferred_drop(stream->io, &stream->write_failed);
        write_finish(stream, KVARN_ECANCELLED);
    }
    free(stream);
    if (closed_cb != NULL) {
        closed_cb(closed_ctx);
    }
}

static void io_stream_close(struct kvd_stream *stream, kvd_io_cb closed_cb, void *ctx)
{
    KVARN_ASSERT(!uv_is_closing(&stream->uv.handle));
    stream->closed_cb = closed_cb;
    stream->closed_ctx = ctx;
    uv_close(&stream->uv.handle, stream_closed_cb);
}

/* Listeners. They accept by themselves: uv_listen() never says that it refused someone, and spins
 * when its reserve descriptor is lost. */

static void listener_poll_cb(uv_poll_t *poll, int status, int events);

static void rest_cb(uv_timer_t *rest)
{
    struct uv_io *io = rest->loop->data;
    struct kvd_listener *listener;

    LIST_FOREACH(listener, &io->listeners, link)
    {
        (void)uv_poll_start(&listener->uv, UV_READABLE, listener_poll_cb);
    }
}

static void listener_rest(struct kvd_listener *listener)
{
    (void)uv_poll_stop(&listener->uv);
    (void)uv_timer_start(&listener->io->rest, rest_cb, ACCEPT_REST_MS, 0);
}

/* Take one connection. Returns whether there may be another. */
static bool listener_accept(struct kvd_listener *listener)
{
    struct kvd_accept_reserve *reserve = &listener->io->reserve;
    struct kvd_stream *stream;
    struct kvd_peer peer;
    int fd;

    switch (kvd_accept_take(&listener->socket, reserve, &fd, &peer)) {
    case KVD_ACCEPT_SKIPPED:
        return true;
    case KVD_ACCEPT_EMPTY:
        return false;
    case KVD_ACCEPT_REST:
        listener_rest(listener);
        return false;
    case KVD_ACCEPT_TAKEN:
        break;
    }
    stream = stream_open(listener->io, fd, peer.is_unix);
    if (stream == NULL) {
        kvd_accept_count_refused(reserve, ENOMEM);
    } else {
        listener->cb(listener->ctx, stream, &peer);
    }
    return true;
}

static void listener_poll_cb(uv_poll_t *poll, int status, int events)
{
    struct kvd_listener *listener = poll->data;

    (void)events;
    if (status < 0) {
        kvd_accept_count_refused(&listener->io->reserve, -status);
        listener_rest(listener);
        return;
    }
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        if (uv_is_closing((uv_handle_t *)&listener->uv) || !listener_accept(listener)) {
            return;
        }
    }
}

/* Takes the socket over, also on failure. */
static int listener_create(struct uv_io *io, struct kvd_listen_socket *socket, kvd_accept_cb cb,
    void *ctx, struct kvd_listener **ret)
{
    struct kvd_listener *listener = calloc(1, sizeof(*listener));

    KVARN_ASSERT(cb != NULL);
    if (listener == NULL) {
        kvd_listen_socket_close(socket);
        return KVARN_ENOMEM;
    }
    int rc = uv_poll_init(&io->loop, &listener->uv, socket->fd);
    if (rc != 0) {
        kvd_log(KVD_LOG_ERROR, "listen_failed", "address=%s error=%s", socket->address,
            uv_strerror(rc));
        kvd_listen_socket_close(socket);
        free(listener);
        return from_uv(rc);
    }
    listener->uv.data = listener;
    listener->io = io;
    listener->socket = *socket;
    listener->cb = cb;
    listener->ctx = ctx;
    LIST_INSERT_HEAD(&io->listeners, listener, link);
    (void)uv_poll_start(&listener->uv, UV_READABLE, listener_poll_cb);
    *ret = listener;
    return 0;
}

static int io_listen_unix(
    struct kvd_io *io, const char *path, kvd_accept_cb cb, void *ctx, struct kvd_listener **ret)
{
    struct kvd_listen_socket socket;
    int err = kvd_listen_socket_unix(path, &socket);
    return err != 0 ? err : listener_create(io_of(io), &socket, cb, ctx, ret);
}

static int io_listen_tcp(struct kvd_io *io, const char *host_port, kvd_accept_cb cb, void *ctx,
    struct kvd_listener **ret)
{
    struct kvd_listen_socket socket;
    int err = kvd_listen_socket_tcp(host_port, &socket);
    return err != 0 ? err : listener_create(io_of(io), &socket, cb, ctx, ret);
}

static const char *io_listener_address(const struct kvd_listener *listener)
{
    return listener->socket.address;
}

static void io_listener_destroy(struct kvd_listener *listener)
{
    if (listener != NULL) {
        LIST_REMOVE(listener, link);
        uv_close((uv_handle_t *)&listener->uv, handle_free_cb); /* no longer in epoll */
        kvd_listen_socket_close(&listener->socket);
    }
}

/* Signals. */

static void signal_cb(uv_signal_t *uv, int signum)
{
    struct signal_watch *watch = uv->data;
    watch->cb(watch->ctx, signum);
}

static int io_signal_start(struct kvd_io *io, int signum, kvd_signal_cb cb, void *ctx)
{
    struct signal_watch *watch = calloc(1, sizeof(*watch));

    KVARN_ASSERT(cb != NULL);
    if (watch == NULL) {
        return KVARN_ENOMEM;
    }
    int rc = uv_signal_init(&io_of(io)->loop, &watch->uv);
    if (rc != 0) {
        free(watch);
        return from_uv(rc);
    }
    watch->uv.data = watch;
    watch->cb = cb;
    watch->ctx = ctx;
    rc = uv_signal_start(&watch->uv, signal_cb, signum);
    if (rc != 0) {
        uv_close((uv_handle_t *)&watch->uv, handle_free_cb);
        return from_uv(rc);
    }
    uv_unref((uv_handle_t *)&watch->uv);
    return 0;
}

/* The loop. */

static int io_run(struct kvd_io *io)
{
    (void)uv_run(&io_of(io)->loop, UV_RUN_DEFAULT);
    return 0;
}

static void io_stop(struct kvd_io *io)
{
    uv_stop(&io_of(io)->loop);
}

static void handle_close_cb(uv_handle_t *handle, void *ctx)
{
    (void)ctx;
    if (uv_is_closing(handle)) {
        return;
    }
    if (handle->data == NULL) {
        uv_close(handle, NULL); /* the io's own */
    } else if (handle->type == UV_NAMED_PIPE || handle->type == UV_TCP) {
        io_stream_close(handle->data, NULL, NULL);
    } else if (handle->type == UV_POLL) {
        io_listener_destroy(handle->data);
    } else if (handle->type == UV_TIMER) {
        io_timer_destroy(handle->data);
    } else {
        uv_close(handle, handle_free_cb);
    }
}

static void io_destroy(struct kvd_io *io)
{
    struct uv_io *self = io_of(io);

    uv_walk(&self->loop, handle_close_cb, NULL);
    while (uv_run(&self->loop, UV_RUN_DEFAULT) != 0) {
        /* A stop() that no run() has seen ends the first one early. */
    }
    int rc = uv_loop_close(&self->loop);
    KVARN_ASSERT(rc == 0);
    KVARN_ASSERT(TAILQ_EMPTY(&self->deferred));
    kvd_accept_reserve_fini(&self->reserve);
    free(self);
}

/* Files. libuv has no call for fallocate, and its own calls may write in part: so each operation is
 * one piece of work for its threads. */

static void file_work_cb(uv_work_t *work)
{
    (void)kvd_file_op_perform(work->data);
}

static void file_done_cb(uv_work_t *work, int status)
{
    struct kvd_file_op *op = work->data;

    KVARN_ASSERT(status == 0); /* nobody cancels */
    op->done(op);
}

static void io_file_submit(struct kvd_io *io, struct kvd_file_op *op)
{
    _Static_assert(sizeof(uv_work_t) <= KVD_FILE_OP_ROOM, "libuv's request needs more room");
    uv_work_t *work = (uv_work_t *)(void *)op->room;

    KVARN_ASSERT(op->done != NULL);
    work->data = op;
    int rc = uv_queue_work(&io_of(io)->loop, work, file_work_cb, file_done_cb);
    KVARN_ASSERT(rc == 0); /* cannot fail with a callback */
}

static int64_t io_file_run(struct kvd_io *io, struct kvd_file_op *op)
{
    (void)io;
    return kvd_file_op_perform(op);
}

static const struct kvd_io_ops uv_ops = {
    .now_ns = io_now_ns,
    .random = io_random,
    .timer_create = io_timer_create,
    .timer_start = io_timer_start,
    .timer_stop = io_timer_stop,
    .timer_destroy = io_timer_destroy,
    .wake_create = io_wake_create,
    .wake_send = io_wake_send,
    .wake_destroy = io_wake_destroy,
    .listen_unix = io_listen_unix,
    .listen_tcp = io_listen_tcp,
    .listener_address = io_listener_address,
    .listener_destroy = io_listener_destroy,
    .stream_read_start = io_stream_read_start,
    .stream_read_stop = io_stream_read_stop,
    .stream_write = io_stream_write,
    .stream_write_left = io_stream_write_left,
    .stream_close = io_stream_close,
    .signal_start = io_signal_start,
    .file_submit = io_file_submit,
    .file_run = io_file_run,
    .run = io_run,
    .stop = io_stop,
    .destroy = io_destroy,
};

struct kvd_io *kvd_io_uv_create(void)
{
    struct uv_io *self = calloc(1, sizeof(*self));

    if (self == NULL || uv_loop_init(&self->loop) != 0) {
        free(self);
        return NULL;
    }
    self->base.ops = &uv_ops;
    self->loop.data = self;
    TAILQ_INIT(&self->deferred);
    LIST_INIT(&self->listeners);
    (void)uv_idle_init(&self->loop, &self->idle); /* these two cannot fail */
    (void)uv_timer_init(&self->loop, &self->rest);
    kvd_accept_reserve_init(&self->reserve);
    /* A peer that is gone is an error of the write, not a reason to die. */
    (void)signal(SIGPIPE, SIG_IGN);
    return &self->base;
}
