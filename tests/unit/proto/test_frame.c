/*
 * Tests of proto/frame.c: the header's exact bytes, every single flipped bit, the limits.
 *
 * Owner: ctest. Thread: one.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <zlib.h>

#include <cmocka.h>

#include "lib/base/limits.h"
#include "proto/frame.h"

/* Every field has bytes of its own, so that a swap of two shows. */
static const struct kvarn_frame_header sample = {
    .version = KVARN_FRAME_VERSION,
    .type = KVARN_FRAME_APPEND,
    .flags = KVARN_FRAME_REPLY | KVARN_FRAME_PAYLOAD_XXH3,
    .message_bytes = 0x8765,
    .request_id = UINT64_C(0x1122334455667788),
    .payload_bytes = UINT64_C(0x0a0b0c0d),
};

static uint32_t crc_of(const uint8_t *header)
{
    return (uint32_t)crc32(crc32(0, NULL, 0), header, 28);
}

/* Give changed bytes a right CRC, so that it is their meaning that is judged. */
static void crc_renew(uint8_t *header)
{
    const uint32_t crc = crc_of(header);

    for (unsigned i = 0; i < 4; i++) {
        header[28 + i] = (uint8_t)(crc >> (8 * i));
    }
}

static void encodes_little_endian_at_fixed_offsets(void **state)
{
    (void)state;
    static const uint8_t before_crc[28] = {'K', 'V', 'N', '1', 1, 5, 3, 0, 0x65, 0x87, 0, 0, 0x88,
        0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x0d, 0x0c, 0x0b, 0x0a, 0, 0, 0, 0};
    uint8_t bytes[KVARN_FRAME_HEADER_BYTES];

    kvarn_frame_encode(&sample, bytes);
    assert_memory_equal(bytes, before_crc, sizeof before_crc);
    const uint32_t crc = crc_of(bytes);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(bytes[28 + i], (uint8_t)(crc >> (8 * i)));
    }
}

static void encode_sets_the_version_itself(void **state)
{
    (void)state;
    struct kvarn_frame_header header = sample;
    struct kvarn_frame_header back;
    uint8_t bytes[KVARN_FRAME_HEADER_BYTES];

    header.version = 0;
    kvarn_frame_encode(&header, bytes);
    assert_int_equal(kvarn_frame_decode(bytes, &back), 0);
    assert_int_equal(back.version, KVARN_FRAME_VERSION);
}

static void decode_gives_back_what_was_encoded(void **state)
{
    (void)state;
    struct kvarn_frame_header back = {0};
    uint8_t bytes[KVARN_FRAME_HEADER_BYTES];

    kvarn_frame_encode(&sample, bytes);
    assert_int_equal(kvarn_frame_decode(bytes, &back), 0);
    assert_int_equal(back.version, sample.version);
    assert_int_equal(back.type, sample.type);
    assert_int_equal(back.flags, sample.flags);
    assert_int_equal(back.message_bytes, sample.message_bytes);
    assert_int_equal(back.request_id, sample.request_id);
    assert_int_equal(back.payload_bytes, sample.payload_bytes);
}

static void every_flipped_bit_is_refused(void **state)
{
    (void)state;
    uint8_t bytes[KVARN_FRAME_HEADER_BYTES];
    unsigned refused = 0;

    kvarn_frame_encode(&sample, bytes);
    for (unsigned bit = 0; bit < 8 * KVARN_FRAME_HEADER_BYTES; bit++) {
        struct kvarn_frame_header untouched = {.type = 0xee, .request_id = 77};

        bytes[bit / 8] = (uint8_t)(bytes[bit / 8] ^ (1u << (bit % 8)));
        refused += kvarn_frame_decode(bytes, &untouched) == KVARN_EPROTOCOL;
        assert_int_equal(untouched.type, 0xee);
        assert_int_equal(untouched.request_id, 77);
        bytes[bit / 8] = (uint8_t)(bytes[bit / 8] ^ (1u << (bit % 8)));
    }
    assert_int_equal(refused, 256);
}

static void another_magic_is_refused_with_its_crc_right(void **state)
{
    (void)state;
    struct kvarn_frame_header back;
    uint8_t bytes[KVARN_FRAME_HEADER_BYTES];

    kvarn_frame_encode(&sample, bytes);
    memcpy(bytes, "KVN2", 4);
    crc_renew(bytes);
    assert_int_equal(kvarn_frame_decode(bytes, &back), KVARN_EPROTOCOL);
}

static void another_version_is_unsupported(void **state)
{
    (void)state;
    struct kvarn_frame_header back;
    uint8_t bytes[KVARN_FRAME_HEADER_BYTES];

    for (unsigned version = 0; version < 256; version++) {
        kvarn_frame_encode(&sample, bytes);
        bytes[4] = (uint8_t)version;
        crc_renew(bytes);
        assert_int_equal(kvarn_frame_decode(bytes, &back),
            version == KVARN_FRAME_VERSION ? 0 : KVARN_EUNSUPPORTED);
    }
}

