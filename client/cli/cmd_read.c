/* kvarnctl read: keys and values of one layer into files. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "client/cli/ctl.h"
#include "client/cli/npy.h"
#include "lib/base/assert.h"
#include "lib/base/limits.h"

#define REPLY_BYTES_MAX (UINT64_C(8) << 20) /* as an append's request: others get their turn */

struct read {
    struct kvarn_session *session;  /* borrowed from the client */
    struct kvarn_layer_group layer; /* what the layer is */
    uint64_t length;                /* of the layer */
    uint64_t from, to;
    enum kvarn_dtype dtype;
    struct npy_array k, v; /* owned */
    uint64_t epoch;
};

/* The layer's group in the shape of an inspected session. */
static int layer_find(
    const struct kvarn_inspect_session_result *found, uint64_t layer, struct read *r)
{
    uint64_t first = 0;

    for (size_t i = 0; i < found->shape.layer_group_count; i++) {
        const struct kvarn_layer_group *g = &found->shape.layer_groups[i];

        if (layer < first + g->layers && layer < found->layer_count) {
            r->layer = *g;
            r->length = found->layer_lengths[layer];
            return 0;
        }
        first += g->layers;
    }
    return KVARN_EINVALID;
}

static int session_open(struct ctl *ctl, struct read *r)
{
    const struct kvarn_open_session_args open_args = {
        .name = ctl->args.positions[0],
        .mode = KVARN_OPEN_EXISTING,
    };
    struct kvarn_inspect_session_args args = {0};
    struct kvarn_inspect_session_result found;
    int err = kvarn_client_open_session(ctl->client, &open_args, &r->session, NULL);

    args.session = r->session;
    if (err == 0) {
        err = kvarn_client_inspect_session(ctl->client, &args, &found);
    }
    if (err != 0) {
        return ctl_refused(ctl, err);
    }
    if (layer_find(&found, ctl_number(ctl, "layer"), r) != 0) {
        return ctl_fail(ctl, KVARN_EINVALID, "the session has no such layer");
    }
    if (r->layer.kv_heads == 0 || r->layer.kv_heads > KVARN_KV_HEADS_MAX || r->layer.k_dim == 0 ||
        r->layer.k_dim > KVARN_HEAD_DIM_MAX || r->layer.v_dim == 0 ||
        r->layer.v_dim > KVARN_HEAD_DIM_MAX) {
        return ctl_fail(ctl, KVARN_EPROTOCOL, "the server's shape is outside the limits");
    }
    r->from = ctl_number(ctl, "from");
    r->to = ctl_is_set(ctl, "to") ? ctl_number(ctl, "to") : r->length;
    if (r->from >= r->to || r->to > KVARN_SESSION_TOKENS_MAX) {
        return ctl_fail(ctl, KVARN_EINVALID, "no tokens in this range");
    }
    return CTL_OK;
}

static int array_take(const struct read *r, uint32_t dim, struct npy_array *array)
{
    array->type = r->dtype == KVARN_F32 ? NPY_F32 : NPY_F16;
    array->rank = 3;
    array->shape[0] = r->layer.kv_heads;
    array->shape[1] = r->to - r->from;
    array->shape[2] = dim;
    array->data_bytes =
        (size_t)(array->shape[0] * array->shape[1] * dim) * npy_type_bytes(array->type);
    array->data = malloc(array->data_bytes);
    return array->data != NULL ? 0 : KVARN_ENOMEM;
}

/* Copy [head][count][dim] at `data` to tokens [first, first + count) of the array. */
static const uint8_t *run_copy(
    struct npy_array *array, uint64_t first, uint64_t count, const uint8_t *data)
{
    size_t row_bytes = (size_t)array->shape[2] * npy_type_bytes(array->type);
    uint8_t *to = array->data;

    KVARN_ASSERT(first + count <= array->shape[1]);
    for (uint64_t head = 0; head < array->shape[0]; head++) {
        memcpy(to + (head * array->shape[1] + first) * row_bytes, data, (size_t)count * row_bytes);
        data += count * row_bytes;
    }
    return data;
}

/* The runs of a reply, which must cover [first, last) of the one layer in order. */
static int reply_copy(struct ctl *ctl, struct read *r, uint64_t first, uint64_t last,
    const struct kvarn_read_blocks_result *reply)
{
    uint64_t token_bytes =
        (uint64_t)r->layer.kv_heads * (r->layer.k_dim + r->layer.v_dim) * npy_type_bytes(r->k.type);
    const uint8_t *data = reply->data;
    uint64_t at = first;

    if (reply->data_bytes != (last - first) * token_bytes) {
        return ctl_fail(ctl, KVARN_EPROTOCOL, "the reply is not as long as the range");
    }
    for (size_t i = 0; i < reply->run_count; i++) {
        const struct kvarn_run *run = &reply->runs[i];

        if (run->form != KVARN_RUN_ROWS || run->first_token != at || run->token_count > last - at) {
            return ctl_fail(ctl, KVARN_EPROTOCOL, "the reply's runs are not those asked for");
        }
        data = run_copy(&r->k, at - r->from, run->token_count, data);
        data = run_copy(&r->v, at - r->from, run->token_count, data);
        at += run->token_count;
    }
    if (at != last) {
        return ctl_fail(ctl, KVARN_EPROTOCOL, "the reply's runs do not cover the range");
    }
    r->epoch = reply->epoch;
    return CTL_OK;
}

