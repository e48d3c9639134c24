/*
 * The bytes of cold segments, layout version 1.
 *
 * Owner: none, pure. Thread: any.
 */
#include "server/cold/cold_segment_format.h"

#include "lib/base/xxh3.h"
#include <string.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"

static const char SEGMENT_MAGIC[8] = {'K', 'V', 'S', 'E', 'G', 'M', 'N', 'T'};
static const char FOOTER_MAGIC[8] = {'K', 'V', 'F', 'O', 'O', 'T', 'E', 'R'};
static const char RECORD_MAGIC[4] = {'K', 'V', 'R', 'C'};

static void put_u32(uint8_t *dst, uint32_t value)
{
    for (unsigned i = 0; i < 4; i++) {
        dst[i] = (uint8_t)(value >> (8 * i));
    }
}

static void put_u64(uint8_t *dst, uint64_t value)
{
    put_u32(dst, (uint32_t)value);
    put_u32(dst + 4, (uint32_t)(value >> 32));
}

static uint32_t get_u32(const uint8_t *src)
{
    return src[0] | (uint32_t)src[1] << 8 | (uint32_t)src[2] << 16 | (uint32_t)src[3] << 24;
}

static uint64_t get_u64(const uint8_t *src)
{
    return get_u32(src) | (uint64_t)get_u32(src + 4) << 32;
}

void kvd_segment_header_encode(
    const struct kvd_segment_header *header, uint8_t dst[KVD_SEGMENT_HEADER_BYTES])
{
    memset(dst, 0, KVD_SEGMENT_HEADER_BYTES);
    memcpy(dst, SEGMENT_MAGIC, sizeof(SEGMENT_MAGIC));
    put_u32(dst + 8, KVD_SEGMENT_VERSION);
    put_u64(dst + 16, header->number);
    put_u64(dst + 24, header->bytes);
    put_u64(dst + 32, header->salt);
    put_u64(dst + 40, header->tier_id);
    put_u64(dst + 56, XXH3_64bits(dst, 56));
}

int kvd_segment_header_decode(
    const uint8_t src[KVD_SEGMENT_HEADER_BYTES], struct kvd_segment_header *ret)
{
    if (memcmp(src, SEGMENT_MAGIC, sizeof(SEGMENT_MAGIC)) != 0 ||
        get_u64(src + 56) != XXH3_64bits(src, 56)) {
        return KVARN_ECORRUPT;
    }
    if (get_u32(src + 8) != KVD_SEGMENT_VERSION) {
        return KVARN_EUNSUPPORTED;
    }
    ret->number = get_u64(src + 16);
    ret->bytes = get_u64(src + 24);
    ret->salt = get_u64(src + 32);
    ret->tier_id = get_u64(src + 40);
    return 0;
}

void kvd_record_header_encode(
    const struct kvd_record_header *header, uint64_t salt, uint8_t dst[KVD_RECORD_HEADER_BYTES])
{
    memset(dst, 0, KVD_RECORD_HEADER_BYTES);
    memcpy(dst, RECORD_MAGIC, sizeof(RECORD_MAGIC));
    dst[4] = KVD_SEGMENT_VERSION;
    dst[5] = header->type;
    dst[6] = header->flags;
    put_u32(dst + 8, header->tenant_id);
    put_u32(dst + 12, header->head_bytes);
    put_u64(dst + 16, header->id.hi);
    put_u64(dst + 24, header->id.lo);
    put_u64(dst + 32, header->sequence);
    put_u32(dst + 40, header->ordinal);
    put_u32(dst + 44, header->durable_ordinal);
    put_u64(dst + 48, header->body_bytes);
    put_u64(dst + 56, header->raw_bytes);
    put_u64(dst + 64, header->head_hash);
    put_u64(dst + 72, header->body_hash);
    put_u64(dst + 88, XXH3_64bits_withSeed(dst, 88, salt));
}

static bool header_is_sane(const struct kvd_record_header *header)
{
    bool is_zstd = (header->flags & KVD_RECORD_ZSTD) != 0;

    return header->type >= KVD_COLD_SHAPE && header->type < KVD_COLD_TYPE_COUNT &&
           (header->flags & ~(KVD_RECORD_ZSTD | KVD_RECORD_TWICE)) == 0 &&
           header->head_bytes <= KVARN_COLD_HEAD_BYTES_MAX &&
           header->body_bytes <= KVARN_COLD_BODY_BYTES_MAX &&
           header->raw_bytes <= KVARN_COLD_BODY_BYTES_MAX &&
           (is_zstd || header->raw_bytes == header->body_bytes);
}

