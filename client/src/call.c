/*
 * Builders of calls: argument structs to packed messages with borrowed payload. No I/O.
 */
#include "client/src/call.h"

#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "client/src/call_pack.h"
#include "kvarnd.pb-c.h"
#include "lib/base/assert.h"
#include "lib/base/limits.h"

#define CLIENT_NAME "libkvarn_client"

static int payload_sum(const struct pack_in *in, uint64_t *ret_bytes)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < in->payload_count; i++) {
        if (in->payload[i].bytes > KVARN_PAYLOAD_BYTES_MAX - sum) {
            return KVARN_ETOO_LARGE;
        }
        sum += in->payload[i].bytes;
    }
    *ret_bytes = sum;
    return 0;
}

int kvarn__call_pack(const struct pack_in *in, struct kvarn_call **ret_call)
{
    size_t message_bytes = protobuf_c_message_get_packed_size(in->message);
    uint64_t payload_bytes = 0;
    struct kvarn_call *call;
    int err;

    KVARN_ASSERT(in->payload_count == 0 || in->payload != NULL);
    if (message_bytes > KVARN_MESSAGE_BYTES_MAX) {
        return KVARN_ETOO_LARGE;
    }
    err = payload_sum(in, &payload_bytes);
    if (err != 0) {
        return err;
    }
    call = calloc(1, sizeof *call);
    if (call == NULL) {
        return KVARN_ENOMEM;
    }
    call->head_bytes = KVARN_FRAME_HEADER_BYTES + message_bytes;
    call->head = malloc(call->head_bytes);
    call->spans = calloc(in->payload_count + 1, sizeof *call->spans);
    if (call->head == NULL || call->spans == NULL) {
        kvarn_call_destroy(call);
        return KVARN_ENOMEM;
    }
    protobuf_c_message_pack(in->message, call->head + KVARN_FRAME_HEADER_BYTES);
    if (in->payload_count != 0) {
        memcpy(call->spans, in->payload, in->payload_count * sizeof *call->spans);
    }
    call->type = in->type;
    call->deadline_ms = in->deadline_ms == 0 ? KVARN_DEADLINE_NONE : in->deadline_ms;
    call->span_count = in->payload_count;
    call->payload_bytes = payload_bytes;
    *ret_call = call;
    return 0;
}

void kvarn_call_destroy(struct kvarn_call *call)
{
    if (call == NULL) {
        return;
    }
    free(call->head);
    free(call->spans);
    free(call);
}

static void trailer_write(struct kvarn_call *call)
{
    XXH3_state_t *state = XXH3_createState();
    uint64_t hash = 0;

    /* Without memory for the state the frame goes out unprotected rather than wrong. */
    call->trailer_bytes = 0;
    if (state == NULL) {
        return;
    }
    XXH3_64bits_reset(state);
    for (size_t i = 0; i < call->span_count; i++) {
        XXH3_64bits_update(state, call->spans[i].data, call->spans[i].bytes);
    }
    hash = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    for (unsigned i = 0; i < KVARN_FRAME_TRAILER_BYTES; i++) {
        call->trailer[i] = (uint8_t)(hash >> (8 * i));
    }
    call->trailer_bytes = KVARN_FRAME_TRAILER_BYTES;
}

void kvarn__call_stamp(struct kvarn_call *call, uint64_t request_id, bool with_xxh3)
{
    struct kvarn_frame_header header = {
        .version = KVARN_FRAME_VERSION,
        .type = (uint8_t)call->type,
        .message_bytes = (uint32_t)(call->head_bytes - KVARN_FRAME_HEADER_BYTES),
        .request_id = request_id,
        .payload_bytes = call->payload_bytes,
    };

    KVARN_ASSERT(call->head_bytes >= KVARN_FRAME_HEADER_BYTES);
    call->trailer_bytes = 0;
    if (with_xxh3 && call->payload_bytes != 0) {
        trailer_write(call);
    }
    if (call->trailer_bytes != 0) {
        header.flags |= KVARN_FRAME_PAYLOAD_XXH3;
    }
    call->request_id = request_id;
    kvarn_frame_encode(&header, call->head);
}

