/*
 * One golden case of encoder `aware`, at every level that this machine has: README.md has the
 * rules.
 *
 * usage: golden_aware CASE_DIR AWARE_DIR HEAD_DIM V_DIM GROUP RECORD_BYTES
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvarn/codec.h"
#include "kvarn/cpu.h"
#include "lib/codec/plane.h"
#include "lib/format/layout.h"
#include "tests/support/npy_read.h"
#include "tests/support/tiles.h"

#define QUERIES      64
#define TOKENS_SHARE 0.02 /* of tokens in which a code may fall the other way */
#define ERROR_SHARE  0.02 /* by which an encoder's logit error may differ from the golden one */

struct golden {
    struct kvarn_tile_spec spec;
    float *k, *v, *q; /* owned, rotated */
    float *factor;    /* owned */
    void *tile;       /* owned: the golden record's */
    int failures;
};

static void check(struct golden *golden, bool ok, const char *what, double value, double limit)
{
    printf("%-4s %-8s %-22s %.4g (limit %.4g)\n", ok ? "ok" : "FAIL", kvarn_cpu_active(), what,
        value, limit);
    golden->failures += !ok;
}

static float *load(const char *dir, const char *name, size_t rows, uint32_t dim)
{
    struct kvt_npy npy;

    if (kvt_npy_read_at(dir, name, &npy) != 0 || npy.count != rows * dim) {
        fprintf(stderr, "%s/%s: missing, or not %zu values\n", dir, name, rows * dim);
        exit(2);
    }
    float *values = kvt_npy_floats(&npy);
    kvt_npy_fini(&npy);
    kvarn_rotate(values, rows, dim);
    return values;
}

/* The golden record as a tile. */
static void *tile_load(const struct golden *golden, const char *dir, size_t bytes)
{
    char path[4096];
    uint8_t *record = kvt_alloc(bytes + 1);
    void *tile = kvt_alloc(kvarn_tile_bytes(&golden->spec));

    (void)snprintf(path, sizeof(path), "%s/record.bin", dir);
    FILE *file = fopen(path, "rb");
    if (file == NULL || fread(record, 1, bytes + 1, file) != bytes ||
        kvarn_record_bytes(&golden->spec) != bytes ||
        kvarn_record_validate(&golden->spec, record, bytes) != 0) {
        fprintf(stderr, "%s: missing, or not a record of %zu bytes\n", path, bytes);
        exit(2);
    }
    fclose(file);
    kvarn_tile_from_record(&golden->spec, record, tile);
    free(record);
    return tile;
}

static float *factor_make(const float *q, uint32_t dim)
{
    size_t bytes = (size_t)dim * dim * sizeof(float);
    float *a = kvt_alloc(bytes), *factor = kvt_alloc(bytes);
    void *scratch = kvt_alloc(kvarn_metric_factor_scratch_bytes(dim));

    kvarn_metric_add(a, q, QUERIES, dim);
    if (kvarn_metric_factor(a, QUERIES, dim, factor, scratch) != 0) {
        fprintf(stderr, "the queries have no metric\n");
        exit(2);
    }
    free(a);
    free(scratch);
    return factor;
}

/* Tokens in which two views of K have a code that differs. */
static size_t tokens_differ(const struct kvarn__tile_view *a, const struct kvarn__tile_view *b)
{
    size_t count = (size_t)a->rows * a->cols, differ = 0;
    uint8_t *mine = kvt_alloc(count), *want = kvt_alloc(count);

    kvarn__kernels_get()->unpack(a->codes, count, 2, mine);
    kvarn__kernels_get()->unpack(b->codes, count, 2, want);
    for (uint32_t g = 0; g < a->cols; g++) {
        bool same = true;
        for (size_t d = 0; d < a->rows; d++) {
            same &= mine[d * a->cols + g] == want[d * a->cols + g];
        }
        differ += !same;
    }
    free(mine);
    free(want);
    return differ;
}

