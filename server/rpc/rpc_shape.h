/*
 * What calls about shapes share.
 *
 * Thread: loop only.
 */
#ifndef KVD_RPC_SHAPE_H
#define KVD_RPC_SHAPE_H

#include "server/rpc/rpc.h"

/* The shape as its client described it, in the request's memory; NULL without. */
Kvarnd__Shape *kvd_rpc_shape_to_wire(struct kvarn_wire_alloc *alloc, const struct kvd_shape *shape);

/* Bytes of the sums of one layer on the wire. */
static inline uint64_t kvd_rpc_metric_layer_bytes(uint64_t kv_heads, uint64_t k_dim)
{
    return kv_heads * k_dim * k_dim * sizeof(float);
}

#endif
