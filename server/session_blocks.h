/*
 * The block table of a session: reserving, copying on write, dropping.
 *
 * Owner: session. Thread: loop only.
 */
#ifndef KVD_SESSION_BLOCKS_H
#define KVD_SESSION_BLOCKS_H

#include "server/session.h"

/* How the pages of new blocks will be filled. */
enum kvd_reserve {
    KVD_RESERVE_ROWS,  /* rows arrive and are sealed later: rows and tiles */
    KVD_RESERVE_TILES, /* records arrive: tiles; rows only where a layer asks for them */
};

/*
 * Make one more block, with pages for all layers (SEMANTICS.md 5), or none. Who needs several makes
 * them one by one, with the layer's pending_length raised, and trims what it does not need.
 * Returns 0; KVARN_ENOSPC, or KVARN_ERETRY_LATER when work in progress may free memory.
 */
int kvd_session_add_block(
    struct kvd_session *session, enum kvd_reserve kind, struct kvd_failure *why) KVARN_MUST_CHECK;

/*
 * The rows page of a layer's block, writable from row `row_first` on: taken if there is none,
 * replaced when someone else holds it and rows from there on were written before (copy on write).
 * In that case *ret_copied is the old page with a reference for the caller, whose rows below
 * row_first must be copied before anyone reads the new one; otherwise NULL.
 * Returns 0; KVARN_ENOSPC or KVARN_ERETRY_LATER for a page that is missing, which the first rows of
 * a block alone can meet; KVARN_ERETRY_LATER for one that is shared: its reader will let it go.
 */
int kvd_session_rows_for_write(struct kvd_session *session, uint32_t layer, uint32_t block_idx,
    uint32_t row_first, struct kvd_page **ret_copied, struct kvd_failure *why) KVARN_MUST_CHECK;

/* Put a rows page (NULL: none) in its place; what was there is the caller's, references included.
 */
struct kvd_page *kvd_session_swap_rows(
    struct kvd_session *session, uint32_t layer, uint32_t block_idx, struct kvd_page *rows);

/* Drop the rows of a layer's block, whose tiles hold it now. */
void kvd_session_drop_rows(struct kvd_session *session, uint32_t layer, uint32_t block_idx);

/* Drop blocks behind the longest layer (appends in flight counted); many are freed in slices. */
void kvd_session_trim(struct kvd_session *session);

/* Blocks that a layer of this length no longer keeps: beyond window + group + seal_lag, rule 4. */
uint32_t kvd_session_window_blocks(
    const struct kvd_session *session, uint32_t layer, uint64_t length);

/* Drop what the layer no longer keeps. */
void kvd_session_drop_window(struct kvd_session *session, uint32_t layer);

/* Free the last block. */
void kvd_session_pop_block(struct kvd_session *session);

/* Free a block that has left its session; NULL ok. */
void kvd_session_block_destroy(struct kvd_service *service, struct kvd_block *block);

/* NO_SPACE, or RETRY_LATER while jobs in flight or what was dropped may give memory back. */
int kvd_session_fail_space(
    struct kvd_service *service, size_t bytes, struct kvd_failure *why) KVARN_MUST_CHECK;

#endif
