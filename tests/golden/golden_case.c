/*
 * One golden case: decode, attend and encode, each held to the rules in README.md.
 *
 * usage: golden_case DIR HEAD_DIM V_DIM GROUP K_BITS V_BITS RECORD_BYTES HEADS
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvarn/attention.h"
#include "kvarn/codec.h"
#include "lib/format/layout.h"
#include "tests/support/attention_f64.h"
#include "tests/support/npy_read.h"
#include "tests/support/tiles.h"

#define DECODE_TOLERANCE 1e-6
#define OUT_TOLERANCE    1e-4
#define LSE_TOLERANCE    1e-4
#define LSE_RELATIVE     1e-6
#define ROUNDING         (8 * 0x1p-24) /* of a float32 dot product, relative to its terms' sum */
#define CODES_ALWAYS     4
#define CODES_SHARE      1e-5
#define ENCODE_REL_MSE   1e-5
#define ENCODE_LOOSE     1e-4

struct golden {
    const char *dir;
    struct kvarn_tile_spec spec;
    size_t record_bytes;
    uint32_t heads;
    bool is_cancelling; /* logits are small differences of huge terms */
    bool is_degenerate; /* rows without variance: codes are rounding noise */
    int failures;
};

static void check(struct golden *golden, bool ok, const char *what, double value, double limit)
{
    printf("%-4s %-22s %.3g (limit %.3g)\n", ok ? "ok" : "FAIL", what, value, limit);
    golden->failures += !ok;
}

/* A file's values; its count must be what the case says. */
static float *load(const struct golden *golden, const char *name, size_t count)
{
    struct kvt_npy npy;

    if (kvt_npy_read_at(golden->dir, name, &npy) != 0 || npy.count != count) {
        fprintf(stderr, "%s/%s: missing, or not %zu values\n", golden->dir, name, count);
        exit(2);
    }
    float *values = kvt_npy_floats(&npy);
    kvt_npy_fini(&npy);
    return values;
}

static uint8_t *record_load(const struct golden *golden)
{
    char path[4096];
    uint8_t *record = malloc(golden->record_bytes + 1);

    snprintf(path, sizeof(path), "%s/record.bin", golden->dir);
    FILE *file = fopen(path, "rb");
    if (file == NULL || record == NULL ||
        fread(record, 1, golden->record_bytes + 1, file) != golden->record_bytes) {
        fprintf(stderr, "%s: missing, or not %zu bytes\n", path, golden->record_bytes);
        exit(2);
    }
    fclose(file);
    return record;
}

/* fmax() in a sum-like loop is more than gcc 12 for AArch64 can vectorise: it fails. */
static double larger(double a, double b)
{
    return b > a ? b : a;
}

static double abs_max(const float *x, size_t count)
{
    double max = 0;

    for (size_t i = 0; i < count; i++) {
        max = larger(max, fabs((double)x[i]));
    }
    return max;
}

static double difference_max(const float *a, const float *b, size_t count)
{
    double max = 0;

    for (size_t i = 0; i < count; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        max = d <= max ? max : d; /* a NaN becomes the maximum and stays it */
    }
    return max;
}

static void record_check(struct golden *golden, const uint8_t *record, void *ret_tile)
{
    size_t bytes = kvarn_record_bytes(&golden->spec);
    uint8_t *back = malloc(bytes);

    check(golden, bytes == golden->record_bytes, "record bytes", (double)bytes,
        (double)golden->record_bytes);
    int err = kvarn_record_validate(&golden->spec, record, golden->record_bytes);
    check(golden, err == 0, "validate", err, 0);
    kvarn_tile_from_record(&golden->spec, record, ret_tile);
    kvarn_tile_to_record(&golden->spec, ret_tile, back);
    int difference = memcmp(back, record, bytes);
    check(golden, difference == 0, "record -> tile -> record", difference, 0);
    free(back);
}

static void decode_check(struct golden *golden, const void *tile, const float *k, const float *v)
{
    size_t k_count = (size_t)golden->spec.group * golden->spec.k_dim;
    size_t v_count = (size_t)golden->spec.group * golden->spec.v_dim;
    float *mine_k = kvt_alloc(k_count * sizeof(float));
    float *mine_v = kvt_alloc(v_count * sizeof(float));

    kvarn_tile_decode(&golden->spec, tile, mine_k, mine_v);
    double limit = DECODE_TOLERANCE * abs_max(k, k_count);
    double difference = difference_max(mine_k, k, k_count);
    check(golden, difference <= limit, "decode K", difference, limit);
    limit = DECODE_TOLERANCE * abs_max(v, v_count);
    difference = difference_max(mine_v, v, v_count);
    check(golden, difference <= limit, "decode V", difference, limit);
    free(mine_k);
    free(mine_v);
}

