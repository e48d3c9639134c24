/* Connections of kvarn-bench server. */
#include "tests/bench/link.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "client/src/address.h"
#include "client/src/exchange.h"
#include "client/src/socket.h"
#include "lib/base/assert.h"
#include "tests/bench/bench.h"

#define ROOM_BYTES  ((size_t)512 << 10)
#define PARTS_MAX   160 /* of one write: a batch of 64 items has 129 */
#define CONNECT_MS  5000
#define SPEECH_HEAD 32 /* bytes before a reply's length is known, at most */

void kvb_die(const char *what, const char *why)
{
    fprintf(stderr, "kvarn-bench server: %s: %s\n", what, why);
    exit(1);
}

static double seconds_of(clockid_t clock)
{
    struct timespec now;

    if (clock_gettime(clock, &now) != 0) {
        kvb_die("clock_gettime", strerror(errno));
    }
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

double kvb_clock(void)
{
    return seconds_of(CLOCK_MONOTONIC);
}

double kvb_process_seconds(pid_t pid)
{
    clockid_t clock;

    return pid == 0 || clock_getcpuclockid(pid, &clock) != 0 ? 0.0 : seconds_of(clock);
}

void kvb_link_open(struct kvb_link *link, const char *address, enum kvb_speech speech, pid_t peer)
{
    struct kvarn__address to;

    *link = (struct kvb_link){.fd = -1, .speech = speech, .peer = peer};
    if (kvarn__address_parse(address, &to) != 0 ||
        kvarn__socket_connect(&to, kvarn__time_in_ms(CONNECT_MS), &link->fd) != 0 ||
        fcntl(link->fd, F_SETFL, 0) != 0) {
        kvb_die(address, "cannot connect");
    }
    link->room = kvb_alloc(ROOM_BYTES);
}

void kvb_link_close(struct kvb_link *link)
{
    (void)close(link->fd);
    free(link->room);
    *link = (struct kvb_link){.fd = -1};
}

/* Send all of it. */
static void parts_send(struct kvb_link *link, struct iovec *parts, size_t count)
{
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};

    while (message.msg_iovlen > 0) {
        ssize_t sent = sendmsg(link->fd, &message, MSG_NOSIGNAL);
        if (sent < 0) {
            kvb_die("send", strerror(errno));
        }
        size_t left = (size_t)sent;
        while (message.msg_iovlen > 0 && left >= message.msg_iov->iov_len) {
            left -= message.msg_iov->iov_len;
            message.msg_iov++;
            message.msg_iovlen--;
        }
        if (left > 0) {
            message.msg_iov->iov_base = (uint8_t *)message.msg_iov->iov_base + left;
            message.msg_iov->iov_len -= left;
        }
    }
}

static struct iovec part_of(const struct kvarn_span *span)
{
    /* sendmsg() only reads; its type has no const. */
    return (struct iovec){(void *)(uintptr_t)span->data, span->bytes};
}

static size_t bytes_receive(struct kvb_link *link, void *to, size_t room)
{
    ssize_t got = recv(link->fd, to, room, 0);

    if (got <= 0) {
        kvb_die("receive", got == 0 ? "the peer has closed the connection" : strerror(errno));
    }
    return (size_t)got;
}

void kvb_link_exchange(struct kvb_link *link, struct kvarn_call *call, struct kvarn_reply *ret)
{
    struct iovec parts[PARTS_MAX];

    KVARN_ASSERT(call->span_count < PARTS_MAX);
    if (call->request_id == 0) {
        kvarn__call_stamp(call, ++link->last_id, false);
    }
    parts[0] = (struct iovec){call->head, call->head_bytes};
    for (size_t i = 0; i < call->span_count; i++) {
        parts[i + 1] = part_of(&call->spans[i]);
    }
    parts_send(link, parts, call->span_count + 1);
    kvarn__reply_init(ret);
    while (ret->stage != KVARN__REPLY_COMPLETE) {
        uint8_t *at;
        size_t room;
        kvarn__reply_want(ret, &at, &room);
        if (kvarn__reply_advance(ret, bytes_receive(link, at, room)) != 0) {
            kvb_die("reply", "bytes that are none");
        }
    }
    ret->lse_count = call->lse_count;
    kvarn_call_destroy(call);
}

void kvb_link_call(
    struct kvb_link *link, enum kvarn_frame_type type, const void *args, void *result)
{
    struct kvarn_call *call = NULL;
    struct kvarn_reply reply;

    if (kvarn__exchange_build(type, args, KVARN_DEADLINE_NONE, &call) != 0) {
        kvb_die(kvarn_frame_type_label(type), "the call cannot be built");
    }
    kvb_link_exchange(link, call, &reply);
    if (kvarn__exchange_parse(type, &reply, result) != 0) {
        kvb_die(kvarn_frame_type_label(type), reply.status.text);
    }
    kvarn__reply_reset(&reply);
}

