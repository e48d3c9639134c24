/*
 * Connections: accept, handshake state, deadlines, close.
 *
 * Owner: itself, from accept until its stream's closed callback. Thread: loop only.
 */
#include "server/conn/conn.h"

#include <inttypes.h>
#include <stdlib.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/base/log.h"
#include "server/conn/conn_impl.h"

#define NS_PER_MS 1000000

/* On top of header_timeout a payload has the time that this rate takes: a slow network is legal. */
#define PAYLOAD_BYTES_PER_MS_MIN 1024

void kvd_conn_accept(void *ctx, struct kvd_stream *stream, const struct kvd_peer *peer)
{
    struct kvd_service *service = ctx;
    struct kvd_io *io = service->io;
    struct kvd_log_gate *gate = &service->log_gates[KVD_LOG_GATE_CONN_REFUSED];
    struct kvd_conn *conn = NULL;
    uint64_t suppressed;

    kvd_metrics_add(&service->metrics, KVD_METRIC_connections_accepted, 1);
    if (service->conn_count < service->config->connections_max && !service->is_draining &&
        kvd_budget_charge(&service->budget, KVD_BUDGET_CONNS, sizeof(*conn)) == 0) {
        conn = calloc(1, sizeof(*conn));
        if (conn == NULL) {
            kvd_budget_release(&service->budget, KVD_BUDGET_CONNS, sizeof(*conn));
        }
    }
    if (conn == NULL) {
        kvd_metrics_add(&service->metrics, KVD_METRIC_connections_refused, 1);
        if (kvd_log_gate_pass(gate, io->ops->now_ns(io), &suppressed)) {
            kvd_log(KVD_LOG_WARN, "conn_refused", "peer=%s open=%" PRIu32 " suppressed=%" PRIu64,
                peer->text, service->conn_count, suppressed);
        }
        io->ops->stream_close(stream, NULL, NULL);
        return;
    }
    conn->service = service;
    conn->stream = stream;
    conn->peer = *peer;
    conn->opened_ns = io->ops->now_ns(io);
    conn->active_ns = conn->opened_ns;
    conn->slice.run = kvd_conn_slice_run;
    TAILQ_INIT(&conn->requests);
    STAILQ_INIT(&conn->writer.queue);
    LIST_INSERT_HEAD(&service->conns, conn, link);
    service->conn_count++;
    kvd_log(KVD_LOG_DEBUG, "conn_opened", "peer=%s open=%" PRIu32, peer->text, service->conn_count);
    kvd_conn_update_reading(conn);
    kvd_service_tick_arm(service);
}

static void stream_closed_cb(void *ctx)
{
    struct kvd_conn *conn = ctx;
    struct kvd_service *service = conn->service;

    kvd_conn_writer_fini(conn);
    kvd_conn_held_fini(conn);
    (void)XXH3_freeState(conn->reader.hash);
    LIST_REMOVE(conn, link);
    KVARN_ASSERT(service->conn_count > 0);
    service->conn_count--;
    kvd_budget_release(&service->budget, KVD_BUDGET_CONNS, sizeof(*conn));
    free(conn);
    kvd_service_tick_arm(service);
}

void kvd_conn_close(struct kvd_conn *conn, const char *reason)
{
    struct kvd_request *request;

    if (conn->is_closing) {
        return;
    }
    conn->is_closing = true;
    kvd_log(KVD_LOG_DEBUG, "conn_closed", "peer=%s reason=%s unanswered=%" PRIu32, conn->peer.text,
        reason, conn->request_count);
    kvd_conn_reader_fini(conn);
    kvd_slices_remove(&conn->service->sessions.slices, &conn->slice);
    while ((request = TAILQ_FIRST(&conn->requests)) != NULL) {
        kvd_conn_request_done(conn, request);
    }
    kvd_prefix_lease_table_fini(&conn->leases);
    kvd_conn_handles_fini(conn);
    conn->service->io->ops->stream_close(conn->stream, stream_closed_cb, conn);
}

void kvd_conn_finish(struct kvd_conn *conn, const char *reason)
{
    if (conn->is_finishing || conn->is_closing) {
        return;
    }
    conn->is_finishing = true;
    conn->reason = reason;
    kvd_conn_reader_fini(conn);
    if (!conn->is_in_read) {
        kvd_conn_flush(conn);
        kvd_conn_update_reading(conn);
        kvd_conn_try_finish(conn);
    }
}

void kvd_conn_try_finish(struct kvd_conn *conn)
{
    if (conn->is_finishing && !conn->is_closing && conn->request_count == 0 &&
        STAILQ_EMPTY(&conn->writer.queue)) {
        kvd_conn_close(conn, conn->reason);
    }
}

void kvd_conn_close_all(struct kvd_service *service, bool after_flush)
{
    struct kvd_conn *conn;

    LIST_FOREACH(conn, &service->conns, link)
    {
        if (after_flush) {
            kvd_conn_finish(conn, "stopping");
        } else {
            kvd_conn_close(conn, "stopping");
        }
    }
}

