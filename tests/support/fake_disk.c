/*
 * A disk in memory.
 *
 * Thread: one. Names map to inodes; an inode lives while the disk does, so that the record of
 * operations can name it by its index.
 */
#include "tests/support/fake_disk.h"

#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "tests/support/rng.h"

#define NAME_MAX_BYTES 200
#define NAMES_MAX      128
#define INODES_MAX     1024
#define FDS_MAX        128
#define FD_FIRST       100

struct inode {
    uint8_t *data; /* owned */
    size_t bytes;
    size_t room;
    uint8_t *has_block; /* owned: by block, whether it takes room */
    bool is_locked;
};

struct name {
    char path[NAME_MAX_BYTES];
    unsigned inode_idx;
    bool is_dir;
};

/* One operation that changed something. */
struct record {
    enum kvd_file_verb verb;
    unsigned inode_idx;
    uint64_t offset, bytes;
    uint8_t *data; /* owned: of writes */
    char *path;    /* owned: of names */
    char *path_to; /* owned */
};

struct order {
    unsigned skip, count;
    int err;
};

struct kvd_fake_disk {
    struct kvd_fake_disk *base; /* owned: what was there before the first record; NULL: nothing */
    struct inode *inodes;       /* owned */
    unsigned inode_count;
    struct name *names; /* owned */
    unsigned name_count;
    int fd_inode[FDS_MAX]; /* -1: free */
    bool fd_has_lock[FDS_MAX];
    struct record *records; /* owned */
    size_t record_count, record_room;
    struct order orders[KVD_FILE_VERB_COUNT];
    unsigned rate_permille;
    int rate_err;
    struct kvt_rng rate_rng;
    unsigned fault_count;
    uint64_t room_bytes, used_bytes, used_bytes_max, written_bytes;
};

static void *take(size_t count, size_t bytes)
{
    void *memory = calloc(count > 0 ? count : 1, bytes);

    KVARN_ASSERT(memory != NULL);
    return memory;
}

struct kvd_fake_disk *kvd_fake_disk_create(void)
{
    struct kvd_fake_disk *disk = take(1, sizeof(*disk));

    disk->inodes = take(INODES_MAX, sizeof(*disk->inodes));
    disk->names = take(NAMES_MAX, sizeof(*disk->names));
    for (unsigned i = 0; i < FDS_MAX; i++) {
        disk->fd_inode[i] = -1;
    }
    return disk;
}

void kvd_fake_disk_destroy(struct kvd_fake_disk *disk)
{
    if (disk == NULL) {
        return;
    }
    for (unsigned i = 0; i < disk->inode_count; i++) {
        free(disk->inodes[i].data);
        free(disk->inodes[i].has_block);
    }
    for (size_t i = 0; i < disk->record_count; i++) {
        free(disk->records[i].data);
        free(disk->records[i].path);
        free(disk->records[i].path_to);
    }
    kvd_fake_disk_destroy(disk->base);
    free(disk->inodes);
    free(disk->names);
    free(disk->records);
    free(disk);
}

void kvd_fake_disk_close_all(struct kvd_fake_disk *disk)
{
    for (unsigned i = 0; i < FDS_MAX; i++) {
        disk->fd_inode[i] = -1;
        disk->fd_has_lock[i] = false;
    }
    for (unsigned i = 0; i < disk->inode_count; i++) {
        disk->inodes[i].is_locked = false;
    }
}

/* Inodes. */

static void inode_resize(struct kvd_fake_disk *disk, struct inode *inode, size_t bytes)
{
    if (bytes > inode->room) {
        size_t room = (bytes + KVD_FAKE_BLOCK - 1) / KVD_FAKE_BLOCK * KVD_FAKE_BLOCK;
        inode->data = realloc(inode->data, room);
        inode->has_block = realloc(inode->has_block, room / KVD_FAKE_BLOCK);
        KVARN_ASSERT(inode->data != NULL && inode->has_block != NULL);
        memset(inode->data + inode->room, 0, room - inode->room);
        memset(inode->has_block + inode->room / KVD_FAKE_BLOCK, 0,
            (room - inode->room) / KVD_FAKE_BLOCK);
        inode->room = room;
    }
    for (size_t b = (bytes + KVD_FAKE_BLOCK - 1) / KVD_FAKE_BLOCK; b < inode->room / KVD_FAKE_BLOCK;
         b++) {
        disk->used_bytes -= inode->has_block[b] ? KVD_FAKE_BLOCK : 0;
        inode->has_block[b] = 0;
    }
    if (bytes < inode->bytes) {
        memset(inode->data + bytes, 0, inode->bytes - bytes);
    }
    inode->bytes = bytes;
}

