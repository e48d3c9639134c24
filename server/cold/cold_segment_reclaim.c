/*
 * Space comes back: records that nobody needs are punched out, files without live ones removed,
 * those below half live rewritten.
 *
 * Owner: cold_segment.c. Thread: loop only, but for check_run() on a worker.
 *
 * A rewrite copies each live record with the sequence that it has, so that recovery ranks both
 * copies alike, and the old file goes only when it holds nothing live: nothing is lost, and what is
 * older stays older. What is erased counts as erased once that is durable.
 */
#include "lib/base/xxh3.h"
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/base/kill_point.h"
#include "server/cold/cold_segment_impl.h"
#include "server/cold/cold_segment_scan.h"

/* Dead bytes that wait before a punch is made while puts are coming in. */
#define PUNCH_BYTES_MIN (UINT64_C(4) << 20)

/* Records of one punch; its last step is the sync. */
#define PUNCH_RECORDS_MAX (KVD_COLD_TASK_STEPS_MAX - 1)

void kvd_segment_forget(struct kvd_cold *base, struct kvd_cold_record *record)
{
    struct cold_segment *cold = kvd_segment_of(base);

    if (record == NULL) {
        return;
    }
    kvd_segment_record_kill(cold, record);
    if (!cold->is_closing) {
        kvd_segment_pump_soon(cold);
    }
}

/* A record's bytes are erased for good. */
static void record_erased(struct cold_segment *cold, struct kvd_cold_record *record)
{
    struct kvd_record_header header = record->header;

    kvd_segment_record_destroy(cold, record);
    kvd_segment_subject_erased(cold, &header);
}

/* Punching. */

static void punch_done(struct cold_task *task, int err)
{
    struct cold_segment *cold = task->cold;
    struct cold_file *file = cold->reclaiming;
    struct kvd_cold_record *record;
    struct kvd_cold_record *next;

    cold->reclaiming = NULL;
    kvd_kill_point("cold_punched");
    if (err != 0 && task->idx < task->count - 1) {
        cold->has_no_punch = true; /* the file system cannot: rewrites and removals are left */
    } else if (err != 0) {
        kvd_segment_file_fail(cold, file, err); /* its sync failed */
    }
    LIST_FOREACH_SAFE(record, &file->records, link, next)
    {
        if (!record->is_punching) {
            continue;
        }
        record->is_punching = false;
        if (err == 0) {
            file->hole_bytes += kvd_record_file_bytes(&record->header);
            record_erased(cold, record);
        }
    }
}

static void punch_start(struct cold_segment *cold, struct cold_file *file)
{
    struct kvd_file_op *ops = cold->reclaim_task.ops;
    struct kvd_cold_record *record;
    unsigned count = 0;

    LIST_FOREACH(record, &file->records, link)
    {
        if (!record->is_forgotten) {
            continue;
        }
        record->is_punching = true;
        ops[count++] = (struct kvd_file_op){.verb = KVD_FILE_PUNCH,
            .fd = file->fd,
            .offset = record->offset,
            .bytes = kvd_record_file_bytes(&record->header)};
        if (count == PUNCH_RECORDS_MAX) {
            break;
        }
    }
    KVARN_ASSERT(count > 0);
    ops[count++] = (struct kvd_file_op){.verb = KVD_FILE_SYNC, .fd = file->fd};
    cold->reclaiming = file;
    kvd_segment_task_run(cold, &cold->reclaim_task, count, punch_done);
}

/* Removing. */

static void remove_done(struct cold_task *task, int err)
{
    struct cold_segment *cold = task->cold;
    struct cold_file *file = cold->reclaiming;

    cold->reclaiming = NULL;
    kvd_kill_point("cold_removed");
    if (err != 0 && task->idx <= 1) {
        file->state = COLD_FILE_QUARANTINED; /* a crash may bring it back: left to the next start */
        file->is_unremovable = true;
        return;
    }
    TAILQ_REMOVE(&cold->files, file, link);
    while (!LIST_EMPTY(&file->records)) {
        struct kvd_cold_record *record = LIST_FIRST(&file->records);
        struct kvd_record_header header = record->header;
        kvd_segment_record_destroy(cold, record);
        kvd_segment_subject_erased(cold, &header);
    }
    kvd_segment_file_destroy(file);
}

