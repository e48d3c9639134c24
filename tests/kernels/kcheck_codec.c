/* kcheck's subjects of the codec. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kvarn/codec.h"
#include "lib/base/assert.h"
#include "lib/codec/plane.h"
#include "tests/kernels/kcheck.h"

static void *at(const struct kck_buffer *buffer)
{
    return buffer->at;
}

/* Slots. */
enum { SRC = 0, CODES, SCALE, ZERO, OTHER, FACTOR, METRIC };

/* Numbers in a row. */

static void line_f32_prepare(struct kck *k)
{
    kck_fill(k, kck_in(k, SRC, k->shape.count, sizeof(float)), k->shape.count, 0);
    kck_out(k, 0, k->shape.count, sizeof(uint16_t));
}

static void line_u16_prepare(struct kck *k)
{
    uint16_t *src = kck_in(k, SRC, k->shape.count, sizeof(uint16_t));

    kck_fill_half(k, src, k->shape.count, 0);
    kck_out(k, 0, k->shape.count, sizeof(float));
}

static void half_from_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    kernels->half_from_f32(at(&k->out[side][0]), at(&k->in[SRC]), k->shape.count);
}

static void half_to_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    kernels->half_to_f32(at(&k->out[side][0]), at(&k->in[SRC]), k->shape.count);
}

static void bf16_from_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    kernels->bf16_from_f32(at(&k->out[side][0]), at(&k->in[SRC]), k->shape.count);
}

static void bf16_to_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    kernels->bf16_to_f32(at(&k->out[side][0]), at(&k->in[SRC]), k->shape.count);
}

static void abs_max_prepare(struct kck *k)
{
    kck_fill(k, kck_in(k, SRC, k->shape.count, sizeof(float)), k->shape.count, 0);
    kck_out(k, 0, 1, sizeof(float));
}

static void abs_max_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    kernels->abs_max(at(&k->in[SRC]), k->shape.count, at(&k->out[side][0]));
}

static bool floats_agree(struct kck *k)
{
    return kck_floats_agree(k, 0);
}

static bool halves_agree(struct kck *k)
{
    return kck_halves_agree(k, 0);
}

static bool bytes_agree(struct kck *k)
{
    return kck_bytes_agree(k, 0);
}

static void pack_prepare(struct kck *k)
{
    uint8_t *codes = kck_in(k, CODES, k->shape.count, 1);

    for (size_t i = 0; i < k->shape.count; i++) {
        codes[i] = (uint8_t)kvt_rng_below(&k->rng, 1u << k->shape.bits);
    }
    kck_out(k, 0, k->shape.count * k->shape.bits / 8, 1);
}

static void pack_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    kernels->pack(at(&k->in[CODES]), k->shape.count, k->shape.bits, at(&k->out[side][0]));
}

static void bytes_fill(struct kck *k, uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        bytes[i] = (uint8_t)kvt_rng_u64(&k->rng);
    }
}

static void unpack_prepare(struct kck *k)
{
    size_t bytes = k->shape.count * k->shape.bits / 8;

    bytes_fill(k, kck_in(k, CODES, bytes, 1), bytes);
    kck_out(k, 0, k->shape.count, 1);
}

static void unpack_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    kernels->unpack(at(&k->in[CODES]), k->shape.count, k->shape.bits, at(&k->out[side][0]));
}

/* Vectors and planes. */

static void vectors_prepare(struct kck *k)
{
    size_t count = (size_t)k->shape.rows * k->shape.cols;

    /* Sums of 512 of the largest must stay finite: what overflows depends on the order. */
    kck_fill(k, kck_in(k, SRC, count, sizeof(float)), count, 1e35f);
    kck_out(k, 0, count, sizeof(float));
}

static void fwht_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    memcpy(k->out[side][0].at, k->in[SRC].at, k->in[SRC].bytes);
    kernels->fwht(at(&k->out[side][0]), k->shape.rows, k->shape.cols);
}

static void transpose_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    kernels->transpose(at(&k->in[SRC]), k->shape.rows, k->shape.cols, at(&k->out[side][0]));
}

