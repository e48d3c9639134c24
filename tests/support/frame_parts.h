/*
 * One whole frame in memory, judged the way a receiver does: header, type, message, payload.
 *
 * Owner: the test. Thread: any; no globals. Shared by the golden frames and the frame's fuzzer.
 */
#ifndef TESTS_FRAME_PARTS_H
#define TESTS_FRAME_PARTS_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "proto/frame.h"
#include "proto/wire_alloc.h"

/* How far a frame is valid. */
enum kvt_frame_stage {
    KVT_FRAME_HEADER,     /* refused by its header */
    KVT_FRAME_TYPE,       /* no such call */
    KVT_FRAME_MESSAGE,    /* bytes that are not the type's message */
    KVT_FRAME_PAYLOAD,    /* the trailer is not the payload's XXH3-64 */
    KVT_FRAME_INCOMPLETE, /* valid as far as it goes: more bytes must come */
    KVT_FRAME_OK,
};

struct kvt_frame {
    struct kvarn_frame_header header;
    const ProtobufCMessageDescriptor *descriptor; /* the request's or, by the flag, the reply's */
    ProtobufCMessage *message;                    /* in the caller's alloc */
    const uint8_t *message_bytes;                 /* these borrow from the frame's bytes */
    const uint8_t *payload;
    const uint8_t *trailer; /* NULL without the flag */
    size_t frame_bytes;     /* header to trailer */
};

/*
 * Read the frame at the start of `bytes`. *ret_err: 0, or the error when a stage refuses. The parts
 * before the stage returned are set, the rest is zero.
 */
enum kvt_frame_stage kvt_frame_read(struct kvt_frame *frame, struct kvarn_wire_alloc *alloc,
    const uint8_t *bytes, size_t byte_count, int *ret_err);

/*
 * Encode a complete frame anew, from its header's fields, unpacked message and payload. Returns the
 * bytes written; 0 when there is not room for them.
 */
size_t kvt_frame_encode(const struct kvt_frame *frame, uint8_t *out, size_t room);

/* "header", "type", ... */
const char *kvt_frame_stage_name(enum kvt_frame_stage stage);

/*
 * Write a message as text, one `name: value` a line in order of field numbers, two spaces of indent
 * a level. Fields that are not there are left out; unknown fields are `#number`.
 */
void kvt_message_print(FILE *out, const ProtobufCMessage *message);

#endif