/* Take the room of [offset, offset + bytes). Returns how much of it there was room for. */
static size_t inode_allocate(
    struct kvd_fake_disk *disk, struct inode *inode, size_t offset, size_t bytes)
{
    size_t end = offset + bytes;
    size_t first = offset / KVD_FAKE_BLOCK;

    if (end > inode->bytes) {
        inode_resize(disk, inode, end);
    }
    for (size_t b = first; b * KVD_FAKE_BLOCK < end; b++) {
        if (inode->has_block[b]) {
            continue;
        }
        if (disk->room_bytes > 0 && disk->used_bytes + KVD_FAKE_BLOCK > disk->room_bytes) {
            return b > first ? b * KVD_FAKE_BLOCK - offset : 0;
        }
        inode->has_block[b] = 1;
        disk->used_bytes += KVD_FAKE_BLOCK;
    }
    if (disk->used_bytes > disk->used_bytes_max) {
        disk->used_bytes_max = disk->used_bytes;
    }
    return bytes;
}

static void inode_punch(
    struct kvd_fake_disk *disk, struct inode *inode, size_t offset, size_t bytes)
{
    size_t end = offset + bytes < inode->bytes ? offset + bytes : inode->bytes;

    if (offset >= end) {
        return;
    }
    memset(inode->data + offset, 0, end - offset);
    for (size_t b = (offset + KVD_FAKE_BLOCK - 1) / KVD_FAKE_BLOCK; (b + 1) * KVD_FAKE_BLOCK <= end;
         b++) {
        disk->used_bytes -= inode->has_block[b] ? KVD_FAKE_BLOCK : 0;
        inode->has_block[b] = 0;
    }
}

/* Names. */

static struct name *name_find(const struct kvd_fake_disk *disk, const char *path)
{
    for (unsigned i = 0; i < disk->name_count; i++) {
        if (strcmp(disk->names[i].path, path) == 0) {
            return &disk->names[i];
        }
    }
    return NULL;
}

static struct name *name_add(struct kvd_fake_disk *disk, const char *path, unsigned inode_idx)
{
    KVARN_ASSERT(disk->name_count < NAMES_MAX && strlen(path) < NAME_MAX_BYTES);
    struct name *name = &disk->names[disk->name_count++];
    memset(name, 0, sizeof(*name));
    memcpy(name->path, path, strlen(path) + 1);
    name->inode_idx = inode_idx;
    return name;
}

static void name_remove(struct kvd_fake_disk *disk, struct name *name)
{
    struct inode *inode = &disk->inodes[name->inode_idx];

    if (!name->is_dir) {
        for (size_t b = 0; b < inode->room / KVD_FAKE_BLOCK; b++) {
            disk->used_bytes -= inode->has_block[b] ? KVD_FAKE_BLOCK : 0;
            inode->has_block[b] = 0;
        }
    }
    *name = disk->names[--disk->name_count];
}

static void name_move(struct kvd_fake_disk *disk, struct name *name, const char *path_to)
{
    struct name *old = name_find(disk, path_to);
    unsigned inode_idx = name->inode_idx;

    *name = disk->names[--disk->name_count];
    old = name_find(disk, path_to);
    if (old != NULL) {
        name_remove(disk, old);
    }
    (void)name_add(disk, path_to, inode_idx);
}

static unsigned inode_new(struct kvd_fake_disk *disk)
{
    KVARN_ASSERT(disk->inode_count < INODES_MAX);
    return disk->inode_count++;
}

/* The record. */

static char *copy_text(const char *text)
{
    char *copy = text == NULL ? NULL : strdup(text);

    KVARN_ASSERT(text == NULL || copy != NULL);
    return copy;
}

