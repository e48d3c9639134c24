/*
 * The cold tier in files: opening, closing, what drives it, what it counts.
 *
 * Owner: service. Thread: loop only.
 */
#include "server/cold/cold_segment.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/base/log.h"
#include "server/cold/cold_segment_impl.h"

/* How long ordinary puts are refused after a failure. */
#define REST_NS UINT64_C(1000000000)

/* A tier that is full is often full again a moment later: the log says so once in this time. */
#define FULL_LOG_NS UINT64_C(60000000000)

/* Written bytes that wait for a sync at most: a segment's share, and no more than this. */
#define SYNC_BYTES_MAX (UINT64_C(64) << 20)

/* Memory. */

void *kvd_segment_alloc(struct cold_segment *cold, size_t bytes)
{
    if (kvd_budget_charge(cold->budget, KVD_BUDGET_COLD, bytes) != 0) {
        return NULL;
    }
    void *memory = calloc(1, bytes);
    if (memory == NULL) {
        kvd_budget_release(cold->budget, KVD_BUDGET_COLD, bytes);
    }
    return memory;
}

void kvd_segment_free(struct cold_segment *cold, void *memory, size_t bytes)
{
    if (memory != NULL) {
        kvd_budget_release(cold->budget, KVD_BUDGET_COLD, bytes);
        free(memory);
    }
}

/* Tasks. */

static void task_step(struct cold_task *task);

static void task_op_cb(struct kvd_file_op *op)
{
    task_step(op->ctx);
}

static void task_end(struct cold_task *task, int err)
{
    task->is_running = false;
    task->done(task, err);
    kvd_segment_pump(task->cold);
}

/* The step at idx has ended: go on with the next. */
static void task_step(struct cold_task *task)
{
    struct kvd_file_op *op = &task->ops[task->idx];

    if (op->result < 0) {
        task_end(task, (int)op->result);
        return;
    }
    if (op->verb == KVD_FILE_OPEN) {
        for (unsigned i = task->idx + 1; i < task->count; i++) {
            task->ops[i].fd = (int)op->result;
        }
    }
    task->idx++;
    if (task->idx == task->count) {
        task_end(task, 0);
        return;
    }
    task->cold->io->ops->file_submit(task->cold->io, &task->ops[task->idx]);
}

void kvd_segment_task_run(struct cold_segment *cold, struct cold_task *task, unsigned count,
    void (*done)(struct cold_task *task, int err))
{
    KVARN_ASSERT(!task->is_running && count > 0 && count <= KVD_COLD_TASK_STEPS_MAX);
    task->cold = cold;
    task->count = count;
    task->idx = 0;
    task->done = done;
    task->is_running = true;
    for (unsigned i = 0; i < count; i++) {
        task->ops[i].done = task_op_cb;
        task->ops[i].ctx = task;
    }
    cold->io->ops->file_submit(cold->io, &task->ops[0]);
}

/* Small answers. */

void kvd_segment_path(const struct cold_segment *cold, uint64_t number, const char *suffix,
    char *dst, size_t dst_bytes)
{
    (void)snprintf(dst, dst_bytes, "%s/%016" PRIx64 ".%s", cold->dir, number, suffix);
}

void kvd_segment_rest(struct cold_segment *cold, int err)
{
    uint64_t now_ns = cold->io->ops->now_ns(cold->io);

    if (now_ns >= cold->rest_until_ns) {
        kvd_log(KVD_LOG_WARN, "cold_resting", "error=%s used=%" PRIu64 " limit=%" PRIu64,
            kvarn_err_label(err), cold->used_bytes, cold->options.limit_bytes);
    }
    cold->rest_err = err;
    cold->rest_until_ns = now_ns + REST_NS;
}

void kvd_segment_fill_up(struct cold_segment *cold, uint64_t file_bytes)
{
    uint64_t now_ns = cold->io->ops->now_ns(cold->io);

    if (!cold->is_full && now_ns >= cold->full_log_ns) {
        cold->full_log_ns = now_ns + FULL_LOG_NS;
        kvd_log(KVD_LOG_WARN, "cold_full", "used=%" PRIu64 " limit=%" PRIu64 " live=%" PRIu64,
            cold->used_bytes, cold->options.limit_bytes, cold->stats.live_bytes);
    }
    cold->is_full = true;
    cold->full_bytes = file_bytes;
}

