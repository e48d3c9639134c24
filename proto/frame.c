/*
 * Frame headers: bytes to struct and back. Every field is read and written byte by byte, so that
 * neither alignment nor the host's byte order matters.
 *
 * Owner: whoever holds the bytes. Thread: any; no state.
 */
#include "proto/frame.h"

#include <stddef.h>
#include <zlib.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"

#define FRAME_MAGIC     UINT32_C(0x314e564b) /* "KVN1" as little-endian u32 */
#define FRAME_CRC_BYTES 28                   /* what the CRC covers: all before it */

enum frame_offset {
    FRAME_AT_MAGIC = 0,
    FRAME_AT_VERSION = 4,
    FRAME_AT_TYPE = 5,
    FRAME_AT_FLAGS = 6,
    FRAME_AT_MESSAGE_BYTES = 8,
    FRAME_AT_REQUEST_ID = 12,
    FRAME_AT_PAYLOAD_BYTES = 20,
    FRAME_AT_CRC = 28,
};
_Static_assert(FRAME_AT_CRC == FRAME_CRC_BYTES && FRAME_AT_CRC + 4 == KVARN_FRAME_HEADER_BYTES,
    "the CRC is the header's last field and covers all before it");

static void store_le(uint8_t *to, uint64_t value, size_t byte_count)
{
    for (size_t i = 0; i < byte_count; i++) {
        to[i] = (uint8_t)(value >> (8 * i));
    }
}

static uint64_t load_le(const uint8_t *from, size_t byte_count)
{
    uint64_t value = 0;

    for (size_t i = 0; i < byte_count; i++) {
        value |= (uint64_t)from[i] << (8 * i);
    }
    return value;
}

static uint32_t header_crc(const uint8_t *header)
{
    return (uint32_t)crc32(crc32(0, NULL, 0), header, FRAME_CRC_BYTES);
}

void kvarn_frame_encode(
    const struct kvarn_frame_header *header, uint8_t out[KVARN_FRAME_HEADER_BYTES])
{
    KVARN_ASSERT(header != NULL && out != NULL);
    store_le(out + FRAME_AT_MAGIC, FRAME_MAGIC, 4);
    store_le(out + FRAME_AT_VERSION, KVARN_FRAME_VERSION, 1);
    store_le(out + FRAME_AT_TYPE, header->type, 1);
    store_le(out + FRAME_AT_FLAGS, header->flags, 2);
    store_le(out + FRAME_AT_MESSAGE_BYTES, header->message_bytes, 4);
    store_le(out + FRAME_AT_REQUEST_ID, header->request_id, 8);
    store_le(out + FRAME_AT_PAYLOAD_BYTES, header->payload_bytes, 8);
    store_le(out + FRAME_AT_CRC, header_crc(out), 4);
}

/*
 * The CRC comes before the version: a flipped bit is damage, never "another version". So every
 * version of the protocol keeps these 32 bytes.
 */
int kvarn_frame_decode(const uint8_t in[KVARN_FRAME_HEADER_BYTES], struct kvarn_frame_header *ret)
{
    KVARN_ASSERT(in != NULL && ret != NULL);
    const struct kvarn_frame_header header = {
        .version = (uint8_t)load_le(in + FRAME_AT_VERSION, 1),
        .type = (uint8_t)load_le(in + FRAME_AT_TYPE, 1),
        .flags = (uint16_t)load_le(in + FRAME_AT_FLAGS, 2),
        .message_bytes = (uint32_t)load_le(in + FRAME_AT_MESSAGE_BYTES, 4),
        .request_id = load_le(in + FRAME_AT_REQUEST_ID, 8),
        .payload_bytes = load_le(in + FRAME_AT_PAYLOAD_BYTES, 8),
    };

    if (load_le(in + FRAME_AT_MAGIC, 4) != FRAME_MAGIC ||
        load_le(in + FRAME_AT_CRC, 4) != header_crc(in)) {
        return KVARN_EPROTOCOL;
    }
    if (header.version != KVARN_FRAME_VERSION) {
        return KVARN_EUNSUPPORTED;
    }
    if ((header.flags & ~KVARN_FRAME_FLAGS_KNOWN) != 0) {
        return KVARN_EPROTOCOL;
    }
    if (header.message_bytes > KVARN_MESSAGE_BYTES_MAX ||
        header.payload_bytes > KVARN_PAYLOAD_BYTES_MAX) {
        return KVARN_ETOO_LARGE;
    }
    *ret = header;
    return 0;
}

const char *kvarn_frame_type_label(unsigned type)
{
    switch (type) {
    case KVARN_FRAME_TYPE_ERROR:
        return "error";
#define X(number, name, label, req, rep, req_sym, rep_sym) \
    case KVARN_FRAME_##name:                               \
        return label;
        KVARN_FRAME_TYPES(X)
#undef X
    default:
        return "unknown";
    }
}
