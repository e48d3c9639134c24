/*
 * An evaluation's sessions: opened, filled token by token and in bulk.
 *
 * Owner: the command. Thread: main.
 */
#include "client/cli/evaluate_run.h"

#include <stdlib.h>
#include <string.h>

#include "client/cli/spans.h"
#include "lib/base/assert.h"

#define SHAPE_MODEL "kvarnctl evaluate"

/* ---- Opening ---- */

static int shape_register(struct evaluate *e, uint32_t *ret_shape_id)
{
    const struct evaluate_data *data = e->data;
    struct kvarn_layer_group *groups = calloc(data->layer_count, sizeof *groups);
    struct kvarn_register_shape_result registered;
    struct kvarn_shape shape = {
        .model = SHAPE_MODEL,
        .layer_groups = groups,
        .layer_group_count = data->layer_count,
        .group = e->options.group,
        .k_bits = e->options.k_bits,
        .v_bits = e->options.v_bits,
        .sink_tokens = e->options.sink_tokens,
    };
    int err;

    if (groups == NULL) {
        return ctl_fail(e->ctl, KVARN_ENOMEM, kvarn_err_text(KVARN_ENOMEM));
    }
    for (uint32_t i = 0; i < data->layer_count; i++) {
        groups[i].layers = 1;
        groups[i].kv_heads = data->layers[i].kv_heads;
        groups[i].k_dim = data->layers[i].k_dim;
        groups[i].v_dim = data->layers[i].v_dim;
    }
    err = kvarn_client_register_shape(e->ctl->client, &shape, &registered);
    free(groups);
    if (err != 0) {
        return ctl_refused(e->ctl, err);
    }
    *ret_shape_id = registered.shape_id;
    return CTL_OK;
}

int evaluate_open(struct evaluate *e)
{
    struct kvarn_open_session_args args = {
        .mode = KVARN_OPEN_CREATE,
        .encoder = e->options.encoder,
        .seal_lag = e->options.seal_lag,
    };
    int code = shape_register(e, &args.shape_id);
    int err;

    if (code != CTL_OK) {
        return code;
    }
    err = kvarn_client_open_session(e->ctl->client, &args, &e->steps, NULL);
    if (err == 0) {
        args.name = e->options.session_name;
        err = kvarn_client_open_session(e->ctl->client, &args, &e->bulk, NULL);
    }
    if (err == KVARN_ECONFLICT && args.name != NULL) {
        fprintf(stderr, "kvarnctl: a session \"%s\" is there already: kvarnctl drop %s\n",
            args.name, args.name);
    }
    return err == 0 ? CTL_OK : ctl_refused(e->ctl, err);
}

/* ---- Token by token ---- */

/* What filling the session token by token works with. */
struct steps {
    struct kvarn_span *spans; /* owned; of one request */
    double *append_us;        /* owned; round trips of Append */
    double *attend_us;        /* owned; round trips of AppendAttend */
    uint64_t append_count, attend_count;
};

static int step_append(struct evaluate *e, struct steps *s, uint32_t layer, uint64_t token)
{
    const struct evaluate_layer *l = &e->data->layers[layer];
    size_t span_count = spans_of_tokens(s->spans, &l->k, token, 1);
    struct kvarn_append_args args = {
        .session = e->steps,
        .layer_first = layer,
        .layer_count = 1,
        .start = token,
        .token_count = 1,
        .dtype = e->data->kv_dtype,
        .payload = s->spans,
    };
    uint64_t begin_us;
    int err;

    span_count += spans_of_tokens(s->spans + span_count, &l->v, token, 1);
    args.payload_count = span_count;
    begin_us = ctl_now_us();
    err = kvarn_client_append(e->ctl->client, &args, NULL);
    if (err != 0) {
        return ctl_refused(e->ctl, err);
    }
    s->append_us[s->append_count++] = (double)(ctl_now_us() - begin_us);
    return CTL_OK;
}

