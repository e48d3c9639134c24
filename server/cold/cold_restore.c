/*
 * The way back: pages of cold blocks are read when an operation needs them.
 *
 * Owner: service. Thread: loop only.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/append/seal.h"
#include "server/base/log.h"
#include "server/cold/cold_spill.h"
#include "server/cold/cold_usage.h"
#include "server/evict/session_evict.h"
#include "server/service.h"
#include "server/session/session_blocks.h"

/* Blocks that are read at once; more wait for their turn. */
#define LOADS_MAX 64

/* What no operation waits for leaves room for what one does. */
#define FETCHES_MAX (LOADS_MAX / 2)

/* A load that finds no memory is tried again after so long, for a second in all. */
#define ROOM_MS 20
#define ROOM_NS UINT64_C(1000000000)

/* A block, or a tail, on its way back. */
struct load {
    struct kvd_cold_get get; /* first */
    struct kvd_cold_sessions *cold;
    struct kvd_session *session;   /* ref; NULL: for the prefix index, which holds the block */
    const struct kvd_shape *shape; /* borrowed from the registry */
    struct kvd_block *block;       /* ref; NULL: a tail */
    struct kvd_cold_copy *copy;    /* ref */
    uint32_t block_idx;
    uint8_t *head; /* owned */
    struct kvd_cold_info info;
    struct kvd_cold_page_head *page_head; /* owned */
    struct kvd_cold_tail_head tail_head;  /* pages owned */
    struct kvd_page **pages;              /* owned array; refs */
    struct iovec *vecs;                   /* owned */
    uint32_t page_count, vec_count;
    enum kvd_cold_for want; /* whoever came first; others join */
};

static void load_free(struct load *load)
{
    struct kvd_service *service = load->cold->service;
    struct kvd_session_cold *sc =
        load->block == NULL && load->session != NULL ? &load->session->cold : NULL;

    if (sc != NULL && sc->doomed_tail == load->get.record && sc->doomed_tail != NULL) {
        load->cold->tier->ops->forget(load->cold->tier, sc->doomed_tail);
        sc->doomed_tail = NULL;
    }
    for (uint32_t i = 0; i < load->page_count; i++) {
        kvd_page_unref(&service->pages, load->pages[i]);
    }
    kvd_cold_copy_unref(service, load->copy);
    kvd_block_unref(service, load->block);
    if (load->session != NULL) {
        kvd_session_unref(load->session);
    }
    free(load->head);
    free(load->page_head);
    free(load->tail_head.pages);
    free(load->pages);
    free(load->vecs);
    free(load);
}

/* Kick all that wait. `loader` (NULL: nobody) has its blocks counted as they came. */
static void waiting_kick(struct kvd_cold_sessions *cold, const struct kvd_session *loader)
{
    struct kvd_cold_session_list waiting = TAILQ_HEAD_INITIALIZER(waiting);
    struct kvd_session *session;

    kvd_prefetches_run(&cold->service->prefetches); /* before operations change what came */
    if (cold->is_flushing) {
        kvd_spill_arm(cold, 0); /* the stop may have waited for this load alone */
    }
    TAILQ_CONCAT(&waiting, &cold->waiting, cold.wait_link);
    while ((session = TAILQ_FIRST(&waiting)) != NULL) {
        TAILQ_REMOVE(&waiting, session, cold.wait_link);
        session->cold.is_waiting = false;
        if (session != loader) {
            kvd_session_missing_shrink(session);
            kvd_session_missing_count(session);
        }
        kvd_evictor_came_back(session);
        kvd_session_kick(session);
        kvd_session_unref(session);
    }
}

void kvd_cold_kick_waiting(struct kvd_cold_sessions *cold)
{
    waiting_kick(cold, NULL);
}

/* A load is over, well or not; those that wait are kicked, unless they are to wait on. */
static void load_end(struct load *load, bool is_kicking)
{
    struct kvd_cold_sessions *cold = load->cold;
    struct kvd_session *session = load->session == NULL ? NULL : kvd_session_ref(load->session);

    cold->loads--;
    load_free(load);
    if (session != NULL) {
        kvd_session_missing_shrink(session);
    }
    if (is_kicking) {
        waiting_kick(cold, session);
    }
    if (session != NULL) {
        kvd_session_unref(session);
    }
}

