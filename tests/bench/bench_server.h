/* What the files of kvarn-bench server share: one daemon, made-up pages, and its sessions. */
#ifndef KVARN_TESTS_BENCH_BENCH_SERVER_H
#define KVARN_TESTS_BENCH_BENCH_SERVER_H

#include "tests/bench/bench.h"
#include "tests/bench/link.h"
#include "tests/bench/peers.h"

#define KVB_SERVER_DIM      128
#define KVB_SERVER_GROUP    128
#define KVB_SERVER_PATTERNS 16 /* different pages; arenas repeat them */

struct kvb_server {
    struct kvb_report *report; /* borrowed */
    struct kvb_daemon daemon;
    struct kvarn_tile_spec spec;
    size_t record_bytes, tile_bytes;
    uint8_t *tiles;   /* owned: the patterns */
    uint8_t *records; /* owned: an arena of them as records */
    size_t record_count;
    uint16_t *rows; /* owned: rotated halves, K and V of one block of 8 heads */
};

/* What one session is. */
struct kvb_server_shape {
    uint32_t kv_heads;
    uint32_t sink_tokens;
};

/* Connect to the daemon and say Hello. */
void kvb_server_connect(struct kvb_server *server, struct kvb_link *link, bool is_tcp);

/* A session of one layer, which ends with the connection. */
void kvb_server_open(
    struct kvb_link *link, const struct kvb_server_shape *shape, struct kvarn_session *ret);
void kvb_server_drop(struct kvb_link *link, const struct kvarn_session *session);

/* Append `blocks` sealed blocks, after a sink of rows if the shape has one (one more block). */
void kvb_server_fill(struct kvb_server *server, struct kvb_link *link,
    const struct kvb_server_shape *shape, const struct kvarn_session *session, uint32_t blocks);

/* Cut a session to `length` or leave it. Returns the length of its layer. */
uint64_t kvb_server_cut(struct kvb_link *link, struct kvarn_session *session, uint64_t length);

/* Start a raw sender that answers with the head of `reply` and payload of the same size, and
 * connect to it. */
void kvb_server_rival(
    struct kvb_server *server, const struct kvarn_reply *reply, bool is_tcp, struct kvb_link *ret);

/* bench_server_attend.c */
void kvb_server_round_trip(struct kvb_server *server);
void kvb_server_batch(struct kvb_server *server);

#endif
