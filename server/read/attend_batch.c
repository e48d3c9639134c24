/*
 * What Attend and AppendAttend share: their parameters, their items, and the one reply.
 *
 * Owner: the request. Thread: loop only.
 */
#include "server/read/attend_batch.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/append/metric_sample.h"
#include "server/service.h"
#include "server/session/session_blocks.h"

/* Statuses with words; the rest of a batch has numbers only, so that a reply's message stays small.
 */
#define ITEM_TEXTS_MAX 64

int kvd_attend_params_check(const Kvarnd__AttendParams *params, struct kvd_failure *why)
{
    if (params->q_heads == 0 || params->q_heads > KVARN_Q_HEADS_MAX) {
        return kvd_fail(why, KVARN_EINVALID, "q_heads must be 1 to %d, got %" PRIu32,
            KVARN_Q_HEADS_MAX, params->q_heads);
    }
    if (kvarn_dtype_bytes((enum kvarn_dtype)params->q_dtype) == 0 ||
        kvarn_dtype_bytes((enum kvarn_dtype)params->out_dtype) == 0) {
        return kvd_fail(why, KVARN_EINVALID, "unknown q_dtype %d or out_dtype %d",
            (int)params->q_dtype, (int)params->out_dtype);
    }
    if ((unsigned)params->accuracy > KVARND__ACCURACY__FAST) {
        return kvd_fail(why, KVARN_EINVALID, "unknown accuracy %d", (int)params->accuracy);
    }
    if (params->has_scale && !isfinite(params->scale)) {
        return kvd_fail(why, KVARN_EDOMAIN, "scale is not finite");
    }
    if (params->has_softcap && !(isfinite(params->softcap) && params->softcap >= 0)) {
        return kvd_fail(why, KVARN_EINVALID, "softcap must be finite and not negative");
    }
    return 0;
}

struct kvd_session *kvd_attend_item_session(const struct kvd_request *request,
    const Kvarnd__AttendParams *params, uint64_t handle, uint32_t item_idx, struct kvd_failure *why)
{
    struct kvd_session *session = kvd_request_session(request, handle, why);

    if (session == NULL) {
        kvd_fail(why, KVARN_ENOT_FOUND, "item %" PRIu32 ": no handle %" PRIu64, item_idx, handle);
        return NULL;
    }
    if (params->layer >= session->shape->layer_count) {
        kvd_fail(why, KVARN_EINVALID,
            "item %" PRIu32 ": its shape has %" PRIu32 " layers, got layer %" PRIu32, item_idx,
            session->shape->layer_count, params->layer);
        return NULL;
    }
    return session;
}

uint64_t kvd_attend_q_bytes(
    const Kvarnd__AttendParams *params, const struct kvd_session *session, uint32_t q_tokens)
{
    return (uint64_t)params->q_heads * q_tokens * session->shape->layers[params->layer].spec.k_dim *
           kvarn_dtype_bytes((enum kvarn_dtype)params->q_dtype);
}

struct kvd_attend_batch *kvd_attend_batch_create(struct kvd_request *request,
    const Kvarnd__AttendParams *params, size_t item_count, struct kvd_failure *why)
{
    struct kvd_service *service = request->service;
    struct kvd_attend_batch *batch = NULL;
    size_t bytes = sizeof(*batch) + item_count * sizeof(batch->items[0]);

    KVARN_ASSERT(item_count > 0 && item_count <= KVARN_BATCH_ITEMS_MAX);
    if (kvd_budget_charge(&service->budget, KVD_BUDGET_REPLIES, bytes) != 0) {
        (void)!kvd_session_fail_space(service, bytes, why);
        return NULL;
    }
    batch = calloc(1, bytes);
    if (batch == NULL) {
        kvd_budget_release(&service->budget, KVD_BUDGET_REPLIES, bytes);
        kvd_fail(why, KVARN_ENOMEM, "a batch needs %zu bytes", bytes);
        return NULL;
    }
    batch->service = service;
    batch->request = request;
    batch->params = params;
    batch->item_count = (uint32_t)item_count;
    batch->parts_left = 1;
    batch->charged_bytes = bytes;
    for (size_t i = 0; i < item_count; i++) {
        batch->items[i].batch = batch;
    }
    return batch;
}

void kvd_attend_batch_destroy(struct kvd_attend_batch *batch)
{
    struct kvd_service *service = batch->service;
    size_t charged_bytes = batch->charged_bytes;

    for (uint32_t i = 0; i < batch->item_count; i++) {
        if (batch->items[i].session != NULL) {
            kvd_session_unref(batch->items[i].session);
        }
    }
    kvd_reply_buffer_destroy(batch->reply);
    free(batch);
    kvd_budget_release(&service->budget, KVD_BUDGET_REPLIES, charged_bytes);
}

static uint64_t item_rows(const struct kvd_attend_item *item)
{
    return (uint64_t)item->batch->params->q_heads * item->q_tokens;
}

