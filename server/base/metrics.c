/*
 * Metrics: counting, and latencies in powers of two.
 *
 * Owner: service. Thread: loop only.
 */
#include "server/base/metrics.h"

#include "kvarn/err.h"
#include "lib/base/assert.h"

void kvd_metrics_add(struct kvd_metrics *metrics, enum kvd_metric metric, uint64_t n)
{
    KVARN_ASSERT(metric < KVD_METRIC_COUNT);
    metrics->values[metric] += n;
}

void kvd_metrics_set(struct kvd_metrics *metrics, enum kvd_metric metric, uint64_t value)
{
    KVARN_ASSERT(metric < KVD_METRIC_COUNT);
    metrics->values[metric] = value;
}

/*
 * The metric of a refusal; KVD_METRIC_COUNT for errors that no metric names. Over-used credit,
 * broken frames and misses are counted where they are found: the error alone does not tell.
 */
static enum kvd_metric refusal_metric(int err)
{
    switch (err) {
    case KVARN_ENOSPC:
        return KVD_METRIC_refused_no_space;
    case KVARN_ERETRY_LATER:
        return KVD_METRIC_refused_retry_later;
    case KVARN_ECONFLICT:
        return KVD_METRIC_refused_conflict;
    case KVARN_ESTALE_EPOCH:
        return KVD_METRIC_refused_stale_epoch;
    case KVARN_EDOMAIN:
        return KVD_METRIC_refused_domain;
    case KVARN_EDEADLINE:
        return KVD_METRIC_refused_deadline;
    default:
        return KVD_METRIC_COUNT;
    }
}

/* The smallest i with us < 2^i; the last bucket takes the rest. */
static unsigned bucket_of(uint64_t us)
{
    unsigned i = 0;

    while (i < KVD_LATENCY_BUCKETS - 1 && us >= (UINT64_C(1) << i)) {
        i++;
    }
    return i;
}

void kvd_metrics_op(struct kvd_metrics *metrics, const struct kvd_op_sample *sample)
{
    /* A type that this daemon does not know counts as KVARN_FRAME_TYPE_ERROR. */
    unsigned type = sample->type < KVARN_FRAME_TYPE_COUNT ? sample->type : KVARN_FRAME_TYPE_ERROR;
    struct kvd_op_metrics *op = &metrics->ops[type];
    uint64_t us = sample->latency_ns / 1000;

    KVARN_ASSERT(sample->err <= 0);
    op->count++;
    op->bytes_in += sample->bytes_in;
    op->bytes_out += sample->bytes_out;
    op->latency_buckets[bucket_of(us)]++;
    if (us > op->latency_us_max) {
        op->latency_us_max = us;
    }
    if (sample->err != 0) {
        enum kvd_metric refusal = refusal_metric(sample->err);
        op->errors++;
        if (refusal != KVD_METRIC_COUNT) {
            metrics->values[refusal]++;
        }
    }
}

uint64_t kvd_metrics_latency_us(const struct kvd_op_metrics *op, unsigned permille)
{
    uint64_t seen = 0;

    KVARN_ASSERT(permille <= 1000);
    if (op->count == 0) {
        return 0;
    }
    /* Calls that must lie below the bound, rounded up; at least one. */
    uint64_t wanted = op->count / 1000 * permille + (op->count % 1000 * permille + 999) / 1000;
    if (wanted == 0) {
        wanted = 1;
    }
    for (unsigned i = 0; i < KVD_LATENCY_BUCKETS - 1; i++) {
        seen += op->latency_buckets[i];
        if (seen >= wanted) {
            return UINT64_C(1) << i;
        }
    }
    return op->latency_us_max;
}

const char *kvd_metric_name(enum kvd_metric metric)
{
    static const char *const names[] = {
#define X(name, kind, text) #name,
#include "server/base/metrics.def"
#undef X
    };

    KVARN_ASSERT(metric < KVD_METRIC_COUNT);
    return names[metric];
}
