/*
 * Tails: rows that are not sealed go to the cold tier, and leave memory once they are there.
 *
 * Owner: service. Thread: loop only.
 *
 * A TAIL is put when all blocks before it are durable; the map that names it when the TAIL is; the
 * rows may go when that map is. Each step asks whether the session still is what was put: what it
 * holds changes with its epoch and the sum of its lengths alone, since lengths only grow within an
 * epoch. If not, the TAIL is given up, and nothing has happened. While the only copy of a tail is
 * the TAIL nothing can be added to the session (kvd_session_check_tail()), so that the record is
 * never joined with lengths that it does not know; what is cut off meanwhile is skipped when it is
 * loaded.
 */
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/base/kill_point.h"
#include "server/cold/cold_spill.h"
#include "server/evict/session_evict.h"
#include "server/service.h"
#include "server/session/session_blocks.h"

uint64_t kvd_tail_token_sum(const struct kvd_session *session)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        sum += session->layers[i].length;
    }
    return sum;
}

bool kvd_tail_is_stored(const struct kvd_session *session)
{
    const struct kvd_session_cold *sc = &session->cold;

    if (sc->tail_rec == NULL || sc->is_tail_cold) {
        return sc->tail_rec != NULL; /* what is out of memory is as it was */
    }
    return sc->is_tail_named && sc->session_rec != NULL && sc->tail_epoch == session->epoch &&
           sc->tail_token_sum == kvd_tail_token_sum(session);
}

bool kvd_tail_has(const struct kvd_session *session, uint32_t block_idx)
{
    const struct kvd_block *block = kvd_session_block(session, block_idx);

    return block != NULL && block->cold == NULL && block_idx >= session->cold.tail_first &&
           kvd_tail_is_stored(session);
}

struct kvd_spill_tail kvd_tail_own(const struct kvd_session *session)
{
    const struct kvd_session_cold *sc = &session->cold;

    return (struct kvd_spill_tail){.id = sc->tail_id,
        .first = sc->tail_first,
        .epoch = sc->tail_epoch,
        .token_sum = sc->tail_token_sum};
}

/* Out. */

/* Stretches of memory that grow. */
struct stretches {
    struct iovec *vecs; /* owned */
    size_t count, room;
};

static bool stretches_reserve(struct stretches *list, size_t count)
{
    if (list->count + count > list->room) {
        size_t room = 2 * list->room + count;
        struct iovec *vecs = realloc(list->vecs, room * sizeof(*vecs));
        if (vecs == NULL) {
            return false;
        }
        list->vecs = vecs;
        list->room = room;
    }
    return true;
}

/*
 * One page of a tail, with a reference. Of rows only what is filled is looked at: others may write
 * behind that in place.
 */
static bool page_add(struct kvd_spill_put *spill, struct stretches *list, struct kvd_page *page,
    const struct kvd_cold_tail_page *head)
{
    const struct kvd_layer_shape *ls = &spill->session->shape->layers[head->layer];

    if (!stretches_reserve(list, 2 * (size_t)ls->kv_heads)) {
        return false;
    }
    list->count +=
        kvd_cold_page_vecs(ls, kvd_page_data(page), head->filled_tokens, list->vecs + list->count);
    spill->pages[spill->page_count++] = kvd_page_ref(page);
    return true;
}

/* All pages of one block. Returns whether they are there. */
static bool block_gather(struct kvd_spill_put *spill, uint32_t block_idx,
    struct kvd_cold_tail_head *head, struct stretches *list)
{
    const struct kvd_session *session = spill->session;
    const struct kvd_page_store *pages = &session->service->pages;
    const struct kvd_block *block = kvd_session_block(session, block_idx);
    uint32_t group = session->shape->group;
    uint64_t start = (uint64_t)block_idx * group;

    for (uint32_t i = 0; block != NULL && i < block->layer_count; i++) {
        uint64_t length = session->layers[i].length;
        if (length <= start || block_idx < session->layers[i].dropped_blocks) {
            continue;
        }
        struct kvd_page *rows = kvd_block_rows(pages, block, i);
        struct kvd_page *page = rows != NULL ? rows : kvd_block_tiles(pages, block, i);
        if (block->state != KVD_BLOCK_RESIDENT || page == NULL) {
            return false;
        }
        struct kvd_cold_tail_page *to = &head->pages[head->page_count++];
        *to = (struct kvd_cold_tail_page){.layer = i, .block_idx = block_idx};
        if (rows != NULL) {
            to->filled_tokens = length - start < group ? (uint32_t)(length - start) : group;
        } else {
            to->encoder = page->encoder;
            to->checksum = kvd_page_checksum(page);
        }
        if (!page_add(spill, list, page, to)) {
            return false;
        }
    }
    return true;
}

