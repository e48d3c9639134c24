/* Tests of server/base/metrics.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "kvarn/err.h"
#include "server/base/metrics.h"

static void count(struct kvd_metrics *metrics, unsigned type, int err, uint64_t latency_us)
{
    const struct kvd_op_sample sample = {
        .type = type, .err = err, .bytes_in = 10, .bytes_out = 20, .latency_ns = latency_us * 1000};
    kvd_metrics_op(metrics, &sample);
}

static void counters_add_and_gauges_replace(void **state)
{
    struct kvd_metrics metrics = {0};

    (void)state;
    kvd_metrics_add(&metrics, KVD_METRIC_bytes_in, 5);
    kvd_metrics_add(&metrics, KVD_METRIC_bytes_in, 7);
    kvd_metrics_set(&metrics, KVD_METRIC_shapes, 3);
    kvd_metrics_set(&metrics, KVD_METRIC_shapes, 2);
    assert_int_equal(metrics.values[KVD_METRIC_bytes_in], 12);
    assert_int_equal(metrics.values[KVD_METRIC_shapes], 2);
}

static void names_follow_the_list(void **state)
{
    (void)state;
    assert_string_equal(kvd_metric_name(KVD_METRIC_connections_open), "connections_open");
    assert_string_equal(kvd_metric_name(KVD_METRIC_workers_backlog), "workers_backlog");
    for (unsigned i = 0; i < KVD_METRIC_COUNT; i++) {
        for (unsigned j = 0; j < i; j++) {
            assert_string_not_equal(
                kvd_metric_name((enum kvd_metric)i), kvd_metric_name((enum kvd_metric)j));
        }
    }
}

static void an_answer_counts_once(void **state)
{
    struct kvd_metrics metrics = {0};
    const struct kvd_op_metrics *op = &metrics.ops[KVARN_FRAME_ATTEND];

    (void)state;
    count(&metrics, KVARN_FRAME_ATTEND, 0, 3);
    count(&metrics, KVARN_FRAME_ATTEND, KVARN_EMISS, 900);
    assert_int_equal(op->count, 2);
    assert_int_equal(op->errors, 1);
    assert_int_equal(op->bytes_in, 20);
    assert_int_equal(op->bytes_out, 40);
    assert_int_equal(op->latency_us_max, 900);
    assert_int_equal(op->latency_buckets[2], 1);  /* 3 us: below 4 */
    assert_int_equal(op->latency_buckets[10], 1); /* 900 us: below 1024 */
    assert_int_equal(metrics.ops[KVARN_FRAME_PING].count, 0);
}

static void unknown_types_count_as_errors_row(void **state)
{
    struct kvd_metrics metrics = {0};

    (void)state;
    count(&metrics, KVARN_FRAME_TYPE_COUNT, KVARN_EUNSUPPORTED, 1);
    count(&metrics, UINT32_MAX, KVARN_EUNSUPPORTED, 1);
    assert_int_equal(metrics.ops[KVARN_FRAME_TYPE_ERROR].count, 2);
    assert_int_equal(metrics.ops[KVARN_FRAME_TYPE_ERROR].errors, 2);
}

static void refusals_count_by_reason(void **state)
{
    static const struct {
        int err;
        enum kvd_metric metric;
    } cases[] = {
        {KVARN_ENOSPC, KVD_METRIC_refused_no_space},
        {KVARN_ERETRY_LATER, KVD_METRIC_refused_retry_later},
        {KVARN_ECONFLICT, KVD_METRIC_refused_conflict},
        {KVARN_ESTALE_EPOCH, KVD_METRIC_refused_stale_epoch},
        {KVARN_EDOMAIN, KVD_METRIC_refused_domain},
        {KVARN_EDEADLINE, KVD_METRIC_refused_deadline},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct kvd_metrics metrics = {0};
        count(&metrics, KVARN_FRAME_APPEND, cases[i].err, 1);
        for (unsigned metric = 0; metric < KVD_METRIC_COUNT; metric++) {
            assert_int_equal(metrics.values[metric], metric == cases[i].metric ? 1 : 0);
        }
    }
    struct kvd_metrics metrics = {0};
    count(&metrics, KVARN_FRAME_APPEND, KVARN_ENOT_FOUND, 1);
    for (unsigned metric = 0; metric < KVD_METRIC_COUNT; metric++) {
        assert_int_equal(metrics.values[metric], 0);
    }
    assert_int_equal(metrics.ops[KVARN_FRAME_APPEND].errors, 1);
}

static void buckets_hold_their_bounds(void **state)
{
    (void)state;
    for (unsigned i = 0; i < KVD_LATENCY_BUCKETS - 1; i++) {
        struct kvd_metrics metrics = {0};
        const struct kvd_op_metrics *op = &metrics.ops[KVARN_FRAME_PING];
        uint64_t bound = UINT64_C(1) << i;
        count(&metrics, KVARN_FRAME_PING, 0, bound - 1);
        assert_int_equal(op->latency_buckets[i], 1);
        assert_int_equal(kvd_metrics_latency_us(op, 500), bound);
        count(&metrics, KVARN_FRAME_PING, 0, bound);
        assert_int_equal(op->latency_buckets[i + 1], 1);
    }
}

static void the_last_bucket_takes_the_rest(void **state)
{
    struct kvd_metrics metrics = {0};
    const struct kvd_op_metrics *op = &metrics.ops[KVARN_FRAME_PING];

    (void)state;
    count(&metrics, KVARN_FRAME_PING, 0, UINT64_C(1) << 50);
    assert_int_equal(op->latency_buckets[KVD_LATENCY_BUCKETS - 1], 1);
    assert_int_equal(kvd_metrics_latency_us(op, 999), UINT64_C(1) << 50);
}

static void percentiles(void **state)
{
    struct kvd_metrics metrics = {0};
    const struct kvd_op_metrics *op = &metrics.ops[KVARN_FRAME_PING];

    (void)state;
    assert_int_equal(kvd_metrics_latency_us(op, 990), 0);
    for (int i = 0; i < 990; i++) {
        count(&metrics, KVARN_FRAME_PING, 0, 5);
    }
    for (int i = 0; i < 10; i++) {
        count(&metrics, KVARN_FRAME_PING, 0, 5000);
    }
    assert_int_equal(kvd_metrics_latency_us(op, 0), 8);
    assert_int_equal(kvd_metrics_latency_us(op, 500), 8);
    assert_int_equal(kvd_metrics_latency_us(op, 990), 8);
    assert_int_equal(kvd_metrics_latency_us(op, 991), 8192);
    assert_int_equal(kvd_metrics_latency_us(op, 1000), 8192);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counters_add_and_gauges_replace),
        cmocka_unit_test(names_follow_the_list),
        cmocka_unit_test(an_answer_counts_once),
        cmocka_unit_test(unknown_types_count_as_errors_row),
        cmocka_unit_test(refusals_count_by_reason),
        cmocka_unit_test(buckets_hold_their_bounds),
        cmocka_unit_test(the_last_bucket_takes_the_rest),
        cmocka_unit_test(percentiles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
