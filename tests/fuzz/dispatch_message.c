/*
 * Messages from an input, by protobuf-c's descriptors: every call of kvarnd.proto, and every one
 * that it will get, without a line for each.
 *
 * Owner: fuzz_dispatch. Thread: one. A byte of the input chooses how each field gets its value.
 */
#include "tests/fuzz/dispatch_message.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"

#define DEPTH_MAX        4 /* of messages in messages: unit_proto_wire_alloc */
#define REPEATED_MAX     5
#define NESTED_BYTES_MAX 16383 /* what a length of two bytes can say */

struct writer {
    struct fuzz_input *input;
    const struct dispatch_hints *hints;
    const struct kvd_session *session;              /* of the last handle written; NULL for none */
    uint32_t layer;                                 /* last written */
    const struct kvd_session *listed[REPEATED_MAX]; /* of `handles`: their `epochs` follow */
    unsigned listed_count, epoch_count;
    uint8_t *out;
    size_t room;
    size_t bytes;
    bool is_full;
};

static void put_byte(struct writer *w, uint8_t byte)
{
    if (w->bytes == w->room) {
        w->is_full = true;
        return;
    }
    w->out[w->bytes++] = byte;
}

static void put_varint(struct writer *w, uint64_t value)
{
    while (value > 0x7f) {
        put_byte(w, (uint8_t)(value | 0x80));
        value >>= 7;
    }
    put_byte(w, (uint8_t)value);
}

static void put_tag(struct writer *w, uint32_t number, unsigned wire_type)
{
    put_varint(w, (uint64_t)number << 3 | wire_type);
}

static void put_fixed(struct writer *w, uint64_t value, unsigned byte_count)
{
    for (unsigned i = 0; i < byte_count; i++) {
        put_byte(w, (uint8_t)(value >> (8 * i)));
    }
}

static bool is_one_of(const char *name, const char *const *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(name, list[i]) == 0) {
            return true;
        }
    }
    return false;
}
#define IS_ONE_OF(name, list) is_one_of((name), (list), sizeof(list) / sizeof((list)[0]))

/* Tokens and positions that mean something to the session at hand. */
static uint64_t token_value(const struct writer *w, uint8_t how)
{
    const struct kvd_session *session = w->session;
    const uint8_t small = how >> 4;

    if (session == NULL) {
        return small;
    }
    const uint32_t layer = w->layer < session->shape->layer_count ? w->layer : 0;
    const uint64_t length = session->layers[layer].length;
    const uint64_t group = session->shape->group;
    switch (how & 0x7) {
    case 0:
    case 1:
    case 2:
        return length;
    case 3:
        return length < small ? 0 : length - small;
    case 4:
        return small * group;
    case 5:
        return length / group * group;
    case 6:
        return length + small;
    default:
        return small;
    }
}

static uint64_t count_value(const struct writer *w, uint8_t how)
{
    const uint64_t group = w->session != NULL ? w->session->shape->group : 64;
    const uint8_t small = (uint8_t)(how >> 3);

    switch (how & 0x3) {
    case 0:
        return 1u + small % 4;
    case 1:
        return small;
    case 2:
        return group;
    default:
        return group + small;
    }
}

static uint64_t shape_value(const char *name, uint8_t how)
{
    static const uint64_t dims[] = {8, 16, 24, 32, 64, 80, 128, 7};
    static const uint64_t windows[] = {0, 1, 64, 100, 1000, UINT64_C(1) << 27, 0, UINT64_MAX};

    if (strcmp(name, "window") == 0) {
        return windows[how & 0x7];
    }
    if (strstr(name, "_dim") != NULL) {
        return dims[how & 0x7];
    }
    if (strstr(name, "bits") != NULL) {
        return how % 8 == 7 ? 3 : 2 + 2 * (how & 1u);
    }
    if (strcmp(name, "group") == 0) {
        return how % 8 == 7 ? 32 : 64 + 64 * (how & 1u);
    }
    if (strcmp(name, "sink_tokens") == 0) {
        return 64 * (how % 4u);
    }
    return 1u + how % 3u; /* layers, kv_heads */
}

static uint64_t handle_value(const struct writer *w, uint8_t how)
{
    const struct dispatch_hints *hints = w->hints;

    return hints->handle_count == 0 ? how : hints->handles[how % hints->handle_count];
}

