/*
 * Writing: puts become batches of a few MiB in one segment, made durable by syncs that run while
 * the next batch is written.
 *
 * Owner: cold_segment.c. Thread: loop only, but for prepare_run() on a worker.
 *
 * Each record begins at a block of its own: a write never touches a block that was durable before,
 * so that a torn one can only cost what nobody was told to be safe.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#define XXH_STATIC_LINKING_ONLY /* a hash state on the stack */
#include "lib/base/xxh3.h"
#include <zstd.h>

#include "lib/base/assert.h"
#include "server/base/kill_point.h"
#include "server/cold/cold_segment_impl.h"

/* One write: large enough that its fixed cost vanishes, small enough that puts do not wait long. */
#define BATCH_BYTES_MAX (UINT64_C(8) << 20)

/* A compressed body is kept when it is smaller by 1/32 at least: less is not worth the reading. */
#define COMPRESS_GAIN_SHIFT 5

/* So long does what must not wait do so all the same, for room that is coming back. */
#define PARK_NS UINT64_C(1000000000)

/* Bodies up to this are hashed where they are put: some 10 us. */
#define HASH_INLINE_BYTES_MAX (64 * 1024)

/* Records after which a spare chunk of the index is asked for again. */
#define SPARE_RECORDS 8

/* Stretches that one record may need: its meta, its body, its padding; twice. */
#define WRITE_VECS_MAX(write) \
    (((write)->header.flags & KVD_RECORD_TWICE ? 2 : 1) * ((write)->vec_count + 2))

static uint64_t vecs_bytes(const struct iovec *vecs, unsigned count)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < count; i++) {
        bytes += vecs[i].iov_len;
    }
    return bytes;
}

static void write_free(struct cold_write *write)
{
    struct cold_segment *cold = write->cold;

    if (write->copied == NULL) {
        KVARN_ASSERT(cold->epoch_puts[write->epoch & 1] > 0);
        cold->epoch_puts[write->epoch & 1]--;
    }
    kvd_budget_release(
        cold->budget, KVD_BUDGET_COLD, sizeof(*write) + write->meta_bytes + write->buffer_bytes);
    kvd_segment_record_destroy(cold, write->record);
    free(write->meta);
    free(write->buffer);
    free(write);
}

/* The bytes that a queue limit counts. */
static uint64_t queue_share(const struct cold_write *write)
{
    return write->meta_bytes + write->header.raw_bytes;
}

/* A write came to its end, well or not: its owner is told in its turn. */
static void write_finish(struct cold_write *write, int err)
{
    struct cold_segment *cold = write->cold;

    write->err = err;
    STAILQ_INSERT_TAIL(&cold->finished, write, link);
}

/* Tell whoever waits for a write; free it. */
static void write_tell(struct cold_write *write)
{
    struct cold_segment *cold = write->cold;
    struct kvd_cold_put *put = write->put;
    int err = write->err;

    cold->stats.queued_bytes -= queue_share(write);
    if (write->copied != NULL) {
        kvd_segment_copy_done(write, err);
        write_free(write);
        return;
    }
    struct kvd_cold_record *record = write->record;
    if (err != 0) {
        cold->stats.put_failures++;
        if (record->state != COLD_RECORD_NOWHERE) {
            /* Its bytes may be there all the same: it stays listed until they are not. */
            kvd_segment_record_kill(cold, record);
            write->record = NULL;
        }
    } else {
        write->record = NULL;
        cold->stats.put_bytes += write->header.head_bytes + write->header.raw_bytes;
        if (write->header.type == KVD_COLD_TOMBSTONE) {
            kvd_segment_subject_bury(cold, record);
        } else if (put != NULL) {
            put->record = record;
        }
    }
    write_free(write);
    if (put != NULL) {
        put->done(put, err);
    }
}

