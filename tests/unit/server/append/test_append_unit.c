/*
 * Tests of server/append/append_unit.c: placing a unit in a session, running it, taking it back.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include <cmocka.h>

#include "server/append/append_unit.h"
#include "server/session/session_blocks.h"
#include "tests/support/session_rig.h"
#include "tests/support/tiles.h"

/* A session with two blocks of pages, whose layers claim tokens that nobody wrote. */
struct fixture {
    struct kvt_rig rig;
    struct kvd_session *session;
    uint8_t *payload; /* owned */
};

static void fixture_init(struct fixture *fx)
{
    struct kvd_failure why = {0};

    kvt_rig_init(&fx->rig, &(struct kvt_rig_options){0});
    fx->session = kvt_session_open(&fx->rig, NULL, 0);
    assert_int_equal(kvd_session_want_work(fx->session), 0);
    fx->session->work->layers[0].pending_length = 128;
    assert_int_equal(kvd_session_add_block(fx->session, KVD_RESERVE_ROWS, &why), 0);
    assert_int_equal(kvd_session_add_block(fx->session, KVD_RESERVE_TILES, &why), 0);
    fx->payload = kvt_alloc(1 << 16);
}

static void fixture_fini(struct fixture *fx)
{
    free(fx->payload);
    fx->session->work->layers[0].pending_length = 0;
    kvt_session_drop(&fx->rig, fx->session);
    kvt_rig_fini(&fx->rig);
}

/* Pages of the first layer. */
static struct kvd_page *rows_at(const struct fixture *fx, uint32_t block_idx)
{
    return kvd_session_rows(fx->session, block_idx, 0);
}

static struct kvd_page *tiles_at(const struct fixture *fx, uint32_t block_idx)
{
    return kvd_session_tiles(fx->session, block_idx, 0);
}

static struct kvd_append_unit unit_of(const struct fixture *fx, uint64_t start, uint32_t count)
{
    struct kvd_append_unit unit;
    struct kvd_append_rows rows = {.start = start,
        .token_count = count,
        .src = fx->payload,
        .dtype = KVARN_F16,
        .is_rotated = true};

    assert_int_equal(kvd_append_units_from_rows(&unit, fx->rig.shape, &rows, rows.start, 1), 1);
    return unit;
}

static void test_span_of_blocks(void **state)
{
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    assert_int_equal(kvd_append_block_span(fx.rig.shape, 0, 1), 1);
    assert_int_equal(kvd_append_block_span(fx.rig.shape, 63, 1), 1);
    assert_int_equal(kvd_append_block_span(fx.rig.shape, 63, 2), 2);
    assert_int_equal(kvd_append_block_span(fx.rig.shape, 64, 64), 1);
    assert_int_equal(kvd_append_block_span(fx.rig.shape, 60, 1000), 17);
    assert_int_equal(kvd_append_block_span(fx.rig.shape, 60, 0), 0);
    fixture_fini(&fx);
}

static void test_place_writes_in_place_above_what_was_written(void **state)
{
    struct kvd_failure why = {0};
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    struct kvd_append_unit unit = unit_of(&fx, 0, 10);
    struct kvd_page *page = rows_at(&fx, 0);
    assert_int_equal(kvd_append_unit_place(&unit, fx.session, NULL, &why), 0);
    assert_ptr_equal(rows_at(&fx, 0), page);
    assert_ptr_equal(unit.dst, kvd_page_data(page));
    assert_int_equal(kvd_page_filled(page), 10);
    /* A reader of those ten rows does not hinder who writes the eleventh. */
    (void)kvd_page_ref(page);
    unit = unit_of(&fx, 10, 5);
    assert_int_equal(kvd_append_unit_place(&unit, fx.session, NULL, &why), 0);
    assert_ptr_equal(rows_at(&fx, 0), page);
    assert_null(unit.copied);
    kvd_append_unit_unplace(&unit, fx.session); /* nothing to undo */
    assert_ptr_equal(rows_at(&fx, 0), page);
    kvd_page_unref(&fx.rig.service.pages, page);
    fixture_fini(&fx);
}

static void test_place_copies_rows_that_a_reader_holds(void **state)
{
    struct kvd_failure why = {0};
    struct kvd_append_fault fault = {0};
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    struct kvd_append_unit unit = unit_of(&fx, 0, 20);
    memset(fx.payload, 0x11, 1 << 16);
    assert_int_equal(kvd_append_unit_place(&unit, fx.session, NULL, &why), 0);
    kvd_append_unit_run(&unit, &fault);
    assert_int_equal(fault.err, 0);
    struct kvd_page *page = kvd_page_ref(rows_at(&fx, 0));
    for (unsigned n = 0; n < 2; n++) {
        unit = unit_of(&fx, 12, 3);
        memset(fx.payload, 0x22, 1 << 16);
        assert_int_equal(kvd_append_unit_place(&unit, fx.session, NULL, &why), 0);
        assert_ptr_equal(unit.copied, page);
        assert_ptr_not_equal(rows_at(&fx, 0), page);
        if (n == 0) { /* refused: the page that was there comes back */
            kvd_append_unit_unplace(&unit, fx.session);
            assert_ptr_equal(rows_at(&fx, 0), page);
            assert_int_equal(page->refs, 2);
        }
    }
    kvd_append_unit_run(&unit, &fault);
    assert_int_equal(fault.err, 0);
    const uint8_t *row = kvd_page_data(rows_at(&fx, 0));
    assert_int_equal(row[11 * 32], 0x11);
    assert_int_equal(row[12 * 32], 0x22);
    assert_int_equal(((const uint8_t *)kvd_page_data(page))[12 * 32], 0x11);
    assert_int_equal(kvd_page_filled(rows_at(&fx, 0)), 15);
    kvd_page_unref(&fx.rig.service.pages, unit.copied);
    kvd_page_unref(&fx.rig.service.pages, page);
    fixture_fini(&fx);
}

