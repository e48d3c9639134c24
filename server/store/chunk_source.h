/*
 * Where page memory comes from: large aligned chunks (SEMANTICS.md 27). The default takes them from
 * a jemalloc arena of its own (KVARND_JEMALLOC=OFF: aligned malloc). Their memory is marked
 * MADV_DONTDUMP, since caches are user text (SEMANTICS.md 26). A per-tenant memfd source fits the
 * same seam later.
 *
 * Owner: service. Thread: loop only.
 */
#ifndef KVD_CHUNK_SOURCE_H
#define KVD_CHUNK_SOURCE_H

#include <stddef.h>
#include <stdint.h>

#include "kvarn/err.h"

struct kvd_chunk_source {
    /* `bytes` of memory aligned to `bytes` (a power of two); NULL when the system has none. */
    void *(*chunk_alloc)(struct kvd_chunk_source *source, size_t bytes, uint32_t tenant_id);
    void (*chunk_free)(
        struct kvd_chunk_source *source, void *chunk, size_t bytes, uint32_t tenant_id);
    /*
     * Give back what a part of a chunk holds, in whole pages of memory, before the chunk is freed:
     * so a large one can go in steps. Its content is lost. NULL: chunks go whole.
     */
    void (*chunk_purge)(struct kvd_chunk_source *source, void *part, size_t bytes);
    void (*destroy)(struct kvd_chunk_source *source);
};

/* Returns 0, or KVARN_ENOMEM. */
int kvd_chunk_source_default_create(struct kvd_chunk_source **ret) KVARN_MUST_CHECK;

#endif
