/*
 * Parsers of replies: unpacked messages to result structs. Arrays of results live in the reply's
 * memory, under the same budget as the message. No I/O.
 */
#include <string.h>

#include "client/src/reply.h"
#include "client/src/reply_status.h"
#include "kvarnd.pb-c.h"
#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "proto/wire_error.h"

void kvarn__status_from_wire(struct kvarn_status *ret, const Kvarnd__Status *status)
{
    ret->err = status->code == 0 ? 0 : kvarn_wire_error(status->code);
    ret->text = status->text != NULL ? status->text : kvarn_err_text(ret->err);
    ret->reason = status->has_reason ? (enum kvarn_miss_reason)status->reason : KVARN_MISS_NONE;
    ret->retry_after_ms = status->retry_after_ms;
    ret->has_epoch = status->has_epoch;
    ret->epoch = status->epoch;
    ret->layer_lengths = status->layer_lengths;
    ret->layer_count = status->n_layer_lengths;
}

/* The message of a reply that reports success of `type`; else the error. */
static int reply_open(
    const struct kvarn_reply *reply, enum kvarn_frame_type type, const ProtobufCMessage **ret)
{
    KVARN_ASSERT(reply->stage == KVARN__REPLY_COMPLETE);
    if (reply->status.err != 0) {
        return reply->status.err;
    }
    if (reply->header.type != type) {
        return KVARN_EPROTOCOL;
    }
    *ret = reply->message;
    return 0;
}

/* A typed view of the message; protobuf-c's structs begin with their base. */
#define OPEN(var, Type, reply, type)                       \
    const Kvarnd__##Type *var;                             \
    do {                                                   \
        const ProtobufCMessage *base;                      \
        int open_err = reply_open((reply), (type), &base); \
        if (open_err != 0)                                 \
            return open_err;                               \
        var = (const void *)base;                          \
    } while (0)

static const char *text_or_empty(const char *text)
{
    return text != NULL ? text : "";
}

/* Zeroed array in the reply's memory; NULL with KVARN_ENOMEM past the budget. */
static int array_take(struct kvarn_reply *reply, size_t count, size_t size, void **ret)
{
    void *array;

    if (count > reply->memory.limit_bytes / size) {
        return KVARN_EPROTOCOL;
    }
    array = kvarn_wire_alloc_take(&reply->memory, count * size + 1);
    if (array == NULL) {
        return KVARN_ENOMEM;
    }
    memset(array, 0, count * size);
    *ret = array;
    return 0;
}

static int fingerprint_copy(uint8_t to[16], const ProtobufCBinaryData *from)
{
    if (from->len != 16) {
        return KVARN_EPROTOCOL;
    }
    memcpy(to, from->data, 16);
    return 0;
}

int kvarn_reply_hello(struct kvarn_reply *reply, struct kvarn_hello_result *ret)
{
    OPEN(m, HelloReply, reply, KVARN_FRAME_HELLO);
    *ret = (struct kvarn_hello_result){
        .server_version = text_or_empty(m->server_version),
        .server_id = m->server_id,
        .tenant = text_or_empty(m->tenant),
        .message_bytes_max = m->message_bytes_max,
        .payload_bytes_max = m->payload_bytes_max,
        .credit_requests = m->credit_requests,
        .credit_bytes = m->credit_bytes,
    };
    return 0;
}

int kvarn_reply_ping(struct kvarn_reply *reply, struct kvarn_ping_result *ret)
{
    OPEN(m, PingReply, reply, KVARN_FRAME_PING);
    ret->uptime_ms = m->uptime_ms;
    return 0;
}

int kvarn_reply_register_shape(struct kvarn_reply *reply, struct kvarn_register_shape_result *ret)
{
    struct kvarn_register_shape_result result = {0};
    int err;

    OPEN(m, RegisterShapeReply, reply, KVARN_FRAME_REGISTER_SHAPE);
    err = fingerprint_copy(result.fingerprint, &m->fingerprint);
    if (err != 0) {
        return err;
    }
    result.shape_id = m->shape_id;
    result.metric_version = m->metric_version;
    *ret = result;
    return 0;
}

