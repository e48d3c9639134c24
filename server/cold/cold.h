/*
 * A cold tier: where records of sessions are kept outside memory. cold_segment.h makes the one that
 * keeps them in files.
 *
 * Owner: service. Thread: loop only. A tier knows records, not sessions: what their heads and
 * bodies mean is their writer's business. It never gives back anything but the bytes that were put:
 * each get verifies checksums and fails with KVARN_ECORRUPT otherwise.
 */
#ifndef KVD_COLD_H
#define KVD_COLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include <bsd/sys/queue.h>

#include "kvarn/err.h"

/* Types of records (SEMANTICS.md 23). The numbers are on disk. */
enum kvd_cold_type {
    KVD_COLD_SHAPE = 1,     /* id: the fingerprint */
    KVD_COLD_SESSION = 2,   /* id: the session's, as of all that follow but PAGE */
    KVD_COLD_PAGE = 3,      /* id: the block's */
    KVD_COLD_TAIL = 4,      /* rows that are not sealed */
    KVD_COLD_SINK = 5,      /* rows of sink blocks */
    KVD_COLD_MAP = 6,       /* lengths and blocks; the highest sequence holds */
    KVD_COLD_TOMBSTONE = 7, /* nothing of this session below its sequence may come back */
    KVD_COLD_CLEAN = 8,     /* the tier's own: it was closed with nothing in flight */
    KVD_COLD_INDEX = 9,     /* the tier's own */
    KVD_COLD_TYPE_COUNT,
};

/* 128 bits that are never used for two different things. */
struct kvd_cold_id {
    uint64_t hi, lo;
};

/*
 * Something stored. Owned by the tier, on behalf of whoever put it (or was told of it at recovery)
 * until kvd_cold_ops.forget.
 */
struct kvd_cold_record;

/* What a record is. */
struct kvd_cold_info {
    enum kvd_cold_type type;
    uint32_t tenant_id;
    struct kvd_cold_id id;
    uint64_t sequence;   /* higher: put later */
    size_t head_bytes;   /* read along with the body, never compressed */
    size_t body_bytes;   /* as put */
    size_t stored_bytes; /* on disk, all counted */
};

/* Wanted: durable as soon as can be, found again though one of its sectors is damaged. */
#define KVD_COLD_BARRIER 1u

/* Something to store; embedded by who wants it. What it names is borrowed until `done`. */
struct kvd_cold_put {
    enum kvd_cold_type type;
    uint32_t tenant_id;
    struct kvd_cold_id id;
    unsigned flags;
    const void *head; /* at most KVARN_COLD_HEAD_BYTES_MAX */
    size_t head_bytes;
    const struct iovec *vecs; /* the body; NULL: none */
    unsigned vec_count;
    /*
     * Exactly once, on the loop, never from inside put: 0 when it is durable, and then *record is
     * the caller's; else the reason.
     */
    void (*done)(struct kvd_cold_put *put, int err);
    struct kvd_cold_record *record;
    void *impl; /* the tier's */
};

/* Something to read; embedded by who wants it. */
struct kvd_cold_get {
    struct kvd_cold_record *record; /* not forgotten before `done` */
    void *head;                     /* room for info.head_bytes; NULL: not wanted */
    const struct iovec *vecs;       /* room for info.body_bytes exactly; NULL: not wanted */
    unsigned vec_count;
    /*
     * Exactly once, on the loop, never from inside get: 0; KVARN_ECORRUPT when what is there is not
     * what was put; KVARN_EIO, KVARN_ENOMEM.
     */
    void (*done)(struct kvd_cold_get *get, int err);
    void *impl; /* the tier's */
};

