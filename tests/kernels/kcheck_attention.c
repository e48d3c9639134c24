/* kcheck's subjects of attention. */
#include <math.h>
#include <string.h>

#include "tests/kernels/kcheck.h"

/* Slots. */
enum { Q = 0, CODES, SCALE, ZERO, OTHER, V_CODES, V_SCALES };

#define LOGITS_MAX 60.0f /* magnitude of logits: exp() of their difference stays a float */

static void *at(const struct kck_buffer *buffer)
{
    return buffer->at;
}

/*
 * Operands of attention were checked before they came here, so they are finite; what would be NaN
 * or Inf is normal instead, and what is huge is at most `most`.
 */
static void finite_fill(struct kck *k, float *x, size_t count, float most)
{
    enum kck_kind kind = k->shape.kind;

    k->shape.kind = kind == KCK_NAN ? KCK_NORMAL : kind;
    kck_fill(k, x, count, most);
    k->shape.kind = kind;
}

static void finite_fill_half(struct kck *k, uint16_t *x, size_t count, float most)
{
    enum kck_kind kind = k->shape.kind;

    k->shape.kind = kind == KCK_NAN ? KCK_NORMAL : kind;
    kck_fill_half(k, x, count, most);
    k->shape.kind = kind;
}

static void view_prepare(struct kck *k)
{
    size_t bytes = (size_t)k->shape.rows * k->shape.cols * k->shape.bits / 8;
    uint8_t *codes = kck_in(k, CODES, bytes, 1);

    for (size_t i = 0; i < bytes; i++) {
        codes[i] = (uint8_t)kvt_rng_u64(&k->rng);
    }
    finite_fill_half(k, kck_in(k, SCALE, k->shape.rows, 2), k->shape.rows, 30.0f);
    finite_fill_half(k, kck_in(k, ZERO, k->shape.rows, 2), k->shape.rows, 30.0f);
    finite_fill_half(k, kck_in(k, OTHER, k->shape.cols, 2), k->shape.cols, 30.0f);
}

static void view_init(struct kck *k, struct kvarn__tile_view *view)
{
    *view = (struct kvarn__tile_view){.codes = at(&k->in[CODES]),
        .scale = at(&k->in[SCALE]),
        .zero = at(&k->in[ZERO]),
        .other = at(&k->in[OTHER]),
        .rows = k->shape.rows,
        .cols = k->shape.cols,
        .bits = k->shape.bits,
        .token_count = k->shape.tokens};
}

/* Query rows of a case: what remains of both axes, so that every count from 1 to 9 comes up. */
static uint32_t query_rows(const struct kck *k)
{
    return 1 + (k->shape.rows / 8 + k->shape.cols / 8 + k->shape.tokens) % 9;
}

/* K [channel][token]: a shape whose rows are tokens is one of V. */
static bool is_k_shape(const struct kck *k)
{
    return k->shape.cols == 64 || k->shape.cols == 128;
}

/* What does not fit an op's shape is a case of no query rows: nothing may be written. */
static uint32_t tile_query_rows(const struct kck *k, bool is_right_shape)
{
    return is_right_shape ? query_rows(k) : 0;
}

static void qk_tile_prepare(struct kck *k)
{
    bool fits = is_k_shape(k) && k->shape.tokens <= k->shape.cols;
    uint32_t rows = tile_query_rows(k, fits);
    size_t count = (size_t)rows * k->shape.rows;

    view_prepare(k);
    finite_fill(k, kck_in(k, Q, count, sizeof(float)), count, 1e3f);
    kck_out(k, 0, (size_t)rows * k->shape.tokens, sizeof(float));
}

static void qk_tile_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    struct kvarn__tile_view view;
    uint32_t rows = (uint32_t)(k->in[Q].bytes / sizeof(float) / k->shape.rows);

    view_init(k, &view);
    if (rows > 0) {
        kernels->qk_tile(&view, at(&k->in[Q]), rows, at(&k->out[side][0]));
    }
}

static void av_tile_prepare(struct kck *k)
{
    bool fits = k->shape.tokens <= k->shape.rows && (k->shape.rows == 64 || k->shape.rows == 128);
    uint32_t rows = tile_query_rows(k, fits);
    size_t count = (size_t)rows * k->shape.tokens;

    view_prepare(k);
    finite_fill(k, kck_in(k, Q, count, sizeof(float)), count, 1.0f);
    kck_out(k, 0, (size_t)rows * k->shape.cols, sizeof(float));
}

static void av_tile_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    struct kvarn__tile_view view;
    uint32_t rows = (uint32_t)(k->in[Q].bytes / sizeof(float) / k->shape.tokens);

    view_init(k, &view);
    memset(k->out[side][0].at, 0, k->out[side][0].bytes);
    if (rows > 0) {
        kernels->av_tile(&view, at(&k->in[Q]), rows, at(&k->out[side][0]));
    }
}

