/*
 * Tests of server/io/file_op.c on real files, by itself and through io_uv.
 */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "server/io/io.h"

struct files {
    char dir[64];
    char path[96], path_to[96];
};

static void files_init(struct files *files)
{
    (void)snprintf(files->dir, sizeof(files->dir), "/tmp/kvarnd-file-op-XXXXXX");
    assert_non_null(mkdtemp(files->dir));
    (void)snprintf(files->path, sizeof(files->path), "%s/a", files->dir);
    (void)snprintf(files->path_to, sizeof(files->path_to), "%s/b", files->dir);
}

static void files_fini(struct files *files)
{
    (void)unlink(files->path);
    (void)unlink(files->path_to);
    assert_int_equal(rmdir(files->dir), 0);
}

static int64_t perform(struct kvd_file_op op)
{
    return kvd_file_op_perform(&op);
}

static int open_new(const struct files *files)
{
    int64_t fd = perform((struct kvd_file_op){.verb = KVD_FILE_OPEN,
        .path = files->path,
        .flags = KVD_FILE_WRITABLE | KVD_FILE_MAKE | KVD_FILE_MUST_NEW});

    assert_true(fd >= 0);
    return (int)fd;
}

static void test_file_life(void **state)
{
    struct files files;
    struct stat stat_of;
    uint8_t back[8192] = {0};
    struct iovec out[2] = {{(void *)(uintptr_t) "hello ", 6}, {(void *)(uintptr_t) "world", 5}};
    struct iovec in[2] = {{back, 3}, {back + 3, sizeof(back) - 3}};

    (void)state;
    files_init(&files);
    int fd = open_new(&files);
    assert_int_equal(fstat(fd, &stat_of), 0);
    assert_int_equal(stat_of.st_mode & 07777, 0600);
    assert_int_equal(perform((struct kvd_file_op){.verb = KVD_FILE_OPEN,
                         .path = files.path,
                         .flags = KVD_FILE_WRITABLE | KVD_FILE_MAKE | KVD_FILE_MUST_NEW}),
        KVARN_ECONFLICT);
    struct kvd_file_op op = {.fd = fd, .vecs = out, .vec_count = 2, .offset = 4096};
    op.verb = KVD_FILE_ALLOCATE;
    op.offset = 0;
    op.bytes = 16384;
    assert_int_equal(perform(op), 0);
    op.verb = KVD_FILE_WRITE;
    op.offset = 4096;
    assert_int_equal(perform(op), 11);
    op.verb = KVD_FILE_SYNC;
    assert_int_equal(perform(op), 0);
    op.verb = KVD_FILE_READ;
    op.vecs = in;
    assert_int_equal(perform(op), 8192);
    assert_memory_equal(back, "hello world", 11);
    op.offset = 16384 - 100;
    assert_int_equal(perform(op), 100); /* fewer at the end */
    op.verb = KVD_FILE_PUNCH;
    op.offset = 4096;
    op.bytes = 4096;
    assert_int_equal(perform(op), 0);
    op.verb = KVD_FILE_READ;
    assert_int_equal(perform(op), 8192);
    assert_int_equal(back[0], 0);
    op.verb = KVD_FILE_RESIZE;
    op.bytes = 5000;
    assert_int_equal(perform(op), 0);
    op.verb = KVD_FILE_SIZE;
    assert_int_equal(perform(op), 5000);
    op.verb = KVD_FILE_CLOSE;
    assert_int_equal(perform(op), 0);
    files_fini(&files);
}

static void name_cb(void *ctx, const char *name)
{
    assert_string_equal(name, "b");
    (*(unsigned *)ctx)++;
}

static void test_names_and_locks(void **state)
{
    struct files files;
    struct stat stat_of;
    unsigned count = 0;

    (void)state;
    files_init(&files);
    int fd = open_new(&files);
    struct kvd_file_op op = {
        .fd = fd, .path = files.path, .path_to = files.path_to, .name_cb = name_cb, .ctx = &count};
    op.verb = KVD_FILE_LOCK;
    assert_int_equal(perform(op), 0);
    int64_t other = perform((struct kvd_file_op){
        .verb = KVD_FILE_OPEN, .path = files.path, .flags = KVD_FILE_WRITABLE});
    assert_true(other >= 0);
    op.fd = (int)other;
    assert_int_equal(perform(op), KVARN_ECONFLICT);
    op.verb = KVD_FILE_CLOSE;
    assert_int_equal(perform(op), 0);
    op.verb = KVD_FILE_RENAME;
    assert_int_equal(perform(op), 0);
    assert_int_equal(perform(op), KVARN_ENOT_FOUND);
    op.path = files.dir;
    op.verb = KVD_FILE_SYNC_DIR;
    assert_int_equal(perform(op), 0);
    op.verb = KVD_FILE_LIST;
    assert_int_equal(perform(op), 0);
    assert_int_equal(count, 1);
    op.verb = KVD_FILE_MAKE_DIR; /* there already */
    assert_int_equal(perform(op), 1);
    assert_int_equal(chmod(files.dir, 0750), 0);
    assert_int_equal(kvd_file_op_perform(&op), KVARN_EFORBIDDEN);
    assert_int_equal(op.bytes, 0750);
    assert_int_equal(op.offset, geteuid());
    assert_int_equal(stat(files.dir, &stat_of), 0);
    assert_int_equal(stat_of.st_mode & 0777, 0750); /* it is not for us to change */
    assert_int_equal(chmod(files.dir, 0700), 0);
    op.path = files.path_to;
    assert_int_equal(perform(op), KVARN_ECONFLICT); /* no folder */
    op.verb = KVD_FILE_UNLINK;
    assert_int_equal(perform(op), 0);
    assert_int_equal(perform(op), KVARN_ENOT_FOUND);
    op.fd = fd;
    op.verb = KVD_FILE_CLOSE;
    assert_int_equal(perform(op), 0);
    files_fini(&files);
}

static void op_done(struct kvd_file_op *op)
{
    (*(unsigned *)op->ctx)++;
}

static void test_io_uv_does_it_off_the_loop(void **state)
{
    struct kvd_io *io = kvd_io_uv_create();
    struct files files;
    unsigned done = 0;
    struct iovec vec = {(void *)(uintptr_t) "abc", 3};
    struct kvd_file_op ops[2];

    (void)state;
    assert_non_null(io);
    files_init(&files);
    int fd = open_new(&files);
    for (unsigned i = 0; i < 2; i++) {
        ops[i] = (struct kvd_file_op){.verb = KVD_FILE_WRITE,
            .fd = fd,
            .vecs = &vec,
            .vec_count = 1,
            .offset = 3 * i,
            .ctx = &done,
            .done = op_done};
        io->ops->file_submit(io, &ops[i]);
    }
    assert_int_equal(done, 0);
    assert_int_equal(io->ops->run(io), 0);
    assert_int_equal(done, 2);
    assert_int_equal(ops[0].result, 3);
    ops[0].verb = KVD_FILE_SIZE;
    assert_int_equal(io->ops->file_run(io, &ops[0]), 6);
    /* Who does not wait is called back from destroy. */
    ops[1].verb = KVD_FILE_SYNC;
    io->ops->file_submit(io, &ops[1]);
    io->ops->destroy(io);
    assert_int_equal(done, 3);
    assert_int_equal(close(fd), 0);
    files_fini(&files);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_file_life),
        cmocka_unit_test(test_names_and_locks),
        cmocka_unit_test(test_io_uv_does_it_off_the_loop),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
