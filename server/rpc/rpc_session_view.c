/*
 * Calls that look at sessions: ListSessions and InspectSession. They show what holds now and wait
 * for nothing.
 *
 * Owner: the request. Thread: loop only.
 */
#include <inttypes.h>
#include <stddef.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/cold/cold_usage.h"
#include "server/evict/session_evict.h"
#include "server/rpc/rpc.h"
#include "server/rpc/rpc_check.h"
#include "server/rpc/rpc_shape.h"

#define NS_PER_MS 1000000

/* Room that a reply's message needs for everything but its summaries, generously. */
#define LIST_REST_BYTES 64

/* Layers summed up in one ListSessions: some 10 ns each stay within 100 us (SEMANTICS.md 18). */
#define LIST_LAYERS_MAX 8192

static void summary_fill(Kvarnd__SessionSummary *ret, const struct kvd_session *session,
    const struct kvd_session_usage *usage)
{
    struct kvd_io *io = session->service->io;
    uint64_t now_ns = io->ops->now_ns(io);
    uint64_t bytes = 0;

    for (int i = 0; i < KVD_PAGE_CLASS_COUNT; i++) {
        bytes += usage->bytes[i];
    }
    kvarnd__session_summary__init(ret);
    /* The generated type has no const; packing only reads. */
    ret->name = session->name == NULL ? (char *)(uintptr_t) "" : session->name;
    ret->model = session->shape->model;
    ret->has_length = 1;
    ret->length = kvd_session_length(session);
    ret->has_epoch = 1;
    ret->epoch = session->epoch;
    ret->has_bytes = 1;
    ret->bytes = bytes;
    ret->has_handles = 1;
    ret->handles = session->handle_count;
    ret->has_idle_ms = 1;
    ret->idle_ms = (now_ns - session->touched_ns) / NS_PER_MS;
    ret->has_ttl_left_ms = ret->has_priority = ret->has_pin_left_ms = ret->has_missing_tokens = 1;
    ret->ttl_left_ms = kvd_lifetime_ttl_left_ms(session);
    ret->priority = kvd_lifetime_priority(session);
    ret->pin_left_ms = kvd_lifetime_pin_left_ms(session);
    uint64_t missing_first, missing_last;
    kvd_session_missing_tokens(session, &missing_first, &missing_last);
    ret->missing_tokens = missing_last - missing_first;
    ret->has_away_blocks = ret->has_restart_tokens = ret->has_tail_cold = 1;
    ret->away_blocks = kvd_cold_away_blocks(session);
    ret->restart_tokens = kvd_cold_restart_tokens(session);
    ret->tail_cold = session->cold.is_tail_cold;
}

/* Bytes of a summary within its reply: tag, length of up to 3 bytes, and itself. */
static size_t summary_bytes(const Kvarnd__SessionSummary *summary)
{
    return kvarnd__session_summary__get_packed_size(summary) + 4;
}

/* The first session of the page: by its place in the order, however many come before. */
static struct kvd_session *list_first(
    struct kvd_session_table *table, const char *prefix, const char *after)
{
    struct kvd_session *session = NULL;

    if (prefix == NULL || (after != NULL && strcmp(after, prefix) >= 0)) {
        return kvd_session_table_next(table, KVD_TENANT_DEFAULT, after);
    }
    session = kvd_session_table_find(table, KVD_TENANT_DEFAULT, prefix);
    return session != NULL ? session : kvd_session_table_next(table, KVD_TENANT_DEFAULT, prefix);
}

/* Fill the page, in memory of the request; false without memory. */
static bool list_fill(struct kvd_request *request, Kvarnd__ListSessionsReply *reply)
{
    const Kvarnd__ListSessions *message = (const void *)request->message;
    struct kvd_session_table *table = &request->service->sessions;
    const char *prefix = message->prefix;
    size_t prefix_bytes = prefix == NULL ? 0 : strlen(prefix);
    size_t bytes = LIST_REST_BYTES;
    uint32_t layers = 0;

    reply->sessions =
        kvarn_wire_alloc_take(&request->alloc, message->limit * sizeof(Kvarnd__SessionSummary *));
    Kvarnd__SessionSummary *summaries =
        kvarn_wire_alloc_take(&request->alloc, message->limit * sizeof(*summaries));
    if (reply->sessions == NULL || summaries == NULL) {
        return false;
    }
    for (const struct kvd_session *session = list_first(table, prefix, message->after);
         session != NULL &&
         strncmp(session->name, prefix_bytes == 0 ? "" : prefix, prefix_bytes) == 0;
         session = kvd_session_table_next(table, KVD_TENANT_DEFAULT, session->name)) {
        Kvarnd__SessionSummary *summary = &summaries[reply->n_sessions];
        if (reply->n_sessions == message->limit || layers >= LIST_LAYERS_MAX) {
            reply->more = 1;
            break;
        }
        struct kvd_session_usage usage;
        kvd_session_usage(session, &usage);
        summary_fill(summary, session, &usage);
        bytes += summary_bytes(summary);
        if (bytes > KVARN_MESSAGE_BYTES_MAX) {
            reply->more = 1;
            break;
        }
        layers += session->shape->layer_count;
        reply->sessions[reply->n_sessions++] = summary;
    }
    return true;
}

