/*
 * Fuzz target: a frame's bytes, as they are and with the header made right.
 *
 * Whatever comes, judging it stays within the budget, and a message that unpacks means the same
 * after it was packed and unpacked again. Owner: libFuzzer or replay.c. Thread: one.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/support/frame_parts.h"

/* Packing normalises: an enum of -1 grows from 5 to 10 bytes, never more than twofold. */
#define PACKED_BYTES_MAX  (2 * KVARN_MESSAGE_BYTES_MAX)
#define PACKED_MEMORY_MAX (64 << 20) /* no limit of interest on the way back */

static uint8_t *pack(const ProtobufCMessage *message, size_t *ret_bytes)
{
    const size_t bytes = protobuf_c_message_get_packed_size(message);
    uint8_t *packed = malloc(bytes + (bytes == 0));

    KVARN_ASSERT(bytes <= PACKED_BYTES_MAX && packed != NULL);
    KVARN_ASSERT(protobuf_c_message_pack(message, packed) == bytes);
    *ret_bytes = bytes;
    return packed;
}

static char *text_of(const ProtobufCMessage *message)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);

    KVARN_ASSERT(out != NULL);
    kvt_message_print(out, message);
    KVARN_ASSERT(fclose(out) == 0);
    return text;
}

/* Any message that was accepted: packed, unpacked and packed it is the same. */
static void message_round_trip(const ProtobufCMessage *message)
{
    struct kvarn_wire_alloc alloc;
    ProtobufCMessage *again = NULL;
    size_t bytes = 0;
    size_t bytes_again = 0;
    uint8_t *packed = pack(message, &bytes);

    char *text = text_of(message);

    kvarn_wire_alloc_init(&alloc, PACKED_MEMORY_MAX);
    const int err = kvarn_wire_unpack(&alloc, message->descriptor, packed, bytes, &again);
    if (err != 0) {
        /* protobuf-c takes a field 0 whose tag has two bytes or more, and refuses a plain one. */
        KVARN_ASSERT(strstr(text, "#0\n") != NULL);
    } else {
        uint8_t *packed_again = pack(again, &bytes_again);
        char *text_again = text_of(again);

        KVARN_ASSERT(bytes == bytes_again && memcmp(packed, packed_again, bytes) == 0);
        KVARN_ASSERT(strcmp(text, text_again) == 0);
        free(text_again);
        free(packed_again);
    }
    free(text);
    free(packed);
    kvarn_wire_alloc_fini(&alloc);
}

/* A whole frame: encoded again its header reads as the same. */
static void frame_round_trip(const struct kvt_frame *frame)
{
    const size_t room = frame->frame_bytes + PACKED_BYTES_MAX;
    uint8_t *bytes = malloc(room);
    struct kvarn_frame_header again;

    KVARN_ASSERT(bytes != NULL);
    const size_t count = kvt_frame_encode(frame, bytes, room);
    KVARN_ASSERT(count >= KVARN_FRAME_HEADER_BYTES);
    const size_t message_bytes = count - (frame->frame_bytes - frame->header.message_bytes);
    const int err = kvarn_frame_decode(bytes, &again);
    if (message_bytes > KVARN_MESSAGE_BYTES_MAX) {
        KVARN_ASSERT(err == KVARN_ETOO_LARGE);
    } else {
        KVARN_ASSERT(err == 0 && again.message_bytes == message_bytes);
        KVARN_ASSERT(again.type == frame->header.type && again.flags == frame->header.flags);
        KVARN_ASSERT(again.request_id == frame->header.request_id);
        KVARN_ASSERT(again.payload_bytes == frame->header.payload_bytes);
    }
    free(bytes);
}

static void frame_judge(const uint8_t *data, size_t size)
{
    struct kvarn_wire_alloc alloc;
    struct kvt_frame frame;
    int err = 0;

    kvarn_wire_alloc_init(&alloc, KVARN_UNPACK_BYTES_MAX);
    const enum kvt_frame_stage stage = kvt_frame_read(&frame, &alloc, data, size, &err);
    KVARN_ASSERT(alloc.used_bytes <= KVARN_UNPACK_BYTES_MAX);
    KVARN_ASSERT((err != 0) == (stage != KVT_FRAME_OK && stage != KVT_FRAME_INCOMPLETE));
    if (frame.message != NULL) {
        message_round_trip(frame.message);
    }
    if (stage == KVT_FRAME_OK) {
        KVARN_ASSERT(frame.frame_bytes <= size);
        frame_round_trip(&frame);
    }
    kvarn_wire_alloc_fini(&alloc);
}

static uint64_t le_load(const uint8_t *from, unsigned bytes)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < bytes; i++) {
        value |= (uint64_t)from[i] << (8 * i);
    }
    return value;
}

/*
 * Make the header right where chance never would: magic, version and CRC, known flags, and sizes
 * that the bytes have, so that mutations reach the message.
 */
static void header_repair(uint8_t *frame, size_t size)
{
    const size_t left = size - KVARN_FRAME_HEADER_BYTES;
    struct kvarn_frame_header header = {
        .type = frame[5],
        .flags = (uint16_t)(le_load(frame + 6, 2) & KVARN_FRAME_FLAGS_KNOWN),
        .message_bytes = (uint32_t)le_load(frame + 8, 4),
        .request_id = le_load(frame + 12, 8),
        .payload_bytes = le_load(frame + 20, 8),
    };

    if (header.message_bytes > left) {
        header.message_bytes =
            (uint32_t)(left < KVARN_MESSAGE_BYTES_MAX ? left : KVARN_MESSAGE_BYTES_MAX);
    }
    if (header.payload_bytes > left - header.message_bytes) {
        header.payload_bytes = left - header.message_bytes;
    }
    kvarn_frame_encode(&header, frame);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    frame_judge(data, size);
    if (size >= KVARN_FRAME_HEADER_BYTES) {
        uint8_t *copy = malloc(size);

        KVARN_ASSERT(copy != NULL);
        memcpy(copy, data, size);
        header_repair(copy, size);
        frame_judge(copy, size);
        free(copy);
    }
    return 0;
}
