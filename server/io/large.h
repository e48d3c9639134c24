/*
 * Memory of requests and replies, large or small, charged to the budget. Large pieces are mapped,
 * and given back to the system in slices: that takes the kernel some 40 us a MiB, which one free()
 * of a payload would take at once (SEMANTICS.md 18).
 *
 * Owner: service. Thread: loop only. What is given back stays charged until it is.
 */
#ifndef KVD_LARGE_H
#define KVD_LARGE_H

#include <stdbool.h>
#include <stddef.h>

#include <bsd/sys/queue.h>

#include "kvarn/err.h"
#include "server/base/budget.h"
#include "server/io/slices.h"

/* Pieces from here on are mapped. */
#define KVD_LARGE_BYTES_MIN ((size_t)2 << 20)

struct kvd_large_dead;
SLIST_HEAD(kvd_large_dead_list, kvd_large_dead);

struct kvd_large {
    struct kvd_budget *budget;       /* borrowed */
    struct kvd_slices *slices;       /* borrowed */
    struct kvd_large_dead_list dead; /* what is being given back, within itself */
    struct kvd_slice slice;          /* listed while there is any */
};

void kvd_large_init(struct kvd_large *large, struct kvd_budget *budget, struct kvd_slices *slices);

/*
 * Take `bytes`, aligned to 64, content undefined. Large pieces do not get into core files.
 * Returns 0, KVARN_ENOSPC (budget) or KVARN_ENOMEM.
 */
int kvd_large_take(
    struct kvd_large *large, enum kvd_budget_kind kind, size_t bytes, void **ret) KVARN_MUST_CHECK;

/* Give back a piece of so many bytes that was taken with this kind. NULL ok. */
void kvd_large_give(struct kvd_large *large, enum kvd_budget_kind kind, void *memory, size_t bytes);

/* True while something that was given back is still charged. */
bool kvd_large_has_dead(const struct kvd_large *large);

#endif
