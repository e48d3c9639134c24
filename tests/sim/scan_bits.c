/*
 * Every bit of a segment of 64 KiB flipped, sealed and not: what the scan tells of is what was
 * written, and what it tells nothing of is padding or known to be damaged (PROMISES.md P4).
 *
 * usage: scan_bits [STEP]: every STEP-th bit, for builds in which all of them take minutes; an odd
 * step comes to each place of a byte. Prints what it tried; exit 1 unless nothing was wrong.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/cold/cold_segment_scan.h"
#include "tests/support/cold_rig.h"

#define SEGMENT_BYTES 65536
#define RECORDS_MAX   16

struct bits {
    uint8_t data[SEGMENT_BYTES];
    size_t bytes;
    struct kvd_record_header headers[RECORDS_MAX]; /* of the undamaged segment */
    uint64_t offsets[RECORDS_MAX];
    unsigned count;
    uint64_t salt;
    /* of one scan */
    bool is_seen[RECORDS_MAX];
    uint64_t wrong;
};

static int64_t memory_read(void *ctx, uint64_t offset, void *dst, size_t bytes)
{
    const struct bits *bits = ctx;

    if (offset >= bits->bytes) {
        return 0;
    }
    bytes = bytes < bits->bytes - offset ? bytes : bits->bytes - (size_t)offset;
    memcpy(dst, bits->data + offset, bytes);
    return (int64_t)bytes;
}

static void learn_cb(void *ctx, const struct kvd_record_header *header, uint64_t offset)
{
    struct bits *bits = ctx;

    KVARN_ASSERT(bits->count < RECORDS_MAX);
    bits->headers[bits->count] = *header;
    bits->offsets[bits->count++] = offset;
}

/* A record that is told of: one of those that were written, field by field. */
static void told_cb(void *ctx, const struct kvd_record_header *header, uint64_t offset)
{
    struct bits *bits = ctx;

    for (unsigned i = 0; i < bits->count; i++) {
        const struct kvd_record_header *good = &bits->headers[i];
        if (good->sequence == header->sequence) {
            bool is_same = good->type == header->type && good->id.hi == header->id.hi &&
                           good->id.lo == header->id.lo && good->flags == header->flags &&
                           good->head_bytes == header->head_bytes &&
                           good->body_bytes == header->body_bytes &&
                           good->body_hash == header->body_hash &&
                           good->head_hash == header->head_hash && bits->offsets[i] == offset;
            bits->wrong += is_same && !bits->is_seen[i] ? 0 : 1;
            bits->is_seen[i] = true;
            return;
        }
    }
    bits->wrong++;
}

/* Whether a reader would get what was written: either copy, checked as every read is. */
static bool is_readable(const struct bits *bits, unsigned idx)
{
    const struct kvd_record_header *header = &bits->headers[idx];
    struct kvd_record_header found;
    uint64_t copy = kvd_record_copy_bytes(header->head_bytes, header->body_bytes);
    const uint8_t *first = bits->data + bits->offsets[idx];

    return kvd_record_check(first, header, bits->salt, &found) == 0 ||
           ((header->flags & KVD_RECORD_TWICE) != 0 &&
               kvd_record_check(first + copy, header, bits->salt, &found) == 0);
}

struct tally {
    uint64_t tried, harmless, found, wrong, grave, suspects;
};

static void flip(struct bits *bits, size_t bit, struct tally *tally)
{
    struct kvd_scan_source source = {
        .read = memory_read, .ctx = bits, .bytes = bits->bytes, .number = 1};
    struct kvd_scan_result result;
    unsigned missing = 0;

    bits->data[bit / 8] = (uint8_t)(bits->data[bit / 8] ^ (1u << bit % 8));
    memset(bits->is_seen, 0, sizeof(bits->is_seen));
    bits->wrong = 0;
    int err = kvd_segment_scan(&source, told_cb, bits, &result);
    for (unsigned i = 0; i < bits->count; i++) {
        bool is_there = bits->is_seen[i] && is_readable(bits, i);
        missing += is_there ? 0 : 1;
        /* What must be found survives any one flip. */
        tally->grave += !is_there && (bits->headers[i].flags & KVD_RECORD_TWICE) != 0 ? 1 : 0;
    }
    tally->tried++;
    tally->wrong += bits->wrong + (err != 0 ? 1 : 0) + (missing > 1 ? 1 : 0);
    tally->suspects += err == 0 && result.is_suspect ? 1 : 0;
    if (missing == 0) {
        tally->harmless++;
    } else {
        tally->found++;
    }
    bits->data[bit / 8] = (uint8_t)(bits->data[bit / 8] ^ (1u << bit % 8));
}

