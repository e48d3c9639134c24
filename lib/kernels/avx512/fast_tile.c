/*
 * Fast attention over one tile on AVX-512: what surrounds the loops of fast_dot.c. The arithmetic
 * is written down in lib/kernels/attention.h.
 *
 * Everything with a token index is in K's packed order and everything with a channel index of V in
 * V's, as the loops give it; scales are brought into these orders once a tile. Four query rows go
 * together, and their sums across lanes are taken in one fold.
 */
#include <math.h>

#include "lib/base/assert.h"
#include "lib/kernels/avx512/attention_math.h"
#include "lib/kernels/avx512/fast.h"

#define LANES 16u

/* Below it 127 / max leaves the range of floats; such rows count as 0. */
#define STEP_MIN 0x1p-100f

/* What a tile gives to every query row. */
struct tile {
    float k_scale[FAST_COUNT]; /* channels in order, zeros up to a whole 64 */
    float k_mid[FAST_COUNT];   /* k_zero + mid * k_scale */
    float k_token[KVARN_GROUP_MAX];
    float v_scale[KVARN_GROUP_MAX];
    float v_mid[KVARN_GROUP_MAX];
    float v_channel[FAST_COUNT];
    struct fast_codes k, v;
    uint32_t k_dim, k_chunks; /* of 16 channels, up to a whole 64 */
    uint32_t token_vectors, channel_vectors;
    int is_v_signed;
} __attribute__((aligned(64)));

/* Four query rows on their way through a tile. */
struct quad {
    const struct kvarn__fast_rows *all; /* borrowed */
    uint32_t first, rows;
    struct fast_numbers numbers;
    struct fast_sums sums;
    float x[FAST_ROWS][KVARN_GROUP_MAX] __attribute__((aligned(64))); /* logits, then y */
    float step[FAST_ROWS], bias[FAST_ROWS], max[FAST_ROWS];
    float mid[FAST_ROWS], peak[FAST_ROWS]; /* sum of p v_mid; largest |y| */
    int32_t number_sum[FAST_ROWS];
    int is_partial[FAST_ROWS]; /* not all tokens are seen */
    int is_skipped[FAST_ROWS];
};

/* 16 codes-per-byte halves from 2 registers of consecutive ones: those that are m-th in a byte. */
static inline __m512 halves_plane(__m512i low, __m512i high, uint32_t per_byte, uint32_t m)
{
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    __m512i from = _mm512_add_epi32(
        _mm512_mullo_epi32(lanes, _mm512_set1_epi32((int)per_byte)), _mm512_set1_epi32((int)m));
    __m256i idx = _mm512_cvtepi32_epi16(from);
    __m512i picked = _mm512_permutex2var_epi16(low, _mm512_castsi256_si512(idx), high);

    return _mm512_cvtph_ps(_mm512_castsi512_si256(picked));
}

/* Consecutive halves -> floats in packed order; what is beyond `count` comes out 0. */
static inline __attribute__((always_inline)) void halves_pack_some(
    const uint16_t *src, uint32_t count, uint32_t per_byte, float *dst)
{
    for (uint32_t at = 0; at < count; at += LANES * per_byte) {
        uint32_t left = count - at;
        __mmask32 low = left >= 32 ? 0xffffffffu : (1u << left) - 1;
        __mmask32 high = left >= 64 ? 0xffffffffu : left <= 32 ? 0 : (1u << (left - 32)) - 1;
        __m512i a = _mm512_maskz_loadu_epi16(low, src + at);
        __m512i b = per_byte == 4 ? _mm512_maskz_loadu_epi16(high, src + at + 32) : a;
        for (uint32_t m = 0; m < per_byte; m++) {
            _mm512_store_ps(dst + at + m * LANES, halves_plane(a, b, per_byte, m));
        }
    }
}

static void halves_pack(const uint16_t *src, uint32_t count, uint32_t bits, float *dst)
{
    if (bits == 2) {
        halves_pack_some(src, count, 4, dst);
    } else {
        halves_pack_some(src, count, 2, dst);
    }
}