/* What is behind block `first`. Returns 0, KVARN_EMISS when not all is there, KVARN_ENOMEM. */
static int tail_gather(struct kvd_spill_put *spill, uint32_t first)
{
    const struct kvd_session *session = spill->session;
    uint32_t block_count = kvd_session_block_count(session);
    size_t room = (size_t)(block_count - first) * session->shape->layer_count;
    struct kvd_cold_tail_head head = {.pages = calloc(room, sizeof(*head.pages))};
    struct stretches list = {0};
    bool is_whole = true;

    spill->pages = calloc(room, sizeof(struct kvd_page *));
    if (head.pages == NULL || spill->pages == NULL) {
        free(head.pages);
        return KVARN_ENOMEM;
    }
    for (uint32_t b = first; b < block_count && is_whole; b++) {
        is_whole = block_gather(spill, b, &head, &list);
    }
    kvd_cold_tail_encode(&spill->head, &head);
    free(head.pages);
    spill->vecs = list.vecs;
    spill->put.vecs = list.vecs;
    spill->put.vec_count = (unsigned)list.count;
    return is_whole ? 0 : KVARN_EMISS;
}

/* Whether the session is what it was when its tail was put. */
static bool is_unchanged(const struct kvd_spill_put *spill)
{
    const struct kvd_session *session = spill->session;

    return kvd_spill_is_current(spill) && !session->is_dropped &&
           session->epoch == spill->tail.epoch &&
           kvd_tail_token_sum(session) == spill->tail.token_sum;
}

/* The map that names a tail, not at a stop. */
static int map_put(struct kvd_session *session, const struct kvd_spill_tail *tail)
{
    struct kvd_spill_put *map = kvd_spill_map_create(session, tail->first, tail);
    int err = kvd_spill_map_start(session, map, tail->first);

    if (err == 0 && map != NULL) {
        map->tail.record = tail->record;
        map->is_tail_out = true;
    }
    return err;
}

static void tail_done(struct kvd_cold_put *put, int err)
{
    struct kvd_spill_put *spill = (struct kvd_spill_put *)(void *)put;
    struct kvd_session *session = spill->session;
    struct kvd_spill_tail *tail = &spill->tail;
    struct kvd_spill_tail none = {0};

    KVARN_ASSERT(session->cold.puts > 0);
    session->cold.puts--;
    kvd_kill_point("cold_tail");
    tail->record = put->record;
    if (err == 0) {
        kvd_metrics_add(&spill->cold->service->metrics, KVD_METRIC_cold_tails_written, 1);
    }
    if (spill->is_final) {
        kvd_flush_map(session, tail->first, err == 0 ? tail : &none);
    } else if (err != 0 || !is_unchanged(spill) || map_put(session, tail) != 0) {
        kvd_spill_forget(spill->cold, tail->record); /* no map names it */
        kvd_tail_left(session, NULL);
    }
    kvd_spill_end(spill);
}

int kvd_tail_put(struct kvd_session *session, uint32_t first, bool is_final)
{
    int err = kvd_spill_session(session);

    if (err != 0 || first >= kvd_session_block_count(session)) {
        return err != 0 ? err : KVD_COLD_NOTHING;
    }
    struct kvd_spill_put *spill = kvd_spill_create(session, KVD_COLD_TAIL, tail_done);
    if (spill == NULL) {
        return KVARN_ENOMEM;
    }
    spill->put.id = kvd_cold_new_id(&session->service->cold);
    spill->is_final = is_final;
    spill->tail = (struct kvd_spill_tail){.id = spill->put.id,
        .first = first,
        .epoch = session->epoch,
        .token_sum = kvd_tail_token_sum(session),
        .touched_ns = session->touched_ns};
    err = tail_gather(spill, first);
    if (err == 0 && spill->page_count == 0) {
        err = KVD_COLD_NOTHING;
    }
    if (err != 0) {
        kvd_spill_free(spill);
        return err;
    }
    err = kvd_spill_start(spill);
    session->cold.puts += err == 0 ? 1 : 0;
    return err;
}

