/*
 * libkvarn_client on the caller's uv_loop: many calls in flight, replies in any order.
 *
 * Calls are those of kvarn/client.h: build one with kvarn_call_x(), submit it, parse the reply in
 * the callback with kvarn_reply_x(). Every function and callback runs on the loop's thread. No
 * callback runs inside kvarn_uv_submit() or kvarn_uv_connect().
 *
 * When the connection breaks, calls in flight end with KVARN_EIO (their outcome is not known), and
 * the client connects again with back-off (50 ms doubled up to 2 s, forever) and says Hello;
 * handles of sessions are void then and the caller opens its sessions again from state_cb. Calls
 * submitted meanwhile wait; those beyond the daemon's credit wait as well.
 */
#ifndef KVARN_CLIENT_UV_H
#define KVARN_CLIENT_UV_H

#include "kvarn/client.h"

#ifdef __cplusplus
extern "C" {
#endif

struct uv_loop_s;
struct kvarn_uv_client;

/*
 * The connection is ready (err 0: Hello was answered, kvarn_uv_server() is valid) or is gone (err
 * says why). Runs at every change.
 */
typedef void (*kvarn_uv_state_cb)(struct kvarn_uv_client *client, int err, void *ctx);

/*
 * A call has ended. err 0: reply is valid until the callback returns (its status may still be an
 * error). Otherwise reply is NULL: KVARN_EIO when the connection broke or the daemon was silent one
 * second beyond the deadline, KVARN_EPROTOCOL, KVARN_ECANCELLED when the client was closed.
 */
typedef void (*kvarn_uv_reply_cb)(
    struct kvarn_uv_client *client, int err, struct kvarn_reply *reply, void *ctx);

/* The client's memory is gone when this returns. */
typedef void (*kvarn_uv_close_cb)(void *ctx);

/*
 * Begin to connect. `loop` is borrowed and must outlive the client. Returns 0 and sets *ret_client,
 * to be ended with kvarn_uv_close(); KVARN_EINVALID for an address that is none; KVARN_ENOMEM;
 * KVARN_EIO when the loop takes no more handles.
 */
KVARN_API int kvarn_uv_connect(struct uv_loop_s *loop, const char *address,
    const struct kvarn_client_options *options, kvarn_uv_state_cb state_cb, void *ctx,
    struct kvarn_uv_client **ret_client) KVARN_MUST_CHECK;

/*
 * Send a call. On success the call belongs to the client and cb runs exactly once; its payload must
 * live until then. On failure the call stays the caller's: KVARN_ETOO_LARGE when the payload is
 * above what the daemon takes, KVARN_EIO when the connection broke and reconnect_off is set,
 * KVARN_ECANCELLED after kvarn_uv_close(). ret_request_id (may be NULL): what Cancel names.
 */
KVARN_API int kvarn_uv_submit(struct kvarn_uv_client *client, struct kvarn_call *call,
    kvarn_uv_reply_cb cb, void *ctx, uint64_t *ret_request_id) KVARN_MUST_CHECK;

/* What the daemon said at Hello; NULL while not connected. */
KVARN_API const struct kvarn_hello_result *kvarn_uv_server(const struct kvarn_uv_client *client);

/* Calls submitted and not ended. */
KVARN_API size_t kvarn_uv_in_flight_count(const struct kvarn_uv_client *client);

/* Close. Calls not ended get KVARN_ECANCELLED before cb (may be NULL) runs. Only once. */
KVARN_API void kvarn_uv_close(struct kvarn_uv_client *client, kvarn_uv_close_cb cb, void *ctx);

#ifdef __cplusplus
}
#endif

#endif