/* dst = a * x + dst */
static void axpy(float a, const float *x, uint32_t vectors, float *dst)
{
    for (uint32_t i = 0; i < vectors * LANES; i += LANES) {
        _mm512_store_ps(dst + i,
            _mm512_fmadd_ps(_mm512_set1_ps(a), _mm512_load_ps(x + i), _mm512_load_ps(dst + i)));
    }
}

/* Lanes below `end` of those that begin at `at`. */
static inline __mmask16 mask_until(uint32_t at, uint32_t end)
{
    uint32_t left = end > at ? end - at : 0;

    return (__mmask16)(left >= LANES ? 0xffffu : (1u << left) - 1);
}

static inline __m512 halves_load(const uint16_t *src, uint32_t at, uint32_t end)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask_until(at, end), src + at));
}

static void tile_load(const struct kvarn__tile_view *k, const struct kvarn__tile_view *v,
    float scale, struct tile *tile)
{
    const float k_mid = (float)((1u << k->bits) - 1) / 2, v_mid = (float)((1u << v->bits) - 1) / 2;
    __m512 least = _mm512_setzero_ps();

    tile->k = (struct fast_codes){k->codes, (size_t)k->cols * k->bits / 8, k->rows / 4, k->bits, 0};
    tile->v = (struct fast_codes){v->codes, (size_t)v->cols * v->bits / 8, v->rows / 4, v->bits, 0};
    tile->k_dim = k->rows;
    tile->k_chunks = (k->rows + 4 * LANES - 1) / (4 * LANES) * 4;
    tile->token_vectors = k->cols / LANES;
    tile->channel_vectors = (uint32_t)kvarn__packed_floats(v->cols, v->bits) / LANES;
    for (uint32_t i = 0; i < tile->k_chunks * LANES; i += LANES) {
        __m512 k_scale = halves_load(k->scale, i, k->rows);
        __m512 zero = halves_load(k->zero, i, k->rows);
        _mm512_store_ps(tile->k_scale + i, k_scale);
        _mm512_store_ps(tile->k_mid + i, _mm512_fmadd_ps(_mm512_set1_ps(k_mid), k_scale, zero));
    }
    halves_pack(k->other, k->cols, k->bits, tile->k_token);
    halves_pack(v->scale, k->cols, k->bits, tile->v_scale);
    halves_pack(v->zero, k->cols, k->bits, tile->v_mid);
    halves_pack(v->other, v->cols, v->bits, tile->v_channel);
    axpy(v_mid, tile->v_scale, tile->token_vectors, tile->v_mid);
    for (uint32_t i = 0; i < k->cols; i += LANES) {
        _mm512_store_ps(tile->k_token + i,
            _mm512_mul_ps(_mm512_set1_ps(scale), _mm512_load_ps(tile->k_token + i)));
        least = _mm512_min_ps(least, _mm512_load_ps(tile->v_scale + i));
    }
    tile->is_v_signed = _mm512_cmp_ps_mask(least, _mm512_setzero_ps(), _CMP_LT_OQ) != 0;
}

/* number / max and max / number; both 0 for a max that is next to nothing. */
static inline __m128 quotient(float number, __m128 max, __m128 *ret_step)
{
    __m128 is_some = _mm_cmpge_ps(max, _mm_set1_ps(STEP_MIN));

    *ret_step = _mm_and_ps(is_some, _mm_mul_ps(max, _mm_set1_ps(1.0f / number)));
    return _mm_and_ps(is_some, _mm_div_ps(_mm_set1_ps(number), max));
}

/* 64 whole numbers of 4 registers as bytes in order. */
static inline __m512i bytes_join(const __m512i n[4])
{
    const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    __m512i bytes =
        _mm512_packs_epi16(_mm512_packs_epi32(n[0], n[1]), _mm512_packs_epi32(n[2], n[3]));

    return _mm512_permutexvar_epi32(order, bytes);
}

static inline __m512 q_load(const float *q, uint32_t at, uint32_t end)
{
    return _mm512_maskz_loadu_ps(mask_until(at, end), q + at);
}