static uint64_t item_out_bytes(const struct kvd_attend_item *item)
{
    const Kvarnd__AttendParams *params = item->batch->params;

    return item_rows(item) * item->session->shape->layers[params->layer].spec.v_dim *
           kvarn_dtype_bytes((enum kvarn_dtype)params->out_dtype);
}

int kvd_attend_batch_reserve(struct kvd_attend_batch *batch, struct kvd_failure *why)
{
    struct kvd_service *service = batch->request->service;
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < batch->item_count; i++) {
        batch->items[i].out_offset = bytes;
        bytes += item_out_bytes(&batch->items[i]);
    }
    for (uint32_t i = 0; i < batch->item_count; i++) {
        batch->items[i].lse_offset = bytes;
        bytes += item_rows(&batch->items[i]) * sizeof(float);
    }
    if (bytes > service->config->payload_max) {
        return kvd_fail(why, KVARN_ETOO_LARGE,
            "the reply has %" PRIu64 " bytes, the limit is %" PRIu64, bytes,
            service->config->payload_max);
    }
    kvd_request_expect_reply(batch->request, bytes);
    return kvd_reply_buffer_create(service, bytes, &batch->reply, why);
}

int kvd_attend_item_check(struct kvd_attend_item *item)
{
    const Kvarnd__AttendParams *params = item->batch->params;
    uint32_t kv_heads = item->session->shape->layers[params->layer].kv_heads;

    if (params->q_heads % kv_heads != 0) {
        return kvd_fail(&item->why, KVARN_EINVALID,
            "q_heads must be a multiple of the layer's %" PRIu32 " KV heads, got %" PRIu32,
            kv_heads, params->q_heads);
    }
    if (item->q_tokens == 0) {
        return kvd_fail(&item->why, KVARN_EINVALID, "query_tokens must not be 0");
    }
    if (item->has_position && item->position > KVARN_SESSION_TOKENS_MAX) {
        return kvd_fail(&item->why, KVARN_EINVALID,
            "position must be at most %" PRIu64 ", got %" PRIu64, KVARN_SESSION_TOKENS_MAX,
            item->position);
    }
    if (item->has_last && item->first > item->last) {
        return kvd_fail(&item->why, KVARN_EINVALID,
            "token_first %" PRIu64 " is after token_last %" PRIu64, item->first, item->last);
    }
    return 0;
}

static bool item_is_sampled(const struct kvd_attend_item *item)
{
    const Kvarnd__AttendParams *params = item->batch->params;

    return item->q_tokens > 0 &&
           params->q_heads % item->session->shape->layers[params->layer].kv_heads == 0;
}

void kvd_attend_batch_sample(struct kvd_attend_batch *batch)
{
    const Kvarnd__AttendParams *params = batch->params;
    struct kvd_metric_turn turn = {.madds_left = KVD_METRIC_MADDS_MAX};

    for (uint32_t i = 0; i < batch->item_count; i++) {
        turn.tokens_left += batch->items[i].q_tokens;
    }
    for (uint32_t i = 0; i < batch->item_count; i++) {
        const struct kvd_attend_item *item = &batch->items[i];
        if (item_is_sampled(item)) {
            kvd_metric_sample(&batch->service->query_metrics,
                &(struct kvd_metric_queries){.shape = item->session->shape,
                    .layer = params->layer,
                    .q_heads = params->q_heads,
                    .q_tokens = item->q_tokens,
                    .dtype = (enum kvarn_dtype)params->q_dtype,
                    .is_rotated = params->q_rotated,
                    .q = item->q},
                &turn);
        }
    }
}

/* A failed item keeps its place: out 0, lse -inf. */
static void item_blank(const struct kvd_attend_item *item)
{
    uint8_t *data = item->batch->reply->data;
    float nothing = -INFINITY;

    memset(data + item->out_offset, 0, (size_t)item_out_bytes(item));
    for (uint64_t i = 0; i < item_rows(item); i++) {
        memcpy(data + item->lse_offset + i * sizeof(float), &nothing, sizeof(nothing));
    }
}

void kvd_attend_item_end(struct kvd_attend_item *item)
{
    KVARN_ASSERT(!item->is_attended);
    item->is_attended = true;
    if (item->why.err != 0) {
        item_blank(item);
    }
    kvd_attend_batch_part_done(item->batch);
}

static void item_attended_cb(void *ctx, const struct kvd_failure *why)
{
    struct kvd_attend_item *item = ctx;

    item->why = *why;
    kvd_attend_item_end(item);
}

static uint64_t window_of(const struct kvd_attend_item *item)
{
    const Kvarnd__AttendParams *params = item->batch->params;
    uint64_t own = item->session->shape->layers[params->layer].window;

    return own == 0 || (params->window != 0 && params->window < own) ? params->window : own;
}

