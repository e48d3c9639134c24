/*
 * The life of a segment file: made, sealed, quarantined.
 *
 * Owner: cold_segment.c. Thread: loop only.
 *
 * A segment is made under another name and takes its own when its header is durable: so a file with
 * the name of a segment and no good header is damage, never a crash.
 */
#include "lib/base/xxh3.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/base/kill_point.h"
#include "server/base/log.h"
#include "server/cold/cold_segment_impl.h"

/* The part of a segment that only records which must not wait, and copies, may use. */
static uint64_t reserve_bytes(const struct cold_segment *cold)
{
    return kvd_segment_round(cold->options.segment_bytes / 8);
}

struct cold_file *kvd_segment_file_create(struct cold_segment *cold)
{
    struct cold_file *file =
        cold->free_slot_count == 0 ? NULL : kvd_segment_alloc(cold, sizeof(*file));

    if (file == NULL) {
        return NULL;
    }
    file->slot = cold->free_slots[--cold->free_slot_count];
    cold->slots[file->slot] = file;
    file->fd = -1;
    for (unsigned i = 0; i < COLD_RECORD_STATE_COUNT; i++) {
        TAILQ_INIT(&file->records[i]);
    }
    return file;
}

void kvd_segment_file_destroy(struct cold_segment *cold, struct cold_file *file)
{
    if (file == NULL) {
        return;
    }
    for (unsigned i = 0; i < COLD_RECORD_STATE_COUNT; i++) {
        KVARN_ASSERT(TAILQ_EMPTY(&file->records[i]));
    }
    kvd_segment_index_fini(cold, &file->index);
    cold->slots[file->slot] = NULL;
    cold->free_slots[cold->free_slot_count++] = (uint16_t)file->slot;
    kvd_segment_free(cold, file, sizeof(*file));
}

bool kvd_segment_file_fits(
    const struct cold_segment *cold, uint64_t file_bytes, enum cold_need need)
{
    uint64_t needed = KVD_SEGMENT_RECORDS_OFFSET + kvd_segment_index_bytes(1) + file_bytes +
                      (need == COLD_NEED_ORDINARY ? reserve_bytes(cold) : 0);

    return needed < cold->options.segment_bytes;
}

/* What is left of the limit is not enough for a whole segment: what there is is for copies. */
static bool is_reserve_in_use(const struct cold_segment *cold)
{
    return kvd_segment_free_bytes(cold) < cold->options.segment_bytes;
}

bool kvd_segment_file_has_room(const struct cold_segment *cold, const struct cold_file *file,
    uint64_t file_bytes, enum cold_need need)
{
    uint64_t kept = 0;

    if (file == NULL || file->state != COLD_FILE_ACTIVE ||
        (need == COLD_NEED_ORDINARY && is_reserve_in_use(cold))) {
        return false;
    }
    if (need == COLD_NEED_ORDINARY) {
        kept = reserve_bytes(cold);
    } else if (need == COLD_NEED_BARRIER && is_reserve_in_use(cold)) {
        kept = cold->options.segment_bytes / 2;
    }
    uint64_t needed =
        file->end + file_bytes + kvd_segment_index_bytes(file->index.count + 1) + kept;
    return needed < file->size_bytes; /* sealed it is smaller: by that recovery knows it */
}

/* The size that a new segment would have: the last one takes what the limit leaves. */
static uint64_t next_bytes(const struct cold_segment *cold)
{
    uint64_t room = kvd_segment_free_bytes(cold) / KVD_SEGMENT_BLOCK * KVD_SEGMENT_BLOCK;

    return room < cold->options.segment_bytes ? room : cold->options.segment_bytes;
}

bool kvd_segment_file_may_make(
    const struct cold_segment *cold, uint64_t file_bytes, enum cold_need need)
{
    uint64_t segment = cold->options.segment_bytes;
    uint64_t room = kvd_segment_free_bytes(cold);
    uint64_t size = next_bytes(cold);

    if (cold->free_slot_count < (need == COLD_NEED_ORDINARY ? 2u : 1u)) {
        return false;
    }
    if (need == COLD_NEED_ORDINARY) {
        return room >= 2 * segment;
    }
    if (need == COLD_NEED_BARRIER) {
        return room >= segment;
    }
    return size >= KVARN_COLD_SEGMENT_BYTES_MIN / 2 &&
           KVD_SEGMENT_RECORDS_OFFSET + kvd_segment_index_bytes(1) + file_bytes < size;
}

