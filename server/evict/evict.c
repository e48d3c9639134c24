/*
 * Eviction: watermarks, victims, slices.
 *
 * Owner: service. Thread: loop only.
 */
#include "server/evict/evict.h"

#include <stddef.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/base/xxh3.h"
#include "server/evict/session_evict.h"
#include "server/service.h"

/*
 * Layers of blocks that go before the clock and the policy are asked again: 32 of 8 heads of 128
 * take some 80 us, nearly all of it for giving chunks back (kvarn-bench sessions).
 */
#define STEP_LAYERS 32

/*
 * Sessions that nobody used for so long give their tails first. A tail of fp16 rows takes eight
 * times the memory of sealed tokens, with room reserved for a whole block; as a record it has the
 * rows that there are. So it frees the most for what bringing it back costs. Somebody who is at
 * work steps much more often than this; between the turns of a conversation there is more time.
 */
#define TAIL_IDLE_NS (UINT64_C(10) * 1000000000)

/*
 * Memory beyond the limit that is no reason to act: one part of the limit in so many, or what the
 * code, libraries and scratch of some workers take.
 */
#define MEASURE_MARGIN     32
#define MEASURE_MARGIN_MIN (UINT64_C(24) << 20)

/* What is freed takes a second to leave the process. */
#define MEASURE_NS UINT64_C(1000000000)

/* Uses that follow closer than the model's first age change nothing. */
#define USE_GAP_NS UINT64_C(16000000)

/* A token's place at which attention costs as much again as all else, as in an 8B model. */
#define ATTENTION_TOKENS 32768

uint64_t kvd_evictor_used_bytes(const struct kvd_service *service)
{
    const struct kvd_page_store *pages = &service->pages;
    uint64_t page_bytes = 0;

    for (unsigned i = 0; i < KVD_PAGE_CLASS_COUNT; i++) {
        page_bytes += pages->classes[i].bytes;
    }
    KVARN_ASSERT(page_bytes <= pages->chunk_bytes);
    return service->budget.used_bytes - (pages->chunk_bytes - page_bytes);
}

static struct kvd_session *session_of(const struct kvd_evict_entry *entry)
{
    uint8_t *at = (uint8_t *)(uintptr_t)entry;

    return (void *)(at - offsetof(struct kvd_session, evict));
}

/* What going takes from its owner: tokens to compute again, the later the dearer. */
static uint64_t cost_of(uint64_t tokens)
{
    return tokens + tokens * tokens / (2 * ATTENTION_TOKENS) + 1;
}

/* The policy of a tenant, by its place in the table; made when it is first needed. */
static struct kvd_evict_tenant *tenant_of(struct kvd_evictor *evictor, uint32_t tenant_id)
{
    struct kvd_evict_tenant *tenant = &evictor->tenants[tenant_id % KVD_EVICT_TENANTS_MAX];

    for (unsigned i = 0; i < KVD_EVICT_TENANTS_MAX; i++) {
        struct kvd_evict_tenant *other = &evictor->tenants[(tenant_id + i) % KVD_EVICT_TENANTS_MAX];
        if (other->policy == NULL || other->tenant_id == tenant_id) {
            return other;
        }
    }
    return tenant;
}

static struct kvd_evict_policy *policy_of(const struct kvd_session *session)
{
    return tenant_of(&session->service->evictor, session->tenant_id)->policy;
}

/* Make the tenant's policy. Returns 0, KVARN_ENOSPC or KVARN_ENOMEM. */
static int tenant_begin(struct kvd_evictor *evictor, uint32_t tenant_id)
{
    struct kvd_evict_tenant *tenant = tenant_of(evictor, tenant_id);
    struct kvd_budget *budget = &evictor->service->budget;
    size_t bytes = kvd_evict_policy_memory(evictor->kind);

    if (tenant->policy != NULL) {
        return 0;
    }
    if (kvd_budget_charge(budget, KVD_BUDGET_POLICIES, bytes) != 0) {
        return KVARN_ENOSPC;
    }
    if (kvd_evict_policy_create(evictor->kind, tenant_id, &tenant->policy) != 0) {
        kvd_budget_release(budget, KVD_BUDGET_POLICIES, bytes);
        return KVARN_ENOMEM;
    }
    tenant->tenant_id = tenant_id;
    tenant->charged_bytes = bytes;
    return 0;
}

