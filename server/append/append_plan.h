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
    uint32_t unit_count;
    uint64_t src_bytes; /* of all units */
    uint64_t meaning;   /* hash of what gives the numbers of the payload their meaning */
};

/* Units that an append, or runs, will have. */
uint64_t kvd_append_plan_units(const struct kvd_append_args *args);
uint64_t kvd_append_plan_run_units(const struct kvd_append_tiles_args *args);

/* Fill a plan with room for layer_count (run_count) layers and as many units as above. */
void kvd_append_plan_rows(struct kvd_append_plan *plan, const struct kvd_append_args *args);
void kvd_append_plan_runs(struct kvd_append_plan *plan, const struct kvd_append_tiles_args *args);

#endif
