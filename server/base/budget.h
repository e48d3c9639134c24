/*
 * The memory budget: what every large allocation of the daemon is charged to before it is made.
 *
 * Owner: service. Thread: loop only. The limit is on the sum of all kinds (SEMANTICS.md 5).
 */
#ifndef KVD_BUDGET_H
#define KVD_BUDGET_H

#include <stddef.h>
#include <stdint.h>

#include "kvarn/err.h"

enum kvd_budget_kind {
    KVD_BUDGET_CHUNKS,   /* page chunks, whole */
    KVD_BUDGET_STAGING,  /* payloads on their way in */
    KVD_BUDGET_REPLIES,  /* payloads on their way out, attention's partials */
    KVD_BUDGET_SESSIONS, /* sessions, block tables, page descriptors, seals */
    KVD_BUDGET_CONNS,    /* connections and their requests */
    KVD_BUDGET_QUERIES,  /* query metrics of the encoder aware */
    KVD_BUDGET_POLICIES, /* what eviction knows of sessions */
    KVD_BUDGET_COLD,     /* records of the cold tier, and what is on its way there and back */
    KVD_BUDGET_KIND_COUNT,
};

struct kvd_budget {
    uint64_t limit_bytes;
    uint64_t used_bytes; /* sum of kinds; <= limit_bytes, asserted on every change */
    uint64_t kind_bytes[KVD_BUDGET_KIND_COUNT];
    /*
     * Asked before a charge is refused: give back memory that is held without need (the page
     * store's empty chunks), at least `bytes` if there is as much. NULL: nobody to ask.
     */
    void (*reclaim_cb)(void *ctx, uint64_t bytes);
    void *reclaim_ctx; /* borrowed */
};

void kvd_budget_init(struct kvd_budget *budget, uint64_t limit_bytes);

/* Returns 0 and charges, or KVARN_ENOSPC and charges nothing. */
int kvd_budget_charge(
    struct kvd_budget *budget, enum kvd_budget_kind kind, size_t bytes) KVARN_MUST_CHECK;
void kvd_budget_release(struct kvd_budget *budget, enum kvd_budget_kind kind, size_t bytes);

#endif
