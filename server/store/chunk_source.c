/*
 * The default source of page chunks: a jemalloc arena of its own, or aligned malloc.
 *
 * Owner: service. Thread: loop only.
 * One arena for the whole process, never destroyed but with its source: destroying arenas leaks
 * mappings under jemalloc's default `retain:true`.
 */
#include "server/store/chunk_source.h"

#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "lib/base/assert.h"
#include "server/base/malloc_conf.h"

#if defined(KVARND_JEMALLOC) && KVARND_JEMALLOC
#include <jemalloc/jemalloc.h>
#define HAS_ARENA 1
#else
#define HAS_ARENA 0
#endif

#define CHUNK_ALIGN_MIN 4096u /* madvise works on whole memory pages */

struct default_source {
    struct kvd_chunk_source base;
    unsigned arena_idx;
    uint64_t chunk_count; /* handed out and not given back */
};

static struct default_source *from_base(struct kvd_chunk_source *source)
{
    return (struct default_source *)(void *)source; /* base is the first member */
}

/* Caches are user text and must not reach a core file. */
static int forbid_dump(void *addr, size_t bytes)
{
    return madvise(addr, bytes, MADV_DONTDUMP) == 0 ? 0 : KVARN_ENOMEM;
}

#if HAS_ARENA
/*
 * The arena's memory, mapped by us so that all of it, gaps and freed stretches included, is marked
 * at birth. Marking chunk by chunk would cut the mapping at every chunk and meet the system's limit
 * on mappings (65,530 by default) at about 64 GiB: jemalloc pads large allocations by one memory
 * page, which leaves a gap between any two aligned ones. Hooks that are NULL mean: not done.
 */
static void *extent_alloc_hook(extent_hooks_t *hooks, void *new_addr, size_t bytes,
    size_t alignment, bool *zero, bool *commit, unsigned arena_idx)
{
    (void)hooks;
    (void)arena_idx;
    if (new_addr != NULL || bytes > SIZE_MAX - alignment) {
        return NULL;
    }
    size_t map_bytes = bytes + alignment;
    unsigned char *map = mmap(NULL, map_bytes, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) {
        return NULL;
    }
    size_t before = (alignment - ((uintptr_t)map & (alignment - 1))) & (alignment - 1);
    unsigned char *extent = map + before;
    if (forbid_dump(extent, bytes) != 0) {
        (void)munmap(map, map_bytes);
        return NULL;
    }
    if (before > 0) {
        (void)munmap(map, before);
    }
    (void)munmap(extent + bytes, map_bytes - before - bytes);
    *zero = true;
    *commit = true;
    return extent;
}

static void extent_destroy_hook(
    extent_hooks_t *hooks, void *addr, size_t bytes, bool committed, unsigned arena_idx)
{
    (void)hooks;
    (void)committed;
    (void)arena_idx;
    (void)munmap(addr, bytes);
}

/* Hooks return true when they did not do it. */
static bool extent_purge_hook(extent_hooks_t *hooks, void *addr, size_t bytes, size_t offset,
    size_t length, unsigned arena_idx)
{
    (void)hooks;
    (void)bytes;
    (void)arena_idx;
    return madvise((unsigned char *)addr + offset, length, MADV_DONTNEED) != 0;
}

static bool extent_split_hook(extent_hooks_t *hooks, void *addr, size_t bytes, size_t bytes_a,
    size_t bytes_b, bool committed, unsigned arena_idx)
{
    (void)hooks, (void)addr, (void)bytes, (void)bytes_a, (void)bytes_b;
    (void)committed, (void)arena_idx;
    return false;
}

static bool extent_merge_hook(extent_hooks_t *hooks, void *addr_a, size_t bytes_a, void *addr_b,
    size_t bytes_b, bool committed, unsigned arena_idx)
{
    (void)hooks, (void)addr_a, (void)bytes_a, (void)addr_b, (void)bytes_b;
    (void)committed, (void)arena_idx;
    return false;
}

/* Static, because jemalloc's thread may purge an arena after its source is gone. Never written. */
static extent_hooks_t arena_hooks = {
    .alloc = extent_alloc_hook,
    .destroy = extent_destroy_hook,
    .purge_forced = extent_purge_hook,
    .split = extent_split_hook,
    .merge = extent_merge_hook,
};

