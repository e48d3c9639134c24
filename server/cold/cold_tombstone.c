/*
 * Tombstones: what was dropped, or exchanged, never comes back.
 *
 * Owner: service. Thread: loop only.
 */
#include <stdlib.h>

#include "server/base/log.h"
#include "server/cold/cold_spill.h"
#include "server/service.h"

/* What failed is not put again before this: disks that are full stay so for a while. */
#define RETRY_MS 1000

/* A record that a load may be reading is given up when that has ended. */
static void victim_forget(struct kvd_spill_put *spill, unsigned i)
{
    bool is_tail = i == 2 && spill->session != NULL;

    if (is_tail && spill->session->cold.is_tail_loading && spill->victims[i] != NULL &&
        spill->session->cold.doomed_tail == NULL) {
        spill->session->cold.doomed_tail = spill->victims[i];
    } else {
        kvd_spill_forget(spill->cold, spill->victims[i]);
    }
}

/* Nobody waits: the dropped session must not come back all the same. */
static void retry_later(struct kvd_spill_put *spill, int err)
{
    struct kvd_cold_sessions *cold = spill->cold;

    kvd_log(KVD_LOG_WARN, "cold_drop_failed", "error=%s", kvarn_err_label(err));
    if (cold->is_flushing) {
        kvd_spill_end(spill); /* the last chance was this one */
        return;
    }
    if (STAILQ_EMPTY(&cold->retries)) {
        struct kvd_io *io = cold->service->io;
        cold->retry_ns = io->ops->now_ns(io) + RETRY_MS * UINT64_C(1000000);
        kvd_spill_arm(cold, RETRY_MS);
    }
    STAILQ_INSERT_TAIL(&cold->retries, spill, retry_link);
}

void kvd_tombstones_retry(struct kvd_cold_sessions *cold)
{
    struct kvd_spill_list due = STAILQ_HEAD_INITIALIZER(due);
    struct kvd_io *io = cold->service->io;
    struct kvd_spill_put *spill;

    if (STAILQ_EMPTY(&cold->retries)) {
        return;
    }
    if (!cold->is_flushing && io->ops->now_ns(io) < cold->retry_ns) {
        kvd_spill_arm(cold, RETRY_MS);
        return;
    }
    STAILQ_CONCAT(&due, &cold->retries);
    while ((spill = STAILQ_FIRST(&due)) != NULL) {
        STAILQ_REMOVE_HEAD(&due, retry_link);
        int err = cold->tier->ops->put(cold->tier, &spill->put);
        if (err != 0) {
            retry_later(spill, err);
        }
    }
}

void kvd_tombstones_free(struct kvd_cold_sessions *cold)
{
    struct kvd_spill_put *spill;

    while ((spill = STAILQ_FIRST(&cold->retries)) != NULL) {
        STAILQ_REMOVE_HEAD(&cold->retries, retry_link);
        cold->puts--;
        kvd_spill_free(spill);
    }
}

/* What the session has on disk is the tombstone's to give up. */
static void victims_take(struct kvd_spill_put *spill)
{
    struct kvd_session_cold *sc = &spill->session->cold;

    spill->victims[0] = sc->session_rec;
    spill->victims[1] = sc->map_rec;
    spill->victims[2] = sc->tail_rec;
    spill->named = sc->named;
    sc->session_rec = NULL;
    sc->map_rec = NULL;
    sc->tail_rec = NULL;
    sc->named = NULL;
    sc->is_buried = true;
    spill->has_victims = true;
}

/*
 * It failed: the session goes on as it was. The tombstone's bytes may be there all the same, so
 * that what says that there is a session is put once more, above them.
 */
static void victims_return(struct kvd_spill_put *spill)
{
    struct kvd_session_cold *sc = &spill->session->cold;

    if (!spill->has_victims) {
        return; /* another tombstone has them */
    }
    sc->is_buried = false;
    sc->is_session_put = false;
    sc->is_doubted = true;
    sc->session_rec = spill->victims[0];
    sc->map_rec = spill->victims[1];
    sc->tail_rec = spill->victims[2];
    kvd_cold_named_restore(spill->session, spill->named);
    spill->named = NULL;
    kvd_cold_note(spill->session);
}

/* The session is still what the tombstone was put against. */
static bool is_same(const struct kvd_spill_put *spill)
{
    const struct kvd_session *session = spill->session;

    return !session->is_dropped && session->cold.uid.hi == spill->put.id.hi &&
           session->cold.uid.lo == spill->put.id.lo;
}

