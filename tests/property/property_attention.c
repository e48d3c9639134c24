/*
 * Attention over sink, tiles and tail against its definition in double precision: all masks,
 * several query heads and tokens, any range; and cuts that merge to the same. Exact is held to the
 * rounding of floats. Fast has a hard bound, what rounding queries and weights to 8 bits can do at
 * worst, and a much smaller one on its squared error, over each case and over all.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kvarn/attention.h"
#include "kvarn/cpu.h"
#include "lib/format/layout.h"
#include "tests/support/attention_f64.h"
#include "tests/support/tiles.h"

#define BLOCKS_MAX 4
#define CASES      400
#define TOLERANCE  2e-5

/* Relative squared error of fast: of one case, whose rows may see a handful of tokens, and the mean
 * over cases. Measured: 3.6e-4 and 1.1e-5. */
#define FAST_CASE_MAX 1e-3
#define FAST_MEAN_MAX 2e-5

/* A cache of one KV head, with what it decodes to beside it. */
struct cache {
    struct kvarn_tile_spec spec;
    uint32_t token_count;
    uint32_t block_count;
    struct kvarn_attention_span spans[BLOCKS_MAX];
    void *data[BLOCKS_MAX]; /* owned: a tile, or half rows of K then V */
    float *k, *v;           /* owned: decoded, [token_count][dim] */
};

static void block_seal(struct cache *cache, uint32_t block, const float *k, const float *v)
{
    const struct kvarn_tile_spec *spec = &cache->spec;
    uint32_t first = block * spec->group;

    cache->data[block] = kvt_tile_make(spec, KVARN_ENCODER_DEFAULT, k, v);
    cache->spans[block].form = KVARN_SPAN_TILE;
    cache->spans[block].tile = cache->data[block];
    kvarn_tile_decode(spec, cache->data[block], cache->k + (size_t)first * spec->k_dim,
        cache->v + (size_t)first * spec->v_dim);
}

static void block_keep(
    struct cache *cache, uint32_t block, uint32_t count, const float *k, const float *v)
{
    const struct kvarn_tile_spec *spec = &cache->spec;
    size_t first = (size_t)block * spec->group;
    size_t k_count = (size_t)count * spec->k_dim, v_count = (size_t)count * spec->v_dim;
    uint16_t *rows = kvt_alloc((k_count + v_count) * sizeof(*rows));

    kvarn_from_f32(rows, KVARN_F16, k, k_count);
    kvarn_from_f32(rows + k_count, KVARN_F16, v, v_count);
    kvarn_to_f32(cache->k + first * spec->k_dim, rows, KVARN_F16, k_count);
    kvarn_to_f32(cache->v + first * spec->v_dim, rows + k_count, KVARN_F16, v_count);
    cache->data[block] = rows;
    cache->spans[block].form = KVARN_SPAN_HALF;
    cache->spans[block].k_rows = rows;
    cache->spans[block].v_rows = rows + k_count;
}

/* Block 0 is a sink, an open last block the tail, the others tiles. */
static void cache_init(struct cache *cache, struct kvt_rng *rng)
{
    struct kvarn_tile_spec spec =
        kvt_spec(kvt_dims[kvt_rng_below(rng, KVT_DIMS_COUNT)], kvt_rng_below(rng, KVT_VARIANTS));

    *cache = (struct cache){.spec = spec};
    cache->token_count = 1 + kvt_rng_below(rng, BLOCKS_MAX * spec.group);
    cache->block_count = (cache->token_count + spec.group - 1) / spec.group;
    cache->k = kvt_alloc((size_t)cache->token_count * spec.k_dim * sizeof(float));
    cache->v = kvt_alloc((size_t)cache->token_count * spec.v_dim * sizeof(float));
    float *k = kvt_alloc((size_t)spec.group * spec.k_dim * sizeof(float));
    float *v = kvt_alloc((size_t)spec.group * spec.v_dim * sizeof(float));
    for (uint32_t b = 0; b < cache->block_count; b++) {
        uint32_t left = cache->token_count - b * spec.group;
        uint32_t count = left < spec.group ? left : spec.group;
        cache->spans[b].first_token = b * spec.group;
        cache->spans[b].token_count = count;
        kvt_rows_fill(rng, k, spec.group, spec.k_dim, 1.0);
        kvt_rows_fill(rng, v, spec.group, spec.v_dim, 1.0);
        if (b > 0 && count == spec.group) {
            block_seal(cache, b, k, v);
        } else {
            block_keep(cache, b, count, k, v);
        }
    }
    free(k);
    free(v);
}

