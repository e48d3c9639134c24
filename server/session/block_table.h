/*
 * Block table: the blocks of one session, in spans of 64 that several sessions may share.
 *
 * Owner: session. Thread: loop only. Knows blocks and their pages; what a block means to a session
 * is session_blocks.h's.
 *
 * A block is held by spans (and by whoever took a reference); a span by tables. Only whole spans,
 * of 64 blocks, are shared: a clone takes one reference for each of them, so that it costs some
 * tens of nanoseconds for 64 blocks, and one for each block of the last, partial span. Who changes
 * a table, a span or a block first makes it its own.
 */
#ifndef KVD_BLOCK_TABLE_H
#define KVD_BLOCK_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <bsd/sys/queue.h>

#include "kvarn/err.h"
#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/store/page_store.h"

struct kvd_cold_copy;
struct kvd_service;

#define KVD_SPAN_BLOCKS 64u

/* A block's name says what it holds: prefix_index.h. */
#define KVD_BLOCK_NAME_BYTES 32

/* Where the pages of a block are. */
enum kvd_block_state {
    KVD_BLOCK_RESIDENT,
    KVD_BLOCK_MISSING, /* it has none any more */
    KVD_BLOCK_COLD,    /* they are in the cold tier */
    KVD_BLOCK_LOADING, /* and on their way back */
};

/* Rows pages of a block, by layer: while one of them has any, or is about to. */
struct kvd_block_rows {
    uint32_t count; /* layers that have one */
    uint32_t ids[]; /* refs; 0: none */
};

/*
 * One block of all layers. Shared (refs > 1) it is not changed. Of each layer it holds a page of
 * rows (sink and open blocks, until the seal is done), one of tiles (reserved at first, codes once
 * sealed; none for sinks), both, or none: dropped, it left the layer's window. A block whose pages
 * are not in memory has no arrays either.
 */
struct kvd_block {
    union {
        SLIST_ENTRY(kvd_block) dead_link;   /* the session table's, once nobody holds it */
        uint8_t name[KVD_BLOCK_NAME_BYTES]; /* zeros: none */
    };
    struct kvd_cold_copy *cold;  /* ref; NULL: not in the cold tier, or in the session's tail */
    uint32_t *tiles;             /* owned array, by layer: refs of pages, 0: none; or NULL */
    struct kvd_block_rows *rows; /* owned; or NULL */
    uint32_t refs;
    uint32_t layer_count : 10;
    uint32_t layers_kept : 10; /* layers that still have a page here */
    uint32_t state : 2;        /* enum kvd_block_state */
    uint32_t miss_reason : 4;  /* MISSING: Kvarnd__MissReason */
};
_Static_assert(sizeof(struct kvd_block) == 64, "of 32 layers: 2 of the 16 bytes of a page");
_Static_assert(KVARN_LAYERS_MAX < 1 << 10, "layer counts fit");

struct kvd_span {
    SLIST_ENTRY(kvd_span) dead_link; /* the session table's, once nobody holds it */
    uint32_t refs;
    uint32_t room;              /* of blocks; KVD_SPAN_BLOCKS when shared */
    struct kvd_block *blocks[]; /* refs; NULL: dropped by all layers, or not there yet */
};

SLIST_HEAD(kvd_block_dead_list, kvd_block);
SLIST_HEAD(kvd_span_dead_list, kvd_span);

/* Zeroed: empty. */
struct kvd_block_table {
    struct kvd_span **spans; /* owned array; refs */
    uint32_t span_room;
    uint32_t count; /* blocks */
};

static inline struct kvd_block *kvd_block_table_at(
    const struct kvd_block_table *table, uint32_t block_idx)
{
    return table->spans[block_idx / KVD_SPAN_BLOCKS]->blocks[block_idx % KVD_SPAN_BLOCKS];
}

/* A layer's page in a block, or NULL. */
static inline struct kvd_page *kvd_block_rows(
    const struct kvd_page_store *pages, const struct kvd_block *block, uint32_t layer)
{
    return block->rows == NULL ? NULL : kvd_page_at(pages, block->rows->ids[layer]);
}

static inline struct kvd_page *kvd_block_tiles(
    const struct kvd_page_store *pages, const struct kvd_block *block, uint32_t layer)
{
    return block->tiles == NULL ? NULL : kvd_page_at(pages, block->tiles[layer]);
}

/* Layers that have a rows page. */
static inline uint32_t kvd_block_rows_count(const struct kvd_block *block)
{
    return block->rows == NULL ? 0 : block->rows->count;
}

