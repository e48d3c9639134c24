/*
 * Tests of proto/wire_alloc.c: alignment, the limit, amplification, messages that cannot nest.
 *
 * Owner: ctest. Thread: one.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kvarnd.pb-c.h"
#include "lib/base/limits.h"
#include "proto/frame.h"
#include "proto/wire_alloc.h"

static const ProtobufCMessageDescriptor *const descriptors[] = {
#define X(number, name, label, req, rep, req_sym, rep_sym) \
    &kvarnd__##req_sym##__descriptor, &kvarnd__##rep_sym##__descriptor,
    KVARN_FRAME_TYPES(X)
#undef X
        & kvarnd__error_reply__descriptor,
};
#define DESCRIPTOR_COUNT (sizeof(descriptors) / sizeof(descriptors[0]))

static void nothing_is_allocated_before_use(void **state)
{
    (void)state;
    struct kvarn_wire_alloc wa;
    struct kvarn_wire_alloc zeroed = {0};

    kvarn_wire_alloc_init(&wa, 4096);
    assert_null(wa.blocks);
    assert_int_equal(wa.used_bytes, 0);
    assert_int_equal(wa.limit_bytes, 4096);
    kvarn_wire_alloc_fini(&wa);
    kvarn_wire_alloc_fini(&wa);
    kvarn_wire_alloc_fini(&zeroed);
    kvarn_wire_alloc_fini(NULL);
}

static void pieces_are_aligned_and_do_not_overlap(void **state)
{
    (void)state;
    struct kvarn_wire_alloc wa;
    unsigned char *pieces[200];

    kvarn_wire_alloc_init(&wa, 1 << 20);
    for (size_t i = 0; i < 200; i++) {
        pieces[i] = kvarn_wire_alloc_take(&wa, i);
        assert_non_null(pieces[i]);
        assert_int_equal((uintptr_t)pieces[i] % 16, 0);
        memset(pieces[i], (int)i, i);
    }
    for (size_t i = 0; i < 200; i++) {
        for (size_t j = 0; j < i; j++) {
            assert_int_equal(pieces[i][j], i);
        }
        assert_true(i == 0 || pieces[i] != pieces[i - 1]);
    }
    assert_true(wa.used_bytes >= 200 * 199 / 2 && wa.used_bytes <= wa.limit_bytes);
    kvarn_wire_alloc_fini(&wa);
    assert_int_equal(wa.used_bytes, 0);
}

static void the_limit_holds_for_any_sizes(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 16, 100, 1023, 1024, 5000};
    static const size_t limits[] = {0, 1, 31, 32, 33, 48, 1000, 4096, 100000};

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (size_t j = 0; j < sizeof limits / sizeof *limits; j++) {
            struct kvarn_wire_alloc wa;
            size_t taken = 0;

            kvarn_wire_alloc_init(&wa, limits[j]);
            while (kvarn_wire_alloc_take(&wa, sizes[i]) != NULL) {
                taken += sizes[i];
                assert_true(wa.used_bytes <= limits[j]);
                assert_true(taken <= wa.used_bytes);
            }
            assert_null(kvarn_wire_alloc_take(&wa, sizes[i]));
            kvarn_wire_alloc_fini(&wa);
        }
    }
}

static void sizes_that_would_wrap_are_refused(void **state)
{
    (void)state;
    struct kvarn_wire_alloc wa;

    kvarn_wire_alloc_init(&wa, SIZE_MAX);
    for (size_t less = 0; less < 32; less++) {
        assert_null(kvarn_wire_alloc_take(&wa, SIZE_MAX - less));
    }
    assert_int_equal(wa.used_bytes, 0);
    assert_non_null(kvarn_wire_alloc_take(&wa, 100));
    kvarn_wire_alloc_fini(&wa);
}

static void a_piece_past_the_limit_leaves_room_for_smaller_ones(void **state)
{
    (void)state;
    struct kvarn_wire_alloc wa;

    kvarn_wire_alloc_init(&wa, 4096);
    assert_non_null(kvarn_wire_alloc_take(&wa, 64));
    assert_null(kvarn_wire_alloc_take(&wa, 4096));
    assert_non_null(kvarn_wire_alloc_take(&wa, 64));
    kvarn_wire_alloc_fini(&wa);
}

static void unpacks_with_memory_of_the_budget_only(void **state)
{
    (void)state;
    struct kvarn_wire_alloc wa;
    ProtobufCMessage *message = NULL;
    Kvarnd__Hello hello = KVARND__HELLO__INIT;
    char name[] = "a client";
    char *features[] = {name, name};
    uint8_t packed[128];

    hello.client = name;
    hello.features = features;
    hello.n_features = 2;
    const size_t bytes = protobuf_c_message_pack(&hello.base, packed);
    kvarn_wire_alloc_init(&wa, KVARN_UNPACK_BYTES_MAX);
    assert_int_equal(
        kvarn_wire_unpack(&wa, &kvarnd__hello__descriptor, packed, bytes, &message), 0);
    const Kvarnd__Hello *back = (const Kvarnd__Hello *)message;
    assert_string_equal(back->client, name);
    assert_int_equal(back->n_features, 2);
    assert_string_equal(back->features[1], name);
    /* Nothing to free but the budget: the leak checker of sanitizer builds watches. */
    kvarn_wire_alloc_fini(&wa);
}

