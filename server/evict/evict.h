/*
 * Eviction: when memory runs short, takes blocks of the sessions that are worth least out of it.
 *
 * Owner: service. Thread: loop only.
 *
 * Begins when what is in use exceeds --evict-start percent of the limit, and frees --evict-free
 * percent of it below that; also when a reservation fails. The policy (evict_policy.h) names the
 * session; a few blocks of it go (session_evict.h), then the policy is asked again. Never a session
 * with work queued or in flight, never the one that was used last, never what is pinned. Pages that
 * readers in flight hold are freed when those let go.
 *
 * With a cold tier, tails (rows that are not sealed) are stored before they go; what is on its way
 * is counted as gone. Tails of sessions that have been idle for long are asked for before anything
 * else.
 *
 * Policies are kept by tenant: a tenant whose reservation fails gives up what it has first; above
 * --evict-start the one that has most does. What the policies learn of use is charged.
 *
 * Charges are estimates of what the process holds. Now and then that is measured, and when it
 * exceeds the limit both marks are lowered by as much, until it does not (OPERATIONS.md).
 */
#ifndef KVD_EVICT_H
#define KVD_EVICT_H

#include <stdbool.h>
#include <stdint.h>

#include "server/evict/evict_policy.h"
#include "server/session/session.h"

/* Tenants with a policy of their own; more share those. */
#define KVD_EVICT_TENANTS_MAX 16

struct kvd_evict_tenant {
    struct kvd_evict_policy *policy; /* owned; NULL: none yet */
    uint32_t tenant_id;              /* of the first one */
    size_t charged_bytes;
};

struct kvd_evictor {
    struct kvd_service *service; /* borrowed */
    struct kvd_evict_tenant tenants[KVD_EVICT_TENANTS_MAX];
    enum kvd_evict_kind kind;
    bool is_on;                        /* false: nobody is evicted */
    struct kvd_session *last_used;     /* borrowed: used last; NULL: gone */
    struct kvd_slice slice;            /* listed while there is something to do */
    struct kvd_cold_session_list warm; /* named, with a cold tier: the one used last at the end */
    uint64_t start_bytes;              /* in use: eviction begins above */
    uint64_t stop_bytes;               /* and ends below */
    uint64_t wanted_bytes;             /* of reservations that failed */
    uint64_t lowered_bytes;            /* the marks, for what is resident beyond the limit */
    uint64_t measured_ns;              /* when that was looked at last */
    bool is_active;                    /* between the two marks */
};

/* Why blocks went; metrics tell them apart. */
enum kvd_evict_cause {
    KVD_EVICT_CAUSE_WATERMARK,
    KVD_EVICT_CAUSE_RESERVATION,
    KVD_EVICT_CAUSE_CALL,
};

/* Returns 0; KVARN_EINVALID for an unknown policy. */
int kvd_evictor_init(struct kvd_evictor *evictor, struct kvd_service *service) KVARN_MUST_CHECK;

/* All sessions are gone. Accepts a zeroed struct. */
void kvd_evictor_fini(struct kvd_evictor *evictor);

/* The session is used now. */
void kvd_evictor_use(struct kvd_session *session);

/* Some of it is in memory again, where memory was taken for it. */
void kvd_evictor_came_back(struct kvd_session *session);

/* Its pin or its priority changed. */
void kvd_evictor_update(struct kvd_session *session);

/* Some of it went from memory, or did not: it may be no candidate any more. */
void kvd_evictor_settle(struct kvd_session *session);

/* It is dropped, or ends. */
void kvd_evictor_forget(struct kvd_session *session);

/* Memory was taken: begin to evict if there is reason to. A few comparisons. */
void kvd_evictor_check(struct kvd_service *service);

/*
 * A reservation of `bytes` failed, for `session` (NULL: none), which is no victim: evict about as
 * much, as far as this turn has time, at least a step. Returns whether anything was freed.
 */
bool kvd_evictor_make_room(
    struct kvd_service *service, const struct kvd_session *session, uint64_t bytes);

/*
 * The same in later slices; returns whether there is somebody to evict, so that trying again makes
 * sense.
 */
bool kvd_evictor_want(struct kvd_service *service, uint64_t bytes);

/*
 * The process holds so much, measured now: lower the marks of eviction, or let them rise again.
 * Looks at it once a second at most.
 */
void kvd_evictor_measured(struct kvd_service *service, uint64_t resident_bytes, uint64_t now_ns);

/* Whether it is time to measure again. */
bool kvd_evictor_wants_measure(const struct kvd_service *service, uint64_t now_ns);

/* Count blocks of a session that went, and why; their tokens are counted as they go. */
void kvd_evictor_count(
    struct kvd_session *session, enum kvd_evict_cause cause, uint32_t blocks, uint64_t freed_bytes);

/* Memory in use: what is charged, less the slots of page chunks that are free. */
uint64_t kvd_evictor_used_bytes(const struct kvd_service *service);

#endif
