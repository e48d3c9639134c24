/*
 * The cold copy of a block.
 *
 * Owner: blocks, by reference. Thread: loop only.
 */
#include "server/cold/cold_copy.h"

#include <stdlib.h>

#include "lib/base/assert.h"
#include "server/service.h"

struct kvd_cold_copy *kvd_cold_copy_create(struct kvd_service *service, struct kvd_cold_id id)
{
    struct kvd_cold_copy *copy;

    if (kvd_budget_charge(&service->budget, KVD_BUDGET_COLD, sizeof(*copy)) != 0) {
        return NULL;
    }
    copy = calloc(1, sizeof(*copy));
    if (copy == NULL) {
        kvd_budget_release(&service->budget, KVD_BUDGET_COLD, sizeof(*copy));
        return NULL;
    }
    copy->id = id;
    copy->refs = 1;
    return copy;
}

struct kvd_cold_copy *kvd_cold_copy_ref(struct kvd_cold_copy *copy)
{
    KVARN_ASSERT(copy->refs > 0);
    copy->refs++;
    return copy;
}

void kvd_cold_copy_unref(struct kvd_service *service, struct kvd_cold_copy *copy)
{
    if (copy == NULL) {
        return;
    }
    KVARN_ASSERT(copy->refs > 0);
    copy->refs--;
    if (copy->refs > 0) {
        return;
    }
    if (copy->record != NULL && service->cold.tier != NULL) {
        service->cold.tier->ops->forget(service->cold.tier, copy->record);
    }
    kvd_budget_release(&service->budget, KVD_BUDGET_COLD, sizeof(*copy));
    free(copy);
}