/* The segment that was made while this one filled up takes over, if there is one. */
static void active_next(struct cold_segment *cold)
{
    cold->active = cold->next;
    cold->next = NULL;
}

void kvd_segment_file_quarantine(struct cold_segment *cold, struct cold_file *file, int err)
{
    if (file->state == COLD_FILE_QUARANTINED) {
        return;
    }
    kvd_log(KVD_LOG_ERROR, "cold_quarantined", "segment=%" PRIu64 " error=%s durable=%" PRIu32,
        file->number, kvarn_err_label(err), file->durable_ordinal);
    file->state = COLD_FILE_QUARANTINED;
    cold->stats.quarantined++;
    kvd_segment_index_fini(cold, &file->index);
    if (cold->active == file) {
        active_next(cold);
    }
    kvd_segment_rest(cold, err);
}

/* Making. */

static void undo_done(struct cold_task *task, int err)
{
    (void)task;
    (void)err; /* what is left under the name of a temporary file is removed at the next start */
}

static void make_undo(struct cold_segment *cold, int fd)
{
    struct kvd_file_op *ops = cold->undo_task.ops;
    unsigned count = 0;

    if (cold->undo_task.is_running) {
        return;
    }
    if (fd >= 0) {
        ops[count++] = (struct kvd_file_op){.verb = KVD_FILE_CLOSE, .fd = fd};
    }
    ops[count++] = (struct kvd_file_op){.verb = KVD_FILE_UNLINK, .path = cold->make_path};
    kvd_segment_task_run(cold, &cold->undo_task, count, undo_done);
}

static void make_done(struct cold_task *task, int err)
{
    struct cold_segment *cold = task->cold;
    struct cold_file *file = cold->making;
    int fd = task->idx > 0 || err == 0 ? (int)task->ops[0].result : -1;

    cold->making = NULL;
    free(cold->make_block);
    cold->make_block = NULL;
    if (err != 0) {
        kvd_log(KVD_LOG_ERROR, "cold_failed", "dir=%s error=%s: no new segment", cold->dir,
            kvarn_err_label(err));
        kvd_segment_rest(cold, err);
        cold->used_bytes -= file->size_bytes;
        kvd_segment_file_destroy(cold, file);
        make_undo(cold, fd);
        kvd_segment_write_shed(cold, err); /* also what must not wait: it would wait for ever */
        return;
    }
    kvd_kill_point("cold_made");
    file->fd = fd;
    file->state = COLD_FILE_ACTIVE;
    TAILQ_INSERT_TAIL(&cold->files, file, link);
    cold->file_count++;
    KVARN_ASSERT(cold->next == NULL);
    cold->next = file;
    if (cold->active == NULL) {
        active_next(cold);
    }
    cold->stats.written_bytes += KVD_SEGMENT_RECORDS_OFFSET;
    cold->rest_until_ns = 0;
}

/* Both copies of the header, in a buffer of the making. */
static int make_header(struct cold_segment *cold, struct cold_file *file)
{
    struct kvd_segment_header header = {.number = file->number,
        .bytes = file->size_bytes,
        .salt = file->salt,
        .tier_id = cold->tier_id};

    cold->make_block = calloc(1, KVD_SEGMENT_RECORDS_OFFSET);
    if (cold->make_block == NULL) {
        return KVARN_ENOMEM;
    }
    kvd_segment_header_encode(&header, cold->make_block);
    kvd_segment_header_encode(&header, cold->make_block + KVD_SEGMENT_BLOCK);
    cold->make_vec = (struct iovec){cold->make_block, KVD_SEGMENT_RECORDS_OFFSET};
    return 0;
}

