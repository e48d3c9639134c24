/*
 * What the kernels cost, by level: so that the loop knows what it can compute itself sooner than a
 * worker would wake up (SEMANTICS.md 18).
 *
 * Thread: any; the level is chosen before the service starts. Estimates for placing work; nothing
 * that they decide changes a bit of an answer.
 */
#ifndef KVD_KERNEL_COST_H
#define KVD_KERNEL_COST_H

#include <stdint.h>

/* A walk of one KV head: for each token and dimension of K and V, in picoseconds. */
struct kvd_walk_cost {
    uint16_t value_ps; /* reading and unpacking, once for all rows of a chunk */
    uint16_t row_ps;   /* and again for each query row */
};

/* The costs of one level, measured by `kvarn-bench costs`, which also checks them. */
struct kvd_kernel_cost {
    const char *level;                /* as kvarn_cpu_active() */
    struct kvd_walk_cost fast, exact; /* over tiles */
    struct kvd_walk_cost half;        /* over rows of halves */
    uint16_t edge_ps;   /* a value of q and out: widened, rotated, finished, rotated back, stored */
    uint16_t read_ps;   /* a value of a tile: decoded, rotated back, rounded */
    uint16_t append_ps; /* a value: widened, rotated, checked, rounded */
};

/* Those of the level in use; of the scalar one for a level that is not listed. */
const struct kvd_kernel_cost *kvd_kernel_cost(void);

/* The list, for the bench. */
extern const struct kvd_kernel_cost kvd_kernel_costs[];
extern const unsigned kvd_kernel_cost_count;

#endif
