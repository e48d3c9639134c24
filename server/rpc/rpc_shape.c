/*
 * RegisterShape: shapes, and the query metrics that come with them.
 *
 * Owner: the request. Thread: loop; import_run() on a worker, which copies from the payload into
 * sums that nobody else knows yet.
 */
#include "server/rpc/rpc_shape.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/rpc/rpc_check.h"
#include "server/session/session_blocks.h"

Kvarnd__Shape *kvd_rpc_shape_to_wire(struct kvarn_wire_alloc *alloc, const struct kvd_shape *shape)
{
    size_t count = shape->layer_group_count;
    Kvarnd__Shape *wire = kvarn_wire_alloc_take(alloc, sizeof(*wire));
    Kvarnd__LayerGroup *groups = kvarn_wire_alloc_take(alloc, count * sizeof(*groups));
    Kvarnd__LayerGroup **list = kvarn_wire_alloc_take(alloc, count * sizeof(Kvarnd__LayerGroup *));

    KVARN_ASSERT(count > 0);
    if (wire == NULL || groups == NULL || list == NULL) {
        return NULL;
    }
    for (size_t i = 0; i < count; i++) {
        const struct kvd_layer_group *from = &shape->layer_groups[i];
        kvarnd__layer_group__init(&groups[i]);
        groups[i].layers = from->layers;
        groups[i].kv_heads = from->kv_heads;
        groups[i].k_dim = from->k_dim;
        groups[i].has_v_dim = 1;
        groups[i].v_dim = from->v_dim;
        groups[i].has_window = 1;
        groups[i].window = from->window;
        list[i] = &groups[i];
    }
    kvarnd__shape__init(wire);
    wire->model = shape->model;
    wire->revision = shape->revision;
    wire->n_layer_groups = count;
    wire->layer_groups = list;
    wire->has_group = wire->has_k_bits = wire->has_v_bits = wire->has_sink_tokens = 1;
    wire->group = shape->group;
    wire->k_bits = shape->k_bits;
    wire->v_bits = shape->v_bits;
    wire->sink_tokens = shape->sink_tokens;
    return wire;
}

/* The layer groups with defaults filled in; NULL without memory. */
static struct kvd_layer_group *groups_from_wire(
    struct kvarn_wire_alloc *alloc, const Kvarnd__Shape *wire)
{
    struct kvd_layer_group *groups =
        kvarn_wire_alloc_take(alloc, (wire->n_layer_groups + 1) * sizeof(*groups));

    for (size_t i = 0; groups != NULL && i < wire->n_layer_groups; i++) {
        const Kvarnd__LayerGroup *group = wire->layer_groups[i];
        groups[i] = (struct kvd_layer_group){.layers = group->layers,
            .kv_heads = group->kv_heads,
            .k_dim = group->k_dim,
            .v_dim = group->has_v_dim ? group->v_dim : group->k_dim,
            .window = group->window};
    }
    return groups;
}

static int shape_register(struct kvd_request *request, const struct kvd_layer_group *groups,
    const struct kvd_shape **ret, struct kvd_failure *why)
{
    const Kvarnd__Shape *wire =
        ((const Kvarnd__RegisterShape *)(const void *)request->message)->shape;
    const char *revision = wire->revision == NULL ? "" : wire->revision;
    char text[sizeof(why->text)];
    int err = kvd_rpc_check_text(wire->model, "model", why);

    if (err == 0) {
        err = kvd_rpc_check_text(revision, "revision", why);
    }
    if (err != 0) {
        return err;
    }
    struct kvd_shape_desc desc = {.model = wire->model,
        .revision = revision,
        .group = wire->group,
        .k_bits = wire->k_bits,
        .v_bits = wire->v_bits,
        .sink_tokens = wire->has_sink_tokens ? wire->sink_tokens : wire->group,
        .layer_groups = groups,
        .layer_group_count = (uint32_t)wire->n_layer_groups};
    err = kvd_shape_register(
        &request->service->shapes, KVD_TENANT_DEFAULT, &desc, ret, text, sizeof(text));
    if (err == KVARN_ENOMEM) {
        return kvd_fail(why, err, "no memory for the shape");
    }
    return err == 0 ? 0 : kvd_fail(why, err, "%s", text);
}

