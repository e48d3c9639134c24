/*
 * The block table of a session: reserving, copying on write, dropping.
 *
 * Owner: session. Thread: loop only.
 */
#include "server/session/session_blocks.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/evict/session_evict.h"
#include "server/service.h"

/* A full daemon with work in flight answers RETRY_LATER with this. */
#define SPACE_RETRY_MS 20

/* Layers of blocks that a trim frees itself: some tens of microseconds (SEMANTICS.md 18). */
#define TRIM_LAYERS_MAX 128

/* Notes of copies that are freed at once. */
#define NOTES_PER_STEP 64

/* Blocks of a layer that leave its window at once, some 100 ns each. */
#define DROPS_PER_STEP 32

int kvd_session_fail_space(struct kvd_service *service, size_t bytes, struct kvd_failure *why)
{
    const struct kvd_budget *budget = &service->budget;

    /* What only the prefix index holds goes first, in slices; not for what never fits. */
    if (bytes <= budget->limit_bytes) {
        (void)kvd_prefix_index_shrink(&service->prefixes, bytes);
    }
    if (kvd_workers_backlog(service->workers) > 0 ||
        kvd_session_table_has_dead(&service->sessions) || kvd_large_has_dead(&service->large) ||
        kvd_evictor_want(service, bytes) || !kvd_cold_sessions_is_idle(&service->cold)) {
        why->retry_after_ms = SPACE_RETRY_MS;
        return kvd_fail(why, KVARN_ERETRY_LATER,
            "%" PRIu64 " of %" PRIu64 " bytes in use; work in progress may free some, %zu needed",
            budget->used_bytes, budget->limit_bytes, bytes);
    }
    return kvd_fail(why, KVARN_ENOSPC, "%" PRIu64 " of %" PRIu64 " bytes in use, %zu more needed",
        budget->used_bytes, budget->limit_bytes, bytes);
}

static int page_take(struct kvd_session *session, size_t bytes, enum kvd_page_class page_class,
    struct kvd_page **ret)
{
    return kvd_page_take(&session->service->pages, session->tenant_id, bytes, page_class, ret);
}

static enum kvd_page_class rows_class(const struct kvd_session *session, uint32_t block_idx)
{
    return block_idx < kvd_session_sink_blocks(session) ? KVD_PAGE_SINK : KVD_PAGE_TAIL;
}

/* A block that nobody else holds, to be changed. */
static struct kvd_block *own_block_at(const struct kvd_session *session, uint32_t block_idx)
{
    KVARN_ASSERT(block_idx < session->table.count);
    KVARN_ASSERT(session->table.spans[block_idx / KVD_SPAN_BLOCKS]->refs == 1);
    struct kvd_block *block = kvd_block_table_at(&session->table, block_idx);

    KVARN_ASSERT(block != NULL && block->refs == 1);
    return block;
}

/* What a block of the session's own holds is about to change: its record is of something else. */
static void cold_part(struct kvd_session *session, uint32_t block_idx)
{
    struct kvd_block *block = kvd_block_table_at(&session->table, block_idx);

    kvd_cold_copy_unref(session->service, block->cold);
    block->cold = NULL;
}

struct kvd_page *kvd_session_swap_rows(
    struct kvd_session *session, uint32_t layer, uint32_t block_idx, struct kvd_page *rows)
{
    struct kvd_block *block = own_block_at(session, block_idx);
    struct kvd_page *old = kvd_block_rows(&session->service->pages, block, layer);

    if (block_idx >= kvd_session_sink_blocks(session) && session->work != NULL) {
        session->work->layers[layer].tail_pages +=
            (rows != NULL ? 1u : 0u) - (old != NULL ? 1u : 0u);
    }
    kvd_block_set_rows(block, layer, rows);
    if (rows != NULL) {
        cold_part(session, block_idx);
    } else {
        kvd_block_trim_rows(session->service, block);
    }
    return old;
}

struct kvd_page *kvd_session_swap_tiles(
    struct kvd_session *session, uint32_t layer, uint32_t block_idx, struct kvd_page *tiles)
{
    struct kvd_block *block = own_block_at(session, block_idx);
    struct kvd_page *old = kvd_block_tiles(&session->service->pages, block, layer);

    kvd_block_set_tiles(block, layer, tiles);
    if (tiles != NULL) {
        cold_part(session, block_idx);
    }
    return old;
}

