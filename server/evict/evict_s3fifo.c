/*
 * Eviction policy s3fifo, after Yang et al., "FIFO queues are all you need for cache eviction"
 * (SOSP 2023), by bytes.
 *
 * Owner: evict. Thread: loop only.
 */
#include <string.h>

#include "server/evict/evict_policy_impl.h"

#define QUEUE_SMALL      0
#define QUEUE_MAIN       1
#define SMALL_SHARE      10 /* the small queue is to have one part in so many of the bytes */
#define SPARED_MAX       3
#define GHOST_COUNT      (1u << 15)
#define MOVES_PER_SEARCH 1024 /* spared entries that one search moves */

static uint64_t ghost_idx(uint64_t key)
{
    return (key * UINT64_C(0x9e3779b97f4a7c15)) >> (64 - 15);
}
_Static_assert(GHOST_COUNT == 1u << 15, "the hash keeps 15 bits");

void kvd_evict_ghosts_add(struct kvd_evict_ghosts *ghosts, uint64_t key)
{
    uint64_t i = ghost_idx(key);

    ghosts->keys[i] = key;
    ghosts->sequences[i] = ++ghosts->sequence_last;
}

bool kvd_evict_ghosts_has(const struct kvd_evict_ghosts *ghosts, uint64_t key, uint64_t window)
{
    uint64_t i = ghost_idx(key);

    return ghosts->sequences[i] != 0 && ghosts->keys[i] == key &&
           ghosts->sequence_last - ghosts->sequences[i] < window;
}

static int s3fifo_init(struct kvd_evict_policy *policy)
{
    struct kvd_evict_ghosts *ghosts = &policy->ghosts;

    ghosts->keys = calloc(GHOST_COUNT, sizeof(uint64_t));
    ghosts->sequences = calloc(GHOST_COUNT, sizeof(uint64_t));
    if (ghosts->keys == NULL || ghosts->sequences == NULL) {
        free(ghosts->keys);
        free(ghosts->sequences);
        return KVARN_ENOMEM;
    }
    return 0;
}

static size_t s3fifo_memory(void)
{
    return 2 * GHOST_COUNT * sizeof(uint64_t);
}

static void s3fifo_fini(struct kvd_evict_policy *policy)
{
    free(policy->ghosts.keys);
    free(policy->ghosts.sequences);
}

/* What came back soon after it left, or is released after a hold, has shown its worth. */
static void s3fifo_enter(struct kvd_evict_policy *policy, struct kvd_evict_entry *entry)
{
    bool is_back = entry->uses > 0 || kvd_evict_ghosts_has(&policy->ghosts, entry->key,
                                          policy->queue_count[QUEUE_MAIN] + 1);

    kvd_evict_queue_put(policy, entry, is_back ? QUEUE_MAIN : QUEUE_SMALL);
}

static void s3fifo_use(struct kvd_evict_policy *policy, struct kvd_evict_entry *entry)
{
    (void)policy;
    if (entry->spared < SPARED_MAX) {
        entry->spared++;
    }
}

static struct kvd_evict_entry *oldest(struct kvd_evict_policy *policy, unsigned queue_idx)
{
    return TAILQ_LAST(&policy->queues[queue_idx], kvd_evict_queue);
}

/*
 * The oldest of a queue that may go. What was used since it came is spared: goes to the young end
 * of the main queue. So does what may not go.
 */
static struct kvd_evict_entry *queue_victim(struct kvd_evict_policy *policy,
    const struct kvd_evict_search *search, unsigned queue_idx, unsigned *moves)
{
    struct kvd_evict_entry *entry;

    while ((entry = oldest(policy, queue_idx)) != NULL && *moves < MOVES_PER_SEARCH) {
        unsigned spared_min = queue_idx == QUEUE_SMALL ? 2 : 1;
        bool may = kvd_evict_may(search, entry);
        if (may && entry->spared < spared_min) {
            return entry;
        }
        entry->spared =
            entry->spared == 0 || queue_idx == QUEUE_SMALL ? 0 : (uint8_t)(entry->spared - 1);
        kvd_evict_queue_take(policy, entry);
        kvd_evict_queue_put(policy, entry, QUEUE_MAIN);
        (*moves)++;
        if (queue_idx == QUEUE_SMALL &&
            policy->queue_bytes[QUEUE_SMALL] * SMALL_SHARE < policy->bytes) {
            return NULL; /* small enough again: the main queue's turn */
        }
    }
    return NULL;
}

static struct kvd_evict_entry *s3fifo_victim(
    struct kvd_evict_policy *policy, const struct kvd_evict_search *search)
{
    struct kvd_evict_entry *entry = NULL;
    unsigned moves = 0;

    if (policy->queue_bytes[QUEUE_SMALL] * SMALL_SHARE >= policy->bytes) {
        entry = queue_victim(policy, search, QUEUE_SMALL, &moves);
    }
    if (entry == NULL) {
        entry = queue_victim(policy, search, QUEUE_MAIN, &moves);
    }
    return entry != NULL ? entry : queue_victim(policy, search, QUEUE_SMALL, &moves);
}

const struct kvd_evict_ops kvd_evict_ops_s3fifo = {
    .name = "s3fifo",
    .memory = s3fifo_memory,
    .init = s3fifo_init,
    .fini = s3fifo_fini,
    .enter = s3fifo_enter,
    .leave = kvd_evict_queue_take,
    .use = s3fifo_use,
    .victim = s3fifo_victim,
};