static int arena_create(unsigned *ret_idx)
{
    unsigned idx = 0;
    size_t idx_bytes = sizeof(idx);
    extent_hooks_t *hooks = &arena_hooks;
    if (mallctl("arenas.create", &idx, &idx_bytes, &hooks, sizeof(hooks)) != 0) {
        return KVARN_ENOMEM;
    }
    *ret_idx = idx;
    return 0;
}

static void *arena_alloc(unsigned arena_idx, size_t bytes)
{
    /* No thread cache: it would hide megabytes from every count. */
    return mallocx(bytes, MALLOCX_ARENA(arena_idx) | MALLOCX_ALIGN(bytes) | MALLOCX_TCACHE_NONE);
}

/*
 * The memory goes back at once, not when it decays: the next chunks may be of another size, and the
 * limit is on resident bytes. (Decaying alone, a daemon that was emptied and filled with pages of
 * other sizes held 141 % of its limit.) Some 45 us a MiB on a virtual machine.
 */
static void arena_free(unsigned arena_idx, void *chunk, size_t bytes)
{
    (void)madvise(chunk, bytes, MADV_DONTNEED);
    sdallocx(chunk, bytes, MALLOCX_ARENA(arena_idx) | MALLOCX_ALIGN(bytes) | MALLOCX_TCACHE_NONE);
}
#else
static int arena_create(unsigned *ret_idx)
{
    *ret_idx = 0;
    return 0;
}

static void *arena_alloc(unsigned arena_idx, size_t bytes)
{
    (void)arena_idx;
    void *chunk = NULL;
    if (posix_memalign(&chunk, bytes, bytes) != 0) {
        return NULL;
    }
    if (forbid_dump(chunk, bytes) != 0) {
        free(chunk);
        return NULL;
    }
    return chunk;
}

static void arena_free(unsigned arena_idx, void *chunk, size_t bytes)
{
    (void)arena_idx;
    /*
     * malloc may give this memory to anyone, whose crash should be readable. When the system
     * refuses (no memory to split a mapping) the dump merely lacks it.
     */
    (void)madvise(chunk, bytes, MADV_DODUMP);
    free(chunk);
}
#endif

static void *default_chunk_alloc(struct kvd_chunk_source *source, size_t bytes, uint32_t tenant_id)
{
    struct default_source *self = from_base(source);
    (void)tenant_id; /* one arena serves all; chunks of tenants are never mixed by the store */
    KVARN_ASSERT(bytes >= CHUNK_ALIGN_MIN && (bytes & (bytes - 1)) == 0);
    void *chunk = arena_alloc(self->arena_idx, bytes);
    if (chunk == NULL) {
        return NULL;
    }
    KVARN_ASSERT(((uintptr_t)chunk & (bytes - 1)) == 0);
    self->chunk_count++;
    return chunk;
}

static void default_chunk_free(
    struct kvd_chunk_source *source, void *chunk, size_t bytes, uint32_t tenant_id)
{
    struct default_source *self = from_base(source);
    (void)tenant_id;
    KVARN_ASSERT(chunk != NULL && self->chunk_count > 0);
    self->chunk_count--;
    arena_free(self->arena_idx, chunk, bytes);
}

static void default_chunk_purge(struct kvd_chunk_source *source, void *part, size_t bytes)
{
    (void)source;
    (void)madvise(part, bytes, MADV_DONTNEED);
}

static void default_destroy(struct kvd_chunk_source *source)
{
    struct default_source *self = from_base(source);
    KVARN_ASSERT(self->chunk_count == 0);
    free(self);
}

int kvd_chunk_source_default_create(struct kvd_chunk_source **ret)
{
    KVARN_ASSERT(kvd_malloc_conf_text() != NULL); /* links the settings in */
    struct default_source *self = calloc(1, sizeof(*self));
    if (self == NULL) {
        return KVARN_ENOMEM;
    }
    self->base.chunk_alloc = default_chunk_alloc;
    self->base.chunk_free = default_chunk_free;
    self->base.chunk_purge = default_chunk_purge;
    self->base.destroy = default_destroy;
    int err = arena_create(&self->arena_idx);
    if (err != 0) {
        free(self);
        return err;
    }
    *ret = &self->base;
    return 0;
}
