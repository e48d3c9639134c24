/*
 * Inside of the eviction policies: what evict_policy.c, evict_s3fifo.c and evict_cost.c share.
 *
 * Owner: eviction policy. Thread: loop only.
 */
#ifndef KVD_EVICT_POLICY_IMPL_H
#define KVD_EVICT_POLICY_IMPL_H

#include <stdlib.h>

#include "lib/base/assert.h"
#include "server/evict/evict_policy.h"
#include "server/evict/reuse_model.h"

/* Queues of a policy: cost has one a class of reuse, s3fifo two, lru one. */
#define KVD_EVICT_QUEUES KVD_REUSE_CLASSES

/* Entries a victim's search looks at in one queue before it gives up on it. */
#define KVD_EVICT_LOOK_MAX 64

/* What left s3fifo's small queue lately, by hash of its key; of a fixed size. */
struct kvd_evict_ghosts {
    uint64_t *keys;      /* owned */
    uint64_t *sequences; /* owned */
    uint64_t sequence_last;
};

struct kvd_evict_search {
    uint64_t now_ns;
    bool (*may_cb)(void *ctx, const struct kvd_evict_entry *entry); /* NULL: all may */
    void *ctx;
};

struct kvd_evict_ops {
    const char *name;
    size_t (*memory)(void); /* NULL, or what init takes */
    int (*init)(struct kvd_evict_policy *policy);
    void (*fini)(struct kvd_evict_policy *policy);
    /* The entry became or ceased to be a candidate; its counts are set. */
    void (*enter)(struct kvd_evict_policy *policy, struct kvd_evict_entry *entry);
    void (*leave)(struct kvd_evict_policy *policy, struct kvd_evict_entry *entry);
    /* NULL, or told of every insert and use, also of what is no candidate. */
    void (*note)(struct kvd_evict_policy *policy, const struct kvd_evict_entry *entry);
    /* It was used, and is not held. */
    void (*use)(struct kvd_evict_policy *policy, struct kvd_evict_entry *entry);
    struct kvd_evict_entry *(*victim)(
        struct kvd_evict_policy *policy, const struct kvd_evict_search *search);
};

struct kvd_evict_policy {
    const struct kvd_evict_ops *ops;
    struct kvd_evict_queue queues[KVD_EVICT_QUEUES]; /* first: entered last */
    uint64_t queue_bytes[KVD_EVICT_QUEUES];
    uint64_t queue_count[KVD_EVICT_QUEUES];
    uint64_t bytes;
    uint64_t count;
    uint64_t random; /* state of xorshift64, never 0 */
    /* cost: candidates in any order, to draw from. */
    struct kvd_evict_entry **slots; /* owned; the entries are borrowed */
    uint64_t slot_count;
    uint64_t slot_room; /* >= count */
    struct kvd_reuse_model reuse;
    struct kvd_evict_ghosts ghosts; /* s3fifo */
};

extern const struct kvd_evict_ops kvd_evict_ops_cost;
extern const struct kvd_evict_ops kvd_evict_ops_s3fifo;

/* Put an entry at the young end of a queue, or take it out of its own; keeps the queue's sums. */
void kvd_evict_queue_put(
    struct kvd_evict_policy *policy, struct kvd_evict_entry *entry, unsigned queue_idx);
void kvd_evict_queue_take(struct kvd_evict_policy *policy, struct kvd_evict_entry *entry);

static inline bool kvd_evict_may(
    const struct kvd_evict_search *search, const struct kvd_evict_entry *entry)
{
    return search->may_cb == NULL || search->may_cb(search->ctx, entry);
}

/* Remember that `key` left; whether it left among the last `window` that did. */
void kvd_evict_ghosts_add(struct kvd_evict_ghosts *ghosts, uint64_t key);
bool kvd_evict_ghosts_has(const struct kvd_evict_ghosts *ghosts, uint64_t key, uint64_t window);

#endif
