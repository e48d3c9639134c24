/*
 * All named sessions, by (tenant, name), in order; and the reaper of dropped ones.
 *
 * Owner: service. Thread: loop only.
 */
#include "server/session/session_table.h"

#include "lib/base/xxh3.h"
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/service.h"
#include "server/session/session_blocks.h"

/* Enough that a hundred thousand sessions stand almost alone; memory not used is not resident. */
#define BUCKETS       65536u
#define BUCKETS_BYTES (BUCKETS * sizeof(struct kvd_session_bucket))

static struct kvd_session_bucket *bucket_of(
    const struct kvd_session_table *table, uint32_t tenant_id, const char *name)
{
    uint64_t hash = XXH3_64bits_withSeed(name, strlen(name), table->hash_seed + tenant_id);

    return &table->buckets[hash % BUCKETS];
}

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

bool kvd_session_table_has_dead(const struct kvd_session_table *table)
{
    return !LIST_EMPTY(&table->dead) || !SLIST_EMPTY(&table->dead_spans) ||
           !SLIST_EMPTY(&table->dead_blocks);
}

static bool has_work(const struct kvd_session_table *table)
{
    return kvd_session_table_has_dead(table) || kvd_page_store_has_dying(&table->service->pages);
}

/* Free one block, or a session, whose blocks then follow; or a part of a chunk. */
static void reap_one(struct kvd_session_table *table)
{
    struct kvd_block *block = SLIST_FIRST(&table->dead_blocks);
    struct kvd_span *span = SLIST_FIRST(&table->dead_spans);
    struct kvd_session *session = LIST_FIRST(&table->dead);

    if (block != NULL) {
        SLIST_REMOVE_HEAD(&table->dead_blocks, dead_link);
        kvd_block_destroy(table->service, block);
    } else if (span != NULL) {
        SLIST_REMOVE_HEAD(&table->dead_spans, dead_link);
        if (!kvd_span_free_some(table->service, span)) {
            SLIST_INSERT_HEAD(&table->dead_spans, span, dead_link);
        }
    } else if (session != NULL) {
        LIST_REMOVE(session, dead_link);
        kvd_session_free(session);
    } else {
        kvd_page_store_purge_some(&table->service->pages);
    }
}

static void reap_soon(struct kvd_session_table *table)
{
    if (!table->reap_slice.is_listed && has_work(table)) {
        kvd_slices_add(&table->slices, &table->reap_slice);
    }
}

void kvd_session_table_reap(struct kvd_session_table *table)
{
    reap_soon(table);
}

static void reap_slice_run(struct kvd_slice *slice)
{
    struct kvd_session_table *table =
        (void *)((uint8_t *)slice - offsetof(struct kvd_session_table, reap_slice));

    /* A page costs some 10 to 100 ns; a chunk on its way out may have been taken again. */
    while (has_work(table)) {
        reap_one(table);
        if (!kvd_slices_has_time(&table->slices)) {
            break;
        }
    }
    reap_soon(table);
}

static void buckets_free(struct kvd_session_table *table)
{
    if (table->buckets != NULL) {
        free(table->buckets);
        table->buckets = NULL;
        kvd_budget_release(&table->service->budget, KVD_BUDGET_SESSIONS, BUCKETS_BYTES);
    }
}

