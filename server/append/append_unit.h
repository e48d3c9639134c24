/*
 * Units of an append: what one job step converts, one layer of one block.
 *
 * Owner: append. Thread: loop, except kvd_append_unit_run() on a worker.
 */
#ifndef KVD_APPEND_UNIT_H
#define KVD_APPEND_UNIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/session/session.h"
#include "server/session/session_blocks.h"

struct kvd_append_unit {
    const struct kvd_layer_shape *ls; /* borrowed from the shape */
    uint32_t layer;
    uint32_t block_idx;
    uint64_t first_token;
    uint16_t row_first; /* within the block */
    uint16_t row_count;
    bool is_records;
    bool is_token_major;
    bool is_rotated;
    enum kvarn_dtype dtype;
    const uint8_t *src; /* borrowed: records of this block, or K of all src_tokens of the layer */
    uint32_t src_tokens;
    uint32_t src_row; /* first row of this unit among them */
    size_t src_bytes;
    void *dst;               /* page data */
    const void *copy_src;    /* rows below row_first come from here; NULL: they are in place */
    struct kvd_page *copied; /* ref: the shared page that this unit replaces by a copy */
    bool is_taken;           /* this unit put a rows page where there was none */
    uint64_t checksum;       /* of the tile page, is_records */
};

/* The first thing wrong that a job found. */
struct kvd_append_fault {
    int err; /* 0: none */
    bool is_v;
    bool is_records;
    uint32_t layer;
    uint32_t head;
    uint64_t token; /* is_records: first token of the block */
};

/* Rows of one layer as they lie in a payload: K of all heads and tokens, then V. */
struct kvd_append_rows {
    uint32_t layer;
    uint64_t start;
    uint32_t token_count;
    const uint8_t *src;
    enum kvarn_dtype dtype;
    bool is_token_major;
    bool is_rotated;
};

/* Blocks that [start, start + token_count) touches. */
uint32_t kvd_append_block_span(const struct kvd_shape *shape, uint64_t start, uint64_t token_count);

/*
 * Write the units of some rows to dst, from `token` on and `unit_max` at most, or of whole blocks
 * of records; returns how many.
 */
uint32_t kvd_append_units_from_rows(struct kvd_append_unit *dst, const struct kvd_shape *shape,
    const struct kvd_append_rows *rows, uint64_t token, uint32_t unit_max);
uint32_t kvd_append_units_from_records(struct kvd_append_unit *dst, const struct kvd_shape *shape,
    uint32_t layer, uint64_t first_token, uint64_t token_count, const uint8_t *src);

/*
 * Find the unit's page in the session (its block is there); may replace a shared rows page. The
 * block becomes the session's own, noted in `log`.
 */
int kvd_append_unit_place(struct kvd_append_unit *unit, struct kvd_session *session,
    struct kvd_own_log *log, struct kvd_failure *why) KVARN_MUST_CHECK;

/* Undo what placing put into the session: a replaced page, or a new one. */
void kvd_append_unit_unplace(struct kvd_append_unit *unit, struct kvd_session *session);

/* Convert: check, rotate, store. Stops at the first fault. */
void kvd_append_unit_run(struct kvd_append_unit *unit, struct kvd_append_fault *fault);

/* Record in the page what the run found out. */
void kvd_append_unit_commit(const struct kvd_append_unit *unit, struct kvd_session *session);

/* DOMAIN (or INVALID for a record) naming layer, head and token. */
void kvd_append_fault_describe(const struct kvd_append_fault *fault, struct kvd_failure *why);

#endif
