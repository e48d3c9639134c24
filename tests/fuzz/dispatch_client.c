/*
 * The counting client.
 *
 * Owner: fuzz_dispatch. Thread: one.
 */
#include "tests/fuzz/dispatch_client.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "proto/wire_error.h"
#include "server/append/append.h"
#include "server/rpc/rpc.h"

/* What an append is charged besides its payload: units of the smallest rows, 16 bytes, add up. */
#define STAGING_FIXED    4096
#define STAGING_PER_BYTE 16
#define STRANGER_UID     12345 /* above our own: neither root, nor us, nor allowed */
#define STATUS_CODE_MAX  20    /* lib/base/err.def */
#define REQUEST_ID_AT    12    /* in a header */

static const struct kvd_session *session_of(void *ctx, uint64_t handle)
{
    const struct dispatch_client *client = ctx;

    return dispatch_client_is_open(client) ? kvd_conn_handle_find(client->conn, handle) : NULL;
}

void dispatch_client_open(struct dispatch_client *client, struct kvt_host *host, bool is_stranger)
{
    struct kvd_stream *stream = NULL;
    struct kvd_peer who = kvd_io_fake_who();

    if (is_stranger) {
        who.uid += STRANGER_UID;
    }
    *client = (struct dispatch_client){.host = host};
    client->hints.session_of = session_of;
    client->hints.ctx = client;
    client->far = kvd_io_fake_open(host->fake, &stream);
    kvd_conn_accept(&host->service, stream, &who);
    client->conn = LIST_FIRST(&host->service.conns);
    if (!kvd_fake_peer_is_read(client->far)) {
        dispatch_client_close(client, true); /* too many, or draining */
    }
}

/* The daemon learns of it at once, or, while it does not read, by a write that fails. */
static void far_break(struct dispatch_client *client)
{
    const bool is_read = kvd_fake_peer_is_read(client->far);

    kvd_fake_peer_break(client->far);
    if (!is_read) {
        kvt_host_settle(client->host);
        kvd_fake_peer_break(client->far); /* it reads again: what was queued had left before */
    }
}

void dispatch_client_close(struct dispatch_client *client, bool is_broken)
{
    if (client->far != NULL) {
        dispatch_client_take(client);
        if (is_broken || !kvd_fake_peer_end(client->far)) {
            far_break(client);
        }
        kvd_fake_peer_free(client->far);
    }
    free(client->last_bytes);
    free(client->kept_message);
    free(client->kept_payload);
    *client = (struct dispatch_client){0};
}

bool dispatch_client_is_open(const struct dispatch_client *client)
{
    return client->far != NULL && !kvd_fake_peer_is_closed(client->far);
}

uint64_t dispatch_client_implied_bytes(const struct dispatch_client *client, uint8_t type,
    const uint8_t *message, size_t message_bytes)
{
    const struct kvd_method *method = kvd_method_find(type);
    struct kvd_request request = {.conn = client->conn, .service = &client->host->service};
    struct kvd_failure why = {0};
    uint64_t bytes = 0;

    if (method == NULL || method->payload_bytes == NULL || !dispatch_client_is_open(client)) {
        return 0;
    }
    kvarn_wire_alloc_init(&request.alloc, KVARN_UNPACK_BYTES_MAX);
    if (kvarn_wire_unpack(&request.alloc, method->request_descriptor, message, message_bytes,
            &request.message) != 0 ||
        method->payload_bytes(&request, &bytes, &why) != 0) {
        bytes = 0;
    }
    kvarn_wire_alloc_fini(&request.alloc);
    return bytes;
}

static uint64_t lse_count_of(const Kvarnd__AttendParams *params, uint64_t query_tokens)
{
    return params->q_heads * query_tokens;
}

/* What the answer to a message will be checked against. */
static void sent_describe(
    struct dispatch_sent *sent, const struct dispatch_client *client, const ProtobufCMessage *base)
{
    uint64_t tokens = 0;

