/* kvarnctl attend: queries from a file, output and log-sum-exp into files. */
#include <inttypes.h>
#include <string.h>

#include "client/cli/ctl.h"
#include "client/cli/npy.h"
#include "lib/base/assert.h"
#include "lib/base/limits.h"

static int query_load(struct ctl *ctl, struct npy_array *q)
{
    char error[NPY_ERROR_MAX];
    int err = npy_read(ctl_text(ctl, "q"), q, error);

    if (err != 0) {
        return ctl_fail(ctl, err, error);
    }
    if (q->rank != 3 || q->type == NPY_U8 || q->shape[0] == 0 || q->shape[0] > KVARN_Q_HEADS_MAX ||
        q->shape[1] == 0 || q->shape[1] > UINT32_MAX / KVARN_Q_HEADS_MAX) {
        return ctl_fail(ctl, KVARN_EINVALID,
            "expected --q in fp16 or fp32 as [q_heads, query_tokens, head_dim]");
    }
    return CTL_OK;
}

/* Borrow a reply's bytes as an array of floats and write it. */
static int floats_write(
    struct ctl *ctl, const char *option, const void *data, const uint64_t *shape, unsigned rank)
{
    struct npy_array array = {
        .type = NPY_F32,
        .rank = rank,
        .data = (void *)(uintptr_t)data, /* npy_write() reads only */
        .data_bytes = sizeof(float),
    };
    char error[NPY_ERROR_MAX];
    int err;

    for (unsigned i = 0; i < rank; i++) {
        array.shape[i] = shape[i];
        array.data_bytes *= (size_t)shape[i];
    }
    err = npy_write(ctl_text(ctl, option), &array, error);
    return err == 0 ? CTL_OK : ctl_fail(ctl, err, error);
}

static void attend_print(
    struct ctl *ctl, const struct kvarn_attend_item_result *item, const uint64_t shape[3])
{
    if (!ctl->is_json) {
        printf("%s layer %" PRIu64 ": %" PRIu64 " heads x %" PRIu64 " query tokens over %" PRIu64
               " tokens, %" PRIu64 " of them sealed; v_dim %" PRIu64 "\n",
            ctl->args.positions[0], ctl_number(ctl, "layer"), shape[0], shape[1], item->length,
            item->sealed_tokens, shape[2]);
        return;
    }
    json_object_open(&ctl->json, NULL);
    json_text(&ctl->json, "session", ctl->args.positions[0]);
    json_u64(&ctl->json, "layer", ctl_number(ctl, "layer"));
    json_u64_array(&ctl->json, "out_shape", shape, 3);
    json_u64(&ctl->json, "length", item->length);
    json_u64(&ctl->json, "sealed_tokens", item->sealed_tokens);
    json_object_close(&ctl->json);
}

/* Check the one item and write what came. */
static int result_store(
    struct ctl *ctl, const struct npy_array *q, const struct kvarn_attend_result *result)
{
    uint64_t shape[3] = {q->shape[0], q->shape[1], 0};
    uint64_t row_count = shape[0] * shape[1];
    char text[512];
    int code;

    KVARN_ASSERT(row_count > 0);
    if (result->item_count != 1) {
        return ctl_fail(ctl, KVARN_EPROTOCOL, "expected the answer of one item");
    }
    if (result->items[0].status.err != 0) {
        snprintf(text, sizeof text, "%.480s", result->items[0].status.text);
        return ctl_fail(ctl, result->items[0].status.err, text);
    }
    if (result->lse_count != row_count || result->out_bytes % (row_count * sizeof(float)) != 0) {
        return ctl_fail(ctl, KVARN_EPROTOCOL, "the output is not of the query's shape");
    }
    shape[2] = result->out_bytes / (row_count * sizeof(float));
    code = floats_write(ctl, "out", result->out, shape, 3);
    if (code == CTL_OK && ctl_is_set(ctl, "lse")) {
        code = floats_write(ctl, "lse", result->lse, shape, 2);
    }
    if (code == CTL_OK) {
        attend_print(ctl, &result->items[0], shape);
    }
    return code;
}

static int query_send(struct ctl *ctl, const struct npy_array *q, struct kvarn_session *session)
{
    const struct kvarn_span payload = {q->data, q->data_bytes};
    const struct kvarn_attend_item item = {
        .session = session,
        .query_tokens = (uint32_t)q->shape[1],
        .position = ctl_is_set(ctl, "position") ? ctl_number(ctl, "position") : KVARN_TOKEN_DEFAULT,
        .token_last = KVARN_TOKEN_DEFAULT,
    };
    const struct kvarn_attend_args args = {
        .params =
            {
                .layer = (uint32_t)ctl_number(ctl, "layer"),
                .q_heads = (uint32_t)q->shape[0],
                .has_scale = ctl_is_set(ctl, "scale"),
                .scale = (float)ctl_real(ctl, "scale"),
                .non_causal = ctl_is_set(ctl, "non-causal"),
                .window = ctl_number(ctl, "window"),
                .softcap = (float)ctl_real(ctl, "softcap"),
                .q_dtype = q->type == NPY_F32 ? KVARN_F32 : KVARN_F16,
                .out_dtype = KVARN_F32,
            },
        .items = &item,
        .item_count = 1,
        .payload = &payload,
        .payload_count = 1,
    };
    struct kvarn_attend_result result;
    int err = kvarn_client_attend(ctl->client, &args, &result);

    return err == 0 ? result_store(ctl, q, &result) : ctl_refused(ctl, err);
}

int cmd_attend(struct ctl *ctl)
{
    const struct kvarn_open_session_args open_args = {
        .name = ctl->args.positions[0],
        .mode = KVARN_OPEN_EXISTING,
    };
    struct kvarn_session *session = NULL;
    struct npy_array q = {0};
    int code;
    int err;

    if (ctl_number(ctl, "layer") >= KVARN_LAYERS_MAX) {
        return ctl_usage(ctl, "--layer is outside what a session can have");
    }
    code = query_load(ctl, &q);
    if (code == CTL_OK) {
        err = kvarn_client_open_session(ctl->client, &open_args, &session, NULL);
        code = err == 0 ? query_send(ctl, &q, session) : ctl_refused(ctl, err);
    }
    npy_array_fini(&q);
    return code;
}