uint64_t kvarn__call_frame_bytes(const struct kvarn_call *call)
{
    return call->head_bytes + call->payload_bytes + call->trailer_bytes;
}

/* Pack a message that takes no payload. */
int kvarn__call_plain(enum kvarn_frame_type type, const ProtobufCMessage *message,
    uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    const struct pack_in in = {.type = type, .message = message, .deadline_ms = deadline_ms};

    return kvarn__call_pack(&in, ret_call);
}

int kvarn_call_hello(
    const struct kvarn_hello_args *args, uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    char *features[] = {text_of("payload_xxh3")};
    Kvarnd__Hello m = KVARND__HELLO__INIT;

    m.client = text_of(args->client != NULL ? args->client : CLIENT_NAME);
    m.features = features;
    m.n_features = args->payload_xxh3 ? 1 : 0;
    SET_DEADLINE(m, deadline_ms);
    return kvarn__call_plain(KVARN_FRAME_HELLO, &m.base, deadline_ms, ret_call);
}

int kvarn_call_ping(uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    Kvarnd__Ping m = KVARND__PING__INIT;

    SET_DEADLINE(m, deadline_ms);
    return kvarn__call_plain(KVARN_FRAME_PING, &m.base, deadline_ms, ret_call);
}

static void layer_group_fill(Kvarnd__LayerGroup *to, const struct kvarn_layer_group *from)
{
    kvarnd__layer_group__init(to);
    to->layers = from->layers;
    to->kv_heads = from->kv_heads;
    to->k_dim = from->k_dim;
    to->has_v_dim = from->v_dim != 0;
    to->v_dim = from->v_dim;
    to->has_window = from->window != 0;
    to->window = from->window;
}

/* The message lives on the stack and points at what the caller gave. */
static int metric_pack(const struct kvarn_register_metric_args *args, Kvarnd__Shape *shape,
    uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    Kvarnd__RegisterShape m = KVARND__REGISTER_SHAPE__INIT;
    union {
        const uint64_t *in;
        uint64_t *out;
    } counts = {.in = args->counts};

    m.shape = shape;
    m.has_metric_layer_first = m.has_metric_layer_count = args->layer_count != 0;
    m.metric_layer_first = args->layer_first;
    m.metric_layer_count = args->layer_count;
    m.n_metric_counts = args->count_count;
    m.metric_counts = counts.out;
    SET_DEADLINE(m, deadline_ms);
    const struct pack_in in = {.type = KVARN_FRAME_REGISTER_SHAPE,
        .message = &m.base,
        .deadline_ms = deadline_ms,
        .payload = args->payload,
        .payload_count = args->payload_count};

    return kvarn__call_pack(&in, ret_call);
}

int kvarn_call_register_shape(
    const struct kvarn_shape *shape, uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    const struct kvarn_register_metric_args args = {.shape = shape};

    return kvarn_call_register_metric(&args, deadline_ms, ret_call);
}

int kvarn_call_register_metric(const struct kvarn_register_metric_args *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call)
{
    const struct kvarn_shape *shape = args->shape;
    Kvarnd__Shape s = KVARND__SHAPE__INIT;
    Kvarnd__LayerGroup *groups = NULL;
    Kvarnd__LayerGroup **pointers = NULL;
    size_t count = shape->layer_group_count;
    int err = KVARN_ENOMEM;

    if (shape->model == NULL || count == 0 || count > KVARN_LAYER_GROUPS_MAX) {
        return KVARN_EINVALID;
    }
    groups = calloc(count, sizeof *groups);
    pointers = calloc(count, sizeof *pointers);
    if (groups == NULL || pointers == NULL) {
        goto out;
    }
    for (size_t i = 0; i < count; i++) {
        layer_group_fill(&groups[i], &shape->layer_groups[i]);
        pointers[i] = &groups[i];
    }
    s.model = text_of(shape->model);
    s.revision = text_of(shape->revision);
    s.layer_groups = pointers;
    s.n_layer_groups = count;
    s.has_group = s.has_k_bits = s.has_v_bits = 1;
    s.group = shape->group;
    s.k_bits = shape->k_bits;
    s.v_bits = shape->v_bits;
    s.has_sink_tokens = shape->sink_tokens != KVARN_SINK_DEFAULT;
    s.sink_tokens = s.has_sink_tokens ? shape->sink_tokens : 0;
    err = metric_pack(args, &s, deadline_ms, ret_call);
out:
    free(groups);
    free(pointers);
    return err;
}