int kvd_record_header_decode(
    const uint8_t src[KVD_RECORD_HEADER_BYTES], uint64_t salt, struct kvd_record_header *ret)
{
    if (memcmp(src, RECORD_MAGIC, sizeof(RECORD_MAGIC)) != 0 || src[4] != KVD_SEGMENT_VERSION ||
        get_u64(src + 88) != XXH3_64bits_withSeed(src, 88, salt)) {
        return KVARN_ECORRUPT;
    }
    struct kvd_record_header header = {.type = src[5],
        .flags = src[6],
        .tenant_id = get_u32(src + 8),
        .id = {get_u64(src + 16), get_u64(src + 24)},
        .sequence = get_u64(src + 32),
        .ordinal = get_u32(src + 40),
        .durable_ordinal = get_u32(src + 44),
        .head_bytes = get_u32(src + 12),
        .body_bytes = get_u64(src + 48),
        .raw_bytes = get_u64(src + 56),
        .head_hash = get_u64(src + 64),
        .body_hash = get_u64(src + 72)};
    if (!header_is_sane(&header)) {
        return KVARN_ECORRUPT;
    }
    *ret = header;
    return 0;
}

void kvd_segment_footer_encode(
    const struct kvd_segment_footer *footer, uint8_t dst[KVD_SEGMENT_FOOTER_BYTES])
{
    memset(dst, 0, KVD_SEGMENT_FOOTER_BYTES);
    memcpy(dst, FOOTER_MAGIC, sizeof(FOOTER_MAGIC));
    put_u32(dst + 8, KVD_SEGMENT_VERSION);
    put_u64(dst + 16, footer->index_offset);
    put_u64(dst + 24, footer->index_bytes);
    put_u64(dst + 32, footer->number);
    put_u64(dst + 40, footer->salt);
    put_u64(dst + 48, footer->tier_id);
    put_u64(dst + 56, XXH3_64bits(dst, 56));
}

int kvd_segment_footer_decode(
    const uint8_t src[KVD_SEGMENT_FOOTER_BYTES], struct kvd_segment_footer *ret)
{
    if (memcmp(src, FOOTER_MAGIC, sizeof(FOOTER_MAGIC)) != 0 ||
        get_u64(src + 56) != XXH3_64bits(src, 56)) {
        return KVARN_ECORRUPT;
    }
    if (get_u32(src + 8) != KVD_SEGMENT_VERSION) {
        return KVARN_EUNSUPPORTED;
    }
    ret->index_offset = get_u64(src + 16);
    ret->index_bytes = get_u64(src + 24);
    ret->number = get_u64(src + 32);
    ret->salt = get_u64(src + 40);
    ret->tier_id = get_u64(src + 48);
    return 0;
}

void kvd_index_entry_encode(const struct kvd_record_header *header, uint64_t salt, uint64_t offset,
    uint8_t dst[KVD_INDEX_ENTRY_BYTES])
{
    kvd_record_header_encode(header, salt, dst);
    put_u64(dst + KVD_RECORD_HEADER_BYTES, offset);
}

int kvd_index_entry_decode(const uint8_t src[KVD_INDEX_ENTRY_BYTES], uint64_t salt,
    struct kvd_record_header *ret, uint64_t *ret_offset)
{
    uint64_t offset = get_u64(src + KVD_RECORD_HEADER_BYTES);

    if (offset % KVD_SEGMENT_BLOCK != 0 || offset < KVD_SEGMENT_RECORDS_OFFSET) {
        return KVARN_ECORRUPT;
    }
    int err = kvd_record_header_decode(src, salt, ret);
    if (err == 0) {
        *ret_offset = offset;
    }
    return err;
}

uint64_t kvd_segment_round(uint64_t bytes)
{
    return (bytes + KVD_SEGMENT_BLOCK - 1) / KVD_SEGMENT_BLOCK * KVD_SEGMENT_BLOCK;
}

uint64_t kvd_record_body_offset(uint32_t head_bytes)
{
    uint64_t bytes = KVD_RECORD_HEADER_BYTES + (uint64_t)head_bytes;

    return (bytes + KVD_RECORD_ALIGN - 1) / KVD_RECORD_ALIGN * KVD_RECORD_ALIGN;
}

uint64_t kvd_record_copy_bytes(uint32_t head_bytes, uint64_t body_bytes)
{
    return kvd_segment_round(kvd_record_body_offset(head_bytes) + body_bytes);
}

uint64_t kvd_record_file_bytes(const struct kvd_record_header *header)
{
    uint64_t bytes = kvd_record_copy_bytes(header->head_bytes, header->body_bytes);

    return (header->flags & KVD_RECORD_TWICE) != 0 ? 2 * bytes : bytes;
}

uint64_t kvd_segment_index_bytes(uint64_t record_count)
{
    return kvd_record_copy_bytes(0, record_count * KVD_INDEX_ENTRY_BYTES) + KVD_SEGMENT_BLOCK;
}

int kvd_segment_name_parse(const char *name, const char *suffix, uint64_t *ret_number)
{
    uint64_t number = 0;
    unsigned digits = 0;

    for (; digits < 16; digits++) {
        const char *hex = "0123456789abcdef";
        const char *digit = name[digits] == '\0' ? NULL : strchr(hex, name[digits]);
        if (digit == NULL) {
            return KVARN_EINVALID;
        }
        number = number << 4 | (uint64_t)(digit - hex);
    }
    if (name[digits] != '.' || strcmp(name + digits + 1, suffix) != 0) {
        return KVARN_EINVALID;
    }
    *ret_number = number;
    return 0;
}