static void an_empty_message_needs_no_bytes(void **state)
{
    (void)state;
    struct kvarn_wire_alloc wa;
    ProtobufCMessage *message = NULL;

    kvarn_wire_alloc_init(&wa, KVARN_UNPACK_BYTES_MAX);
    assert_int_equal(kvarn_wire_unpack(&wa, &kvarnd__ping__descriptor, NULL, 0, &message), 0);
    assert_non_null(message);
    kvarn_wire_alloc_fini(&wa);
}

static int unpack_within(const ProtobufCMessageDescriptor *descriptor, const uint8_t *bytes,
    size_t count, size_t limit_bytes)
{
    struct kvarn_wire_alloc wa;
    ProtobufCMessage *const untouched = (ProtobufCMessage *)(void *)&wa;
    ProtobufCMessage *message = untouched;

    kvarn_wire_alloc_init(&wa, limit_bytes);
    const int err = kvarn_wire_unpack(&wa, descriptor, bytes, count, &message);
    assert_true((err != 0) == (message == untouched));
    assert_true(wa.used_bytes <= limit_bytes);
    kvarn_wire_alloc_fini(&wa);
    return err;
}

static int unpack(const ProtobufCMessageDescriptor *descriptor, const uint8_t *bytes, size_t count)
{
    return unpack_within(descriptor, bytes, count, KVARN_UNPACK_BYTES_MAX);
}

static void malformed_bytes_are_refused(void **state)
{
    (void)state;
    static const uint8_t cut_varint[] = {0x08, 0x80};                /* handle = 0x80... */
    static const uint8_t wrong_wire_type[] = {0x0d, 1, 2, 3, 4};     /* handle as fixed32 */
    static const uint8_t length_past_the_end[] = {0x0a, 0x7f, 0x41}; /* client of 127 bytes */
    static const uint8_t close_session[] = {0x08, 0x05};

    assert_int_equal(unpack(&kvarnd__close_session__descriptor, close_session, 2), 0);
    /* The handle is required. */
    assert_int_equal(unpack(&kvarnd__close_session__descriptor, close_session, 0), KVARN_EPROTOCOL);
    assert_int_equal(unpack(&kvarnd__close_session__descriptor, cut_varint, 2), KVARN_EPROTOCOL);
    assert_int_equal(
        unpack(&kvarnd__close_session__descriptor, wrong_wire_type, 5), KVARN_EPROTOCOL);
    assert_int_equal(unpack(&kvarnd__hello__descriptor, length_past_the_end, 3), KVARN_EPROTOCOL);
}

static void fields_that_are_not_known_are_skipped(void **state)
{
    (void)state;
    static const uint8_t newer[] = {0x08, 0x05, 0xf8, 0x07, 0x2a}; /* handle 5, field 127 = 42 */

    assert_int_equal(unpack(&kvarnd__close_session__descriptor, newer, sizeof newer), 0);
}