int kvarn_reply_open_session(struct kvarn_reply *reply, struct kvarn_open_session_result *ret)
{
    OPEN(m, OpenSessionReply, reply, KVARN_FRAME_OPEN_SESSION);
    if (!m->has_handle || !m->has_epoch) {
        return KVARN_EPROTOCOL;
    }
    *ret = (struct kvarn_open_session_result){
        .handle = m->handle,
        .epoch = m->epoch,
        .layer_lengths = m->layer_lengths,
        .layer_count = m->n_layer_lengths,
        .created = m->created,
        .shape_id = m->shape_id,
    };
    return 0;
}

int kvarn_reply_append(struct kvarn_reply *reply, struct kvarn_append_result *ret)
{
    OPEN(m, AppendReply, reply, KVARN_FRAME_APPEND);
    if (!m->has_epoch || !m->has_length) {
        return KVARN_EPROTOCOL;
    }
    *ret = (struct kvarn_append_result){
        .epoch = m->epoch,
        .length = m->length,
        .sealed_tokens = m->sealed_tokens,
        .repeated = m->repeated_request,
    };
    return 0;
}

int kvarn_reply_append_tiles(struct kvarn_reply *reply, struct kvarn_append_tiles_result *ret)
{
    OPEN(m, AppendTilesReply, reply, KVARN_FRAME_APPEND_TILES);
    if (!m->has_epoch) {
        return KVARN_EPROTOCOL;
    }
    *ret = (struct kvarn_append_tiles_result){
        .epoch = m->epoch,
        .lengths = m->lengths,
        .layer_count = m->n_lengths,
    };
    return 0;
}

int kvarn_reply_read_blocks(struct kvarn_reply *reply, struct kvarn_read_blocks_result *ret)
{
    struct kvarn_run *runs;
    void *memory;
    int err;

    OPEN(m, ReadBlocksReply, reply, KVARN_FRAME_READ_BLOCKS);
    err = array_take(reply, m->n_runs, sizeof *runs, &memory);
    if (err != 0) {
        return err;
    }
    runs = memory;
    for (size_t i = 0; i < m->n_runs; i++) {
        runs[i].layer = m->runs[i]->layer;
        runs[i].first_token = m->runs[i]->first_token;
        runs[i].token_count = m->runs[i]->token_count;
        runs[i].form = (enum kvarn_run_form)m->runs[i]->form;
    }
    *ret = (struct kvarn_read_blocks_result){
        .runs = runs,
        .run_count = m->n_runs,
        .data = reply->payload,
        .data_bytes = (size_t)reply->header.payload_bytes,
        .epoch = m->epoch,
    };
    return 0;
}

static void attend_item_parse(
    struct kvarn_attend_item_result *to, const Kvarnd__AttendItemReply *from)
{
    kvarn__status_from_wire(&to->status, from->status);
    to->length = from->length;
    to->sealed_tokens = from->sealed_tokens;
    to->appended = from->appended;
    to->has_epoch = from->has_epoch;
    to->epoch = from->epoch;
}

int kvarn_reply_attend(struct kvarn_reply *reply, struct kvarn_attend_result *ret)
{
    bool is_append = reply->header.type == KVARN_FRAME_APPEND_ATTEND;
    struct kvarn_attend_item_result *items;
    uint64_t lse_bytes = reply->lse_count * sizeof(float);
    uint64_t out_bytes;
    void *memory;
    int err;

    OPEN(m, AttendReply, reply, is_append ? KVARN_FRAME_APPEND_ATTEND : KVARN_FRAME_ATTEND);
    if (reply->header.payload_bytes < lse_bytes) {
        return KVARN_EPROTOCOL;
    }
    out_bytes = reply->header.payload_bytes - lse_bytes;
    if (out_bytes % sizeof(float) != 0) {
        return KVARN_EPROTOCOL; /* head_dim is a multiple of 8 */
    }
    err = array_take(reply, m->n_items, sizeof *items, &memory);
    if (err != 0) {
        return err;
    }
    items = memory;
    for (size_t i = 0; i < m->n_items; i++) {
        attend_item_parse(&items[i], m->items[i]);
    }
    *ret = (struct kvarn_attend_result){
        .items = items,
        .item_count = m->n_items,
        .out = reply->payload,
        .out_bytes = (size_t)out_bytes,
        .lse = (const void *)(reply->payload + out_bytes),
        .lse_count = (size_t)reply->lse_count,
    };
    return 0;
}

