/*
 * Tests of server/append/metric_store.c: memory and its bounds, versions, and the factors that a
 * job makes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/append/metric_store.h"
#include "tests/support/rng.h"
#include "tests/support/session_rig.h"
#include "tests/support/tiles.h"

static uint64_t metric(const struct kvt_rig *rig, enum kvd_metric metric)
{
    return rig->service.metrics.values[metric];
}

/* A layer's sums of `count` made-up queries in each head. */
static struct kvd_metric_sum *sum_make(struct kvt_rig *rig, uint32_t layer, uint64_t count)
{
    struct kvd_metric_sum *sum = NULL;
    struct kvt_rng rng = {.state = layer};

    assert_int_equal(
        kvd_metric_sum_create(&rig->service.query_metrics, &rig->shape->layers[layer], &sum), 0);
    memset(sum->sums, 0, sum->kv_heads * kvd_metric_head_floats(sum) * sizeof(float));
    float *row = kvt_alloc(sum->dim * sizeof(float));
    for (uint32_t head = 0; head < sum->kv_heads; head++) {
        for (uint64_t i = 0; i < count; i++) {
            kvt_rows_fill(&rng, row, 1, sum->dim, 1.0);
            kvarn_metric_add(sum->sums + head * kvd_metric_head_floats(sum), row, 1, sum->dim);
        }
        sum->counts[head] = count;
        sum->zeroed[head] = sum->dim;
    }
    free(row);
    return sum;
}

static struct kvd_shape_metric *metric_get(struct kvt_rig *rig)
{
    struct kvd_shape_metric *ret = NULL;

    assert_int_equal(kvd_metric_store_get(&rig->service.query_metrics, rig->shape, &ret), 0);
    return ret;
}

static void test_memory_is_charged_and_bounded(void **state)
{
    struct kvt_rig rig;
    struct kvd_metric_sum *sums[3] = {NULL};
    (void)state;

    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    struct kvd_metric_store *store = &rig.service.query_metrics;
    const struct kvd_layer_shape *ls = &rig.shape->layers[0];
    const uint64_t *charged = &rig.service.budget.kind_bytes[KVD_BUDGET_QUERIES];
    assert_int_equal(store->bytes_max, rig.config.memory_limit / 4);
    store->bytes_max = 2 * kvd_metric_sum_bytes(ls) + 1;
    assert_null(kvd_metric_store_find(store, rig.shape));
    assert_int_equal(*charged, 0);
    assert_int_equal(kvd_metric_sum_create(store, ls, &sums[0]), 0);
    assert_int_equal(kvd_metric_sum_create(store, ls, &sums[1]), 0);
    assert_int_equal(kvd_metric_sum_create(store, ls, &sums[2]), KVARN_ENOSPC);
    assert_null(sums[2]);
    assert_int_equal(*charged, 2 * kvd_metric_sum_bytes(ls));
    assert_true(kvd_metric_sum_bytes(ls) >= 2 * 2 * 16 * 16 * sizeof(float));
    assert_int_equal((uintptr_t)sums[0]->sums % 64, 0);
    assert_int_equal((uintptr_t)sums[0]->factors % 64, 0);
    kvd_metric_sum_unref(kvd_metric_sum_ref(sums[0]));
    kvd_metric_sum_unref(sums[0]);
    assert_int_equal(*charged, kvd_metric_sum_bytes(ls));
    store->bytes_max = rig.config.memory_limit;
    uint64_t limit = rig.service.budget.limit_bytes;
    rig.service.budget.limit_bytes = rig.service.budget.used_bytes + 100;
    assert_int_equal(kvd_metric_sum_create(store, ls, &sums[0]), KVARN_ENOSPC);
    struct kvd_shape_metric *none = NULL;
    assert_int_equal(kvd_metric_store_get(store, rig.shape, &none), KVARN_ENOSPC);
    assert_null(none);
    rig.service.budget.limit_bytes = limit;
    kvd_metric_sum_unref(sums[1]);
    kvd_metric_sum_unref(NULL);
    assert_int_equal(*charged, 0);
    kvt_rig_fini(&rig);
}

static void test_s13_a_new_version_replaces_the_one_in_force(void **state)
{
    struct kvt_rig rig;
    (void)state;

    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    struct kvd_shape_metric *m = metric_get(&rig);
    assert_ptr_equal(metric_get(&rig), m);
    assert_ptr_equal(kvd_metric_store_find(&rig.service.query_metrics, rig.shape), m);
    assert_null(kvd_metric_pick(m, 0));
    assert_null(kvd_metric_pick(NULL, 0));
    kvd_metric_put(m, 0, sum_make(&rig, 0, 70), kvd_metric_new_version(m));
    struct kvd_metric_sum *held = kvd_metric_pick(m, 0);
    assert_int_equal(held->version, 1);
    assert_int_equal(held->refs, 2);
    assert_null(kvd_metric_pick(m, 1));
    m->layers[0].window = sum_make(&rig, 0, 3); /* what had grown is of the old one: forgotten */
    kvd_metric_put(m, 0, sum_make(&rig, 0, 80), kvd_metric_new_version(m));
    assert_null(m->layers[0].window);
    assert_int_equal(held->version, 1); /* who holds it keeps it as it was */
    assert_int_equal(held->refs, 1);
    assert_int_equal(held->counts[1], 70);
    struct kvd_metric_sum *now = kvd_metric_pick(m, 0);
    assert_int_equal(now->version, 2);
    assert_int_equal(metric(&rig, KVD_METRIC_query_metric_versions), 2);
    kvd_metric_sum_unref(now);
    kvd_metric_sum_unref(held);
    kvt_rig_fini(&rig);
}

