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
#include "server/store/page_store.h"

struct kvd_cold_copy;
struct kvd_service;

#define KVD_SPAN_BLOCKS 64u

/* A block's name says what it holds: prefix_index.h. */
#define KVD_BLOCK_NAME_BYTES 32

/* One layer of one block. Both NULL: dropped, it left the layer's window. */
struct kvd_block_layer {
    struct kvd_page *rows; /* ref: sink and open blocks, until the seal is done */
    struct kvd_page
        *tiles; /* ref: reserved at first, holds the codes once sealed; NULL for sinks */
};

/* Where the pages of a block are. */
enum kvd_block_state {
    KVD_BLOCK_RESIDENT,
    KVD_BLOCK_MISSING, /* it has none any more */
    KVD_BLOCK_COLD,    /* they are in the cold tier */
    KVD_BLOCK_LOADING, /* and on their way back */
};

/* One block of all layers. Shared (refs > 1) it is not changed. */
struct kvd_block {
    SLIST_ENTRY(kvd_block) dead_link; /* the session table's, once nobody holds it */
    uint32_t refs;
    uint32_t layer_count;
    uint32_t layers_kept;               /* layers that still have a page here */
    uint32_t rows_count;                /* layers that have a rows page */
    uint8_t state;                      /* enum kvd_block_state */
    uint8_t miss_reason;                /* MISSING: Kvarnd__MissReason */
    uint8_t name[KVD_BLOCK_NAME_BYTES]; /* zeros: none */
    struct kvd_cold_copy *cold; /* ref; NULL: not in the cold tier, or in the session's tail */
    struct kvd_block_layer layers[];
};

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
