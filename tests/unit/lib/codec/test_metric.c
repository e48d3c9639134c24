/* Query metrics: what is summed, the factor and what has none, and K rounded by one. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/limits.h"
#include "lib/codec/plane.h"
#include "lib/format/layout.h"
#include "tests/support/tiles.h"

#define DIM     64
#define QUERIES 200

/* Rotated queries that look mostly one way. */
static float *queries_make(struct kvt_rng *rng, uint32_t dim, size_t count)
{
    float *q = kvt_alloc(count * dim * sizeof(float));

    for (size_t i = 0; i < count; i++) {
        double common = 3 * kvt_rng_normal(rng);
        for (uint32_t j = 0; j < dim; j++) {
            double gain = j % 5 == 0 ? 2.0 : 0.3;
            q[i * dim + j] = (float)(gain * (common + kvt_rng_normal(rng)));
        }
    }
    return q;
}

static float *metric_make(const float *q, size_t count, uint32_t dim)
{
    float *a = kvt_alloc((size_t)dim * dim * sizeof(float));

    kvarn_metric_add(a, q, count, dim);
    return a;
}

static void a_metric_is_the_sum_of_outer_products(void **state)
{
    struct kvt_rng rng = {.state = 51};
    float *q = queries_make(&rng, DIM, QUERIES), *a = metric_make(q, QUERIES, DIM);

    (void)state;
    for (uint32_t i = 0; i < DIM; i++) {
        for (uint32_t j = i; j < DIM; j++) {
            double want = 0, size = 0;
            for (size_t r = 0; r < QUERIES; r++) {
                double term = (double)q[r * DIM + i] * (double)q[r * DIM + j];
                want += term;
                size += fabs(term);
            }
            assert_true(fabs((double)a[i * DIM + j] - want) <= 1e-5 * size);
        }
    }
    /* Rows may come in any number of calls. */
    float *b = kvt_alloc(DIM * DIM * sizeof(float));
    kvarn_metric_add(b, q, 0, DIM);
    assert_true(b[0] == 0);
    kvarn_metric_add(b, q, 7, DIM);
    kvarn_metric_add(b, q + (size_t)7 * DIM, QUERIES - 7, DIM);
    for (uint32_t i = 0; i < DIM; i++) {
        for (uint32_t j = i; j < DIM; j++) {
            assert_true(fabsf(a[i * DIM + j] - b[i * DIM + j]) <= 1e-4f * a[i * DIM + i] + 1e-3f);
        }
    }
    free(q);
    free(a);
    free(b);
}

/* R E R^T is the damped metric, R is triangular with ones, and no entry is beyond the bound. */
static void a_factor_takes_the_damped_metric_apart(void **state)
{
    static const uint32_t dims[] = {8, 24, 64, 80, 128, 512};
    struct kvt_rng rng = {.state = 52};

    (void)state;
    for (size_t d = 0; d < sizeof(dims) / sizeof(dims[0]); d++) {
        uint32_t dim = dims[d];
        size_t bytes = (size_t)dim * dim * sizeof(float);
        float *q = queries_make(&rng, dim, 40), *a = metric_make(q, 40, dim);
        float *factor = kvt_alloc(bytes);
        void *scratch = kvt_alloc(kvarn_metric_factor_scratch_bytes(dim));
        double mean = 0, *e = kvt_alloc(dim * sizeof(double));
        assert_int_equal(kvarn_metric_factor(a, 40, dim, factor, scratch), 0);
        assert_true(kvarn__factor_is_valid(factor, dim));
        for (uint32_t i = 0; i < dim; i++) {
            mean += (double)a[(size_t)i * dim + i] / 40 / dim;
        }
        for (uint32_t j = dim; j-- > 0;) {
            assert_true(factor[kvarn__factor_at(j, j)] == 1.0f);
            for (uint32_t i = j + 1; i-- > 0;) {
                double got = 0;
                for (uint32_t k = j + 1; k < dim; k++) {
                    got += (double)factor[kvarn__factor_at(i, k)] * e[k] *
                           (double)factor[kvarn__factor_at(j, k)];
                }
                double r = (double)factor[kvarn__factor_at(i, j)];
                double want = (double)a[(size_t)i * dim + j] / 40 + (i == j ? mean : 0);
                if (i == j) {
                    e[j] = want - got;
                    assert_true(e[j] >= mean * (1 - 1e-4));
                } else {
                    assert_true(fabs(got + r * e[j] - want) <= 1e-4 * mean * sqrt(dim));
                }
            }
        }
        free(q);
        free(a);
        free(factor);
        free(scratch);
        free(e);
    }
}

