/*
 * Tests of sealing by what queries look like: server/append/seal.c with
 * server/append/metric_store.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include <cmocka.h>

#include "server/append/metric_sample.h"
#include "server/append/seal.h"
#include "server/session/session_blocks.h"
#include "tests/support/rng.h"
#include "tests/support/session_rig.h"
#include "tests/support/tiles.h"

#define DIM     32
#define Q_HEADS 4

static const struct kvd_layer_group groups[] = {
    {.layers = 2, .kv_heads = 2, .k_dim = DIM, .v_dim = DIM},
};

static struct kvd_shape_desc shape_of(uint32_t k_bits)
{
    return (struct kvd_shape_desc){.model = "aware",
        .group = 64,
        .k_bits = k_bits,
        .v_bits = 2,
        .sink_tokens = 64,
        .layer_groups = groups,
        .layer_group_count = 1};
}

static uint64_t metric(const struct kvt_rig *rig, enum kvd_metric metric)
{
    return rig->service.metrics.values[metric];
}

static struct kvd_session *aware_open(struct kvt_rig *rig)
{
    struct kvd_session_options options = {.encoder = KVARN_ENCODER_AWARE};
    struct kvd_session *session = NULL;

    assert_int_equal(kvd_session_create(&rig->service, rig->shape, NULL, &options, &session), 0);
    return session;
}

static void grow(struct kvt_rig *rig, struct kvd_session *session, uint32_t tokens)
{
    struct kvt_append append = kvt_append_of(session, tokens, session->layers[0].length + 1);

    assert_int_equal(kvt_append_now(rig, &append), 0);
}

/* Queries of a request, as a handler offers them when it arrives. */
static void ask(struct kvt_rig *rig, struct kvt_rng *rng, uint32_t layer, uint32_t q_tokens)
{
    struct kvd_metric_turn turn = {.madds_left = KVD_METRIC_MADDS_MAX, .tokens_left = q_tokens};
    float *q = kvt_alloc(sizeof(float) * Q_HEADS * q_tokens * DIM);

    kvt_rows_fill(rng, q, Q_HEADS * q_tokens, DIM, 1.0);
    kvd_metric_sample(&rig->service.query_metrics,
        &(struct kvd_metric_queries){.shape = rig->shape,
            .layer = layer,
            .q_heads = Q_HEADS,
            .q_tokens = q_tokens,
            .dtype = KVARN_F32,
            .is_rotated = true,
            .q = q},
        &turn);
    free(q);
}

/* Ask until both layers have a version. */
static void learn(struct kvt_rig *rig, uint64_t seed)
{
    struct kvt_rng rng = {.state = seed};
    const struct kvd_shape_metric *m =
        kvd_metric_store_find(&rig->service.query_metrics, rig->shape);
    uint32_t before = m->version_last;

    for (unsigned i = 0; i < 1000 && m->version_last < before + 2; i++) {
        ask(rig, &rng, i % 2, 300);
    }
    assert_int_equal(m->version_last, before + 2);
}

static const struct kvd_page *tiles_of(const struct kvd_session *session, uint32_t block_idx)
{
    return kvd_session_tiles(session, block_idx, 0);
}

static void test_s13_aware_once_enough_queries_are_known(void **state)
{
    struct kvd_shape_desc shape = shape_of(2);
    struct kvt_rig rig;
    (void)state;

    kvt_rig_init(&rig, &(struct kvt_rig_options){.shape = &shape, .workers = 1});
    struct kvd_session *session = aware_open(&rig);
    grow(&rig, session, 128); /* the sink and one block */
    assert_int_equal(tiles_of(session, 1)->encoder, KVARN_ENCODER_REFINED);
    assert_int_equal(metric(&rig, KVD_METRIC_pages_aware_fallback), 2);
    uint64_t sealed =
        XXH3_64bits(kvd_page_data(tiles_of(session, 1)), kvd_page_bytes(tiles_of(session, 1)));
    learn(&rig, 1);
    grow(&rig, session, 128);
    for (uint32_t b = 2; b < 4; b++) {
        assert_int_equal(tiles_of(session, b)->encoder, KVARN_ENCODER_AWARE);
        assert_int_equal(kvd_page_version(tiles_of(session, b)),
            kvd_metric_store_find(&rig.service.query_metrics, rig.shape)
                ->layers[0]
                .version->version);
    }
    /* What was sealed stays as it is. */
    assert_int_equal(tiles_of(session, 1)->encoder, KVARN_ENCODER_REFINED);
    assert_int_equal(
        XXH3_64bits(kvd_page_data(tiles_of(session, 1)), kvd_page_bytes(tiles_of(session, 1))),
        sealed);
    assert_int_equal(session->pages_by_encoder[KVARN_ENCODER_REFINED], 2);
    assert_int_equal(session->pages_by_encoder[KVARN_ENCODER_AWARE], 4);
    assert_int_equal(metric(&rig, KVD_METRIC_pages_sealed_refined), 2);
    assert_int_equal(metric(&rig, KVD_METRIC_pages_sealed_aware), 4);
    assert_int_equal(metric(&rig, KVD_METRIC_pages_aware_fallback), 2);
    assert_int_equal(metric(&rig, KVD_METRIC_pages_refined_fallback), 0);
    kvt_session_drop(&rig, session);
    kvt_rig_fini(&rig);
}

