/*
 * The bf16 rival: vpdpbf16ps multiplies pairs of bf16 into 32-bit sums. K: pairs of channels of one
 * token. V: two tokens' rows interleaved, with the weights of both as one pair.
 */
#include <immintrin.h>
#include <string.h>

#include "lib/kernels/avx512/vec.h"
#include "tests/bench/rivals.h"
#include "tests/bench/rivals_softmax.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define AHEAD         4096

static ALWAYS_INLINE __m512i pairs_load(const uint16_t *p)
{
    return _mm512_loadu_si512((const void *)p);
}

static ALWAYS_INLINE __m512 dot(__m512 sum, __m512i a, __m512i b)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

static ALWAYS_INLINE void row_prefetch(const uint16_t *row, uint32_t dim)
{
    for (uint32_t d = 0; d < dim; d += 32) {
        _mm_prefetch((const char *)(row + d) + AHEAD, _MM_HINT_T0);
    }
}

/* Logits of 16 / heads tokens for 1 or 4 heads. */
static ALWAYS_INLINE void dots(
    const uint16_t *q, const uint16_t *k, uint32_t heads, uint32_t dim, __m512 scale, float *dst)
{
    const uint32_t tokens = 16 / heads;
    vf sums[16];

    for (uint32_t i = 0; i < 16; i++) {
        sums[i] = _mm512_setzero_ps();
    }
    for (uint32_t d = 0; d < dim; d += 32) {
        for (uint32_t t = 0; t < tokens; t++) {
            __m512i x = pairs_load(k + t * dim + d);
            for (uint32_t h = 0; h < heads; h++) {
                sums[h * tokens + t] = dot(sums[h * tokens + t], x, pairs_load(q + h * dim + d));
            }
        }
    }
    float folded[16];
    _mm512_storeu_ps(folded, _mm512_mul_ps(scale, vf_reduce_add(sums)));
    for (uint32_t h = 0; h < heads; h++) {
        memcpy(dst + h * KVB_RIVAL_BLOCK, folded + h * tokens, tokens * sizeof(float));
    }
}

/*
 * out += weights . V of a block, 64 channels at a time. Interleaving works within 128-bit lanes, so
 * that a register's sums are of channels 0-3, 8-11, ... or 4-7, 12-15, ... of 32; out is kept so.
 */
static ALWAYS_INLINE void add(
    const uint16_t *v, const uint32_t *pairs, uint32_t heads, uint32_t dim, float *all)
{
    for (uint32_t d = 0; d < dim; d += 64) {
        float *out = all + d;
        __m512 sums[4][4];
        for (uint32_t h = 0; h < heads; h++) {
            for (uint32_t i = 0; i < 4; i++) {
                sums[h][i] = _mm512_loadu_ps(out + h * dim + 16 * i);
            }
        }
        for (uint32_t t = 0; t < KVB_RIVAL_BLOCK; t += 2) {
            const uint16_t *row = v + (size_t)t * dim + d;
            __m512i a = pairs_load(row), b = pairs_load(row + dim);
            __m512i c = pairs_load(row + 32), e = pairs_load(row + dim + 32);
            __m512i x0 = _mm512_unpacklo_epi16(a, b), x1 = _mm512_unpackhi_epi16(a, b);
            __m512i x2 = _mm512_unpacklo_epi16(c, e), x3 = _mm512_unpackhi_epi16(c, e);
            for (uint32_t h = 0; h < heads; h++) {
                __m512i p = _mm512_set1_epi32((int)pairs[h * KVB_RIVAL_BLOCK / 2 + t / 2]);
                sums[h][0] = dot(sums[h][0], x0, p);
                sums[h][1] = dot(sums[h][1], x1, p);
                sums[h][2] = dot(sums[h][2], x2, p);
                sums[h][3] = dot(sums[h][3], x3, p);
            }
        }
        for (uint32_t h = 0; h < heads; h++) {
            for (uint32_t i = 0; i < 4; i++) {
                _mm512_storeu_ps(out + h * dim + 16 * i, sums[h][i]);
            }
        }
    }
}