static void cache_fini(struct cache *cache)
{
    for (uint32_t b = 0; b < cache->block_count; b++) {
        free(cache->data[b]);
    }
    free(cache->k);
    free(cache->v);
}

static void params_draw(struct kvarn_attention_params *params, struct kvt_rng *rng,
    const struct kvarn_tile_spec *spec, uint32_t token_count)
{
    *params = (struct kvarn_attention_params){.spec = *spec,
        .q_heads = 1 + kvt_rng_below(rng, 9),
        .q_tokens = 1 + kvt_rng_below(rng, 6),
        .position = kvt_rng_below(rng, token_count),
        .last = token_count,
        .scale = 1.0f / sqrtf((float)spec->k_dim),
        .causal = kvt_rng_below(rng, 3) != 0};

    if (kvt_rng_below(rng, 2) == 0) {
        params->first = kvt_rng_below(rng, token_count);
        params->last = params->first + kvt_rng_below(rng, token_count);
    }
    if (params->causal && kvt_rng_below(rng, 2) == 0) {
        params->window = 1 + kvt_rng_below(rng, token_count);
    }
    if (kvt_rng_below(rng, 3) == 0) {
        params->softcap = 1.0f + (float)kvt_rng_below(rng, 50);
    }
}

/* What one case needs; all owned. */
struct trial {
    struct kvarn_attention_params params;
    size_t rows;
    float *q, *out, *lse, *partial, *other, *scratch;
};

static void trial_init(struct trial *trial, struct kvt_rng *rng, const struct cache *cache,
    enum kvarn_accuracy accuracy)
{
    params_draw(&trial->params, rng, &cache->spec, cache->token_count);
    trial->params.accuracy = accuracy;
    trial->rows = (size_t)trial->params.q_heads * trial->params.q_tokens;
    size_t partial_bytes = kvarn_attention_partial_floats(&trial->params) * sizeof(float);
    trial->q = kvt_alloc(trial->rows * cache->spec.k_dim * sizeof(float));
    trial->out = kvt_alloc(trial->rows * cache->spec.v_dim * sizeof(float));
    trial->lse = kvt_alloc(trial->rows * sizeof(float));
    trial->partial = kvt_alloc(partial_bytes);
    trial->other = kvt_alloc(partial_bytes);
    trial->scratch = kvt_alloc(kvarn_attention_scratch_floats(&trial->params) * sizeof(float));
    for (size_t i = 0; i < trial->rows * cache->spec.k_dim; i++) {
        trial->q[i] = (float)kvt_rng_normal(rng);
    }
}

static void trial_fini(struct trial *trial)
{
    free(trial->q);
    free(trial->out);
    free(trial->lse);
    free(trial->partial);
    free(trial->other);
    free(trial->scratch);
}

static double abs_max(const float *x, size_t count)
{
    double max = 0;

    for (size_t i = 0; i < count; i++) {
        max = fmax(max, fabs((double)x[i]));
    }
    return max;
}

/*
 * How far a logit of a fast row may be from its exact value: half a step of each channel's product
 * times the code's distance from the middle, over all channels, in the worst tile.
 */
static double logit_error_max(const struct trial *trial, const struct cache *cache, size_t row)
{
    const struct kvarn_tile_spec *spec = &cache->spec;
    const float *q = trial->q + row * spec->k_dim;
    double mid = ((1 << spec->k_bits) - 1) / 2.0, worst = 0;

    for (uint32_t b = 0; b < cache->block_count; b++) {
        struct kvarn__tile_view k;
        float scale[KVARN__ROW_MAX], token[KVARN__ROW_MAX];
        double w_max = 0;
        if (cache->spans[b].form != KVARN_SPAN_TILE) {
            continue;
        }
        kvarn__tile_k_view(spec, cache->spans[b].tile, &k);
        kvarn_to_f32(scale, k.scale, KVARN_F16, k.rows);
        kvarn_to_f32(token, k.other, KVARN_F16, k.cols);
        for (uint32_t c = 0; c < k.rows; c++) {
            w_max = fmax(w_max, fabs((double)q[c] * (double)scale[c]));
        }
        double error = w_max / 127 / 2 * mid * k.rows * abs_max(token, k.cols);
        worst = fmax(worst, error * (double)trial->params.scale);
    }
    return worst;
}

