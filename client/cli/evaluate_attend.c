/*
 * An evaluation's attention: the recorded queries, against exact attention over what was sent.
 *
 * Owner: the command. Thread: main.
 */
#include "client/cli/evaluate_run.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "client/cli/exact.h"
#include "client/cli/spans.h"
#include "lib/base/assert.h"

/* A query alone and among others is cut and merged differently: float rounding, no more. */
#define SINGLE_ERROR_MAX 1e-8

#define SINGLE_ROWS_MAX 128 /* query tokens of a layer that are also asked for one at a time */

/* What attending to one layer works with. */
struct attending {
    struct evaluate *e; /* borrowed */
    uint32_t layer;
    struct kvarn_span *spans;           /* owned; one a query head */
    struct evaluate_answer steps, bulk; /* owned: of the two sessions */
    struct evaluate_answer single;      /* owned: one query token at a time, from `bulk` */
    double *exact_out, *exact_lse;      /* owned: of all query heads */
    double *times_us;                   /* borrowed: round trips of single queries */
    uint64_t time_count;
    struct error_sum single_error;
    bool is_same;
};

static int memory_fail(struct evaluate *e)
{
    return ctl_fail(e->ctl, KVARN_ENOMEM, kvarn_err_text(KVARN_ENOMEM));
}

/* ---- Exact ---- */

static int exact_run(struct attending *a)
{
    const struct evaluate_data *data = a->e->data;
    const struct evaluate_layer *l = &data->layers[a->layer];
    float *q = evaluate_floats(&l->q);
    float *k = evaluate_floats(&l->k);
    float *v = evaluate_floats(&l->v);
    double *logits = calloc((size_t)data->tokens, sizeof *logits);
    struct exact_in in = {
        .q = q,
        .k = k,
        .v = v,
        .q_heads = l->q_heads,
        .kv_heads = l->kv_heads,
        .k_dim = l->k_dim,
        .v_dim = l->v_dim,
        .tokens = data->tokens,
        .query_tokens = data->query_tokens,
        .position = data->tokens - data->query_tokens,
        .scale = 1.0 / sqrt((double)l->k_dim),
    };
    bool is_good = q != NULL && k != NULL && v != NULL && logits != NULL;

    for (uint32_t head = 0; is_good && head < l->q_heads; head++) {
        exact_attend_head(&in, head, a->exact_out + head * in.query_tokens * in.v_dim,
            a->exact_lse + head * in.query_tokens, logits);
        evaluate_progress(a->e, "attention", (uint64_t)a->layer * l->q_heads + head + 1,
            (uint64_t)data->layer_count * l->q_heads);
    }
    free(q);
    free(k);
    free(v);
    free(logits);
    return is_good ? CTL_OK : memory_fail(a->e);
}

/* ---- The daemon's ---- */

/* Attend with query tokens [row, row + count) and keep what comes. */
static int rows_attend(struct attending *a, struct kvarn_session *session, uint64_t row,
    uint64_t count, struct evaluate_answer *to)
{
    const struct evaluate_data *data = a->e->data;
    const struct evaluate_layer *l = &data->layers[a->layer];
    const struct kvarn_attend_item item = {
        .session = session,
        .query_tokens = (uint32_t)count,
        .position = data->tokens - data->query_tokens + row,
        .token_last = KVARN_TOKEN_DEFAULT,
    };
    const struct kvarn_attend_args args = {
        .params = {.layer = a->layer,
            .q_heads = l->q_heads,
            .q_dtype = evaluate_dtype(&l->q),
            .out_dtype = KVARN_F32},
        .items = &item,
        .item_count = 1,
        .payload = a->spans,
        .payload_count = spans_of_tokens(a->spans, &l->q, row, count),
    };
    struct kvarn_attend_result result;
    char text[256];
    int err = kvarn_client_attend(a->e->ctl->client, &args, &result);

    if (err != 0) {
        return ctl_refused(a->e->ctl, err);
    }
    if (result.item_count == 1 && result.items[0].status.err != 0) {
        snprintf(text, sizeof text, "%.240s", result.items[0].status.text);
        return ctl_fail(a->e->ctl, result.items[0].status.err, text);
    }
    if (result.item_count != 1 || result.lse_count != l->q_heads * count ||
        result.out_bytes != l->q_heads * count * l->v_dim * sizeof(float)) {
        return ctl_fail(a->e->ctl, KVARN_EPROTOCOL, "the output is not of the query's shape");
    }
    for (uint32_t head = 0; head < l->q_heads; head++) {
        size_t at = (size_t)(head * data->query_tokens + row);

        memcpy(to->out + at * l->v_dim, (const float *)result.out + head * count * l->v_dim,
            (size_t)count * l->v_dim * sizeof(float));
        memcpy(to->lse + at, result.lse + head * count, (size_t)count * sizeof(float));
    }
    return CTL_OK;
}

