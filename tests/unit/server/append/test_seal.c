/*
 * Tests of server/append/seal.c: which blocks are sealed, by which encoder, what is counted.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/append/seal.h"
#include "server/session/session_blocks.h"
#include "tests/support/alloc_fail.h"
#include "tests/support/session_case.h"
#include "tests/support/tiles.h"

/* One layer, no sink. */
static const struct kvd_layer_group bare_groups[] = {
    {.layers = 1, .kv_heads = 2, .k_dim = 16, .v_dim = 16},
};
static struct kvd_shape_desc bare_shape(uint32_t k_bits, uint32_t v_bits)
{
    return (struct kvd_shape_desc){.model = "bare",
        .group = 64,
        .k_bits = k_bits,
        .v_bits = v_bits,
        .layer_groups = bare_groups,
        .layer_group_count = 1};
}

static uint64_t metric(const struct kvt_case *c, enum kvd_metric metric)
{
    return c->rig.service.metrics.values[metric];
}

/* Encoder of the sealed page of a block. */
static enum kvarn_encoder encoder_of(const struct kvt_case *c, uint32_t block_idx)
{
    return (enum kvarn_encoder)kvd_session_tiles(c->session, block_idx, 0)->encoder;
}

static void test_s13_the_session_chooses_the_encoder(void **state)
{
    static const struct {
        enum kvarn_encoder asked;
        uint32_t k_bits;
        enum kvarn_encoder used;
    } cases[] = {
        {KVARN_ENCODER_DEFAULT, 2, KVARN_ENCODER_REFINED},
        {KVARN_ENCODER_REFINED, 2, KVARN_ENCODER_REFINED},
        {KVARN_ENCODER_REFERENCE, 2, KVARN_ENCODER_REFERENCE},
        {KVARN_ENCODER_DEFAULT, 4, KVARN_ENCODER_REFERENCE},
    };
    (void)state;

    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct kvd_shape_desc shape = bare_shape(cases[i].k_bits, cases[i].k_bits);
        struct kvt_case c;
        kvt_case_init(&c, &(struct kvt_rig_options){.shape = &shape}, 0);
        c.session->options.encoder = c.model.encoder = cases[i].asked;
        kvt_case_grow(&c, 200);
        assert_int_equal(encoder_of(&c, 1), cases[i].used);
        assert_int_equal(encoder_of(&c, 2), cases[i].used);
        /* Without a sink block 0 holds the huge first tokens: by reference. */
        assert_int_equal(encoder_of(&c, 0), KVARN_ENCODER_REFERENCE);
        uint64_t refined = cases[i].used == KVARN_ENCODER_REFINED ? 2 : 0;
        assert_int_equal(c.session->pages_by_encoder[KVARN_ENCODER_REFINED], refined);
        assert_int_equal(c.session->pages_by_encoder[KVARN_ENCODER_REFERENCE], 3 - refined);
        assert_int_equal(metric(&c, KVD_METRIC_pages_sealed_refined), refined);
        assert_int_equal(metric(&c, KVD_METRIC_pages_sealed_reference), 3 - refined);
        assert_int_equal(metric(&c, KVD_METRIC_pages_refined_fallback), 0);
        kvt_case_fini(&c);
    }
}

/* Numbers at both ends of the range, mostly one: refined's levels go beyond what a tile may hold.
 */
static void fill_extreme(float *values, size_t count, uint64_t seed)
{
    struct kvt_rng rng = {.state = seed};
    uint32_t one_in = 2 + (uint32_t)(seed % 61); /* how rare the other end is */
    float rest = seed % 3 == 0 ? 32768.0f : 32768.0f * (float)kvt_rng_below(&rng, 1000) / 1000.0f;

    for (size_t i = 0; i < count; i++) {
        values[i] = kvt_rng_below(&rng, one_in) == 0 ? -32768.0f : rest;
    }
}

/* Does the library seal the first head's rows, as they lie in the payload, by reference? */
static bool falls_back(const struct kvt_append *append, const struct kvarn_tile_spec *spec)
{
    const float *k = (const void *)append->payload;
    const float *v =
        (const void *)(append->payload + kvt_append_offset(append, 0, true, 0, append->start));
    void *tile = kvt_alloc(kvarn_tile_bytes(spec));
    void *scratch = kvt_alloc(kvarn_encode_scratch_bytes(spec));
    enum kvarn_encoder used = kvarn_tile_encode(spec, KVARN_ENCODER_REFINED, k, v, tile, scratch);

    free(tile);
    free(scratch);
    return used == KVARN_ENCODER_REFERENCE;
}