int kvarn_call_read_metric(
    const struct kvarn_read_metric_args *args, uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    Kvarnd__ReadMetric m = KVARND__READ_METRIC__INIT;
    union {
        const uint8_t *in;
        uint8_t *out;
    } fingerprint = {.in = args->fingerprint};

    m.has_fingerprint = 1;
    m.fingerprint.data = fingerprint.out;
    m.fingerprint.len = 16;
    m.has_layer_first = 1;
    m.layer_first = args->layer_first;
    m.has_layer_count = args->layer_count != 0;
    m.layer_count = args->layer_count;
    SET_DEADLINE(m, deadline_ms);
    return kvarn__call_plain(KVARN_FRAME_READ_METRIC, &m.base, deadline_ms, ret_call);
}

int kvarn_call_open_session(
    const struct kvarn_open_session_args *args, uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    Kvarnd__OpenSession m = KVARND__OPEN_SESSION__INIT;

    if (args->name != NULL && strlen(args->name) > KVARN_SESSION_NAME_MAX) {
        return KVARN_ETOO_LARGE;
    }
    m.name = text_of(args->name);
    m.has_shape_id = args->shape_id != 0;
    m.shape_id = args->shape_id;
    m.has_mode = 1;
    m.mode = (Kvarnd__OpenMode)args->mode;
    m.has_encoder = 1;
    m.encoder = (Kvarnd__Encoder)args->encoder;
    m.has_seal_lag = args->seal_lag != 0;
    m.seal_lag = args->seal_lag;
    m.has_takeover = args->takeover;
    m.takeover = args->takeover;
    m.has_ttl_ms = args->ttl_ms != 0;
    m.ttl_ms = args->ttl_ms;
    m.has_priority = args->priority != 0;
    m.priority = args->priority;
    m.has_share_prefix = args->share_prefix;
    m.share_prefix = args->share_prefix;
    m.has_salt = args->salt_bytes != 0;
    m.salt = bytes_of(args->salt, args->salt_bytes);
    m.has_lease = args->lease != 0;
    m.lease = args->lease;
    SET_DEADLINE(m, deadline_ms);
    return kvarn__call_plain(KVARN_FRAME_OPEN_SESSION, &m.base, deadline_ms, ret_call);
}

int kvarn_call_append(
    const struct kvarn_append_args *args, uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    Kvarnd__Append m = KVARND__APPEND__INIT;
    const struct pack_in in = {
        KVARN_FRAME_APPEND, &m.base, deadline_ms, args->payload, args->payload_count};

    if (args->session == NULL || args->layer_count == 0 || args->token_count == 0) {
        return KVARN_EINVALID;
    }
    m.handle = args->session->handle;
    m.epoch = args->session->epoch;
    m.layer_first = args->layer_first;
    m.has_layer_count = args->layer_count != 1;
    m.layer_count = args->layer_count;
    m.start = args->start;
    m.token_count = args->token_count;
    m.has_dtype = m.has_layout = 1;
    m.dtype = (Kvarnd__DType)args->dtype;
    m.layout = (Kvarnd__Layout)args->layout;
    m.has_rotated = args->rotated;
    m.rotated = args->rotated;
    m.has_token_ids = m.token_ids = args->token_ids;
    m.has_block_hashes = m.block_hashes = args->block_hashes;
    SET_DEADLINE(m, deadline_ms);
    return kvarn__call_pack(&in, ret_call);
}

