/*
 * The block table of a session: reserving, copying on write, dropping.
 *
 * Owner: session. Thread: loop only.
 */
#include "server/session_blocks.h"

#include <inttypes.h>
#include <stdlib.h>

#include "lib/base/assert.h"
#include "server/service.h"

/* First size of a block table: 8 blocks are 1,024 tokens. */
#define BLOCK_ROOM_MIN 8

/* A full daemon with work in flight answers RETRY_LATER with this. */
#define SPACE_RETRY_MS 20

/* Layers of blocks that a trim frees itself: some tens of microseconds (SEMANTICS.md 18). */
#define TRIM_LAYERS_MAX 128

static size_t block_bytes(uint32_t layer_count)
{
    return sizeof(struct kvd_block) + layer_count * sizeof(struct kvd_block_layer);
}

int kvd_session_fail_space(struct kvd_service *service, size_t bytes, struct kvd_failure *why)
{
    const struct kvd_budget *budget = &service->budget;

    if (kvd_workers_backlog(service->workers) > 0 ||
        kvd_session_table_has_dead(&service->sessions)) {
        why->retry_after_ms = SPACE_RETRY_MS;
        return kvd_fail(why, KVARN_ERETRY_LATER,
            "%" PRIu64 " of %" PRIu64 " bytes in use; work in progress may free some, %zu needed",
            budget->used_bytes, budget->limit_bytes, bytes);
    }
    return kvd_fail(why, KVARN_ENOSPC, "%" PRIu64 " of %" PRIu64 " bytes in use, %zu more needed",
        budget->used_bytes, budget->limit_bytes, bytes);
}

