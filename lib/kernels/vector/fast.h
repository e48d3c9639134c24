/*
 * Fast attention over one tile, for any vector of floats: what surrounds the loops over codes. The
 * arithmetic is written down in lib/kernels/attention.h. Include it once in an instruction set's
 * file, after its vec.h, after defining FAST_NAME(op) and
 *
 *   fast_dot_signed(codes, numbers, sums)   sums = over code rows of s8 numbers times codes; the
 *                                        codes of plane m may count FAST_PLANE_FACTOR(bits)^-m
 *                                        times
 *   fast_dot_unsigned(codes, numbers, sums)   the same of u8 numbers; the last plane may lack
 *                                        FAST_TOP_LOST times the sum of a row's numbers
 *   halves_pack(src, count, bits, dst)   halves -> floats in packed order, 0 beyond count
 *   numbers_signed(q, scale, inverse, count, dst)   rint(q scale inverse) as bytes, up to a whole
 *                                        64; returns the sums by lanes
 *   numbers_unsigned(y, inverse, count, bits, dst)  rint(max(y inverse, 0)) of packed order as
 *                                        bytes in order; returns the sums by lanes
 *   fold_sum(x, dst), fold_max(x, dst)   dst[i] = over the lanes of x[i], i < 4, by one fixed tree
 *   vf_from_numbers(p)                   whole numbers of 32 bits as floats
 *   vf_load_some(p, n), vf_half_load_some(p, n)   n < VF_LANES; other lanes 0
 *   what vector/elementary.h asks for
 *   vf_mask(x, first, step, low, high)   lane i of x where low <= first + i step < high, else -inf
 *   vf_zero_masked(x, logit)             x where logit is not -inf, else 0
 *   vf_has_negative(x)
 *
 * Everything with a token index is in K's packed order and everything with a channel index of V in
 * V's, as the loops give it; scales are brought into these orders once a tile. Four query rows go
 * together, and their sums across lanes are taken in one fold.
 */
#ifndef KVARN_KERNELS_VECTOR_FAST_H
#define KVARN_KERNELS_VECTOR_FAST_H

#include <math.h>

#include "lib/base/assert.h"
#include "lib/kernels/vector/elementary.h"
#include "lib/kernels/vector/fast_codes.h"

/* Below it 127 / max leaves the range of floats; such rows count as 0. */
#define STEP_MIN 0x1p-100f

/* Lines fetched at each turn of a row between the loops over codes, which fetch most. */
#define FETCH_ROW 4

/* What a tile gives to every query row. */
struct tile {
    float k_scale[FAST_COUNT]; /* channels in order, zeros up to a whole 64 */
    float k_mid[FAST_COUNT];   /* k_zero + mid * k_scale */
    float k_token[KVARN_GROUP_MAX];
    float v_scale[KVARN_GROUP_MAX];
    float v_mid[KVARN_GROUP_MAX];
    float v_channel[FAST_COUNT];
    struct fast_codes k, v;
    uint32_t k_dim, k_count;   /* channels, and up to a whole 64 */
    uint32_t tokens, channels; /* channels of V, in packed order */
    bool is_v_signed;
} __attribute__((aligned(64)));

/* Four query rows on their way through a tile. */
struct quad {
    const struct kvarn__fast_rows *all; /* borrowed */
    uint32_t first, rows;
    struct fast_ahead ahead;
    struct fast_numbers numbers;
    struct fast_sums sums;
    float x[FAST_ROWS][KVARN_GROUP_MAX] __attribute__((aligned(64))); /* logits, then y */
    float step[FAST_ROWS], bias[FAST_ROWS], max[FAST_ROWS];
    float mid[FAST_ROWS], peak[FAST_ROWS]; /* sum of p v_mid; largest |y| */
    bool is_partial[FAST_ROWS];            /* not all tokens are seen */
    bool is_skipped[FAST_ROWS];
};

/*
 * exp(x) for x <= 0 to 3e-6: 2^(x log2 e) by the nearest whole power of two and a polynomial of
 * degree 4 (minimax in relative error over [-0.5, 0.5]). exp(-87) is about the smallest normal
 * float; what is less weighs nothing.
 */
