/*
 * The insides of the fake io, shared by its files.
 *
 * Thread: as io_fake.h says.
 */
#ifndef TESTS_IO_FAKE_IMPL_H
#define TESTS_IO_FAKE_IMPL_H

#include <pthread.h>

#include <bsd/sys/queue.h>

#include "tests/support/io_fake.h"

struct kvd_stream {
    LIST_ENTRY(kvd_stream) link;
    struct kvd_io_fake *fake;   /* borrowed */
    struct kvd_fake_peer *peer; /* borrowed; NULL once the test freed it */
    const struct kvd_stream_handler *handler;
    void *read_ctx; /* borrowed */
    bool is_reading;
    struct kvd_buf *bufs; /* owned copy of the array; the bytes are the writer's */
    unsigned buf_count, buf_idx;
    size_t buf_done; /* bytes of bufs[buf_idx] that were taken */
    kvd_write_cb write_cb;
    void *write_ctx; /* borrowed */
    bool is_closing;
    kvd_io_cb closed_cb;
    void *closed_ctx; /* borrowed */
    uint64_t turn;    /* the last that served it, or in which its write or close began */
};

struct kvd_fake_peer {
    struct kvd_stream *stream; /* borrowed; NULL: closed */
    uint8_t *received;         /* owned */
    size_t received_bytes, received_room;
    size_t rate, piece;
    bool is_broken;
};

struct kvd_io_fake {
    struct kvd_io base;
    uint64_t now_ns;
    uint64_t tick_ns;
    bool is_running; /* the clock runs by itself */
    uint64_t cpu_ns; /* processor time when the clock was last looked at */
    uint64_t callback_ns, callback_longest_ns; /* began; took */
    uint64_t random_state;
    uint64_t turn, started;
    unsigned tcp_port;
    bool is_stopped, is_turning;
    pthread_mutex_t mutex;
    pthread_cond_t woken;
    LIST_HEAD(, kvd_timer) timers;
    LIST_HEAD(, kvd_wake) wakes;
    LIST_HEAD(, kvd_listener) listeners;
    LIST_HEAD(, fake_signal) signals;
    LIST_HEAD(, kvd_stream) streams;
    struct kvd_fake_disk *disk; /* borrowed; NULL: no files */
    TAILQ_HEAD(, fake_file_op) file_ops;
    unsigned file_op_count;
    uint64_t file_shuffle;
    bool file_hold;
};

/* A test has no use for half a fake: zeroed memory or an assertion. */
void *kvd_io_fake__calloc(size_t bytes);

/* Around each callback into the daemon, so that it is timed. */
void kvd_io_fake__callback_begin(struct kvd_io_fake *fake);
void kvd_io_fake__callback_end(struct kvd_io_fake *fake);

/* io_fake_stream.c: the stream part of kvd_io_ops. */
void kvd_io_fake__read_start(
    struct kvd_stream *stream, const struct kvd_stream_handler *handler, void *ctx);
void kvd_io_fake__read_stop(struct kvd_stream *stream);
void kvd_io_fake__write(struct kvd_stream *stream, const struct kvd_buf *bufs, unsigned buf_count,
    kvd_write_cb cb, void *ctx);
size_t kvd_io_fake__write_left(const struct kvd_stream *stream);
void kvd_io_fake__close(struct kvd_stream *stream, kvd_io_cb closed_cb, void *ctx);

/* Serve writes and closes begun before this turn. Returns whether anything moved or ended. */
bool kvd_io_fake__streams_turn(struct kvd_io_fake *fake);

/* io_fake_file.c: the file part of kvd_io_ops. */
void kvd_io_fake__file_submit(struct kvd_io *io, struct kvd_file_op *op);
int64_t kvd_io_fake__file_run(struct kvd_io *io, struct kvd_file_op *op);

/* Do the operations that were submitted before this turn. Returns whether there were any. */
bool kvd_io_fake__files_turn(struct kvd_io_fake *fake);

/* Do all that wait, whatever their turn: the fake goes. */
void kvd_io_fake__files_drain(struct kvd_io_fake *fake);

/* End a stream now: cancel its write, free it, call back. */
void kvd_io_fake__stream_free(struct kvd_stream *stream);

#endif
