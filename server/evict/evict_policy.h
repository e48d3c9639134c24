/*
 * Eviction policy: which of the things that are held should go first. Pure: it knows bytes, costs
 * and times, nothing of sessions, pages or the wire, and frees nothing. The daemon keeps one entry
 * a session in it; kvarn-bench evict replays traces of blocks through the same code.
 *
 * Owner: evict (one policy a tenant). Thread: loop only. Times are of the monotonic clock and never
 * fall. All operations take constant time, without allocation, but for kvd_evict_insert(), which
 * may grow a table; memory is 8 bytes an entry beside the entry itself, and a constant.
 *
 * Policies:
 * lru     the one whose last use is longest ago.
 * s3fifo  a small queue for what is new (a tenth of the bytes), a main one for what was used again
 *         while in it or came back soon after it left; in both what was used meanwhile is spared.
 * cost    (default) the one that is worth least a byte: how soon it is likely to be used again
 *         (reuse_model.h, by how often it was used and its kind) times the cost to make it again,
 *         times sharers and priority, over its bytes. Entries that others depend on never go before
 *         those. Looks at the least recently used of each class and at some drawn at random.
 */
#ifndef KVD_EVICT_POLICY_H
#define KVD_EVICT_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <bsd/sys/queue.h>

#include "kvarn/err.h"

enum kvd_evict_kind {
    KVD_EVICT_COST,
    KVD_EVICT_LRU,
    KVD_EVICT_S3FIFO,
    KVD_EVICT_KIND_COUNT,
};

/* What the owner tells apart: things of a kind are used again alike. */
#define KVD_EVICT_GROUPS 2

/* Priority halves in this time since it was set: what was urgent once does not stay for ever. */
#define KVD_EVICT_PRIORITY_HALF_LIFE_NS (UINT64_C(600) * 1000000000)
#define KVD_EVICT_PRIORITY_MAX          100

/*
 * Embedded in what it stands for. The owner sets the first part before insert and may change it
 * through kvd_evict_update(); the rest is the policy's.
 */
struct kvd_evict_entry {
    uint64_t key;         /* the same when the same thing comes back after it left */
    uint64_t bytes;       /* what evicting it frees, > 0 */
    uint64_t cost;        /* of making all of it again: tokens, weighted as the owner likes */
    uint64_t priority_ns; /* when priority was set */
    uint32_t sharers;     /* others that would miss it too */
    uint32_t dependents;  /* entries that are held and worthless without it */
    TAILQ_ENTRY(kvd_evict_entry) link; /* from here on the policy's, but for group and priority */
    uint64_t used_ns;
    uint32_t uses;     /* since it was inserted; the first does not count */
    uint32_t slot_idx; /* in the policy's table of candidates */
    uint8_t group;     /* < KVD_EVICT_GROUPS */
    uint8_t priority;  /* 0 to KVD_EVICT_PRIORITY_MAX; 0: none */
    bool is_held;      /* out: kvd_evict_hold() */
    bool is_inserted;  /* out */
    uint8_t queue_idx;
    uint8_t spared;
};

TAILQ_HEAD(kvd_evict_queue, kvd_evict_entry);

struct kvd_evict_policy;

/* Returns 0 or KVARN_ENOMEM. seed: of the random draws. */
int kvd_evict_policy_create(
    enum kvd_evict_kind kind, uint64_t seed, struct kvd_evict_policy **ret) KVARN_MUST_CHECK;

/* All entries must have been removed. NULL ok. */
void kvd_evict_policy_destroy(struct kvd_evict_policy *policy);

/* "cost", "lru", "s3fifo". */
const char *kvd_evict_kind_name(enum kvd_evict_kind kind);

/* Returns 0 or KVARN_EINVALID. */
int kvd_evict_kind_parse(const char *name, enum kvd_evict_kind *ret) KVARN_MUST_CHECK;

/* Bytes and entries that the policy has. */
uint64_t kvd_evict_policy_bytes(const struct kvd_evict_policy *policy);
uint64_t kvd_evict_policy_count(const struct kvd_evict_policy *policy);

/* Memory that a policy of this kind takes when it is made, and what the next insert adds to it. */
size_t kvd_evict_policy_memory(enum kvd_evict_kind kind);
size_t kvd_evict_insert_memory(const struct kvd_evict_policy *policy);

/* A new entry, used now. Returns 0, or KVARN_ENOMEM: it is not inserted then. */
int kvd_evict_insert(struct kvd_evict_policy *policy, struct kvd_evict_entry *entry,
    uint64_t now_ns) KVARN_MUST_CHECK;

/* It was used. Also while held. */
void kvd_evict_use(struct kvd_evict_policy *policy, struct kvd_evict_entry *entry, uint64_t now_ns);

/* It holds `bytes` from now on, and costs `cost`. */
void kvd_evict_update(
    struct kvd_evict_policy *policy, struct kvd_evict_entry *entry, uint64_t bytes, uint64_t cost);

/* One more (+1) or one fewer (-1) entry depends on it. */
void kvd_evict_depend(struct kvd_evict_policy *policy, struct kvd_evict_entry *entry, int by);

/* Held entries (pinned, say) are no candidates until released. Both may be repeated. */
void kvd_evict_hold(struct kvd_evict_policy *policy, struct kvd_evict_entry *entry);
void kvd_evict_release(struct kvd_evict_policy *policy, struct kvd_evict_entry *entry);

/* It left, by eviction (is then remembered a while) or otherwise. */
enum kvd_evict_reason {
    KVD_EVICT_GONE,
    KVD_EVICT_EVICTED,
};
void kvd_evict_remove(
    struct kvd_evict_policy *policy, struct kvd_evict_entry *entry, enum kvd_evict_reason reason);

/*
 * The entry that should go first among those that may go, NULL when none was found. may_cb (NULL:
 * all may) is asked for the few entries looked at; those it refuses are passed over.
 */
struct kvd_evict_entry *kvd_evict_victim(struct kvd_evict_policy *policy, uint64_t now_ns,
    bool (*may_cb)(void *ctx, const struct kvd_evict_entry *entry), void *ctx);

#endif