static void flags_that_are_not_known_are_refused(void **state)
{
    (void)state;
    struct kvarn_frame_header back;
    uint8_t bytes[KVARN_FRAME_HEADER_BYTES];

    for (unsigned bit = 0; bit < 16; bit++) {
        struct kvarn_frame_header header = sample;

        header.flags = (uint16_t)(1u << bit);
        kvarn_frame_encode(&header, bytes);
        assert_int_equal(kvarn_frame_decode(bytes, &back),
            (header.flags & KVARN_FRAME_FLAGS_KNOWN) != 0 ? 0 : KVARN_EPROTOCOL);
    }
}

static int decode_sizes(uint32_t message_bytes, uint64_t payload_bytes)
{
    struct kvarn_frame_header header = sample;
    struct kvarn_frame_header back;
    uint8_t bytes[KVARN_FRAME_HEADER_BYTES];

    header.message_bytes = message_bytes;
    header.payload_bytes = payload_bytes;
    kvarn_frame_encode(&header, bytes);
    return kvarn_frame_decode(bytes, &back);
}

static void sizes_above_the_limits_are_too_large(void **state)
{
    (void)state;
    assert_int_equal(decode_sizes(0, 0), 0);
    assert_int_equal(decode_sizes(KVARN_MESSAGE_BYTES_MAX, KVARN_PAYLOAD_BYTES_MAX), 0);
    assert_int_equal(decode_sizes(KVARN_MESSAGE_BYTES_MAX + 1, 0), KVARN_ETOO_LARGE);
    assert_int_equal(decode_sizes(UINT32_MAX, 0), KVARN_ETOO_LARGE);
    assert_int_equal(decode_sizes(0, KVARN_PAYLOAD_BYTES_MAX + 1), KVARN_ETOO_LARGE);
    assert_int_equal(decode_sizes(0, UINT64_MAX), KVARN_ETOO_LARGE);
    assert_int_equal(decode_sizes(0, UINT64_C(1) << 32), KVARN_ETOO_LARGE);
}

static void the_type_is_not_judged(void **state)
{
    (void)state;
    for (unsigned type = 0; type < 256; type++) {
        struct kvarn_frame_header header = sample;
        struct kvarn_frame_header back;
        uint8_t bytes[KVARN_FRAME_HEADER_BYTES];

        header.type = (uint8_t)type;
        kvarn_frame_encode(&header, bytes);
        assert_int_equal(kvarn_frame_decode(bytes, &back), 0);
        assert_int_equal(back.type, type);
    }
}

static void types_keep_their_numbers_and_labels(void **state)
{
    (void)state;
    assert_int_equal(KVARN_FRAME_HELLO, 1);
    assert_int_equal(KVARN_FRAME_APPEND_ATTEND, 9);
    assert_int_equal(KVARN_FRAME_CANCEL, 16);
    assert_int_equal(KVARN_FRAME_FORK, 17);
    assert_int_equal(KVARN_FRAME_REORDER, 18);
    assert_int_equal(KVARN_FRAME_MATCH_PREFIX, 19);
    assert_int_equal(KVARN_FRAME_TOUCH, 20);
    assert_int_equal(KVARN_FRAME_PIN, 21);
    assert_int_equal(KVARN_FRAME_EVICT, 22);
    assert_int_equal(KVARN_FRAME_PREFETCH, 23);
    assert_int_equal(KVARN_FRAME_LIST_JOBS, 24);
    assert_int_equal(KVARN_FRAME_VERIFY, 25);
    assert_string_equal(kvarn_frame_type_label(KVARN_FRAME_APPEND_ATTEND), "append_attend");
    assert_string_equal(kvarn_frame_type_label(KVARN_FRAME_TYPE_ERROR), "error");
    assert_string_equal(kvarn_frame_type_label(KVARN_FRAME_TYPE_COUNT), "unknown");
    assert_string_equal(kvarn_frame_type_label(UINT32_MAX), "unknown");
    assert_int_equal(KVARN_FRAME_READ_METRIC, 26);
    static const unsigned types[] = {
#define X(number, name, label, req, rep, req_sym, rep_sym) number,
        KVARN_FRAME_TYPES(X)
#undef X
    };
    for (unsigned i = 0; i < sizeof types / sizeof *types; i++) {
        assert_string_not_equal(kvarn_frame_type_label(types[i]), "unknown");
        for (unsigned j = 0; j < i; j++) {
            assert_string_not_equal(
                kvarn_frame_type_label(types[i]), kvarn_frame_type_label(types[j]));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(encodes_little_endian_at_fixed_offsets),
        cmocka_unit_test(encode_sets_the_version_itself),
        cmocka_unit_test(decode_gives_back_what_was_encoded),
        cmocka_unit_test(every_flipped_bit_is_refused),
        cmocka_unit_test(another_magic_is_refused_with_its_crc_right),
        cmocka_unit_test(another_version_is_unsupported),
        cmocka_unit_test(flags_that_are_not_known_are_refused),
        cmocka_unit_test(sizes_above_the_limits_are_too_large),
        cmocka_unit_test(the_type_is_not_judged),
        cmocka_unit_test(types_keep_their_numbers_and_labels),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
