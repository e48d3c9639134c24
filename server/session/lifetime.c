/*
 * Lifetimes: a tree of sessions by when to look at them next, one timer, and slices that drop what
 * has expired.
 *
 * Owner: service. Thread: loop only.
 *
 * A use does not move a session in the tree: when it comes up, it is put back for as long as its
 * TTL has left.
 */
#include "server/session/lifetime.h"

#include <inttypes.h>
#include <math.h>
#include <stddef.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/evict/evict_policy.h"
#include "server/evict/session_evict.h"
#include "server/service.h"

#define NS_PER_MS UINT64_C(1000000)

/* A session that should expire but has work in flight is looked at again after this. */
#define BUSY_NS (100 * NS_PER_MS)

/* One that the cold tier could not record the end of, after this. */
#define RETRY_NS (1000 * NS_PER_MS)

static int due_compare(const struct kvd_lifetime *a, const struct kvd_lifetime *b)
{
    if (a->due_ns != b->due_ns) {
        return a->due_ns < b->due_ns ? -1 : 1;
    }
    return ((uintptr_t)a > (uintptr_t)b) - ((uintptr_t)a < (uintptr_t)b);
}

/* Not every function of a tree is needed. */
RB_GENERATE_INTERNAL(
    kvd_lifetime_tree, kvd_lifetime, link, due_compare, __attribute__((unused)) static)

static uint64_t now_ns_of(const struct kvd_service *service)
{
    return service->io->ops->now_ns(service->io);
}

static struct kvd_session *session_of(struct kvd_lifetime *lifetime)
{
    return (void *)((uint8_t *)lifetime - offsetof(struct kvd_session, lifetime));
}

/* See that the timer fires when the first is due; not while the slice is at it. */
static void arm(struct kvd_lifetimes *lifetimes, uint64_t now_ns)
{
    const struct kvd_lifetime *first = RB_MIN(kvd_lifetime_tree, &lifetimes->due);

    if (first == NULL || lifetimes->slice.is_listed || lifetimes->armed_ns == first->due_ns) {
        return;
    }
    uint64_t wait_ns = first->due_ns > now_ns ? first->due_ns - now_ns : 0;
    lifetimes->armed_ns = first->due_ns;
    const struct kvd_io_ops *ops = lifetimes->service->io->ops;
    ops->timer_start(lifetimes->timer, (wait_ns + NS_PER_MS - 1) / NS_PER_MS, 0);
}

static void list(struct kvd_lifetimes *lifetimes, struct kvd_lifetime *lifetime, uint64_t due_ns)
{
    if (lifetime->is_listed) {
        RB_REMOVE(kvd_lifetime_tree, &lifetimes->due, lifetime);
    }
    lifetime->is_listed = due_ns != UINT64_MAX;
    lifetime->due_ns = due_ns;
    if (lifetime->is_listed) {
        struct kvd_lifetime *other = RB_INSERT(kvd_lifetime_tree, &lifetimes->due, lifetime);
        KVARN_ASSERT(other == NULL);
    }
}

/* When something ends of itself; UINT64_MAX: never. */
static uint64_t due_of(const struct kvd_session *session)
{
    const struct kvd_lifetime *lifetime = &session->lifetime;

    if (lifetime->pinned_until_ns != 0) {
        return lifetime->pinned_until_ns; /* until then it does not expire */
    }
    return lifetime->ttl_ns == 0 ? UINT64_MAX : session->touched_ns + lifetime->ttl_ns;
}

static void relist(struct kvd_session *session, uint64_t now_ns)
{
    struct kvd_lifetimes *lifetimes = &session->service->lifetimes;

    list(lifetimes, &session->lifetime, due_of(session));
    arm(lifetimes, now_ns);
}

/* The cold tier will not bring it back, or could not be told so: then it is tried again. */
static void expired_cb(void *ctx, int err)
{
    struct kvd_session *session = ctx;

    if (err == 0 && !session->is_dropped) {
        kvd_metrics_add(&session->service->metrics, KVD_METRIC_sessions_expired, 1);
        kvd_session_table_drop(&session->service->sessions, session);
    }
    kvd_session_unref(session);
}