    if (sent->type == KVARN_FRAME_READ_BLOCKS) {
        const Kvarnd__ReadBlocks *message = (const void *)base;
        const struct kvd_session *session = session_of((void *)(uintptr_t)client, message->handle);
        sent->shape = session != NULL ? session->shape : NULL;
        sent->dtype = (enum kvarn_dtype)message->dtype;
        sent->has_k = message->what != KVARND__READ_WHAT__V_ONLY;
        sent->has_v = message->what != KVARND__READ_WHAT__K_ONLY;
    } else if (sent->type == KVARN_FRAME_ATTEND) {
        const Kvarnd__Attend *message = (const void *)base;
        for (size_t i = 0; i < message->n_items; i++) {
            tokens += message->items[i]->query_tokens;
        }
        sent->dtype = (enum kvarn_dtype)message->params->out_dtype;
        sent->lse_count = lse_count_of(message->params, tokens);
    } else if (sent->type == KVARN_FRAME_APPEND_ATTEND) {
        const Kvarnd__AppendAttend *message = (const void *)base;
        for (size_t i = 0; i < message->n_items; i++) {
            const Kvarnd__AppendAttendItem *item = message->items[i];
            tokens += item->has_query_tokens ? item->query_tokens : item->token_count;
        }
        sent->dtype = (enum kvarn_dtype)message->params->out_dtype;
        sent->lse_count = lse_count_of(message->params, tokens);
    }
}

/* Send; what the daemon does not take, even after a pause, leaves the connection cut. */
static void bytes_send(struct dispatch_client *client, const uint8_t *bytes, size_t count)
{
    size_t sent = 0;

    for (int tries = 0; tries < 3 && sent < count && dispatch_client_is_open(client); tries++) {
        sent += kvd_fake_peer_send(client->far, bytes + sent, count - sent);
        if (sent < count) {
            kvt_host_settle(client->host);
        }
    }
    client->is_cut = client->is_cut || sent < count;
}

static struct dispatch_sent *sent_add(struct dispatch_client *client, uint8_t type)
{
    if (client->sent_count == DISPATCH_SENT_MAX) {
        client->is_loose = true;
        client->sent_count = 0;
    }
    struct dispatch_sent *sent = &client->sent[client->sent_count++];
    *sent = (struct dispatch_sent){.id = ++client->hints.last_request_id, .type = type};
    return sent;
}

static void sent_learn(struct dispatch_client *client, struct dispatch_sent *sent,
    const uint8_t *message, size_t message_bytes)
{
    const struct kvd_method *method = kvd_method_find(sent->type);
    struct kvarn_wire_alloc alloc;
    ProtobufCMessage *unpacked = NULL;

    kvarn_wire_alloc_init(&alloc, KVARN_UNPACK_BYTES_MAX);
    if (method != NULL && kvarn_wire_unpack(&alloc, method->request_descriptor, message,
                              message_bytes, &unpacked) == 0) {
        sent_describe(sent, client, unpacked);
    }
    kvarn_wire_alloc_fini(&alloc);
}

void dispatch_client_send(struct dispatch_client *client, const struct dispatch_frame *frame)
{
    const bool has_trailer = (frame->flags & KVARN_FRAME_PAYLOAD_XXH3) != 0;
    const size_t head = KVARN_FRAME_HEADER_BYTES + frame->message_bytes;
    const size_t count =
        head + frame->payload_bytes + (has_trailer ? KVARN_FRAME_TRAILER_BYTES : 0);
    uint8_t *bytes = malloc(count);
    struct dispatch_sent *sent = sent_add(client, frame->type);
    const struct kvarn_frame_header header = {.type = frame->type,
        .flags = frame->flags,
        .message_bytes = (uint32_t)frame->message_bytes,
        .request_id = sent->id,
        .payload_bytes = frame->announced_bytes};

    KVARN_ASSERT(bytes != NULL);
    kvarn_frame_encode(&header, bytes);
    memcpy(bytes + KVARN_FRAME_HEADER_BYTES, frame->message, frame->message_bytes);
    if (frame->payload_bytes > 0) {
        memcpy(bytes + head, frame->payload, frame->payload_bytes);
    }
    if (has_trailer) {
        uint64_t hash = XXH3_64bits(bytes + head, frame->payload_bytes);
        hash ^= frame->has_wrong_trailer;
        for (unsigned i = 0; i < KVARN_FRAME_TRAILER_BYTES; i++) {
            bytes[count - KVARN_FRAME_TRAILER_BYTES + i] = (uint8_t)(hash >> (8 * i));
        }
    }
    sent->is_corrupt = has_trailer && frame->has_wrong_trailer && frame->payload_bytes > 0;
    sent_learn(client, sent, frame->message, frame->message_bytes);
    const uint64_t implied =
        dispatch_client_implied_bytes(client, frame->type, frame->message, frame->message_bytes);
    sent->payload_bytes = implied == frame->announced_bytes ? implied : 0;
    /* A frame of another size than it says swallows what follows, or is followed by rubbish. */
    client->is_cut = client->is_cut || frame->announced_bytes != frame->payload_bytes;
    bytes_send(client, bytes, count);
    free(client->last_bytes);
    client->last_bytes = bytes;
    client->last_count = count;
}

