/*
 * kvarnctl evaluate: what kvarnd costs on recorded tensors of one's own model.
 *
 * Owner: the command. Thread: main.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/cli/ctl.h"
#include "client/cli/evaluate_run.h"
#include "client/cli/size.h"
#include "lib/base/assert.h"

#define SESSION_KEPT    "evaluate"
#define PROGRESS_US_MIN 100000 /* between two lines of progress */

static const uint64_t size_tokens[EVALUATE_SIZES] = {1024, 4096, 32768};

/* ---- What the steps share ---- */

void evaluate_progress(struct evaluate *e, const char *step, uint64_t done, uint64_t total)
{
    uint64_t now_us = ctl_now_us();

    if (!e->has_progress || (done < total && now_us - e->progress_us < PROGRESS_US_MIN)) {
        return;
    }
    e->progress_us = now_us;
    fprintf(stderr, "\r\x1b[K%s: %" PRIu64 " of %" PRIu64 "%s", step, done, total,
        done == total ? "\r\x1b[K" : "");
}

uint64_t evaluate_request_tokens(const struct evaluate *e, uint64_t token_bytes)
{
    const struct kvarn_hello_result *server = kvarn_client_server(e->ctl->client);
    uint64_t bytes = EVALUATE_REQUEST_BYTES;

    KVARN_ASSERT(token_bytes > 0);
    if (bytes > server->payload_bytes_max) {
        bytes = server->payload_bytes_max;
    }
    if (server->credit_bytes != 0 && bytes > server->credit_bytes) {
        bytes = server->credit_bytes;
    }
    return bytes / token_bytes > 0 ? bytes / token_bytes : 1;
}

bool evaluate_answer_init(
    struct evaluate_answer *answer, const struct evaluate_data *data, uint32_t layer)
{
    size_t rows = (size_t)(data->layers[layer].q_heads * data->query_tokens);

    KVARN_ASSERT(rows > 0);
    answer->out = calloc(rows * data->layers[layer].v_dim, sizeof *answer->out);
    answer->lse = calloc(rows, sizeof *answer->lse);
    return answer->out != NULL && answer->lse != NULL;
}

void evaluate_answer_fini(struct evaluate_answer *answer)
{
    free(answer->out);
    free(answer->lse);
    memset(answer, 0, sizeof *answer);
}

float *evaluate_floats(const struct npy_array *array)
{
    size_t count = array->data_bytes / npy_type_bytes(array->type);
    float *floats = calloc(count, sizeof *floats);

    if (floats != NULL) {
        kvarn_to_f32(floats, array->data, evaluate_dtype(array), count);
    }
    return floats;
}

/* ---- Options ---- */

static int options_fill(struct ctl *ctl, struct evaluate_options *options)
{
    uint64_t group = ctl_number(ctl, "group");
    uint64_t sink_tokens = ctl_is_set(ctl, "sink-tokens") ? ctl_number(ctl, "sink-tokens") : group;

    if (kvarn_preset_parse(ctl_text(ctl, "preset"), &options->k_bits, &options->v_bits) != 0) {
        return ctl_usage(ctl, "--preset: expected k2v2, k4v2 or k4v4");
    }
    if (ctl_encoder(ctl_text(ctl, "encoder"), &options->encoder) != 0) {
        return ctl_usage(ctl, "--encoder: expected reference, refined or aware");
    }
    if (group != 64 && group != 128) {
        return ctl_usage(ctl, "--group: expected 128 or 64");
    }
    if (sink_tokens % group != 0 || sink_tokens >= KVARN_SINK_DEFAULT) {
        return ctl_usage(ctl, "--sink-tokens: expected 0 or a multiple of the group");
    }
    if (ctl_number(ctl, "seal-lag") > group) {
        return ctl_usage(ctl, "--seal-lag: expected at most the group");
    }
    options->group = (uint32_t)group;
    options->sink_tokens = (uint32_t)sink_tokens;
    options->seal_lag = (uint32_t)ctl_number(ctl, "seal-lag");
    options->session_name = ctl_is_set(ctl, "keep-session") ? SESSION_KEPT : NULL;
    return CTL_OK;
}

/* ---- The report's fixed part and sizes ---- */

static void report_fill(struct evaluate *e)
{
    struct evaluate_report *r = &e->report;

    r->folder = e->ctl->args.positions[0];
    r->server_version = kvarn_client_server(e->ctl->client)->server_version;
    r->preset = ctl_text(e->ctl, "preset");
    r->encoder = ctl_encoder_name(e->options.encoder);
    r->group = e->options.group;
    r->sink_tokens = e->options.sink_tokens;
    r->seal_lag = e->options.seal_lag;
    r->tokens = e->data->tokens;
    r->query_tokens = e->data->query_tokens;
    for (uint32_t i = 0; i < e->data->layer_count; i++) {
        const struct evaluate_layer *l = &e->data->layers[i];

        r->layers[i].number = l->number;
        r->layers[i].kv_heads = l->kv_heads;
        r->layers[i].q_heads = l->q_heads;
        r->layers[i].k_dim = l->k_dim;
        r->layers[i].v_dim = l->v_dim;
    }
}