VF_INLINE vf exp_fast(vf x)
{
    const vf log2e = vf_set1(1.44269504f), magic = vf_set1(ROUND_MAGIC);

    x = vf_max(x, vf_set1(-87.0f));
    vf rounded = vf_fma(x, log2e, magic);
    vf f = vf_fms(x, log2e, vf_sub(rounded, magic));
    vf p = vf_set1(0.00957010210f);
    p = vf_fma(p, f, vf_set1(0.05591785908f));
    p = vf_fma(p, f, vf_set1(0.24024744332f));
    p = vf_fma(p, f, vf_set1(0.69312179089f));
    p = vf_fma(p, f, vf_set1(0.99999928474f));
    return vf_scale_by_rounded(p, rounded);
}

VF_INLINE vf floats_load(const float *p, uint32_t at, uint32_t end)
{
    if (at + VF_LANES <= end) {
        return vf_load(p + at);
    }
    return at < end ? vf_load_some(p + at, end - at) : vf_set1(0);
}

VF_INLINE vf halves_load(const uint16_t *p, uint32_t at, uint32_t end)
{
    if (at + VF_LANES <= end) {
        return vf_half_load(p + at);
    }
    return at < end ? vf_half_load_some(p + at, end - at) : vf_set1(0);
}

static float middle(uint32_t bits)
{
    return (float)((1u << bits) - 1) / 2;
}

static struct fast_codes codes_of(const struct kvarn__tile_view *view)
{
    return (struct fast_codes){.data = view->codes,
        .row_bytes = (size_t)view->cols * view->bits / 8,
        .count = view->rows,
        .bits = view->bits};
}

static void tile_load(const struct kvarn__tile_view *k, const struct kvarn__tile_view *v,
    float scale, struct tile *tile)
{
    const vf k_mid = vf_set1(middle(k->bits)), v_mid = vf_set1(middle(v->bits));
    vf least = vf_set1(0);

    tile->k = codes_of(k);
    tile->v = codes_of(v);
    tile->k_dim = k->rows;
    tile->k_count = (k->rows + 63) / 64 * 64;
    tile->tokens = k->cols;
    tile->channels = (uint32_t)kvarn__packed_floats(v->cols, v->bits);
    for (uint32_t i = 0; i < tile->k_count; i += VF_LANES) {
        vf k_scale = halves_load(k->scale, i, k->rows);
        vf_store(tile->k_scale + i, k_scale);
        vf_store(tile->k_mid + i, vf_fma(k_mid, k_scale, halves_load(k->zero, i, k->rows)));
    }
    halves_pack(k->other, k->cols, k->bits, tile->k_token);
    halves_pack(v->scale, k->cols, k->bits, tile->v_scale);
    halves_pack(v->zero, k->cols, k->bits, tile->v_mid);
    halves_pack(v->other, v->cols, v->bits, tile->v_channel);
    for (uint32_t i = 0; i < k->cols; i += VF_LANES) {
        vf v_scale = vf_load(tile->v_scale + i);
        vf_store(tile->v_mid + i, vf_fma(v_mid, v_scale, vf_load(tile->v_mid + i)));
        vf_store(tile->k_token + i, vf_mul(vf_set1(scale), vf_load(tile->k_token + i)));
        least = vf_min(least, v_scale);
    }
    tile->is_v_signed = vf_has_negative(least);
}

/* top / max and max / top; both 0 for a max that is next to nothing. */
static inline float quotient(float top, float max, float *ret_step)
{
    bool is_some = max >= STEP_MIN;

    *ret_step = is_some ? max * (1.0f / top) : 0;
    return is_some ? top / max : 0;
}

