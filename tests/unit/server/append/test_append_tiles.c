/*
 * Tests of AppendTiles in server/append/append.c: what was read as stored, stored elsewhere
 * (SEMANTICS.md 21), held to the model of a session.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/session/session_blocks.h"
#include "tests/support/session_case.h"
#include "tests/support/tiles.h"

#define RUNS_MAX 16

/* Runs of a session as ReadBlocks gives them, with their payload. */
struct copy {
    struct kvd_append_run runs[RUNS_MAX];
    struct kvt_tiles tiles;
    uint8_t *payload; /* owned */
};

/* Rows [first, first + count) of one block, K of all heads, then V. */
static size_t copy_rows(const struct kvd_layer_shape *ls, const struct kvd_page *page,
    uint64_t first, uint64_t count, uint8_t *dst)
{
    uint8_t *start = dst;

    for (uint32_t n = 0; n < 2u * ls->kv_heads; n++) {
        bool is_v = n >= ls->kv_heads;
        uint32_t head = n % ls->kv_heads;
        size_t row_bytes = (is_v ? ls->spec.v_dim : ls->spec.k_dim) * sizeof(uint16_t);
        size_t offset = is_v ? kvd_rows_v_offset(ls, head) : kvd_rows_k_offset(ls, head);
        memcpy(dst, (const uint8_t *)kvd_page_data(page) + offset + first * row_bytes,
            count * row_bytes);
        dst += count * row_bytes;
    }
    return (size_t)(dst - start);
}

static size_t copy_records(
    const struct kvd_layer_shape *ls, const struct kvd_page *page, uint8_t *dst)
{
    size_t record_bytes = kvarn_record_bytes(&ls->spec);

    for (uint32_t head = 0; head < ls->kv_heads; head++) {
        kvarn_tile_to_record(&ls->spec,
            (const uint8_t *)kvd_page_data(page) + head * ls->tile_bytes,
            dst + head * record_bytes);
    }
    return ls->kv_heads * record_bytes;
}

/* A layer of an idle session whose sink is one block, and whose tail is within one. */
static void copy_layer(struct copy *copy, const struct kvd_session *session, uint32_t layer)
{
    const struct kvd_layer_shape *ls = &session->shape->layers[layer];
    const struct kvd_layer *ly = &session->layers[layer];
    uint64_t group = ls->spec.group;
    struct kvt_tiles *tiles = &copy->tiles;
    uint8_t *dst = copy->payload + tiles->payload_bytes;

    for (uint32_t b = 0; b * group < ly->length; b++) {
        const struct kvd_page *page = kvd_session_reader_page(session, layer, b, ly->sealed_blocks);
        uint64_t count = ly->length - b * group < group ? ly->length - b * group : group;
        bool is_records = page->page_class == KVD_PAGE_TILES;
        struct kvd_append_run *last =
            tiles->run_count == 0 ? NULL : &copy->runs[tiles->run_count - 1];
        if (last != NULL && is_records && last->is_records && last->layer == layer) {
            last->token_count += count;
        } else {
            copy->runs[tiles->run_count++] = (struct kvd_append_run){.layer = layer,
                .first_token = b * group,
                .token_count = count,
                .is_records = is_records};
        }
        dst += is_records ? copy_records(ls, page, dst) : copy_rows(ls, page, 0, count, dst);
    }
    tiles->payload_bytes = (size_t)(dst - copy->payload);
}

static void copy_init(struct copy *copy, const struct kvd_session *from, struct kvd_session *to)
{
    *copy = (struct copy){.payload = kvt_alloc(1 << 20)};
    copy->tiles = (struct kvt_tiles){
        .session = to, .epoch = to->epoch, .runs = copy->runs, .payload = copy->payload};
    for (uint32_t i = 0; i < from->shape->layer_count; i++) {
        copy_layer(copy, from, i);
    }
    assert_true(copy->tiles.run_count <= RUNS_MAX);
}

static int copy_send(struct kvt_rig *rig, struct copy *copy)
{
    assert_int_equal(kvt_tiles_begin(rig, &copy->tiles), 0);
    kvt_rig_settle(rig);
    assert_int_equal(copy->tiles.outcome.done_count, 1);
    return copy->tiles.outcome.why.err;
}

static void test_s21_read_and_append_clones_a_session(void **state)
{
    static const uint32_t lengths[] = {1, 64, 65, 128, 150, 227};
    (void)state;

    for (unsigned i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        struct kvt_case c;
        struct copy copy;
        kvt_case_init(&c, NULL, 0);
        kvt_case_grow(&c, lengths[i]);
        if (c.session->layers[2].dropped_blocks > 0) {
            fail_msg("choose lengths within the window");
        }
        struct kvd_session *clone = kvt_session_open(&c.rig, NULL, 0);
        copy_init(&copy, c.session, clone);
        assert_int_equal(copy_send(&c.rig, &copy), 0);
        assert_false(copy.tiles.outcome.is_flagged);
        assert_int_equal(kvt_model_check(&c.model, clone), 0); /* to the bit */
        assert_int_equal(copy_send(&c.rig, &copy), 0);
        assert_true(copy.tiles.outcome.is_flagged);
        assert_int_equal(kvt_model_check(&c.model, clone), 0);
        free(copy.payload);
        kvt_session_drop(&c.rig, clone);
        kvt_case_fini(&c);
    }
}

/* `count` blocks of records of zeros for a layer, from its length on. */
static void zeros_init(
    struct copy *copy, struct kvd_session *session, uint32_t layer, uint32_t count)
{
    uint32_t group = session->shape->group;

