/*
 * Reading what a segment file holds: by its index, or record by record.
 *
 * Owner: none. Thread: any.
 *
 * A scan goes from block to block. Where a record header is whole it goes on behind the record;
 * where none is, it looks at the next block: a later record may be good, since blocks that were not
 * synced reach the disk in any order. Ordinals tell what is missing in between, and
 * `durable_ordinal` of later records tells whether that had been durable, that is, whether the disk
 * lost it or the power cut did. Holes are punched in sealed segments alone, which are smaller than
 * their header says.
 */
#include "server/cold/cold_segment_scan.h"

#include "lib/base/xxh3.h"
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"

#define PIECE_BYTES (1u << 20)

struct scan {
    const struct kvd_scan_source *source; /* borrowed */
    struct kvd_scan_result *result;       /* borrowed */
    kvd_scan_record_cb record_cb;
    void *ctx;
    uint8_t *piece; /* owned: PIECE_BYTES */
    uint64_t salt;
    uint32_t durable_max; /* by what was found so far */
    uint32_t lost_count;
    uint32_t lost_first;  /* lowest ordinal that was lost; UINT32_MAX: none */
    uint32_t grave_first; /* lowest of those that should have been found in any case */
    bool has_garbage;     /* since the last record: a block that is no header and not blank */
    uint32_t blank_count; /* blocks since the last record that begin with zeros */
    bool may_have_holes;  /* it was sealed once: what is blank was punched out */
};

/* Returns 0 when all of it was read; KVARN_ECORRUPT at the end of the file. */
static int read_all(const struct scan *scan, uint64_t offset, void *dst, size_t bytes)
{
    if (offset > scan->source->bytes || bytes > scan->source->bytes - offset) {
        return KVARN_ECORRUPT;
    }
    int64_t got = scan->source->read(scan->source->ctx, offset, dst, bytes);
    if (got < 0) {
        return (int)got;
    }
    return (size_t)got == bytes ? 0 : KVARN_ECORRUPT;
}

static bool is_blank(const uint8_t *data, size_t bytes)
{
    return data[0] == 0 && memcmp(data, data + 1, bytes - 1) == 0;
}

/* Hash a stretch of the file piece by piece. */
static int hash_stretch(const struct scan *scan, uint64_t offset, uint64_t bytes, uint64_t *ret)
{
    XXH3_state_t *state = XXH3_createState();
    int err = 0;

    if (state == NULL) {
        return KVARN_ENOMEM;
    }
    (void)XXH3_64bits_reset(state);
    while (bytes > 0 && err == 0) {
        size_t step = bytes < PIECE_BYTES ? (size_t)bytes : PIECE_BYTES;
        err = read_all(scan, offset, scan->piece, step);
        if (err == 0) {
            (void)XXH3_64bits_update(state, scan->piece, step);
        }
        offset += step;
        bytes -= step;
    }
    *ret = XXH3_64bits_digest(state);
    (void)XXH3_freeState(state);
    return err;
}

/* Whether head and body of the copy at `offset` match. */
static int copy_verify(
    const struct scan *scan, const struct kvd_record_header *header, uint64_t offset)
{
    uint64_t head_hash = 0;
    uint64_t body_hash = 0;
    uint64_t body_offset = kvd_record_body_offset(header->head_bytes);

    int err = hash_stretch(scan, offset + KVD_RECORD_HEADER_BYTES, header->head_bytes, &head_hash);
    if (err == 0) {
        err = hash_stretch(scan, offset + body_offset, header->body_bytes, &body_hash);
    }
    if (err != 0) {
        return err;
    }
    bool is_good = head_hash == header->head_hash && body_hash == header->body_hash;
    return is_good ? 0 : KVARN_ECORRUPT;
}

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Note what the ordinals say about the stretch before this record. */
static void note_ordinal(struct scan *scan, const struct kvd_record_header *header)
{
    uint32_t expected = scan->result->ordinal_next;

    bool is_hole = scan->may_have_holes && !scan->has_garbage;
    if (header->ordinal > expected && !is_hole) {
        scan->lost_count += header->ordinal - expected;
        scan->lost_first = min_u32(scan->lost_first, expected);
        /*
         * A record that must be found has two headers, in blocks of their own: one damaged place
         * cannot cost more than one record that is there once.
         */
        if (header->ordinal - expected > 1 || scan->blank_count > 1) {
            scan->grave_first = min_u32(scan->grave_first, expected);
        }
    }
    if (header->ordinal >= expected) {
        scan->result->ordinal_next = header->ordinal + 1;
    }
    if (header->durable_ordinal > scan->durable_max) {
        scan->durable_max = header->durable_ordinal;
    }
    scan->has_garbage = false;
    scan->blank_count = 0;
}

