/*
 * Tests of server/cold/cold_catalog.c: the bytes are those that COLD.md gives, and nothing else is
 * taken. fuzz_catalog.c tries the decoders with anything.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/cold/cold_catalog.h"

static const uint8_t fingerprint[KVD_FINGERPRINT_BYTES] = {
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

static void assert_bytes(struct kvd_cold_bytes *encoded, const void *expected, size_t bytes)
{
    assert_false(encoded->has_failed);
    assert_int_equal(encoded->bytes, bytes);
    assert_memory_equal(encoded->data, expected, bytes);
    kvd_cold_bytes_fini(encoded);
}

static void test_session_bytes(void **state)
{
    (void)state;
    static const uint8_t expected[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, /**/
        2, 0, 0, 0, 64, 0, 0, 0, 3, 0, 0, 0, 'a', '/', 'b'};
    struct kvd_cold_session_head head = {.encoder = 2, .seal_lag = 64, .name = "a/b"};
    struct kvd_cold_session_head back;
    struct kvd_cold_bytes encoded = {0};

    memcpy(head.fingerprint, fingerprint, sizeof(fingerprint));
    kvd_cold_session_encode(&encoded, &head);
    assert_bytes(&encoded, expected, sizeof(expected));
    assert_int_equal(kvd_cold_session_decode(expected, sizeof(expected), &back), 0);
    assert_memory_equal(&back, &head, sizeof(head));
    for (size_t bytes = 0; bytes < sizeof(expected); bytes++) {
        assert_int_equal(kvd_cold_session_decode(expected, bytes, &back), KVARN_ECORRUPT);
    }
}

/* Names at the limit are taken, longer ones, empty ones and those with a zero are not. */
static void test_session_names(void **state)
{
    (void)state;
    static uint8_t data[KVD_FINGERPRINT_BYTES + 12 + KVARN_SESSION_NAME_MAX + 1];
    const size_t at = KVD_FINGERPRINT_BYTES + 8;
    struct kvd_cold_session_head head;

    for (unsigned length = 0; length <= KVARN_SESSION_NAME_MAX + 1; length++) {
        memset(data + at + 4, 'n', length);
        data[at] = (uint8_t)length;
        data[at + 1] = (uint8_t)(length >> 8);
        int err = kvd_cold_session_decode(data, at + 4 + length, &head);
        bool is_good = length > 0 && length <= KVARN_SESSION_NAME_MAX;
        assert_int_equal(err, is_good ? 0 : KVARN_ECORRUPT);
        assert_true(!is_good || strlen(head.name) == length);
    }
    data[at] = 3;
    data[at + 1] = 0;
    memcpy(data + at + 4, "a\0b", 3);
    assert_int_equal(kvd_cold_session_decode(data, at + 7, &head), KVARN_ECORRUPT);
}

