/*
 * What a cold tier may hold after a crash at any point.
 *
 * Thread: one.
 */
#include "tests/sim/cold_oracle.h"

#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "tests/support/rng.h"

/* Ids: pages have their own range. */
#define PAGE_ID    UINT64_C(1000000)
#define SESSION_ID UINT64_C(1)

static size_t now(const struct kvt_oracle *oracle)
{
    return kvd_fake_disk_op_count(oracle->rig->disk);
}

void kvt_oracle_init(struct kvt_oracle *oracle, struct kvt_cold_rig *rig)
{
    memset(oracle, 0, sizeof(*oracle));
    oracle->rig = rig;
}

static void page_done(
    void *ctx, uint64_t id, uint64_t version, int err, struct kvd_cold_record *record)
{
    struct kvt_oracle *oracle = ctx;
    struct kvt_oracle_page *page = &oracle->pages[id - PAGE_ID];

    (void)version;
    page->is_busy = false;
    oracle->failures += err != 0 ? 1 : 0;
    if (err == 0) {
        page->durable_at = now(oracle);
        page->record = record;
    }
}

static void map_done(
    void *ctx, uint64_t id, uint64_t version, int err, struct kvd_cold_record *record)
{
    struct kvt_oracle *oracle = ctx;
    struct kvt_oracle_session *session = &oracle->sessions[id - SESSION_ID];

    session->busy--;
    oracle->failures += err != 0 ? 1 : 0;
    if (err != 0) {
        return;
    }
    session->map_durable_at[version] = now(oracle);
    bool is_newest = session->map == NULL || session->map_version < version;
    oracle->rig->cold->ops->forget(oracle->rig->cold, is_newest ? session->map : record);
    session->map = is_newest ? record : session->map;
    session->map_version = is_newest ? version : session->map_version;
}

static void drop_done(
    void *ctx, uint64_t id, uint64_t version, int err, struct kvd_cold_record *record)
{
    struct kvt_oracle *oracle = ctx;
    struct kvt_oracle_session *session = &oracle->sessions[id - SESSION_ID];

    (void)version;
    (void)record;
    session->busy--;
    oracle->failures += err != 0 ? 1 : 0;
    if (err == 0) {
        session->drop_durable_at = now(oracle);
        oracle->rig->cold->ops->forget(oracle->rig->cold, session->map);
        session->map = NULL;
    }
}

static void put(struct kvt_oracle *oracle, enum kvd_cold_type type, uint64_t id, uint64_t version,
    size_t bytes, unsigned flags, kvt_cold_put_cb done)
{
    struct kvt_cold_want want = {.type = type,
        .id = id,
        .version = version,
        .bytes = bytes,
        .flags = flags,
        .done = done,
        .ctx = oracle};
    int err = kvt_cold_put(oracle->rig, &want);

    if (err != 0) {
        done(oracle, id, version, err, NULL);
    }
}

static void step_page(struct kvt_oracle *oracle, struct kvt_rng *rng)
{
    if (oracle->page_count == KVT_ORACLE_PAGES_MAX) {
        return;
    }
    unsigned idx = oracle->page_count++;
    oracle->pages[idx] = (struct kvt_oracle_page){
        .durable_at = KVT_NEVER, .forgotten_at = KVT_NEVER, .is_busy = true};
    put(oracle, KVD_COLD_PAGE, PAGE_ID + idx, 1, kvt_rng_below(rng, 14000), 0, page_done);
}

static void step_map(struct kvt_oracle *oracle, struct kvt_rng *rng)
{
    bool is_new = oracle->session_count == 0 || kvt_rng_below(rng, 4) == 0;

    if (is_new && oracle->session_count < KVT_ORACLE_SESSIONS_MAX) {
        struct kvt_oracle_session *session = &oracle->sessions[oracle->session_count++];
        memset(session, 0, sizeof(*session));
        session->drop_put_at = KVT_NEVER;
        session->drop_durable_at = KVT_NEVER;
    }
    unsigned idx = kvt_rng_below(rng, oracle->session_count);
    struct kvt_oracle_session *session = &oracle->sessions[idx];
    if (session->drop_put_at != KVT_NEVER || session->map_count == KVT_ORACLE_MAPS_MAX) {
        return;
    }
    unsigned version = session->map_count++;
    session->map_put_at[version] = now(oracle);
    session->map_durable_at[version] = KVT_NEVER;
    session->map_is_barrier[version] = kvt_rng_below(rng, 2) == 0;
    session->busy++;
    put(oracle, KVD_COLD_MAP, SESSION_ID + idx, version, kvt_rng_below(rng, 600),
        session->map_is_barrier[version] ? KVD_COLD_BARRIER : 0, map_done);
}

static void step_drop(struct kvt_oracle *oracle, struct kvt_rng *rng)
{
    if (oracle->session_count == 0) {
        return;
    }
    unsigned idx = kvt_rng_below(rng, oracle->session_count);
    struct kvt_oracle_session *session = &oracle->sessions[idx];
    if (session->busy > 0 || session->drop_durable_at != KVT_NEVER) {
        return; /* a drop waits for the maps before it; one that failed is tried again */
    }
    session->drop_put_at = session->drop_put_at == KVT_NEVER ? now(oracle) : session->drop_put_at;
    session->busy++;
    put(oracle, KVD_COLD_TOMBSTONE, SESSION_ID + idx, 0, 0, KVD_COLD_BARRIER, drop_done);
}

