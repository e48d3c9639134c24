/*
 * The far ends of kvarn-bench server, each a child process: the daemon, redis-server, and the raw
 * sender: for each request frame it writes one reply of given bytes straight from memory, gathered
 * with those of the other requests that have come; that is all it does.
 *
 * Thread: the bench's. What cannot be is said on stderr and ends the process; children end with it.
 */
#ifndef KVARN_TESTS_BENCH_PEERS_H
#define KVARN_TESTS_BENCH_PEERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#define KVB_ADDRESS_BYTES 128

struct kvb_daemon {
    pid_t pid;                            /* 0: not ours, and no processor time to be had */
    char folder[64];                      /* of its socket */
    char unix_address[KVB_ADDRESS_BYTES]; /* "": none */
    char tcp_address[KVB_ADDRESS_BYTES];
};

/* Start `path`, with a socket in a folder of its own and one on the loopback. */
void kvb_daemon_start(struct kvb_daemon *daemon, const char *path, const char *memory_limit);

/* The same with at most 8 more arguments, up to a NULL. */
void kvb_daemon_start_with(struct kvb_daemon *daemon, const char *path, const char *memory_limit,
    const char *const *extra);
void kvb_daemon_stop(struct kvb_daemon *daemon);

/* What a raw sender sends. */
struct kvb_raw {
    const void *head; /* borrowed until it is started: the reply's header and message */
    size_t head_bytes;
    const uint8_t
        *payload;         /* borrowed likewise: an arena; replies take one stretch after another */
    size_t payload_bytes; /* of a reply */
    size_t arena_bytes;
    bool is_tcp;
};

/* Start one, for a single connection; it ends when that does. Returns its address in `ret`. */
pid_t kvb_raw_start(const struct kvb_raw *raw, char ret_address[KVB_ADDRESS_BYTES]);

/* Wait for its end. */
void kvb_raw_stop(pid_t pid);

struct kvb_redis {
    pid_t pid;
    FILE *out; /* owned: what it says */
    char address[KVB_ADDRESS_BYTES];
};

/* Start redis-server, which keeps nothing on disk. False where it is not installed. */
bool kvb_redis_start(struct kvb_redis *redis);
void kvb_redis_stop(struct kvb_redis *redis);

#endif
