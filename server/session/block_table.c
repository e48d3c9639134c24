/*
 * Block table: spans of blocks, shared by reference, copied before they are changed.
 *
 * Owner: session. Thread: loop only.
 */
#include "server/session/block_table.h"

#include <stdlib.h>

#include "lib/base/assert.h"
#include "server/base/alloc_bytes.h"
#include "server/service.h"

/* First sizes: a short session has a span of 8 blocks, 1,024 tokens, and one span. */
#define SPAN_ROOM_MIN  8u
#define TABLE_ROOM_MIN 1u

static size_t tiles_bytes(const struct kvd_block *block)
{
    return kvd_alloc_bytes(block->layer_count * sizeof(block->tiles[0]));
}

static size_t rows_bytes(const struct kvd_block *block)
{
    return kvd_alloc_bytes(
        sizeof(struct kvd_block_rows) + block->layer_count * sizeof(block->rows->ids[0]));
}

static size_t span_bytes(uint32_t room)
{
    return kvd_alloc_bytes(sizeof(struct kvd_span) + room * sizeof(struct kvd_block *));
}

static size_t spans_bytes(uint32_t room)
{
    return kvd_alloc_bytes(room * sizeof(struct kvd_span *));
}

static uint32_t span_count(const struct kvd_block_table *table)
{
    return (table->count + KVD_SPAN_BLOCKS - 1) / KVD_SPAN_BLOCKS;
}

/* Zeroed memory of sessions, charged; NULL: no room. */
static void *take(struct kvd_service *service, size_t bytes)
{
    if (kvd_budget_charge(&service->budget, KVD_BUDGET_SESSIONS, bytes) != 0) {
        return NULL;
    }
    void *memory = calloc(1, bytes);
    if (memory == NULL) {
        kvd_budget_release(&service->budget, KVD_BUDGET_SESSIONS, bytes);
    }
    return memory;
}

static void give(struct kvd_service *service, void *memory, size_t bytes)
{
    free(memory);
    kvd_budget_release(&service->budget, KVD_BUDGET_SESSIONS, bytes);
}

struct kvd_block *kvd_block_create(struct kvd_service *service, uint32_t layer_count)
{
    struct kvd_block *block = take(service, sizeof(struct kvd_block));

    if (block != NULL) {
        block->refs = 1;
        block->layer_count = layer_count & 1023;
        block->layers_kept = layer_count & 1023;
    }
    return block;
}

struct kvd_block *kvd_block_ref(struct kvd_block *block)
{
    KVARN_ASSERT(block->refs > 0 && block->refs < UINT32_MAX);
    block->refs++;
    return block;
}

int kvd_block_want_rows(struct kvd_service *service, struct kvd_block *block)
{
    block->rows = block->rows == NULL ? take(service, rows_bytes(block)) : block->rows;
    return block->rows == NULL ? KVARN_ENOSPC : 0;
}

int kvd_block_want_tiles(struct kvd_service *service, struct kvd_block *block)
{
    block->tiles = block->tiles == NULL ? take(service, tiles_bytes(block)) : block->tiles;
    return block->tiles == NULL ? KVARN_ENOSPC : 0;
}

static void rows_free(struct kvd_service *service, struct kvd_block *block)
{
    if (block->rows != NULL) {
        give(service, block->rows, rows_bytes(block));
        block->rows = NULL;
    }
}

static void tiles_free(struct kvd_service *service, struct kvd_block *block)
{
    if (block->tiles != NULL) {
        give(service, block->tiles, tiles_bytes(block));
        block->tiles = NULL;
    }
}

void kvd_block_trim_rows(struct kvd_service *service, struct kvd_block *block)
{
    if (kvd_block_rows_count(block) == 0) {
        rows_free(service, block);
    }
}

void kvd_block_trim(struct kvd_service *service, struct kvd_block *block)
{
    kvd_block_trim_rows(service, block);
    for (uint32_t i = 0; i < block->layer_count && block->tiles != NULL; i++) {
        if (block->tiles[i] != 0) {
            return;
        }
    }
    tiles_free(service, block);
}

void kvd_block_destroy(struct kvd_service *service, struct kvd_block *block)
{
    KVARN_ASSERT(block->refs == 0);
    for (uint32_t i = 0; i < block->layer_count; i++) {
        kvd_page_unref(&service->pages, kvd_block_rows(&service->pages, block, i));
        kvd_page_unref(&service->pages, kvd_block_tiles(&service->pages, block, i));
    }
    rows_free(service, block);
    tiles_free(service, block);
    kvd_cold_copy_unref(service, block->cold);
    give(service, block, sizeof(*block));
}

