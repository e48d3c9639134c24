/*
 * Space comes back: records that nobody needs are punched out, files without live ones removed.
 *
 * Owner: cold_segment.c. Thread: loop only.
 *
 * What is erased counts as erased once that is durable. A turn looks at some files and frees some
 * records, and the next one goes on (SEMANTICS.md 18): each record is looked at once for what
 * becomes of it, however many there are.
 */
#include <inttypes.h>

#include "lib/base/assert.h"
#include "server/base/kill_point.h"
#include "server/base/log.h"
#include "server/cold/cold_segment_impl.h"

/* Dead bytes that wait before a punch is made while puts are coming in: at most, and by segment. */
#define PUNCH_BYTES_MIN (UINT64_C(4) << 20)

/* Stretches of one punch; its last step is the sync. */
#define PUNCH_STRETCHES_MAX (KVD_COLD_TASK_STEPS_MAX - 1)

/* A punch that failed is tried again after this. */
#define PUNCH_PAUSE_NS UINT64_C(1000000000)

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

void kvd_segment_reclaim_note(struct cold_segment *cold)
{
    cold->scan_left = cold->file_count;
}

/* Go on to the next epoch where something forgotten waits for it and no put of the last is left. */
static void epoch_pump(struct cold_segment *cold)
{
    while (cold->epoch - cold->dead_epoch < 2 && cold->epoch_puts[(cold->epoch - 1) & 1] == 0) {
        cold->epoch++;
        kvd_segment_reclaim_note(cold);
    }
}

/* All that was put before the end of an epoch is durable, or failed. */
static bool is_past(const struct cold_segment *cold, uint32_t epoch)
{
    return (int32_t)(cold->epoch - epoch) >= 2;
}

/* A record's bytes are erased for good. */
static void record_erased(struct cold_segment *cold, struct kvd_cold_record *record)
{
    struct kvd_cold_id id = record->id;
    uint8_t type = record->type;

    kvd_segment_record_destroy(cold, record);
    kvd_segment_subject_erased(cold, type, &id);
}

/* Punching. */

/* The file system cannot, or it failed and is asked again in a while. */
static void punch_failed(struct cold_segment *cold, const struct cold_file *file, int err)
{
    cold->has_no_punch = err == KVARN_EUNSUPPORTED; /* rewrites and removals are left */
    cold->punch_after_ns = cold->io->ops->now_ns(cold->io) + PUNCH_PAUSE_NS;
    kvd_log(KVD_LOG_WARN, "cold_punch_failed", "segment=%" PRIu64 " error=%s: %s", file->number,
        kvarn_err_label(err), cold->has_no_punch ? "never again" : "tried again");
}

static void punch_done(struct cold_task *task, int err)
{
    struct cold_segment *cold = task->cold;
    struct cold_file *file = cold->reclaiming;
    struct kvd_cold_record *record;

    cold->reclaiming = NULL;
    kvd_kill_point("cold_punched");
    if (err != 0 && task->idx < task->count - 1) {
        punch_failed(cold, file, err);
    } else if (err != 0) {
        kvd_segment_file_fail(cold, file, err); /* its sync failed */
    }
    while ((record = TAILQ_FIRST(&file->records[COLD_RECORD_PUNCHING])) != NULL) {
        if (err != 0) {
            kvd_segment_record_set(cold, record, COLD_RECORD_DEAD);
            continue;
        }
        uint64_t bytes = kvd_segment_record_bytes(record);
        file->hole_bytes += bytes;
        cold->used_bytes -= bytes;
        record_erased(cold, record);
    }
}

/* Let a stretch grow by a record that lies right before or behind it. */
static bool stretch_takes(
    struct kvd_file_op *op, const struct kvd_cold_record *record, uint64_t bytes)
{
    uint64_t offset = kvd_segment_record_offset(record);

    if (offset == op->offset + op->bytes) {
        op->bytes += bytes;
        return true;
    }
    if (offset + bytes == op->offset) {
        op->offset = offset;
        op->bytes += bytes;
        return true;
    }
    return false;
}

