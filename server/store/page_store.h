/*
 * Page store: fixed-size slots for pages, cut from chunks of 2 to 16 MiB, shared by reference.
 *
 * Owner: service. Thread: loop only, except that a worker may ask for kvd_page_data() while the
 * loop holds a reference for it. Knows nothing of sessions or the wire.
 *
 * A page in use is a struct kvd_page; who keeps it for long keeps its number, kvd_page_id(), which
 * stays its own until the last reference is dropped.
 */
#ifndef KVD_PAGE_STORE_H
#define KVD_PAGE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <bsd/sys/queue.h>

#include "kvarn/codec.h"
#include "kvarn/err.h"
#include "lib/base/assert.h"
#include "server/base/budget.h"
#include "server/store/chunk_source.h"
#include "server/store/page_sheet.h"

/* What a page is for; the counts of Stats and InspectSession are by class. */
enum kvd_page_class {
    KVD_PAGE_TILES, /* sealed: all KV heads' tiles of one layer and block, immutable */
    KVD_PAGE_SINK,  /* rotated half rows of a sink block; immutable once full */
    KVD_PAGE_TAIL,  /* rotated half rows of an open block */
    KVD_PAGE_CLASS_COUNT,
};

struct kvd_page_class_stats {
    uint64_t pages;
    uint64_t bytes;
};

LIST_HEAD(kvd_slab_list, kvd_slab);
SLIST_HEAD(kvd_chunk_list, kvd_chunk);

/* A slab with pages holds a chunk of 2 MiB or more, so 64 buckets keep lists short up to 1 TiB. */
#define KVD_SLAB_BUCKETS 64

struct kvd_page_store {
    struct kvd_budget *budget;       /* borrowed */
    struct kvd_chunk_source *source; /* borrowed */
    /* owned: one slab per (tenant, page size), hashed; a slab without a chunk is freed */
    struct kvd_slab_list slabs[KVD_SLAB_BUCKETS];
    struct kvd_page_class_stats classes[KVD_PAGE_CLASS_COUNT];
    struct kvd_page_sheets sheets;
    uint64_t chunk_bytes; /* memory held in chunks */
    uint64_t chunk_count;
    struct kvd_chunk_list dying; /* empty chunks that go back in steps; counted until they have */
    uint64_t dying_bytes;
    /*
     * Tells that there are dying chunks: kvd_page_store_purge_some() is to be called until there
     * are none. NULL: chunks go back whole, at once, which takes some 50 us a MiB.
     */
    void (*dying_cb)(void *ctx);
    void *dying_ctx; /* borrowed */
};

/* Sets budget->reclaim_cb, so that kept chunks never make anybody's charge fail. */
void kvd_page_store_init(
    struct kvd_page_store *store, struct kvd_budget *budget, struct kvd_chunk_source *source);

/* All pages must have been given back. */
void kvd_page_store_fini(struct kvd_page_store *store);

/*
 * Take a page of `page_bytes` with one reference, owned by the caller. Never blocks. Content is
 * undefined: the taker writes every byte that it may send. Returns 0, or KVARN_ENOSPC at the limit
 * (or when the system has no memory), *ret untouched.
 */
int kvd_page_take(struct kvd_page_store *store, uint32_t tenant_id, size_t page_bytes,
    enum kvd_page_class page_class, struct kvd_page **ret) KVARN_MUST_CHECK;

struct kvd_page *kvd_page_ref(struct kvd_page *page);

/*
 * Drop a reference; the last one frees the slot, and an empty chunk goes back to its source, except
 * that a slab keeps one (charged) until someone's charge needs the room. NULL ok.
 */
void kvd_page_unref(struct kvd_page_store *store, struct kvd_page *page);

/* The page of a number; NULL for 0. */
static inline struct kvd_page *kvd_page_at(const struct kvd_page_store *store, uint32_t id)
{
    return id == 0 ? NULL : kvd_sheets_find(&store->sheets, id);
}

/* The bytes of a page: one stretch, 64-byte aligned, in one place as long as it is referenced. */
void *kvd_page_data(const struct kvd_page *page);

/* How many there are. */
size_t kvd_page_bytes(const struct kvd_page *page);

/*
 * What is kept of the checksum (XXH3-64 of the data) of a sealed page, KVD_PAGE_CHECK_BITS of it;
 * 0 before. Two checksums match when what is kept of both is equal.
 */
static inline uint64_t kvd_page_checksum(const struct kvd_page *page)
{
    return (uint64_t)page->check_high << 32 | page->check_low;
}

static inline void kvd_page_set_checksum(struct kvd_page *page, uint64_t checksum)
{
    KVARN_ASSERT(page->page_class == KVD_PAGE_TILES);
    page->check_low = (uint32_t)checksum;
    page->check_high = (checksum >> 32) & 15;
}

static inline bool kvd_page_checksum_matches(uint64_t a, uint64_t b)
{
    return ((a ^ b) & KVD_PAGE_CHECK_MASK) == 0;
}

/* Rows of a rows page that were ever written; who shares the page copies it below that. */
static inline uint32_t kvd_page_filled(const struct kvd_page *page)
{
    return page->page_class == KVD_PAGE_TILES ? 0 : page->check_low;
}

static inline void kvd_page_set_filled(struct kvd_page *page, uint32_t tokens)
{
    KVARN_ASSERT(page->page_class != KVD_PAGE_TILES);
    page->check_low = tokens;
}

static inline void kvd_page_set_encoder(struct kvd_page *page, enum kvarn_encoder encoder)
{
    page->encoder = (unsigned)encoder & 3;
}

/*
 * The version of the query metric that sealed a page; 0: none did. Versions of a chunk's pages are
 * kept from the first one on that is asked for: 4 bytes a slot. Returns 0 or KVARN_ENOSPC.
 */
int kvd_page_want_version(
    struct kvd_page_store *store, const struct kvd_page *page) KVARN_MUST_CHECK;
void kvd_page_set_version(struct kvd_page *page, uint32_t version); /* not 0: once wanted */
uint32_t kvd_page_version(const struct kvd_page *page);

/*
 * Compaction: name chunks to be emptied, at most one a page size, whose pages are few and find room
 * in other chunks. No page is taken from them any more. Returns whether there are any.
 */
bool kvd_page_store_thin(struct kvd_page_store *store);

/* Let those that could not be emptied be as they were. */
void kvd_page_store_settle(struct kvd_page_store *store);

/* Does it lie in a chunk that is to be emptied? */
bool kvd_page_is_leaving(const struct kvd_page *page);

/*
 * Copy a page of a chunk that is to be emptied into another chunk, and free it: for its one holder,
 * whose reference is to the copy from now on, while nobody is at work on it. NULL: there is no
 * room, and nothing has changed.
 */
struct kvd_page *kvd_page_move(
    struct kvd_page_store *store, struct kvd_page *page) KVARN_MUST_CHECK;

/* Give a part of a dying chunk back, some 25 us, or the last of it. There must be one. */
void kvd_page_store_purge_some(struct kvd_page_store *store);

static inline bool kvd_page_store_has_dying(const struct kvd_page_store *store)
{
    return !SLIST_EMPTY(&store->dying);
}

/* Give dying and kept empty chunks back until `bytes` are freed or none is left. Returns the bytes
 * freed. */
uint64_t kvd_page_store_reclaim(struct kvd_page_store *store, uint64_t bytes);

/*
 * Smallest of 2, 4, 8, 16 MiB that wastes <= 1 % on pages of this size, else the best of them. A
 * page above 16 MiB gets the next power of two and a chunk to itself.
 */
size_t kvd_chunk_bytes_for(size_t page_bytes);

#endif