/* The tile is the library's, of the rows as they were stored and the version's factor. */
static void test_the_tile_is_made_with_the_versions_factor(void **state)
{
    struct kvd_shape_desc shape = shape_of(2);
    struct kvt_rig rig;
    static float k[64 * DIM], v[64 * DIM];
    static uint16_t k_half[64 * DIM], v_half[64 * DIM];
    (void)state;

    kvt_rig_init(&rig, &(struct kvt_rig_options){.shape = &shape});
    struct kvd_session *session = aware_open(&rig);
    learn(&rig, 2);
    grow(&rig, session, 127);
    const struct kvd_layer_shape *ls = &rig.shape->layers[0];
    const struct kvd_page *rows = kvd_page_ref(kvd_session_rows(session, 1, 0));
    grow(
        &rig, session, 1); /* the row page that is held is copied; 63 of its rows are the block's */
    const uint8_t *data = kvd_page_data(kvd_session_tiles(session, 1, 0));
    struct kvd_metric_sum *version =
        kvd_metric_pick(kvd_metric_store_find(&rig.service.query_metrics, rig.shape), 0);
    struct kvt_append append = kvt_append_of(session, 1, 128);
    append.start = 127;
    kvt_append_fill(&append);
    void *tile = kvt_alloc(ls->tile_bytes);
    void *scratch = kvt_alloc(kvarn_encode_scratch_bytes(&ls->spec));
    for (uint32_t head = 0; head < 2; head++) {
        const uint8_t *from = kvd_page_data(rows);
        memcpy(k_half, from + kvd_rows_k_offset(ls, head), sizeof(k_half));
        memcpy(v_half, from + kvd_rows_v_offset(ls, head), sizeof(v_half));
        size_t row = 0;
        for (unsigned is_v = 0; is_v < 2; is_v++) {
            struct kvarn_rows_in in = {
                .src = append.payload + kvt_append_offset(&append, 0, is_v, head, 127),
                .dtype = append.dtype,
                .src_stride = DIM,
                .rows = 1,
                .head_dim = DIM};
            assert_int_equal(
                kvarn_rows_to_half(&in, (is_v ? v_half : k_half) + (size_t)63 * DIM, &row), 0);
        }
        kvarn_to_f32(k, k_half, KVARN_F16, 64 * DIM);
        kvarn_to_f32(v, v_half, KVARN_F16, 64 * DIM);
        assert_int_equal(kvarn_tile_encode_aware(
                             &ls->spec, kvd_metric_factor_of(version, head), k, v, tile, scratch),
            KVARN_ENCODER_AWARE);
        assert_memory_equal(data + head * ls->tile_bytes, tile, ls->tile_bytes);
    }
    free(tile);
    free(scratch);
    kvt_append_fini(&append);
    kvd_metric_sum_unref(version);
    kvd_page_unref(&rig.service.pages, (struct kvd_page *)(uintptr_t)rows);
    kvt_session_drop(&rig, session);
    kvt_rig_fini(&rig);
}

/* The version counts that was in force when the request came, however long it waits. */
static void test_s03_the_metric_is_picked_at_arrival(void **state)
{
    struct kvd_shape_desc shape = shape_of(2);
    struct kvt_rig rig;
    (void)state;

    kvt_rig_init(&rig, &(struct kvt_rig_options){.shape = &shape});
    struct kvd_session *session = aware_open(&rig);
    struct kvt_append first = kvt_append_of(session, 200, 1);
    struct kvt_append second = kvt_append_of(session, 100, 2);
    struct kvt_append third = kvt_append_of(session, 100, 3);
    second.start = 200;
    third.start = 300;
    assert_int_equal(kvt_append_begin(&rig, &first), 0);
    assert_int_equal(kvt_append_begin(&rig, &second), 0); /* waits for the first */
    learn(&rig, 3);
    assert_int_equal(kvt_append_begin(&rig, &third), 0);
    kvt_rig_settle(&rig);
    assert_true(first.outcome.is_done && second.outcome.is_done && third.outcome.is_done);
    for (uint32_t b = 1; b < 6; b++) { /* 300 tokens: up to block 3; 400: up to block 5 */
        assert_int_equal(
            tiles_of(session, b)->encoder, b < 4 ? KVARN_ENCODER_REFINED : KVARN_ENCODER_AWARE);
    }
    kvt_append_fini(&first);
    kvt_append_fini(&second);
    kvt_append_fini(&third);
    kvt_session_drop(&rig, session);
    kvt_rig_fini(&rig);
}