void dispatch_client_send_raw(struct dispatch_client *client, const uint8_t *bytes, size_t count)
{
    client->is_loose = true;
    bytes_send(client, bytes, count);
}

void dispatch_client_send_again(struct dispatch_client *client)
{
    struct kvarn_frame_header header;

    if (client->last_bytes == NULL || client->sent_count == 0 ||
        kvarn_frame_decode(client->last_bytes, &header) != 0) {
        return;
    }
    const struct dispatch_sent before = client->sent[client->sent_count - 1];
    struct dispatch_sent *sent = sent_add(client, header.type);
    const uint64_t id = sent->id;
    *sent = before;
    sent->id = id;
    sent->is_answered = false;
    header.request_id = id;
    kvarn_frame_encode(&header, client->last_bytes);
    bytes_send(client, client->last_bytes, client->last_count);
}

/* Replies. */

static bool is_vague(const struct dispatch_client *client)
{
    return client->is_loose || client->is_cut;
}

static struct dispatch_sent *sent_find(struct dispatch_client *client, uint64_t id)
{
    for (unsigned i = 0; i < client->sent_count; i++) {
        if (client->sent[i].id == id) {
            return &client->sent[i];
        }
    }
    return NULL;
}

/* A handle is known from now on. */
static void handle_learn(struct dispatch_hints *hints, uint64_t handle)
{
    const unsigned at = hints->handle_count < DISPATCH_HANDLES_MAX
                            ? hints->handle_count++
                            : (unsigned)(handle % DISPATCH_HANDLES_MAX);
    hints->handles[at] = handle;
}

static void open_check(struct dispatch_hints *hints, const Kvarnd__OpenSessionReply *reply)
{
    KVARN_ASSERT(reply->has_handle && reply->has_epoch && reply->n_layer_lengths > 0);
    handle_learn(hints, reply->handle);
}

/* Each item has a copy, or says why not. */
static void fork_check(struct dispatch_hints *hints, const Kvarnd__ForkReply *reply)
{
    for (size_t i = 0; i < reply->n_items; i++) {
        const Kvarnd__ForkItemReply *item = reply->items[i];
        KVARN_ASSERT((item->status->code == 0) == (item->has_handle && item->has_epoch));
        if (item->has_handle) {
            handle_learn(hints, item->handle);
        }
    }
}

/* Attention of finite numbers is finite; what failed is 0 with -inf. */
static void attend_check(const struct dispatch_sent *sent, const struct kvt_frame *frame)
{
    const uint64_t lse_bytes = sent->lse_count * sizeof(float);
    const uint64_t out_bytes = frame->header.payload_bytes - lse_bytes;

    KVARN_ASSERT(frame->header.payload_bytes >= lse_bytes);
    for (uint64_t i = 0; i < sent->lse_count; i++) {
        float lse;
        memcpy(&lse, frame->payload + out_bytes + i * sizeof(float), sizeof lse);
        KVARN_ASSERT(lse < INFINITY);
    }
    for (uint64_t i = 0; sent->dtype == KVARN_F32 && i < out_bytes / sizeof(float); i++) {
        float out;
        memcpy(&out, frame->payload + i * sizeof(float), sizeof out);
        KVARN_ASSERT(isfinite(out));
    }
}

