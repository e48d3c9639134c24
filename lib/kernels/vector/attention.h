/*
 * Exact attention's kernels, for any vector of floats. Include it once in an instruction set's
 * file, after its vec.h, after defining ATTENTION_NAME(op) and
 *
 *   struct row_levels; row_levels_init(&l, scale, zero, bits)   code * scale + zero of every code
 *   row_levels_at(&l, packed)            the levels of VF_LANES packed codes
 *   vf_load_some(p, n), vf_store_some(p, x, n), vf_half_load_some(p, n)   n < VF_LANES; others 0
 *   what vector/elementary.h asks for
 *
 * A tile's rows are decoded to their levels in registers and used for as many query rows as leave
 * registers free. Every output is summed along the view's rows, in order, whatever other query rows
 * are computed beside it, so that rows come out the same alone and in company.
 */
#ifndef KVARN_KERNELS_VECTOR_ATTENTION_H
#define KVARN_KERNELS_VECTOR_ATTENTION_H

#include <math.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/kernels/kernels.h"
#include "lib/kernels/vector/elementary.h"

/* Query rows and registers of columns that are summed together. */
#define SUM_ROWS_MAX 12
#define SUM_VECS_MAX 8

/* What query rows are multiplied with: rows of codes, or of halves. */
struct source {
    const uint8_t *codes;   /* NULL: halves */
    const uint16_t *scale;  /* of rows of codes */
    const uint16_t *zero;   /* of rows of codes */
    const uint16_t *halves; /* NULL: codes */
    size_t stride;          /* of a row, in bytes of codes or in halves */
    uint32_t rows, bits;
};

/* dst[query row][column] = the sum over source rows of factors[query row][source row] * source. */
struct product {
    const struct source *source;
    const float *factors;
    size_t factor_stride;
    const float *other; /* codes: what a column's sum is multiplied with */
    float *dst;
    size_t dst_stride;
    bool is_added; /* dst += instead of = */
};

struct sums {
    vf of[SUM_ROWS_MAX][SUM_VECS_MAX];
};

/* A register of columns of a source row, of which `count` are there. */
VF_INLINE vf column_load(const struct source *source, const struct row_levels *levels, uint32_t row,
    uint32_t column, uint32_t count)
{
    if (source->codes == NULL) {
        const uint16_t *halves = source->halves + row * source->stride + column;
        return count >= VF_LANES ? vf_half_load(halves) : vf_half_load_some(halves, count);
    }
    const uint8_t *packed = source->codes + row * source->stride + column * source->bits / 8;
    uint8_t some[VF_LANES] = {0};
    if (count < VF_LANES) {
        memcpy(some, packed, ((size_t)count * source->bits + 7) / 8);
        packed = some;
    }
    return row_levels_at(levels, packed);
}

/* What is there of dst before halves are added to it, else 0. */
VF_INLINE vf sum_start(const struct product *product, const float *dst, uint32_t count)
{
    if (product->source->codes != NULL || !product->is_added) {
        return vf_set1(0);
    }
    return count >= VF_LANES ? vf_load(dst) : vf_load_some(dst, count);
}

/* A finished register of sums: codes' still lack the other axis's scale. */
VF_INLINE void sum_store(
    const struct product *product, vf sum, uint32_t column, float *dst, uint32_t count)
{
    if (product->source->codes != NULL) {
        sum = vf_mul(sum, vf_load(product->other + column));
        if (product->is_added) {
            sum = vf_add(sum, count >= VF_LANES ? vf_load(dst) : vf_load_some(dst, count));
        }
    }
    if (count >= VF_LANES) {
        vf_store(dst, sum);
    } else {
        vf_store_some(dst, sum, count);
    }
}

