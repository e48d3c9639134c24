/*
 * All named sessions, by (tenant, name), in order; and the reaper of dropped ones.
 *
 * Owner: service. Thread: loop only.
 */
#ifndef KVD_SESSION_TABLE_H
#define KVD_SESSION_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/io/slices.h"
#include "server/session/session.h"

RB_HEAD(kvd_session_tree, kvd_session);
SLIST_HEAD(kvd_session_bucket, kvd_session);
LIST_HEAD(kvd_session_dead_list, kvd_session);
LIST_HEAD(kvd_session_all_list, kvd_session);

struct kvd_io;
struct kvd_timer;

struct kvd_session_table {
    struct kvd_service *service;        /* borrowed */
    struct kvd_io *io;                  /* borrowed */
    struct kvd_session_tree named;      /* in order; each entry holds a reference */
    struct kvd_session_bucket *buckets; /* owned: the same by hash, to be found at once */
    uint64_t hash_seed;
    struct kvd_session_all_list all;        /* sessions that somebody refers to */
    struct kvd_session_work_list works;     /* of sessions, least recently wanted first */
    struct kvd_session_dead_list dead;      /* unreferenced, not freed yet */
    struct kvd_span_dead_list dead_spans;   /* of tables, with their blocks */
    struct kvd_block_dead_list dead_blocks; /* cut off by truncates, pages not freed yet */
    struct kvd_slices slices;
    struct kvd_slice reap_slice; /* listed while there is something dead */
    uint64_t epoch_last;         /* epochs are never reused within a run; random at first */
    uint32_t count;              /* named and unnamed, alive */
    uint32_t count_max;
};

int kvd_session_table_init(
    struct kvd_session_table *table, struct kvd_service *service) KVARN_MUST_CHECK;

/* Drops every session and frees all pages at once. Accepts a zeroed table. */
void kvd_session_table_fini(struct kvd_session_table *table);

/* NULL when there is none; borrowed. */
struct kvd_session *kvd_session_table_find(
    struct kvd_session_table *table, uint32_t tenant_id, const char *name);

/* Insert a named session; takes a reference of its own. The name must be free. */
void kvd_session_table_insert(struct kvd_session_table *table, struct kvd_session *session);

/*
 * Mark dropped and take out of the table; waiting operations run into NOT_FOUND. Its pages are
 * freed as soon as nothing is in flight on it, whoever still has a handle.
 */
void kvd_session_table_drop(struct kvd_session_table *table, struct kvd_session *session);

/* First session of a tenant with a name > after (NULL: the first) ; NULL at the end. */
struct kvd_session *kvd_session_table_next(
    struct kvd_session_table *table, uint32_t tenant_id, const char *after);

uint64_t kvd_session_table_new_epoch(struct kvd_session_table *table);

/* For kvd_session_unref(): free it in slices (SEMANTICS.md 11). */
void kvd_session_table_bury(struct kvd_session_table *table, struct kvd_session *session);

/*
 * For kvd_session_kick(): a dropped session on which nothing is in flight. Free its blocks, though
 * handles may hold the session itself for long.
 */
void kvd_session_table_empty(struct kvd_session_table *table, struct kvd_session *session);

/* For the block table: free what nobody holds any more, in slices. */
void kvd_session_table_bury_span(struct kvd_session_table *table, struct kvd_span *span);
void kvd_session_table_bury_block(struct kvd_session_table *table, struct kvd_block *block);

/* For the page store: it has chunks to give back. */
void kvd_session_table_reap(struct kvd_session_table *table);

/*
 * True while something buried still holds memory. Chunks that go back are no reason to wait: a
 * charge that needs their room has it at once.
 */
bool kvd_session_table_has_dead(const struct kvd_session_table *table);

#endif
