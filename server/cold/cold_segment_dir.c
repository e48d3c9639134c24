/*
 * The folder of the cold tier: made, or found to be ours, and locked.
 *
 * Owner: cold_segment.c. Thread: loop only, before it runs.
 *
 * A folder that was there is used as it is: nothing in it is removed, and its mode is not changed,
 * before it is clear that it is one of ours.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "server/base/log.h"
#include "server/cold/cold_segment_impl.h"

/* What is in a folder that was there already. */
struct contents {
    bool has_lock;
    bool has_other;
    char other[64]; /* the first name that is not ours, or its beginning */
};

static void name_cb(void *ctx, const char *name)
{
    struct contents *contents = ctx;
    uint64_t number;

    if (strcmp(name, "lock") == 0) {
        contents->has_lock = true;
    } else if (kvd_segment_name_parse(name, "kvs", &number) != 0 &&
               kvd_segment_name_parse(name, "tmp", &number) != 0 && !contents->has_other) {
        contents->has_other = true;
        (void)snprintf(contents->other, sizeof(contents->other), "%s", name);
    }
}

/* One that was there: empty, or with the lock that a daemon made. Power cuts may leave less. */
static int contents_check(const struct cold_segment *cold)
{
    struct contents contents = {.has_lock = false};
    struct kvd_file_op list = {
        .verb = KVD_FILE_LIST, .path = cold->dir, .name_cb = name_cb, .ctx = &contents};
    int64_t result = cold->io->ops->file_run(cold->io, &list);

    if (result < 0) {
        kvd_log(KVD_LOG_ERROR, "cold_failed", "dir=%s error=%s", cold->dir,
            kvarn_err_label((int)result));
        return (int)result;
    }
    if (contents.has_other && !contents.has_lock) {
        kvd_log(KVD_LOG_ERROR, "cold_failed",
            "dir=%s error=%s found=%s: expected an empty folder or one that a daemon made",
            cold->dir, kvarn_err_label(KVARN_ECONFLICT), contents.other);
        return KVARN_ECONFLICT;
    }
    return 0;
}

static int dir_make(const struct cold_segment *cold)
{
    struct kvd_file_op make = {.verb = KVD_FILE_MAKE_DIR, .path = cold->dir};
    int64_t result = cold->io->ops->file_run(cold->io, &make);

    if (result == KVARN_EFORBIDDEN && make.bytes != 0) {
        char mode[32];
        (void)snprintf(mode, sizeof(mode), "%04" PRIo64, make.bytes);
        kvd_log(KVD_LOG_ERROR, "cold_failed",
            "dir=%s error=%s owner=%" PRIu64
            " mode=%s: expected a folder of the daemon's own user, with mode 0700",
            cold->dir, kvarn_err_label((int)result), make.offset, mode);
    } else if (result < 0) {
        kvd_log(KVD_LOG_ERROR, "cold_failed", "dir=%s error=%s", cold->dir,
            kvarn_err_label((int)result));
    }
    return result > 0 ? contents_check(cold) : (int)result;
}

int kvd_segment_dir_lock(struct cold_segment *cold)
{
    char path[KVARN_COLD_PATH_MAX + 32];
    struct kvd_file_op open = {
        .verb = KVD_FILE_OPEN, .path = path, .flags = KVD_FILE_WRITABLE | KVD_FILE_MAKE};
    int err = dir_make(cold);

    if (err != 0) {
        return err;
    }
    (void)snprintf(path, sizeof(path), "%s/lock", cold->dir);
    int64_t result = cold->io->ops->file_run(cold->io, &open);
    if (result < 0) {
        kvd_log(
            KVD_LOG_ERROR, "cold_failed", "path=%s error=%s", path, kvarn_err_label((int)result));
        return (int)result;
    }
    cold->lock_fd = (int)result;
    struct kvd_file_op lock = {.verb = KVD_FILE_LOCK, .fd = cold->lock_fd};
    result = cold->io->ops->file_run(cold->io, &lock);
    if (result < 0) {
        kvd_log(KVD_LOG_ERROR, "cold_failed", "dir=%s error=%s: in use by another daemon",
            cold->dir, kvarn_err_label((int)result));
    }
    return (int)result;
}
