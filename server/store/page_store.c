/*
 * Page store: slabs of equal slots over chunks, a bitmap of free slots in each.
 *
 * Owner: service. Thread: loop only.
 * A slab takes from its lowest chunk (by address) that has a free slot, and there from the lowest
 * slot, so that load gathers at the bottom and the chunks above run empty and can be given back.
 */
#include "server/store/page_store.h"

#include <stdlib.h>
#include <string.h>

#include <bsd/sys/tree.h>

#include "lib/base/assert.h"
#include "server/base/alloc_bytes.h"

#define SLOT_ALIGN      64u
#define CHUNK_BYTES_MIN ((size_t)2 << 20)
#define CHUNK_BYTES_TOP ((size_t)16 << 20)
#define WORD_BITS       64u

/* Of a chunk that is freed, given back at once: some 25 us. */
#define PURGE_BYTES ((size_t)512 << 10)

#if defined(__SANITIZE_ADDRESS__)
#define HAS_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAS_ASAN 1
#endif
#endif

#ifdef HAS_ASAN
#include <sanitizer/asan_interface.h>
#define POISON(addr, bytes)   __asan_poison_memory_region((addr), (bytes))
#define UNPOISON(addr, bytes) __asan_unpoison_memory_region((addr), (bytes))
#else
#define POISON(addr, bytes)   ((void)(addr), (void)(bytes))
#define UNPOISON(addr, bytes) ((void)(addr), (void)(bytes))
#endif

/* Charged to KVD_BUDGET_SESSIONS, as are its sheets and versions. */
struct kvd_chunk {
    unsigned char *data;      /* owned: from the source */
    size_t slot_bytes;        /* the slab's */
    RB_ENTRY(kvd_chunk) link; /* in slab->partial while it has a free slot */
    struct kvd_slab *slab;    /* borrowed: lives while it has a chunk */
    uint32_t free_count;
    uint32_t word_hint;  /* no free slot in any word below */
    bool is_leaving;     /* to be emptied: in no tree, its free slots are not taken */
    size_t purged_bytes; /* dying: given back already */
    SLIST_ENTRY(kvd_chunk) dying_link;
    uint64_t *free_words;          /* inside this allocation; bit set: slot is free */
    uint32_t *versions;            /* owned array, by slot; NULL: no page has one */
    struct kvd_page_set *sheets[]; /* owned: KVD_SHEET_PAGES slots each */
};

RB_HEAD(chunk_tree, kvd_chunk);

/* Pages of one tenant and size. */
struct kvd_slab {
    LIST_ENTRY(kvd_slab) link;
    struct chunk_tree partial; /* chunks with a free slot, by address */
    struct kvd_chunk *lowest;  /* borrowed: first of partial, NULL if none */
    struct kvd_chunk *empty;   /* borrowed: the one chunk kept without a page, or NULL */
    struct kvd_chunk *leaving; /* borrowed: the one that is being emptied, or NULL */
    uint32_t tenant_id;
    uint32_t slot_count; /* of each chunk */
    size_t page_bytes;
    size_t slot_bytes; /* page_bytes rounded up to SLOT_ALIGN */
    size_t chunk_bytes;
    uint64_t chunk_count;
};

static int chunk_compare(const struct kvd_chunk *a, const struct kvd_chunk *b)
{
    uintptr_t pa = (uintptr_t)a->data;
    uintptr_t pb = (uintptr_t)b->data;
    return (pa > pb) - (pa < pb);
}

/* Not every function of a tree is needed. */
RB_GENERATE_INTERNAL(chunk_tree, kvd_chunk, link, chunk_compare, __attribute__((unused)) static)

static size_t round_up(size_t n, size_t step)
{
    return (n + step - 1) / step * step;
}

