/*
 * Records that are not what was put: what is in memory is written once more.
 *
 * Owner: service. Thread: loop only.
 */
#include "server/cold/cold_sessions.h"

#include "server/service.h"
#include "server/session/session_blocks.h"

int kvd_cold_rewrite_block(struct kvd_session *session, uint32_t block_idx)
{
    struct kvd_failure why = {0};
    int err = kvd_session_own_block(session, block_idx, NULL, &why);

    if (err == 0) {
        kvd_session_part_cold(session, block_idx, KVARND__MISS_REASON__MISS_CHECKSUM);
        kvd_cold_changed(session, block_idx);
    }
    return err;
}

bool kvd_cold_rewrite_map(struct kvd_session *session)
{
    struct kvd_session_cold *sc = &session->cold;

    if (sc->is_tail_cold || sc->is_buried || sc->puts > 0) {
        return false;
    }
    sc->mapped_blocks = 0;
    kvd_cold_note(session);
    return true;
}

bool kvd_cold_rewrite_session(struct kvd_session *session)
{
    struct kvd_session_cold *sc = &session->cold;
    struct kvd_cold *tier = session->service->cold.tier;

    if (!kvd_cold_rewrite_map(session)) {
        return false;
    }
    tier->ops->forget(tier, sc->session_rec);
    sc->session_rec = NULL;
    sc->is_session_put = false; /* it goes before the next map */
    return true;
}
