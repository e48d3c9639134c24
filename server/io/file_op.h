/*
 * One operation on a file: what io.h's file_submit() does off the loop and file_run() at once.
 *
 * Owner: whoever embeds it. Thread: filled in and called back on the loop; done on any thread,
 * which touches nothing but the operation and the memory that it names.
 */
#ifndef KVD_FILE_OP_H
#define KVD_FILE_OP_H

#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "kvarn/err.h"

enum kvd_file_verb {
    KVD_FILE_OPEN,     /* path, flags; result: a descriptor */
    KVD_FILE_CLOSE,    /* fd */
    KVD_FILE_READ,     /* fd, vecs, offset; result: bytes read, fewer only at the file's end */
    KVD_FILE_WRITE,    /* fd, vecs, offset; all of it, or an error, and then part may be there */
    KVD_FILE_SYNC,     /* fd: fdatasync */
    KVD_FILE_ALLOCATE, /* fd, offset, bytes: room that later writes cannot lack; grows the file */
    KVD_FILE_PUNCH,    /* fd, offset, bytes: give the room back; reads as zeros */
    KVD_FILE_RESIZE,   /* fd, bytes: the file's new size */
    KVD_FILE_SIZE,     /* fd; result: bytes */
    KVD_FILE_LOCK,   /* fd: for as long as it is open; KVARN_ECONFLICT while someone else has it */
    KVD_FILE_RENAME, /* path, path_to */
    KVD_FILE_UNLINK, /* path */
    KVD_FILE_SYNC_DIR, /* path: names made, changed and removed in this folder */
    KVD_FILE_MAKE_DIR, /* path, with mode 0700, its parent must exist; a new one is durable. Result
                          1: there was one, our user's and for nobody else; KVARN_EFORBIDDEN when
                          not, with its owner in `offset` and its mode in `bytes` */
    KVD_FILE_LIST,     /* path, name_cb for each name but . and .., on the thread that does it */
    KVD_FILE_VERB_COUNT,
};

/* Flags of KVD_FILE_OPEN. Files are made with mode 0600. */
#define KVD_FILE_WRITABLE 1u
#define KVD_FILE_MAKE     2u /* make it if it is not there */
#define KVD_FILE_MUST_NEW 4u /* with MAKE: KVARN_ECONFLICT if it is there */

/*
 * Most stretches of memory in one read or write: the rows of a tail, K and V by head, of 80 layers
 * of 8 heads in 6 blocks, are 7,680.
 */
#define KVD_FILE_VECS_MAX 8192

/* Room for what an io keeps with an operation in flight; io_uv.c asserts that it is enough. */
#define KVD_FILE_OP_ROOM 192

struct kvd_file_op {
    enum kvd_file_verb verb;
    unsigned flags;
    int fd;
    unsigned vec_count;
    const struct iovec *vecs; /* borrowed until the callback, with the memory */
    const char *path;         /* borrowed until the callback */
    const char *path_to;      /* borrowed until the callback */
    uint64_t offset;
    uint64_t bytes;
    void (*name_cb)(void *ctx, const char *name); /* gets ctx */
    void *ctx;                                    /* borrowed: the submitter's */
    void (*done)(struct kvd_file_op *op);         /* on the loop; may submit the operation again */
    int64_t result;                               /* >= 0, or KVARN_E... */
    _Alignas(16) unsigned char room[KVD_FILE_OP_ROOM]; /* the io's */
};

/*
 * Do it now, on this thread, by system calls; sets op->result and returns it. ENOSPC and EDQUOT are
 * KVARN_ENOSPC, ENOENT is KVARN_ENOT_FOUND, EEXIST is KVARN_ECONFLICT, EACCES and EPERM are
 * KVARN_EFORBIDDEN, ENOMEM, EMFILE and ENFILE are KVARN_ENOMEM, EOPNOTSUPP and
 * ENOSYS are KVARN_EUNSUPPORTED, anything else is KVARN_EIO. Interrupted calls are taken up again.
 */
int64_t kvd_file_op_perform(struct kvd_file_op *op);

#endif
