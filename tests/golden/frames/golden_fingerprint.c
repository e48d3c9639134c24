/*
 * The golden RegisterShape, sent to a daemon, gives the fingerprint of the golden reply: the one
 * that PROTOCOL.md works out.
 *
 * usage: golden_fingerprint FOLDER. Owner: ctest. Thread: one.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/limits.h"
#include "tests/support/frame_parts.h"
#include "tests/support/wire_peer.h"

#define FILE_BYTES_MAX 4096

/* A good frame's message, in `alloc`; ends the program when it is none. */
static const void *message_read(
    const char *folder, const char *name, struct kvarn_wire_alloc *alloc)
{
    static uint8_t bytes[FILE_BYTES_MAX];
    char path[4096];
    struct kvt_frame frame;
    int err;

    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    const size_t count = file == NULL ? 0 : fread(bytes, 1, sizeof bytes, file);
    kvarn_wire_alloc_init(alloc, KVARN_UNPACK_BYTES_MAX);
    if (kvt_frame_read(&frame, alloc, bytes, count, &err) != KVT_FRAME_OK) {
        fprintf(stderr, "%s: no golden frame\n", path);
        exit(2);
    }
    fclose(file);
    return frame.message;
}

int main(int argc, char **argv)
{
    const struct kvt_host_options options = {.seed = 1};
    struct kvt_host host;
    struct kvt_peer peer;
    struct kvarn_wire_alloc request_alloc, reply_alloc;

    if (argc != 2) {
        fprintf(stderr, "usage: golden_fingerprint FOLDER\n");
        return 2;
    }
    const ProtobufCMessage *request = message_read(argv[1], "register_shape.bin", &request_alloc);
    const Kvarnd__RegisterShapeReply *golden =
        message_read(argv[1], "register_shape_reply.bin", &reply_alloc);
    kvt_host_init(&host, &options);
    kvt_peer_open(&peer, &host);
    kvt_peer_hello(&peer);
    struct kvt_answer answer = kvt_peer_call(&peer, KVARN_FRAME_REGISTER_SHAPE, request, NULL, 0);
    const Kvarnd__RegisterShapeReply *reply = answer.message;
    const int ok = answer.err == 0 && reply->fingerprint.len == 16 &&
                   golden->fingerprint.len == 16 &&
                   memcmp(reply->fingerprint.data, golden->fingerprint.data, 16) == 0;
    printf("%s\n", ok ? "the fingerprint is the golden one" : "another fingerprint");
    kvt_answer_fini(&answer);
    kvt_peer_close(&peer);
    kvt_host_fini(&host);
    kvarn_wire_alloc_fini(&request_alloc);
    kvarn_wire_alloc_fini(&reply_alloc);
    return ok ? 0 : 1;
}
