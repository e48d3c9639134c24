/*
 * Sessions and the cold tier: what is written behind, what comes back when it is needed, what a
 * restart finds.
 *
 * Owner: service. Thread: loop only.
 *
 * Written are named sessions. Each block that is sealed in all layers (or a full sink) becomes one
 * PAGE record, soon after it is complete; some times a second a MAP says how far the session is
 * stored. So what a crash finds is what the last durable MAP says, a state that the session once
 * had; whatever takes something back (Truncate, Drop) is durable before its reply
 * (SEMANTICS.md 23). What is not sealed is written as a TAIL when memory runs short or somebody
 * asks for it, and at a clean stop, which loses nothing.
 *
 * A block whose pages are not in memory is COLD where a record has it. Operations say which blocks
 * they need (struct kvd_session_op) and wait in the session's queue until those are loaded.
 */
#ifndef KVD_COLD_SESSIONS_H
#define KVD_COLD_SESSIONS_H

#include <stdbool.h>
#include <stdint.h>

#include <bsd/sys/queue.h>

#include "lib/base/limits.h"
#include "server/cold/cold.h"
#include "server/cold/cold_copy.h"
#include "server/cold/cold_named.h"
#include "server/session/block_table.h"

struct kvd_block;
struct kvd_cold_give;
struct kvd_service;
struct kvd_session;
struct kvd_session_op;
struct kvd_shape;
struct kvd_timer;

/* Where the reads of a session have come to: read_ahead.c. */
struct kvd_read_ahead {
    uint32_t first, last; /* blocks of the last one */
    uint32_t run;         /* how many followed each other */
};

/* Of one session, embedded in it. */
struct kvd_session_cold {
    TAILQ_ENTRY(kvd_session) dirty_link;
    TAILQ_ENTRY(kvd_session) wait_link;
    TAILQ_ENTRY(kvd_session) warm_link;  /* the evictor's */
    TAILQ_ENTRY(kvd_session) use_link;   /* by last use: who gives up first in a full tier */
    struct kvd_cold_id uid;              /* zero: nothing of it was ever put */
    struct kvd_cold_record *session_rec; /* owned */
    struct kvd_cold_record *map_rec;     /* owned: the newest */
    struct kvd_cold_record *tail_rec;    /* owned: rows behind the blocks, as they were once */
    struct kvd_cold_record *doomed_tail; /* owned: given up when its load has ended */
    struct kvd_cold_named *named;        /* owned: what its maps on disk name; NULL: nothing */
    struct kvd_cold_id tail_id;          /* of tail_rec */
    uint64_t tail_epoch, tail_token_sum; /* what the session was when tail_rec was put */
    uint64_t leaving_bytes;              /* of its tail, which the evictor counts on */
    uint64_t room_until_ns;              /* a load waits for memory until then; 0: none does */
    uint32_t mapped_tokens;   /* the longest layer of any map that a recovery could find */
    uint32_t durable_tokens;  /* committed, of map_rec */
    uint32_t next_block;      /* all before it are stored, or on their way */
    uint32_t mapped_blocks;   /* of the last map that was put */
    uint32_t restored_blocks; /* of the missing range, in memory again */
    uint32_t tail_first;      /* the first block of tail_rec */
    uint32_t puts;            /* maps, tails, tombstones in flight */
    struct kvd_read_ahead ahead;
    bool is_dirty : 1;        /* listed: something is to be written */
    bool is_waiting : 1;      /* listed: an operation waits for a load */
    bool is_session_put : 1;  /* its SESSION record is stored or on its way */
    bool is_final_put : 1;    /* the stop has put all of it */
    bool is_tail_cold : 1;    /* tail_rec holds rows that are not in memory */
    bool is_tail_named : 1;   /* by the newest map that is durable */
    bool is_tail_wanted : 1;  /* on its way to the tier: kvd_cold_tail_out(), kvd_cold_store() */
    bool is_tail_leaving : 1; /* and out of memory then */
    bool is_tail_refused : 1; /* the tier cannot take it as it is; until it is used */
    bool is_tail_loading : 1;
    bool is_warm : 1;     /* listed by the evictor: it may have a tail in memory */
    bool is_buried : 1;   /* a tombstone was put, or need not be: nothing else is */
    bool is_listed : 1;   /* by last use */
    bool is_giving : 1;   /* something of it is on its way to be given up */
    bool is_given_up : 1; /* gave all up in a full tier: not written before it is used */
    bool is_doubted : 1;  /* a tombstone that failed may be found: a newer map is due */
    bool has_no_room : 1; /* the last load found no memory: admit, and miss */
};

