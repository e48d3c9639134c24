/* Layout of one row of a partial: {max, sum, v_dim accumulators}. */
#ifndef KVARN_ATTENTION_PARTIAL_H
#define KVARN_ATTENTION_PARTIAL_H

#include <stddef.h>

#include "kvarn/attention.h"

#define KVARN__PARTIAL_MAX 0 /* largest logit seen; -inf: nothing was seen */
#define KVARN__PARTIAL_SUM 1 /* sum of exp(logit - max) */
#define KVARN__PARTIAL_ACC 2 /* sum of exp(logit - max) * V */

static inline size_t kvarn__attention_rows(const struct kvarn_attention_params *params)
{
    return (size_t)params->q_heads * params->q_tokens;
}

static inline size_t kvarn__partial_stride(const struct kvarn_attention_params *params)
{
    return KVARN__PARTIAL_ACC + (size_t)params->spec.v_dim;
}

#endif