/* Keep the answer of query token `row` of a layer. */
static int decode_keep(
    struct evaluate *e, uint32_t layer, uint64_t row, const struct kvarn_attend_result *result)
{
    const struct evaluate_layer *l = &e->data->layers[layer];
    const struct evaluate_answer *answer = &e->decode[layer];
    uint64_t rows = e->data->query_tokens;
    const float *out = result->out;
    char text[256];

    if (result->item_count == 1 && result->items[0].status.err != 0) {
        snprintf(text, sizeof text, "%.240s", result->items[0].status.text);
        return ctl_fail(e->ctl, result->items[0].status.err, text);
    }
    if (result->item_count != 1 || result->lse_count != l->q_heads ||
        result->out_bytes != (uint64_t)l->q_heads * l->v_dim * sizeof *out) {
        return ctl_fail(e->ctl, KVARN_EPROTOCOL, "the output is not of the query's shape");
    }
    for (uint32_t head = 0; head < l->q_heads; head++) {
        memcpy(answer->out + (head * rows + row) * l->v_dim, out + (size_t)head * l->v_dim,
            l->v_dim * sizeof *out);
        answer->lse[head * rows + row] = result->lse[head];
    }
    return CTL_OK;
}

static int step_append_attend(struct evaluate *e, struct steps *s, uint32_t layer, uint64_t token)
{
    const struct evaluate_layer *l = &e->data->layers[layer];
    uint64_t row = token - (e->data->tokens - e->data->query_tokens);
    const struct kvarn_append_attend_item item = {
        .session = e->steps,
        .start = token,
        .token_count = 1,
        .query_tokens = 1,
        .position = token,
        .token_last = KVARN_TOKEN_DEFAULT,
    };
    struct kvarn_append_attend_args args = {
        .params = {.layer = layer,
            .q_heads = l->q_heads,
            .q_dtype = evaluate_dtype(&l->q),
            .out_dtype = KVARN_F32},
        .items = &item,
        .item_count = 1,
        .kv_dtype = e->data->kv_dtype,
        .payload = s->spans,
    };
    struct kvarn_attend_result result;
    uint64_t begin_us;
    int err;

    args.payload_count = spans_of_tokens(s->spans, &l->k, token, 1);
    args.payload_count += spans_of_tokens(s->spans + args.payload_count, &l->v, token, 1);
    args.payload_count += spans_of_tokens(s->spans + args.payload_count, &l->q, row, 1);
    begin_us = ctl_now_us();
    err = kvarn_client_append_attend(e->ctl->client, &args, &result);
    if (err != 0) {
        return ctl_refused(e->ctl, err);
    }
    s->attend_us[s->attend_count++] = (double)(ctl_now_us() - begin_us);
    return decode_keep(e, layer, row, &result);
}

static int steps_run(struct evaluate *e, struct steps *s)
{
    const struct evaluate_data *data = e->data;
    uint64_t first_query = data->tokens - data->query_tokens;
    int code = CTL_OK;

    for (uint64_t token = 0; token < data->tokens && code == CTL_OK; token++) {
        for (uint32_t layer = 0; layer < data->layer_count && code == CTL_OK; layer++) {
            code = token < first_query ? step_append(e, s, layer, token)
                                       : step_append_attend(e, s, layer, token);
        }
        evaluate_progress(e, "token by token", token + 1, data->tokens);
    }
    return code;
}

/* Spans of the largest request: all heads of K, V and Q of a layer. */
static size_t spans_max(const struct evaluate_data *data)
{
    size_t max = 0;

    for (uint32_t i = 0; i < data->layer_count; i++) {
        size_t count = (size_t)data->layers[i].kv_heads * 2 + data->layers[i].q_heads;

        max = count > max ? count : max;
    }
    return max;
}

static uint64_t payload_bytes(const struct evaluate_data *data)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < data->layer_count; i++) {
        bytes += data->layers[i].k.data_bytes + data->layers[i].v.data_bytes;
    }
    return bytes;
}

