/*
 * Units of a read: what one job step converts, rows of one layer of one block.
 *
 * Owner: read. Thread: kvd_read_unit_run() on any; it reads a page that the snapshot holds and
 * writes into its own part of the reply.
 */
#ifndef KVD_READ_UNIT_H
#define KVD_READ_UNIT_H

#include <stdbool.h>
#include <stdint.h>

#include "server/io/io.h"
#include "server/session/failure.h"
#include "server/session/shape.h"
#include "server/store/page_store.h"

/* How the rows of a run are written (SEMANTICS.md 20, 21). */
struct kvd_read_format {
    enum kvarn_dtype dtype;
    bool is_token_major;
    bool is_rotated;
    bool has_k, has_v; /* at least one */
};

/* Rotated halves, K and V, head-major: rows as a page holds them. */
struct kvd_read_format kvd_read_format_stored(void);

struct kvd_read_unit {
    const struct kvd_layer_shape *ls; /* borrowed from the shape */
    struct kvd_page *page;            /* ref */
    uint64_t checksum;                /* of a page of tiles */
    uint32_t layer;
    uint16_t row_first; /* within the block */
    uint16_t row_count;
    bool is_tiles;        /* the page holds tiles, else rows */
    bool is_records;      /* tiles are wanted as records: the whole block */
    bool is_copied;       /* rows are wanted as they lie in the page */
    uint8_t *dst;         /* the run's first byte in the reply; NULL: is_spanned */
    bool is_spanned;      /* records are not copied: `bufs` says where their parts lie */
    struct kvd_buf *bufs; /* room for kvd_read_record_parts() of each head */
    uint64_t first_token; /* of row_first */
    uint64_t run_row;     /* of row_first, within the run */
    uint64_t run_tokens;
};

/* The first thing wrong that a job found. */
struct kvd_read_fault {
    int err; /* 0: none; KVARN_EDOMAIN: beyond fp16; KVARN_EMISS: the checksum does not match */
    bool is_v;
    uint32_t layer;
    uint32_t head;
    uint64_t token;
};

/* Bytes of `token_count` tokens of a layer in a format; and of whole blocks as records. */
uint64_t kvd_read_rows_bytes(
    const struct kvd_layer_shape *ls, const struct kvd_read_format *format, uint64_t token_count);
uint64_t kvd_read_records_bytes(const struct kvd_layer_shape *ls, uint64_t token_count);

/* Stretches of a tile that make up a record of a layer. */
unsigned kvd_read_record_parts(const struct kvd_layer_shape *ls);

/* About how long a unit takes, in nanoseconds: what cutting and placing go by. */
uint64_t kvd_read_unit_ns(const struct kvd_read_unit *unit, const struct kvd_read_format *format);

/* Bytes of scratch that a layer's units need, aligned for floats. */
size_t kvd_read_scratch_bytes(const struct kvd_layer_shape *ls);

/* Verify and convert. Stops at the first fault. */
void kvd_read_unit_run(const struct kvd_read_unit *unit, const struct kvd_read_format *format,
    void *scratch, struct kvd_read_fault *fault);

/* DOMAIN naming layer, head and token, or MISS naming layer and tokens. */
void kvd_read_fault_describe(const struct kvd_read_fault *fault, struct kvd_failure *why);

#endif