/* What a tier holds and did. Counters since it was opened. */
struct kvd_cold_stats {
    uint64_t limit_bytes;
    uint64_t used_bytes; /* of the file system */
    uint64_t live_bytes; /* records that nobody forgot */
    uint64_t records;
    uint64_t segments;
    uint64_t queued_bytes;       /* put and not durable */
    uint64_t put_bytes;          /* heads and bodies that became durable */
    uint64_t written_bytes;      /* to files, everything counted */
    uint64_t rewritten_bytes;    /* of these: copies made to reclaim space */
    uint64_t got_bytes;          /* bodies read and verified */
    uint64_t compress_raw_bytes; /* bodies that were compressed: before ... */
    uint64_t compress_bytes;     /* ... and after */
    uint64_t compress_ns;        /* of workers, for them and for those where it did not gain */
    uint64_t put_failures;
    uint64_t get_failures;
    uint64_t corrupt;     /* records whose checksums did not match */
    uint64_t quarantined; /* segments that failed a write or a sync */
    bool is_resting;      /* takes nothing now: full, or failed a moment ago */
};

/* What recovery found; the rest comes record by record. */
struct kvd_cold_found {
    uint64_t segments;
    uint64_t scanned_segments; /* without a good index */
    uint64_t records;
    uint64_t torn;    /* stretches that were being written when the daemon or the power went */
    uint64_t damaged; /* records and headers that had been durable and do not match */
    uint64_t sessions_lost; /* of a suspect start: that could be seen and were given up */
    uint64_t duration_ns;
    bool is_clean;   /* closed cleanly, and nothing was written since */
    bool is_suspect; /* tombstones may be among what is lost: no session may come back */
};

struct kvd_cold;

struct kvd_cold_ops {
    /*
     * Store. Returns 0: `done` will come. KVARN_ERETRY_LATER: too much is queued; KVARN_ENOSPC,
     * KVARN_EIO: full or failing, and resting a while; KVARN_ETOO_LARGE: no segment holds this
     * much; KVARN_ENOMEM. A TOMBSTONE's record is the tier's own: it stays as long as a record that
     * it stands against may be found, and put->record is NULL.
     */
    int (*put)(struct kvd_cold *cold, struct kvd_cold_put *put);
    /* Returns 0: `done` will come; or KVARN_ENOMEM. */
    int (*get)(struct kvd_cold *cold, struct kvd_cold_get *get);
    /* Before run(), for recovery: get at once. Returns 0 or as get's `done`. */
    int (*get_now)(struct kvd_cold *cold, struct kvd_cold_get *get);
    void (*info)(const struct kvd_cold_record *record, struct kvd_cold_info *ret);
    /*
     * For recovery, once: tell of each record that was found and that nothing newer has replaced,
     * by rising sequence. They are the caller's from then on: it forgets what it does not need,
     * which it may do from inside `cb` for the record that it is told of.
     */
    void (*each)(struct kvd_cold *cold,
        void (*cb)(void *ctx, struct kvd_cold_record *record, const struct kvd_cold_info *info),
        void *ctx);
    /* Nobody needs it any more; its space is given back in time. NULL ok. */
    void (*forget)(struct kvd_cold *cold, struct kvd_cold_record *record);
    /*
     * Bytes of records, as stored, that it would have its caller forget, so that puts go on: its
     * limit is near, and not as much is on its way back already. 0: none.
     */
    uint64_t (*wanted)(const struct kvd_cold *cold);
    void (*stats)(const struct kvd_cold *cold, struct kvd_cold_stats *ret);
    /* True while nothing is queued or in flight. */
    bool (*is_idle)(const struct kvd_cold *cold);
    /* This end is not a clean one, whatever else close() manages: something could not be put. */
    void (*spoil)(struct kvd_cold *cold);
    /*
     * Write what is queued, say that this end was clean, seal; then `closed_cb`. No put after it.
     * When files fail it ends all the same.
     */
    void (*close)(struct kvd_cold *cold, void (*closed_cb)(void *ctx), void *ctx);
    /* Free it; nothing may be in flight. Files stay as they are. */
    void (*destroy)(struct kvd_cold *cold);
};

struct kvd_cold {
    const struct kvd_cold_ops *ops;
};

#endif