static void test_place_takes_rows_where_records_were_expected(void **state)
{
    struct kvd_failure why = {0};
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    assert_null(rows_at(&fx, 1));
    struct kvd_append_unit unit = unit_of(&fx, 64, 3);
    assert_int_equal(kvd_append_unit_place(&unit, fx.session, NULL, &why), 0);
    assert_non_null(rows_at(&fx, 1));
    assert_int_equal(kvd_session_tail_pages(fx.session, 0), 1);
    kvd_append_unit_unplace(&unit, fx.session);
    assert_null(rows_at(&fx, 1));
    assert_int_equal(kvd_session_tail_pages(fx.session, 0), 0);
    fixture_fini(&fx);
}

static void test_s21_records_become_tiles(void **state)
{
    struct kvd_failure why = {0};
    struct kvd_append_fault fault = {0};
    struct kvd_append_unit unit;
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    const struct kvd_layer_shape *ls = &fx.rig.shape->layers[0];
    size_t record_bytes = kvarn_record_bytes(&ls->spec);
    struct kvt_rng rng = {.state = 3};
    float *k = kvt_alloc(64 * 16 * sizeof(float)), *v = kvt_alloc(64 * 16 * sizeof(float));
    uint8_t *tiles = kvt_alloc(ls->tile_page_bytes);
    for (uint32_t head = 0; head < 2; head++) {
        kvt_rows_fill(&rng, k, 64, 16, 1.0);
        kvt_rows_fill(&rng, v, 64, 16, 1.0);
        void *tile = kvt_tile_make(&ls->spec, KVARN_ENCODER_REFINED, k, v);
        memcpy(tiles + head * ls->tile_bytes, tile, ls->tile_bytes);
        kvarn_tile_to_record(&ls->spec, tile, fx.payload + head * record_bytes);
        free(tile);
    }
    assert_int_equal(kvd_append_units_from_records(&unit, fx.rig.shape, 0, 64, 64, fx.payload), 1);
    assert_int_equal(kvd_append_unit_place(&unit, fx.session, NULL, &why), 0);
    kvd_append_unit_run(&unit, &fault);
    assert_int_equal(fault.err, 0);
    kvd_append_unit_commit(&unit, fx.session);
    const struct kvd_page *page = tiles_at(&fx, 1);
    assert_memory_equal(kvd_page_data(page), tiles, ls->tile_page_bytes);
    assert_true(kvd_page_checksum_matches(
        kvd_page_checksum(page), XXH3_64bits(tiles, ls->tile_page_bytes)));
    assert_int_equal(page->encoder, KVARN_ENCODER_DEFAULT);
    free(k);
    free(v);
    free(tiles);
    fixture_fini(&fx);
}

static void test_s10_the_first_fault_is_named(void **state)
{
    struct kvd_failure why = {0};
    struct kvd_append_fault fault = {0};
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    struct kvd_append_unit unit = unit_of(&fx, 3, 10);
    assert_int_equal(kvd_append_unit_place(&unit, fx.session, NULL, &why), 0);
    /* V of head 0, row 7 and, later in order, K of head 1, row 2. */
    memset(fx.payload + (2 * 10 * 16 + 7 * 16 + 4) * 2, 0xff, 2);
    memset(fx.payload + (10 * 16 + 2 * 16) * 2, 0xff, 2);
    kvd_append_unit_run(&unit, &fault);
    assert_int_equal(fault.err, KVARN_EDOMAIN);
    kvd_append_fault_describe(&fault, &why);
    assert_int_equal(why.err, KVARN_EDOMAIN);
    assert_non_null(strstr(why.text, "V of layer 0, head 0, token 10"));
    fault = (struct kvd_append_fault){
        .err = KVARN_EINVALID, .is_records = true, .layer = 2, .head = 1, .token = 640};
    kvd_append_fault_describe(&fault, &why);
    assert_int_equal(why.err, KVARN_EINVALID);
    assert_non_null(strstr(why.text, "layer 2, head 1, tokens from 640"));
    fixture_fini(&fx);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_span_of_blocks),
    cmocka_unit_test(test_place_writes_in_place_above_what_was_written),
    cmocka_unit_test(test_place_copies_rows_that_a_reader_holds),
    cmocka_unit_test(test_place_takes_rows_where_records_were_expected),
    cmocka_unit_test(test_s21_records_become_tiles),
    cmocka_unit_test(test_s10_the_first_fault_is_named),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