/* Drop a reference; true when it was the last one. */
static bool block_drop(struct kvd_block *block)
{
    if (block == NULL) {
        return false;
    }
    KVARN_ASSERT(block->refs > 0);
    block->refs--;
    return block->refs == 0;
}

void kvd_block_unref(struct kvd_service *service, struct kvd_block *block)
{
    if (block_drop(block)) {
        kvd_block_destroy(service, block);
    }
}

void kvd_block_unref_later(struct kvd_service *service, struct kvd_block *block)
{
    if (block_drop(block)) {
        kvd_session_table_bury_block(&service->sessions, block);
    }
}

bool kvd_span_free_some(struct kvd_service *service, struct kvd_span *span)
{
    KVARN_ASSERT(span->refs == 0);
    /* From the end: `room` says what is left, and is wanted again for the charge at last. */
    for (uint32_t i = KVD_SPAN_BLOCKS; i > 0; i--) {
        if (i <= span->room && span->blocks[i - 1] != NULL) {
            struct kvd_block *block = span->blocks[i - 1];
            span->blocks[i - 1] = NULL;
            kvd_block_unref(service, block);
            return false;
        }
    }
    give(service, span, span_bytes(span->room));
    return true;
}

static void span_unref(struct kvd_service *service, struct kvd_span *span)
{
    KVARN_ASSERT(span->refs > 0);
    span->refs--;
    if (span->refs == 0) {
        kvd_session_table_bury_span(&service->sessions, span);
    }
}

static struct kvd_span *span_create(struct kvd_service *service, uint32_t room)
{
    struct kvd_span *span = take(service, span_bytes(room));

    if (span != NULL) {
        span->refs = 1;
        span->room = room;
    }
    return span;
}

/* A span of one's own with the first `count` blocks of another, by reference. */
static struct kvd_span *span_copy(
    struct kvd_service *service, const struct kvd_span *from, uint32_t count)
{
    struct kvd_span *span = span_create(service, from->room);

    for (uint32_t i = 0; span != NULL && i < count; i++) {
        span->blocks[i] = from->blocks[i] == NULL ? NULL : kvd_block_ref(from->blocks[i]);
    }
    return span;
}

size_t kvd_block_table_bytes(const struct kvd_block_table *table)
{
    size_t bytes = spans_bytes(table->span_room);

    for (uint32_t i = 0; i < table->span_room; i++) {
        const struct kvd_span *span = table->spans[i];
        bytes += span != NULL && span->refs == 1 ? span_bytes(span->room) : 0;
    }
    return bytes;
}

/* Room in the array of spans. */
static int spans_grow(struct kvd_service *service, struct kvd_block_table *table, uint32_t needed)
{
    uint32_t room = table->span_room == 0 ? TABLE_ROOM_MIN : table->span_room;

    while (room < needed) {
        room *= 2;
    }
    if (room == table->span_room) {
        return 0;
    }
    struct kvd_span **spans = take(service, spans_bytes(room));
    if (spans == NULL) {
        return KVARN_ENOSPC;
    }
    for (uint32_t i = 0; i < table->span_room; i++) {
        spans[i] = table->spans[i];
    }
    give(service, table->spans, spans_bytes(table->span_room));
    table->spans = spans;
    table->span_room = room;
    return 0;
}

int kvd_block_table_reserve(struct kvd_service *service, struct kvd_block_table *table)
{
    uint32_t span_idx = table->count / KVD_SPAN_BLOCKS;
    uint32_t used = table->count % KVD_SPAN_BLOCKS;
    int err = spans_grow(service, table, span_idx + 1);

    if (err != 0) {
        return err;
    }
    struct kvd_span *old = table->spans[span_idx];
    KVARN_ASSERT(old == NULL || old->refs == 1);
    if (old != NULL && used < old->room) {
        return 0;
    }
    uint32_t room = old == NULL ? SPAN_ROOM_MIN : 2 * old->room;
    room = span_idx > 0 ? KVD_SPAN_BLOCKS : room; /* a session that is long already */
    struct kvd_span *span = span_create(service, room);
    if (span == NULL) {
        return KVARN_ENOSPC;
    }
    for (uint32_t i = 0; old != NULL && i < used; i++) {
        span->blocks[i] = old->blocks[i];
    }
    if (old != NULL) {
        give(service, old, span_bytes(old->room));
    }
    table->spans[span_idx] = span;
    return 0;
}