void kvd_cold_wait(struct kvd_session *session)
{
    struct kvd_cold_sessions *cold = &session->service->cold;

    if (!session->cold.is_waiting) {
        session->cold.is_waiting = true;
        kvd_session_ref(session); /* not within the macro, which names its argument four times */
        TAILQ_INSERT_TAIL(&cold->waiting, session, cold.wait_link);
    }
}

void kvd_cold_block_lost(struct kvd_block *block)
{
    block->state = KVD_BLOCK_MISSING;
    block->miss_reason = KVARND__MISS_REASON__MISS_CHECKSUM;
}

void kvd_cold_tail_lost(struct kvd_session *session)
{
    for (uint32_t b = session->missing_first; b < session->missing_last; b++) {
        struct kvd_block *block = kvd_block_table_at(&session->table, b);
        if (block != NULL && block->state == KVD_BLOCK_COLD && block->cold == NULL) {
            kvd_cold_block_lost(block);
        }
    }
    session->cold.is_tail_cold = false;
}

/*
 * No memory for what an operation waits for: while others are being evicted it waits on. Not for
 * ever: what goes may not be what is needed.
 */
static bool room_is_coming(const struct load *load)
{
    struct kvd_cold_sessions *cold = load->cold;
    struct kvd_session_cold *sc = &load->session->cold;
    uint64_t now_ns = cold->service->io->ops->now_ns(cold->service->io);

    if (sc->room_until_ns == 0) {
        sc->room_until_ns = now_ns + ROOM_NS;
    }
    if (now_ns >= sc->room_until_ns || !kvd_evictor_want(cold->service, load->info.body_bytes)) {
        sc->room_until_ns = 0;
        return false;
    }
    if (!cold->is_short) {
        cold->is_short = true;
        cold->short_ns = now_ns + ROOM_MS * UINT64_C(1000000);
        kvd_spill_arm(cold, ROOM_MS);
    }
    return true;
}

void kvd_cold_retry_loads(struct kvd_cold_sessions *cold)
{
    const struct kvd_io *io = cold->service->io;

    if (!cold->is_short) {
        return;
    }
    if (io->ops->now_ns(cold->service->io) < cold->short_ns) {
        kvd_spill_arm(cold, ROOM_MS);
        return;
    }
    cold->is_short = false;
    kvd_cold_kick_waiting(cold);
}

static void load_fail(struct load *load, int err)
{
    struct kvd_cold_sessions *cold = load->cold;
    bool is_memory = err == KVARN_ENOMEM || err == KVARN_ENOSPC;
    bool has_patience = is_memory && load->want == KVD_COLD_FOR_OPERATION && room_is_coming(load);

    if (is_memory && load->want == KVD_COLD_FOR_OPERATION) {
        /* Operations that joined somebody else's load try for themselves. */
        load->session->cold.has_no_room |= !has_patience;
    } else if (!is_memory) {
        kvd_metrics_add(&cold->service->metrics, KVD_METRIC_cold_loads_failed, 1);
        kvd_cold_load_failed_say(cold, load->session, load->block_idx, err);
    }
    if (load->block != NULL && load->block->state == KVD_BLOCK_LOADING) {
        kvd_block_trim(cold->service, load->block);
        load->block->state = KVD_BLOCK_COLD;
        if (!is_memory) {
            kvd_cold_block_lost(load->block);
        }
    }
    if (load->block == NULL && load->session != NULL) {
        load->session->cold.is_tail_loading = false;
        if (!is_memory) {
            kvd_cold_tail_lost(load->session);
        }
    }
    load_end(load, !has_patience);
}

/* Take a page; others go for it if need be. */
static int page_take(
    const struct load *load, size_t bytes, enum kvd_page_class page_class, struct kvd_page **ret)
{
    struct kvd_service *service = load->cold->service;
    uint32_t tenant_id = load->shape->tenant_id;
    int err = kvd_page_take(&service->pages, tenant_id, bytes, page_class, ret);

    if (err == KVARN_ENOSPC && load->want != KVD_COLD_FOR_LATER &&
        kvd_evictor_make_room(service, load->session, bytes)) {
        err = kvd_page_take(&service->pages, tenant_id, bytes, page_class, ret);
    }
    return err;
}