size_t kvd_chunk_bytes_for(size_t page_bytes)
{
    KVARN_ASSERT(page_bytes > 0 && page_bytes <= SIZE_MAX / 4);
    size_t slot_bytes = round_up(page_bytes, SLOT_ALIGN);
    size_t best = 0;
    size_t best_waste = 0;
    for (size_t bytes = CHUNK_BYTES_MIN; bytes <= CHUNK_BYTES_TOP; bytes *= 2) {
        if (slot_bytes > bytes) {
            continue;
        }
        size_t waste = bytes % slot_bytes;
        if (waste <= bytes / 100) {
            return bytes;
        }
        /* waste / bytes < best_waste / best, in integers. */
        if (best == 0 || waste * best < best_waste * bytes) {
            best = bytes;
            best_waste = waste;
        }
    }
    if (best != 0) {
        return best;
    }
    size_t bytes = CHUNK_BYTES_TOP;
    while (bytes < slot_bytes) {
        bytes *= 2;
    }
    return bytes;
}

/* The budget asks for room. */
static void budget_reclaim_cb(void *ctx, uint64_t bytes)
{
    struct kvd_page_store *store = ctx;
    (void)kvd_page_store_reclaim(store, bytes);
}

void kvd_page_store_init(
    struct kvd_page_store *store, struct kvd_budget *budget, struct kvd_chunk_source *source)
{
    KVARN_ASSERT(budget->reclaim_cb == NULL);
    *store =
        (struct kvd_page_store){.budget = budget, .source = source, .sheets = {.budget = budget}};
    for (size_t i = 0; i < KVD_SLAB_BUCKETS; i++) {
        LIST_INIT(&store->slabs[i]);
    }
    budget->reclaim_cb = budget_reclaim_cb;
    budget->reclaim_ctx = store;
}

void kvd_page_store_fini(struct kvd_page_store *store)
{
    if (store->budget == NULL) {
        return; /* never initialised */
    }
    (void)kvd_page_store_reclaim(store, UINT64_MAX);
    KVARN_ASSERT(store->chunk_count == 0 && store->chunk_bytes == 0);
    KVARN_ASSERT(store->sheets.leaf_count == 0);
    for (size_t i = 0; i < KVD_SLAB_BUCKETS; i++) {
        KVARN_ASSERT(LIST_EMPTY(&store->slabs[i]));
    }
    for (size_t i = 0; i < KVD_PAGE_CLASS_COUNT; i++) {
        KVARN_ASSERT(store->classes[i].pages == 0 && store->classes[i].bytes == 0);
    }
    store->budget->reclaim_cb = NULL;
    store->budget->reclaim_ctx = NULL;
    store->budget = NULL;
}

static struct kvd_slab_list *bucket_of(
    struct kvd_page_store *store, uint32_t tenant_id, size_t page_bytes)
{
    /* Multiplying by 2^64 / golden ratio spreads sizes that are multiples of 64 over the top bits.
     */
    uint64_t key = (uint64_t)page_bytes ^ ((uint64_t)tenant_id << 40);
    return &store->slabs[(key * UINT64_C(0x9e3779b97f4a7c15)) >> 58];
}
_Static_assert(KVD_SLAB_BUCKETS == 1 << (64 - 58), "the hash keeps 6 bits");

static struct kvd_slab *slab_find(
    struct kvd_page_store *store, uint32_t tenant_id, size_t page_bytes)
{
    struct kvd_slab *slab;
    LIST_FOREACH(slab, bucket_of(store, tenant_id, page_bytes), link)
    {
        if (slab->page_bytes == page_bytes && slab->tenant_id == tenant_id) {
            return slab;
        }
    }
    return NULL;
}

/* NULL when the budget or the system has no room. */
static struct kvd_slab *slab_create(
    struct kvd_page_store *store, uint32_t tenant_id, size_t page_bytes)
{
    if (kvd_budget_charge(store->budget, KVD_BUDGET_SESSIONS, sizeof(struct kvd_slab)) != 0) {
        return NULL;
    }
    struct kvd_slab *slab = calloc(1, sizeof(*slab));
    if (slab == NULL) {
        kvd_budget_release(store->budget, KVD_BUDGET_SESSIONS, sizeof(struct kvd_slab));
        return NULL;
    }
    RB_INIT(&slab->partial);
    slab->tenant_id = tenant_id;
    slab->page_bytes = page_bytes;
    slab->slot_bytes = round_up(page_bytes, SLOT_ALIGN);
    slab->chunk_bytes = kvd_chunk_bytes_for(page_bytes);
    slab->slot_count = (uint32_t)(slab->chunk_bytes / slab->slot_bytes);
    KVARN_ASSERT(slab->slot_count > 0);
    LIST_INSERT_HEAD(bucket_of(store, tenant_id, page_bytes), slab, link);
    return slab;
}

