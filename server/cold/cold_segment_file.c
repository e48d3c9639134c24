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

/* First room of an index. */
#define INDEX_ROOM_MIN (16 * 1024)

/* The part of a segment that only records which must not wait, and copies, may use. */
static uint64_t reserve_bytes(const struct cold_segment *cold)
{
    return kvd_segment_round(cold->options.segment_bytes / 8);
}

void kvd_segment_file_destroy(struct cold_file *file)
{
    if (file != NULL) {
        KVARN_ASSERT(LIST_EMPTY(&file->records));
        free(file->index);
        free(file);
    }
}

bool kvd_segment_file_fits(
    const struct cold_segment *cold, uint64_t file_bytes, bool may_use_reserve)
{
    uint64_t needed = KVD_SEGMENT_RECORDS_OFFSET + kvd_segment_index_bytes(1) + file_bytes +
                      (may_use_reserve ? 0 : reserve_bytes(cold));

    return needed < cold->options.segment_bytes;
}

bool kvd_segment_file_has_room(
    const struct cold_segment *cold, uint64_t file_bytes, bool may_use_reserve)
{
    const struct cold_file *file = cold->active;

    if (file == NULL || file->state != COLD_FILE_ACTIVE) {
        return false;
    }
    uint64_t entries = file->index_bytes / KVD_INDEX_ENTRY_BYTES;
    uint64_t needed = file->end + file_bytes + kvd_segment_index_bytes(entries + 1) +
                      (may_use_reserve ? 0 : reserve_bytes(cold));
    return needed < file->size_bytes; /* sealed it is smaller: by that recovery knows it */
}

bool kvd_segment_file_may_make(const struct cold_segment *cold, bool may_use_reserve)
{
    uint64_t segment = cold->options.segment_bytes;
    uint64_t needed = kvd_segment_used_bytes(cold) + segment + (may_use_reserve ? 0 : segment);
    const struct cold_file *file;
    unsigned count = 0;

    TAILQ_FOREACH(file, &cold->files, link)
    {
        count++;
    }
    return needed <= cold->options.limit_bytes && count + 1 < KVARN_COLD_SEGMENTS_MAX;
}

int kvd_segment_file_index_add(
    struct cold_file *file, const struct kvd_record_header *header, uint64_t offset)
{
    if (file->index_bytes + KVD_INDEX_ENTRY_BYTES > file->index_room) {
        uint64_t room = file->index_room == 0 ? INDEX_ROOM_MIN : 2 * file->index_room;
        uint8_t *index = realloc(file->index, room);
        if (index == NULL) {
            return KVARN_ENOMEM;
        }
        file->index = index;
        file->index_room = room;
    }
    kvd_index_entry_encode(header, file->salt, offset, file->index + file->index_bytes);
    file->index_bytes += KVD_INDEX_ENTRY_BYTES;
    return 0;
}

uint8_t *kvd_segment_file_index_build(
    const struct cold_segment *cold, const struct cold_file *file, uint64_t *ret_bytes)
{
    uint64_t bytes = kvd_segment_index_bytes(file->index_bytes / KVD_INDEX_ENTRY_BYTES);
    uint8_t *block = calloc(1, bytes);

    if (block == NULL) {
        return NULL;
    }
    struct kvd_record_header header = {.type = KVD_COLD_INDEX,
        .ordinal = file->ordinal_next,
        .durable_ordinal = file->durable_ordinal,
        .body_bytes = file->index_bytes,
        .raw_bytes = file->index_bytes,
        .head_hash = XXH3_64bits("", 0),
        .body_hash = XXH3_64bits(file->index, file->index_bytes)};
    struct kvd_segment_footer footer = {.index_offset = file->end,
        .index_bytes = bytes - KVD_SEGMENT_BLOCK,
        .number = file->number,
        .salt = file->salt,
        .tier_id = cold->tier_id};
    kvd_record_header_encode(&header, file->salt, block);
    if (file->index_bytes > 0) {
        memcpy(block + kvd_record_body_offset(0), file->index, file->index_bytes);
    }
    kvd_segment_footer_encode(&footer, block + bytes - KVD_SEGMENT_BLOCK);
    *ret_bytes = bytes;
    return block;
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
    free(file->index);
    file->index = NULL;
    file->index_bytes = 0;
    file->index_room = 0;
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
        kvd_segment_file_destroy(file);
        make_undo(cold, fd);
        kvd_segment_write_shed(cold, err); /* also what must not wait: it would wait for ever */
        return;
    }
    kvd_kill_point("cold_made");
    file->fd = fd;
    file->state = COLD_FILE_ACTIVE;
    file->end = KVD_SEGMENT_RECORDS_OFFSET;
    TAILQ_INSERT_TAIL(&cold->files, file, link);
    KVARN_ASSERT(cold->next == NULL);
    cold->next = file;
    if (cold->active == NULL) {
        active_next(cold);
    }
    cold->stats.written_bytes += KVD_SEGMENT_RECORDS_OFFSET;
    cold->stats.is_resting = false;
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
    struct cold_file *file = calloc(1, sizeof(*file));
    struct kvd_file_op *ops = cold->make_task.ops;

    KVARN_ASSERT(cold->making == NULL && cold->next == NULL && cold->make_block == NULL);
    if (file == NULL) {
        kvd_segment_rest(cold, KVARN_ENOMEM);
        return;
    }
    LIST_INIT(&file->records);
    file->number = cold->number_next++;
    file->size_bytes = cold->options.segment_bytes;
    file->fd = -1;
    int err = cold->io->ops->random(cold->io, &file->salt, sizeof(file->salt));
    err = err != 0 ? err : make_header(cold, file);
    if (err != 0) {
        free(file);
        kvd_segment_rest(cold, err);
        return;
    }
    cold->making = file;
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
    file->size_bytes = task->ops[2].bytes;
    free(file->index);
    file->index = NULL;
    file->index_bytes = 0;
    file->index_room = 0;
}

void kvd_segment_file_seal(struct cold_segment *cold)
{
    struct cold_file *file = cold->active;
    struct kvd_file_op *ops = cold->seal_task.ops;
    uint64_t bytes;

    KVARN_ASSERT(file != NULL && !cold->is_writing && !cold->is_syncing);
    KVARN_ASSERT(STAILQ_EMPTY(&cold->written) && cold->seal_block == NULL);
    cold->seal_block = kvd_segment_file_index_build(cold, file, &bytes);
    if (cold->seal_block == NULL) {
        /* It stays as it is, and the next start scans it. */
        kvd_segment_file_quarantine(cold, file, KVARN_ENOMEM);
        return;
    }
    cold->sealing = file;
    cold->seal_vec = (struct iovec){cold->seal_block, bytes};
    cold->stats.written_bytes += bytes;
    ops[0] = (struct kvd_file_op){.verb = KVD_FILE_WRITE,
        .fd = file->fd,
        .vecs = &cold->seal_vec,
        .vec_count = 1,
        .offset = file->end};
    ops[1] = (struct kvd_file_op){.verb = KVD_FILE_SYNC, .fd = file->fd};
    ops[2] =
        (struct kvd_file_op){.verb = KVD_FILE_RESIZE, .fd = file->fd, .bytes = file->end + bytes};
    ops[3] = (struct kvd_file_op){.verb = KVD_FILE_SYNC, .fd = file->fd};
    kvd_segment_task_run(cold, &cold->seal_task, 4, seal_done);
}