int kvd_session_table_init(struct kvd_session_table *table, struct kvd_service *service)
{
    struct kvd_io *io = service->io;

    table->service = service;
    table->io = io;
    RB_INIT(&table->named);
    LIST_INIT(&table->all);
    LIST_INIT(&table->dead);
    TAILQ_INIT(&table->works);
    SLIST_INIT(&table->dead_spans);
    SLIST_INIT(&table->dead_blocks);
    table->reap_slice.run = reap_slice_run;
    table->count = 0;
    table->count_max = (uint32_t)service->config->sessions_max;
    if (kvd_budget_charge(&service->budget, KVD_BUDGET_SESSIONS, BUCKETS_BYTES) != 0) {
        return KVARN_ENOMEM;
    }
    table->buckets = calloc(1, BUCKETS_BYTES);
    if (table->buckets == NULL) {
        kvd_budget_release(&service->budget, KVD_BUDGET_SESSIONS, BUCKETS_BYTES);
        return KVARN_ENOMEM;
    }
    /* A random start: an epoch that a client kept from an earlier run matches nothing. */
    int err = io->ops->random(io, &table->epoch_last, sizeof(table->epoch_last));
    if (err == 0) {
        err = io->ops->random(io, &table->hash_seed, sizeof(table->hash_seed));
    }
    if (err != 0) {
        return err;
    }
    table->epoch_last >>= 1; /* room to count up */
    return kvd_slices_init(&table->slices, io);
}

void kvd_session_table_fini(struct kvd_session_table *table)
{
    struct kvd_session *session;

    if (table->slices.timer == NULL) {
        buckets_free(table);
        return; /* zeroed, or init failed: nothing was ever inserted */
    }
    while ((session = RB_MIN(kvd_session_tree, &table->named)) != NULL) {
        kvd_session_table_drop(table, session);
    }
    kvd_slices_fini(&table->slices); /* reaps to the end */
    KVARN_ASSERT(table->count == 0 && !kvd_session_table_has_dead(table));
    buckets_free(table);
}

struct kvd_session *kvd_session_table_find(
    struct kvd_session_table *table, uint32_t tenant_id, const char *name)
{
    struct kvd_session *session;

    SLIST_FOREACH(session, bucket_of(table, tenant_id, name), hash_link)
    {
        if (session->tenant_id == tenant_id && strcmp(session->name, name) == 0) {
            return session;
        }
    }
    return NULL;
}

void kvd_session_table_insert(struct kvd_session_table *table, struct kvd_session *session)
{
    KVARN_ASSERT(session->name != NULL && !session->is_dropped);
    struct kvd_session *other = RB_INSERT(kvd_session_tree, &table->named, session);
    KVARN_ASSERT(other == NULL);
    SLIST_INSERT_HEAD(bucket_of(table, session->tenant_id, session->name), session, hash_link);
    kvd_session_ref(session);
    kvd_cold_note(session); /* a fork has blocks already */
}

void kvd_session_table_drop(struct kvd_session_table *table, struct kvd_session *session)
{
    if (session->is_dropped) {
        return;
    }
    session->is_dropped = true;
    kvd_cold_forget(session);
    kvd_lifetime_forget(session);
    KVARN_ASSERT(table->count > 0);
    table->count--;
    kvd_session_ref(session);
    if (session->name != NULL) {
        RB_REMOVE(kvd_session_tree, &table->named, session);
        SLIST_REMOVE(
            bucket_of(table, session->tenant_id, session->name), session, kvd_session, hash_link);
        kvd_session_unref(session);
    }
    kvd_session_kick(session); /* empties it now, unless something is in flight */
    kvd_session_unref(session);
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
    if (!session->is_dropped) {
        kvd_lifetime_forget(session);
        KVARN_ASSERT(table->count > 0);
        table->count--;
    }
    kvd_compactor_forget(session);
    LIST_REMOVE(session, all_link);
    LIST_INSERT_HEAD(&table->dead, session, dead_link);
    reap_soon(table);
}

void kvd_session_table_empty(struct kvd_session_table *table, struct kvd_session *session)
{
    KVARN_ASSERT(session->is_dropped && !session->is_husk);
    session->is_husk = true;
    kvd_session_clear(session);
    reap_soon(table);
}

void kvd_session_table_bury_span(struct kvd_session_table *table, struct kvd_span *span)
{
    SLIST_INSERT_HEAD(&table->dead_spans, span, dead_link);
    reap_soon(table);
}

void kvd_session_table_bury_block(struct kvd_session_table *table, struct kvd_block *block)
{
    SLIST_INSERT_HEAD(&table->dead_blocks, block, dead_link);
    reap_soon(table);
}
