/* kvarnctl append: keys and values from files into one layer of a session. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/cli/ctl.h"
#include "client/cli/npy.h"
#include "client/cli/spans.h"
#include "lib/base/assert.h"
#include "lib/base/limits.h"

/* A request is kept below this, so that progress can be seen and other clients get their turn. */
#define REQUEST_BYTES_MAX (UINT64_C(8) << 20)

struct append {
    struct npy_array k; /* owned */
    struct npy_array v; /* owned */
    uint64_t heads;
    uint64_t tokens;
    uint32_t layer;
    uint64_t start;
    struct kvarn_session *session; /* borrowed from the client */
    struct kvarn_span *spans;      /* owned; one for each head of K, then of V */
    struct kvarn_append_result result;
    uint64_t request_count;
    bool was_created;
};

static int arrays_load(struct ctl *ctl, struct append *a)
{
    char error[NPY_ERROR_MAX];
    int err = npy_read(ctl_text(ctl, "k"), &a->k, error);

    if (err == 0) {
        err = npy_read(ctl_text(ctl, "v"), &a->v, error);
    }
    if (err != 0) {
        return ctl_fail(ctl, err, error);
    }
    if (a->k.rank != 3 || a->v.rank != 3 || a->k.type == NPY_U8) {
        return ctl_fail(ctl, KVARN_EINVALID,
            "expected K and V in fp16 or fp32 as [kv_heads, tokens, head_dim]");
    }
    if (a->k.type != a->v.type || a->k.shape[0] != a->v.shape[0] ||
        a->k.shape[1] != a->v.shape[1]) {
        snprintf(error, sizeof error,
            "expected K and V of one type, kv_heads and tokens; got %s [%llu, %llu, ...] and %s "
            "[%llu, %llu, ...]",
            npy_type_name(a->k.type), (unsigned long long)a->k.shape[0],
            (unsigned long long)a->k.shape[1], npy_type_name(a->v.type),
            (unsigned long long)a->v.shape[0], (unsigned long long)a->v.shape[1]);
        return ctl_fail(ctl, KVARN_EINVALID, error);
    }
    a->heads = a->k.shape[0];
    a->tokens = a->k.shape[1];
    if (a->heads == 0 || a->heads > KVARN_KV_HEADS_MAX || a->tokens == 0 ||
        a->tokens > KVARN_SESSION_TOKENS_MAX || a->k.shape[2] == 0 || a->v.shape[2] == 0 ||
        a->k.shape[2] > KVARN_HEAD_DIM_MAX || a->v.shape[2] > KVARN_HEAD_DIM_MAX) {
        return ctl_fail(ctl, KVARN_EINVALID, "a dimension of K or V is outside the limits");
    }
    return CTL_OK;
}

/*
 * Register the shape that the options and files say. A session that is there must have it, one that
 * is not is made with it.
 */
static int shape_register(
    struct ctl *ctl, const struct append *a, struct kvarn_open_session_args *args)
{
    const struct kvarn_layer_group layers = {
        .layers = (uint32_t)ctl_number(ctl, "layers"),
        .kv_heads = (uint32_t)a->heads,
        .k_dim = (uint32_t)a->k.shape[2],
        .v_dim = (uint32_t)a->v.shape[2],
    };
    struct kvarn_shape shape = {
        .model = ctl_text(ctl, "model"),
        .revision = ctl_text(ctl, "revision"),
        .layer_groups = &layers,
        .layer_group_count = 1,
        .group = (uint32_t)ctl_number(ctl, "group"),
        .sink_tokens = KVARN_SINK_DEFAULT,
    };
    struct kvarn_register_shape_result registered;
    int err;

    if (kvarn_preset_parse(ctl_text(ctl, "preset"), &shape.k_bits, &shape.v_bits) != 0) {
        return ctl_usage(ctl, "--preset: expected k2v2, k4v2 or k4v4");
    }
    if (ctl_is_set(ctl, "sink-tokens")) {
        shape.sink_tokens = (uint32_t)ctl_number(ctl, "sink-tokens");
    }
    err = kvarn_client_register_shape(ctl->client, &shape, &registered);
    if (err != 0) {
        return ctl_refused(ctl, err);
    }
    args->mode = KVARN_OPEN_EITHER;
    args->shape_id = registered.shape_id;
    return CTL_OK;
}

/* Say in the words of the command line why the session could not be opened. */
static int open_refused(struct ctl *ctl, const struct kvarn_open_session_args *args, int err)
{
    if (err == KVARN_ENOT_FOUND && args->mode == KVARN_OPEN_EXISTING) {
        return ctl_usage(
            ctl, "the session is not there: --model and --layers are needed to open it");
    }
    if (err == KVARN_ECONFLICT) {
        return ctl_fail(ctl, err,
            "the session is there with another shape than the files, --model, --revision, "
            "--layers, --preset, --group and --sink-tokens say: see kvarnctl inspect");
    }
    return ctl_refused(ctl, err);
}

static int session_open(struct ctl *ctl, struct append *a)
{
    struct kvarn_open_session_args args = {
        .name = ctl->args.positions[0],
        .mode = KVARN_OPEN_EXISTING,
        .seal_lag = (uint32_t)ctl_number(ctl, "seal-lag"),
    };
    struct kvarn_open_session_result opened;
    char text[96];
    int code = CTL_OK;
    int err;

    if (ctl_encoder(ctl_text(ctl, "encoder"), &args.encoder) != 0) {
        return ctl_usage(ctl, "--encoder: expected reference, refined or aware");
    }
    if (ctl_is_set(ctl, "model") != ctl_is_set(ctl, "layers")) {
        return ctl_usage(ctl, "--model and --layers go together");
    }
    if (ctl_is_set(ctl, "model")) {
        code = shape_register(ctl, a, &args);
    }
    if (code != CTL_OK) {
        return code;
    }
    err = kvarn_client_open_session(ctl->client, &args, &a->session, &opened);
    if (err != 0) {
        return open_refused(ctl, &args, err);
    }
    if (a->layer >= opened.layer_count) {
        snprintf(text, sizeof text, "layer %" PRIu32 "; the session has %zu layers", a->layer,
            opened.layer_count);
        return ctl_fail(ctl, KVARN_EINVALID, text);
    }
    a->start = ctl_is_set(ctl, "start") ? ctl_number(ctl, "start") : opened.layer_lengths[a->layer];
    a->was_created = opened.created;
    return CTL_OK;
}