/* Queries -> whole numbers, their step and bias. */
static void quad_round_q(struct quad *quad, const struct tile *tile)
{
    const float *q = quad->all->q + (size_t)quad->first * tile->k_dim;
    vf peaks[FAST_ROWS], mids[FAST_ROWS], sums[FAST_ROWS];
    float peak[FAST_ROWS], mid[FAST_ROWS], sum[FAST_ROWS];

    for (uint32_t r = 0; r < FAST_ROWS; r++) {
        vf most = vf_set1(0), mid_sum = most;
        for (uint32_t i = 0; i < (r < quad->rows ? tile->k_count : 0); i += VF_LANES) {
            vf x = floats_load(q + (size_t)r * tile->k_dim, i, tile->k_dim);
            most = vf_max(most, vf_abs(vf_mul(x, vf_load(tile->k_scale + i))));
            mid_sum = vf_fma(x, vf_load(tile->k_mid + i), mid_sum);
        }
        quad->ahead = fast_fetch(quad->ahead, FETCH_ROW, false);
        peaks[r] = most;
        mids[r] = mid_sum;
        sums[r] = vf_set1(0);
    }
    fold_max(peaks, peak);
    fold_sum(mids, mid);
    for (uint32_t r = 0; r < quad->rows; r++) {
        float inverse = quotient(127.0f, peak[r], &quad->step[r]);
        sums[r] = numbers_signed(
            q + (size_t)r * tile->k_dim, tile->k_scale, inverse, tile->k_dim, quad->numbers.of[r]);
    }
    fold_sum(sums, sum); /* below 2^24: exact */
    for (uint32_t r = 0; r < quad->rows; r++) {
        quad->numbers.sum[r] = (int32_t)sum[r];
        quad->bias[r] = mid[r] - quad->step[r] * middle(tile->k.bits) * sum[r];
    }
}

/* Sums -> logits of a row; returns the largest, by lanes. */
VF_INLINE vf row_logits(struct quad *quad, const struct tile *tile, uint32_t r, uint32_t bits)
{
    const uint32_t planes = 8 / bits;
    const vf bias = vf_set1(quad->bias[r]);
    float by = quad->step[r];
    vf most = vf_set1(-INFINITY), factor[4];

    for (uint32_t m = 0; m < planes; m++) {
        factor[m] = vf_set1(by);
        by *= FAST_PLANE_FACTOR(bits);
    }
    for (uint32_t i = 0; i < tile->tokens; i += planes * KVARN__PACKED_COLUMNS) {
        for (uint32_t j = 0; j < planes * KVARN__PACKED_COLUMNS; j += VF_LANES) {
            vf sum = vf_from_numbers(quad->sums.of[r] + i + j);
            vf x = vf_mul(vf_fma(sum, factor[j / KVARN__PACKED_COLUMNS], bias),
                vf_load(tile->k_token + i + j));
            vf_store(quad->x[r] + i + j, x);
            most = vf_max(most, x);
        }
    }
    return most;
}

/* Soft-cap and mask of a row's logits; returns the largest, by lanes. */
static __attribute__((noinline)) vf row_restrict(
    struct quad *quad, const struct tile *tile, uint32_t r)
{
    const struct kvarn__seen seen = quad->all->seen[quad->first + r];
    const float cap = quad->all->softcap;
    const uint32_t planes = 8 / tile->k.bits, block = planes * KVARN__PACKED_COLUMNS;
    vf most = vf_set1(-INFINITY);

    for (uint32_t i = 0; i < tile->tokens; i += VF_LANES) {
        /* Where lane 0 lies: which block of columns, which plane, which column. */
        uint32_t first = i / block * block + i % block / KVARN__PACKED_COLUMNS +
                         i % KVARN__PACKED_COLUMNS * planes;
        vf x = vf_load(quad->x[r] + i);
        if (cap > 0) {
            x = vf_mul(vf_set1(cap), vf_tanh(vf_div(x, vf_set1(cap))));
        }
        x = vf_mask(x, first, planes, seen.low, seen.high);
        vf_store(quad->x[r] + i, x);
        most = vf_max(most, x);
    }
    return most;
}

/* A new largest logit: what was gathered shrinks. */
static __attribute__((noinline)) void row_raise(
    struct quad *quad, const struct tile *tile, uint32_t r, float max)
{
    const uint32_t row = quad->first + r;
    const float share = expf(quad->all->max[row] - max); /* expf(-inf) is 0 */
    float *acc = quad->all->acc + (size_t)row * tile->channels;

    quad->all->sum[row] *= (double)share;
    quad->all->max[row] = max;
    for (uint32_t i = 0; i < tile->channels; i += VF_LANES) {
        vf_store(acc + i, vf_mul(vf_set1(share), vf_load(acc + i)));
    }
}

