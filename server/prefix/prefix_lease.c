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

struct kvd_prefix_lease *kvd_prefix_lease_create(
    struct kvd_service *service, const struct kvd_shape *shape, const struct kvd_prefix_chain *root)
{
    struct kvd_prefix_lease *lease = NULL;

    if (kvd_budget_charge(&service->budget, KVD_BUDGET_SESSIONS, sizeof(*lease)) != 0) {
        return NULL;
    }
    lease = calloc(1, sizeof(*lease));
    if (lease == NULL) {
        kvd_budget_release(&service->budget, KVD_BUDGET_SESSIONS, sizeof(*lease));
        return NULL;
    }
    lease->service = service;
    lease->shape = shape;
    lease->chain = *root;
    memcpy(lease->root, root->name, sizeof(lease->root));
    return lease;
}

int kvd_prefix_lease_add(
    struct kvd_prefix_lease *lease, struct kvd_block *block, const struct kvd_prefix_chain *chain)
{
    int err = kvd_block_table_reserve(lease->service, &lease->blocks);

    if (err == 0) {
        kvd_block_table_push(&lease->blocks, kvd_block_ref(block));
        lease->chain = *chain;
        KVARN_ASSERT(lease->blocks.count == chain->blocks);
    }
    return err;
}

void kvd_prefix_lease_destroy(struct kvd_prefix_lease *lease)
{
    if (lease == NULL) {
        return;
    }
    struct kvd_service *service = lease->service;

    if (lease->table != NULL) {
        LIST_REMOVE(lease, link);
        lease->table->count--;
    }
    service->io->ops->timer_destroy(lease->timer);
    kvd_block_table_clear(service, &lease->blocks);
    free(lease);
    kvd_budget_release(&service->budget, KVD_BUDGET_SESSIONS, sizeof(*lease));
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
