/* Attention by its definition in double precision: what the walk over spans is held to. */
#ifndef KVARN_TESTS_SUPPORT_ATTENTION_F64_H
#define KVARN_TESTS_SUPPORT_ATTENTION_F64_H

#include "kvarn/attention.h"

/*
 * q: [q_heads][q_tokens][k_dim]; k, v: tokens 0 .. token_count - 1, [tokens][dim]; all in one
 * frame. out: [q_heads][q_tokens][v_dim], lse: [q_heads][q_tokens]. Rules: SEMANTICS 19.
 */
void kvt_attention_f64(const struct kvarn_attention_params *params, const float *q, const float *k,
    const float *v, uint64_t token_count, double *out, double *lse);

#endif
