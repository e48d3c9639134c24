/*
 * What an append stores, laid out: layers, and units of one layer of one block.
 *
 * Owner: append. Thread: loop only. Arithmetic on arguments; touches no session.
 */
#ifndef KVD_APPEND_PLAN_H
#define KVD_APPEND_PLAN_H

#include "server/append/append.h"
#include "server/append/append_unit.h"
#include "server/append/seal.h"

/* One layer's part of an append. */
struct kvd_append_layer {
    uint32_t layer;
    uint32_t token_count;
    uint64_t start;
    struct kvd_block_range records; /* blocks that come as records */
    struct kvd_metric_sum *metric;  /* ref, the append's: picked at arrival for its seals */
};

struct kvd_append_plan {
    struct kvd_append_layer *layers; /* room is the owner's */
    struct kvd_append_unit *units;   /* room is the owner's */
    uint32_t layer_count;
    uint32_t unit_count; /* laid out so far */
    uint64_t src_bytes;  /* of all units */
    uint64_t meaning;    /* hash of what gives the numbers of the payload their meaning */
    /* Where the laying out has come to. A part is a layer's rows, or a run. */
    const struct kvd_shape *shape;     /* borrowed */
    const struct kvd_append_run *runs; /* borrowed, the request's; NULL: rows */
    struct kvd_append_rows rows;       /* of the part, unless it is of records */
    const uint8_t *src;                /* borrowed: the part's */
    uint32_t part_idx, part_count;
    uint64_t token; /* the next one of the part */
};

/* Units that an append, or runs, will have. */
uint64_t kvd_append_plan_units(const struct kvd_append_args *args);
uint64_t kvd_append_plan_run_units(const struct kvd_append_tiles_args *args);

/*
 * Begin a plan, with room for layer_count (run_count) layers and as many units as above: layers and
 * meaning are there when this returns.
 */
void kvd_append_plan_rows(struct kvd_append_plan *plan, const struct kvd_append_args *args);
void kvd_append_plan_runs(struct kvd_append_plan *plan, const struct kvd_append_tiles_args *args);

/* Lay out some more units, 32 at most; true: those were the last. */
bool kvd_append_plan_more(struct kvd_append_plan *plan);

#endif
