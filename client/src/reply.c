/*
 * Reception of one reply frame, piece by piece, and its unpacking. No I/O.
 */
#include "client/src/reply.h"

#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "client/src/reply_status.h"
#include "kvarnd.pb-c.h"
#include "lib/base/assert.h"
#include "lib/base/limits.h"

/* What a reply's type unpacks to. Every reply's first field is `status`. */
struct reply_row {
    const ProtobufCMessageDescriptor *descriptor;
    size_t status_offset;
};

static const struct reply_row reply_rows[KVARN_FRAME_TYPE_COUNT] = {
    [KVARN_FRAME_TYPE_ERROR] = {&kvarnd__error_reply__descriptor,
        offsetof(Kvarnd__ErrorReply, status)},
#define X(number, name, label, req, rep, req_sym, rep_sym) \
    [number] = {&kvarnd__##rep_sym##__descriptor, offsetof(Kvarnd__##rep, status)},
    KVARN_FRAME_TYPES(X)
#undef X
};

void kvarn__reply_init(struct kvarn_reply *reply)
{
    memset(reply, 0, sizeof *reply);
    kvarn_wire_alloc_init(&reply->memory, KVARN_UNPACK_BYTES_MAX);
    reply->status.text = "";
}

void kvarn__reply_reset(struct kvarn_reply *reply)
{
    free(reply->message_bytes);
    free(reply->payload);
    kvarn_wire_alloc_fini(&reply->memory);
    kvarn__reply_init(reply);
}

static size_t stage_size(const struct kvarn_reply *reply)
{
    switch (reply->stage) {
    case KVARN__REPLY_HEADER:
        return KVARN_FRAME_HEADER_BYTES;
    case KVARN__REPLY_MESSAGE:
        return reply->header.message_bytes;
    case KVARN__REPLY_PAYLOAD:
        return (size_t)reply->header.payload_bytes;
    case KVARN__REPLY_TRAILER:
        return (reply->header.flags & KVARN_FRAME_PAYLOAD_XXH3) != 0 ? KVARN_FRAME_TRAILER_BYTES
                                                                     : 0;
    case KVARN__REPLY_COMPLETE:
        break;
    }
    return 0;
}

void kvarn__reply_want(struct kvarn_reply *reply, uint8_t **ret_at, size_t *ret_room)
{
    uint8_t *base[] = {
        [KVARN__REPLY_HEADER] = reply->head,
        [KVARN__REPLY_MESSAGE] = reply->message_bytes,
        [KVARN__REPLY_PAYLOAD] = reply->payload,
        [KVARN__REPLY_TRAILER] = reply->trailer,
    };

    KVARN_ASSERT(reply->stage != KVARN__REPLY_COMPLETE);
    *ret_at = base[reply->stage] + reply->stage_bytes;
    *ret_room = stage_size(reply) - reply->stage_bytes;
    KVARN_ASSERT(*ret_room > 0);
}

static int header_done(struct kvarn_reply *reply)
{
    int err = kvarn_frame_decode(reply->head, &reply->header);

    if (err != 0) {
        return err;
    }
    if ((reply->header.flags & KVARN_FRAME_REPLY) == 0 ||
        reply->header.type >= KVARN_FRAME_TYPE_COUNT ||
        reply_rows[reply->header.type].descriptor == NULL) {
        return KVARN_EPROTOCOL;
    }
    /* One spare byte each: malloc(0) may be NULL. */
    reply->message_bytes = malloc((size_t)reply->header.message_bytes + 1);
    reply->payload = malloc((size_t)reply->header.payload_bytes + 1);
    if (reply->message_bytes == NULL || reply->payload == NULL) {
        return KVARN_ENOMEM;
    }
    return 0;
}

static int trailer_done(const struct kvarn_reply *reply)
{
    uint64_t expected = 0;

    if ((reply->header.flags & KVARN_FRAME_PAYLOAD_XXH3) == 0) {
        return 0;
    }
    for (unsigned i = 0; i < KVARN_FRAME_TRAILER_BYTES; i++) {
        expected |= (uint64_t)reply->trailer[i] << (8 * i);
    }
    if (XXH3_64bits(reply->payload, (size_t)reply->header.payload_bytes) != expected) {
        return KVARN_ECORRUPT;
    }
    return 0;
}

static int message_unpack(struct kvarn_reply *reply)
{
    const struct reply_row *row = &reply_rows[reply->header.type];
    ProtobufCMessage *message;
    Kvarnd__Status *status;
    int err = kvarn_wire_unpack(&reply->memory, row->descriptor, reply->message_bytes,
        reply->header.message_bytes, &message);

    if (err != 0) {
        return err;
    }
    memcpy(&status, (const uint8_t *)message + row->status_offset, sizeof status);
    KVARN_ASSERT(status != NULL); /* required field: the unpack would have failed */
    reply->message = message;
    kvarn__status_from_wire(&reply->status, status);
    if (reply->header.type == KVARN_FRAME_TYPE_ERROR && reply->status.err == 0) {
        return KVARN_EPROTOCOL; /* an error reply that reports no error */
    }
    return 0;
}

/* The stage's bytes are all there: check them and go to the next. */
static int stage_done(struct kvarn_reply *reply)
{
    int err = 0;

    switch (reply->stage) {
    case KVARN__REPLY_HEADER:
        err = header_done(reply);
        break;
    case KVARN__REPLY_MESSAGE:
        err = message_unpack(reply);
        break;
    case KVARN__REPLY_TRAILER:
        err = trailer_done(reply);
        break;
    case KVARN__REPLY_PAYLOAD:
    case KVARN__REPLY_COMPLETE:
        break;
    }
    if (err != 0) {
        return err;
    }
    reply->stage++;
    reply->stage_bytes = 0;
    return 0;
}

int kvarn__reply_advance(struct kvarn_reply *reply, size_t bytes)
{
    KVARN_ASSERT(bytes <= stage_size(reply) - reply->stage_bytes);
    reply->stage_bytes += bytes;
    while (reply->stage != KVARN__REPLY_COMPLETE && reply->stage_bytes == stage_size(reply)) {
        int err = stage_done(reply);

        if (err != 0) {
            return err;
        }
    }
    return 0;
}

const struct kvarn_status *kvarn_reply_status(const struct kvarn_reply *reply)
{
    return &reply->status;
}
