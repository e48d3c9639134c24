/*
 * Frames judged and written as text, from protobuf-c's descriptors.
 *
 * Owner: the test. Thread: any.
 */
#include "tests/support/frame_parts.h"

#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

#include <xxhash.h>

#include "kvarnd.pb-c.h"
#include "lib/base/assert.h"

#define DEPTH_MAX 8 /* no message type nests deeper: unit_proto_wire_alloc */

static const ProtobufCMessageDescriptor *descriptor_of(const struct kvarn_frame_header *header)
{
    const bool is_reply = (header->flags & KVARN_FRAME_REPLY) != 0;

    switch (header->type) {
#define X(number, name, label, req, rep, req_sym, rep_sym) \
    case number:                                           \
        return is_reply ? &kvarnd__##rep_sym##__descriptor : &kvarnd__##req_sym##__descriptor;
        KVARN_FRAME_TYPES(X)
#undef X
    case KVARN_FRAME_TYPE_ERROR:
        return is_reply ? &kvarnd__error_reply__descriptor : NULL;
    default:
        return NULL;
    }
}

static void le64_store(uint8_t to[8], uint64_t value)
{
    for (unsigned i = 0; i < 8; i++) {
        to[i] = (uint8_t)(value >> (8 * i));
    }
}

static bool trailer_fits(const struct kvt_frame *frame)
{
    uint8_t expected[KVARN_FRAME_TRAILER_BYTES];

    le64_store(expected, XXH3_64bits(frame->payload, (size_t)frame->header.payload_bytes));
    return memcmp(expected, frame->trailer, sizeof expected) == 0;
}

enum kvt_frame_stage kvt_frame_read(struct kvt_frame *frame, struct kvarn_wire_alloc *alloc,
    const uint8_t *bytes, size_t byte_count, int *ret_err)
{
    memset(frame, 0, sizeof *frame);
    *ret_err = 0;
    if (byte_count < KVARN_FRAME_HEADER_BYTES) {
        return KVT_FRAME_INCOMPLETE;
    }
    *ret_err = kvarn_frame_decode(bytes, &frame->header);
    if (*ret_err != 0) {
        return KVT_FRAME_HEADER;
    }
    frame->descriptor = descriptor_of(&frame->header);
    if (frame->descriptor == NULL) {
        *ret_err = KVARN_EUNSUPPORTED;
        return KVT_FRAME_TYPE;
    }
    size_t left = byte_count - KVARN_FRAME_HEADER_BYTES;
    if (left < frame->header.message_bytes) {
        return KVT_FRAME_INCOMPLETE;
    }
    left -= frame->header.message_bytes;
    frame->message_bytes = bytes + KVARN_FRAME_HEADER_BYTES;
    *ret_err = kvarn_wire_unpack(alloc, frame->descriptor, frame->message_bytes,
        frame->header.message_bytes, &frame->message);
    if (*ret_err != 0) {
        return KVT_FRAME_MESSAGE;
    }
    const bool has_trailer = (frame->header.flags & KVARN_FRAME_PAYLOAD_XXH3) != 0;
    const size_t trailer_bytes = has_trailer ? KVARN_FRAME_TRAILER_BYTES : 0;
    if (left < frame->header.payload_bytes + trailer_bytes) {
        return KVT_FRAME_INCOMPLETE;
    }
    frame->payload = frame->message_bytes + frame->header.message_bytes;
    frame->trailer = has_trailer ? frame->payload + frame->header.payload_bytes : NULL;
    frame->frame_bytes = KVARN_FRAME_HEADER_BYTES + frame->header.message_bytes +
                         (size_t)frame->header.payload_bytes + trailer_bytes;
    if (has_trailer && !trailer_fits(frame)) {
        *ret_err = KVARN_ECORRUPT;
        return KVT_FRAME_PAYLOAD;
    }
    return KVT_FRAME_OK;
}

size_t kvt_frame_encode(const struct kvt_frame *frame, uint8_t *out, size_t room)
{
    struct kvarn_frame_header header = frame->header;
    const size_t message_bytes = protobuf_c_message_get_packed_size(frame->message);
    const size_t payload_bytes = (size_t)header.payload_bytes;
    const size_t trailer_bytes = frame->trailer != NULL ? KVARN_FRAME_TRAILER_BYTES : 0;
    const size_t total = KVARN_FRAME_HEADER_BYTES + message_bytes + payload_bytes + trailer_bytes;

    if (total > room) {
        return 0;
    }
    header.message_bytes = (uint32_t)message_bytes;
    kvarn_frame_encode(&header, out);
    out += KVARN_FRAME_HEADER_BYTES;
    KVARN_ASSERT(protobuf_c_message_pack(frame->message, out) == message_bytes);
    out += message_bytes;
    if (payload_bytes != 0) {
        memcpy(out, frame->payload, payload_bytes);
    }
    if (trailer_bytes != 0) {
        le64_store(out + payload_bytes, XXH3_64bits(frame->payload, payload_bytes));
    }
    return total;
}