/* A record that a load may be reading is given up when that has ended. */
static void own_forget(struct kvd_session *session)
{
    struct kvd_session_cold *sc = &session->cold;

    if (sc->is_tail_loading && sc->tail_rec != NULL && sc->doomed_tail == NULL) {
        sc->doomed_tail = sc->tail_rec;
    } else {
        kvd_spill_forget(&session->service->cold, sc->tail_rec);
    }
    sc->tail_rec = NULL;
}

void kvd_tail_mapped(struct kvd_spill_put *spill)
{
    struct kvd_session *session = spill->session;
    struct kvd_session_cold *sc = &session->cold;
    struct kvd_spill_tail *tail = &spill->tail;

    if (tail->record != NULL) {
        own_forget(session);
        sc->tail_rec = tail->record;
        sc->tail_id = tail->id;
        sc->tail_first = tail->first;
        sc->tail_epoch = tail->epoch;
        sc->tail_token_sum = tail->token_sum;
        sc->is_tail_named = true;
        tail->record = NULL;
        return;
    }
    bool is_own = tail->id.hi == sc->tail_id.hi && tail->id.lo == sc->tail_id.lo;
    sc->is_tail_named = is_own && sc->tail_rec != NULL;
    if (!sc->is_tail_named && !sc->is_tail_cold) {
        own_forget(session); /* what it holds is in memory, or was cut off */
    }
}

/* Wanted out. */

/* Bytes of pages behind the sealed blocks that nobody else holds. */
static uint64_t tail_bytes(const struct kvd_session *session)
{
    const struct kvd_page_store *pages = &session->service->pages;
    uint32_t sealed = UINT32_MAX;
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        uint32_t blocks = session->layers[i].sealed_blocks;
        sealed = blocks < sealed ? blocks : sealed;
    }
    for (uint32_t b = kvd_session_block_count(session); b > sealed; b--) {
        const struct kvd_block *block = kvd_session_block(session, b - 1);
        if (block == NULL || block->cold != NULL || block->state != KVD_BLOCK_RESIDENT) {
            break;
        }
        for (uint32_t i = 0; i < block->layer_count && block->refs == 1; i++) {
            const struct kvd_page *rows = kvd_block_rows(pages, block, i);
            const struct kvd_page *tiles = kvd_block_tiles(pages, block, i);
            bytes += rows != NULL && rows->refs == 1 ? kvd_page_bytes(rows) : 0;
            bytes += tiles != NULL && tiles->refs == 1 ? kvd_page_bytes(tiles) : 0;
        }
    }
    return bytes;
}

/* Whether the tier could take what the session has. */
static bool may_store(const struct kvd_session *session)
{
    const struct kvd_cold_sessions *cold = &session->service->cold;
    const struct kvd_session_cold *sc = &session->cold;
    struct kvd_cold_stats stats;

    if (cold->tier == NULL || session->name == NULL || session->is_dropped || sc->is_buried ||
        cold->is_flushing || sc->is_tail_refused) {
        return false;
    }
    cold->tier->ops->stats(cold->tier, &stats);
    return !stats.is_resting;
}

bool kvd_cold_may_tail_out(const struct kvd_session *session)
{
    uint32_t count = kvd_session_block_count(session);
    const struct kvd_block *last = count == 0 ? NULL : kvd_session_block(session, count - 1);

    return last != NULL && last->state == KVD_BLOCK_RESIDENT && last->cold == NULL &&
           !session->cold.is_tail_wanted && session->lifetime.pinned_blocks < count &&
           !kvd_session_is_busy(session) && may_store(session);
}

static void want(struct kvd_session *session)
{
    session->cold.is_tail_wanted = true;
    kvd_cold_note(session);
    kvd_spill_arm(&session->service->cold, 0);
}

uint64_t kvd_cold_tail_out(struct kvd_session *session)
{
    struct kvd_session_cold *sc = &session->cold;
    uint64_t bytes = kvd_cold_may_tail_out(session) ? tail_bytes(session) : 0;

    if (bytes > 0) {
        sc->is_tail_leaving = true;
        sc->leaving_bytes = bytes;
        session->service->cold.leaving_bytes += bytes;
        want(session);
    }
    return bytes;
}

static bool is_last_durable(const struct kvd_session *session)
{
    uint32_t count = kvd_session_block_count(session);
    const struct kvd_block *last = count == 0 ? NULL : kvd_session_block(session, count - 1);

    return last != NULL && kvd_cold_copy_is_durable(last->cold);
}

