/*
 * Attention's kernels of every level that this machine has, against scalar's: any dimensions, bits,
 * query rows and token counts, at any alignment, each array right before a page that must not be
 * touched; and scales that no encoder of ours writes. Tolerances are those of kernels.def.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "kvarn/codec.h"
#include "lib/kernels/kernels.h"
#include "tests/support/tiles.h"

#define CASES      250
#define GUARDS_MAX 32
#define TOP_LOGIT  20.0f

/* How far each op of each level may be from scalar's. */
struct tolerance {
    enum kvarn__isa isa;
    const char *op;
    double value;
};
static const struct tolerance tolerances[] = {
#define KVARN_KERNEL(isa, op, function, tolerance) {KVARN__ISA_##isa, #op, (tolerance)},
#include "lib/kernels/kernels.def"
#undef KVARN_KERNEL
};

/* The level's own tolerance, or that of the level below which serves. */
static double tolerance_of(enum kvarn__isa isa, const char *op)
{
    double value = 0;

    for (size_t i = 0; i < sizeof(tolerances) / sizeof(tolerances[0]); i++) {
        if (tolerances[i].isa <= isa && strcmp(tolerances[i].op, op) == 0) {
            value = fmax(value, tolerances[i].value);
        }
    }
    return value;
}

/* Memory that ends where a page begins that cannot be touched. */
static struct {
    void *map;
    size_t bytes;
} guards[GUARDS_MAX];
static size_t guard_count;

