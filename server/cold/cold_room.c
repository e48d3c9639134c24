/*
 * A tier at its limit: sessions that nobody used for the longest time give up what they have there.
 *
 * Owner: service. Thread: loop only.
 *
 * The tier says how much it would have forgotten. Sessions are asked in the order of their last
 * use. Who holds nothing else gives up blocks from the end, as far as is wanted: a shorter map goes
 * to disk, and when it is durable the blocks are MISSING, evicted. Little that would be left goes
 * too: then the session ends on disk, by a tombstone. So a crash finds either state. Only when no
 * session has anything that is on disk alone do those give up theirs that are in memory: all of it,
 * and they are not written again before they are used.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "lib/base/assert.h"
#include "server/base/log.h"
#include "server/cold/cold_spill.h"
#include "server/evict/session_evict.h"
#include "server/service.h"
#include "server/session/session_blocks.h"

/* Sessions that one turn looks at, blocks that one gives at once unless it gives all. */
#define LOOKS_MAX  64u
#define BLOCKS_MAX 512u

/* Maps and tombstones on their way. */
#define GIVES_MAX 64u

/* When to look again whether more is wanted; and after a failure. */
#define LOOK_MS  50u
#define PAUSE_NS UINT64_C(1000000000)

/* On its way to be given up. */
struct kvd_cold_give {
    LIST_ENTRY(kvd_cold_give) link;
    struct kvd_session *session; /* ref */
    struct kvd_cold_id uid;
    uint64_t touched_ns;
    uint64_t bytes;
    uint32_t first;
    bool is_whole;
};

/* The list. */

void kvd_cold_unlist(struct kvd_session *session)
{
    struct kvd_cold_sessions *cold = &session->service->cold;

    if (session->cold.is_listed) {
        if (cold->room_next == session) {
            cold->room_next = TAILQ_NEXT(session, cold.use_link);
        }
        TAILQ_REMOVE(&cold->by_use, session, cold.use_link);
        session->cold.is_listed = false;
    }
}

void kvd_cold_used(struct kvd_session *session)
{
    struct kvd_cold_sessions *cold = &session->service->cold;

    if (cold->tier == NULL || session->name == NULL || session->is_dropped) {
        return;
    }
    kvd_cold_unlist(session);
    TAILQ_INSERT_TAIL(&cold->by_use, session, cold.use_link);
    session->cold.is_listed = true;
    session->cold.is_given_up = false;
}

/* What a restart brought back was used in the order of its maps. */
struct by_map {
    struct kvd_session *session; /* borrowed */
    uint64_t sequence;
};

static int by_sequence(const void *a, const void *b)
{
    const struct by_map *x = a;
    const struct by_map *y = b;

    return (x->sequence > y->sequence) - (x->sequence < y->sequence);
}

int kvd_cold_room_init(struct kvd_cold_sessions *cold)
{
    struct kvd_session_table *table = &cold->service->sessions;
    struct by_map *list = calloc(table->count + 1, sizeof(*list));
    struct kvd_session *session = kvd_session_table_next(table, KVD_TENANT_DEFAULT, NULL);
    uint32_t count = 0;

    if (list == NULL) {
        return KVARN_ENOMEM;
    }
    for (; session != NULL && count < table->count;
         session = kvd_session_table_next(table, KVD_TENANT_DEFAULT, session->name)) {
        struct kvd_cold_info info = {0};
        if (session->cold.map_rec != NULL) {
            cold->tier->ops->info(session->cold.map_rec, &info);
        }
        list[count++] = (struct by_map){session, info.sequence};
    }
    qsort(list, count, sizeof(*list), by_sequence);
    for (uint32_t i = 0; i < count; i++) {
        kvd_cold_used(list[i].session);
    }
    free(list);
    if (cold->tier->ops->wanted(cold->tier) > 0) {
        kvd_spill_arm(cold, LOOK_MS); /* the limit is lower than it was */
    }
    return 0;
}

/* Letting go. */

/* A block of a session in which nobody is at work. Returns whether it was let go. */
static bool block_let_go(struct kvd_session *session, uint32_t block_idx)
{
    const struct kvd_block *block = kvd_session_block(session, block_idx);
    uint64_t freed_bytes = 0;

    if (block == NULL || block->state == KVD_BLOCK_LOADING || block->state == KVD_BLOCK_MISSING) {
        return false;
    }
    if (block->state == KVD_BLOCK_COLD) {
        /* It has no pages: this makes it the session's own. */
        if (kvd_session_strip_block(
                session, block_idx, KVARND__MISS_REASON__MISS_EVICTED, &freed_bytes) != 0) {
            return false;
        }
    } else if (block->cold == NULL || block->refs > 1 ||
               kvd_block_table_own_span(session->service, &session->table, block_idx) != 0 ||
               kvd_session_block(session, block_idx)->refs > 1) {
        return false; /* others hold it too: they give it up in their turn */
    }
    kvd_session_part_cold(session, block_idx, KVARND__MISS_REASON__MISS_EVICTED);
    return true;
}

