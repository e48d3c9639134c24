/* Which rivals there are, and the one that needs no vector instructions of its own. */
#include "tests/bench/rivals.h"

#include <math.h>
#include <stdlib.h>

#include "kvarn/cpu.h"
#include "lib/kernels/kernels.h"

#ifdef KVB_WITH_BLAS
#include <cblas.h>
#endif

bool kvb_rival_has_half(void)
{
#ifdef KVB_WITH_HALF
    return kvarn_cpu_has("avx512");
#else
    return false;
#endif
}

bool kvb_rival_has_bf16(void)
{
#ifdef KVB_WITH_BF16
    return kvarn_cpu_has("avx512") && __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}

bool kvb_rival_has_blas(void)
{
#ifdef KVB_WITH_BLAS
    return true;
#else
    return false;
#endif
}

#ifndef KVB_WITH_HALF
void kvb_rival_half(const struct kvb_rival *rival)
{
    (void)rival;
    abort(); /* kvb_rival_has_half() said so */
}

uint64_t kvb_rival_read(const void *p, size_t bytes)
{
    (void)p;
    (void)bytes;
    abort(); /* kvb_rival_has_half() said so */
}
#endif

#ifndef KVB_WITH_BF16
void kvb_rival_bf16(const struct kvb_rival *rival)
{
    (void)rival;
    abort(); /* kvb_rival_has_bf16() said so */
}
#endif

#ifdef KVB_WITH_BLAS
void kvb_rival_blas(const struct kvb_rival *rival)
{
    const struct kvarn__kernels *kernels = kvarn__kernels_get();
    const int heads = (int)rival->heads, dim = (int)rival->dim, tokens = (int)rival->tokens;
    const float scale = 1.0f / sqrtf((float)rival->dim);

    openblas_set_num_threads(1);
    if (heads == 1) {
        cblas_sgemv(CblasRowMajor, CblasNoTrans, tokens, dim, 1.0f, rival->k, dim, rival->q, 1,
            0.0f, rival->logits, 1);
    } else {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, heads, tokens, dim, 1.0f, rival->q,
            dim, rival->k, dim, 0.0f, rival->logits, tokens);
    }
    for (uint32_t h = 0; h < rival->heads; h++) {
        float *logits = rival->logits + h * rival->tokens, max;
        double sum = 0;
        kernels->softmax_logits(logits, (uint32_t)rival->tokens, scale, 0, &max);
        kernels->softmax_weights(logits, (uint32_t)rival->tokens, max, &sum);
        cblas_sscal(tokens, (float)(1 / sum), logits, 1);
    }
    if (heads == 1) {
        cblas_sgemv(CblasRowMajor, CblasTrans, tokens, dim, 1.0f, rival->v, dim, rival->logits, 1,
            0.0f, rival->out, 1);
    } else {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, heads, dim, tokens, 1.0f,
            rival->logits, tokens, rival->v, dim, 0.0f, rival->out, dim);
    }
}
#else
void kvb_rival_blas(const struct kvb_rival *rival)
{
    (void)rival;
    abort(); /* kvb_rival_has_blas() said so */
}
#endif
