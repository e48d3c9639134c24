/* What decode(encode(x)) may differ from x, for made-up tiles of all dimensions and presets. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/limits.h"
#include "lib/format/layout.h"
#include "tests/support/tiles.h"

#define HALF_EPS 0x1p-11 /* half a unit in the last place, relative */
#define HALF_MIN 0x1p-25 /* half of the smallest half */

/*
 * Encoder reference: a value is at most half a step from its level, plus what storing scale, zero
 * and the other axis's factor as halves moves the level. (r, c) of the view lies at
 * x[r * row_stride + c * col_stride].
 */
static void bound_check(const struct kvarn__tile_view *view, const float *x, const float *decoded,
    size_t row_stride, size_t col_stride)
{
    double top = (double)((1u << view->bits) - 1);

    for (uint32_t r = 0; r < view->rows; r++) {
        double scale = fabs((double)kvarn_half_to_f32(view->scale[r]));
        double zero = fabs((double)kvarn_half_to_f32(view->zero[r]));
        for (uint32_t c = 0; c < view->cols; c++) {
            double other = fabs((double)kvarn_half_to_f32(view->other[c]));
            double stored = 3 * HALF_EPS * (top * scale + zero) + 2 * HALF_MIN * (top + 1);
            double bound = other * (0.5 * scale * (1 + 4 * HALF_EPS) + stored) * (1 + 1e-5);
            size_t at = r * row_stride + c * col_stride;
            assert_true(fabs((double)decoded[at] - (double)x[at]) <= bound);
        }
    }
}

static void tile_check(struct kvt_rng *rng, const struct kvarn_tile_spec *spec, double scale)
{
    size_t k_count = (size_t)spec->group * spec->k_dim;
    size_t v_count = (size_t)spec->group * spec->v_dim;
    float *k = kvt_alloc(k_count * sizeof(float)), *k_back = kvt_alloc(k_count * sizeof(float));
    float *v = kvt_alloc(v_count * sizeof(float)), *v_back = kvt_alloc(v_count * sizeof(float));
    struct kvarn__tile_view view;

    kvt_rows_fill(rng, k, spec->group, spec->k_dim, scale);
    kvt_rows_fill(rng, v, spec->group, spec->v_dim, scale);
    void *tile = kvt_tile_make(spec, KVARN_ENCODER_REFERENCE, k, v);
    kvarn_tile_decode(spec, tile, k_back, v_back);
    kvarn__tile_k_view(spec, tile, &view);
    bound_check(&view, k, k_back, 1, spec->k_dim);
    kvarn__tile_v_view(spec, tile, &view);
    bound_check(&view, v, v_back, spec->v_dim, 1);
    free(tile);
    free(k);
    free(v);
    free(k_back);
    free(v_back);
}

static void reference_is_within_half_a_step(void **state)
{
    static const double scales[] = {1e-6, 1e-2, 1.0, 200.0};
    struct kvt_rng rng = {.state = 2};
    unsigned tried = 0;

    (void)state;
    for (unsigned d = 0; d < KVT_DIMS_COUNT; d++) {
        for (unsigned variant = 0; variant < KVT_VARIANTS; variant++) {
            struct kvarn_tile_spec spec = kvt_spec(kvt_dims[d], variant);
            for (unsigned s = 0; s < sizeof(scales) / sizeof(scales[0]); s++) {
                tile_check(&rng, &spec, scales[s]);
                tried++;
            }
        }
    }
    printf("codec: %u tiles within half a step\n", tried);
}

/* A tile that breaks something: sparse spikes, equal rows, extremes of the range, tiny values. */
static void hard_rows_fill(struct kvt_rng *rng, float *x, size_t count)
{
    static const float sizes[] = {0.0f, 1e-30f, 6e-8f, 1e-3f, 1.0f, 3000.0f, 32768.0f};
    float base = sizes[kvt_rng_below(rng, 7)];
    float loud = sizes[kvt_rng_below(rng, 7)];
    uint32_t rarity = 1 + kvt_rng_below(rng, 400);

    for (size_t i = 0; i < count; i++) {
        float size = kvt_rng_below(rng, rarity) == 0 ? loud : base;
        x[i] = kvt_rng_below(rng, 2) == 0 ? size : -size;
    }
}

