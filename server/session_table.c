/*
 * All named sessions, by (tenant, name), in order; and work on sessions that is cut into slices.
 *
 * Owner: service. Thread: loop only.
 */
#include "server/session_table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/service.h"
#include "server/session_blocks.h"

/*
 * What one turn frees: freeing a page costs some 10 to 100 ns, and giving a chunk back to the
 * system some microseconds, so that the clock decides, after each block, within the 1 ms of
 * SEMANTICS.md 11. The count bounds the turns of a clock that stands still.
 */
#define REAP_NS_PER_TURN     UINT64_C(500000)
#define REAP_LAYERS_PER_TURN 4096

/* Admissions of one burst, and the pause that ends it: about what a turn costs besides. */
#define BURST_NS_MAX UINT64_C(100000)
#define BURST_GAP_NS UINT64_C(20000)

static int session_compare(const struct kvd_session *a, const struct kvd_session *b)
{
    if (a->tenant_id != b->tenant_id) {
        return a->tenant_id < b->tenant_id ? -1 : 1;
    }
    return strcmp(a->name, b->name);
}

/* Not every function of a tree is needed. */
RB_GENERATE_INTERNAL(
    kvd_session_tree, kvd_session, name_link, session_compare, __attribute__((unused)) static)

static uint64_t now_ns(const struct kvd_session_table *table)
{
    return table->io->ops->now_ns(table->io);
}

static void slice_arm(struct kvd_session_table *table)
{
    table->io->ops->timer_start(table->slice_timer, 0, 0);
}

bool kvd_session_table_has_dead(const struct kvd_session_table *table)
{
    return !LIST_EMPTY(&table->dead) || !SLIST_EMPTY(&table->dead_blocks);
}

/* Free one block, or what is left of a session without any. Returns the layers it had. */
static size_t reap_one(struct kvd_session_table *table)
{
    struct kvd_block *block = SLIST_FIRST(&table->dead_blocks);

    if (block != NULL) {
        size_t layers = block->layer_count;
        SLIST_REMOVE_HEAD(&table->dead_blocks, dead_link);
        kvd_session_block_destroy(table->service, block);
        return layers;
    }
    struct kvd_session *session = LIST_FIRST(&table->dead);
    size_t layers = session->shape->layer_count;
    LIST_REMOVE(session, dead_link);
    if (!kvd_session_free_some(session, 1)) {
        LIST_INSERT_HEAD(&table->dead, session, dead_link);
    }
    return layers;
}

static void reap_slice(struct kvd_session_table *table)
{
    uint64_t start_ns = now_ns(table);
    size_t layers = 0;

    while (kvd_session_table_has_dead(table) && layers < REAP_LAYERS_PER_TURN &&
           now_ns(table) - start_ns < REAP_NS_PER_TURN) {
        layers += reap_one(table);
    }
}

bool kvd_session_table_may_admit(struct kvd_session_table *table)
{
    uint64_t now = now_ns(table);

    if (now - table->burst_end_ns > BURST_GAP_NS) {
        table->burst_start_ns = now;
    }
    table->burst_end_ns = now;
    return now - table->burst_start_ns <= BURST_NS_MAX;
}

/* Go on with queues, the one that has waited longest first. */
static void late_slice(struct kvd_session_table *table)
{
    struct kvd_session *session;

    table->burst_start_ns = table->burst_end_ns = now_ns(table); /* a new turn for sure */
    while ((session = TAILQ_FIRST(&table->late)) != NULL && kvd_session_table_may_admit(table)) {
        TAILQ_REMOVE(&table->late, session, late_link);
        session->is_late = false;
        kvd_session_kick(session);
        kvd_session_unref(session);
    }
}

static void slice_timer_cb(void *ctx)
{
    struct kvd_session_table *table = ctx;

    late_slice(table);
    reap_slice(table);
    if (kvd_session_table_has_dead(table) || !TAILQ_EMPTY(&table->late)) {
        slice_arm(table);
    }
}

int kvd_session_table_init(struct kvd_session_table *table, struct kvd_service *service)
{
    struct kvd_io *io = service->io;

    table->service = service;
    table->io = io;
    RB_INIT(&table->named);
    LIST_INIT(&table->dead);
    SLIST_INIT(&table->dead_blocks);
    TAILQ_INIT(&table->late);
    table->count = 0;
    table->count_max = (uint32_t)service->config->sessions_max;
    /* A random start: an epoch that a client kept from an earlier run matches nothing. */
    int err = io->ops->random(io, &table->epoch_last, sizeof(table->epoch_last));
    if (err != 0) {
        return err;
    }
    table->epoch_last >>= 1; /* room to count up */
    table->slice_timer = io->ops->timer_create(io, slice_timer_cb, table);
    return table->slice_timer == NULL ? KVARN_ENOMEM : 0;
}

void kvd_session_table_fini(struct kvd_session_table *table)
{
    struct kvd_session *session;

    if (table->slice_timer == NULL) {
        return; /* zeroed, or init failed: nothing was ever inserted */
    }
    while ((session = TAILQ_FIRST(&table->late)) != NULL) {
        TAILQ_REMOVE(&table->late, session, late_link);
        session->is_late = false;
        kvd_session_unref(session);
    }
    while ((session = RB_MIN(kvd_session_tree, &table->named)) != NULL) {
        kvd_session_table_drop(table, session);
    }
    while (kvd_session_table_has_dead(table)) {
        (void)reap_one(table);
    }
    KVARN_ASSERT(table->count == 0);
    table->io->ops->timer_destroy(table->slice_timer);
    table->slice_timer = NULL;
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
    struct kvd_session key = {
        .tenant_id = tenant_id, .name = (char *)(uintptr_t)(after ? after : "")};
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
    slice_arm(table);
}

void kvd_session_table_bury_block(struct kvd_session_table *table, struct kvd_block *block)
{
    SLIST_INSERT_HEAD(&table->dead_blocks, block, dead_link);
    slice_arm(table);
}

void kvd_session_table_kick_later(struct kvd_session_table *table, struct kvd_session *session)
{
    KVARN_ASSERT(!session->is_late);
    session->is_late = true;
    (void)kvd_session_ref(session); /* by itself: the macro evaluates its argument many times */
    TAILQ_INSERT_TAIL(&table->late, session, late_link);
    slice_arm(table);
}