static void *guarded(size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t whole = (bytes + page - 1) / page * page;

    assert_true(guard_count < GUARDS_MAX);
    uint8_t *map =
        mmap(NULL, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(map, MAP_FAILED);
    assert_int_equal(mprotect(map + whole, page, PROT_NONE), 0);
    guards[guard_count].map = map;
    guards[guard_count++].bytes = whole + page;
    return map + whole - bytes;
}

static void guards_free(void)
{
    while (guard_count > 0) {
        guard_count--;
        assert_int_equal(munmap(guards[guard_count].map, guards[guard_count].bytes), 0);
    }
}

/* What scales look like. */
enum flavour {
    FLAVOUR_PLAIN,    /* as an encoder writes them */
    FLAVOUR_SIGNED,   /* any sign: a stranger's record may have them */
    FLAVOUR_OUTLIER,  /* one is a thousand times the others */
    FLAVOUR_ZERO,     /* all are 0 */
    FLAVOUR_DENORMAL, /* below half's normal range */
    FLAVOURS,
};

static const uint16_t *scales_make(struct kvt_rng *rng, uint32_t count, enum flavour flavour)
{
    uint16_t *halves = guarded(count * sizeof(*halves));
    uint32_t loud = kvt_rng_below(rng, count);

    for (uint32_t i = 0; i < count; i++) {
        float x = 0.2f + (float)kvt_rng_unit(rng);
        if (flavour == FLAVOUR_SIGNED && kvt_rng_below(rng, 2) == 0) {
            x = -x;
        }
        x *= flavour == FLAVOUR_OUTLIER && i == loud ? 1000.0f : 1.0f;
        x *= flavour == FLAVOUR_ZERO ? 0.0f : 1.0f;
        x *= flavour == FLAVOUR_DENORMAL ? 1e-6f : 1.0f;
        kvarn_from_f32(&halves[i], KVARN_F16, &x, 1);
    }
    return halves;
}

static struct kvarn__tile_view view_make(
    struct kvt_rng *rng, uint32_t rows, uint32_t cols, uint32_t bits, enum flavour flavour)
{
    size_t bytes = (size_t)rows * cols * bits / 8;
    uint8_t *codes = guarded(bytes);

    for (size_t i = 0; i < bytes; i++) {
        codes[i] = (uint8_t)kvt_rng_u64(rng);
    }
    return (struct kvarn__tile_view){.codes = codes,
        .scale = scales_make(rng, rows, flavour),
        .zero = scales_make(rng, rows, flavour == FLAVOUR_ZERO ? flavour : FLAVOUR_SIGNED),
        .other = scales_make(rng, cols, flavour == FLAVOUR_SIGNED ? flavour : FLAVOUR_PLAIN),
        .rows = rows,
        .cols = cols,
        .bits = bits,
        .token_count = 0};
}

static float *floats_make(struct kvt_rng *rng, size_t count)
{
    float *x = guarded(count * sizeof(*x));

    for (size_t i = 0; i < count; i++) {
        x[i] = (float)kvt_rng_normal(rng);
    }
    return x;
}

static float *floats_copy(const float *from, size_t count)
{
    float *x = guarded(count * sizeof(*x));

    memcpy(x, from, count * sizeof(*x));
    return x;
}

static double abs_max(const float *x, size_t count)
{
    double max = 0;

    for (size_t i = 0; i < count; i++) {
        max = fmax(max, fabs((double)x[i]));
    }
    return max;
}

/* The largest difference of attend_tile over the largest magnitude; printed at the end. */
static double worst;

static void floats_check(const float *got, const float *want, size_t count, double tolerance)
{
    double limit = tolerance * abs_max(want, count) + 1e-30;

    for (size_t i = 0; i < count; i++) {
        assert_true(isfinite(got[i]));
        assert_true(fabs((double)got[i] - (double)want[i]) <= limit);
    }
}

/* One random shape. */
struct shape {
    uint32_t k_dim, v_dim, group, k_bits, v_bits, rows;
    enum flavour flavour;
};

static struct shape shape_draw(struct kvt_rng *rng)
{
    static const uint32_t dims[] = {8, 16, 24, 40, 64, 72, 80, 96, 128, 192, 256, 512};
    const uint32_t count = sizeof(dims) / sizeof(dims[0]);

    return (struct shape){.k_dim = dims[kvt_rng_below(rng, count)],
        .v_dim = dims[kvt_rng_below(rng, count)],
        .group = kvt_rng_below(rng, 2) == 0 ? 64 : 128,
        .k_bits = kvt_rng_below(rng, 2) == 0 ? 2 : 4,
        .v_bits = kvt_rng_below(rng, 2) == 0 ? 2 : 4,
        .rows = 1 + kvt_rng_below(rng, KVARN__QUERY_ROWS_MAX),
        .flavour = (enum flavour)kvt_rng_below(rng, FLAVOURS)};
}

static void exact_tile_check(enum kvarn__isa isa, struct kvt_rng *rng, const struct shape *shape)
{
    const struct kvarn__kernels *scalar = kvarn__kernels_of(KVARN__ISA_scalar);
    const struct kvarn__kernels *kernels = kvarn__kernels_of(isa);
    struct kvarn__tile_view k =
        view_make(rng, shape->k_dim, shape->group, shape->k_bits, shape->flavour);
    struct kvarn__tile_view v =
        view_make(rng, shape->group, shape->v_dim, shape->v_bits, shape->flavour);
    uint32_t tokens = 1 + kvt_rng_below(rng, shape->group);
    size_t logits = (size_t)shape->rows * tokens, sums = (size_t)shape->rows * shape->v_dim;

    k.token_count = v.token_count = tokens;
    float *q = floats_make(rng, (size_t)shape->rows * shape->k_dim);
    float *want = floats_make(rng, logits), *got = floats_make(rng, logits);
    scalar->qk_tile(&k, q, shape->rows, want);
    kernels->qk_tile(&k, q, shape->rows, got);
    floats_check(got, want, logits, tolerance_of(isa, "qk_tile"));
    float *p = floats_make(rng, logits), *acc = floats_make(rng, sums);
    float *other = floats_copy(acc, sums);
    scalar->av_tile(&v, p, shape->rows, acc);
    kernels->av_tile(&v, p, shape->rows, other);
    floats_check(other, acc, sums, tolerance_of(isa, "av_tile"));
}

static uint16_t *halves_make(struct kvt_rng *rng, size_t count)
{
    uint16_t *halves = guarded(count * sizeof(*halves));

    for (size_t i = 0; i < count; i++) {
        float x = (float)kvt_rng_normal(rng);
        kvarn_from_f32(&halves[i], KVARN_F16, &x, 1);
    }
    return halves;
}

static void exact_half_check(enum kvarn__isa isa, struct kvt_rng *rng, const struct shape *shape)
{
    const struct kvarn__kernels *scalar = kvarn__kernels_of(KVARN__ISA_scalar);
    const struct kvarn__kernels *kernels = kvarn__kernels_of(isa);
    uint32_t tokens = 1 + kvt_rng_below(rng, shape->group);
    size_t logits = (size_t)shape->rows * tokens, sums = (size_t)shape->rows * shape->v_dim;
    struct kvarn__rows_view k = {
        halves_make(rng, (size_t)tokens * shape->k_dim), shape->k_dim, tokens};
    struct kvarn__rows_view v = {
        halves_make(rng, (size_t)tokens * shape->v_dim), shape->v_dim, tokens};

    float *q = floats_make(rng, (size_t)shape->rows * shape->k_dim);
    float *want = floats_make(rng, logits), *got = floats_make(rng, logits);
    scalar->qk_half(&k, q, shape->rows, want);
    kernels->qk_half(&k, q, shape->rows, got);
    floats_check(got, want, logits, tolerance_of(isa, "qk_half"));
    float *p = floats_make(rng, logits), *acc = floats_make(rng, sums);
    float *other = floats_copy(acc, sums);
    scalar->av_half(&v, p, shape->rows, acc);
    kernels->av_half(&v, p, shape->rows, other);
    floats_check(other, acc, sums, tolerance_of(isa, "av_half"));
}

static void softmax_check(enum kvarn__isa isa, struct kvt_rng *rng, float spread)
{
    const struct kvarn__kernels *scalar = kvarn__kernels_of(KVARN__ISA_scalar);
    const struct kvarn__kernels *kernels = kvarn__kernels_of(isa);
    const float cap = kvt_rng_below(rng, 2) == 0 ? 0 : 0.5f + (float)kvt_rng_below(rng, 60);
    uint32_t count = 1 + kvt_rng_below(rng, 300);
    float *want = floats_make(rng, count), *got = floats_copy(want, count), want_max, got_max;
    double want_sum = 3, got_sum = 3, tolerance = tolerance_of(isa, "softmax_logits");

    scalar->softmax_logits(want, count, spread, cap, &want_max);
    kernels->softmax_logits(got, count, spread, cap, &got_max);
    floats_check(got, want, count, tolerance);
    floats_check(&got_max, &want_max, 1, fmax(tolerance, 1e-6));
    memcpy(got, want, count * sizeof(*got)); /* logits are large: errors would grow */
    scalar->softmax_weights(want, count, want_max, &want_sum);
    kernels->softmax_weights(got, count, want_max, &got_sum);
    floats_check(got, want, count, tolerance_of(isa, "softmax_weights"));
    assert_true(fabs(got_sum - want_sum) <= 1e-6 * want_sum);
}

/* State of fast rows, and what two levels made of it. */
struct gathered {
    float max[KVARN__QUERY_ROWS_MAX];
    double sum[KVARN__QUERY_ROWS_MAX];
    float *acc;
};

static void gathered_check(const struct gathered *got, const struct gathered *want, uint32_t rows,
    size_t acc_count, double tolerance)
{
    for (uint32_t r = 0; r < rows; r++) {
        assert_true(isinf(want->max[r]) ? got->max[r] == want->max[r]
                                        : fabsf(got->max[r] - want->max[r]) <= 1e-3f);
        assert_true(fabs(got->sum[r] - want->sum[r]) <= 1e-3 * want->sum[r]);
    }
    floats_check(got->acc, want->acc, rows * acc_count, tolerance);
    double scale = abs_max(want->acc, rows * acc_count);
    for (size_t i = 0; i < rows * acc_count && scale > 0; i++) {
        worst = fmax(worst, fabs((double)(got->acc[i] - want->acc[i])) / scale);
    }
}

static void fast_tile_check(enum kvarn__isa isa, struct kvt_rng *rng, const struct shape *shape)
{
    const struct kvarn__kernels *scalar = kvarn__kernels_of(KVARN__ISA_scalar);
    struct kvarn__tile_view k =
        view_make(rng, shape->k_dim, shape->group, shape->k_bits, shape->flavour);
    struct kvarn__tile_view v =
        view_make(rng, shape->group, shape->v_dim, shape->v_bits, shape->flavour);
    const size_t logits = (size_t)shape->rows * shape->group;
    const size_t acc_count = kvarn__packed_floats(shape->v_dim, shape->v_bits);
    struct kvarn__seen seen[KVARN__QUERY_ROWS_MAX];
    struct gathered want = {.acc = guarded(shape->rows * acc_count * sizeof(float))}, got;
    float *q = floats_make(rng, (size_t)shape->rows * shape->k_dim);
    float *dots = floats_make(rng, logits);

    k.token_count = v.token_count = shape->group;
    scalar->qk_tile(&k, q, shape->rows, dots);
    for (uint32_t r = 0; r < shape->rows; r++) {
        want.max[r] = -INFINITY;
        want.sum[r] = 0;
        seen[r].low = kvt_rng_below(rng, 3) == 0 ? kvt_rng_below(rng, shape->group) : 0;
        seen[r].high = kvt_rng_below(rng, 3) == 0
                           ? seen[r].low + kvt_rng_below(rng, shape->group - seen[r].low)
                           : shape->group;
    }
    got = want;
    got.acc = floats_copy(want.acc, shape->rows * acc_count);
    struct kvarn__fast_rows rows = {.q = q,
        .seen = seen,
        .rows = shape->rows,
        .scale = TOP_LOGIT / (float)fmax(abs_max(dots, logits), 1e-20),
        .softcap = kvt_rng_below(rng, 3) == 0 ? TOP_LOGIT : 0,
        .max = want.max,
        .sum = want.sum,
        .acc = want.acc};
    for (int tile = 0; tile < 2; tile++) { /* the second one meets a maximum */
        scalar->attend_tile(&k, &v, &rows);
    }
    rows.max = got.max;
    rows.sum = got.sum;
    rows.acc = got.acc;
    for (int tile = 0; tile < 2; tile++) {
        kvarn__kernels_of(isa)->attend_tile(&k, &v, &rows);
    }
    gathered_check(&got, &want, shape->rows, acc_count, tolerance_of(isa, "attend_tile"));
}

static void every_level_agrees_with_scalar(void **state)
{
    unsigned levels = 0;

    (void)state;
    for (int isa = KVARN__ISA_scalar + 1; isa < KVARN__ISA_COUNT; isa++) {
        struct kvt_rng rng = {.state = 11};
        if (kvarn__kernels_of((enum kvarn__isa)isa) == NULL) {
            continue;
        }
        worst = 0;
        for (unsigned i = 0; i < CASES; i++) {
            struct shape shape = shape_draw(&rng);
            exact_tile_check((enum kvarn__isa)isa, &rng, &shape);
            guards_free();
            exact_half_check((enum kvarn__isa)isa, &rng, &shape);
            guards_free();
            softmax_check((enum kvarn__isa)isa, &rng, i % 2 == 0 ? 1.0f : 40.0f);
            guards_free();
            fast_tile_check((enum kvarn__isa)isa, &rng, &shape);
            guards_free();
        }
        levels++;
        printf("%s: %d shapes; attend_tile off by %.1e at most\n",
            kvarn__kernels_of((enum kvarn__isa)isa)->isa, CASES, worst);
    }
    printf("%u levels beside scalar\n", levels);
}

/* Rows whose maximum, sums and outputs are known: nothing seen, and one token alone. */
static void fast_rows_see_what_they_may(void **state)
{
    struct kvt_rng rng = {.state = 12};

    (void)state;
    for (int isa = KVARN__ISA_scalar; isa < KVARN__ISA_COUNT; isa++) {
        const struct kvarn__kernels *kernels = kvarn__kernels_of((enum kvarn__isa)isa);
        if (kernels == NULL) {
            continue;
        }
        struct kvarn__tile_view k = view_make(&rng, 64, 128, 2, FLAVOUR_PLAIN);
        struct kvarn__tile_view v = view_make(&rng, 128, 64, 2, FLAVOUR_PLAIN);
        struct kvarn__seen seen[2] = {{5, 5}, {77, 78}};
        float max[2] = {-INFINITY, -INFINITY}, acc[2 * 64] = {0}, codes_scale, zero, channel;
        double sum[2] = {0};
        uint8_t codes[64];
        float *q = floats_make(&rng, 128);
        struct kvarn__fast_rows rows = {
            .q = q, .seen = seen, .rows = 2, .scale = 0.1f, .max = max, .sum = sum, .acc = acc};
        kernels->attend_tile(&k, &v, &rows);
        assert_true(isinf(max[0]) && sum[0] == 0 && abs_max(acc, 64) == 0);
        assert_true(fabs(sum[1] - 1) < 1e-5);
        kernels->unpack(v.codes + 77 * 16, 64, 2, codes);
        kvarn_to_f32(&codes_scale, v.scale + 77, KVARN_F16, 1);
        kvarn_to_f32(&zero, v.zero + 77, KVARN_F16, 1);
        for (uint32_t c = 0; c < 64; c++) {
            kvarn_to_f32(&channel, v.other + c, KVARN_F16, 1);
            float want = ((float)codes[c] * codes_scale + zero) * channel;
            assert_true(fabsf(acc[64 + kvarn__packed_idx(c, 2)] - want) < 1e-4f);
        }
        guards_free();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_level_agrees_with_scalar),
        cmocka_unit_test(fast_rows_see_what_they_may),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