static void semantics_10_encoding_never_fails(void **state)
{
    struct kvt_rng rng = {.state = 3};
    unsigned tried = 0, fell_back = 0;

    (void)state;
    for (unsigned i = 0; i < 600; i++) {
        struct kvarn_tile_spec spec =
            kvt_spec(kvt_dims[i % KVT_DIMS_COUNT], kvt_rng_below(&rng, KVT_VARIANTS));
        size_t k_count = (size_t)spec.group * spec.k_dim, v_count = (size_t)spec.group * spec.v_dim;
        float *k = kvt_alloc(k_count * sizeof(float)), *v = kvt_alloc(v_count * sizeof(float));
        uint8_t *record = kvt_alloc(kvarn_record_bytes(&spec));
        uint8_t *tile = kvt_alloc(kvarn_tile_bytes(&spec));
        void *scratch = kvt_alloc(kvarn_encode_scratch_bytes(&spec));
        enum kvarn_encoder encoder = i % 2 == 0 ? KVARN_ENCODER_REFERENCE : KVARN_ENCODER_REFINED;
        hard_rows_fill(&rng, k, k_count);
        hard_rows_fill(&rng, v, v_count);
        memset(tile, 0xa5, kvarn_tile_bytes(&spec));
        enum kvarn_encoder used = kvarn_tile_encode(&spec, encoder, k, v, tile, scratch);
        if (encoder == KVARN_ENCODER_REFERENCE || spec.k_bits == 4) {
            assert_int_equal(used, KVARN_ENCODER_REFERENCE);
        }
        fell_back +=
            encoder == KVARN_ENCODER_REFINED && spec.k_bits == 2 && used == KVARN_ENCODER_REFERENCE;
        kvarn_tile_to_record(&spec, tile, record);
        assert_int_equal(kvarn_record_validate(&spec, record, kvarn_record_bytes(&spec)), 0);
        free(k);
        free(v);
        free(record);
        free(tile);
        free(scratch);
        tried++;
    }
    printf("codec: %u hard tiles encoded, %u by falling back\n", tried, fell_back);
}

/*
 * What may be given as a factor: that of a metric of few or many queries, of any size; numbers
 * within a factor's bound that no metric gives; and numbers beyond it.
 */
static bool factor_fill(struct kvt_rng *rng, float *factor, uint32_t dim)
{
    const size_t count = (size_t)dim * dim;
    float *a = kvt_alloc(count * sizeof(float)), *q = kvt_alloc(dim * sizeof(float));
    void *scratch = kvt_alloc(kvarn_metric_factor_scratch_bytes(dim));
    uint32_t kind = kvt_rng_below(rng, 4), queries = 1 + kvt_rng_below(rng, 8);
    bool is_usable = true;

    if (kind < 2) {
        for (uint32_t i = 0; i < queries; i++) {
            hard_rows_fill(rng, q, dim);
            q[0] = 1e-3f; /* a metric that is all zero has no factor */
            kvarn_metric_add(a, q, 1, dim);
        }
        assert_int_equal(kvarn_metric_factor(a, queries, dim, factor, scratch), 0);
    } else {
        for (size_t i = 0; i < count; i++) {
            factor[i] = kvt_rng_below(rng, 2) == 0 ? 32.0f : -32.0f;
        }
        is_usable = kind == 2;
        factor[kvt_rng_below(rng, (uint32_t)kvarn__factor_floats(dim))] *= is_usable ? 1.0f : NAN;
    }
    free(a);
    free(q);
    free(scratch);
    return is_usable;
}

