/*
 * The blocks of a session: reserving, copying on write, dropping.
 *
 * Owner: session. Thread: loop only.
 *
 * A block, or the span that it stands in, may be shared with other sessions. All changes go through
 * here, and each says which blocks must be the session's own before (kvd_session_own_block()), so
 * that what cannot fail meets nothing shared.
 */
#ifndef KVD_SESSION_BLOCKS_H
#define KVD_SESSION_BLOCKS_H

#include "server/session/session.h"

/* How the pages of new blocks will be filled. */
enum kvd_reserve {
    KVD_RESERVE_ROWS,  /* rows arrive and are sealed later: rows and tiles */
    KVD_RESERVE_TILES, /* tiles; rows where a layer asks for them, and in sinks */
};

/*
 * Make one more block, with tiles for all layers (SEMANTICS.md 5), or none. Who needs several makes
 * them one by one, with the layer's pending_length raised, and trims what it does not need.
 * Returns 0; 1 when memory is being made and this turn is over: call again in the next one;
 * KVARN_ENOSPC, or KVARN_ERETRY_LATER when work in progress may free memory.
 */
int kvd_session_add_block(
    struct kvd_session *session, enum kvd_reserve kind, struct kvd_failure *why) KVARN_MUST_CHECK;

/*
 * Shared blocks that an operation replaced by copies, so that it can give those back when it comes
 * to nothing. Zeroed: empty.
 */
struct kvd_own_note {
    SLIST_ENTRY(kvd_own_note) link;
    uint32_t block_idx;
    struct kvd_block *was;  /* ref */
    struct kvd_block *copy; /* borrowed, to be compared only */
};
SLIST_HEAD(kvd_own_log, kvd_own_note);

/* Free some tens of notes: the copies stay. True: those were the last. */
bool kvd_own_log_keep_some(struct kvd_session *session, struct kvd_own_log *log);

/*
 * The same, but put what was shared back in the place of each copy that is as it was made. The
 * caller keeps `layer_count` layers pending, once each; nothing is done while others are.
 */
bool kvd_own_log_undo_some(
    struct kvd_session *session, struct kvd_own_log *log, uint32_t layer_count);

/*
 * Make a block the session's own: nobody else sees what is done to it. Its sealed pages and rows
 * stay shared; what other sessions might fill as well, tiles that are not sealed, is taken anew,
 * and so is, for layers whose next row goes here, a spare page in case their rows must be copied.
 * All of it or nothing. Blocks that are not there are left alone. A copy is noted in `log` (NULL:
 * it stays), if there is memory for that. Returns 0, KVARN_ENOSPC or KVARN_ERETRY_LATER.
 */
int kvd_session_own_block(struct kvd_session *session, uint32_t block_idx, struct kvd_own_log *log,
    struct kvd_failure *why) KVARN_MUST_CHECK;

/* Make the span of a block the session's own, so that a trim can cut there. Returns as above. */
int kvd_session_own_span(
    struct kvd_session *session, uint32_t block_idx, struct kvd_failure *why) KVARN_MUST_CHECK;

/*
 * The rows page of a layer's block, which is the session's own, writable from row `row_first` on:
 * taken if there is none, replaced when someone else holds it and rows from there on were written
 * before (copy on write).
 * In that case *ret_copied is the old page with a reference for the caller, whose rows below
 * row_first must be copied before anyone reads the new one; otherwise NULL.
 * Returns 0; KVARN_ENOSPC or KVARN_ERETRY_LATER for a page that is missing, which the first rows of
 * a block alone can meet; KVARN_ERETRY_LATER for one that is shared: its reader will let it go.
 */
int kvd_session_rows_for_write(struct kvd_session *session, uint32_t layer, uint32_t block_idx,
    uint32_t row_first, struct kvd_page **ret_copied, struct kvd_failure *why) KVARN_MUST_CHECK;

/*
 * Let go of all pages of a block, which stays as a missing one, with the reason. One that is shared
 * stays with the others: the session parts from it. *ret_freed_bytes grows by the bytes of pages
 * that nobody else holds. Returns 0, or KVARN_ENOSPC when there is no memory to part.
 */
int kvd_session_strip_block(struct kvd_session *session, uint32_t block_idx, int miss_reason,
    uint64_t *ret_freed_bytes) KVARN_MUST_CHECK;

/*
 * The record of a block, which is the session's own, is not what was stored: part from it. A block
 * that was there alone is a missing one, with the reason.
 */
void kvd_session_part_cold(struct kvd_session *session, uint32_t block_idx, int miss_reason);

/* Let go of the page kept for copying a layer's rows, if there is one. */
void kvd_session_drop_spare(struct kvd_session *session, uint32_t layer);

/* Put a rows page (NULL: none) in its place in a block that is the session's own; what was there is
 * the caller's, references included.
 */
struct kvd_page *kvd_session_swap_rows(
    struct kvd_session *session, uint32_t layer, uint32_t block_idx, struct kvd_page *rows);

/* The same with tiles. */
struct kvd_page *kvd_session_swap_tiles(
    struct kvd_session *session, uint32_t layer, uint32_t block_idx, struct kvd_page *tiles);

/* Give a block, the session's own, the name of what it holds (KVD_BLOCK_NAME_BYTES). */
void kvd_session_name_block(struct kvd_session *session, uint32_t block_idx, const uint8_t *name);

/* Drop the rows of a layer's block, the session's own, whose tiles hold it now. */
void kvd_session_drop_rows(struct kvd_session *session, uint32_t layer, uint32_t block_idx);

/*
 * Drop blocks behind the longest layer (appends in flight counted); many are freed in slices. The
 * span that this cuts must be the session's own.
 */
void kvd_session_trim(struct kvd_session *session);

/* Blocks that a layer of this length no longer keeps: beyond window + group + seal_lag, rule 4. */
uint32_t kvd_session_window_blocks(
    const struct kvd_session *session, uint32_t layer, uint64_t length);

/*
 * Drop some tens of the blocks that the layer no longer keeps, which must be the session's own;
 * true: those were the last.
 */
bool kvd_session_drop_window(struct kvd_session *session, uint32_t layer);

/* NO_SPACE, or RETRY_LATER while jobs in flight or what was dropped may give memory back. */
int kvd_session_fail_space(
    struct kvd_service *service, size_t bytes, struct kvd_failure *why) KVARN_MUST_CHECK;

#endif