/* What rounding the weights of all tiles to 8 bits may do to an output at worst. */
static double weight_error_max(const struct cache *cache)
{
    const struct kvarn_tile_spec *spec = &cache->spec;
    double mid = ((1 << spec->v_bits) - 1) / 2.0, sum = 0;

    for (uint32_t b = 0; b < cache->block_count; b++) {
        struct kvarn__tile_view v;
        float scale[KVARN__ROW_MAX], channel[KVARN__ROW_MAX];
        if (cache->spans[b].form != KVARN_SPAN_TILE) {
            continue;
        }
        kvarn__tile_v_view(spec, cache->spans[b].tile, &v);
        kvarn_to_f32(scale, v.scale, KVARN_F16, v.rows);
        kvarn_to_f32(channel, v.other, KVARN_F16, v.cols);
        sum += abs_max(scale, v.rows) / 255 / 2 * v.rows * mid * abs_max(channel, v.cols);
    }
    return sum;
}

/* What a trial's out and lse may be off by, per row. */
struct bounds {
    double out, lse;
};

static struct bounds row_bounds(const struct trial *trial, const struct cache *cache, size_t row)
{
    double v_max = abs_max(cache->v, (size_t)cache->token_count * cache->spec.v_dim);
    struct bounds bounds = {.out = TOLERANCE * v_max, .lse = 1e-4};

    if (trial->params.accuracy == KVARN_ACCURACY_FAST) {
        /* Logits off by up to e move weights by a factor of at most exp(2e), rounded exponentials
         * included. */
        double e = logit_error_max(trial, cache, row) + 1e-5;
        bounds.out += expm1(2 * e) * v_max + weight_error_max(cache);
        bounds.lse += e;
    }
    return bounds;
}

/* Check a trial's rows against the definition; returns the relative squared error. */
static double exact_check(const struct trial *trial, const struct cache *cache)
{
    const size_t dim = cache->spec.v_dim;
    double *out = kvt_alloc(trial->rows * dim * sizeof(double));
    double *lse = kvt_alloc(trial->rows * sizeof(double));
    double error = 0, power = 0;

    kvt_attention_f64(&trial->params, trial->q, cache->k, cache->v, cache->token_count, out, lse);
    for (size_t r = 0; r < trial->rows; r++) {
        struct bounds bounds = row_bounds(trial, cache, r);
        if (isinf(lse[r])) {
            assert_true(isinf(trial->lse[r]) && trial->lse[r] < 0);
        } else {
            double slack = bounds.lse + 1e-6 * fabs(lse[r]);
            assert_true(fabs((double)trial->lse[r] - lse[r]) <= slack);
        }
        for (size_t d = 0; d < dim; d++) {
            double off = (double)trial->out[r * dim + d] - out[r * dim + d];
            assert_true(fabs(off) <= bounds.out);
            error += off * off;
            power += out[r * dim + d] * out[r * dim + d];
        }
    }
    free(out);
    free(lse);
    return power > 0 ? error / power : error;
}

/* Random cases of one accuracy; returns the mean of their relative squared errors. */
static double masks_check(enum kvarn_accuracy accuracy, uint64_t seed, double *ret_worst)
{
    struct kvt_rng rng = {.state = seed};
    double sum = 0;
    size_t rows = 0;

    *ret_worst = 0;
    for (unsigned i = 0; i < CASES; i++) {
        struct cache cache;
        struct trial trial;
        cache_init(&cache, &rng);
        trial_init(&trial, &rng, &cache, accuracy);
        kvarn_attention_partial_init(&trial.params, trial.partial);
        kvarn_attention_walk(
            &trial.params, trial.q, cache.spans, cache.block_count, trial.partial, trial.scratch);
        kvarn_attention_finish(&trial.params, trial.partial, trial.out, trial.lse);
        double error = exact_check(&trial, &cache);
        sum += error;
        *ret_worst = fmax(*ret_worst, error);
        rows += trial.rows;
        trial_fini(&trial);
        cache_fini(&cache);
    }
    printf("attention, accuracy %d: %d cases, %zu query rows, relMSE mean %.2e worst %.2e\n",
        (int)accuracy, CASES, rows, sum / CASES, *ret_worst);
    return sum / CASES;
}

static void semantics_19_masks_match_the_definition(void **state)
{
    double worst;

    (void)state;
    assert_true(masks_check(KVARN_ACCURACY_EXACT, 8, &worst) <= 1e-10);
}

static void semantics_19_masks_of_fast_match_the_definition(void **state)
{
    double worst;

    (void)state;
    assert_true(masks_check(KVARN_ACCURACY_FAST, 8, &worst) <= FAST_MEAN_MAX);
    assert_true(worst <= FAST_CASE_MAX);
}