static struct record *record_add(
    struct kvd_fake_disk *disk, const struct kvd_file_op *op, unsigned inode_idx)
{
    if (disk->record_count == disk->record_room) {
        disk->record_room = disk->record_room == 0 ? 256 : 2 * disk->record_room;
        disk->records = realloc(disk->records, disk->record_room * sizeof(*disk->records));
        KVARN_ASSERT(disk->records != NULL);
    }
    struct record *record = &disk->records[disk->record_count++];
    *record = (struct record){.verb = op->verb,
        .inode_idx = inode_idx,
        .offset = op->offset,
        .bytes = op->bytes,
        .path = copy_text(op->path),
        .path_to = copy_text(op->path_to)};
    return record;
}

/* Faults. */

static int fault_of(struct kvd_fake_disk *disk, enum kvd_file_verb verb)
{
    struct order *order = &disk->orders[verb];
    bool is_rated = verb == KVD_FILE_WRITE || verb == KVD_FILE_SYNC || verb == KVD_FILE_ALLOCATE;

    if (order->count > 0) {
        if (order->skip > 0) {
            order->skip--;
        } else {
            order->count--;
            disk->fault_count++;
            return order->err;
        }
    }
    if (is_rated && disk->rate_permille > 0 &&
        kvt_rng_below(&disk->rate_rng, 1000) < disk->rate_permille) {
        disk->fault_count++;
        return disk->rate_err;
    }
    return 0;
}

void kvd_fake_disk_fail(
    struct kvd_fake_disk *disk, enum kvd_file_verb verb, unsigned skip, unsigned count, int err)
{
    disk->orders[verb] = (struct order){.skip = skip, .count = count, .err = err};
}

void kvd_fake_disk_fail_rate(struct kvd_fake_disk *disk, unsigned permille, int err, uint64_t seed)
{
    disk->rate_permille = permille;
    disk->rate_err = err;
    disk->rate_rng.state = seed;
}

/* Operations. */

static struct inode *inode_of(struct kvd_fake_disk *disk, const struct kvd_file_op *op)
{
    KVARN_ASSERT(op->fd >= FD_FIRST && op->fd < FD_FIRST + FDS_MAX);
    KVARN_ASSERT(disk->fd_inode[op->fd - FD_FIRST] >= 0);
    return &disk->inodes[disk->fd_inode[op->fd - FD_FIRST]];
}

static unsigned inode_idx_of(const struct kvd_fake_disk *disk, const struct kvd_file_op *op)
{
    return (unsigned)disk->fd_inode[op->fd - FD_FIRST];
}

static int64_t do_open(struct kvd_fake_disk *disk, struct kvd_file_op *op)
{
    struct name *name = name_find(disk, op->path);
    unsigned slot = 0;

    if (name != NULL && (op->flags & KVD_FILE_MUST_NEW) != 0) {
        return KVARN_ECONFLICT;
    }
    if (name == NULL && (op->flags & KVD_FILE_MAKE) == 0) {
        return KVARN_ENOT_FOUND;
    }
    if (name == NULL) {
        name = name_add(disk, op->path, inode_new(disk));
        (void)record_add(disk, op, name->inode_idx);
    }
    while (disk->fd_inode[slot] >= 0) {
        slot++;
        KVARN_ASSERT(slot < FDS_MAX);
    }
    disk->fd_inode[slot] = (int)name->inode_idx;
    disk->fd_has_lock[slot] = false;
    return (int64_t)slot + FD_FIRST;
}

static int64_t do_close(struct kvd_fake_disk *disk, const struct kvd_file_op *op)
{
    struct inode *inode = inode_of(disk, op);
    unsigned slot = (unsigned)(op->fd - FD_FIRST);

    inode->is_locked = inode->is_locked && !disk->fd_has_lock[slot];
    disk->fd_inode[slot] = -1;
    return 0;
}

static int64_t do_read(struct kvd_fake_disk *disk, const struct kvd_file_op *op)
{
    const struct inode *inode = inode_of(disk, op);
    size_t at = op->offset;
    size_t done = 0;

    for (unsigned i = 0; i < op->vec_count && at < inode->bytes; i++) {
        size_t left = inode->bytes - at;
        size_t bytes = op->vecs[i].iov_len < left ? op->vecs[i].iov_len : left;
        memcpy(op->vecs[i].iov_base, inode->data + at, bytes);
        at += bytes;
        done += bytes;
    }
    return (int64_t)done;
}

