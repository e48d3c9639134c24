/*
 * Prefix index: entries whose blocks leave memory, and those that come back.
 *
 * Owner: service. Thread: loop only.
 */
#include <string.h>

#include "lib/base/assert.h"
#include "server/prefix/prefix_index_impl.h"
#include "server/service.h"

/* Entries that a shrink looks at: some tens of nanoseconds each (SEMANTICS.md 18). */
#define SHRINK_ENTRIES_MAX 256

/* Entries that a tick looks at: a cache miss or two each. */
#define TICK_ENTRIES 64

static uint64_t entry_page_bytes(const struct kvd_prefix_entry *entry)
{
    bool is_sink = entry->block_idx < entry->shape->sink_tokens / entry->shape->group;

    return is_sink ? entry->shape->block_rows_bytes : entry->shape->block_tiles_bytes;
}

/*
 * Let go of an entry's pages but not of what can be read back: where some session still has the
 * block on disk, the entry keeps its name and its record. Returns whether it stays.
 */
static bool entry_chill(struct kvd_prefix_index *index, struct kvd_prefix_entry *entry)
{
    struct kvd_block *block = entry->block;

    if (!kvd_cold_copy_is_durable(block->cold) || block->cold->refs == 1) {
        return false;
    }
    struct kvd_block *stub = kvd_block_create(index->service, block->layer_count);
    if (stub == NULL) {
        return false;
    }
    stub->layers_kept = block->layers_kept;
    stub->cold = kvd_cold_copy_ref(block->cold);
    stub->state = KVD_BLOCK_COLD;
    memcpy(stub->name, block->name, sizeof(stub->name));
    entry->block = stub;
    kvd_block_unref_later(index->service, block);
    kvd_prefix_entry_list(index, entry, true);
    return true;
}

/* Not in memory, and it could not be read, or the sessions that had it are gone. */
static bool is_stale(const struct kvd_prefix_entry *entry)
{
    const struct kvd_block *block = entry->block;

    return block->refs == 1 && (block->state == KVD_BLOCK_MISSING ||
                                   (block->state == KVD_BLOCK_COLD && block->cold->refs == 1));
}

/* An entry that nobody else holds gives up its pages. Returns their bytes. */
static uint64_t entry_shrink(struct kvd_prefix_index *index, struct kvd_prefix_entry *entry)
{
    uint64_t bytes = entry_page_bytes(entry);

    if (entry->block->state == KVD_BLOCK_RESIDENT) {
        if (!entry_chill(index, entry)) {
            kvd_prefix_entry_drop(index, entry);
        }
        return bytes;
    }
    if (is_stale(entry)) {
        kvd_prefix_entry_drop(index, entry);
    } else {
        kvd_prefix_entry_list(index, entry, true); /* it was matched, and not loaded */
    }
    return 0;
}

uint64_t kvd_prefix_index_shrink(struct kvd_prefix_index *index, uint64_t bytes)
{
    struct kvd_prefix_entry *entry = TAILQ_FIRST(&index->by_use);
    uint64_t freed = 0;

    for (int i = 0; i < SHRINK_ENTRIES_MAX && entry != NULL && freed < bytes; i++) {
        struct kvd_prefix_entry *next = TAILQ_NEXT(entry, use_link);
        if (entry->block->refs == 1) {
            freed += entry_shrink(index, entry);
        }
        entry = next;
    }
    return freed;
}

void kvd_prefix_index_withdraw(struct kvd_prefix_index *index, const struct kvd_shape *shape,
    uint32_t block_idx, const uint8_t *name)
{
    struct kvd_prefix_entry *entry = kvd_prefix_entry_find(index, name, shape, block_idx);

    if (entry != NULL) {
        kvd_prefix_entry_drop(index, entry);
    }
}

void kvd_prefix_entry_exchange(
    struct kvd_prefix_index *index, struct kvd_prefix_entry *entry, struct kvd_block *block)
{
    KVARN_ASSERT(entry->block != block && entry->block->state != KVD_BLOCK_RESIDENT);
    kvd_block_unref_later(index->service, entry->block);
    entry->block = kvd_block_ref(block);
    kvd_prefix_entry_list(index, entry, false);
}

void kvd_prefix_entry_list(
    struct kvd_prefix_index *index, struct kvd_prefix_entry *entry, bool is_resting)
{
    TAILQ_REMOVE(entry->is_resting ? &index->cold : &index->by_use, entry, use_link);
    entry->is_resting = is_resting;
    TAILQ_INSERT_TAIL(is_resting ? &index->cold : &index->by_use, entry, use_link);
}

void kvd_prefix_index_tick(struct kvd_prefix_index *index)
{
    for (unsigned i = 0; i < TICK_ENTRIES && !TAILQ_EMPTY(&index->cold); i++) {
        struct kvd_prefix_entry *entry = TAILQ_FIRST(&index->cold);
        if (is_stale(entry)) {
            kvd_prefix_entry_drop(index, entry);
        } else { /* its turn comes again */
            kvd_prefix_entry_list(index, entry, entry->block->state != KVD_BLOCK_RESIDENT);
        }
    }
}

void kvd_prefix_index_renew(struct kvd_prefix_index *index, const struct kvd_shape *shape,
    uint32_t block_idx, struct kvd_block *block)
{
    static const uint8_t none[KVD_BLOCK_NAME_BYTES];

    KVARN_ASSERT(block->state == KVD_BLOCK_RESIDENT);
    if (block->layers_kept < block->layer_count || memcmp(block->name, none, sizeof(none)) == 0) {
        return;
    }
    struct kvd_prefix_entry *entry = kvd_prefix_entry_find(index, block->name, shape, block_idx);
    if (entry != NULL && entry->block != block && entry->block->state == KVD_BLOCK_COLD) {
        kvd_prefix_entry_exchange(index, entry, block);
    }
}