/* A segment with pages, a map and a tombstone, as the tier writes it. */
static void segment_make(struct bits *bits, bool is_sealed)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvd_cold_segment_options options = kvt_cold_options();
    struct kvd_cold_record *record;
    struct kvt_cold_rig rig;
    const char *path = "/cold/0000000000000001.kvs";

    memset(bits, 0, sizeof(*bits));
    kvt_cold_start(&rig, disk, &options, 7);
    KVARN_ASSERT(rig.err == 0);
    int err = kvt_cold_put_wait(&rig, KVD_COLD_PAGE, 1, 1, 9000, &record);
    err = err != 0 ? err : kvt_cold_put_wait(&rig, KVD_COLD_MAP, 2, 1, 300, &record);
    err = err != 0 ? err : kvt_cold_put_wait(&rig, KVD_COLD_TOMBSTONE, 2, 2, 0, NULL);
    err = err != 0 ? err : kvt_cold_put_wait(&rig, KVD_COLD_PAGE, 3, 1, 100, &record);
    err = err != 0 ? err : kvt_cold_put_wait(&rig, KVD_COLD_PAGE, 4, 1, 3900, &record);
    KVARN_ASSERT(err == 0);
    if (is_sealed) {
        kvt_cold_stop(&rig);
    }
    const uint8_t *data = kvd_fake_disk_data(disk, path, &bits->bytes);
    KVARN_ASSERT(data != NULL && bits->bytes <= SEGMENT_BYTES);
    memcpy(bits->data, data, bits->bytes);
    if (!is_sealed) {
        kvt_cold_crash(&rig);
    }
    kvd_fake_disk_destroy(disk);
}

static bool segment_try(bool is_sealed, size_t step)
{
    struct bits *bits = calloc(1, sizeof(*bits));
    struct kvd_scan_result result;
    struct tally tally = {0};

    KVARN_ASSERT(bits != NULL);
    segment_make(bits, is_sealed);
    struct kvd_scan_source source = {
        .read = memory_read, .ctx = bits, .bytes = bits->bytes, .number = 1};
    int err = kvd_segment_scan(&source, learn_cb, bits, &result);
    KVARN_ASSERT(err == 0 && bits->count >= 5 && result.is_sealed == is_sealed);
    bits->salt = result.header.salt;
    for (size_t bit = 0; bit < 8 * bits->bytes; bit += step) {
        flip(bits, bit, &tally);
    }
    printf("bits of %s segment of %zu bytes: %" PRIu64 " flipped, %" PRIu64 " found, %" PRIu64
           " in padding or made good by a second copy, tombstones lost = %" PRIu64
           ", suspect = %" PRIu64 ", wrong = %" PRIu64 "\n",
        is_sealed ? "a sealed" : "an open", bits->bytes, tally.tried, tally.found, tally.harmless,
        tally.grave, tally.suspects, tally.wrong);
    free(bits);
    return tally.wrong == 0 && tally.grave == 0 && tally.suspects == 0 && tally.found > 0;
}

int main(int argc, char **argv)
{
    size_t step = argc > 1 ? strtoul(argv[1], NULL, 10) : 1;

    if (step == 0) {
        fputs("scan_bits: STEP must be a number above 0\n", stderr);
        return 2;
    }
    bool is_good = segment_try(true, step);
    return segment_try(false, step) && is_good ? 0 : 1;
}
