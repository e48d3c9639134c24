/*
 * A reply: the bytes of one frame as they arrive, checked, and its message unpacked under a budget.
 *
 * The I/O of either flavour asks kvarn__reply_want() where the next bytes go, reads them there, and
 * says how many came: payload is never copied. No I/O here.
 */
#ifndef KVARN_CLIENT_REPLY_H
#define KVARN_CLIENT_REPLY_H

#include "kvarn/client.h"
#include "proto/frame.h"
#include "proto/wire_alloc.h"

enum kvarn__reply_stage {
    KVARN__REPLY_HEADER,
    KVARN__REPLY_MESSAGE,
    KVARN__REPLY_PAYLOAD,
    KVARN__REPLY_TRAILER,
    KVARN__REPLY_COMPLETE,
};

struct kvarn_reply {
    enum kvarn__reply_stage stage;
    size_t stage_bytes; /* come so far, of the stage */
    struct kvarn_frame_header header;
    uint8_t head[KVARN_FRAME_HEADER_BYTES];
    uint8_t trailer[KVARN_FRAME_TRAILER_BYTES];
    uint8_t *message_bytes;          /* owned */
    uint8_t *payload;                /* owned */
    struct kvarn_wire_alloc memory;  /* of the unpacked message and of results */
    const ProtobufCMessage *message; /* in memory */
    struct kvarn_status status;      /* in memory */
    uint64_t lse_count;              /* of the call, set before an attend result is parsed */
};

/* Ready for a frame. */
void kvarn__reply_init(struct kvarn_reply *reply);

/* Free what the reply holds; ready for the next frame. Safe on a zeroed struct. */
void kvarn__reply_reset(struct kvarn_reply *reply);

/* Where the next bytes go: *ret_room > 0 bytes at *ret_at. Not on a complete reply. */
void kvarn__reply_want(struct kvarn_reply *reply, uint8_t **ret_at, size_t *ret_room);

/*
 * `bytes` came there. Returns 0 (stage COMPLETE says whether this was all); KVARN_EPROTOCOL for
 * what is no reply; KVARN_ECORRUPT for a payload that is not its checksum's; KVARN_ETOO_LARGE,
 * KVARN_EUNSUPPORTED as kvarn_frame_decode(); KVARN_ENOMEM. After an error the connection is
 * useless.
 */
int kvarn__reply_advance(struct kvarn_reply *reply, size_t bytes) KVARN_MUST_CHECK;

#endif
