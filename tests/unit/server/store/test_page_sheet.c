/* Unit tests of page descriptors: numbers are unique, found again, and leave nothing behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "server/base/alloc_bytes.h"
#include "server/store/page_sheet.h"

/* More than two leaves of 512 sheets. */
#define SHEETS 1100u

struct fixture {
    struct kvd_budget budget;
    struct kvd_page_sheets sheets;
    struct kvd_page_set *made[SHEETS];
};

static void fixture_init(struct fixture *fx, uint64_t limit_bytes)
{
    *fx = (struct fixture){.sheets = {.budget = &fx->budget}};
    kvd_budget_init(&fx->budget, limit_bytes);
}

/* Sheets of all sizes. */
static uint32_t pages_of(uint32_t i)
{
    return 1 + i * 37 % KVD_SHEET_PAGES;
}

static struct kvd_chunk *chunk_of(uint32_t i)
{
    return (struct kvd_chunk *)(void *)(uintptr_t)(64 * (i + 1)); /* never followed */
}

static void make(struct fixture *fx, uint32_t i)
{
    assert_int_equal(
        kvd_sheet_create(&fx->sheets, chunk_of(i), 7 * i, pages_of(i), &fx->made[i]), 0);
}

static void destroy(struct fixture *fx, uint32_t i)
{
    kvd_sheet_destroy(&fx->sheets, fx->made[i], pages_of(i));
    fx->made[i] = NULL;
}

static void check(const struct fixture *fx, uint32_t i)
{
    for (uint32_t p = 0; p < pages_of(i); p++) {
        struct kvd_page *page = kvd_sheet_page(fx->made[i], p);
        const struct kvd_page_set *set = kvd_page_set_of(page);
        uint32_t id = kvd_page_id(page);
        assert_int_not_equal(id, 0);
        assert_ptr_equal(kvd_sheets_find(&fx->sheets, id), page);
        assert_ptr_equal(set->chunk, chunk_of(i));
        assert_int_equal(set->slot_first + (uint32_t)(page - set->pages), 7 * i + p);
        assert_int_equal(page->refs, 0);
    }
}

static void test_pages_are_found_by_their_numbers(void **state)
{
    static struct fixture fx;
    (void)state;

    fixture_init(&fx, UINT64_C(64) << 20);
    for (uint32_t i = 0; i < SHEETS; i++) {
        make(&fx, i);
    }
    assert_int_equal(fx.sheets.leaf_count, 3);
    for (uint32_t i = 0; i < SHEETS; i++) {
        check(&fx, i);
    }
    /* The numbers of what goes are given again: no further leaf. */
    for (uint32_t i = 0; i < SHEETS; i += 3) {
        destroy(&fx, i);
    }
    for (uint32_t i = 0; i < SHEETS; i += 3) {
        make(&fx, i);
    }
    assert_int_equal(fx.sheets.leaf_count, 3);
    for (uint32_t i = 0; i < SHEETS; i++) {
        check(&fx, i);
        destroy(&fx, i);
    }
    assert_int_equal(fx.sheets.leaf_count, 0);
    assert_int_equal(fx.budget.used_bytes, 0);
}

static void test_a_leaf_goes_with_its_last_sheet(void **state)
{
    static struct fixture fx;
    (void)state;

    fixture_init(&fx, UINT64_C(64) << 20);
    for (uint32_t i = 0; i < SHEETS; i++) {
        make(&fx, i);
    }
    for (uint32_t i = 0; i < 512; i++) {
        destroy(&fx, i);
    }
    assert_int_equal(fx.sheets.leaf_count, 2);
    make(&fx, 0);
    assert_int_equal(fx.sheets.leaf_count, 3);
    check(&fx, 0);
    check(&fx, SHEETS - 1);
    destroy(&fx, 0);
    for (uint32_t i = 512; i < SHEETS; i++) {
        destroy(&fx, i);
    }
    assert_int_equal(fx.budget.used_bytes, 0);
}

static void test_s05_every_limit_leaves_no_trace(void **state)
{
    static struct fixture fx;
    unsigned refused = 0;
    (void)state;

    for (uint64_t limit = 0; limit < 10000; limit += 64) {
        fixture_init(&fx, limit);
        int err = kvd_sheet_create(&fx.sheets, chunk_of(0), 0, KVD_SHEET_PAGES, &fx.made[0]);
        if (err == 0) {
            kvd_sheet_destroy(&fx.sheets, fx.made[0], KVD_SHEET_PAGES);
        } else {
            assert_int_equal(err, KVARN_ENOSPC);
            refused++;
        }
        assert_int_equal(fx.budget.used_bytes, 0);
    }
    assert_in_range(refused, 1, 10000 / 64 - 1);
}

static void test_bytes_are_the_allocators_classes(void **state)
{
    static const size_t classes[] = {0, 16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320,
        384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096};
    size_t at = 0;
    (void)state;

    for (size_t bytes = 0; bytes <= 4096; bytes++) {
        at += bytes > classes[at] ? 1 : 0;
        assert_int_equal(kvd_alloc_bytes(bytes), classes[at]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pages_are_found_by_their_numbers),
        cmocka_unit_test(test_a_leaf_goes_with_its_last_sheet),
        cmocka_unit_test(test_s05_every_limit_leaves_no_trace),
        cmocka_unit_test(test_bytes_are_the_allocators_classes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
