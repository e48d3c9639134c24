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
    const struct kvarn__kernels *kernels;        /* borrowed */
    const float *q;                              /* borrowed, [rows][k_dim] */
    size_t first_row;
    uint32_t rows;
    float *acc;          /* borrowed from scratch, [rows][v_dim] */
    float *packed;       /* borrowed from scratch, [rows][packed_count]: fast tiles' share of acc */
    size_t packed_count; /* 0: exact */
    float *weights;      /* borrowed from scratch, [rows][tokens of a span] */
    float max[KVARN__QUERY_ROWS_MAX];
    double sum[KVARN__QUERY_ROWS_MAX];
    struct kvarn__seen seen[KVARN__QUERY_ROWS_MAX]; /* of the span at hand */
};

static size_t strip_rows(const struct kvarn_attention_params *params)
{
    size_t rows = kvarn__attention_rows(params);

    return rows < KVARN__QUERY_ROWS_MAX ? rows : KVARN__QUERY_ROWS_MAX;
}

static size_t packed_count(const struct kvarn_attention_params *params)
{
    return params->accuracy == KVARN_ACCURACY_EXACT
               ? 0
               : kvarn__packed_floats(params->spec.v_dim, params->spec.v_bits);
}

size_t kvarn_attention_scratch_floats(const struct kvarn_attention_params *params)
{
    return strip_rows(params) *
           ((size_t)params->spec.v_dim + params->spec.group + packed_count(params));
}

/* SEMANTICS 19: row t sits at p = position + t and sees max(first, p - window + 1) <= j <= p. */
static struct kvarn__seen row_seen(const struct kvarn_attention_params *params, size_t row,
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
        return (struct kvarn__seen){0, 0};
    }
    return (struct kvarn__seen){
        (uint32_t)(low - span->first_token), (uint32_t)(high - span->first_token)};
}