static void remove_start(struct cold_segment *cold, struct cold_file *file)
{
    struct kvd_file_op *ops = cold->reclaim_task.ops;

    kvd_segment_path(cold, file->number, "kvs", cold->reclaim_path, sizeof(cold->reclaim_path));
    file->state = COLD_FILE_GOING;
    if (cold->moving_from == file) {
        cold->moving_from = NULL; /* nothing is left to move */
    }
    ops[0] = (struct kvd_file_op){.verb = KVD_FILE_UNLINK, .path = cold->reclaim_path};
    ops[1] = (struct kvd_file_op){.verb = KVD_FILE_SYNC_DIR, .path = cold->dir};
    /* The space comes back with the last descriptor, which may take the kernel a while. */
    ops[2] = (struct kvd_file_op){.verb = KVD_FILE_CLOSE, .fd = file->fd};
    cold->reclaiming = file;
    kvd_segment_task_run(cold, &cold->reclaim_task, 3, remove_done);
}

/* Rewriting. */

/* A copy on its way: read, checked, then put to the queue of writes. */
struct cold_copy {
    struct kvd_job job;             /* first: the worker's handle */
    struct cold_segment *cold;      /* borrowed */
    struct kvd_cold_record *record; /* borrowed; stays listed while file->readers counts us */
    struct cold_file *file;         /* borrowed */
    struct cold_write *write;       /* owned until it is queued */
    struct kvd_file_op op;
    struct iovec vec;
    int err;
};

static void copy_write_free(struct cold_segment *cold, struct cold_write *write)
{
    kvd_segment_record_destroy(cold, write->record);
    kvd_budget_release(cold->budget, KVD_BUDGET_COLD, sizeof(*write) + write->buffer_bytes);
    free(write->buffer);
    free(write);
}

static void copy_fail(struct cold_copy *copy, int err)
{
    struct cold_segment *cold = copy->cold;

    cold->stats.corrupt += err == KVARN_ECORRUPT ? 1 : 0;
    copy->file->is_stuck = true; /* what cannot be read stays where it is until it is forgotten */
    copy_write_free(cold, copy->write);
    cold->is_copying = false;
    cold->moving_from = NULL;
    KVARN_ASSERT(copy->file->readers > 0);
    copy->file->readers--;
    free(copy);
    kvd_segment_pump_soon(cold);
}

static void check_run(struct kvd_job *job, void *scratch)
{
    struct cold_copy *copy = (struct cold_copy *)(void *)job;
    struct kvd_record_header found;
    const struct kvd_record_header *header = &copy->write->header;
    size_t copy_bytes = (size_t)kvd_record_copy_bytes(header->head_bytes, header->body_bytes);

    (void)scratch;
    copy->err = kvd_record_check(copy->write->buffer, header, copy->file->salt, &found);
    if (copy->err != 0 && (header->flags & KVD_RECORD_TWICE) != 0) {
        memmove(copy->write->buffer, copy->write->buffer + copy_bytes, copy_bytes);
        copy->err = kvd_record_check(copy->write->buffer, header, copy->file->salt, &found);
    }
}

