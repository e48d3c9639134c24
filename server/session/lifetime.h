/*
 * Lifetimes of sessions: how long one is kept that nobody uses (TTL), what of it eviction leaves
 * alone (pins), and how much it is worth to its owner (priority).
 *
 * Owner: service. Thread: loop only. All times are of the monotonic clock: a jump of the wall clock
 * changes nothing.
 *
 * A TTL counts from the last use. A pin has an end of its own, whoever is connected, so that a
 * client that dies leaks none; it covers what the session holds when it is made, and its bytes
 * count against the tenant's pin budget until it ends. A pinned session does not expire.
 */
#ifndef KVD_LIFETIME_H
#define KVD_LIFETIME_H

#include <stdbool.h>
#include <stdint.h>

#include <bsd/sys/tree.h>

#include "server/io/io.h"
#include "server/io/slices.h"
#include "server/session/failure.h"

struct kvd_service;
struct kvd_session;

/* Of one session, embedded in it. */
struct kvd_lifetime {
    RB_ENTRY(kvd_lifetime) link;
    uint64_t due_ns;          /* when to look at it next; while is_listed */
    uint64_t priority_ns;     /* when the priority was set */
    uint64_t ttl_ns;          /* 0: none */
    uint64_t pinned_until_ns; /* 0: not pinned */
    uint64_t pinned_bytes;
    uint32_t pinned_blocks; /* leading blocks that eviction leaves alone */
    uint8_t priority;       /* as it was set, 0 to 100; halves every 10 minutes */
    bool is_listed;
};

RB_HEAD(kvd_lifetime_tree, kvd_lifetime);

struct kvd_lifetimes {
    struct kvd_service *service;  /* borrowed */
    struct kvd_lifetime_tree due; /* those with a TTL or a pin */
    struct kvd_timer *timer;      /* owned: armed for the first of them */
    struct kvd_slice slice;       /* listed while some are due */
    uint64_t armed_ns;            /* when the timer fires; 0: not armed */
    uint64_t pinned_bytes;        /* of the one tenant there is; <= pin_bytes_max */
    uint64_t pin_bytes_max;
    uint32_t pinned_count;
};

/* Needs the session table's slices. Returns 0 or KVARN_ENOMEM. */
int kvd_lifetimes_init(
    struct kvd_lifetimes *lifetimes, struct kvd_service *service) KVARN_MUST_CHECK;

/* No session may be left. Accepts a zeroed struct. */
void kvd_lifetimes_fini(struct kvd_lifetimes *lifetimes);

/* The session is used now. */
void kvd_lifetime_touch(struct kvd_session *session);

/* Drop it when nobody has used it for ttl_ms from now on; 0: never. */
void kvd_lifetime_set_ttl(struct kvd_session *session, uint64_t ttl_ms);

/* 0 to KVD_EVICT_PRIORITY_MAX. */
void kvd_lifetime_set_priority(struct kvd_session *session, uint32_t priority);

/* What is left of them: milliseconds, rounded up; 0: none. Priority rounded to the nearest. */
uint64_t kvd_lifetime_ttl_left_ms(const struct kvd_session *session);
uint64_t kvd_lifetime_pin_left_ms(const struct kvd_session *session);
uint32_t kvd_lifetime_priority(const struct kvd_session *session);

/*
 * Keep what the session holds now from eviction for ms, instead of what an earlier pin of it
 * covers. Returns 0, or KVARN_ENOSPC: the tenant's pins would exceed their budget, and the earlier
 * pin holds on.
 */
int kvd_lifetime_pin(
    struct kvd_session *session, uint64_t ms, struct kvd_failure *why) KVARN_MUST_CHECK;

/* Nothing if it is not pinned. */
void kvd_lifetime_unpin(struct kvd_session *session);

/* The session is dropped or ends: no TTL, no pin any more. */
void kvd_lifetime_forget(struct kvd_session *session);

#endif