static void segment_info(const struct kvd_cold_record *record, struct kvd_cold_info *ret)
{
    *ret = (struct kvd_cold_info){.type = (enum kvd_cold_type)record->type,
        .tenant_id = record->tenant_id,
        .id = record->id,
        .sequence = record->sequence,
        .head_bytes = record->head_bytes,
        .body_bytes = record->raw_bytes,
        .stored_bytes = kvd_segment_record_bytes(record)};
}

static void segment_stats(const struct kvd_cold *base, struct kvd_cold_stats *ret)
{
    const struct cold_segment *cold = (const struct cold_segment *)(const void *)base;

    *ret = cold->stats;
    ret->limit_bytes = cold->options.limit_bytes;
    ret->used_bytes = cold->used_bytes;
    ret->segments = cold->file_count;
    ret->is_resting =
        (cold->is_full && !kvd_segment_has_place(cold, cold->full_bytes, COLD_NEED_ORDINARY)) ||
        cold->io->ops->now_ns(cold->io) < cold->rest_until_ns;
}

static bool segment_is_idle(const struct kvd_cold *base)
{
    const struct cold_segment *cold = (const struct cold_segment *)(const void *)base;

    return kvd_segment_write_is_idle(cold) && cold->parked_count == 0 && cold->gets == 0 &&
           !cold->make_task.is_running && !cold->undo_task.is_running &&
           !cold->seal_task.is_running && !cold->reclaim_task.is_running && cold->copies == 0;
}

/* Recovery's list. */

static int by_sequence(const void *a, const void *b)
{
    const struct kvd_cold_record *ra = *(struct kvd_cold_record *const *)a;
    const struct kvd_cold_record *rb = *(struct kvd_cold_record *const *)b;

    return ra->sequence < rb->sequence ? -1 : ra->sequence > rb->sequence;
}

static size_t live_list(struct cold_segment *cold, struct kvd_cold_record **dst)
{
    struct cold_file *file;
    struct kvd_cold_record *record;
    size_t count = 0;

    TAILQ_FOREACH(file, &cold->files, link)
    {
        TAILQ_FOREACH(record, &file->records[COLD_RECORD_LIVE], link)
        {
            if (record->type >= KVD_COLD_TOMBSTONE) {
                continue; /* those from TOMBSTONE on are ours */
            }
            if (dst != NULL) {
                dst[count] = record;
            }
            count++;
        }
    }
    return count;
}

static void segment_each(struct kvd_cold *base,
    void (*cb)(void *ctx, struct kvd_cold_record *record, const struct kvd_cold_info *info),
    void *ctx)
{
    struct cold_segment *cold = kvd_segment_of(base);
    size_t count = live_list(cold, NULL);
    struct kvd_cold_record **list =
        count == 0 ? NULL : calloc(count, sizeof(struct kvd_cold_record *));

    if (list == NULL) {
        KVARN_ASSERT(count == 0); /* at start: as much was there a moment ago, for the ranking */
        return;
    }
    (void)live_list(cold, list);
    qsort(list, count, sizeof(struct kvd_cold_record *), by_sequence);
    for (size_t i = 0; i < count; i++) {
        struct kvd_cold_info info;
        segment_info(list[i], &info);
        cb(ctx, list[i], &info);
    }
    free(list);
}

/* The end. */

static void close_pump(struct cold_segment *cold)
{
    if (!cold->is_closing || cold->is_closed || !segment_is_idle(&cold->base)) {
        return;
    }
    if (!cold->is_clean_put) {
        cold->is_clean_put = true;
        if (kvd_segment_put_clean(cold) == 0) {
            return;
        }
    }
    if (cold->active != NULL && cold->active->ordinal_next > 0) {
        kvd_segment_file_seal(cold);
        return;
    }
    cold->is_closed = true;
    cold->closed_cb(cold->closed_ctx);
}

static void pump(struct cold_segment *cold)
{
    kvd_segment_write_pump(cold);
    if (!cold->is_closing) {
        kvd_segment_reclaim_pump(cold);
    }
    close_pump(cold);
}