/* Largest |w| and sum of q k_mid of a row, by lanes. */
static inline void q_scan(const struct tile *tile, const float *q, __m512 *ret_max, __m512 *ret_mid)
{
    __m512 max = _mm512_setzero_ps(), mid = _mm512_setzero_ps();

    for (uint32_t i = 0; i < tile->k_chunks * LANES; i += LANES) {
        __m512 x = q_load(q, i, tile->k_dim);
        __m512 w = _mm512_mul_ps(x, _mm512_load_ps(tile->k_scale + i));
        max = _mm512_max_ps(max, _mm512_abs_ps(w));
        mid = _mm512_fmadd_ps(x, _mm512_load_ps(tile->k_mid + i), mid);
    }
    *ret_max = max;
    *ret_mid = mid;
}

/* u of a row; returns its sums, by lanes. */
static inline __m512i q_round(const struct tile *tile, const float *q, float inverse, uint8_t *dst)
{
    const __m512 by = _mm512_set1_ps(inverse);
    __m512i sum = _mm512_setzero_si512(), n[4];

    for (uint32_t i = 0; i < tile->k_chunks * LANES; i += 4 * LANES) {
        for (uint32_t j = 0; j < 4; j++) {
            uint32_t at = i + j * LANES;
            __m512 w =
                _mm512_mul_ps(q_load(q, at, tile->k_dim), _mm512_load_ps(tile->k_scale + at));
            n[j] = _mm512_cvtps_epi32(_mm512_mul_ps(w, by));
        }
        __m512i bytes = bytes_join(n);
        _mm512_store_si512(dst + i, bytes);
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), bytes);
    }
    return sum;
}

static inline __m128 sum4_numbers(const __m512i x[FAST_ROWS])
{
    __m512 floats[FAST_ROWS];

    /* Below 2^24, so that floats add them exactly. */
    for (uint32_t r = 0; r < FAST_ROWS; r++) {
        floats[r] = _mm512_cvtepi32_ps(x[r]);
    }
    return kvarn__sum4(floats);
}

/* Queries -> whole numbers, their step and bias. */
static void quad_round_q(struct quad *quad, const struct tile *tile)
{
    const uint32_t bits = tile->k.bits;
    __m512 max[FAST_ROWS] = {0}, mid[FAST_ROWS] = {0};
    __m512i sum[FAST_ROWS] = {0};
    float inverse[FAST_ROWS];
    __m128 step;

    for (uint32_t r = 0; r < quad->rows; r++) {
        q_scan(tile, quad->all->q + (size_t)(quad->first + r) * tile->k_dim, &max[r], &mid[r]);
    }
    _mm_storeu_ps(inverse, quotient(127.0f, kvarn__max4(max), &step));
    for (uint32_t r = 0; r < quad->rows; r++) {
        sum[r] = q_round(tile, quad->all->q + (size_t)(quad->first + r) * tile->k_dim, inverse[r],
            quad->numbers.of[r]);
    }
    __m128 lost =
        _mm_mul_ps(_mm_mul_ps(step, _mm_set1_ps((float)((1u << bits) - 1) / 2)), sum4_numbers(sum));
    _mm_storeu_ps(quad->step, step);
    _mm_storeu_ps(quad->bias, _mm_sub_ps(kvarn__sum4(mid), lost));
}

/* What a sum of packed order's vector m of a byte is to be multiplied by, for one row. */
static inline void plane_factors(float step, uint32_t bits, __m512 ret[4])
{
    const float per_plane = bits == 2 ? 0.25f : 0.0625f;

    for (uint32_t m = 0; m < 8 / bits; m++) {
        ret[m] = _mm512_set1_ps(step);
        step *= per_plane;
    }
}

/* Sums -> logits of a row; returns the largest, by lanes. */
static inline __attribute__((always_inline)) __m512 row_logits(
    struct quad *quad, const struct tile *tile, uint32_t r, uint32_t bits)
{
    const uint32_t planes = 8 / bits;
    const __m512 bias = _mm512_set1_ps(quad->bias[r]);
    __m512 max = _mm512_set1_ps(-INFINITY), by[4];