void kvd_session_name_block(struct kvd_session *session, uint32_t block_idx, const uint8_t *name)
{
    memcpy(own_block_at(session, block_idx)->name, name, KVD_BLOCK_NAME_BYTES);
}

static int rows_fill(
    struct kvd_session *session, struct kvd_block *block, uint32_t block_idx, uint32_t layer)
{
    struct kvd_page *page = NULL;
    int err = page_take(session, session->shape->layers[layer].rows_page_bytes,
        rows_class(session, block_idx), &page);

    if (err == 0) {
        kvd_block_set_rows(block, layer, page);
    }
    return err;
}

static int tiles_fill(struct kvd_session *session, struct kvd_block *block, uint32_t layer)
{
    struct kvd_page *page = NULL;
    int err =
        page_take(session, session->shape->layers[layer].tile_page_bytes, KVD_PAGE_TILES, &page);

    if (err == 0) {
        kvd_block_set_tiles(block, layer, page);
    }
    return err;
}

static int block_fill(
    struct kvd_session *session, struct kvd_block *block, uint32_t block_idx, enum kvd_reserve kind)
{
    bool has_tiles = block_idx >= kvd_session_sink_blocks(session);
    bool has_rows = !has_tiles || kind == KVD_RESERVE_ROWS;
    int err = has_rows ? kvd_block_want_rows(session->service, block) : 0;

    if (err == 0 && has_tiles) {
        err = kvd_block_want_tiles(session->service, block);
    }
    for (uint32_t i = 0; i < session->shape->layer_count && err == 0; i++) {
        err = has_rows ? rows_fill(session, block, block_idx, i) : 0;
        if (err == 0 && has_tiles) {
            err = tiles_fill(session, block, i);
        }
    }
    return err;
}

/* Count a block's rows pages in (+1) or out (-1) of its layers. */
static void block_count_tails(
    struct kvd_session *session, const struct kvd_block *block, uint32_t block_idx, int sign)
{
    if (session->work == NULL || block == NULL || kvd_block_rows_count(block) == 0 ||
        block_idx < kvd_session_sink_blocks(session)) {
        return;
    }
    for (uint32_t i = 0; i < block->layer_count; i++) {
        if (block->rows->ids[i] != 0) {
            session->work->layers[i].tail_pages += (uint32_t)sign;
        }
    }
}

static int block_push(struct kvd_session *session, enum kvd_reserve kind)
{
    struct kvd_service *service = session->service;
    uint32_t block_idx = session->table.count;
    struct kvd_block *block = kvd_block_create(service, session->shape->layer_count);

    if (block == NULL) {
        return KVARN_ENOSPC;
    }
    int err = block_fill(session, block, block_idx, kind);
    if (err != 0) {
        kvd_block_unref(service, block);
        return err;
    }
    block_count_tails(session, block, block_idx, 1);
    kvd_block_table_push(&session->table, block);
    return 0;
}

static int block_add(struct kvd_session *session, enum kvd_reserve kind)
{
    int err = kvd_block_table_reserve(session->service, &session->table);

    return err != 0 ? err : block_push(session, kind);
}

int kvd_session_add_block(
    struct kvd_session *session, enum kvd_reserve kind, struct kvd_failure *why)
{
    const struct kvd_shape *shape = session->shape;
    size_t bytes =
        shape->block_tiles_bytes + (kind == KVD_RESERVE_ROWS ? shape->block_rows_bytes : 0);
    int err = block_add(session, kind);

    if (err != 0 && bytes <= session->service->budget.limit_bytes &&
        kvd_evictor_make_room(session->service, session, bytes)) {
        err = block_add(session, kind);
        if (err != 0) {
            return 1; /* who was evicted gave something: it goes on, as long as somebody does */
        }
    }
    if (err == 0) {
        kvd_evictor_check(session->service);
        return 0;
    }
    return kvd_session_fail_space(session->service, bytes, why);
}

/* Copies of shared blocks. */

/*
 * The pages of a copy: sealed tiles and rows by reference, other tiles anew. `copy` is the
 * session's to unref when this fails.
 */
static int copy_fill(struct kvd_session *session, uint32_t block_idx, const struct kvd_block *block,
    struct kvd_block *copy)
{
    const struct kvd_page_store *pages = &session->service->pages;
    int err = block->rows == NULL ? 0 : kvd_block_want_rows(session->service, copy);