int evaluate_store_steps(struct evaluate *e)
{
    const struct evaluate_data *data = e->data;
    struct steps s = {
        .spans = calloc(spans_max(data), sizeof *s.spans),
        .append_us = calloc((size_t)(data->tokens * data->layer_count), sizeof(double)),
        .attend_us = calloc((size_t)(data->query_tokens * data->layer_count), sizeof(double)),
    };
    uint64_t begin_us = ctl_now_us();
    int code = CTL_OK;

    if (s.spans == NULL || s.append_us == NULL || s.attend_us == NULL) {
        code = ctl_fail(e->ctl, KVARN_ENOMEM, kvarn_err_text(KVARN_ENOMEM));
    } else {
        code = steps_run(e, &s);
        e->report.in_steps = (struct evaluate_rate){
            .tokens = data->tokens,
            .bytes = payload_bytes(data),
            .seconds = (double)(ctl_now_us() - begin_us) / 1e6,
        };
        e->report.append = evaluate_round_trip_of(s.append_us, s.append_count);
        e->report.append_attend = evaluate_round_trip_of(s.attend_us, s.attend_count);
    }
    free(s.spans);
    free(s.append_us);
    free(s.attend_us);
    return code;
}

/* ---- In bulk ---- */

/* Spans of tokens [first, first + count) of all layers. */
static size_t bulk_spans(
    const struct evaluate_data *data, struct kvarn_span *spans, uint64_t first, uint64_t count)
{
    size_t used = 0;

    for (uint32_t i = 0; i < data->layer_count; i++) {
        used += spans_of_tokens(spans + used, &data->layers[i].k, first, count);
        used += spans_of_tokens(spans + used, &data->layers[i].v, first, count);
    }
    return used;
}

static int bulk_run(struct evaluate *e, struct kvarn_span *spans)
{
    const struct evaluate_data *data = e->data;
    uint64_t step = evaluate_request_tokens(e, payload_bytes(data) / data->tokens);
    const struct kvarn_read_blocks_args newest = {
        .session = e->bulk,
        .layer_count = data->layer_count,
        .token_first = data->tokens - 1,
        .token_last = data->tokens,
    };
    int err = 0;

    for (uint64_t first = 0; err == 0 && first < data->tokens; first += step) {
        uint64_t count = data->tokens - first < step ? data->tokens - first : step;
        struct kvarn_append_args args = {
            .session = e->bulk,
            .layer_count = data->layer_count,
            .start = first,
            .token_count = (uint32_t)count,
            .dtype = data->kv_dtype,
            .payload = spans,
            .payload_count = bulk_spans(data, spans, first, count),
        };

        err = kvarn_client_append(e->ctl->client, &args, NULL);
        evaluate_progress(e, "in bulk", first + count, data->tokens);
    }
    /* A reply does not wait for the seals that its own rows make due, a later request does. */
    if (err == 0) {
        err = kvarn_client_read_blocks(e->ctl->client, &newest, NULL);
    }
    return err == 0 ? CTL_OK : ctl_refused(e->ctl, err);
}

int evaluate_store_bulk(struct evaluate *e)
{
    const struct evaluate_data *data = e->data;
    struct kvarn_span *spans;
    uint64_t begin_us = ctl_now_us();
    size_t span_count = 0;
    int code;

    for (uint32_t i = 0; i < data->layer_count; i++) {
        span_count += (size_t)data->layers[i].kv_heads * 2;
    }
    KVARN_ASSERT(span_count > 0);
    spans = calloc(span_count, sizeof *spans);
    if (spans == NULL) {
        return ctl_fail(e->ctl, KVARN_ENOMEM, kvarn_err_text(KVARN_ENOMEM));
    }
    code = bulk_run(e, spans);
    e->report.in_bulk = (struct evaluate_rate){
        .tokens = data->tokens,
        .bytes = payload_bytes(data),
        .seconds = (double)(ctl_now_us() - begin_us) / 1e6,
    };
    free(spans);
    return code;
}