/* The same of aware, whatever the factor; and its bytes do not depend on what scratch held. */
static void s13_aware_encodes_whatever_the_factor(void **state)
{
    struct kvt_rng rng = {.state = 5};
    unsigned aware = 0, fell_back = 0;

    (void)state;
    for (unsigned i = 0; i < 300; i++) {
        struct kvarn_tile_spec spec = kvt_spec(kvt_dims[i % KVT_DIMS_COUNT], i % 2);
        size_t k_count = (size_t)spec.group * spec.k_dim, v_count = (size_t)spec.group * spec.v_dim;
        size_t scratch_bytes = kvarn_encode_scratch_bytes(&spec);
        float *k = kvt_alloc(k_count * sizeof(float)), *v = kvt_alloc(v_count * sizeof(float));
        float *factor = kvt_alloc((size_t)spec.k_dim * spec.k_dim * sizeof(float));
        uint8_t *record = kvt_alloc(kvarn_record_bytes(&spec));
        uint8_t *tile = kvt_alloc(kvarn_tile_bytes(&spec));
        void *scratch = kvt_alloc(scratch_bytes);
        hard_rows_fill(&rng, k, k_count);
        hard_rows_fill(&rng, v, v_count);
        bool is_usable = factor_fill(&rng, factor, spec.k_dim);
        memset(tile, 0xa5, kvarn_tile_bytes(&spec));
        memset(scratch, 0xff, scratch_bytes);
        enum kvarn_encoder used = kvarn_tile_encode_aware(&spec, factor, k, v, tile, scratch);
        assert_true(is_usable || used != KVARN_ENCODER_AWARE);
        aware += used == KVARN_ENCODER_AWARE;
        fell_back += is_usable && used != KVARN_ENCODER_AWARE;
        kvarn_tile_to_record(&spec, tile, record);
        assert_int_equal(kvarn_record_validate(&spec, record, kvarn_record_bytes(&spec)), 0);
        void *again = kvt_tile_make_aware(&spec, factor, k, v);
        assert_memory_equal(tile, again, kvarn_tile_bytes(&spec));
        free(k);
        free(v);
        free(factor);
        free(record);
        free(tile);
        free(scratch);
        free(again);
    }
    assert_true(aware > 100 && fell_back > 0);
    printf("codec: %u hard tiles by aware, %u by falling back\n", aware, fell_back);
}

/* The same input gives the same bytes, whatever the scratch held before. */
static void encoding_is_a_function_of_its_input(void **state)
{
    struct kvt_rng rng = {.state = 4};
    unsigned tried = 0;

    (void)state;
    for (unsigned i = 0; i < 2 * KVT_DIMS_COUNT; i++) {
        struct kvarn_tile_spec spec = kvt_spec(kvt_dims[i / 2], i % KVT_VARIANTS);
        size_t k_count = (size_t)spec.group * spec.k_dim, v_count = (size_t)spec.group * spec.v_dim;
        size_t tile_bytes = kvarn_tile_bytes(&spec);
        size_t scratch_bytes = kvarn_encode_scratch_bytes(&spec);
        float *k = kvt_alloc(k_count * sizeof(float)), *v = kvt_alloc(v_count * sizeof(float));
        uint8_t *tile = kvt_alloc(tile_bytes);
        void *scratch = kvt_alloc(scratch_bytes);
        kvt_rows_fill(&rng, k, spec.group, spec.k_dim, 1.0);
        kvt_rows_fill(&rng, v, spec.group, spec.v_dim, 1.0);
        void *first = kvt_tile_make(&spec, KVARN_ENCODER_DEFAULT, k, v);
        memset(scratch, 0xff, scratch_bytes);
        memset(tile, 0xff, tile_bytes);
        (void)kvarn_tile_encode(&spec, KVARN_ENCODER_DEFAULT, k, v, tile, scratch);
        assert_memory_equal(tile, first, tile_bytes);
        free(k);
        free(v);
        free(tile);
        free(scratch);
        free(first);
        tried++;
    }
    printf("codec: %u tiles encoded twice\n", tried);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reference_is_within_half_a_step),
        cmocka_unit_test(semantics_10_encoding_never_fails),
        cmocka_unit_test(s13_aware_encodes_whatever_the_factor),
        cmocka_unit_test(encoding_is_a_function_of_its_input),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