    if (err == 0 && block->tiles != NULL) {
        err = kvd_block_want_tiles(session->service, copy);
    }
    for (uint32_t i = 0; i < block->layer_count && err == 0; i++) {
        struct kvd_page *rows = kvd_block_rows(pages, block, i);
        struct kvd_page *tiles = kvd_block_tiles(pages, block, i);
        if (rows != NULL) {
            kvd_block_set_rows(copy, i, kvd_page_ref(rows));
        }
        if (tiles != NULL && block_idx < session->layers[i].sealed_blocks) {
            kvd_block_set_tiles(copy, i, kvd_page_ref(tiles));
        } else if (tiles != NULL) {
            err = tiles_fill(session, copy, i);
        }
    }
    if (err != 0) {
        return err;
    }
    copy->layers_kept = block->layers_kept;
    /* A load is of the block that it began with. */
    copy->state = block->state == KVD_BLOCK_LOADING ? KVD_BLOCK_COLD : block->state;
    copy->miss_reason = block->miss_reason;
    copy->cold = block->cold == NULL ? NULL : kvd_cold_copy_ref(block->cold);
    memcpy(copy->name, block->name, sizeof(copy->name));
    return 0;
}

/* A spare for each layer whose next row goes to this block and whose rows others see; or none. */
static int spares_take(
    struct kvd_session *session, uint32_t block_idx, const struct kvd_block *block)
{
    uint64_t taken[KVARN_LAYERS_MAX / 64] = {0};
    int err = block->rows == NULL ? 0 : kvd_session_want_work(session);

    for (uint32_t i = 0; i < block->layer_count && err == 0; i++) {
        const struct kvd_page *rows = kvd_block_rows(&session->service->pages, block, i);
        struct kvd_page *spare = NULL;
        if (rows == NULL || rows->refs == 1 || kvd_session_has_spare(session, i) ||
            session->layers[i].length / session->shape->group != block_idx) {
            continue;
        }
        err = page_take(session, session->shape->layers[i].rows_page_bytes,
            rows_class(session, block_idx), &spare);
        if (err == 0) {
            session->work->layers[i].spare_rows = kvd_page_id(spare);
            taken[i / 64] |= UINT64_C(1) << (i % 64);
        }
    }
    for (uint32_t i = 0; i < block->layer_count && err != 0; i++) {
        if ((taken[i / 64] >> (i % 64) & 1) != 0) {
            kvd_session_drop_spare(session, i);
        }
    }
    return err;
}

/* Note that `copy` takes the place of a block, whose reference becomes the note's. */
static void own_note(struct kvd_service *service, struct kvd_own_log *log, uint32_t block_idx,
    struct kvd_block *was, struct kvd_block *copy)
{
    struct kvd_own_note *note = NULL;

    if (log != NULL &&
        kvd_budget_charge(&service->budget, KVD_BUDGET_SESSIONS, sizeof(*note)) == 0) {
        note = calloc(1, sizeof(*note));
        if (note == NULL) {
            kvd_budget_release(&service->budget, KVD_BUDGET_SESSIONS, sizeof(*note));
        }
    }
    if (note == NULL) {
        kvd_block_unref(service, was);
        return;
    }
    *note = (struct kvd_own_note){.block_idx = block_idx, .was = was, .copy = copy};
    SLIST_INSERT_HEAD(log, note, link);
}

/* Is a layer of a copy as it was made? Tiles that are not sealed were taken anew. */
static bool copy_layer_is_same(const struct kvd_session *session, const struct kvd_own_note *note,
    const struct kvd_block *copy, uint32_t layer)
{
    const struct kvd_page_store *pages = &session->service->pages;
    const struct kvd_page *was = kvd_block_tiles(pages, note->was, layer);
    const struct kvd_page *now = kvd_block_tiles(pages, copy, layer);
    bool is_sealed = note->block_idx < session->layers[layer].sealed_blocks;

    return kvd_block_rows(pages, copy, layer) == kvd_block_rows(pages, note->was, layer) &&
           (now == was || (!is_sealed && now != NULL && was != NULL));
}