void kvd_attend_item_start(struct kvd_attend_item *item, uint32_t sealed_blocks)
{
    const Kvarnd__AttendParams *params = item->batch->params;
    struct kvd_service *service = item->batch->request->service;
    struct kvd_session *session = item->session;
    const struct kvarn_tile_spec *spec = &session->shape->layers[params->layer].spec;
    uint64_t sealed = (uint64_t)sealed_blocks * session->shape->group;
    uint8_t *data = item->batch->reply->data;

    item->length = session->layers[params->layer].length;
    item->sealed_tokens = sealed < item->length ? sealed : item->length;
    item->has_state = true;
    kvd_lifetime_touch(session);
    if (!item->has_last) {
        item->last = item->length > item->first ? item->length : item->first;
    }
    if (!item->has_position && item->q_tokens > item->length) {
        kvd_fail(&item->why, KVARN_EINVALID,
            "%" PRIu32 " query tokens end at the length %" PRIu64 ": give a position",
            item->q_tokens, item->length);
        kvd_attend_item_end(item);
        return;
    }
    struct kvd_attend_args args = {.session = session,
        .layer = params->layer,
        .q_heads = params->q_heads,
        .q_tokens = item->q_tokens,
        .position = item->has_position ? item->position : item->length - item->q_tokens,
        .first = item->first,
        .last = item->last,
        .window = window_of(item),
        .scale = params->has_scale ? params->scale : 1.0f / sqrtf((float)spec->k_dim),
        .softcap = params->softcap,
        .is_causal = !params->non_causal,
        .accuracy = (enum kvarn_accuracy)params->accuracy,
        .q_dtype = (enum kvarn_dtype)params->q_dtype,
        .is_q_rotated = params->q_rotated,
        .out_dtype = (enum kvarn_dtype)params->out_dtype,
        .is_out_rotated = params->out_rotated,
        .is_batched = item->batch->item_count > 1,
        .sealed_blocks = sealed_blocks,
        .cold = item->op.cold,
        .q = item->q,
        .out = data + item->out_offset,
        .lse = (void *)(data + item->lse_offset),
        .ctx = item,
        .done_cb = item_attended_cb};
    kvd_attend_start(service, &args);
}

/* The wire's view of one item. */
static void item_reply_fill(struct kvd_attend_item *item, Kvarnd__AttendItemReply *reply,
    Kvarnd__Status *status, uint64_t *length, bool with_text)
{
    kvarnd__attend_item_reply__init(reply);
    kvarnd__status__init(status);
    if (item->why.session != NULL) {
        item->why.layer_first = item->batch->params->layer;
        item->why.layer_count = 1;
    }
    kvd_failure_to_status(&item->why, status, length);
    if (!with_text) {
        status->text = NULL;
    }
    reply->status = status;
    reply->has_length = reply->has_sealed_tokens = item->has_state;
    reply->length = item->length;
    reply->sealed_tokens = item->sealed_tokens;
    reply->has_appended = reply->appended = item->is_appended;
    reply->has_epoch = item->is_appended;
    reply->epoch = item->epoch;
}

struct wire_item {
    Kvarnd__AttendItemReply reply;
    Kvarnd__Status status;
    uint64_t length;
};

static void batch_answer(struct kvd_attend_batch *batch)
{
    struct kvd_request *request = batch->request;
    size_t count = batch->item_count;
    struct wire_item *items = calloc(count, sizeof(*items));
    Kvarnd__AttendItemReply **replies = calloc(count, sizeof(Kvarnd__AttendItemReply *));
    Kvarnd__AttendReply message = KVARND__ATTEND_REPLY__INIT;
    Kvarnd__Status ok = KVARND__STATUS__INIT;
    int err = 0;
    size_t texts = 0;

    request->cancel_cb = NULL;
    if (items == NULL || replies == NULL) {
        struct kvd_failure why = {0};
        kvd_fail(&why, KVARN_ENOMEM, "no memory for the reply's items");
        kvd_attend_batch_destroy(batch);
        kvd_request_fail(request, &why);
        goto out;
    }
    for (size_t i = 0; i < count; i++) {
        struct kvd_attend_item *item = &batch->items[i];
        texts += item->why.err != 0;
        item_reply_fill(
            item, &items[i].reply, &items[i].status, &items[i].length, texts <= ITEM_TEXTS_MAX);
        replies[i] = &items[i].reply;
        err = err == 0 ? item->why.err : err;
    }
    message.status = &ok;
    message.n_items = count;
    message.items = replies;
    struct kvd_reply_payload payload = kvd_reply_buffer_payload(batch->reply);
    batch->reply = NULL; /* the connection's now */
    kvd_request_reply(request, &message.base, &payload, err);
    kvd_attend_batch_destroy(batch);
out:
    free(items);
    free(replies);
}

void kvd_attend_batch_part_done(struct kvd_attend_batch *batch)
{
    KVARN_ASSERT(batch->parts_left > 0);
    batch->parts_left--;
    if (batch->parts_left == 0) {
        batch_answer(batch);
    }
}