int kvarn_call_append_tiles(
    const struct kvarn_append_tiles_args *args, uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    Kvarnd__AppendTiles m = KVARND__APPEND_TILES__INIT;
    const struct pack_in in = {
        KVARN_FRAME_APPEND_TILES, &m.base, deadline_ms, args->payload, args->payload_count};
    Kvarnd__Run *runs = NULL;
    Kvarnd__Run **pointers = NULL;
    int err = KVARN_ENOMEM;

    if (args->session == NULL || args->run_count == 0) {
        return KVARN_EINVALID;
    }
    if (args->run_count > KVARN_MESSAGE_BYTES_MAX) { /* a packed run is longer than a byte */
        return KVARN_ETOO_LARGE;
    }
    runs = calloc(args->run_count, sizeof *runs);
    pointers = calloc(args->run_count, sizeof *pointers);
    if (runs == NULL || pointers == NULL) {
        goto out;
    }
    for (size_t i = 0; i < args->run_count; i++) {
        kvarnd__run__init(&runs[i]);
        runs[i].layer = args->runs[i].layer;
        runs[i].first_token = args->runs[i].first_token;
        runs[i].token_count = args->runs[i].token_count;
        runs[i].form = (Kvarnd__RunForm)args->runs[i].form;
        pointers[i] = &runs[i];
    }
    m.handle = args->session->handle;
    m.epoch = args->session->epoch;
    m.runs = pointers;
    m.n_runs = args->run_count;
    SET_DEADLINE(m, deadline_ms);
    err = kvarn__call_pack(&in, ret_call);
out:
    free(runs);
    free(pointers);
    return err;
}

int kvarn_call_read_blocks(
    const struct kvarn_read_blocks_args *args, uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    Kvarnd__ReadBlocks m = KVARND__READ_BLOCKS__INIT;

    if (args->session == NULL || args->layer_count == 0) {
        return KVARN_EINVALID;
    }
    m.handle = args->session->handle;
    m.layer_first = args->layer_first;
    m.has_layer_count = args->layer_count != 1;
    m.layer_count = args->layer_count;
    m.token_first = args->token_first;
    m.token_last = args->token_last;
    m.has_stored = args->stored;
    m.stored = args->stored;
    m.has_dtype = m.has_what = m.has_layout = 1;
    m.dtype = (Kvarnd__DType)args->dtype;
    m.has_rotated = args->rotated;
    m.rotated = args->rotated;
    m.what = (Kvarnd__ReadWhat)args->what;
    m.layout = (Kvarnd__Layout)args->layout;
    SET_DEADLINE(m, deadline_ms);
    return kvarn__call_plain(KVARN_FRAME_READ_BLOCKS, &m.base, deadline_ms, ret_call);
}

static void attend_params_fill(Kvarnd__AttendParams *to, const struct kvarn_attend_params *from)
{
    kvarnd__attend_params__init(to);
    to->layer = from->layer;
    to->q_heads = from->q_heads;
    to->has_scale = from->has_scale;
    to->scale = from->scale;
    to->has_non_causal = from->non_causal;
    to->non_causal = from->non_causal;
    to->has_window = from->window != 0;
    to->window = from->window;
    to->has_softcap = from->softcap != 0.0f;
    to->softcap = from->softcap;
    to->has_q_dtype = to->has_out_dtype = 1;
    to->q_dtype = (Kvarnd__DType)from->q_dtype;
    to->out_dtype = (Kvarnd__DType)from->out_dtype;
    to->has_q_rotated = from->q_rotated;
    to->q_rotated = from->q_rotated;
    to->has_out_rotated = from->out_rotated;
    to->out_rotated = from->out_rotated;
    to->has_accuracy = from->accuracy != KVARN_ACCURACY_DEFAULT;
    to->accuracy = (Kvarnd__Accuracy)from->accuracy;
}

