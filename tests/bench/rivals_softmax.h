/*
 * The online softmax of the vector rivals: logits of one block -> weights, on AVX-512. Included by
 * files that are compiled for it.
 */
#ifndef KVARN_TESTS_BENCH_RIVALS_SOFTMAX_H
#define KVARN_TESTS_BENCH_RIVALS_SOFTMAX_H

#include <math.h>

#include "tests/bench/rivals.h"

/* A head's running maximum and sum. */
struct softmax {
    float max, sum;
};

/* exp(x), x <= 0, to 3e-6: what fast attention uses too. */
static inline __m512 exp512(__m512 x)
{
    const __m512 log2e = _mm512_set1_ps(1.44269504f), magic = _mm512_set1_ps(12582912.0f);

    x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
    __m512 rounded = _mm512_fmadd_ps(x, log2e, magic);
    __m512 f = _mm512_fmsub_ps(x, log2e, _mm512_sub_ps(rounded, magic));
    __m512 p = _mm512_set1_ps(0.00957010210f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.05591785908f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.24024744332f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.69312179089f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.99999928474f));
    __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(rounded), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
}

/* Logits of a block -> weights in place; out shrinks when the maximum rises. */
static inline void softmax_block(struct softmax *softmax, float *x, float *out, uint32_t dim)
{
    __m512 logits[KVB_RIVAL_BLOCK / 16], most = _mm512_set1_ps(-INFINITY);

    for (uint32_t i = 0; i < KVB_RIVAL_BLOCK / 16; i++) {
        logits[i] = _mm512_loadu_ps(x + 16 * i);
        most = _mm512_max_ps(most, logits[i]);
    }
    float max = _mm512_reduce_max_ps(most);
    if (max > softmax->max) {
        float share = expf(softmax->max - max);
        softmax->max = max;
        softmax->sum *= share;
        for (uint32_t d = 0; d < dim; d += 16) {
            _mm512_storeu_ps(
                out + d, _mm512_mul_ps(_mm512_set1_ps(share), _mm512_loadu_ps(out + d)));
        }
    }
    __m512 sum = _mm512_setzero_ps();
    for (uint32_t i = 0; i < KVB_RIVAL_BLOCK / 16; i++) {
        logits[i] = exp512(_mm512_sub_ps(logits[i], _mm512_set1_ps(softmax->max)));
        sum = _mm512_add_ps(sum, logits[i]);
        _mm512_storeu_ps(x + 16 * i, logits[i]);
    }
    softmax->sum += _mm512_reduce_add_ps(sum);
}

static inline void softmax_finish(
    const struct kvb_rival *rival, const struct softmax softmax[KVB_RIVAL_HEADS_MAX])
{
    for (uint32_t h = 0; h < rival->heads; h++) {
        __m512 by = _mm512_set1_ps(1.0f / softmax[h].sum);
        for (uint32_t d = 0; d < rival->dim; d += 16) {
            float *out = rival->out + (size_t)h * rival->dim + d;
            _mm512_storeu_ps(out, _mm512_mul_ps(by, _mm512_loadu_ps(out)));
        }
    }
}

#endif
