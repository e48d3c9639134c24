/*
 * The memory budget: one sum, one limit.
 *
 * Owner: service. Thread: loop only.
 */
#include "server/base/budget.h"

#include <stdbool.h>

#include "lib/base/assert.h"

void kvd_budget_init(struct kvd_budget *budget, uint64_t limit_bytes)
{
    *budget = (struct kvd_budget){.limit_bytes = limit_bytes};
}

static bool has_room(const struct kvd_budget *budget, uint64_t bytes)
{
    KVARN_ASSERT(budget->used_bytes <= budget->limit_bytes);
    return bytes <= budget->limit_bytes - budget->used_bytes;
}

int kvd_budget_charge(struct kvd_budget *budget, enum kvd_budget_kind kind, size_t bytes)
{
    KVARN_ASSERT(kind < KVD_BUDGET_KIND_COUNT);
    if (!has_room(budget, bytes) && budget->reclaim_cb != NULL && bytes <= budget->limit_bytes) {
        uint64_t free_bytes = budget->limit_bytes - budget->used_bytes;
        budget->reclaim_cb(budget->reclaim_ctx, bytes - free_bytes);
    }
    if (!has_room(budget, bytes)) {
        return KVARN_ENOSPC;
    }
    budget->used_bytes += bytes;
    budget->kind_bytes[kind] += bytes;
    KVARN_ASSERT(budget->used_bytes <= budget->limit_bytes);
    return 0;
}

void kvd_budget_release(struct kvd_budget *budget, enum kvd_budget_kind kind, size_t bytes)
{
    KVARN_ASSERT(kind < KVD_BUDGET_KIND_COUNT);
    KVARN_ASSERT(budget->kind_bytes[kind] >= bytes);
    KVARN_ASSERT(budget->used_bytes >= bytes);
    budget->kind_bytes[kind] -= bytes;
    budget->used_bytes -= bytes;
}