/* Where a stream's reading is: in the head of a reply, or behind it. */
struct reader {
    uint8_t head[SPEECH_HEAD];
    size_t head_bytes;
    uint64_t rest_bytes; /* of the reply, behind its head */
};

/* A frame's head is whole: is it the reply that was expected? */
static uint64_t frame_rest(const uint8_t *head, uint64_t reply_bytes)
{
    struct kvarn_frame_header header;

    if (kvarn_frame_decode(head, &header) != 0 || header.type == 0 ||
        header.payload_bytes != reply_bytes) {
        kvb_die("reply", "an error, or of another size than expected");
    }
    return header.message_bytes + header.payload_bytes +
           ((header.flags & KVARN_FRAME_PAYLOAD_XXH3) != 0 ? KVARN_FRAME_TRAILER_BYTES : 0);
}

/* Take bytes of a head. Returns how many; *ret_is_whole: the reply's length is known. */
static size_t head_take(struct kvb_link *link, const struct kvb_stream *stream,
    struct reader *reader, const uint8_t *data, size_t bytes, bool *ret_is_whole)
{
    size_t used = 0;

    while (used < bytes && !*ret_is_whole) {
        size_t chunk = 1;
        if (link->speech == KVB_SPEECH_KVARN) {
            chunk = KVARN_FRAME_HEADER_BYTES - reader->head_bytes;
            chunk = chunk < bytes - used ? chunk : bytes - used;
        }
        memcpy(reader->head + reader->head_bytes, data + used, chunk);
        reader->head_bytes += chunk;
        used += chunk;
        if (link->speech == KVB_SPEECH_KVARN) {
            *ret_is_whole = reader->head_bytes == KVARN_FRAME_HEADER_BYTES;
        } else {
            *ret_is_whole = reader->head[reader->head_bytes - 1] == '\n';
            if (!*ret_is_whole && reader->head_bytes == SPEECH_HEAD) {
                kvb_die("redis", "a reply without a length");
            }
        }
    }
    if (!*ret_is_whole) {
        return used;
    }
    if (link->speech == KVB_SPEECH_KVARN) {
        reader->rest_bytes = frame_rest(reader->head, stream->reply_bytes);
    } else {
        if (reader->head[0] != '$' ||
            strtoull((const char *)reader->head + 1, NULL, 10) != stream->reply_bytes) {
            kvb_die("redis", "an error, or a value of another size than expected");
        }
        reader->rest_bytes = stream->reply_bytes + 2;
    }
    reader->head_bytes = 0;
    return used;
}

/* Count the replies that end within these bytes. */
static size_t bytes_walk(struct kvb_link *link, const struct kvb_stream *stream,
    struct reader *reader, const uint8_t *data, size_t bytes)
{
    size_t replies = 0, at = 0;

    while (at < bytes) {
        if (reader->rest_bytes == 0) {
            bool is_whole = false;
            at += head_take(link, stream, reader, data + at, bytes - at, &is_whole);
            replies += is_whole && reader->rest_bytes == 0;
            continue;
        }
        uint64_t used = bytes - at < reader->rest_bytes ? bytes - at : reader->rest_bytes;
        reader->rest_bytes -= used;
        at += (size_t)used;
        replies += reader->rest_bytes == 0;
    }
    return replies;
}

/* Send the next `count` requests, gathered. */
static void requests_send(struct kvb_link *link, struct kvb_stream *stream, size_t count)
{
    struct iovec parts[PARTS_MAX];
    size_t filled = 0;

    for (size_t i = 0; i < count; i++) {
        if (stream->next == stream->count) {
            KVARN_ASSERT(!stream->is_once);
            stream->next = 0;
        }
        for (size_t p = 0; p < stream->parts_each; p++) {
            parts[filled++] = part_of(&stream->parts[stream->next * stream->parts_each + p]);
        }
        stream->next++;
        if (filled + stream->parts_each > PARTS_MAX || i + 1 == count) {
            parts_send(link, parts, filled);
            filled = 0;
        }
    }
}

void kvb_stream_run(
    struct kvb_link *link, struct kvb_stream *stream, size_t count, struct kvb_run *ret)
{
    struct reader reader = {0};
    size_t sent = 0, done = 0;
    double began_s = kvb_clock(), began_peer_s = kvb_process_seconds(link->peer);
    double began_self_s = kvb_process_seconds(getpid());

    while (done < count) {
        /* Requests go out in halves of the window: one write for many of them. */
        if (sent < count && sent - done <= stream->depth / 2) {
            size_t more = stream->depth - (sent - done);
            more = more < count - sent ? more : count - sent;
            requests_send(link, stream, more);
            sent += more;
        }
        size_t bytes = bytes_receive(link, link->room, ROOM_BYTES);
        done += bytes_walk(link, stream, &reader, link->room, bytes);
    }
    *ret = (struct kvb_run){.clock_s = kvb_clock() - began_s,
        .peer_s = kvb_process_seconds(link->peer) - began_peer_s,
        .self_s = kvb_process_seconds(getpid()) - began_self_s};
}