/* dst[rows][token_count] = q . K */
static void span_dot(const struct strip *strip, const struct kvarn_attention_span *span, float *dst)
{
    const struct kvarn__kernels *kernels = strip->kernels;

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
    const struct kvarn__kernels *kernels = strip->kernels;

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

/* A row's sums are relative to a maximum that was raised: they shrink. */
static void row_rescale(struct strip *strip, uint32_t row, float share)
{
    const uint32_t dim = strip->params->spec.v_dim;
    float *acc = strip->acc + (size_t)row * dim;

    for (uint32_t i = 0; i < dim; i++) {
        acc[i] *= share;
    }
}

static void row_rescale_packed(struct strip *strip, uint32_t row, float share)
{
    float *packed = strip->packed + row * strip->packed_count;

    for (size_t i = 0; i < strip->packed_count; i++) {
        packed[i] *= share;
    }
}

/* One row of a span: dot products -> weights relative to the new maximum; what is not seen is 0. */
static void row_weigh(struct strip *strip, uint32_t row, uint32_t token_count)
{
    const struct kvarn_attention_params *params = strip->params;
    const struct kvarn__seen seen = strip->seen[row];
    float *weights = strip->weights + (size_t)row * token_count;
    float span_max = -INFINITY;

    if (seen.low < seen.high) {
        strip->kernels->softmax_logits(
            weights + seen.low, seen.high - seen.low, params->scale, params->softcap, &span_max);
        if (span_max > strip->max[row]) {
            /* expf(-inf) is 0: the first span rescales nothing. */
            float share = expf(strip->max[row] - span_max);
            strip->sum[row] *= (double)share;
            row_rescale(strip, row, share);
            row_rescale_packed(strip, row, share);
            strip->max[row] = span_max;
        }
        strip->kernels->softmax_weights(
            weights + seen.low, seen.high - seen.low, strip->max[row], &strip->sum[row]);
    }
    memset(weights, 0, seen.low * sizeof(*weights));
    memset(weights + seen.high, 0, (token_count - seen.high) * sizeof(*weights));
}

/* A tile in 8 bits. Its kernel rescales the packed sums; those of half rows are ours. */
static void strip_walk_fast(struct strip *strip, const struct kvarn_attention_span *span,
    const struct kvarn_attention_span *next)
{
    const struct kvarn_attention_params *params = strip->params;
    struct kvarn__tile_view k, v;
    float before[KVARN__QUERY_ROWS_MAX];
    struct kvarn__fast_rows rows = {.q = strip->q,
        .seen = strip->seen,
        .rows = strip->rows,
        .scale = params->scale,
        .softcap = params->softcap,
        .max = strip->max,
        .sum = strip->sum,
        .acc = strip->packed};

    if (next != NULL && next->form == KVARN_SPAN_TILE) {
        rows.ahead = next->tile;
        rows.ahead_bytes = kvarn_tile_bytes(&params->spec);
    }

    memcpy(before, strip->max, strip->rows * sizeof(*before));
    kvarn__tile_k_view(&params->spec, span->tile, &k);
    kvarn__tile_v_view(&params->spec, span->tile, &v);
    strip->kernels->attend_tile(&k, &v, &rows);
    for (uint32_t r = 0; r < strip->rows; r++) {
        if (strip->max[r] > before[r]) {
            row_rescale(strip, r, expf(before[r] - strip->max[r]));
        }
    }
}

/* `next`: the span that is walked after this one; NULL: none. */
static void strip_walk_span(struct strip *strip, const struct kvarn_attention_span *span,
    const struct kvarn_attention_span *next)
{
    bool is_any_seen = false;

    KVARN_ASSERT(span->token_count <= strip->params->spec.group);
    for (uint32_t r = 0; r < strip->rows; r++) {
        strip->seen[r] = row_seen(strip->params, strip->first_row + r, span);
        is_any_seen |= strip->seen[r].low < strip->seen[r].high;
    }
    if (!is_any_seen) {
        return;
    }
    if (span->form == KVARN_SPAN_TILE && strip->packed_count > 0) {
        strip_walk_fast(strip, span, next);
        return;
    }
    span_dot(strip, span, strip->weights);
    for (uint32_t r = 0; r < strip->rows; r++) {
        row_weigh(strip, r, span->token_count);
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
    memset(strip->packed, 0, strip->rows * strip->packed_count * sizeof(float));
}

/* acc += packed sums of one row, in the order of channels: kvarn__packed_idx(), block by block. */
static void row_unpack(const float *packed, uint32_t dim, uint32_t bits, float *acc)
{
    const uint32_t planes = 8 / bits, block = planes * KVARN__PACKED_COLUMNS;

    for (uint32_t at = 0; at < dim; at += block) {
        const uint32_t left = dim - at < block ? dim - at : block;
        for (uint32_t i = 0; i < left; i += planes) {
            for (uint32_t m = 0; m < planes; m++) {
                acc[at + i + m] += packed[at + m * KVARN__PACKED_COLUMNS + i / planes];
            }
        }
    }
}

/* Bring the packed sums into the order of channels. */
static void strip_unpack(struct strip *strip)
{
    const uint32_t dim = strip->params->spec.v_dim, bits = strip->params->spec.v_bits;

    for (uint32_t r = 0; r < strip->rows; r++) {
        const float *packed = strip->packed + r * strip->packed_count;
        float *acc = strip->acc + (size_t)r * dim;
        if (bits == 2) {
            row_unpack(packed, dim, 2, acc);
        } else {
            row_unpack(packed, dim, 4, acc);
        }
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
    struct strip strip = {.params = params,
        .kernels = kvarn__kernels_get(),
        .acc = scratch,
        .packed_count = packed_count(params)};

    KVARN_ASSERT(params->q_heads > 0 && params->q_tokens > 0);
    strip.weights = scratch + strip_rows(params) * params->spec.v_dim;
    strip.packed = strip.weights + strip_rows(params) * params->spec.group;
    for (size_t first = 0; first < rows; first += KVARN__QUERY_ROWS_MAX) {
        size_t left = rows - first;
        strip.first_row = first;
        strip.rows = left < KVARN__QUERY_ROWS_MAX ? (uint32_t)left : KVARN__QUERY_ROWS_MAX;
        strip.q = q + first * params->spec.k_dim;
        strip_load(&strip, partial);
        for (size_t i = 0; i < span_count; i++) {
            strip_walk_span(&strip, &spans[i], i + 1 < span_count ? &spans[i + 1] : NULL);
        }
        if (strip.packed_count > 0) {
            strip_unpack(&strip);
        }
        strip_store(&strip, partial);
    }
}
