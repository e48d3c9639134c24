/*
 * The insides of the cold tier in files, shared by cold_segment*.c.
 *
 * Owner: cold_segment.c. Thread: loop only, but for the jobs of writes and reads, which touch their
 * own buffers.
 */
#ifndef KVD_COLD_SEGMENT_IMPL_H
#define KVD_COLD_SEGMENT_IMPL_H

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "lib/base/xxh3.h"
#include "server/cold/cold_segment.h"
#include "server/cold/cold_segment_format.h"

/* Most steps of one task: a punch of 16 records and its sync. */
#define KVD_COLD_TASK_STEPS_MAX 17

struct cold_segment;
struct cold_file;

/* What of the work on a file one turn does at most, in records: some 100 us (SEMANTICS.md 18). */
#define KVD_COLD_TURN_RECORDS 64

/* Files that one turn looks at for something to reclaim. */
#define KVD_COLD_TURN_FILES 64

/* A record is listed in its file by what it is. */
enum cold_record_state {
    COLD_RECORD_NOWHERE,  /* in no file: on its way to one */
    COLD_RECORD_LIVE,     /* somebody needs it */
    COLD_RECORD_MOVING,   /* the same, and a copy is being made */
    COLD_RECORD_DEAD,     /* nobody does, and its bytes are still there */
    COLD_RECORD_PUNCHING, /* the same, and they are being erased */
    COLD_RECORD_STATE_COUNT,
};

/*
 * A record in a file. There may be millions: it holds what it takes to find and to know it, and
 * hashes are read with the rest. One that nobody needs stays listed until its bytes are erased.
 */
struct kvd_cold_record {
    TAILQ_ENTRY(kvd_cold_record) link;
    struct kvd_cold_id id;
    uint64_t sequence;
    uint32_t tenant_id;
    uint32_t place;      /* its file's slot and its first block there: record_place() */
    uint32_t head_bytes; /* these as in struct kvd_record_header */
    uint32_t body_bytes;
    union {
        uint32_t raw_bytes;
        uint32_t dead_epoch; /* of one that is dead: cold->epoch when it was forgotten */
    };
    uint8_t type;
    uint8_t flags;
    uint8_t state; /* enum cold_record_state */
};

_Static_assert(sizeof(struct kvd_cold_record) == 64, "a record takes one cache line");
_Static_assert(KVARN_COLD_BODY_BYTES_MAX <= UINT32_MAX, "sizes of bodies have 32 bits");

/* Bits of a place that say the block. */
#define COLD_PLACE_BLOCK_BITS 20

_Static_assert(KVARN_COLD_SEGMENT_BYTES_MAX / KVD_SEGMENT_BLOCK <= 1u << COLD_PLACE_BLOCK_BITS &&
                   KVARN_COLD_SEGMENTS_MAX <= 1u << (32 - COLD_PLACE_BLOCK_BITS),
    "a place has 32 bits");

TAILQ_HEAD(cold_record_list, kvd_cold_record);

/*
 * The index of a segment that takes records, as it will be written: entries side by side in chunks,
 * charged, and their hash so far. Sealing then costs a few stretches more, however many there are.
 */
struct cold_index {
    uint8_t **chunks; /* owned, as all they point to; of COLD_INDEX_CHUNK_BYTES each */
    uint32_t chunk_count, chunk_room;
    uint64_t count;     /* entries */
    XXH3_state_t *hash; /* owned; NULL: no entry yet */
};

#define COLD_INDEX_CHUNK_ENTRIES 630
#define COLD_INDEX_CHUNK_BYTES   (COLD_INDEX_CHUNK_ENTRIES * KVD_INDEX_ENTRY_BYTES)

enum cold_file_state {
    COLD_FILE_ACTIVE,      /* takes records */
    COLD_FILE_SEALED,      /* takes none; indexed, or as recovery found it */
    COLD_FILE_QUARANTINED, /* failed a write or a sync: only read, then removed */
    COLD_FILE_GOING,       /* nothing live in it: being removed, or gone, its records to be freed */
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
    uint32_t readers;                                         /* gets and copies in flight */
    uint32_t slot;                                            /* of cold->slots */
    uint32_t dead_epoch;                                      /* of the record forgotten last */
    struct cold_record_list records[COLD_RECORD_STATE_COUNT]; /* owned; in the file's order */
    struct cold_index index;                                  /* entries, while it is active */
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
    uint32_t epoch; /* of a put: cold->epoch when it came */
    int err;        /* once it is finished */
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

/* The table of subjects grows by chunks of buckets, a bucket with each new subject. */
#define COLD_SUBJECT_CHUNK_BUCKETS 4096u
#define COLD_SUBJECT_CHUNKS_MAX    256u

/*
 * Who wants room in a segment. Ordinary puts leave the last eighth of each segment alone, and room
 * for a whole one besides: for what must not wait, and for copies, without which no space would
 * come back. What must not wait leaves half of the last segment to the copies.
 */
enum cold_need { COLD_NEED_ORDINARY, COLD_NEED_BARRIER, COLD_NEED_COPY };

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
    struct cold_file *slots[KVARN_COLD_SEGMENTS_MAX]; /* borrowed; of listed and gone ones */
    uint16_t free_slots[KVARN_COLD_SEGMENTS_MAX];     /* a stack */
    uint32_t free_slot_count;
    uint32_t file_count;        /* of `files` */
    uint64_t used_bytes;        /* of `files` and of the one that is being made */
    struct cold_file_list gone; /* removed; their records are freed some a turn */