void kvd_segment_pump(struct cold_segment *cold)
{
    kvd_segment_reclaim_note(cold);
    pump(cold);
}

void kvd_segment_pump_again(struct cold_segment *cold)
{
    cold->io->ops->timer_start(cold->pump_timer, 0, 0);
}

void kvd_segment_pump_soon(struct cold_segment *cold)
{
    kvd_segment_reclaim_note(cold);
    kvd_segment_pump_again(cold);
}

static void pump_timer_cb(void *ctx)
{
    pump(ctx);
}

static void wake_timer_cb(void *ctx)
{
    kvd_segment_pump(ctx);
}

static void segment_spoil(struct kvd_cold *base)
{
    kvd_segment_of(base)->is_clean_put = true; /* as if it were: it never will be */
}

void kvd_segment_wake_at(struct cold_segment *cold, uint64_t at_ns)
{
    uint64_t now_ns = cold->io->ops->now_ns(cold->io);
    uint64_t ms = at_ns > now_ns ? (at_ns - now_ns + 999999) / 1000000 : 1;

    cold->io->ops->timer_start(cold->wake_timer, ms, 0);
}

static void segment_close(struct kvd_cold *base, void (*closed_cb)(void *ctx), void *ctx)
{
    struct cold_segment *cold = kvd_segment_of(base);

    KVARN_ASSERT(!cold->is_closing && closed_cb != NULL);
    cold->is_closing = true;
    cold->closed_cb = closed_cb;
    cold->closed_ctx = ctx;
    kvd_segment_pump_soon(cold);
}

static void fd_close(struct cold_segment *cold, int fd)
{
    struct kvd_file_op op = {.verb = KVD_FILE_CLOSE, .fd = fd};

    if (fd >= 0) {
        (void)cold->io->ops->file_run(cold->io, &op);
    }
}

static void files_free(struct cold_segment *cold, struct cold_file_list *files)
{
    struct cold_file *file;
    struct kvd_cold_record *record;

    while ((file = TAILQ_FIRST(files)) != NULL) {
        TAILQ_REMOVE(files, file, link);
        for (unsigned i = 0; i < COLD_RECORD_STATE_COUNT; i++) {
            while ((record = TAILQ_FIRST(&file->records[i])) != NULL) {
                kvd_segment_record_destroy(cold, record);
            }
        }
        fd_close(cold, file->fd);
        kvd_segment_file_destroy(cold, file);
    }
}

static void segment_free(struct cold_segment *cold)
{
    struct kvd_budget *budget = cold->budget;

    kvd_segment_free(cold, cold->write_vecs, KVD_FILE_VECS_MAX * sizeof(*cold->write_vecs));
    kvd_segment_free(cold, cold->zeros, KVD_SEGMENT_BLOCK);
    kvd_segment_free(cold, cold->index_spare, COLD_INDEX_CHUNK_BYTES);
    kvd_budget_release(budget, KVD_BUDGET_COLD, sizeof(*cold));
    free(cold);
}

static void segment_destroy(struct kvd_cold *base)
{
    struct cold_segment *cold = kvd_segment_of(base);

    KVARN_ASSERT(segment_is_idle(base));
    cold->io->ops->timer_destroy(cold->pump_timer);
    cold->io->ops->timer_destroy(cold->wake_timer);
    files_free(cold, &cold->files);
    files_free(cold, &cold->gone);
    kvd_segment_subjects_fini(cold);
    fd_close(cold, cold->lock_fd);
    segment_free(cold);
}

static const struct kvd_cold_ops segment_ops = {
    .put = kvd_segment_put,
    .get = kvd_segment_get,
    .get_now = kvd_segment_get_now,
    .info = segment_info,
    .each = segment_each,
    .forget = kvd_segment_forget,
    .wanted = kvd_segment_wanted,
    .stats = segment_stats,
    .is_idle = segment_is_idle,
    .spoil = segment_spoil,
    .close = segment_close,
    .destroy = segment_destroy,
};

/* The start. */

