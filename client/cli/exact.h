/*
 * Exact attention: the definition in double precision over plain K and V, causal. What a daemon's
 * answers are measured against; it shares no code with the library's attention.
 *
 * Owner: the caller. Thread: any; pure functions.
 */
#ifndef KVARNCTL_EXACT_H
#define KVARNCTL_EXACT_H

#include <stddef.h>
#include <stdint.h>

/* One layer. All arrays are C order, in one frame, borrowed. SEMANTICS.md 19 and 20. */
struct exact_in {
    const float *q; /* [q_heads][query_tokens][k_dim] */
    const float *k; /* [kv_heads][tokens][k_dim] */
    const float *v; /* [kv_heads][tokens][v_dim] */
    uint32_t q_heads, kv_heads;
    uint32_t k_dim, v_dim;
    uint64_t tokens;
    uint64_t query_tokens;
    uint64_t position; /* of query token 0; position + query_tokens <= tokens */
    double scale;
};

/*
 * Attend with the rows of one query head, which reads KV head q_head / (q_heads / kv_heads).
 *
 * out:    [query_tokens][v_dim]
 * lse:    [query_tokens], natural logarithm
 * logits: work space of `tokens` values
 */
void exact_attend_head(
    const struct exact_in *in, uint32_t q_head, double *out, double *lse, double *logits);

#endif
