/*
 * Attention over packed tiles and half-precision rows, with an online softmax.
 *
 * One call walks spans of one KV head for the query heads that read it (GQA). K and V are never
 * materialised. A result is a *partial*: (max, sum, weighted V) per query row, in the rotated
 * frame. Partials over disjoint token ranges merge by log-sum-exp, so a long session can be cut and
 * computed on several threads; the same cuts merged in the same order give the same bits.
 *
 * Rules of masking: SEMANTICS.md 19. Two accuracies. Exact: all arithmetic is float32 with double
 * accumulation of the softmax sum. Fast: over tiles, queries and weights are rounded to 8 bits with
 * one scale a row and tile, and multiplied with the codes as whole numbers; half rows are as in
 * exact. On keys, values and queries of a real model fast adds about 1e-5 of relative squared error
 * to what 2-bit tiles themselves cost, .01 (lib/PERFORMANCE.md).
 */
#ifndef KVARN_ATTENTION_H
#define KVARN_ATTENTION_H

#include "kvarn/codec.h"

#ifdef __cplusplus
extern "C" {
#endif

enum kvarn_accuracy {
    KVARN_ACCURACY_DEFAULT = 0, /* fast */
    KVARN_ACCURACY_EXACT = 1,   /* float32 on the decoded values */
    KVARN_ACCURACY_FAST = 2,    /* 8-bit queries and weights over tiles */
};

/* What every query row of one call shares. */
struct kvarn_attention_params {
    struct kvarn_tile_spec spec; /* dims; group and bits used by tile spans only */
    uint32_t q_heads;            /* query heads that read this KV head, >= 1 */
    uint32_t q_tokens;           /* query tokens T, >= 1 */
    uint64_t position;           /* absolute position of query token 0 */
    uint64_t first, last;        /* only tokens in [first, last) are seen */
    uint64_t window;             /* 0 = full, else a row at p sees j > p - window */
    float scale;                 /* logits = scale * q.k */
    float softcap;               /* 0 = none, else logits = cap * tanh(logits / cap) */
    bool causal;                 /* a row at p sees j <= p; otherwise the whole range */
    enum kvarn_accuracy accuracy;
};

enum kvarn_span_form {
    KVARN_SPAN_TILE, /* data: a tile of `spec.group` tokens */
    KVARN_SPAN_HALF, /* k_rows, v_rows: rotated half rows */
};

/* A stretch of consecutive tokens of one KV head. */
struct kvarn_attention_span {
    enum kvarn_span_form form;
    uint64_t first_token;
    uint32_t token_count;   /* <= group; a tile may be used up to any token_count */
    const void *tile;       /* form TILE */
    const uint16_t *k_rows; /* form HALF: [token_count][k_dim], contiguous */
    const uint16_t *v_rows; /* form HALF: [token_count][v_dim], contiguous */
};

/*
 * Floats of one partial: q_heads * q_tokens rows, each {max, sum, v_dim accumulators}.
 * Rows are [query head][query token].
 */
KVARN_API size_t kvarn_attention_partial_floats(const struct kvarn_attention_params *params);

/* Set a partial to "nothing seen". */
KVARN_API void kvarn_attention_partial_init(
    const struct kvarn_attention_params *params, float *partial);

/* Floats of scratch that kvarn_attention_walk() needs. */
KVARN_API size_t kvarn_attention_scratch_floats(const struct kvarn_attention_params *params);

/*
 * Add spans to a partial. Spans must ascend by first_token.
 * q: rotated float [q_heads][q_tokens][k_dim], all finite and within 32,768: with tiles that passed
 * kvarn_record_validate() logits then stay below 7e11 * scale, and nothing is Inf or NaN.
 */
KVARN_API void kvarn_attention_walk(const struct kvarn_attention_params *params, const float *q,
    const struct kvarn_attention_span *spans, size_t span_count, float *partial, float *scratch);

/* dst = dst merged with src, rows by log-sum-exp. */
KVARN_API void kvarn_attention_merge(
    const struct kvarn_attention_params *params, float *dst, const float *src);

/*
 * Finish a partial: out float [q_heads][q_tokens][v_dim], still rotated; lse float
 * [q_heads][q_tokens], natural log over the logits. A row that saw nothing gives out 0, lse -inf.
 */
KVARN_API void kvarn_attention_finish(
    const struct kvarn_attention_params *params, const float *partial, float *out, float *lse);

#ifdef __cplusplus
}
#endif

#endif
