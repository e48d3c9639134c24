/*
 * Eviction policy: what all policies share, and lru.
 *
 * Owner: evict. Thread: loop only.
 */
#include "server/evict/evict_policy.h"

#include <string.h>

#include "server/evict/evict_policy_impl.h"

/* First size of the table of candidates. */
#define SLOT_ROOM_MIN 64

static int lru_init(struct kvd_evict_policy *policy)
{
    (void)policy;
    return 0;
}

static void lru_fini(struct kvd_evict_policy *policy)
{
    (void)policy;
}

static void lru_enter(struct kvd_evict_policy *policy, struct kvd_evict_entry *entry)
{
    kvd_evict_queue_put(policy, entry, 0);
}

static void lru_use(struct kvd_evict_policy *policy, struct kvd_evict_entry *entry)
{
    kvd_evict_queue_take(policy, entry);
    kvd_evict_queue_put(policy, entry, 0);
}

static struct kvd_evict_entry *lru_victim(
    struct kvd_evict_policy *policy, const struct kvd_evict_search *search)
{
    struct kvd_evict_entry *entry = TAILQ_LAST(&policy->queues[0], kvd_evict_queue);

    for (unsigned n = 0; entry != NULL && n < KVD_EVICT_LOOK_MAX; n++) {
        if (kvd_evict_may(search, entry)) {
            return entry;
        }
        entry = TAILQ_PREV(entry, kvd_evict_queue, link);
    }
    return NULL;
}

static const struct kvd_evict_ops lru_ops = {
    .name = "lru",
    .init = lru_init,
    .fini = lru_fini,
    .enter = lru_enter,
    .leave = kvd_evict_queue_take,
    .use = lru_use,
    .victim = lru_victim,
};

static const struct kvd_evict_ops *const kinds[KVD_EVICT_KIND_COUNT] = {
    [KVD_EVICT_COST] = &kvd_evict_ops_cost,
    [KVD_EVICT_LRU] = &lru_ops,
    [KVD_EVICT_S3FIFO] = &kvd_evict_ops_s3fifo,
};

void kvd_evict_queue_put(
    struct kvd_evict_policy *policy, struct kvd_evict_entry *entry, unsigned queue_idx)
{
    KVARN_ASSERT(queue_idx < KVD_EVICT_QUEUES);
    entry->queue_idx = (uint8_t)queue_idx;
    TAILQ_INSERT_HEAD(&policy->queues[queue_idx], entry, link);
    policy->queue_bytes[queue_idx] += entry->bytes;
    policy->queue_count[queue_idx]++;
}

void kvd_evict_queue_take(struct kvd_evict_policy *policy, struct kvd_evict_entry *entry)
{
    KVARN_ASSERT(policy->queue_bytes[entry->queue_idx] >= entry->bytes);
    KVARN_ASSERT(policy->queue_count[entry->queue_idx] > 0);
    TAILQ_REMOVE(&policy->queues[entry->queue_idx], entry, link);
    policy->queue_bytes[entry->queue_idx] -= entry->bytes;
    policy->queue_count[entry->queue_idx]--;
}

const char *kvd_evict_kind_name(enum kvd_evict_kind kind)
{
    KVARN_ASSERT(kind < KVD_EVICT_KIND_COUNT);
    return kinds[kind]->name;
}

int kvd_evict_kind_parse(const char *name, enum kvd_evict_kind *ret)
{
    for (unsigned i = 0; i < KVD_EVICT_KIND_COUNT; i++) {
        if (strcmp(kinds[i]->name, name) == 0) {
            *ret = (enum kvd_evict_kind)i;
            return 0;
        }
    }
    return KVARN_EINVALID;
}

int kvd_evict_policy_create(enum kvd_evict_kind kind, uint64_t seed, struct kvd_evict_policy **ret)
{
    KVARN_ASSERT(kind < KVD_EVICT_KIND_COUNT);
    struct kvd_evict_policy *policy = calloc(1, sizeof(*policy));
    if (policy == NULL) {
        return KVARN_ENOMEM;
    }
    policy->ops = kinds[kind];
    policy->random = seed | 1;
    for (unsigned i = 0; i < KVD_EVICT_QUEUES; i++) {
        TAILQ_INIT(&policy->queues[i]);
    }
    int err = policy->ops->init(policy);
    if (err != 0) {
        free(policy);
        return err;
    }
    *ret = policy;
    return 0;
}

void kvd_evict_policy_destroy(struct kvd_evict_policy *policy)
{
    if (policy == NULL) {
        return;
    }
    KVARN_ASSERT(policy->count == 0 && policy->bytes == 0);
    policy->ops->fini(policy);
    free(policy->slots);
    free(policy);
}

uint64_t kvd_evict_policy_bytes(const struct kvd_evict_policy *policy)
{
    return policy->bytes;
}

uint64_t kvd_evict_policy_count(const struct kvd_evict_policy *policy)
{
    return policy->count;
}

size_t kvd_evict_policy_memory(enum kvd_evict_kind kind)
{
    KVARN_ASSERT(kind < KVD_EVICT_KIND_COUNT);
    return sizeof(struct kvd_evict_policy) +
           (kinds[kind]->memory == NULL ? 0 : kinds[kind]->memory());
}