/* Room for one more block. */
static int table_grow(struct kvd_session *session)
{
    uint32_t room = session->block_room == 0 ? BLOCK_ROOM_MIN : 2 * session->block_room;
    size_t more = (room - session->block_room) * sizeof(void *);

    if (session->block_count < session->block_room) {
        return 0;
    }
    if (kvd_budget_charge(&session->service->budget, KVD_BUDGET_SESSIONS, more) != 0) {
        return KVARN_ENOSPC;
    }
    void *blocks = realloc(session->blocks, room * sizeof(void *));
    if (blocks == NULL) {
        kvd_budget_release(&session->service->budget, KVD_BUDGET_SESSIONS, more);
        return KVARN_ENOSPC;
    }
    session->blocks = blocks;
    session->block_room = room;
    return 0;
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

struct kvd_page *kvd_session_swap_rows(
    struct kvd_session *session, uint32_t layer, uint32_t block_idx, struct kvd_page *rows)
{
    KVARN_ASSERT(block_idx < session->block_count);
    struct kvd_block_layer *bl = &session->blocks[block_idx]->layers[layer];
    struct kvd_page *old = bl->rows;

    if (block_idx >= kvd_session_sink_blocks(session)) {
        session->layers[layer].tail_pages += (rows != NULL ? 1u : 0u) - (old != NULL ? 1u : 0u);
    }
    bl->rows = rows;
    return old;
}

static int block_fill(
    struct kvd_session *session, struct kvd_block *block, uint32_t block_idx, enum kvd_reserve kind)
{
    const struct kvd_shape *shape = session->shape;
    bool is_sink = block_idx < kvd_session_sink_blocks(session);

    for (uint32_t i = 0; i < shape->layer_count; i++) {
        const struct kvd_layer_shape *ls = &shape->layers[i];
        struct kvd_block_layer *bl = &block->layers[i];
        int err = 0;
        if (is_sink || kind == KVD_RESERVE_ROWS) {
            err =
                page_take(session, ls->rows_page_bytes, rows_class(session, block_idx), &bl->rows);
        }
        if (err == 0 && !is_sink) {
            err = page_take(session, ls->tile_page_bytes, KVD_PAGE_TILES, &bl->tiles);
        }
        if (err != 0) {
            return err;
        }
    }
    return 0;
}

void kvd_session_block_destroy(struct kvd_service *service, struct kvd_block *block)
{
    if (block == NULL) {
        return;
    }
    for (uint32_t i = 0; i < block->layer_count; i++) {
        kvd_page_unref(&service->pages, block->layers[i].rows);
        kvd_page_unref(&service->pages, block->layers[i].tiles);
    }
    kvd_budget_release(&service->budget, KVD_BUDGET_SESSIONS, block_bytes(block->layer_count));
    free(block);
}

/* Count a block's rows pages in (+1) or out (-1) of its layers. */
static void block_count_tails(
    struct kvd_session *session, const struct kvd_block *block, uint32_t block_idx, int sign)
{
    if (block == NULL || block_idx < kvd_session_sink_blocks(session)) {
        return;
    }
    for (uint32_t i = 0; i < block->layer_count; i++) {
        if (block->layers[i].rows != NULL) {
            session->layers[i].tail_pages += (uint32_t)sign;
        }
    }
}

static int block_push(struct kvd_session *session, enum kvd_reserve kind)
{
    struct kvd_service *service = session->service;
    uint32_t layer_count = session->shape->layer_count;
    size_t bytes = block_bytes(layer_count);

    if (kvd_budget_charge(&service->budget, KVD_BUDGET_SESSIONS, bytes) != 0) {
        return KVARN_ENOSPC;
    }
    struct kvd_block *block = calloc(1, bytes);
    if (block == NULL) {
        kvd_budget_release(&service->budget, KVD_BUDGET_SESSIONS, bytes);
        return KVARN_ENOSPC;
    }
    block->layer_count = layer_count;
    block->layers_kept = layer_count;
    int err = block_fill(session, block, session->block_count, kind);
    if (err != 0) {
        kvd_session_block_destroy(service, block);
        return err;
    }
    block_count_tails(session, block, session->block_count, 1);
    session->blocks[session->block_count++] = block;
    return 0;
}

/* Take the last block out of the session: the caller's now; NULL when all layers dropped it. */
static struct kvd_block *block_pull(struct kvd_session *session)
{
    KVARN_ASSERT(session->block_count > 0);
    session->block_count--;
    struct kvd_block *block = session->blocks[session->block_count];
    block_count_tails(session, block, session->block_count, -1);
    return block;
}

void kvd_session_pop_block(struct kvd_session *session)
{
    kvd_session_block_destroy(session->service, block_pull(session));
}

int kvd_session_add_block(
    struct kvd_session *session, enum kvd_reserve kind, struct kvd_failure *why)
{
    const struct kvd_shape *shape = session->shape;
    int err = table_grow(session);

    if (err == 0) {
        err = block_push(session, kind);
    }
    if (err == 0) {
        return 0;
    }
    size_t bytes =
        shape->block_tiles_bytes + (kind == KVD_RESERVE_ROWS ? shape->block_rows_bytes : 0);
    return kvd_session_fail_space(session->service, bytes, why);
}

int kvd_session_rows_for_write(struct kvd_session *session, uint32_t layer, uint32_t block_idx,
    uint32_t row_first, struct kvd_page **ret_copied, struct kvd_failure *why)
{
    KVARN_ASSERT(block_idx < session->block_count);
    const struct kvd_layer_shape *ls = &session->shape->layers[layer];
    struct kvd_page *old = session->blocks[block_idx]->layers[layer].rows;

    if (old != NULL && (old->refs == 1 || old->filled_tokens <= row_first)) {
        *ret_copied = NULL;
        return 0;
    }
    struct kvd_page *page;
    int err = page_take(session, ls->rows_page_bytes, rows_class(session, block_idx), &page);
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
    page->filled_tokens = old == NULL ? 0 : (uint16_t)row_first;
    *ret_copied = kvd_session_swap_rows(session, layer, block_idx, page);
    return 0;
}

void kvd_session_drop_rows(struct kvd_session *session, uint32_t layer, uint32_t block_idx)
{
    KVARN_ASSERT(session->blocks[block_idx]->layers[layer].tiles != NULL);
    kvd_page_unref(
        &session->service->pages, kvd_session_swap_rows(session, layer, block_idx, NULL));
}

void kvd_session_trim(struct kvd_session *session)
{
    struct kvd_service *service = session->service;
    size_t layers = 0;
    uint64_t end = 0;

    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        if (session->layers[i].pending_length > end) {
            end = session->layers[i].pending_length;
        }
    }
    uint64_t needed = (end + session->shape->group - 1) / session->shape->group;
    while (session->block_count > needed) {
        struct kvd_block *block = block_pull(session);
        if (block != NULL && layers >= TRIM_LAYERS_MAX) {
            kvd_session_table_bury_block(&service->sessions, block);
        } else {
            kvd_session_block_destroy(service, block);
        }
        layers += session->shape->layer_count;
    }
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
    struct kvd_block *block = session->blocks[block_idx];
    struct kvd_block_layer *bl = &block->layers[layer];

    kvd_page_unref(&service->pages, kvd_session_swap_rows(session, layer, block_idx, NULL));
    kvd_page_unref(&service->pages, bl->tiles);
    bl->tiles = NULL;
    KVARN_ASSERT(block->layers_kept > 0);
    block->layers_kept--;
    if (block->layers_kept == 0) {
        kvd_session_block_destroy(service, block);
        session->blocks[block_idx] = NULL;
    }
}

void kvd_session_drop_window(struct kvd_session *session, uint32_t layer)
{
    struct kvd_layer *ly = &session->layers[layer];
    uint32_t dropped = kvd_session_window_blocks(session, layer, ly->length);

    while (ly->dropped_blocks < dropped) {
        block_layer_drop(session, layer, ly->dropped_blocks);
        ly->dropped_blocks++;
    }
}
