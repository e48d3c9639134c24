/*
 * The queue of a session: every operation gets its turn in arrival order per layer
 * (SEMANTICS.md 3, 16).
 *
 * Owner: session. Thread: loop only.
 */
#include <stddef.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/service.h"
#include "server/session/session.h"

/* Layers that an earlier waiting operation concerns. */
struct layer_set {
    uint64_t words[KVARN_LAYERS_MAX / 64];
};

static bool layer_set_has(const struct layer_set *set, uint32_t layer)
{
    return (set->words[layer / 64] >> (layer % 64) & 1) != 0;
}

static void layer_set_add(struct layer_set *set, const struct kvd_session_op *op)
{
    for (uint32_t i = op->layer_first; i < op->layer_first + op->layer_count; i++) {
        set->words[i / 64] |= UINT64_C(1) << (i % 64);
    }
}

static bool op_is_admissible(
    const struct kvd_session *session, const struct kvd_session_op *op, const struct layer_set *set)
{
    for (uint32_t i = op->layer_first; i < op->layer_first + op->layer_count; i++) {
        if (kvd_session_pending(session, i) > 0 || layer_set_has(set, i)) {
            return false;
        }
    }
    return true;
}

/* Admit the first operation that may go; false when none may. */
static bool queue_admit_one(struct kvd_session *session)
{
    struct layer_set blocked = {{0}};
    struct kvd_session_op *op;

    TAILQ_FOREACH(op, &session->ops, link)
    {
        if (op_is_admissible(session, op, &blocked) && kvd_cold_is_ready(session, op)) {
            TAILQ_REMOVE(&session->ops, op, link);
            op->is_queued = false;
            op->admit_cb(op); /* op may be gone now */
            kvd_session_unref(session);
            return true;
        }
        if (op->layer_count == session->shape->layer_count) {
            return false; /* nothing passes what concerns all layers */
        }
        layer_set_add(&blocked, op);
    }
    return false;
}

/* Turns that a kick gives. */
enum kick {
    KICK_IF_TIME,
    KICK_ONE, /* one at least: it had to wait for it */
};

static void session_kick(struct kvd_session *session, enum kick kick);

static void kick_slice_run(struct kvd_slice *slice)
{
    struct kvd_session *session =
        (void *)((uint8_t *)slice - offsetof(struct kvd_session, kick_slice));

    session_kick(session, KICK_ONE);
    kvd_session_unref(session);
}

static void kick_later(struct kvd_session *session)
{
    session->kick_slice.run = kick_slice_run;
    kvd_slices_add(&session->service->sessions.slices, &session->kick_slice);
    kvd_session_ref(session);
}

static void queue_admit(struct kvd_session *session, enum kick kick)
{
    struct kvd_slices *slices = &session->service->sessions.slices;

    kvd_slices_begin(slices);
    do {
        if (TAILQ_EMPTY(&session->ops)) {
            return;
        }
        if (kick == KICK_IF_TIME && !kvd_slices_has_time(slices)) {
            kick_later(session);
            return;
        }
        kick = KICK_IF_TIME;
    } while (queue_admit_one(session));
}

/* Dropped, and nothing will touch its blocks any more: what is admitted later sees is_dropped. */
static bool is_hollow(const struct kvd_session *session)
{
    if (!session->is_dropped || session->is_husk || !TAILQ_EMPTY(&session->ops)) {
        return false;
    }
    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        if (kvd_session_pending(session, i) > 0) {
            return false;
        }
    }
    return true;
}

static void session_kick(struct kvd_session *session, enum kick kick)
{
    /* While kicking, the loop above looks again after every admission; a later kick will come. */
    if (session->is_kicking || session->kick_slice.is_listed) {
        return;
    }
    session->is_kicking = true;
    kvd_session_ref(session);
    queue_admit(session, kick);
    session->is_kicking = false;
    if (is_hollow(session)) {
        kvd_session_table_empty(&session->service->sessions, session);
    }
    kvd_session_unref(session);
}

void kvd_session_kick(struct kvd_session *session)
{
    session_kick(session, KICK_IF_TIME);
}

void kvd_session_enqueue(struct kvd_session *session, struct kvd_session_op *op)
{
    KVARN_ASSERT(op->admit_cb != NULL);
    KVARN_ASSERT(op->layer_count > 0);
    KVARN_ASSERT(op->layer_first + op->layer_count <= session->shape->layer_count);
    op->session = kvd_session_ref(session);
    op->is_queued = true;
    TAILQ_INSERT_TAIL(&session->ops, op, link);
    kvd_session_kick(session);
}

void kvd_session_op_cancel(struct kvd_session_op *op)
{
    struct kvd_session *session = op->session;

    KVARN_ASSERT(op->is_queued);
    TAILQ_REMOVE(&session->ops, op, link);
    op->is_queued = false;
    kvd_session_kick(session); /* what waited behind it may go */
    kvd_session_unref(session);
}

int kvd_session_hold_layers(struct kvd_session *session, uint32_t layer_first, uint32_t layer_count)
{
    int err = kvd_session_want_work(session);

    KVARN_ASSERT(layer_first + layer_count <= session->shape->layer_count);
    if (err != 0) {
        return err;
    }
    kvd_session_ref(session);
    for (uint32_t i = layer_first; i < layer_first + layer_count; i++) {
        session->work->layers[i].pending++;
    }
    return 0;
}

void kvd_session_release_layers(
    struct kvd_session *session, uint32_t layer_first, uint32_t layer_count)
{
    for (uint32_t i = layer_first; i < layer_first + layer_count; i++) {
        KVARN_ASSERT(kvd_session_pending(session, i) > 0);
        session->work->layers[i].pending--;
    }
    kvd_session_kick(session);
    kvd_session_unref(session);
}
