/*
 * Recovery: what a folder of segments holds, when the daemon starts.
 *
 * Owner: cold_segment.c. Thread: loop only, before it runs: files are read at once.
 *
 * Of everything but pages the highest sequence holds, per type and id; a tombstone stands against
 * all of its session below its own sequence. Copies of one record that a rewrite left have the same
 * sequence, and one of them is dead.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/base/log.h"
#include "server/cold/cold_segment_impl.h"
#include "server/cold/cold_segment_scan.h"

/* What the folder's listing gathers: numbers of one kind of file. */
struct listing {
    const char *suffix; /* borrowed */
    uint64_t *numbers;  /* owned */
    size_t count, room;
    int err;
};

/* A file that is being read. */
struct reading {
    struct cold_segment *cold;            /* borrowed */
    struct cold_file *file;               /* borrowed */
    const struct kvd_scan_result *result; /* borrowed: as far as the scan knows it */
    uint64_t blank_bytes;
    size_t charged_bytes; /* for the index that is read */
    int err;
};

static int64_t file_run(struct cold_segment *cold, struct kvd_file_op *op)
{
    return cold->io->ops->file_run(cold->io, op);
}

static void number_add(struct listing *listing, uint64_t number)
{
    if (listing->count == listing->room) {
        size_t room = listing->room == 0 ? 64 : 2 * listing->room;
        uint64_t *numbers = realloc(listing->numbers, room * sizeof(*numbers));
        if (numbers == NULL) {
            listing->err = KVARN_ENOMEM;
            return;
        }
        listing->numbers = numbers;
        listing->room = room;
    }
    listing->numbers[listing->count++] = number;
}

static void name_cb(void *ctx, const char *name)
{
    struct listing *listing = ctx;
    uint64_t number;

    if (kvd_segment_name_parse(name, listing->suffix, &number) == 0) {
        number_add(listing, number);
    }
}

