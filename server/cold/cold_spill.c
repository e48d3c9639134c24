/*
 * Write-behind: blocks that are complete become records, maps say how far, tombstones that no more.
 *
 * Owner: service. Thread: loop only.
 */
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/base/log.h"
#include "server/cold/cold_spill.h"
#include "server/service.h"
#include "server/session/session_blocks.h"

/* How long new blocks gather before they are written, and maps after them. */
#define SPILL_MS 50

static const struct kvd_spill_tail NO_TAIL = {.id = {0, 0}};

static bool is_zero(struct kvd_cold_id id)
{
    return id.hi == 0 && id.lo == 0;
}

struct kvd_cold_id kvd_cold_new_id(struct kvd_cold_sessions *cold)
{
    return (struct kvd_cold_id){.hi = cold->id_prefix, .lo = ++cold->id_last};
}

void kvd_spill_arm(struct kvd_cold_sessions *cold, uint64_t ms)
{
    struct kvd_io *io = cold->service->io;

    if (!cold->is_armed || ms == 0) {
        cold->is_armed = true;
        io->ops->timer_start(cold->timer, ms, 0);
    }
}

void kvd_spill_forget(struct kvd_cold_sessions *cold, struct kvd_cold_record *record)
{
    cold->tier->ops->forget(cold->tier, record);
}

bool kvd_spill_queue_is_full(const struct kvd_cold_sessions *cold)
{
    struct kvd_cold_stats stats;

    if (cold->puts == 0) {
        return false;
    }
    cold->tier->ops->stats(cold->tier, &stats);
    return stats.queued_bytes > cold->service->config->memory_limit / 32;
}

/* Puts. */

struct kvd_spill_put *kvd_spill_create(
    struct kvd_session *session, enum kvd_cold_type type, void (*done)(struct kvd_cold_put *, int))
{
    struct kvd_spill_put *spill = calloc(1, sizeof(*spill));

    if (spill != NULL) {
        spill->cold = &session->service->cold;
        spill->session = kvd_session_ref(session);
        spill->put.type = type;
        spill->put.tenant_id = session->tenant_id;
        spill->put.id = session->cold.uid;
        spill->uid = session->cold.uid;
        spill->put.done = done;
    }
    return spill;
}

void kvd_spill_free(struct kvd_spill_put *spill)
{
    struct kvd_service *service = spill->cold->service;

    for (uint32_t i = 0; i < spill->page_count; i++) {
        kvd_page_unref(&service->pages, spill->pages[i]);
    }
    kvd_cold_copy_unref(service, spill->copy);
    kvd_cold_named_free(service, spill->named);
    if (spill->session != NULL) {
        kvd_session_unref(spill->session);
    }
    kvd_cold_bytes_fini(&spill->head);
    kvd_cold_bytes_fini(&spill->body);
    free(spill->pages);
    free(spill->vecs);
    free(spill);
}

/* Hand a put over; on failure it is freed. */
int kvd_spill_start(struct kvd_spill_put *spill)
{
    struct kvd_cold_sessions *cold = spill->cold;
    int err = KVARN_ENOMEM;

    if (!spill->head.has_failed && !spill->body.has_failed) {
        spill->put.head = spill->head.data;
        spill->put.head_bytes = spill->head.bytes;
        if (spill->body.bytes > 0) {
            spill->body_vec = (struct iovec){spill->body.data, spill->body.bytes};
            spill->put.vecs = &spill->body_vec;
            spill->put.vec_count = 1;
        }
        err = cold->tier->ops->put(cold->tier, &spill->put);
    }
    if (err != 0) {
        kvd_spill_free(spill);
        return err;
    }
    cold->puts++;
    return 0;
}

bool kvd_spill_is_current(const struct kvd_spill_put *spill)
{
    const struct kvd_session_cold *sc = &spill->session->cold;

    return sc->uid.lo == spill->uid.lo && sc->uid.hi == spill->uid.hi && !sc->is_buried;
}

void kvd_spill_end(struct kvd_spill_put *spill)
{
    struct kvd_cold_sessions *cold = spill->cold;

    KVARN_ASSERT(cold->puts > 0);
    cold->puts--;
    kvd_spill_free(spill);
    kvd_spill_arm(cold, cold->is_flushing ? 0 : SPILL_MS);
}

