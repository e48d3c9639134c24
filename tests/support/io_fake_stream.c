/*
 * Streams of the fake io: the daemon's end, and the test's.
 *
 * Thread: one.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/assert.h"
#include "tests/support/io_fake_impl.h"

/* Streams: the daemon's end. */

void kvd_io_fake__read_start(
    struct kvd_stream *stream, const struct kvd_stream_handler *handler, void *ctx)
{
    KVARN_ASSERT(!stream->is_closing);
    stream->handler = handler;
    stream->read_ctx = ctx;
    stream->is_reading = true;
}

void kvd_io_fake__read_stop(struct kvd_stream *stream)
{
    stream->is_reading = false;
}

void kvd_io_fake__write(struct kvd_stream *stream, const struct kvd_buf *bufs, unsigned buf_count,
    kvd_write_cb cb, void *ctx)
{
    KVARN_ASSERT(buf_count > 0 && buf_count <= KVD_IO_BUFS_MAX);
    KVARN_ASSERT(cb != NULL && stream->write_cb == NULL && !stream->is_closing);
    stream->bufs = kvd_io_fake__calloc(buf_count * sizeof(*bufs));
    memcpy(stream->bufs, bufs, buf_count * sizeof(*bufs));
    stream->buf_count = buf_count;
    stream->buf_idx = 0;
    stream->buf_done = 0;
    stream->write_cb = cb;
    stream->write_ctx = ctx;
    stream->turn = stream->fake->turn;
}

size_t kvd_io_fake__write_left(const struct kvd_stream *stream)
{
    size_t left = 0;

    if (stream->write_cb != NULL) {
        for (unsigned i = stream->buf_idx; i < stream->buf_count; i++) {
            left += stream->bufs[i].bytes;
        }
        left -= stream->buf_done;
    }
    return left;
}

void kvd_io_fake__close(struct kvd_stream *stream, kvd_io_cb closed_cb, void *ctx)
{
    KVARN_ASSERT(!stream->is_closing);
    stream->is_closing = true;
    stream->is_reading = false;
    stream->closed_cb = closed_cb;
    stream->closed_ctx = ctx;
    stream->turn = stream->fake->turn;
}

static void write_finish(struct kvd_stream *stream, int err)
{
    struct kvd_io_fake *fake = stream->fake;
    kvd_write_cb cb = stream->write_cb;

    free(stream->bufs);
    stream->bufs = NULL;
    stream->write_cb = NULL;
    kvd_io_fake__callback_begin(fake);
    cb(stream->write_ctx, err);
    kvd_io_fake__callback_end(fake);
}

void kvd_io_fake__stream_free(struct kvd_stream *stream)
{
    struct kvd_io_fake *fake = stream->fake;
    kvd_io_cb closed_cb = stream->closed_cb;
    void *closed_ctx = stream->closed_ctx;

    if (stream->write_cb != NULL) {
        write_finish(stream, KVARN_ECANCELLED);
    }
    LIST_REMOVE(stream, link);
    if (stream->peer != NULL) {
        stream->peer->stream = NULL;
    }
    free(stream);
    if (closed_cb != NULL) {
        kvd_io_fake__callback_begin(fake);
        closed_cb(closed_ctx);
        kvd_io_fake__callback_end(fake);
    }
}

static void peer_receive(struct kvd_fake_peer *peer, const void *data, size_t bytes)
{
    size_t needed = peer->received_bytes + bytes;

    if (needed > peer->received_room) {
        size_t room = needed * 2;
        peer->received = realloc(peer->received, room);
        KVARN_ASSERT(peer->received != NULL);
        peer->received_room = room;
    }
    if (bytes > 0) {
        memcpy(peer->received + peer->received_bytes, data, bytes);
        peer->received_bytes = needed;
    }
}

/* Move what the peer takes in one turn. Returns whether anything moved or ended. */
static bool stream_move(struct kvd_stream *stream)
{
    struct kvd_fake_peer *peer = stream->peer;
    size_t rate = peer != NULL ? peer->rate : SIZE_MAX;
    size_t taken = 0;

    if (peer != NULL && peer->is_broken) {
        write_finish(stream, KVARN_EIO);
        return true;
    }
    while (stream->buf_idx < stream->buf_count) {
        const struct kvd_buf *buf = &stream->bufs[stream->buf_idx];
        size_t bytes = buf->bytes - stream->buf_done;
        if (bytes > rate - taken) {
            bytes = rate - taken;
        }
        if (peer != NULL) {
            peer_receive(peer, (const uint8_t *)buf->data + stream->buf_done, bytes);
        }
        taken += bytes;
        stream->buf_done += bytes;
        if (stream->buf_done < buf->bytes) {
            return taken > 0;
        }
        stream->buf_idx++;
        stream->buf_done = 0;
    }
    write_finish(stream, 0);
    return true;
}

/* The first stream with work begun before this turn and not served in it. */
static struct kvd_stream *stream_next(const struct kvd_io_fake *fake)
{
    struct kvd_stream *stream;