/* Work space is not guarded: it is the codec's own. One a process. */
static float *work_floats(void)
{
    static float *floats;

    if (floats == NULL) {
        floats = aligned_alloc(64, kvarn__work_floats(KVARN__ROW_MAX, KVARN__ROW_MAX) * 4);
    }
    return floats;
}

static void plane_init(struct kck *k, int side, struct kvarn__plane *plane)
{
    *plane = (struct kvarn__plane){.values = at(&k->in[SRC]),
        .rows = k->shape.rows,
        .cols = k->shape.cols,
        .bits = k->shape.bits,
        .codes = at(&k->out[side][0]),
        .scale = at(&k->out[side][1]),
        .zero = at(&k->out[side][2]),
        .other = at(&k->out[side][3])};
}

/* Planes are finite and in range: a NaN is left to see that nothing breaks. */
static void plane_prepare(struct kck *k)
{
    size_t count = (size_t)k->shape.rows * k->shape.cols;

    kck_fill(k, kck_in(k, SRC, count, sizeof(float)), count, KVARN_ROTATED_ABS_MAX);
    kck_out(k, 0, count * k->shape.bits / 8, 1);
    kck_out(k, 1, k->shape.rows, sizeof(uint16_t));
    kck_out(k, 2, k->shape.rows, sizeof(uint16_t));
    kck_out(k, 3, k->shape.cols, sizeof(uint16_t));
}

static void factors_prepare(struct kck *k)
{
    size_t count = (size_t)k->shape.rows * k->shape.cols;

    kck_fill(k, kck_in(k, SRC, count, sizeof(float)), count, KVARN_ROTATED_ABS_MAX);
    kck_out(k, 0, k->shape.cols, sizeof(float));
    kck_out(k, 1, k->shape.rows, sizeof(float));
}

static void factors_take(struct kck *k, int side, const struct kvarn__work *work)
{
    memcpy(k->out[side][0].at, work->col, k->shape.cols * sizeof(float));
    memcpy(k->out[side][1].at, work->row, k->shape.rows * sizeof(float));
}

static void normalise_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    struct kvarn__plane plane;
    struct kvarn__work work;

    plane_init(k, side, &plane);
    kvarn__work_init(&work, k->shape.rows, k->shape.cols, work_floats());
    kernels->normalise(&plane, &work);
    factors_take(k, side, &work);
}

static void balance_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    struct kvarn__plane plane;
    struct kvarn__work work;

    plane_init(k, side, &plane);
    kvarn__work_init(&work, k->shape.rows, k->shape.cols, work_floats());
    kernels->balance(&plane, &work);
    factors_take(k, side, &work);
}

static bool factors_agree(struct kck *k)
{
    return k->shape.kind == KCK_NAN || (kck_floats_agree(k, 0) && kck_floats_agree(k, 1));
}

/* Largest by least deviation of the rows (or columns) of the plane divided by side's factors. */
static double spread(struct kck *k, int side, bool of_columns)
{
    const float *x = at(&k->in[SRC]), *col = at(&k->out[side][0]), *row = at(&k->out[side][1]);
    const uint32_t rows = k->shape.rows, cols = k->shape.cols;
    const uint32_t lines = of_columns ? cols : rows, count = of_columns ? rows : cols;
    double low = INFINITY, high = 0;

    for (uint32_t line = 0; line < lines; line++) {
        double sum = 0, square = 0;
        for (uint32_t i = 0; i < 2 * count; i++) {
            uint32_t r = of_columns ? i % count : line, c = of_columns ? line : i % count;
            double b = (double)x[(size_t)r * cols + c] / (double)col[c] / (double)row[r];
            sum += i < count ? b : 0;
            square += i < count ? 0 : (b - sum / count) * (b - sum / count);
        }
        double std = sqrt(square / (count - 1));
        low = fmin(low, std);
        high = fmax(high, std);
    }
    return high / fmax(low, 1e-8);
}

/* Least and largest of got / want. Compared, since gcc 12 fails on fmin and fmax here (AArch64). */
static void ratios_find(const struct kck *k, int slot, uint32_t count, double *low, double *high)
{
    const float *want = at(&k->out[0][slot]), *got = at(&k->out[1][slot]);

    *low = INFINITY;
    *high = 0;
    for (uint32_t i = 0; i < count; i++) {
        double ratio = (double)got[i] / (double)want[i];
        *low = ratio < *low ? ratio : *low;
        *high = ratio > *high ? ratio : *high;
    }
}

