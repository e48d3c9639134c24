/*
 * Reading: a record comes back verified, or not at all.
 *
 * Owner: cold_segment.c. Thread: loop only, but for verify_run() on a worker.
 */
#include <stdlib.h>
#include <string.h>
#define XXH_STATIC_LINKING_ONLY /* a hash state on the stack */
#include "lib/base/xxh3.h"
#include <zstd.h>

#include "lib/base/assert.h"
#include "server/cold/cold_segment_impl.h"

struct cold_read {
    struct kvd_job job;        /* first: the worker's handle */
    struct cold_segment *cold; /* borrowed */
    struct kvd_cold_get *get;  /* borrowed */
    struct cold_file *file;    /* borrowed; counts as a reader */
    uint64_t salt;             /* of the file */
    struct kvd_record_header header;
    uint64_t offset; /* of the copy that is read */
    struct kvd_file_op op;
    struct iovec *vecs; /* owned: meta, then the stored body */
    unsigned vec_count;
    uint8_t *meta; /* owned: header and head */
    size_t meta_bytes;
    size_t charged_bytes;
    uint8_t *packed; /* owned: a compressed body; NULL: the body goes where it is wanted */
    bool is_second;  /* the second copy is tried */
    int err;
};

/* zstd frame in one stretch -> the stretches that it is wanted in. */
static int unpack(const struct cold_read *read)
{
    ZSTD_DCtx *zstd = ZSTD_createDCtx();
    ZSTD_inBuffer in = {read->packed, read->header.body_bytes, 0};
    int err = zstd == NULL ? KVARN_ENOMEM : 0;
    size_t left = 1;

    for (unsigned i = 0; i < read->get->vec_count && err == 0; i++) {
        ZSTD_outBuffer out = {read->get->vecs[i].iov_base, read->get->vecs[i].iov_len, 0};
        while (err == 0 && out.pos < out.size) {
            size_t before = in.pos + out.pos;
            left = ZSTD_decompressStream(zstd, &out, &in);
            bool is_stuck = in.pos + out.pos == before;
            err = ZSTD_isError(left) || is_stuck ? KVARN_ECORRUPT : 0;
        }
    }
    if (err == 0 && left != 0) {
        /* The frame's end may be left to be read, and yield nothing. */
        uint8_t more;
        ZSTD_outBuffer out = {&more, 1, 0};
        left = ZSTD_decompressStream(zstd, &out, &in);
        err = left != 0 || out.pos != 0 ? KVARN_ECORRUPT : 0;
    }
    (void)ZSTD_freeDCtx(zstd);
    return err == 0 && in.pos != in.size ? KVARN_ECORRUPT : err;
}

static bool is_same_record(const struct kvd_record_header *a, const struct kvd_record_header *b)
{
    return a->type == b->type && a->id.hi == b->id.hi && a->id.lo == b->id.lo &&
           a->sequence == b->sequence && a->tenant_id == b->tenant_id && a->flags == b->flags &&
           a->head_bytes == b->head_bytes && a->body_bytes == b->body_bytes &&
           a->raw_bytes == b->raw_bytes;
}

static int verify(struct cold_read *read)
{
    struct kvd_record_header found;
    XXH3_state_t state;

    if (kvd_record_header_decode(read->meta, read->salt, &found) != 0 ||
        !is_same_record(&found, &read->header) ||
        XXH3_64bits(read->meta + KVD_RECORD_HEADER_BYTES, found.head_bytes) != found.head_hash) {
        return KVARN_ECORRUPT;
    }
    if (read->vec_count == 1) {
        return 0; /* the head alone was wanted, or there is no body */
    }
    (void)XXH3_64bits_reset(&state);
    for (unsigned i = 1; i < read->vec_count; i++) {
        (void)XXH3_64bits_update(&state, read->vecs[i].iov_base, read->vecs[i].iov_len);
    }
    if (XXH3_64bits_digest(&state) != found.body_hash) {
        return KVARN_ECORRUPT;
    }
    return read->packed != NULL ? unpack(read) : 0;
}

static void verify_run(struct kvd_job *job, void *scratch)
{
    struct cold_read *read = (struct cold_read *)(void *)job;

    (void)scratch;
    read->err = verify(read);
}

static void read_free(struct cold_read *read)
{
    kvd_budget_release(read->cold->budget, KVD_BUDGET_COLD, read->charged_bytes);
    free(read->meta);
    free(read->vecs);
    free(read->packed);
    free(read);
}

/*
 * Where header, head and body go; the file may not lose a byte until it is done. Returns NULL
 * without memory.
 */
static struct cold_read *read_create(struct cold_segment *cold, struct kvd_cold_get *get)
{
    const struct kvd_cold_record *record = get->record;
    bool is_packed = get->vecs != NULL && (record->flags & KVD_RECORD_ZSTD) != 0;
    size_t meta_bytes = (size_t)kvd_record_body_offset(record->head_bytes);
    unsigned vec_count = 1 + (is_packed ? 1 : get->vecs != NULL ? get->vec_count : 0);
    size_t charge = sizeof(struct cold_read) + meta_bytes + vec_count * sizeof(struct iovec) +
                    (is_packed ? record->body_bytes : 0);

