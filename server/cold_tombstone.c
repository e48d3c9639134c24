/*
 * Tombstones: what was dropped, or exchanged, never comes back.
 *
 * Owner: service. Thread: loop only.
 */
#include <stdlib.h>

#include "server/cold_spill.h"
#include "server/log.h"
#include "server/service.h"

static void tomb_done(struct kvd_cold_put *put, int err)
{
    struct kvd_spill_put *spill = (struct kvd_spill_put *)(void *)put;
    struct kvd_session *session = spill->session;
    void (*done)(void *ctx, int err) = spill->done;
    void *ctx = spill->ctx;

    for (unsigned i = 0; i < 3 && err == 0; i++) {
        kvd_spill_forget(spill->cold, spill->victims[i]);
    }
    if (err != 0 && done != NULL) {
        /* The caller hears of it, and the session goes on as it was. */
        session->cold.is_buried = false;
        session->cold.session_rec = spill->victims[0];
        session->cold.map_rec = spill->victims[1];
        session->cold.tail_rec = spill->victims[2];
    } else if (err != 0) {
        /* Nobody waits: the dropped session must not come back all the same. */
        kvd_log(KVD_LOG_WARN, "cold_drop_failed", "error=%s", kvarn_err_label(err));
        err = spill->cold->tier->ops->put(spill->cold->tier, &spill->put);
        if (err == 0) {
            return;
        }
    }
    kvd_spill_end(spill);
    if (done != NULL) {
        done(ctx, err);
    }
}

int kvd_cold_bury(struct kvd_session *session, void (*done)(void *ctx, int err), void *ctx)
{
    struct kvd_cold_sessions *cold = &session->service->cold;
    struct kvd_session_cold *sc = &session->cold;

    if (cold->tier == NULL || (sc->uid.hi == 0 && sc->uid.lo == 0) || sc->is_buried ||
        cold->is_flushing) {
        return KVD_COLD_NOTHING;
    }
    struct kvd_spill_put *spill = kvd_spill_create(session, KVD_COLD_TOMBSTONE, tomb_done);
    if (spill == NULL) {
        return KVARN_ENOMEM;
    }
    spill->put.flags = KVD_COLD_BARRIER;
    spill->done = done;
    spill->ctx = ctx;
    spill->victims[0] = sc->session_rec;
    spill->victims[1] = sc->map_rec;
    spill->victims[2] = sc->tail_rec;
    int err = kvd_spill_start(spill);
    if (err != 0) {
        return err;
    }
    sc->is_buried = true;
    sc->session_rec = NULL;
    sc->map_rec = NULL;
    sc->tail_rec = NULL;
    return 0;
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
    (void)!kvd_spill_start(spill);
}

void kvd_cold_forget(struct kvd_session *session)
{
    struct kvd_session_cold *sc = &session->cold;

    if (session->service->cold.tier == NULL) {
        return;
    }
    int err = kvd_cold_bury(session, NULL, NULL);
    if (err < 0) {
        kvd_log(KVD_LOG_WARN, "cold_drop_failed", "error=%s", kvarn_err_label(err));
    }
    /* What it writes from now on is another session's. */
    sc->uid = (struct kvd_cold_id){0};
    sc->is_session_put = false;
    sc->is_buried = false;
    sc->mapped_tokens = 0;
    sc->mapped_blocks = 0;
    sc->next_block = 0;
}
