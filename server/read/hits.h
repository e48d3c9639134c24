/*
 * Hit rates: of the tokens that reads, attention and prefix matches ask for, how many memory had,
 * how many came from the cold tier, and how many were missing, and why.
 *
 * Owner: none. Thread: loop only.
 *
 * A request counts when it is answered, or begins to be: with what it asked for in all its layers.
 * One that is refused for another reason counts nowhere. What is missing for a part of it is
 * missing for all of it, as the answer is.
 */
#ifndef KVD_HITS_H
#define KVD_HITS_H

#include <stdint.h>

#include "server/base/metrics.h"
#include "server/session/failure.h"
#include "server/session/session.h"

/* Who asks. */
enum kvd_hits_of {
    KVD_HITS_READ,
    KVD_HITS_ATTEND,
    KVD_HITS_MATCH,
};

/* Of `tokens` that were there, `cold` came from the cold tier. */
void kvd_hits_add(
    struct kvd_metrics *metrics, enum kvd_hits_of who, uint64_t tokens, uint64_t cold);

/* All of `tokens` were missing; `reason`: Kvarnd__MissReason. */
void kvd_hits_miss(struct kvd_metrics *metrics, enum kvd_hits_of who, uint64_t tokens, int reason);

/*
 * Tokens [first, last) of a layer that an operation waited for: of the stretch of blocks that were
 * not in memory when it came, at most as many as those blocks hold.
 */
uint64_t kvd_hits_cold_tokens(
    const struct kvd_op_cold *cold, uint32_t group, uint64_t first, uint64_t last);

#endif