/*
 * How far rounding of the logits alone can move an output, relative to its size: the weight of a
 * token moves by as much as its logit, and so does the sum that it is divided by.
 */
static double rounding_share(
    const struct kvarn_attention_params *params, const float *q, const float *k)
{
    const size_t dim = params->spec.k_dim;
    double terms_max = 0;

    for (uint32_t h = 0; h < params->q_heads; h++) {
        for (uint32_t t = 0; t < params->spec.group; t++) {
            double terms = 0;
            for (size_t d = 0; d < dim; d++) {
                terms += fabs((double)q[h * dim + d] * (double)k[t * dim + d]);
            }
            terms_max = larger(terms_max, terms * (double)params->scale);
        }
    }
    return 2 * ROUNDING * terms_max;
}

/* The output, still rotated, against the definition in double precision. */
static void exact_check(struct golden *golden, const struct kvarn_attention_params *params,
    const float *q, const float *k, const float *v, const float *out, double tolerance)
{
    const size_t count = (size_t)params->q_heads * params->spec.v_dim;
    double *want = kvt_alloc(count * sizeof(double));
    double *lse = kvt_alloc(params->q_heads * sizeof(double));
    double difference = 0, size = 0;

    kvt_attention_f64(params, q, k, v, params->spec.group, want, lse);
    for (size_t i = 0; i < count; i++) {
        double d = fabs((double)out[i] - want[i]);
        difference = d <= difference ? difference : d;
        size = larger(size, fabs(want[i]));
    }
    check(golden, difference <= tolerance * size, "attention, exact", difference, tolerance * size);
    free(want);
    free(lse);
}

static void attend_check(struct golden *golden, const void *tile, const float *k, const float *v)
{
    const uint32_t heads = golden->heads, group = golden->spec.group;
    struct kvarn_attention_params params = {.spec = golden->spec,
        .q_heads = heads,
        .q_tokens = 1,
        .last = group,
        .scale = 1.0f / sqrtf((float)golden->spec.k_dim),
        .accuracy = KVARN_ACCURACY_EXACT};
    struct kvarn_attention_span span = {
        .form = KVARN_SPAN_TILE, .token_count = group, .tile = tile};
    size_t out_count = (size_t)heads * golden->spec.v_dim;
    float *q = load(golden, "q.npy", (size_t)heads * golden->spec.k_dim);
    float *want_out = load(golden, "out.npy", out_count);
    float *want_lse = load(golden, "lse.npy", heads);
    float *out = kvt_alloc(out_count * sizeof(float));
    float *lse = kvt_alloc(heads * sizeof(float));
    float *partial = kvt_alloc(kvarn_attention_partial_floats(&params) * sizeof(float));
    float *scratch = kvt_alloc(kvarn_attention_scratch_floats(&params) * sizeof(float));

    kvarn_rotate(q, heads, golden->spec.k_dim);
    kvarn_attention_partial_init(&params, partial);
    kvarn_attention_walk(&params, q, &span, 1, partial, scratch);
    kvarn_attention_finish(&params, partial, out, lse);
    double tolerance = OUT_TOLERANCE;
    if (golden->is_cancelling) {
        tolerance += rounding_share(&params, q, k);
    }
    exact_check(golden, &params, q, k, v, out, tolerance);
    kvarn_rotate(out, heads, golden->spec.v_dim);
    double limit = tolerance * abs_max(want_out, out_count);
    double difference = difference_max(out, want_out, out_count);
    check(golden, difference <= limit, "attention out", difference, limit);
    for (uint32_t h = 0; h < heads; h++) {
        limit = LSE_TOLERANCE + LSE_RELATIVE * fabs((double)want_lse[h]);
        difference = fabs((double)lse[h] - (double)want_lse[h]);
        check(golden, difference <= limit, "attention lse", difference, limit);
    }
    free(q);
    free(want_out);
    free(want_lse);
    free(out);
    free(lse);
    free(partial);
    free(scratch);
}