/* Repeat `piece` after `head` as often as a message has room; returns the bytes. */
static size_t bomb_fill(uint8_t bomb[KVARN_MESSAGE_BYTES_MAX], const char *head, size_t head_bytes,
    const char *piece, size_t piece_bytes)
{
    size_t bytes = head_bytes;

    memcpy(bomb, head, head_bytes);
    while (bytes + piece_bytes <= KVARN_MESSAGE_BYTES_MAX) {
        memcpy(bomb + bytes, piece, piece_bytes);
        bytes += piece_bytes;
    }
    return bytes;
}

/*
 * The smallest repeated messages, strings and numbers and unknown fields: a few bytes on the wire,
 * tens of bytes in memory. The same bytes unpack where there is room: it is the limit that refuses.
 */
static void bombs_of_small_repeated_fields_stay_within_the_limit(void **state)
{
    (void)state;
    static uint8_t bomb[KVARN_MESSAGE_BYTES_MAX];
#define BYTES(text) (text), sizeof(text) - 1
    static const struct {
        const ProtobufCMessageDescriptor *descriptor;
        const char *head;
        size_t head_bytes;
        const char *piece;
        size_t piece_bytes;
    } bombs[] = {
        {&kvarnd__hello__descriptor, BYTES(""), BYTES("\x12\x00")},
        {&kvarnd__ping__descriptor, BYTES(""), BYTES("\x70\x00")},
        {&kvarnd__shape__descriptor, BYTES("\x0a\x00"), BYTES("\x1a\x06\x08\x00\x10\x00\x18\x00")},
        {&kvarnd__attend__descriptor, BYTES("\x0a\x04\x08\x00\x10\x01"), BYTES("\x12\x02\x08\x00")},
        {&kvarnd__append_attend__descriptor, BYTES("\x0a\x04\x08\x00\x10\x01"),
            BYTES("\x12\x06\x08\x00\x10\x00\x18\x00")},
        {&kvarnd__append_tiles__descriptor, BYTES("\x08\x00\x10\x00"),
            BYTES("\x1a\x08\x08\x00\x10\x00\x18\x00\x20\x00")},
        {&kvarnd__list_sessions_reply__descriptor, BYTES("\x0a\x02\x08\x00"),
            BYTES("\x12\x02\x0a\x00")},
        {&kvarnd__stats_reply__descriptor, BYTES("\x0a\x02\x08\x00"), BYTES("\x12\x02\x0a\x00")},
        {&kvarnd__attend_reply__descriptor, BYTES("\x0a\x02\x08\x00"),
            BYTES("\x12\x04\x0a\x02\x08\x00")},
        {&kvarnd__append_tiles_reply__descriptor, BYTES("\x0a\x02\x08\x00"), BYTES("\x18\x00")},
    };
#undef BYTES

    for (size_t i = 0; i < sizeof bombs / sizeof *bombs; i++) {
        const size_t bytes = bomb_fill(
            bomb, bombs[i].head, bombs[i].head_bytes, bombs[i].piece, bombs[i].piece_bytes);

        assert_int_equal(unpack_within(bombs[i].descriptor, bomb, bytes, 64 << 20), 0);
        assert_int_equal(unpack(bombs[i].descriptor, bomb, bytes), KVARN_EPROTOCOL);
    }
}

/* An empty message where one with required fields belongs is malformed. */
static void empty_items_are_refused(void **state)
{
    (void)state;
    static const uint8_t attend[] = {0x0a, 0x04, 0x08, 0x00, 0x10, 0x01, 0x12, 0x00};

    assert_int_equal(unpack(&kvarnd__attend__descriptor, attend, 6), 0);
    assert_int_equal(unpack(&kvarnd__attend__descriptor, attend, sizeof attend), KVARN_EPROTOCOL);
}

