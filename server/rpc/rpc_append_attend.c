/*
 * AppendAttend: the decode step. Every item stores its K and V, then attends to all it has.
 *
 * Owner: the request. Thread: loop only. An item whose append failed answers that and attends to
 * nothing; once it is stored it answers so, whatever becomes of its attention (SEMANTICS.md 9, 17).
 */
#include "lib/base/xxh3.h"
#include <inttypes.h>
#include <stdlib.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/read/attend_batch.h"
#include "server/rpc/rpc.h"
#include "server/rpc/rpc_check.h"

static uint32_t query_tokens_of(const Kvarnd__AppendAttendItem *wire)
{
    return wire->has_query_tokens ? wire->query_tokens : wire->token_count;
}

/* What an item says of its tokens before its K and V; `data` is not set. */
static struct kvd_prefix_note note_of(
    const Kvarnd__AppendAttend *message, const Kvarnd__AppendAttendItem *wire)
{
    return (struct kvd_prefix_note){.start = wire->start,
        .token_count = wire->token_count,
        .kind = message->block_hashes ? KVD_PREFIX_HASHES : KVD_PREFIX_TOKENS};
}

static size_t note_bytes_of(const Kvarnd__AppendAttend *message, const struct kvd_session *session,
    const Kvarnd__AppendAttendItem *wire)
{
    struct kvd_prefix_note note = note_of(message, wire);

    return message->token_ids || message->block_hashes
               ? kvd_prefix_note_bytes(session->shape, &note)
               : 0;
}

static uint64_t kv_bytes_of(const Kvarnd__AppendAttend *message, const struct kvd_session *session,
    const Kvarnd__AppendAttendItem *wire)
{
    return kvd_append_payload_bytes(session->shape, message->params->layer, 1, wire->token_count,
        (enum kvarn_dtype)message->kv_dtype);
}

static int message_check(const Kvarnd__AppendAttend *message, struct kvd_failure *why)
{
    int err = kvd_attend_params_check(message->params, why);

    if (err == 0) {
        err = kvd_rpc_check_numbers(message->kv_dtype, message->kv_layout, why);
    }
    if (err == 0) {
        err = kvd_rpc_check_note(message->token_ids, message->block_hashes, why);
    }
    if (err == 0 && (message->n_items == 0 || message->n_items > KVARN_BATCH_ITEMS_MAX)) {
        err = kvd_fail(why, KVARN_EINVALID, "items must be 1 to %d, got %zu", KVARN_BATCH_ITEMS_MAX,
            message->n_items);
    }
    return err;
}

int kvd_rpc_append_attend_payload(
    const struct kvd_request *request, uint64_t *ret, struct kvd_failure *why)
{
    const Kvarnd__AppendAttend *message = (const void *)request->message;
    const struct kvd_session *sessions[KVARN_BATCH_ITEMS_MAX];
    uint64_t bytes = 0; /* <= 1024 items of < 2^53 bytes */
    int err = message_check(message, why);

    for (uint32_t i = 0; err == 0 && i < message->n_items; i++) {
        const Kvarnd__AppendAttendItem *wire = message->items[i];
        const struct kvd_session *session =
            kvd_attend_item_session(request, message->params, wire->handle, i, why);
        if (session == NULL) {
            return why->err;
        }
        err = kvd_rpc_check_tokens(wire->start, wire->token_count, why);
        bytes += note_bytes_of(message, session, wire) + kv_bytes_of(message, session, wire);
        bytes += kvd_attend_q_bytes(message->params, session, query_tokens_of(wire));
        sessions[i] = session;
    }
    if (err == 0) {
        err = kvd_rpc_check_distinct(sessions, message->n_items, why);
    }
    if (err == 0) {
        *ret = bytes;
    }
    return err;
}

/* The append is applied: attend to what is there now. */
static void item_committed_cb(void *ctx, uint32_t sealed_blocks)
{
    struct kvd_attend_item *item = ctx;

    item->is_appended = true;
    item->epoch = item->session->epoch;
    kvd_attend_item_start(item, sealed_blocks);
}

static void item_append_done_cb(void *ctx, const struct kvd_failure *why, bool is_repeat)
{
    struct kvd_attend_item *item = ctx;

    (void)is_repeat;
    item->append = NULL;
    if (why->err != 0) {
        KVARN_ASSERT(!item->is_appended);
        item->why = *why;
        kvd_attend_item_end(item);
    }
    kvd_attend_batch_part_done(item->batch);
}

/* The item never begins: both of its parts end here. */
static void item_refuse(struct kvd_attend_item *item)
{
    KVARN_ASSERT(item->why.err != 0);
    kvd_attend_item_end(item);
    kvd_attend_batch_part_done(item->batch);
}

/* What can be said before anything is stored is said then. */
static int item_check(struct kvd_attend_item *item, const Kvarnd__AppendAttendItem *wire)
{
    int err = kvd_attend_item_check(item);

    if (err == 0 && !item->has_position && item->q_tokens > wire->start + wire->token_count) {
        err = kvd_fail(&item->why, KVARN_EINVALID,
            "%" PRIu32 " query tokens end at the length %" PRIu64 ": give a position",
            item->q_tokens, wire->start + wire->token_count);
    }
    return err;
}

