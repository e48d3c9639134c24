/*
 * Compactor: a walk over all sessions in slices.
 *
 * Owner: service. Thread: loop only.
 */
#include "server/store/compact.h"

#include <stddef.h>

#include "lib/base/assert.h"
#include "server/evict/session_evict.h"
#include "server/service.h"

#define PAUSE_NS_MIN UINT64_C(250000000)
#define PAUSE_NS_MAX UINT64_C(60000000000)

/* It has something to do when free slots are more than a part in so many of the chunks. */
#define FREE_ONE_IN    16
#define FREE_BYTES_MIN (UINT64_C(8) << 20)

static uint64_t free_slot_bytes(const struct kvd_page_store *pages)
{
    uint64_t page_bytes = 0;

    for (unsigned i = 0; i < KVD_PAGE_CLASS_COUNT; i++) {
        page_bytes += pages->classes[i].bytes;
    }
    return pages->chunk_bytes - pages->dying_bytes - page_bytes;
}

/* Move one page of a block, if it is to leave and nobody else holds it; NULL: it stays. */
static struct kvd_page *page_move(struct kvd_service *service, struct kvd_page *page)
{
    if (page == NULL || page->refs != 1 || !kvd_page_is_leaving(page)) {
        return NULL;
    }
    struct kvd_page *to = kvd_page_move(&service->pages, page);
    if (to != NULL) {
        kvd_metrics_add(&service->metrics, KVD_METRIC_pages_moved, 1);
    }
    return to;
}

/* Move what is to leave of a block; false when time is over before its end. */
static bool block_compact(struct kvd_compactor *compactor, struct kvd_block *block)
{
    struct kvd_service *service = compactor->service;

    for (uint32_t i = 0; i < block->layer_count; i++) {
        struct kvd_page *rows = page_move(service, kvd_block_rows(&service->pages, block, i));
        if (rows != NULL) {
            kvd_block_set_rows(block, i, rows);
        }
        struct kvd_page *tiles = page_move(service, kvd_block_tiles(&service->pages, block, i));
        if (tiles != NULL) {
            kvd_block_set_tiles(block, i, tiles);
        }
        bool has_moved = rows != NULL || tiles != NULL;
        compactor->moved += has_moved;
        if (has_moved && !kvd_slices_has_time(&service->sessions.slices)) {
            return false;
        }
    }
    return true;
}

/* The block, if it is this session's alone. */
static struct kvd_block *own_block(const struct kvd_session *session, uint32_t block_idx)
{
    const struct kvd_span *span = session->table.spans[block_idx / KVD_SPAN_BLOCKS];
    struct kvd_block *block =
        span->refs == 1 ? kvd_block_table_at(&session->table, block_idx) : NULL;

    return block == NULL || block->refs != 1 ? NULL : block;
}

/* Go on with a session; false when time is over before its end. */
static bool session_compact(struct kvd_compactor *compactor, struct kvd_session *session)
{
    struct kvd_slices *slices = &compactor->service->sessions.slices;

    if (kvd_session_is_busy(session) || session->is_dropped) {
        return true;
    }
    while (compactor->block_idx < kvd_session_block_count(session)) {
        struct kvd_block *block = own_block(session, compactor->block_idx);
        if (block != NULL && !block_compact(compactor, block)) {
            return false; /* the same block again: what was moved stays where it is */
        }
        compactor->block_idx++;
        if (!kvd_slices_has_time(slices)) {
            return false;
        }
    }
    return true;
}

static void walk_end(struct kvd_compactor *compactor)
{
    struct kvd_service *service = compactor->service;
    uint64_t longer_ns = 2 * compactor->pause_ns;

    kvd_page_store_settle(&service->pages);
    if (compactor->moved > 0) {
        compactor->pause_ns = PAUSE_NS_MIN;
    } else {
        compactor->pause_ns = longer_ns < PAUSE_NS_MAX ? longer_ns : PAUSE_NS_MAX;
    }
    compactor->due_ns = service->io->ops->now_ns(service->io) + compactor->pause_ns;
}

static void slice_run(struct kvd_slice *slice)
{
    struct kvd_compactor *compactor =
        (void *)((uint8_t *)slice - offsetof(struct kvd_compactor, slice));
    struct kvd_slices *slices = &compactor->service->sessions.slices;

    while (compactor->session != NULL) {
        if (!session_compact(compactor, compactor->session)) {
            kvd_slices_add(slices, slice);
            return;
        }
        compactor->session = LIST_NEXT(compactor->session, all_link);
        compactor->block_idx = 0;
        if (!kvd_slices_has_time(slices)) {
            kvd_slices_add(slices, slice);
            return;
        }
    }
    walk_end(compactor);
}

void kvd_compactor_init(struct kvd_compactor *compactor, struct kvd_service *service)
{
    *compactor = (struct kvd_compactor){
        .service = service, .pause_ns = PAUSE_NS_MIN, .free_bytes_min = FREE_BYTES_MIN};
    compactor->slice.run = slice_run;
}

void kvd_compactor_tick(struct kvd_compactor *compactor, uint64_t now_ns)
{
    struct kvd_service *service = compactor->service;
    const struct kvd_page_store *pages = &service->pages;
    uint64_t free_bytes = free_slot_bytes(pages);

    if (compactor->slice.is_listed || now_ns < compactor->due_ns ||
        free_bytes < compactor->free_bytes_min || free_bytes < pages->chunk_bytes / FREE_ONE_IN ||
        !kvd_page_store_thin(&service->pages)) {
        return;
    }
    compactor->session = LIST_FIRST(&service->sessions.all);
    compactor->block_idx = 0;
    compactor->moved = 0;
    kvd_slices_add(&service->sessions.slices, &compactor->slice);
}

void kvd_compactor_forget(struct kvd_session *session)
{
    struct kvd_compactor *compactor = &session->service->compactor;

    if (compactor->session == session) {
        compactor->session = LIST_NEXT(session, all_link);
        compactor->block_idx = 0;
    }
}