static const Kvarnd__RegisterShape *register_message(const struct kvd_request *request)
{
    return (const void *)request->message;
}

/* Whether one layer's counts are there: all or none. Returns 1, 0, or an error. */
static int layer_has_counts(
    const uint64_t *counts, uint32_t kv_heads, uint32_t layer, struct kvd_failure *why)
{
    uint32_t there = 0;

    for (uint32_t head = 0; head < kv_heads; head++) {
        there += counts[head] > 0;
        if (counts[head] > KVARN_METRIC_QUERIES_MAX) {
            return kvd_fail(why, KVARN_EINVALID,
                "metric_counts: at most %" PRIu64 " queries, got %" PRIu64,
                (uint64_t)KVARN_METRIC_QUERIES_MAX, counts[head]);
        }
    }
    if (there > 0 && there < kv_heads) {
        return kvd_fail(why, KVARN_EINVALID,
            "metric_counts of layer %" PRIu32 ": all of its %" PRIu32
            " KV heads have queries or none, got %" PRIu32,
            layer, kv_heads, there);
    }
    return there > 0;
}

/* What the metric's layers that lie in one group take of counts and payload. */
struct metric_walk {
    const Kvarnd__RegisterShape *message;
    uint64_t layer; /* first of the group */
    size_t counts_at;
    uint64_t bytes;
};

static int walk_group(
    struct metric_walk *walk, const Kvarnd__LayerGroup *group, struct kvd_failure *why)
{
    const Kvarnd__RegisterShape *message = walk->message;
    uint64_t first = message->metric_layer_first;
    uint64_t last = first + message->metric_layer_count;
    uint64_t layer = walk->layer > first ? walk->layer : first;

    walk->layer += group->layers;
    for (; layer < last && layer < walk->layer; layer++) {
        if (group->kv_heads == 0 || group->kv_heads > KVARN_KV_HEADS_MAX || group->k_dim == 0 ||
            group->k_dim > KVARN_HEAD_DIM_MAX) {
            return kvd_fail(why, KVARN_EINVALID,
                "layer %" PRIu64 " has %" PRIu32 " KV heads of %" PRIu32 ": there are no such",
                layer, group->kv_heads, group->k_dim);
        }
        if (message->n_metric_counts - walk->counts_at < group->kv_heads) {
            return kvd_fail(why, KVARN_EINVALID,
                "metric_counts: expected one of each KV head of %" PRIu32 " layers, got %zu",
                message->metric_layer_count, message->n_metric_counts);
        }
        int has = layer_has_counts(
            message->metric_counts + walk->counts_at, group->kv_heads, (uint32_t)layer, why);
        if (has < 0) {
            return has;
        }
        walk->counts_at += group->kv_heads;
        walk->bytes += has > 0 ? kvd_rpc_metric_layer_bytes(group->kv_heads, group->k_dim) : 0;
    }
    return 0;
}

int kvd_rpc_register_shape_payload(
    const struct kvd_request *request, uint64_t *ret, struct kvd_failure *why)
{
    const Kvarnd__RegisterShape *message = register_message(request);
    struct metric_walk walk = {.message = message};

    if (message->metric_layer_count > KVARN_LAYERS_MAX) {
        return kvd_fail(why, KVARN_EINVALID, "metric_layer_count: at most %d, got %" PRIu32,
            KVARN_LAYERS_MAX, message->metric_layer_count);
    }
    if (message->metric_layer_count > 0 && message->shape->k_bits != 2) {
        return kvd_fail(why, KVARN_EINVALID,
            "a query metric is for keys of 2 bits, the shape's have %" PRIu32,
            message->shape->k_bits);
    }
    for (size_t i = 0; i < message->shape->n_layer_groups; i++) {
        int err = walk_group(&walk, message->shape->layer_groups[i], why);
        if (err != 0) {
            return err;
        }
    }
    if (message->metric_layer_count > 0 &&
        (uint64_t)message->metric_layer_first + message->metric_layer_count > walk.layer) {
        return kvd_fail(why, KVARN_EINVALID,
            "the shape has %" PRIu64 " layers, got a metric of %" PRIu32 " from %" PRIu32,
            walk.layer, message->metric_layer_count, message->metric_layer_first);
    }
    if (walk.counts_at != message->n_metric_counts) {
        return kvd_fail(why, KVARN_EINVALID,
            "metric_counts: expected %zu, one of each layer and KV head, got %zu", walk.counts_at,
            message->n_metric_counts);
    }
    *ret = walk.bytes;
    return 0;
}

