/*
 * A connection of kvarn-bench server: single calls, and streams of requests of which a number is
 * in flight. Daemon, raw sender and redis are all met with this code, so that what the bench's own
 * end costs is the same for each.
 *
 * Thread: the bench's. What cannot be is said on stderr and ends the process.
 */
#ifndef KVARN_TESTS_BENCH_LINK_H
#define KVARN_TESTS_BENCH_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "client/src/call.h"
#include "client/src/reply.h"

enum kvb_speech {
    KVB_SPEECH_KVARN, /* frames */
    KVB_SPEECH_REDIS, /* bulk strings */
};

struct kvb_link {
    int fd; /* owned, blocking */
    enum kvb_speech speech;
    pid_t peer;       /* whose processor time counts; 0: not known */
    uint64_t last_id; /* of requests */
    uint8_t *room;    /* owned: where streams are read to */
};

/* Say what failed and end with 1. */
_Noreturn void kvb_die(const char *what, const char *why);

/* address: "unix:PATH" or "tcp:HOST:PORT". */
void kvb_link_open(struct kvb_link *link, const char *address, enum kvb_speech speech, pid_t peer);
void kvb_link_close(struct kvb_link *link);

/* Send a call, which is used up, and receive its reply, whatever it says. kvarn__reply_reset() it.
 */
void kvb_link_exchange(struct kvb_link *link, struct kvarn_call *call, struct kvarn_reply *ret);

/* A call that must succeed; args and result as kvarn__exchange_build() and _parse(). */
void kvb_link_call(
    struct kvb_link *link, enum kvarn_frame_type type, const void *args, void *result);

/* Requests of a stream, all of one kind. */
struct kvb_stream {
    struct kvarn_span *parts; /* owned array: of request i parts_each from i * parts_each on */
    size_t parts_each;
    size_t count;         /* of requests; a stream goes round */
    size_t next;          /* the one that is sent next */
    size_t depth;         /* in flight */
    uint64_t reply_bytes; /* of payload, in each reply; anything else is a failure */
    bool is_once;         /* requests are not sent again */
};

/* What a run took. */
struct kvb_run {
    double clock_s; /* by the clock */
    double peer_s;  /* processor time of the peer, all its threads; 0: not known */
    double self_s;  /* processor time of the bench */
};

/* Send `count` requests and receive their replies. */
void kvb_stream_run(
    struct kvb_link *link, struct kvb_stream *stream, size_t count, struct kvb_run *ret);

/* Monotonic clock; processor time of a process (0: of none), in seconds. */
double kvb_clock(void);
double kvb_process_seconds(pid_t pid);

#endif