/* Waits until what a session has is stored, or cannot be; embedded. */
struct kvd_cold_waiter {
    TAILQ_ENTRY(kvd_cold_waiter) link;
    struct kvd_session *session; /* borrowed while it waits; else NULL */
    void (*stored_cb)(struct kvd_cold_waiter *waiter);
};

TAILQ_HEAD(kvd_cold_session_list, kvd_session);
TAILQ_HEAD(kvd_cold_waiter_list, kvd_cold_waiter);
STAILQ_HEAD(kvd_spill_list, kvd_spill_put);
LIST_HEAD(kvd_cold_give_list, kvd_cold_give);

struct kvd_cold_sessions {
    struct kvd_service *service; /* borrowed */
    struct kvd_cold *tier;       /* owned; NULL: no cold tier */
    struct kvd_cold_found found;
    struct kvd_timer *timer;              /* owned: write-behind, maps */
    struct kvd_cold_session_list dirty;   /* each with a reference */
    struct kvd_cold_session_list waiting; /* each with a reference */
    struct kvd_spill_list retries;        /* owned: tombstones that failed; counted in puts */
    struct kvd_cold_waiter_list waiters;  /* borrowed */
    uint64_t retry_ns;                    /* when they are put again */
    uint64_t short_ns;                    /* loads that found no memory are tried again */
    struct kvd_cold_session_list by_use;  /* named ones, used last of all at the end */
    struct kvd_session *room_next;        /* borrowed: looked at next for something to give up */
    uint64_t giving_bytes;                /* of records, given up when what says so is durable */
    uint64_t room_after_ns;               /* that failed: no more before this */
    struct kvd_cold_give_list giving;     /* owned: on their way */
    uint32_t gives;                       /* of these */
    bool is_room_looking;                 /* room_next holds */
    bool is_room_of_residents;            /* sessions in memory give up theirs */
    bool has_room_given;                  /* somebody did since the list was begun */
    uint64_t id_prefix;                   /* random: of this run */
    uint64_t id_last;
    uint8_t shape_is_put[KVARN_SHAPES_MAX / 8 + 1];
    uint32_t puts;          /* in flight */
    uint32_t loads;         /* in flight */
    uint64_t leaving_bytes; /* of tails that leave memory once they are stored */
    bool is_armed;
    bool is_short; /* short_ns counts */
    bool has_lost; /* a session's last map is not durable: the end is not clean */
    bool is_flushing, is_closing, is_closed;
    const char *flushed_name; /* borrowed: sessions up to it are written */
    void (*flushed_cb)(void *ctx);
    void *flushed_ctx; /* borrowed */
};

/*
 * Open the tier of --cold-dir, if there is one, and bring its sessions back, cold. Blocks; before
 * the loop runs. Returns 0 or as kvd_cold_segment_open().
 */
int kvd_cold_sessions_init(
    struct kvd_cold_sessions *cold, struct kvd_service *service) KVARN_MUST_CHECK;

/* Close the tier as it is: nothing may be in flight. Accepts a zeroed struct. */
void kvd_cold_sessions_fini(struct kvd_cold_sessions *cold);

/* Nothing is queued or in flight. */
bool kvd_cold_sessions_is_idle(const struct kvd_cold_sessions *cold);

/* The session has something new: write it in a while. Cheap; nothing without a tier. */
void kvd_cold_note(struct kvd_session *session);