static void register_reply(
    struct kvd_request *request, const struct kvd_shape *shape, uint32_t metric_version)
{
    Kvarnd__RegisterShapeReply reply = KVARND__REGISTER_SHAPE_REPLY__INIT;
    Kvarnd__Status status = KVARND__STATUS__INIT;

    KVARN_ASSERT(shape != NULL);
    reply.status = &status;
    reply.has_shape_id = 1;
    reply.shape_id = shape->id;
    reply.has_fingerprint = 1;
    reply.fingerprint.len = sizeof(shape->fingerprint);
    reply.fingerprint.data = (uint8_t *)(uintptr_t)shape->fingerprint; /* packing only reads */
    reply.has_metric_version = 1;
    reply.metric_version = metric_version;
    kvd_request_reply(request, &reply.base, NULL, 0);
}

/* A metric that is being taken over; in the request's memory. */
struct import_call {
    struct kvd_job job; /* first: the worker's handle; copies and checks one layer */
    struct kvd_request *request;
    struct kvd_shape_metric *metric;
    struct kvd_metric_sum **sums; /* refs, by layer of the message; NULL: nothing came for it */
    uint32_t layer_idx;           /* the job's */
    const uint8_t *src;           /* of that layer */
    bool is_bad;
    uint32_t bad_head;
};

static void import_end(struct import_call *call, const struct kvd_failure *why)
{
    const Kvarnd__RegisterShape *message = register_message(call->request);

    for (uint32_t i = 0; i < message->metric_layer_count; i++) {
        kvd_metric_sum_unref(call->sums[i]);
    }
    kvd_request_fail(call->request, why);
}

/* All layers are good: in one step they are what holds. */
static void import_install(struct import_call *call)
{
    const Kvarnd__RegisterShape *message = register_message(call->request);
    uint32_t version = kvd_metric_new_version(call->metric);

    for (uint32_t i = 0; i < message->metric_layer_count; i++) {
        if (call->sums[i] != NULL) {
            kvd_metric_put(call->metric, message->metric_layer_first + i, call->sums[i], version);
        }
    }
    register_reply(call->request, call->metric->shape, version);
}

/* Upper triangle finite, diagonal not negative. */
static bool head_is_sound(const float *a, uint32_t dim)
{
    for (uint32_t i = 0; i < dim; i++) {
        if (!(a[(size_t)i * dim + i] >= 0)) {
            return false;
        }
        for (uint32_t j = i; j < dim; j++) {
            if (!isfinite(a[(size_t)i * dim + j])) {
                return false;
            }
        }
    }
    return true;
}

static void import_run(struct kvd_job *job, void *scratch)
{
    struct import_call *call = (struct import_call *)(void *)job;
    struct kvd_metric_sum *sum = call->sums[call->layer_idx];
    size_t floats = kvd_metric_head_floats(sum);
    (void)scratch;

    memcpy(sum->sums, call->src, sum->kv_heads * floats * sizeof(float));
    for (uint32_t head = 0; head < sum->kv_heads && !call->is_bad; head++) {
        call->is_bad = !head_is_sound(sum->sums + head * floats, sum->dim);
        call->bad_head = head;
    }
}

/* Hand out the next layer that came. */
static void import_next(struct import_call *call)
{
    const Kvarnd__RegisterShape *message = register_message(call->request);

    while (call->layer_idx < message->metric_layer_count && call->sums[call->layer_idx] == NULL) {
        call->layer_idx++;
    }
    if (call->layer_idx == message->metric_layer_count) {
        import_install(call);
        return;
    }
    kvd_workers_submit(call->request->service->workers, &call->job);
}