/*
 * Put a page (NULL: none) in its place; there must be room for it. References change hands: what
 * was there is the caller's, who knows it.
 */
static inline void kvd_block_set_rows(
    struct kvd_block *block, uint32_t layer, const struct kvd_page *page)
{
    KVARN_ASSERT(block->rows != NULL || page == NULL);
    if (block->rows != NULL) {
        uint32_t old = block->rows->ids[layer];
        block->rows->ids[layer] = page == NULL ? 0 : kvd_page_id(page);
        block->rows->count += (page != NULL ? 1u : 0u) - (old != 0 ? 1u : 0u);
    }
}

static inline void kvd_block_set_tiles(
    struct kvd_block *block, uint32_t layer, const struct kvd_page *page)
{
    KVARN_ASSERT(block->tiles != NULL || page == NULL);
    if (block->tiles != NULL) {
        block->tiles[layer] = page == NULL ? 0 : kvd_page_id(page);
    }
}

/*
 * Make room for pages in a block, where there is none. Room that nobody uses stays until the block
 * has no pages of the kind, or is given back. Returns 0 or KVARN_ENOSPC.
 */
int kvd_block_want_rows(struct kvd_service *service, struct kvd_block *block) KVARN_MUST_CHECK;
int kvd_block_want_tiles(struct kvd_service *service, struct kvd_block *block) KVARN_MUST_CHECK;

/* Give back room for rows if no layer has any; for the other arrays too if none has tiles. */
void kvd_block_trim_rows(struct kvd_service *service, struct kvd_block *block);
void kvd_block_trim(struct kvd_service *service, struct kvd_block *block);

/* Bytes that the table itself holds now: its array and the spans that are not shared. */
size_t kvd_block_table_bytes(const struct kvd_block_table *table);

/* Make room for one more block. Returns 0 or KVARN_ENOSPC (budget or memory). */
int kvd_block_table_reserve(
    struct kvd_service *service, struct kvd_block_table *table) KVARN_MUST_CHECK;

/* Add a block, whose reference becomes the table's; there must be room. */
void kvd_block_table_push(struct kvd_block_table *table, struct kvd_block *block);

/*
 * Take the last block out; its reference is the caller's. NULL when all layers dropped it. The last
 * span must be the table's own.
 */
struct kvd_block *kvd_block_table_pop(struct kvd_service *service, struct kvd_block_table *table);

/*
 * Let go of the last span whole, shared or not; when nobody holds it any more it is freed in slices
 * (SEMANTICS.md 11).
 */
void kvd_block_table_pop_span(struct kvd_service *service, struct kvd_block_table *table);

/* The last span, of which others hold a reference too? */
bool kvd_block_table_last_is_shared(const struct kvd_block_table *table);

/* Make the span of a block the table's own. Returns 0 or KVARN_ENOSPC. */
int kvd_block_table_own_span(struct kvd_service *service, struct kvd_block_table *table,
    uint32_t block_idx) KVARN_MUST_CHECK;

/*
 * Put another block (NULL: none) in a place of a span that is the table's own; references change
 * hands both ways.
 */
struct kvd_block *kvd_block_table_swap(
    struct kvd_block_table *table, uint32_t block_idx, struct kvd_block *block);

/*
 * Make `ret` (empty) hold the same blocks, by reference. Returns 0, or KVARN_ENOSPC with `ret`
 * empty.
 */
int kvd_block_table_clone(struct kvd_service *service, const struct kvd_block_table *table,
    struct kvd_block_table *ret) KVARN_MUST_CHECK;

/* Let go of everything; blocks that nobody holds any more are freed in slices. */
void kvd_block_table_clear(struct kvd_service *service, struct kvd_block_table *table);

/* A block without pages, with one reference, charged. NULL: no room. */
struct kvd_block *kvd_block_create(struct kvd_service *service, uint32_t layer_count);

struct kvd_block *kvd_block_ref(struct kvd_block *block);

/* Drop a reference; the last one frees the block and lets go of its pages. NULL ok. */
void kvd_block_unref(struct kvd_service *service, struct kvd_block *block);

/* The same, but what is to be freed is freed in a later slice. NULL ok. */
void kvd_block_unref_later(struct kvd_service *service, struct kvd_block *block);

/* For the reaper: free a block that nobody holds. */
void kvd_block_destroy(struct kvd_service *service, struct kvd_block *block);

/* For the reaper: free at most one block of a span that nobody holds; true when the span is gone.
 */
bool kvd_span_free_some(struct kvd_service *service, struct kvd_span *span);

#endif
