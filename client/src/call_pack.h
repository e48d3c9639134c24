/*
 * What builders of calls share: from a protobuf message to a call. No I/O.
 */
#ifndef KVARN_CLIENT_CALL_PACK_H
#define KVARN_CLIENT_CALL_PACK_H

#include "client/src/call.h"
#include "kvarnd.pb-c.h"

/* What every builder ends with: the message, and the payload where the call has one. */
struct pack_in {
    enum kvarn_frame_type type;
    const ProtobufCMessage *message;
    uint32_t deadline_ms;
    const struct kvarn_span *payload;
    size_t payload_count;
};

/* Pack a message and its payload into a call of the caller's. As kvarn_call_x(). */
int kvarn__call_pack(const struct pack_in *in, struct kvarn_call **ret_call) KVARN_MUST_CHECK;

/* The same for a message that takes no payload. */
int kvarn__call_plain(enum kvarn_frame_type type, const ProtobufCMessage *message,
    uint32_t deadline_ms, struct kvarn_call **ret_call) KVARN_MUST_CHECK;

/* Every request has deadline_ms; this sets it where one was given. */
#define SET_DEADLINE(message, deadline)                                                   \
    do {                                                                                  \
        (message).has_deadline_ms = (deadline) != 0 && (deadline) != KVARN_DEADLINE_NONE; \
        (message).deadline_ms = (message).has_deadline_ms ? (deadline) : 0;               \
    } while (0)

/* protobuf-c's bytes are uint8_t * though packing only reads them. */
static inline ProtobufCBinaryData bytes_of(const void *data, size_t bytes)
{
    return (ProtobufCBinaryData){.len = bytes, .data = (uint8_t *)(uintptr_t)data};
}

/* Likewise its strings. */
static inline char *text_of(const char *text)
{
    union {
        const char *in;
        char *out;
    } u = {.in = text};

    return u.out;
}

#endif
