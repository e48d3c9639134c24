/* What tests of calls share: one host, one peer, a shape, and requests with known numbers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/server/rpc/rpc_rig.h"

static const struct kvd_layer_group small_groups[] = {
    {.layers = 2, .kv_heads = 2, .k_dim = 16, .v_dim = 16},
    {.layers = 1, .kv_heads = 1, .k_dim = 24, .v_dim = 8, .window = 100},
};
const struct kvd_shape_desc rpc_shape_small = {.model = "small",
    .group = 64,
    .k_bits = 2,
    .v_bits = 2,
    .sink_tokens = 64,
    .layer_groups = small_groups,
    .layer_group_count = 2};

static const struct kvd_layer_group large_groups[] = {
    {.layers = 1, .kv_heads = 8, .k_dim = 128, .v_dim = 128},
};
const struct kvd_shape_desc rpc_shape_large = {.model = "large",
    .group = 128,
    .k_bits = 2,
    .v_bits = 2,
    .sink_tokens = 128,
    .layer_groups = large_groups,
    .layer_group_count = 1};

/* Over the wire, as a client registers it. */
static void shape_register(struct rpc_rig *rig, const struct kvd_shape_desc *desc)
{
    Kvarnd__LayerGroup groups[8], *list[8];
    Kvarnd__Shape shape = KVARND__SHAPE__INIT;
    Kvarnd__RegisterShape message = KVARND__REGISTER_SHAPE__INIT;

    assert_true(desc->layer_group_count <= 8);
    for (uint32_t i = 0; i < desc->layer_group_count; i++) {
        const struct kvd_layer_group *from = &desc->layer_groups[i];
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
    shape.model = (char *)(uintptr_t)desc->model;
    shape.n_layer_groups = desc->layer_group_count;
    shape.layer_groups = list;
    shape.has_group = shape.has_k_bits = shape.has_v_bits = shape.has_sink_tokens = 1;
    shape.group = desc->group;
    shape.k_bits = desc->k_bits;
    shape.v_bits = desc->v_bits;
    shape.sink_tokens = desc->sink_tokens;
    message.shape = &shape;
    struct kvt_answer answer =
        kvt_peer_call(&rig->peer, KVARN_FRAME_REGISTER_SHAPE, &message.base, NULL, 0);
    assert_int_equal(answer.err, 0);
    const Kvarnd__RegisterShapeReply *reply = answer.message;
    rig->shape = kvd_shape_find(&rig->host.service.shapes, KVD_TENANT_DEFAULT, reply->shape_id);
    assert_non_null(rig->shape);
    kvt_answer_fini(&answer);
}

void rpc_rig_init(
    struct rpc_rig *rig, const struct kvt_host_options *options, const struct kvd_shape_desc *desc)
{
    *rig = (struct rpc_rig){0};
    kvt_host_init(&rig->host, options);
    kvt_peer_open(&rig->peer, &rig->host);
    kvt_peer_hello(&rig->peer);
    shape_register(rig, desc == NULL ? &rpc_shape_small : desc);
}

void rpc_rig_fini(struct rpc_rig *rig)
{
    kvt_peer_close(&rig->peer);
    kvt_host_fini(&rig->host);
}

void rpc_shape_words_init(struct rpc_shape_words *words, const char *model)
{
    kvarnd__register_shape__init(&words->message);
    kvarnd__shape__init(&words->shape);
    kvarnd__layer_group__init(&words->group);
    words->message.shape = &words->shape;
    words->shape.model = (char *)(uintptr_t)model;
    words->shape.n_layer_groups = 1;
    words->shape.layer_groups = words->groups;
    words->groups[0] = &words->group;
    words->group.layers = 1;
    words->group.kv_heads = 2;
    words->group.k_dim = 64;
}

struct kvt_answer rpc_shape_call(struct rpc_rig *rig, struct rpc_shape_words *words)
{
    return kvt_peer_call(&rig->peer, KVARN_FRAME_REGISTER_SHAPE, &words->message.base, NULL, 0);
}

struct rpc_session rpc_open(struct rpc_rig *rig, const char *name, uint32_t seal_lag)
{
    Kvarnd__OpenSession message = KVARND__OPEN_SESSION__INIT;

    message.name = (char *)(uintptr_t)name;
    message.has_shape_id = 1;
    message.shape_id = rig->shape->id;
    message.has_seal_lag = 1;
    message.seal_lag = seal_lag;
    struct kvt_answer answer =
        kvt_peer_call(&rig->peer, KVARN_FRAME_OPEN_SESSION, &message.base, NULL, 0);
    assert_int_equal(answer.err, 0);
    const Kvarnd__OpenSessionReply *reply = answer.message;
    struct rpc_session session = {.handle = reply->handle, .epoch = reply->epoch};
    kvt_answer_fini(&answer);
    return session;
}

float rpc_value(uint64_t seed, uint32_t layer, bool is_v, uint32_t head, uint64_t token, uint32_t d)
{
    uint64_t z = seed * UINT64_C(0x9e3779b97f4a7c15) + ((uint64_t)layer << 52) +
                 ((uint64_t)is_v << 51) + ((uint64_t)head << 40) + (token << 12) + d + 1;
    float sum = -6;

    for (int i = 0; i < 12; i++) { /* twelve uniforms are nearly normal */
        z += UINT64_C(0x9e3779b97f4a7c15);
        uint64_t x = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
        sum += (float)(x >> 40) * 0x1p-24f;
    }
    return sum;
}

static uint8_t *side_make(const struct rpc_rows *rows, const struct kvd_layer_shape *ls,
    uint32_t layer, bool is_v, uint8_t *at)
{
    uint32_t dim = is_v ? ls->spec.v_dim : ls->spec.k_dim;
    bool is_token_major = rows->layout == KVARND__LAYOUT__TOKEN_MAJOR;
    uint32_t outer = is_token_major ? rows->token_count : ls->kv_heads;
    uint32_t inner = is_token_major ? ls->kv_heads : rows->token_count;

    for (uint32_t a = 0; a < outer; a++) {
        for (uint32_t b = 0; b < inner; b++) {
            uint32_t head = is_token_major ? b : a;
            uint64_t token = rows->start + (is_token_major ? a : b);
            float x[KVARN_HEAD_DIM_MAX];
            for (uint32_t d = 0; d < dim; d++) {
                x[d] = rpc_value(rows->seed, layer, is_v, head, token, d);
            }
            kvarn_from_f32(at, rows->dtype, x, dim);
            at += dim * kvarn_dtype_bytes(rows->dtype);
        }
    }
    return at;
}

uint8_t *rpc_rows_make(const struct rpc_rig *rig, const struct rpc_rows *rows, size_t *ret_bytes)
{
    size_t bytes = 0;

    for (uint32_t i = rows->layer_first; i < rows->layer_first + rows->layer_count; i++) {
        const struct kvd_layer_shape *ls = &rig->shape->layers[i];
        bytes += (size_t)ls->kv_heads * rows->token_count * (ls->spec.k_dim + ls->spec.v_dim) *
                 kvarn_dtype_bytes(rows->dtype);
    }
    uint8_t *payload = malloc(bytes);
    assert_non_null(payload);
    uint8_t *at = payload;
    for (uint32_t i = rows->layer_first; i < rows->layer_first + rows->layer_count; i++) {
        at = side_make(rows, &rig->shape->layers[i], i, false, at);
        at = side_make(rows, &rig->shape->layers[i], i, true, at);
    }
    assert_ptr_equal(at, payload + bytes);
    *ret_bytes = bytes;
    return payload;
}

Kvarnd__Append rpc_append_message(const struct rpc_session *session, const struct rpc_rows *rows)
{
    Kvarnd__Append message = KVARND__APPEND__INIT;

    message.handle = session->handle;
    message.epoch = session->epoch;
    message.layer_first = rows->layer_first;
    message.has_layer_count = 1;
    message.layer_count = rows->layer_count;
    message.start = rows->start;
    message.token_count = rows->token_count;
    message.has_dtype = message.has_layout = message.has_rotated = 1;
    message.dtype = (Kvarnd__DType)rows->dtype;
    message.layout = rows->layout;
    message.rotated = rows->is_rotated;
    return message;
}

struct kvt_answer rpc_append(
    struct rpc_rig *rig, const struct rpc_session *session, const struct rpc_rows *rows)
{
    Kvarnd__Append message = rpc_append_message(session, rows);
    size_t bytes;
    uint8_t *payload = rpc_rows_make(rig, rows, &bytes);
    struct kvt_answer answer =
        kvt_peer_call(&rig->peer, KVARN_FRAME_APPEND, &message.base, payload, bytes);

    free(payload);
    return answer;
}

void rpc_append_ok(
    struct rpc_rig *rig, const struct rpc_session *session, const struct rpc_rows *rows)
{
    struct kvt_answer answer = rpc_append(rig, session, rows);

    if (answer.err != 0) {
        fail_msg("append: %s", answer.status->text);
    }
    kvt_answer_fini(&answer);
}

void rpc_append_all(
    struct rpc_rig *rig, const struct rpc_session *session, uint64_t start, uint32_t token_count)
{
    struct rpc_rows rows = {.layer_count = rig->shape->layer_count,
        .start = start,
        .token_count = token_count,
        .seed = 1};

    rpc_append_ok(rig, session, &rows);
}

struct kvt_answer rpc_read_stored(struct rpc_rig *rig, const struct rpc_session *session,
    uint32_t layer_first, uint32_t layer_count, uint64_t first, uint64_t last)
{
    Kvarnd__ReadBlocks message = KVARND__READ_BLOCKS__INIT;

    message.handle = session->handle;
    message.layer_first = layer_first;
    message.has_layer_count = 1;
    message.layer_count = layer_count;
    message.token_first = first;
    message.token_last = last;
    message.has_stored = 1;
    message.stored = 1;
    return kvt_peer_call(&rig->peer, KVARN_FRAME_READ_BLOCKS, &message.base, NULL, 0);
}

/* Where a head's row of one token lies in floats of [head][token][dim]. */
static float *floats_row(
    const struct rpc_floats *floats, bool is_v, uint32_t dim, uint32_t head, uint64_t token)
{
    float *base = is_v ? floats->v : floats->k;

    return base + (head * (floats->last - floats->first) + token - floats->first) * dim;
}

static const uint8_t *rows_to_floats(const struct kvd_layer_shape *ls, const Kvarnd__Run *run,
    const uint8_t *at, struct rpc_floats *floats)
{
    for (int is_v = 0; is_v < 2; is_v++) {
        uint32_t dim = is_v ? ls->spec.v_dim : ls->spec.k_dim;
        size_t count = (size_t)run->token_count * dim;
        for (uint32_t head = 0; head < ls->kv_heads; head++) {
            kvarn_to_f32(
                floats_row(floats, is_v, dim, head, run->first_token), at, KVARN_F16, count);
            at += count * sizeof(uint16_t);
        }
    }
    return at;
}

static const uint8_t *records_to_floats(const struct kvd_layer_shape *ls, const Kvarnd__Run *run,
    const uint8_t *at, struct rpc_floats *floats)
{
    const struct kvarn_tile_spec *spec = &ls->spec;
    void *tile = aligned_alloc(64, kvarn_tile_bytes(spec));

    assert_non_null(tile);
    for (uint64_t t = run->first_token; t < run->first_token + run->token_count; t += spec->group) {
        for (uint32_t head = 0; head < ls->kv_heads; head++) {
            assert_int_equal(kvarn_record_validate(spec, at, kvarn_record_bytes(spec)), 0);
            kvarn_tile_from_record(spec, at, tile);
            kvarn_tile_decode(spec, tile, floats_row(floats, false, spec->k_dim, head, t),
                floats_row(floats, true, spec->v_dim, head, t));
            at += kvarn_record_bytes(spec);
        }
    }
    free(tile);
    return at;
}

struct rpc_floats rpc_read_floats(struct rpc_rig *rig, const struct rpc_session *session,
    uint32_t layer, uint64_t first, uint64_t last)
{
    const struct kvd_layer_shape *ls = &rig->shape->layers[layer];
    struct kvt_answer answer = rpc_read_stored(rig, session, layer, 1, first, last);
    size_t rows = (size_t)(last - first) * ls->kv_heads;
    struct rpc_floats floats = {.first = first,
        .last = last,
        .k = calloc(rows * ls->spec.k_dim, sizeof(float)),
        .v = calloc(rows * ls->spec.v_dim, sizeof(float))};
    const Kvarnd__ReadBlocksReply *reply = answer.message;
    const uint8_t *at = answer.payload;

    if (answer.err != 0) {
        fail_msg("read: %s", answer.status->text);
    }
    assert_non_null(floats.k);
    assert_non_null(floats.v);
    for (size_t i = 0; i < reply->n_runs; i++) {
        const Kvarnd__Run *run = reply->runs[i];
        at = run->form == KVARND__RUN_FORM__RECORDS ? records_to_floats(ls, run, at, &floats)
                                                    : rows_to_floats(ls, run, at, &floats);
    }
    assert_ptr_equal(at, (uint8_t *)answer.payload + answer.payload_bytes);
    kvt_answer_fini(&answer);
    return floats;
}

void rpc_floats_fini(struct rpc_floats *floats)
{
    free(floats->k);
    free(floats->v);
    *floats = (struct rpc_floats){0};
}

int rpc_call_err(struct rpc_rig *rig, unsigned type, const ProtobufCMessage *message,
    const void *payload, size_t payload_bytes)
{
    struct kvt_answer answer = kvt_peer_call(&rig->peer, type, message, payload, payload_bytes);
    int err = answer.err;

    kvt_answer_fini(&answer);
    return err;
}
