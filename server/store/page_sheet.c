/*
 * Descriptors of pages: sheets and their numbers.
 *
 * Owner: page store. Thread: loop only.
 */
#include "server/store/page_sheet.h"

#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/base/alloc_bytes.h"

#define LEAF_SHEETS   (1u << KVD_SHEET_LEAF_BITS)
#define LEAF_BYTES    (LEAF_SHEETS * sizeof(void *))
#define LEAF_ROOM_MIN 4u
#define LEAF_ROOM_MAX (1u << (32 - KVD_SHEET_PLACE_BITS - KVD_SHEET_LEAF_BITS))

/* Zeroed and charged; NULL: no room. */
static void *take(struct kvd_page_sheets *sheets, size_t bytes)
{
    if (kvd_budget_charge(sheets->budget, KVD_BUDGET_SESSIONS, bytes) != 0) {
        return NULL;
    }
    void *memory = calloc(1, bytes);
    if (memory == NULL) {
        kvd_budget_release(sheets->budget, KVD_BUDGET_SESSIONS, bytes);
    }
    return memory;
}

static void give(struct kvd_page_sheets *sheets, void *memory, size_t bytes)
{
    free(memory);
    kvd_budget_release(sheets->budget, KVD_BUDGET_SESSIONS, bytes);
}

/* What a free entry holds: the index of the next one, marked. */
static void *free_entry(uint32_t next)
{
    return (void *)((uintptr_t)next << 1 | 1);
}

static uint16_t free_next(const void *entry)
{
    KVARN_ASSERT(((uintptr_t)entry & 1) != 0);
    return (uint16_t)((uintptr_t)entry >> 1);
}

static int leaves_grow(struct kvd_page_sheets *sheets)
{
    uint32_t room = sheets->leaf_room == 0 ? LEAF_ROOM_MIN : 2 * sheets->leaf_room;

    if (room > LEAF_ROOM_MAX) {
        return KVARN_ENOSPC;
    }
    struct kvd_sheet_leaf *leaves = take(sheets, room * sizeof(*leaves));
    if (leaves == NULL) {
        return KVARN_ENOSPC;
    }
    if (sheets->leaf_room > 0) {
        memcpy(leaves, sheets->leaves, sheets->leaf_room * sizeof(*leaves));
        give(sheets, sheets->leaves, sheets->leaf_room * sizeof(*leaves));
    }
    sheets->leaves = leaves;
    sheets->leaf_room = room;
    return 0;
}

/* Returns 0, or KVARN_ENOSPC. */
static int leaf_make(struct kvd_page_sheets *sheets, uint32_t leaf_idx)
{
    void **entries = take(sheets, LEAF_BYTES);

    if (entries == NULL) {
        return KVARN_ENOSPC;
    }
    if (leaf_idx >= sheets->leaf_room || sheets->leaves[leaf_idx].sheets != NULL) {
        give(sheets, entries, LEAF_BYTES); /* the charge has changed what is there */
        return 0;
    }
    for (uint32_t i = 0; i < LEAF_SHEETS; i++) {
        entries[i] = free_entry(i + 1);
    }
    sheets->leaves[leaf_idx] = (struct kvd_sheet_leaf){.sheets = entries};
    sheets->leaf_count++;
    return 0;
}

static void leaves_free_if_unused(struct kvd_page_sheets *sheets)
{
    if (sheets->leaf_count > 0 || sheets->leaf_room == 0) {
        return;
    }
    give(sheets, sheets->leaves, sheets->leaf_room * sizeof(sheets->leaves[0]));
    sheets->leaves = NULL;
    sheets->leaf_room = 0;
    sheets->leaf_hint = 0;
}

/* Give a leaf without sheets back, and all that is left with the last one. */
static void leaf_free_if_unused(struct kvd_page_sheets *sheets, uint32_t leaf_idx)
{
    struct kvd_sheet_leaf *leaf = &sheets->leaves[leaf_idx];

    if (leaf->used_count > 0) {
        return;
    }
    give(sheets, leaf->sheets, LEAF_BYTES);
    *leaf = (struct kvd_sheet_leaf){0};
    sheets->leaf_count--;
    leaves_free_if_unused(sheets);
}