static void blocks_let_go(const struct kvd_cold_give *give)
{
    struct kvd_session *session = give->session;
    struct kvd_session_cold *sc = &session->cold;
    struct kvd_metrics *metrics = &session->service->metrics;
    uint32_t count = 0;

    for (uint32_t b = give->first; b < kvd_session_block_count(session); b++) {
        count += block_let_go(session, b) ? 1 : 0;
    }
    sc->is_tail_cold = false; /* a tail lies behind what was given up */
    sc->next_block = sc->next_block < give->first ? sc->next_block : give->first;
    sc->is_given_up = give->is_whole;
    kvd_metrics_add(metrics, KVD_METRIC_cold_blocks_given_up, count);
    kvd_metrics_add(metrics, KVD_METRIC_cold_sessions_given_up, give->is_whole ? 1 : 0);
    kvd_log(KVD_LOG_INFO, "cold_given_up",
        "session=%s blocks=%" PRIu32 " kept=%" PRIu32 " bytes=%" PRIu64, session->name, count,
        give->first, give->bytes);
}

static bool is_same(const struct kvd_cold_give *give)
{
    const struct kvd_session *session = give->session;

    return !session->is_dropped && session->cold.uid.hi == give->uid.hi &&
           session->cold.uid.lo == give->uid.lo;
}

static void give_done(void *ctx, int err)
{
    struct kvd_cold_give *give = ctx;
    struct kvd_session *session = give->session;
    struct kvd_cold_sessions *cold = &session->service->cold;
    struct kvd_io *io = cold->service->io;

    KVARN_ASSERT(cold->gives > 0 && cold->giving_bytes >= give->bytes);
    LIST_REMOVE(give, link);
    session->cold.is_giving = false;
    cold->gives--;
    cold->giving_bytes -= give->bytes;
    if (err != 0) {
        cold->room_after_ns = io->ops->now_ns(io) + PAUSE_NS;
    } else if (is_same(give)) {
        bool is_used = session->touched_ns != give->touched_ns || kvd_session_is_busy(session);
        if (give->is_whole) {
            kvd_cold_forget(session); /* what it writes from now on begins anew */
        }
        if (is_used) {
            kvd_cold_note(session); /* it was wanted after all: what is there is named again */
        } else {
            blocks_let_go(give);
        }
    }
    kvd_session_unref(session);
    free(give);
    kvd_spill_arm(cold, 0);
}

/* Choosing. */

static bool may_give(const struct kvd_session *session)
{
    const struct kvd_session_cold *sc = &session->cold;

    return !session->is_dropped && sc->is_session_put && sc->map_rec != NULL && !sc->is_buried &&
           !sc->is_waiting && !sc->is_tail_wanted && !sc->is_tail_leaving && !sc->is_tail_loading &&
           sc->puts == 0 && !sc->is_giving && session->lifetime.pinned_until_ns == 0 &&
           !kvd_session_is_busy(session);
}

static uint64_t bytes_of(const struct kvd_cold_sessions *cold, const struct kvd_block *block)
{
    struct kvd_cold_info info;

    if (block == NULL || !kvd_cold_copy_is_durable(block->cold)) {
        return 0;
    }
    cold->tier->ops->info(block->cold->record, &info);
    return info.stored_bytes;
}

/* Blocks without those at the end that are in memory alone: a tail may stay there. */
static uint32_t stored_end(const struct kvd_session *session)
{
    uint32_t end = kvd_session_block_count(session);

    while (end > 0) {
        const struct kvd_block *block = kvd_session_block(session, end - 1);
        if (block == NULL || block->state != KVD_BLOCK_RESIDENT ||
            kvd_cold_copy_is_durable(block->cold)) {
            break;
        }
        end--;
    }
    return end;
}