void kvd_segment_file_make(struct cold_segment *cold)
{
    struct cold_file *file = kvd_segment_file_create(cold);
    struct kvd_file_op *ops = cold->make_task.ops;

    KVARN_ASSERT(cold->making == NULL && cold->next == NULL && cold->make_block == NULL);
    if (file == NULL) {
        kvd_segment_rest(cold, KVARN_ENOMEM);
        return;
    }
    file->number = cold->number_next++;
    file->size_bytes = next_bytes(cold);
    file->end = KVD_SEGMENT_RECORDS_OFFSET;
    int err = cold->io->ops->random(cold->io, &file->salt, sizeof(file->salt));
    err = err != 0 ? err : make_header(cold, file);
    if (err != 0) {
        kvd_segment_file_destroy(cold, file);
        kvd_segment_rest(cold, err);
        return;
    }
    cold->making = file;
    cold->used_bytes += file->size_bytes;
    kvd_segment_path(cold, file->number, "tmp", cold->make_path, sizeof(cold->make_path));
    kvd_segment_path(cold, file->number, "kvs", cold->make_path_to, sizeof(cold->make_path_to));
    ops[0] = (struct kvd_file_op){.verb = KVD_FILE_OPEN,
        .path = cold->make_path,
        .flags = KVD_FILE_WRITABLE | KVD_FILE_MAKE | KVD_FILE_MUST_NEW};
    ops[1] = (struct kvd_file_op){.verb = KVD_FILE_ALLOCATE, .bytes = file->size_bytes};
    ops[2] = (struct kvd_file_op){
        .verb = KVD_FILE_WRITE, .vecs = &cold->make_vec, .vec_count = 1, .offset = 0};
    ops[3] = (struct kvd_file_op){.verb = KVD_FILE_SYNC};
    ops[4] = (struct kvd_file_op){
        .verb = KVD_FILE_RENAME, .path = cold->make_path, .path_to = cold->make_path_to};
    ops[5] = (struct kvd_file_op){.verb = KVD_FILE_SYNC_DIR, .path = cold->dir};
    kvd_segment_task_run(cold, &cold->make_task, 6, make_done);
}

/* Sealing. */

static void seal_done(struct cold_task *task, int err)
{
    struct cold_segment *cold = task->cold;
    struct cold_file *file = cold->sealing;

    cold->sealing = NULL;
    free(cold->seal_block);
    cold->seal_block = NULL;
    /* Once the first sync is done the records are durable, whatever became of the file's size. */
    if (task->idx >= 2 || err == 0) {
        file->durable_ordinal = file->ordinal_next;
    }
    if (err != 0) {
        kvd_segment_file_quarantine(cold, file, err);
        return;
    }
    active_next(cold);
    kvd_kill_point("cold_sealed");
    file->state = COLD_FILE_SEALED;
    cold->used_bytes -= file->size_bytes - task->ops[2].bytes;
    file->size_bytes = task->ops[2].bytes;
    kvd_segment_index_fini(cold, &file->index);
}

void kvd_segment_file_seal(struct cold_segment *cold)
{
    struct cold_file *file = cold->active;
    struct kvd_file_op *ops = cold->seal_task.ops;
    uint64_t bytes = 0;

    KVARN_ASSERT(file != NULL && !cold->is_writing && !cold->is_syncing);
    KVARN_ASSERT(STAILQ_EMPTY(&cold->written) && cold->seal_block == NULL);
    /* Nothing is written meanwhile, so that the stretches of writes are free. */
    unsigned vec_count = kvd_segment_index_vecs(cold, file, &cold->seal_block, &bytes);
    if (vec_count == 0) {
        /* It stays as it is, and the next start scans it. */
        kvd_segment_file_quarantine(cold, file, KVARN_ENOMEM);
        return;
    }
    cold->sealing = file;
    cold->stats.written_bytes += bytes;
    ops[0] = (struct kvd_file_op){.verb = KVD_FILE_WRITE,
        .fd = file->fd,
        .vecs = cold->write_vecs,
        .vec_count = vec_count,
        .offset = file->end};
    ops[1] = (struct kvd_file_op){.verb = KVD_FILE_SYNC, .fd = file->fd};
    ops[2] =
        (struct kvd_file_op){.verb = KVD_FILE_RESIZE, .fd = file->fd, .bytes = file->end + bytes};
    ops[3] = (struct kvd_file_op){.verb = KVD_FILE_SYNC, .fd = file->fd};
    kvd_segment_task_run(cold, &cold->seal_task, 4, seal_done);
}