/* Whether factors divide a plane alike: what moves from all columns to all rows changes nothing. */
static bool products_agree(const struct kck *k)
{
    double col_low, col_high, row_low, row_high;

    ratios_find(k, 0, k->shape.cols, &col_low, &col_high);
    ratios_find(k, 1, k->shape.rows, &row_low, &row_high);
    return col_low * row_low >= 1 - k->tolerance && col_high * row_high <= 1 + k->tolerance;
}

#define SPREAD_LOST                                                               \
    10.0 /* columns without variance: which state is best is a matter of rounding \
          */

/*
 * Planes that are like a model's come to the same factors. In others several states may be equally
 * good, and what counts is that the one chosen is no worse.
 */
static bool normalise_agree(struct kck *k)
{
    if (k->shape.kind == KCK_NORMAL || k->shape.kind == KCK_NAN || products_agree(k)) {
        return k->shape.kind == KCK_NAN || products_agree(k);
    }
    double want = spread(k, 0, true) + spread(k, 0, false);
    double got = spread(k, 1, true) + spread(k, 1, false);
    return got <= (want > SPREAD_LOST ? 2 * want : want * (1 + 1e-3) + 1e-3);
}

/* The factors are scalar's for both sides: what is checked is the rounding. */
static void round_prepare(struct kck *k)
{
    struct kvarn__plane plane;
    struct kvarn__work work;

    plane_prepare(k);
    plane_init(k, 0, &plane);
    kvarn__work_init(&work, k->shape.rows, k->shape.cols, work_floats());
    kvarn__kernels_of(KVARN__ISA_scalar)->normalise(&plane, &work);
    memcpy(kck_in(k, SCALE, k->shape.rows, sizeof(float)), work.row, k->shape.rows * sizeof(float));
    memcpy(kck_in(k, OTHER, k->shape.cols, sizeof(float)), work.col, k->shape.cols * sizeof(float));
}

static void round_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    struct kvarn__plane plane;
    struct kvarn__work work;

    plane_init(k, side, &plane);
    kvarn__work_init(&work, k->shape.rows, k->shape.cols, work_floats());
    memcpy(work.row, k->in[SCALE].at, k->in[SCALE].bytes);
    memcpy(work.col, k->in[OTHER].at, k->in[OTHER].bytes);
    kernels->round_plane(plane.values, &plane, &work);
}

static void refine_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    struct kvarn__plane plane;
    struct kvarn__work work;

    plane_init(k, side, &plane);
    plane.bits = 2;
    kvarn__work_init(&work, k->shape.rows, k->shape.cols, work_floats());
    kernels->balance(&plane, &work);
    kernels->refine_plane(&plane, &work);
}

/* What a side's output decodes to, and how far it is from the input. */
static float plane_back[KVARN__ROW_MAX * KVARN__ROW_MAX];

static void plane_errors(struct kck *k, int side, uint32_t bits, float *errors)
{
    struct kvarn__tile_view view = {.codes = at(&k->out[side][0]),
        .scale = at(&k->out[side][1]),
        .zero = at(&k->out[side][2]),
        .other = at(&k->out[side][3]),
        .rows = k->shape.rows,
        .cols = k->shape.cols,
        .bits = bits};
    const float *x = at(&k->in[SRC]);

    kvarn__kernels_of(KVARN__ISA_scalar)->decode_rows(&view, errors);
    for (size_t i = 0; i < (size_t)k->shape.rows * k->shape.cols; i++) {
        errors[i] -= x[i];
    }
}

/* Squared error of what side's output decodes to, and the squares of the input. */
static double plane_error(struct kck *k, int side, uint32_t bits, double *ret_power)
{
    const float *x = at(&k->in[SRC]);
    double error = 0;

    plane_errors(k, side, bits, plane_back);
    *ret_power = 0;
    for (size_t i = 0; i < (size_t)k->shape.rows * k->shape.cols; i++) {
        double d = (double)plane_back[i];
        error += d * d;
        *ret_power += (double)x[i] * (double)x[i];
    }
    return error;
}