static void note_broken(struct scan *scan, const struct kvd_record_header *header)
{
    scan->lost_count++;
    scan->lost_first = min_u32(scan->lost_first, header->ordinal);
    if ((header->flags & KVD_RECORD_TWICE) != 0) {
        scan->grave_first = min_u32(scan->grave_first, header->ordinal);
    }
}

/*
 * A record header at `offset` is whole. Verify the record, tell of it, and set *ret_next behind it.
 */
static int record_take(
    struct scan *scan, const struct kvd_record_header *header, uint64_t offset, uint64_t *ret_next)
{
    uint64_t copy_bytes = kvd_record_copy_bytes(header->head_bytes, header->body_bytes);
    bool is_twice = (header->flags & KVD_RECORD_TWICE) != 0;
    bool is_known = header->ordinal < scan->result->ordinal_next;

    note_ordinal(scan, header);
    *ret_next = offset + copy_bytes;
    if (header->type == KVD_COLD_INDEX || is_known) {
        return 0; /* an index that the footer does not lead to; a second copy */
    }
    int err = copy_verify(scan, header, offset);
    if (err == KVARN_ECORRUPT && is_twice) {
        err = copy_verify(scan, header, offset + copy_bytes);
    }
    if (err == KVARN_ECORRUPT) {
        note_broken(scan, header);
        *ret_next = offset + KVD_SEGMENT_BLOCK; /* its size may lead over what is good */
        return 0;
    }
    if (err == 0) {
        scan->record_cb(scan->ctx, header, offset);
        scan->result->data_end = offset + kvd_record_file_bytes(header);
    }
    return err;
}

/*
 * The second copy of a record whose first has no header any more: the record lies where its first
 * copy did, so that whoever reads it tries both.
 */
static int record_take_second(
    struct scan *scan, const struct kvd_record_header *header, uint64_t offset, uint64_t *ret_next)
{
    uint64_t copy_bytes = kvd_record_copy_bytes(header->head_bytes, header->body_bytes);

    note_ordinal(scan, header);
    *ret_next = offset + copy_bytes;
    int err = copy_verify(scan, header, offset);
    if (err == KVARN_ECORRUPT) {
        note_broken(scan, header);
        *ret_next = offset + KVD_SEGMENT_BLOCK;
        return 0;
    }
    if (err == 0) {
        scan->record_cb(scan->ctx, header, offset - copy_bytes);
        scan->result->data_end = *ret_next;
    }
    return err;
}

/*
 * Whether this is the second of two copies: there is room for a first before it, where no header
 * is, and none behind it. One that is taken for the second by mistake is still found: readers try
 * both places.
 */
static bool is_second(const struct scan *scan, const struct kvd_record_header *header,
    uint64_t offset, uint64_t garbage_start)
{
    uint64_t copy_bytes = kvd_record_copy_bytes(header->head_bytes, header->body_bytes);
    uint8_t bytes[KVD_RECORD_HEADER_BYTES];
    struct kvd_record_header other;

    if ((header->flags & KVD_RECORD_TWICE) == 0 || garbage_start == 0 ||
        offset - garbage_start < copy_bytes || header->ordinal < scan->result->ordinal_next) {
        return false;
    }
    bool has_other = read_all(scan, offset + copy_bytes, bytes, sizeof(bytes)) == 0 &&
                     kvd_record_header_decode(bytes, scan->salt, &other) == 0;
    return !has_other || other.ordinal != header->ordinal;
}

