/*
 * Metrics: counters and gauges of metrics.def, and per call count, errors, bytes and latency.
 *
 * Owner: service. Thread: loop only.
 */
#ifndef KVD_METRICS_H
#define KVD_METRICS_H

#include <stddef.h>
#include <stdint.h>

#include "proto/frame.h"

enum kvd_metric {
#define X(name, kind, text) KVD_METRIC_##name,
#include "server/base/metrics.def"
#undef X
    KVD_METRIC_COUNT,
};

/* Latency buckets: bucket i counts times below 2^i microseconds; the last takes the rest. */
#define KVD_LATENCY_BUCKETS 32

struct kvd_op_metrics {
    uint64_t count;
    uint64_t errors;
    uint64_t bytes_in;
    uint64_t bytes_out;
    uint64_t latency_us_max;
    uint64_t latency_buckets[KVD_LATENCY_BUCKETS];
};

struct kvd_metrics {
    uint64_t values[KVD_METRIC_COUNT];
    struct kvd_op_metrics ops[KVARN_FRAME_TYPE_COUNT];
};

void kvd_metrics_add(struct kvd_metrics *metrics, enum kvd_metric metric, uint64_t n);
void kvd_metrics_set(struct kvd_metrics *metrics, enum kvd_metric metric, uint64_t value);

/* Count one answered request; `err` 0 or KVARN_E..., which also counts the refusal by reason. */
struct kvd_op_sample {
    unsigned type; /* enum kvarn_frame_type */
    int err;
    uint64_t bytes_in;
    uint64_t bytes_out;
    uint64_t latency_ns;
};
void kvd_metrics_op(struct kvd_metrics *metrics, const struct kvd_op_sample *sample);

/* Upper bound of the latency below which `permille` of the calls stayed; 0 without calls. */
uint64_t kvd_metrics_latency_us(const struct kvd_op_metrics *op, unsigned permille);

const char *kvd_metric_name(enum kvd_metric metric);

#endif
