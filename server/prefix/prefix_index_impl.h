/*
 * What the files of the prefix index share: its entries.
 *
 * Owner: service. Thread: loop only.
 */
#ifndef KVD_PREFIX_INDEX_IMPL_H
#define KVD_PREFIX_INDEX_IMPL_H

#include "server/prefix/prefix_index.h"

struct kvd_prefix_entry {
    LIST_ENTRY(kvd_prefix_entry) link; /* in its bucket */
    TAILQ_ENTRY(kvd_prefix_entry) use_link;
    struct kvd_block *block;       /* ref; holds the name */
    const struct kvd_shape *shape; /* borrowed from the registry; of one tenant */
    uint32_t block_idx;
    bool is_resting; /* listed in `cold`, not in `by_use` */
};

/* The entry of a name, of a shape and a place; NULL: there is none. */
struct kvd_prefix_entry *kvd_prefix_entry_find(const struct kvd_prefix_index *index,
    const uint8_t *name, const struct kvd_shape *shape, uint32_t block_idx);

/* Drop it; its block is freed in a later slice, if nobody else holds it. */
void kvd_prefix_entry_drop(struct kvd_prefix_index *index, struct kvd_prefix_entry *entry);

/* List it as used last (true: as resting, its block not in memory). */
void kvd_prefix_entry_list(
    struct kvd_prefix_index *index, struct kvd_prefix_entry *entry, bool is_resting);

/* It has a block of the same name, which is not in memory: it takes this one for it. */
void kvd_prefix_entry_exchange(
    struct kvd_prefix_index *index, struct kvd_prefix_entry *entry, struct kvd_block *block);

#endif