static int scan_records(struct scan *scan)
{
    uint64_t offset = KVD_SEGMENT_RECORDS_OFFSET;
    uint64_t garbage_start = 0; /* 0: the last block looked at belongs to a record */
    uint8_t block[KVD_RECORD_HEADER_BYTES];

    scan->result->data_end = offset;
    while (offset + KVD_SEGMENT_BLOCK <= scan->source->bytes) {
        struct kvd_record_header header;
        uint64_t next = offset + KVD_SEGMENT_BLOCK;
        int err = read_all(scan, offset, block, sizeof(block));
        if (err != 0) {
            return err;
        }
        if (kvd_record_header_decode(block, scan->salt, &header) == 0) {
            err = is_second(scan, &header, offset, garbage_start)
                      ? record_take_second(scan, &header, offset, &next)
                      : record_take(scan, &header, offset, &next);
            garbage_start = 0;
        } else {
            bool is_zero = is_blank(block, sizeof(block));
            scan->has_garbage = scan->has_garbage || !is_zero;
            scan->blank_count += is_zero ? 1 : 0;
            garbage_start = garbage_start != 0 ? garbage_start : offset;
        }
        if (err != 0) {
            return err;
        }
        offset = next;
    }
    return 0;
}

static void losses_judge(struct scan *scan)
{
    struct kvd_scan_result *result = scan->result;

    if (scan->lost_count > 0 && scan->durable_max > scan->lost_first) {
        result->damaged += scan->lost_count;
    } else {
        result->torn += scan->lost_count;
    }
    result->torn += scan->has_garbage ? 1 : 0;
    result->is_suspect = scan->durable_max > scan->grave_first;
}

/* The index. */

static int index_entries(struct scan *scan, const struct kvd_segment_footer *footer,
    const uint8_t *entries, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        struct kvd_record_header header;
        uint64_t offset;
        int err = kvd_index_entry_decode(
            entries + i * KVD_INDEX_ENTRY_BYTES, scan->salt, &header, &offset);
        if (err != 0) {
            return err;
        }
        uint64_t bytes = kvd_record_file_bytes(&header);
        if (offset > footer->index_offset || bytes > footer->index_offset - offset) {
            return KVARN_ECORRUPT;
        }
    }
    scan->result->is_sealed = true;
    for (uint64_t i = 0; i < count; i++) {
        struct kvd_record_header header;
        uint64_t offset;
        int err = kvd_index_entry_decode(
            entries + i * KVD_INDEX_ENTRY_BYTES, scan->salt, &header, &offset);
        KVARN_ASSERT(err == 0);
        scan->record_cb(scan->ctx, &header, offset);
        scan->result->ordinal_next = header.ordinal + 1;
    }
    scan->result->data_end = footer->index_offset;
    return 0;
}

static int index_read(struct scan *scan, const struct kvd_segment_footer *footer)
{
    struct kvd_record_header header;
    uint64_t size = scan->source->bytes;

    if (footer->index_bytes < KVD_SEGMENT_BLOCK || footer->index_bytes > size ||
        footer->index_offset < KVD_SEGMENT_RECORDS_OFFSET ||
        footer->index_offset > size - footer->index_bytes ||
        footer->index_offset + footer->index_bytes + KVD_SEGMENT_BLOCK != size) {
        return KVARN_ECORRUPT;
    }
    int err = scan->source->reserve == NULL
                  ? 0
                  : scan->source->reserve(scan->source->ctx, footer->index_bytes);
    uint8_t *record = err != 0 ? NULL : malloc(footer->index_bytes);
    if (record == NULL) {
        return KVARN_ENOMEM;
    }
    err = read_all(scan, footer->index_offset, record, footer->index_bytes);
    if (err == 0) {
        err = kvd_record_header_decode(record, scan->salt, &header);
    }
    if (err == 0 &&
        (header.type != KVD_COLD_INDEX || header.body_bytes % KVD_INDEX_ENTRY_BYTES != 0 ||
            kvd_record_file_bytes(&header) != footer->index_bytes)) {
        err = KVARN_ECORRUPT;
    }
    if (err == 0) {
        err = kvd_record_check(record, &header, scan->salt, &header);
    }
    if (err == 0) {
        err = index_entries(scan, footer, record + kvd_record_body_offset(header.head_bytes),
            header.body_bytes / KVD_INDEX_ENTRY_BYTES);
    }
    free(record);
    return err;
}

/* Headers: two copies at the start, and the footer knows as much. */