static void slab_free_if_unused(struct kvd_page_store *store, struct kvd_slab *slab)
{
    if (slab->chunk_count > 0) {
        return;
    }
    KVARN_ASSERT(slab->lowest == NULL && slab->empty == NULL);
    LIST_REMOVE(slab, link);
    free(slab);
    kvd_budget_release(store->budget, KVD_BUDGET_SESSIONS, sizeof(struct kvd_slab));
}

static size_t word_count(const struct kvd_slab *slab)
{
    return (slab->slot_count + WORD_BITS - 1) / WORD_BITS;
}

static uint32_t sheet_count(const struct kvd_slab *slab)
{
    return (slab->slot_count + KVD_SHEET_PAGES - 1) / KVD_SHEET_PAGES;
}

/* Slots of a sheet: all but the last are full. */
static uint32_t sheet_pages(const struct kvd_slab *slab, uint32_t sheet_idx)
{
    uint32_t left = slab->slot_count - sheet_idx * KVD_SHEET_PAGES;

    return left < KVD_SHEET_PAGES ? left : KVD_SHEET_PAGES;
}

static size_t chunk_meta_bytes(const struct kvd_slab *slab)
{
    return kvd_alloc_bytes(sizeof(struct kvd_chunk) +
                           sheet_count(slab) * sizeof(struct kvd_page_set *) +
                           word_count(slab) * sizeof(uint64_t));
}

static size_t versions_bytes(const struct kvd_slab *slab)
{
    return kvd_alloc_bytes(slab->slot_count * sizeof(uint32_t));
}

static void partial_insert(struct kvd_slab *slab, struct kvd_chunk *chunk)
{
    struct kvd_chunk *clash = RB_INSERT(chunk_tree, &slab->partial, chunk);
    KVARN_ASSERT(clash == NULL);
    if (slab->lowest == NULL || chunk_compare(chunk, slab->lowest) < 0) {
        slab->lowest = chunk;
    }
}

static void partial_remove(struct kvd_slab *slab, struct kvd_chunk *chunk)
{
    RB_REMOVE(chunk_tree, &slab->partial, chunk);
    if (slab->lowest == chunk) {
        slab->lowest = RB_MIN(chunk_tree, &slab->partial);
    }
}

static void chunk_init(struct kvd_slab *slab, struct kvd_chunk *chunk)
{
    chunk->slab = slab;
    chunk->slot_bytes = slab->slot_bytes;
    chunk->free_count = slab->slot_count;
    chunk->free_words = (uint64_t *)(void *)&chunk->sheets[sheet_count(slab)];
    for (uint32_t i = 0; i < slab->slot_count; i++) {
        chunk->free_words[i / WORD_BITS] |= UINT64_C(1) << (i % WORD_BITS);
    }
}
_Static_assert(sizeof(struct kvd_page_set *) % _Alignof(uint64_t) == 0, "the bitmap follows");

/* Free what a chunk holds besides its data; what was never made is NULL. */
static void chunk_meta_free(struct kvd_page_store *store, struct kvd_chunk *chunk)
{
    const struct kvd_slab *slab = chunk->slab;

    for (uint32_t i = 0; i < sheet_count(slab) && chunk->sheets[i] != NULL; i++) {
        kvd_sheet_destroy(&store->sheets, chunk->sheets[i], sheet_pages(slab, i));
    }
    if (chunk->versions != NULL) {
        free(chunk->versions);
        kvd_budget_release(store->budget, KVD_BUDGET_SESSIONS, versions_bytes(slab));
    }
    free(chunk);
    kvd_budget_release(store->budget, KVD_BUDGET_SESSIONS, chunk_meta_bytes(slab));
}

/* A chunk without data; NULL: no room. */
static struct kvd_chunk *chunk_meta_create(struct kvd_page_store *store, struct kvd_slab *slab)
{
    size_t meta_bytes = chunk_meta_bytes(slab);