/* Room for pages of both kinds: putting them in place cannot fail. */
static int block_make_room(const struct load *load, struct kvd_block *block)
{
    int err = kvd_block_want_rows(load->cold->service, block);

    return err != 0 ? err : kvd_block_want_tiles(load->cold->service, block);
}

static int pages_alloc(struct load *load, uint32_t count, uint32_t vec_count)
{
    load->pages = calloc(count > 0 ? count : 1, sizeof(struct kvd_page *));
    load->vecs = calloc(vec_count > 0 ? vec_count : 1, sizeof(*load->vecs));
    return load->pages == NULL || load->vecs == NULL ? KVARN_ENOMEM : 0;
}

/* A page for tiles (0 filled tokens) or rows of a layer, and where of the body goes to it. */
static int page_add(struct load *load, const struct kvd_layer_shape *ls, uint32_t filled_tokens,
    enum kvd_page_class page_class)
{
    struct kvd_page *page = NULL;
    size_t bytes = filled_tokens == 0 ? ls->tile_page_bytes : ls->rows_page_bytes;
    int err = page_take(load, bytes, page_class, &page);

    if (err == 0) {
        load->vec_count += kvd_cold_page_vecs(
            ls, kvd_page_data(page), filled_tokens, load->vecs + load->vec_count);
        load->pages[load->page_count++] = page;
    }
    return err;
}

static int body_check(const struct load *load)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < load->vec_count; i++) {
        bytes += load->vecs[i].iov_len;
    }
    return bytes == load->info.body_bytes ? 0 : KVARN_ECORRUPT;
}

/* Second step: the body, straight into pages. */
static int body_get(struct load *load, void (*done)(struct kvd_cold_get *get, int err))
{
    struct kvd_cold *tier = load->cold->tier;
    int err = body_check(load);

    if (err != 0) {
        return err;
    }
    load->get.head = NULL;
    load->get.vecs = load->vec_count > 0 ? load->vecs : NULL;
    load->get.vec_count = load->vec_count;
    load->get.done = done;
    return tier->ops->get(tier, &load->get);
}

/* Blocks. */

static void block_install(struct load *load)
{
    struct kvd_block *block = load->block;
    uint32_t page_idx = 0;

    for (uint32_t i = 0; i < block->layer_count; i++) {
        const struct kvd_cold_page_layer *from = &load->page_head->layers[i];
        if (from->kind == KVD_COLD_PAGE_NONE) {
            continue;
        }
        struct kvd_page *page = kvd_page_ref(load->pages[page_idx++]);
        bool is_kept =
            load->session == NULL || load->block_idx >= load->session->layers[i].dropped_blocks;
        if (!is_kept) {
            kvd_page_unref(&load->cold->service->pages, page);
        } else if (from->kind == KVD_COLD_PAGE_TILES) {
            kvd_page_set_checksum(page, from->checksum);
            kvd_page_set_encoder(page, (enum kvarn_encoder)from->encoder);
            kvd_block_set_tiles(block, i, page);
        } else {
            kvd_page_set_filled(page, load->shape->group);
            kvd_block_set_rows(block, i, page);
        }
    }
    kvd_block_trim(load->cold->service, block);
    block->state = KVD_BLOCK_RESIDENT;
    if (load->session != NULL) {
        load->session->cold.room_until_ns = 0;
        kvd_session_missing_note(load->session, load->block_idx);
        kvd_prefix_index_renew(&load->cold->service->prefixes, load->shape, load->block_idx, block);
    }
}

static void block_body_cb(struct kvd_cold_get *get, int err)
{
    struct load *load = (struct load *)(void *)get;
    struct kvd_cold_sessions *cold = load->cold;

    if (err != 0) {
        load_fail(load, err);
        return;
    }
    /* It may have been cut off or evicted again meanwhile. */
    if (load->block->state == KVD_BLOCK_LOADING) {
        block_install(load);
        kvd_metrics_add(&cold->service->metrics, KVD_METRIC_cold_blocks_loaded, 1);
        if (load->want == KVD_COLD_FOR_LATER) {
            kvd_metrics_add(&cold->service->metrics, KVD_METRIC_cold_blocks_read_ahead, 1);
        }
    }
    load_end(load, true);
}