int kvarn_reply_truncate(struct kvarn_reply *reply, struct kvarn_truncate_result *ret)
{
    OPEN(m, TruncateReply, reply, KVARN_FRAME_TRUNCATE);
    if (!m->has_epoch) {
        return KVARN_EPROTOCOL;
    }
    *ret = (struct kvarn_truncate_result){
        .epoch = m->epoch,
        .layer_lengths = m->layer_lengths,
        .layer_count = m->n_layer_lengths,
        .lossy_tail = m->lossy_tail,
    };
    return 0;
}

int kvarn_reply_fork(struct kvarn_reply *reply, struct kvarn_fork_result *ret)
{
    struct kvarn_fork_item_result *items;
    void *memory;
    int err;

    OPEN(m, ForkReply, reply, KVARN_FRAME_FORK);
    err = array_take(reply, m->n_items, sizeof *items, &memory);
    if (err != 0) {
        return err;
    }
    items = memory;
    for (size_t i = 0; i < m->n_items; i++) {
        const Kvarnd__ForkItemReply *from = m->items[i];

        kvarn__status_from_wire(&items[i].status, from->status);
        if (items[i].status.err == 0 && (!from->has_handle || !from->has_epoch)) {
            return KVARN_EPROTOCOL;
        }
        items[i].handle = from->handle;
        items[i].epoch = from->epoch;
        items[i].length = from->length;
        items[i].created = from->created;
        items[i].lossy_tail = from->lossy_tail;
    }
    *ret = (struct kvarn_fork_result){.items = items, .item_count = m->n_items};
    return 0;
}

int kvarn_reply_reorder(struct kvarn_reply *reply, struct kvarn_reorder_result *ret)
{
    struct kvarn_reorder_item_result *items;
    void *memory;
    int err;

    OPEN(m, ReorderReply, reply, KVARN_FRAME_REORDER);
    err = array_take(reply, m->n_items, sizeof *items, &memory);
    if (err != 0) {
        return err;
    }
    items = memory;
    for (size_t i = 0; i < m->n_items; i++) {
        const Kvarnd__ReorderItemReply *from = m->items[i];

        kvarn__status_from_wire(&items[i].status, from->status);
        if (from->n_epochs != from->n_lengths) {
            return KVARN_EPROTOCOL;
        }
        items[i].epochs = from->epochs;
        items[i].lengths = from->lengths;
        items[i].session_count = from->n_epochs;
    }
    *ret = (struct kvarn_reorder_result){.items = items, .item_count = m->n_items};
    return 0;
}

int kvarn_reply_touch(struct kvarn_reply *reply, struct kvarn_touch_result *ret)
{
    OPEN(m, TouchReply, reply, KVARN_FRAME_TOUCH);
    *ret = (struct kvarn_touch_result){.ttl_left_ms = m->ttl_left_ms, .priority = m->priority};
    return 0;
}

int kvarn_reply_pin(struct kvarn_reply *reply, struct kvarn_pin_result *ret)
{
    OPEN(m, PinReply, reply, KVARN_FRAME_PIN);
    *ret = (struct kvarn_pin_result){
        .pinned_bytes = m->pinned_bytes, .budget_left_bytes = m->budget_left_bytes};
    return 0;
}

int kvarn_reply_evict(struct kvarn_reply *reply, struct kvarn_evict_result *ret)
{
    OPEN(m, EvictReply, reply, KVARN_FRAME_EVICT);
    *ret = (struct kvarn_evict_result){.blocks = m->blocks,
        .freed_bytes = m->freed_bytes,
        .missing_first = m->missing_first,
        .missing_last = m->missing_last};
    return 0;
}

int kvarn_reply_prefetch(struct kvarn_reply *reply, struct kvarn_prefetch_result *ret)
{
    OPEN(m, PrefetchReply, reply, KVARN_FRAME_PREFETCH);
    *ret = (struct kvarn_prefetch_result){.has_job = m->has_job_id,
        .job_id = m->job_id,
        .blocks = m->blocks,
        .bytes = m->bytes,
        .tokens = m->tokens};
    return 0;
}