    if (kvd_budget_charge(store->budget, KVD_BUDGET_SESSIONS, meta_bytes) != 0) {
        return NULL;
    }
    struct kvd_chunk *chunk = calloc(1, meta_bytes);
    if (chunk == NULL) {
        kvd_budget_release(store->budget, KVD_BUDGET_SESSIONS, meta_bytes);
        return NULL;
    }
    chunk_init(slab, chunk);
    for (uint32_t i = 0; i < sheet_count(slab); i++) {
        if (kvd_sheet_create(&store->sheets, chunk, i * KVD_SHEET_PAGES, sheet_pages(slab, i),
                &chunk->sheets[i]) != 0) {
            chunk_meta_free(store, chunk);
            return NULL;
        }
    }
    return chunk;
}

/* Add a chunk to a slab. Returns 0 or KVARN_ENOSPC. */
static int chunk_create(struct kvd_page_store *store, struct kvd_slab *slab)
{
    struct kvd_chunk *chunk = chunk_meta_create(store, slab);

    if (chunk == NULL) {
        return KVARN_ENOSPC;
    }
    if (kvd_budget_charge(store->budget, KVD_BUDGET_CHUNKS, slab->chunk_bytes) != 0) {
        chunk_meta_free(store, chunk);
        return KVARN_ENOSPC;
    }
    chunk->data = store->source->chunk_alloc(store->source, slab->chunk_bytes, slab->tenant_id);
    if (chunk->data == NULL) {
        chunk_meta_free(store, chunk);
        kvd_budget_release(store->budget, KVD_BUDGET_CHUNKS, slab->chunk_bytes);
        return KVARN_ENOSPC;
    }
    POISON(chunk->data, slab->chunk_bytes);
    partial_insert(slab, chunk);
    slab->chunk_count++;
    store->chunk_count++;
    store->chunk_bytes += slab->chunk_bytes;
    return 0;
}

/* Give an empty chunk back that is in no tree; its slab stays. */
static void chunk_release(struct kvd_page_store *store, struct kvd_chunk *chunk)
{
    struct kvd_slab *slab = chunk->slab;
    UNPOISON(chunk->data, slab->chunk_bytes);
    store->source->chunk_free(store->source, chunk->data, slab->chunk_bytes, slab->tenant_id);
    chunk_meta_free(store, chunk);
    slab->chunk_count--;
    store->chunk_count--;
    store->chunk_bytes -= slab->chunk_bytes;
    kvd_budget_release(store->budget, KVD_BUDGET_CHUNKS, slab->chunk_bytes);
}

/* Take an empty chunk out, to be given back in steps when there is who takes them. */
static void chunk_free(struct kvd_page_store *store, struct kvd_chunk *chunk)
{
    struct kvd_slab *slab = chunk->slab;
    KVARN_ASSERT(chunk->free_count == slab->slot_count);
    KVARN_ASSERT(slab->empty != chunk);
    if (!chunk->is_leaving) {
        partial_remove(slab, chunk);
    }
    chunk->is_leaving = false;
    if (store->dying_cb == NULL) {
        chunk_release(store, chunk);
        return;
    }
    chunk->purged_bytes = 0;
    SLIST_INSERT_HEAD(&store->dying, chunk, dying_link);
    store->dying_bytes += slab->chunk_bytes;
    store->dying_cb(store->dying_ctx);
}

static void dying_remove(struct kvd_page_store *store, struct kvd_chunk *chunk)
{
    SLIST_REMOVE(&store->dying, chunk, kvd_chunk, dying_link);
    store->dying_bytes -= chunk->slab->chunk_bytes;
}

/* Give the first of those that go back, all that is left of it. */
static void dying_release(struct kvd_page_store *store)
{
    struct kvd_chunk *chunk = SLIST_FIRST(&store->dying);
    struct kvd_slab *slab = chunk->slab;
    dying_remove(store, chunk);
    chunk_release(store, chunk);
    slab_free_if_unused(store, slab);
}