/* A fault writes half of what was asked: a short write whose rest failed. */
static int64_t do_write(struct kvd_fake_disk *disk, struct kvd_file_op *op, int fault)
{
    struct inode *inode = inode_of(disk, op);
    size_t total = 0;

    for (unsigned i = 0; i < op->vec_count; i++) {
        total += op->vecs[i].iov_len;
    }
    size_t wanted = fault != 0 ? total / 2 : total;
    size_t room = inode_allocate(disk, inode, op->offset, wanted);
    struct record *record = record_add(disk, op, inode_idx_of(disk, op));
    record->bytes = room;
    record->data = take(1, room > 0 ? room : 1);
    size_t at = 0;
    for (unsigned i = 0; i < op->vec_count && at < room; i++) {
        size_t bytes = op->vecs[i].iov_len < room - at ? op->vecs[i].iov_len : room - at;
        memcpy(record->data + at, op->vecs[i].iov_base, bytes);
        at += bytes;
    }
    memcpy(inode->data + op->offset, record->data, room);
    disk->written_bytes += room;
    if (fault != 0) {
        return fault;
    }
    return room < total ? KVARN_ENOSPC : (int64_t)total;
}

static int64_t do_lock(struct kvd_fake_disk *disk, const struct kvd_file_op *op)
{
    struct inode *inode = inode_of(disk, op);

    if (inode->is_locked) {
        return KVARN_ECONFLICT;
    }
    inode->is_locked = true;
    disk->fd_has_lock[op->fd - FD_FIRST] = true;
    return 0;
}

static int64_t do_list(const struct kvd_fake_disk *disk, const struct kvd_file_op *op)
{
    size_t bytes = strlen(op->path);

    for (unsigned i = 0; i < disk->name_count; i++) {
        const char *path = disk->names[i].path;
        if (strncmp(path, op->path, bytes) == 0 && path[bytes] == '/') {
            op->name_cb(op->ctx, path + bytes + 1);
        }
    }
    return 0;
}

static int64_t do_names(struct kvd_fake_disk *disk, const struct kvd_file_op *op)
{
    struct name *name = name_find(disk, op->path);

    if (op->verb == KVD_FILE_MAKE_DIR) {
        if (name != NULL) {
            return 1;
        }
        name_add(disk, op->path, 0)->is_dir = true;
        return 0; /* folders are not lost: what they hold is what the tests are about */
    }
    if (op->verb == KVD_FILE_SYNC_DIR) {
        (void)record_add(disk, op, 0);
        return 0;
    }
    if (name == NULL) {
        return KVARN_ENOT_FOUND;
    }
    (void)record_add(disk, op, name->inode_idx);
    if (op->verb == KVD_FILE_RENAME) {
        name_move(disk, name, op->path_to);
    } else {
        name_remove(disk, name);
    }
    return 0;
}

/* Operations on an open file that change it, but for writes. */
static int64_t do_change(struct kvd_fake_disk *disk, const struct kvd_file_op *op)
{
    struct inode *inode = inode_of(disk, op);

    (void)record_add(disk, op, inode_idx_of(disk, op));
    if (op->verb == KVD_FILE_ALLOCATE) {
        size_t room = inode_allocate(disk, inode, op->offset, op->bytes);
        return room < op->bytes ? KVARN_ENOSPC : 0;
    }
    if (op->verb == KVD_FILE_PUNCH) {
        inode_punch(disk, inode, op->offset, op->bytes);
    } else if (op->verb == KVD_FILE_RESIZE) {
        inode_resize(disk, inode, op->bytes);
    }
    return 0;
}

static int64_t perform(struct kvd_fake_disk *disk, struct kvd_file_op *op, int fault)
{
    if (op->verb == KVD_FILE_WRITE) {
        return do_write(disk, op, fault);
    }
    if (op->verb == KVD_FILE_CLOSE) {
        return do_close(disk, op); /* a descriptor is gone, whatever close says */
    }
    if (fault != 0) {
        return fault;
    }
    switch (op->verb) {
    case KVD_FILE_OPEN:
        return do_open(disk, op);
    case KVD_FILE_READ:
        return do_read(disk, op);
    case KVD_FILE_SIZE:
        return (int64_t)inode_of(disk, op)->bytes;
    case KVD_FILE_LOCK:
        return do_lock(disk, op);
    case KVD_FILE_LIST:
        return do_list(disk, op);
    case KVD_FILE_RENAME:
    case KVD_FILE_UNLINK:
    case KVD_FILE_SYNC_DIR:
    case KVD_FILE_MAKE_DIR:
        return do_names(disk, op);
    default:
        return do_change(disk, op);
    }
}