    plane_factors(quad->step[r], bits, by);
    for (uint32_t i = 0; i < tile->token_vectors; i += planes) {
        for (uint32_t m = 0; m < planes; m++) {
            uint32_t at = (i + m) * LANES;
            __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(quad->sums.of[r] + at));
            __m512 x = _mm512_mul_ps(
                _mm512_fmadd_ps(sum, by[m], bias), _mm512_load_ps(tile->k_token + at));
            _mm512_store_ps(quad->x[r] + at, x);
            max = _mm512_max_ps(max, x);
        }
    }
    return max;
}

/* Soft-cap and mask of a row's logits; returns the largest, by lanes. */
static __attribute__((noinline)) __m512 row_restrict(
    struct quad *quad, const struct tile *tile, uint32_t r)
{
    const struct kvarn__seen seen = quad->all->seen[quad->first + r];
    const float cap = quad->all->softcap;
    const uint32_t planes = 8 / tile->k.bits;
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    __m512 max = _mm512_set1_ps(-INFINITY);

    for (uint32_t i = 0; i < tile->token_vectors; i++) {
        float *x = quad->x[r] + i * LANES;
        __m512 logit = _mm512_load_ps(x);
        if (cap > 0) {
            const __m512 caps = _mm512_set1_ps(cap);
            logit = _mm512_mul_ps(caps, kvarn__tanh(_mm512_div_ps(logit, caps)));
        }
        __m512i token = _mm512_add_epi32(_mm512_mullo_epi32(lanes, _mm512_set1_epi32((int)planes)),
            _mm512_set1_epi32((int)(i / planes * planes * LANES + i % planes)));
        __mmask16 is_seen = _mm512_cmp_epi32_mask(token, _mm512_set1_epi32((int)seen.low), 5) &
                            _mm512_cmp_epi32_mask(token, _mm512_set1_epi32((int)seen.high), 1);
        logit = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), is_seen, logit);
        _mm512_store_ps(x, logit);
        max = _mm512_max_ps(max, logit);
    }
    return max;
}

/* A new largest logit: what was gathered shrinks. */
static __attribute__((noinline)) void row_rescale(
    struct quad *quad, const struct tile *tile, uint32_t r, float max)
{
    const uint32_t row = quad->first + r;
    const size_t count = (size_t)tile->channel_vectors * LANES;
    float share = expf(quad->all->max[row] - max); /* expf(-inf) is 0 */
    float *acc = quad->all->acc + row * count;

    quad->all->sum[row] *= (double)share;
    quad->all->max[row] = max;
    for (size_t i = 0; i < count; i += LANES) {
        _mm512_storeu_ps(acc + i, _mm512_mul_ps(_mm512_set1_ps(share), _mm512_loadu_ps(acc + i)));
    }
}

static void quad_logits(struct quad *quad, const struct tile *tile)
{
    __m512 max[FAST_ROWS] = {0};
    float largest[FAST_ROWS];

    for (uint32_t r = 0; r < quad->rows; r++) {
        const struct kvarn__seen seen = quad->all->seen[quad->first + r];
        quad->is_partial[r] = seen.low > 0 || seen.high < tile->token_vectors * LANES;
        max[r] = tile->k.bits == 2 ? row_logits(quad, tile, r, 2) : row_logits(quad, tile, r, 4);
        if (quad->is_partial[r] || quad->all->softcap > 0) {
            max[r] = row_restrict(quad, tile, r);
        }
    }
    _mm_storeu_ps(largest, kvarn__max4(max));
    for (uint32_t r = 0; r < quad->rows; r++) {
        if (largest[r] > quad->all->max[quad->first + r]) {
            row_rescale(quad, tile, r, largest[r]);
        }
        float reference = quad->all->max[quad->first + r];
        quad->max[r] = isinf(reference) ? 0 : reference;
    }
}

/* Sums of a row's weights, by lanes. */
struct weigh_sums {
    __m512 p, mid, peak;
};