void kvd_conn_set_ready(struct kvd_conn *conn, bool wants_payload_xxh3)
{
    KVARN_ASSERT(!conn->is_ready);
    conn->is_ready = true;
    conn->wants_payload_xxh3 = wants_payload_xxh3;
}

bool kvd_conn_is_ready(const struct kvd_conn *conn)
{
    return conn->is_ready;
}

bool kvd_conn_wants_payload_xxh3(const struct kvd_conn *conn)
{
    return conn->wants_payload_xxh3;
}

const struct kvd_peer *kvd_conn_peer(const struct kvd_conn *conn)
{
    return &conn->peer;
}

struct kvd_service *kvd_conn_service(const struct kvd_conn *conn)
{
    return conn->service;
}

struct kvd_request *kvd_conn_request_find(struct kvd_conn *conn, uint64_t request_id)
{
    struct kvd_request *request;

    TAILQ_FOREACH(request, &conn->requests, link)
    {
        if (request->header.request_id == request_id) {
            return request;
        }
    }
    return NULL;
}

void kvd_conn_expect_output(struct kvd_conn *conn, uint64_t bytes)
{
    conn->output_bytes_expected += bytes;
}

void kvd_conn_request_done(struct kvd_conn *conn, struct kvd_request *request)
{
    KVARN_ASSERT(request->conn == conn && conn->request_count > 0);
    TAILQ_REMOVE(&conn->requests, request, link);
    request->conn = NULL;
    conn->request_count--;
    conn->credit_bytes_used -= request->header.payload_bytes;
    KVARN_ASSERT(conn->output_bytes_expected >= request->reply_bytes_expected);
    conn->output_bytes_expected -= request->reply_bytes_expected;
    conn->active_ns = conn->service->io->ops->now_ns(conn->service->io);
}

/* Deadlines. */

static bool is_past(uint64_t now_ns, uint64_t since_ns, uint64_t ms)
{
    return now_ns > since_ns && now_ns - since_ns > ms * NS_PER_MS;
}

/* Requests past their deadline are told so, once; any of them may be gone afterwards. */
static void requests_expire(struct kvd_conn *conn, uint64_t now_ns)
{
    struct kvd_request *request = TAILQ_FIRST(&conn->requests);

    while (request != NULL) {
        struct kvd_request *next = TAILQ_NEXT(request, link);
        if (request->deadline_ns != 0 && now_ns >= request->deadline_ns &&
            kvd_request_cancel(request, KVARN_EDEADLINE)) {
            next = TAILQ_FIRST(&conn->requests); /* ends, for each is cancelled once */
        }
        request = next;
    }
}

/* Why this connection has run out of time; NULL: it has not. */
static const char *timeout_reason(struct kvd_conn *conn, uint64_t now_ns)
{
    const struct kvd_config *config = conn->service->config;
    const struct kvd_conn_reader *reader = &conn->reader;
    struct kvd_conn_writer *writer = &conn->writer;

    if (!conn->is_ready && is_past(now_ns, conn->opened_ns, config->header_timeout)) {
        return "no hello in time";
    }
    if (reader->started_ns != 0 && conn->is_reading) {
        uint64_t ms = config->header_timeout + reader->payload_bytes / PAYLOAD_BYTES_PER_MS_MIN;
        if (is_past(now_ns, reader->started_ns, ms)) {
            return "request did not arrive in time";
        }
    }
    if (writer->writing_bytes > 0) {
        uint64_t left = conn->service->io->ops->stream_write_left(conn->stream);
        if (left < writer->left_bytes) {
            writer->left_bytes = left;
            writer->progress_ns = now_ns;
        }
        if (is_past(now_ns, writer->progress_ns, config->write_timeout)) {
            return "replies not read in time";
        }
    } else if (config->idle_timeout > 0 && conn->request_count == 0 &&
               is_past(now_ns, conn->active_ns, config->idle_timeout)) {
        return "idle";
    }
    return NULL;
}

void kvd_conn_tick_all(struct kvd_service *service, uint64_t now_ns)
{
    struct kvd_log_gate *gate = &service->log_gates[KVD_LOG_GATE_CONN_TIMED_OUT];
    struct kvd_conn *conn;
    struct kvd_conn *next;
    uint64_t suppressed;

    for (conn = LIST_FIRST(&service->conns); conn != NULL; conn = next) {
        next = LIST_NEXT(conn, link); /* a close frees on a later turn */
        if (conn->is_closing) {
            continue;
        }
        const char *reason = timeout_reason(conn, now_ns);
        if (reason != NULL) {
            kvd_metrics_add(&service->metrics, KVD_METRIC_connections_timed_out, 1);
            if (kvd_log_gate_pass(gate, now_ns, &suppressed)) {
                kvd_log(KVD_LOG_INFO, "conn_timed_out", "peer=%s reason=%s suppressed=%" PRIu64,
                    conn->peer.text, reason, suppressed);
            }
            kvd_conn_close(conn, reason);
        } else {
            requests_expire(conn, now_ns);
        }
    }
}