static ALWAYS_INLINE void floats_round(const float *src, uint32_t count, uint16_t *dst)
{
    for (uint32_t i = 0; i < count; i += 16) {
        __m256i x = (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(src + i));
        _mm256_storeu_si256((void *)(dst + i), x);
    }
}

static ALWAYS_INLINE void block(const struct kvb_rival *rival, const uint16_t *q, size_t first,
    uint32_t head, uint32_t heads, uint32_t dim, struct softmax *softmax)
{
    const uint16_t *k = (const uint16_t *)rival->k + first * dim;
    const uint16_t *v = (const uint16_t *)rival->v + first * dim;
    const __m512 scale = _mm512_set1_ps(1.0f / sqrtf((float)dim));
    float x[4 * KVB_RIVAL_BLOCK], *out = rival->out + (size_t)head * dim;
    uint32_t pairs[4 * KVB_RIVAL_BLOCK / 2];

    for (uint32_t t = 0; t < KVB_RIVAL_BLOCK; t += 16 / heads) {
        if (head == 0) {
            for (uint32_t i = 0; i < 16 / heads; i++) {
                row_prefetch(k + (t + i) * dim, dim);
                row_prefetch(v + (t + i) * dim, dim);
            }
        }
        dots(q + (size_t)head * dim, k + t * dim, heads, dim, scale, x + t);
    }
    for (uint32_t h = 0; h < heads; h++) {
        softmax_block(softmax + h, x + h * KVB_RIVAL_BLOCK, out + (size_t)h * dim, dim);
    }
    floats_round(x, heads * KVB_RIVAL_BLOCK, (uint16_t *)pairs);
    add(v, pairs, heads, dim, out);
}

#define BLOCK(name, heads, dim)                                                                  \
    static __attribute__((noinline)) void name(const struct kvb_rival *rival, const uint16_t *q, \
        size_t first, uint32_t head, struct softmax *softmax)                                    \
    {                                                                                            \
        block(rival, q, first, head, heads, dim, softmax);                                       \
    }
BLOCK(block_1_64, 1, 64)
BLOCK(block_1_128, 1, 128)
BLOCK(block_1_256, 1, 256)
BLOCK(block_4_64, 4, 64)
BLOCK(block_4_128, 4, 128)
BLOCK(block_4_256, 4, 256)

/* Bring out back into the order of channels. */
static void out_order(const struct kvb_rival *rival)
{
    for (size_t i = 0; i < (size_t)rival->heads * rival->dim; i += 32) {
        float mixed[32];
        memcpy(mixed, rival->out + i, sizeof(mixed));
        for (uint32_t c = 0; c < 32; c++) {
            rival->out[i + c] = mixed[c / 4 % 2 * 16 + c / 8 * 4 + c % 4];
        }
    }
}

void kvb_rival_bf16(const struct kvb_rival *rival)
{
    struct softmax softmax[KVB_RIVAL_HEADS_MAX];
    uint16_t q[KVB_RIVAL_HEADS_MAX * KVB_RIVAL_DIM_MAX];
    const bool is_one = rival->heads == 1;

    for (uint32_t h = 0; h < rival->heads; h++) {
        softmax[h] = (struct softmax){.max = -INFINITY};
    }
    floats_round(rival->q, rival->heads * rival->dim, q);
    memset(rival->out, 0, (size_t)rival->heads * rival->dim * sizeof(float));
    for (size_t first = 0; first < rival->tokens; first += KVB_RIVAL_BLOCK) {
        for (uint32_t h = 0; h < rival->heads; h += is_one ? 1 : 4) {
            if (rival->dim == 64) {
                (is_one ? block_1_64 : block_4_64)(rival, q, first, h, softmax + h);
            } else if (rival->dim == 128) {
                (is_one ? block_1_128 : block_4_128)(rival, q, first, h, softmax + h);
            } else {
                (is_one ? block_1_256 : block_4_256)(rival, q, first, h, softmax + h);
            }
        }
    }
    softmax_finish(rival, softmax);
    out_order(rival);
}
