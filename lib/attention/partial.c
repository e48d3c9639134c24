/* Partials: what was seen so far of a token range, per query row; merging and finishing them. */
#include <math.h>
#include <string.h>

#include "kvarn/attention.h"
#include "lib/attention/partial.h"

size_t kvarn_attention_partial_floats(const struct kvarn_attention_params *params)
{
    return kvarn__attention_rows(params) * kvarn__partial_stride(params);
}

void kvarn_attention_partial_init(const struct kvarn_attention_params *params, float *partial)
{
    const size_t rows = kvarn__attention_rows(params);
    const size_t stride = kvarn__partial_stride(params);

    memset(partial, 0, rows * stride * sizeof(*partial));
    for (size_t r = 0; r < rows; r++) {
        partial[r * stride + KVARN__PARTIAL_MAX] = -INFINITY;
    }
}

static void row_merge(float *dst, const float *src, uint32_t dim)
{
    const float dst_max = dst[KVARN__PARTIAL_MAX];
    const float src_max = src[KVARN__PARTIAL_MAX];

    if (isinf(src_max)) {
        return; /* saw nothing */
    }
    if (isinf(dst_max)) {
        memcpy(dst, src, (KVARN__PARTIAL_ACC + dim) * sizeof(*dst));
        return;
    }
    float max = dst_max > src_max ? dst_max : src_max;
    float dst_share = expf(dst_max - max);
    float src_share = expf(src_max - max);
    dst[KVARN__PARTIAL_MAX] = max;
    for (uint32_t i = KVARN__PARTIAL_SUM; i < KVARN__PARTIAL_ACC + dim; i++) {
        dst[i] = dst_share * dst[i] + src_share * src[i];
    }
}

void kvarn_attention_merge(
    const struct kvarn_attention_params *params, float *dst, const float *src)
{
    const size_t rows = kvarn__attention_rows(params);
    const size_t stride = kvarn__partial_stride(params);

    for (size_t r = 0; r < rows; r++) {
        row_merge(dst + r * stride, src + r * stride, params->spec.v_dim);
    }
}

void kvarn_attention_finish(
    const struct kvarn_attention_params *params, const float *partial, float *out, float *lse)
{
    const size_t rows = kvarn__attention_rows(params);
    const size_t stride = kvarn__partial_stride(params);
    const uint32_t dim = params->spec.v_dim;

    for (size_t r = 0; r < rows; r++) {
        const float *row = partial + r * stride;
        float *dst = out + r * dim;
        if (isinf(row[KVARN__PARTIAL_MAX])) {
            memset(dst, 0, dim * sizeof(*dst));
            lse[r] = -INFINITY;
            continue;
        }
        for (uint32_t i = 0; i < dim; i++) {
            dst[i] = row[KVARN__PARTIAL_ACC + i] / row[KVARN__PARTIAL_SUM];
        }
        lse[r] = (float)((double)row[KVARN__PARTIAL_MAX] + log((double)row[KVARN__PARTIAL_SUM]));
    }
}