/* `rows` query rows from row `first`, `vecs` registers from column `at`; of these `count` count. */
VF_INLINE void block_run(const struct product *product, uint32_t first, uint32_t rows, uint32_t at,
    uint32_t vecs, uint32_t count)
{
    const struct source *source = product->source;
    const float *factors = product->factors + first * product->factor_stride;
    float *dst = product->dst + first * product->dst_stride + at;
    struct row_levels levels;
    struct sums sums;
    vf x[SUM_VECS_MAX];

    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t j = 0; j < vecs; j++) {
            sums.of[r][j] = sum_start(
                product, dst + r * product->dst_stride + j * VF_LANES, count - j * VF_LANES);
        }
    }
    for (uint32_t i = 0; i < source->rows; i++) {
        if (source->codes != NULL) {
            row_levels_init(&levels, source->scale[i], source->zero[i], source->bits);
        }
        for (uint32_t j = 0; j < vecs; j++) {
            x[j] = column_load(source, &levels, i, at + j * VF_LANES, count - j * VF_LANES);
        }
        for (uint32_t r = 0; r < rows; r++) {
            vf factor = vf_set1(factors[r * product->factor_stride + i]);
            for (uint32_t j = 0; j < vecs; j++) {
                sums.of[r][j] = vf_fma(factor, x[j], sums.of[r][j]);
            }
        }
    }
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t j = 0; j < vecs; j++) {
            sum_store(product, sums.of[r][j], at + j * VF_LANES,
                dst + r * product->dst_stride + j * VF_LANES, count - j * VF_LANES);
        }
    }
}

/*
 * Loops of constant shape over all columns: whole ones at once, then one register a time. What is
 * multiplied is copied, so that stores of results cannot change it as far as a compiler knows, and
 * whether it is codes is settled once.
 */
#define COLUMNS_RUN(name, of_codes, query_rows, vecs)                          \
    static __attribute__((noinline)) void name(                                \
        const struct product *whole, uint32_t first, uint32_t columns)         \
    {                                                                          \
        const struct source source = *whole->source;                           \
        struct product product = *whole;                                       \
        uint32_t at = 0;                                                       \
        product.source = &source;                                              \
        KVARN_ASSERT((source.codes != NULL) == (of_codes));                    \
        if ((source.codes != NULL) != (of_codes)) {                            \
            __builtin_unreachable();                                           \
        }                                                                      \
        for (; at + (vecs)*VF_LANES <= columns; at += (vecs)*VF_LANES) {       \
            block_run(&product, first, query_rows, at, vecs, (vecs)*VF_LANES); \
        }                                                                      \
        for (; at + VF_LANES <= columns; at += VF_LANES) {                     \
            block_run(&product, first, query_rows, at, 1, VF_LANES);           \
        }                                                                      \
        if (at < columns) {                                                    \
            block_run(&product, first, query_rows, at, 1, columns - at);       \
        }                                                                      \
    }
COLUMNS_RUN(codes_run_1, true, 1, SUM_WIDE_1)
COLUMNS_RUN(codes_run_2, true, 2, SUM_WIDE_2)
COLUMNS_RUN(codes_run_4, true, 4, SUM_WIDE_4)
COLUMNS_RUN(codes_run_many, true, SUM_ROWS, SUM_WIDE)
COLUMNS_RUN(halves_run_1, false, 1, SUM_WIDE_1)
COLUMNS_RUN(halves_run_2, false, 2, SUM_WIDE_2)
COLUMNS_RUN(halves_run_4, false, 4, SUM_WIDE_4)
COLUMNS_RUN(halves_run_many, false, SUM_ROWS, SUM_WIDE)

static void product_run(const struct product *product, uint32_t rows, uint32_t columns)
{
    const bool of_codes = product->source->codes != NULL;
    uint32_t first = 0;

    for (; rows - first >= SUM_ROWS; first += SUM_ROWS) {
        (of_codes ? codes_run_many : halves_run_many)(product, first, columns);
    }
    for (; rows - first >= 4; first += 4) {
        (of_codes ? codes_run_4 : halves_run_4)(product, first, columns);
    }
    for (; rows - first >= 2; first += 2) {
        (of_codes ? codes_run_2 : halves_run_2)(product, first, columns);
    }
    for (; first < rows; first++) {
        (of_codes ? codes_run_1 : halves_run_1)(product, first, columns);
    }
}