/* A new entry. Returns 0, KVARN_ENOSPC or KVARN_ENOMEM. */
static int entry_insert(struct kvd_evictor *evictor, struct kvd_session *session, uint64_t now_ns)
{
    struct kvd_budget *budget = &evictor->service->budget;
    int err = tenant_begin(evictor, session->tenant_id);

    if (err != 0) {
        return err;
    }
    struct kvd_evict_tenant *tenant = tenant_of(evictor, session->tenant_id);
    size_t bytes = kvd_evict_insert_memory(tenant->policy);
    if (kvd_budget_charge(budget, KVD_BUDGET_POLICIES, bytes) != 0) {
        return KVARN_ENOSPC;
    }
    err = kvd_evict_insert(tenant->policy, &session->evict, now_ns);
    if (err != 0) {
        kvd_budget_release(budget, KVD_BUDGET_POLICIES, bytes);
    } else {
        tenant->charged_bytes += bytes;
    }
    return err;
}

static void entry_weigh(struct kvd_session *session)
{
    struct kvd_evict_entry *entry = &session->evict;
    const struct kvd_shape *shape = session->shape;
    uint64_t blocks = kvd_session_block_count(session);
    uint64_t missing = session->missing_last - session->missing_first;
    uint64_t sealed = session->layers[0].sealed_blocks;
    uint64_t tiles = sealed > missing ? sealed - missing : 0;
    uint64_t open = blocks > sealed ? blocks - sealed : 0;
    uint64_t bytes = (tiles + open) * shape->block_tiles_bytes + open * shape->block_rows_bytes + 1;
    uint64_t cost = cost_of((blocks - missing) * shape->group);

    entry->priority = session->lifetime.priority;
    entry->priority_ns = session->lifetime.priority_ns;
    if (entry->is_inserted) {
        kvd_evict_update(policy_of(session), entry, bytes, cost);
    } else {
        entry->bytes = bytes;
        entry->cost = cost;
    }
}

static uint64_t key_of(const struct kvd_session *session)
{
    if (session->name == NULL) {
        return session->epoch; /* it never comes back */
    }
    return XXH3_64bits_withSeed(session->name, strlen(session->name), session->tenant_id);
}

/* Not a candidate while all of it is pinned, or what is left is on its way out. */
static void hold_if_pinned(struct kvd_session *session)
{
    const struct kvd_lifetime *lifetime = &session->lifetime;
    bool is_pinned = lifetime->pinned_until_ns != 0 &&
                     kvd_session_block_count(session) <= lifetime->pinned_blocks;

    if (is_pinned || session->cold.is_tail_leaving) {
        kvd_evict_hold(policy_of(session), &session->evict);
    } else {
        kvd_evict_release(policy_of(session), &session->evict);
    }
}

static void warm_remove(struct kvd_evictor *evictor, struct kvd_session *session)
{
    if (session->cold.is_warm) {
        TAILQ_REMOVE(&evictor->warm, session, cold.warm_link);
        session->cold.is_warm = false;
    }
}

/* Its tail, if it has one, was used last of all. */
static void warm_use(struct kvd_evictor *evictor, struct kvd_session *session)
{
    if (session->service->cold.tier != NULL && session->name != NULL) {
        warm_remove(evictor, session);
        TAILQ_INSERT_TAIL(&evictor->warm, session, cold.warm_link);
        session->cold.is_warm = true;
        session->cold.is_tail_refused = false;
    }
}

/* Without memory it is no candidate until it is used again. */
static void entry_enter(struct kvd_session *session, uint64_t now_ns)
{
    struct kvd_evictor *evictor = &session->service->evictor;
    struct kvd_evict_entry *entry = &session->evict;

    entry_weigh(session);
    entry->key = key_of(session);
    entry->group = session->name == NULL;
    if (entry_insert(evictor, session, now_ns) == 0) {
        hold_if_pinned(session); /* else it is no candidate until it is used again */
    }
}

void kvd_evictor_use(struct kvd_session *session)
{
    struct kvd_evictor *evictor = &session->service->evictor;
    struct kvd_evict_entry *entry = &session->evict;
    uint64_t now_ns = session->touched_ns;

    if (!evictor->is_on || session->is_dropped || kvd_session_block_count(session) == 0) {
        return;
    }
    evictor->last_used = session;
    if (entry->is_inserted && now_ns - entry->used_ns < USE_GAP_NS) {
        return;
    }
    warm_use(evictor, session);
    if (!entry->is_inserted && !kvd_session_has_evictable(session) &&
        session->lifetime.pinned_until_ns == 0) {
        return;
    }
    if (entry->is_inserted) {
        entry_weigh(session);
        kvd_evict_use(policy_of(session), entry, now_ns);
        hold_if_pinned(session);
    } else {
        entry_enter(session, now_ns);
    }
}