/* Half rows: shape.rows tokens of shape.cols. */

static void rows_prepare(struct kck *k)
{
    size_t count = (size_t)k->shape.rows * k->shape.cols;

    finite_fill_half(k, kck_in(k, CODES, count, 2), count, 30.0f);
}

static void qk_half_prepare(struct kck *k)
{
    size_t count = (size_t)query_rows(k) * k->shape.cols;

    rows_prepare(k);
    finite_fill(k, kck_in(k, Q, count, sizeof(float)), count, 1e3f);
    kck_out(k, 0, (size_t)query_rows(k) * k->shape.rows, sizeof(float));
}

static void qk_half_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    struct kvarn__rows_view view = {at(&k->in[CODES]), k->shape.cols, k->shape.rows};

    kernels->qk_half(&view, at(&k->in[Q]), query_rows(k), at(&k->out[side][0]));
}

static void av_half_prepare(struct kck *k)
{
    size_t count = (size_t)query_rows(k) * k->shape.rows;

    rows_prepare(k);
    finite_fill(k, kck_in(k, Q, count, sizeof(float)), count, 1.0f);
    kck_out(k, 0, (size_t)query_rows(k) * k->shape.cols, sizeof(float));
}

static void av_half_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    struct kvarn__rows_view view = {at(&k->in[CODES]), k->shape.cols, k->shape.rows};

    memset(k->out[side][0].at, 0, k->out[side][0].bytes);
    kernels->av_half(&view, at(&k->in[Q]), query_rows(k), at(&k->out[side][0]));
}

/* Softmax. */

static void softmax_prepare(struct kck *k)
{
    size_t count = k->shape.count;
    float *x = kck_in(k, Q, count, sizeof(float));

    finite_fill(k, x, count, LOGITS_MAX);
    for (size_t i = 0; i < count; i++) {
        x[i] = i == 0 ? LOGITS_MAX : fminf(x[i], LOGITS_MAX);
    }
    kck_out(k, 0, count, sizeof(float));
    kck_out(k, 1, 1, sizeof(double));
}

static void softmax_logits_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    float softcap = k->shape.kind == KCK_OUTLIER || k->shape.kind == KCK_NAN ? 20.0f : 0.0f;

    memcpy(k->out[side][0].at, k->in[Q].at, k->in[Q].bytes);
    memset(k->out[side][1].at, 0, sizeof(double));
    kernels->softmax_logits(
        at(&k->out[side][0]), (uint32_t)k->shape.count, 0.125f, softcap, at(&k->out[side][1]));
}

static void softmax_weights_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    double sum = 3.0;

    memcpy(k->out[side][0].at, k->in[Q].at, k->in[Q].bytes);
    kernels->softmax_weights(at(&k->out[side][0]), (uint32_t)k->shape.count, LOGITS_MAX, &sum);
    memcpy(k->out[side][1].at, &sum, sizeof(sum));
}

/* Dot products and weighted sums over a tile or half rows: terms of either sign may cancel. */
static bool tile_agree(struct kck *k)
{
    double top = k->shape.bits == 4 ? 15 : 3;
    double value = (top * kck_most(&k->in[SCALE], true) + kck_most(&k->in[ZERO], true)) *
                   kck_most(&k->in[OTHER], true);
    double terms = fmax(k->shape.rows, k->shape.cols);

    return kck_sums_agree(k, 0, kck_most(&k->in[Q], false) * value * sqrt(terms));
}

static bool rows_agree(struct kck *k)
{
    double terms = fmax(k->shape.rows, k->shape.cols);

    return kck_sums_agree(
        k, 0, kck_most(&k->in[Q], false) * kck_most(&k->in[CODES], true) * sqrt(terms));
}

static bool logits_agree(struct kck *k)
{
    float want, got;

    memcpy(&want, k->out[0][1].at, sizeof(want));
    memcpy(&got, k->out[1][1].at, sizeof(got));
    return kck_floats_agree(k, 0) &&
           (want == got || fabsf(want - got) <= (float)k->tolerance * fabsf(want));
}

static bool weights_agree(struct kck *k)
{
    double want, got;

    memcpy(&want, k->out[0][1].at, sizeof(want));
    memcpy(&got, k->out[1][1].at, sizeof(got));
    return kck_floats_agree(k, 0) && fabs(want - got) <= k->tolerance * want;
}

/*
 * Fast attention over a whole tile: K as the case has it and V of the same tokens, with as many
 * channels as K. Values are near 1, as its 8 bits of weights want them: what is held here is that
 * levels agree, not how far fast is from exact (property_attention). Where all values are equal, so
 * are all codes, the largest or (in place of an outlier) the least: sums are as far out as they
 * get.
 */
