/*
 * One golden frame: read it, and find what the manifest says. A good one must decode to its text
 * and encode to its own bytes again.
 *
 * usage: golden_frame FILE EXPECT, where EXPECT is "ok", "incomplete" or "STAGE ERROR".
 * Owner: ctest. Thread: one.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/limits.h"
#include "tests/support/frame_parts.h"

#define FILE_BYTES_MAX (KVARN_MESSAGE_BYTES_MAX + 4096)

static size_t file_read(const char *path, uint8_t *out, size_t room)
{
    FILE *file = fopen(path, "rb");

    if (file == NULL) {
        fprintf(stderr, "%s: cannot be read\n", path);
        exit(2);
    }
    const size_t bytes = fread(out, 1, room, file);
    if (bytes == room || ferror(file)) {
        fprintf(stderr, "%s: larger than any golden frame\n", path);
        exit(2);
    }
    fclose(file);
    return bytes;
}

static void frame_print(FILE *out, const struct kvt_frame *frame)
{
    const unsigned flags = frame->header.flags;

    fprintf(out, "type: %s\nflags:%s%s\n", kvarn_frame_type_label(frame->header.type),
        (flags & KVARN_FRAME_REPLY) != 0 ? " reply" : "",
        (flags & KVARN_FRAME_PAYLOAD_XXH3) != 0 ? " payload_xxh3" : "");
    fprintf(out,
        "request_id: %" PRIu64 "\nmessage_bytes: %" PRIu32 "\npayload: ", frame->header.request_id,
        frame->header.message_bytes);
    for (uint64_t i = 0; i < frame->header.payload_bytes; i++) {
        fprintf(out, "%02x", frame->payload[i]);
    }
    fputc('\n', out);
    kvt_message_print(out, frame->message);
}

/* Compare with the text beside the frame: NAME.txt for NAME.bin. */
static int text_check(const char *bin_path, const struct kvt_frame *frame)
{
    static uint8_t expected[FILE_BYTES_MAX];
    char path[4096];
    char *got = NULL;
    size_t got_bytes = 0;

    snprintf(path, sizeof path, "%.*s.txt", (int)(strlen(bin_path) - strlen(".bin")), bin_path);
    const size_t expected_bytes = file_read(path, expected, sizeof expected);
    FILE *out = open_memstream(&got, &got_bytes);
    if (out == NULL) {
        return 1;
    }
    frame_print(out, frame);
    fclose(out);
    const int differs = got_bytes != expected_bytes || memcmp(got, expected, expected_bytes) != 0;
    if (differs) {
        printf("decoded:\n%s\nexpected:\n%.*s\n", got, (int)expected_bytes, (char *)expected);
    }
    free(got);
    return differs;
}

static int good_check(
    const char *path, const struct kvt_frame *frame, const uint8_t *bytes, size_t byte_count)
{
    static uint8_t again[FILE_BYTES_MAX];
    int failures = text_check(path, frame);
    const size_t again_bytes = kvt_frame_encode(frame, again, sizeof again);

    if (frame->frame_bytes != byte_count) {
        printf("the frame has %zu bytes, the file %zu\n", frame->frame_bytes, byte_count);
        failures++;
    }
    if (again_bytes != byte_count || memcmp(again, bytes, byte_count) != 0) {
        printf("encoded again it is not the same %zu bytes\n", byte_count);
        failures++;
    }
    return failures;
}

int main(int argc, char **argv)
{
    static uint8_t bytes[FILE_BYTES_MAX];
    struct kvarn_wire_alloc alloc;
    struct kvt_frame frame;
    char verdict[64];
    int err;

    if (argc != 3) {
        fprintf(stderr, "usage: golden_frame FILE EXPECT\n");
        return 2;
    }
    const size_t byte_count = file_read(argv[1], bytes, sizeof bytes);
    kvarn_wire_alloc_init(&alloc, KVARN_UNPACK_BYTES_MAX);
    const enum kvt_frame_stage stage = kvt_frame_read(&frame, &alloc, bytes, byte_count, &err);
    snprintf(verdict, sizeof verdict, "%s%s%s", kvt_frame_stage_name(stage), err != 0 ? " " : "",
        err != 0 ? kvarn_err_name(err) : "");
    printf("%zu bytes: %s, expected %s\n", byte_count, verdict, argv[2]);
    int failures = strcmp(verdict, argv[2]) != 0;
    if (stage == KVT_FRAME_OK) {
        failures += good_check(argv[1], &frame, bytes, byte_count);
    }
    kvarn_wire_alloc_fini(&alloc);
    return failures != 0;
}