void kvd_evictor_came_back(struct kvd_session *session)
{
    struct kvd_evictor *evictor = &session->service->evictor;
    const struct kvd_io *io = session->service->io;

    if (!evictor->is_on || session->is_dropped) {
        return;
    }
    if (!session->cold.is_warm) {
        warm_use(evictor, session);
    }
    if (!session->evict.is_inserted && kvd_session_has_evictable(session)) {
        entry_enter(session, io->ops->now_ns(session->service->io));
    }
    kvd_evictor_check(session->service);
}

void kvd_evictor_update(struct kvd_session *session)
{
    if (session->evict.is_inserted) {
        entry_weigh(session);
        hold_if_pinned(session);
    }
}

static void entry_leave(struct kvd_session *session, enum kvd_evict_reason reason)
{
    if (session->evict.is_inserted) {
        kvd_evict_remove(policy_of(session), &session->evict, reason);
    }
}

void kvd_evictor_settle(struct kvd_session *session)
{
    bool is_left = kvd_session_has_evictable(session) && !session->cold.is_tail_refused;

    if (session->evict.is_inserted && !is_left) {
        entry_leave(session, KVD_EVICT_EVICTED);
    }
    kvd_evictor_update(session);
}

void kvd_evictor_forget(struct kvd_session *session)
{
    struct kvd_evictor *evictor = &session->service->evictor;

    warm_remove(evictor, session);
    entry_leave(session, KVD_EVICT_GONE);
    if (evictor->last_used == session) {
        evictor->last_used = NULL;
    }
}

void kvd_evictor_count(
    struct kvd_session *session, enum kvd_evict_cause cause, uint32_t blocks, uint64_t freed_bytes)
{
    static const enum kvd_metric causes[] = {
        [KVD_EVICT_CAUSE_WATERMARK] = KVD_METRIC_evicted_blocks_watermark,
        [KVD_EVICT_CAUSE_RESERVATION] = KVD_METRIC_evicted_blocks_reservation,
        [KVD_EVICT_CAUSE_CALL] = KVD_METRIC_evicted_blocks_call};
    struct kvd_metrics *metrics = &session->service->metrics;

    kvd_metrics_add(metrics, causes[cause], blocks);
    kvd_metrics_add(metrics, KVD_METRIC_evicted_bytes, freed_bytes);
}

struct search {
    const struct kvd_session *spared[2];
    bool may_ask; /* who has but a tail left, which must be stored first, is wanted too */
};

static bool may_cb(void *ctx, const struct kvd_evict_entry *entry)
{
    const struct search *search = ctx;
    const struct kvd_session *session = session_of(entry);

    return session != search->spared[0] && session != search->spared[1] &&
           !kvd_session_is_busy(session) &&
           (kvd_session_next_victim(session) != UINT32_MAX ||
               (search->may_ask && kvd_session_has_victim(session)));
}

/* Whose turn it is to give: `first` (0: nobody), then who has most. NULL: all were asked. */
static struct kvd_evict_tenant *tenant_next(
    struct kvd_evictor *evictor, uint32_t first, uint32_t asked)
{
    struct kvd_evict_tenant *most = NULL;

    for (unsigned i = 0; i < KVD_EVICT_TENANTS_MAX; i++) {
        struct kvd_evict_tenant *tenant = &evictor->tenants[i];
        if (tenant->policy == NULL || (asked >> i & 1) != 0) {
            continue;
        }
        if (first != 0 && tenant == tenant_of(evictor, first)) {
            return tenant;
        }
        if (most == NULL ||
            kvd_evict_policy_bytes(tenant->policy) > kvd_evict_policy_bytes(most->policy)) {
            most = tenant;
        }
    }
    return most;
}

/* `spared`: who needs the memory, NULL: nobody in particular. Its tenant gives first. */
static struct kvd_session *victim_find(
    struct kvd_evictor *evictor, const struct kvd_session *spared, bool may_ask)
{
    const struct kvd_io *io = evictor->service->io;
    uint64_t now_ns = io->ops->now_ns(evictor->service->io);
    struct search search = {.spared = {spared, evictor->last_used}, .may_ask = may_ask};
    uint32_t first = spared == NULL ? 0 : spared->tenant_id;
    struct kvd_evict_tenant *tenant;
    uint32_t asked = 0;