static uint64_t run_bytes(const struct dispatch_sent *sent, const Kvarnd__Run *run)
{
    const struct kvd_layer_shape *ls = &sent->shape->layers[run->layer];
    const struct kvd_append_run stored = {.layer = run->layer,
        .first_token = run->first_token,
        .token_count = run->token_count,
        .is_records = run->form == KVARND__RUN_FORM__RECORDS};
    const uint64_t values =
        (sent->has_k ? ls->spec.k_dim : 0u) + (sent->has_v ? ls->spec.v_dim : 0u);

    if (run->form != KVARND__RUN_FORM__ROWS) {
        return kvd_append_run_bytes(sent->shape, &stored);
    }
    return values * ls->kv_heads * run->token_count * kvarn_dtype_bytes(sent->dtype);
}

static void bytes_keep(uint8_t **to, size_t *to_bytes, const uint8_t *from, size_t bytes)
{
    free(*to);
    *to = malloc(bytes + (bytes == 0));
    KVARN_ASSERT(*to != NULL);
    memcpy(*to, from, bytes);
    *to_bytes = bytes;
}

/* Runs as they are stored can be appended to another session. */
static void runs_keep(struct dispatch_client *client, const Kvarnd__ReadBlocksReply *reply,
    const struct kvt_frame *frame)
{
    uint8_t packed[4096];
    Kvarnd__AppendTiles message = KVARND__APPEND_TILES__INIT;

    message.n_runs = reply->n_runs;
    message.runs = reply->runs;
    if (protobuf_c_message_get_packed_size(&message.base) > sizeof packed) {
        return;
    }
    bytes_keep(&client->kept_message, &client->kept_message_bytes, packed,
        protobuf_c_message_pack(&message.base, packed));
    bytes_keep(&client->kept_payload, &client->kept_payload_bytes, frame->payload,
        (size_t)frame->header.payload_bytes);
}

static void read_check(
    struct dispatch_client *client, const struct dispatch_sent *sent, const struct kvt_frame *frame)
{
    const Kvarnd__ReadBlocksReply *reply = (const void *)frame->message;
    uint64_t bytes = 0;
    bool is_stored = reply->n_runs > 0;

    KVARN_ASSERT(sent->shape != NULL);
    for (size_t i = 0; i < reply->n_runs; i++) {
        KVARN_ASSERT(reply->runs[i]->layer < sent->shape->layer_count);
        KVARN_ASSERT(reply->runs[i]->token_count > 0);
        bytes += run_bytes(sent, reply->runs[i]);
        is_stored = is_stored && reply->runs[i]->form != KVARND__RUN_FORM__ROWS;
    }
    KVARN_ASSERT(bytes == frame->header.payload_bytes);
    if (is_stored) {
        runs_keep(client, reply, frame);
    }
}

static void success_check(
    struct dispatch_client *client, const struct dispatch_sent *sent, const struct kvt_frame *frame)
{
    switch (sent->type) {
    case KVARN_FRAME_OPEN_SESSION:
        open_check(&client->hints, (const void *)frame->message);
        return;
    case KVARN_FRAME_FORK:
        fork_check(&client->hints, (const void *)frame->message);
        return;
    case KVARN_FRAME_ATTEND:
    case KVARN_FRAME_APPEND_ATTEND:
        attend_check(sent, frame);
        return;
    case KVARN_FRAME_READ_BLOCKS:
        read_check(client, sent, frame);
        return;
    default:
        KVARN_ASSERT(frame->header.payload_bytes == 0);
    }
}

static uint32_t status_of(const struct kvt_frame *frame)
{
    const Kvarnd__Status *status;

    /* Every reply has its status first, right behind protobuf-c's own part. */
    memcpy(&status, frame->message + 1, sizeof(const Kvarnd__Status *));
    KVARN_ASSERT(status->code <= STATUS_CODE_MAX);
    return status->code;
}