/*
 * Encoders are held to their error (SEMANTICS 22), within 1 %. What rounding alone makes of a plane
 * without variance is no more than a millionth of it. Where the error is larger than the plane
 * (rows of 8 values of one magnitude: no model has such), factors hang on how sums round: a half.
 */
static bool errors_agree(struct kck *k, uint32_t bits)
{
    double power;
    double want = plane_error(k, 0, bits, &power), got = plane_error(k, 1, bits, &power);

    if (k->shape.kind == KCK_NAN || (isnan(want) && isnan(got))) {
        return true;
    }
    double share = want > power ? 0.5 : 0.01;
    return want == got || fabs(got - want) <= share * want + 1e-6 * power;
}

static bool refine_agree(struct kck *k)
{
    return errors_agree(k, 2);
}

/* Where rows have variance, codes too: at most 4 or the tolerated share differ, by one level. */
static bool round_agree(struct kck *k)
{
    static uint8_t want[KVARN__ROW_MAX * KVARN__ROW_MAX], got[KVARN__ROW_MAX * KVARN__ROW_MAX];
    const struct kvarn__kernels *scalar = kvarn__kernels_of(KVARN__ISA_scalar);
    size_t count = (size_t)k->shape.rows * k->shape.cols, differ = 0;

    if (!errors_agree(k, k->shape.bits)) {
        return false;
    }
    if (k->shape.kind != KCK_NORMAL) {
        return true;
    }
    scalar->unpack(at(&k->out[0][0]), count, k->shape.bits, want);
    scalar->unpack(at(&k->out[1][0]), count, k->shape.bits, got);
    for (size_t i = 0; i < count; i++) {
        differ += want[i] != got[i];
        if (abs((int)want[i] - (int)got[i]) > 1) {
            return false;
        }
    }
    return (double)differ <= fmax(4.0, k->tolerance * (double)count);
}

/* Query metrics. */

#define METRIC_QUERIES 24

/*
 * Queries some of whose channels are loud, as a model's are, their metric and its factor: the same
 * for all cases of a dim, since a factor takes longer than what it is tried on.
 */
struct metric {
    uint32_t dim;
    float q[METRIC_QUERIES * KVARN__ROW_MAX];
    float a[KVARN__ROW_MAX * KVARN__ROW_MAX];
    float factor[KVARN__ROW_MAX * KVARN__ROW_MAX];
};

static const struct metric *metric_of(uint32_t dim)
{
    static struct metric metric;
    static double scratch[KVARN__ROW_MAX * (KVARN__ROW_MAX + 1)];
    struct kvt_rng rng = {.state = dim};

    if (metric.dim == dim) {
        return &metric;
    }
    metric.dim = dim;
    for (uint32_t i = 0; i < METRIC_QUERIES; i++) {
        float common = (float)kvt_rng_normal(&rng);
        for (uint32_t j = 0; j < dim; j++) {
            float gain = j % 7 == 3 ? 4.0f : 0.5f;
            metric.q[i * dim + j] = gain * (common + (float)kvt_rng_normal(&rng));
        }
    }
    memset(metric.a, 0, (size_t)dim * dim * sizeof(float));
    kvarn__kernels_of(KVARN__ISA_scalar)->metric_add(metric.a, metric.q, METRIC_QUERIES, dim);
    int err = kvarn_metric_factor(metric.a, METRIC_QUERIES, dim, metric.factor, scratch);
    KVARN_ASSERT(err == 0);
    return &metric;
}

/* Scales of scalar's refined for both sides: what is checked is the rounding. */
static void diffuse_prepare(struct kck *k)
{
    const uint32_t rows = k->shape.rows;
    /* Only what a factor uses of its room: a kernel may read no more. */
    float *factor = kck_in(k, FACTOR, kvarn__factor_floats(rows), sizeof(float));
    struct kvarn__plane plane;
    struct kvarn__work work;

    memcpy(factor, metric_of(rows)->factor, k->in[FACTOR].bytes);
    plane_prepare(k);
    plane_init(k, 0, &plane);
    plane.bits = 2;
    kvarn__work_init(&work, rows, k->shape.cols, work_floats());
    kvarn__kernels_of(KVARN__ISA_scalar)->balance(&plane, &work);
    kvarn__kernels_of(KVARN__ISA_scalar)->refine_plane(&plane, &work);
    memcpy(kck_in(k, SCALE, rows, sizeof(uint16_t)), plane.scale, k->out[0][1].bytes);
    memcpy(kck_in(k, ZERO, rows, sizeof(uint16_t)), plane.zero, k->out[0][2].bytes);
    memcpy(kck_in(k, OTHER, k->shape.cols, sizeof(uint16_t)), plane.other, k->out[0][3].bytes);
}