static void test_a_window_takes_over_when_it_knows_more(void **state)
{
    static const struct {
        uint64_t count; /* of the version in force, in units of the dimension */
        uint64_t needed;
    } cases[] = {{1, 4}, {2, 4}, {4, 8}, {8, 16}, {31, 62}, {32, 64}, {64, 64}, {100000, 64}};
    struct kvt_rig rig;
    (void)state;

    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    struct kvd_shape_metric *m = metric_get(&rig);
    struct kvd_metric_layer *layer = &m->layers[0];
    assert_int_equal(kvd_metric_window_queries(layer, 16), 4 * 16);
    kvd_metric_put(m, 0, sum_make(&rig, 0, 0), kvd_metric_new_version(m));
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        layer->version->counts[0] = 1000000 * 16; /* the poorest head counts */
        layer->version->counts[1] = cases[i].count * 16;
        assert_int_equal(kvd_metric_window_queries(layer, 16), cases[i].needed * 16);
    }
    kvt_rig_fini(&rig);
}

struct waiter {
    struct kvd_metric_wait wait; /* first */
    unsigned ready;
};

static void waiter_ready_cb(struct kvd_metric_wait *wait)
{
    ((struct waiter *)(void *)wait)->ready++;
}

static void test_factors_are_made_once_and_waited_for(void **state)
{
    struct kvt_rig rig;
    struct waiter waiters[2] = {
        {.wait.ready_cb = waiter_ready_cb}, {.wait.ready_cb = waiter_ready_cb}};
    (void)state;

    kvt_rig_init(&rig, &(struct kvt_rig_options){.workers = 1});
    struct kvd_shape_metric *m = metric_get(&rig);
    kvd_metric_put(m, 0, sum_make(&rig, 0, 70), kvd_metric_new_version(m));
    struct kvd_metric_sum *sum = kvd_metric_pick(m, 0);
    assert_false(kvd_metric_factors_ready(sum, &waiters[0].wait));
    assert_false(kvd_metric_factors_ready(sum, &waiters[1].wait));
    kvt_rig_settle(&rig);
    assert_int_equal(waiters[0].ready, 1);
    assert_int_equal(waiters[1].ready, 1);
    assert_true(kvd_metric_factors_ready(sum, &waiters[0].wait));
    float *expected = kvt_alloc(16 * 16 * sizeof(float));
    void *scratch = kvt_alloc(kvarn_metric_factor_scratch_bytes(16));
    for (uint32_t head = 0; head < 2; head++) {
        assert_int_equal(kvarn_metric_factor(sum->sums + head * 256, 70, 16, expected, scratch), 0);
        assert_memory_equal(kvd_metric_factor_of(sum, head), expected, 16 * 16 * sizeof(float));
    }
    free(expected);
    free(scratch);
    kvd_metric_sum_unref(sum);
    kvt_rig_fini(&rig);
}

static void test_s13_a_head_without_a_factor_is_counted(void **state)
{
    struct kvt_rig rig;
    struct waiter waiter = {.wait.ready_cb = waiter_ready_cb};
    (void)state;

    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    struct kvd_shape_metric *m = metric_get(&rig);
    struct kvd_metric_sum *sum = sum_make(&rig, 0, 70);
    sum->sums[0] = -1e6f; /* no sum of squares */
    kvd_metric_put(m, 0, sum, kvd_metric_new_version(m));
    assert_false(kvd_metric_factors_ready(sum, &waiter.wait));
    kvt_rig_settle(&rig);
    assert_null(kvd_metric_factor_of(sum, 0));
    assert_non_null(kvd_metric_factor_of(sum, 1));
    assert_int_equal(metric(&rig, KVD_METRIC_query_metric_failures), 1);
    /* Too few queries is no failure. */
    struct kvd_metric_sum *poor = sum_make(&rig, 1, 70);
    poor->counts[1] = 4 * 16 - 1;
    kvd_metric_put(m, 1, poor, kvd_metric_new_version(m));
    assert_false(kvd_metric_factors_ready(poor, &waiter.wait));
    kvt_rig_settle(&rig);
    assert_non_null(kvd_metric_factor_of(poor, 0));
    assert_null(kvd_metric_factor_of(poor, 1));
    assert_int_equal(metric(&rig, KVD_METRIC_query_metric_failures), 1);
    kvt_rig_fini(&rig);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_memory_is_charged_and_bounded),
    cmocka_unit_test(test_s13_a_new_version_replaces_the_one_in_force),
    cmocka_unit_test(test_a_window_takes_over_when_it_knows_more),
    cmocka_unit_test(test_factors_are_made_once_and_waited_for),
    cmocka_unit_test(test_s13_a_head_without_a_factor_is_counted),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
