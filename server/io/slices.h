/*
 * Work of the loop that is cut into slices, so that no callback computes for more than 100 us
 * (SEMANTICS.md 18).
 *
 * Owner: session table. Thread: loop only. Who has much to do begins, asks kvd_slices_has_time()
 * between two steps, and when it says no, lists a slice to go on in a later turn; a slice that runs
 * has begun.
 */
#ifndef KVD_SLICES_H
#define KVD_SLICES_H

#include <stdbool.h>
#include <stdint.h>

#include <bsd/sys/queue.h>

#include "kvarn/err.h"
#include "server/io/io.h"

/* Embedded in its owner. `run` takes a step or more and may list the slice again, or free it. */
struct kvd_slice {
    TAILQ_ENTRY(kvd_slice) link;
    bool is_listed;
    void (*run)(struct kvd_slice *slice);
};

TAILQ_HEAD(kvd_slice_list, kvd_slice);

struct kvd_slices {
    struct kvd_io *io;          /* borrowed */
    struct kvd_timer *timer;    /* owned: armed while something is listed */
    struct kvd_slice_list list; /* in the order they were listed */
    uint64_t burst_start_ns;    /* steps that followed each other closely */
    uint64_t burst_end_ns;
};

/* Returns 0 or KVARN_ENOMEM. */
int kvd_slices_init(struct kvd_slices *slices, struct kvd_io *io) KVARN_MUST_CHECK;

/* Runs what is listed to its end. Accepts a zeroed struct. */
void kvd_slices_fini(struct kvd_slices *slices);

/* Run it in a later turn, after those listed before. Not while it is listed. */
void kvd_slices_add(struct kvd_slices *slices, struct kvd_slice *slice);

/* Take it off the list, wherever it stands; nothing if it is not listed. */
void kvd_slices_remove(struct kvd_slices *slices, struct kvd_slice *slice);

/*
 * Say that steps begin. When the turn began is not known: what begins less than 20 us after the
 * last step belongs to the same turn, and shares its 100 us.
 */
void kvd_slices_begin(struct kvd_slices *slices);

/* Whether this turn may take another step. Asked between steps. */
bool kvd_slices_has_time(struct kvd_slices *slices);

#endif