static struct source source_of_tile(const struct kvarn__tile_view *view, uint32_t rows)
{
    return (struct source){.codes = view->codes,
        .scale = view->scale,
        .zero = view->zero,
        .stride = (size_t)view->cols * view->bits / 8,
        .rows = rows,
        .bits = view->bits};
}

/* The other axis's scales as floats, zeros up to a whole register. */
static void other_load(const struct kvarn__tile_view *view, float *dst)
{
    uint32_t i = 0;

    for (; i + VF_LANES <= view->cols; i += VF_LANES) {
        vf_store(dst + i, vf_half_load(view->other + i));
    }
    if (i < view->cols) {
        vf_store(dst + i, vf_half_load_some(view->other + i, view->cols - i));
    }
}

void ATTENTION_NAME(kvarn_qk_tile_f32)(
    const struct kvarn__tile_view *k, const float *q, uint32_t rows, float *dst)
{
    float other[KVARN__ROW_MAX + VF_LANES];
    struct source source = source_of_tile(k, k->rows);
    struct product product = {.source = &source,
        .factors = q,
        .factor_stride = k->rows,
        .other = other,
        .dst = dst,
        .dst_stride = k->token_count};

    KVARN_ASSERT(rows <= KVARN__QUERY_ROWS_MAX && k->token_count <= k->cols);
    KVARN_ASSERT(k->cols <= KVARN__ROW_MAX);
    other_load(k, other);
    product_run(&product, rows, k->token_count);
}

void ATTENTION_NAME(kvarn_av_tile_f32)(
    const struct kvarn__tile_view *v, const float *p, uint32_t rows, float *acc)
{
    float other[KVARN__ROW_MAX + VF_LANES];
    struct source source = source_of_tile(v, v->token_count);
    struct product product = {.source = &source,
        .factors = p,
        .factor_stride = v->token_count,
        .other = other,
        .dst = acc,
        .dst_stride = v->cols,
        .is_added = true};

    KVARN_ASSERT(v->token_count <= v->rows && v->cols <= KVARN__ROW_MAX);
    other_load(v, other);
    product_run(&product, rows, v->cols);
}

void ATTENTION_NAME(kvarn_av_f16_f32)(
    const struct kvarn__rows_view *v, const float *p, uint32_t rows, float *acc)
{
    struct source source = {.halves = v->rows, .stride = v->dim, .rows = v->token_count};
    struct product product = {.source = &source,
        .factors = p,
        .factor_stride = v->token_count,
        .dst = acc,
        .dst_stride = v->dim,
        .is_added = true};

    KVARN_ASSERT(v->dim <= KVARN__ROW_MAX);
    product_run(&product, rows, v->dim);
}

/* Dot products of `rows` queries with VF_LANES tokens; each is a register summed by one tree. */
VF_INLINE void dots_run(
    const float *q, const struct kvarn__rows_view *k, uint32_t first, uint32_t rows, float *dst)
{
    const uint32_t left = k->token_count - first;
    const uint32_t dim = k->dim;
    const uint16_t *tokens[VF_LANES];
    vf sums[2][VF_LANES];

    for (uint32_t t = 0; t < VF_LANES; t++) {
        /* What is beyond the end is computed for the last token once more, and left out. */
        tokens[t] = k->rows + (size_t)(first + (t < left ? t : left - 1)) * dim;
        sums[0][t] = sums[1][t] = vf_set1(0);
    }
    for (uint32_t d = 0; d < dim; d += VF_LANES) {
        const bool is_whole = d + VF_LANES <= dim;
        vf x[2];
        for (uint32_t r = 0; r < rows; r++) {
            x[r] = is_whole ? vf_load(q + r * dim + d) : vf_load_some(q + r * dim + d, dim - d);
        }
        for (uint32_t t = 0; t < VF_LANES; t++) {
            vf y =
                is_whole ? vf_half_load(tokens[t] + d) : vf_half_load_some(tokens[t] + d, dim - d);
            for (uint32_t r = 0; r < rows; r++) {
                sums[r][t] = vf_fma(x[r], y, sums[r][t]);
            }
        }
    }
    for (uint32_t r = 0; r < rows; r++) {
        vf dots = vf_reduce_add(sums[r]);
        if (left >= VF_LANES) {
            vf_store(dst + r * k->token_count + first, dots);
        } else {
            vf_store_some(dst + r * k->token_count + first, dots, left);
        }
    }
}