static int by_number(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static int64_t source_read(void *ctx, uint64_t offset, void *dst, size_t bytes)
{
    struct reading *reading = ctx;
    struct iovec vec = {dst, bytes};
    struct kvd_file_op op = {.verb = KVD_FILE_READ,
        .fd = reading->file->fd,
        .vecs = &vec,
        .vec_count = 1,
        .offset = offset};

    return file_run(reading->cold, &op);
}

/* The scan is about to read an index of so many bytes. */
static int source_reserve(void *ctx, uint64_t bytes)
{
    struct reading *reading = ctx;
    int err = kvd_budget_charge(reading->cold->budget, KVD_BUDGET_COLD, bytes);

    reading->charged_bytes += err == 0 ? bytes : 0;
    return err == 0 ? 0 : KVARN_ENOMEM;
}

static bool is_blank_header(struct reading *reading, uint64_t offset)
{
    uint8_t bytes[KVD_RECORD_HEADER_BYTES];
    int64_t got = source_read(reading, offset, bytes, sizeof(bytes));

    return got == (int64_t)sizeof(bytes) && bytes[0] == 0 &&
           memcmp(bytes, bytes + 1, sizeof(bytes) - 1) == 0;
}

/*
 * Whether a record of which the index knows was punched out: zeros, where each of its headers was.
 * A single one may be a sector that the disk lost.
 */
static bool is_punched(
    struct reading *reading, const struct kvd_record_header *header, uint64_t offset)
{
    if (header->type == KVD_COLD_PAGE) {
        return false; /* of these there are many, and nobody asks for one that is gone */
    }
    uint64_t second = offset + kvd_record_copy_bytes(header->head_bytes, header->body_bytes);
    bool is_twice = (header->flags & KVD_RECORD_TWICE) != 0;

    return is_blank_header(reading, offset) && (!is_twice || is_blank_header(reading, second));
}

static void record_cb(void *ctx, const struct kvd_record_header *header, uint64_t offset)
{
    struct reading *reading = ctx;
    struct cold_segment *cold = reading->cold;

    if (reading->err != 0) {
        return;
    }
    if (header->sequence >= cold->sequence_next) {
        cold->sequence_next = header->sequence + 1;
    }
    if (is_punched(reading, header, offset)) {
        reading->blank_bytes += kvd_record_file_bytes(header);
        return;
    }
    struct kvd_cold_record *record = kvd_segment_record_create(cold);
    if (record == NULL) {
        reading->err = KVARN_ENOMEM;
        return;
    }
    kvd_segment_record_describe(record, header);
    reading->file->salt = reading->result->header.salt;
    if (!reading->result->is_sealed) {
        reading->err = kvd_segment_index_add(cold, reading->file, header, offset);
    }
    if (reading->err == 0) {
        reading->err = kvd_segment_subject_add(cold, header);
    }
    if (reading->err != 0) {
        kvd_segment_record_destroy(cold, record);
        return;
    }
    kvd_segment_record_list(cold, record, reading->file, offset);
}

/* Sealing what a crash left, so that the next start need not scan it. */

static int64_t seal_steps(struct cold_segment *cold, struct cold_file *file)
{
    uint64_t bytes = 0;
    uint8_t *block = NULL;
    unsigned vec_count = kvd_segment_index_vecs(cold, file, &block, &bytes);
    struct kvd_file_op ops[] = {
        {.verb = KVD_FILE_WRITE,
            .vecs = cold->write_vecs,
            .vec_count = vec_count,
            .offset = file->end},
        {.verb = KVD_FILE_SYNC},
        {.verb = KVD_FILE_RESIZE, .bytes = file->end + bytes},
        {.verb = KVD_FILE_SYNC},
    };
    int64_t result = vec_count == 0 ? KVARN_ENOMEM : 0;

    for (unsigned i = 0; i < sizeof(ops) / sizeof(ops[0]) && result >= 0; i++) {
        ops[i].fd = file->fd;
        result = file_run(cold, &ops[i]);
    }
    free(block);
    if (result >= 0) {
        file->size_bytes = file->end + bytes;
    }
    return result;
}

/* It may fail, on a full disk for one: then the file is scanned again next time. */
static void file_seal_now(struct cold_segment *cold, struct cold_file *file)
{
    int64_t result = seal_steps(cold, file);

    if (result < 0) {
        kvd_log(KVD_LOG_WARN, "cold_resting", "segment=%" PRIu64 " error=%s: it stays unsealed",
            file->number, kvarn_err_label((int)result));
    }
}

/* It goes with all that was found in it. Returns 0 once that is durable. */
static int file_remove_now(struct cold_segment *cold, struct cold_file *file)
{
    char path[KVARN_COLD_PATH_MAX + 32];
    struct kvd_file_op close = {.verb = KVD_FILE_CLOSE, .fd = file->fd};
    struct kvd_file_op unlink = {.verb = KVD_FILE_UNLINK, .path = path};
    struct kvd_file_op sync = {.verb = KVD_FILE_SYNC_DIR, .path = cold->dir};

    kvd_segment_path(cold, file->number, "kvs", path, sizeof(path));
    TAILQ_REMOVE(&cold->files, file, link);
    cold->file_count--;
    for (struct kvd_cold_record *record;
         (record = TAILQ_FIRST(&file->records[COLD_RECORD_LIVE])) != NULL;) {
        struct kvd_cold_id id = record->id;
        uint8_t type = record->type;
        kvd_segment_record_destroy(cold, record);
        kvd_segment_subject_erased(cold, type, &id);
    }
    kvd_segment_file_destroy(cold, file);
    (void)file_run(cold, &close);
    int64_t result = file_run(cold, &unlink);
    result = result < 0 ? result : file_run(cold, &sync);
    if (result < 0) {
        kvd_log(
            KVD_LOG_ERROR, "cold_failed", "path=%s error=%s", path, kvarn_err_label((int)result));
    }
    return result < 0 ? (int)result : 0;
}

/* What a scan says of the file that it read; seal it, or remove it, if it was not sealed. */
static int file_judge(struct cold_segment *cold, struct cold_file *file,
    const struct kvd_scan_result *result, struct kvd_cold_found *found)
{
    file->salt = result->header.salt;
    file->end = result->data_end;
    file->ordinal_next = result->ordinal_next;
    file->durable_ordinal = result->ordinal_next;
    cold->tier_id = result->header.tier_id;
    if (result->is_sealed) {
        return 0;
    }
    found->scanned_segments++;
    if (TAILQ_EMPTY(&file->records[COLD_RECORD_LIVE]) && !result->is_suspect) {
        return file_remove_now(cold, file);
    }
    if (!result->is_suspect) {
        file_seal_now(cold, file);
    }
    kvd_segment_index_fini(cold, &file->index);
    return 0;
}

/* Read one file. Returns 0, also for one that is damaged or that cannot be read. */
static int file_read(
    struct cold_segment *cold, struct cold_file *file, struct kvd_cold_found *found)
{
    struct kvd_scan_result result;
    struct reading reading = {.cold = cold, .file = file, .result = &result};
    struct kvd_scan_source source = {.read = source_read,
        .reserve = source_reserve,
        .ctx = &reading,
        .bytes = file->size_bytes,
        .number = file->number};
    int err = kvd_segment_scan(&source, record_cb, &reading, &result);

    kvd_budget_release(cold->budget, KVD_BUDGET_COLD, reading.charged_bytes);
    if (reading.err != 0 || err == KVARN_ENOMEM || err == KVARN_EUNSUPPORTED) {
        return reading.err != 0 ? reading.err : err;
    }
    found->torn += result.torn;
    found->damaged += result.damaged;
    file->is_suspect = result.is_suspect || err != 0;
    found->is_suspect = found->is_suspect || file->is_suspect;
    if (err != 0) {
        found->damaged++;
        kvd_log(KVD_LOG_ERROR, "cold_unreadable", "segment=%" PRIu64 " error=%s", file->number,
            kvarn_err_label(err));
        kvd_segment_index_fini(cold, &file->index);
        return 0;
    }
    file->hole_bytes = reading.blank_bytes;
    return file_judge(cold, file, &result, found);
}

static int file_open(struct cold_segment *cold, uint64_t number, struct kvd_cold_found *found)
{
    char path[KVARN_COLD_PATH_MAX + 32];
    struct cold_file *file = kvd_segment_file_create(cold);
    struct kvd_file_op open = {.verb = KVD_FILE_OPEN, .path = path, .flags = KVD_FILE_WRITABLE};

    if (file == NULL) {
        return KVARN_ENOMEM;
    }
    kvd_segment_path(cold, number, "kvs", path, sizeof(path));
    file->number = number;
    file->state = COLD_FILE_SEALED;
    file->fd = (int)file_run(cold, &open);
    struct kvd_file_op size = {.verb = KVD_FILE_SIZE, .fd = file->fd};
    int64_t bytes = file->fd < 0 ? file->fd : file_run(cold, &size);
    if (bytes < 0) {
        kvd_log(
            KVD_LOG_ERROR, "cold_failed", "path=%s error=%s", path, kvarn_err_label((int)bytes));
        struct kvd_file_op close = {.verb = KVD_FILE_CLOSE, .fd = file->fd};
        (void)(file->fd < 0 ? 0 : file_run(cold, &close));
        kvd_segment_file_destroy(cold, file);
        return (int)bytes;
    }
    file->size_bytes = (uint64_t)bytes;
    TAILQ_INSERT_TAIL(&cold->files, file, link);
    cold->file_count++;
    found->segments++;
    return file_read(cold, file, found);
}

/* Ranking. */

/*
 * Same type and id side by side, the newest first, tombstones before all. Of two copies of one
 * record the one in the newer file holds: it was verified when it was made, and what it was made
 * from may be punched out.
 */
static int by_rank(const void *a, const void *b)
{
    const struct kvd_cold_record *x = *(struct kvd_cold_record *const *)a;
    const struct kvd_cold_record *y = *(struct kvd_cold_record *const *)b;
    const uint64_t keys[4][2] = {
        {x->id.hi, y->id.hi},
        {x->id.lo, y->id.lo},
        {x->type == KVD_COLD_TOMBSTONE ? 0u : x->type,
            y->type == KVD_COLD_TOMBSTONE ? 0u : y->type},
        {y->sequence, x->sequence},
    };

    for (unsigned i = 0; i < 4; i++) {
        if (keys[i][0] != keys[i][1]) {
            return keys[i][0] < keys[i][1] ? -1 : 1;
        }
    }
    /* Slots are given out by rising number while the folder is read. */
    return (x->place < y->place) - (x->place > y->place);
}

static bool is_same_id(const struct kvd_cold_record *a, const struct kvd_cold_record *b)
{
    return a->id.hi == b->id.hi && a->id.lo == b->id.lo;
}

static void rank(struct cold_segment *cold, struct kvd_cold_record **list, size_t count)
{
    const struct kvd_cold_record *tombstone = NULL; /* of the id at hand */
    const struct kvd_cold_record *best = NULL;      /* of the id and type at hand */

    for (size_t i = 0; i < count; i++) {
        struct kvd_cold_record *record = list[i];
        uint8_t type = record->type;
        if (best == NULL || !is_same_id(best, record)) {
            tombstone = NULL;
        }
        bool is_older = best != NULL && is_same_id(best, record) && best->type == type;
        best = is_older ? best : record;
        bool is_buried = tombstone != NULL && type != KVD_COLD_PAGE && type != KVD_COLD_SHAPE &&
                         record->sequence < tombstone->sequence;
        if (is_older || is_buried || type == KVD_COLD_CLEAN) {
            kvd_segment_record_kill(cold, record);
        } else if (type == KVD_COLD_TOMBSTONE) {
            tombstone = record;
        }
    }
    for (size_t i = 0; i < count; i++) {
        if (list[i]->type == KVD_COLD_TOMBSTONE && !kvd_segment_record_is_dead(list[i])) {
            kvd_segment_subject_bury(cold, list[i]);
        }
    }
}

static int records_rank(struct cold_segment *cold, struct kvd_cold_found *found)
{
    size_t count = 0;
    struct cold_file *file;
    struct kvd_cold_record *record;
    const struct kvd_cold_record *last = NULL;

    found->records = cold->stats.records;
    if (found->records == 0) {
        return 0;
    }
    size_t bytes = found->records * sizeof(struct kvd_cold_record *);
    struct kvd_cold_record **list = kvd_segment_alloc(cold, bytes);
    if (list == NULL) {
        return KVARN_ENOMEM;
    }
    TAILQ_FOREACH(file, &cold->files, link)
    {
        TAILQ_FOREACH(record, &file->records[COLD_RECORD_LIVE], link)
        {
            KVARN_ASSERT(count < found->records);
            list[count++] = record;
            last = last == NULL || record->sequence > last->sequence ? record : last;
        }
    }
    found->is_clean = last != NULL && last->type == KVD_COLD_CLEAN;
    qsort(list, count, sizeof(struct kvd_cold_record *), by_rank);
    rank(cold, list, count);
    kvd_segment_free(cold, list, bytes);
    return 0;
}

/* Sessions that would have come back from what can be read. Returns 0 or KVARN_ENOMEM. */
static int sessions_count(const struct cold_segment *cold, uint64_t *ret)
{
    struct kvd_cold_record **list =
        calloc(cold->stats.records + 1, sizeof(struct kvd_cold_record *));
    struct kvd_cold_record *record;
    struct cold_file *file;
    size_t count = 0;

    if (list == NULL) {
        return KVARN_ENOMEM;
    }
    TAILQ_FOREACH(file, &cold->files, link)
    {
        TAILQ_FOREACH(record, &file->records[COLD_RECORD_LIVE], link)
        {
            if (record->type == KVD_COLD_SESSION || record->type == KVD_COLD_TOMBSTONE) {
                list[count++] = record;
            }
        }
    }
    qsort(list, count, sizeof(struct kvd_cold_record *), by_rank);
    *ret = 0;
    for (size_t i = 0; i < count; i++) {
        bool is_first = i == 0 || !is_same_id(list[i], list[i - 1]);
        bool is_above = !is_first && list[i - 1]->type == KVD_COLD_TOMBSTONE &&
                        list[i]->sequence > list[i - 1]->sequence;
        *ret += list[i]->type == KVD_COLD_SESSION && (is_first || is_above) ? 1 : 0;
    }
    free(list);
    return 0;
}

static int list_numbers(struct cold_segment *cold, struct listing *listing)
{
    struct kvd_file_op list = {
        .verb = KVD_FILE_LIST, .path = cold->dir, .name_cb = name_cb, .ctx = listing};
    int64_t result = file_run(cold, &list);

    if (listing->count > 0) {
        qsort(listing->numbers, listing->count, sizeof(*listing->numbers), by_number);
    }
    return result < 0 ? (int)result : listing->err;
}

/* A segment that never got its name is no segment. */
static int temporaries_remove(struct cold_segment *cold)
{
    struct listing listing = {.suffix = "tmp"};
    int err = list_numbers(cold, &listing);

    for (size_t i = 0; i < listing.count; i++) {
        char path[KVARN_COLD_PATH_MAX + 32];
        struct kvd_file_op op = {.verb = KVD_FILE_UNLINK, .path = path};
        kvd_segment_path(cold, listing.numbers[i], "tmp", path, sizeof(path));
        (void)file_run(cold, &op);
    }
    free(listing.numbers);
    return err;
}

static int files_read(struct cold_segment *cold, struct kvd_cold_found *found)
{
    struct listing listing = {.suffix = "kvs"};
    int err = list_numbers(cold, &listing);

    if (err == 0 && listing.count > KVARN_COLD_SEGMENTS_MAX) {
        kvd_log(KVD_LOG_ERROR, "cold_failed", "dir=%s segments=%zu most=%d", cold->dir,
            listing.count, KVARN_COLD_SEGMENTS_MAX);
        err = KVARN_ETOO_LARGE;
    }
    if (err == 0 && listing.count > 0) {
        cold->number_next = listing.numbers[listing.count - 1] + 1;
    }
    for (size_t i = 0; i < listing.count && err == 0; i++) {
        err = file_open(cold, listing.numbers[i], found);
    }
    free(listing.numbers);
    return err;
}

/*
 * Tombstones may be missing: nothing that is here may come back, at no later start either, when
 * what tells of the loss might be gone or be readable again. So all of it goes, and what tells of
 * the loss goes last.
 */
static int suspects_remove(struct cold_segment *cold)
{
    struct cold_file *file;
    struct cold_file *next;
    int err = 0;

    for (unsigned pass = 0; pass < 2; pass++) {
        TAILQ_FOREACH_SAFE(file, &cold->files, link, next)
        {
            if (err == 0 && file->is_suspect == (pass == 1)) {
                err = file_remove_now(cold, file);
            }
        }
    }
    return err;
}

/* Why the start was refused: what it had read by then, and what that takes in memory. */
static void failure_log(const struct cold_segment *cold, int err)
{
    if (err == KVARN_ENOMEM) {
        kvd_log(KVD_LOG_ERROR, "cold_failed",
            "dir=%s error=%s: %" PRIu64 " records are known by then, in %" PRIu64
            " bytes of a memory limit of %" PRIu64,
            cold->dir, kvarn_err_label(err), cold->stats.records,
            cold->budget->kind_bytes[KVD_BUDGET_COLD], cold->budget->limit_bytes);
    } else {
        kvd_log(KVD_LOG_ERROR, "cold_failed", "dir=%s error=%s", cold->dir, kvarn_err_label(err));
    }
}

int kvd_segment_recover(struct cold_segment *cold, struct kvd_cold_found *found)
{
    uint64_t start_ns = cold->io->ops->now_ns(cold->io);
    const struct cold_file *file;
    int err = temporaries_remove(cold);

    err = err != 0 ? err : files_read(cold, found);
    if (err == 0 && found->is_suspect) {
        err = sessions_count(cold, &found->sessions_lost);
        err = err != 0 ? err : suspects_remove(cold);
    }
    if (err == 0 && cold->tier_id == 0) {
        err = cold->io->ops->random(cold->io, &cold->tier_id, sizeof(cold->tier_id));
    }
    if (err == 0) {
        err = records_rank(cold, found);
    }
    if (err != 0) {
        failure_log(cold, err);
        return err;
    }
    TAILQ_FOREACH(file, &cold->files, link)
    {
        cold->used_bytes += kvd_segment_file_taken(file);
    }
    found->duration_ns = cold->io->ops->now_ns(cold->io) - start_ns;
    kvd_log(KVD_LOG_INFO, "cold_opened",
        "dir=%s segments=%" PRIu64 " scanned=%" PRIu64 " records=%" PRIu64 " torn=%" PRIu64
        " damaged=%" PRIu64 " clean=%d ms=%" PRIu64,
        cold->dir, found->segments, found->scanned_segments, found->records, found->torn,
        found->damaged, found->is_clean ? 1 : 0, found->duration_ns / 1000000);
    return 0;
}