static void import_done(struct kvd_job *job)
{
    struct import_call *call = (struct import_call *)(void *)job;
    const struct kvd_metric_sum *sum = call->sums[call->layer_idx];
    struct kvd_failure why = {0};

    if (call->is_bad) {
        kvd_fail(&why, KVARN_EDOMAIN,
            "the metric of layer %" PRIu32 ", KV head %" PRIu32
            " has a number that is not finite, or a negative one on its diagonal",
            register_message(call->request)->metric_layer_first + call->layer_idx, call->bad_head);
        import_end(call, &why);
        return;
    }
    call->src += kvd_rpc_metric_layer_bytes(sum->kv_heads, sum->dim);
    call->layer_idx++;
    import_next(call);
}

/* Room for the sums of every layer that comes. */
static int import_reserve(
    struct import_call *call, const struct kvd_shape *shape, struct kvd_failure *why)
{
    struct kvd_metric_store *store = &call->request->service->query_metrics;
    const Kvarnd__RegisterShape *message = register_message(call->request);
    const uint64_t *counts = message->metric_counts;

    KVARN_ASSERT(shape != NULL);
    for (uint32_t i = 0; i < message->metric_layer_count; i++) {
        const struct kvd_layer_shape *ls = &shape->layers[message->metric_layer_first + i];
        if (counts[0] > 0) {
            int err = kvd_metric_sum_create(store, ls, &call->sums[i]);
            if (err != 0) {
                return kvd_fail(why, err,
                    "the query metrics of %" PRIu32 " layers do not fit: %" PRIu64
                    " of at most %" PRIu64 " bytes are used (--metric-memory)",
                    message->metric_layer_count, store->used_bytes, store->bytes_max);
            }
            memcpy(call->sums[i]->counts, counts, ls->kv_heads * sizeof(counts[0]));
            for (uint32_t head = 0; head < ls->kv_heads; head++) {
                call->sums[i]->zeroed[head] = ls->spec.k_dim;
            }
        }
        counts += ls->kv_heads;
    }
    return 0;
}

/* It holds once it is answered: what arrives before that may meet the old one. */
static void import_start(struct kvd_request *request, const struct kvd_shape *shape)
{
    const Kvarnd__RegisterShape *message = register_message(request);
    size_t count = message->metric_layer_count;
    struct import_call *call = kvarn_wire_alloc_take(&request->alloc, sizeof(*call));
    struct kvd_metric_sum **sums =
        kvarn_wire_alloc_take(&request->alloc, count * sizeof(struct kvd_metric_sum *));
    struct kvd_failure why = {0};

    if (call == NULL || sums == NULL) {
        kvd_fail(&why, KVARN_ENOMEM, "no memory for the request");
        kvd_request_fail(request, &why);
        return;
    }
    memset(sums, 0, count * sizeof(struct kvd_metric_sum *));
    *call = (struct import_call){.request = request, .sums = sums, .src = request->payload};
    call->job.run = import_run;
    call->job.done = import_done;
    int err = kvd_metric_store_get(&request->service->query_metrics, shape, &call->metric);
    if (err != 0) {
        kvd_fail(&why, err, "no memory for the shape's query metrics");
    } else {
        err = import_reserve(call, shape, &why);
    }
    if (err != 0) {
        import_end(call, &why);
        return;
    }
    import_next(call);
}

void kvd_rpc_register_shape(struct kvd_request *request)
{
    const Kvarnd__RegisterShape *message = register_message(request);
    const struct kvd_shape *shape = NULL;
    struct kvd_failure why = {0};
    struct kvd_layer_group *groups = groups_from_wire(&request->alloc, message->shape);

    if (groups == NULL) {
        kvd_fail(&why, KVARN_ENOMEM, "no memory for the request");
    } else {
        (void)!shape_register(request, groups, &shape, &why);
    }
    if (why.err != 0) {
        kvd_request_fail(request, &why);
        return;
    }
    if (message->metric_layer_count > 0) {
        import_start(request, shape);
        return;
    }
    const struct kvd_shape_metric *metric =
        kvd_metric_store_find(&request->service->query_metrics, shape);
    register_reply(request, shape, metric == NULL ? 0 : metric->version_last);
}