int kvarn_reply_list_jobs(struct kvarn_reply *reply, struct kvarn_list_jobs_result *ret)
{
    struct kvarn_job *jobs;
    void *memory;
    int err;

    OPEN(m, ListJobsReply, reply, KVARN_FRAME_LIST_JOBS);
    err = array_take(reply, m->n_jobs, sizeof *jobs, &memory);
    if (err != 0) {
        return err;
    }
    jobs = memory;
    for (size_t i = 0; i < m->n_jobs; i++) {
        const Kvarnd__JobSummary *from = m->jobs[i];

        jobs[i] = (struct kvarn_job){.id = from->job_id,
            .session = from->session,
            .state = (enum kvarn_job_state)from->state,
            .blocks = from->blocks,
            .blocks_done = from->blocks_done,
            .bytes = from->bytes,
            .bytes_done = from->bytes_done,
            .age_ms = from->age_ms,
            .run_ms = from->has_run_ms ? from->run_ms : from->age_ms,
            .err = from->error == 0 ? 0 : kvarn_wire_error(from->error)};
    }
    *ret = (struct kvarn_list_jobs_result){.jobs = jobs, .job_count = m->n_jobs};
    return 0;
}

int kvarn_reply_match_prefix(struct kvarn_reply *reply, struct kvarn_match_prefix_result *ret)
{
    OPEN(m, MatchPrefixReply, reply, KVARN_FRAME_MATCH_PREFIX);
    *ret = (struct kvarn_match_prefix_result){
        .tokens = m->tokens,
        .lease = m->lease,
        .lease_ms = m->lease_ms,
    };
    return 0;
}

static void finding_parse(struct kvarn_verify_finding *to, const Kvarnd__VerifyFinding *from)
{
    *to = (struct kvarn_verify_finding){
        .session = text_or_empty(from->session),
        .part = (enum kvarn_verify_part)from->part,
        .block = from->block,
        .wrong_pages = from->wrong_pages,
        .layer = from->layer,
        .record_err = from->record_error == 0 ? 0 : kvarn_wire_error(from->record_error),
        .outcome = (enum kvarn_verify_outcome)from->outcome,
    };
}

int kvarn_reply_verify(struct kvarn_reply *reply, struct kvarn_verify_result *ret)
{
    struct kvarn_verify_finding *findings;
    void *memory;
    int err;

    OPEN(m, VerifyReply, reply, KVARN_FRAME_VERIFY);
    err = array_take(reply, m->n_findings, sizeof *findings, &memory);
    if (err != 0) {
        return err;
    }
    findings = memory;
    for (size_t i = 0; i < m->n_findings; i++) {
        finding_parse(&findings[i], m->findings[i]);
    }
    *ret = (struct kvarn_verify_result){
        .findings = findings,
        .finding_count = m->n_findings,
        .more = m->more,
        .next_name = m->next_name,
        .next_block = m->next_block,
        .session_blocks = m->session_blocks,
        .sessions = m->sessions,
        .blocks = m->blocks,
        .pages = m->pages,
        .page_bytes = m->page_bytes,
        .rows_pages = m->rows_pages,
        .records = m->records,
        .record_bytes = m->record_bytes,
        .wrong_pages = m->wrong_pages,
        .wrong_records = m->wrong_records,
        .unread_records = m->unread_records,
    };
    return 0;
}

static void summary_parse(struct kvarn_session_summary *to, const Kvarnd__SessionSummary *from)
{
    *to = (struct kvarn_session_summary){
        .name = from->name,
        .model = text_or_empty(from->model),
        .length = from->length,
        .epoch = from->epoch,
        .bytes = from->bytes,
        .handles = from->handles,
        .idle_ms = from->idle_ms,
        .ttl_left_ms = from->ttl_left_ms,
        .priority = from->priority,
        .pin_left_ms = from->pin_left_ms,
        .missing_tokens = from->missing_tokens,
        .away_blocks = from->away_blocks,
        .restart_tokens = from->restart_tokens,
        .tail_cold = from->tail_cold,
    };
}