    while ((tenant = tenant_next(evictor, first, asked)) != NULL) {
        struct kvd_evict_entry *entry = kvd_evict_victim(tenant->policy, now_ns, may_cb, &search);
        if (entry != NULL) {
            return session_of(entry);
        }
        asked |= 1u << (tenant - evictor->tenants);
    }
    return NULL;
}
_Static_assert(KVD_EVICT_TENANTS_MAX <= 32, "a bit each");

/* What a step of eviction came to. */
struct progress {
    uint64_t freed_bytes;
    uint64_t leaving_bytes; /* of a tail that is to be stored first */
    bool is_any;            /* false: nobody could be evicted */
};

static struct progress step(struct kvd_evictor *evictor, const struct kvd_session *spared,
    enum kvd_evict_cause cause, bool may_ask)
{
    struct kvd_session *session = victim_find(evictor, spared, may_ask);
    struct progress progress = {0};

    if (session == NULL) {
        return progress;
    }
    KVARN_ASSERT(!kvd_session_is_busy(session));
    uint32_t count = 1 + (STEP_LAYERS - 1) / session->shape->layer_count;
    uint32_t blocks = kvd_session_evict(session, count, &progress.freed_bytes);
    if (may_ask && kvd_session_next_victim(session) == UINT32_MAX) {
        progress.leaving_bytes = kvd_cold_tail_out(session);
    }
    progress.is_any = blocks > 0 || progress.leaving_bytes > 0;
    if (!progress.is_any) {
        entry_leave(session, KVD_EVICT_EVICTED);
    } else {
        kvd_evictor_settle(session);
    }
    kvd_evictor_count(session, cause, blocks, progress.freed_bytes);
    return progress;
}

/* The tail of who has been idle longest, if that is long enough. */
static struct progress step_idle(struct kvd_evictor *evictor)
{
    const struct kvd_io *io = evictor->service->io;
    uint64_t now_ns = io->ops->now_ns(evictor->service->io);
    struct progress progress = {0};
    struct kvd_session *session;

    while (!progress.is_any && (session = TAILQ_FIRST(&evictor->warm)) != NULL &&
           now_ns - session->touched_ns >= TAIL_IDLE_NS) {
        warm_remove(evictor, session); /* until it is used again */
        if (kvd_session_is_busy(session)) {
            continue;
        }
        if (kvd_tail_is_stored(session)) {
            uint32_t blocks = kvd_session_evict_tail(session, &progress.freed_bytes);
            kvd_evictor_count(session, KVD_EVICT_CAUSE_WATERMARK, blocks, progress.freed_bytes);
            progress.is_any = blocks > 0;
        } else {
            progress.leaving_bytes = kvd_cold_tail_out(session);
            progress.is_any = progress.leaving_bytes > 0;
        }
        kvd_evictor_settle(session);
    }
    return progress;
}

/* Pages that the prefix index lets go in one slice, at least. */
#define INDEX_STEP_BYTES ((uint64_t)1 << 20)

static bool has_reason(struct kvd_evictor *evictor)
{
    uint64_t used = kvd_evictor_used_bytes(evictor->service);
    uint64_t leaving = evictor->service->cold.leaving_bytes;

    used -= leaving < used ? leaving : used;
    used += evictor->lowered_bytes;
    evictor->is_active = used > (evictor->is_active ? evictor->stop_bytes : evictor->start_bytes);
    return evictor->is_active || evictor->wanted_bytes > 0;
}

static void slice_run(struct kvd_slice *slice)
{
    struct kvd_evictor *evictor = (void *)((uint8_t *)slice - offsetof(struct kvd_evictor, slice));
    struct kvd_slices *slices = &evictor->service->sessions.slices;

    /* What no session holds goes first, and what waits for the reaper frees memory too. */
    if (has_reason(evictor)) {
        uint64_t bytes =
            evictor->wanted_bytes > INDEX_STEP_BYTES ? evictor->wanted_bytes : INDEX_STEP_BYTES;
        (void)kvd_prefix_index_shrink(&evictor->service->prefixes, bytes);
    }
    while (has_reason(evictor) && !kvd_session_table_has_dead(&evictor->service->sessions) &&
           !kvd_large_has_dead(&evictor->service->large)) {
        bool is_wanted = evictor->wanted_bytes > 0;
        struct progress progress = step_idle(evictor);
        if (!progress.is_any) {
            progress = step(evictor, NULL,
                is_wanted ? KVD_EVICT_CAUSE_RESERVATION : KVD_EVICT_CAUSE_WATERMARK, true);
        }
        if (!progress.is_any) {
            evictor->wanted_bytes = 0;
            evictor->is_active = false;
            return; /* the next reservation asks again */
        }
        uint64_t gain = progress.freed_bytes + progress.leaving_bytes;
        evictor->wanted_bytes -= gain < evictor->wanted_bytes ? gain : evictor->wanted_bytes;
        if (!kvd_slices_has_time(slices)) {
            break;
        }
    }
    if (has_reason(evictor)) {
        kvd_slices_add(slices, slice);
    }
}