static int ranges_read(struct ctl *ctl, struct read *r)
{
    uint64_t token_bytes =
        (uint64_t)r->layer.kv_heads * (r->layer.k_dim + r->layer.v_dim) * npy_type_bytes(r->k.type);
    uint64_t bytes = kvarn_client_server(ctl->client)->payload_bytes_max;
    uint64_t step;

    if (bytes > REPLY_BYTES_MAX) {
        bytes = REPLY_BYTES_MAX;
    }
    step = bytes / token_bytes > 0 ? bytes / token_bytes : 1;
    for (uint64_t first = r->from; first < r->to; first += step) {
        struct kvarn_read_blocks_args args = {
            .session = r->session,
            .layer_first = (uint32_t)ctl_number(ctl, "layer"),
            .layer_count = 1,
            .token_first = first,
            .token_last = r->to - first < step ? r->to : first + step,
            .dtype = r->dtype,
            .rotated = ctl_is_set(ctl, "rotated"),
        };
        struct kvarn_read_blocks_result reply;
        int err = kvarn_client_read_blocks(ctl->client, &args, &reply);
        int code;

        if (err != 0) {
            return ctl_refused(ctl, err);
        }
        code = reply_copy(ctl, r, first, args.token_last, &reply);
        if (code != CTL_OK) {
            return code;
        }
    }
    return CTL_OK;
}

static int arrays_write(struct ctl *ctl, const struct read *r)
{
    char error[NPY_ERROR_MAX];
    int err = npy_write(ctl_text(ctl, "k"), &r->k, error);

    if (err == 0) {
        err = npy_write(ctl_text(ctl, "v"), &r->v, error);
    }
    if (err != 0) {
        return ctl_fail(ctl, err, error);
    }
    if (!ctl->is_json) {
        printf("%s layer %" PRIu64 ": tokens %" PRIu64 " to %" PRIu64 ", %s%s, %" PRIu32
               " KV heads\n",
            ctl->args.positions[0], ctl_number(ctl, "layer"), r->from, r->to,
            npy_type_name(r->k.type), ctl_is_set(ctl, "rotated") ? " rotated" : "",
            r->layer.kv_heads);
        return CTL_OK;
    }
    json_object_open(&ctl->json, NULL);
    json_text(&ctl->json, "session", ctl->args.positions[0]);
    json_u64(&ctl->json, "layer", ctl_number(ctl, "layer"));
    json_u64(&ctl->json, "from", r->from);
    json_u64(&ctl->json, "to", r->to);
    json_u64_array(&ctl->json, "k_shape", r->k.shape, 3);
    json_u64_array(&ctl->json, "v_shape", r->v.shape, 3);
    json_text(&ctl->json, "dtype", npy_type_name(r->k.type));
    json_bool(&ctl->json, "rotated", ctl_is_set(ctl, "rotated"));
    json_u64(&ctl->json, "epoch", r->epoch);
    json_object_close(&ctl->json);
    return CTL_OK;
}

int cmd_read(struct ctl *ctl)
{
    struct read r = {0};
    const char *dtype = ctl_text(ctl, "dtype");
    int code;

    if (strcmp(dtype, "f16") != 0 && strcmp(dtype, "f32") != 0) {
        return ctl_usage(ctl, "--dtype: expected f16 or f32");
    }
    if (ctl_number(ctl, "layer") >= KVARN_LAYERS_MAX) {
        return ctl_usage(ctl, "--layer is outside what a session can have");
    }
    r.dtype = strcmp(dtype, "f32") == 0 ? KVARN_F32 : KVARN_F16;
    code = session_open(ctl, &r);
    if (code == CTL_OK &&
        (array_take(&r, r.layer.k_dim, &r.k) != 0 || array_take(&r, r.layer.v_dim, &r.v) != 0)) {
        code = ctl_fail(ctl, KVARN_ENOMEM, kvarn_err_text(KVARN_ENOMEM));
    }
    if (code == CTL_OK) {
        code = ranges_read(ctl, &r);
    }
    if (code == CTL_OK) {
        code = arrays_write(ctl, &r);
    }
    npy_array_fini(&r.k);
    npy_array_fini(&r.v);
    return code;
}
