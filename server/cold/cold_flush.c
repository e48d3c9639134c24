/*
 * The stop: all that named sessions hold is written, tails too, and the tier is closed.
 *
 * Owner: service. Thread: loop only. No operation is in flight.
 *
 * The last map of a session says its epoch, so that a clean end keeps it. A session that cannot be
 * written whole gets a new one first; and where not even its last map is durable, an older one with
 * the same epoch may be found: then the end is not a clean one (SEMANTICS.md 7).
 */
#include "lib/base/assert.h"
#include "server/cold/cold_spill.h"
#include "server/service.h"

/* Whether a map of the first `count` blocks, without a tail, says less than the session holds. */
static bool is_cut_short(const struct kvd_session *session, uint32_t count)
{
    uint64_t stored = (uint64_t)count * session->shape->group;

    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        if (session->layers[i].length > stored) {
            return true;
        }
    }
    return false;
}

void kvd_flush_map(struct kvd_session *session, uint32_t count, const struct kvd_spill_tail *tail)
{
    bool has_tail = tail->id.hi != 0 || tail->id.lo != 0;

    count = has_tail ? count : kvd_spill_mappable_blocks(session, count);
    if (!has_tail && is_cut_short(session, count)) {
        /* It comes back with loss, so that clients' epoch must not hold (SEMANTICS.md 7). */
        session->epoch = kvd_session_table_new_epoch(&session->service->sessions);
    }
    struct kvd_spill_put *spill = kvd_spill_map_create(session, count, tail);
    if (spill != NULL) {
        spill->put.flags = KVD_COLD_BARRIER;
        spill->is_final = true;
    }
    int err = kvd_spill_map_start(session, spill, count);
    if (err == 0 && spill != NULL) {
        spill->tail.record = tail->record;
        return;
    }
    kvd_spill_forget(&session->service->cold, tail->record);
    session->service->cold.has_lost = true;
}

/* Returns whether the session is written as far as it can be, or on its way. */
static bool session_flush(struct kvd_session *session)
{
    struct kvd_session_cold *sc = &session->cold;
    struct kvd_spill_tail tail = {0};

    if (sc->is_final_put) {
        return true;
    }
    if (sc->puts > 0 || kvd_spill_queue_is_full(&session->service->cold)) {
        return false;
    }
    int err = kvd_spill_blocks(session);
    uint32_t count = kvd_spill_durable_blocks(session);
    if (err == KVARN_ERETRY_LATER || (err == 0 && count < sc->next_block)) {
        return false;
    }
    bool is_whole = err == 0;
    count = is_whole ? kvd_spill_stored_blocks(session) : count;
    err = kvd_spill_session(session);
    if (err == KVARN_ERETRY_LATER) {
        return false;
    }
    if (err == 0 && is_whole && kvd_tail_is_stored(session)) {
        tail = kvd_tail_own(session); /* nobody has changed it since */
    } else if (err == 0 && is_whole) {
        err = kvd_tail_put(session, count, true);
        if (err == KVARN_ERETRY_LATER) {
            return false;
        }
        if (err == 0) {
            sc->is_final_put = true; /* the map follows it */
            return true;
        }
    }
    sc->is_final_put = true;
    kvd_flush_map(session, count, &tail);
    return true;
}

static void closed_cb(void *ctx)
{
    struct kvd_cold_sessions *cold = ctx;

    cold->is_closed = true;
    cold->flushed_cb(cold->flushed_ctx);
}

void kvd_flush_pump(struct kvd_cold_sessions *cold)
{
    struct kvd_session *session =
        kvd_session_table_next(&cold->service->sessions, KVD_TENANT_DEFAULT, cold->flushed_name);

    while (session != NULL && session_flush(session)) {
        cold->flushed_name = session->name;
        session = kvd_session_table_next(
            &cold->service->sessions, KVD_TENANT_DEFAULT, cold->flushed_name);
    }
    if (session == NULL && cold->puts == 0 && cold->loads == 0 && !cold->is_closing) {
        cold->is_closing = true;
        if (cold->has_lost) {
            cold->tier->ops->spoil(cold->tier);
        }
        cold->tier->ops->close(cold->tier, closed_cb, cold);
    } else if (session != NULL && cold->puts == 0) {
        kvd_spill_arm(cold, 0); /* nothing of ours is on its way that would come back to it */
    }
}

void kvd_cold_flush(struct kvd_cold_sessions *cold, void (*flushed_cb)(void *ctx), void *ctx)
{
    KVARN_ASSERT(cold->tier != NULL && !cold->is_flushing);
    cold->is_flushing = true;
    cold->flushed_cb = flushed_cb;
    cold->flushed_ctx = ctx;
    kvd_spill_arm(cold, 0);
}
