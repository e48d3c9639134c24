/* Caches of packed tiles for benches, and attention over them. */
#include "tests/bench/cache.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kvarn/codec.h"
#include "tests/bench/bench.h"
#include "tests/support/tiles.h"

size_t kvb_arena_tokens(size_t token_bytes)
{
    const size_t unit = (size_t)KVB_PATTERNS * KVB_GROUP, least = 2 * (size_t)KVB_TOKENS_MAX;
    size_t tokens = KVB_ARENA_BYTES / token_bytes;

    return (tokens < least ? least : tokens) / unit * unit;
}

void kvb_repeat(void *memory, size_t unit, size_t bytes)
{
    for (size_t at = unit; at < bytes; at += unit) {
        memcpy((uint8_t *)memory + at, memory, bytes - at < unit ? bytes - at : unit);
    }
}

static void pattern_init(struct kvb_tiles *tiles, struct kvt_rng *rng, size_t i)
{
    const size_t count = (size_t)KVB_GROUP * tiles->spec.k_dim;
    float *k = kvb_alloc(count * sizeof(float)), *v = kvb_alloc(count * sizeof(float));

    kvt_rows_fill(rng, k, KVB_GROUP, tiles->spec.k_dim, 1.0);
    kvt_rows_fill(rng, v, KVB_GROUP, tiles->spec.k_dim, 1.0);
    void *tile = kvt_tile_make(&tiles->spec, KVARN_ENCODER_REFERENCE, k, v);
    memcpy(tiles->data + i * tiles->tile_bytes, tile, tiles->tile_bytes);
    free(tile);
    free(k);
    free(v);
}

void kvb_tiles_init(struct kvb_tiles *tiles, uint16_t dim, const char *preset)
{
    struct kvt_rng rng = {.state = dim};

    *tiles = (struct kvb_tiles){.spec = {.k_dim = dim, .v_dim = dim, .group = KVB_GROUP}};
    if (kvarn_preset_parse(preset, &tiles->spec.k_bits, &tiles->spec.v_bits) != 0) {
        abort();
    }
    tiles->tile_bytes = kvarn_tile_bytes(&tiles->spec);
    tiles->tokens = kvb_arena_tokens(tiles->tile_bytes / KVB_GROUP);
    size_t count = tiles->tokens / KVB_GROUP;
    tiles->data = kvb_alloc(count * tiles->tile_bytes);
    tiles->spans = kvb_alloc(count * sizeof(*tiles->spans));
    for (size_t i = 0; i < KVB_PATTERNS; i++) {
        pattern_init(tiles, &rng, i);
    }
    kvb_repeat(tiles->data, KVB_PATTERNS * tiles->tile_bytes, count * tiles->tile_bytes);
}

void kvb_tiles_fini(struct kvb_tiles *tiles)
{
    free(tiles->data);
    free(tiles->spans);
}

void kvb_tiles_cut(struct kvb_tiles *tiles, uint32_t tokens)
{
    const size_t count = tiles->tokens / KVB_GROUP, per_cache = tokens / KVB_GROUP;

    for (size_t i = 0; i < count; i++) {
        tiles->spans[i] = (struct kvarn_attention_span){.form = KVARN_SPAN_TILE,
            .first_token = i % per_cache * KVB_GROUP,
            .token_count = KVB_GROUP,
            .tile = tiles->data + i * tiles->tile_bytes};
    }
}

void kvb_query_init(struct kvb_query *query, const struct kvb_tiles *tiles, uint32_t heads)
{
    const size_t count = (size_t)heads * tiles->spec.k_dim;
    const struct kvarn_attention_params params = {
        .spec = tiles->spec, .q_heads = heads, .q_tokens = 1, .accuracy = KVARN_ACCURACY_FAST};
    struct kvt_rng rng = {.state = 3};

    *query = (struct kvb_query){.heads = heads};
    query->q = kvb_alloc(count * sizeof(float));
    query->out = kvb_alloc(count * sizeof(float));
    query->lse = kvb_alloc(heads * sizeof(float));
    query->partial = kvb_alloc(kvarn_attention_partial_floats(&params) * sizeof(float));
    query->scratch = kvb_alloc(kvarn_attention_scratch_floats(&params) * sizeof(float));
    for (size_t i = 0; i < count; i++) {
        query->q[i] = (float)kvt_rng_normal(&rng);
    }
}

void kvb_query_fini(struct kvb_query *query)
{
    free(query->q);
    free(query->out);
    free(query->lse);
    free(query->partial);
    free(query->scratch);
}

void kvb_attend(const struct kvb_tiles *tiles, struct kvb_place place, enum kvarn_accuracy accuracy,
    struct kvb_query *query)
{
    const struct kvarn_attention_params params = {.spec = tiles->spec,
        .q_heads = query->heads,
        .q_tokens = 1,
        .position = place.tokens - 1,
        .last = place.tokens,
        .scale = 1.0f / sqrtf((float)tiles->spec.k_dim),
        .causal = true,
        .accuracy = accuracy};

    kvarn_attention_partial_init(&params, query->partial);
    kvarn_attention_walk(&params, query->q, tiles->spans + place.token / KVB_GROUP,
        place.tokens / KVB_GROUP, query->partial, query->scratch);
    kvarn_attention_finish(&params, query->partial, query->out, query->lse);
}