/*
 * Drop it, once that is on disk: who opens the name anew after that finds nothing of it, in no life
 * of the daemon.
 */
static void expire(struct kvd_lifetimes *lifetimes, struct kvd_session *session, uint64_t now_ns)
{
    list(lifetimes, &session->lifetime, now_ns + RETRY_NS);
    (void)kvd_session_ref(session);
    int err = kvd_cold_bury(session, expired_cb, session);
    if (err != 0) {
        expired_cb(session, err == KVD_COLD_NOTHING ? 0 : err);
    }
}

/* The first one is due: end its pin, drop it, or put it back. */
static void due_look(struct kvd_lifetimes *lifetimes, struct kvd_session *session, uint64_t now_ns)
{
    struct kvd_lifetime *lifetime = &session->lifetime;

    if (lifetime->pinned_until_ns != 0 && lifetime->pinned_until_ns <= now_ns) {
        kvd_lifetime_unpin(session);
        return;
    }
    uint64_t due_ns = due_of(session);
    if (due_ns > now_ns) {
        list(lifetimes, lifetime, due_ns);
    } else if (kvd_session_is_busy(session) || session->cold.is_buried ||
               session->service->cold.is_flushing) {
        list(lifetimes, lifetime, now_ns + BUSY_NS);
    } else {
        expire(lifetimes, session, now_ns);
    }
}

static void slice_run(struct kvd_slice *slice)
{
    struct kvd_lifetimes *lifetimes =
        (void *)((uint8_t *)slice - offsetof(struct kvd_lifetimes, slice));
    struct kvd_slices *slices = &lifetimes->service->sessions.slices;
    uint64_t now_ns = now_ns_of(lifetimes->service);
    struct kvd_lifetime *first;

    while (
        (first = RB_MIN(kvd_lifetime_tree, &lifetimes->due)) != NULL && first->due_ns <= now_ns) {
        due_look(lifetimes, session_of(first), now_ns);
        if (!kvd_slices_has_time(slices)) {
            break;
        }
    }
    first = RB_MIN(kvd_lifetime_tree, &lifetimes->due);
    if (first != NULL && first->due_ns <= now_ns) {
        kvd_slices_add(slices, slice);
    } else {
        arm(lifetimes, now_ns);
    }
}

static void timer_cb(void *ctx)
{
    struct kvd_lifetimes *lifetimes = ctx;

    lifetimes->armed_ns = 0;
    if (!lifetimes->slice.is_listed) {
        kvd_slices_add(&lifetimes->service->sessions.slices, &lifetimes->slice);
    }
}

int kvd_lifetimes_init(struct kvd_lifetimes *lifetimes, struct kvd_service *service)
{
    uint64_t half = service->config->memory_limit / 2;

    *lifetimes = (struct kvd_lifetimes){.service = service};
    RB_INIT(&lifetimes->due);
    lifetimes->slice.run = slice_run;
    lifetimes->pin_bytes_max =
        service->config->pin_memory < half ? service->config->pin_memory : half;
    lifetimes->timer = service->io->ops->timer_create(service->io, timer_cb, lifetimes);
    return lifetimes->timer == NULL ? KVARN_ENOMEM : 0;
}

void kvd_lifetimes_fini(struct kvd_lifetimes *lifetimes)
{
    if (lifetimes->timer == NULL) {
        return;
    }
    KVARN_ASSERT(RB_EMPTY(&lifetimes->due) && lifetimes->pinned_bytes == 0);
    kvd_slices_remove(&lifetimes->service->sessions.slices, &lifetimes->slice);
    lifetimes->service->io->ops->timer_destroy(lifetimes->timer);
    lifetimes->timer = NULL;
}

void kvd_lifetime_touch(struct kvd_session *session)
{
    session->touched_ns = now_ns_of(session->service);
    kvd_cold_used(session);
    kvd_evictor_use(session);
}

void kvd_lifetime_set_ttl(struct kvd_session *session, uint64_t ttl_ms)
{
    KVARN_ASSERT(ttl_ms <= KVARN_LIFETIME_MS_MAX);
    session->lifetime.ttl_ns = ttl_ms * NS_PER_MS;
    kvd_lifetime_touch(session);
    relist(session, session->touched_ns);
}