static bool options_are_good(const struct kvd_cold_segment_options *options)
{
    return options->segment_bytes >= KVARN_COLD_SEGMENT_BYTES_MIN &&
           options->segment_bytes <= KVARN_COLD_SEGMENT_BYTES_MAX &&
           options->segment_bytes % KVD_SEGMENT_BLOCK == 0 &&
           options->limit_bytes / options->segment_bytes >= 4 && options->dir[0] != '\0' &&
           strlen(options->dir) < KVARN_COLD_PATH_MAX;
}

static void queues_init(struct cold_segment *cold)
{
    TAILQ_INIT(&cold->files);
    TAILQ_INIT(&cold->gone);
    STAILQ_INIT(&cold->ready);
    STAILQ_INIT(&cold->writing);
    STAILQ_INIT(&cold->written);
    STAILQ_INIT(&cold->syncing);
    STAILQ_INIT(&cold->parked);
    STAILQ_INIT(&cold->finished);
    cold->free_slot_count = KVARN_COLD_SEGMENTS_MAX;
    for (uint32_t i = 0; i < KVARN_COLD_SEGMENTS_MAX; i++) {
        cold->free_slots[i] = (uint16_t)(KVARN_COLD_SEGMENTS_MAX - 1 - i);
    }
}

/* What it always needs. Returns NULL without memory. */
static struct cold_segment *segment_create(struct kvd_io *io, struct kvd_workers *workers,
    struct kvd_budget *budget, const struct kvd_cold_segment_options *options)
{
    if (kvd_budget_charge(budget, KVD_BUDGET_COLD, sizeof(struct cold_segment)) != 0) {
        return NULL;
    }
    struct cold_segment *cold = calloc(1, sizeof(*cold));
    if (cold == NULL) {
        kvd_budget_release(budget, KVD_BUDGET_COLD, sizeof(*cold));
        return NULL;
    }
    cold->base.ops = &segment_ops;
    cold->io = io;
    cold->workers = workers;
    cold->budget = budget;
    cold->options = *options;
    memcpy(cold->dir, options->dir, strlen(options->dir) + 1);
    cold->options.dir = cold->dir;
    cold->lock_fd = -1;
    cold->sequence_next = 1;
    cold->number_next = 1;
    cold->epoch = 2;
    cold->sync_bytes =
        options->segment_bytes / 4 < SYNC_BYTES_MAX ? options->segment_bytes / 4 : SYNC_BYTES_MAX;
    queues_init(cold);
    cold->write_vecs = kvd_segment_alloc(cold, KVD_FILE_VECS_MAX * sizeof(*cold->write_vecs));
    cold->zeros = kvd_segment_alloc(cold, KVD_SEGMENT_BLOCK);
    cold->pump_timer = io->ops->timer_create(io, pump_timer_cb, cold);
    cold->wake_timer = io->ops->timer_create(io, wake_timer_cb, cold);
    int err = kvd_segment_subjects_init(cold);
    if (err != 0 || cold->write_vecs == NULL || cold->zeros == NULL || cold->pump_timer == NULL ||
        cold->wake_timer == NULL) {
        segment_destroy(&cold->base);
        return NULL;
    }
    return cold;
}

int kvd_cold_segment_open(struct kvd_io *io, struct kvd_workers *workers, struct kvd_budget *budget,
    const struct kvd_cold_segment_options *options, struct kvd_cold_found *ret_found,
    struct kvd_cold **ret)
{
    struct kvd_cold_found found = {0};

    if (!options_are_good(options)) {
        return KVARN_EINVALID;
    }
    struct cold_segment *cold = segment_create(io, workers, budget, options);
    if (cold == NULL) {
        kvd_log(KVD_LOG_ERROR, "cold_failed", "dir=%s error=%s: its table of files", options->dir,
            kvarn_err_label(KVARN_ENOMEM));
        return KVARN_ENOMEM;
    }
    int err = kvd_segment_dir_lock(cold);
    if (err == 0) {
        err = kvd_segment_recover(cold, &found);
    }
    if (err != 0) {
        segment_destroy(&cold->base);
        return err;
    }
    kvd_segment_pump_soon(cold); /* what recovery found dead is reclaimed */
    *ret_found = found;
    *ret = &cold->base;
    return 0;
}