void kvd_page_store_purge_some(struct kvd_page_store *store)
{
    struct kvd_chunk *chunk = SLIST_FIRST(&store->dying);
    size_t bytes = chunk->slab->chunk_bytes;
    if (store->source->chunk_purge != NULL && chunk->purged_bytes < bytes) {
        unsigned char *part = chunk->data + chunk->purged_bytes;
        UNPOISON(part, PURGE_BYTES);
        store->source->chunk_purge(store->source, part, PURGE_BYTES);
        POISON(part, PURGE_BYTES);
        chunk->purged_bytes += PURGE_BYTES;
        return;
    }
    dying_release(store);
}
_Static_assert(CHUNK_BYTES_MIN % PURGE_BYTES == 0, "every chunk is whole steps");

/* Use one of the slab's chunks again that is on its way out. */
static bool dying_revive(struct kvd_page_store *store, struct kvd_slab *slab)
{
    struct kvd_chunk *chunk;
    SLIST_FOREACH(chunk, &store->dying, dying_link)
    {
        if (chunk->slab == slab) {
            dying_remove(store, chunk);
            partial_insert(slab, chunk);
            return true;
        }
    }
    return false;
}

uint64_t kvd_page_store_reclaim(struct kvd_page_store *store, uint64_t bytes)
{
    uint64_t used_before = store->budget->used_bytes;
    while (!SLIST_EMPTY(&store->dying) && used_before - store->budget->used_bytes < bytes) {
        dying_release(store);
    }
    for (size_t i = 0; i < KVD_SLAB_BUCKETS; i++) {
        struct kvd_slab *next;
        for (struct kvd_slab *slab = LIST_FIRST(&store->slabs[i]); slab != NULL; slab = next) {
            next = LIST_NEXT(slab, link);
            if (used_before - store->budget->used_bytes >= bytes) {
                return used_before - store->budget->used_bytes;
            }
            if (slab->empty == NULL) {
                continue; /* perhaps new and still without any chunk: its taker frees it */
            }
            struct kvd_chunk *chunk = slab->empty;
            slab->empty = NULL;
            partial_remove(slab, chunk);
            chunk_release(store, chunk);
            slab_free_if_unused(store, slab);
        }
    }
    return used_before - store->budget->used_bytes;
}

static uint32_t slot_of(const struct kvd_page *page)
{
    const struct kvd_page_set *set = kvd_page_set_of(page);

    return set->slot_first + (uint32_t)(page - set->pages);
}

/* Take the lowest free slot of a chunk that has one. */
static struct kvd_page *slot_take(struct kvd_slab *slab, struct kvd_chunk *chunk)
{
    uint32_t word_idx = chunk->word_hint;
    KVARN_ASSERT(chunk->free_count > 0);
    while (chunk->free_words[word_idx] == 0) {
        word_idx++;
        KVARN_ASSERT(word_idx < word_count(slab));
    }
    chunk->word_hint = word_idx;
    uint64_t word = chunk->free_words[word_idx];
    uint32_t slot_idx = word_idx * WORD_BITS + (uint32_t)__builtin_ctzll(word);
    chunk->free_words[word_idx] = word & (word - 1);
    chunk->free_count--;
    if (slab->empty == chunk) {
        slab->empty = NULL;
    }
    if (chunk->free_count == 0) {
        partial_remove(slab, chunk);
    }
    return kvd_sheet_page(chunk->sheets[slot_idx / KVD_SHEET_PAGES], slot_idx % KVD_SHEET_PAGES);
}

/* The chunk that was to be emptied stays. */
static void slab_settle(struct kvd_slab *slab)
{
    struct kvd_chunk *chunk = slab->leaving;

    if (chunk == NULL) {
        return;
    }
    slab->leaving = NULL;
    chunk->is_leaving = false;
    if (chunk->free_count > 0) {
        partial_insert(slab, chunk);
    }
}

/* Let pages of a chunk have versions. Returns 0 or KVARN_ENOSPC. */
static int chunk_want_versions(struct kvd_page_store *store, struct kvd_chunk *chunk)
{
    struct kvd_slab *slab = chunk->slab;
    size_t bytes = versions_bytes(slab);
    struct kvd_chunk *empty = slab->empty;

    if (chunk->versions != NULL) {
        return 0;
    }
    slab->empty = NULL; /* it may be this one, which the charge must not give back */
    int err = kvd_budget_charge(store->budget, KVD_BUDGET_SESSIONS, bytes);
    slab->empty = empty;
    if (err != 0) {
        return KVARN_ENOSPC;
    }
    chunk->versions = calloc(1, bytes);
    if (chunk->versions == NULL) {
        kvd_budget_release(store->budget, KVD_BUDGET_SESSIONS, bytes);
        return KVARN_ENOSPC;
    }
    return 0;
}

