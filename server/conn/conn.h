/*
 * One connection's life: handshake, framing, credit, deadlines, output.
 *
 * Owner: itself, from kvd_conn_accept() until its stream's closed callback; listed in the service.
 * Thread: loop only. Parses frames straight into message and staging buffers, hands complete
 * requests to rpc, gathers replies into one write at a time.
 */
#ifndef KVD_CONN_H
#define KVD_CONN_H

#include "server/rpc/request.h"

/* Take over a new stream: as kvd_accept_cb, ctx is the service. Refuses (closes) past limits. */
void kvd_conn_accept(void *service, struct kvd_stream *stream, const struct kvd_peer *peer);

/* Close now; requests in flight go on without it. `reason` is for the log. Safe to call again. */
void kvd_conn_close(struct kvd_conn *conn, const char *reason);

/* Take no more requests; close once all that came are answered and sent. */
void kvd_conn_finish(struct kvd_conn *conn, const char *reason);

/* Close every connection; with `after_flush`, once what is queued has been sent. */
void kvd_conn_close_all(struct kvd_service *service, bool after_flush);

/* Deadlines of all connections and their requests; called by the service's tick. */
void kvd_conn_tick_all(struct kvd_service *service, uint64_t now_ns);

/* Hello succeeded. */
void kvd_conn_set_ready(struct kvd_conn *conn, bool wants_payload_xxh3);
bool kvd_conn_is_ready(const struct kvd_conn *conn);
bool kvd_conn_wants_payload_xxh3(const struct kvd_conn *conn);
const struct kvd_peer *kvd_conn_peer(const struct kvd_conn *conn);
struct kvd_service *kvd_conn_service(const struct kvd_conn *conn);

/*
 * Handles. Add takes a reference on the session; the handle is never reused within the connection.
 * Returns 0, KVARN_ENOMEM, or KVARN_ETOO_LARGE past KVD_CONN_HANDLES_MAX.
 */
#define KVD_CONN_HANDLES_MAX 65536
int kvd_conn_handle_add(
    struct kvd_conn *conn, struct kvd_session *session, uint64_t *ret_handle) KVARN_MUST_CHECK;
struct kvd_session *kvd_conn_handle_find(const struct kvd_conn *conn, uint64_t handle);
/* Drops the reference; an unnamed session ends with its last handle. False: no such handle. */
bool kvd_conn_handle_remove(struct kvd_conn *conn, uint64_t handle);

/* Leases on prefixes: they end with the connection. */
struct kvd_prefix_lease_table *kvd_conn_leases(struct kvd_conn *conn);

/* An unanswered request of this connection, by id; NULL if none. */
struct kvd_request *kvd_conn_request_find(struct kvd_conn *conn, uint64_t request_id);

/*
 * Queue a packed reply: takes over `head` (malloc'ed header + message) and the payload's release.
 * `trailer` not NULL: eight bytes that follow the payload.
 */
void kvd_conn_send(struct kvd_conn *conn, void *head, size_t head_bytes,
    const struct kvd_reply_payload *payload, const uint64_t *trailer);

/* A request in flight will have this much payload in its reply; kvd_conn_request_done() ends it. */
void kvd_conn_expect_output(struct kvd_conn *conn, uint64_t bytes);

/* Forget a request that has been answered: its credit comes back. */
void kvd_conn_request_done(struct kvd_conn *conn, struct kvd_request *request);

#endif
