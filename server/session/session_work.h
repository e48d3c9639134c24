/*
 * What a session keeps of each layer while it is being worked on: what is in flight, pages kept for
 * copies, and the last append, to recognise its retry (SEMANTICS.md 9).
 *
 * Owner: session. Thread: loop only.
 *
 * A session that nobody uses for KVD_SESSION_WORK_KEEP_NS gives it back, so that an idle session
 * costs less than 1 KiB besides its pages; a retry that comes later is answered CONFLICT, with the
 * lengths from which its sender sees that it was stored. Without it nothing is pending, no page is
 * kept, and the few pages of rows are counted where they are.
 */
#ifndef KVD_SESSION_WORK_H
#define KVD_SESSION_WORK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <bsd/sys/queue.h>

#include "kvarn/err.h"

struct kvd_session;
struct kvd_session_table;

#define KVD_SESSION_WORK_KEEP_NS (UINT64_C(300) * 1000000000)

struct kvd_layer_work {
    uint64_t last_hash;      /* of the last append */
    uint32_t last_count;     /* its tokens, which end at the layer's length; 0: none */
    uint32_t pending_length; /* length once the append in flight commits; == length without one */
    uint32_t pending;        /* appends, re-opens and seals in flight: operations wait for 0 */
    uint32_t tail_pages;     /* rows pages of blocks after the sink */
    /*
     * ref of a page: rows kept for the copy of the block that the next row goes to, whose rows are
     * shared: taken for all layers at once, so that a step of all layers finds room or none does;
     * 0: none.
     */
    uint32_t spare_rows;
};

struct kvd_session_work {
    TAILQ_ENTRY(kvd_session_work) link; /* the session table's, least recently wanted first */
    struct kvd_session *session;        /* borrowed: owns it */
    struct kvd_layer_work layers[];     /* shape->layer_count */
};

TAILQ_HEAD(kvd_session_work_list, kvd_session_work);

/*
 * Have it, for work that begins; what is there stays. Before anything is made pending. Returns 0 or
 * KVARN_ENOSPC.
 */
int kvd_session_want_work(struct kvd_session *session) KVARN_MUST_CHECK;

/* Have it for a copy, counts as those of the original, nothing in flight. Returns as above. */
int kvd_session_copy_work(
    const struct kvd_session *from, struct kvd_session *copy) KVARN_MUST_CHECK;

/* Give it back with the pages that it keeps; nothing may be pending. NULL work is fine. */
void kvd_session_drop_work(struct kvd_session *session);

/* Give back those that nobody has used for long: some of them, on the service's tick. */
void kvd_session_work_tick(struct kvd_session_table *table, uint64_t now_ns);

/* Bytes that it has now. */
size_t kvd_session_work_bytes(const struct kvd_session *session);

/* Rows pages of a layer after the sink. */
uint32_t kvd_session_tail_pages(const struct kvd_session *session, uint32_t layer);

/* Whether rows are kept for a copy in a layer. */
bool kvd_session_has_spare(const struct kvd_session *session, uint32_t layer);

/* Blocks from the first one that some layer has not sealed. */
uint32_t kvd_session_open_blocks(const struct kvd_session *session);

/* Open blocks whose rows may be counted where they are: some microseconds. */
#define KVD_SESSION_OPEN_BLOCKS_MAX 8u

#endif
