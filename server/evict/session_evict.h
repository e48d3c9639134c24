/*
 * Taking blocks of a session out of memory, and what the rest of it can still do.
 *
 * Owner: session. Thread: loop only.
 *
 * The blocks that are missing stand side by side: [missing_first, missing_last). Sealed blocks go
 * first, from the end, so that a session keeps its front, which is what others share and what costs
 * least to hold on to; its tail stays, so that appends go on. When no sealed block is left the rest
 * goes too. A missing block keeps its place, without pages and with the reason. Reads that meet one
 * are a MISS; cutting the session back to where they begin makes it whole again.
 */
#ifndef KVD_SESSION_EVICT_H
#define KVD_SESSION_EVICT_H

#include <stdbool.h>
#include <stdint.h>

#include "server/session/session.h"

static inline bool kvd_session_has_missing(const struct kvd_session *session)
{
    return session->missing_last > session->missing_first;
}

/*
 * The tokens [*ret_first, *ret_last) that are missing: of the missing blocks, as far as the longest
 * layer goes. Both 0: none.
 */
void kvd_session_missing_tokens(
    const struct kvd_session *session, uint64_t *ret_first, uint64_t *ret_last);

/* Something is queued or in flight, so that its blocks must stay as they are. */
bool kvd_session_is_busy(const struct kvd_session *session);

/*
 * The block that would go next, pins respected; UINT32_MAX: none. Costs a comparison a layer.
 */
uint32_t kvd_session_next_victim(const struct kvd_session *session);

/* Whether anything of it is in memory that is not pinned, whether it may go now or not. */
bool kvd_session_has_evictable(const struct kvd_session *session);

/* Whether there is one, now or once the tail is stored (kvd_cold_tail_out()). */
bool kvd_session_has_victim(const struct kvd_session *session);

/*
 * Let go of what its TAIL holds (kvd_tail_is_stored()), of a session in which nobody else is at
 * work. Returns how many blocks went; *ret_freed_bytes grows as below.
 */
uint32_t kvd_session_evict_tail(struct kvd_session *session, uint64_t *ret_freed_bytes);

/*
 * Let go of up to `count` blocks in that order, of a session in which nobody else is at work; stops
 * early when there is no memory to part from a shared block. Pages that others hold too stay with
 * them. Returns how many went; *ret_freed_bytes grows by the bytes of pages that nobody else held.
 */
uint32_t kvd_session_evict(struct kvd_session *session, uint32_t count, uint64_t *ret_freed_bytes);

/*
 * Let go of a block whose pages are not what was stored, wherever it stands, as
 * kvd_session_strip_block() does. Blocks between it and those that are missing already stay, within
 * the missing range. Returns 0 or KVARN_ENOSPC.
 */
int kvd_session_lose_block(
    struct kvd_session *session, uint32_t block_idx, uint64_t *ret_freed_bytes) KVARN_MUST_CHECK;

/*
 * MISS with the reason of a block that is missing among those of tokens [first, last). Returns 0 or
 * KVARN_EMISS.
 */
int kvd_session_check_present(const struct kvd_session *session, uint32_t layer, uint64_t first,
    uint64_t last, struct kvd_failure *why) KVARN_MUST_CHECK;

/*
 * The same for what an append to the layer adds to: rows that are not sealed, and the block that
 * its next row goes to, which another layer may have entered.
 */
int kvd_session_check_tail(
    const struct kvd_session *session, uint32_t layer, struct kvd_failure *why) KVARN_MUST_CHECK;

/* Blocks came back: let the missing range begin and end where something is missing. */
void kvd_session_missing_shrink(struct kvd_session *session);

/* A block came back: if it is within the missing range, it is counted as restored. */
void kvd_session_missing_note(struct kvd_session *session, uint32_t block_idx);

/* Count all that are, whoever brought them: some nanoseconds a block of the range. */
void kvd_session_missing_count(struct kvd_session *session);

/* Blocks were cut off the end: so were those of them that were missing. */
void kvd_session_trim_missing(struct kvd_session *session);

#endif