static int header_read(struct scan *scan, const struct kvd_segment_footer *footer)
{
    uint8_t block[KVD_SEGMENT_HEADER_BYTES];
    int err = KVARN_ECORRUPT;

    for (unsigned copy = 0; copy < 2 && err != 0; copy++) {
        uint64_t offset = (uint64_t)copy * KVD_SEGMENT_BLOCK;
        int read_err = read_all(scan, offset, block, sizeof(block));
        if (read_err != 0 && read_err != KVARN_ECORRUPT) {
            return read_err;
        }
        int decode_err =
            read_err == 0 ? kvd_segment_header_decode(block, &scan->result->header) : read_err;
        scan->result->damaged += decode_err == KVARN_ECORRUPT ? 1 : 0;
        err = err == KVARN_EUNSUPPORTED && decode_err != 0 ? err : decode_err;
    }
    if (err == KVARN_ECORRUPT && footer != NULL) {
        scan->result->header = (struct kvd_segment_header){.number = footer->number,
            .bytes = scan->source->bytes,
            .salt = footer->salt,
            .tier_id = footer->tier_id};
        err = 0;
    }
    if (err == 0 && scan->result->header.number != scan->source->number) {
        err = KVARN_ECORRUPT; /* a file that was given another's name */
    }
    return err;
}

static int footer_read(struct scan *scan, struct kvd_segment_footer *ret)
{
    uint8_t block[KVD_SEGMENT_FOOTER_BYTES];
    uint64_t size = scan->source->bytes;

    if (size < KVD_SEGMENT_RECORDS_OFFSET + 2 * KVD_SEGMENT_BLOCK ||
        size % KVD_SEGMENT_BLOCK != 0) {
        return KVARN_ECORRUPT;
    }
    int err = read_all(scan, size - KVD_SEGMENT_BLOCK, block, sizeof(block));
    return err != 0 ? err : kvd_segment_footer_decode(block, ret);
}

static int scan_do(struct scan *scan)
{
    struct kvd_segment_footer footer;
    int footer_err = footer_read(scan, &footer);

    if (footer_err != 0 && footer_err != KVARN_ECORRUPT && footer_err != KVARN_EUNSUPPORTED) {
        return footer_err;
    }
    int err = header_read(scan, footer_err == 0 ? &footer : NULL);
    if (err != 0) {
        return err;
    }
    scan->salt = scan->result->header.salt;
    if (footer_err == 0 && footer.salt == scan->salt) {
        err = index_read(scan, &footer);
        if (err != KVARN_ECORRUPT) {
            return err;
        }
        scan->result->damaged++;
    }
    scan->may_have_holes = footer_err == 0 || scan->source->bytes != scan->result->header.bytes;
    err = scan_records(scan);
    losses_judge(scan);
    return err;
}

int kvd_segment_scan(const struct kvd_scan_source *source, kvd_scan_record_cb record_cb, void *ctx,
    struct kvd_scan_result *ret)
{
    struct scan scan = {.source = source,
        .result = ret,
        .record_cb = record_cb,
        .ctx = ctx,
        .piece = malloc(PIECE_BYTES),
        .lost_first = UINT32_MAX,
        .grave_first = UINT32_MAX};

    memset(ret, 0, sizeof(*ret));
    if (scan.piece == NULL) {
        return KVARN_ENOMEM;
    }
    int err = scan_do(&scan);
    free(scan.piece);
    return err;
}

int kvd_record_check(const uint8_t *copy, const struct kvd_record_header *header, uint64_t salt,
    struct kvd_record_header *ret_found)
{
    int err = kvd_record_header_decode(copy, salt, ret_found);

    if (err != 0) {
        return err;
    }
    bool is_same = ret_found->type == header->type && ret_found->id.hi == header->id.hi &&
                   ret_found->id.lo == header->id.lo && ret_found->sequence == header->sequence &&
                   ret_found->tenant_id == header->tenant_id &&
                   ret_found->head_bytes == header->head_bytes &&
                   ret_found->body_bytes == header->body_bytes;
    if (!is_same ||
        XXH3_64bits(copy + KVD_RECORD_HEADER_BYTES, header->head_bytes) != ret_found->head_hash ||
        XXH3_64bits(copy + kvd_record_body_offset(header->head_bytes), header->body_bytes) !=
            ret_found->body_hash) {
        return KVARN_ECORRUPT;
    }
    return 0;
}