bool kvd_tail_spill(struct kvd_session *session, int blocks_err, uint32_t durable)
{
    struct kvd_session_cold *sc = &session->cold;
    int err = blocks_err;

    if (kvd_session_is_busy(session)) {
        err = KVARN_ECONFLICT; /* it is in use */
    } else if (kvd_tail_is_stored(session) || is_last_durable(session)) {
        err = KVD_COLD_NOTHING; /* since it was asked for; or what is last is a sink that was cut */
    } else if (sc->puts > 0 || err == KVARN_ERETRY_LATER ||
               (err == 0 && durable < sc->next_block)) {
        return true;
    }
    if (err == 0 && kvd_spill_queue_is_full(&session->service->cold)) {
        return true;
    }
    if (err == 0) {
        err = kvd_tail_put(session, durable, false);
    }
    if (err == 0 || err == KVARN_ERETRY_LATER) {
        return true;
    }
    sc->is_tail_refused = err == KVARN_ETOO_LARGE || err == KVARN_ENOMEM || err == KVARN_EMISS;
    kvd_tail_left(session, NULL);
    return false;
}

static struct kvd_cold_waiter *waiter_of(
    const struct kvd_cold_sessions *cold, const struct kvd_session *session)
{
    struct kvd_cold_waiter *waiter;

    TAILQ_FOREACH(waiter, &cold->waiters, link)
    {
        if (waiter->session == session) {
            return waiter;
        }
    }
    return NULL;
}

/* Who waits for what is stored of a session; one that hears of it may end others. */
static void waiters_tell(struct kvd_session *session)
{
    struct kvd_cold_sessions *cold = &session->service->cold;
    struct kvd_cold_waiter *waiter;

    while ((waiter = waiter_of(cold, session)) != NULL) {
        kvd_cold_store_cancel(cold, waiter);
        waiter->stored_cb(waiter);
    }
}

/* Let the rows go, if nobody has used the session since they were put. */
static void rows_drop(struct kvd_session *session, const struct kvd_spill_put *map)
{
    uint64_t freed = 0;

    if (kvd_tail_is_stored(session) && !kvd_session_is_busy(session) &&
        session->touched_ns == map->tail.touched_ns && !map->cold->is_flushing) {
        uint32_t blocks = kvd_session_evict_tail(session, &freed);
        kvd_evictor_count(session, KVD_EVICT_CAUSE_WATERMARK, blocks, freed);
    }
}

void kvd_tail_left(struct kvd_session *session, const struct kvd_spill_put *map)
{
    struct kvd_session_cold *sc = &session->cold;
    struct kvd_cold_sessions *cold = &session->service->cold;
    bool is_leaving = sc->is_tail_leaving;

    if (!sc->is_tail_wanted) {
        return;
    }
    KVARN_ASSERT(cold->leaving_bytes >= sc->leaving_bytes);
    cold->leaving_bytes -= sc->leaving_bytes;
    sc->leaving_bytes = 0;
    sc->is_tail_wanted = sc->is_tail_leaving = false;
    kvd_session_ref(session);
    if (map != NULL && is_leaving) {
        rows_drop(session, map);
    }
    kvd_evictor_settle(session);
    waiters_tell(session);
    kvd_evictor_check(session->service); /* who did not free what was counted on */
    kvd_cold_kick_waiting(cold);         /* whom there was no room for */
    kvd_session_unref(session);
}

bool kvd_cold_store(struct kvd_session *session, struct kvd_cold_waiter *waiter)
{
    if (!session->cold.is_tail_wanted && !may_store(session)) {
        return false;
    }
    waiter->session = session;
    TAILQ_INSERT_TAIL(&session->service->cold.waiters, waiter, link);
    want(session);
    return true;
}

void kvd_cold_store_cancel(struct kvd_cold_sessions *cold, struct kvd_cold_waiter *waiter)
{
    if (waiter->session != NULL) {
        TAILQ_REMOVE(&cold->waiters, waiter, link);
        waiter->session = NULL;
    }
}

enum kvd_block_state kvd_cold_stripped(struct kvd_session *session, uint32_t block_idx)
{
    const struct kvd_block *block = kvd_session_block(session, block_idx);

    if (kvd_cold_copy_is_durable(block->cold)) {
        return KVD_BLOCK_COLD;
    }
    if (session->service->cold.tier != NULL && kvd_tail_has(session, block_idx)) {
        session->cold.is_tail_cold = true;
        return KVD_BLOCK_COLD;
    }
    return KVD_BLOCK_MISSING;
}
