/*
 * The fp16 rival and the plain read, on AVX-512. fp16 is converted in registers: four tokens and
 * four heads share loads (16 sums), which one fold turns into 16 logits; V goes by 64 channels and
 * four heads (16 sums). Both stay in registers under gcc and clang, and what bounds them is ports
 * when the cache is hot and memory when it is cold.
 */
#include <immintrin.h>
#include <string.h>

#include "lib/kernels/avx512/vec.h"
#include "tests/bench/rivals.h"
#include "tests/bench/rivals_softmax.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))

/* Bytes between what is read and what is prefetched. */
#define AHEAD 4096

static ALWAYS_INLINE __m512 half_load(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
}

static ALWAYS_INLINE void row_prefetch(const uint16_t *row, uint32_t dim)
{
    for (uint32_t d = 0; d < dim; d += 32) {
        _mm_prefetch((const char *)(row + d) + AHEAD, _MM_HINT_T0);
    }
}

/* Logits of 16 / heads tokens for 1 or 4 heads: 16 sums, folded at once. */
static ALWAYS_INLINE void dots(const struct kvb_rival *rival, const uint16_t *k, uint32_t head,
    uint32_t heads, uint32_t dim, __m512 scale, float *dst)
{
    const uint32_t tokens = 16 / heads;
    const float *q = rival->q + (size_t)head * dim;
    vf sums[16];

    for (uint32_t i = 0; i < 16; i++) {
        sums[i] = _mm512_setzero_ps();
    }
    for (uint32_t d = 0; d < dim; d += 16) {
        for (uint32_t t = 0; t < tokens; t++) {
            __m512 x = half_load(k + t * dim + d);
            for (uint32_t h = 0; h < heads; h++) {
                sums[h * tokens + t] =
                    _mm512_fmadd_ps(x, _mm512_loadu_ps(q + h * dim + d), sums[h * tokens + t]);
            }
        }
    }
    float folded[16];
    _mm512_storeu_ps(folded, _mm512_mul_ps(scale, vf_reduce_add(sums)));
    for (uint32_t h = 0; h < heads; h++) {
        memcpy(dst + h * KVB_RIVAL_BLOCK, folded + h * tokens, tokens * sizeof(float));
    }
}

/* out += weights . V of a block, 64 channels at a time. */
static ALWAYS_INLINE void add(const struct kvb_rival *rival, const uint16_t *v, uint32_t head,
    uint32_t heads, uint32_t dim, const float *weights)
{
    for (uint32_t d = 0; d < dim; d += 64) {
        float *out = rival->out + (size_t)head * dim + d;
        __m512 sums[4][4];
        for (uint32_t h = 0; h < heads; h++) {
            for (uint32_t i = 0; i < 4; i++) {
                sums[h][i] = _mm512_loadu_ps(out + h * dim + 16 * i);
            }
        }
        for (uint32_t t = 0; t < KVB_RIVAL_BLOCK; t++) {
            const uint16_t *row = v + (size_t)t * dim + d;
            __m512 a = half_load(row), b = half_load(row + 16);
            __m512 c = half_load(row + 32), e = half_load(row + 48);
            for (uint32_t h = 0; h < heads; h++) {
                __m512 p = _mm512_set1_ps(weights[h * KVB_RIVAL_BLOCK + t]);
                sums[h][0] = _mm512_fmadd_ps(p, a, sums[h][0]);
                sums[h][1] = _mm512_fmadd_ps(p, b, sums[h][1]);
                sums[h][2] = _mm512_fmadd_ps(p, c, sums[h][2]);
                sums[h][3] = _mm512_fmadd_ps(p, e, sums[h][3]);
            }
        }
        for (uint32_t h = 0; h < heads; h++) {
            for (uint32_t i = 0; i < 4; i++) {
                _mm512_storeu_ps(out + h * dim + 16 * i, sums[h][i]);
            }
        }
    }
}

/* One block for 1 or 4 heads. */
static ALWAYS_INLINE void block(const struct kvb_rival *rival, size_t first, uint32_t head,
    uint32_t heads, uint32_t dim, struct softmax *softmax)
{
    const uint16_t *k = (const uint16_t *)rival->k + first * dim;
    const uint16_t *v = (const uint16_t *)rival->v + first * dim;
    const __m512 scale = _mm512_set1_ps(1.0f / sqrtf((float)dim));
    float x[4 * KVB_RIVAL_BLOCK];

    for (uint32_t t = 0; t < KVB_RIVAL_BLOCK; t += 16 / heads) {
        if (head == 0) {
            for (uint32_t i = 0; i < 16 / heads; i++) {
                row_prefetch(k + (t + i) * dim, dim);
                row_prefetch(v + (t + i) * dim, dim);
            }
        }
        dots(rival, k + t * dim, head, heads, dim, scale, x + t);
    }
    for (uint32_t h = 0; h < heads; h++) {
        softmax_block(
            softmax + h, x + h * KVB_RIVAL_BLOCK, rival->out + (size_t)(head + h) * dim, dim);
    }
    add(rival, v, head, heads, dim, x);
}

#define BLOCK(name, heads, dim)                                                              \
    static __attribute__((noinline)) void name(                                              \
        const struct kvb_rival *rival, size_t first, uint32_t head, struct softmax *softmax) \
    {                                                                                        \
        block(rival, first, head, heads, dim, softmax);                                      \
    }
BLOCK(block_1_64, 1, 64)
BLOCK(block_1_128, 1, 128)
BLOCK(block_1_256, 1, 256)
BLOCK(block_4_64, 4, 64)
BLOCK(block_4_128, 4, 128)
BLOCK(block_4_256, 4, 256)

void kvb_rival_half(const struct kvb_rival *rival)
{
    struct softmax softmax[KVB_RIVAL_HEADS_MAX];
    const bool is_one = rival->heads == 1;

    for (uint32_t h = 0; h < rival->heads; h++) {
        softmax[h] = (struct softmax){.max = -INFINITY};
    }
    memset(rival->out, 0, (size_t)rival->heads * rival->dim * sizeof(float));
    for (size_t first = 0; first < rival->tokens; first += KVB_RIVAL_BLOCK) {
        for (uint32_t h = 0; h < rival->heads; h += is_one ? 1 : 4) {
            if (rival->dim == 64) {
                (is_one ? block_1_64 : block_4_64)(rival, first, h, softmax + h);
            } else if (rival->dim == 128) {
                (is_one ? block_1_128 : block_4_128)(rival, first, h, softmax + h);
            } else {
                (is_one ? block_1_256 : block_4_256)(rival, first, h, softmax + h);
            }
        }
    }
    softmax_finish(rival, softmax);
}

uint64_t kvb_rival_read(const void *p, size_t bytes)
{
    const char *at = p;
    __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;

    for (size_t i = 0; i + 256 <= bytes; i += 256) {
        _mm_prefetch(at + i + 512, _MM_HINT_T0);
        _mm_prefetch(at + i + 576, _MM_HINT_T0);
        _mm_prefetch(at + i + 640, _MM_HINT_T0);
        _mm_prefetch(at + i + 704, _MM_HINT_T0);
        a = _mm512_add_epi64(a, _mm512_loadu_si512(at + i));
        b = _mm512_add_epi64(b, _mm512_loadu_si512(at + i + 64));
        c = _mm512_add_epi64(c, _mm512_loadu_si512(at + i + 128));
        d = _mm512_add_epi64(d, _mm512_loadu_si512(at + i + 192));
    }
    a = _mm512_add_epi64(_mm512_add_epi64(a, b), _mm512_add_epi64(c, d));
    return (uint64_t)_mm512_reduce_add_epi64(a);
}