static void punch_start(struct cold_segment *cold, struct cold_file *file)
{
    struct kvd_file_op *ops = cold->reclaim_task.ops;
    struct kvd_cold_record *record;
    unsigned count = 0;

    for (unsigned i = 0; i < KVD_COLD_TURN_RECORDS &&
                         (record = TAILQ_FIRST(&file->records[COLD_RECORD_DEAD])) != NULL &&
                         is_past(cold, record->dead_epoch);
         i++) {
        uint64_t bytes = kvd_segment_record_bytes(record);
        if (count == 0 || !stretch_takes(&ops[count - 1], record, bytes)) {
            if (count == PUNCH_STRETCHES_MAX) {
                break;
            }
            ops[count++] = (struct kvd_file_op){.verb = KVD_FILE_PUNCH,
                .fd = file->fd,
                .offset = kvd_segment_record_offset(record),
                .bytes = bytes};
        }
        kvd_segment_record_set(cold, record, COLD_RECORD_PUNCHING);
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
    if (cold->scan_file == file) {
        cold->scan_file = TAILQ_NEXT(file, link);
    }
    TAILQ_REMOVE(&cold->files, file, link);
    cold->file_count--;
    cold->used_bytes -= kvd_segment_file_taken(file);
    file->fd = -1;
    TAILQ_INSERT_TAIL(&cold->gone, file, link);
}

/* Free some records of files that are gone. */
static void gone_drain(struct cold_segment *cold)
{
    struct cold_file *file = TAILQ_FIRST(&cold->gone);

    if (file == NULL) {
        return;
    }
    for (unsigned i = 0; i < KVD_COLD_TURN_RECORDS; i++) {
        struct kvd_cold_record *record = TAILQ_FIRST(&file->records[COLD_RECORD_DEAD]);
        if (record == NULL) {
            TAILQ_REMOVE(&cold->gone, file, link);
            kvd_segment_file_destroy(cold, file);
            break;
        }
        record_erased(cold, record);
    }
    if (!TAILQ_EMPTY(&cold->gone)) {
        kvd_segment_pump_again(cold);
    }
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

/* What is due. */

static bool is_closed(const struct cold_file *file)
{
    return file->state == COLD_FILE_SEALED || file->state == COLD_FILE_QUARANTINED;
}

static bool is_removable(const struct cold_segment *cold, const struct cold_file *file)
{
    bool is_used = file->readers > 0 || file == cold->sealing ||
                   (cold->is_writing && file == cold->writing_file) ||
                   (cold->is_syncing && file == cold->syncing_file);

    return is_closed(file) && !is_used && file->live_bytes == 0 && !file->is_unremovable &&
           is_past(cold, file->dead_epoch);
}

static bool is_punchable(const struct cold_segment *cold, const struct cold_file *file)
{
    uint64_t share = cold->options.segment_bytes / 16;
    uint64_t worth = share < PUNCH_BYTES_MIN ? share : PUNCH_BYTES_MIN;
    const struct kvd_cold_record *first = TAILQ_FIRST(&file->records[COLD_RECORD_DEAD]);

    /* Never where records are still added: without an index a hole would look like damage. */
    return file->state == COLD_FILE_SEALED && !cold->has_no_punch && file->readers == 0 &&
           first != NULL && is_past(cold, first->dead_epoch) &&
           cold->io->ops->now_ns(cold->io) >= cold->punch_after_ns &&
           (file->dead_bytes >= worth || kvd_segment_write_is_idle(cold));
}

static void file_look(struct cold_segment *cold, struct cold_file *file)
{
    if (!cold->reclaim_task.is_running && is_removable(cold, file)) {
        remove_start(cold, file);
    } else if (!cold->reclaim_task.is_running && is_punchable(cold, file)) {
        punch_start(cold, file);
    } else if (cold->moving_from == NULL && kvd_segment_move_is_worth(cold, file)) {
        cold->moving_from = file;
    }
}

static void files_scan(struct cold_segment *cold)
{
    for (unsigned i = 0; i < KVD_COLD_TURN_FILES && cold->scan_left > 0; i++) {
        bool is_busy = cold->reclaim_task.is_running && cold->moving_from != NULL;
        struct cold_file *file =
            cold->scan_file != NULL ? cold->scan_file : TAILQ_FIRST(&cold->files);
        if (file == NULL || is_busy) {
            cold->scan_left = 0; /* what ends is an event, and all are looked at again */
            return;
        }
        cold->scan_file = TAILQ_NEXT(file, link);
        cold->scan_left--;
        file_look(cold, file);
    }
    if (cold->scan_left > 0) {
        kvd_segment_pump_again(cold);
    }
}

/* What rests until a time comes is looked at again then. */
static void wake_plan(struct cold_segment *cold)
{
    const uint64_t times[] = {cold->punch_after_ns, cold->move_after_ns, cold->rest_until_ns,
        cold->parked_count > 0 ? cold->parked_until_ns : 0};
    uint64_t now_ns = cold->io->ops->now_ns(cold->io);
    uint64_t first_ns = UINT64_MAX;

    for (unsigned i = 0; i < sizeof(times) / sizeof(times[0]); i++) {
        bool is_next = times[i] > now_ns && times[i] < first_ns;
        first_ns = is_next ? times[i] : first_ns;
    }
    if (first_ns != UINT64_MAX) {
        kvd_segment_wake_at(cold, first_ns);
    }
}

void kvd_segment_reclaim_pump(struct cold_segment *cold)
{
    epoch_pump(cold);
    gone_drain(cold);
    files_scan(cold);
    kvd_segment_move_pump(cold);
    wake_plan(cold);
}

uint64_t kvd_segment_wanted(const struct kvd_cold *base)
{
    const struct cold_segment *cold = (const struct cold_segment *)(const void *)base;
    uint64_t needed = cold->used_bytes + 2 * cold->options.segment_bytes;
    uint64_t coming = cold->options.limit_bytes;
    const struct cold_file *file;

    if (needed <= coming) {
        return 0; /* another segment may be made */
    }
    TAILQ_FOREACH(file, &cold->files, link)
    {
        if (file->state == COLD_FILE_SEALED && !cold->has_no_punch) {
            coming += file->dead_bytes;
        } else if ((is_closed(file) && file->live_bytes == 0) ||
                   kvd_segment_move_is_worth(cold, file)) {
            coming += kvd_segment_file_taken(file) - file->live_bytes;
        }
    }
    return needed > coming ? needed - coming : 0;
}
