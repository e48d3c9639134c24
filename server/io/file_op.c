/*
 * File operations by system calls.
 *
 * Owner: none. Thread: any.
 */
#include "server/io/file_op.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/base/assert.h"

static int from_errno(int code)
{
    switch (code) {
    case ENOSPC:
    case EDQUOT:
        return KVARN_ENOSPC;
    case ENOENT:
        return KVARN_ENOT_FOUND;
    case EEXIST:
    case EWOULDBLOCK:
        return KVARN_ECONFLICT;
    case EACCES:
    case EPERM:
    case EROFS:
        return KVARN_EFORBIDDEN;
    case EOPNOTSUPP:
    case ENOSYS:
        return KVARN_EUNSUPPORTED;
    case ENOMEM:
    case EMFILE:
    case ENFILE:
        return KVARN_ENOMEM;
    default:
        return KVARN_EIO;
    }
}

static int64_t from_result(int64_t result)
{
    return result >= 0 ? result : from_errno(errno);
}

static int64_t do_open(const struct kvd_file_op *op)
{
    int flags = O_CLOEXEC | O_NOFOLLOW;
    int fd;

    flags |= (op->flags & KVD_FILE_WRITABLE) != 0 ? O_RDWR : O_RDONLY;
    flags |= (op->flags & KVD_FILE_MAKE) != 0 ? O_CREAT : 0;
    flags |= (op->flags & KVD_FILE_MUST_NEW) != 0 ? O_EXCL : 0;
    do {
        fd = open(op->path, flags, 0600);
    } while (fd < 0 && errno == EINTR);
    return from_result(fd);
}

/* Most stretches that the kernel takes at once. */
#define CALL_VECS_MAX 1024

/* Move the next stretches, the first of them without its first `skip` bytes. */
static ssize_t transfer_some(const struct kvd_file_op *op, unsigned idx, size_t skip, uint64_t done)
{
    struct iovec vecs[CALL_VECS_MAX]; /* 16 KiB */
    unsigned left = op->vec_count - idx;
    int count = left < CALL_VECS_MAX ? (int)left : CALL_VECS_MAX;
    off_t offset = (off_t)(op->offset + done);

    memcpy(vecs, op->vecs + idx, (size_t)count * sizeof(*vecs));
    vecs[0].iov_base = (char *)vecs[0].iov_base + skip;
    vecs[0].iov_len -= skip;
    return op->verb == KVD_FILE_READ ? preadv(op->fd, vecs, count, offset)
                                     : pwritev(op->fd, vecs, count, offset);
}

/*
 * Read or write all stretches from the first on. The kernel may take part of them: then the first
 * that is not done is gone on with.
 */
static int64_t do_transfer(const struct kvd_file_op *op)
{
    unsigned idx = 0;
    size_t skip = 0;
    uint64_t done = 0;

    KVARN_ASSERT(op->vec_count > 0 && op->vec_count <= KVD_FILE_VECS_MAX);
    while (idx < op->vec_count) {
        ssize_t moved = transfer_some(op, idx, skip, done);
        if (moved < 0 && errno == EINTR) {
            continue;
        }
        if (moved < 0) {
            return from_errno(errno);
        }
        if (moved == 0) {
            return op->verb == KVD_FILE_READ ? (int64_t)done : KVARN_EIO;
        }
        done += (uint64_t)moved;
        skip += (size_t)moved;
        while (idx < op->vec_count && skip >= op->vecs[idx].iov_len) {
            skip -= op->vecs[idx].iov_len;
            idx++;
        }
    }
    return (int64_t)done;
}

static int64_t do_fallocate(const struct kvd_file_op *op)
{
    int mode = op->verb == KVD_FILE_PUNCH ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE : 0;
    int rc;

    do {
        rc = fallocate(op->fd, mode, (off_t)op->offset, (off_t)op->bytes);
    } while (rc != 0 && errno == EINTR);
    return from_result(rc);
}

static int64_t do_size(const struct kvd_file_op *op)
{
    struct stat stat;

    return fstat(op->fd, &stat) == 0 ? (int64_t)stat.st_size : from_errno(errno);
}

static int64_t do_sync_dir(const struct kvd_file_op *op)
{
    int fd = open(op->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0) {
        return from_errno(errno);
    }
    int64_t result = from_result(fsync(fd));
    (void)close(fd);
    return result;
}

/* The name of a folder that was made must be durable, or a power cut takes all that it holds. */
static int64_t sync_parent(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int parent = fd < 0 ? -1 : openat(fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int64_t result = parent < 0 ? from_errno(errno) : from_result(fsync(parent));

    if (parent >= 0) {
        (void)close(parent);
    }
    if (fd >= 0) {
        (void)close(fd);
    }
    return result;
}

static int64_t do_make_dir(struct kvd_file_op *op)
{
    op->bytes = 0;
    if (mkdir(op->path, 0700) == 0) {
        return sync_parent(op->path);
    }
    struct stat stat_of;
    int code = errno;
    if (code == EEXIST && stat(op->path, &stat_of) == 0 && S_ISDIR(stat_of.st_mode)) {
        /* What will lie there is user text (rule 26); a mode that others chose stays. */
        bool is_ours = stat_of.st_uid == geteuid() && (stat_of.st_mode & 077) == 0;
        op->offset = stat_of.st_uid;
        op->bytes = stat_of.st_mode & 07777;
        return is_ours ? 1 : KVARN_EFORBIDDEN;
    }
    return from_errno(code);
}

static int64_t do_list(const struct kvd_file_op *op)
{
    DIR *dir = opendir(op->path);
    const struct dirent *entry;

    if (dir == NULL) {
        return from_errno(errno);
    }
    errno = 0;
    while ((entry = readdir(dir)) != NULL) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            op->name_cb(op->ctx, entry->d_name);
        }
        errno = 0;
    }
    int64_t result = errno == 0 ? 0 : from_errno(errno);
    (void)closedir(dir);
    return result;
}

static int64_t perform(struct kvd_file_op *op)
{
    switch (op->verb) {
    case KVD_FILE_OPEN:
        return do_open(op);
    case KVD_FILE_CLOSE:
        return from_result(close(op->fd));
    case KVD_FILE_READ:
    case KVD_FILE_WRITE:
        return do_transfer(op);
    case KVD_FILE_SYNC:
        return from_result(fdatasync(op->fd));
    case KVD_FILE_ALLOCATE:
    case KVD_FILE_PUNCH:
        return do_fallocate(op);
    case KVD_FILE_RESIZE:
        return from_result(ftruncate(op->fd, (off_t)op->bytes));
    case KVD_FILE_SIZE:
        return do_size(op);
    case KVD_FILE_LOCK:
        return from_result(flock(op->fd, LOCK_EX | LOCK_NB));
    case KVD_FILE_RENAME:
        return from_result(rename(op->path, op->path_to));
    case KVD_FILE_UNLINK:
        return from_result(unlink(op->path));
    case KVD_FILE_SYNC_DIR:
        return do_sync_dir(op);
    case KVD_FILE_MAKE_DIR:
        return do_make_dir(op);
    case KVD_FILE_LIST:
        return do_list(op);
    case KVD_FILE_VERB_COUNT:
        break;
    }
    KVARN_ASSERT(op->verb < KVD_FILE_VERB_COUNT);
    return KVARN_EINTERNAL;
}

int64_t kvd_file_op_perform(struct kvd_file_op *op)
{
    op->result = perform(op);
    return op->result;
}
