/* The capacity calculator. */
#include "client/cli/size.h"

#include "lib/base/assert.h"
#include "lib/base/limits.h"

static int in_check(const struct size_in *in)
{
    int err = kvarn_tile_spec_check(&in->spec);

    if (err != 0) {
        return err;
    }
    if (in->layers == 0 || in->layers > KVARN_LAYERS_MAX || in->kv_heads == 0 ||
        in->kv_heads > KVARN_KV_HEADS_MAX || in->tokens > KVARN_SESSION_TOKENS_MAX ||
        in->sink_tokens > KVARN_SESSION_TOKENS_MAX || in->sink_tokens % in->spec.group != 0 ||
        in->seal_lag > in->spec.group) {
        return KVARN_EINVALID;
    }
    return 0;
}

int size_compute(const struct size_in *in, struct size_out *ret)
{
    uint64_t group = in->spec.group;
    uint64_t values; /* of one token, all layers */
    uint64_t blocks, sink_blocks, sealed_blocks, rows_bytes, tiles_bytes, tile_values;
    int err = in_check(in);

    if (err != 0) {
        return err;
    }
    values = (uint64_t)in->layers * in->kv_heads * (in->spec.k_dim + in->spec.v_dim);
    rows_bytes = values * group * sizeof(uint16_t);
    tiles_bytes = (uint64_t)in->layers * in->kv_heads * kvarn_tile_bytes(&in->spec);
    tile_values = group * (in->spec.k_dim + in->spec.v_dim);
    blocks = (in->tokens + group - 1) / group;
    sink_blocks = in->sink_tokens / group;
    if (sink_blocks > blocks) {
        sink_blocks = blocks;
    }
    /* Block b is sealed when tokens >= (b + 1) * group + seal_lag. */
    sealed_blocks = in->tokens > in->seal_lag ? (in->tokens - in->seal_lag) / group : 0;
    if (sealed_blocks < sink_blocks) {
        sealed_blocks = sink_blocks;
    }
    KVARN_ASSERT(sealed_blocks <= blocks);
    *ret = (struct size_out){
        .fp16_bytes = values * in->tokens * sizeof(uint16_t),
        .format_bytes = (sealed_blocks - sink_blocks) * tiles_bytes,
        .sink_bytes = sink_blocks * rows_bytes,
        .tail_bytes = (blocks - sealed_blocks) * rows_bytes,
        .reserved_bytes = (blocks - sealed_blocks) * tiles_bytes,
        .format_bits = 8.0 * (double)kvarn_record_bytes(&in->spec) / (double)tile_values,
    };
    ret->format_ratio = 16.0 / ret->format_bits;
    ret->total_bytes = ret->format_bytes + ret->sink_bytes + ret->tail_bytes + ret->reserved_bytes;
    if (ret->total_bytes != 0) {
        ret->ratio = (double)ret->fp16_bytes / (double)ret->total_bytes;
    }
    return 0;
}
