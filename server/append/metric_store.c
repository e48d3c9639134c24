/*
 * Query metrics: memory, versions, and the job that makes a version's factors.
 *
 * Owner: service. Thread: loop; factor_run() on a worker, which reads sums that never change and
 * writes one head's factor, which nobody reads before the loop has all of them.
 */
#include "server/append/metric_store.h"

#include <stdlib.h>
#include <string.h>

#include "kvarn/codec.h"
#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/base/cache_line.h"

void kvd_metric_store_init(struct kvd_metric_store *store, struct kvd_budget *budget,
    struct kvd_metrics *metrics, uint64_t bytes_max)
{
    *store =
        (struct kvd_metric_store){.budget = budget, .metrics = metrics, .bytes_max = bytes_max};
}

static size_t metric_bytes(const struct kvd_shape *shape)
{
    return sizeof(struct kvd_shape_metric) + shape->layer_count * sizeof(struct kvd_metric_layer);
}

static void metric_destroy(struct kvd_metric_store *store, struct kvd_shape_metric *metric)
{
    if (metric == NULL) {
        return;
    }
    for (uint32_t i = 0; i < metric->shape->layer_count; i++) {
        kvd_metric_sum_unref(metric->layers[i].version);
        kvd_metric_sum_unref(metric->layers[i].window);
    }
    kvd_budget_release(store->budget, KVD_BUDGET_QUERIES, metric_bytes(metric->shape));
    free(metric);
}

void kvd_metric_store_fini(struct kvd_metric_store *store)
{
    if (store->by_shape != NULL) {
        for (uint32_t i = 0; i < KVARN_SHAPES_MAX; i++) {
            metric_destroy(store, store->by_shape[i]);
        }
        free(store->by_shape);
        kvd_budget_release(store->budget, KVD_BUDGET_QUERIES,
            KVARN_SHAPES_MAX * sizeof(struct kvd_shape_metric *));
    }
    KVARN_ASSERT(store->used_bytes == 0);
    *store = (struct kvd_metric_store){0};
}

struct kvd_shape_metric *kvd_metric_store_find(
    const struct kvd_metric_store *store, const struct kvd_shape *shape)
{
    KVARN_ASSERT(shape->id > 0 && shape->id <= KVARN_SHAPES_MAX);
    return store->by_shape == NULL ? NULL : store->by_shape[shape->id - 1];
}

/* Zeroed memory, charged. */
static int charged_calloc(struct kvd_metric_store *store, size_t bytes, void **ret)
{
    int err = kvd_budget_charge(store->budget, KVD_BUDGET_QUERIES, bytes);

    if (err != 0) {
        return err;
    }
    *ret = calloc(1, bytes);
    if (*ret == NULL) {
        kvd_budget_release(store->budget, KVD_BUDGET_QUERIES, bytes);
        return KVARN_ENOMEM;
    }
    return 0;
}

int kvd_metric_store_get(
    struct kvd_metric_store *store, const struct kvd_shape *shape, struct kvd_shape_metric **ret)
{
    struct kvd_shape_metric *metric = kvd_metric_store_find(store, shape);
    void *memory = NULL;
    int err = 0;

    if (metric != NULL) {
        *ret = metric;
        return 0;
    }
    if (store->by_shape == NULL) {
        /* All at once: 8 KiB, and nothing to grow. */
        err = charged_calloc(store, KVARN_SHAPES_MAX * sizeof(struct kvd_shape_metric *), &memory);
        if (err != 0) {
            return err;
        }
        store->by_shape = memory;
    }
    err = charged_calloc(store, metric_bytes(shape), &memory);
    if (err != 0) {
        return err;
    }
    metric = memory;
    metric->shape = shape;
    for (uint32_t i = 0; i < shape->layer_count; i++) {
        metric->layers[i].random = i; /* layers that are asked in step sample other tokens */
    }
    store->by_shape[shape->id - 1] = metric;
    *ret = metric;
    return 0;
}

/* Bytes of a sum's small arrays, each at a cache line's start. */
static size_t head_bytes(uint32_t kv_heads)
{
    return kvd_round_64(sizeof(struct kvd_metric_sum)) + kvd_round_64(kv_heads * sizeof(uint64_t)) +
           kvd_round_64(kv_heads * sizeof(uint32_t)) + kvd_round_64(kv_heads);
}

