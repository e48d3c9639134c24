/*
 * Leases on prefixes: blocks that a MatchPrefix found, kept for the OpenSession that follows.
 *
 * Owner: the connection that asked; a lease ends with it, when it is used, or when its time is over
 * (monotonic clock). Thread: loop only.
 */
#ifndef KVD_PREFIX_LEASE_H
#define KVD_PREFIX_LEASE_H

#include <stdint.h>

#include <bsd/sys/queue.h>

#include "server/io/io.h"
#include "server/prefix/prefix_index.h"

struct kvd_prefix_lease {
    LIST_ENTRY(kvd_prefix_lease) link;
    struct kvd_prefix_lease_table *table; /* borrowed; NULL: not in any yet */
    struct kvd_service *service;          /* borrowed */
    const struct kvd_shape *shape;        /* borrowed from the registry */
    struct kvd_timer *timer;              /* owned; NULL until it is in a table */
    uint64_t id;
    uint8_t root[KVD_BLOCK_NAME_BYTES]; /* of its chain: tenant, shape, salt, kind */
    struct kvd_prefix_chain chain;      /* with the number of blocks */
    struct kvd_block_table blocks;      /* of them, from the first on */
};

LIST_HEAD(kvd_prefix_lease_list, kvd_prefix_lease);

/* Zeroed: empty. */
struct kvd_prefix_lease_table {
    struct kvd_prefix_lease_list list;
    uint32_t count;
    uint64_t serial; /* of the last lease */
};

/* A lease without blocks, its chain at the root. NULL: no memory. */
struct kvd_prefix_lease *kvd_prefix_lease_create(struct kvd_service *service,
    const struct kvd_shape *shape, const struct kvd_prefix_chain *root);

/* Keep one more block, which `chain` has come to. Returns 0 or KVARN_ENOSPC. */
int kvd_prefix_lease_add(struct kvd_prefix_lease *lease, struct kvd_block *block,
    const struct kvd_prefix_chain *chain) KVARN_MUST_CHECK;

/* One of its blocks. */
static inline struct kvd_block *kvd_prefix_lease_block(
    const struct kvd_prefix_lease *lease, uint32_t block_idx)
{
    return kvd_block_table_at(&lease->blocks, block_idx);
}

/* Let go of its blocks and free it. NULL ok. */
void kvd_prefix_lease_destroy(struct kvd_prefix_lease *lease);

/*
 * Keep a lease for `ms`; it is the table's now. Returns 0; KVARN_ETOO_LARGE past
 * KVARN_PREFIX_LEASES_MAX; KVARN_ENOMEM. On failure it stays the caller's.
 */
int kvd_prefix_lease_insert(struct kvd_prefix_lease_table *table, struct kvd_prefix_lease *lease,
    uint64_t ms) KVARN_MUST_CHECK;

/* NULL when there is none; borrowed. */
struct kvd_prefix_lease *kvd_prefix_lease_find(
    const struct kvd_prefix_lease_table *table, uint64_t id);

/* End all. */
void kvd_prefix_lease_table_fini(struct kvd_prefix_lease_table *table);

#endif