/* Shapes and sessions. */

static void shape_done(struct kvd_cold_put *put, int err)
{
    struct kvd_spill_put *spill = (struct kvd_spill_put *)(void *)put;
    uint32_t bit = spill->block_idx;

    if (err != 0) {
        spill->cold->shape_is_put[bit / 8] &= (uint8_t) ~(1u << bit % 8);
    }
    kvd_spill_end(spill);
}

static void shape_put(struct kvd_session *session)
{
    struct kvd_cold_sessions *cold = &session->service->cold;
    uint32_t bit = session->shape->id;

    if ((cold->shape_is_put[bit / 8] >> bit % 8 & 1) != 0) {
        return;
    }
    struct kvd_spill_put *spill = kvd_spill_create(session, KVD_COLD_SHAPE, shape_done);
    if (spill == NULL) {
        return;
    }
    spill->block_idx = bit;
    spill->put.id = kvd_cold_fingerprint_id(session->shape->fingerprint);
    kvd_cold_shape_encode(&spill->head, session->shape);
    if (kvd_spill_start(spill) == 0) {
        cold->shape_is_put[bit / 8] |= (uint8_t)(1u << bit % 8);
    }
}

static void session_done(struct kvd_cold_put *put, int err)
{
    struct kvd_spill_put *spill = (struct kvd_spill_put *)(void *)put;
    struct kvd_session_cold *sc = &spill->session->cold;

    if (err == 0 && kvd_spill_is_current(spill)) {
        kvd_spill_forget(spill->cold, sc->session_rec); /* in doubt: kvd_session_cold.is_doubted */
        sc->session_rec = put->record;
    } else {
        kvd_spill_forget(spill->cold, put->record);
    }
    sc->is_session_put = err == 0;
    if (err != 0) {
        kvd_cold_note(spill->session);
    }
    kvd_spill_end(spill);
}

int kvd_spill_session(struct kvd_session *session)
{
    struct kvd_session_cold *sc = &session->cold;
    struct kvd_cold_session_head head = {
        .encoder = session->options.encoder, .seal_lag = session->options.seal_lag};

    shape_put(session); /* again, if that failed before */
    if (sc->is_session_put) {
        return 0;
    }
    if (is_zero(sc->uid)) {
        sc->uid = kvd_cold_new_id(&session->service->cold);
    }
    memcpy(head.fingerprint, session->shape->fingerprint, sizeof(head.fingerprint));
    strncpy(head.name, session->name, sizeof(head.name) - 1);
    struct kvd_spill_put *spill = kvd_spill_create(session, KVD_COLD_SESSION, session_done);
    if (spill == NULL) {
        return KVARN_ENOMEM;
    }
    kvd_cold_session_encode(&spill->head, &head);
    int err = kvd_spill_start(spill);
    sc->is_session_put = err == 0;
    return err;
}

/* Pages. */

/* A block is complete: nothing in it will change. */
static bool is_complete(const struct kvd_session *session, uint32_t block_idx)
{
    const struct kvd_block *block = kvd_session_block(session, block_idx);
    bool is_sink = block_idx < kvd_session_sink_blocks(session);
    uint64_t end = (uint64_t)(block_idx + 1) * session->shape->group;

    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        const struct kvd_layer *ly = &session->layers[i];
        if (ly->length < end || (!is_sink && block_idx >= ly->sealed_blocks)) {
            return false;
        }
        bool has_rows = block != NULL && block->rows != NULL && block->rows->ids[i] != 0;
        if (!is_sink && has_rows) {
            return false; /* its seal is on its way */
        }
    }
    return true;
}

static void page_done(struct kvd_cold_put *put, int err)
{
    struct kvd_spill_put *spill = (struct kvd_spill_put *)(void *)put;
    struct kvd_session_cold *sc = &spill->session->cold;

    if (err == 0) {
        spill->copy->record = put->record;
        kvd_metrics_add(&spill->cold->service->metrics, KVD_METRIC_cold_blocks_written, 1);
    } else {
        spill->copy->has_failed = true;
        if (sc->next_block > spill->block_idx) {
            sc->next_block = spill->block_idx; /* tried again, but for a stop: that ends there */
        }
    }
    kvd_spill_end(spill);
}