static void diffuse_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    struct kvarn__plane plane;
    struct kvarn__work work;

    plane_init(k, side, &plane);
    plane.bits = 2;
    memcpy(plane.scale, k->in[SCALE].at, k->in[SCALE].bytes);
    memcpy(plane.zero, k->in[ZERO].at, k->in[ZERO].bytes);
    memcpy(plane.other, k->in[OTHER].at, k->in[OTHER].bytes);
    kvarn__work_init(&work, k->shape.rows, k->shape.cols, work_floats());
    kernels->diffuse_plane(at(&k->in[FACTOR]), &plane, &work);
}

/* Sum of the squares of q.e over the plane's columns e. */
static double column_dots(const float *q, const float *errors, uint32_t rows, uint32_t cols)
{
    double dots[KVARN__ROW_MAX] = {0}, sum = 0;

    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t c = 0; c < cols; c++) {
            dots[c] += (double)q[r] * (double)errors[(size_t)r * cols + c];
        }
    }
    for (uint32_t c = 0; c < cols; c++) {
        sum += dots[c] * dots[c];
    }
    return sum;
}

/*
 * Error of side's output under the damped metric, which is what diffusion keeps small, in units of
 * the mean of its diagonal.
 */
static double diffuse_error(struct kck *k, int side)
{
    const uint32_t rows = k->shape.rows, cols = k->shape.cols;
    const struct metric *metric = metric_of(rows);
    double mean = 0, sum = 0, power;

    for (uint32_t i = 0; i < rows; i++) {
        mean += (double)metric->a[(size_t)i * rows + i] / rows;
    }
    double error = plane_error(k, side, 2, &power);
    for (uint32_t i = 0; i < METRIC_QUERIES; i++) {
        sum += column_dots(metric->q + (size_t)i * rows, plane_back, rows, cols);
    }
    return error + sum / mean;
}

/* As errors_agree(), under the metric. A code that falls the other way changes what follows. */
static bool diffuse_agree(struct kck *k)
{
    double power;

    (void)plane_error(k, 0, 2, &power);
    double want = diffuse_error(k, 0), got = diffuse_error(k, 1);
    if (k->shape.kind == KCK_NAN || (isnan(want) && isnan(got))) {
        return true;
    }
    double share = want > power ? 0.5 : 0.01;
    return want == got || fabs(got - want) <= share * want + 1e-6 * power;
}

/* A metric that already holds something; the output is it plus the rows. */
static void metric_prepare(struct kck *k)
{
    const uint32_t dim = k->shape.cols;
    size_t count = (size_t)k->shape.rows * dim;

    /* Sums of 129 squares stay finite. */
    kck_fill(k, kck_in(k, SRC, count, sizeof(float)), count, 1e17f);
    size_t bytes = (size_t)dim * dim * sizeof(float);
    memcpy(kck_in(k, METRIC, (size_t)dim * dim, sizeof(float)), metric_of(dim)->a, bytes);
    kck_out(k, 0, (size_t)dim * dim, sizeof(float));
}

static void metric_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    memcpy(k->out[side][0].at, k->in[METRIC].at, k->in[METRIC].bytes);
    kernels->metric_add(at(&k->out[side][0]), at(&k->in[SRC]), k->shape.rows, k->shape.cols);
}

static bool metric_agree(struct kck *k)
{
    const uint32_t dim = k->shape.cols;

    for (int side = 0; side < KCK_SIDE; side++) {
        float *a = at(&k->out[side][0]);
        for (uint32_t i = 1; i < dim; i++) {
            memset(a + (size_t)i * dim, 0, i * sizeof(float)); /* below the diagonal: anything */
        }
    }
    return kck_floats_agree(k, 0);
}

