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
 * Make blocks up to `block_count`, with pages for all layers, or none at all (SEMANTICS.md 5).
 * Returns 0; KVARN_ENOSPC, or KVARN_ERETRY_LATER when work in progress may free memory.
 */
int kvd_session_reserve(struct kvd_session *session, uint64_t block_count, enum kvd_reserve kind,
    struct kvd_failure *why) KVARN_MUST_CHECK;

/*
 * The rows page of a layer's block, writable from row `row_first` on: taken if there is none,
 * replaced when someone else holds it and rows from there on were written before (copy on write).
 * In that case *ret_copied is the old page with a reference for the caller, whose rows below
 * row_first must be copied before anyone reads the new one; otherwise NULL.
 */
int kvd_session_rows_for_write(struct kvd_session *session, uint32_t layer, uint32_t block_idx,
    uint32_t row_first, struct kvd_page **ret_copied, struct kvd_failure *why) KVARN_MUST_CHECK;

/* Free blocks behind the longest layer (appends in flight counted). */
void kvd_session_trim(struct kvd_session *session);

/* Drop what a layer no longer keeps: beyond window + group + seal_lag (SEMANTICS.md 4). */
void kvd_session_drop_window(struct kvd_session *session, uint32_t layer);

/* Drop the rows of a layer's block, whose tiles hold it now. */
void kvd_session_drop_rows(struct kvd_session *session, uint32_t layer, uint32_t block_idx);

/* Free the last block. */
void kvd_session_pop_block(struct kvd_session *session);

/* NO_SPACE, or RETRY_LATER when seals or replies in flight will give memory back. */
int kvd_session_fail_space(
    struct kvd_service *service, size_t bytes, struct kvd_failure *why) KVARN_MUST_CHECK;

#endif