static int block_head_read(struct load *load)
{
    const struct kvd_shape *shape = load->shape;

    load->page_head = calloc(1, sizeof(*load->page_head));
    if (load->page_head == NULL || pages_alloc(load, shape->layer_count, shape->layer_count) != 0) {
        return KVARN_ENOMEM;
    }
    int err = kvd_cold_page_decode(load->head, load->info.head_bytes, load->page_head);
    if (err != 0) {
        return err;
    }
    const struct kvd_cold_page_head *head = load->page_head;
    if (memcmp(head->fingerprint, shape->fingerprint, sizeof(head->fingerprint)) != 0 ||
        head->block_idx != load->block_idx || head->layer_count != shape->layer_count) {
        return KVARN_ECORRUPT; /* SEMANTICS.md 14: shape, layer and block must match */
    }
    err = block_make_room(load, load->block);
    for (uint32_t i = 0; i < head->layer_count && err == 0; i++) {
        const struct kvd_layer_shape *ls = &shape->layers[i];
        if (head->layers[i].kind == KVD_COLD_PAGE_TILES) {
            err = page_add(load, ls, 0, KVD_PAGE_TILES);
        } else if (head->layers[i].kind == KVD_COLD_PAGE_ROWS) {
            err = page_add(load, ls, shape->group, KVD_PAGE_SINK);
        }
    }
    return err;
}

static void block_head_cb(struct kvd_cold_get *get, int err)
{
    struct load *load = (struct load *)(void *)get;

    err = err != 0 ? err : block_head_read(load);
    err = err != 0 ? err : body_get(load, block_body_cb);
    if (err != 0) {
        load_fail(load, err);
    }
}

/*
 * First step: the head, which says what the body holds. The load has its session, if there is one.
 * Returns 0 or KVARN_ENOMEM.
 */
static int load_start(struct load *load, struct kvd_cold_record *record,
    void (*done)(struct kvd_cold_get *get, int err))
{
    struct kvd_cold_sessions *cold = load->cold;

    cold->tier->ops->info(record, &load->info);
    load->head = malloc(load->info.head_bytes + 1);
    load->get = (struct kvd_cold_get){.record = record, .head = load->head, .done = done};
    int err = load->head == NULL ? KVARN_ENOMEM : cold->tier->ops->get(cold->tier, &load->get);
    if (err != 0) {
        load_free(load);
        return err;
    }
    cold->loads++;
    return 0;
}

/* A load for a session (NULL: for the prefix index). NULL: no memory. */
static struct load *load_create(struct kvd_cold_sessions *cold, struct kvd_session *session,
    const struct kvd_shape *shape, enum kvd_cold_for want)
{
    struct load *load = calloc(1, sizeof(*load));

    if (load != NULL) {
        load->cold = cold;
        load->session = session == NULL ? NULL : kvd_session_ref(session);
        load->shape = shape;
        load->want = want;
    }
    return load;
}

static int block_load_with(struct load *load, uint32_t block_idx, struct kvd_block *block)
{
    if (load == NULL) {
        return KVARN_ENOMEM;
    }
    load->block = kvd_block_ref(block);
    load->block_idx = block_idx;
    load->copy = kvd_cold_copy_ref(block->cold);
    int err = load_start(load, block->cold->record, block_head_cb);
    if (err == 0) {
        block->state = KVD_BLOCK_LOADING;
    }
    return err;
}

static int block_load(struct kvd_session *session, uint32_t block_idx, struct kvd_block *block,
    enum kvd_cold_for want)
{
    struct kvd_cold_sessions *cold = &session->service->cold;

    return block_load_with(load_create(cold, session, session->shape, want), block_idx, block);
}

/* Tails. */

static bool is_of_tail(const struct kvd_block *block)
{
    return block != NULL && block->state == KVD_BLOCK_COLD && block->cold == NULL;
}