/*
 * Whether a block may go from memory now: it can be read back, or the tier cannot take it. What is
 * on its way there waits until it has arrived; rows that are not sealed, until their TAIL and the
 * map that names it have.
 */
bool kvd_cold_may_evict(const struct kvd_session *session, uint32_t block_idx);

/* The pages of a block go: what it is then. The block knows its copy still. */
enum kvd_block_state kvd_cold_stripped(struct kvd_session *session, uint32_t block_idx);

/* Whether the next one would do anything. */
bool kvd_cold_may_tail_out(const struct kvd_session *session);

/*
 * Put the rows that are not sealed, and let go of them when that is durable, unless the session is
 * used meanwhile. Returns the bytes that will be free then, 0 when there are none or the session is
 * busy, pinned or on its way already.
 */
uint64_t kvd_cold_tail_out(struct kvd_session *session);

/*
 * Put all that the session has; the waiter is told when it is stored, or when that ended otherwise:
 * the session is in use, or the disk failed. False: there is no tier, or it takes nothing now.
 */
bool kvd_cold_store(struct kvd_session *session, struct kvd_cold_waiter *waiter);

/* The waiter waits no more. */
void kvd_cold_store_cancel(struct kvd_cold_sessions *cold, struct kvd_cold_waiter *waiter);

/* Whether the rows that are not sealed can be read back as they are. */
bool kvd_tail_is_stored(const struct kvd_session *session);

/* A block was exchanged for another of equal tokens: what is stored of the session names the old
 * one. */
void kvd_cold_changed(struct kvd_session *session, uint32_t block_idx);

/*
 * Write all of all named sessions, tails too, and close the tier; then `flushed_cb`, from a later
 * turn. For the stop, when no operation is in flight.
 */
void kvd_cold_flush(struct kvd_cold_sessions *cold, void (*flushed_cb)(void *ctx), void *ctx);

/*
 * A copy that is to be cut first: nothing of it is put before kvd_cold_release(), or a kill would
 * leave a session that nobody asked for.
 */
void kvd_cold_hold(struct kvd_session *session);
void kvd_cold_release(struct kvd_session *session);

/* What the next two answer where nothing of the session is on disk. */
#define KVD_COLD_NOTHING 1

/*
 * A session was cut: where that is below what a recovery would find, say so on disk. Returns 0:
 * `done` comes from a later turn, with 0 or the error; KVD_COLD_NOTHING; or KVARN_E..., and it
 * could not be said.
 */
int kvd_cold_cut(struct kvd_session *session, void (*done)(void *ctx, int err), void *ctx);

/*
 * The same for a session that is to be dropped or exchanged, by who waits until all of that is on
 * disk: nothing more of it is put until then. On failure it is as it was, and else the caller ends
 * with kvd_cold_forget().
 */
int kvd_cold_bury(struct kvd_session *session, void (*done)(void *ctx, int err), void *ctx);

/* The session ends, or what it holds was exchanged: nothing of it may come back. */
void kvd_cold_forget(struct kvd_session *session);

/*
 * Whether what an operation needs is in memory; starts the loads that it waits for. Called when it
 * is first in its queue; the session is kicked when a load ends. Notes in op->cold what was away
 * the first time.
 */
bool kvd_cold_is_ready(struct kvd_session *session, struct kvd_session_op *op);

/* cold_spill.c */

/* Of the timer: write what is due. */
void kvd_cold_timer_cb(void *ctx);

/* Bury a session that is not in memory. */
void kvd_cold_bury_id(struct kvd_cold_sessions *cold, struct kvd_cold_id uid, uint32_t tenant_id);

/* A new id, never used before. */
struct kvd_cold_id kvd_cold_new_id(struct kvd_cold_sessions *cold);

/* cold_room.c */

/* List what a restart brought back. Returns 0 or KVARN_ENOMEM. */
int kvd_cold_room_init(struct kvd_cold_sessions *cold) KVARN_MUST_CHECK;

/* The session is used now: it gives up last. Nothing without a tier, or of one without a name. */
void kvd_cold_used(struct kvd_session *session);