static void quad_logits(struct quad *quad, const struct tile *tile)
{
    vf most[FAST_ROWS];
    float max[FAST_ROWS];

    for (uint32_t r = 0; r < FAST_ROWS; r++) {
        most[r] = vf_set1(-INFINITY);
        if (r >= quad->rows) {
            continue;
        }
        const struct kvarn__seen seen = quad->all->seen[quad->first + r];
        quad->is_partial[r] = seen.low > 0 || seen.high < tile->tokens;
        most[r] = tile->k.bits == 2 ? row_logits(quad, tile, r, 2) : row_logits(quad, tile, r, 4);
        if (quad->is_partial[r] || quad->all->softcap > 0) {
            most[r] = row_restrict(quad, tile, r);
        }
    }
    fold_max(most, max);
    for (uint32_t r = 0; r < quad->rows; r++) {
        if (max[r] > quad->all->max[quad->first + r]) {
            row_raise(quad, tile, r, max[r]);
        }
        float reference = quad->all->max[quad->first + r];
        quad->max[r] = isinf(reference) ? 0 : reference;
    }
}

/* Sums of the weights of a quad's rows, by lanes. */
struct weigh_sums {
    vf p[FAST_ROWS], mid[FAST_ROWS], peak[FAST_ROWS];
};

/* Logits -> y, and what is summed over the tile's tokens. */
VF_INLINE void row_weigh(struct quad *quad, const struct tile *tile, uint32_t r, bool is_partial,
    bool is_signed, struct weigh_sums *sums)
{
    const vf max = vf_set1(quad->max[r]);
    vf sum = vf_set1(0), mid = sum, peak = sum;

    for (uint32_t i = 0; i < tile->tokens; i += VF_LANES) {
        vf logit = vf_load(quad->x[r] + i);
        vf p = exp_fast(vf_sub(logit, max));
        p = is_partial ? vf_zero_masked(p, logit) : p;
        sum = vf_add(sum, p);
        mid = vf_fma(p, vf_load(tile->v_mid + i), mid);
        vf y = vf_mul(p, vf_load(tile->v_scale + i));
        peak = vf_max(peak, is_signed ? vf_abs(y) : y);
        vf_store(quad->x[r] + i, y);
    }
    sums->p[r] = sum;
    sums->mid[r] = mid;
    sums->peak[r] = peak;
}

/* Weights of all rows; returns whether any row needs the tile's V. */
static bool quad_weigh(struct quad *quad, const struct tile *tile)
{
    struct weigh_sums sums;
    float p[FAST_ROWS];
    bool is_needed = false;

    for (uint32_t r = 0; r < FAST_ROWS; r++) {
        quad->ahead = fast_fetch(quad->ahead, FETCH_ROW, false);
        if (r >= quad->rows) {
            sums.p[r] = sums.mid[r] = sums.peak[r] = vf_set1(0);
        } else if (quad->is_partial[r] || tile->is_v_signed) {
            row_weigh(quad, tile, r, true, true, &sums);
        } else {
            row_weigh(quad, tile, r, false, false, &sums);
        }
    }
    fold_sum(sums.p, p);
    fold_sum(sums.mid, quad->mid);
    fold_max(sums.peak, quad->peak);
    for (uint32_t r = 0; r < quad->rows; r++) {
        double *sum = &quad->all->sum[quad->first + r];
        quad->is_skipped[r] = (double)p[r] <= KVARN__FAST_SKIP * *sum;
        *sum += (double)p[r];
        is_needed |= !quad->is_skipped[r];
    }
    return is_needed;
}

/* y -> whole numbers, their step and bias. `sign`: of the y that count. */
static void quad_round_y(struct quad *quad, const struct tile *tile, float sign)
{
    vf sums[FAST_ROWS];
    float sum[FAST_ROWS];

    for (uint32_t r = 0; r < FAST_ROWS; r++) {
        sums[r] = vf_set1(0);
        if (r < quad->rows) {
            float inverse = quotient(255.0f, quad->peak[r], &quad->step[r]);
            inverse = quad->is_skipped[r] ? 0 : inverse * sign;
            sums[r] = numbers_unsigned(
                quad->x[r], inverse, tile->tokens, tile->k.bits, quad->numbers.of[r]);
        }
    }
    fold_sum(sums, sum); /* below 2^24: exact */
    for (uint32_t r = 0; r < quad->rows; r++) {
        quad->step[r] *= sign;
        quad->numbers.sum[r] = (int32_t)sum[r];
        quad->bias[r] =
            (sign > 0 ? quad->mid[r] : 0) - quad->step[r] * middle(tile->v.bits) * sum[r];
    }
}

