/*
 * The insides of the cold tier in files, shared by cold_segment*.c.
 *
 * Owner: cold_segment.c. Thread: loop only, but for the jobs of writes and reads, which touch their
 * own buffers.
 */
#ifndef KVD_COLD_SEGMENT_IMPL_H
#define KVD_COLD_SEGMENT_IMPL_H

#include "lib/base/limits.h"
#include "server/cold/cold_segment.h"
#include "server/cold/cold_segment_format.h"

/* Most steps of one task: a punch of 16 records and its sync. */
#define KVD_COLD_TASK_STEPS_MAX 17

struct cold_segment;
struct cold_file;

/* A record in a file. One that nobody needs any more stays listed until its bytes are erased. */
struct kvd_cold_record {
    LIST_ENTRY(kvd_cold_record) link;
    struct cold_file *file; /* borrowed: lives while a record is listed there */
    uint64_t offset;
    struct kvd_record_header header;
    bool is_forgotten;
    bool is_punching;
};

LIST_HEAD(cold_record_list, kvd_cold_record);

enum cold_file_state {
    COLD_FILE_ACTIVE,      /* takes records */
    COLD_FILE_SEALED,      /* takes none; indexed, or as recovery found it */
    COLD_FILE_QUARANTINED, /* failed a write or a sync: only read, then removed */
    COLD_FILE_GOING,       /* nothing live in it: being removed */
};

/* One segment. */
struct cold_file {
    TAILQ_ENTRY(cold_file) link;
    enum cold_file_state state;
    uint64_t number;
    uint64_t salt;
    int fd;
    uint64_t size_bytes; /* of the file */
    uint64_t hole_bytes; /* of these, given back */
    uint64_t end;        /* where the next record goes */
    uint64_t live_bytes; /* records not forgotten */
    uint64_t dead_bytes; /* records forgotten and not erased */
    uint32_t ordinal_next;
    uint32_t durable_ordinal;
    uint32_t readers; /* gets and copies in flight */
    struct cold_record_list records;
    uint8_t *index; /* owned: entries, while it is active */
    uint64_t index_bytes;
    uint64_t index_room;
    bool is_stuck;       /* a record here cannot be moved: it is damaged */
    bool is_suspect;     /* of recovery: it may have lost a tombstone */
    bool is_unremovable; /* its name could not be removed for good */
};

TAILQ_HEAD(cold_file_list, cold_file);

/* A record on its way to a file. */
struct cold_write {
    struct kvd_job job; /* first: the worker's handle */
    STAILQ_ENTRY(cold_write) link;
    struct cold_segment *cold;      /* borrowed */
    struct kvd_cold_put *put;       /* borrowed; NULL: a copy, or the tier's own */
    struct kvd_cold_record *record; /* owned until it is durable */
    struct kvd_cold_record *copied; /* of a copy: the record that moves, or its ghost */
    struct kvd_record_header header;
    uint8_t *meta; /* owned: header, head, zeros up to the body */
    size_t meta_bytes;
    const struct iovec *vecs; /* the stored body: the put's, or &single */
    unsigned vec_count;
    struct iovec single;
    uint8_t *buffer;     /* owned: compressed body, or the copy's bytes */
    size_t buffer_bytes; /* charged */
    uint64_t file_bytes;
    uint64_t compress_ns;
    bool is_barrier;
    bool is_compressing;
};

STAILQ_HEAD(cold_write_queue, cold_write);

/* File operations one after the other, until one fails. */
struct cold_task {
    struct cold_segment *cold; /* borrowed */
    struct kvd_file_op ops[KVD_COLD_TASK_STEPS_MAX];
    unsigned count, idx;
    bool is_running;
    void (*done)(struct cold_task *task, int err);
};

/* What is on disk of one session, by its id. */
struct cold_subject {
    LIST_ENTRY(cold_subject) link;
    struct kvd_cold_id id;
    uint64_t physical; /* records of it that a recovery could find, its tombstone not counted */
    struct kvd_cold_record *tombstone; /* owned: the newest */
};

LIST_HEAD(cold_subject_list, cold_subject);
#define COLD_SUBJECT_BUCKETS 4096