static void reply_check(struct dispatch_client *client, const struct kvt_frame *frame)
{
    struct dispatch_sent *sent = sent_find(client, frame->header.request_id);
    const uint32_t code = status_of(frame);
    const bool is_error = frame->header.type == KVARN_FRAME_TYPE_ERROR;

    KVARN_ASSERT(!is_error || code != 0);
    KVARN_ASSERT(code == 0 || frame->header.payload_bytes == 0);
    if (is_error && code != kvarn_wire_status(KVARN_EUNSUPPORTED)) {
        client->is_refused = true;
    }
    if (is_vague(client)) {
        return;
    }
    if (sent == NULL) {
        KVARN_ASSERT(client->is_refused); /* a frame of which not even the id can be trusted */
        return;
    }
    KVARN_ASSERT(!sent->is_answered);
    KVARN_ASSERT(is_error || frame->header.type == sent->type);
    sent->is_answered = true;
    sent->code = code;
    if (code == 0) {
        KVARN_ASSERT(!sent->is_corrupt);
        success_check(client, sent, frame);
    }
}

void dispatch_client_take(struct dispatch_client *client)
{
    struct kvarn_wire_alloc alloc;
    struct kvt_frame frame;
    size_t count;
    int err;

    if (client->far == NULL) {
        return;
    }
    const uint8_t *bytes = kvd_fake_peer_received(client->far, &count);
    size_t at = 0;
    while (at < count) {
        kvarn_wire_alloc_init(&alloc, KVARN_UNPACK_BYTES_MAX);
        const enum kvt_frame_stage stage =
            kvt_frame_read(&frame, &alloc, bytes + at, count - at, &err);
        if (stage == KVT_FRAME_INCOMPLETE) {
            kvarn_wire_alloc_fini(&alloc);
            break;
        }
        KVARN_ASSERT(stage == KVT_FRAME_OK && (frame.header.flags & KVARN_FRAME_REPLY) != 0);
        reply_check(client, &frame);
        kvarn_wire_alloc_fini(&alloc);
        at += frame.frame_bytes;
    }
    kvd_fake_peer_drop(client->far, at);
}

void dispatch_client_check_answered(struct dispatch_client *client)
{
    dispatch_client_take(client);
    if (!dispatch_client_is_open(client)) {
        return;
    }
    KVARN_ASSERT(!client->is_refused);
    for (unsigned i = 0; !is_vague(client) && i < client->sent_count; i++) {
        KVARN_ASSERT(client->sent[i].is_answered);
    }
}

void dispatch_client_check_credit(struct dispatch_client *client)
{
    if (!dispatch_client_is_open(client) || is_vague(client) ||
        client->sent_count == DISPATCH_SENT_MAX) {
        return;
    }
    /* Ping takes no payload, so this is refused, but not before credit was looked at. */
    const struct kvd_config *config = &client->host->config;
    const size_t bytes = (size_t)(config->credit_bytes < config->payload_max ? config->credit_bytes
                                                                             : config->payload_max);
    uint8_t *payload = calloc(1, bytes);
    const struct dispatch_frame frame = {.type = KVARN_FRAME_PING,
        .message = payload,
        .payload = payload,
        .payload_bytes = bytes,
        .announced_bytes = bytes};

    KVARN_ASSERT(payload != NULL);
    dispatch_client_send(client, &frame);
    free(payload);
    kvt_host_settle(client->host);
    dispatch_client_take(client);
    const struct dispatch_sent *sent = &client->sent[client->sent_count - 1];
    KVARN_ASSERT(is_vague(client) || client->is_refused || sent->is_answered);
    KVARN_ASSERT(sent->code != kvarn_wire_status(KVARN_ERETRY_LATER));
    KVARN_ASSERT(is_vague(client) || client->is_refused || sent->code != 0);
}

uint64_t dispatch_client_staging_bound(const struct dispatch_client *client)
{
    uint64_t bound = 0;

    if (client->far == NULL) {
        return 0;
    }
    const struct kvd_config *config = &client->host->config;
    if (client->is_loose) {
        return config->credit_requests * STAGING_FIXED + STAGING_PER_BYTE * config->credit_bytes;
    }
    for (unsigned i = 0; i < client->sent_count; i++) {
        const struct dispatch_sent *sent = &client->sent[i];
        if (!sent->is_answered && sent->payload_bytes > 0) {
            bound += STAGING_FIXED + STAGING_PER_BYTE * sent->payload_bytes;
        }
    }
    return bound;
}
