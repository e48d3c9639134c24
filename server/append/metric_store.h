/*
 * Query metrics: per (tenant, shape), layer and KV head the sum of q' q'^T over rotated queries,
 * from which the encoder `aware` learns where K's rounding error does no harm (lib/FORMAT.md,
 * Encoders).
 *
 * Owner: service. Thread: loop only, but for the factors of a sum, which a job makes.
 *
 * A layer's sum grows in a window of its own; once it holds as many queries as the rule asks for
 * it becomes the layer's version: immutable, numbered, referenced by whoever seals with it, and a
 * new window begins. So a version is never copied, and old traffic is forgotten in time.
 *
 * Order (SEMANTICS.md 3): queries are sampled, and versions picked for the seals of an append, when
 * the request arrives, never when a job ends; so which metric sealed a page depends on the order of
 * arrival alone.
 */
#ifndef KVD_METRIC_STORE_H
#define KVD_METRIC_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <bsd/sys/queue.h>

#include "kvarn/err.h"
#include "server/base/budget.h"
#include "server/base/metrics.h"
#include "server/io/workers.h"
#include "server/session/shape.h"

/*
 * Queries per dimension from which on a metric is used. The mean of its diagonal is added before it
 * is factored, so that it is never singular: on a real model 3 D queries of other tokens bring the
 * divergence of attention weights to 0.53 of refined's (kvarn-bench fidelity --check).
 */
#define KVD_METRIC_QUERIES_PER_DIM_MIN 4

/* A window takes over from a version of fewer queries than this; then it is as good as it gets. */
#define KVD_METRIC_QUERIES_PER_DIM_MAX 64

enum kvd_metric_factors {
    KVD_METRIC_FACTORS_NONE,   /* nobody has asked */
    KVD_METRIC_FACTORS_MAKING, /* a job is at it */
    KVD_METRIC_FACTORS_READY,
};

/* Who waits for the factors. Embedded in its owner; ready_cb runs once, on the loop. */
struct kvd_metric_wait {
    STAILQ_ENTRY(kvd_metric_wait) link;
    void (*ready_cb)(struct kvd_metric_wait *wait);
};
STAILQ_HEAD(kvd_metric_wait_list, kvd_metric_wait);

struct kvd_metric_store;

/* One layer's sums: a window while version is 0, afterwards immutable but for its factors. */
struct kvd_metric_sum {
    struct kvd_job job;             /* first: the worker's handle; makes one head's factor */
    struct kvd_metric_store *store; /* borrowed */
    struct kvd_metric_wait_list waiting;
    uint32_t refs;
    uint32_t version;
    uint32_t kv_heads, dim;
    size_t charged_bytes;
    enum kvd_metric_factors factors_state;
    uint32_t factor_head; /* the job's */
    /* Arrays within this allocation. */
    uint64_t *counts;    /* [kv_heads] queries */
    uint32_t *zeroed;    /* [kv_heads] rows of sums that are there; below `dim`: no query yet */
    uint8_t *has_factor; /* [kv_heads]; false: too few queries, or it cannot be factored */
    float *sums;         /* [kv_heads][dim][dim]; entries below the diagonal mean nothing */
    float *factors;      /* [kv_heads][dim][dim]: kvarn_metric_factor() */
};

struct kvd_metric_layer {
    struct kvd_metric_sum *version; /* ref; NULL: none yet */
    struct kvd_metric_sum *window;  /* ref; NULL: none begun */
    uint64_t random;                /* state: which query tokens are sampled */
    uint64_t tokens_to_skip;        /* until the next one */
    uint32_t head_next;             /* the KV head whose turn it is */
    uint32_t row_next;              /* the first of its query heads, where not all are taken */
    uint32_t heads_full;            /* of the window: with as many queries as it needs */
};

/* The metrics of one shape. */
struct kvd_shape_metric {
    const struct kvd_shape *shape; /* borrowed */
    bool is_sampled; /* from its first `aware` session on; without one an Attend pays nothing */
    uint32_t version_last;
    struct kvd_metric_layer layers[]; /* shape->layer_count */
};

struct kvd_metric_store {
    struct kvd_budget *budget;   /* borrowed */
    struct kvd_metrics *metrics; /* borrowed */
    struct kvd_workers *workers; /* borrowed; for factors */
    struct kvd_shape_metric *
        *by_shape; /* owned: [KVARN_SHAPES_MAX], by shape id - 1; NULL: none yet */
    uint64_t bytes_max;
    uint64_t used_bytes; /* of sums; <= bytes_max */
};

/* `workers` may be set later, before the first seal. Allocates nothing. */
void kvd_metric_store_init(struct kvd_metric_store *store, struct kvd_budget *budget,
    struct kvd_metrics *metrics, uint64_t bytes_max);

/* Nobody may hold a version any more. Accepts a zeroed store. */
void kvd_metric_store_fini(struct kvd_metric_store *store);

/* The metric of a shape; NULL when nobody asked for one. */
struct kvd_shape_metric *kvd_metric_store_find(
    const struct kvd_metric_store *store, const struct kvd_shape *shape);

/*
 * The same, made if there is none. Returns 0, KVARN_ENOSPC (budget) or KVARN_ENOMEM.
 */
int kvd_metric_store_get(struct kvd_metric_store *store, const struct kvd_shape *shape,
    struct kvd_shape_metric **ret) KVARN_MUST_CHECK;

/*
 * Room for one layer's sums and their factors, counts 0, one reference, the caller's.
 * Returns 0; KVARN_ENOSPC at the store's bound or the budget's; KVARN_ENOMEM.
 */
int kvd_metric_sum_create(struct kvd_metric_store *store, const struct kvd_layer_shape *ls,
    struct kvd_metric_sum **ret) KVARN_MUST_CHECK;
size_t kvd_metric_sum_bytes(const struct kvd_layer_shape *ls);
struct kvd_metric_sum *kvd_metric_sum_ref(struct kvd_metric_sum *sum);
/* NULL ok. */
void kvd_metric_sum_unref(struct kvd_metric_sum *sum);

static inline size_t kvd_metric_head_floats(const struct kvd_metric_sum *sum)
{
    return (size_t)sum->dim * sum->dim;
}

/* Queries that a window needs in each head to take over from the layer's version. */
uint64_t kvd_metric_window_queries(const struct kvd_metric_layer *layer, uint32_t dim);

/*
 * Put `sum`, whose reference becomes the layer's, in force under a new number, and begin a new
 * window. `number`: one that kvd_metric_new_version() gave.
 */
void kvd_metric_put(
    struct kvd_shape_metric *metric, uint32_t layer, struct kvd_metric_sum *sum, uint32_t number);
uint32_t kvd_metric_new_version(struct kvd_shape_metric *metric);

/*
 * The version in force for the seals of what arrives now, with a reference for the caller; NULL:
 * none yet. `metric` NULL ok.
 */
struct kvd_metric_sum *kvd_metric_pick(const struct kvd_shape_metric *metric, uint32_t layer);

/*
 * See that the factors of a version are there. True: they are. False: wait->ready_cb will run when
 * a job has made them; the caller's reference lasts until then.
 */
bool kvd_metric_factors_ready(struct kvd_metric_sum *sum, struct kvd_metric_wait *wait);

/* Factor of a head; NULL: its pages are sealed without. Only once the factors are ready. */
const float *kvd_metric_factor_of(const struct kvd_metric_sum *sum, uint32_t head);

#endif