/* Walk [0, cut) and [cut, end) apart and merge them into trial->partial. */
static void cut_and_merge(struct trial *trial, const struct cache *cache, uint32_t cut)
{
    kvarn_attention_partial_init(&trial->params, trial->partial);
    kvarn_attention_partial_init(&trial->params, trial->other);
    kvarn_attention_walk(
        &trial->params, trial->q, cache->spans, cut, trial->partial, trial->scratch);
    kvarn_attention_walk(&trial->params, trial->q, cache->spans + cut, cache->block_count - cut,
        trial->other, trial->scratch);
    kvarn_attention_merge(&trial->params, trial->partial, trial->other);
    kvarn_attention_finish(&trial->params, trial->partial, trial->out, trial->lse);
}

static void cuts_merge(enum kvarn_accuracy accuracy)
{
    struct kvt_rng rng = {.state = 9};
    unsigned tried = 0;

    for (unsigned i = 0; i < CASES / 2; i++) {
        struct cache cache;
        struct trial trial;
        cache_init(&cache, &rng);
        trial_init(&trial, &rng, &cache, accuracy);
        uint32_t cut = kvt_rng_below(&rng, cache.block_count + 1);
        size_t out_bytes = trial.rows * cache.spec.v_dim * sizeof(float);
        float *first = kvt_alloc(out_bytes);
        cut_and_merge(&trial, &cache, cut);
        (void)exact_check(&trial, &cache);
        memcpy(first, trial.out, out_bytes);
        cut_and_merge(&trial, &cache, cut); /* the same cut: the same bits */
        assert_memory_equal(trial.out, first, out_bytes);
        tried++;
        free(first);
        trial_fini(&trial);
        cache_fini(&cache);
    }
    printf("attention, accuracy %d: %u cuts merged\n", (int)accuracy, tried);
}

static void cuts_merge_to_the_whole(void **state)
{
    (void)state;
    cuts_merge(KVARN_ACCURACY_EXACT);
    cuts_merge(KVARN_ACCURACY_FAST);
}

/* A row's result does not depend on which other rows are asked for in the same call. */
static void rows_apart(enum kvarn_accuracy accuracy)
{
    struct kvt_rng rng = {.state = 10};
    unsigned tried = 0;

    for (unsigned i = 0; i < CASES / 8; i++) {
        struct cache cache;
        struct trial trial;
        cache_init(&cache, &rng);
        trial_init(&trial, &rng, &cache, accuracy);
        float *out = kvt_alloc(cache.spec.v_dim * sizeof(float)), lse;
        kvarn_attention_partial_init(&trial.params, trial.partial);
        kvarn_attention_walk(
            &trial.params, trial.q, cache.spans, cache.block_count, trial.partial, trial.scratch);
        kvarn_attention_finish(&trial.params, trial.partial, trial.out, trial.lse);
        uint32_t row = kvt_rng_below(&rng, (uint32_t)trial.rows);
        struct kvarn_attention_params alone = trial.params;
        alone.q_heads = alone.q_tokens = 1;
        alone.position += row % trial.params.q_tokens;
        kvarn_attention_partial_init(&alone, trial.other);
        kvarn_attention_walk(&alone, trial.q + (size_t)row * cache.spec.k_dim, cache.spans,
            cache.block_count, trial.other, trial.scratch);
        kvarn_attention_finish(&alone, trial.other, out, &lse);
        assert_memory_equal(
            out, trial.out + (size_t)row * cache.spec.v_dim, cache.spec.v_dim * sizeof(float));
        assert_memory_equal(&lse, &trial.lse[row], sizeof(lse));
        tried++;
        free(out);
        trial_fini(&trial);
        cache_fini(&cache);
    }
    printf("attention, accuracy %d: %u rows alone and in company\n", (int)accuracy, tried);
}

static void rows_do_not_touch_each_other(void **state)
{
    (void)state;
    rows_apart(KVARN_ACCURACY_EXACT);
    rows_apart(KVARN_ACCURACY_FAST);
}

/* The level that KVARN_CPU names; ctest runs all of them. */
#define EXIT_SKIPPED 77

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(semantics_19_masks_match_the_definition),
        cmocka_unit_test(semantics_19_masks_of_fast_match_the_definition),
        cmocka_unit_test(cuts_merge_to_the_whole),
        cmocka_unit_test(rows_do_not_touch_each_other),
    };
    char why[128];
    int err = kvarn_cpu_init(NULL, why, sizeof(why));

    if (err != 0) {
        printf("%s\n", why);
        return err == KVARN_EUNSUPPORTED ? EXIT_SKIPPED : EXIT_FAILURE;
    }
    printf("level %s\n", kvarn_cpu_active());
    return cmocka_run_group_tests(tests, NULL, NULL);
}