/* The pages of a block, with a reference each, and what the head says of them. */
static void page_gather(struct kvd_spill_put *spill, const struct kvd_session *session,
    const struct kvd_block *block, struct kvd_cold_page_head *head)
{
    for (uint32_t i = 0; i < block->layer_count; i++) {
        bool is_sink = spill->block_idx < kvd_session_sink_blocks(session);
        const struct kvd_page_store *pages = &session->service->pages;
        struct kvd_page *page =
            is_sink ? kvd_block_rows(pages, block, i) : kvd_block_tiles(pages, block, i);
        head->layers[i] = (struct kvd_cold_page_layer){0};
        if (page == NULL) {
            continue;
        }
        head->layers[i] =
            (struct kvd_cold_page_layer){.kind = is_sink ? KVD_COLD_PAGE_ROWS : KVD_COLD_PAGE_TILES,
                .encoder = page->encoder,
                .checksum = is_sink ? 0 : kvd_page_checksum(page)};
        spill->vecs[spill->page_count] = (struct iovec){kvd_page_data(page), kvd_page_bytes(page)};
        spill->pages[spill->page_count++] = kvd_page_ref(page);
    }
}

static int page_put(struct kvd_session *session, uint32_t block_idx, struct kvd_block *block)
{
    struct kvd_cold_sessions *cold = &session->service->cold;
    struct kvd_cold_page_head *head = calloc(1, sizeof(*head));
    struct kvd_spill_put *spill =
        head == NULL ? NULL : kvd_spill_create(session, KVD_COLD_PAGE, page_done);
    struct kvd_cold_copy *copy =
        spill == NULL ? NULL : kvd_cold_copy_create(session->service, kvd_cold_new_id(cold));
    int err = KVARN_ENOMEM;

    if (copy != NULL) {
        spill->block_idx = block_idx;
        spill->put.id = copy->id;
        spill->vecs = calloc(block->layer_count, sizeof(*spill->vecs));
        spill->pages = calloc(block->layer_count, sizeof(struct kvd_page *));
        spill->copy = kvd_cold_copy_ref(copy);
    }
    if (copy != NULL && spill->vecs != NULL && spill->pages != NULL) {
        memcpy(head->fingerprint, session->shape->fingerprint, sizeof(head->fingerprint));
        head->block_idx = block_idx;
        head->layer_count = block->layer_count;
        page_gather(spill, session, block, head);
        kvd_cold_page_encode(&spill->head, head);
        spill->put.vecs = spill->vecs;
        spill->put.vec_count = spill->page_count;
        err = kvd_spill_start(spill);
    } else if (spill != NULL) {
        kvd_spill_free(spill);
    }
    free(head);
    if (err != 0) {
        kvd_cold_copy_unref(session->service, copy);
        return err;
    }
    kvd_cold_copy_unref(session->service, block->cold); /* one that failed */
    block->cold = copy;
    return 0;
}

/*
 * While something is pending a block may be about to change, and who changes it counts on what it
 * saw of references.
 */
int kvd_spill_blocks(struct kvd_session *session)
{
    struct kvd_session_cold *sc = &session->cold;

    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        if (kvd_session_pending(session, i) > 0) {
            return KVARN_ERETRY_LATER;
        }
    }

    while (
        sc->next_block < kvd_session_block_count(session) && is_complete(session, sc->next_block)) {
        struct kvd_block *block = kvd_block_table_at(&session->table, sc->next_block);
        bool is_put = block == NULL || (block->cold != NULL && !block->cold->has_failed);
        if (!is_put && block->state != KVD_BLOCK_RESIDENT) {
            return KVARN_EMISS; /* it is gone: a map cannot go on behind it */
        }
        bool is_over = session->service->cold.is_flushing && !is_put && block->cold != NULL;
        if (is_over) {
            return KVARN_EIO; /* it failed before, and a stop does not wait for the disk to heal */
        }
        int err = is_put ? 0 : page_put(session, sc->next_block, block);
        if (err != 0) {
            return err;
        }
        sc->next_block++;
    }
    return 0;
}

uint32_t kvd_spill_durable_blocks(const struct kvd_session *session)
{
    uint32_t count = session->cold.mapped_blocks;

    while (count < session->cold.next_block && count < kvd_session_block_count(session)) {
        const struct kvd_block *block = kvd_session_block(session, count);
        if (block != NULL && !kvd_cold_copy_is_durable(block->cold)) {
            break;
        }
        count++;
    }
    return count;
}

