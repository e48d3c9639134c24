/*
 * The default source of page chunks: a jemalloc arena of its own, or aligned malloc.
 *
 * Owner: service. Thread: loop only.
 * One arena for the whole process, never destroyed but with its source: destroying arenas leaks
 * mappings under jemalloc's default `retain:true`.
 */
#include "server/chunk_source.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "lib/base/assert.h"
#include "server/malloc_conf.h"

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

/* Where the arena's memory comes from and goes to; the rest of this file does not know. */
#if HAS_ARENA
static int arena_create(unsigned *ret_idx)
{
    unsigned idx = 0;
    size_t idx_bytes = sizeof(idx);
    if (mallctl("arenas.create", &idx, &idx_bytes, NULL, 0) != 0) {
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

static void arena_free(unsigned arena_idx, void *chunk, size_t bytes)
{
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
    return posix_memalign(&chunk, bytes, bytes) == 0 ? chunk : NULL;
}

static void arena_free(unsigned arena_idx, void *chunk, size_t bytes)
{
    (void)arena_idx;
    (void)bytes;
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
    /* Caches are user text and must not reach a core file: without the mark, no chunk. */
    if (madvise(chunk, bytes, MADV_DONTDUMP) != 0) {
        arena_free(self->arena_idx, chunk, bytes);
        return NULL;
    }
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
    /*
     * The allocator may give this memory to anyone, whose crash should be readable. When the
     * system refuses (no memory to split a mapping) the dump merely lacks it.
     */
    (void)madvise(chunk, bytes, MADV_DODUMP);
    arena_free(self->arena_idx, chunk, bytes);
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
    self->base.destroy = default_destroy;
    int err = arena_create(&self->arena_idx);
    if (err != 0) {
        free(self);
        return err;
    }
    *ret = &self->base;
    return 0;
}