size_t kvd_metric_sum_bytes(const struct kvd_layer_shape *ls)
{
    size_t floats = (size_t)ls->kv_heads * ls->spec.k_dim * ls->spec.k_dim;

    return head_bytes(ls->kv_heads) + 2 * floats * sizeof(float);
}

static void sum_init(
    struct kvd_metric_sum *sum, struct kvd_metric_store *store, const struct kvd_layer_shape *ls)
{
    uint8_t *memory = (uint8_t *)sum + kvd_round_64(sizeof(*sum));
    size_t floats = (size_t)ls->kv_heads * ls->spec.k_dim * ls->spec.k_dim;

    /* The sums themselves are zeroed as queries come: a fresh layer costs no pages. */
    memset(sum, 0, head_bytes(ls->kv_heads));
    sum->store = store;
    STAILQ_INIT(&sum->waiting);
    sum->refs = 1;
    sum->kv_heads = ls->kv_heads;
    sum->dim = ls->spec.k_dim;
    sum->charged_bytes = kvd_metric_sum_bytes(ls);
    sum->counts = (void *)memory;
    memory += kvd_round_64(ls->kv_heads * sizeof(uint64_t));
    sum->zeroed = (void *)memory;
    memory += kvd_round_64(ls->kv_heads * sizeof(uint32_t));
    sum->has_factor = memory;
    memory += kvd_round_64(ls->kv_heads);
    sum->sums = (void *)memory;
    sum->factors = sum->sums + floats;
}

int kvd_metric_sum_create(
    struct kvd_metric_store *store, const struct kvd_layer_shape *ls, struct kvd_metric_sum **ret)
{
    size_t bytes = kvd_metric_sum_bytes(ls);

    KVARN_ASSERT(store->used_bytes <= store->bytes_max);
    if (bytes > store->bytes_max - store->used_bytes) {
        return KVARN_ENOSPC;
    }
    int err = kvd_budget_charge(store->budget, KVD_BUDGET_QUERIES, bytes);
    if (err != 0) {
        return err;
    }
    struct kvd_metric_sum *sum = aligned_alloc(64, kvd_round_64(bytes));
    if (sum == NULL) {
        kvd_budget_release(store->budget, KVD_BUDGET_QUERIES, bytes);
        return KVARN_ENOMEM;
    }
    sum_init(sum, store, ls);
    store->used_bytes += bytes;
    *ret = sum;
    return 0;
}

struct kvd_metric_sum *kvd_metric_sum_ref(struct kvd_metric_sum *sum)
{
    KVARN_ASSERT(sum->refs > 0);
    sum->refs++;
    return sum;
}

void kvd_metric_sum_unref(struct kvd_metric_sum *sum)
{
    if (sum == NULL) {
        return;
    }
    KVARN_ASSERT(sum->refs > 0);
    sum->refs--;
    if (sum->refs > 0) {
        return;
    }
    KVARN_ASSERT(sum->factors_state != KVD_METRIC_FACTORS_MAKING && STAILQ_EMPTY(&sum->waiting));
    struct kvd_metric_store *store = sum->store;
    size_t bytes = sum->charged_bytes;
    free(sum);
    store->used_bytes -= bytes;
    kvd_budget_release(store->budget, KVD_BUDGET_QUERIES, bytes);
}

/* Queries of the head that has fewest. */
static uint64_t sum_queries(const struct kvd_metric_sum *sum)
{
    uint64_t fewest = sum->counts[0];

    for (uint32_t head = 1; head < sum->kv_heads; head++) {
        fewest = sum->counts[head] < fewest ? sum->counts[head] : fewest;
    }
    return fewest;
}

uint64_t kvd_metric_window_queries(const struct kvd_metric_layer *layer, uint32_t dim)
{
    uint64_t least = (uint64_t)KVD_METRIC_QUERIES_PER_DIM_MIN * dim;
    uint64_t most = (uint64_t)KVD_METRIC_QUERIES_PER_DIM_MAX * dim;
    uint64_t now = layer->version == NULL ? 0 : sum_queries(layer->version);

    if (now >= most / 2) {
        return most;
    }
    return 2 * now > least ? 2 * now : least;
}