static void tomb_failed(struct kvd_spill_put *spill, int err)
{
    void (*done)(void *ctx, int err) = spill->done;
    void *ctx = spill->ctx;

    if (done != NULL && is_same(spill)) {
        victims_return(spill); /* who waits hears of it */
        kvd_spill_end(spill);
    } else {
        spill->done = NULL;
        retry_later(spill, err);
    }
    if (done != NULL) {
        done(ctx, err);
    }
}

static void tomb_done(struct kvd_cold_put *put, int err)
{
    struct kvd_spill_put *spill = (struct kvd_spill_put *)(void *)put;
    struct kvd_cold_sessions *cold = spill->cold;

    if (err != 0) {
        tomb_failed(spill, err);
    } else {
        void (*done)(void *ctx, int err) = spill->done;
        void *ctx = spill->ctx;
        for (unsigned i = 0; i < 3; i++) {
            victim_forget(spill, i);
        }
        kvd_spill_end(spill);
        if (done != NULL) {
            done(ctx, 0);
        }
    }
    kvd_cold_kick_waiting(cold); /* what met the tail meanwhile */
}

/* Put a tombstone; one that nobody waits for is put again if that fails. Else it is freed then. */
static int tomb_start(struct kvd_spill_put *spill)
{
    struct kvd_cold_sessions *cold = spill->cold;
    int err = cold->tier->ops->put(cold->tier, &spill->put);

    if (err != 0 && spill->done != NULL) {
        kvd_spill_free(spill);
        return err;
    }
    if (spill->session != NULL && !spill->session->cold.is_buried) {
        victims_take(spill);
    }
    cold->puts++;
    if (err != 0) {
        retry_later(spill, err);
    }
    return 0;
}

int kvd_cold_bury(struct kvd_session *session, void (*done)(void *ctx, int err), void *ctx)
{
    struct kvd_cold_sessions *cold = &session->service->cold;
    struct kvd_session_cold *sc = &session->cold;

    /* Who waits while another tombstone is on its way puts its own: one of them may fail. */
    if (cold->tier == NULL || cold->is_flushing || (sc->is_buried && done == NULL)) {
        return KVD_COLD_NOTHING;
    }
    if (sc->uid.hi == 0 && sc->uid.lo == 0) {
        sc->is_buried = done != NULL; /* it stays so until what it is to be is there */
        return KVD_COLD_NOTHING;
    }
    struct kvd_spill_put *spill = kvd_spill_create(session, KVD_COLD_TOMBSTONE, tomb_done);
    if (spill == NULL) {
        return KVARN_ENOMEM;
    }
    spill->put.flags = KVD_COLD_BARRIER;
    spill->done = done;
    spill->ctx = ctx;
    int err = tomb_start(spill);
    if (err == 0) {
        kvd_prefetch_cancel(session);
    }
    return err;
}

void kvd_cold_hold(struct kvd_session *session)
{
    session->cold.is_buried = true;
}

void kvd_cold_release(struct kvd_session *session)
{
    session->cold.is_buried = false;
    kvd_cold_note(session);
}

void kvd_cold_bury_id(struct kvd_cold_sessions *cold, struct kvd_cold_id uid, uint32_t tenant_id)
{
    struct kvd_spill_put *spill = calloc(1, sizeof(*spill));

    if (spill == NULL) {
        return; /* the next start finds it again, and gives it up again */
    }
    spill->cold = cold;
    spill->put = (struct kvd_cold_put){.type = KVD_COLD_TOMBSTONE,
        .tenant_id = tenant_id,
        .id = uid,
        .flags = KVD_COLD_BARRIER,
        .done = tomb_done};
    /* From the loop: a start that fails after this leaves the tier as it found it. */
    cold->puts++;
    STAILQ_INSERT_TAIL(&cold->retries, spill, retry_link);
    kvd_spill_arm(cold, 0);
}

void kvd_cold_forget(struct kvd_session *session)
{
    struct kvd_session_cold *sc = &session->cold;

    if (session->service->cold.tier == NULL) {
        return;
    }
    kvd_prefetch_cancel(session);
    int err = kvd_cold_bury(session, NULL, NULL);
    if (err < 0) {
        kvd_log(KVD_LOG_WARN, "cold_drop_failed", "error=%s", kvarn_err_label(err));
    }
    kvd_tail_left(session, NULL);
    /* What it writes from now on is another session's. */
    sc->is_tail_cold = false;
    sc->is_tail_named = false;
    sc->tail_first = 0;
    sc->uid = (struct kvd_cold_id){0};
    sc->is_session_put = false;
    sc->is_buried = false;
    sc->is_doubted = false;
    sc->mapped_tokens = 0;
    sc->durable_tokens = 0;
    sc->mapped_blocks = 0;
    sc->next_block = 0;
    kvd_cold_named_free(session->service, sc->named);
    sc->named = NULL;
}