/* Tell of some of what is finished; the rest goes on in the next turn (SEMANTICS.md 18). */
static void finished_tell(struct cold_segment *cold)
{
    struct cold_write *write;

    for (unsigned i = 0;
         i < KVD_COLD_TURN_RECORDS && (write = STAILQ_FIRST(&cold->finished)) != NULL; i++) {
        STAILQ_REMOVE_HEAD(&cold->finished, link);
        write_tell(write);
    }
    if (!STAILQ_EMPTY(&cold->finished)) {
        kvd_segment_pump_again(cold);
    }
}

static void queue_fail(struct cold_write_queue *queue, int err)
{
    struct cold_write *write;

    while ((write = STAILQ_FIRST(queue)) != NULL) {
        STAILQ_REMOVE_HEAD(queue, link);
        write_finish(write, err);
    }
}

/* Taking a put. */

/* On a worker: compress the body if that gains, and hash what will be stored. */
static void body_compress(struct cold_write *write)
{
    ZSTD_CCtx *zstd = ZSTD_createCCtx();
    ZSTD_outBuffer out = {write->buffer, write->buffer_bytes, 0};
    uint64_t raw_bytes = write->header.raw_bytes;
    bool is_good = zstd != NULL;

    if (is_good) {
        (void)ZSTD_CCtx_setParameter(
            zstd, ZSTD_c_compressionLevel, write->cold->options.compress_level);
        (void)ZSTD_CCtx_setPledgedSrcSize(zstd, raw_bytes);
    }
    for (unsigned i = 0; i < write->vec_count && is_good; i++) {
        ZSTD_inBuffer in = {write->vecs[i].iov_base, write->vecs[i].iov_len, 0};
        bool is_last = i + 1 == write->vec_count;
        size_t left = ZSTD_compressStream2(zstd, &out, &in, is_last ? ZSTD_e_end : ZSTD_e_continue);
        is_good = !ZSTD_isError(left) && in.pos == in.size && (!is_last || left == 0);
    }
    (void)ZSTD_freeCCtx(zstd);
    if (is_good && out.pos <= raw_bytes - (raw_bytes >> COMPRESS_GAIN_SHIFT)) {
        write->header.flags |= KVD_RECORD_ZSTD;
        write->header.body_bytes = out.pos;
        write->single = (struct iovec){write->buffer, out.pos};
        write->vecs = &write->single;
        write->vec_count = 1;
    }
}

static uint64_t body_hash(const struct iovec *vecs, unsigned count)
{
    XXH3_state_t state;

    (void)XXH3_64bits_reset(&state);
    for (unsigned i = 0; i < count; i++) {
        (void)XXH3_64bits_update(&state, vecs[i].iov_base, vecs[i].iov_len);
    }
    return XXH3_64bits_digest(&state);
}

