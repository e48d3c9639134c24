/*
 * The library's scalar kernels built so that no compiler turns them into vector instructions:
 * "plain C", which quantising is compared with beside the scalar level itself.
 */
#ifndef KVARN_TESTS_BENCH_PLAIN_H
#define KVARN_TESTS_BENCH_PLAIN_H

#include "kvarn/codec.h"

/* kvarn_to_f32() and kvarn_tile_encode() of that build. */
struct kvb_plain {
    void (*to_f32)(float *dst, const void *src, enum kvarn_dtype dtype, size_t count);
    enum kvarn_encoder (*tile_encode)(const struct kvarn_tile_spec *spec,
        enum kvarn_encoder encoder, const float *k, const float *v, void *tile, void *scratch);
};

/* Load it, once. Returns NULL, after saying why, where it cannot be loaded. */
const struct kvb_plain *kvb_plain_load(void);

#endif