struct cold_segment {
    struct kvd_cold base;
    struct kvd_io *io;           /* borrowed */
    struct kvd_workers *workers; /* borrowed */
    struct kvd_budget *budget;   /* borrowed */
    struct kvd_cold_segment_options options;
    char dir[KVARN_COLD_PATH_MAX]; /* options.dir points here */
    int lock_fd;                   /* -1: none */
    uint64_t tier_id;
    struct cold_file_list files; /* by number */
    struct cold_file *active;    /* borrowed; NULL: none */
    struct cold_file *next;      /* borrowed: made while the active one fills up */
    uint64_t number_next;
    uint64_t sequence_next;
    struct cold_subject_list subjects[COLD_SUBJECT_BUCKETS];

    struct cold_write_queue ready;   /* hashed, not written */
    struct cold_write_queue writing; /* in the write in flight */
    struct cold_write_queue written; /* not synced */
    struct cold_write_queue syncing; /* in the sync in flight */
    uint64_t preparing;              /* jobs in flight */
    uint64_t written_bytes;          /* of `written` */
    struct kvd_file_op write_op;
    struct kvd_file_op sync_op;
    struct iovec *write_vecs; /* owned: KVD_FILE_VECS_MAX */
    uint8_t *zeros;           /* owned: a block */
    bool is_writing, is_syncing;
    struct cold_file *writing_file; /* borrowed: of the write in flight */
    struct kvd_timer *pump_timer;   /* owned */
    uint32_t syncing_ordinal;       /* what the sync in flight makes durable */
    struct cold_file *syncing_file; /* borrowed: where */

    struct cold_task make_task; /* a new segment */
    struct cold_task undo_task; /* of one that failed */
    struct cold_task seal_task;
    struct cold_task reclaim_task; /* a punch or a removal */
    struct cold_file *making;      /* owned until it is listed */
    struct cold_file *sealing;     /* borrowed */
    struct cold_file *reclaiming;  /* borrowed */
    struct iovec make_vec, seal_vec;
    uint8_t *make_block; /* owned: headers */
    uint8_t *seal_block; /* owned: index and footer */
    char make_path[KVARN_COLD_PATH_MAX + 32];
    char make_path_to[KVARN_COLD_PATH_MAX + 32];
    char reclaim_path[KVARN_COLD_PATH_MAX + 32];
    bool has_no_punch; /* the file system cannot */

    struct cold_file *moving_from; /* being rewritten; borrowed */
    bool is_copying;               /* a record of it is on its way */

    uint64_t rest_until_ns; /* ordinary puts are refused until then */
    int rest_err;
    unsigned gets;       /* in flight */
    uint64_t sync_bytes; /* written and not synced at which a sync starts */
    struct kvd_cold_stats stats;

    bool is_closing;
    bool is_clean_put; /* the last record was written */
    bool is_closed;
    void (*closed_cb)(void *ctx);
    void *closed_ctx; /* borrowed */
};

static inline struct cold_segment *kvd_segment_of(struct kvd_cold *cold)
{
    return (struct cold_segment *)(void *)cold;
}

/* cold_segment.c */

/* Start what can start: batches, syncs, new segments, reclaiming, the end. After every event. */
void kvd_segment_pump(struct cold_segment *cold);

/* The same in the next turn, so that nothing is called back from inside a put. */
void kvd_segment_pump_soon(struct cold_segment *cold);

/* A record of a file, listed there and charged. NULL without memory. */
struct kvd_cold_record *kvd_segment_record_create(struct cold_segment *cold);
void kvd_segment_record_destroy(struct cold_segment *cold, struct kvd_cold_record *record);
/* Nobody needs it any more; it stays listed while its bytes may be found. */
void kvd_segment_record_kill(struct cold_segment *cold, struct kvd_cold_record *record);
void kvd_segment_record_list(struct cold_segment *cold, struct kvd_cold_record *record,
    struct cold_file *file, uint64_t offset);

/* Run ops[0 .. count) of the task one by one; an open's descriptor is the later ones'. */
void kvd_segment_task_run(struct cold_segment *cold, struct cold_task *task, unsigned count,
    void (*done)(struct cold_task *task, int err));

/* Path of a segment; `suffix` "kvs" or "tmp". */
void kvd_segment_path(const struct cold_segment *cold, uint64_t number, const char *suffix,
    char *dst, size_t dst_bytes);

/* Bytes of the file system that all segments take. */
uint64_t kvd_segment_used_bytes(const struct cold_segment *cold);

/* Refuse ordinary puts for a while. */
void kvd_segment_rest(struct cold_segment *cold, int err);

/* cold_segment_write.c */

