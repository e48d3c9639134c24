/* Reception of replies in pieces of any size, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <xxhash.h>

#include "client/src/reply.h"
#include "kvarnd.pb-c.h"

/* A frame as the daemon would send it; returns its bytes. */
static size_t frame_make(uint8_t *to, unsigned type, uint16_t flags,
    const ProtobufCMessage *message, const void *payload, size_t payload_bytes)
{
    size_t message_bytes = protobuf_c_message_get_packed_size(message);
    struct kvarn_frame_header header = {
        .version = KVARN_FRAME_VERSION,
        .type = (uint8_t)type,
        .flags = (uint16_t)(flags | KVARN_FRAME_REPLY),
        .message_bytes = (uint32_t)message_bytes,
        .request_id = 5,
        .payload_bytes = payload_bytes,
    };
    uint8_t *at = to + KVARN_FRAME_HEADER_BYTES;

    kvarn_frame_encode(&header, to);
    at += protobuf_c_message_pack(message, at);
    memcpy(at, payload, payload_bytes);
    at += payload_bytes;
    if ((flags & KVARN_FRAME_PAYLOAD_XXH3) != 0) {
        uint64_t hash = XXH3_64bits(payload, payload_bytes);

        for (unsigned i = 0; i < 8; i++) {
            *at++ = (uint8_t)(hash >> (8 * i));
        }
    }
    return (size_t)(at - to);
}

/* Feed bytes in pieces of at most `step`; the first error, or 0. */
static int feed(struct kvarn_reply *reply, const uint8_t *bytes, size_t count, size_t step)
{
    while (count > 0 && reply->stage != KVARN__REPLY_COMPLETE) {
        uint8_t *at;
        size_t room;
        size_t piece = count < step ? count : step;
        int err;

        kvarn__reply_want(reply, &at, &room);
        if (piece > room) {
            piece = room;
        }
        memcpy(at, bytes, piece);
        bytes += piece;
        count -= piece;
        err = kvarn__reply_advance(reply, piece);
        if (err != 0) {
            return err;
        }
    }
    return 0;
}

static size_t attend_frame(uint8_t *to, uint16_t flags, const void *payload, size_t payload_bytes)
{
    Kvarnd__Status ok = KVARND__STATUS__INIT;
    Kvarnd__Status miss = KVARND__STATUS__INIT;
    Kvarnd__AttendItemReply items[2] = {
        KVARND__ATTEND_ITEM_REPLY__INIT, KVARND__ATTEND_ITEM_REPLY__INIT};
    Kvarnd__AttendItemReply *pointers[] = {&items[0], &items[1]};
    Kvarnd__AttendReply m = KVARND__ATTEND_REPLY__INIT;

    miss.code = 8;
    miss.has_reason = 1;
    miss.reason = KVARND__MISS_REASON__MISS_WINDOW;
    items[0].status = &ok;
    items[0].has_length = 1;
    items[0].length = 300;
    items[1].status = &miss;
    m.status = &ok;
    m.items = pointers;
    m.n_items = 2;
    return frame_make(to, KVARN_FRAME_ATTEND, flags, &m.base, payload, payload_bytes);
}

static void attend_reply_comes_in_pieces(void **state)
{
    const float payload[] = {1, 2, 3, 4, 0.5f, 0.25f}; /* 2 rows of v_dim 2, 2 lse */
    uint8_t bytes[512];
    size_t count = attend_frame(bytes, KVARN_FRAME_PAYLOAD_XXH3, payload, sizeof payload);

    (void)state;
    for (size_t step = 1; step <= count; step++) {
        struct kvarn_reply reply;
        struct kvarn_attend_result result;

        kvarn__reply_init(&reply);
        assert_int_equal(feed(&reply, bytes, count, step), 0);
        assert_int_equal(reply.stage, KVARN__REPLY_COMPLETE);
        reply.lse_count = 2;
        assert_int_equal(kvarn_reply_attend(&reply, &result), 0);
        assert_int_equal(result.item_count, 2);
        assert_int_equal(result.items[0].status.err, 0);
        assert_int_equal(result.items[0].length, 300);
        assert_int_equal(result.items[1].status.err, KVARN_EMISS);
        assert_int_equal(result.items[1].status.reason, KVARN_MISS_WINDOW);
        assert_int_equal(result.out_bytes, 16);
        assert_memory_equal(result.out, payload, 16);
        assert_true(result.lse[0] == 0.5f && result.lse[1] == 0.25f);
        reply.lse_count = 7; /* more than came */
        assert_int_equal(kvarn_reply_attend(&reply, &result), KVARN_EPROTOCOL);
        kvarn__reply_reset(&reply);
    }
}