static void attend_prepare(struct kck *k)
{
    uint32_t dim = k->shape.rows, group = k->shape.cols;
    bool fits = is_k_shape(k);
    uint32_t rows = tile_query_rows(k, fits);
    size_t bytes = (size_t)dim * group * k->shape.bits / 8, count = (size_t)rows * dim;
    enum kck_kind kind = k->shape.kind;

    k->shape.kind = kind == KCK_OUTLIER ? KCK_EQUAL : kind;
    k->shape.kind = kind == KCK_ZERO || k->shape.kind == KCK_EQUAL ? k->shape.kind : KCK_NORMAL;
    view_prepare(k);
    uint8_t *codes = kck_in(k, V_CODES, bytes, 1);
    for (size_t i = 0; i < bytes; i++) {
        codes[i] = (uint8_t)kvt_rng_u64(&k->rng);
    }
    if (k->shape.kind == KCK_EQUAL) {
        memset(codes, kind == KCK_EQUAL ? 0xff : 0, bytes);
        memset(at(&k->in[CODES]), kind == KCK_EQUAL ? 0xff : 0, bytes);
    }
    uint16_t *scales = kck_in(k, V_SCALES, 2 * group + dim, sizeof(uint16_t));
    finite_fill_half(k, scales, 2 * group + dim, 1.0f);
    float *q = kck_in(k, Q, count, sizeof(float));
    finite_fill(k, q, count, 1.0f);
    for (size_t i = 0; i < count; i++) {
        q[i] *= 0.1f;
    }
    k->shape.kind = kind;
    kck_out(k, 0, (size_t)rows * kvarn__packed_floats(dim, k->shape.bits), sizeof(float));
    kck_out(k, 1, rows, sizeof(float));
    kck_out(k, 2, rows, sizeof(double));
}

static void attend_run(const struct kvarn__kernels *kernels, struct kck *k, int side)
{
    uint32_t dim = k->shape.rows, group = k->shape.cols;
    struct kvarn__seen seen[KVARN__QUERY_ROWS_MAX];
    struct kvarn__tile_view k_view, v_view;
    const uint16_t *scales = at(&k->in[V_SCALES]);
    struct kvarn__fast_rows rows = {.q = at(&k->in[Q]),
        .seen = seen,
        .rows = (uint32_t)(k->in[Q].bytes / sizeof(float) / dim),
        .scale = 0.125f,
        .max = at(&k->out[side][1]),
        .sum = at(&k->out[side][2]),
        .acc = at(&k->out[side][0])};

    view_init(k, &k_view);
    k_view.token_count = group;
    v_view = (struct kvarn__tile_view){.codes = at(&k->in[V_CODES]),
        .other = scales,
        .scale = scales + dim,
        .zero = scales + dim + group,
        .rows = group,
        .cols = dim,
        .bits = k->shape.bits,
        .token_count = group};
    memset(k->out[side][0].at, 0, k->out[side][0].bytes);
    memset(k->out[side][2].at, 0, k->out[side][2].bytes);
    for (uint32_t r = 0; r < rows.rows; r++) {
        seen[r] = (struct kvarn__seen){r % 5, group - r % 3};
        rows.max[r] = -INFINITY;
    }
    if (rows.rows > 0) {
        kernels->attend_tile(&k_view, &v_view, &rows);
    }
}

/* The sums are doubles: they are taken as what they are divided by. */
static bool attend_agree(struct kck *k)
{
    size_t rows = k->out[0][1].bytes / sizeof(float);

    for (size_t r = 0; r < rows; r++) {
        double want, got;
        memcpy(&want, k->out[0][2].at + r * sizeof(want), sizeof(want));
        memcpy(&got, k->out[1][2].at + r * sizeof(got), sizeof(got));
        if (!(fabs(want - got) <= k->tolerance * fabs(want))) {
            return false;
        }
    }
    return kck_floats_agree(k, 0) && kck_floats_agree(k, 1);
}

const struct kck_subject kck_attention_subjects[] = {
    {"qk_tile", KCK_TILE_PART, qk_tile_prepare, qk_tile_run, tile_agree},
    {"av_tile", KCK_TILE_PART, av_tile_prepare, av_tile_run, tile_agree},
    {"qk_half", KCK_ROWS, qk_half_prepare, qk_half_run, rows_agree},
    {"av_half", KCK_ROWS, av_half_prepare, av_half_run, rows_agree},
    {"softmax_logits", KCK_LINE, softmax_prepare, softmax_logits_run, logits_agree},
    {"softmax_weights", KCK_LINE, softmax_prepare, softmax_weights_run, weights_agree},
    {"attend_tile", KCK_TILES, attend_prepare, attend_run, attend_agree},
};
const size_t kck_attention_count =
    sizeof(kck_attention_subjects) / sizeof(kck_attention_subjects[0]);