static void item_begin(struct kvd_attend_item *item, const uint8_t *data, bool is_inline)
{
    struct kvd_request *request = item->batch->request;
    const Kvarnd__AppendAttend *message = (const void *)request->message;
    const Kvarnd__AppendAttendItem *wire = message->items[item - item->batch->items];
    size_t bytes = (size_t)kv_bytes_of(message, item->session, wire);
    size_t note_bytes = note_bytes_of(message, item->session, wire);
    const uint8_t *kv = data + note_bytes;

    if (item_check(item, wire) != 0) {
        item_refuse(item);
        return;
    }
    struct kvd_append_args args = {.session = item->session,
        .epoch = wire->epoch,
        .layer_first = item->batch->params->layer,
        .layer_count = 1,
        .start = wire->start,
        .token_count = wire->token_count,
        .dtype = (enum kvarn_dtype)message->kv_dtype,
        .is_token_major = message->kv_layout == KVARND__LAYOUT__TOKEN_MAJOR,
        .is_rotated = message->kv_rotated,
        .is_batched = !is_inline,
        .payload = kv,
        .payload_hash = is_inline ? XXH3_64bits(kv, bytes) : 0,
        .prefix_kind = note_of(message, wire).kind,
        .prefix_data = note_bytes > 0 ? data : NULL,
        .deadline_ns = request->deadline_ns,
        .ctx = item,
        .committed_cb = item_committed_cb,
        .ret_cold = &item->op.cold,
        .done_cb = item_append_done_cb};
    if (kvd_append_start(request->service, &args, &item->append) != 0) {
        kvd_fail(&item->why, KVARN_ENOMEM, "no memory for the append");
        item_refuse(item);
    }
}

/* A deadline or a Cancel: what is not stored will not be; what is stored attends to its end. */
static void append_attend_cancel_cb(struct kvd_request *request, int err)
{
    struct kvd_attend_batch *batch = request->handler;

    batch->parts_left++;
    for (uint32_t i = 0; i < batch->item_count; i++) {
        if (batch->items[i].append != NULL) {
            kvd_append_cancel(batch->items[i].append, err);
        }
    }
    kvd_attend_batch_part_done(batch);
}

/* Fill the items; the payload holds K and V of all, then q of all. */
static int batch_fill(
    struct kvd_attend_batch *batch, uint64_t *ret_kv_bytes, struct kvd_failure *why)
{
    const Kvarnd__AppendAttend *message = (const void *)batch->request->message;
    uint64_t kv_bytes = 0;

    for (uint32_t i = 0; i < batch->item_count; i++) {
        const Kvarnd__AppendAttendItem *wire = message->items[i];
        struct kvd_attend_item *item = &batch->items[i];
        struct kvd_session *session =
            kvd_attend_item_session(batch->request, batch->params, wire->handle, i, why);
        if (session == NULL) {
            return why->err;
        }
        item->session = kvd_session_ref(session);
        item->handle = wire->handle;
        item->q_tokens = query_tokens_of(wire);
        item->has_position = wire->has_position;
        item->position = wire->position;
        item->first = wire->token_first;
        item->has_last = wire->has_token_last;
        item->last = wire->token_last;
        kv_bytes += note_bytes_of(message, session, wire) + kv_bytes_of(message, session, wire);
    }
    const uint8_t *q = (const uint8_t *)batch->request->payload + kv_bytes;
    for (uint32_t i = 0; i < batch->item_count; i++) {
        struct kvd_attend_item *item = &batch->items[i];
        item->q = q;
        q += kvd_attend_q_bytes(batch->params, item->session, item->q_tokens);
    }
    *ret_kv_bytes = kv_bytes;
    return kvd_attend_batch_reserve(batch, why);
}

void kvd_rpc_append_attend(struct kvd_request *request)
{
    const Kvarnd__AppendAttend *message = (const void *)request->message;
    struct kvd_failure why = {0};
    uint64_t kv_bytes = 0;
    struct kvd_attend_batch *batch =
        kvd_attend_batch_create(request, message->params, message->n_items, &why);

    if (batch == NULL) {
        kvd_request_fail(request, &why);
        return;
    }
    if (batch_fill(batch, &kv_bytes, &why) != 0) {
        kvd_attend_batch_destroy(batch);
        kvd_request_fail(request, &why);
        return;
    }
    request->handler = batch;
    request->cancel_cb = append_attend_cancel_cb;
    kvd_attend_batch_sample(batch);
    batch->parts_left += 2 * batch->item_count; /* its append and its attention */
    const uint8_t *kv = request->payload;
    for (uint32_t i = 0; i < batch->item_count; i++) {
        struct kvd_attend_item *item = &batch->items[i];
        uint64_t bytes = note_bytes_of(message, item->session, message->items[i]) +
                         kv_bytes_of(message, item->session, message->items[i]);
        /* What one append may take of the loop's time, for hashing too, is shared by the items. */
        item_begin(item, kv, kv_bytes <= kvd_append_inline_bytes_max());
        kv += bytes;
    }
    kvd_attend_batch_part_done(batch);
}