static void slice_list(struct kvd_evictor *evictor)
{
    if (!evictor->slice.is_listed) {
        kvd_slices_add(&evictor->service->sessions.slices, &evictor->slice);
    }
}

void kvd_evictor_check(struct kvd_service *service)
{
    struct kvd_evictor *evictor = &service->evictor;

    if (evictor->is_on && has_reason(evictor)) {
        slice_list(evictor);
    }
}

bool kvd_evictor_make_room(
    struct kvd_service *service, const struct kvd_session *session, uint64_t bytes)
{
    struct kvd_evictor *evictor = &service->evictor;
    uint64_t freed_sum = 0;
    struct progress progress;

    kvd_slices_begin(&service->sessions.slices);
    do {
        bool may_ask = service->cold.leaving_bytes < bytes;
        progress = step(evictor, session, KVD_EVICT_CAUSE_RESERVATION, may_ask);
        freed_sum += progress.freed_bytes;
    } while (
        progress.is_any && freed_sum < bytes && kvd_slices_has_time(&service->sessions.slices));
    return freed_sum > 0;
}

bool kvd_evictor_wants_measure(const struct kvd_service *service, uint64_t now_ns)
{
    return service->evictor.is_on && now_ns - service->evictor.measured_ns >= MEASURE_NS;
}

void kvd_evictor_measured(struct kvd_service *service, uint64_t resident_bytes, uint64_t now_ns)
{
    struct kvd_evictor *evictor = &service->evictor;
    uint64_t limit = service->budget.limit_bytes;
    uint64_t share = limit / MEASURE_MARGIN;
    uint64_t margin = share > MEASURE_MARGIN_MIN ? share : MEASURE_MARGIN_MIN;

    evictor->measured_ns = now_ns;
    if (resident_bytes > limit + margin) {
        uint64_t most = evictor->stop_bytes / 2;
        evictor->lowered_bytes += resident_bytes - limit;
        evictor->lowered_bytes = evictor->lowered_bytes < most ? evictor->lowered_bytes : most;
        (void)kvd_page_store_reclaim(&service->pages, margin);
    } else if (resident_bytes < limit) {
        uint64_t room = limit - resident_bytes;
        uint64_t rise = room < margin ? room : margin;
        evictor->lowered_bytes -= rise < evictor->lowered_bytes ? rise : evictor->lowered_bytes;
    }
    kvd_evictor_check(service);
}

bool kvd_evictor_want(struct kvd_service *service, uint64_t bytes)
{
    struct kvd_evictor *evictor = &service->evictor;

    if (victim_find(evictor, NULL, true) == NULL) {
        return service->cold.leaving_bytes > 0;
    }
    evictor->wanted_bytes = bytes > evictor->wanted_bytes ? bytes : evictor->wanted_bytes;
    slice_list(evictor);
    return true;
}

int kvd_evictor_init(struct kvd_evictor *evictor, struct kvd_service *service)
{
    const struct kvd_config *config = service->config;
    uint64_t percent = config->memory_limit / 100;
    uint64_t free_percent =
        config->evict_free < config->evict_start ? config->evict_free : config->evict_start;

    *evictor = (struct kvd_evictor){.service = service};
    TAILQ_INIT(&evictor->warm);
    evictor->slice.run = slice_run;
    evictor->start_bytes = percent * config->evict_start;
    evictor->stop_bytes = percent * (config->evict_start - free_percent);
    if (strcmp(config->evict_policy, "none") == 0) {
        return 0;
    }
    evictor->is_on = true;
    return kvd_evict_kind_parse(config->evict_policy, &evictor->kind);
}

void kvd_evictor_fini(struct kvd_evictor *evictor)
{
    for (unsigned i = 0; i < KVD_EVICT_TENANTS_MAX; i++) {
        struct kvd_evict_tenant *tenant = &evictor->tenants[i];
        if (tenant->policy != NULL) {
            kvd_evict_policy_destroy(tenant->policy);
            kvd_budget_release(
                &evictor->service->budget, KVD_BUDGET_POLICIES, tenant->charged_bytes);
        }
    }
    *evictor = (struct kvd_evictor){0};
}