/* All query tokens, in as few requests as fit, of both sessions. */
static int sessions_attend(struct attending *a)
{
    const struct evaluate_data *data = a->e->data;
    const struct evaluate_layer *l = &data->layers[a->layer];
    uint64_t step = evaluate_request_tokens(
        a->e, (uint64_t)l->q_heads * (l->k_dim + l->v_dim + 1) * sizeof(float));
    size_t rows = (size_t)(l->q_heads * data->query_tokens);
    int code = CTL_OK;

    for (uint64_t row = 0; code == CTL_OK && row < data->query_tokens; row += step) {
        uint64_t count = data->query_tokens - row < step ? data->query_tokens - row : step;

        code = rows_attend(a, a->e->steps, row, count, &a->steps);
        if (code == CTL_OK) {
            code = rows_attend(a, a->e->bulk, row, count, &a->bulk);
        }
    }
    if (code == CTL_OK) {
        a->is_same = a->is_same &&
                     memcmp(a->steps.out, a->bulk.out, rows * l->v_dim * sizeof(float)) == 0 &&
                     memcmp(a->steps.lse, a->bulk.lse, rows * sizeof(float)) == 0;
    }
    return code;
}

static uint64_t single_rows(const struct evaluate_data *data)
{
    return data->query_tokens < SINGLE_ROWS_MAX ? data->query_tokens : SINGLE_ROWS_MAX;
}

/* The last query tokens, one at a time. */
static int singles_attend(struct attending *a)
{
    const struct evaluate_data *data = a->e->data;
    const struct evaluate_layer *l = &data->layers[a->layer];
    uint64_t first = data->query_tokens - single_rows(data);
    int code = CTL_OK;

    for (uint64_t row = first; code == CTL_OK && row < data->query_tokens; row++) {
        uint64_t begin_us = ctl_now_us();

        code = rows_attend(a, a->e->bulk, row, 1, &a->single);
        a->times_us[a->time_count++] = (double)(ctl_now_us() - begin_us);
    }
    for (uint32_t head = 0; code == CTL_OK && head < l->q_heads; head++) {
        size_t at = (size_t)(head * data->query_tokens + first) * l->v_dim;

        error_sum_add(&a->single_error, a->single.out + at, a->bulk.out + at,
            (size_t)single_rows(data) * l->v_dim);
    }
    return code;
}

/* ---- Comparing ---- */

static void layer_compare(struct attending *a)
{
    const struct evaluate_data *data = a->e->data;
    const struct evaluate_layer *l = &data->layers[a->layer];
    const struct evaluate_answer *decode = &a->e->decode[a->layer];
    struct evaluate_layer_report *report = &a->e->report.layers[a->layer];
    size_t rows = (size_t)(l->q_heads * data->query_tokens);

    error_sum_add_f64(&report->decode, decode->out, a->exact_out, rows * l->v_dim);
    error_sum_add_f64(&report->attend, a->bulk.out, a->exact_out, rows * l->v_dim);
    lse_error_add(&report->decode_lse, decode->lse, a->exact_lse, rows);
    lse_error_add(&report->attend_lse, a->bulk.lse, a->exact_lse, rows);
}

static int layer_attend(struct attending *a)
{
    const struct evaluate_data *data = a->e->data;
    const struct evaluate_layer *l = &data->layers[a->layer];
    size_t rows = (size_t)(l->q_heads * data->query_tokens);
    bool is_good = evaluate_answer_init(&a->steps, data, a->layer) &&
                   evaluate_answer_init(&a->bulk, data, a->layer) &&
                   evaluate_answer_init(&a->single, data, a->layer);
    int code;

    a->spans = calloc(l->q_heads, sizeof *a->spans);
    a->exact_out = calloc(rows * l->v_dim, sizeof *a->exact_out);
    a->exact_lse = calloc(rows, sizeof *a->exact_lse);
    if (is_good && a->spans != NULL && a->exact_out != NULL && a->exact_lse != NULL) {
        code = exact_run(a);
    } else {
        code = memory_fail(a->e);
    }
    if (code == CTL_OK) {
        code = sessions_attend(a);
    }
    if (code == CTL_OK) {
        code = singles_attend(a);
    }
    if (code == CTL_OK) {
        layer_compare(a);
    }
    evaluate_answer_fini(&a->steps);
    evaluate_answer_fini(&a->bulk);
    evaluate_answer_fini(&a->single);
    free(a->spans);
    free(a->exact_out);
    free(a->exact_lse);
    return code;
}

int evaluate_attend(struct evaluate *e)
{
    uint64_t times_max = single_rows(e->data) * e->data->layer_count;
    double *times_us = calloc((size_t)times_max, sizeof *times_us);
    struct attending a = {.e = e, .times_us = times_us, .is_same = true};
    int code = times_us != NULL ? CTL_OK : memory_fail(e);

    for (; code == CTL_OK && a.layer < e->data->layer_count; a.layer++) {
        code = layer_attend(&a);
    }
    if (code == CTL_OK) {
        KVARN_ASSERT(a.time_count == times_max);
        e->report.attend = evaluate_round_trip_of(times_us, a.time_count);
        e->report.has_passed[EVALUATE_CHECK_ATTEND] = a.is_same;
        e->report.has_passed[EVALUATE_CHECK_SINGLE] =
            error_sum_relative(&a.single_error) <= SINGLE_ERROR_MAX;
    }
    free(times_us);
    return code;
}