void kvd_rpc_list_sessions(struct kvd_request *request)
{
    const Kvarnd__ListSessions *message = (const void *)request->message;
    Kvarnd__ListSessionsReply reply = KVARND__LIST_SESSIONS_REPLY__INIT;
    Kvarnd__Status status = KVARND__STATUS__INIT;
    struct kvd_failure why = {0};

    if (message->limit == 0 || message->limit > KVARN_LIST_PAGE_MAX) {
        kvd_fail(&why, KVARN_EINVALID, "limit must be 1 to %d, got %" PRIu32, KVARN_LIST_PAGE_MAX,
            message->limit);
    } else if (!list_fill(request, &reply)) {
        kvd_fail(&why, KVARN_ENOMEM, "no memory for a page of %" PRIu32, message->limit);
    }
    if (why.err != 0) {
        kvd_request_fail(request, &why);
        return;
    }
    reply.status = &status;
    reply.has_more = 1;
    kvd_request_reply(request, &reply.base, NULL, 0);
}

static void usage_to_wire(const struct kvd_session_usage *usage, Kvarnd__InspectSessionReply *reply)
{
    reply->has_tile_pages = reply->has_tile_bytes = 1;
    reply->tile_pages = usage->pages[KVD_PAGE_TILES];
    reply->tile_bytes = usage->bytes[KVD_PAGE_TILES];
    reply->has_sink_pages = reply->has_sink_bytes = 1;
    reply->sink_pages = usage->pages[KVD_PAGE_SINK];
    reply->sink_bytes = usage->bytes[KVD_PAGE_SINK];
    reply->has_tail_pages = reply->has_tail_bytes = 1;
    reply->tail_pages = usage->pages[KVD_PAGE_TAIL];
    reply->tail_bytes = usage->bytes[KVD_PAGE_TAIL];
    reply->has_reserved_bytes = 1;
    reply->reserved_bytes = usage->reserved_bytes;
}

static void options_to_wire(const struct kvd_session *session, Kvarnd__InspectSessionReply *reply)
{
    reply->has_pages_reference = reply->has_pages_refined = 1;
    reply->pages_reference = session->pages_by_encoder[KVARN_ENCODER_REFERENCE];
    reply->pages_refined = session->pages_by_encoder[KVARN_ENCODER_REFINED];
    reply->has_pages_aware = 1;
    reply->pages_aware = session->pages_by_encoder[KVARN_ENCODER_AWARE];
    const struct kvd_shape_metric *metric =
        kvd_metric_store_find(&session->service->query_metrics, session->shape);
    reply->has_metric_version = 1;
    reply->metric_version = metric == NULL ? 0 : metric->version_last;
    reply->has_encoder = 1;
    reply->encoder = (Kvarnd__Encoder)session->options.encoder;
    reply->has_seal_lag = 1;
    reply->seal_lag = session->options.seal_lag;
}

static void lifetime_to_wire(const struct kvd_session *session, Kvarnd__InspectSessionReply *reply)
{
    reply->has_ttl_ms = reply->has_pinned_bytes = 1;
    reply->ttl_ms = session->lifetime.ttl_ns / NS_PER_MS;
    reply->pinned_bytes = session->lifetime.pinned_bytes;
    reply->has_missing_first = reply->has_missing_last = 1;
    kvd_session_missing_tokens(session, &reply->missing_first, &reply->missing_last);
}

/* An InspectSession under way; in the request's memory. */
struct inspect_call {
    struct kvd_slice slice; /* listed while spans are left to be looked at */
    struct kvd_request *request;
    struct kvd_session *session; /* ref */
    struct kvd_session_shared shared;
    struct kvd_cold_usage cold;
    uint32_t span_idx;
};

static void sharing_to_wire(const struct inspect_call *call, Kvarnd__InspectSessionReply *reply)
{
    reply->has_shared_pages = reply->has_shared_bytes = 1;
    reply->shared_pages = call->shared.pages;
    reply->shared_bytes = call->shared.bytes;
    reply->has_prefix_tokens = reply->has_adopted_blocks = reply->has_share_prefix = 1;
    reply->prefix_tokens = call->session->prefix_tokens;
    reply->adopted_blocks = call->session->adopted_blocks;
    reply->share_prefix = call->session->prefix != NULL;
}

