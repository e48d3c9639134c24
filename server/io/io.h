/*
 * The seam between the daemon and the operating system: clock, timers, listening, streams, files,
 * wake-ups from other threads, signals, random bytes. io_uv.c is its libuv implementation; tests
 * drive the daemon through one of their own.
 *
 * Owner: daemon. Thread: loop only, except kvd_wake_send(). Objects are made by kvd_io and
 * destroyed by their own calls; after timer/wake/listener destroy returns none of their callbacks
 * runs again.
 */
#ifndef KVD_IO_H
#define KVD_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "kvarn/err.h"
#include "server/io/file_op.h"

/* Most stretches of memory in one gathered write. */
#define KVD_IO_BUFS_MAX 1024

struct kvd_io;
struct kvd_timer;
struct kvd_wake;
struct kvd_listener;
struct kvd_stream;

typedef void (*kvd_io_cb)(void *ctx);
typedef void (*kvd_signal_cb)(void *ctx, int signum);
typedef void (*kvd_write_cb)(void *ctx, int err); /* 0 or KVARN_E... */

/* A stretch of memory to send. */
struct kvd_buf {
    const void *data; /* borrowed until the write's callback */
    size_t bytes;
};

/* Who is on the other side. */
struct kvd_peer {
    bool is_unix;
    uid_t uid; /* unix only, from SO_PEERCRED */
    gid_t gid;
    pid_t pid;
    char text[80]; /* for logs: "unix:uid=1000,pid=77", "tcp:127.0.0.1:5000" */
};

struct kvd_stream_handler {
    /*
     * Say where the next bytes go: at least 1 byte of room. May be asked again without bytes having
     * come; may not stop or close the stream.
     */
    void (*buffer_cb)(void *ctx, void **ret_data, size_t *ret_bytes);
    /* `bytes` > 0 arrived there; 0: the peer closed its side; < 0: KVARN_EIO. */
    void (*read_cb)(void *ctx, ssize_t bytes);
};

/* A new connection; the callee owns the stream from here on. */
typedef void (*kvd_accept_cb)(void *ctx, struct kvd_stream *stream, const struct kvd_peer *peer);

struct kvd_io_ops {
    uint64_t (*now_ns)(struct kvd_io *io); /* monotonic; jumps of the wall clock do not matter */
    int (*random)(struct kvd_io *io, void *dst, size_t bytes);

    struct kvd_timer *(*timer_create)(struct kvd_io *io, kvd_io_cb cb, void *ctx);
    /*
     * (Re)start. `after_ms` 0: on the next turn, after the descriptors had their chance, so that
     * work cut into slices by such a timer starves nobody. `repeat_ms` 0: once.
     */
    void (*timer_start)(struct kvd_timer *timer, uint64_t after_ms, uint64_t repeat_ms);
    void (*timer_stop)(struct kvd_timer *timer);
    void (*timer_destroy)(struct kvd_timer *timer); /* accepts NULL */

    struct kvd_wake *(*wake_create)(struct kvd_io *io, kvd_io_cb cb, void *ctx);
    void (*wake_send)(
        struct kvd_wake *wake); /* any thread; calls may be merged into one callback */
    void (*wake_destroy)(struct kvd_wake *wake);

    int (*listen_unix)(struct kvd_io *io, const char *path, kvd_accept_cb cb, void *ctx,
        struct kvd_listener **ret);
    /* `host_port`: "127.0.0.1:0", "[::1]:7411"; numeric addresses only. */
    int (*listen_tcp)(struct kvd_io *io, const char *host_port, kvd_accept_cb cb, void *ctx,
        struct kvd_listener **ret);
    /* The address that clients use: "unix:PATH" or "tcp:HOST:PORT" with the real port. */
    const char *(*listener_address)(const struct kvd_listener *listener);
    void (*listener_destroy)(struct kvd_listener *listener); /* removes a unix socket's file */

    void (*stream_read_start)(
        struct kvd_stream *stream, const struct kvd_stream_handler *handler, void *ctx);
    void (*stream_read_stop)(struct kvd_stream *stream);
    /*
     * One gathered write of 1 to KVD_IO_BUFS_MAX stretches; at most one in flight per stream; `cb`
     * exactly once, never from inside: 0, KVARN_EIO, or KVARN_ECANCELLED by a close. The array is
     * copied; the bytes are borrowed until `cb`.
     */
    void (*stream_write)(struct kvd_stream *stream, const struct kvd_buf *bufs, unsigned buf_count,
        kvd_write_cb cb, void *ctx);
    /* Bytes of the write in flight that the peer's side has not taken: falls while it reads. */
    size_t (*stream_write_left)(const struct kvd_stream *stream);
    /* Stop reading, cancel a write in flight (its callback runs first), free, then `closed_cb`. */
    void (*stream_close)(struct kvd_stream *stream, kvd_io_cb closed_cb, void *ctx);

    /* Watched until the io is destroyed. Signals alone do not keep run() going. */
    int (*signal_start)(struct kvd_io *io, int signum, kvd_signal_cb cb, void *ctx);

    /*
     * Do a file operation off the loop; op->done is called on the loop, exactly once, never from
     * inside. Several may be in flight and end in any order. Who waits for none before destroy()
     * is called back from there.
     */
    void (*file_submit)(struct kvd_io *io, struct kvd_file_op *op);
    /* Do it now and return its result; op->done is not called. Only before run() and after it. */
    int64_t (*file_run)(struct kvd_io *io, struct kvd_file_op *op);

    int (*run)(struct kvd_io *io);   /* until stop, or nothing is left */
    void (*stop)(struct kvd_io *io); /* run returns at the end of the turn in progress */
    /*
     * Closes what is left, drains, frees. The only callbacks it makes are those of writes, of
     * closes and of file operations; call it outside run().
     */
    void (*destroy)(struct kvd_io *io);
};

struct kvd_io {
    const struct kvd_io_ops *ops;
};

/* The libuv implementation. Returns NULL when out of memory or descriptors. */
struct kvd_io *kvd_io_uv_create(void);

#endif