    struct cold_subject_list *subjects[COLD_SUBJECT_CHUNKS_MAX]; /* owned chunks */
    uint64_t subject_count;
    uint32_t bucket_count;

    struct cold_write_queue ready;    /* hashed, not written */
    struct cold_write_queue writing;  /* in the write in flight */
    struct cold_write_queue written;  /* not synced */
    struct cold_write_queue syncing;  /* in the sync in flight */
    struct cold_write_queue parked;   /* what must not wait, and waits: room is coming back */
    struct cold_write_queue finished; /* durable or failed; their owners are told some a turn */
    /*
     * What is forgotten is erased when all that was put by then is durable: the map that names a
     * page no more may be on its way. Puts and forgotten records count by epochs; those before
     * epoch - 1 have no put in flight.
     */
    uint32_t epoch;
    uint32_t dead_epoch;    /* of the record forgotten last */
    uint64_t epoch_puts[2]; /* in flight, by the epoch's last bit */
    uint64_t preparing;     /* jobs in flight */
    uint64_t ready_count;   /* of `ready` */
    uint64_t shed_left;     /* of `ready`: to be shed, or kept, from the first on */
    int shed_err;
    uint64_t parked_count;     /* of `parked` */
    uint64_t parked_until_ns;  /* then they fail */
    uint64_t written_bytes;    /* of `written` */
    uint64_t written_barriers; /* of `written` */
    struct kvd_file_op write_op;
    struct kvd_file_op sync_op;
    struct iovec *write_vecs; /* owned: KVD_FILE_VECS_MAX */
    uint8_t *zeros;           /* owned: a block */
    uint8_t *index_spare;     /* owned: a chunk of an index; NULL: none */
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
    struct iovec make_vec;
    uint8_t *make_block; /* owned: headers */
    uint8_t *seal_block; /* owned: what is before and behind the entries of the index */
    char make_path[KVARN_COLD_PATH_MAX + 32];
    char make_path_to[KVARN_COLD_PATH_MAX + 32];
    char reclaim_path[KVARN_COLD_PATH_MAX + 32];
    bool has_no_punch;            /* the file system cannot */
    uint64_t punch_after_ns;      /* a punch failed: none before this */
    struct cold_file *scan_file;  /* borrowed: looked at next for something to reclaim */
    uint32_t scan_left;           /* files to look at */
    struct kvd_timer *wake_timer; /* owned: for what waits for a time */

    struct cold_file *moving_from; /* being rewritten; borrowed */
    uint32_t copies;               /* on their way */
    uint64_t copy_bytes;           /* of these */
    uint64_t move_after_ns;        /* a copy failed: none before this */