void kvd_lifetime_set_priority(struct kvd_session *session, uint32_t priority)
{
    KVARN_ASSERT(priority <= KVD_EVICT_PRIORITY_MAX);
    session->lifetime.priority = (uint8_t)priority;
    session->lifetime.priority_ns = now_ns_of(session->service);
    kvd_evictor_update(session);
}

static uint64_t left_ms(uint64_t end_ns, uint64_t now_ns)
{
    return end_ns > now_ns ? (end_ns - now_ns + NS_PER_MS - 1) / NS_PER_MS : 1;
}

uint64_t kvd_lifetime_ttl_left_ms(const struct kvd_session *session)
{
    if (session->lifetime.ttl_ns == 0) {
        return 0;
    }
    return left_ms(session->touched_ns + session->lifetime.ttl_ns, now_ns_of(session->service));
}

uint64_t kvd_lifetime_pin_left_ms(const struct kvd_session *session)
{
    if (session->lifetime.pinned_until_ns == 0) {
        return 0;
    }
    return left_ms(session->lifetime.pinned_until_ns, now_ns_of(session->service));
}

uint32_t kvd_lifetime_priority(const struct kvd_session *session)
{
    const struct kvd_lifetime *lifetime = &session->lifetime;
    uint64_t age_ns = now_ns_of(session->service) - lifetime->priority_ns;
    float half_lives = (float)age_ns / (float)KVD_EVICT_PRIORITY_HALF_LIFE_NS;

    return (uint32_t)lroundf((float)lifetime->priority * exp2f(-half_lives));
}

int kvd_lifetime_pin(struct kvd_session *session, uint64_t ms, struct kvd_failure *why)
{
    struct kvd_lifetimes *lifetimes = &session->service->lifetimes;
    struct kvd_lifetime *lifetime = &session->lifetime;
    struct kvd_session_usage usage;
    uint64_t bytes = 0;

    KVARN_ASSERT(!session->is_dropped && ms > 0 && ms <= KVARN_LIFETIME_MS_MAX);
    kvd_session_usage(session, &usage);
    for (unsigned i = 0; i < KVD_PAGE_CLASS_COUNT; i++) {
        bytes += usage.bytes[i];
    }
    uint64_t others = lifetimes->pinned_bytes - lifetime->pinned_bytes;
    if (others + bytes > lifetimes->pin_bytes_max) {
        return kvd_fail(why, KVARN_ENOSPC,
            "pins may keep %" PRIu64 " bytes and keep %" PRIu64 " of other sessions; this one has"
            " %" PRIu64,
            lifetimes->pin_bytes_max, others, bytes);
    }
    lifetimes->pinned_count += lifetime->pinned_until_ns == 0;
    lifetimes->pinned_bytes = others + bytes;
    lifetime->pinned_bytes = bytes;
    lifetime->pinned_blocks = kvd_session_block_count(session);
    lifetime->pinned_until_ns = now_ns_of(session->service) + ms * NS_PER_MS;
    relist(session, now_ns_of(session->service));
    kvd_evictor_update(session);
    return 0;
}

static void pin_end(struct kvd_session *session)
{
    struct kvd_lifetimes *lifetimes = &session->service->lifetimes;
    struct kvd_lifetime *lifetime = &session->lifetime;

    if (lifetime->pinned_until_ns == 0) {
        return;
    }
    KVARN_ASSERT(lifetimes->pinned_bytes >= lifetime->pinned_bytes && lifetimes->pinned_count > 0);
    lifetimes->pinned_bytes -= lifetime->pinned_bytes;
    lifetimes->pinned_count--;
    lifetime->pinned_bytes = 0;
    lifetime->pinned_blocks = 0;
    lifetime->pinned_until_ns = 0;
}

void kvd_lifetime_unpin(struct kvd_session *session)
{
    pin_end(session);
    kvd_evictor_update(session);
    relist(session, now_ns_of(session->service));
}

void kvd_lifetime_forget(struct kvd_session *session)
{
    pin_end(session);
    kvd_cold_unlist(session);
    kvd_evictor_forget(session);
    session->lifetime.ttl_ns = 0;
    list(&session->service->lifetimes, &session->lifetime, UINT64_MAX);
}