uint32_t kvd_metric_new_version(struct kvd_shape_metric *metric)
{
    return ++metric->version_last;
}

void kvd_metric_put(
    struct kvd_shape_metric *metric, uint32_t layer, struct kvd_metric_sum *sum, uint32_t number)
{
    struct kvd_metric_layer *ml = &metric->layers[layer];
    struct kvd_metric_sum *version = ml->version;
    struct kvd_metric_sum *window = ml->window == sum ? NULL : ml->window;

    KVARN_ASSERT(sum->version == 0 && number > 0 && number <= metric->version_last);
    sum->version = number;
    ml->version = sum;
    ml->window = NULL;
    ml->heads_full = 0;
    kvd_metrics_add(sum->store->metrics, KVD_METRIC_query_metric_versions, 1);
    kvd_metric_sum_unref(window);
    kvd_metric_sum_unref(version);
}

struct kvd_metric_sum *kvd_metric_pick(const struct kvd_shape_metric *metric, uint32_t layer)
{
    if (metric == NULL || metric->layers[layer].version == NULL) {
        return NULL;
    }
    return kvd_metric_sum_ref(metric->layers[layer].version);
}

static void factor_run(struct kvd_job *job, void *scratch)
{
    struct kvd_metric_sum *sum = (struct kvd_metric_sum *)(void *)job;
    uint32_t head = sum->factor_head;
    size_t floats = kvd_metric_head_floats(sum);

    KVARN_ASSERT(kvarn_metric_factor_scratch_bytes(sum->dim) <= KVD_WORKER_SCRATCH_BYTES);
    if (sum->counts[head] < (uint64_t)KVD_METRIC_QUERIES_PER_DIM_MIN * sum->dim) {
        return;
    }
    sum->has_factor[head] =
        kvarn_metric_factor(sum->sums + head * floats, (double)sum->counts[head], sum->dim,
            sum->factors + head * floats, scratch) == 0;
}

static void factors_ready(struct kvd_metric_sum *sum)
{
    sum->factors_state = KVD_METRIC_FACTORS_READY;
    while (!STAILQ_EMPTY(&sum->waiting)) {
        struct kvd_metric_wait *wait = STAILQ_FIRST(&sum->waiting);
        STAILQ_REMOVE_HEAD(&sum->waiting, link);
        wait->ready_cb(wait);
    }
    kvd_metric_sum_unref(sum);
}

/* One head a job: so attention has its turn on the workers between them. */
static void factor_done(struct kvd_job *job)
{
    struct kvd_metric_sum *sum = (struct kvd_metric_sum *)(void *)job;
    uint32_t head = sum->factor_head++;
    bool is_enough = sum->counts[head] >= (uint64_t)KVD_METRIC_QUERIES_PER_DIM_MIN * sum->dim;

    if (is_enough && !sum->has_factor[head]) {
        kvd_metrics_add(sum->store->metrics, KVD_METRIC_query_metric_failures, 1);
    }
    if (sum->factor_head < sum->kv_heads) {
        kvd_workers_submit(sum->store->workers, &sum->job);
        return;
    }
    factors_ready(sum);
}

bool kvd_metric_factors_ready(struct kvd_metric_sum *sum, struct kvd_metric_wait *wait)
{
    KVARN_ASSERT(sum->version > 0);
    if (sum->factors_state == KVD_METRIC_FACTORS_READY) {
        return true;
    }
    STAILQ_INSERT_TAIL(&sum->waiting, wait, link);
    if (sum->factors_state == KVD_METRIC_FACTORS_NONE) {
        sum->factors_state = KVD_METRIC_FACTORS_MAKING;
        sum->job.run = factor_run;
        sum->job.done = factor_done;
        kvd_workers_submit(sum->store->workers, &kvd_metric_sum_ref(sum)->job);
    }
    return false;
}

const float *kvd_metric_factor_of(const struct kvd_metric_sum *sum, uint32_t head)
{
    KVARN_ASSERT(sum->factors_state == KVD_METRIC_FACTORS_READY && head < sum->kv_heads);
    return sum->has_factor[head] ? sum->factors + head * kvd_metric_head_floats(sum) : NULL;
}
