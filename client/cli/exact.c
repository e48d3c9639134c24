/*
 * Exact attention in double precision.
 *
 * Owner: the caller. Thread: any.
 */
#include "client/cli/exact.h"

#include <math.h>
#include <string.h>

#include "lib/base/assert.h"

#define LANES 8 /* partial sums of a dot product: one would wait for itself at every step */

static double dot(const float *a, const float *b, uint32_t count)
{
    double lanes[LANES] = {0};
    double sum = 0.0;
    uint32_t i = 0;

    for (; i + LANES <= count; i += LANES) {
        for (uint32_t lane = 0; lane < LANES; lane++) {
            lanes[lane] += (double)a[i + lane] * (double)b[i + lane];
        }
    }
    for (; i < count; i++) {
        sum += (double)a[i] * (double)b[i];
    }
    for (uint32_t lane = 0; lane < LANES; lane++) {
        sum += lanes[lane];
    }
    return sum;
}

/* What the rows of a query head read. */
struct head {
    const float *k, *v; /* borrowed; of its KV head */
    double *logits;     /* borrowed; work space of `tokens` values */
};

/* One query row over the first `seen` tokens. */
static void row_attend(const struct exact_in *in, const struct head *head, const float *q,
    uint64_t seen, double *out, double *lse)
{
    const float *k = head->k;
    const float *v = head->v;
    double *logits = head->logits;
    double max = -INFINITY;
    double sum = 0.0;

    for (uint64_t j = 0; j < seen; j++) {
        logits[j] = in->scale * dot(q, k + j * in->k_dim, in->k_dim);
        max = fmax(max, logits[j]);
    }
    memset(out, 0, in->v_dim * sizeof *out);
    for (uint64_t j = 0; j < seen; j++) {
        double weight = exp(logits[j] - max);

        sum += weight;
        for (uint32_t d = 0; d < in->v_dim; d++) {
            out[d] += weight * (double)v[j * in->v_dim + d];
        }
    }
    for (uint32_t d = 0; d < in->v_dim; d++) {
        out[d] /= sum;
    }
    *lse = max + log(sum);
}

void exact_attend_head(
    const struct exact_in *in, uint32_t q_head, double *out, double *lse, double *logits)
{
    KVARN_ASSERT(in->kv_heads > 0 && in->q_heads % in->kv_heads == 0 && q_head < in->q_heads);
    KVARN_ASSERT(in->position + in->query_tokens <= in->tokens);
    uint32_t kv_head = q_head / (in->q_heads / in->kv_heads);
    const float *q = in->q + q_head * in->query_tokens * in->k_dim;
    const struct head head = {
        .k = in->k + kv_head * in->tokens * in->k_dim,
        .v = in->v + kv_head * in->tokens * in->v_dim,
        .logits = logits,
    };

    for (uint64_t row = 0; row < in->query_tokens; row++) {
        row_attend(in, &head, q + row * in->k_dim, in->position + row + 1, out + row * in->v_dim,
            lse + row);
    }
}
