/*
 * The bytes of cold segments, layout version 1: headers, index, footer. COLD.md describes them.
 *
 * Owner: none, pure. Thread: any. Decoding is total: any bytes give a valid value or
 * KVARN_ECORRUPT.
 */
#ifndef KVD_COLD_SEGMENT_FORMAT_H
#define KVD_COLD_SEGMENT_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/cold/cold.h"

/* Records and headers begin at multiples of this: a write never touches a block synced before. */
#define KVD_SEGMENT_BLOCK 4096

#define KVD_SEGMENT_VERSION 1

/* Two copies of the segment header come first. */
#define KVD_SEGMENT_RECORDS_OFFSET (2 * KVD_SEGMENT_BLOCK)

#define KVD_SEGMENT_HEADER_BYTES 64
#define KVD_RECORD_HEADER_BYTES  96
#define KVD_INDEX_ENTRY_BYTES    (KVD_RECORD_HEADER_BYTES + 8)
#define KVD_SEGMENT_FOOTER_BYTES 64

/* Where the body begins after header and head: its alignment in the file. */
#define KVD_RECORD_ALIGN 64

struct kvd_segment_header {
    uint64_t number;  /* of the file's name */
    uint64_t bytes;   /* the file's size while it is written */
    uint64_t salt;    /* random: seeds the hashes of record headers, so that no content can look
                         like one */
    uint64_t tier_id; /* random, one for all segments of a folder */
};

/* Flags of a record. */
#define KVD_RECORD_ZSTD  1u /* the body is one zstd frame */
#define KVD_RECORD_TWICE 2u /* the same record follows once more */

struct kvd_record_header {
    uint8_t type; /* enum kvd_cold_type */
    uint8_t flags;
    uint32_t tenant_id;
    struct kvd_cold_id id;
    uint64_t sequence;
    uint32_t ordinal; /* of the record in its segment, from 0; both copies of one have the same */
    uint32_t durable_ordinal; /* records before this were durable when this was written */
    uint32_t head_bytes;
    uint64_t body_bytes; /* stored */
    uint64_t raw_bytes;  /* before compression; body_bytes without */
    uint64_t head_hash;
    uint64_t body_hash; /* XXH3-64 of what is stored */
};

struct kvd_segment_footer {
    uint64_t index_offset;
    uint64_t index_bytes; /* of the index record, padding counted */
    uint64_t number;      /* as in the segment header, which may be damaged */
    uint64_t salt;
    uint64_t tier_id;
};

/* Encode into the given number of bytes; what is reserved is zero. */
void kvd_segment_header_encode(
    const struct kvd_segment_header *header, uint8_t dst[KVD_SEGMENT_HEADER_BYTES]);

/* Returns 0, KVARN_EUNSUPPORTED for another layout version, or KVARN_ECORRUPT. */
int kvd_segment_header_decode(
    const uint8_t src[KVD_SEGMENT_HEADER_BYTES], struct kvd_segment_header *ret) KVARN_MUST_CHECK;

/* The hash of a record header is seeded with the segment's salt. */
void kvd_record_header_encode(
    const struct kvd_record_header *header, uint64_t salt, uint8_t dst[KVD_RECORD_HEADER_BYTES]);

/* Returns 0 or KVARN_ECORRUPT: magic, version, hash, or a size above its limit. */
int kvd_record_header_decode(const uint8_t src[KVD_RECORD_HEADER_BYTES], uint64_t salt,
    struct kvd_record_header *ret) KVARN_MUST_CHECK;

/* The footer is the last block of a sealed segment. */
void kvd_segment_footer_encode(
    const struct kvd_segment_footer *footer, uint8_t dst[KVD_SEGMENT_FOOTER_BYTES]);
int kvd_segment_footer_decode(
    const uint8_t src[KVD_SEGMENT_FOOTER_BYTES], struct kvd_segment_footer *ret) KVARN_MUST_CHECK;

/* An entry of the index: a record header as it is in the file, and where. */
void kvd_index_entry_encode(const struct kvd_record_header *header, uint64_t salt, uint64_t offset,
    uint8_t dst[KVD_INDEX_ENTRY_BYTES]);
int kvd_index_entry_decode(const uint8_t src[KVD_INDEX_ENTRY_BYTES], uint64_t salt,
    struct kvd_record_header *ret, uint64_t *ret_offset) KVARN_MUST_CHECK;

/* Bytes up to the next multiple of a block. */
uint64_t kvd_segment_round(uint64_t bytes);

/* Where the body lies from the record's start. */
uint64_t kvd_record_body_offset(uint32_t head_bytes);

/* One copy of a record in the file, padding counted. */
uint64_t kvd_record_copy_bytes(uint32_t head_bytes, uint64_t body_bytes);

/* A record in the file: one copy or two. */
uint64_t kvd_record_file_bytes(const struct kvd_record_header *header);

/* Index and footer of so many records. */
uint64_t kvd_segment_index_bytes(uint64_t record_count);

/* Parse "0000000000000123.kvs", with "kvs" or "tmp" as suffix. Returns 0 or KVARN_EINVALID. */
int kvd_segment_name_parse(
    const char *name, const char *suffix, uint64_t *ret_number) KVARN_MUST_CHECK;

#endif