/* Blocks from the end that are not in memory, as far as they are wanted. */
static void give_plan(struct kvd_cold_give *give, uint64_t wanted, bool of_residents)
{
    const struct kvd_session *session = give->session;
    uint32_t count = kvd_session_block_count(session);
    uint32_t looked = 0;

    give->first = of_residents ? count : stored_end(session);
    while (give->first > 0 && (of_residents || (give->bytes < wanted && looked < BLOCKS_MAX))) {
        const struct kvd_block *block = kvd_session_block(session, give->first - 1);
        bool is_away =
            block == NULL || block->state == KVD_BLOCK_COLD || block->state == KVD_BLOCK_MISSING;
        if (!is_away && !of_residents) {
            break;
        }
        give->bytes += bytes_of(&session->service->cold, block);
        give->first--;
        looked++;
    }
    bool is_little = give->first <= count / 4;
    for (uint32_t b = 0; b < give->first && is_little; b++) {
        const struct kvd_block *block = kvd_session_block(session, b);
        is_little =
            block == NULL || block->state == KVD_BLOCK_COLD || block->state == KVD_BLOCK_MISSING;
    }
    if (give->bytes > 0 && is_little) {
        for (; give->first > 0; give->first--) {
            give->bytes +=
                bytes_of(&session->service->cold, kvd_session_block(session, give->first - 1));
        }
    }
    give->is_whole =
        give->first == 0 || kvd_spill_mappable_blocks(session, give->first) != give->first;
    give->first = give->is_whole ? 0 : give->first;
}

static int give_start(struct kvd_cold_give *give)
{
    static const struct kvd_spill_tail no_tail = {.id = {0, 0}};
    struct kvd_session *session = give->session;

    if (give->is_whole) {
        return kvd_cold_bury(session, give_done, give);
    }
    struct kvd_spill_put *map = kvd_spill_map_create(session, give->first, &no_tail);
    if (map != NULL) {
        map->put.flags = KVD_COLD_BARRIER; /* for which a full tier has room */
        map->done = give_done;
        map->ctx = give;
    }
    return kvd_spill_map_start(session, map, give->first);
}

/* Returns whether the session gives something. */
static bool session_give(struct kvd_session *session, uint64_t wanted, bool of_residents)
{
    struct kvd_cold_sessions *cold = &session->service->cold;
    struct kvd_io *io = cold->service->io;
    struct kvd_cold_give *give = may_give(session) ? calloc(1, sizeof(*give)) : NULL;

    if (give == NULL) {
        return false;
    }
    *give = (struct kvd_cold_give){
        .session = session, .uid = session->cold.uid, .touched_ns = session->touched_ns};
    LIST_INSERT_HEAD(&cold->giving, give, link);
    give_plan(give, wanted, of_residents);
    int err = give->bytes == 0 ? KVD_COLD_NOTHING : give_start(give);
    if (err != 0) {
        cold->room_after_ns = err < 0 ? io->ops->now_ns(io) + PAUSE_NS : cold->room_after_ns;
        LIST_REMOVE(give, link);
        free(give);
        return false;
    }
    (void)kvd_session_ref(session);
    session->cold.is_giving = true;
    cold->gives++;
    cold->giving_bytes += give->bytes;
    return true;
}

/* The next session to look at. At the end of the list it begins anew, and NULL is between. */
static struct kvd_session *room_advance(struct kvd_cold_sessions *cold)
{
    struct kvd_session *session =
        cold->is_room_looking ? cold->room_next : TAILQ_FIRST(&cold->by_use);

    cold->is_room_looking = session != NULL;
    if (session != NULL) {
        cold->room_next = TAILQ_NEXT(session, cold.use_link);
        return session;
    }
    /* Nobody had anything that is on disk alone: those in memory are next. */
    cold->is_room_of_residents = !cold->has_room_given && !cold->is_room_of_residents;
    cold->has_room_given = false;
    return NULL;
}

void kvd_cold_make_room(struct kvd_cold_sessions *cold)
{
    struct kvd_io *io = cold->service->io;
    uint64_t wanted = cold->is_flushing ? 0 : cold->tier->ops->wanted(cold->tier);

    if (wanted == 0) {
        cold->is_room_looking = false;
        cold->is_room_of_residents = false;
        return;
    }
    bool is_paused = io->ops->now_ns(io) < cold->room_after_ns || !STAILQ_EMPTY(&cold->retries);
    for (unsigned i = 0;
         i < LOOKS_MAX && !is_paused && wanted > cold->giving_bytes && cold->gives < GIVES_MAX;
         i++) {
        struct kvd_session *session = room_advance(cold);
        if (session == NULL) {
            break;
        }
        bool is_given =
            session_give(session, wanted - cold->giving_bytes, cold->is_room_of_residents);
        cold->has_room_given = cold->has_room_given || is_given;
        is_paused = io->ops->now_ns(io) < cold->room_after_ns;
    }
    kvd_spill_arm(cold, LOOK_MS);
}