static void check_done(struct kvd_job *job)
{
    struct cold_copy *copy = (struct cold_copy *)(void *)job;
    struct cold_segment *cold = copy->cold;
    struct cold_write *write = copy->write;

    if (copy->err != 0) {
        copy_fail(copy, copy->err);
        return;
    }
    /* The buffer holds meta and body side by side; only the header is made anew. */
    write->meta = write->buffer;
    write->meta_bytes = (size_t)kvd_record_body_offset(write->header.head_bytes);
    write->single = (struct iovec){write->buffer + write->meta_bytes, write->header.body_bytes};
    write->vecs = &write->single;
    write->vec_count = write->header.body_bytes > 0 ? 1 : 0;
    cold->stats.queued_bytes += write->header.raw_bytes + write->meta_bytes;
    kvd_segment_write_queue(cold, write);
    free(copy); /* the reader goes when the copy is durable: until then the record stays listed */
}

static void copy_read_cb(struct kvd_file_op *op)
{
    struct cold_copy *copy = op->ctx;

    if (op->result != (int64_t)copy->vec.iov_len) {
        copy_fail(copy, op->result < 0 ? (int)op->result : KVARN_ECORRUPT);
        return;
    }
    copy->job.run = check_run;
    copy->job.done = check_done;
    kvd_workers_submit(copy->cold->workers, &copy->job);
}

static struct cold_write *copy_write_create(
    struct cold_segment *cold, struct kvd_cold_record *record)
{
    size_t bytes = (size_t)kvd_record_file_bytes(&record->header);
    struct cold_write *write = calloc(1, sizeof(*write));
    struct kvd_cold_record *ghost = kvd_segment_record_create(cold);
    uint8_t *buffer = malloc(bytes);

    if (write == NULL || ghost == NULL || buffer == NULL ||
        kvd_budget_charge(cold->budget, KVD_BUDGET_COLD, sizeof(*write) + bytes) != 0) {
        kvd_segment_record_destroy(cold, ghost);
        free(write);
        free(buffer);
        return NULL;
    }
    write->cold = cold;
    write->record = ghost;
    write->copied = record;
    write->header = record->header;
    write->buffer = buffer;
    write->buffer_bytes = bytes;
    return write;
}

/* Move one live record of the file that is being rewritten. */
static void copy_start(struct cold_segment *cold, struct kvd_cold_record *record)
{
    struct cold_copy *copy = calloc(1, sizeof(*copy));
    struct cold_write *write = copy == NULL ? NULL : copy_write_create(cold, record);

    if (write == NULL) {
        free(copy);
        cold->moving_from = NULL; /* without memory: another time */
        return;
    }
    copy->cold = cold;
    copy->record = record;
    copy->file = record->file;
    copy->write = write;
    copy->vec = (struct iovec){write->buffer, write->buffer_bytes};
    copy->op = (struct kvd_file_op){.verb = KVD_FILE_READ,
        .fd = record->file->fd,
        .vecs = &copy->vec,
        .vec_count = 1,
        .offset = record->offset,
        .ctx = copy,
        .done = copy_read_cb};
    record->file->readers++;
    cold->is_copying = true;
    cold->io->ops->file_submit(cold->io, &copy->op);
}

/* Exchange the places of two records: each is listed and counted where the other was. */
static void places_swap(
    struct cold_segment *cold, struct kvd_cold_record *a, struct kvd_cold_record *b)
{
    struct kvd_cold_record old = *a;
    struct cold_file *b_file = b->file;

    KVARN_ASSERT(kvd_record_file_bytes(&a->header) == kvd_record_file_bytes(&b->header));
    (void)cold;
    LIST_REMOVE(a, link);
    LIST_REMOVE(b, link);
    a->file = b_file;
    a->offset = b->offset;
    a->header = b->header;
    b->file = old.file;
    b->offset = old.offset;
    b->header = old.header;
    LIST_INSERT_HEAD(&a->file->records, a, link);
    LIST_INSERT_HEAD(&b->file->records, b, link);
    uint64_t bytes = kvd_record_file_bytes(&a->header);
    if (a->is_forgotten != b->is_forgotten) {
        struct cold_file *live = a->is_forgotten ? b->file : a->file;
        struct cold_file *dead = a->is_forgotten ? a->file : b->file;
        live->live_bytes += bytes;
        live->dead_bytes -= bytes;
        dead->live_bytes -= bytes;
        dead->dead_bytes += bytes;
    }
}