    if (kvd_budget_charge(cold->budget, KVD_BUDGET_COLD, charge) != 0) {
        return NULL;
    }
    struct cold_read *read = calloc(1, sizeof(*read));
    if (read == NULL) {
        kvd_budget_release(cold->budget, KVD_BUDGET_COLD, charge);
        return NULL;
    }
    read->cold = cold;
    read->get = get;
    read->file = kvd_segment_record_file(cold, record);
    read->salt = read->file->salt;
    read->charged_bytes = charge;
    read->header = kvd_segment_record_header(record);
    read->offset = kvd_segment_record_offset(record);
    read->meta_bytes = meta_bytes;
    read->vec_count = vec_count;
    read->meta = malloc(meta_bytes);
    read->vecs = calloc(vec_count, sizeof(*read->vecs));
    read->packed = is_packed ? malloc(record->body_bytes) : NULL;
    if (read->meta == NULL || read->vecs == NULL || (is_packed && read->packed == NULL)) {
        read_free(read);
        return NULL;
    }
    read->vecs[0] = (struct iovec){read->meta, read->meta_bytes};
    if (is_packed) {
        read->vecs[1] = (struct iovec){read->packed, record->body_bytes};
    } else if (get->vecs != NULL) {
        memcpy(read->vecs + 1, get->vecs, get->vec_count * sizeof(*read->vecs));
    }
    return read;
}

static uint64_t wanted_bytes(const struct cold_read *read)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < read->vec_count; i++) {
        bytes += read->vecs[i].iov_len;
    }
    return bytes;
}

static void op_fill(struct cold_read *read, void (*done)(struct kvd_file_op *op))
{
    read->op = (struct kvd_file_op){.verb = KVD_FILE_READ,
        .fd = read->file->fd,
        .vecs = read->vecs,
        .vec_count = read->vec_count,
        .offset = read->offset,
        .ctx = read,
        .done = done};
}

/* A file that ends too early holds nothing of use; a failed read may be tried again by the caller.
 */
static int read_result(const struct cold_read *read)
{
    if (read->op.result < 0) {
        return (int)read->op.result;
    }
    return (uint64_t)read->op.result == wanted_bytes(read) ? 0 : KVARN_ECORRUPT;
}

/* Whether the second copy is still to be tried; then it is what comes next. */
static bool second_try(struct cold_read *read)
{
    if ((read->header.flags & KVD_RECORD_TWICE) == 0 || read->is_second) {
        return false;
    }
    read->is_second = true;
    read->offset += kvd_record_copy_bytes(read->header.head_bytes, read->header.body_bytes);
    return true;
}

static int read_end(struct cold_read *read, int err)
{
    struct cold_segment *cold = read->cold;

    if (err == 0 && read->get->head != NULL && read->header.head_bytes > 0) {
        memcpy(read->get->head, read->meta + KVD_RECORD_HEADER_BYTES, read->header.head_bytes);
    }
    if (err == 0) {
        cold->stats.got_bytes += read->get->vecs != NULL ? read->header.raw_bytes : 0;
    } else {
        cold->stats.get_failures++;
        cold->stats.corrupt += err == KVARN_ECORRUPT ? 1 : 0;
    }
    return err;
}

static void get_finish(struct cold_read *read, int err)
{
    struct cold_segment *cold = read->cold;
    struct kvd_cold_get *get = read->get;

    err = read_end(read, err);
    KVARN_ASSERT(cold->gets > 0 && read->file->readers > 0);
    cold->gets--;
    read->file->readers--;
    read_free(read);
    get->done(get, err);
    kvd_segment_pump_soon(cold);
}

static void get_op_cb(struct kvd_file_op *op);

static void get_verified(struct cold_read *read, int err)
{
    if (err != 0 && second_try(read)) {
        op_fill(read, get_op_cb);
        read->cold->io->ops->file_submit(read->cold->io, &read->op);
        return;
    }
    get_finish(read, err);
}

static void verify_done(struct kvd_job *job)
{
    struct cold_read *read = (struct cold_read *)(void *)job;

    get_verified(read, read->err);
}

static void get_op_cb(struct kvd_file_op *op)
{
    struct cold_read *read = op->ctx;
    int err = read_result(read);

    if (err != 0) {
        get_verified(read, err);
        return;
    }
    read->job.run = verify_run;
    read->job.done = verify_done;
    kvd_workers_submit(read->cold->workers, &read->job);
}

static void get_check(const struct kvd_cold_get *get)
{
    uint64_t bytes = 0;

    KVARN_ASSERT(
        get->record->state == COLD_RECORD_LIVE || get->record->state == COLD_RECORD_MOVING);
    for (unsigned i = 0; i < get->vec_count; i++) {
        bytes += get->vecs[i].iov_len;
    }
    KVARN_ASSERT(get->vecs == NULL || bytes == get->record->raw_bytes);
    KVARN_ASSERT(get->vec_count + 1 <= KVD_FILE_VECS_MAX);
}

int kvd_segment_get(struct kvd_cold *base, struct kvd_cold_get *get)
{
    struct cold_segment *cold = kvd_segment_of(base);

    get_check(get);
    KVARN_ASSERT(get->done != NULL);
    struct cold_read *read = read_create(cold, get);
    if (read == NULL) {
        return KVARN_ENOMEM;
    }
    cold->gets++;
    read->file->readers++;
    op_fill(read, get_op_cb);
    cold->io->ops->file_submit(cold->io, &read->op);
    return 0;
}

int kvd_segment_get_now(struct kvd_cold *base, struct kvd_cold_get *get)
{
    struct cold_segment *cold = kvd_segment_of(base);

    get_check(get);
    struct cold_read *read = read_create(cold, get);
    if (read == NULL) {
        return KVARN_ENOMEM;
    }
    int err;
    do {
        op_fill(read, NULL);
        (void)cold->io->ops->file_run(cold->io, &read->op);
        err = read_result(read);
        err = err != 0 ? err : verify(read);
    } while (err != 0 && second_try(read));
    err = read_end(read, err);
    read_free(read);
    return err;
}