void ATTENTION_NAME(kvarn_qk_f16_f32)(
    const struct kvarn__rows_view *k, const float *q, uint32_t rows, float *dst)
{
    const uint32_t dim = k->dim;

    KVARN_ASSERT(k->dim <= KVARN__ROW_MAX);
    for (uint32_t t = 0; t < k->token_count; t += VF_LANES) {
        uint32_t r = 0;
        for (; r + SUM_DOT_ROWS <= rows; r += SUM_DOT_ROWS) {
            dots_run(q + r * dim, k, t, SUM_DOT_ROWS, dst + (size_t)r * k->token_count);
        }
        for (; r < rows; r++) {
            dots_run(q + r * dim, k, t, 1, dst + (size_t)r * k->token_count);
        }
    }
}

VF_INLINE vf logit_of(vf dot, float scale, float softcap)
{
    vf logit = vf_mul(vf_set1(scale), dot);

    if (softcap > 0) {
        logit = vf_mul(vf_set1(softcap), vf_tanh(vf_div(logit, vf_set1(softcap))));
    }
    return logit;
}

/* The largest or the sum of a register's lanes, by one tree. */
VF_INLINE float lanes_fold(vf x, bool is_max)
{
    vf rows[VF_LANES];
    float lanes[VF_LANES];

    for (uint32_t i = 0; i < VF_LANES; i++) {
        rows[i] = x;
    }
    vf_store(lanes, is_max ? vf_reduce_max(rows) : vf_reduce_add(rows));
    return lanes[0];
}

void ATTENTION_NAME(kvarn_softmax_logits_f32_f32)(
    float *x, uint32_t count, float scale, float softcap, float *ret_max)
{
    vf max = vf_set1(-INFINITY);
    uint32_t i = 0;

    for (; i + VF_LANES <= count; i += VF_LANES) {
        vf logit = logit_of(vf_load(x + i), scale, softcap);
        vf_store(x + i, logit);
        max = vf_max(logit, max);
    }
    float largest = lanes_fold(max, true);
    if (i < count) {
        float some[VF_LANES];
        vf_store(some, logit_of(vf_load_some(x + i, count - i), scale, softcap));
        for (uint32_t j = 0; i + j < count; j++) {
            x[i + j] = some[j];
            largest = some[j] > largest ? some[j] : largest;
        }
    }
    *ret_max = largest;
}

void ATTENTION_NAME(kvarn_softmax_weights_f32_f32)(float *x, uint32_t count, float max, double *sum)
{
    vf all = vf_set1(0);
    uint32_t i = 0;

    for (; i + VF_LANES <= count; i += VF_LANES) {
        vf weight = vf_exp(vf_sub(vf_load(x + i), vf_set1(max)));
        vf_store(x + i, weight);
        all = vf_add(all, weight);
    }
    double total = (double)lanes_fold(all, false);
    if (i < count) {
        float some[VF_LANES];
        vf_store(some, vf_exp(vf_sub(vf_load_some(x + i, count - i), vf_set1(max))));
        for (uint32_t j = 0; i + j < count; j++) {
            x[i + j] = some[j];
            total += (double)some[j];
        }
    }
    *sum += total;
}

#endif