/* The block of a page of the tail gets it; a session without its tail is not copied. */
static void tail_page_install(struct load *load, uint32_t page_idx)
{
    struct kvd_session *session = load->session;
    const struct kvd_cold_tail_page *from = &load->tail_head.pages[page_idx];
    struct kvd_block *block = from->block_idx < kvd_session_block_count(session)
                                  ? kvd_block_table_at(&session->table, from->block_idx)
                                  : NULL;

    if (!is_of_tail(block)) {
        return; /* cut off meanwhile */
    }
    KVARN_ASSERT(block->refs == 1);
    struct kvd_page *page = kvd_page_ref(load->pages[page_idx]);
    if (from->filled_tokens == 0) {
        kvd_page_set_checksum(page, from->checksum);
        kvd_page_set_encoder(page, (enum kvarn_encoder)from->encoder);
        kvd_block_set_tiles(block, from->layer, page);
        return;
    }
    kvd_page_set_filled(page, from->filled_tokens);
    kvd_block_set_rows(block, from->layer, page);
    if (from->block_idx >= kvd_session_sink_blocks(session) && session->work != NULL) {
        session->work->layers[from->layer].tail_pages++;
    }
}

static bool has_tiles(const struct load *load, uint32_t block_idx, uint32_t layer)
{
    for (uint32_t i = 0; i < load->tail_head.page_count; i++) {
        const struct kvd_cold_tail_page *page = &load->tail_head.pages[i];
        if (page->block_idx == block_idx && page->layer == layer) {
            return page->filled_tokens == 0;
        }
    }
    return false;
}

/*
 * Tiles of the tail's blocks are reserved, as they were when layers entered them: before the body
 * is read, so that putting it in place cannot fail. What was reserved stays with the block.
 */
static int tail_reserve(struct load *load, uint32_t block_idx, struct kvd_block *block)
{
    const struct kvd_session *session = load->session;

    int err = block_make_room(load, block);

    for (uint32_t i = 0; i < block->layer_count && err == 0; i++) {
        struct kvd_page *page = NULL;
        if (block_idx < kvd_session_sink_blocks(session) || block->tiles[i] != 0 ||
            has_tiles(load, block_idx, i)) {
            continue;
        }
        err = page_take(load, session->shape->layers[i].tile_page_bytes, KVD_PAGE_TILES, &page);
        if (err == 0) {
            kvd_block_set_tiles(block, i, page);
        }
    }
    return err;
}

static void tail_install(struct load *load)
{
    struct kvd_session *session = load->session;

    for (uint32_t i = 0; i < load->page_count; i++) {
        tail_page_install(load, i);
    }
    for (uint32_t b = session->missing_first; b < session->missing_last; b++) {
        struct kvd_block *block = kvd_block_table_at(&session->table, b);
        if (is_of_tail(block)) {
            kvd_block_trim(session->service, block);
            block->state = KVD_BLOCK_RESIDENT;
            kvd_session_missing_note(session, b);
        }
    }
    session->cold.is_tail_cold = false;
    if (session->cold.is_tail_named) {
        /* Until it is changed it can go again at once. */
        session->cold.tail_epoch = session->epoch;
        session->cold.tail_token_sum = kvd_tail_token_sum(session);
    }
    kvd_metrics_add(&session->service->metrics, KVD_METRIC_cold_tails_loaded, 1);
}

/* False when the session was dropped or exchanged meanwhile, or is about to be. */
static bool is_tail_wanted(const struct load *load)
{
    return load->session->cold.tail_rec == load->get.record;
}

static void tail_end(struct load *load)
{
    load->session->cold.is_tail_loading = false;
    load_end(load, true);
}

static void tail_body_cb(struct kvd_cold_get *get, int err)
{
    struct load *load = (struct load *)(void *)get;

    if (err != 0 && is_tail_wanted(load)) {
        load_fail(load, err);
        return;
    }
    if (load->session->cold.is_tail_cold && is_tail_wanted(load)) {
        tail_install(load);
        load->session->cold.room_until_ns = 0;
    }
    tail_end(load);
}

