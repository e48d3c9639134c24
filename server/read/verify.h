/*
 * Verification of a session: what is held of it, in memory and in the cold tier, against its
 * checksums. What is wrong is put right where that can be, and counts as missing otherwise.
 *
 * Owner: the request. Thread: loop; hashing runs as jobs.
 *
 * Blocks are looked at as they are at that moment, some at a time, between what else the session
 * does; nothing waits for it, but for the repair of a block, which takes its turn in the session. A
 * page that is wrong goes with its block: it is COLD where the tier has it, else MISSING with
 * reason CHECKSUM (SEMANTICS.md 14). Records that are wrong are written again from memory; a block
 * that is nowhere else is MISSING, as it would be when it is read.
 */
#ifndef KVD_VERIFY_H
#define KVD_VERIFY_H

#include "lib/base/limits.h"
#include "server/read/verify_check.h"

/* What became of what was wrong. The numbers are those of Kvarnd__VerifyOutcome. */
enum kvd_verify_outcome {
    KVD_VERIFY_LEFT,    /* as it is: it could not be read, or not be put right */
    KVD_VERIFY_DROPPED, /* out of memory: it is read from the tier when it is needed */
    KVD_VERIFY_LOST,    /* MISSING */
    KVD_VERIFY_REWRITE, /* memory has it right, and it is written to the tier once more */
};

struct kvd_verify_finding {
    enum kvd_verify_part part;
    uint32_t block_idx;
    uint32_t wrong_pages;
    uint32_t layer; /* of the first of them */
    int record_err; /* 0; KVARN_ECORRUPT; or why it could not be read */
    enum kvd_verify_outcome outcome;
    const char *name; /* borrowed; for the caller, who knows the session */
};

/* Sums over all sessions of a call. Zeroed: nothing yet. */
struct kvd_verify_totals {
    uint64_t blocks;
    uint64_t pages, page_bytes; /* sealed, in memory */
    uint64_t rows_pages;        /* in memory, and without a checksum */
    uint64_t records, record_bytes;
    uint64_t wrong_pages, wrong_records;
    uint64_t unread_records; /* for want of memory, or the disk failed */
    uint32_t finding_count;
    struct kvd_verify_finding findings[KVARN_VERIFY_FINDINGS_MAX];
};

struct kvd_verify;

struct kvd_verify_args {
    struct kvd_session *session;      /* the verification takes a reference of its own */
    uint32_t block_first;             /* 0: its own records, too */
    uint32_t blocks_max;              /* at least 1 */
    uint64_t end_ns;                  /* no block is begun after it, but for one */
    struct kvd_verify_totals *totals; /* borrowed: what is found is added */
    void *ctx;
    /*
     * Exactly once, from a later turn. `next_block`: all before it are done; UINT32_MAX: all are,
     * or the session was dropped.
     */
    void (*done_cb)(void *ctx, uint32_t next_block);
};

/* Begin. Returns 0 and a token for kvd_verify_stop(), valid until done_cb; or KVARN_ENOMEM. */
int kvd_verify_start(const struct kvd_verify_args *args, struct kvd_verify **ret) KVARN_MUST_CHECK;

/* Begin nothing more: done_cb comes when what is in flight has ended. */
void kvd_verify_stop(struct kvd_verify *verify);

/*
 * A reader found a page of this block to be wrong. Where the cold tier has the block, look at it by
 * itself, and put it right, so that the next reader gets it from there. Nothing otherwise, since
 * other layers of it may still be read, nor while enough of that is at work.
 */
void kvd_verify_suspect(struct kvd_session *session, uint32_t block_idx);

#endif