static uint64_t layer_value(const struct writer *w, const char *name, uint8_t how)
{
    const uint32_t layers = w->session != NULL ? w->session->shape->layer_count : 2;

    if (strstr(name, "layer_count") != NULL) {
        return how % 2 == 0 ? layers - w->layer % layers : 1 + how % (layers + 1);
    }
    return how % (layers + (how > 0xf0 ? 1u : 0u));
}

/* A value that the field's name suggests. */
static uint64_t named_value(const struct writer *w, const char *name, uint8_t how)
{
    static const char *const tokens[] = {
        "start", "position", "token_first", "token_last", "first_token", "length"};
    static const char *const counts[] = {"token_count", "query_tokens"};
    static const char *const layers[] = {
        "layer", "layer_first", "layer_count", "metric_layer_first", "metric_layer_count"};
    static const char *const shapes[] = {"layers", "kv_heads", "k_dim", "v_dim", "window", "group",
        "k_bits", "v_bits", "sink_tokens"};

    if (strcmp(name, "handle") == 0) {
        return handle_value(w, how);
    }
    if (strcmp(name, "handles") == 0) {
        return handle_value(w, how);
    }
    if (strcmp(name, "epochs") == 0) {
        const struct kvd_session *session =
            w->epoch_count < w->listed_count ? w->listed[w->epoch_count] : NULL;
        return session != NULL ? session->epoch : how;
    }
    if (strcmp(name, "sources") == 0) {
        return how % (w->listed_count + (how > 0xf0 ? 2u : 1u));
    }
    if (strcmp(name, "epoch") == 0) {
        return w->session != NULL ? w->session->epoch : how;
    }
    if (strcmp(name, "request_id") == 0) {
        return w->hints->last_request_id - how % 4;
    }
    if (IS_ONE_OF(name, tokens)) {
        return token_value(w, how);
    }
    if (IS_ONE_OF(name, counts)) {
        return count_value(w, how);
    }
    if (IS_ONE_OF(name, layers)) {
        return layer_value(w, name, how);
    }
    if (IS_ONE_OF(name, shapes)) {
        return shape_value(name, how);
    }
    if (strcmp(name, "deadline_ms") == 0) {
        return how % 4 == 0 ? 0 : 1u << how % 16;
    }
    return 1u + how % 4u; /* q_heads, shape_id, seal_lag, limit */
}

/* Most numbers are sensible, so that a request of ten of them has a chance. */
static uint64_t number_value(struct writer *w, const char *name)
{
    const uint8_t how = fuzz_take_u8(w->input);

    if (how < 0xe8) {
        return named_value(w, name, how < 0xc0 ? fuzz_take_u8(w->input) : 0);
    }
    if (how < 0xf4) {
        return fuzz_take_u16(w->input);
    }
    if (how < 0xfa) {
        return UINT64_C(1) << how % 64;
    }
    return fuzz_take_u64(w->input);
}

static uint32_t float_bits(struct writer *w)
{
    static const float floats[] = {
        0.25f, 1.0f, -1.0f, 0.0f, 30.0f, 1e-30f, 1e30f, INFINITY, NAN, -0.0f};
    const uint8_t how = fuzz_take_u8(w->input);
    uint32_t bits;

    if (how >= 0xf0) {
        return (uint32_t)fuzz_take_u64(w->input);
    }
    memcpy(&bits, &floats[how % (how < 0xc0 ? 2 : sizeof floats / sizeof *floats)], sizeof bits);
    return bits;
}

static void put_text(struct writer *w, uint32_t number)
{
    static const char *const texts[] = {
        "a", "b", "c", "payload_xxh3", "", "m", "a/1", "\xc3\xa9", "\x80"};
    const uint8_t how = fuzz_take_u8(w->input);

    put_tag(w, number, 2);
    if (how < 0xf0) {
        const char *text = texts[how < 0x80 ? how % 2 : how % (sizeof texts / sizeof *texts)];
        put_varint(w, strlen(text));
        for (; *text != '\0'; text++) {
            put_byte(w, (uint8_t)*text);
        }
        return;
    }
    const size_t bytes = 240u + fuzz_take_u8(w->input) % 32u;
    put_varint(w, bytes);
    for (size_t i = 0; i < bytes; i++) {
        put_byte(w, 'x');
    }
}

