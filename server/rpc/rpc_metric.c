/*
 * ReadMetric: the query metrics in force, sent as they lie.
 *
 * Owner: the request; the reply's payload holds references on the versions until it is sent.
 * Thread: loop only.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/rpc/rpc.h"
#include "server/rpc/rpc_shape.h"
#include "server/session/session_blocks.h"

/* KV heads of one reply: their counts fit its message. */
#define HEADS_MAX (KVARN_MESSAGE_BYTES_MAX / 8)

/* The payload of a reply. */
struct metric_payload {
    struct kvd_service *service;  /* borrowed */
    struct kvd_metric_sum **sums; /* refs; array within this allocation */
    struct kvd_buf *bufs;         /* within this allocation */
    unsigned count;
    uint64_t bytes;
    size_t charged_bytes;
};

static void payload_destroy(struct metric_payload *payload)
{
    struct kvd_service *service = payload->service;
    size_t charged_bytes = payload->charged_bytes;

    for (unsigned i = 0; i < payload->count; i++) {
        kvd_metric_sum_unref(payload->sums[i]);
    }
    free(payload);
    kvd_budget_release(&service->budget, KVD_BUDGET_REPLIES, charged_bytes);
}

static void payload_release_cb(void *ctx)
{
    payload_destroy(ctx);
}

/* Room for `layer_count` layers; NULL: `why` says so. */
static struct metric_payload *payload_create(
    struct kvd_service *service, uint32_t layer_count, struct kvd_failure *why)
{
    size_t bytes = sizeof(struct metric_payload) +
                   layer_count * (sizeof(struct kvd_metric_sum *) + sizeof(struct kvd_buf));

    if (kvd_budget_charge(&service->budget, KVD_BUDGET_REPLIES, bytes) != 0) {
        (void)!kvd_session_fail_space(service, bytes, why);
        return NULL;
    }
    struct metric_payload *payload = calloc(1, bytes);
    if (payload == NULL) {
        kvd_budget_release(&service->budget, KVD_BUDGET_REPLIES, bytes);
        kvd_fail(why, KVARN_ENOMEM, "no memory for the reply");
        return NULL;
    }
    payload->service = service;
    payload->charged_bytes = bytes;
    payload->bufs = (void *)(payload + 1);
    payload->sums = (void *)(payload->bufs + layer_count);
    return payload;
}

/* The shape that the message names by exactly one of id and fingerprint. */
static const struct kvd_shape *metric_shape(
    const struct kvd_request *request, struct kvd_failure *why)
{
    const Kvarnd__ReadMetric *message = (const void *)request->message;
    const struct kvd_shape_registry *shapes = &request->service->shapes;
    const struct kvd_shape *shape = NULL;

    if (message->has_shape_id == message->has_fingerprint) {
        kvd_fail(why, KVARN_EINVALID, "give either a shape_id or a fingerprint, got %s",
            message->has_shape_id ? "both" : "neither");
        return NULL;
    }
    if (message->has_fingerprint && message->fingerprint.len != KVD_FINGERPRINT_BYTES) {
        kvd_fail(why, KVARN_EINVALID, "a fingerprint has %d bytes, got %zu", KVD_FINGERPRINT_BYTES,
            message->fingerprint.len);
        return NULL;
    }
    if (message->has_shape_id) {
        shape = kvd_shape_find(shapes, KVD_TENANT_DEFAULT, message->shape_id);
    } else {
        shape = kvd_shape_find_fingerprint(shapes, KVD_TENANT_DEFAULT, message->fingerprint.data);
    }
    if (shape == NULL) {
        kvd_fail(why, KVARN_ENOT_FOUND, "no such shape is registered");
    }
    return shape;
}

/* One layer's counts and version into the message, its sums into the payload. */
static void layer_add(const struct kvd_shape_metric *metric, const struct kvd_layer_shape *ls,
    uint32_t layer, Kvarnd__ReadMetricReply *reply, struct metric_payload *payload)
{
    struct kvd_metric_sum *sum = kvd_metric_pick(metric, layer);

    for (uint32_t head = 0; head < ls->kv_heads; head++) {
        reply->counts[reply->n_counts++] = sum == NULL ? 0 : sum->counts[head];
    }
    reply->versions[reply->n_versions++] = sum == NULL ? 0 : sum->version;
    if (sum == NULL) {
        return;
    }
    size_t bytes = (size_t)kvd_rpc_metric_layer_bytes(ls->kv_heads, ls->spec.k_dim);
    payload->bufs[payload->count] = (struct kvd_buf){.data = (void *)sum->sums, .bytes = bytes};
    payload->sums[payload->count++] = sum;
    payload->bytes += bytes;
}