static void semantics_24_flipped_payload_is_corrupt(void **state)
{
    const float payload[] = {1, 2, 3, 4, 0.5f, 0.25f};
    uint8_t bytes[512];
    size_t count = attend_frame(bytes, KVARN_FRAME_PAYLOAD_XXH3, payload, sizeof payload);
    struct kvarn_reply reply;

    (void)state;
    bytes[count - 12] ^= 1; /* in the payload, before the trailer of 8 */
    kvarn__reply_init(&reply);
    assert_int_equal(feed(&reply, bytes, count, count), KVARN_ECORRUPT);
    kvarn__reply_reset(&reply);
}

static void what_is_no_reply_is_refused(void **state)
{
    Kvarnd__Status ok = KVARND__STATUS__INIT;
    Kvarnd__ErrorReply error = KVARND__ERROR_REPLY__INIT;
    Kvarnd__PingReply ping = KVARND__PING_REPLY__INIT;
    struct kvarn_append_result result;
    uint8_t bytes[512];
    size_t count;
    struct kvarn_reply reply;

    (void)state;
    kvarn__reply_init(&reply);
    error.status = &ok; /* an error without an error */
    count = frame_make(bytes, KVARN_FRAME_TYPE_ERROR, 0, &error.base, "", 0);
    assert_int_equal(feed(&reply, bytes, count, count), KVARN_EPROTOCOL);
    kvarn__reply_reset(&reply);
    ping.status = &ok;
    count = frame_make(bytes, KVARN_FRAME_TYPE_COUNT, 0, &ping.base, "", 0);
    assert_int_equal(feed(&reply, bytes, count, count), KVARN_EPROTOCOL);
    kvarn__reply_reset(&reply);
    count = frame_make(bytes, KVARN_FRAME_PING, 0, &ping.base, "", 0);
    bytes[KVARN_FRAME_HEADER_BYTES] ^= 0xff; /* the message, which has no checksum of its own */
    assert_int_equal(feed(&reply, bytes, count, count), KVARN_EPROTOCOL);
    kvarn__reply_reset(&reply);
    count = frame_make(bytes, KVARN_FRAME_PING, 0, &ping.base, "", 0);
    assert_int_equal(feed(&reply, bytes, count, count), 0);
    assert_int_equal(kvarn_reply_append(&reply, &result), KVARN_EPROTOCOL); /* of another call */
    kvarn__reply_reset(&reply);
    bytes[3] ^= 1; /* magic */
    assert_int_equal(feed(&reply, bytes, count, count), KVARN_EPROTOCOL);
    kvarn__reply_reset(&reply);
}

static void status_details_reach_the_caller(void **state)
{
    uint64_t lengths[] = {10, 20};
    Kvarnd__Status stale = KVARND__STATUS__INIT;
    Kvarnd__AppendReply m = KVARND__APPEND_REPLY__INIT;
    char text[] = "held 3, is 4";
    struct kvarn_append_result result;
    uint8_t bytes[512];
    size_t count;
    struct kvarn_reply reply;

    (void)state;
    stale.code = 7;
    stale.text = text;
    stale.has_epoch = 1;
    stale.epoch = 4;
    stale.layer_lengths = lengths;
    stale.n_layer_lengths = 2;
    m.status = &stale;
    count = frame_make(bytes, KVARN_FRAME_APPEND, 0, &m.base, "", 0);
    kvarn__reply_init(&reply);
    assert_int_equal(feed(&reply, bytes, count, 3), 0);
    assert_int_equal(kvarn_reply_append(&reply, &result), KVARN_ESTALE_EPOCH);
    assert_string_equal(kvarn_reply_status(&reply)->text, "held 3, is 4");
    assert_int_equal(kvarn_reply_status(&reply)->epoch, 4);
    assert_int_equal(kvarn_reply_status(&reply)->layer_lengths[1], 20);
    kvarn__reply_reset(&reply);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attend_reply_comes_in_pieces),
        cmocka_unit_test(semantics_24_flipped_payload_is_corrupt),
        cmocka_unit_test(what_is_no_reply_is_refused),
        cmocka_unit_test(status_details_reach_the_caller),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