/* SEMANTICS 13: no factor, and nothing written. */
static void s13_a_metric_that_is_none_is_refused(void **state)
{
    struct kvt_rng rng = {.state = 53};
    float *q = queries_make(&rng, DIM, QUERIES), *a = metric_make(q, QUERIES, DIM);
    float *factor = kvt_alloc(DIM * DIM * sizeof(float));
    void *scratch = kvt_alloc(kvarn_metric_factor_scratch_bytes(DIM));
    static const double counts[] = {0, -1, NAN, INFINITY};
    const struct {
        int at;
        float value;
    } bad[] = {{5 * DIM + 5, NAN}, {5 * DIM + 9, NAN}, {5 * DIM + 5, INFINITY},
        {5 * DIM + 9, -INFINITY}, {0, -1e9f}, {3 * DIM + 4, 1e9f}, {DIM - 1, FLT_MAX},
        {63 * DIM + 63, -FLT_MAX}};

    (void)state;
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        int err = kvarn_metric_factor(a, counts[i], DIM, factor, scratch);
        assert_int_equal(err, KVARN_EDOMAIN);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        float kept = a[bad[i].at];
        a[bad[i].at] = bad[i].value;
        int err = kvarn_metric_factor(a, QUERIES, DIM, factor, scratch);
        assert_int_equal(err, KVARN_EDOMAIN);
        a[bad[i].at] = kept;
    }
    memset(a, 0, DIM * DIM * sizeof(float));
    int err = kvarn_metric_factor(a, QUERIES, DIM, factor, scratch);
    assert_int_equal(err, KVARN_EDOMAIN);
    for (int i = 0; i < DIM * DIM; i++) {
        assert_true(factor[i] == 0);
    }
    free(q);
    free(a);
    free(factor);
    free(scratch);
}

/* Mean of (q.e)^2 over queries and tokens, e the error of K. */
static double logit_error(const struct kvarn_tile_spec *spec, const void *tile, const float *k,
    const float *q, size_t count)
{
    float *back = kvt_alloc((size_t)spec->group * spec->k_dim * sizeof(float));
    double sum = 0;

    kvarn_tile_decode(spec, tile, back, NULL);
    for (size_t i = 0; i < count; i++) {
        for (size_t g = 0; g < spec->group; g++) {
            double dot = 0;
            for (size_t d = 0; d < spec->k_dim; d++) {
                double e = (double)back[g * spec->k_dim + d] - (double)k[g * spec->k_dim + d];
                dot += (double)q[i * spec->k_dim + d] * e;
            }
            sum += dot * dot;
        }
    }
    free(back);
    return sum / (double)count / spec->group;
}

struct fixture {
    struct kvarn_tile_spec spec;
    float *q, *k, *v, *factor;      /* owned; q: queries not in the metric */
    void *tile, *refined, *scratch; /* owned */
};

static void fixture_init(struct fixture *f, struct kvt_rng *rng, struct kvarn_tile_spec spec)
{
    const size_t k_count = (size_t)spec.group * spec.k_dim;
    const size_t v_count = (size_t)spec.group * spec.v_dim;
    void *scratch = kvt_alloc(kvarn_metric_factor_scratch_bytes(spec.k_dim));

    f->spec = spec;
    f->k = kvt_alloc(k_count * sizeof(float));
    f->v = kvt_alloc(v_count * sizeof(float));
    kvt_rows_fill(rng, f->k, spec.group, spec.k_dim, 1.0);
    kvt_rows_fill(rng, f->v, spec.group, spec.v_dim, 1.0);
    f->q = queries_make(rng, spec.k_dim, QUERIES);
    float *a = metric_make(f->q, QUERIES, spec.k_dim);
    free(f->q);
    f->q = queries_make(rng, spec.k_dim, QUERIES);
    f->factor = kvt_alloc((size_t)spec.k_dim * spec.k_dim * sizeof(float));
    assert_int_equal(kvarn_metric_factor(a, QUERIES, spec.k_dim, f->factor, scratch), 0);
    f->refined = kvt_tile_make(&spec, KVARN_ENCODER_REFINED, f->k, f->v);
    f->tile = kvt_alloc(kvarn_tile_bytes(&spec));
    f->scratch = kvt_alloc(kvarn_encode_scratch_bytes(&spec));
    free(a);
    free(scratch);
}

