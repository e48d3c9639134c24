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

static size_t block_bytes(const struct kvd_session *session)
{
    return sizeof(struct kvd_block) +
           session->shape->layer_count * sizeof(struct kvd_block_layer);
}

int kvd_session_fail_space(struct kvd_service *service, size_t bytes, struct kvd_failure *why)
{
    const struct kvd_budget *budget = &service->budget;

    if (kvd_workers_backlog(service->workers) > 0 || !LIST_EMPTY(&service->sessions.dead)) {
        why->retry_after_ms = SPACE_RETRY_MS;
        return kvd_fail(why, KVARN_ERETRY_LATER,
            "%" PRIu64 " of %" PRIu64 " bytes in use; work in progress may free some, %zu needed",
            budget->used_bytes, budget->limit_bytes, bytes);
    }
    return kvd_fail(why, KVARN_ENOSPC, "%" PRIu64 " of %" PRIu64 " bytes in use, %zu more needed",
        budget->used_bytes, budget->limit_bytes, bytes);
}

static int table_grow(struct kvd_session *session, uint64_t block_count)
{
    uint64_t room = session->block_room == 0 ? BLOCK_ROOM_MIN : session->block_room;

    while (room < block_count) {
        room *= 2;
    }
    if (room == session->block_room) {
        return 0;
    }
    size_t more = (room - session->block_room) * sizeof(void *);
    if (kvd_budget_charge(&session->service->budget, KVD_BUDGET_SESSIONS, more) != 0) {
        return KVARN_ENOSPC;
    }
    void *blocks = realloc(session->blocks, room * sizeof(void *));
    if (blocks == NULL) {
        kvd_budget_release(&session->service->budget, KVD_BUDGET_SESSIONS, more);
        return KVARN_ENOSPC;
    }
    session->blocks = blocks;
    session->block_room = (uint32_t)room;
    return 0;
}

static int page_take(struct kvd_session *session, size_t bytes, enum kvd_page_class page_class,
    struct kvd_page **ret)
{
    int err = kvd_page_take(
        &session->service->pages, session->tenant_id, bytes, page_class, ret);
    if (err == 0) {
        (*ret)->filled_tokens = 0;
        (*ret)->checksum = 0;
        (*ret)->encoder = 0;
    }
    return err;
}

static enum kvd_page_class rows_class(const struct kvd_session *session, uint32_t block_idx)
{
    return block_idx < kvd_session_sink_blocks(session) ? KVD_PAGE_SINK : KVD_PAGE_TAIL;
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
            err = page_take(
                session, ls->rows_page_bytes, rows_class(session, block_idx), &bl->rows);
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

static void block_destroy(struct kvd_session *session, struct kvd_block *block)
{
    if (block == NULL) {
        return;
    }
    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        kvd_page_unref(&session->service->pages, block->layers[i].rows);
        kvd_page_unref(&session->service->pages, block->layers[i].tiles);
    }
    kvd_budget_release(&session->service->budget, KVD_BUDGET_SESSIONS, block_bytes(session));
    free(block);
}

static int block_push(struct kvd_session *session, enum kvd_reserve kind)
{
    size_t bytes = block_bytes(session);
    if (kvd_budget_charge(&session->service->budget, KVD_BUDGET_SESSIONS, bytes) != 0) {
        return KVARN_ENOSPC;
    }
    struct kvd_block *block = calloc(1, bytes);
    if (block == NULL) {
        kvd_budget_release(&session->service->budget, KVD_BUDGET_SESSIONS, bytes);
        return KVARN_ENOSPC;
    }
    block->layers_kept = session->shape->layer_count;
    int err = block_fill(session, block, session->block_count, kind);
    if (err != 0) {
        block_destroy(session, block);
        return err;
    }
    session->blocks[session->block_count++] = block;
    return 0;
}

void kvd_session_pop_block(struct kvd_session *session)
{
    KVARN_ASSERT(session->block_count > 0);
    session->block_count--;
    block_destroy(session, session->blocks[session->block_count]);
}

int kvd_session_reserve(struct kvd_session *session, uint64_t block_count, enum kvd_reserve kind,
    struct kvd_failure *why)
{
    uint32_t before = session->block_count;
    const struct kvd_shape *shape = session->shape;

    if (block_count <= before) {
        return 0;
    }
    int err = table_grow(session, block_count);
    while (err == 0 && session->block_count < block_count) {
        err = block_push(session, kind);
    }
    if (err == 0) {
        return 0;
    }
    while (session->block_count > before) {
        kvd_session_pop_block(session);
    }
    size_t bytes = (size_t)(block_count - before) *
                   (shape->block_tiles_bytes + (kind == KVD_RESERVE_ROWS ? shape->block_rows_bytes : 0));
    return kvd_session_fail_space(session->service, bytes, why);
}

int kvd_session_rows_for_write(struct kvd_session *session, uint32_t layer, uint32_t block_idx,
    uint32_t row_first, struct kvd_page **ret_copied, struct kvd_failure *why)
{
    KVARN_ASSERT(block_idx < session->block_count);
    const struct kvd_layer_shape *ls = &session->shape->layers[layer];
    struct kvd_block_layer *bl = &session->blocks[block_idx]->layers[layer];
    struct kvd_page *old = bl->rows;

    if (old != NULL && (old->refs == 1 || old->filled_tokens <= row_first)) {
        *ret_copied = NULL;
        return 0;
    }
    struct kvd_page *page;
    int err = page_take(session, ls->rows_page_bytes, rows_class(session, block_idx), &page);
    if (err != 0) {
        return kvd_session_fail_space(session->service, ls->rows_page_bytes, why);
    }
    page->filled_tokens = old == NULL ? 0 : (uint16_t)row_first;
    bl->rows = page;
    *ret_copied = old; /* the table's reference becomes the caller's */
    return 0;
}

void kvd_session_drop_rows(struct kvd_session *session, uint32_t layer, uint32_t block_idx)
{
    struct kvd_block_layer *bl = &session->blocks[block_idx]->layers[layer];

    KVARN_ASSERT(bl->tiles != NULL);
    kvd_page_unref(&session->service->pages, bl->rows);
    bl->rows = NULL;
}

void kvd_session_trim(struct kvd_session *session)
{
    uint64_t end = 0;

    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        if (session->layers[i].pending_length > end) {
            end = session->layers[i].pending_length;
        }
    }
    uint64_t needed = (end + session->shape->group - 1) / session->shape->group;
    while (session->block_count > needed) {
        kvd_session_pop_block(session);
    }
}

void kvd_session_drop_window(struct kvd_session *session, uint32_t layer)
{
    const struct kvd_shape *shape = session->shape;
    struct kvd_layer *ly = &session->layers[layer];
    uint64_t window = shape->layers[layer].window;
    uint64_t kept = window + shape->group + session->options.seal_lag;

    if (window == 0 || ly->length <= kept) {
        return;
    }
    uint32_t dropped = (uint32_t)((ly->length - kept) / shape->group);
    for (uint32_t b = ly->dropped_blocks; b < dropped; b++) {
        struct kvd_block *block = session->blocks[b];
        struct kvd_block_layer *bl = &block->layers[layer];
        kvd_page_unref(&session->service->pages, bl->rows);
        kvd_page_unref(&session->service->pages, bl->tiles);
        *bl = (struct kvd_block_layer){NULL, NULL};
        block->layers_kept--;
        if (block->layers_kept == 0) {
            block_destroy(session, block);
            session->blocks[b] = NULL;
        }
    }
    if (dropped > ly->dropped_blocks) {
        ly->dropped_blocks = dropped;
    }
}
