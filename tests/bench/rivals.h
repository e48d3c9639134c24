/*
 * What kvarn-bench attention compares with: attention of the query heads of one KV head over a
 * cache that is not compressed, as good as we can write it, and a plain read of memory.
 *
 * All take K and V as [tokens][dim], unrotated or rotated alike, softmax(scale q K^T) V, and give
 * out float [heads][dim]. None allocates.
 */
#ifndef KVARN_TESTS_BENCH_RIVALS_H
#define KVARN_TESTS_BENCH_RIVALS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Tokens between two looks at the maximum. */
#define KVB_RIVAL_BLOCK 64

#define KVB_RIVAL_HEADS_MAX 8
#define KVB_RIVAL_DIM_MAX   256

struct kvb_rival {
    const void *k, *v; /* borrowed */
    const float *q;    /* borrowed, [heads][dim] */
    float *out;        /* borrowed, [heads][dim] */
    float *logits;     /* borrowed, work space [heads][tokens]: OpenBLAS only */
    size_t tokens;     /* a multiple of KVB_RIVAL_BLOCK */
    uint32_t dim;      /* 64, 128 or 256 */
    uint32_t heads;    /* 1, 4 or 8 */
};

/*
 * fp16 in AVX-512: rows converted in registers and used for 4 heads, 32-bit sums, one look at the
 * maximum a block (online softmax), the cache prefetched ahead.
 */
void kvb_rival_half(const struct kvb_rival *rival);

/* bf16 by vpdpbf16ps: q and weights rounded to bf16, 32-bit sums; else the same. */
void kvb_rival_bf16(const struct kvb_rival *rival);

/* fp32 through OpenBLAS: two matrix products and our vectorised softmax between them. */
void kvb_rival_blas(const struct kvb_rival *rival);

/* Read `bytes` at `p` once, as fast as one core can. Returns a sum that nothing may optimise out.
 */
uint64_t kvb_rival_read(const void *p, size_t bytes);

/* Which of them this build and machine have. */
bool kvb_rival_has_half(void);
bool kvb_rival_has_bf16(void);
bool kvb_rival_has_blas(void);

#endif
