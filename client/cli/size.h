/*
 * The capacity calculator: bytes that a session of a model needs at a number of tokens.
 *
 * The same arithmetic as the daemon's pages (SEMANTICS.md 1, 2, 5): blocks of the sink are rows of
 * fp16, sealed blocks are tiles, open blocks (the tail) are rows of fp16 with their tiles' pages
 * already reserved. Pages are whole: a block of which one token is used takes all its bytes.
 */
#ifndef KVARNCTL_SIZE_H
#define KVARNCTL_SIZE_H

#include <stdint.h>

#include "kvarn/codec.h"

struct size_in {
    struct kvarn_tile_spec spec;
    uint32_t layers;
    uint32_t kv_heads;
    uint64_t sink_tokens; /* 0 or a multiple of spec.group */
    uint64_t seal_lag;    /* 0..group */
    uint64_t tokens;
};

struct size_out {
    uint64_t fp16_bytes;   /* the tokens in plain fp16 */
    uint64_t format_bytes; /* tiles of sealed blocks */
    uint64_t sink_bytes;
    uint64_t tail_bytes;     /* rows of open blocks */
    uint64_t reserved_bytes; /* tiles' pages of open blocks */
    uint64_t total_bytes;
    double ratio;        /* fp16 / total; 0 without tokens */
    double format_ratio; /* fp16 / record, of a tile */
    double format_bits;  /* of a value in a record */
};

/* Returns 0, or KVARN_EINVALID when a field is outside what a shape may have. */
int size_compute(const struct size_in *in, struct size_out *ret) KVARN_MUST_CHECK;

#endif