int kvarn_reply_list_sessions(struct kvarn_reply *reply, struct kvarn_list_sessions_result *ret)
{
    struct kvarn_session_summary *sessions;
    void *memory;
    int err;

    OPEN(m, ListSessionsReply, reply, KVARN_FRAME_LIST_SESSIONS);
    err = array_take(reply, m->n_sessions, sizeof *sessions, &memory);
    if (err != 0) {
        return err;
    }
    sessions = memory;
    for (size_t i = 0; i < m->n_sessions; i++) {
        summary_parse(&sessions[i], m->sessions[i]);
    }
    *ret = (struct kvarn_list_sessions_result){
        .sessions = sessions,
        .session_count = m->n_sessions,
        .more = m->more,
    };
    return 0;
}

static int shape_parse(struct kvarn_reply *reply, struct kvarn_shape *to, const Kvarnd__Shape *from)
{
    struct kvarn_layer_group *groups;
    void *memory;
    int err = array_take(reply, from->n_layer_groups, sizeof *groups, &memory);

    if (err != 0) {
        return err;
    }
    groups = memory;
    for (size_t i = 0; i < from->n_layer_groups; i++) {
        const Kvarnd__LayerGroup *g = from->layer_groups[i];

        groups[i].layers = g->layers;
        groups[i].kv_heads = g->kv_heads;
        groups[i].k_dim = g->k_dim;
        groups[i].v_dim = g->has_v_dim ? g->v_dim : g->k_dim;
        groups[i].window = g->window;
    }
    *to = (struct kvarn_shape){
        .model = from->model,
        .revision = from->revision,
        .layer_groups = groups,
        .layer_group_count = from->n_layer_groups,
        .group = from->group,
        .k_bits = (uint8_t)from->k_bits,
        .v_bits = (uint8_t)from->v_bits,
        .sink_tokens = from->has_sink_tokens ? from->sink_tokens : KVARN_SINK_DEFAULT,
    };
    return 0;
}

/* Counts and payload that so many layers of a shape have. */
static void metric_sizes(
    const struct kvarn_read_metric_result *result, size_t *ret_counts, uint64_t *ret_bytes)
{
    uint64_t layer = 0;
    uint64_t last = (uint64_t)result->layer_first + result->layer_count;
    size_t counts = 0;
    uint64_t bytes = 0;

    for (size_t i = 0; i < result->shape.layer_group_count; i++) {
        const struct kvarn_layer_group *g = &result->shape.layer_groups[i];
        uint64_t at = layer > result->layer_first ? layer : result->layer_first;

        layer += g->layers;
        for (; at < layer && at < last; at++) {
            if (counts < result->count_count && result->counts[counts] > 0) {
                bytes += (uint64_t)g->kv_heads * g->k_dim * g->k_dim * sizeof(float);
            }
            counts += g->kv_heads;
        }
    }
    *ret_counts = counts;
    *ret_bytes = bytes;
}

int kvarn_reply_read_metric(struct kvarn_reply *reply, struct kvarn_read_metric_result *ret)
{
    struct kvarn_read_metric_result result = {0};
    uint64_t bytes = 0;
    size_t counts = 0;
    int err;

    OPEN(m, ReadMetricReply, reply, KVARN_FRAME_READ_METRIC);
    if (m->shape == NULL || m->n_versions > KVARN_LAYERS_MAX) {
        return KVARN_EPROTOCOL;
    }
    err = fingerprint_copy(result.fingerprint, &m->fingerprint);
    if (err == 0) {
        err = shape_parse(reply, &result.shape, m->shape);
    }
    if (err != 0) {
        return err;
    }
    result.metric_version = m->metric_version;
    result.layer_first = m->layer_first;
    result.layer_count = (uint32_t)m->n_versions;
    result.counts = m->counts;
    result.count_count = m->n_counts;
    result.versions = m->versions;
    result.data = reply->payload;
    result.data_bytes = (size_t)reply->header.payload_bytes;
    metric_sizes(&result, &counts, &bytes);
    if (counts != result.count_count || bytes != result.data_bytes) {
        return KVARN_EPROTOCOL;
    }
    *ret = result;
    return 0;
}