static void test_page_bytes(void **state)
{
    (void)state;
    static const uint8_t expected[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, /**/
        7, 0, 0, 0, 3, 0, 0, 0,                                                              /**/
        1, 2, 0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01,                                /**/
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0,                                                        /**/
        2, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    struct kvd_cold_page_head *head = calloc(2, sizeof(*head));
    struct kvd_cold_bytes encoded = {0};
    uint8_t wrong[sizeof(expected)];

    assert_non_null(head);
    memcpy(head->fingerprint, fingerprint, sizeof(fingerprint));
    head->block_idx = 7;
    head->layer_count = 3;
    head->layers[0] = (struct kvd_cold_page_layer){
        .kind = KVD_COLD_PAGE_TILES, .encoder = 2, .checksum = UINT64_C(0x0123456789abcdef)};
    head->layers[2].kind = KVD_COLD_PAGE_ROWS;
    kvd_cold_page_encode(&encoded, head);
    assert_bytes(&encoded, expected, sizeof(expected));
    assert_int_equal(kvd_cold_page_decode(expected, sizeof(expected), &head[1]), 0);
    assert_memory_equal(&head[0], &head[1], sizeof(*head));
    for (size_t bytes = 0; bytes < sizeof(expected); bytes++) {
        assert_int_equal(kvd_cold_page_decode(expected, bytes, &head[1]), KVARN_ECORRUPT);
    }
    memcpy(wrong, expected, sizeof(expected));
    wrong[24] = 3; /* no kind of page */
    assert_int_equal(kvd_cold_page_decode(wrong, sizeof(wrong), &head[1]), KVARN_ECORRUPT);
    memcpy(wrong, expected, sizeof(expected));
    wrong[21] = 0xff; /* more layers than any shape has */
    assert_int_equal(kvd_cold_page_decode(wrong, sizeof(wrong), &head[1]), KVARN_ECORRUPT);
    free(head);
}

static void test_map_bytes(void **state)
{
    (void)state;
    static const uint8_t expected[] = {9, 0, 0, 0, 0, 0, 0, 0x80, /* epoch */
        1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0,           /* tail: high half first */
        4, 0, 0, 0, 1, 0, 0, 0,                                   /* blocks, layers */
        44, 1, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0};
    struct kvd_cold_map_head *head = calloc(2, sizeof(*head));
    struct kvd_cold_bytes encoded = {0};
    uint8_t wrong[sizeof(expected)];

    assert_non_null(head);
    *head = (struct kvd_cold_map_head){.epoch = UINT64_C(0x8000000000000009),
        .tail_id = {1, 2},
        .block_count = 4,
        .layer_count = 1,
        .layers = {{.length = 300, .sealed_blocks = 4, .dropped_blocks = 2}}};
    kvd_cold_map_encode(&encoded, head);
    assert_bytes(&encoded, expected, sizeof(expected));
    assert_int_equal(kvd_cold_map_decode(expected, sizeof(expected), &head[1]), 0);
    assert_memory_equal(&head[0], &head[1], sizeof(*head));
    for (size_t bytes = 0; bytes < sizeof(expected); bytes++) {
        assert_int_equal(kvd_cold_map_decode(expected, bytes, &head[1]), KVARN_ECORRUPT);
    }
    memcpy(wrong, expected, sizeof(expected));
    wrong[36] = 1; /* a length beyond any session's */
    assert_int_equal(kvd_cold_map_decode(wrong, sizeof(wrong), &head[1]), KVARN_ECORRUPT);
    free(head);
}

static void test_tail_bytes(void **state)
{
    (void)state;
    static const uint8_t expected[] = {2, 0, 0, 0,                               /**/
        1, 0, 0, 0, 5, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, /* rows */
        2, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0x7f};
    struct kvd_cold_tail_page pages[2] = {{.layer = 1, .block_idx = 5, .filled_tokens = 17},
        {.layer = 2, .block_idx = 4, .encoder = 3, .checksum = UINT64_C(0x7f000000000000ff)}};
    struct kvd_cold_tail_head head = {.page_count = 2, .pages = pages};
    struct kvd_cold_tail_head back;
    struct kvd_cold_bytes encoded = {0};

    kvd_cold_tail_encode(&encoded, &head);
    assert_bytes(&encoded, expected, sizeof(expected));
    assert_int_equal(kvd_cold_tail_decode(expected, sizeof(expected), &back), 0);
    assert_int_equal(back.page_count, 2);
    assert_memory_equal(&back.pages[1], &pages[1], sizeof(pages[1]));
    free(back.pages);
    for (size_t bytes = 0; bytes < sizeof(expected); bytes++) {
        assert_int_equal(kvd_cold_tail_decode(expected, bytes, &back), KVARN_ECORRUPT);
        assert_null(back.pages);
    }
}

/* What is registered, written, read and registered again is one shape. */
static void test_shape_comes_back(void **state)
{
    (void)state;
    static const struct kvd_layer_group groups[] = {
        {.layers = 2, .kv_heads = 2, .k_dim = 16, .v_dim = 16, .window = 0},
        {.layers = 1, .kv_heads = 1, .k_dim = 24, .v_dim = 8, .window = 100}};
    static const struct kvd_shape_desc desc = {.model = "m",
        .revision = "r",
        .group = 64,
        .k_bits = 4,
        .v_bits = 2,
        .sink_tokens = 64,
        .layer_groups = groups,
        .layer_group_count = 2};
    struct kvd_shape_registry registry;
    const struct kvd_shape *shape, *again;
    struct kvd_cold_bytes encoded = {0};
    struct kvd_shape_desc read;
    void *memory = NULL;
    char why[200];

    kvd_shape_registry_init(&registry);
    assert_int_equal(kvd_shape_register(&registry, 1, &desc, &shape, why, sizeof(why)), 0);
    kvd_cold_shape_encode(&encoded, shape);
    for (size_t bytes = 0; bytes < encoded.bytes; bytes++) {
        assert_int_equal(
            kvd_cold_shape_decode(encoded.data, bytes, &read, &memory), KVARN_ECORRUPT);
    }
    assert_int_equal(kvd_cold_shape_decode(encoded.data, encoded.bytes, &read, &memory), 0);
    assert_int_equal(kvd_shape_register(&registry, 1, &read, &again, why, sizeof(why)), 0);
    assert_ptr_equal(shape, again);
    free(memory);
    kvd_cold_bytes_fini(&encoded);
    kvd_shape_registry_fini(&registry);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_session_bytes),
        cmocka_unit_test(test_session_names),
        cmocka_unit_test(test_page_bytes),
        cmocka_unit_test(test_map_bytes),
        cmocka_unit_test(test_tail_bytes),
        cmocka_unit_test(test_shape_comes_back),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
