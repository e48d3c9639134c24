/*
 * Memory of requests and replies: mapped when it is large, unmapped in slices.
 *
 * Owner: service. Thread: loop only.
 */
#include "server/io/large.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "lib/base/assert.h"
#include "server/base/cache_line.h"

/* Unmapped at once: some 20 to 40 us when all of it was touched. A multiple of any page size. */
#define STEP_BYTES ((size_t)512 << 10)

/* What is being given back: at its own beginning. */
struct kvd_large_dead {
    SLIST_ENTRY(kvd_large_dead) link;
    size_t bytes; /* mapped still */
    enum kvd_budget_kind kind;
};

/* Mappings are whole steps, so that a step is never cut; the last of it is not touched. */
static size_t mapped_bytes(size_t bytes)
{
    return (bytes + STEP_BYTES - 1) / STEP_BYTES * STEP_BYTES;
}

static size_t charged_bytes(size_t bytes)
{
    return bytes < KVD_LARGE_BYTES_MIN ? kvd_round_64(bytes) : mapped_bytes(bytes);
}

/* Unmap the last step of the first piece. */
static void give_some(struct kvd_large *large)
{
    struct kvd_large_dead *dead = SLIST_FIRST(&large->dead);
    enum kvd_budget_kind kind = dead->kind;

    dead->bytes -= STEP_BYTES;
    uint8_t *end = (uint8_t *)dead + dead->bytes;
    if (dead->bytes == 0) {
        SLIST_REMOVE_HEAD(&large->dead, link);
    }
    int rc = munmap(end, STEP_BYTES);
    KVARN_ASSERT(rc == 0);
    kvd_budget_release(large->budget, kind, STEP_BYTES);
}

static void slice_run(struct kvd_slice *slice)
{
    struct kvd_large *large = (void *)((uint8_t *)slice - offsetof(struct kvd_large, slice));

    do {
        give_some(large);
    } while (!SLIST_EMPTY(&large->dead) && kvd_slices_has_time(large->slices));
    if (!SLIST_EMPTY(&large->dead)) {
        kvd_slices_add(large->slices, slice);
    }
}

void kvd_large_init(struct kvd_large *large, struct kvd_budget *budget, struct kvd_slices *slices)
{
    *large = (struct kvd_large){.budget = budget, .slices = slices, .slice = {.run = slice_run}};
    SLIST_INIT(&large->dead);
}

static void *map(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED) {
        return NULL;
    }
    if (madvise(memory, bytes, MADV_DONTDUMP) != 0) {
        (void)munmap(memory, bytes);
        return NULL;
    }
    return memory;
}

int kvd_large_take(struct kvd_large *large, enum kvd_budget_kind kind, size_t bytes, void **ret)
{
    size_t charged = charged_bytes(bytes);

    if (kvd_budget_charge(large->budget, kind, charged) != 0) {
        return KVARN_ENOSPC;
    }
    void *memory =
        bytes < KVD_LARGE_BYTES_MIN ? aligned_alloc(KVD_CACHE_LINE_BYTES, charged) : map(charged);
    if (memory == NULL) {
        kvd_budget_release(large->budget, kind, charged);
        return KVARN_ENOMEM;
    }
    *ret = memory;
    return 0;
}

void kvd_large_give(struct kvd_large *large, enum kvd_budget_kind kind, void *memory, size_t bytes)
{
    if (memory == NULL) {
        return;
    }
    if (bytes < KVD_LARGE_BYTES_MIN) {
        free(memory);
        kvd_budget_release(large->budget, kind, charged_bytes(bytes));
        return;
    }
    struct kvd_large_dead *dead = memory;
    *dead = (struct kvd_large_dead){.bytes = mapped_bytes(bytes), .kind = kind};
    SLIST_INSERT_HEAD(&large->dead, dead, link);
    if (!large->slice.is_listed) {
        kvd_slices_add(large->slices, &large->slice);
    }
}

bool kvd_large_has_dead(const struct kvd_large *large)
{
    return !SLIST_EMPTY(&large->dead);
}