uint32_t kvd_spill_stored_blocks(const struct kvd_session *session)
{
    uint32_t count = kvd_spill_durable_blocks(session);

    while (count < kvd_session_block_count(session)) {
        const struct kvd_block *block = kvd_session_block(session, count);
        if (block == NULL || block->state == KVD_BLOCK_RESIDENT ||
            !kvd_cold_copy_is_durable(block->cold)) {
            break;
        }
        count++;
    }
    return count;
}

/* Maps. */

uint32_t kvd_spill_mappable_blocks(const struct kvd_session *session, uint32_t count)
{
    uint64_t length = (uint64_t)count * session->shape->group;

    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        uint64_t window = session->shape->layers[i].window;
        uint64_t kept_first = (uint64_t)session->layers[i].dropped_blocks * session->shape->group;
        if (window > 0 && kept_first > (length < window ? 0 : length - window + 1)) {
            return 0;
        }
    }
    return count;
}

/* Of two maps the later holds, whichever became durable first. */
static void map_replace(struct kvd_spill_put *spill)
{
    struct kvd_cold_sessions *cold = spill->cold;
    struct kvd_session_cold *sc = &spill->session->cold;
    struct kvd_cold_record *record = spill->put.record;
    struct kvd_cold_info info = {0};
    struct kvd_cold_info old = {0};

    cold->tier->ops->info(record, &info);
    if (sc->map_rec != NULL) {
        cold->tier->ops->info(sc->map_rec, &old);
    }
    bool is_later = info.sequence > old.sequence;
    kvd_spill_forget(cold, is_later ? sc->map_rec : record);
    sc->map_rec = is_later ? record : sc->map_rec;
    if (is_later) {
        sc->durable_tokens = (uint32_t)spill->committed;
        kvd_tail_mapped(spill);
    }
}

static void map_done(struct kvd_cold_put *put, int err)
{
    struct kvd_spill_put *spill = (struct kvd_spill_put *)(void *)put;
    struct kvd_session_cold *sc = &spill->session->cold;

    KVARN_ASSERT(sc->puts > 0);
    sc->puts--;
    if (err != 0) {
        sc->mapped_blocks = 0; /* it is tried again */
        kvd_cold_note(spill->session);
    } else if (!kvd_spill_is_current(spill)) {
        kvd_spill_forget(spill->cold, put->record);
    } else {
        map_replace(spill);
        sc->is_doubted = sc->is_doubted && !sc->is_session_put;
        kvd_cold_named_settle(spill->session, spill->named_round);
        if (sc->puts == 0) {
            sc->mapped_tokens = (uint32_t)spill->tokens;
        }
    }
    kvd_spill_forget(spill->cold, spill->tail.record); /* nothing names it */
    spill->tail.record = NULL;
    spill->cold->has_lost = spill->cold->has_lost || (spill->is_final && err != 0);
    if (spill->is_tail_out) {
        kvd_tail_left(spill->session, spill);
    }
    void (*done)(void *ctx, int err) = spill->done;
    void *ctx = spill->ctx;
    kvd_spill_end(spill);
    if (done != NULL) {
        done(ctx, err);
    }
}

/* What a map of the first `count` blocks says; all that there is if it goes with a tail. */
static uint64_t map_fill(const struct kvd_session *session, uint32_t count,
    struct kvd_cold_id tail_id, struct kvd_cold_map_head *head)
{
    uint64_t stored = (uint64_t)count * session->shape->group;
    uint64_t longest = 0;

    head->epoch = session->epoch;
    head->tail_id = tail_id;
    head->block_count = count;
    head->layer_count = session->shape->layer_count;
    for (uint32_t i = 0; i < head->layer_count; i++) {
        const struct kvd_layer *ly = &session->layers[i];
        bool is_all = !is_zero(tail_id) || ly->length < stored;
        head->layers[i].length = is_all ? ly->length : stored;
        /* With a tail go the tiles of layers that are ahead of others. */
        uint32_t most = !is_zero(tail_id) ? UINT32_MAX : count;
        head->layers[i].sealed_blocks = ly->sealed_blocks < most ? ly->sealed_blocks : most;
        head->layers[i].dropped_blocks = ly->dropped_blocks < most ? ly->dropped_blocks : most;
        longest = head->layers[i].length > longest ? head->layers[i].length : longest;
    }
    return longest;
}