int kvd_page_want_version(struct kvd_page_store *store, const struct kvd_page *page)
{
    return chunk_want_versions(store, kvd_page_set_of(page)->chunk);
}

void kvd_page_set_version(struct kvd_page *page, uint32_t version)
{
    struct kvd_chunk *chunk = kvd_page_set_of(page)->chunk;

    KVARN_ASSERT(chunk->versions != NULL || version == 0);
    if (chunk->versions != NULL) {
        chunk->versions[slot_of(page)] = version;
    }
}

uint32_t kvd_page_version(const struct kvd_page *page)
{
    const struct kvd_chunk *chunk = kvd_page_set_of(page)->chunk;

    return chunk->versions == NULL ? 0 : chunk->versions[slot_of(page)];
}

int kvd_page_take(struct kvd_page_store *store, uint32_t tenant_id, size_t page_bytes,
    enum kvd_page_class page_class, struct kvd_page **ret)
{
    KVARN_ASSERT(page_class < KVD_PAGE_CLASS_COUNT);
    struct kvd_slab *slab = slab_find(store, tenant_id, page_bytes);
    if (slab == NULL) {
        slab = slab_create(store, tenant_id, page_bytes);
        if (slab == NULL) {
            return KVARN_ENOSPC;
        }
    }
    if (slab->lowest == NULL) {
        slab_settle(slab); /* rather than a new chunk */
    }
    if (slab->lowest == NULL && !dying_revive(store, slab)) {
        int err = chunk_create(store, slab);
        if (err != 0) {
            slab_free_if_unused(store, slab);
            return err;
        }
    }
    struct kvd_page *page = slot_take(slab, slab->lowest);
    KVARN_ASSERT(page->refs == 0);
    *page = (struct kvd_page){.refs = 1, .page_class = (unsigned)page_class & 3};
    kvd_page_set_version(page, 0);
    UNPOISON(kvd_page_data(page), page_bytes);
    store->classes[page_class].pages++;
    store->classes[page_class].bytes += page_bytes;
    *ret = page;
    return 0;
}

struct kvd_page *kvd_page_ref(struct kvd_page *page)
{
    KVARN_ASSERT(page->refs > 0 && page->refs < KVD_PAGE_REFS_MAX);
    page->refs++;
    return page;
}

/* A chunk ran empty: keep the lower one of it and the one kept so far, give the other back. */
static void chunk_emptied(struct kvd_page_store *store, struct kvd_chunk *chunk)
{
    struct kvd_slab *slab = chunk->slab;
    struct kvd_chunk *spare = slab->empty;
    slab->empty = chunk;
    if (spare == NULL) {
        return;
    }
    if (chunk_compare(spare, chunk) < 0) {
        slab->empty = spare;
        spare = chunk;
    }
    chunk_free(store, spare);
}

void kvd_page_unref(struct kvd_page_store *store, struct kvd_page *page)
{
    if (page == NULL) {
        return;
    }
    KVARN_ASSERT(page->refs > 0);
    page->refs--;
    if (page->refs > 0) {
        return;
    }
    struct kvd_chunk *chunk = kvd_page_set_of(page)->chunk;
    struct kvd_slab *slab = chunk->slab;
    struct kvd_page_class_stats *stats = &store->classes[page->page_class];
    KVARN_ASSERT(stats->pages > 0 && stats->bytes >= slab->page_bytes);
    stats->pages--;
    stats->bytes -= slab->page_bytes;
    POISON(kvd_page_data(page), slab->slot_bytes);

    uint32_t slot_idx = slot_of(page);
    uint32_t word_idx = slot_idx / WORD_BITS;
    uint64_t bit = UINT64_C(1) << (slot_idx % WORD_BITS);
    KVARN_ASSERT((chunk->free_words[word_idx] & bit) == 0);
    chunk->free_words[word_idx] |= bit;
    if (word_idx < chunk->word_hint) {
        chunk->word_hint = word_idx;
    }
    bool was_full = chunk->free_count == 0;
    chunk->free_count++;
    bool is_empty = chunk->free_count == slab->slot_count;
    if (chunk->is_leaving && is_empty) {
        slab->leaving = NULL;
        chunk_free(store, chunk);
        slab_free_if_unused(store, slab);
        return;
    }
    if (was_full && !chunk->is_leaving) {
        partial_insert(slab, chunk);
    }
    if (is_empty) {
        chunk_emptied(store, chunk);
    }
}

