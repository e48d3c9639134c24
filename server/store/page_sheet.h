/*
 * Descriptors of pages: eight bytes each, in sheets of at most 480, and numbers by which pages are
 * found, so that whoever holds a page for long keeps four bytes instead of a pointer.
 *
 * Owner: page store. Thread: loop only, but for kvd_page_set_of(), whose set does not change while
 * a reference to one of its pages is held.
 *
 * A sheet is one allocation of up to 16 sets; a set, aligned to its 256 bytes, is a head that says
 * which chunk it is of, and 30 pages. A page's number is that of its sheet and its place there,
 * counted in descriptors; the head takes the first two of a set, so that 0 is no page's number.
 */
#ifndef KVD_PAGE_SHEET_H
#define KVD_PAGE_SHEET_H

#include <stdint.h>

#include "kvarn/err.h"
#include "server/base/budget.h"

struct kvd_chunk;

/* 36 bits of a checksum: one damaged page in 7e10 is not found. */
#define KVD_PAGE_CHECK_BITS 36
#define KVD_PAGE_CHECK_MASK ((UINT64_C(1) << KVD_PAGE_CHECK_BITS) - 1)

/* References to a page: more sessions than there may be, and 15 million readers. */
#define KVD_PAGE_REFS_MAX ((UINT32_C(1) << 24) - 1)

/* Descriptor of a page. Use page_store.h's functions for what its bits mean. */
struct kvd_page {
    uint32_t check_low;      /* tiles: of the checksum; rows: how many were ever written */
    uint32_t check_high : 4; /* tiles: the rest of it */
    uint32_t page_class : 2; /* enum kvd_page_class */
    uint32_t encoder : 2;    /* enum kvarn_encoder of a sealed page */
    uint32_t refs : 24;
};
_Static_assert(sizeof(struct kvd_page) == 8, "a page costs 16 bytes in all, these among them");

#define KVD_SET_PAGES   30u
#define KVD_SHEET_SETS  16u
#define KVD_SHEET_PAGES (KVD_SET_PAGES * KVD_SHEET_SETS)

struct kvd_page_set {
    struct kvd_chunk *chunk; /* borrowed: owns the sheet */
    uint32_t id_first;       /* of pages[0] */
    uint32_t slot_first;     /* of pages[0], in the chunk */
    struct kvd_page pages[KVD_SET_PAGES];
};
_Static_assert(sizeof(struct kvd_page_set) == 256, "its alignment, by which a page finds it");

/* Places of a sheet, of 8 bytes each, and what the rest of a number says. */
#define KVD_SHEET_PLACE_BITS 9u
#define KVD_SHEET_LEAF_BITS  9u
_Static_assert(sizeof(struct kvd_page_set) * KVD_SHEET_SETS / sizeof(struct kvd_page) ==
                   1u << KVD_SHEET_PLACE_BITS,
    "a number finds any page of a sheet");

/* Sheets by number: a leaf holds 512 of them. */
struct kvd_sheet_leaf {
    void **sheets;       /* owned array; an entry that is free holds the next one's index */
    uint16_t used_count; /* 0: there is no array */
    uint16_t free_first; /* if not all are used */
};

struct kvd_page_sheets {
    struct kvd_budget *budget;     /* borrowed */
    struct kvd_sheet_leaf *leaves; /* owned array */
    uint32_t leaf_room;
    uint32_t leaf_hint; /* all below are full */
    uint32_t leaf_count;
};

/*
 * Make the descriptors of `page_count` (<= KVD_SHEET_PAGES) slots of a chunk from `slot_first` on,
 * zeroed. Charged. Returns 0 or KVARN_ENOSPC.
 */
int kvd_sheet_create(struct kvd_page_sheets *sheets, struct kvd_chunk *chunk, uint32_t slot_first,
    uint32_t page_count, struct kvd_page_set **ret) KVARN_MUST_CHECK;

/* Free them; `page_count` as it was. */
void kvd_sheet_destroy(
    struct kvd_page_sheets *sheets, struct kvd_page_set *sheet, uint32_t page_count);

static inline struct kvd_page_set *kvd_page_set_of(const struct kvd_page *page)
{
    return (void *)((uintptr_t)page & ~(uintptr_t)(sizeof(struct kvd_page_set) - 1));
}

/* One of the first `page_count` pages of a sheet. */
static inline struct kvd_page *kvd_sheet_page(struct kvd_page_set *sheet, uint32_t idx)
{
    return &sheet[idx / KVD_SET_PAGES].pages[idx % KVD_SET_PAGES];
}

/* The number of a page, never 0. */
static inline uint32_t kvd_page_id(const struct kvd_page *page)
{
    const struct kvd_page_set *set = kvd_page_set_of(page);

    return set->id_first + (uint32_t)(page - set->pages);
}

/* The page of a number that is not 0. */
static inline struct kvd_page *kvd_sheets_find(const struct kvd_page_sheets *sheets, uint32_t id)
{
    uint32_t number = id >> KVD_SHEET_PLACE_BITS;
    const struct kvd_sheet_leaf *leaf = &sheets->leaves[number >> KVD_SHEET_LEAF_BITS];
    struct kvd_page *sheet = leaf->sheets[number & ((1u << KVD_SHEET_LEAF_BITS) - 1)];

    return &sheet[id & ((1u << KVD_SHEET_PLACE_BITS) - 1)];
}

#endif