/* Codes that differ, and the largest difference in levels. */
static void codes_check(struct golden *golden, const char *what,
    const struct kvarn__tile_view *mine, const struct kvarn__tile_view *want)
{
    size_t count = (size_t)mine->rows * mine->cols;
    uint8_t *mine_codes = malloc(count);
    uint8_t *want_codes = malloc(count);
    size_t differ = 0;
    int levels_max = 0;

    kvarn__kernels_get()->unpack(mine->codes, count, mine->bits, mine_codes);
    kvarn__kernels_get()->unpack(want->codes, count, want->bits, want_codes);
    for (size_t i = 0; i < count; i++) {
        int levels = abs((int)mine_codes[i] - (int)want_codes[i]);
        differ += levels != 0;
        levels_max = levels > levels_max ? levels : levels_max;
    }
    double limit = fmax(CODES_ALWAYS, CODES_SHARE * (double)count);
    check(golden, (double)differ <= limit && levels_max <= 1, what, (double)differ, limit);
    free(mine_codes);
    free(want_codes);
}

static void values_check(
    struct golden *golden, const char *what, const float *mine, const float *want, size_t count)
{
    double limit = golden->is_degenerate ? ENCODE_LOOSE : ENCODE_REL_MSE;
    double error = kvt_rel_mse(mine, want, count);

    check(golden, error <= limit, what, error, limit);
}

static void encode_check(
    struct golden *golden, const void *want_tile, const float *want_k, const float *want_v)
{
    const struct kvarn_tile_spec *spec = &golden->spec;
    size_t k_count = (size_t)spec->group * spec->k_dim;
    size_t v_count = (size_t)spec->group * spec->v_dim;
    float *k = load(golden, "input_k.npy", k_count);
    float *v = load(golden, "input_v.npy", v_count);
    struct kvarn__tile_view mine, want;

    kvarn_rotate(k, spec->group, spec->k_dim);
    kvarn_rotate(v, spec->group, spec->v_dim);
    void *tile = kvt_tile_make(spec, KVARN_ENCODER_REFERENCE, k, v);
    if (!golden->is_degenerate) {
        kvarn__tile_k_view(spec, tile, &mine);
        kvarn__tile_k_view(spec, want_tile, &want);
        codes_check(golden, "encode K, codes", &mine, &want);
        kvarn__tile_v_view(spec, tile, &mine);
        kvarn__tile_v_view(spec, want_tile, &want);
        codes_check(golden, "encode V, codes", &mine, &want);
    }
    kvarn_tile_decode(spec, tile, k, v);
    values_check(golden, "encode K, values", k, want_k, k_count);
    values_check(golden, "encode V, values", v, want_v, v_count);
    free(tile);
    free(k);
    free(v);
}

static bool is_degenerate(const char *dir)
{
    static const char *const names[] = {
        "edge_zero", "edge_constant", "edge_same_token", "edge_single_spike"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strstr(dir, names[i]) != NULL) {
            return true;
        }
    }
    return false;
}

int main(int argc, char **argv)
{
    if (argc != 9) {
        fprintf(stderr, "usage: %s DIR HEAD_DIM V_DIM GROUP K_BITS V_BITS RECORD_BYTES HEADS\n",
            argv[0]);
        return 2;
    }
    struct golden golden = {.dir = argv[1],
        .spec = {.k_dim = (uint16_t)atoi(argv[2]),
            .v_dim = (uint16_t)atoi(argv[3]),
            .group = (uint16_t)atoi(argv[4]),
            .k_bits = (uint8_t)atoi(argv[5]),
            .v_bits = (uint8_t)atoi(argv[6])},
        .record_bytes = (size_t)atoi(argv[7]),
        .heads = (uint32_t)atoi(argv[8]),
        .is_cancelling = strstr(argv[1], "edge_single_spike") != NULL,
        .is_degenerate = is_degenerate(argv[1])};
    const struct kvarn_tile_spec *spec = &golden.spec;

    if (kvarn_tile_spec_check(spec) != 0) {
        fprintf(stderr, "the case's dimensions are not allowed\n");
        return 2;
    }
    uint8_t *record = record_load(&golden);
    float *k = load(&golden, "decoded_k.npy", (size_t)spec->group * spec->k_dim);
    float *v = load(&golden, "decoded_v.npy", (size_t)spec->group * spec->v_dim);
    void *tile = kvt_alloc(kvarn_tile_bytes(spec));
    record_check(&golden, record, tile);
    decode_check(&golden, tile, k, v);
    attend_check(&golden, tile, k, v);
    encode_check(&golden, tile, k, v);
    free(record);
    free(k);
    free(v);
    free(tile);
    return golden.failures == 0 ? 0 : 1;
}