/* Room for the pages that the head names. */
static int tail_pages_alloc(struct load *load)
{
    const struct kvd_shape *shape = load->session->shape;
    uint64_t vec_count = 0;

    for (uint32_t i = 0; i < load->tail_head.page_count; i++) {
        const struct kvd_cold_tail_page *page = &load->tail_head.pages[i];
        if (page->layer >= shape->layer_count || page->filled_tokens > shape->group) {
            return KVARN_ECORRUPT;
        }
        vec_count += 2 * (uint64_t)shape->layers[page->layer].kv_heads;
    }
    if (vec_count >= UINT32_MAX) {
        return KVARN_ECORRUPT;
    }
    return pages_alloc(load, load->tail_head.page_count, (uint32_t)vec_count);
}

static int tail_pages_take(struct load *load)
{
    const struct kvd_session *session = load->session;
    int err = tail_pages_alloc(load);

    for (uint32_t i = 0; i < load->tail_head.page_count && err == 0; i++) {
        const struct kvd_cold_tail_page *page = &load->tail_head.pages[i];
        bool is_sink = page->block_idx < kvd_session_sink_blocks(session);
        err = page_add(load, &session->shape->layers[page->layer], page->filled_tokens,
            page->filled_tokens == 0 ? KVD_PAGE_TILES
            : is_sink                ? KVD_PAGE_SINK
                                     : KVD_PAGE_TAIL);
    }
    return err == 0 && load->vec_count >= KVD_FILE_VECS_MAX ? KVARN_ECORRUPT : err;
}

static int tail_head_read(struct load *load)
{
    struct kvd_session *session = load->session;
    int err = kvd_cold_tail_decode(load->head, load->info.head_bytes, &load->tail_head);

    err = err != 0 ? err : tail_pages_take(load);
    for (uint32_t b = session->missing_first; b < session->missing_last && err == 0; b++) {
        struct kvd_block *block = kvd_block_table_at(&session->table, b);
        err = is_of_tail(block) ? tail_reserve(load, b, block) : 0;
    }
    return err;
}

static void tail_head_cb(struct kvd_cold_get *get, int err)
{
    struct load *load = (struct load *)(void *)get;

    if (!is_tail_wanted(load)) {
        tail_end(load);
        return;
    }
    err = err != 0 ? err : tail_head_read(load);
    err = err != 0 ? err : body_get(load, tail_body_cb);
    if (err != 0) {
        load_fail(load, err);
    }
}

static int tail_load(struct kvd_session *session, enum kvd_cold_for want)
{
    struct load *load = load_create(&session->service->cold, session, session->shape, want);

    if (load == NULL) {
        return KVARN_ENOMEM;
    }
    int err = load_start(load, session->cold.tail_rec, tail_head_cb);
    session->cold.is_tail_loading = err == 0;
    return err;
}

/* What operations need. */

static struct kvd_block_range need_of(
    const struct kvd_session *session, const struct kvd_session_op *op)
{
    uint32_t first = op->block_first;
    uint32_t last = op->block_last;

    if (op->needs_tail) {
        /* A tail that is cold is the whole of it: what comes after it is not in its record. */
        bool is_cold = session->cold.is_tail_cold;
        uint32_t layer_first = is_cold ? 0 : op->layer_first;
        uint32_t layer_count = is_cold ? session->shape->layer_count : op->layer_count;
        first = UINT32_MAX;
        last = kvd_session_block_count(session);
        for (uint32_t i = layer_first; i < layer_first + layer_count; i++) {
            const struct kvd_layer *ly = &session->layers[i];
            uint32_t next = (uint32_t)(ly->length / session->shape->group);
            uint32_t open = ly->sealed_blocks < next ? ly->sealed_blocks : next;
            first = open < first ? open : first;
        }
    }
    first = first > session->missing_first ? first : session->missing_first;
    last = last < session->missing_last ? last : session->missing_last;
    return (struct kvd_block_range){first, last < first ? first : last};
}

/* Start what brings a block back. Returns whether it is to be waited for. */
static bool block_want(struct kvd_session *session, uint32_t block_idx)
{
    struct kvd_block *block = kvd_block_table_at(&session->table, block_idx);
    struct kvd_cold_sessions *cold = &session->service->cold;
    int err = 0;

    if (block == NULL || block->state == KVD_BLOCK_RESIDENT || block->state == KVD_BLOCK_MISSING) {
        return false;
    }
    if (block->state == KVD_BLOCK_COLD && cold->loads < LOADS_MAX) {
        if (block->cold != NULL) {
            err = block_load(session, block_idx, block, KVD_COLD_FOR_OPERATION);
        } else if (session->cold.tail_rec != NULL && !session->cold.is_tail_loading) {
            err = tail_load(session, KVD_COLD_FOR_OPERATION);
        } else if (session->cold.tail_rec == NULL && !session->cold.is_buried) {
            kvd_cold_tail_lost(session); /* what it was written for is another session now */
            return false;
        }
    }
    return err == 0;
}