/* Take a put: hash (and compress) it, then queue it. As kvd_cold_ops.put. */
int kvd_segment_put(struct kvd_cold *cold, struct kvd_cold_put *put) KVARN_MUST_CHECK;

/* Queue a write whose header, meta and body are ready. */
void kvd_segment_write_queue(struct cold_segment *cold, struct cold_write *write);

/* Write the record that says that this end was clean. Returns 0, or KVARN_ENOMEM: it stays out. */
int kvd_segment_put_clean(struct cold_segment *cold) KVARN_MUST_CHECK;

/* Start the write, the sync or the new segment that is due. */
void kvd_segment_write_pump(struct cold_segment *cold);

/* No segment has room for what came first, and none can be made: shed what may be shed. */
void kvd_segment_write_shed(struct cold_segment *cold, int err);

/* Nothing is queued, written or synced. */
bool kvd_segment_write_is_idle(const struct cold_segment *cold);

/* A segment failed: it is quarantined, and whatever in it is not durable counts as lost. */
void kvd_segment_file_fail(struct cold_segment *cold, struct cold_file *file, int err);

/* A write that came to its end, well or not: tell, free. */
void kvd_segment_write_finish(struct cold_write *write, int err);

/* cold_segment_file.c */

/* Start making a new segment; kvd_segment_file_made() when it is there. */
void kvd_segment_file_make(struct cold_segment *cold);

/* Start sealing the active one, which gets no more records. Nothing may be in flight to it. */
void kvd_segment_file_seal(struct cold_segment *cold);

/* Whether an empty segment would hold a record of so many bytes. */
bool kvd_segment_file_fits(
    const struct cold_segment *cold, uint64_t file_bytes, bool may_use_reserve);

/* Room in the active segment for one more record of so many bytes. */
bool kvd_segment_file_has_room(
    const struct cold_segment *cold, uint64_t file_bytes, bool may_use_reserve);

/* Whether the limit lets another segment be made. */
bool kvd_segment_file_may_make(const struct cold_segment *cold, bool may_use_reserve);

/* It failed: never write or sync it again. */
void kvd_segment_file_quarantine(struct cold_segment *cold, struct cold_file *file, int err);

/* Note a record in the index of an active segment. Returns 0 or KVARN_ENOMEM. */
int kvd_segment_file_index_add(struct cold_file *file, const struct kvd_record_header *header,
    uint64_t offset) KVARN_MUST_CHECK;

/*
 * Index and footer of a segment whose entries are `index`, for a file that has records up to `end`.
 * Returns their bytes, owned by the caller, and their length; NULL without memory.
 */
uint8_t *kvd_segment_file_index_build(
    const struct cold_segment *cold, const struct cold_file *file, uint64_t *ret_bytes);

void kvd_segment_file_destroy(struct cold_file *file);

/* cold_segment_read.c */

/* As kvd_cold_ops. */
int kvd_segment_get(struct kvd_cold *cold, struct kvd_cold_get *get) KVARN_MUST_CHECK;
int kvd_segment_get_now(struct kvd_cold *cold, struct kvd_cold_get *get) KVARN_MUST_CHECK;

/* cold_segment_reclaim.c */

/* As kvd_cold_ops.forget. */
void kvd_segment_forget(struct kvd_cold *cold, struct kvd_cold_record *record);

/* Start the punch, the removal or the copy that is due. */
void kvd_segment_reclaim_pump(struct cold_segment *cold);

/* A copy is durable, or failed. */
void kvd_segment_copy_done(struct cold_write *write, int err);

/* cold_segment_subject.c */

/* A record may be found by recovery from now on. Returns 0 or KVARN_ENOMEM. */
int kvd_segment_subject_add(
    struct cold_segment *cold, const struct kvd_record_header *header) KVARN_MUST_CHECK;

/* It cannot any more: its bytes are erased, and that is durable. */
void kvd_segment_subject_erased(struct cold_segment *cold, const struct kvd_record_header *header);

/* A tombstone is durable: keep it while its subject may be found. */
void kvd_segment_subject_bury(struct cold_segment *cold, struct kvd_cold_record *tombstone);

void kvd_segment_subjects_fini(struct cold_segment *cold);

/* cold_segment_recover.c */

/* Read the folder. Returns 0 or as kvd_cold_segment_open(). */
int kvd_segment_recover(struct cold_segment *cold, struct kvd_cold_found *found) KVARN_MUST_CHECK;

#endif