/* Compaction. */

/* Chunks that a search for the emptiest looks at: a page of memory each. */
#define THIN_LOOK_MAX 256

/* The chunk with the most free slots, of those that have as many pages as free slots, or fewer. */
static struct kvd_chunk *emptiest(struct kvd_slab *slab, uint64_t *ret_free_slots)
{
    struct kvd_chunk *best = NULL, *chunk;
    unsigned looked = 0;

    *ret_free_slots = 0;
    RB_FOREACH(chunk, chunk_tree, &slab->partial)
    {
        *ret_free_slots += chunk->free_count;
        bool is_thin = chunk->free_count < slab->slot_count &&
                       chunk->free_count >= slab->slot_count - chunk->free_count;
        if (is_thin && (best == NULL || chunk->free_count >= best->free_count)) {
            best = chunk;
        }
        if (++looked == THIN_LOOK_MAX) {
            break;
        }
    }
    return best;
}

/* Begin to empty a chunk of the slab if its pages find room in the others. */
static bool slab_thin(struct kvd_slab *slab)
{
    uint64_t free_slots;

    if (slab->leaving != NULL) {
        return true;
    }
    struct kvd_chunk *chunk = emptiest(slab, &free_slots);
    if (chunk == NULL || free_slots - chunk->free_count < slab->slot_count - chunk->free_count) {
        return false;
    }
    partial_remove(slab, chunk);
    chunk->is_leaving = true;
    slab->leaving = chunk;
    return true;
}

bool kvd_page_store_thin(struct kvd_page_store *store)
{
    bool has_leaving = false;

    for (size_t i = 0; i < KVD_SLAB_BUCKETS; i++) {
        struct kvd_slab *slab;
        LIST_FOREACH(slab, &store->slabs[i], link)
        {
            has_leaving |= slab_thin(slab);
        }
    }
    return has_leaving;
}

void kvd_page_store_settle(struct kvd_page_store *store)
{
    for (size_t i = 0; i < KVD_SLAB_BUCKETS; i++) {
        struct kvd_slab *slab;
        LIST_FOREACH(slab, &store->slabs[i], link)
        {
            slab_settle(slab);
        }
    }
}

bool kvd_page_is_leaving(const struct kvd_page *page)
{
    return kvd_page_set_of(page)->chunk->is_leaving;
}

struct kvd_page *kvd_page_move(struct kvd_page_store *store, struct kvd_page *page)
{
    const struct kvd_chunk *from = kvd_page_set_of(page)->chunk;
    struct kvd_slab *slab = from->slab;
    uint32_t version = kvd_page_version(page);

    KVARN_ASSERT(page->refs == 1 && from->is_leaving);
    if (slab->lowest == NULL || (version != 0 && chunk_want_versions(store, slab->lowest) != 0)) {
        return NULL;
    }
    struct kvd_page *to = slot_take(slab, slab->lowest);
    KVARN_ASSERT(to->refs == 0 && kvd_page_set_of(to)->chunk != from);
    UNPOISON(kvd_page_data(to), slab->page_bytes);
    memcpy(kvd_page_data(to), kvd_page_data(page), slab->page_bytes);
    *to = *page;
    kvd_page_set_version(to, version);
    store->classes[to->page_class].pages++;
    store->classes[to->page_class].bytes += slab->page_bytes;
    kvd_page_unref(store, page);
    return to;
}

void *kvd_page_data(const struct kvd_page *page)
{
    const struct kvd_chunk *chunk = kvd_page_set_of(page)->chunk;

    return chunk->data + slot_of(page) * chunk->slot_bytes;
}

size_t kvd_page_bytes(const struct kvd_page *page)
{
    return kvd_page_set_of(page)->chunk->slab->page_bytes;
}