void kvd_block_table_push(struct kvd_block_table *table, struct kvd_block *block)
{
    struct kvd_span *span = table->spans[table->count / KVD_SPAN_BLOCKS];

    KVARN_ASSERT(span->refs == 1 && table->count % KVD_SPAN_BLOCKS < span->room);
    span->blocks[table->count % KVD_SPAN_BLOCKS] = block;
    table->count++;
}

bool kvd_block_table_last_is_shared(const struct kvd_block_table *table)
{
    KVARN_ASSERT(table->count > 0);
    return table->spans[(table->count - 1) / KVD_SPAN_BLOCKS]->refs > 1;
}

struct kvd_block *kvd_block_table_pop(struct kvd_service *service, struct kvd_block_table *table)
{
    KVARN_ASSERT(table->count > 0);
    uint32_t idx = table->count - 1;
    struct kvd_span *span = table->spans[idx / KVD_SPAN_BLOCKS];
    struct kvd_block *block = span->blocks[idx % KVD_SPAN_BLOCKS];

    KVARN_ASSERT(span->refs == 1);
    span->blocks[idx % KVD_SPAN_BLOCKS] = NULL;
    table->count = idx;
    if (idx % KVD_SPAN_BLOCKS == 0) {
        table->spans[idx / KVD_SPAN_BLOCKS] = NULL;
        give(service, span, span_bytes(span->room));
    }
    return block;
}

void kvd_block_table_pop_span(struct kvd_service *service, struct kvd_block_table *table)
{
    KVARN_ASSERT(table->count > 0);
    uint32_t span_idx = (table->count - 1) / KVD_SPAN_BLOCKS;
    struct kvd_span *span = table->spans[span_idx];

    table->spans[span_idx] = NULL;
    table->count = span_idx * KVD_SPAN_BLOCKS;
    span_unref(service, span);
}

int kvd_block_table_own_span(
    struct kvd_service *service, struct kvd_block_table *table, uint32_t block_idx)
{
    KVARN_ASSERT(block_idx < table->count);
    struct kvd_span *old = table->spans[block_idx / KVD_SPAN_BLOCKS];

    if (old->refs == 1) {
        return 0;
    }
    struct kvd_span *span = span_copy(service, old, KVD_SPAN_BLOCKS);
    if (span == NULL) {
        return KVARN_ENOSPC;
    }
    table->spans[block_idx / KVD_SPAN_BLOCKS] = span;
    span_unref(service, old);
    return 0;
}

struct kvd_block *kvd_block_table_swap(
    struct kvd_block_table *table, uint32_t block_idx, struct kvd_block *block)
{
    KVARN_ASSERT(block_idx < table->count);
    struct kvd_span *span = table->spans[block_idx / KVD_SPAN_BLOCKS];
    struct kvd_block *old = span->blocks[block_idx % KVD_SPAN_BLOCKS];

    KVARN_ASSERT(span->refs == 1);
    span->blocks[block_idx % KVD_SPAN_BLOCKS] = block;
    return old;
}

int kvd_block_table_clone(
    struct kvd_service *service, const struct kvd_block_table *table, struct kvd_block_table *ret)
{
    uint32_t whole = table->count / KVD_SPAN_BLOCKS;
    uint32_t rest = table->count % KVD_SPAN_BLOCKS;

    KVARN_ASSERT(ret->count == 0 && ret->span_room == 0);
    if (table->count == 0) {
        return 0;
    }
    int err = spans_grow(service, ret, span_count(table));
    if (err == 0 && rest > 0) {
        ret->spans[whole] = span_copy(service, table->spans[whole], rest);
        err = ret->spans[whole] == NULL ? KVARN_ENOSPC : 0;
    }
    if (err != 0) {
        kvd_block_table_clear(service, ret);
        return err;
    }
    for (uint32_t i = 0; i < whole; i++) {
        KVARN_ASSERT(table->spans[i]->refs < UINT32_MAX);
        ret->spans[i] = table->spans[i];
        ret->spans[i]->refs++;
    }
    ret->count = table->count;
    return 0;
}

void kvd_block_table_clear(struct kvd_service *service, struct kvd_block_table *table)
{
    for (uint32_t i = 0; i < table->span_room; i++) {
        if (table->spans[i] != NULL) {
            span_unref(service, table->spans[i]);
        }
    }
    give(service, table->spans, spans_bytes(table->span_room));
    *table = (struct kvd_block_table){0};
}