    uint64_t rest_until_ns; /* ordinary puts are refused until then */
    int rest_err;
    bool is_full;         /* the limit leaves no room for ordinary puts */
    uint64_t full_bytes;  /* of what was refused last */
    uint64_t full_log_ns; /* when that was logged */
    unsigned gets;        /* in flight */
    uint64_t sync_bytes;  /* written and not synced at which a sync starts */
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

/* Go on in the next turn: nothing new happened. */
void kvd_segment_pump_again(struct cold_segment *cold);

/* Pump at a time to come, for what rests until then. */
void kvd_segment_wake_at(struct cold_segment *cold, uint64_t at_ns);

/* Run ops[0 .. count) of the task one by one; an open's descriptor is the later ones'. */
void kvd_segment_task_run(struct cold_segment *cold, struct cold_task *task, unsigned count,
    void (*done)(struct cold_task *task, int err));

/* Path of a segment; `suffix` "kvs" or "tmp". */
void kvd_segment_path(const struct cold_segment *cold, uint64_t number, const char *suffix,
    char *dst, size_t dst_bytes);

/* Refuse ordinary puts for a while: something failed. */
void kvd_segment_rest(struct cold_segment *cold, int err);

/* Note that the limit leaves no room for so many bytes: puts are refused until it does. */
void kvd_segment_fill_up(struct cold_segment *cold, uint64_t file_bytes);

/* An allocation that is charged, zeroed; NULL without memory. Freed with the same size. */
void *kvd_segment_alloc(struct cold_segment *cold, size_t bytes);
void kvd_segment_free(struct cold_segment *cold, void *memory, size_t bytes); /* accepts NULL */

/* cold_segment_record.c */

/* A record in no file, charged. NULL without memory. */
struct kvd_cold_record *kvd_segment_record_create(struct cold_segment *cold);

/* Take it out of its file, if it is in one, and free it. NULL ok. */
void kvd_segment_record_destroy(struct cold_segment *cold, struct kvd_cold_record *record);

/* Take over what a header says of a record that is in no file. */
void kvd_segment_record_describe(
    struct kvd_cold_record *record, const struct kvd_record_header *header);

/* It lies in a file from now on, live. */
void kvd_segment_record_list(struct cold_segment *cold, struct kvd_cold_record *record,
    struct cold_file *file, uint64_t offset);

/* Nobody needs it any more; it stays listed while its bytes may be found. */
void kvd_segment_record_kill(struct cold_segment *cold, struct kvd_cold_record *record);

/* The same for the record of a copy, which is to take the place that the one that moved had. */
void kvd_segment_record_kill_ghost(struct cold_segment *cold, struct kvd_cold_record *record);

/* From LIVE to MOVING, from DEAD to PUNCHING, or back: then it is first in its list. */
void kvd_segment_record_set(
    struct cold_segment *cold, struct kvd_cold_record *record, enum cold_record_state state);

/* Exchange the places of a record and its ghost; what they are otherwise stays with them. */
void kvd_segment_record_swap(
    struct cold_segment *cold, struct kvd_cold_record *a, struct kvd_cold_record *ghost);

/* What is known of its header: all but ordinals and hashes, which are 0. */
struct kvd_record_header kvd_segment_record_header(const struct kvd_cold_record *record);

/* Its bytes in the file. */
uint64_t kvd_segment_record_bytes(const struct kvd_cold_record *record);

static inline struct cold_file *kvd_segment_record_file(
    const struct cold_segment *cold, const struct kvd_cold_record *record)
{
    KVARN_ASSERT(record->state != COLD_RECORD_NOWHERE);
    return cold->slots[record->place >> COLD_PLACE_BLOCK_BITS];
}

static inline uint64_t kvd_segment_record_offset(const struct kvd_cold_record *record)
{
    return (record->place & ((1u << COLD_PLACE_BLOCK_BITS) - 1)) * (uint64_t)KVD_SEGMENT_BLOCK;
}

static inline bool kvd_segment_record_is_dead(const struct kvd_cold_record *record)
{
    return record->state >= COLD_RECORD_DEAD;
}

/* cold_segment_index.c */

/*
 * What is written makes room in memory. So that memory which is full does not stop the writing, a
 * chunk is kept for when there is no room for one, and taken again as soon as there is.
 */
void kvd_segment_index_spare(struct cold_segment *cold);

/* Note a record. Returns 0 or KVARN_ENOMEM. */
int kvd_segment_index_add(struct cold_segment *cold, struct cold_file *file,
    const struct kvd_record_header *header, uint64_t offset) KVARN_MUST_CHECK;

/* Let go of all entries. */
void kvd_segment_index_fini(struct cold_segment *cold, struct cold_index *index);

/*
 * Index and footer of a file that has records up to `end`, as stretches in cold->write_vecs, which
 * borrow from the index and from *ret_block, the caller's to free. Returns their number and bytes;
 * 0 without memory.
 */
unsigned kvd_segment_index_vecs(struct cold_segment *cold, const struct cold_file *file,
    uint8_t **ret_block, uint64_t *ret_bytes);

/* cold_segment_dir.c */

/*
 * Make the folder, or see that the one there is ours, and that nobody else uses it. Returns 0; what
 * is wrong is logged: KVARN_ECONFLICT: it holds other things, or another daemon has it;
 * KVARN_EFORBIDDEN: it is another user's, or others may read it; or as kvd_file_op_perform().
 */
int kvd_segment_dir_lock(struct cold_segment *cold) KVARN_MUST_CHECK;

/* cold_segment_write.c */

/* Take a put: hash (and compress) it, then queue it. As kvd_cold_ops.put. */
int kvd_segment_put(struct kvd_cold *cold, struct kvd_cold_put *put) KVARN_MUST_CHECK;

/* Queue a write whose header, meta and body are ready. */
void kvd_segment_write_queue(struct cold_segment *cold, struct cold_write *write);

/* Write the record that says that this end was clean. Returns 0, or KVARN_ENOMEM: it stays out. */
int kvd_segment_put_clean(struct cold_segment *cold) KVARN_MUST_CHECK;

/* Start the write, the sync or the new segment that is due. */
void kvd_segment_write_pump(struct cold_segment *cold);

/*
 * No new segment can be made: what is queued now fails in the next turns, but for what must not
 * wait and fits where it may go.
 */
void kvd_segment_write_shed(struct cold_segment *cold, int err);

/* Whether there is a segment with room for so many bytes, or one may be made. */
bool kvd_segment_has_place(
    const struct cold_segment *cold, uint64_t file_bytes, enum cold_need need);

/* Nothing is queued, written or synced, what is parked aside. */
bool kvd_segment_write_is_idle(const struct cold_segment *cold);

/* A segment failed: it is quarantined, and whatever in it is not durable counts as lost. */
void kvd_segment_file_fail(struct cold_segment *cold, struct cold_file *file, int err);

/* cold_segment_file.c */

/* A file in no list, charged, that has a slot. NULL: no memory, or no slot. */
struct cold_file *kvd_segment_file_create(struct cold_segment *cold);
void kvd_segment_file_destroy(struct cold_segment *cold, struct cold_file *file); /* accepts NULL */

/* Start making a new segment, of the size that the limit leaves. On failure it rests. */
void kvd_segment_file_make(struct cold_segment *cold);

/* Start sealing the active one, which gets no more records. Nothing may be in flight to it. */
void kvd_segment_file_seal(struct cold_segment *cold);

/* Whether an empty segment would hold a record of so many bytes. */
bool kvd_segment_file_fits(
    const struct cold_segment *cold, uint64_t file_bytes, enum cold_need need);

/* Room in a segment that takes records, NULL ok, for one more of so many bytes. */
bool kvd_segment_file_has_room(const struct cold_segment *cold, const struct cold_file *file,
    uint64_t file_bytes, enum cold_need need);

/* Whether the limit lets another segment be made. */
bool kvd_segment_file_may_make(
    const struct cold_segment *cold, uint64_t file_bytes, enum cold_need need);

/* Bytes that a file takes. */
static inline uint64_t kvd_segment_file_taken(const struct cold_file *file)
{
    return file->size_bytes - file->hole_bytes;
}

/* Bytes that the limit leaves. */
static inline uint64_t kvd_segment_free_bytes(const struct cold_segment *cold)
{
    uint64_t limit = cold->options.limit_bytes;

    return cold->used_bytes < limit ? limit - cold->used_bytes : 0;
}

/* It failed: never write or sync it again. */
void kvd_segment_file_quarantine(struct cold_segment *cold, struct cold_file *file, int err);

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

/* Something changed: all files are worth a look. */
void kvd_segment_reclaim_note(struct cold_segment *cold);

/* As kvd_cold_ops.wanted. */
uint64_t kvd_segment_wanted(const struct kvd_cold *cold);

/* cold_segment_move.c */

/* Start the copies of live records that are due, if any. */
void kvd_segment_move_pump(struct cold_segment *cold);

/* Whether a file is worth rewriting now. */
bool kvd_segment_move_is_worth(const struct cold_segment *cold, const struct cold_file *file);

/* cold_segment_subject.c */

/* Returns 0 or KVARN_ENOMEM. */
int kvd_segment_subjects_init(struct cold_segment *cold) KVARN_MUST_CHECK;

/* A record may be found by recovery from now on. Returns 0 or KVARN_ENOMEM. */
int kvd_segment_subject_add(
    struct cold_segment *cold, const struct kvd_record_header *header) KVARN_MUST_CHECK;

/* It cannot any more: its bytes are erased, and that is durable. */
void kvd_segment_subject_erased(
    struct cold_segment *cold, uint8_t type, const struct kvd_cold_id *id);

/* A tombstone is durable: keep it while its subject may be found. */
void kvd_segment_subject_bury(struct cold_segment *cold, struct kvd_cold_record *tombstone);

void kvd_segment_subjects_fini(struct cold_segment *cold);

/* cold_segment_recover.c */

/* Read the folder. Returns 0 or as kvd_cold_segment_open(). */
int kvd_segment_recover(struct cold_segment *cold, struct kvd_cold_found *found) KVARN_MUST_CHECK;

#endif