static uint64_t slot_room_next(const struct kvd_evict_policy *policy)
{
    return policy->slot_room == 0 ? SLOT_ROOM_MIN : 2 * policy->slot_room;
}

size_t kvd_evict_insert_memory(const struct kvd_evict_policy *policy)
{
    return policy->count < policy->slot_room
               ? 0
               : (slot_room_next(policy) - policy->slot_room) * sizeof(struct kvd_evict_entry *);
}

/* Room for one more candidate, so that nobody who becomes one needs memory. */
static int slots_grow(struct kvd_evict_policy *policy)
{
    uint64_t room = slot_room_next(policy);

    if (policy->count < policy->slot_room) {
        return 0;
    }
    struct kvd_evict_entry **slots =
        realloc(policy->slots, room * sizeof(struct kvd_evict_entry *));
    if (slots == NULL) {
        return KVARN_ENOMEM;
    }
    policy->slots = slots;
    policy->slot_room = room;
    return 0;
}

static void note(struct kvd_evict_policy *policy, const struct kvd_evict_entry *entry)
{
    if (policy->ops->note != NULL) {
        policy->ops->note(policy, entry);
    }
}

int kvd_evict_insert(
    struct kvd_evict_policy *policy, struct kvd_evict_entry *entry, uint64_t now_ns)
{
    KVARN_ASSERT(!entry->is_inserted && entry->bytes > 0 && entry->group < KVD_EVICT_GROUPS);
    int err = slots_grow(policy);
    if (err != 0) {
        return err;
    }
    policy->count++;
    policy->bytes += entry->bytes;
    entry->is_inserted = true;
    entry->is_held = false;
    entry->used_ns = now_ns;
    entry->uses = 0;
    entry->spared = 0;
    policy->ops->enter(policy, entry);
    note(policy, entry);
    return 0;
}

void kvd_evict_use(struct kvd_evict_policy *policy, struct kvd_evict_entry *entry, uint64_t now_ns)
{
    KVARN_ASSERT(entry->is_inserted && now_ns >= entry->used_ns);
    entry->used_ns = now_ns;
    entry->uses += entry->uses < UINT32_MAX;
    note(policy, entry);
    if (!entry->is_held) {
        policy->ops->use(policy, entry);
    }
}

/* cost alone keeps what others depend on out of its queues. */
static bool is_candidate(const struct kvd_evict_policy *policy, const struct kvd_evict_entry *entry)
{
    return !entry->is_held && (entry->dependents == 0 || policy->ops != &kvd_evict_ops_cost);
}

void kvd_evict_update(
    struct kvd_evict_policy *policy, struct kvd_evict_entry *entry, uint64_t bytes, uint64_t cost)
{
    KVARN_ASSERT(entry->is_inserted && bytes > 0);
    policy->bytes += bytes - entry->bytes;
    if (is_candidate(policy, entry)) {
        policy->queue_bytes[entry->queue_idx] += bytes - entry->bytes;
    }
    entry->bytes = bytes;
    entry->cost = cost;
}

void kvd_evict_depend(struct kvd_evict_policy *policy, struct kvd_evict_entry *entry, int by)
{
    bool was_candidate = is_candidate(policy, entry);

    KVARN_ASSERT(entry->is_inserted && (by == 1 || (by == -1 && entry->dependents > 0)));
    if (by > 0) {
        if (was_candidate && policy->ops == &kvd_evict_ops_cost) {
            policy->ops->leave(policy, entry);
        }
        entry->dependents++;
    } else {
        entry->dependents--;
        if (!was_candidate && is_candidate(policy, entry)) {
            policy->ops->enter(policy, entry);
        }
    }
}

void kvd_evict_hold(struct kvd_evict_policy *policy, struct kvd_evict_entry *entry)
{
    KVARN_ASSERT(entry->is_inserted);
    if (is_candidate(policy, entry)) {
        policy->ops->leave(policy, entry);
    }
    entry->is_held = true;
}

void kvd_evict_release(struct kvd_evict_policy *policy, struct kvd_evict_entry *entry)
{
    KVARN_ASSERT(entry->is_inserted);
    bool was_held = entry->is_held;
    entry->is_held = false;
    if (was_held && is_candidate(policy, entry)) {
        policy->ops->enter(policy, entry);
    }
}

void kvd_evict_remove(
    struct kvd_evict_policy *policy, struct kvd_evict_entry *entry, enum kvd_evict_reason reason)
{
    KVARN_ASSERT(entry->is_inserted && policy->count > 0 && policy->bytes >= entry->bytes);
    if (is_candidate(policy, entry)) {
        policy->ops->leave(policy, entry);
    }
    if (reason == KVD_EVICT_EVICTED && policy->ghosts.keys != NULL) {
        kvd_evict_ghosts_add(&policy->ghosts, entry->key);
    }
    policy->count--;
    policy->bytes -= entry->bytes;
    entry->is_inserted = false;
}

struct kvd_evict_entry *kvd_evict_victim(struct kvd_evict_policy *policy, uint64_t now_ns,
    bool (*may_cb)(void *ctx, const struct kvd_evict_entry *entry), void *ctx)
{
    struct kvd_evict_search search = {.now_ns = now_ns, .may_cb = may_cb, .ctx = ctx};

    return policy->ops->victim(policy, &search);
}