static void fixture_fini(struct fixture *f)
{
    free(f->q);
    free(f->k);
    free(f->v);
    free(f->factor);
    free(f->tile);
    free(f->refined);
    free(f->scratch);
}

static enum kvarn_encoder fixture_encode(struct fixture *f, const float *factor)
{
    return kvarn_tile_encode_aware(&f->spec, factor, f->k, f->v, f->tile, f->scratch);
}

/* Scales and V are refined's to the bit; K's codes are better for queries like the metric's. */
static void aware_moves_errors_to_where_queries_do_not_look(void **state)
{
    struct kvt_rng rng = {.state = 54};

    (void)state;
    for (unsigned d = 0; d < KVT_DIMS_COUNT; d++) {
        for (unsigned variant = 0; variant < 4; variant++) {
            struct fixture f;
            struct kvarn__layout at;
            fixture_init(&f, &rng, kvt_spec(kvt_dims[d], variant));
            kvarn__layout_init(&at, &f.spec);
            enum kvarn_encoder used = fixture_encode(&f, f.factor);
            if (f.spec.k_bits == 4) {
                assert_int_equal(used, KVARN_ENCODER_REFERENCE);
                assert_memory_equal(f.tile, f.refined, kvarn_tile_bytes(&f.spec));
                fixture_fini(&f);
                continue;
            }
            assert_int_equal(used, KVARN_ENCODER_AWARE);
            assert_memory_equal(f.tile, f.refined, at.k_codes);
            assert_memory_equal((uint8_t *)f.tile + at.v_channel,
                (uint8_t *)f.refined + at.v_channel, kvarn_tile_bytes(&f.spec) - at.v_channel);
            double aware = logit_error(&f.spec, f.tile, f.k, f.q, QUERIES);
            double refined = logit_error(&f.spec, f.refined, f.k, f.q, QUERIES);
            assert_true(aware < 0.5 * refined);
            fixture_fini(&f);
        }
    }
}

/* SEMANTICS 13: without a metric, or with what is none, K is refined. */
static void s13_without_a_usable_factor_k_is_refined(void **state)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY, 33.0f, -FLT_MAX};
    struct kvt_rng rng = {.state = 55};
    struct fixture f;

    (void)state;
    fixture_init(&f, &rng, (struct kvarn_tile_spec){DIM, DIM, 128, 2, 2});
    const size_t bytes = kvarn_tile_bytes(&f.spec);
    assert_int_equal(fixture_encode(&f, NULL), KVARN_ENCODER_REFINED);
    assert_memory_equal(f.tile, f.refined, bytes);
    enum kvarn_encoder used =
        kvarn_tile_encode(&f.spec, KVARN_ENCODER_AWARE, f.k, f.v, f.tile, f.scratch);
    assert_int_equal(used, KVARN_ENCODER_REFINED);
    assert_memory_equal(f.tile, f.refined, bytes);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        size_t at = kvt_rng_below(&rng, (uint32_t)kvarn__factor_floats(DIM));
        float kept = f.factor[at];
        f.factor[at] = bad[i];
        assert_int_equal(fixture_encode(&f, f.factor), KVARN_ENCODER_REFINED);
        assert_memory_equal(f.tile, f.refined, bytes);
        f.factor[at] = kept;
    }
    assert_int_equal(fixture_encode(&f, f.factor), KVARN_ENCODER_AWARE);
    fixture_fini(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_metric_is_the_sum_of_outer_products),
        cmocka_unit_test(a_factor_takes_the_damped_metric_apart),
        cmocka_unit_test(s13_a_metric_that_is_none_is_refused),
        cmocka_unit_test(aware_moves_errors_to_where_queries_do_not_look),
        cmocka_unit_test(s13_without_a_usable_factor_k_is_refined),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
