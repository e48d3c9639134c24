/*
 * Tests of server/append/metric_sample.c: which queries are taken, how often, and what is left out.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <math.h>

#include <cmocka.h>

#include "server/append/metric_sample.h"
#include "tests/support/rng.h"
#include "tests/support/session_rig.h"
#include "tests/support/tiles.h"

#define Q_HEADS 4 /* two for each of layer 0's two KV heads of 16 */
#define DIM     16

static uint64_t metric(const struct kvt_rig *rig, enum kvd_metric metric)
{
    return rig->service.metrics.values[metric];
}

static void rig_start(struct kvt_rig *rig)
{
    kvt_rig_init(rig, &(struct kvt_rig_options){0});
    assert_int_equal(kvd_metric_sample_start(&rig->service.query_metrics, rig->shape), 0);
}

/* Offer `q_tokens` query tokens, floats, already rotated, in one request. */
static void offer(struct kvt_rig *rig, const float *q, uint32_t q_tokens)
{
    struct kvd_metric_turn turn = {.madds_left = KVD_METRIC_MADDS_MAX, .tokens_left = q_tokens};
    struct kvd_metric_queries queries = {.shape = rig->shape,
        .q_heads = Q_HEADS,
        .q_tokens = q_tokens,
        .dtype = KVARN_F32,
        .is_rotated = true,
        .q = q};

    kvd_metric_sample(&rig->service.query_metrics, &queries, &turn);
    assert_true(turn.madds_left <= KVD_METRIC_MADDS_MAX);
}

static const struct kvd_metric_layer *layer_of(const struct kvt_rig *rig)
{
    return &kvd_metric_store_find(&rig->service.query_metrics, rig->shape)->layers[0];
}

static void test_nothing_is_sampled_before_a_session_asks(void **state)
{
    struct kvt_rig rig;
    float *q = kvt_alloc(sizeof(float) * Q_HEADS * 1000 * DIM);
    (void)state;

    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    offer(&rig, q, 1000);
    assert_int_equal(metric(&rig, KVD_METRIC_queries_sampled), 0);
    assert_null(kvd_metric_store_find(&rig.service.query_metrics, rig.shape));
    struct kvd_session_options options = {.encoder = KVARN_ENCODER_AWARE};
    struct kvd_session *session = NULL;
    assert_int_equal(kvd_session_create(&rig.service, rig.shape, NULL, &options, &session), 0);
    offer(&rig, q, 1000);
    assert_true(metric(&rig, KVD_METRIC_queries_sampled) > 0);
    kvt_session_drop(&rig, session);
    free(q);
    kvt_rig_fini(&rig);
}

/* With one vector per query head, whichever tokens are taken the sum is known. */
static void test_rows_of_a_head_are_summed(void **state)
{
    struct kvt_rig rig;
    struct kvt_rng rng = {.state = 5};
    float rows[Q_HEADS][DIM];
    float *q = kvt_alloc(sizeof(rows));
    (void)state;

    rig_start(&rig);
    for (unsigned head = 0; head < Q_HEADS; head++) {
        kvt_rows_fill(&rng, rows[head], 1, DIM, 1.0);
    }
    memcpy(q, rows, sizeof(rows));
    for (unsigned i = 0; i < 300; i++) {
        offer(&rig, q, 1);
    }
    const struct kvd_metric_sum *window = layer_of(&rig)->window;
    assert_non_null(window);
    for (unsigned head = 0; head < 2; head++) {
        const float *sums = window->sums + (size_t)head * DIM * DIM;
        assert_true(window->counts[head] > 0 && window->counts[head] % 2 == 0);
        double samples = (double)window->counts[head] / 2;
        for (unsigned i = 0; i < DIM; i++) {
            for (unsigned j = i; j < DIM; j++) {
                double expected =
                    samples * ((double)rows[2 * head][i] * (double)rows[2 * head][j] +
                                  (double)rows[2 * head + 1][i] * (double)rows[2 * head + 1][j]);
                assert_true(fabs((double)sums[i * DIM + j] - expected) < 1e-4 * samples);
            }
        }
    }
    assert_int_equal(
        metric(&rig, KVD_METRIC_queries_sampled), window->counts[0] + window->counts[1]);
    free(q);
    kvt_rig_fini(&rig);
}

static void test_one_token_in_a_gap_is_taken(void **state)
{
    struct kvt_rig rig;
    float *q = kvt_alloc(sizeof(float) * Q_HEADS * DIM);
    (void)state;

    rig_start(&rig);
    for (unsigned i = 0; i < 800; i++) { /* 50 samples of two rows: below 4 x 16 a head */
        offer(&rig, q, 1);
    }
    uint64_t rows = metric(&rig, KVD_METRIC_queries_sampled);
    printf("%u rows of 800 tokens\n", (unsigned)rows);
    assert_true(rows > 2 * 800 / KVD_METRIC_GAP_FIRST * 3 / 4);
    assert_true(rows < 2 * 800 / KVD_METRIC_GAP_FIRST * 5 / 4);
    free(q);
    kvt_rig_fini(&rig);
}