/* Rule 1: K rounded by the golden scales gives the golden codes. */
static void round_check(struct golden *golden)
{
    const uint32_t dim = golden->spec.k_dim, group = golden->spec.group;
    void *tile = kvt_alloc(kvarn_tile_bytes(&golden->spec));
    float *channels = kvt_alloc((size_t)dim * group * sizeof(float));
    float *floats = kvt_alloc(kvarn__work_floats(dim, group) * sizeof(float));
    struct kvarn__tile_view mine, want;
    struct kvarn__layout at;
    struct kvarn__work work;

    memcpy(tile, golden->tile, kvarn_tile_bytes(&golden->spec));
    kvarn__layout_init(&at, &golden->spec);
    kvarn__tile_k_view(&golden->spec, tile, &mine);
    kvarn__tile_k_view(&golden->spec, golden->tile, &want);
    uint8_t *codes = (uint8_t *)tile + at.k_codes;
    memset(codes, 0, (size_t)dim * group / 4);
    kvarn__kernels_get()->transpose(golden->k, group, dim, channels);
    struct kvarn__plane plane = {.values = channels,
        .rows = dim,
        .cols = group,
        .bits = 2,
        .codes = codes,
        .scale = (void *)((uint8_t *)tile + at.k_scale),
        .zero = (void *)((uint8_t *)tile + at.k_zero),
        .other = (void *)((uint8_t *)tile + at.k_token)};
    kvarn__work_init(&work, dim, group, floats);
    kvarn__plane_round_aware(&plane, golden->factor, &work);
    double limit = fmax(2, TOKENS_SHARE * group), differ = (double)tokens_differ(&mine, &want);
    check(golden, differ <= limit, "tokens that differ", differ, limit);
    free(tile);
    free(channels);
    free(floats);
}

/* Sum of (q.e)^2 over queries and tokens, e the error of K. */
static double logit_error(const struct golden *golden, const void *tile)
{
    const size_t dim = golden->spec.k_dim, group = golden->spec.group;
    float *back = kvt_alloc(dim * group * sizeof(float));
    double sum = 0;

    kvarn_tile_decode(&golden->spec, tile, back, NULL);
    for (size_t i = 0; i < QUERIES * group; i++) {
        const float *q = golden->q + i / group * dim;
        double dot = 0;
        for (size_t d = 0; d < dim; d++) {
            size_t g = i % group * dim + d;
            dot += (double)q[d] * ((double)back[g] - (double)golden->k[g]);
        }
        sum += dot * dot;
    }
    free(back);
    return sum;
}

/* Rule 2: the whole encoder comes to the golden record's error of logits. */
static void encode_check(struct golden *golden)
{
    void *tile = kvt_tile_make_aware(&golden->spec, golden->factor, golden->k, golden->v);
    void *refined = kvt_tile_make(&golden->spec, KVARN_ENCODER_REFINED, golden->k, golden->v);
    double want = logit_error(golden, golden->tile), got = logit_error(golden, tile);

    check(golden, fabs(got / want - 1) <= ERROR_SHARE, "logit error, golden 1", got / want,
        1 + ERROR_SHARE);
    double share = got / logit_error(golden, refined);
    check(golden, share < 1, "logit error, refined 1", share, 1);
    free(tile);
    free(refined);
}

int main(int argc, char **argv)
{
    static const char *const levels[] = {"scalar", "avx2", "avx512", "neon"};

    if (argc != 7) {
        fprintf(
            stderr, "usage: %s CASE_DIR AWARE_DIR HEAD_DIM V_DIM GROUP RECORD_BYTES\n", argv[0]);
        return 2;
    }
    struct golden golden = {.spec = {.k_dim = (uint16_t)atoi(argv[3]),
                                .v_dim = (uint16_t)atoi(argv[4]),
                                .group = (uint16_t)atoi(argv[5]),
                                .k_bits = 2,
                                .v_bits = 2}};
    if (kvarn_tile_spec_check(&golden.spec) != 0) {
        fprintf(stderr, "the case's dimensions are not allowed\n");
        return 2;
    }
    golden.k = load(argv[1], "input_k.npy", golden.spec.group, golden.spec.k_dim);
    golden.v = load(argv[1], "input_v.npy", golden.spec.group, golden.spec.v_dim);
    golden.q = load(argv[2], "q.npy", QUERIES, golden.spec.k_dim);
    golden.tile = tile_load(&golden, argv[2], (size_t)atoi(argv[6]));
    for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++) {
        if (kvarn_cpu_has(levels[i]) && kvarn_cpu_init(levels[i], NULL, 0) == 0) {
            golden.factor = factor_make(golden.q, golden.spec.k_dim);
            round_check(&golden);
            encode_check(&golden);
            free(golden.factor);
        }
    }
    free(golden.k);
    free(golden.v);
    free(golden.q);
    free(golden.tile);
    return golden.failures == 0 ? 0 : 1;
}
