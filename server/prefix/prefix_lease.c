/*
 * Leases on prefixes.
 *
 * Owner: the connection. Thread: loop only.
 */
#include "server/prefix/prefix_lease.h"

#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/service.h"

static size_t lease_bytes(uint32_t block_room)
{
    return sizeof(struct kvd_prefix_lease) + block_room * sizeof(struct kvd_block *);
}

struct kvd_prefix_lease *kvd_prefix_lease_create(struct kvd_service *service,
    const struct kvd_shape *shape, const struct kvd_prefix_chain *root, uint32_t block_room)
{
    size_t bytes = lease_bytes(block_room);

    if (kvd_budget_charge(&service->budget, KVD_BUDGET_SESSIONS, bytes) != 0) {
        return NULL;
    }
    struct kvd_prefix_lease *lease = calloc(1, bytes);
    if (lease == NULL) {
        kvd_budget_release(&service->budget, KVD_BUDGET_SESSIONS, bytes);
        return NULL;
    }
    lease->service = service;
    lease->shape = shape;
    lease->chain = *root;
    memcpy(lease->root, root->name, sizeof(lease->root));
    lease->block_room = block_room;
    return lease;
}

void kvd_prefix_lease_destroy(struct kvd_prefix_lease *lease)
{
    if (lease == NULL) {
        return;
    }
    struct kvd_service *service = lease->service;
    size_t bytes = lease_bytes(lease->block_room);

    if (lease->table != NULL) {
        LIST_REMOVE(lease, link);
        lease->table->count--;
    }
    service->io->ops->timer_destroy(lease->timer);
    for (uint32_t i = 0; i < lease->block_room && lease->blocks[i] != NULL; i++) {
        kvd_block_unref_later(service, lease->blocks[i]);
    }
    free(lease);
    kvd_budget_release(&service->budget, KVD_BUDGET_SESSIONS, bytes);
}

static void expire_cb(void *ctx)
{
    kvd_prefix_lease_destroy(ctx);
}

int kvd_prefix_lease_insert(
    struct kvd_prefix_lease_table *table, struct kvd_prefix_lease *lease, uint64_t ms)
{
    struct kvd_io *io = lease->service->io;

    KVARN_ASSERT(lease->table == NULL && ms > 0);
    if (table->count >= KVARN_PREFIX_LEASES_MAX) {
        return KVARN_ETOO_LARGE;
    }
    lease->timer = io->ops->timer_create(io, expire_cb, lease);
    if (lease->timer == NULL) {
        return KVARN_ENOMEM;
    }
    io->ops->timer_start(lease->timer, ms, 0);
    lease->id = ++table->serial;
    lease->table = table;
    table->count++;
    LIST_INSERT_HEAD(&table->list, lease, link);
    return 0;
}

struct kvd_prefix_lease *kvd_prefix_lease_find(
    const struct kvd_prefix_lease_table *table, uint64_t id)
{
    struct kvd_prefix_lease *lease;

    LIST_FOREACH(lease, &table->list, link)
    {
        if (lease->id == id) {
            return lease;
        }
    }
    return NULL;
}

void kvd_prefix_lease_table_fini(struct kvd_prefix_lease_table *table)
{
    struct kvd_prefix_lease *lease, *next;

    LIST_FOREACH_SAFE(lease, &table->list, link, next)
    {
        kvd_prefix_lease_destroy(lease);
    }
}