static void step_forget(struct kvt_oracle *oracle, struct kvt_rng *rng)
{
    if (oracle->page_count == 0) {
        return;
    }
    struct kvt_oracle_page *page = &oracle->pages[kvt_rng_below(rng, oracle->page_count)];
    if (page->record != NULL) {
        page->forgotten_at = now(oracle);
        oracle->rig->cold->ops->forget(oracle->rig->cold, page->record);
        page->record = NULL;
    }
}

void kvt_oracle_step(struct kvt_oracle *oracle, struct kvt_rng *rng)
{
    switch (kvt_rng_below(rng, 10)) {
    case 0:
    case 1:
    case 2:
        step_page(oracle, rng);
        break;
    case 3:
    case 4:
        step_map(oracle, rng);
        break;
    case 5:
        step_drop(oracle, rng);
        break;
    case 6:
    case 7:
        step_forget(oracle, rng);
        break;
    case 8:
        kvd_io_fake_advance_ms(oracle->rig->fake, kvt_rng_below(rng, 300));
        break;
    default:
        kvd_io_fake_settle(oracle->rig->fake);
    }
    if (kvt_rng_below(rng, 2) == 0) {
        for (uint32_t turns = kvt_rng_below(rng, 6); turns > 0; turns--) {
            (void)kvd_io_fake_turn(oracle->rig->fake);
        }
    }
}

/* Judging. */

struct look {
    const struct kvt_oracle *oracle;
    struct kvt_cold_rig rig;
    struct kvt_verdict *verdict;
    bool *has_page; /* owned */
    uint64_t unreadable;
    size_t op_count;
    uint64_t map_found[KVT_ORACLE_SESSIONS_MAX]; /* version + 1; 0: none */
};

static bool page_must_be(const struct look *look, uint64_t idx)
{
    const struct kvt_oracle_page *page = &look->oracle->pages[idx];

    return page->durable_at <= look->op_count && page->forgotten_at > look->op_count;
}

static void each_cb(void *ctx, struct kvd_cold_record *record, const struct kvd_cold_info *info)
{
    struct look *look = ctx;
    struct kvt_cold_head head;
    int err = kvt_cold_check(&look->rig, record, &head);
    bool is_needed = info->type != KVD_COLD_PAGE || page_must_be(look, info->id.hi - PAGE_ID);

    look->verdict->checked++;
    if (err == 1) {
        look->verdict->wrong++;
    } else if (err != 0) {
        look->unreadable += is_needed ? 1 : 0; /* else: given up, and punched out */
    } else if (info->type == KVD_COLD_PAGE) {
        look->has_page[head.id - PAGE_ID] = true;
    } else if (info->type == KVD_COLD_MAP) {
        look->map_found[head.id - SESSION_ID] = head.version + 1;
    }
}

static void judge_session(const struct look *look, unsigned idx, size_t op_count, bool may_lose)
{
    const struct kvt_oracle_session *session = &look->oracle->sessions[idx];
    uint64_t found = look->map_found[idx];
    uint64_t durable = 0; /* version + 1 */
    uint64_t barrier = 0; /* the same, of those that must be found though something is damaged */
    uint64_t put = 0;

    if (look->rig.found.is_suspect) {
        look->verdict->suspects += idx == 0 ? 1 : 0;
        return; /* whoever opens a tier that says this takes no session from it */
    }
    for (unsigned v = 0; v < session->map_count; v++) {
        durable = session->map_durable_at[v] <= op_count ? v + 1 : durable;
        barrier = session->map_is_barrier[v] ? durable : barrier;
        put = session->map_put_at[v] <= op_count ? v + 1 : put;
    }
    if (session->drop_durable_at <= op_count) {
        look->verdict->resurrected += found != 0 ? 1 : 0;
        return;
    }
    look->verdict->wrong += found > put ? 1 : 0; /* from the future */
    if (found != 0 && found < (may_lose ? barrier : durable)) {
        look->verdict->resurrected++;
    }
    if (found == 0 && durable != 0 && session->drop_put_at > op_count && !may_lose) {
        look->verdict->lost++;
    }
}

void kvt_oracle_judge(const struct kvt_oracle *oracle, struct kvd_fake_disk *disk, size_t op_count,
    bool may_lose, struct kvt_verdict *verdict)
{
    struct kvd_cold_segment_options options = kvt_cold_options();
    struct look *look = calloc(1, sizeof(*look));

    KVARN_ASSERT(look != NULL);
    look->oracle = oracle;
    look->verdict = verdict;
    look->op_count = op_count;
    look->has_page = calloc(KVT_ORACLE_PAGES_MAX, sizeof(bool));
    KVARN_ASSERT(look->has_page != NULL);
    kvt_cold_start(&look->rig, disk, &options, op_count);
    KVARN_ASSERT(look->rig.err == 0);
    look->rig.cold->ops->each(look->rig.cold, each_cb, look);
    for (unsigned i = 0; i < oracle->page_count; i++) {
        verdict->lost += page_must_be(look, i) && !look->has_page[i] && !may_lose ? 1 : 0;
    }
    for (unsigned i = 0; i < oracle->session_count; i++) {
        judge_session(look, i, op_count, may_lose);
    }
    /* One damaged place may cost one record, which an index still names. */
    uint64_t unreadable_most = may_lose ? 1 : 0;
    if (look->unreadable > unreadable_most) {
        verdict->unreadable += look->unreadable - unreadable_most;
    }
    if (!may_lose) {
        verdict->alarms += look->rig.found.damaged + (look->rig.found.is_suspect ? 1 : 0);
    }
    kvt_cold_crash(&look->rig);
    free(look->has_page);
    free(look);
}