/*
 * Find a leaf with a free number. A charge may make the store give chunks back, with their sheets
 * and leaves, so that nothing is remembered across one. Returns 0 or KVARN_ENOSPC.
 */
static int leaf_find(struct kvd_page_sheets *sheets, uint32_t *ret)
{
    for (;;) {
        uint32_t i = sheets->leaf_hint;
        while (i < sheets->leaf_room && sheets->leaves[i].used_count == LEAF_SHEETS) {
            i++;
        }
        if (i < sheets->leaf_room && sheets->leaves[i].sheets != NULL) {
            *ret = i;
            return 0;
        }
        int err = i < sheets->leaf_room ? leaf_make(sheets, i) : leaves_grow(sheets);
        if (err != 0) {
            leaves_free_if_unused(sheets);
            return err;
        }
    }
}

static int number_take(struct kvd_page_sheets *sheets, void *sheet, uint32_t *ret)
{
    uint32_t leaf_idx = 0;
    int err = leaf_find(sheets, &leaf_idx);

    if (err != 0) {
        return err;
    }
    struct kvd_sheet_leaf *leaf = &sheets->leaves[leaf_idx];
    uint32_t idx = leaf->free_first;
    leaf->free_first = free_next(leaf->sheets[idx]);
    leaf->sheets[idx] = sheet;
    leaf->used_count++;
    sheets->leaf_hint = leaf_idx;
    *ret = leaf_idx << KVD_SHEET_LEAF_BITS | idx;
    return 0;
}

static void number_give(struct kvd_page_sheets *sheets, uint32_t number)
{
    uint32_t leaf_idx = number >> KVD_SHEET_LEAF_BITS;
    uint32_t idx = number & (LEAF_SHEETS - 1);
    struct kvd_sheet_leaf *leaf = &sheets->leaves[leaf_idx];

    KVARN_ASSERT(leaf->used_count > 0);
    leaf->sheets[idx] = free_entry(leaf->free_first);
    leaf->free_first = (uint16_t)idx;
    leaf->used_count--;
    if (leaf_idx < sheets->leaf_hint) {
        sheets->leaf_hint = leaf_idx;
    }
    leaf_free_if_unused(sheets, leaf_idx);
}

static uint32_t set_count(uint32_t page_count)
{
    return (page_count + KVD_SET_PAGES - 1) / KVD_SET_PAGES;
}

/* The classes of the allocator are multiples of a set here, and aligned to it. */
static size_t sheet_bytes(uint32_t page_count)
{
    return kvd_alloc_bytes(set_count(page_count) * sizeof(struct kvd_page_set));
}

int kvd_sheet_create(struct kvd_page_sheets *sheets, struct kvd_chunk *chunk, uint32_t slot_first,
    uint32_t page_count, struct kvd_page_set **ret)
{
    size_t bytes = sheet_bytes(page_count);
    uint32_t number;

    KVARN_ASSERT(page_count > 0 && page_count <= KVD_SHEET_PAGES);
    if (kvd_budget_charge(sheets->budget, KVD_BUDGET_SESSIONS, bytes) != 0) {
        return KVARN_ENOSPC;
    }
    struct kvd_page_set *sheet = aligned_alloc(sizeof(struct kvd_page_set), bytes);
    if (sheet == NULL || number_take(sheets, sheet, &number) != 0) {
        free(sheet);
        kvd_budget_release(sheets->budget, KVD_BUDGET_SESSIONS, bytes);
        return KVARN_ENOSPC;
    }
    memset(sheet, 0, bytes);
    for (uint32_t i = 0; i < set_count(page_count); i++) {
        uint32_t place = (uint32_t)(sheet[i].pages - (struct kvd_page *)(void *)sheet);
        sheet[i].chunk = chunk;
        sheet[i].id_first = number << KVD_SHEET_PLACE_BITS | place;
        sheet[i].slot_first = slot_first + i * KVD_SET_PAGES;
    }
    *ret = sheet;
    return 0;
}

void kvd_sheet_destroy(
    struct kvd_page_sheets *sheets, struct kvd_page_set *sheet, uint32_t page_count)
{
    number_give(sheets, sheet->id_first >> KVD_SHEET_PLACE_BITS);
    give(sheets, sheet, sheet_bytes(page_count));
}