/* The largest honest message must pass: a full batch with every field of every item set. */
static void the_largest_batch_fits_the_limit(void **state)
{
    (void)state;
    static Kvarnd__AttendItem items[KVARN_BATCH_ITEMS_MAX];
    static Kvarnd__AttendItem *pointers[KVARN_BATCH_ITEMS_MAX];
    Kvarnd__AttendParams params = KVARND__ATTEND_PARAMS__INIT;
    Kvarnd__Attend attend = KVARND__ATTEND__INIT;

    for (size_t i = 0; i < KVARN_BATCH_ITEMS_MAX; i++) {
        kvarnd__attend_item__init(&items[i]);
        items[i].handle = UINT64_MAX;
        items[i].has_query_tokens = items[i].has_position = 1;
        items[i].query_tokens = UINT32_MAX;
        items[i].position = UINT64_MAX;
        items[i].has_token_first = items[i].has_token_last = 1;
        items[i].token_first = items[i].token_last = UINT64_MAX;
        pointers[i] = &items[i];
    }
    attend.params = &params;
    attend.items = pointers;
    attend.n_items = KVARN_BATCH_ITEMS_MAX;
    const size_t bytes = protobuf_c_message_get_packed_size(&attend.base);
    assert_true(bytes <= KVARN_MESSAGE_BYTES_MAX);
    uint8_t *packed = malloc(bytes);
    assert_non_null(packed);
    assert_int_equal(protobuf_c_message_pack(&attend.base, packed), bytes);
    assert_int_equal(unpack(&kvarnd__attend__descriptor, packed, bytes), 0);
    free(packed);
}

/* Levels of messages below one; more than `room` is a cycle, as no type may occur twice on a path.
 */
static unsigned depth_of(const ProtobufCMessageDescriptor *descriptor, unsigned room)
{
    unsigned deepest = 0;

    assert_true(room > 0);
    for (unsigned i = 0; i < descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &descriptor->fields[i];

        if (field->type == PROTOBUF_C_TYPE_MESSAGE) {
            const unsigned depth = depth_of(field->descriptor, room - 1);

            deepest = depth > deepest ? depth : deepest;
        }
    }
    return deepest + 1;
}

/* protobuf-c recurses on nested messages without a limit: the types themselves must bound it. */
static void no_message_type_is_recursive(void **state)
{
    (void)state;
    unsigned walked = 0;

    for (size_t i = 0; i < DESCRIPTOR_COUNT; i++) {
        assert_true(depth_of(descriptors[i], 8) <= 4);
        walked++;
    }
    assert_int_equal(walked, DESCRIPTOR_COUNT);
    assert_true(walked >= 2 * 17 + 1);
}

/* Every request has deadline_ms at field 15, every reply its status at field 1. */
static void every_call_has_deadline_and_status(void **state)
{
    (void)state;
    for (size_t i = 0; i < DESCRIPTOR_COUNT - 1; i += 2) {
        const ProtobufCFieldDescriptor *deadline =
            protobuf_c_message_descriptor_get_field_by_name(descriptors[i], "deadline_ms");
        const ProtobufCFieldDescriptor *status =
            protobuf_c_message_descriptor_get_field_by_name(descriptors[i + 1], "status");

        assert_non_null(deadline);
        assert_int_equal(deadline->id, 15);
        assert_int_equal(deadline->type, PROTOBUF_C_TYPE_UINT32);
        assert_non_null(status);
        assert_int_equal(status->id, 1);
        assert_ptr_equal(status->descriptor, &kvarnd__status__descriptor);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_allocated_before_use),
        cmocka_unit_test(pieces_are_aligned_and_do_not_overlap),
        cmocka_unit_test(the_limit_holds_for_any_sizes),
        cmocka_unit_test(sizes_that_would_wrap_are_refused),
        cmocka_unit_test(a_piece_past_the_limit_leaves_room_for_smaller_ones),
        cmocka_unit_test(unpacks_with_memory_of_the_budget_only),
        cmocka_unit_test(an_empty_message_needs_no_bytes),
        cmocka_unit_test(malformed_bytes_are_refused),
        cmocka_unit_test(fields_that_are_not_known_are_skipped),
        cmocka_unit_test(bombs_of_small_repeated_fields_stay_within_the_limit),
        cmocka_unit_test(empty_items_are_refused),
        cmocka_unit_test(the_largest_batch_fits_the_limit),
        cmocka_unit_test(no_message_type_is_recursive),
        cmocka_unit_test(every_call_has_deadline_and_status),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
