/*
 * libkvarn_client: talk to a kvarnd daemon.
 *
 * Two flavours over one core. The blocking flavour (struct kvarn_client, here) makes one call at a
 * time and reconnects by itself. The asynchronous flavour (kvarn/client_uv.h) pipelines calls on
 * the caller's uv_loop. Both take the same argument structs and give the same result structs: a
 * *call* is built from arguments, a *reply* is parsed into a result. Building and parsing do no
 * I/O.
 *
 * Lengths, positions and counts are tokens; sizes bytes; times milliseconds. Layouts are
 * little-endian, C order, without padding (SEMANTICS.md 20). K is stored after RoPE.
 *
 * Errors: 0 or a negative KVARN_E... (kvarn/err.h). Errors of the daemon come back as themselves;
 * of this library's own, KVARN_EIO means no connection, or a connection that broke before the reply
 * of a call whose repetition is not safe: its outcome is not known. KVARN_EPROTOCOL means that the
 * peer sent bytes that are no reply.
 *
 * Threads: no globals. A client, its sessions and its results belong to one thread at a time;
 * several clients may be used on several threads. The library never logs and ignores no signal: it
 * sends with MSG_NOSIGNAL.
 */
#ifndef KVARN_CLIENT_H
#define KVARN_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kvarn/client_args.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Calls and replies: no I/O ---- */

/* A request ready to be sent: header, packed message, payload spans (borrowed from the caller). */
struct kvarn_call;
/* A reply that has arrived and is a valid frame and message. */
struct kvarn_reply;

/*
 * Build a call. deadline_ms: 0 or KVARN_DEADLINE_NONE for none. Returns 0 and sets *ret_call, owned
 * by the caller; KVARN_EINVALID for arguments that no daemon would take; KVARN_ETOO_LARGE when the
 * message is above the wire's limit; KVARN_ENOMEM. Arguments are not needed afterwards, the payload
 * they point at is.
 */
