/*
 * Sampling of queries: which rows of an Attend's q enter its layer's query metric.
 *
 * Owner: service. Thread: loop only.
 */
#include "server/append/metric_sample.h"

#include <stdalign.h>
#include <string.h>

#include "kvarn/codec.h"
#include "lib/base/assert.h"
#include "lib/base/limits.h"

/* SEMANTICS.md 13: the square of the RMS beyond which a row is not taken. */
#define MEAN_SQUARE_MAX 1e8f

/* Sums that are zeroed in one go: 64 KiB, all of a head of 128, are 16 new pages, some 15 us. */
#define ZERO_FLOATS_MAX (16 * 1024)

int kvd_metric_sample_start(struct kvd_metric_store *store, const struct kvd_shape *shape)
{
    struct kvd_shape_metric *metric = NULL;
    int err = kvd_metric_store_get(store, shape, &metric);

    if (err == 0) {
        metric->is_sampled = true;
    }
    return err;
}

/* splitmix64: a counter, mixed. */
static uint64_t random_next(struct kvd_metric_layer *layer)
{
    uint64_t x = layer->random += UINT64_C(0x9E3779B97F4A7C15);

    x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
    return x ^ (x >> 31);
}

/* Tokens to pass over: uniform, `gap` - 1 in the mean. */
static uint64_t skip_draw(struct kvd_metric_layer *layer, uint64_t gap)
{
    return random_next(layer) % (2 * gap - 1);
}

/* The rows of one sample. */
struct sample {
    const struct kvd_metric_queries *queries;
    struct kvd_metric_layer *layer;
    uint32_t dim;
    uint32_t gqa;
    uint32_t row_count; /* query heads taken */
};

static bool row_is_usable(const float *row, uint32_t dim)
{
    float sum = 0;

    for (uint32_t i = 0; i < dim; i++) {
        sum += row[i] * row[i];
    }
    return sum <= MEAN_SQUARE_MAX * (float)dim; /* false for what is not a number */
}

/* Rotated rows of the sample's query heads that are usable; returns how many. */
static uint32_t rows_load(const struct sample *sample, uint32_t token, float *rows)
{
    const struct kvd_metric_queries *queries = sample->queries;
    struct kvd_metric_layer *layer = sample->layer;
    size_t value_bytes = kvarn_dtype_bytes(queries->dtype);
    uint32_t count = 0;

    for (uint32_t i = 0; i < sample->row_count; i++) {
        uint32_t head = layer->head_next * sample->gqa + (layer->row_next + i) % sample->gqa;
        size_t row = (size_t)head * queries->q_tokens + token;
        float *dst = rows + (size_t)count * sample->dim;
        kvarn_to_f32(dst, (const uint8_t *)queries->q + row * sample->dim * value_bytes,
            queries->dtype, sample->dim);
        if (!queries->is_rotated) {
            kvarn_rotate(dst, 1, sample->dim);
        }
        count += row_is_usable(dst, sample->dim);
    }
    return count;
}

/* The layer's window, begun if there is none; NULL without room. */
static struct kvd_metric_sum *layer_window(
    struct kvd_metric_store *store, const struct sample *sample)
{
    struct kvd_metric_layer *layer = sample->layer;
    const struct kvd_metric_queries *queries = sample->queries;

    if (layer->window == NULL &&
        kvd_metric_sum_create(store, &queries->shape->layers[queries->layer], &layer->window) !=
            0) {
        kvd_metrics_add(store->metrics, KVD_METRIC_query_metric_no_room, 1);
    }
    return layer->window;
}

/* Zero a head's sums, a part a sample; true when all are. */
static bool head_zero(struct kvd_metric_sum *sum, uint32_t head)
{
    float *sums = sum->sums + head * kvd_metric_head_floats(sum);
    uint32_t rows = ZERO_FLOATS_MAX / sum->dim;
    uint32_t left = sum->dim - sum->zeroed[head];

    rows = rows < left ? rows : left;
    memset(sums + (size_t)sum->zeroed[head] * sum->dim, 0, (size_t)rows * sum->dim * sizeof(float));
    sum->zeroed[head] += rows;
    return sum->zeroed[head] == sum->dim;
}

