/*
 * A call: one request as bytes, before it is sent. Built from argument structs (kvarn/client.h),
 * stamped with its id by the flavour that sends it. No I/O.
 */
#ifndef KVARN_CLIENT_CALL_H
#define KVARN_CLIENT_CALL_H

#include "kvarn/client.h"
#include "proto/frame.h"

struct kvarn_call {
    enum kvarn_frame_type type;
    uint32_t deadline_ms; /* KVARN_DEADLINE_NONE: none */
    uint8_t *head;        /* owned: frame header and message */
    size_t head_bytes;
    struct kvarn_span *spans; /* owned array; the bytes are borrowed from the caller */
    size_t span_count;
    uint64_t payload_bytes;
    uint64_t lse_count;  /* Attend, AppendAttend: rows of lse in the reply */
    uint64_t request_id; /* set by kvarn__call_stamp() */
    uint8_t trailer[KVARN_FRAME_TRAILER_BYTES];
    size_t trailer_bytes; /* 0: sent without checksum */
};

/* Give the call its id and write header and trailer. May be done again for another connection. */
void kvarn__call_stamp(struct kvarn_call *call, uint64_t request_id, bool with_xxh3);

/* Bytes of the whole frame of a stamped call. */
uint64_t kvarn__call_frame_bytes(const struct kvarn_call *call);

#endif