/* The capacity calculator's bytes of all layers. False: it has no answer for this shape. */
static bool size_sum(const struct evaluate *e, uint64_t tokens, struct size_out *ret)
{
    memset(ret, 0, sizeof *ret);
    for (uint32_t i = 0; i < e->data->layer_count; i++) {
        const struct evaluate_layer *l = &e->data->layers[i];
        const struct size_in in = {
            .spec = {(uint16_t)l->k_dim, (uint16_t)l->v_dim, (uint16_t)e->options.group,
                e->options.k_bits, e->options.v_bits},
            .layers = 1,
            .kv_heads = l->kv_heads,
            .sink_tokens = e->options.sink_tokens,
            .seal_lag = e->options.seal_lag,
            .tokens = tokens,
        };
        struct size_out out;

        if (size_compute(&in, &out) != 0) {
            return false;
        }
        ret->fp16_bytes += out.fp16_bytes;
        ret->format_bytes += out.format_bytes;
        ret->sink_bytes += out.sink_bytes;
        ret->tail_bytes += out.tail_bytes;
        ret->reserved_bytes += out.reserved_bytes;
        ret->total_bytes += out.total_bytes;
    }
    return true;
}

static void sizes_fill(struct evaluate *e)
{
    const struct evaluate_bytes *b = &e->report.bytes;
    struct size_out out;

    for (int i = 0; i < EVALUATE_SIZES; i++) {
        e->report.size_tokens[i] = size_tokens[i];
        if (size_sum(e, size_tokens[i], &out) && out.total_bytes != 0) {
            e->report.size_ratio[i] = (double)out.fp16_bytes / (double)out.total_bytes;
        }
    }
    e->report.has_passed[EVALUATE_CHECK_BYTES] =
        size_sum(e, e->data->tokens, &out) && out.fp16_bytes == b->fp16 &&
        out.format_bytes == b->format && out.sink_bytes == b->sink && out.tail_bytes == b->tail &&
        out.reserved_bytes == b->reserved;
}

/* ---- The command ---- */

static int steps_run(struct evaluate *e)
{
    static int (*const steps[])(struct evaluate *) = {
        evaluate_open,
        evaluate_store_steps,
        evaluate_store_bulk,
        evaluate_read,
        evaluate_attend,
    };
    int code = CTL_OK;

    for (size_t i = 0; code == CTL_OK && i < sizeof steps / sizeof steps[0]; i++) {
        code = steps[i](e);
    }
    return code;
}

static int report_show(struct evaluate *e)
{
    sizes_fill(e);
    if (e->ctl->is_json) {
        evaluate_report_json(&e->report, &e->ctl->json);
    } else {
        evaluate_report_print(&e->report, stdout);
        if (e->options.session_name != NULL) {
            printf("\nsession \"%s\" is kept: kvarnctl inspect %s; kvarnctl drop %s\n",
                SESSION_KEPT, SESSION_KEPT, SESSION_KEPT);
        }
    }
    if (!evaluate_report_is_good(&e->report)) {
        fprintf(stderr, "kvarnctl: evaluate: a check failed: the figures are not to be trusted\n");
        return CTL_FAILED;
    }
    return CTL_OK;
}

static int evaluate_run(struct evaluate *e)
{
    bool is_good;
    int code;

    e->decode = calloc(e->data->layer_count, sizeof *e->decode);
    is_good = e->decode != NULL && evaluate_report_init(&e->report, e->data->layer_count) == 0;
    for (uint32_t i = 0; is_good && i < e->data->layer_count; i++) {
        is_good = evaluate_answer_init(&e->decode[i], e->data, i);
    }
    if (is_good) {
        report_fill(e);
        code = steps_run(e);
    } else {
        code = ctl_fail(e->ctl, KVARN_ENOMEM, kvarn_err_text(KVARN_ENOMEM));
    }
    if (code == CTL_OK) {
        code = report_show(e);
    }
    for (uint32_t i = 0; e->decode != NULL && i < e->data->layer_count; i++) {
        evaluate_answer_fini(&e->decode[i]);
    }
    free(e->decode);
    evaluate_report_fini(&e->report);
    return code;
}

int cmd_evaluate(struct ctl *ctl)
{
    struct evaluate_data data = {0};
    struct evaluate e = {
        .ctl = ctl,
        .data = &data,
        .has_progress = isatty(STDERR_FILENO) == 1 && !ctl->is_json,
    };
    char error[NPY_ERROR_MAX];
    int code = options_fill(ctl, &e.options);
    int err;

    if (code != CTL_OK) {
        return code;
    }
    err = evaluate_data_load(ctl->args.positions[0], &data, error);
    code = err == 0 ? evaluate_run(&e) : ctl_fail(ctl, err, error);
    evaluate_data_fini(&data);
    return code;
}
