/*
 * All named sessions, by (tenant, name), in order; and the reaper of dropped ones.
 *
 * Owner: service. Thread: loop only.
 */
#ifndef KVD_SESSION_TABLE_H
#define KVD_SESSION_TABLE_H

#include <stddef.h>
#include <stdint.h>

#include "server/session.h"

RB_HEAD(kvd_session_tree, kvd_session);
LIST_HEAD(kvd_session_dead_list, kvd_session);

struct kvd_io;
struct kvd_timer;

struct kvd_session_table {
    struct kvd_io *io;                 /* borrowed */
    struct kvd_session_tree named;     /* each entry holds a reference */
    struct kvd_session_dead_list dead; /* unreferenced, pages not all freed yet */
    struct kvd_timer *reap_timer;      /* owned */
    uint64_t epoch_last; /* epochs are never reused within a run; seeded by the clock */
    uint32_t count;      /* named and unnamed, alive */
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

/* Mark dropped and take out of the table; waiting operations run into NOT_FOUND. */
void kvd_session_table_drop(struct kvd_session_table *table, struct kvd_session *session);

/* First session of a tenant with a name > after (NULL: the first) ; NULL at the end. */
struct kvd_session *kvd_session_table_next(
    struct kvd_session_table *table, uint32_t tenant_id, const char *after);

uint64_t kvd_session_table_new_epoch(struct kvd_session_table *table);

/* For kvd_session_unref(). */
void kvd_session_table_bury(struct kvd_session_table *table, struct kvd_session *session);

#endif
