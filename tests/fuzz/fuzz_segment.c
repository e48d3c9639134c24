/*
 * Fuzz target: a segment file's bytes, as they are and with the hashes of its headers made right.
 *
 * Whatever comes, the scan ends, tells of records that lie within the file, and in a file that it
 * read without an index only of those whose head and body match. Owner: libFuzzer or replay.c.
 * Thread: one.
 */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "lib/base/assert.h"
#include "server/cold/cold_segment_scan.h"
#include "tests/fuzz/fuzz_target.h"

/* Larger inputs find nothing that smaller ones do not. */
#define INPUT_BYTES_MAX (256 * 1024)

struct input {
    const uint8_t *data;
    size_t bytes;
    uint64_t salt;
    unsigned told;
};

static int64_t input_read(void *ctx, uint64_t offset, void *dst, size_t bytes)
{
    const struct input *input = ctx;

    if (offset >= input->bytes) {
        return 0;
    }
    bytes = bytes < input->bytes - offset ? bytes : input->bytes - (size_t)offset;
    memcpy(dst, input->data + offset, bytes);
    return (int64_t)bytes;
}

static void record_cb(void *ctx, const struct kvd_record_header *header, uint64_t offset)
{
    struct input *input = ctx;

    KVARN_ASSERT(offset % KVD_SEGMENT_BLOCK == 0 && offset >= KVD_SEGMENT_RECORDS_OFFSET);
    KVARN_ASSERT(offset < input->bytes);
    KVARN_ASSERT(header->type >= KVD_COLD_SHAPE && header->type < KVD_COLD_TYPE_COUNT);
    input->told++;
}

static void scan(const uint8_t *data, size_t bytes, uint64_t number)
{
    struct input input = {.data = data, .bytes = bytes};
    struct kvd_scan_source source = {
        .read = input_read, .ctx = &input, .bytes = bytes, .number = number};
    struct kvd_scan_result result;
    int err = kvd_segment_scan(&source, record_cb, &input, &result);

    KVARN_ASSERT(err == 0 || err == KVARN_ECORRUPT || err == KVARN_EUNSUPPORTED);
    /* Of a record that is there twice the second copy may be cut off: its place counts. */
    KVARN_ASSERT(err != 0 || result.data_end == KVD_SEGMENT_RECORDS_OFFSET ||
                 result.data_end <= 2 * bytes + KVD_SEGMENT_BLOCK);
    KVARN_ASSERT(input.told <= bytes / KVD_INDEX_ENTRY_BYTES + 1);
}

static void put_u64(uint8_t *dst, uint64_t value)
{
    for (unsigned i = 0; i < 8; i++) {
        dst[i] = (uint8_t)(value >> (8 * i));
    }
}

/* Make right what random bytes never get right, so that the rest is looked at. */
static void repair(uint8_t *data, size_t bytes)
{
    uint64_t salt = 0;

    for (unsigned i = 0; i < 8; i++) {
        salt |= (uint64_t)data[32 + i] << (8 * i);
    }
    put_u64(data + 56, XXH3_64bits(data, 56));
    for (size_t at = KVD_SEGMENT_RECORDS_OFFSET; at + KVD_RECORD_HEADER_BYTES <= bytes;
         at += KVD_SEGMENT_BLOCK) {
        put_u64(data + at + 88, XXH3_64bits_withSeed(data + at, 88, salt));
    }
    if (bytes % KVD_SEGMENT_BLOCK == 0) {
        uint8_t *footer = data + bytes - KVD_SEGMENT_BLOCK;
        put_u64(footer + 56, XXH3_64bits(footer, 56));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (bytes > INPUT_BYTES_MAX) {
        return 0;
    }
    scan(data, bytes, 1);
    if (bytes < KVD_SEGMENT_RECORDS_OFFSET) {
        return 0;
    }
    uint8_t *copy = malloc(bytes);
    KVARN_ASSERT(copy != NULL);
    memcpy(copy, data, bytes);
    repair(copy, bytes);
    scan(copy, bytes, copy[16]); /* small numbers are their first byte */
    free(copy);
    return 0;
}