const char *kvt_frame_stage_name(enum kvt_frame_stage stage)
{
    static const char *const names[] = {"header", "type", "message", "payload", "incomplete", "ok"};

    KVARN_ASSERT((size_t)stage < sizeof names / sizeof *names);
    return names[stage];
}

static void print_quoted(FILE *out, const char *text)
{
    fputc('"', out);
    for (const unsigned char *c = (const void *)text; *c != '\0'; c++) {
        if (*c < 0x20 || *c >= 0x7f || *c == '"' || *c == '\\') {
            fprintf(out, "\\x%02x", *c);
        } else {
            fputc(*c, out);
        }
    }
    fputs("\"\n", out);
}

static void print_bytes(FILE *out, const ProtobufCBinaryData *bytes)
{
    for (size_t i = 0; i < bytes->len; i++) {
        fprintf(out, "%02x", bytes->data[i]);
    }
    fputc('\n', out);
}

static void print_enum(FILE *out, const ProtobufCEnumDescriptor *descriptor, int value)
{
    const ProtobufCEnumValue *row = protobuf_c_enum_descriptor_get_value(descriptor, value);

    if (row != NULL) {
        fprintf(out, "%s\n", row->name);
    } else {
        fprintf(out, "%d\n", value);
    }
}

/* The kinds of field that kvarnd.proto has; another one must be added here when it gets it. */
static void print_scalar(FILE *out, const ProtobufCFieldDescriptor *field, const void *at)
{
    const uint32_t *as_u32 = at;
    const uint64_t *as_u64 = at;
    const float *as_float = at;
    char *const *as_text = at;

    switch (field->type) {
    case PROTOBUF_C_TYPE_UINT32:
        fprintf(out, "%" PRIu32 "\n", *as_u32);
        return;
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        fprintf(out, "%" PRIu64 "\n", *as_u64);
        return;
    case PROTOBUF_C_TYPE_FLOAT:
        fprintf(out, "%.9g\n", (double)*as_float);
        return;
    case PROTOBUF_C_TYPE_BOOL:
        fputs(*(const protobuf_c_boolean *)at ? "true\n" : "false\n", out);
        return;
    case PROTOBUF_C_TYPE_ENUM:
        print_enum(out, field->descriptor, *(const int *)at);
        return;
    case PROTOBUF_C_TYPE_STRING:
        print_quoted(out, *as_text);
        return;
    case PROTOBUF_C_TYPE_BYTES:
        print_bytes(out, at);
        return;
    default:
        KVARN_ASSERT(false); /* a kind of field that kvarnd.proto did not have */
    }
}

static size_t element_bytes(const ProtobufCFieldDescriptor *field)
{
    switch (field->type) {
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        return 8;
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_MESSAGE:
        return sizeof(void *);
    default:
        return 4;
    }
}

static bool is_there(const uint8_t *base, const ProtobufCFieldDescriptor *field)
{
    if (field->type == PROTOBUF_C_TYPE_STRING || field->type == PROTOBUF_C_TYPE_MESSAGE) {
        const void *pointer;

        memcpy(&pointer, base + field->offset, sizeof(const void *));
        return pointer != NULL;
    }
    protobuf_c_boolean has;
    memcpy(&has, base + field->quantifier_offset, sizeof has);
    return has != 0;
}

/* Where the field's values lie, and how many there are. */
static const uint8_t *field_values(
    const ProtobufCMessage *message, const ProtobufCFieldDescriptor *field, size_t *ret_count)
{
    const uint8_t *base = (const uint8_t *)message;
    const uint8_t *values = base + field->offset;

    *ret_count = 1;
    if (field->label == PROTOBUF_C_LABEL_REPEATED) {
        memcpy(ret_count, base + field->quantifier_offset, sizeof *ret_count);
        memcpy(&values, base + field->offset, sizeof(const uint8_t *));
    } else if (field->label == PROTOBUF_C_LABEL_OPTIONAL) {
        *ret_count = is_there(base, field);
    }
    return values;
}

static void message_print(FILE *out, const ProtobufCMessage *message, int depth)
{
    KVARN_ASSERT(depth < DEPTH_MAX);
    for (unsigned i = 0; i < message->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &message->descriptor->fields[i];
        size_t count;
        const uint8_t *at = field_values(message, field, &count);

        for (size_t j = 0; j < count; j++, at += element_bytes(field)) {
            fprintf(out, "%*s%s", 2 * depth, "", field->name);
            if (field->type == PROTOBUF_C_TYPE_MESSAGE) {
                const ProtobufCMessage *nested;

                memcpy(&nested, at, sizeof nested);
                fputs(":\n", out);
                message_print(out, nested, depth + 1);
            } else {
                fputs(": ", out);
                print_scalar(out, field, at);
            }
        }
    }
    for (unsigned i = 0; i < message->n_unknown_fields; i++) {
        fprintf(out, "%*s#%" PRIu32 "\n", 2 * depth, "", message->unknown_fields[i].tag);
    }
}

void kvt_message_print(FILE *out, const ProtobufCMessage *message)
{
    message_print(out, message, 0);
}