static void attend_item_fill(Kvarnd__AttendItem *to, const struct kvarn_attend_item *from)
{
    kvarnd__attend_item__init(to);
    to->handle = from->session->handle;
    to->has_query_tokens = 1;
    to->query_tokens = from->query_tokens;
    to->has_position = from->position != KVARN_TOKEN_DEFAULT;
    to->position = from->position;
    to->has_token_first = from->token_first != 0;
    to->token_first = from->token_first;
    to->has_token_last = from->token_last != KVARN_TOKEN_DEFAULT;
    to->token_last = from->token_last;
}

int kvarn_call_attend(
    const struct kvarn_attend_args *args, uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    Kvarnd__Attend m = KVARND__ATTEND__INIT;
    Kvarnd__AttendParams params;
    const struct pack_in in = {
        KVARN_FRAME_ATTEND, &m.base, deadline_ms, args->payload, args->payload_count};
    Kvarnd__AttendItem *items = NULL;
    Kvarnd__AttendItem **pointers = NULL;
    uint64_t query_tokens = 0;
    int err = KVARN_ENOMEM;

    if (args->item_count == 0 || args->item_count > KVARN_BATCH_ITEMS_MAX) {
        return KVARN_EINVALID;
    }
    items = calloc(args->item_count, sizeof *items);
    pointers = calloc(args->item_count, sizeof *pointers);
    if (items == NULL || pointers == NULL) {
        goto out;
    }
    for (size_t i = 0; i < args->item_count; i++) {
        err = KVARN_EINVALID;
        if (args->items[i].session == NULL || args->items[i].query_tokens == 0) {
            goto out;
        }
        attend_item_fill(&items[i], &args->items[i]);
        pointers[i] = &items[i];
        query_tokens += args->items[i].query_tokens;
    }
    attend_params_fill(&params, &args->params);
    m.params = &params;
    m.items = pointers;
    m.n_items = args->item_count;
    SET_DEADLINE(m, deadline_ms);
    err = kvarn__call_pack(&in, ret_call);
    if (err == 0) {
        (*ret_call)->lse_count = query_tokens * args->params.q_heads;
    }
out:
    free(items);
    free(pointers);
    return err;
}

static void append_attend_item_fill(
    Kvarnd__AppendAttendItem *to, const struct kvarn_append_attend_item *from)
{
    kvarnd__append_attend_item__init(to);
    to->handle = from->session->handle;
    to->epoch = from->session->epoch;
    to->start = from->start;
    to->has_token_count = to->has_query_tokens = 1;
    to->token_count = from->token_count;
    to->query_tokens = from->query_tokens;
    to->has_position = from->position != KVARN_TOKEN_DEFAULT;
    to->position = from->position;
    to->has_token_first = from->token_first != 0;
    to->token_first = from->token_first;
    to->has_token_last = from->token_last != KVARN_TOKEN_DEFAULT;
    to->token_last = from->token_last;
}

int kvarn_call_append_attend(
    const struct kvarn_append_attend_args *args, uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    Kvarnd__AppendAttend m = KVARND__APPEND_ATTEND__INIT;
    Kvarnd__AttendParams params;
    const struct pack_in in = {
        KVARN_FRAME_APPEND_ATTEND, &m.base, deadline_ms, args->payload, args->payload_count};
    Kvarnd__AppendAttendItem *items = NULL;
    Kvarnd__AppendAttendItem **pointers = NULL;
    uint64_t query_tokens = 0;
    int err = KVARN_ENOMEM;

    if (args->item_count == 0 || args->item_count > KVARN_BATCH_ITEMS_MAX) {
        return KVARN_EINVALID;
    }
    items = calloc(args->item_count, sizeof *items);
    pointers = calloc(args->item_count, sizeof *pointers);
    if (items == NULL || pointers == NULL) {
        goto out;
    }
    for (size_t i = 0; i < args->item_count; i++) {
        const struct kvarn_append_attend_item *item = &args->items[i];
        err = KVARN_EINVALID;
        if (item->session == NULL || item->query_tokens == 0 || item->token_count == 0) {
            goto out;
        }
        append_attend_item_fill(&items[i], item);
        pointers[i] = &items[i];
        query_tokens += item->query_tokens;
    }
    attend_params_fill(&params, &args->params);
    m.params = &params;
    m.items = pointers;
    m.n_items = args->item_count;
    m.has_kv_dtype = m.has_kv_layout = 1;
    m.kv_dtype = (Kvarnd__DType)args->kv_dtype;
    m.kv_layout = (Kvarnd__Layout)args->kv_layout;
    m.has_kv_rotated = args->kv_rotated;
    m.kv_rotated = args->kv_rotated;
    m.has_token_ids = m.token_ids = args->token_ids;
    m.has_block_hashes = m.block_hashes = args->block_hashes;
    SET_DEADLINE(m, deadline_ms);
    err = kvarn__call_pack(&in, ret_call);
    if (err == 0) {
        (*ret_call)->lse_count = query_tokens * args->params.q_heads;
    }
out:
    free(items);
    free(pointers);
    return err;
}