/* Nobody did anything to the copy, or is about to. */
static bool copy_is_unused(const struct kvd_session *session, const struct kvd_own_note *note)
{
    if (session->is_dropped || note->block_idx >= kvd_session_block_count(session)) {
        return false;
    }
    const struct kvd_block *copy = kvd_session_block(session, note->block_idx);
    bool is_unused = copy == note->copy && copy->refs == 1 && copy->state == note->was->state &&
                     copy->layers_kept == note->was->layers_kept &&
                     session->table.spans[note->block_idx / KVD_SPAN_BLOCKS]->refs == 1;
    for (uint32_t i = 0; is_unused && i < copy->layer_count; i++) {
        is_unused = copy_layer_is_same(session, note, copy, i);
    }
    return is_unused;
}

static void copy_undo(struct kvd_session *session, const struct kvd_own_note *note)
{
    struct kvd_block *was = kvd_block_ref(note->was);

    kvd_block_unref_later(
        session->service, kvd_block_table_swap(&session->table, note->block_idx, was));
    for (uint32_t i = 0; i < was->layer_count; i++) {
        if (session->layers[i].length / session->shape->group == note->block_idx) {
            kvd_session_drop_spare(session, i);
        }
    }
}

/* Free the first note of a log. */
static void own_note_free(struct kvd_service *service, struct kvd_own_log *log)
{
    struct kvd_own_note *note = SLIST_FIRST(log);

    SLIST_REMOVE_HEAD(log, link);
    kvd_block_unref_later(service, note->was);
    free(note);
    kvd_budget_release(&service->budget, KVD_BUDGET_SESSIONS, sizeof(*note));
}

bool kvd_own_log_keep_some(struct kvd_session *session, struct kvd_own_log *log)
{
    for (int n = 0; n < NOTES_PER_STEP && !SLIST_EMPTY(log); n++) {
        own_note_free(session->service, log);
    }
    return SLIST_EMPTY(log);
}

bool kvd_own_log_undo_some(
    struct kvd_session *session, struct kvd_own_log *log, uint32_t layer_count)
{
    uint32_t pending = 0;
    uint32_t layers = 0;

    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        pending += kvd_session_pending(session, i);
    }
    for (; layers < TRIM_LAYERS_MAX && !SLIST_EMPTY(log); layers += session->shape->layer_count) {
        if (pending == layer_count && copy_is_unused(session, SLIST_FIRST(log))) {
            copy_undo(session, SLIST_FIRST(log));
        }
        own_note_free(session->service, log);
    }
    return SLIST_EMPTY(log);
}

static int copy_make(struct kvd_session *session, uint32_t block_idx, struct kvd_own_log *log)
{
    struct kvd_service *service = session->service;
    const struct kvd_block *block = kvd_session_block(session, block_idx);
    struct kvd_block *copy = kvd_block_create(service, block->layer_count);

    if (copy == NULL) {
        return KVARN_ENOSPC;
    }
    int err = copy_fill(session, block_idx, block, copy);
    if (err == 0) {
        err = spares_take(session, block_idx, block);
    }
    if (err != 0) {
        kvd_block_unref(service, copy);
        return err;
    }
    own_note(service, log, block_idx, kvd_block_table_swap(&session->table, block_idx, copy), copy);
    return 0;
}

int kvd_session_own_span(struct kvd_session *session, uint32_t block_idx, struct kvd_failure *why)
{
    if (kvd_block_table_own_span(session->service, &session->table, block_idx) != 0) {
        return kvd_session_fail_space(session->service, sizeof(struct kvd_span), why);
    }
    return 0;
}

int kvd_session_own_block(struct kvd_session *session, uint32_t block_idx, struct kvd_own_log *log,
    struct kvd_failure *why)
{
    if (block_idx >= kvd_session_block_count(session)) {
        return 0;
    }
    const struct kvd_block *block = kvd_session_block(session, block_idx);
    int err = kvd_session_own_span(session, block_idx, why);

    /* A span that was shared held one reference: the copy holds another. */
    if (err != 0 || block == NULL || block->refs == 1) {
        return err;
    }
    if (copy_make(session, block_idx, log) != 0) {
        return kvd_session_fail_space(session->service,
            session->shape->block_tiles_bytes + session->shape->block_rows_bytes, why);
    }
    return 0;
}

static void page_strip(
    struct kvd_service *service, struct kvd_page *page, uint64_t *ret_freed_bytes)
{
    if (page != NULL && page->refs == 1) {
        *ret_freed_bytes += kvd_page_bytes(page);
    }
    kvd_page_unref(&service->pages, page);
}