/* Packed tiles. */

static void view_init(struct kck *k, struct kvarn__tile_view *view)
{
    *view = (struct kvarn__tile_view){.codes = at(&k->in[CODES]),
        .scale = at(&k->in[SCALE]),
        .zero = at(&k->in[ZERO]),
        .other = at(&k->in[OTHER]),
        .rows = k->shape.rows,
        .cols = k->shape.cols,
        .bits = k->shape.bits};
}

static void tile_prepare(struct kck *k, size_t size)
{
    size_t count = (size_t)k->shape.rows * k->shape.cols, bytes = count * k->shape.bits / 8;

    bytes_fill(k, kck_in(k, CODES, bytes, 1), bytes);
    kck_fill_half(k, kck_in(k, SCALE, k->shape.rows, 2), k->shape.rows, 0);
    kck_fill_half(k, kck_in(k, ZERO, k->shape.rows, 2), k->shape.rows, 0);
    kck_fill_half(k, kck_in(k, OTHER, k->shape.cols, 2), k->shape.cols, 0);
    kck_out(k, 0, count, size);
}

static void tile_f32_prepare(struct kck *k)
{
    tile_prepare(k, sizeof(float));
}

static void tile_f16_prepare(struct kck *k)
{
    tile_prepare(k, sizeof(uint16_t));
}

static void decode_rows_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    struct kvarn__tile_view view;

    view_init(k, &view);
    kernels->decode_rows(&view, at(&k->out[side][0]));
}

static void decode_columns_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    struct kvarn__tile_view view;

    view_init(k, &view);
    kernels->decode_columns(&view, at(&k->out[side][0]));
}

static void decode_rows_half_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    struct kvarn__tile_view view;

    view_init(k, &view);
    kernels->decode_rows_half(&view, at(&k->out[side][0]));
}

static void decode_columns_half_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    struct kvarn__tile_view view;

    view_init(k, &view);
    kernels->decode_columns_half(&view, at(&k->out[side][0]));
}

const struct kck_subject kck_codec_subjects[] = {
    {"half_from_f32", KCK_LINE, line_f32_prepare, half_from_run, halves_agree},
    {"half_to_f32", KCK_LINE, line_u16_prepare, half_to_run, floats_agree},
    {"bf16_from_f32", KCK_LINE, line_f32_prepare, bf16_from_run, bytes_agree},
    {"bf16_to_f32", KCK_LINE, line_u16_prepare, bf16_to_run, floats_agree},
    {"abs_max", KCK_LINE, abs_max_prepare, abs_max_run, floats_agree},
    {"pack", KCK_QUADS, pack_prepare, pack_run, bytes_agree},
    {"unpack", KCK_QUADS, unpack_prepare, unpack_run, bytes_agree},
    {"fwht", KCK_VECTORS, vectors_prepare, fwht_run, floats_agree},
    {"transpose", KCK_PLANES, vectors_prepare, transpose_run, floats_agree},
    {"normalise", KCK_PLANES, factors_prepare, normalise_run, normalise_agree},
    {"balance", KCK_PLANES, factors_prepare, balance_run, factors_agree},
    {"round_plane", KCK_PLANES, round_prepare, round_run, round_agree},
    {"refine_plane", KCK_PLANES, plane_prepare, refine_run, refine_agree},
    {"diffuse_plane", KCK_PLANES, diffuse_prepare, diffuse_run, diffuse_agree},
    {"metric_add", KCK_VECTORS, metric_prepare, metric_run, metric_agree},
    {"decode_rows", KCK_TILES, tile_f32_prepare, decode_rows_run, floats_agree},
    {"decode_columns", KCK_TILES, tile_f32_prepare, decode_columns_run, floats_agree},
    {"decode_rows_half", KCK_TILES, tile_f16_prepare, decode_rows_half_run, halves_agree},
    {"decode_columns_half", KCK_TILES, tile_f16_prepare, decode_columns_half_run, halves_agree},
};
const size_t kck_codec_count = sizeof(kck_codec_subjects) / sizeof(kck_codec_subjects[0]);