    *copy = (struct copy){0};
    copy->runs[0] = (struct kvd_append_run){.layer = layer,
        .first_token = session->layers[layer].length,
        .token_count = (uint64_t)count * group,
        .is_records = true};
    size_t bytes = (size_t)kvd_append_run_bytes(session->shape, &copy->runs[0]);
    copy->payload = kvt_alloc(bytes);
    copy->tiles = (struct kvt_tiles){.session = session,
        .epoch = session->epoch,
        .runs = copy->runs,
        .run_count = 1,
        .payload = copy->payload,
        .payload_bytes = bytes};
}

/* With a lag of a whole group a full block is open when the records after it arrive. */
static void test_s02_records_behind_open_blocks_seal_them(void **state)
{
    struct copy copy;
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 64);
    kvt_case_grow(&c, 192);
    assert_int_equal(c.session->layers[0].sealed_blocks, 2);
    assert_non_null(kvd_session_rows(c.session, 2, 0));
    zeros_init(&copy, c.session, 0, 2);
    kvt_model_tiles(&c.model, &copy.tiles);
    assert_int_equal(kvt_tiles_begin(&c.rig, &copy.tiles), 0);
    struct kvt_attend attend = kvt_attend_of(c.session, 0, 1, 1);
    kvt_model_attend(&c.model, &attend, 5);
    kvt_attend_begin(&c.rig, &attend); /* it waits for the seal of block 2 */
    kvt_rig_settle(&c.rig);
    assert_int_equal(copy.tiles.outcome.why.err, 0);
    assert_int_equal(c.session->layers[0].sealed_blocks, 5);
    assert_true(kvt_attend_error(&attend) < 1e-4);
    kvt_attend_fini(&attend);
    free(copy.payload);
    kvt_case_fini(&c);
}

static void test_s11_records_are_reopened_like_other_tiles(void **state)
{
    struct copy copy;
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 128);
    zeros_init(&copy, c.session, 0, 3);
    kvt_model_tiles(&c.model, &copy.tiles);
    assert_int_equal(copy_send(&c.rig, &copy), 0);
    assert_int_equal(c.session->pages_by_encoder[KVARN_ENCODER_DEFAULT], 3);
    assert_true(kvt_case_cut(&c, 200));
    kvt_case_check(&c);
    struct kvt_append append = kvt_append_of(c.session, 100, 1);
    append.layer_count = 1;
    kvt_case_store(&c, append);
    /* Rows for the layers that the records' blocks had no rows pages for. */
    append = kvt_append_of(c.session, 150, 2);
    append.layer_first = 1;
    append.layer_count = 2;
    append.start = 128;
    kvt_case_store(&c, append);
    free(copy.payload);
    kvt_case_fini(&c);
}

static void check_refused(struct kvt_case *c, struct copy *copy, int err, const char *words)
{
    assert_int_equal(copy_send(&c->rig, copy), err);
    if (strstr(copy->tiles.outcome.why.text, words) == NULL) {
        fail_msg("%s is not in: %s", words, copy->tiles.outcome.why.text);
    }
    kvt_case_check(c);
    free(copy->payload);
}

static void test_s21_bad_records_store_nothing(void **state)
{
    struct copy copy;
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 64);
    const struct kvarn_tile_spec *spec = &c.rig.shape->layers[1].spec;
    size_t record_bytes = kvarn_record_bytes(spec);
    zeros_init(&copy, c.session, 1, 3);
    memset(copy.payload + 5 * record_bytes, 0xff, record_bytes); /* block 2, head 1 */
    int err = kvarn_record_validate(spec, copy.payload + 5 * record_bytes, record_bytes);
    assert_int_equal(err, KVARN_EDOMAIN);
    check_refused(&c, &copy, err, "layer 1, head 1, tokens from 192");
    zeros_init(&copy, c.session, 1, 3);
    copy.tiles.epoch--;
    check_refused(&c, &copy, KVARN_ESTALE_EPOCH, "epoch");
    zeros_init(&copy, c.session, 1, 3);
    copy.runs[0].first_token += 64;
    check_refused(&c, &copy, KVARN_ECONFLICT, "layer 1 has 64 tokens, got start 128");
    zeros_init(&copy, c.session, 1, 3);
    copy.tiles.deadline_ns = 1;
    check_refused(&c, &copy, KVARN_EDEADLINE, "nothing was stored");
    /* A record refused as to meaning: halves beyond the range, after good records. */
    zeros_init(&copy, c.session, 1, 1);
    copy.runs[1] = (struct kvd_append_run){.layer = 1, .first_token = 128, .token_count = 3};
    copy.tiles.run_count = 2;
    size_t rows_bytes = (size_t)kvd_append_run_bytes(c.rig.shape, &copy.runs[1]);
    uint8_t *payload = kvt_alloc(copy.tiles.payload_bytes + rows_bytes);
    memcpy(payload + copy.tiles.payload_bytes + rows_bytes - 2, "\x00\x7c", 2); /* infinite */
    free(copy.payload);
    copy.payload = payload;
    copy.tiles.payload = payload;
    copy.tiles.payload_bytes += rows_bytes;
    check_refused(&c, &copy, KVARN_EDOMAIN, "V of layer 1, head 1, token 130");
    kvt_case_fini(&c);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_s21_read_and_append_clones_a_session),
    cmocka_unit_test(test_s02_records_behind_open_blocks_seal_them),
    cmocka_unit_test(test_s11_records_are_reopened_like_other_tiles),
    cmocka_unit_test(test_s21_bad_records_store_nothing),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