void kvd_segment_copy_done(struct cold_write *write, int err)
{
    struct cold_segment *cold = write->cold;
    struct kvd_cold_record *ghost = write->record;
    struct kvd_cold_record *record = write->copied;

    kvd_kill_point("cold_moved");
    KVARN_ASSERT(record->file->readers > 0);
    record->file->readers--;
    cold->is_copying = false;
    write->meta = NULL; /* lies in the buffer */
    write->meta_bytes = 0;
    if (ghost->file == NULL) {
        cold->moving_from = NULL; /* shed before it had a place */
        return;
    }
    write->record = NULL;
    kvd_segment_record_kill(cold, ghost);
    if (err != 0) {
        cold->moving_from = NULL;
        return;
    }
    cold->stats.rewritten_bytes += write->file_bytes;
    places_swap(cold, record, ghost); /* who holds the record finds it in its new place */
}

static struct kvd_cold_record *live_first(const struct cold_file *file)
{
    struct kvd_cold_record *record;

    LIST_FOREACH(record, &file->records, link)
    {
        if (!record->is_forgotten) {
            break;
        }
    }
    return record;
}

/* A sealed file of which less than half is live, worth copying. */
static struct cold_file *rewrite_pick(const struct cold_segment *cold)
{
    struct cold_file *file;

    TAILQ_FOREACH(file, &cold->files, link)
    {
        bool is_closed = file->state == COLD_FILE_SEALED || file->state == COLD_FILE_QUARANTINED;
        if (is_closed && !file->is_stuck && file->live_bytes > 0 &&
            file->live_bytes < file->size_bytes / 2) {
            break;
        }
    }
    return file;
}

static void rewrite_pump(struct cold_segment *cold)
{
    bool is_resting = cold->io->ops->now_ns(cold->io) < cold->rest_until_ns;

    if (cold->is_copying || is_resting || !STAILQ_EMPTY(&cold->ready)) {
        return;
    }
    if (cold->moving_from == NULL) {
        cold->moving_from = rewrite_pick(cold);
    }
    if (cold->moving_from == NULL) {
        return;
    }
    struct kvd_cold_record *record = live_first(cold->moving_from);
    if (record == NULL) {
        cold->moving_from = NULL; /* empty: it will be removed */
        kvd_segment_pump_soon(cold);
        return;
    }
    copy_start(cold, record);
}

/* What can be removed or punched now: a file to remove first. */
static bool reclaim_one(struct cold_segment *cold)
{
    bool is_quiet = kvd_segment_write_is_idle(cold);
    struct cold_file *file;

    TAILQ_FOREACH(file, &cold->files, link)
    {
        bool is_closed = file->state == COLD_FILE_SEALED || file->state == COLD_FILE_QUARANTINED;
        bool is_used = file->readers > 0 || file == cold->sealing ||
                       (cold->is_writing && file == cold->writing_file) ||
                       (cold->is_syncing && file == cold->syncing_file);
        if (is_closed && !is_used && file->live_bytes == 0 && !file->is_unremovable) {
            remove_start(cold, file);
            return true;
        }
    }
    TAILQ_FOREACH(file, &cold->files, link)
    {
        /* Never where records are still added: without an index a hole would look like damage. */
        if (file->state == COLD_FILE_SEALED && !cold->has_no_punch && file->readers == 0 &&
            file->dead_bytes > 0 && (is_quiet || file->dead_bytes >= PUNCH_BYTES_MIN)) {
            punch_start(cold, file);
            return true;
        }
    }
    return false;
}

void kvd_segment_reclaim_pump(struct cold_segment *cold)
{
    if (!cold->reclaim_task.is_running) {
        (void)reclaim_one(cold);
    }
    rewrite_pump(cold);
}