bool kvd_cold_is_ready(struct kvd_session *session, struct kvd_session_op *op)
{
    const struct kvd_cold_sessions *cold = &session->service->cold;
    bool is_ready = true;

    if (!kvd_session_has_missing(session) || cold->tier == NULL || session->is_dropped) {
        return true;
    }
    if (session->cold.has_no_room) {
        session->cold.has_no_room = false;
        return true; /* it is told what it misses */
    }
    struct kvd_block_range need = need_of(session, op);
    if (op->cold.blocks == 0) {
        kvd_cold_away(session, need.first, need.last, &op->cold);
    }
    for (uint32_t b = need.first; b < need.last; b++) {
        is_ready = !block_want(session, b) && is_ready;
        if (!is_ready && cold->loads >= LOADS_MAX) {
            break; /* nothing more can begin: the rest is looked at later */
        }
    }
    kvd_cold_read_ahead(session, op);
    if (!is_ready) {
        kvd_cold_wait(session);
    }
    return is_ready;
}

/* What somebody wants ahead of operations. */

bool kvd_cold_is_loading(const struct kvd_session *session, uint32_t block_idx)
{
    const struct kvd_block *block = kvd_session_block(session, block_idx);

    return block != NULL && (block->state == KVD_BLOCK_LOADING ||
                                (is_of_tail(block) && session->cold.is_tail_loading));
}

uint64_t kvd_cold_block_bytes(const struct kvd_service *service, const struct kvd_block *block)
{
    struct kvd_cold_info info = {0};

    if (kvd_cold_copy_is_durable(block->cold)) {
        service->cold.tier->ops->info(block->cold->record, &info);
    }
    return info.body_bytes;
}

uint64_t kvd_cold_load_bytes(const struct kvd_session *session, uint32_t block_idx)
{
    const struct kvd_block *block = kvd_session_block(session, block_idx);
    const struct kvd_cold *tier = session->service->cold.tier;
    struct kvd_cold_info info = {0};

    if (block != NULL && block->cold != NULL) {
        return kvd_cold_block_bytes(session->service, block);
    }
    if (is_of_tail(block) && session->cold.tail_rec != NULL &&
        (block_idx == 0 || !is_of_tail(kvd_session_block(session, block_idx - 1)))) {
        tier->ops->info(session->cold.tail_rec, &info);
    }
    return info.body_bytes;
}

int kvd_cold_fetch(struct kvd_session *session, uint32_t block_idx, enum kvd_cold_for want)
{
    struct kvd_block *block = kvd_block_table_at(&session->table, block_idx);

    if (block == NULL || block->state != KVD_BLOCK_COLD ||
        kvd_cold_is_loading(session, block_idx)) {
        return 0;
    }
    if (session->service->cold.loads >= FETCHES_MAX) {
        return KVARN_ERETRY_LATER;
    }
    if (block->cold != NULL) {
        return block_load(session, block_idx, block, want);
    }
    return session->cold.tail_rec == NULL ? KVARN_ENOT_FOUND : tail_load(session, want);
}

int kvd_cold_fetch_shared(struct kvd_service *service, const struct kvd_shape *shape,
    uint32_t block_idx, struct kvd_block *block)
{
    struct kvd_cold_sessions *cold = &service->cold;

    if (block->state != KVD_BLOCK_COLD) {
        return 0;
    }
    if (cold->loads >= FETCHES_MAX) {
        return KVARN_ERETRY_LATER;
    }
    if (!kvd_cold_copy_is_durable(block->cold)) {
        return KVARN_ENOT_FOUND;
    }
    return block_load_with(load_create(cold, NULL, shape, KVD_COLD_FOR_JOB), block_idx, block);
}