/* A fingerprint, or almost one. */
static void put_bytes(struct writer *w, uint32_t number)
{
    const uint8_t how = fuzz_take_u8(w->input);
    const size_t bytes = how < 0x80 ? 16 : how % 20u;

    put_tag(w, number, 2);
    put_varint(w, bytes);
    for (size_t i = 0; i < bytes; i++) {
        put_byte(w, how);
    }
}

static void put_number(struct writer *w, const ProtobufCFieldDescriptor *field)
{
    const uint64_t value = number_value(w, field->name);

    if (strcmp(field->name, "handle") == 0) {
        w->session = w->hints->session_of(w->hints->ctx, value);
    } else if (strcmp(field->name, "handles") == 0) {
        w->listed_count = w->epoch_count > 0 ? 0 : w->listed_count; /* another item's list */
        w->epoch_count = 0;
        if (w->listed_count < REPEATED_MAX) {
            w->listed[w->listed_count++] = w->hints->session_of(w->hints->ctx, value);
        }
    } else if (strcmp(field->name, "epochs") == 0) {
        w->epoch_count++;
    } else if (strncmp(field->name, "layer", 5) == 0 && strcmp(field->name, "layer_count") != 0) {
        w->layer = (uint32_t)value;
    }
    put_tag(w, field->id, 0);
    put_varint(w, value);
}

static void put_scalar(struct writer *w, const ProtobufCFieldDescriptor *field)
{
    switch (field->type) {
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_UINT64:
        put_number(w, field);
        return;
    case PROTOBUF_C_TYPE_BOOL:
        put_tag(w, field->id, 0);
        put_varint(w, fuzz_take_u8(w->input) & 1u);
        return;
    case PROTOBUF_C_TYPE_ENUM: {
        const uint8_t how = fuzz_take_u8(w->input);
        put_tag(w, field->id, 0);
        put_varint(w, how < 0xf0 ? how % 4u : (how < 0xf8 ? how : UINT64_MAX));
        return;
    }
    case PROTOBUF_C_TYPE_FLOAT:
        put_tag(w, field->id, 5);
        put_fixed(w, float_bits(w), 4);
        return;
    case PROTOBUF_C_TYPE_STRING:
        put_text(w, field->id);
        return;
    case PROTOBUF_C_TYPE_BYTES:
        put_bytes(w, field->id);
        return;
    default:
        KVARN_ASSERT(false); /* no request of kvarnd.proto has such a field */
    }
}

static unsigned field_count(struct writer *w, const ProtobufCFieldDescriptor *field)
{
    const uint8_t how = fuzz_take_u8(w->input);

    switch (field->label) {
    case PROTOBUF_C_LABEL_REQUIRED:
        return how != 0xff;
    case PROTOBUF_C_LABEL_REPEATED:
        return how < 0x80 ? 1 : how % (REPEATED_MAX + 1u);
    default:
        return how >= 0x90;
    }
}

/* `depth` is bounded by the types, none of which is recursive. */
static void put_message(struct writer *w, const ProtobufCMessageDescriptor *descriptor, int depth)
{
    KVARN_ASSERT(depth < DEPTH_MAX);
    for (unsigned i = 0; i < descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &descriptor->fields[i];

        for (unsigned n = field_count(w, field); n > 0 && !w->is_full; n--) {
            const size_t start = w->bytes;

            if (field->type != PROTOBUF_C_TYPE_MESSAGE) {
                put_scalar(w, field);
            } else {
                put_tag(w, field->id, 2);
                const size_t length_at = w->bytes;
                put_fixed(w, 0, 2);
                put_message(w, field->descriptor, depth + 1);
                const size_t length = w->bytes - length_at - 2;
                if (!w->is_full && length <= NESTED_BYTES_MAX) {
                    w->out[length_at] = (uint8_t)(length | 0x80); /* two bytes, whatever it is */
                    w->out[length_at + 1] = (uint8_t)(length >> 7);
                }
            }
            if (w->is_full) {
                w->bytes = start;
            }
        }
    }
}

size_t dispatch_message_make(struct fuzz_input *input, const struct dispatch_hints *hints,
    const ProtobufCMessageDescriptor *descriptor, uint8_t *out, size_t room)
{
    struct writer w = {.input = input, .hints = hints, .out = out, .room = room};

    put_message(&w, descriptor, 0);
    return w.bytes;
}
