/*
 * Eviction policy cost: least worth a byte, by what the reuse model learned.
 *
 * Owner: evict. Thread: loop only.
 */
#include <float.h>
#include <math.h>

#include "server/evict/evict_policy_impl.h"

#define USE_CLASSES 8 /* 0, 1, 2-3, 4-7, ... 64 and more uses */
_Static_assert(USE_CLASSES *KVD_EVICT_GROUPS == KVD_REUSE_CLASSES, "a class each");

/* Looked at a search: the oldest of each class, and as many drawn at random: some 2 us. */
#define OLDEST_PER_CLASS 3
#define DRAWS            48

/*
 * The least recently used goes, whatever the model says, while so few uses were seen of what had
 * rested as long as it.
 */
#define EVIDENCE_MIN 50.0f

/* Draws a search makes before it gives up when none of those drawn may go. */
#define DRAWS_MAX 512

static int cost_init(struct kvd_evict_policy *policy)
{
    return kvd_reuse_model_init(&policy->reuse);
}

static size_t cost_memory(void)
{
    return kvd_reuse_model_bytes();
}

static void cost_fini(struct kvd_evict_policy *policy)
{
    kvd_reuse_model_fini(&policy->reuse);
}

static unsigned class_of(const struct kvd_evict_entry *entry)
{
    unsigned octave = entry->uses == 0 ? 0 : 32u - (unsigned)__builtin_clz(entry->uses);

    if (octave >= USE_CLASSES) {
        octave = USE_CLASSES - 1;
    }
    return entry->group * USE_CLASSES + octave;
}

static void cost_note(struct kvd_evict_policy *policy, const struct kvd_evict_entry *entry)
{
    kvd_reuse_model_use(&policy->reuse, entry->key, class_of(entry), entry->used_ns);
}

/*
 * Among the young of its class, unless it is as old as the oldest: what loses its last dependent
 * has usually rested as long as that.
 */
static void queue_enter(struct kvd_evict_policy *policy, struct kvd_evict_entry *entry)
{
    unsigned class_idx = class_of(entry);
    struct kvd_evict_queue *queue = &policy->queues[class_idx];
    struct kvd_evict_entry *young = TAILQ_FIRST(queue);

    kvd_evict_queue_put(policy, entry, class_idx);
    if (young != NULL && young->used_ns > entry->used_ns) {
        TAILQ_REMOVE(queue, entry, link);
        TAILQ_INSERT_TAIL(queue, entry, link);
    }
}

static void cost_enter(struct kvd_evict_policy *policy, struct kvd_evict_entry *entry)
{
    if (entry->dependents > 0) {
        return;
    }
    KVARN_ASSERT(policy->slot_count < policy->slot_room);
    entry->slot_idx = (uint32_t)policy->slot_count;
    policy->slots[policy->slot_count++] = entry;
    queue_enter(policy, entry);
}

static void cost_leave(struct kvd_evict_policy *policy, struct kvd_evict_entry *entry)
{
    KVARN_ASSERT(policy->slots[entry->slot_idx] == entry);
    struct kvd_evict_entry *last = policy->slots[--policy->slot_count];
    policy->slots[entry->slot_idx] = last;
    last->slot_idx = entry->slot_idx;
    kvd_evict_queue_take(policy, entry);
}

static void cost_use(struct kvd_evict_policy *policy, struct kvd_evict_entry *entry)
{
    if (entry->dependents == 0) {
        kvd_evict_queue_take(policy, entry);
        kvd_evict_queue_put(policy, entry, class_of(entry));
    }
}

static uint64_t age_ns_of(uint64_t then_ns, uint64_t now_ns)
{
    return now_ns > then_ns ? now_ns - then_ns : 0;
}

/* What keeping it is worth, a byte and second. */
static float worth(
    const struct kvd_evict_policy *policy, const struct kvd_evict_entry *entry, uint64_t now_ns)
{
    float reuse =
        kvd_reuse_model_worth(&policy->reuse, class_of(entry), age_ns_of(entry->used_ns, now_ns));
    float value = reuse * (float)entry->cost / (float)entry->bytes;

    value *= 1.0f + (float)entry->sharers;
    if (entry->priority > 0) {
        float half_lives =
            (float)age_ns_of(entry->priority_ns, now_ns) / (float)KVD_EVICT_PRIORITY_HALF_LIFE_NS;
        value *= 1.0f + (float)entry->priority * exp2f(-half_lives);
    }
    return value;
}

struct choice {
    struct kvd_evict_entry *entry; /* borrowed; NULL: none yet */
    float worth;
};

/* Equals: the one that has rested longer. */
static void choice_offer(struct kvd_evict_policy *policy, const struct kvd_evict_search *search,
    struct choice *choice, struct kvd_evict_entry *entry)
{
    float value = worth(policy, entry, search->now_ns);
    bool is_less = value < choice->worth || (value <= choice->worth && choice->entry != NULL &&
                                                entry->used_ns < choice->entry->used_ns);

    if (is_less && kvd_evict_may(search, entry)) {
        *choice = (struct choice){.entry = entry, .worth = value};
    }
}

static uint64_t draw(struct kvd_evict_policy *policy)
{
    policy->random ^= policy->random << 13;
    policy->random ^= policy->random >> 7;
    policy->random ^= policy->random << 17;
    return (policy->random >> 16) % policy->slot_count;
}

/* The oldest few of each class: the least worth of them, or the least recently used. */
static struct choice choice_oldest(
    struct kvd_evict_policy *policy, const struct kvd_evict_search *search, bool is_by_age)
{
    struct choice choice = {.worth = FLT_MAX};

    for (unsigned c = 0; c < KVD_REUSE_CLASSES; c++) {
        struct kvd_evict_entry *entry = TAILQ_LAST(&policy->queues[c], kvd_evict_queue);
        for (unsigned n = 0; entry != NULL && n < OLDEST_PER_CLASS; n++) {
            if (!is_by_age) {
                choice_offer(policy, search, &choice, entry);
            } else if ((choice.entry == NULL || entry->used_ns < choice.entry->used_ns) &&
                       kvd_evict_may(search, entry)) {
                choice.entry = entry;
            }
            entry = TAILQ_PREV(entry, kvd_evict_queue, link);
        }
    }
    return choice;
}

static struct kvd_evict_entry *cost_victim(
    struct kvd_evict_policy *policy, const struct kvd_evict_search *search)
{
    struct choice choice = choice_oldest(policy, search, true);

    if (policy->slot_count == 0) {
        return NULL;
    }
    if (choice.entry != NULL) {
        uint64_t age_ns = age_ns_of(choice.entry->used_ns, search->now_ns);
        if (kvd_reuse_model_evidence(&policy->reuse, age_ns) < EVIDENCE_MIN) {
            return choice.entry;
        }
    }
    choice = choice_oldest(policy, search, false);
    for (unsigned n = 0; n < DRAWS || (choice.entry == NULL && n < DRAWS_MAX); n++) {
        choice_offer(policy, search, &choice, policy->slots[draw(policy)]);
    }
    return choice.entry;
}

const struct kvd_evict_ops kvd_evict_ops_cost = {
    .name = "cost",
    .memory = cost_memory,
    .init = cost_init,
    .fini = cost_fini,
    .enter = cost_enter,
    .leave = cost_leave,
    .note = cost_note,
    .use = cost_use,
    .victim = cost_victim,
};
