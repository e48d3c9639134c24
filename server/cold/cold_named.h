/*
 * What the maps of a session on disk name: the copies of these blocks stay, though the session has
 * changed or dropped the blocks, until a later map is durable. Else a crash in between would find a
 * map whose pages are gone.
 *
 * Owner: session. Thread: loop only.
 */
#ifndef KVD_COLD_NAMED_H
#define KVD_COLD_NAMED_H

#include <stdbool.h>
#include <stdint.h>

#include "kvarn/err.h"

struct kvd_service;
struct kvd_session;
struct kvd_cold_named;

/*
 * A map of the first `count` blocks is about to be put: hold their copies. What only earlier maps
 * named goes when this one, which is round *ret_round, is durable. Returns 0 or KVARN_ENOSPC.
 */
int kvd_cold_named_set(
    struct kvd_session *session, uint32_t count, uint64_t *ret_round) KVARN_MUST_CHECK;

/* The map of a round is durable. */
void kvd_cold_named_settle(struct kvd_session *session, uint64_t round);

/* Whether the newest map names copies that the session holds no more. */
bool kvd_cold_named_is_stale(const struct kvd_session *session);

/*
 * Take what a tombstone that failed was to give up back; the next map that is durable gives it up
 * unless that names it. `named` is the session's from then on; NULL ok.
 */
void kvd_cold_named_restore(struct kvd_session *session, struct kvd_cold_named *named);

/* No map names anything any more. NULL ok. */
void kvd_cold_named_free(struct kvd_service *service, struct kvd_cold_named *named);

#endif