int kvarn_call_truncate(
    const struct kvarn_truncate_args *args, uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    Kvarnd__Truncate m = KVARND__TRUNCATE__INIT;

    if (args->session == NULL) {
        return KVARN_EINVALID;
    }
    m.handle = args->session->handle;
    m.epoch = args->session->epoch;
    m.length = args->length;
    SET_DEADLINE(m, deadline_ms);
    return kvarn__call_plain(KVARN_FRAME_TRUNCATE, &m.base, deadline_ms, ret_call);
}

int kvarn_call_close_session(
    const struct kvarn_close_session_args *args, uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    Kvarnd__CloseSession m = KVARND__CLOSE_SESSION__INIT;

    if (args->session == NULL) {
        return KVARN_EINVALID;
    }
    m.handle = args->session->handle;
    SET_DEADLINE(m, deadline_ms);
    return kvarn__call_plain(KVARN_FRAME_CLOSE_SESSION, &m.base, deadline_ms, ret_call);
}

int kvarn_call_drop_session(
    const struct kvarn_drop_session_args *args, uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    Kvarnd__DropSession m = KVARND__DROP_SESSION__INIT;

    if ((args->session == NULL) == (args->name == NULL)) {
        return KVARN_EINVALID;
    }
    m.has_handle = args->session != NULL;
    m.handle = m.has_handle ? args->session->handle : 0;
    m.name = text_of(args->name);
    SET_DEADLINE(m, deadline_ms);
    return kvarn__call_plain(KVARN_FRAME_DROP_SESSION, &m.base, deadline_ms, ret_call);
}

int kvarn_call_touch(
    const struct kvarn_touch_args *args, uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    Kvarnd__Touch m = KVARND__TOUCH__INIT;

    if ((args->session == NULL) == (args->name == NULL)) {
        return KVARN_EINVALID;
    }
    m.has_handle = args->session != NULL;
    m.handle = m.has_handle ? args->session->handle : 0;
    m.name = text_of(args->name);
    m.has_ttl_ms = args->ttl_ms != KVARN_TOUCH_KEEP;
    m.ttl_ms = m.has_ttl_ms ? args->ttl_ms : 0;
    m.has_priority = args->priority != KVARN_TOUCH_KEEP;
    m.priority = args->priority > UINT32_MAX ? UINT32_MAX : (uint32_t)args->priority;
    SET_DEADLINE(m, deadline_ms);
    return kvarn__call_plain(KVARN_FRAME_TOUCH, &m.base, deadline_ms, ret_call);
}

int kvarn_call_pin(
    const struct kvarn_pin_args *args, uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    Kvarnd__Pin m = KVARND__PIN__INIT;

    if ((args->session == NULL) == (args->name == NULL)) {
        return KVARN_EINVALID;
    }
    m.has_handle = args->session != NULL;
    m.handle = m.has_handle ? args->session->handle : 0;
    m.name = text_of(args->name);
    m.has_pin_ms = args->pin_ms != 0;
    m.pin_ms = m.has_pin_ms ? args->pin_ms : m.pin_ms;
    m.has_unpin = args->unpin;
    m.unpin = args->unpin;
    SET_DEADLINE(m, deadline_ms);
    return kvarn__call_plain(KVARN_FRAME_PIN, &m.base, deadline_ms, ret_call);
}

