/* Attention by its definition in double precision. */
#include "tests/support/attention_f64.h"

#include <math.h>
#include <stdlib.h>

static bool sees(const struct kvarn_attention_params *params, uint64_t position, uint64_t token)
{
    if (token < params->first || token >= params->last) {
        return false;
    }
    if (params->causal && token > position) {
        return false;
    }
    return params->window == 0 || token + params->window > position;
}

static double logit_of(const struct kvarn_attention_params *params, const float *q, const float *k)
{
    double dot = 0;

    for (uint32_t d = 0; d < params->spec.k_dim; d++) {
        dot += (double)q[d] * (double)k[d];
    }
    dot *= (double)params->scale;
    if (params->softcap > 0) {
        dot = (double)params->softcap * tanh(dot / (double)params->softcap);
    }
    return dot;
}

/* What all query rows read. */
struct cache {
    const float *k, *v;
    uint64_t token_count;
    double *logits; /* work space, [token_count] */
};

static void row_attend(const struct kvarn_attention_params *params, uint64_t position,
    const float *q, const struct cache *cache, double *out, double *lse)
{
    const uint32_t k_dim = params->spec.k_dim, v_dim = params->spec.v_dim;
    double *logits = cache->logits;
    double max = -INFINITY, sum = 0;

    for (uint32_t d = 0; d < v_dim; d++) {
        out[d] = 0;
    }
    for (uint64_t t = 0; t < cache->token_count; t++) {
        bool seen = sees(params, position, t);
        logits[t] = seen ? logit_of(params, q, cache->k + t * k_dim) : -INFINITY;
        max = fmax(max, logits[t]);
    }
    if (isinf(max)) {
        *lse = -INFINITY;
        return;
    }
    for (uint64_t t = 0; t < cache->token_count; t++) {
        double weight = exp(logits[t] - max);
        sum += weight;
        for (uint32_t d = 0; d < v_dim; d++) {
            out[d] += weight * (double)cache->v[t * v_dim + d];
        }
    }
    for (uint32_t d = 0; d < v_dim; d++) {
        out[d] /= sum;
    }
    *lse = max + log(sum);
}

void kvt_attention_f64(const struct kvarn_attention_params *params, const float *q, const float *k,
    const float *v, uint64_t token_count, double *out, double *lse)
{
    const size_t rows = (size_t)params->q_heads * params->q_tokens;
    double *logits = malloc((token_count + 1) * sizeof(*logits));

    if (logits == NULL) {
        abort();
    }
    struct cache cache = {k, v, token_count, logits};
    for (size_t r = 0; r < rows; r++) {
        row_attend(params, params->position + r % params->q_tokens, q + r * params->spec.k_dim,
            &cache, out + r * params->spec.v_dim, lse + r);
    }
    free(logits);
}