/* Logits -> y, and what is summed over the tile's tokens. */
static inline __attribute__((always_inline)) void row_weigh(
    struct quad *quad, const struct tile *tile, uint32_t r, int is_partial, struct weigh_sums *ret)
{
    const __m512 max = _mm512_set1_ps(quad->max[r]);
    __m512 sum = _mm512_setzero_ps(), mid = sum, peak = sum;

    for (uint32_t at = 0; at < tile->token_vectors * LANES; at += LANES) {
        __m512 logit = _mm512_load_ps(quad->x[r] + at);
        __m512 p = kvarn__exp_fast(_mm512_sub_ps(logit, max));
        if (is_partial) {
            p = _mm512_maskz_mov_ps(
                _mm512_cmp_ps_mask(logit, _mm512_set1_ps(-INFINITY), _CMP_GT_OQ), p);
        }
        sum = _mm512_add_ps(sum, p);
        mid = _mm512_fmadd_ps(p, _mm512_load_ps(tile->v_mid + at), mid);
        __m512 y = _mm512_mul_ps(p, _mm512_load_ps(tile->v_scale + at));
        peak = _mm512_max_ps(peak, _mm512_abs_ps(y));
        _mm512_store_ps(quad->x[r] + at, y);
    }
    *ret = (struct weigh_sums){sum, mid, peak};
}

/* Weights of all rows; returns whether any row needs the tile's V. */
static int quad_weigh(struct quad *quad, const struct tile *tile)
{
    __m512 p[FAST_ROWS] = {0}, mid[FAST_ROWS] = {0}, peak[FAST_ROWS] = {0};
    float sums[FAST_ROWS];
    int is_needed = 0;

    for (uint32_t r = 0; r < quad->rows; r++) {
        struct weigh_sums of;
        if (quad->is_partial[r]) {
            row_weigh(quad, tile, r, 1, &of);
        } else {
            row_weigh(quad, tile, r, 0, &of);
        }
        p[r] = of.p;
        mid[r] = of.mid;
        peak[r] = of.peak;
    }
    _mm_storeu_ps(sums, kvarn__sum4(p));
    _mm_storeu_ps(quad->mid, kvarn__sum4(mid));
    _mm_storeu_ps(quad->peak, kvarn__max4(peak));
    for (uint32_t r = 0; r < quad->rows; r++) {
        double *sum = &quad->all->sum[quad->first + r];
        quad->is_skipped[r] = (double)sums[r] <= KVARN__FAST_SKIP * *sum;
        *sum += (double)sums[r];
        is_needed |= !quad->is_skipped[r];
    }
    return is_needed;
}

/* y -> n of a row, four tokens a dword; returns their sums, by lanes. */
static inline __attribute__((always_inline)) __m512i row_round(
    const float *y, float inverse, uint32_t vectors, uint32_t bits, uint8_t *dst)
{
    const __m512 by = _mm512_set1_ps(inverse);
    __m512i sum = _mm512_setzero_si512(), n[4];

    for (uint32_t i = 0; i < vectors; i += 8 / bits) {
        for (uint32_t m = 0; m < 8 / bits; m++) {
            __m512 x = _mm512_mul_ps(_mm512_load_ps(y + (i + m) * LANES), by);
            /* Negative ones are another pass's. */
            n[m] = _mm512_cvtps_epi32(_mm512_max_ps(x, _mm512_setzero_ps()));
        }
        __m512i pairs = _mm512_or_si512(n[0], _mm512_slli_epi32(n[1], 8));
        if (bits == 2) {
            __m512i high = _mm512_or_si512(n[2], _mm512_slli_epi32(n[3], 8));
            pairs = _mm512_or_si512(pairs, _mm512_slli_epi32(high, 16));
            _mm512_store_si512(dst + i * LANES, pairs);
        } else {
            _mm256_store_si256((void *)(dst + i * LANES), _mm512_cvtepi32_epi16(pairs));
        }
        sum = _mm512_dpbusd_epi32(sum, pairs, _mm512_set1_epi8(1));
    }
    return sum;
}