int64_t kvd_fake_disk_perform(struct kvd_fake_disk *disk, struct kvd_file_op *op)
{
    op->result = perform(disk, op, fault_of(disk, op->verb));
    return op->result;
}

/* The power cut. */

/* How a seed treats what was not synced. */
struct lottery {
    uint64_t mode; /* 0: lost, 1: kept, else: by chance */
    struct kvt_rng rng;
};

static bool is_kept(struct lottery *lottery)
{
    return lottery->mode == 1 || (lottery->mode > 1 && kvt_rng_below(&lottery->rng, 2) != 0);
}

/* Redo a change of an inode; `lottery` NULL: all of it. */
static void inode_redo(
    struct kvd_fake_disk *disk, const struct record *record, struct lottery *lottery)
{
    struct inode *inode = &disk->inodes[record->inode_idx];
    size_t step;

    if (record->verb == KVD_FILE_RESIZE) {
        if (lottery == NULL || is_kept(lottery)) {
            inode_resize(disk, inode, record->bytes);
        }
        return;
    }
    for (size_t at = record->offset; at < record->offset + record->bytes; at += step) {
        step = KVD_FAKE_BLOCK - at % KVD_FAKE_BLOCK;
        if (step > record->offset + record->bytes - at) {
            step = record->offset + record->bytes - at;
        }
        if (lottery != NULL && !is_kept(lottery)) {
            continue;
        }
        if (record->verb == KVD_FILE_PUNCH) {
            inode_punch(disk, inode, at, step);
            continue;
        }
        (void)inode_allocate(disk, inode, at, step);
        if (record->verb == KVD_FILE_WRITE) {
            memcpy(inode->data + at, record->data + (at - record->offset), step);
        }
    }
}

static void name_redo(struct kvd_fake_disk *disk, const struct record *record)
{
    struct name *name = name_find(disk, record->path);

    if (record->verb == KVD_FILE_OPEN) {
        if (name == NULL) {
            (void)name_add(disk, record->path, record->inode_idx);
        }
    } else if (name != NULL && name->inode_idx == record->inode_idx) {
        if (record->verb == KVD_FILE_RENAME) {
            name_move(disk, name, record->path_to);
        } else {
            name_remove(disk, name);
        }
    }
}

static bool is_name_verb(enum kvd_file_verb verb)
{
    return verb == KVD_FILE_OPEN || verb == KVD_FILE_RENAME || verb == KVD_FILE_UNLINK;
}

/* Whether a later sync among the first `op_count` operations makes record `idx` last. */
static bool is_synced(const struct kvd_fake_disk *disk, size_t idx, size_t op_count)
{
    const struct record *record = &disk->records[idx];

    for (size_t i = idx + 1; i < op_count; i++) {
        const struct record *later = &disk->records[i];
        if (is_name_verb(record->verb)
                ? later->verb == KVD_FILE_SYNC_DIR
                : later->verb == KVD_FILE_SYNC && later->inode_idx == record->inode_idx) {
            return true;
        }
    }
    return false;
}

/* Make an empty disk hold what another does. */
static void state_copy(struct kvd_fake_disk *dst, const struct kvd_fake_disk *src)
{
    dst->inode_count = src->inode_count;
    for (unsigned i = 0; i < src->inode_count; i++) {
        const struct inode *from = &src->inodes[i];
        if (from->room == 0) {
            continue;
        }
        inode_resize(dst, &dst->inodes[i], 0);
        inode_resize(dst, &dst->inodes[i], from->bytes);
        memcpy(dst->inodes[i].data, from->data, from->bytes);
        size_t blocks = dst->inodes[i].room / KVD_FAKE_BLOCK;
        memcpy(dst->inodes[i].has_block, from->has_block, blocks);
    }
    memcpy(dst->names, src->names, src->name_count * sizeof(*src->names));
    dst->name_count = src->name_count;
    dst->used_bytes = src->used_bytes;
    dst->used_bytes_max = src->used_bytes;
}

