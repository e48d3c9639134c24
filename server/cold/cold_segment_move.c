/*
 * Rewriting: what is left of files that are mostly dead moves to the segment that is being written.
 *
 * Owner: cold_segment.c. Thread: loop only, but for check_run() on a worker.
 *
 * Each live record is copied with the sequence that it has, so that recovery ranks both copies
 * alike, and the old file goes only when it holds nothing live: nothing is lost, and what is older
 * stays older.
 */
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/base/kill_point.h"
#include "server/cold/cold_segment_impl.h"
#include "server/cold/cold_segment_scan.h"

/* Copies on their way: many small ones share a sync, large ones little memory. */
#define COPIES_MAX     16u
#define COPY_BYTES_MAX (UINT64_C(8) << 20)

/* After a copy that failed for want of room or memory. */
#define MOVE_PAUSE_NS UINT64_C(1000000000)

/* A copy on its way: read, checked, then put to the queue of writes. */
struct cold_copy {
    struct kvd_job job;             /* first: the worker's handle */
    struct cold_segment *cold;      /* borrowed */
    struct kvd_cold_record *record; /* borrowed; stays listed while file->readers counts us */
    uint64_t salt;                  /* of the file where it lies */
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

/* The record stays where it is. */
static void copy_end(struct cold_segment *cold, struct kvd_cold_record *record, uint64_t bytes)
{
    struct cold_file *file = kvd_segment_record_file(cold, record);

    KVARN_ASSERT(file->readers > 0 && cold->copies > 0 && cold->copy_bytes >= bytes);
    file->readers--;
    cold->copies--;
    cold->copy_bytes -= bytes;
    if (record->state == COLD_RECORD_MOVING) {
        kvd_segment_record_set(cold, record, COLD_RECORD_LIVE);
    }
}

static void moving_pause(struct cold_segment *cold)
{
    cold->moving_from = NULL;
    cold->move_after_ns = cold->io->ops->now_ns(cold->io) + MOVE_PAUSE_NS;
}

/* It could not be read. */
static void copy_fail(struct cold_copy *copy, int err)
{
    struct cold_segment *cold = copy->cold;
    struct cold_file *file = kvd_segment_record_file(cold, copy->record);

    cold->stats.corrupt += err == KVARN_ECORRUPT ? 1 : 0;
    file->is_stuck = true; /* what cannot be read stays where it is until it is forgotten */
    if (cold->moving_from == file) {
        cold->moving_from = NULL;
    }
    copy_end(cold, copy->record, copy->write->buffer_bytes);
    copy_write_free(cold, copy->write);
    free(copy);
    kvd_segment_pump_soon(cold);
}

static void check_run(struct kvd_job *job, void *scratch)
{
    struct cold_copy *copy = (struct cold_copy *)(void *)job;
    struct kvd_record_header *header = &copy->write->header;
    struct kvd_record_header found;
    size_t copy_bytes = (size_t)kvd_record_copy_bytes(header->head_bytes, header->body_bytes);

    (void)scratch;
    copy->err = kvd_record_check(copy->write->buffer, header, copy->salt, &found);
    if (copy->err != 0 && (header->flags & KVD_RECORD_TWICE) != 0) {
        memmove(copy->write->buffer, copy->write->buffer + copy_bytes, copy_bytes);
        copy->err = kvd_record_check(copy->write->buffer, header, copy->salt, &found);
    }
    if (copy->err == 0) {
        header->head_hash = found.head_hash;
        header->body_hash = found.body_hash;
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
    size_t bytes = (size_t)kvd_segment_record_bytes(record);

    if (kvd_budget_charge(cold->budget, KVD_BUDGET_COLD, sizeof(struct cold_write) + bytes) != 0) {
        return NULL;
    }
    struct cold_write *write = calloc(1, sizeof(*write));
    struct kvd_cold_record *ghost = kvd_segment_record_create(cold);
    uint8_t *buffer = malloc(bytes);
    if (write == NULL || ghost == NULL || buffer == NULL) {
        kvd_segment_record_destroy(cold, ghost);
        free(write);
        free(buffer);
        kvd_budget_release(cold->budget, KVD_BUDGET_COLD, sizeof(*write) + bytes);
        return NULL;
    }
    write->cold = cold;
    write->record = ghost;
    write->copied = record;
    write->header = kvd_segment_record_header(record);
    write->buffer = buffer;
    write->buffer_bytes = bytes;
    return write;
}

/* Move one live record of the file that is being rewritten. Returns 0 or KVARN_ENOMEM. */
static int copy_start(struct cold_segment *cold, struct kvd_cold_record *record)
{
    struct cold_file *file = kvd_segment_record_file(cold, record);
    struct cold_copy *copy = calloc(1, sizeof(*copy));
    struct cold_write *write = copy == NULL ? NULL : copy_write_create(cold, record);

    if (write == NULL) {
        free(copy);
        return KVARN_ENOMEM;
    }
    copy->cold = cold;
    copy->record = record;
    copy->salt = file->salt;
    copy->write = write;
    copy->vec = (struct iovec){write->buffer, write->buffer_bytes};
    copy->op = (struct kvd_file_op){.verb = KVD_FILE_READ,
        .fd = file->fd,
        .vecs = &copy->vec,
        .vec_count = 1,
        .offset = kvd_segment_record_offset(record),
        .ctx = copy,
        .done = copy_read_cb};
    kvd_segment_record_set(cold, record, COLD_RECORD_MOVING);
    file->readers++;
    cold->copies++;
    cold->copy_bytes += write->buffer_bytes;
    cold->io->ops->file_submit(cold->io, &copy->op);
    return 0;
}

void kvd_segment_copy_done(struct cold_write *write, int err)
{
    struct cold_segment *cold = write->cold;
    struct kvd_cold_record *ghost = write->record;
    struct kvd_cold_record *record = write->copied;

    kvd_kill_point("cold_moved");
    copy_end(cold, record, write->buffer_bytes);
    write->meta = NULL; /* lies in the buffer */
    write->meta_bytes = 0;
    if (err != 0) {
        moving_pause(cold); /* no room, or a disk that fails */
    }
    if (ghost->state == COLD_RECORD_NOWHERE) {
        return; /* it never had a place */
    }
    write->record = NULL;
    kvd_segment_record_kill_ghost(cold, ghost);
    if (err == 0) {
        cold->stats.rewritten_bytes += write->file_bytes;
        kvd_segment_record_swap(cold, record, ghost); /* who holds it finds it in its new place */
    }
}

bool kvd_segment_move_is_worth(const struct cold_segment *cold, const struct cold_file *file)
{
    bool is_closed = file->state == COLD_FILE_SEALED || file->state == COLD_FILE_QUARANTINED;
    uint64_t room = kvd_segment_free_bytes(cold);
    uint64_t segment = cold->options.segment_bytes;
    uint64_t live = file->live_bytes;

    if (!is_closed || file->is_stuck || TAILQ_EMPTY(&file->records[COLD_RECORD_LIVE])) {
        return false;
    }
    if (room >= 3 * segment) {
        return live < file->size_bytes / 2; /* the segment that it takes is not missed */
    }
    /* Little room is left: only what yields more of it than it takes, and comes to its end. */
    if (cold->active != NULL && cold->active->state == COLD_FILE_ACTIVE) {
        room += cold->active->size_bytes - cold->active->end;
    }
    bool is_punched = file->state == COLD_FILE_SEALED && !cold->has_no_punch;
    uint64_t taken = kvd_segment_file_taken(file) - (is_punched ? file->dead_bytes : 0);
    return live < taken / 2 && live + segment / 8 < room;
}

void kvd_segment_move_pump(struct cold_segment *cold)
{
    uint64_t now_ns = cold->io->ops->now_ns(cold->io);
    /* Puts go first, but never so that nothing moves. */
    unsigned copies_max = STAILQ_EMPTY(&cold->ready) ? COPIES_MAX : 1;

    while (cold->moving_from != NULL && now_ns >= cold->rest_until_ns &&
           now_ns >= cold->move_after_ns && cold->copies < copies_max &&
           cold->copy_bytes < COPY_BYTES_MAX) {
        struct kvd_cold_record *record = TAILQ_FIRST(&cold->moving_from->records[COLD_RECORD_LIVE]);
        if (record == NULL) {
            cold->moving_from = NULL; /* it will be removed when the last copy has arrived */
        } else if (copy_start(cold, record) != 0) {
            moving_pause(cold);
        }
    }
}
