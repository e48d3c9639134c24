/*
 * Caches of packed tiles for benches, one after the other in an arena far larger than a core's
 * share of any cache; and attention over one of them.
 */
#ifndef KVARN_TESTS_BENCH_CACHE_H
#define KVARN_TESTS_BENCH_CACHE_H

#include "kvarn/attention.h"

#define KVB_GROUP       128
#define KVB_PATTERNS    8 /* different tiles; the arena repeats them */
#define KVB_ARENA_BYTES ((size_t)256 << 20)
#define KVB_TOKENS_MAX  131072u

/* An arena of tiles of one head_dim, cut into caches of a length. */
struct kvb_tiles {
    struct kvarn_tile_spec spec;
    size_t tile_bytes;
    size_t tokens;                      /* a whole number of patterns */
    uint8_t *data;                      /* owned */
    struct kvarn_attention_span *spans; /* owned, one a tile */
};

/* What one thread needs to attend with some query heads. */
struct kvb_query {
    uint32_t heads;
    float *q, *out, *lse, *partial, *scratch; /* owned */
};

/* One cache: its length, and where it starts in the arena. */
struct kvb_place {
    uint32_t tokens; /* a multiple of KVB_GROUP */
    size_t token;    /* of the first */
};

/* Tokens of so many bytes that fill an arena: whole patterns, at least two of the longest caches.
 */
size_t kvb_arena_tokens(size_t token_bytes);

/* Repeat the first `unit` bytes of `memory` over `bytes`. */
void kvb_repeat(void *memory, size_t unit, size_t bytes);

/* Random rows, encoded; aborts for a preset that is none. */
void kvb_tiles_init(struct kvb_tiles *tiles, uint16_t dim, const char *preset);
void kvb_tiles_fini(struct kvb_tiles *tiles);

/* Caches of `tokens` tokens lie one after the other from now on. */
void kvb_tiles_cut(struct kvb_tiles *tiles, uint32_t tokens);

/* Random queries of `heads` query heads, and work space. */
void kvb_query_init(struct kvb_query *query, const struct kvb_tiles *tiles, uint32_t heads);
void kvb_query_fini(struct kvb_query *query);

/* Attention of one new token of each head over a cache, with the level in use. Any thread. */
void kvb_attend(const struct kvb_tiles *tiles, struct kvb_place place, enum kvarn_accuracy accuracy,
    struct kvb_query *query);

#endif