/* Layers [first, last) into the reply, whose arrays are the request's. */
static int reply_fill(struct kvd_request *request, const struct kvd_shape *shape, uint32_t last,
    Kvarnd__ReadMetricReply *reply, struct metric_payload *payload, struct kvd_failure *why)
{
    const struct kvd_shape_metric *metric =
        kvd_metric_store_find(&request->service->query_metrics, shape);
    uint64_t payload_max = request->service->config->payload_max;
    size_t heads = 0;

    for (uint32_t layer = reply->layer_first; layer < last; layer++) {
        heads += shape->layers[layer].kv_heads;
    }
    if (heads > HEADS_MAX) {
        return kvd_fail(why, KVARN_ETOO_LARGE,
            "the layers have %zu KV heads, a reply has at most %d: ask for fewer layers", heads,
            HEADS_MAX);
    }
    reply->shape = kvd_rpc_shape_to_wire(&request->alloc, shape);
    reply->counts = kvarn_wire_alloc_take(&request->alloc, heads * sizeof(uint64_t));
    reply->versions = kvarn_wire_alloc_take(&request->alloc, (size_t)last * sizeof(uint32_t));
    if (reply->shape == NULL || reply->counts == NULL || reply->versions == NULL) {
        return kvd_fail(why, KVARN_ENOMEM, "no memory for the reply");
    }
    for (uint32_t layer = reply->layer_first; layer < last; layer++) {
        layer_add(metric, &shape->layers[layer], layer, reply, payload);
    }
    size_t message_bytes = kvarnd__read_metric_reply__get_packed_size(reply);
    if (payload->bytes > payload_max || message_bytes > KVARN_MESSAGE_BYTES_MAX) {
        return kvd_fail(why, KVARN_ETOO_LARGE,
            "the reply has %" PRIu64 " bytes of payload and %zu of message, the limits are %" PRIu64
            " and %d: ask for fewer layers",
            payload->bytes, message_bytes, payload_max, KVARN_MESSAGE_BYTES_MAX);
    }
    reply->has_metric_version = 1;
    reply->metric_version = metric == NULL ? 0 : metric->version_last;
    return 0;
}

static int layers_check(const Kvarnd__ReadMetric *message, const struct kvd_shape *shape,
    uint32_t *ret_last, struct kvd_failure *why)
{
    uint64_t first = message->layer_first;
    uint64_t last = message->has_layer_count ? first + message->layer_count : shape->layer_count;

    if (first >= last || last > shape->layer_count) {
        return kvd_fail(why, KVARN_EINVALID,
            "the shape has %" PRIu32 " layers, got [%" PRIu64 ", %" PRIu64 ")", shape->layer_count,
            first, last);
    }
    *ret_last = (uint32_t)last;
    return 0;
}

void kvd_rpc_read_metric(struct kvd_request *request)
{
    const Kvarnd__ReadMetric *message = (const void *)request->message;
    Kvarnd__ReadMetricReply reply = KVARND__READ_METRIC_REPLY__INIT;
    Kvarnd__Status status = KVARND__STATUS__INIT;
    struct metric_payload *payload = NULL;
    struct kvd_failure why = {0};
    uint32_t last = 0;
    const struct kvd_shape *shape = metric_shape(request, &why);

    if (shape != NULL && layers_check(message, shape, &last, &why) == 0) {
        payload = payload_create(request->service, last - message->layer_first, &why);
    }
    if (payload == NULL) {
        kvd_request_fail(request, &why);
        return;
    }
    reply.status = &status;
    reply.has_layer_first = 1;
    reply.layer_first = message->layer_first;
    reply.has_fingerprint = 1;
    reply.fingerprint.len = sizeof(shape->fingerprint);
    reply.fingerprint.data = (uint8_t *)(uintptr_t)shape->fingerprint; /* packing only reads */
    if (reply_fill(request, shape, last, &reply, payload, &why) != 0) {
        payload_destroy(payload);
        kvd_request_fail(request, &why);
        return;
    }
    kvd_request_expect_reply(request, payload->bytes);
    kvd_request_reply(request, &reply.base,
        &(struct kvd_reply_payload){.bufs = payload->bufs,
            .buf_count = payload->count,
            .bytes = payload->bytes,
            .release_cb = payload_release_cb,
            .ctx = payload},
        0);
}