static uint64_t map_committed(const struct kvd_cold_map_head *head)
{
    uint64_t shortest = UINT64_MAX;

    for (uint32_t i = 0; i < head->layer_count; i++) {
        shortest = head->layers[i].length < shortest ? head->layers[i].length : shortest;
    }
    return shortest;
}

struct kvd_spill_put *kvd_spill_map_create(
    struct kvd_session *session, uint32_t count, const struct kvd_spill_tail *tail)
{
    struct kvd_cold_map_head *head = calloc(1, sizeof(*head));
    struct kvd_spill_put *spill =
        head == NULL ? NULL : kvd_spill_create(session, KVD_COLD_MAP, map_done);

    if (spill != NULL && kvd_cold_named_set(session, count, &spill->named_round) != 0) {
        kvd_spill_free(spill);
        spill = NULL;
    }
    if (spill != NULL) {
        spill->tail = *tail;
        spill->tail.record = NULL; /* the caller's, until the map is on its way */
        spill->tokens = map_fill(session, count, tail->id, head);
        spill->committed = map_committed(head);
        kvd_cold_map_encode(&spill->head, head);
        for (uint32_t b = 0; b < count; b++) {
            const struct kvd_block *block = kvd_session_block(session, b);
            struct kvd_cold_id none = {0};
            kvd_cold_id_encode(&spill->body, block == NULL ? none : block->cold->id);
        }
    }
    free(head);
    return spill;
}

int kvd_spill_map_start(struct kvd_session *session, struct kvd_spill_put *spill, uint32_t count)
{
    struct kvd_session_cold *sc = &session->cold;
    uint64_t tokens;

    if (spill == NULL) {
        return KVARN_ENOMEM;
    }
    tokens = spill->tokens;
    int err = kvd_spill_start(spill);
    if (err == 0) {
        sc->puts++;
        sc->mapped_blocks = count;
        if (tokens > sc->mapped_tokens) {
            sc->mapped_tokens = (uint32_t)tokens;
        }
    }
    return err;
}

/* Write what a session has new. Returns whether there is more to do later. */
static bool session_spill(struct kvd_session *session)
{
    struct kvd_session_cold *sc = &session->cold;
    bool is_out = session->is_dropped || sc->is_given_up;
    int err = is_out ? KVARN_ENOT_FOUND : kvd_spill_blocks(session);
    uint32_t durable = kvd_spill_durable_blocks(session);

    if (sc->is_buried && !session->is_dropped) {
        return true; /* what is put after the tombstone would outlive it */
    }
    if (sc->is_tail_wanted && kvd_tail_spill(session, err, durable)) {
        return true;
    }
    if (err == KVARN_ENOT_FOUND || err == KVARN_ETOO_LARGE) {
        return false;
    }
    struct kvd_spill_tail tail = sc->is_tail_cold ? kvd_tail_own(session) : NO_TAIL;
    uint32_t count =
        sc->is_tail_cold ? sc->tail_first : kvd_spill_mappable_blocks(session, durable);
    /* A tier that is full keeps what this session's map names and the session no more. */
    bool is_relief = err == KVARN_ENOSPC && sc->is_session_put && !sc->is_tail_cold &&
                     kvd_cold_named_is_stale(session);
    bool is_unsaid = !is_zero(sc->uid) && (sc->is_doubted || !sc->is_session_put);
    bool is_due = count > sc->mapped_blocks || is_relief || is_unsaid;
    if (is_due && sc->puts == 0 && kvd_spill_session(session) == 0) {
        struct kvd_spill_put *map = kvd_spill_map_create(session, count, &tail);
        if (map != NULL && is_relief) {
            map->put.flags = KVD_COLD_BARRIER; /* for which there is room */
        }
        err = kvd_spill_map_start(session, map, count);
    }
    bool has_more = err != 0 && err != KVARN_EMISS;
    return has_more || sc->is_doubted || sc->next_block > sc->mapped_blocks;
}

/* Cuts. */