int kvarn_call_evict(
    const struct kvarn_evict_args *args, uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    Kvarnd__Evict m = KVARND__EVICT__INIT;

    if ((args->session == NULL) == (args->name == NULL)) {
        return KVARN_EINVALID;
    }
    m.has_handle = args->session != NULL;
    m.handle = m.has_handle ? args->session->handle : 0;
    m.name = text_of(args->name);
    m.has_blocks = args->blocks != 0;
    m.blocks = args->blocks;
    SET_DEADLINE(m, deadline_ms);
    return kvarn__call_plain(KVARN_FRAME_EVICT, &m.base, deadline_ms, ret_call);
}

int kvarn_call_list_jobs(uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    Kvarnd__ListJobs m = KVARND__LIST_JOBS__INIT;

    SET_DEADLINE(m, deadline_ms);
    return kvarn__call_plain(KVARN_FRAME_LIST_JOBS, &m.base, deadline_ms, ret_call);
}

int kvarn_call_verify(
    const struct kvarn_verify_args *args, uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    Kvarnd__Verify m = KVARND__VERIFY__INIT;

    if ((args->session != NULL) + (args->name != NULL) + (args->name_first != NULL) > 1) {
        return KVARN_EINVALID;
    }
    m.has_handle = args->session != NULL;
    m.handle = m.has_handle ? args->session->handle : 0;
    m.name = text_of(args->name);
    m.name_first = text_of(args->name_first);
    m.has_block_first = args->block_first != 0;
    m.block_first = args->block_first;
    m.has_blocks = args->blocks != 0;
    m.blocks = args->blocks;
    SET_DEADLINE(m, deadline_ms);
    return kvarn__call_plain(KVARN_FRAME_VERIFY, &m.base, deadline_ms, ret_call);
}

int kvarn_call_list_sessions(
    const struct kvarn_list_sessions_args *args, uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    Kvarnd__ListSessions m = KVARND__LIST_SESSIONS__INIT;

    m.prefix = text_of(args->prefix);
    m.after = text_of(args->after);
    m.has_limit = args->limit != 0;
    m.limit = args->limit;
    SET_DEADLINE(m, deadline_ms);
    return kvarn__call_plain(KVARN_FRAME_LIST_SESSIONS, &m.base, deadline_ms, ret_call);
}

int kvarn_call_inspect_session(const struct kvarn_inspect_session_args *args, uint32_t deadline_ms,
    struct kvarn_call **ret_call)
{
    Kvarnd__InspectSession m = KVARND__INSPECT_SESSION__INIT;

    if ((args->session == NULL) == (args->name == NULL)) {
        return KVARN_EINVALID;
    }
    m.has_handle = args->session != NULL;
    m.handle = m.has_handle ? args->session->handle : 0;
    m.name = text_of(args->name);
    SET_DEADLINE(m, deadline_ms);
    return kvarn__call_plain(KVARN_FRAME_INSPECT_SESSION, &m.base, deadline_ms, ret_call);
}

int kvarn_call_stats(uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    Kvarnd__Stats m = KVARND__STATS__INIT;

    SET_DEADLINE(m, deadline_ms);
    return kvarn__call_plain(KVARN_FRAME_STATS, &m.base, deadline_ms, ret_call);
}

int kvarn_call_cancel(
    const struct kvarn_cancel_args *args, uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    Kvarnd__Cancel m = KVARND__CANCEL__INIT;

    m.request_id = args->request_id;
    SET_DEADLINE(m, deadline_ms);
    return kvarn__call_plain(KVARN_FRAME_CANCEL, &m.base, deadline_ms, ret_call);
}