    LIST_FOREACH(stream, &fake->streams, link)
    {
        if (stream->turn < fake->turn && (stream->is_closing || stream->write_cb != NULL)) {
            break;
        }
    }
    return stream;
}

bool kvd_io_fake__streams_turn(struct kvd_io_fake *fake)
{
    bool did_something = false;
    struct kvd_stream *stream;

    while ((stream = stream_next(fake)) != NULL) {
        stream->turn = fake->turn;
        if (stream->is_closing) {
            kvd_io_fake__stream_free(stream);
            did_something = true;
        } else if (stream_move(stream)) {
            did_something = true;
        }
    }
    return did_something;
}

/* Streams: the test's end. */

struct kvd_peer kvd_io_fake_who(void)
{
    struct kvd_peer who = {.is_unix = true, .uid = geteuid(), .gid = getegid(), .pid = getpid()};

    (void)snprintf(
        who.text, sizeof(who.text), "unix:uid=%lu,pid=%ld", (unsigned long)who.uid, (long)who.pid);
    return who;
}

struct kvd_fake_peer *kvd_io_fake_open(struct kvd_io_fake *fake, struct kvd_stream **ret_stream)
{
    struct kvd_stream *stream = kvd_io_fake__calloc(sizeof(*stream));
    struct kvd_fake_peer *peer = kvd_io_fake__calloc(sizeof(*peer));

    stream->fake = fake;
    stream->peer = peer;
    LIST_INSERT_HEAD(&fake->streams, stream, link);
    peer->stream = stream;
    peer->rate = SIZE_MAX;
    *ret_stream = stream;
    return peer;
}

/* The stream, when a read callback may run now. */
static struct kvd_stream *peer_reader(const struct kvd_fake_peer *peer)
{
    struct kvd_stream *stream = peer->stream;
    return stream != NULL && stream->is_reading ? stream : NULL;
}

static void read_call(struct kvd_stream *stream, ssize_t bytes)
{
    struct kvd_io_fake *fake = stream->fake; /* the stream may be gone after its callback */

    kvd_io_fake__callback_begin(fake);
    stream->handler->read_cb(stream->read_ctx, bytes);
    kvd_io_fake__callback_end(fake);
}

size_t kvd_fake_peer_send(struct kvd_fake_peer *peer, const void *data, size_t bytes)
{
    size_t sent = 0;

    while (sent < bytes && peer_reader(peer) != NULL) {
        struct kvd_stream *stream = peer->stream;
        void *room = NULL;
        size_t room_bytes = 0;
        stream->handler->buffer_cb(stream->read_ctx, &room, &room_bytes);
        KVARN_ASSERT(room != NULL && room_bytes > 0);
        size_t piece = bytes - sent < room_bytes ? bytes - sent : room_bytes;
        if (peer->piece > 0 && piece > peer->piece) {
            piece = peer->piece;
        }
        memcpy(room, (const uint8_t *)data + sent, piece);
        sent += piece;
        read_call(stream, (ssize_t)piece);
    }
    return sent;
}

void kvd_fake_peer_set_piece(struct kvd_fake_peer *peer, size_t bytes)
{
    peer->piece = bytes;
}

bool kvd_fake_peer_end(struct kvd_fake_peer *peer)
{
    struct kvd_stream *stream = peer_reader(peer);

    if (stream == NULL) {
        return false;
    }
    stream->is_reading = false; /* nothing comes after the end */
    read_call(stream, 0);
    return true;
}

void kvd_fake_peer_break(struct kvd_fake_peer *peer)
{
    struct kvd_stream *stream = peer_reader(peer);

    peer->is_broken = true;
    if (stream != NULL) {
        stream->is_reading = false;
        read_call(stream, KVARN_EIO);
    }
}

void kvd_fake_peer_set_rate(struct kvd_fake_peer *peer, size_t bytes_per_turn)
{
    peer->rate = bytes_per_turn;
}

const uint8_t *kvd_fake_peer_received(const struct kvd_fake_peer *peer, size_t *ret_bytes)
{
    *ret_bytes = peer->received_bytes;
    return peer->received;
}

void kvd_fake_peer_drop(struct kvd_fake_peer *peer, size_t bytes)
{
    KVARN_ASSERT(bytes <= peer->received_bytes);
    if (bytes > 0) {
        memmove(peer->received, peer->received + bytes, peer->received_bytes - bytes);
        peer->received_bytes -= bytes;
    }
}

bool kvd_fake_peer_is_closed(const struct kvd_fake_peer *peer)
{
    return peer->stream == NULL;
}

bool kvd_fake_peer_is_read(const struct kvd_fake_peer *peer)
{
    return peer_reader(peer) != NULL;
}

void kvd_fake_peer_free(struct kvd_fake_peer *peer)
{
    if (peer != NULL) {
        if (peer->stream != NULL) {
            peer->stream->peer = NULL;
        }
        free(peer->received);
        free(peer);
    }
}