KVARN_API int kvarn_call_hello(const struct kvarn_hello_args *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_ping(uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_register_shape(const struct kvarn_shape *shape, uint32_t deadline_ms,
    struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_register_metric(const struct kvarn_register_metric_args *args,
    uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_read_metric(const struct kvarn_read_metric_args *args,
    uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_open_session(const struct kvarn_open_session_args *args,
    uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_append(const struct kvarn_append_args *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_append_tiles(const struct kvarn_append_tiles_args *args,
    uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_read_blocks(const struct kvarn_read_blocks_args *args,
    uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_attend(const struct kvarn_attend_args *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_append_attend(const struct kvarn_append_attend_args *args,
    uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_truncate(const struct kvarn_truncate_args *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_fork(const struct kvarn_fork_args *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_reorder(const struct kvarn_reorder_args *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_match_prefix(const struct kvarn_match_prefix_args *args,
    uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_close_session(const struct kvarn_close_session_args *args,
    uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_drop_session(const struct kvarn_drop_session_args *args,
    uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_touch(const struct kvarn_touch_args *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_pin(const struct kvarn_pin_args *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_evict(const struct kvarn_evict_args *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_prefetch(const struct kvarn_prefetch_args *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_list_jobs(
    uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_verify(const struct kvarn_verify_args *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_list_sessions(const struct kvarn_list_sessions_args *args,
    uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_inspect_session(const struct kvarn_inspect_session_args *args,
    uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_stats(uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;
KVARN_API int kvarn_call_cancel(const struct kvarn_cancel_args *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call) KVARN_MUST_CHECK;

/* Free a call that was not handed over. Accepts NULL. */
KVARN_API void kvarn_call_destroy(struct kvarn_call *call);

/* What the daemon said of the whole request; borrowed from the reply. */
KVARN_API const struct kvarn_status *kvarn_reply_status(const struct kvarn_reply *reply);

/*
 * Parse a reply. Returns the status' error (0 when the daemon did it); KVARN_EPROTOCOL when the
 * reply is of another call or contradicts itself; KVARN_ENOMEM. *ret is untouched on failure.
 * Pointers in results are borrowed from the reply. Replies without a result of their own
 * (CloseSession, DropSession) need only kvarn_reply_status().
 */
KVARN_API int kvarn_reply_hello(
    struct kvarn_reply *reply, struct kvarn_hello_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_ping(
    struct kvarn_reply *reply, struct kvarn_ping_result *ret) KVARN_MUST_CHECK;
/* Of RegisterShape with a metric and without. */
KVARN_API int kvarn_reply_register_shape(
    struct kvarn_reply *reply, struct kvarn_register_shape_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_read_metric(
    struct kvarn_reply *reply, struct kvarn_read_metric_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_open_session(
    struct kvarn_reply *reply, struct kvarn_open_session_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_append(
    struct kvarn_reply *reply, struct kvarn_append_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_append_tiles(
    struct kvarn_reply *reply, struct kvarn_append_tiles_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_read_blocks(
    struct kvarn_reply *reply, struct kvarn_read_blocks_result *ret) KVARN_MUST_CHECK;
/* Of Attend and of AppendAttend. */
KVARN_API int kvarn_reply_attend(
    struct kvarn_reply *reply, struct kvarn_attend_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_truncate(
    struct kvarn_reply *reply, struct kvarn_truncate_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_fork(
    struct kvarn_reply *reply, struct kvarn_fork_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_reorder(
    struct kvarn_reply *reply, struct kvarn_reorder_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_touch(
    struct kvarn_reply *reply, struct kvarn_touch_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_pin(
    struct kvarn_reply *reply, struct kvarn_pin_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_evict(
    struct kvarn_reply *reply, struct kvarn_evict_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_prefetch(
    struct kvarn_reply *reply, struct kvarn_prefetch_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_list_jobs(
    struct kvarn_reply *reply, struct kvarn_list_jobs_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_match_prefix(
    struct kvarn_reply *reply, struct kvarn_match_prefix_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_verify(
    struct kvarn_reply *reply, struct kvarn_verify_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_list_sessions(
    struct kvarn_reply *reply, struct kvarn_list_sessions_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_inspect_session(
    struct kvarn_reply *reply, struct kvarn_inspect_session_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_stats(
    struct kvarn_reply *reply, struct kvarn_stats_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_reply_cancel(
    struct kvarn_reply *reply, struct kvarn_cancel_result *ret) KVARN_MUST_CHECK;

/* ---- Options ---- */

enum kvarn_checksum {
    KVARN_CHECKSUM_AUTO = 0, /* on over TCP, off over a unix socket (SEMANTICS.md 24) */
    KVARN_CHECKSUM_ON = 1,
    KVARN_CHECKSUM_OFF = 2,
};

struct kvarn_client_options {
    const char *name;            /* for the daemon's log; NULL: this library's; copied */
    uint32_t connect_timeout_ms; /* connecting and Hello, and reconnecting; default 5,000 */
    uint32_t deadline_ms;        /* of calls; default 60,000; KVARN_DEADLINE_NONE: none */
    enum kvarn_checksum checksum;
    bool retry_later_fails; /* blocking: answer RETRY_LATER at once instead of trying again */
    bool reconnect_off;     /* a connection that broke stays so */
};

/* Fill in the defaults. */
KVARN_API void kvarn_client_options_init(struct kvarn_client_options *options);

/* ---- The blocking client ---- */

struct kvarn_client;

/*
 * Connect and say Hello. address: "unix:PATH" or "tcp:HOST:PORT" ("tcp:[::1]:7700" for IPv6).
 * options NULL: defaults. Returns 0 and sets *ret_client, owned by the caller; KVARN_EINVALID for
 * an address that is none; KVARN_EIO when nobody answers; else the daemon's refusal. On failure
 * `error_text` (NULL, or at least KVARN_CLIENT_ERROR_MAX bytes) says why.
 */
#define KVARN_CLIENT_ERROR_MAX 512
KVARN_API int kvarn_client_connect(const char *address, const struct kvarn_client_options *options,
    struct kvarn_client **ret_client, char *error_text) KVARN_MUST_CHECK;

/* Close the connection and free the client, its sessions and its results. Accepts NULL. */
KVARN_API void kvarn_client_destroy(struct kvarn_client *client);

/* Text of the last failure, naming the call; "" after a success. Valid until the next call. */
KVARN_API const char *kvarn_client_error(const struct kvarn_client *client);

/* Details of the last call: what the daemon said. Valid until the next call. */
KVARN_API const struct kvarn_status *kvarn_client_status(const struct kvarn_client *client);

/* What the daemon said at the last Hello. Valid until the next reconnection. */
KVARN_API const struct kvarn_hello_result *kvarn_client_server(const struct kvarn_client *client);

/* Deadline of the calls from now on. */
KVARN_API void kvarn_client_set_deadline(struct kvarn_client *client, uint32_t deadline_ms);

/* Id of the last request sent, as Cancel names it. */
KVARN_API uint64_t kvarn_client_request_id(const struct kvarn_client *client);

/* Times the client had to connect again. */
KVARN_API uint64_t kvarn_client_reconnect_count(const struct kvarn_client *client);

/*
 * The calls. Each waits for the reply, at most for the deadline (the daemon answers DEADLINE; a
 * daemon that does not even do that is given up one second later with KVARN_EIO). ret may be NULL
 * where the result is not wanted. Pointers in results hold until the client's next call.
 *
 * A connection that broke: before the request left, the client reconnects and sends it. After that,
 * before the reply, it reconnects and repeats calls whose repetition is safe: Ping, RegisterShape,
 * ReadMetric, OpenSession (but not CREATE of a named session, nor takeover), ReadBlocks, Attend,
 * List, Inspect, Stats, and Append and AppendAttend on named sessions, of which the daemon
 * recognises an identical retry (SEMANTICS.md 9). Others give KVARN_EIO. Shapes are registered
 * again and named sessions opened again (EXISTING) when next needed. A session whose epoch is not
 * the one that the client holds gives KVARN_ESTALE_EPOCH with the epoch and lengths that hold, in
 * every call, until kvarn_client_refresh_session(); one that is gone gives KVARN_ENOT_FOUND.
 *
 * RETRY_LATER is tried again within the deadline, after the daemon's retry_after_ms. Items of a
 * batch are not: each has its own status.
 */
KVARN_API int kvarn_client_ping(
    struct kvarn_client *client, struct kvarn_ping_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_register_shape(struct kvarn_client *client,
    const struct kvarn_shape *shape, struct kvarn_register_shape_result *ret) KVARN_MUST_CHECK;
/* ret->shape_id is 0: a session needs the shape registered by the call above. */
KVARN_API int kvarn_client_register_metric(struct kvarn_client *client,
    const struct kvarn_register_metric_args *args,
    struct kvarn_register_shape_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_read_metric(struct kvarn_client *client,
    const struct kvarn_read_metric_args *args,
    struct kvarn_read_metric_result *ret) KVARN_MUST_CHECK;
/* *ret_session is owned by the client, until close, drop or destroy. */
KVARN_API int kvarn_client_open_session(struct kvarn_client *client,
    const struct kvarn_open_session_args *args, struct kvarn_session **ret_session,
    struct kvarn_open_session_result *ret) KVARN_MUST_CHECK;
/* Take the session as it now is: open it again and hold its current epoch. */
KVARN_API int kvarn_client_refresh_session(struct kvarn_client *client,
    struct kvarn_session *session, struct kvarn_open_session_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_append(struct kvarn_client *client, const struct kvarn_append_args *args,
    struct kvarn_append_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_append_tiles(struct kvarn_client *client,
    const struct kvarn_append_tiles_args *args,
    struct kvarn_append_tiles_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_read_blocks(struct kvarn_client *client,
    const struct kvarn_read_blocks_args *args,
    struct kvarn_read_blocks_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_attend(struct kvarn_client *client, const struct kvarn_attend_args *args,
    struct kvarn_attend_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_append_attend(struct kvarn_client *client,
    const struct kvarn_append_attend_args *args, struct kvarn_attend_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_truncate(struct kvarn_client *client, struct kvarn_session *session,
    uint64_t length, struct kvarn_truncate_result *ret) KVARN_MUST_CHECK;
/*
 * Copies of sessions. ret_sessions: room for item_count; each is owned by the client, as after
 * kvarn_client_open_session(), or NULL where the item failed. Repeated after a lost reply if all
 * items have names and KVARN_OPEN_EITHER.
 */
KVARN_API int kvarn_client_fork(struct kvarn_client *client, const struct kvarn_fork_args *args,
    struct kvarn_session **ret_sessions, struct kvarn_fork_result *ret) KVARN_MUST_CHECK;
/* Sessions become copies of each other; the epochs of those that did are kept up to date. */
KVARN_API int kvarn_client_reorder(struct kvarn_client *client,
    const struct kvarn_reorder_args *args, struct kvarn_reorder_result *ret) KVARN_MUST_CHECK;
/* A lease ends with its connection: open the session before anything else may reconnect. */
KVARN_API int kvarn_client_match_prefix(struct kvarn_client *client,
    const struct kvarn_match_prefix_args *args,
    struct kvarn_match_prefix_result *ret) KVARN_MUST_CHECK;
/* The session object is gone afterwards, whatever is returned. */
KVARN_API int kvarn_client_close_session(
    struct kvarn_client *client, struct kvarn_session *session) KVARN_MUST_CHECK;
/* By session (its object is gone after success) or by name. */
KVARN_API int kvarn_client_drop_session(
    struct kvarn_client *client, struct kvarn_session *session) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_drop_name(
    struct kvarn_client *client, const char *name) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_touch(struct kvarn_client *client, const struct kvarn_touch_args *args,
    struct kvarn_touch_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_pin(struct kvarn_client *client, const struct kvarn_pin_args *args,
    struct kvarn_pin_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_evict(struct kvarn_client *client, const struct kvarn_evict_args *args,
    struct kvarn_evict_result *ret) KVARN_MUST_CHECK;
/* Returns when the job has begun; kvarn_client_list_jobs() tells how it goes. */
KVARN_API int kvarn_client_prefetch(struct kvarn_client *client,
    const struct kvarn_prefetch_args *args, struct kvarn_prefetch_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_list_jobs(
    struct kvarn_client *client, struct kvarn_list_jobs_result *ret) KVARN_MUST_CHECK;
/* One part: repeated with next_name and next_block while the result has more. */
KVARN_API int kvarn_client_verify(struct kvarn_client *client, const struct kvarn_verify_args *args,
    struct kvarn_verify_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_list_sessions(struct kvarn_client *client,
    const struct kvarn_list_sessions_args *args,
    struct kvarn_list_sessions_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_inspect_session(struct kvarn_client *client,
    const struct kvarn_inspect_session_args *args,
    struct kvarn_inspect_session_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_stats(
    struct kvarn_client *client, struct kvarn_stats_result *ret) KVARN_MUST_CHECK;
KVARN_API int kvarn_client_cancel(struct kvarn_client *client, uint64_t request_id,
    struct kvarn_cancel_result *ret) KVARN_MUST_CHECK;

#ifdef __cplusplus
}
#endif

#endif
