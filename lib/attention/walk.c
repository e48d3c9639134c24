/*
 * The walk over spans with an online softmax. Query rows go in strips of at most
 * KVARN__QUERY_ROWS_MAX; a strip walks all spans before the next one starts, so that its
 * accumulators stay in cache and work space does not grow with the number of queries.
 */
#include <math.h>
#include <string.h>

#include "kvarn/attention.h"
#include "lib/attention/partial.h"
#include "lib/base/assert.h"
#include "lib/format/layout.h"

/* Query rows on their way over the spans. */
struct strip {
    const struct kvarn_attention_params *params; /* borrowed */
    const float *q;                              /* borrowed, [rows][k_dim] */
    size_t first_row;
    uint32_t rows;
    float *acc;     /* borrowed from scratch, [rows][v_dim] */
    float *weights; /* borrowed from scratch, [rows][tokens of a span] */
    float max[KVARN__QUERY_ROWS_MAX];
    double sum[KVARN__QUERY_ROWS_MAX];
};

static size_t strip_rows(const struct kvarn_attention_params *params)
{
    size_t rows = kvarn__attention_rows(params);

    return rows < KVARN__QUERY_ROWS_MAX ? rows : KVARN__QUERY_ROWS_MAX;
}

size_t kvarn_attention_scratch_floats(const struct kvarn_attention_params *params)
{
    return strip_rows(params) * ((size_t)params->spec.v_dim + params->spec.group);
}

/* Tokens of a span that one query row sees: [low, high) from the span's first. */
struct seen {
    uint32_t low, high;
};

/* SEMANTICS 19: row t sits at p = position + t and sees max(first, p - window + 1) <= j <= p. */
static struct seen row_seen(const struct kvarn_attention_params *params, size_t row,
    const struct kvarn_attention_span *span)
{
    uint64_t position = params->position + row % params->q_tokens;
    uint64_t low = params->first;
    uint64_t high = params->last;
    uint64_t span_end = span->first_token + span->token_count;

    if (params->causal && position < high) {
        high = position + 1;
    }
    if (params->window > 0 && position >= params->window && position - params->window + 1 > low) {
        low = position - params->window + 1;
    }
    low = low > span->first_token ? low : span->first_token;
    high = high < span_end ? high : span_end;
    if (low >= high) {
        return (struct seen){0, 0};
    }
    return (struct seen){(uint32_t)(low - span->first_token), (uint32_t)(high - span->first_token)};
}

/* dst[rows][token_count] = q . K */
static void span_dot(const struct strip *strip, const struct kvarn_attention_span *span, float *dst)
{
    const struct kvarn__kernels *kernels = kvarn__kernels_get();

    if (span->form == KVARN_SPAN_TILE) {
        struct kvarn__tile_view view;
        kvarn__tile_k_view(&strip->params->spec, span->tile, &view);
        view.token_count = span->token_count;
        kernels->qk_tile(&view, strip->q, strip->rows, dst);
    } else {
        struct kvarn__rows_view view = {span->k_rows, strip->params->spec.k_dim, span->token_count};
        kernels->qk_half(&view, strip->q, strip->rows, dst);
    }
}

/* acc += weights . V */
static void span_add(const struct strip *strip, const struct kvarn_attention_span *span)
{
    const struct kvarn__kernels *kernels = kvarn__kernels_get();

    if (span->form == KVARN_SPAN_TILE) {
        struct kvarn__tile_view view;
        kvarn__tile_v_view(&strip->params->spec, span->tile, &view);
        view.token_count = span->token_count;
        kernels->av_tile(&view, strip->weights, strip->rows, strip->acc);
    } else {
        struct kvarn__rows_view view = {span->v_rows, strip->params->spec.v_dim, span->token_count};
        kernels->av_half(&view, strip->weights, strip->rows, strip->acc);
    }
}

/* Raw dot products of the tokens seen -> logits; returns the largest. */
static float logits_finish(
    const struct kvarn_attention_params *params, struct seen seen, float *logits)
{
    float max = -INFINITY;

    for (uint32_t t = seen.low; t < seen.high; t++) {
        float logit = params->scale * logits[t];
        if (params->softcap > 0) {
            logit = params->softcap * tanhf(logit / params->softcap);
        }
        logits[t] = logit;
        max = logit > max ? logit : max;
    }
    return max;
}