static void test_a_full_window_becomes_a_version(void **state)
{
    struct kvt_rig rig;
    struct kvt_rng rng = {.state = 6};
    float *q = kvt_alloc(sizeof(float) * Q_HEADS * DIM);
    uint64_t counts[3] = {0};
    (void)state;

    rig_start(&rig);
    for (unsigned i = 0, versions = 0; i < 100000 && versions < 3; i++) {
        kvt_rows_fill(&rng, q, Q_HEADS, DIM, 1.0);
        offer(&rig, q, 1);
        if (metric(&rig, KVD_METRIC_query_metric_versions) > versions) {
            counts[versions++] = layer_of(&rig)->version->counts[1];
            assert_int_equal(layer_of(&rig)->version->version, versions);
            assert_null(layer_of(&rig)->window);
        }
    }
    /* Heads take turns, two rows each. */
    assert_int_equal(counts[0], KVD_METRIC_QUERIES_PER_DIM_MIN * DIM);
    assert_int_equal(counts[1], 2 * counts[0]);
    assert_int_equal(counts[2], 4 * counts[0]);
    free(q);
    kvt_rig_fini(&rig);
}

static void test_s13_wild_queries_are_left_out(void **state)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY, 4.1e4f};
    struct kvt_rig rig;
    float *q = kvt_alloc(sizeof(float) * Q_HEADS * DIM);
    (void)state;

    rig_start(&rig);
    for (unsigned i = 0; i < 400; i++) {
        for (unsigned j = 0; j < Q_HEADS * DIM; j++) {
            q[j] = 9.9e3f; /* RMS just below the limit */
        }
        q[0] = bad[i % 4]; /* query head 0; alone 4.1e4 makes an RMS of 14,000 */
        q[DIM] = 1e4f;
        offer(&rig, q, 1);
    }
    const struct kvd_metric_sum *window = layer_of(&rig)->window;
    uint64_t taken = metric(&rig, KVD_METRIC_queries_sampled);
    assert_true(metric(&rig, KVD_METRIC_queries_unusable) > 0);
    assert_int_equal(metric(&rig, KVD_METRIC_queries_unusable), window->counts[0]);
    assert_int_equal(taken, window->counts[0] + window->counts[1]);
    for (unsigned i = 0; i < DIM; i++) {
        assert_true(isfinite(window->sums[i * DIM + i]));
    }
    free(q);
    kvt_rig_fini(&rig);
}

/* A long chunk takes no more of the loop than it may, and is seen to its end. */
static void test_s18_one_request_takes_a_bounded_share(void **state)
{
    struct kvt_rig rig;
    const uint32_t tokens = 200000;
    float *q = kvt_alloc(sizeof(float) * Q_HEADS * tokens * DIM);
    float last = 0;
    (void)state;

    rig_start(&rig);
    /* A row's first value tells which token it is of. */
    for (size_t i = 0; i < (size_t)Q_HEADS * tokens * DIM; i++) {
        q[i] = i % DIM == 0 && i < (size_t)tokens * DIM ? (float)(i / DIM) / 20.0f : 1.0f;
    }
    offer(&rig, q, tokens);
    uint64_t rows = metric(&rig, KVD_METRIC_queries_sampled);
    assert_true(rows > 0 && rows <= KVD_METRIC_MADDS_MAX / (DIM * DIM / 2));
    const struct kvd_metric_sum *sums[] = {layer_of(&rig)->version, layer_of(&rig)->window};
    for (unsigned i = 0; i < 2; i++) {
        last = sums[i] != NULL && sums[i]->sums[0] > last ? sums[i]->sums[0] : last;
    }
    /* Squares of rows near the end, 10^4 each, are among them. */
    assert_true(last > 0.9f * 0.9f * 1e8f);
    free(q);
    kvt_rig_fini(&rig);
}

static void test_without_room_there_are_no_samples(void **state)
{
    struct kvt_rig rig;
    float *q = kvt_alloc(sizeof(float) * Q_HEADS * 500 * DIM);
    (void)state;

    rig_start(&rig);
    rig.service.query_metrics.bytes_max = 100;
    offer(&rig, q, 500);
    assert_int_equal(metric(&rig, KVD_METRIC_queries_sampled), 0);
    assert_true(metric(&rig, KVD_METRIC_query_metric_no_room) > 0);
    assert_null(layer_of(&rig)->window);
    free(q);
    kvt_rig_fini(&rig);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_nothing_is_sampled_before_a_session_asks),
    cmocka_unit_test(test_rows_of_a_head_are_summed),
    cmocka_unit_test(test_one_token_in_a_gap_is_taken),
    cmocka_unit_test(test_a_full_window_becomes_a_version),
    cmocka_unit_test(test_s13_wild_queries_are_left_out),
    cmocka_unit_test(test_s18_one_request_takes_a_bounded_share),
    cmocka_unit_test(test_without_room_there_are_no_samples),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