static void cold_to_wire(const struct kvd_cold_usage *cold, Kvarnd__InspectSessionReply *reply)
{
    reply->has_cold_blocks = reply->has_cold_bytes = 1;
    reply->cold_blocks = cold->cold.count;
    reply->cold_bytes = cold->cold.bytes;
    reply->has_loading_blocks = reply->has_loading_bytes = 1;
    reply->loading_blocks = cold->loading.count;
    reply->loading_bytes = cold->loading.bytes;
    reply->has_missing_blocks = reply->has_missing_bytes = 1;
    reply->missing_blocks = cold->missing.count;
    reply->missing_bytes = cold->missing.bytes;
    reply->has_stored_blocks = reply->has_stored_bytes = 1;
    reply->stored_blocks = cold->stored_blocks;
    reply->stored_bytes = cold->stored_bytes;
}

static void inspect_reply(const struct inspect_call *call)
{
    struct kvd_request *request = call->request;
    const struct kvd_session *session = call->session;
    const struct kvd_shape *shape = session->shape;
    uint64_t lengths[KVARN_LAYERS_MAX], sealed[KVARN_LAYERS_MAX];
    Kvarnd__InspectSessionReply reply = KVARND__INSPECT_SESSION_REPLY__INIT;
    Kvarnd__SessionSummary summary;
    Kvarnd__Status status = KVARND__STATUS__INIT;
    struct kvd_session_usage usage;

    for (uint32_t i = 0; i < shape->layer_count; i++) {
        lengths[i] = session->layers[i].length;
        sealed[i] = (uint64_t)session->layers[i].sealed_blocks * shape->group;
    }
    kvd_session_usage(session, &usage);
    summary_fill(&summary, session, &usage);
    reply.status = &status;
    reply.summary = &summary;
    reply.shape = kvd_rpc_shape_to_wire(&request->alloc, shape);
    if (reply.shape == NULL) {
        struct kvd_failure why = {0};
        kvd_fail(&why, KVARN_ENOMEM, "no memory for the reply");
        kvd_request_fail(request, &why);
        return;
    }
    reply.has_fingerprint = 1;
    reply.fingerprint.len = sizeof(shape->fingerprint);
    reply.fingerprint.data = (uint8_t *)(uintptr_t)shape->fingerprint;
    reply.n_layer_lengths = reply.n_layer_sealed = shape->layer_count;
    reply.layer_lengths = lengths;
    reply.layer_sealed = sealed;
    usage_to_wire(&usage, &reply);
    lifetime_to_wire(session, &reply);
    sharing_to_wire(call, &reply);
    cold_to_wire(&call->cold, &reply);
    options_to_wire(session, &reply);
    kvd_request_reply(request, &reply.base, NULL, 0);
}

/* Look at what is left of the spans, as far as this turn has time. */
static void inspect_run(struct inspect_call *call)
{
    struct kvd_slices *slices = &call->session->service->sessions.slices;
    struct kvd_session *session = call->session;

    kvd_cold_usage_add_span(session, call->span_idx, &call->cold);
    while (!kvd_session_shared_add(session, call->span_idx++, &call->shared)) {
        if (!kvd_slices_has_time(slices)) {
            kvd_slices_add(slices, &call->slice);
            return;
        }
        kvd_cold_usage_add_span(session, call->span_idx, &call->cold);
    }
    kvd_cold_usage_add_records(session, &call->cold);
    inspect_reply(call);
    kvd_session_unref(session);
}

static void inspect_slice_run(struct kvd_slice *slice)
{
    inspect_run((void *)((uint8_t *)slice - offsetof(struct inspect_call, slice)));
}

void kvd_rpc_inspect_session(struct kvd_request *request)
{
    const Kvarnd__InspectSession *message = (const void *)request->message;
    struct inspect_call *call = kvarn_wire_alloc_take(&request->alloc, sizeof(*call));
    struct kvd_failure why = {0};
    struct kvd_session *session =
        kvd_rpc_find_session(request, message->has_handle, message->handle, message->name, &why);

    if (session == NULL) {
        kvd_request_fail(request, &why);
        return;
    }
    if (call == NULL) {
        kvd_fail(&why, KVARN_ENOMEM, "no memory for the request");
        kvd_request_fail(request, &why);
        return;
    }
    *call = (struct inspect_call){.slice = {.run = inspect_slice_run},
        .request = request,
        .session = kvd_session_ref(session)};
    kvd_slices_begin(&session->service->sessions.slices);
    inspect_run(call);
}
