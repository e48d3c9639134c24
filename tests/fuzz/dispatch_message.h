/*
 * Messages made up from an input: the right fields, with values near what the daemon holds, near
 * its limits, or absurd.
 *
 * Owner: fuzz_dispatch. Thread: one.
 */
#ifndef TESTS_DISPATCH_MESSAGE_H
#define TESTS_DISPATCH_MESSAGE_H

#include <protobuf-c/protobuf-c.h>

#include "server/session/session.h"
#include "tests/fuzz/fuzz_input.h"

#define DISPATCH_HANDLES_MAX 8

/* What a client would know. */
struct dispatch_hints {
    uint64_t handles[DISPATCH_HANDLES_MAX]; /* that the daemon gave it */
    unsigned handle_count;
    uint64_t last_request_id;
    /* The session that a handle means, NULL for none: asked when a message names one. */
    const struct kvd_session *(*session_of)(void *ctx, uint64_t handle);
    void *ctx; /* borrowed */
};

/*
 * Write a message of a type, as bytes, into `out`; returns how many. What does not fit is left out.
 * Most of them unpack; required fields may be missing, enums and numbers may be anything.
 */
size_t dispatch_message_make(struct fuzz_input *input, const struct dispatch_hints *hints,
    const ProtobufCMessageDescriptor *descriptor, uint8_t *out, size_t room);

#endif