/* y -> whole numbers, their step and bias. `sign`: of the y that count. */
static void quad_round_y(struct quad *quad, const struct tile *tile, float sign)
{
    const float v_mid = (float)((1u << tile->v.bits) - 1) / 2;
    const uint32_t vectors = tile->token_vectors;
    __m512i sum[FAST_ROWS] = {0};
    float inverse[FAST_ROWS], total[FAST_ROWS];
    __m128 step;

    _mm_storeu_ps(inverse, quotient(255.0f, _mm_loadu_ps(quad->peak), &step));
    _mm_storeu_ps(quad->step, _mm_mul_ps(step, _mm_set1_ps(sign)));
    for (uint32_t r = 0; r < quad->rows; r++) {
        float by = quad->is_skipped[r] ? 0 : inverse[r] * sign;
        sum[r] = tile->k.bits == 2 ? row_round(quad->x[r], by, vectors, 2, quad->numbers.of[r])
                                   : row_round(quad->x[r], by, vectors, 4, quad->numbers.of[r]);
    }
    _mm_storeu_ps(total, sum4_numbers(sum));
    for (uint32_t r = 0; r < quad->rows; r++) {
        quad->number_sum[r] = (int32_t)total[r];
        quad->bias[r] = (sign > 0 ? quad->mid[r] : 0) - quad->step[r] * v_mid * total[r];
    }
}

/* acc += v_channel * (step * sums + bias) */
static inline __attribute__((always_inline)) void row_gather(
    const struct quad *quad, const struct tile *tile, uint32_t r, uint32_t bits)
{
    const uint32_t planes = 8 / bits;
    const __m512 bias = _mm512_set1_ps(quad->bias[r]);
    const __m512i top = _mm512_set1_epi32(128 * quad->number_sum[r]);
    float *acc = quad->all->acc + (size_t)(quad->first + r) * tile->channel_vectors * LANES;
    __m512 by[4];

    plane_factors(quad->step[r], bits, by);
    for (uint32_t i = 0; i < tile->channel_vectors; i += planes) {
        for (uint32_t m = 0; m < planes; m++) {
            uint32_t at = (i + m) * LANES;
            __m512i sum = _mm512_load_si512(quad->sums.of[r] + at);
            sum = m + 1 == planes ? _mm512_add_epi32(sum, top) : sum;
            __m512 x = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), by[m], bias);
            x = _mm512_fmadd_ps(x, _mm512_load_ps(tile->v_channel + at), _mm512_loadu_ps(acc + at));
            _mm512_storeu_ps(acc + at, x);
        }
    }
}

static void quad_add_v(struct quad *quad, const struct tile *tile, float sign)
{
    struct fast_codes codes = tile->v;

    quad_round_y(quad, tile, sign);
    codes.rows = quad->rows;
    kvarn__fast_dot_unsigned_avx512(&codes, &quad->numbers, &quad->sums);
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
    kvarn__fast_dot_signed_avx512(&codes, &quad->numbers, &quad->sums);
    quad_logits(quad, tile);
    if (!quad_weigh(quad, tile)) {
        return;
    }
    quad_add_v(quad, tile, 1.0f);
    if (tile->is_v_signed) {
        quad_add_v(quad, tile, -1.0f);
    }
}

void kvarn_attend_tile_u8_f32_avx512(const struct kvarn__tile_view *k,
    const struct kvarn__tile_view *v, const struct kvarn__fast_rows *rows)
{
    struct tile tile;
    struct quad quad;

    KVARN_ASSERT(rows->rows > 0 && rows->rows <= KVARN__QUERY_ROWS_MAX);
    KVARN_ASSERT(k->rows <= KVARN__ROW_MAX && v->cols <= KVARN__ROW_MAX);
    KVARN_ASSERT(k->cols == v->rows && k->cols <= KVARN_GROUP_MAX && k->cols % 64 == 0);
    tile_load(k, v, rows->scale, &tile);
    quad.all = rows;
    for (uint32_t first = 0; first < rows->rows; first += FAST_ROWS) {
        quad.first = first;
        quad.rows = rows->rows - first < FAST_ROWS ? rows->rows - first : FAST_ROWS;
        quad_run(&quad, &tile);
    }
}