static void test_s10_a_tile_that_refined_cannot_do_is_sealed_and_counted(void **state)
{
    struct kvt_case c;
    struct kvd_shape_desc shape = bare_shape(2, 2);
    uint64_t seed = 0;
    (void)state;

    kvt_case_init(&c, &(struct kvt_rig_options){.shape = &shape}, 0);
    kvt_case_grow(&c, 64);
    struct kvt_append append = kvt_append_of(c.session, 64, 1);
    append.dtype = KVARN_F32;
    append.is_rotated = true;
    kvt_append_fill(&append);
    do {
        assert_true(seed < 2000);
        fill_extreme((void *)append.payload, append.payload_bytes / sizeof(float), seed++);
    } while (!falls_back(&append, &c.rig.shape->layers[0].spec));
    kvt_case_store(&c, append);
    kvt_case_check(&c); /* the same tile as the library makes of them */
    assert_int_equal(encoder_of(&c, 1), KVARN_ENCODER_REFERENCE);
    assert_int_equal(metric(&c, KVD_METRIC_pages_refined_fallback), 1);
    assert_int_equal(metric(&c, KVD_METRIC_pages_sealed_reference), 2); /* block 0 is the other */
    kvt_case_fini(&c);
}

static int prepare(
    struct kvt_case *c, struct kvd_seal_list *seals, const struct kvd_seal_want *what)
{
    struct kvd_seal_want want = *what;
    struct kvd_failure why = {0};
    int err = 0;

    while (err == 0 && !want.is_done) {
        err = kvd_seal_prepare(seals, c->session, &want, NULL, &why);
    }
    return err;
}

static void list_drop(struct kvt_case *c, struct kvd_seal_list *seals)
{
    while (!kvd_seal_list_drop_some(&c->rig.service, seals)) {
    }
    assert_true(SLIST_EMPTY(seals));
}

static void test_s02_prepare_counts_what_will_be_due(void **state)
{
    struct kvt_case c;
    struct kvd_seal_list seals = SLIST_HEAD_INITIALIZER(seals);
    (void)state;

    kvt_case_init(&c, NULL, 10);
    kvt_case_grow(&c, 100);
    static const struct {
        uint32_t layer;
        uint64_t length;
        struct kvd_block_range records;
        unsigned count;
    } cases[] = {
        {0, 137, {0, 0}, 0}, /* block 1 ends at 128: 138 seals it */
        {0, 138, {0, 0}, 1}, {0, 1000, {0, 0}, 14}, {0, 4106, {0, 0}, 63}, /* in two steps */
        {0, 1000, {2, 9}, 7}, /* the rest came as records */
        {0, 1000, {2, 30}, 1},
        {2, 1000, {0, 0}, 3}, /* a window: blocks that leave it at once need no seal */
    };
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        kvt_alloc_fail_at(0);
        assert_int_equal(prepare(&c, &seals,
                             &(struct kvd_seal_want){.layer = cases[i].layer,
                                 .length = cases[i].length,
                                 .records = cases[i].records}),
            0);
        assert_int_equal(kvt_alloc_calls(), cases[i].count);
        assert_int_equal(SLIST_EMPTY(&seals), cases[i].count == 0);
        list_drop(&c, &seals);
    }
    kvt_alloc_fail_at(3);
    assert_int_equal(prepare(&c, &seals, &(struct kvd_seal_want){.length = 1000}), KVARN_ENOMEM);
    kvt_alloc_fail_at(0);
    list_drop(&c, &seals);
    kvt_case_fini(&c);
}

/* A long append passes over the sink and what the window drops. */
static void test_s04_blocks_beyond_the_window_are_not_sealed(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    struct kvt_append append = kvt_append_of(c.session, 1000, 1);
    append.layer_first = 2;
    append.layer_count = 1;
    kvt_case_store(&c, append);
    /* 15 blocks are full; 13 of them, the sink counted, left window + group. */
    assert_int_equal(c.session->layers[2].sealed_blocks, 15);
    assert_int_equal(c.session->layers[2].dropped_blocks, 13);
    assert_int_equal(metric(&c, KVD_METRIC_pages_sealed_refined), 2);
    kvt_case_fini(&c);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_s13_the_session_chooses_the_encoder),
    cmocka_unit_test(test_s10_a_tile_that_refined_cannot_do_is_sealed_and_counted),
    cmocka_unit_test(test_s02_prepare_counts_what_will_be_due),
    cmocka_unit_test(test_s04_blocks_beyond_the_window_are_not_sealed),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
