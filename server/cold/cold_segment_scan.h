/*
 * Reading what a segment file holds: by its index, or record by record.
 *
 * Owner: none. Thread: any. Total: any bytes end in a list of records whose headers are whole, or
 * in an error. Fuzzed by tests/fuzz/fuzz_segment.c.
 */
#ifndef KVD_COLD_SEGMENT_SCAN_H
#define KVD_COLD_SEGMENT_SCAN_H

#include "server/cold/cold_segment_format.h"

/* Where the bytes come from. */
struct kvd_scan_source {
    /* Returns the bytes read, fewer than asked only at the end, or KVARN_E... */
    int64_t (*read)(void *ctx, uint64_t offset, void *dst, size_t bytes);
    /*
     * Told before so much memory is taken for an index, which is let go at the end. Returns 0, or
     * the error that the scan ends with. NULL: nobody to ask.
     */
    int (*reserve)(void *ctx, uint64_t bytes);
    void *ctx;       /* borrowed */
    uint64_t bytes;  /* the file's size */
    uint64_t number; /* of its name */
};

/*
 * Told of each record, in the order of the file. Found by the scan, head and body match their
 * hashes; found by the index, nobody has looked at them yet.
 */
typedef void (*kvd_scan_record_cb)(
    void *ctx, const struct kvd_record_header *header, uint64_t offset);

struct kvd_scan_result {
    struct kvd_segment_header header;
    bool is_sealed;    /* found by its index; holds when records are told of */
    uint64_t data_end; /* records end here */
    uint32_t ordinal_next;
    uint64_t torn;    /* lost while they were being written: nobody was told that they were safe */
    uint64_t damaged; /* lost though they had been durable */
    bool is_suspect;  /* a record that was to be found in any case may be among the damaged */
};

/*
 * Returns 0; KVARN_ECORRUPT: neither header nor footer says what this is; KVARN_EUNSUPPORTED:
 * another layout version; KVARN_EIO; KVARN_ENOMEM. Records may have been told of before a failure.
 */
int kvd_segment_scan(const struct kvd_scan_source *source, kvd_scan_record_cb record_cb, void *ctx,
    struct kvd_scan_result *ret) KVARN_MUST_CHECK;

/*
 * Check one copy of a record that lies whole in memory against its header: the bytes of the header
 * itself, head and body. Returns 0 or KVARN_ECORRUPT.
 */
int kvd_record_check(const uint8_t *copy, const struct kvd_record_header *header, uint64_t salt,
    struct kvd_record_header *ret_found) KVARN_MUST_CHECK;

#endif
