/*
 * What of a session is not in memory, and what of it is on disk: for InspectSession and hit rates.
 *
 * Owner: none. Thread: loop only.
 */
#ifndef KVD_COLD_USAGE_H
#define KVD_COLD_USAGE_H

#include <stdint.h>

struct kvd_op_cold;
struct kvd_session;

/* Blocks, and the bytes of their pages as they are, were or will be in memory. */
struct kvd_cold_blocks {
    uint64_t count, bytes;
};

/* Sums. Zeroed: nothing yet. */
struct kvd_cold_usage {
    struct kvd_cold_blocks cold, loading, missing; /* not in memory; cold ones of a tail, too */
    uint64_t stored_blocks;                        /* that have a record, in memory or not */
    uint64_t stored_bytes;                         /* of these and of its other records, on disk */
};

/*
 * Add one span's blocks; none where there is no such span. Records that several sessions share
 * count with each. Some microseconds.
 */
void kvd_cold_usage_add_span(
    const struct kvd_session *session, uint32_t span_idx, struct kvd_cold_usage *usage);

/* Add the records of the session itself. */
void kvd_cold_usage_add_records(const struct kvd_session *session, struct kvd_cold_usage *usage);

/*
 * Committed tokens that a restart after a crash now would find: 0 without a cold tier, or as long
 * as nothing says how far the session is stored.
 */
uint64_t kvd_cold_restart_tokens(const struct kvd_session *session);

/*
 * Blocks that are not in memory, whatever became of them, as far as the session knows: what loads
 * of others brought back of blocks that it shares, it learns at its own next one.
 */
uint32_t kvd_cold_away_blocks(const struct kvd_session *session);

/*
 * Which of blocks [first, last) are cold or on their way back. The first 1,024 are looked at, in
 * some 15 us; those behind them count as away.
 */
void kvd_cold_away(
    const struct kvd_session *session, uint32_t first, uint32_t last, struct kvd_op_cold *ret);

#endif
