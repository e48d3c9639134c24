/*
 * Calls about the connection and the daemon: Hello, Ping, Stats, Cancel.
 *
 * Owner: the request. Thread: loop only.
 */
#include <inttypes.h>
#include <string.h>

#include "kvarn/version.h"
#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/base/log.h"
#include "server/conn/conn.h"
#include "server/rpc/rpc.h"

/* The name by which a client asks for a checksum behind the payload of replies. */
#define FEATURE_PAYLOAD_XXH3 "payload_xxh3"

static bool hello_has_feature(const Kvarnd__Hello *message, const char *feature)
{
    for (size_t i = 0; i < message->n_features; i++) {
        if (strcmp(message->features[i], feature) == 0) {
            return true;
        }
    }
    return false;
}

/* Over a unix socket the kernel says who the peer is. */
static bool peer_is_allowed(const struct kvd_request *request)
{
    const struct kvd_peer *peer = kvd_conn_peer(request->conn);

    return !peer->is_unix || kvd_config_allows_uid(request->service->config, peer->uid);
}

static void hello_refuse(struct kvd_request *request)
{
    struct kvd_service *service = request->service;
    struct kvd_conn *conn = request->conn;
    struct kvd_log_gate *gate = &service->log_gates[KVD_LOG_GATE_PEER_NOT_ALLOWED];
    struct kvd_failure why = {0};
    uint64_t suppressed;

    kvd_metrics_add(&service->metrics, KVD_METRIC_connections_refused, 1);
    if (kvd_log_gate_pass(gate, request->arrived_ns, &suppressed)) {
        kvd_log(KVD_LOG_WARN, "peer_not_allowed", "peer=%s suppressed=%" PRIu64,
            kvd_conn_peer(conn)->text, suppressed);
    }
    kvd_fail(&why, KVARN_EFORBIDDEN, "uid %u is neither root, the daemon's own nor in allow-uids",
        (unsigned)kvd_conn_peer(conn)->uid);
    kvd_request_fail(request, &why);
    kvd_conn_finish(conn, "peer not allowed");
}

void kvd_rpc_hello(struct kvd_request *request)
{
    const Kvarnd__Hello *message = (const void *)request->message;
    const struct kvd_config *config = request->service->config;
    char *features[] = {(char *)(uintptr_t)FEATURE_PAYLOAD_XXH3};
    Kvarnd__HelloReply reply = KVARND__HELLO_REPLY__INIT;
    Kvarnd__Status ok = KVARND__STATUS__INIT;
    struct kvd_failure why = {0};

    if (kvd_conn_is_ready(request->conn)) {
        kvd_fail(&why, KVARN_EINVALID, "hello was said before on this connection");
        kvd_request_fail(request, &why);
        return;
    }
    if (!peer_is_allowed(request)) {
        hello_refuse(request);
        return;
    }
    kvd_conn_set_ready(request->conn, hello_has_feature(message, FEATURE_PAYLOAD_XXH3));
    reply.status = &ok;
    reply.server_version = (char *)(uintptr_t)KVARN_VERSION;
    reply.has_server_id = 1;
    reply.server_id = request->service->server_id;
    reply.n_features = 1;
    reply.features = features;
    reply.tenant = (char *)(uintptr_t)KVD_TENANT_DEFAULT_NAME;
    reply.has_message_bytes_max = 1;
    reply.message_bytes_max = KVARN_MESSAGE_BYTES_MAX;
    reply.has_payload_bytes_max = 1;
    reply.payload_bytes_max = config->payload_max;
    reply.has_credit_requests = 1;
    reply.credit_requests = (uint32_t)config->credit_requests;
    reply.has_credit_bytes = 1;
    reply.credit_bytes = config->credit_bytes;
    kvd_request_reply(request, &reply.base, NULL, 0);
}

void kvd_rpc_ping(struct kvd_request *request)
{
    const struct kvd_service *service = request->service;
    Kvarnd__PingReply reply = KVARND__PING_REPLY__INIT;
    Kvarnd__Status ok = KVARND__STATUS__INIT;

    reply.status = &ok;
    reply.has_uptime_ms = 1;
    reply.uptime_ms = (service->io->ops->now_ns(service->io) - service->start_ns) / 1000000;
    kvd_request_reply(request, &reply.base, NULL, 0);
}

static void op_fill(Kvarnd__OpStats *dst, unsigned type, const struct kvd_op_metrics *op)
{
    kvarnd__op_stats__init(dst);
    dst->op = (char *)(uintptr_t)kvarn_frame_type_label(type);
    dst->has_count = dst->has_errors = dst->has_bytes_in = dst->has_bytes_out = 1;
    dst->count = op->count;
    dst->errors = op->errors;
    dst->bytes_in = op->bytes_in;
    dst->bytes_out = op->bytes_out;
    dst->has_latency_us_p50 = dst->has_latency_us_p99 = dst->has_latency_us_max = 1;
    dst->latency_us_p50 = kvd_metrics_latency_us(op, 500);
    dst->latency_us_p99 = kvd_metrics_latency_us(op, 990);
    dst->latency_us_max = op->latency_us_max;
}

void kvd_rpc_stats(struct kvd_request *request)
{
    struct kvd_metrics *metrics = &request->service->metrics;
    Kvarnd__OpStats ops[KVARN_FRAME_TYPE_COUNT];
    Kvarnd__OpStats *op_list[KVARN_FRAME_TYPE_COUNT];
    Kvarnd__Counter counters[KVD_METRIC_COUNT];
    Kvarnd__Counter *counter_list[KVD_METRIC_COUNT];
    Kvarnd__StatsReply reply = KVARND__STATS_REPLY__INIT;
    Kvarnd__Status ok = KVARND__STATUS__INIT;

    kvd_service_gauges_set(request->service);
    for (unsigned i = 0; i < KVARN_FRAME_TYPE_COUNT; i++) {
        if (i != KVARN_FRAME_TYPE_ERROR && kvd_method_find(i) == NULL) {
            continue; /* a number that no call has */
        }
        op_fill(&ops[reply.n_ops], i, &metrics->ops[i]);
        op_list[reply.n_ops] = &ops[reply.n_ops];
        reply.n_ops++;
    }
    for (unsigned i = 0; i < KVD_METRIC_COUNT; i++) {
        kvarnd__counter__init(&counters[i]);
        counters[i].name = (char *)(uintptr_t)kvd_metric_name((enum kvd_metric)i);
        counters[i].value = metrics->values[i];
        counter_list[i] = &counters[i];
    }
    reply.status = &ok;
    reply.ops = op_list;
    reply.n_counters = KVD_METRIC_COUNT;
    reply.counters = counter_list;
    kvd_request_reply(request, &reply.base, NULL, 0);
    kvd_metrics_set(metrics, KVD_METRIC_loop_lag_us_max, 0);
}

void kvd_rpc_cancel(struct kvd_request *request)
{
    const Kvarnd__Cancel *message = (const void *)request->message;
    struct kvd_request *other = kvd_conn_request_find(request->conn, message->request_id);
    Kvarnd__CancelReply reply = KVARND__CANCEL_REPLY__INIT;
    Kvarnd__Status ok = KVARND__STATUS__INIT;

    reply.status = &ok;
    reply.has_found = 1;
    reply.found = other != NULL && other != request && kvd_request_cancel(other, KVARN_ECANCELLED);
    kvd_request_reply(request, &reply.base, NULL, 0);
}
