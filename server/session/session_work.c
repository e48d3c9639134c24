/*
 * What sessions keep while they are being worked on.
 *
 * Owner: session. Thread: loop only.
 */
#include "server/session/session_work.h"

#include <stdlib.h>

#include "lib/base/assert.h"
#include "server/base/alloc_bytes.h"
#include "server/evict/session_evict.h"
#include "server/service.h"
#include "server/session/session_blocks.h"

/* What a tick looks at: some 100 ns each. */
#define TICK_MAX 32

static size_t work_bytes(const struct kvd_session *session)
{
    return kvd_alloc_bytes(sizeof(struct kvd_session_work) +
                           session->shape->layer_count * sizeof(struct kvd_layer_work));
}

size_t kvd_session_work_bytes(const struct kvd_session *session)
{
    return session->work == NULL ? 0 : work_bytes(session);
}

uint32_t kvd_session_open_blocks(const struct kvd_session *session)
{
    uint32_t sealed = session->table.count;

    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        uint32_t blocks = session->layers[i].sealed_blocks;
        sealed = blocks < sealed ? blocks : sealed;
    }
    return session->table.count - sealed;
}

/* Every block before the sealed ones' end has tiles alone, when nothing is pending. */
static uint32_t tail_pages_count(const struct kvd_session *session, uint32_t layer)
{
    uint32_t sinks = kvd_session_sink_blocks(session);
    uint32_t sealed = session->layers[layer].sealed_blocks;
    uint32_t count = 0;

    for (uint32_t b = sealed > sinks ? sealed : sinks; b < session->table.count; b++) {
        const struct kvd_block *block = kvd_session_block(session, b);
        bool has_rows = block != NULL && block->rows != NULL && block->rows->ids[layer] != 0;
        count += has_rows ? 1 : 0;
    }
    return count;
}

uint32_t kvd_session_tail_pages(const struct kvd_session *session, uint32_t layer)
{
    return session->work != NULL ? session->work->layers[layer].tail_pages
                                 : tail_pages_count(session, layer);
}

bool kvd_session_has_spare(const struct kvd_session *session, uint32_t layer)
{
    return session->work != NULL && session->work->layers[layer].spare_rows != 0;
}

/* Without counts. Returns 0 or KVARN_ENOSPC. */
static int work_create(struct kvd_session *session)
{
    struct kvd_service *service = session->service;
    size_t bytes = work_bytes(session);

    if (kvd_budget_charge(&service->budget, KVD_BUDGET_SESSIONS, bytes) != 0) {
        return KVARN_ENOSPC;
    }
    struct kvd_session_work *work = calloc(1, bytes);
    if (work == NULL) {
        kvd_budget_release(&service->budget, KVD_BUDGET_SESSIONS, bytes);
        return KVARN_ENOSPC;
    }
    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        work->layers[i].pending_length = session->layers[i].length;
    }
    work->session = session;
    session->work = work;
    TAILQ_INSERT_TAIL(&service->sessions.works, work, link);
    return 0;
}

int kvd_session_want_work(struct kvd_session *session)
{
    struct kvd_session_work_list *list = &session->service->sessions.works;

    if (session->work != NULL) {
        TAILQ_REMOVE(list, session->work, link);
        TAILQ_INSERT_TAIL(list, session->work, link);
        return 0;
    }
    int err = work_create(session);
    for (uint32_t i = 0; err == 0 && i < session->shape->layer_count; i++) {
        session->work->layers[i].tail_pages = tail_pages_count(session, i);
    }
    return err;
}

int kvd_session_copy_work(const struct kvd_session *from, struct kvd_session *copy)
{
    int err = work_create(copy);

    for (uint32_t i = 0; err == 0 && i < copy->shape->layer_count; i++) {
        copy->work->layers[i].tail_pages = kvd_session_tail_pages(from, i);
    }
    return err;
}

void kvd_session_drop_work(struct kvd_session *session)
{
    struct kvd_session_work *work = session->work;

    if (work == NULL) {
        return;
    }
    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        KVARN_ASSERT(work->layers[i].pending == 0);
        kvd_session_drop_spare(session, i);
    }
    TAILQ_REMOVE(&session->service->sessions.works, work, link);
    session->work = NULL;
    free(work);
    kvd_budget_release(&session->service->budget, KVD_BUDGET_SESSIONS, work_bytes(session));
}

static bool is_idle(const struct kvd_session *session, uint64_t now_ns)
{
    return now_ns - session->touched_ns >= KVD_SESSION_WORK_KEEP_NS &&
           !kvd_session_is_busy(session) &&
           kvd_session_open_blocks(session) <= KVD_SESSION_OPEN_BLOCKS_MAX;
}

void kvd_session_work_tick(struct kvd_session_table *table, uint64_t now_ns)
{
    /* Work is wanted no later than its session was touched last, but for what is in flight. */
    for (int i = 0; i < TICK_MAX && !TAILQ_EMPTY(&table->works); i++) {
        struct kvd_session_work *work = TAILQ_FIRST(&table->works);
        if (is_idle(work->session, now_ns)) {
            kvd_session_drop_work(work->session);
        } else {
            TAILQ_REMOVE(&table->works, work, link);
            TAILQ_INSERT_TAIL(&table->works, work, link);
        }
    }
}