struct kvd_fake_disk *kvd_fake_disk_cut(
    const struct kvd_fake_disk *disk, size_t op_count, uint64_t seed)
{
    struct kvd_fake_disk *left = kvd_fake_disk_create();
    struct lottery lottery = {.mode = seed % 4, .rng = {seed}};

    KVARN_ASSERT(op_count <= disk->record_count);
    if (disk->base != NULL) {
        state_copy(left, disk->base);
    }
    left->inode_count = disk->inode_count;
    for (unsigned i = 0; i < disk->name_count; i++) {
        if (disk->names[i].is_dir && name_find(left, disk->names[i].path) == NULL) {
            name_add(left, disk->names[i].path, 0)->is_dir = true;
        }
    }
    for (size_t i = 0; i < op_count; i++) {
        const struct record *record = &disk->records[i];
        if (record->verb == KVD_FILE_SYNC || record->verb == KVD_FILE_SYNC_DIR) {
            continue;
        }
        bool is_safe = is_synced(disk, i, op_count);
        if (!is_name_verb(record->verb)) {
            inode_redo(left, record, is_safe ? NULL : &lottery);
        } else if (is_safe || is_kept(&lottery)) {
            name_redo(left, record);
        }
    }
    left->base = kvd_fake_disk_create();
    state_copy(left->base, left);
    return left;
}

struct kvd_fake_disk *kvd_fake_disk_tear(
    const struct kvd_fake_disk *disk, size_t op_idx, size_t block_count, uint64_t seed)
{
    const struct record *record = &disk->records[op_idx];
    size_t kept = block_count * KVD_FAKE_BLOCK;

    if (op_idx >= disk->record_count || record->verb != KVD_FILE_WRITE || kept >= record->bytes) {
        return NULL;
    }
    struct kvd_fake_disk *left = kvd_fake_disk_cut(disk, op_idx, 1);
    struct record torn = *record;
    torn.bytes = kept;
    inode_redo(left, &torn, NULL);
    if ((seed & 1) != 0) {
        struct kvt_rng rng = {seed};
        struct inode *inode = &left->inodes[record->inode_idx];
        (void)inode_allocate(left, inode, record->offset + kept, 1);
        for (size_t i = record->offset + kept; i < inode->bytes && i % KVD_FAKE_BLOCK < 4095; i++) {
            inode->data[i] = (uint8_t)kvt_rng_u64(&rng);
        }
    }
    state_copy(left->base, left);
    return left;
}

/* What tests look at. */

size_t kvd_fake_disk_op_count(const struct kvd_fake_disk *disk)
{
    return disk->record_count;
}

void kvd_fake_disk_set_room(struct kvd_fake_disk *disk, uint64_t bytes)
{
    disk->room_bytes = bytes;
}

uint64_t kvd_fake_disk_used(const struct kvd_fake_disk *disk)
{
    return disk->used_bytes;
}

uint64_t kvd_fake_disk_used_max(const struct kvd_fake_disk *disk)
{
    return disk->used_bytes_max;
}

uint64_t kvd_fake_disk_written(const struct kvd_fake_disk *disk)
{
    return disk->written_bytes;
}

unsigned kvd_fake_disk_fault_count(const struct kvd_fake_disk *disk)
{
    return disk->fault_count;
}

uint8_t *kvd_fake_disk_data(struct kvd_fake_disk *disk, const char *path, size_t *ret_bytes)
{
    const struct name *name = name_find(disk, path);

    if (name == NULL) {
        return NULL;
    }
    *ret_bytes = disk->inodes[name->inode_idx].bytes;
    return disk->inodes[name->inode_idx].data;
}

unsigned kvd_fake_disk_names(
    const struct kvd_fake_disk *disk, void (*cb)(void *ctx, const char *path), void *ctx)
{
    unsigned count = 0;

    for (unsigned i = 0; i < disk->name_count; i++) {
        if (!disk->names[i].is_dir) {
            cb(ctx, disk->names[i].path);
            count++;
        }
    }
    return count;
}

void kvd_fake_disk_put(struct kvd_fake_disk *disk, const char *path, const void *data, size_t bytes)
{
    const struct name *name = name_find(disk, path);

    if (name == NULL) {
        name = name_add(disk, path, inode_new(disk));
    }
    struct inode *inode = &disk->inodes[name->inode_idx];
    inode_resize(disk, inode, bytes);
    (void)inode_allocate(disk, inode, 0, bytes);
    memcpy(inode->data, data, bytes);
}
