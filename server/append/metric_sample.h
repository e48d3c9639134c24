/*
 * Sampling of queries: which rows of an Attend's q enter its layer's query metric.
 *
 * Owner: service. Thread: loop only. Used as it is by kvarn-bench, which shows what it costs.
 *
 * Which rows depends on counters alone, so on the order of arrival (SEMANTICS.md 3). A sample is
 * one query token of one KV head: the rows of that head's query heads, up to
 * KVD_METRIC_ROWS_MAX, and the heads take turns. Tokens between two samples are counted over all
 * sessions of the shape; their number is drawn, so that sessions that decode in step are all seen.
 */
#ifndef KVD_METRIC_SAMPLE_H
#define KVD_METRIC_SAMPLE_H

#include <stdbool.h>
#include <stdint.h>

#include "server/append/metric_store.h"

/*
 * Query tokens from one sample to the next, in the mean. Of decode steps over 1,024 tokens samples
 * then take 0.6 to 1.4 % of the time that attention takes, and once a version is in force, when new
 * ones may take longer, 0.2 to 0.4 % (kvarn-bench attention --sample on,off --check).
 */
#define KVD_METRIC_GAP_FIRST 16
#define KVD_METRIC_GAP_LATER 64

/* Query heads of a KV head taken at once; of more, others the next time. */
#define KVD_METRIC_ROWS_MAX 8

/*
 * Multiply-adds that one request may spend on the loop: some 50 us, 4 samples of 4 rows of 128 of
 * 11 us each (the same command), half of what a callback may take (SEMANTICS.md 18). Also the
 * smallest number that one row of the widest head fits.
 */
#define KVD_METRIC_MADDS_MAX (UINT64_C(128) * 1024)

/* The queries of one item, as they lie in the payload. */
struct kvd_metric_queries {
    const struct kvd_shape *shape;
    uint32_t layer;
    uint32_t q_heads; /* a multiple of the layer's KV heads */
    uint32_t q_tokens;
    enum kvarn_dtype dtype;
    bool is_rotated;
    const void *q; /* [q_heads][q_tokens][k_dim] */
};

/* What the items of one request share. */
struct kvd_metric_turn {
    uint64_t madds_left;  /* at first KVD_METRIC_MADDS_MAX */
    uint64_t tokens_left; /* query tokens of this item and those after it: they share the room */
};

/*
 * Sample what is due, in arrival order; nothing for a shape that nobody seals `aware`. Rows that
 * are not finite or whose RMS is above 10,000 are left out (SEMANTICS.md 13). Never fails: without
 * room for the sums there are no samples, counted.
 */
void kvd_metric_sample(struct kvd_metric_store *store, const struct kvd_metric_queries *queries,
    struct kvd_metric_turn *turn);

/* From here on the shape's queries are sampled: a session of it is sealed `aware`. */
int kvd_metric_sample_start(
    struct kvd_metric_store *store, const struct kvd_shape *shape) KVARN_MUST_CHECK;

#endif