/* All sealed pages of a script in which queries and appends of two sessions take turns. */
static uint64_t script_digest(unsigned workers, uint64_t jitter_seed)
{
    struct kvd_shape_desc shape = shape_of(2);
    struct kvt_rig rig;
    struct kvd_session *sessions[2];
    struct kvt_append appends[24];
    struct kvt_rng rng = {.state = 9};
    uint64_t digest = 0;
    uint64_t lengths[2] = {0, 0};

    kvt_rig_init(&rig, &(struct kvt_rig_options){.shape = &shape,
                           .workers = workers,
                           .jitter_us_max = jitter_seed == 0 ? 0 : 500,
                           .jitter_seed = jitter_seed});
    sessions[0] = aware_open(&rig);
    sessions[1] = aware_open(&rig);
    for (unsigned i = 0; i < 24; i++) {
        appends[i] = kvt_append_of(sessions[i % 2], 20 + kvt_rng_below(&rng, 150), i);
        appends[i].start = lengths[i % 2];
        lengths[i % 2] += appends[i].token_count;
        assert_int_equal(kvt_append_begin(&rig, &appends[i]), 0);
        for (unsigned j = 0; j < 16 && i >= 4; j++) {
            ask(&rig, &rng, j % 2, 1 + kvt_rng_below(&rng, 400));
        }
    }
    kvt_rig_settle(&rig);
    assert_true(metric(&rig, KVD_METRIC_pages_sealed_aware) > 4);
    assert_true(metric(&rig, KVD_METRIC_pages_sealed_refined) > 1);
    assert_true(metric(&rig, KVD_METRIC_query_metric_versions) > 2);
    for (unsigned s = 0; s < 2; s++) {
        for (uint32_t b = 1; b < sessions[s]->layers[0].sealed_blocks; b++) {
            for (uint32_t layer = 0; layer < 2; layer++) {
                const struct kvd_page *page = kvd_session_tiles(sessions[s], b, layer);
                uint64_t words[] = {
                    digest, kvd_page_checksum(page), page->encoder, kvd_page_version(page)};
                digest = XXH3_64bits(words, sizeof(words));
            }
        }
    }
    for (unsigned i = 0; i < 24; i++) {
        assert_int_equal(appends[i].outcome.why.err, 0);
        kvt_append_fini(&appends[i]);
    }
    kvt_session_drop(&rig, sessions[0]);
    kvt_session_drop(&rig, sessions[1]);
    kvt_rig_fini(&rig);
    return digest;
}

static void test_s03_same_pages_with_any_workers(void **state)
{
    uint64_t expected = script_digest(0, 0);
    (void)state;

    for (uint64_t seed = 1; seed < 4; seed++) {
        assert_int_equal(script_digest(0, seed), expected);
        assert_int_equal(script_digest(1, seed), expected);
        assert_int_equal(script_digest(4, seed), expected);
    }
}

static void test_4_bit_keys_have_no_use_for_queries(void **state)
{
    struct kvd_shape_desc shape = shape_of(4);
    struct kvt_rig rig;
    (void)state;

    kvt_rig_init(&rig, &(struct kvt_rig_options){.shape = &shape});
    struct kvd_session *session = aware_open(&rig);
    assert_null(kvd_metric_store_find(&rig.service.query_metrics, rig.shape));
    grow(&rig, session, 200);
    assert_int_equal(tiles_of(session, 1)->encoder, KVARN_ENCODER_REFERENCE);
    assert_int_equal(metric(&rig, KVD_METRIC_pages_aware_fallback), 0);
    assert_int_equal(metric(&rig, KVD_METRIC_pages_refined_fallback), 0);
    kvt_session_drop(&rig, session);
    kvt_rig_fini(&rig);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_s13_aware_once_enough_queries_are_known),
    cmocka_unit_test(test_the_tile_is_made_with_the_versions_factor),
    cmocka_unit_test(test_s03_the_metric_is_picked_at_arrival),
    cmocka_unit_test(test_s03_same_pages_with_any_workers),
    cmocka_unit_test(test_4_bit_keys_have_no_use_for_queries),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