/* It is dropped, or freed. */
void kvd_cold_unlist(struct kvd_session *session);

/* Have sessions give up what the tier wants room for, some now, some in later turns. */
void kvd_cold_make_room(struct kvd_cold_sessions *cold);

/* cold_restore.c */

/* Kick all sessions that wait for a load. */
void kvd_cold_kick_waiting(struct kvd_cold_sessions *cold);

/* Of the timer: loads that found no memory a while ago. */
void kvd_cold_retry_loads(struct kvd_cold_sessions *cold);

/* On whose behalf a block is loaded, which says what happens without memory for it. */
enum kvd_cold_for {
    KVD_COLD_FOR_OPERATION, /* others are evicted; else the operation misses it */
    KVD_COLD_FOR_JOB,       /* others are evicted; else the block stays COLD */
    KVD_COLD_FOR_LATER,     /* nobody is evicted for it: it stays COLD */
};

/*
 * For those who want a block before an operation does: start its load, unless it is on its way or
 * there. Operations that meet it wait for the same read. Returns 0; KVARN_ERETRY_LATER: enough is
 * being read, and the end of a load is the time to try again; KVARN_ENOT_FOUND: what has it is
 * being taken back; KVARN_ENOMEM.
 */
int kvd_cold_fetch(
    struct kvd_session *session, uint32_t block_idx, enum kvd_cold_for want) KVARN_MUST_CHECK;

/*
 * The same, for a job, of a block that the prefix index holds, which stands at `block_idx` in
 * sessions of the shape: all layers of it come back.
 */
int kvd_cold_fetch_shared(struct kvd_service *service, const struct kvd_shape *shape,
    uint32_t block_idx, struct kvd_block *block) KVARN_MUST_CHECK;

/* A block of the session is being read, alone or with its tail. */
bool kvd_cold_is_loading(const struct kvd_session *session, uint32_t block_idx);

/* Bytes of the pages that a load of a block with a record of its own fills. */
uint64_t kvd_cold_block_bytes(const struct kvd_service *service, const struct kvd_block *block);

/* Bytes of the pages that its load fills; a tail's count with its first block. */
uint64_t kvd_cold_load_bytes(const struct kvd_session *session, uint32_t block_idx);

/* The session is kicked, and its missing range seen to, when a load ends. */
void kvd_cold_wait(struct kvd_session *session);

/* read_ahead.c */

/*
 * An operation of a session with missing blocks is looked at, once or more often: where reads of
 * blocks follow each other, start to load what comes next, up to --cold-read-ahead blocks.
 */
void kvd_cold_read_ahead(struct kvd_session *session, const struct kvd_session_op *op);

/* What a block whose record cannot be read becomes: MISSING, reason CHECKSUM. */
void kvd_cold_block_lost(struct kvd_block *block);

/* The same for what is in the tail alone. */
void kvd_cold_tail_lost(struct kvd_session *session);

/* cold_repair.c */

/*
 * The record of a block that is in memory is not what was stored: write the block once more.
 * Returns 0, or KVARN_ENOSPC or KVARN_ERETRY_LATER: it is as it was.
 */
int kvd_cold_rewrite_block(struct kvd_session *session, uint32_t block_idx) KVARN_MUST_CHECK;

/*
 * The same for what says what the session is, or how far it is stored. Returns whether it can be
 * done: not while rows are in the tier alone, or something of the session is on its way there.
 */
bool kvd_cold_rewrite_session(struct kvd_session *session);
bool kvd_cold_rewrite_map(struct kvd_session *session);

/* Log that a block (UINT32_MAX: a tail) could not be loaded; session NULL: of a prefix. */
void kvd_cold_load_failed_say(const struct kvd_cold_sessions *cold,
    const struct kvd_session *session, uint32_t block_idx, int err);

/* cold_reopen.c */

/* Bring back what the tier found. Returns 0 or KVARN_ENOMEM. */
int kvd_cold_reopen(struct kvd_cold_sessions *cold) KVARN_MUST_CHECK;

#endif