/* acc += v_channel * (step * sums + bias) */
VF_INLINE void row_gather(
    const struct quad *quad, const struct tile *tile, uint32_t r, uint32_t bits)
{
    const uint32_t planes = 8 / bits;
    float *acc = quad->all->acc + (size_t)(quad->first + r) * tile->channels;
    float by = quad->step[r];
    vf factor[4], bias[4];

    for (uint32_t m = 0; m < planes; m++) {
        factor[m] = vf_set1(by);
        bias[m] = vf_set1(quad->bias[r]);
        by *= FAST_PLANE_FACTOR(bits);
    }
    float lost = (float)(FAST_TOP_LOST * quad->numbers.sum[r]);
    bias[planes - 1] = vf_fma(vf_set1(lost), factor[planes - 1], bias[planes - 1]);
    for (uint32_t i = 0; i < tile->channels; i += planes * KVARN__PACKED_COLUMNS) {
        for (uint32_t j = 0; j < planes * KVARN__PACKED_COLUMNS; j += VF_LANES) {
            uint32_t m = j / KVARN__PACKED_COLUMNS;
            vf x = vf_fma(vf_from_numbers(quad->sums.of[r] + i + j), factor[m], bias[m]);
            vf_store(
                acc + i + j, vf_fma(x, vf_load(tile->v_channel + i + j), vf_load(acc + i + j)));
        }
    }
}

static void quad_add_v(struct quad *quad, const struct tile *tile, float sign)
{
    struct fast_codes codes = tile->v;

    quad_round_y(quad, tile, sign);
    codes.rows = quad->rows;
    codes.ahead = &quad->ahead;
    fast_dot_unsigned(&codes, &quad->numbers, &quad->sums);
    for (uint32_t r = 0; r < quad->rows; r++) {
        if (quad->is_skipped[r]) {
            continue;
        }
        if (codes.bits == 2) {
            row_gather(quad, tile, r, 2);
        } else {
            row_gather(quad, tile, r, 4);
        }
    }
}

static void quad_run(struct quad *quad, const struct tile *tile)
{
    struct fast_codes codes = tile->k;

    quad_round_q(quad, tile);
    codes.rows = quad->rows;
    codes.ahead = &quad->ahead;
    fast_dot_signed(&codes, &quad->numbers, &quad->sums);
    quad_logits(quad, tile);
    if (!quad_weigh(quad, tile)) {
        return;
    }
    quad_add_v(quad, tile, 1.0f);
    if (tile->is_v_signed) {
        quad_add_v(quad, tile, -1.0f);
    }
}

/* The next tile is fetched while the first rows are computed, a few lines at every turn. */
static void quad_look_ahead(struct quad *quad, const struct kvarn__fast_rows *rows)
{
    const uint8_t *next = rows->ahead;

    if (next == NULL || quad->first > 0) {
        /* Something that is in the nearest cache anyway. */
        next = (const uint8_t *)quad->x;
        quad->ahead = (struct fast_ahead){next, next};
        return;
    }
    quad->ahead = (struct fast_ahead){next, next + rows->ahead_bytes};
}

void FAST_NAME(kvarn_attend_tile_u8_f32)(const struct kvarn__tile_view *k,
    const struct kvarn__tile_view *v, const struct kvarn__fast_rows *rows)
{
    struct tile tile;
    struct quad quad;

    KVARN_ASSERT(rows->rows > 0 && rows->rows <= KVARN__QUERY_ROWS_MAX);
    KVARN_ASSERT(k->rows <= KVARN__ROW_MAX && v->cols <= KVARN__ROW_MAX);
    KVARN_ASSERT(k->cols == v->rows && k->cols <= KVARN_GROUP_MAX && k->cols % 64 == 0);
    quad.all = rows;
    tile_load(k, v, rows->scale, &tile);
    for (uint32_t first = 0; first < rows->rows; first += FAST_ROWS) {
        quad.first = first;
        quad.rows = rows->rows - first < FAST_ROWS ? rows->rows - first : FAST_ROWS;
        quad_look_ahead(&quad, rows);
        quad_run(&quad, &tile);
    }
}

#endif