static uint64_t request_tokens(const struct ctl *ctl, const struct append *a)
{
    const struct kvarn_hello_result *server = kvarn_client_server(ctl->client);
    uint64_t token_bytes = a->heads * (a->k.shape[2] + a->v.shape[2]) * npy_type_bytes(a->k.type);
    uint64_t bytes = REQUEST_BYTES_MAX;

    if (bytes > server->payload_bytes_max) {
        bytes = server->payload_bytes_max;
    }
    if (server->credit_bytes != 0 && bytes > server->credit_bytes) {
        bytes = server->credit_bytes;
    }
    return bytes / token_bytes > 0 ? bytes / token_bytes : 1;
}

static int requests_send(struct ctl *ctl, struct append *a)
{
    uint64_t step = request_tokens(ctl, a);
    bool has_progress = isatty(STDERR_FILENO) == 1 && !ctl->is_json;

    for (uint64_t done = 0; done < a->tokens; done += step) {
        uint64_t count = a->tokens - done < step ? a->tokens - done : step;
        struct kvarn_append_args args = {
            .session = a->session,
            .layer_first = a->layer,
            .layer_count = 1,
            .start = a->start + done,
            .token_count = (uint32_t)count,
            .dtype = a->k.type == NPY_F32 ? KVARN_F32 : KVARN_F16,
            .layout = KVARN_HEAD_MAJOR,
            .payload = a->spans,
            .payload_count = (size_t)a->heads * 2,
        };
        int err;

        (void)spans_of_tokens(a->spans, &a->k, done, count);
        (void)spans_of_tokens(a->spans + a->heads, &a->v, done, count);
        err = kvarn_client_append(ctl->client, &args, &a->result);
        if (has_progress) {
            fprintf(stderr, "\r%" PRIu64 " of %" PRIu64 " tokens%s", done + count, a->tokens,
                err != 0 || done + count == a->tokens ? "\n" : "");
        }
        if (err != 0) {
            if (done > 0) {
                fprintf(stderr, "kvarnctl: append: %" PRIu64 " of %" PRIu64 " tokens are stored\n",
                    done, a->tokens);
            }
            return ctl_refused(ctl, err);
        }
        a->request_count++;
    }
    return CTL_OK;
}

static void append_print(struct ctl *ctl, const struct append *a)
{
    uint64_t bytes = a->k.data_bytes + a->v.data_bytes;
    char text[CTL_BYTES_TEXT_MAX];

    if (!ctl->is_json) {
        printf("%s layer %" PRIu32 ": %" PRIu64 " tokens (%s) appended at %" PRIu64
               "; length %" PRIu64 ", sealed %" PRIu64 "%s\n",
            ctl->args.positions[0], a->layer, a->tokens, ctl_bytes_text(bytes, text), a->start,
            a->result.length, a->result.sealed_tokens, a->was_created ? "; session created" : "");
        return;
    }
    json_object_open(&ctl->json, NULL);
    json_text(&ctl->json, "session", ctl->args.positions[0]);
    json_u64(&ctl->json, "layer", a->layer);
    json_u64(&ctl->json, "start", a->start);
    json_u64(&ctl->json, "tokens", a->tokens);
    json_u64(&ctl->json, "bytes", bytes);
    json_u64(&ctl->json, "requests", a->request_count);
    json_u64(&ctl->json, "length", a->result.length);
    json_u64(&ctl->json, "sealed_tokens", a->result.sealed_tokens);
    json_u64(&ctl->json, "epoch", a->result.epoch);
    json_bool(&ctl->json, "created", a->was_created);
    json_bool(&ctl->json, "repeated", a->result.repeated);
    json_object_close(&ctl->json);
}

int cmd_append(struct ctl *ctl)
{
    struct append a = {0};
    int code;

    if (ctl_number(ctl, "layer") >= KVARN_LAYERS_MAX ||
        ctl_number(ctl, "layers") > KVARN_LAYERS_MAX || ctl_number(ctl, "group") > UINT32_MAX ||
        ctl_number(ctl, "seal-lag") > UINT32_MAX ||
        ctl_number(ctl, "sink-tokens") >= KVARN_SINK_DEFAULT) {
        return ctl_usage(ctl, "a number is outside what a session can have");
    }
    a.layer = (uint32_t)ctl_number(ctl, "layer");
    code = arrays_load(ctl, &a);
    if (code == CTL_OK) {
        a.spans = calloc((size_t)a.heads * 2, sizeof *a.spans);
        if (a.spans == NULL) {
            code = ctl_fail(ctl, KVARN_ENOMEM, kvarn_err_text(KVARN_ENOMEM));
        }
    }
    if (code == CTL_OK) {
        code = session_open(ctl, &a);
    }
    if (code == CTL_OK) {
        code = requests_send(ctl, &a);
    }
    if (code == CTL_OK) {
        append_print(ctl, &a);
    }
    free(a.spans);
    npy_array_fini(&a.k);
    npy_array_fini(&a.v);
    return code;
}