static void cold_parse(
    struct kvarn_inspect_session_result *to, const Kvarnd__InspectSessionReply *from)
{
    to->cold_blocks = from->cold_blocks;
    to->cold_bytes = from->cold_bytes;
    to->loading_blocks = from->loading_blocks;
    to->loading_bytes = from->loading_bytes;
    to->missing_blocks = from->missing_blocks;
    to->missing_bytes = from->missing_bytes;
    to->stored_blocks = from->stored_blocks;
    to->stored_bytes = from->stored_bytes;
}

int kvarn_reply_inspect_session(struct kvarn_reply *reply, struct kvarn_inspect_session_result *ret)
{
    struct kvarn_inspect_session_result result = {0};
    int err;

    OPEN(m, InspectSessionReply, reply, KVARN_FRAME_INSPECT_SESSION);
    if (m->summary == NULL || m->shape == NULL || m->n_layer_sealed != m->n_layer_lengths) {
        return KVARN_EPROTOCOL;
    }
    err = fingerprint_copy(result.fingerprint, &m->fingerprint);
    if (err != 0) {
        return err;
    }
    err = shape_parse(reply, &result.shape, m->shape);
    if (err != 0) {
        return err;
    }
    summary_parse(&result.summary, m->summary);
    result.layer_lengths = m->layer_lengths;
    result.layer_sealed = m->layer_sealed;
    result.layer_count = m->n_layer_lengths;
    result.tile_pages = m->tile_pages;
    result.tile_bytes = m->tile_bytes;
    result.sink_pages = m->sink_pages;
    result.sink_bytes = m->sink_bytes;
    result.tail_pages = m->tail_pages;
    result.tail_bytes = m->tail_bytes;
    result.reserved_bytes = m->reserved_bytes;
    result.pages_reference = m->pages_reference;
    result.pages_refined = m->pages_refined;
    result.pages_aware = m->pages_aware;
    result.metric_version = m->metric_version;
    result.encoder = (enum kvarn_encoder)m->encoder;
    result.seal_lag = m->seal_lag;
    result.ttl_ms = m->ttl_ms;
    result.pinned_bytes = m->pinned_bytes;
    result.missing_first = m->missing_first;
    result.missing_last = m->missing_last;
    result.shared_pages = m->shared_pages;
    result.shared_bytes = m->shared_bytes;
    result.prefix_tokens = m->prefix_tokens;
    result.adopted_blocks = m->adopted_blocks;
    result.share_prefix = m->share_prefix;
    cold_parse(&result, m);
    *ret = result;
    return 0;
}

static int ops_parse(
    struct kvarn_reply *reply, const Kvarnd__StatsReply *m, const struct kvarn_op_stats **ret)
{
    struct kvarn_op_stats *ops;
    void *memory;
    int err = array_take(reply, m->n_ops, sizeof *ops, &memory);

    if (err != 0) {
        return err;
    }
    ops = memory;
    for (size_t i = 0; i < m->n_ops; i++) {
        const Kvarnd__OpStats *o = m->ops[i];

        ops[i] = (struct kvarn_op_stats){o->op, o->count, o->errors, o->bytes_in, o->bytes_out,
            o->latency_us_p50, o->latency_us_p99, o->latency_us_max};
    }
    *ret = ops;
    return 0;
}

int kvarn_reply_stats(struct kvarn_reply *reply, struct kvarn_stats_result *ret)
{
    struct kvarn_stats_result result = {0};
    struct kvarn_counter *counters;
    void *memory;
    int err;

    OPEN(m, StatsReply, reply, KVARN_FRAME_STATS);
    err = ops_parse(reply, m, &result.ops);
    if (err != 0) {
        return err;
    }
    err = array_take(reply, m->n_counters, sizeof *counters, &memory);
    if (err != 0) {
        return err;
    }
    counters = memory;
    for (size_t i = 0; i < m->n_counters; i++) {
        counters[i].name = m->counters[i]->name;
        counters[i].value = m->counters[i]->value;
    }
    result.op_count = m->n_ops;
    result.counters = counters;
    result.counter_count = m->n_counters;
    *ret = result;
    return 0;
}

int kvarn_reply_cancel(struct kvarn_reply *reply, struct kvarn_cancel_result *ret)
{
    OPEN(m, CancelReply, reply, KVARN_FRAME_CANCEL);
    ret->found = m->found;
    return 0;
}