/* Add rows to the head whose turn it is; true when that made the window complete. */
static bool head_add(
    const struct sample *sample, struct kvd_metric_sum *sum, const float *rows, uint32_t count)
{
    struct kvd_metric_layer *layer = sample->layer;
    uint32_t head = layer->head_next;
    uint64_t needed = kvd_metric_window_queries(layer, sample->dim);
    uint64_t before = sum->counts[head];

    kvarn_metric_add(sum->sums + head * kvd_metric_head_floats(sum), rows, count, sample->dim);
    sum->counts[head] += count;
    layer->heads_full += before < needed && sum->counts[head] >= needed;
    return layer->heads_full == sum->kv_heads;
}

static void sample_token(struct kvd_metric_store *store, struct kvd_shape_metric *metric,
    const struct sample *sample, uint32_t token)
{
    alignas(64) float rows[KVD_METRIC_ROWS_MAX * KVARN_HEAD_DIM_MAX];
    struct kvd_metric_layer *layer = sample->layer;
    struct kvd_metric_sum *window = layer_window(store, sample);
    bool is_complete = false;
    uint32_t count = 0;

    if (window == NULL) {
        return;
    }
    if (head_zero(window, layer->head_next)) {
        count = rows_load(sample, token, rows);
        kvd_metrics_add(store->metrics, KVD_METRIC_queries_sampled, count);
        kvd_metrics_add(store->metrics, KVD_METRIC_queries_unusable, sample->row_count - count);
        is_complete = count > 0 && head_add(sample, window, rows, count);
    }
    layer->head_next = (layer->head_next + 1) % window->kv_heads;
    layer->row_next += layer->head_next == 0 ? sample->row_count : 0;
    if (is_complete) {
        kvd_metric_put(metric, sample->queries->layer, window, kvd_metric_new_version(metric));
    }
}

static struct sample sample_of(
    const struct kvd_metric_queries *queries, struct kvd_metric_layer *layer)
{
    const struct kvd_layer_shape *ls = &queries->shape->layers[queries->layer];
    struct sample sample = {.queries = queries,
        .layer = layer,
        .dim = ls->spec.k_dim,
        .gqa = queries->q_heads / ls->kv_heads};
    uint64_t madds_row = (uint64_t)sample.dim * sample.dim / 2;
    uint64_t rows_max = KVD_METRIC_MADDS_MAX / madds_row;

    KVARN_ASSERT(rows_max > 0 && sample.gqa > 0);
    sample.row_count = sample.gqa < KVD_METRIC_ROWS_MAX ? sample.gqa : KVD_METRIC_ROWS_MAX;
    sample.row_count = sample.row_count < rows_max ? sample.row_count : (uint32_t)rows_max;
    return sample;
}

void kvd_metric_sample(struct kvd_metric_store *store, const struct kvd_metric_queries *queries,
    struct kvd_metric_turn *turn)
{
    struct kvd_shape_metric *metric = kvd_metric_store_find(store, queries->shape);

    if (metric == NULL || !metric->is_sampled) {
        return;
    }
    struct kvd_metric_layer *layer = &metric->layers[queries->layer];
    struct sample sample = sample_of(queries, layer);
    uint64_t madds = (uint64_t)sample.row_count * sample.dim * sample.dim / 2;
    uint64_t gap = layer->version == NULL ? KVD_METRIC_GAP_FIRST : KVD_METRIC_GAP_LATER;
    uint64_t token = layer->tokens_to_skip;

    /* What there is room for is spread over all tokens of the request. */
    uint64_t samples_max = turn->madds_left / madds;
    if (samples_max > 0 && turn->tokens_left / samples_max > gap) {
        gap = turn->tokens_left / samples_max;
    }
    while (token < queries->q_tokens && turn->madds_left >= madds) {
        sample_token(store, metric, &sample, (uint32_t)token);
        turn->madds_left -= madds;
        token += 1 + skip_draw(layer, gap);
    }
    layer->tokens_to_skip = token > queries->q_tokens ? token - queries->q_tokens : 0;
    turn->tokens_left -= queries->q_tokens;
}