static uint64_t clock_ns(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void prepare_run(struct kvd_job *job, void *scratch)
{
    struct cold_write *write = (struct cold_write *)(void *)job;

    (void)scratch;
    if (write->is_compressing) {
        uint64_t start_ns = clock_ns();
        body_compress(write);
        write->compress_ns = clock_ns() - start_ns;
    }
    write->header.body_hash = body_hash(write->vecs, write->vec_count);
}

static void prepare_done(struct kvd_job *job)
{
    struct cold_write *write = (struct cold_write *)(void *)job;
    struct cold_segment *cold = write->cold;

    KVARN_ASSERT(cold->preparing > 0);
    cold->preparing--;
    cold->stats.compress_ns += write->compress_ns;
    if ((write->header.flags & KVD_RECORD_ZSTD) != 0) {
        cold->stats.compress_raw_bytes += write->header.raw_bytes;
        cold->stats.compress_bytes += write->header.body_bytes;
    } else if (write->buffer != NULL) {
        free(write->buffer); /* it did not gain */
        write->buffer = NULL;
        kvd_budget_release(cold->budget, KVD_BUDGET_COLD, write->buffer_bytes);
        write->buffer_bytes = 0;
    }
    kvd_segment_write_queue(cold, write);
}

void kvd_segment_write_queue(struct cold_segment *cold, struct cold_write *write)
{
    write->file_bytes = kvd_record_file_bytes(&write->header);
    STAILQ_INSERT_TAIL(&cold->ready, write, link);
    cold->ready_count++;
    kvd_segment_pump_soon(cold);
}

/* The write of a put, with its meta; the body is not looked at. NULL without memory. */
static struct cold_write *write_create(struct cold_segment *cold, const struct kvd_cold_put *put)
{
    uint64_t body_bytes = vecs_bytes(put->vecs, put->vec_count);
    size_t meta_bytes = (size_t)kvd_record_body_offset((uint32_t)put->head_bytes);
    struct cold_write *write;

    if (kvd_budget_charge(cold->budget, KVD_BUDGET_COLD, sizeof(*write) + meta_bytes) != 0) {
        return NULL;
    }
    write = calloc(1, sizeof(*write));
    uint8_t *meta = calloc(1, meta_bytes);
    struct kvd_cold_record *record = kvd_segment_record_create(cold);
    if (write == NULL || meta == NULL || record == NULL) {
        kvd_budget_release(cold->budget, KVD_BUDGET_COLD, sizeof(*write) + meta_bytes);
        kvd_segment_record_destroy(cold, record);
        free(write);
        free(meta);
        return NULL;
    }
    write->cold = cold;
    write->record = record;
    write->epoch = cold->epoch;
    cold->epoch_puts[cold->epoch & 1]++;
    write->meta = meta;
    write->meta_bytes = meta_bytes;
    write->vecs = put->vecs;
    write->vec_count = put->vec_count;
    write->is_barrier = (put->flags & KVD_COLD_BARRIER) != 0;
    if (put->head_bytes > 0) {
        memcpy(meta + KVD_RECORD_HEADER_BYTES, put->head, put->head_bytes);
    }
    write->header = (struct kvd_record_header){.type = (uint8_t)put->type,
        .flags = write->is_barrier ? KVD_RECORD_TWICE : 0,
        .tenant_id = put->tenant_id,
        .id = put->id,
        .sequence = cold->sequence_next++,
        .head_bytes = (uint32_t)put->head_bytes,
        .body_bytes = body_bytes,
        .raw_bytes = body_bytes,
        .head_hash = XXH3_64bits(meta + KVD_RECORD_HEADER_BYTES, put->head_bytes)};
    return write;
}

/* Room for the compressed body; without it the body stays as it is. */
static void compress_plan(struct cold_segment *cold, struct cold_write *write)
{
    size_t bytes = ZSTD_compressBound(write->header.raw_bytes);

    if (cold->options.compress_level == 0 || write->header.type != KVD_COLD_PAGE ||
        write->vec_count == 0 || kvd_budget_charge(cold->budget, KVD_BUDGET_COLD, bytes) != 0) {
        return;
    }
    write->buffer = malloc(bytes);
    if (write->buffer == NULL) {
        kvd_budget_release(cold->budget, KVD_BUDGET_COLD, bytes);
        return;
    }
    write->buffer_bytes = bytes;
    write->is_compressing = true;
}

static enum cold_need need_of(const struct cold_write *write)
{
    return write->copied != NULL ? COLD_NEED_COPY
           : write->is_barrier   ? COLD_NEED_BARRIER
                                 : COLD_NEED_ORDINARY;
}

bool kvd_segment_has_place(
    const struct cold_segment *cold, uint64_t file_bytes, enum cold_need need)
{
    const struct cold_file *next = cold->next != NULL ? cold->next : cold->making;

    return kvd_segment_file_has_room(cold, cold->active, file_bytes, need) ||
           kvd_segment_file_has_room(cold, next, file_bytes, need) ||
           kvd_segment_file_may_make(cold, file_bytes, need);
}

/* Whether a put may be taken now. */
static int put_check(struct cold_segment *cold, const struct kvd_cold_put *put)
{
    bool is_barrier = (put->flags & KVD_COLD_BARRIER) != 0;
    enum cold_need need = is_barrier ? COLD_NEED_BARRIER : COLD_NEED_ORDINARY;
    uint64_t body_bytes = vecs_bytes(put->vecs, put->vec_count);
    uint64_t file_bytes =
        (is_barrier ? 2 : 1) * kvd_record_copy_bytes((uint32_t)put->head_bytes, body_bytes);

    if (put->head_bytes > KVARN_COLD_HEAD_BYTES_MAX || body_bytes > KVARN_COLD_BODY_BYTES_MAX ||
        !kvd_segment_file_fits(cold, file_bytes, need) ||
        (is_barrier ? 2 : 1) * (put->vec_count + 2) > KVD_FILE_VECS_MAX) {
        return KVARN_ETOO_LARGE;
    }
    if (is_barrier) {
        return 0;
    }
    if (cold->io->ops->now_ns(cold->io) < cold->rest_until_ns) {
        return cold->rest_err;
    }
    if (cold->is_full && !kvd_segment_has_place(cold, file_bytes, need)) {
        return KVARN_ENOSPC;
    }
    cold->is_full = false;
    return cold->stats.queued_bytes > 0 &&
                   cold->stats.queued_bytes + body_bytes > cold->options.queue_bytes
               ? KVARN_ERETRY_LATER
               : 0;
}

int kvd_segment_put(struct kvd_cold *base, struct kvd_cold_put *put)
{
    struct cold_segment *cold = kvd_segment_of(base);

    KVARN_ASSERT(!cold->is_closing && put->done != NULL);
    int err = put_check(cold, put);
    if (err != 0) {
        return err;
    }
    struct cold_write *write = write_create(cold, put);
    if (write == NULL) {
        return KVARN_ENOMEM;
    }
    put->record = NULL;
    write->put = put;
    compress_plan(cold, write);
    cold->stats.queued_bytes += queue_share(write);
    if (!write->is_compressing && write->header.body_bytes <= HASH_INLINE_BYTES_MAX) {
        write->header.body_hash = body_hash(write->vecs, write->vec_count);
        kvd_segment_write_queue(cold, write);
        return 0;
    }
    write->job.run = prepare_run;
    write->job.done = prepare_done;
    cold->preparing++;
    kvd_workers_submit(cold->workers, &write->job);
    return 0;
}

int kvd_segment_put_clean(struct cold_segment *cold)
{
    struct kvd_cold_put put = {.type = KVD_COLD_CLEAN, .flags = KVD_COLD_BARRIER};
    struct cold_write *write = write_create(cold, &put);

    if (write == NULL) {
        return KVARN_ENOMEM;
    }
    write->header.body_hash = body_hash(NULL, 0);
    cold->stats.queued_bytes += queue_share(write);
    kvd_segment_write_queue(cold, write);
    return 0;
}

/* Batches. */

/* One copy of a record: meta, body, zeros up to the next block. Returns the stretches used. */
static unsigned copy_vecs(
    const struct cold_segment *cold, const struct cold_write *write, struct iovec *dst)
{
    uint64_t bytes = write->meta_bytes + write->header.body_bytes;
    uint64_t padding = kvd_segment_round(bytes) - bytes;
    unsigned count = 0;

    dst[count++] = (struct iovec){write->meta, write->meta_bytes};
    if (write->vec_count > 0) {
        memcpy(dst + count, write->vecs, write->vec_count * sizeof(*dst));
        count += write->vec_count;
    }
    if (padding > 0) {
        dst[count++] = (struct iovec){cold->zeros, padding};
    }
    return count;
}

/*
 * Give a write its place at the end of the active segment: header, index entry, subject. From here
 * on its record is listed in the file.
 */
static int write_place(struct cold_segment *cold, struct cold_write *write)
{
    struct cold_file *file = cold->active;
    struct kvd_record_header *header = &write->header;

    header->ordinal = file->ordinal_next;
    header->durable_ordinal = file->durable_ordinal;
    int err = kvd_segment_subject_add(cold, header);
    if (err != 0) {
        return err;
    }
    err = kvd_segment_index_add(cold, file, header, file->end);
    if (err != 0) {
        kvd_segment_subject_erased(cold, header->type, &header->id);
        return err;
    }
    kvd_record_header_encode(header, file->salt, write->meta);
    kvd_segment_record_describe(write->record, header);
    kvd_segment_record_list(cold, write->record, file, file->end);
    file->ordinal_next++;
    file->end += write->file_bytes;
    if (file->ordinal_next % SPARE_RECORDS == 0) {
        kvd_segment_index_spare(cold);
    }
    return 0;
}

static void write_op_cb(struct kvd_file_op *op);

static void batch_submit(struct cold_segment *cold, unsigned vec_count, uint64_t offset)
{
    cold->write_op = (struct kvd_file_op){.verb = KVD_FILE_WRITE,
        .fd = cold->active->fd,
        .vecs = cold->write_vecs,
        .vec_count = vec_count,
        .offset = offset,
        .ctx = cold,
        .done = write_op_cb};
    cold->stats.written_bytes += cold->active->end - offset;
    cold->is_writing = true;
    cold->writing_file = cold->active;
    cold->io->ops->file_submit(cold->io, &cold->write_op);
}

static struct cold_write *ready_pop(struct cold_segment *cold)
{
    struct cold_write *write = STAILQ_FIRST(&cold->ready);

    STAILQ_REMOVE_HEAD(&cold->ready, link);
    cold->ready_count--;
    return write;
}

static void batch_write(struct cold_segment *cold)
{
    struct cold_write *write;
    uint64_t offset = cold->active->end;
    unsigned vec_count = 0;

    for (unsigned i = 0; i < KVD_COLD_TURN_RECORDS && (write = STAILQ_FIRST(&cold->ready)) != NULL;
         i++) {
        if (vec_count + WRITE_VECS_MAX(write) > KVD_FILE_VECS_MAX ||
            (vec_count > 0 && cold->active->end - offset + write->file_bytes > BATCH_BYTES_MAX) ||
            !kvd_segment_file_has_room(cold, cold->active, write->file_bytes, need_of(write))) {
            break;
        }
        (void)ready_pop(cold);
        int err = write_place(cold, write);
        if (err != 0) {
            write_finish(write, err);
            continue;
        }
        STAILQ_INSERT_TAIL(&cold->writing, write, link);
        vec_count += copy_vecs(cold, write, cold->write_vecs + vec_count);
        if ((write->header.flags & KVD_RECORD_TWICE) != 0) {
            vec_count += copy_vecs(cold, write, cold->write_vecs + vec_count);
        }
    }
    if (vec_count > 0) {
        batch_submit(cold, vec_count, offset);
    }
}

void kvd_segment_file_fail(struct cold_segment *cold, struct cold_file *file, int err)
{
    bool was_active = file == cold->active;

    kvd_segment_file_quarantine(cold, file, err);
    if (!was_active) {
        return; /* nothing of it is on its way */
    }
    queue_fail(&cold->written, err);
    cold->written_bytes = 0;
    cold->written_barriers = 0;
}

static void write_op_cb(struct kvd_file_op *op)
{
    struct cold_segment *cold = op->ctx;
    struct cold_write *write;

    int err = op->result < 0 ? (int)op->result : 0;

    cold->is_writing = false;
    kvd_kill_point("cold_written");
    if (err == 0 && cold->writing_file->state == COLD_FILE_QUARANTINED) {
        err = KVARN_EIO; /* a sync failed meanwhile: what this one wrote can never be durable */
    }
    if (err != 0) {
        kvd_segment_file_fail(cold, cold->writing_file, err);
        queue_fail(&cold->writing, err);
    }
    STAILQ_FOREACH(write, &cold->writing, link)
    {
        cold->written_bytes += write->file_bytes;
        cold->written_barriers += write->is_barrier ? 1 : 0;
    }
    STAILQ_CONCAT(&cold->written, &cold->writing);
    kvd_segment_pump(cold);
}

/* Syncs. */

static void sync_op_cb(struct kvd_file_op *op)
{
    struct cold_segment *cold = op->ctx;

    cold->is_syncing = false;
    kvd_kill_point("cold_synced");
    if (op->result < 0) {
        /* The kernel may have dropped the pages: a second sync would succeed and mean nothing. */
        kvd_segment_file_fail(cold, cold->syncing_file, (int)op->result);
        queue_fail(&cold->syncing, (int)op->result);
        kvd_segment_pump(cold);
        return;
    }
    cold->syncing_file->durable_ordinal = cold->syncing_ordinal;
    STAILQ_CONCAT(&cold->finished, &cold->syncing); /* their err is 0 */
    kvd_segment_pump(cold);
}

static void sync_start(struct cold_segment *cold)
{
    uint32_t in_flight = 0;
    const struct cold_write *write;

    STAILQ_FOREACH(write, &cold->writing, link)
    {
        in_flight++;
    }
    cold->syncing_file = cold->active;
    cold->syncing_ordinal = cold->active->ordinal_next - in_flight;
    STAILQ_CONCAT(&cold->syncing, &cold->written);
    cold->written_bytes = 0;
    cold->written_barriers = 0;
    cold->is_syncing = true;
    cold->sync_op = (struct kvd_file_op){
        .verb = KVD_FILE_SYNC, .fd = cold->active->fd, .ctx = cold, .done = sync_op_cb};
    cold->io->ops->file_submit(cold->io, &cold->sync_op);
}

/* A sync is due: much is written, somebody waits for it, or nothing else is to do. */
static bool is_sync_due(const struct cold_segment *cold)
{
    if (cold->is_syncing || STAILQ_EMPTY(&cold->written)) {
        return false;
    }
    return cold->written_bytes >= cold->sync_bytes || !cold->is_writing ||
           cold->written_barriers > 0;
}

/* What drives it. */

void kvd_segment_write_shed(struct cold_segment *cold, int err)
{
    cold->shed_left = cold->ready_count;
    cold->shed_err = err;
    kvd_segment_pump_again(cold);
}

static void shed_some(struct cold_segment *cold)
{
    for (unsigned i = 0; i < KVD_COLD_TURN_RECORDS && cold->shed_left > 0; i++) {
        struct cold_write *write = ready_pop(cold);
        cold->shed_left--;
        if (write->is_barrier &&
            kvd_segment_file_has_room(cold, cold->active, write->file_bytes, COLD_NEED_BARRIER)) {
            STAILQ_INSERT_TAIL(&cold->ready, write, link);
            cold->ready_count++;
        } else {
            write_finish(write, cold->shed_err);
        }
    }
    kvd_segment_pump_again(cold);
}

/* Space is being reclaimed, or that is about to be looked at. */
static bool is_room_coming(const struct cold_segment *cold)
{
    return !cold->is_closing && (cold->scan_left > 0 || cold->reclaim_task.is_running ||
                                    cold->copies > 0 || cold->moving_from != NULL);
}

/*
 * What must not wait does so a moment where room is coming back, out of the way of the copies that
 * bring it.
 */
static void park(struct cold_segment *cold, struct cold_write *write)
{
    if (cold->parked_count == 0) {
        cold->parked_until_ns = cold->io->ops->now_ns(cold->io) + PARK_NS;
    }
    STAILQ_INSERT_TAIL(&cold->parked, write, link);
    cold->parked_count++;
}

/* Those that are parked have a place now, or will have none. */
static void parked_look(struct cold_segment *cold)
{
    const struct cold_write *first = STAILQ_FIRST(&cold->parked);
    bool is_over =
        !is_room_coming(cold) || cold->io->ops->now_ns(cold->io) >= cold->parked_until_ns;

    if (first == NULL) {
        return;
    }
    if (kvd_segment_has_place(cold, first->file_bytes, need_of(first))) {
        STAILQ_CONCAT(&cold->parked, &cold->ready);
        STAILQ_CONCAT(&cold->ready, &cold->parked);
        cold->ready_count += cold->parked_count;
        cold->parked_count = 0;
    } else if (is_over) {
        queue_fail(&cold->parked, KVARN_ENOSPC);
        cold->parked_count = 0;
        kvd_segment_pump_again(cold);
    }
}

/* The first ones that have no place, nor will have one, fail or are parked. */
static void placeless_end(struct cold_segment *cold)
{
    const struct cold_write *first;

    for (unsigned i = 0;
         i < KVD_COLD_TURN_RECORDS && (first = STAILQ_FIRST(&cold->ready)) != NULL &&
         !kvd_segment_has_place(cold, first->file_bytes, need_of(first));
         i++) {
        kvd_segment_fill_up(cold, first->file_bytes);
        if (need_of(first) == COLD_NEED_BARRIER && is_room_coming(cold)) {
            park(cold, ready_pop(cold));
        } else {
            write_finish(ready_pop(cold), KVARN_ENOSPC);
        }
        kvd_segment_pump_again(cold);
    }
}

/* The first of `ready` does not fit: see that a segment comes where it does. */
static void segment_next(struct cold_segment *cold, const struct cold_write *first)
{
    bool is_rested = cold->io->ops->now_ns(cold->io) >= cold->rest_until_ns || first->is_barrier;

    if (cold->making != NULL || cold->undo_task.is_running || cold->sealing != NULL) {
        return;
    }
    if (cold->next != NULL) {
        if (!cold->is_writing && !cold->is_syncing && STAILQ_EMPTY(&cold->written) &&
            cold->reclaiming != cold->active) {
            kvd_segment_file_seal(cold);
        }
        return;
    }
    if (!is_rested) {
        kvd_segment_write_shed(cold, cold->rest_err);
        return;
    }
    kvd_segment_file_make(cold);
    if (cold->making == NULL) {
        kvd_segment_write_shed(cold, cold->rest_err);
    }
}

void kvd_segment_write_pump(struct cold_segment *cold)
{
    const struct cold_write *first;

    finished_tell(cold);
    if (cold->sealing != NULL) {
        return;
    }
    parked_look(cold);
    if (cold->shed_left > 0) {
        shed_some(cold);
    } else if (!cold->is_writing && !STAILQ_EMPTY(&cold->ready)) {
        placeless_end(cold);
        first = STAILQ_FIRST(&cold->ready);
        if (first != NULL &&
            !kvd_segment_file_has_room(cold, cold->active, first->file_bytes, need_of(first))) {
            segment_next(cold, first);
        }
        if (first != NULL && cold->sealing == NULL && cold->active != NULL && !cold->is_writing) {
            batch_write(cold);
        }
    }
    if (cold->sealing == NULL && is_sync_due(cold)) {
        sync_start(cold);
    }
}

bool kvd_segment_write_is_idle(const struct cold_segment *cold)
{
    return cold->preparing == 0 && STAILQ_EMPTY(&cold->ready) && STAILQ_EMPTY(&cold->writing) &&
           STAILQ_EMPTY(&cold->written) && STAILQ_EMPTY(&cold->syncing) &&
           STAILQ_EMPTY(&cold->finished) && !cold->is_writing && !cold->is_syncing;
}