/* The pages of a block that nobody else holds. */
static void block_strip(
    struct kvd_service *service, struct kvd_block *block, uint64_t *ret_freed_bytes)
{
    for (uint32_t i = 0; i < block->layer_count; i++) {
        page_strip(service, kvd_block_rows(&service->pages, block, i), ret_freed_bytes);
        page_strip(service, kvd_block_tiles(&service->pages, block, i), ret_freed_bytes);
        kvd_block_set_rows(block, i, NULL);
        kvd_block_set_tiles(block, i, NULL);
    }
    kvd_block_trim(service, block);
}

int kvd_session_strip_block(
    struct kvd_session *session, uint32_t block_idx, int miss_reason, uint64_t *ret_freed_bytes)
{
    struct kvd_service *service = session->service;
    int err = kvd_block_table_own_span(service, &session->table, block_idx);
    struct kvd_block *block = kvd_block_table_at(&session->table, block_idx);

    if (err != 0 || block == NULL) {
        return err; /* or all layers dropped it: nothing is missing */
    }
    if (block->refs > 1) {
        struct kvd_block *stub = kvd_block_create(service, block->layer_count);
        if (stub == NULL) {
            return KVARN_ENOSPC;
        }
        stub->layers_kept = block->layers_kept;
        stub->cold = block->cold == NULL ? NULL : kvd_cold_copy_ref(block->cold);
        memcpy(stub->name, block->name, sizeof(stub->name));
        block_count_tails(session, block, block_idx, -1);
        kvd_block_unref(service, kvd_block_table_swap(&session->table, block_idx, stub));
        block = stub;
    } else {
        block_count_tails(session, block, block_idx, -1);
        block_strip(service, block, ret_freed_bytes);
    }
    for (uint32_t i = 0; i < block->layer_count; i++) {
        if (session->layers[i].length / session->shape->group == block_idx) {
            kvd_session_drop_spare(session, i);
        }
    }
    block->state = kvd_cold_stripped(session, block_idx);
    block->miss_reason = (unsigned)miss_reason & 15;
    return 0;
}

void kvd_session_part_cold(struct kvd_session *session, uint32_t block_idx, int miss_reason)
{
    struct kvd_block *block = own_block_at(session, block_idx);

    cold_part(session, block_idx);
    if (block->state == KVD_BLOCK_COLD) {
        block->state = KVD_BLOCK_MISSING;
        block->miss_reason = (unsigned)miss_reason & 15;
    }
}

void kvd_session_drop_spare(struct kvd_session *session, uint32_t layer)
{
    struct kvd_page_store *pages = &session->service->pages;

    if (kvd_session_has_spare(session, layer)) {
        kvd_page_unref(pages, kvd_page_at(pages, session->work->layers[layer].spare_rows));
        session->work->layers[layer].spare_rows = 0;
    }
}

/*
 * A page for the layer's rows: the spare, which was taken for this, or another. Where shared rows
 * are to be copied the other layers of the block will meet the same, and find a spare each.
 */
static int rows_take(
    struct kvd_session *session, uint32_t layer, uint32_t block_idx, struct kvd_page **ret)
{
    const struct kvd_page_store *pages = &session->service->pages;
    const struct kvd_block *block = kvd_session_block(session, block_idx);

    if (!kvd_session_has_spare(session, layer) && kvd_block_rows(pages, block, layer) != NULL) {
        int err = spares_take(session, block_idx, block);
        if (err != 0) {
            return err;
        }
    }
    if (kvd_session_has_spare(session, layer)) {
        *ret = kvd_page_at(pages, session->work->layers[layer].spare_rows);
        session->work->layers[layer].spare_rows = 0;
        return 0;
    }
    return page_take(session, session->shape->layers[layer].rows_page_bytes,
        rows_class(session, block_idx), ret);
}