/* Some block is still in the TAIL that the last start found, and nowhere else. */
static bool has_cold_tail(const struct kvd_session *session)
{
    for (uint32_t b = session->missing_first; b < session->missing_last; b++) {
        const struct kvd_block *block = kvd_session_block(session, b);
        if (block != NULL && block->state == KVD_BLOCK_COLD && block->cold == NULL) {
            return true;
        }
    }
    return false;
}

int kvd_cold_cut(struct kvd_session *session, void (*done)(void *ctx, int err), void *ctx)
{
    struct kvd_cold_sessions *cold = &session->service->cold;
    struct kvd_session_cold *sc = &session->cold;
    uint64_t longest = 0;
    uint32_t count = 0;

    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        uint64_t length = session->layers[i].length;
        longest = length > longest ? length : longest;
    }
    uint64_t shortest = kvd_session_length(session);
    count = (uint32_t)(shortest / session->shape->group);
    sc->next_block = sc->next_block < count ? sc->next_block : count;
    sc->mapped_blocks = sc->mapped_blocks < count ? sc->mapped_blocks : count;
    sc->is_tail_cold = sc->is_tail_cold && has_cold_tail(session);
    if (cold->tier == NULL || is_zero(sc->uid) || sc->mapped_tokens <= shortest) {
        return KVD_COLD_NOTHING;
    }
    uint32_t durable = kvd_spill_mappable_blocks(session, kvd_spill_durable_blocks(session));
    struct kvd_spill_put *spill = kvd_spill_map_create(session, durable, &NO_TAIL);
    if (spill == NULL) {
        return KVARN_ENOMEM;
    }
    spill->put.flags = KVD_COLD_BARRIER;
    spill->done = done;
    spill->ctx = ctx;
    return kvd_spill_map_start(session, spill, durable);
}

/* What drives it. */

void kvd_cold_timer_cb(void *ctx)
{
    struct kvd_cold_sessions *cold = ctx;
    struct kvd_cold_session_list later = TAILQ_HEAD_INITIALIZER(later);
    struct kvd_session *session;

    cold->is_armed = false;
    kvd_tombstones_retry(cold);
    kvd_cold_retry_loads(cold);
    kvd_cold_make_room(cold);
    while ((session = TAILQ_FIRST(&cold->dirty)) != NULL) {
        TAILQ_REMOVE(&cold->dirty, session, cold.dirty_link);
        if (!cold->is_flushing && session_spill(session)) {
            TAILQ_INSERT_TAIL(&later, session, cold.dirty_link);
        } else {
            session->cold.is_dirty = false;
            kvd_session_unref(session);
        }
    }
    TAILQ_CONCAT(&cold->dirty, &later, cold.dirty_link);
    if (cold->is_flushing) {
        kvd_flush_pump(cold);
    } else if (!TAILQ_EMPTY(&cold->dirty)) {
        kvd_spill_arm(cold, SPILL_MS);
    }
}

bool kvd_cold_may_evict(const struct kvd_session *session, uint32_t block_idx)
{
    const struct kvd_cold_sessions *cold = &session->service->cold;
    const struct kvd_block *block = kvd_session_block(session, block_idx);
    struct kvd_cold_stats stats;

    if (cold->tier == NULL || session->name == NULL || block == NULL ||
        kvd_cold_copy_is_durable(block->cold) || kvd_tail_has(session, block_idx) ||
        session->cold.is_given_up) {
        return true;
    }
    cold->tier->ops->stats(cold->tier, &stats);
    return stats.is_resting;
}

void kvd_cold_changed(struct kvd_session *session, uint32_t block_idx)
{
    struct kvd_session_cold *sc = &session->cold;

    sc->next_block = sc->next_block < block_idx ? sc->next_block : block_idx;
    sc->mapped_blocks = sc->mapped_blocks < block_idx ? sc->mapped_blocks : block_idx;
    kvd_cold_note(session);
}

void kvd_cold_note(struct kvd_session *session)
{
    struct kvd_cold_sessions *cold = &session->service->cold;

    if (cold->tier == NULL || session->name == NULL || session->is_dropped ||
        session->cold.is_dirty || cold->is_flushing) {
        return;
    }
    session->cold.is_dirty = true;
    kvd_session_ref(session); /* not within the macro, which names its argument four times */
    TAILQ_INSERT_TAIL(&cold->dirty, session, cold.dirty_link);
    kvd_spill_arm(cold, SPILL_MS);
}