/* One row of a span: dot products -> weights relative to the new maximum; what is not seen is 0. */
static void row_weigh(
    struct strip *strip, uint32_t row, struct seen seen, uint32_t token_count, float *weights)
{
    const uint32_t dim = strip->params->spec.v_dim;
    float *acc = strip->acc + (size_t)row * dim;

    if (seen.low < seen.high) {
        float span_max = logits_finish(strip->params, seen, weights);
        if (span_max > strip->max[row]) {
            /* expf(-inf) is 0: the first span rescales nothing. */
            float share = expf(strip->max[row] - span_max);
            strip->sum[row] *= (double)share;
            for (uint32_t i = 0; i < dim; i++) {
                acc[i] *= share;
            }
            strip->max[row] = span_max;
        }
    }
    for (uint32_t t = 0; t < token_count; t++) {
        bool is_seen = t >= seen.low && t < seen.high;
        weights[t] = is_seen ? expf(weights[t] - strip->max[row]) : 0.0f;
        strip->sum[row] += (double)weights[t];
    }
}

static void strip_walk_span(struct strip *strip, const struct kvarn_attention_span *span)
{
    struct seen seen[KVARN__QUERY_ROWS_MAX];
    bool is_any_seen = false;

    KVARN_ASSERT(span->token_count <= strip->params->spec.group);
    for (uint32_t r = 0; r < strip->rows; r++) {
        seen[r] = row_seen(strip->params, strip->first_row + r, span);
        is_any_seen |= seen[r].low < seen[r].high;
    }
    if (!is_any_seen) {
        return;
    }
    span_dot(strip, span, strip->weights);
    for (uint32_t r = 0; r < strip->rows; r++) {
        row_weigh(
            strip, r, seen[r], span->token_count, strip->weights + (size_t)r * span->token_count);
    }
    span_add(strip, span);
}

/* Take the strip's rows of the partial into work space, or put them back. */
static void strip_load(struct strip *strip, const float *partial)
{
    const size_t stride = kvarn__partial_stride(strip->params);
    const size_t dim = strip->params->spec.v_dim;

    for (uint32_t r = 0; r < strip->rows; r++) {
        const float *row = partial + (strip->first_row + r) * stride;
        strip->max[r] = row[KVARN__PARTIAL_MAX];
        strip->sum[r] = (double)row[KVARN__PARTIAL_SUM];
        memcpy(strip->acc + r * dim, row + KVARN__PARTIAL_ACC, dim * sizeof(float));
    }
}

static void strip_store(const struct strip *strip, float *partial)
{
    const size_t stride = kvarn__partial_stride(strip->params);
    const size_t dim = strip->params->spec.v_dim;

    for (uint32_t r = 0; r < strip->rows; r++) {
        float *row = partial + (strip->first_row + r) * stride;
        row[KVARN__PARTIAL_MAX] = strip->max[r];
        row[KVARN__PARTIAL_SUM] = (float)strip->sum[r];
        memcpy(row + KVARN__PARTIAL_ACC, strip->acc + r * dim, dim * sizeof(float));
    }
}

void kvarn_attention_walk(const struct kvarn_attention_params *params, const float *q,
    const struct kvarn_attention_span *spans, size_t span_count, float *partial, float *scratch)
{
    const size_t rows = kvarn__attention_rows(params);
    struct strip strip = {.params = params, .acc = scratch};

    KVARN_ASSERT(params->q_heads > 0 && params->q_tokens > 0);
    strip.weights = scratch + strip_rows(params) * params->spec.v_dim;
    for (size_t first = 0; first < rows; first += KVARN__QUERY_ROWS_MAX) {
        size_t left = rows - first;
        strip.first_row = first;
        strip.rows = left < KVARN__QUERY_ROWS_MAX ? (uint32_t)left : KVARN__QUERY_ROWS_MAX;
        strip.q = q + first * params->spec.k_dim;
        strip_load(&strip, partial);
        for (size_t i = 0; i < span_count; i++) {
            strip_walk_span(&strip, &spans[i]);
        }
        strip_store(&strip, partial);
    }
}