int kvd_session_rows_for_write(struct kvd_session *session, uint32_t layer, uint32_t block_idx,
    uint32_t row_first, struct kvd_page **ret_copied, struct kvd_failure *why)
{
    const struct kvd_layer_shape *ls = &session->shape->layers[layer];
    struct kvd_block *block = own_block_at(session, block_idx);
    struct kvd_page *old = kvd_block_rows(&session->service->pages, block, layer);

    if (old != NULL && (old->refs == 1 || kvd_page_filled(old) <= row_first)) {
        kvd_session_drop_spare(session, layer);
        cold_part(session, block_idx);
        *ret_copied = NULL;
        return 0;
    }
    struct kvd_page *page = NULL;
    int err = kvd_block_want_rows(session->service, block);
    err = err != 0 ? err : rows_take(session, layer, block_idx, &page);
    if (err != 0) {
        kvd_block_trim_rows(session->service, block);
    }
    if (err != 0 && old != NULL) {
        why->retry_after_ms = SPACE_RETRY_MS;
        return kvd_fail(why, KVARN_ERETRY_LATER,
            "the rows that block %" PRIu32 " of layer %" PRIu32 " had before are still being read,"
            " and there is no room for a copy",
            block_idx, layer);
    }
    if (err != 0) {
        return kvd_session_fail_space(session->service, ls->rows_page_bytes, why);
    }
    kvd_evictor_check(session->service);
    kvd_page_set_filled(page, old == NULL ? 0 : row_first);
    *ret_copied = kvd_session_swap_rows(session, layer, block_idx, page);
    return 0;
}

void kvd_session_drop_rows(struct kvd_session *session, uint32_t layer, uint32_t block_idx)
{
    KVARN_ASSERT(kvd_session_tiles(session, block_idx, layer) != NULL);
    kvd_page_unref(
        &session->service->pages, kvd_session_swap_rows(session, layer, block_idx, NULL));
}

/* Take the last span out whole, with what its blocks count. */
static void trim_span(struct kvd_session *session)
{
    uint32_t last = session->table.count - 1;

    for (uint32_t b = last / KVD_SPAN_BLOCKS * KVD_SPAN_BLOCKS; b <= last; b++) {
        block_count_tails(session, kvd_session_block(session, b), b, -1);
    }
    kvd_block_table_pop_span(session->service, &session->table);
}

void kvd_session_trim(struct kvd_session *session)
{
    struct kvd_service *service = session->service;
    size_t layers = 0;
    uint64_t end = 0;

    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        uint64_t length = kvd_session_pending_length(session, i);
        end = length > end ? length : end;
    }
    uint64_t needed = (end + session->shape->group - 1) / session->shape->group;
    while (session->table.count > needed) {
        uint32_t last = session->table.count - 1;
        bool is_whole = last / KVD_SPAN_BLOCKS * KVD_SPAN_BLOCKS >= needed;
        bool is_shared = kvd_block_table_last_is_shared(&session->table);
        if (is_whole && (is_shared || layers >= TRIM_LAYERS_MAX)) {
            trim_span(session);
            continue;
        }
        struct kvd_block *block = kvd_block_table_pop(service, &session->table);
        block_count_tails(session, block, last, -1);
        if (layers >= TRIM_LAYERS_MAX) {
            kvd_block_unref_later(service, block);
        } else {
            kvd_block_unref(service, block);
        }
        layers += session->shape->layer_count;
    }
    kvd_session_trim_missing(session);
}

uint32_t kvd_session_window_blocks(
    const struct kvd_session *session, uint32_t layer, uint64_t length)
{
    const struct kvd_shape *shape = session->shape;
    uint64_t window = shape->layers[layer].window;
    uint64_t kept = window + shape->group + session->options.seal_lag;

    return window == 0 || length <= kept ? 0 : (uint32_t)((length - kept) / shape->group);
}

static void block_layer_drop(struct kvd_session *session, uint32_t layer, uint32_t block_idx)
{
    struct kvd_service *service = session->service;
    struct kvd_block *block = own_block_at(session, block_idx);

    kvd_page_unref(&service->pages, kvd_session_swap_rows(session, layer, block_idx, NULL));
    kvd_page_unref(&service->pages, kvd_session_swap_tiles(session, layer, block_idx, NULL));
    KVARN_ASSERT(block->layers_kept > 0);
    block->layers_kept--;
    if (block->layers_kept == 0) {
        kvd_block_unref(service, kvd_block_table_swap(&session->table, block_idx, NULL));
    }
}

bool kvd_session_drop_window(struct kvd_session *session, uint32_t layer)
{
    struct kvd_layer *ly = &session->layers[layer];
    uint32_t dropped = kvd_session_window_blocks(session, layer, ly->length);

    for (int n = 0; n < DROPS_PER_STEP && ly->dropped_blocks < dropped; n++) {
        block_layer_drop(session, layer, ly->dropped_blocks);
        ly->dropped_blocks++;
    }
    return ly->dropped_blocks >= dropped;
}
