/*
 * Budget allocator: memory is cut in order from blocks that double in size, and all of it is freed
 * together.
 *
 * Owner: whoever unpacks a message. Thread: one at a time; no globals.
 */
#include "proto/wire_alloc.h"

#include <stdalign.h>
#include <stdint.h>
#include <stdlib.h>

#include "lib/base/assert.h"

#define WIRE_ALIGN           16
#define WIRE_BLOCK_BYTES_MIN 1024        /* most requests unpack into one such block */
#define WIRE_BLOCK_BYTES_MAX (64 * 1024) /* a block grows past it only for a larger piece */

struct kvarn_wire_block {
    struct kvarn_wire_block *next; /* owned */
    size_t capacity_bytes;         /* of data */
    size_t taken_bytes;            /* <= capacity_bytes */
    alignas(WIRE_ALIGN) unsigned char data[];
};

/* protobuf-c hands back single pieces; they go with the block. */
static void wire_free_cb(void *allocator_data, void *piece)
{
    (void)allocator_data;
    (void)piece;
}

static void *wire_alloc_cb(void *allocator_data, size_t bytes)
{
    return kvarn_wire_alloc_take(allocator_data, bytes);
}

void kvarn_wire_alloc_init(struct kvarn_wire_alloc *wa, size_t limit_bytes)
{
    KVARN_ASSERT(wa != NULL);
    *wa = (struct kvarn_wire_alloc){
        .allocator = {.alloc = wire_alloc_cb, .free = wire_free_cb, .allocator_data = wa},
        .limit_bytes = limit_bytes,
    };
}

void kvarn_wire_alloc_fini(struct kvarn_wire_alloc *wa)
{
    if (wa == NULL) {
        return;
    }
    while (wa->blocks != NULL) {
        struct kvarn_wire_block *block = wa->blocks;

        wa->blocks = block->next;
        free(block);
    }
    wa->used_bytes = 0;
}

/*
 * Put a block with room for `bytes` in front; NULL past the limit or out of memory. The block's
 * header counts against the limit: used_bytes is what was asked of malloc.
 */
static struct kvarn_wire_block *block_push(struct kvarn_wire_alloc *wa, size_t bytes)
{
    KVARN_ASSERT(wa->used_bytes <= wa->limit_bytes);
    const size_t header = sizeof(struct kvarn_wire_block);
    const size_t room = wa->limit_bytes - wa->used_bytes;
    size_t capacity = WIRE_BLOCK_BYTES_MIN;

    if (room < header || bytes > room - header) {
        return NULL;
    }
    if (wa->blocks != NULL && wa->blocks->capacity_bytes >= WIRE_BLOCK_BYTES_MIN) {
        capacity = 2 * wa->blocks->capacity_bytes;
    }
    capacity = capacity > WIRE_BLOCK_BYTES_MAX ? WIRE_BLOCK_BYTES_MAX : capacity;
    capacity = capacity < bytes ? bytes : capacity;
    capacity = capacity > room - header ? room - header : capacity;

    struct kvarn_wire_block *block = malloc(header + capacity);
    if (block == NULL) {
        return NULL;
    }
    block->next = wa->blocks;
    block->capacity_bytes = capacity;
    block->taken_bytes = 0;
    wa->blocks = block;
    wa->used_bytes += header + capacity;
    return block;
}

void *kvarn_wire_alloc_take(struct kvarn_wire_alloc *wa, size_t bytes)
{
    KVARN_ASSERT(wa != NULL);
    if (bytes > SIZE_MAX - WIRE_ALIGN) {
        return NULL;
    }
    /* An empty piece takes a byte, so that no two pieces share an address. */
    const size_t padded = ((bytes == 0 ? 1 : bytes) + WIRE_ALIGN - 1) / WIRE_ALIGN * WIRE_ALIGN;

    struct kvarn_wire_block *block = wa->blocks;
    if (block == NULL || padded > block->capacity_bytes - block->taken_bytes) {
        block = block_push(wa, padded);
    }
    if (block == NULL) {
        return NULL;
    }
    void *piece = block->data + block->taken_bytes;
    block->taken_bytes += padded;
    KVARN_ASSERT(block->taken_bytes <= block->capacity_bytes);
    return piece;
}

int kvarn_wire_unpack(struct kvarn_wire_alloc *wa, const ProtobufCMessageDescriptor *descriptor,
    const void *bytes, size_t byte_count, ProtobufCMessage **ret)
{
    KVARN_ASSERT(wa != NULL && descriptor != NULL && ret != NULL);
    KVARN_ASSERT(bytes != NULL || byte_count == 0);
    static const uint8_t nothing[1];
    /* The struct may have been moved since _init: its allocator points at where it is now. */
    wa->allocator.allocator_data = wa;
    ProtobufCMessage *message = protobuf_c_message_unpack(
        descriptor, &wa->allocator, byte_count, bytes == NULL ? nothing : bytes);

    if (message == NULL) {
        return KVARN_EPROTOCOL;
    }
    *ret = message;
    return 0;
}
