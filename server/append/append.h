/*
 * Storing tokens: K and V rows from a payload into the tail, and the seals that fall due.
 *
 * Owner: the request that appends. Thread: loop; rotation and quantisation run as jobs.
 *
 * Life (SEMANTICS.md 8): wait for the turn -> check epoch and lengths, reserve pages -> rotate from
 * staging into rows above the length (small ones on the loop, large ones as jobs) -> commit in one
 * step. Nothing is visible before the commit, and a refused or late append leaves no trace.
 *
 * A retry is recognised by the payload's hash and by what gives the payload its meaning: numbers,
 * layout, frame and runs are folded in here.
 */
#ifndef KVD_APPEND_H
#define KVD_APPEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/session/session.h"

/*
 * Up to this much payload is rotated on the loop: what the level in use does in 30 us, so that an
 * attend of the same request has its 50 (SEMANTICS.md 18), and at most 64 KiB.
 */
size_t kvd_append_inline_bytes_max(void);

struct kvd_append_args {
    struct kvd_session *session; /* the append takes a reference of its own */
    uint64_t epoch;
    uint32_t layer_first, layer_count;
    uint64_t start;
    uint32_t token_count;
    enum kvarn_dtype dtype;
    bool is_token_major;
    bool is_rotated;
    /*
     * Others begin in the same turn, with more payload together than the loop may rotate
     * (SEMANTICS.md 18): a worker rotates this one however small it is, and hashes it too.
     */
    bool is_batched;
    const void *payload;   /* borrowed until done_cb */
    uint64_t payload_hash; /* XXH3-64 of the payload; is_batched: not looked at */
    /* Token ids or block hashes, borrowed until done_cb; NULL: none. */
    enum kvd_prefix_kind prefix_kind;
    const void *prefix_data;
    uint64_t deadline_ns; /* 0: none */
    void *ctx;
    /*
     * The append is applied and nothing later has been: the place to take an attend's snapshot
     * (SEMANTICS.md 3). `sealed_blocks`: what a reader of this request may read as tiles. May be
     * NULL.
     */
    void (*committed_cb)(void *ctx, uint32_t sealed_blocks);
    /* Set before committed_cb: what the append waited for. NULL: not wanted. */
    struct kvd_op_cold *ret_cold;
    /*
     * Exactly once, possibly inside start. why->err 0: stored (or, is_repeat, stored by an
     * identical request before; committed_cb ran in that case too).
     */
    void (*done_cb)(void *ctx, const struct kvd_failure *why, bool is_repeat);
};

struct kvd_append;

/* Bytes of K and V that such an append carries. Overflow-safe for values within limits.h. */
uint64_t kvd_append_payload_bytes(const struct kvd_shape *shape, uint32_t layer_first,
    uint32_t layer_count, uint64_t token_count, enum kvarn_dtype dtype);

/*
 * Begin. Returns 0 and a token for kvd_append_cancel() in *ret (may be NULL), written before
 * done_cb can run and valid until then; on KVARN_ENOMEM nothing was begun and done_cb will not run.
 * Layers and counts were checked by the caller, and that the end is within
 * KVARN_SESSION_TOKENS_MAX.
 */
int kvd_append_start(struct kvd_service *service, const struct kvd_append_args *args,
    struct kvd_append **ret) KVARN_MUST_CHECK;

/*
 * Ask an append not to happen: waiting, it is done at once with `err`; being rotated, it will not
 * commit. done_cb tells which way it went.
 */
void kvd_append_cancel(struct kvd_append *append, int err);

/*
 * Blocks as they come from ReadBlocks{stored}: records and rotated half rows (SEMANTICS.md 21).
 * Same life and callbacks as an append.
 */
struct kvd_append_run {
    uint32_t layer;
    uint64_t first_token;
    uint64_t token_count;
    bool is_records;
};
struct kvd_append_tiles_args {
    struct kvd_session *session;
    uint64_t epoch;
    /*
     * Borrowed until done_cb; by layer, then ascending, no gaps. A layer's first run begins a
     * block; records are whole blocks behind the sink, and rows come before them in the sink alone.
     */
    const struct kvd_append_run *runs;
    uint32_t run_count;
    const void *payload;   /* borrowed until done_cb */
    uint64_t payload_hash; /* XXH3-64 of the payload */
    uint64_t deadline_ns;
    /* Where the token for kvd_append_cancel() goes, before done_cb can run; may be NULL. */
    struct kvd_append **ret_append;
    void *ctx;
    void (*done_cb)(void *ctx, const struct kvd_failure *why, bool is_repeat);
};
uint64_t kvd_append_run_bytes(const struct kvd_shape *shape, const struct kvd_append_run *run);
int kvd_append_tiles_start(
    struct kvd_service *service, const struct kvd_append_tiles_args *args) KVARN_MUST_CHECK;

#endif
