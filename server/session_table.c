/*
 * All named sessions, by (tenant, name), in order; and the reaper of dropped ones.
 *
 * Owner: service. Thread: loop only.
 */
#include "server/session_table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/service.h"

/*
 * Pages freed in one turn of the loop: at some 10-100 ns a page (a chunk that empties costs more) this
 * stays below 1 ms (SEMANTICS.md 11).
 */
#define REAP_PAGES_PER_TURN 4096

static int session_compare(const struct kvd_session *a, const struct kvd_session *b)
{
    if (a->tenant_id != b->tenant_id) {
        return a->tenant_id < b->tenant_id ? -1 : 1;
    }
    return strcmp(a->name, b->name);
}

RB_PROTOTYPE_STATIC(kvd_session_tree, kvd_session, name_link, session_compare)
RB_GENERATE_STATIC(kvd_session_tree, kvd_session, name_link, session_compare)

static void reap_timer_cb(void *ctx)
{
    struct kvd_session_table *table = ctx;
    struct kvd_session *session = LIST_FIRST(&table->dead);

    if (session == NULL) {
        return;
    }
    LIST_REMOVE(session, dead_link);
    if (!kvd_session_free_some(session, REAP_PAGES_PER_TURN)) {
        LIST_INSERT_HEAD(&table->dead, session, dead_link);
    }
    if (!LIST_EMPTY(&table->dead)) {
        table->io->ops->timer_start(table->reap_timer, 0, 0);
    }
}

int kvd_session_table_init(struct kvd_session_table *table, struct kvd_service *service)
{
    struct kvd_io *io = service->io;

    table->io = io;
    RB_INIT(&table->named);
    LIST_INIT(&table->dead);
    table->count = 0;
    table->count_max = (uint32_t)service->config->sessions_max;
    /* A random start: an epoch that a client kept from an earlier run matches nothing. */
    int err = io->ops->random(io, &table->epoch_last, sizeof(table->epoch_last));
    if (err != 0) {
        return err;
    }
    table->epoch_last >>= 1; /* room to count up */
    table->reap_timer = io->ops->timer_create(io, reap_timer_cb, table);
    return table->reap_timer == NULL ? KVARN_ENOMEM : 0;
}

void kvd_session_table_fini(struct kvd_session_table *table)
{
    struct kvd_session *session;

    if (table->reap_timer == NULL) {
        return; /* zeroed, or init failed: nothing was ever inserted */
    }
    while ((session = RB_MIN(kvd_session_tree, &table->named)) != NULL) {
        kvd_session_table_drop(table, session);
    }
    while ((session = LIST_FIRST(&table->dead)) != NULL) {
        LIST_REMOVE(session, dead_link);
        bool is_done = kvd_session_free_some(session, SIZE_MAX);
        KVARN_ASSERT(is_done);
    }
    KVARN_ASSERT(table->count == 0);
    table->io->ops->timer_destroy(table->reap_timer);
    table->reap_timer = NULL;
}

struct kvd_session *kvd_session_table_find(
    struct kvd_session_table *table, uint32_t tenant_id, const char *name)
{
    struct kvd_session key = {.tenant_id = tenant_id, .name = (char *)(uintptr_t)name};

    return RB_FIND(kvd_session_tree, &table->named, &key);
}

void kvd_session_table_insert(struct kvd_session_table *table, struct kvd_session *session)
{
    KVARN_ASSERT(session->name != NULL && !session->is_dropped);
    struct kvd_session *other = RB_INSERT(kvd_session_tree, &table->named, session);
    KVARN_ASSERT(other == NULL);
    kvd_session_ref(session);
}

void kvd_session_table_drop(struct kvd_session_table *table, struct kvd_session *session)
{
    if (session->is_dropped) {
        return;
    }
    session->is_dropped = true;
    if (session->name != NULL) {
        RB_REMOVE(kvd_session_tree, &table->named, session);
        kvd_session_unref(session);
    }
}

struct kvd_session *kvd_session_table_next(
    struct kvd_session_table *table, uint32_t tenant_id, const char *after)
{
    struct kvd_session key = {.tenant_id = tenant_id, .name = (char *)(uintptr_t)(after ? after : "")};
    struct kvd_session *session = RB_NFIND(kvd_session_tree, &table->named, &key);

    if (session != NULL && after != NULL && session->tenant_id == tenant_id &&
        strcmp(session->name, after) == 0) {
        session = RB_NEXT(kvd_session_tree, &table->named, session);
    }
    return session != NULL && session->tenant_id == tenant_id ? session : NULL;
}

uint64_t kvd_session_table_new_epoch(struct kvd_session_table *table)
{
    return ++table->epoch_last;
}

void kvd_session_table_bury(struct kvd_session_table *table, struct kvd_session *session)
{
    KVARN_ASSERT(table->count > 0);
    table->count--;
    LIST_INSERT_HEAD(&table->dead, session, dead_link);
    table->io->ops->timer_start(table->reap_timer, 0, 0);
}
