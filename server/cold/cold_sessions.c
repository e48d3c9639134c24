/*
 * Sessions and the cold tier: its start and its end.
 *
 * Owner: service. Thread: loop only.
 */
#include "server/cold/cold_sessions.h"

#include <inttypes.h>

#include "server/base/log.h"
#include "server/cold/cold_segment.h"
#include "server/cold/cold_spill.h"
#include "server/service.h"

bool kvd_cold_sessions_is_idle(const struct kvd_cold_sessions *cold)
{
    return cold->tier == NULL || (cold->puts == 0 && cold->loads == 0);
}

void kvd_cold_load_failed_say(const struct kvd_cold_sessions *cold,
    const struct kvd_session *session, uint32_t block_idx, int err)
{
    struct kvd_service *service = cold->service;
    struct kvd_log_gate *gate = &service->log_gates[KVD_LOG_GATE_COLD_LOAD_FAILED];
    uint64_t suppressed;

    if (kvd_log_gate_pass(gate, service->io->ops->now_ns(service->io), &suppressed)) {
        kvd_log(KVD_LOG_WARN, "cold_load_failed",
            "session=%s block=%" PRIu32 " error=%s suppressed=%" PRIu64,
            session == NULL || session->name == NULL ? "" : session->name, block_idx,
            kvarn_err_label(err), suppressed);
    }
}

int kvd_cold_sessions_init(struct kvd_cold_sessions *cold, struct kvd_service *service)
{
    const struct kvd_config *config = service->config;
    struct kvd_io *io = service->io;

    cold->service = service;
    TAILQ_INIT(&cold->dirty);
    TAILQ_INIT(&cold->waiting);
    STAILQ_INIT(&cold->retries);
    TAILQ_INIT(&cold->waiters);
    TAILQ_INIT(&cold->by_use);
    LIST_INIT(&cold->giving);
    if (config->cold_dir == NULL || config->cold_dir[0] == '\0') {
        return 0;
    }
    struct kvd_cold_segment_options options = {.dir = config->cold_dir,
        .limit_bytes = config->cold_limit,
        .segment_bytes = config->cold_segment,
        .queue_bytes = config->memory_limit / 8,
        .compress_level = (int)config->cold_compress};
    cold->timer = io->ops->timer_create(io, kvd_cold_timer_cb, cold);
    int err = cold->timer == NULL ? KVARN_ENOMEM : 0;
    if (err == 0) {
        err = io->ops->random(io, &cold->id_prefix, sizeof(cold->id_prefix));
    }
    if (err == 0) {
        err = kvd_cold_segment_open(
            io, service->workers, &service->budget, &options, &cold->found, &cold->tier);
    }
    err = err == 0 ? kvd_cold_reopen(cold) : err;
    return err == 0 ? kvd_cold_room_init(cold) : err;
}

void kvd_cold_sessions_fini(struct kvd_cold_sessions *cold)
{
    struct kvd_session *session;

    if (cold->service == NULL) {
        return;
    }
    while ((session = TAILQ_FIRST(&cold->dirty)) != NULL) {
        TAILQ_REMOVE(&cold->dirty, session, cold.dirty_link);
        session->cold.is_dirty = false;
        kvd_session_unref(session);
    }
    cold->service->io->ops->timer_destroy(cold->timer);
    cold->timer = NULL;
    struct kvd_cold *tier = cold->tier;
    cold->tier = NULL; /* sessions that are freed from here on touch no record */
    kvd_tombstones_free(cold);
    if (tier != NULL) {
        tier->ops->destroy(tier);
    }
}
