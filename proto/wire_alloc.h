/*
 * Budget allocator for protobuf-c: one block of memory per message, handed out in order, freed at
 * once.
 *
 * protobuf-c unpacks 1 MiB of hostile bytes into 48 MiB; with this no unpack escapes its limit:
 * past it alloc returns NULL and the unpack fails. Individual frees do nothing.
 */
#ifndef KVARN_PROTO_WIRE_ALLOC_H
#define KVARN_PROTO_WIRE_ALLOC_H

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>

#include "kvarn/err.h"

struct kvarn_wire_alloc {
    ProtobufCAllocator allocator;    /* pass &allocator to unpack */
    struct kvarn_wire_block *blocks; /* owned; grown on demand, sum <= limit */
    size_t used_bytes;
    size_t limit_bytes;
};

/* Nothing is allocated until the first use. */
void kvarn_wire_alloc_init(struct kvarn_wire_alloc *wa, size_t limit_bytes);

/* Free all. Accepts a zeroed struct; safe to call twice. */
void kvarn_wire_alloc_fini(struct kvarn_wire_alloc *wa);

/* 16-byte aligned memory that lives until _fini; NULL past the limit or out of memory. */
void *kvarn_wire_alloc_take(struct kvarn_wire_alloc *wa, size_t bytes);

/*
 * Unpack a message under the budget. Returns 0; KVARN_EPROTOCOL when the bytes are no such message
 * or need more than the limit.
 */
int kvarn_wire_unpack(struct kvarn_wire_alloc *wa, const ProtobufCMessageDescriptor *descriptor,
    const void *bytes, size_t byte_count, ProtobufCMessage **ret) KVARN_MUST_CHECK;

#endif
