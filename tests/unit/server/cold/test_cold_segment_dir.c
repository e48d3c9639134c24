/* Tests of server/cold/cold_segment_dir.c: which folders are taken. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "tests/support/cold_rig.h"

/* The error of an opening over a folder with these names in it. */
static int open_with(const char *const *names)
{
    struct kvd_fake_disk *disk = kvd_fake_disk_create();
    struct kvd_cold_segment_options options = kvt_cold_options();
    struct kvd_file_op make = {.verb = KVD_FILE_MAKE_DIR, .path = options.dir};
    struct kvt_cold_rig rig;

    assert_int_equal(kvd_fake_disk_perform(disk, &make), 0);
    for (unsigned i = 0; names[i] != NULL; i++) {
        char path[128];
        (void)snprintf(path, sizeof(path), "%s/%s", options.dir, names[i]);
        kvd_fake_disk_put(disk, path, "x", 1);
    }
    kvt_cold_start(&rig, disk, &options, 1);
    int err = rig.err;
    for (unsigned i = 0; names[i] != NULL && err != 0; i++) {
        char path[128];
        size_t bytes;
        (void)snprintf(path, sizeof(path), "%s/%s", options.dir, names[i]);
        assert_non_null(kvd_fake_disk_data(disk, path, &bytes)); /* nothing was removed */
    }
    kvt_cold_stop(&rig);
    kvd_fake_disk_destroy(disk);
    return err;
}

static void test_an_empty_folder_is_taken(void **state)
{
    (void)state;
    assert_int_equal(open_with((const char *const[]){NULL}), 0);
}

static void test_a_folder_with_other_things_is_refused(void **state)
{
    (void)state;
    assert_int_equal(open_with((const char *const[]){"letter", NULL}), KVARN_ECONFLICT);
    assert_int_equal(
        open_with((const char *const[]){"0000000000000001.tmp", "x.kvs", NULL}), KVARN_ECONFLICT);
}

/* A daemon made it, whatever else lies there now; or died when it had just begun. */
static void test_a_folder_of_a_daemon_is_taken(void **state)
{
    (void)state;
    assert_int_equal(open_with((const char *const[]){"lock", NULL}), 0);
    assert_int_equal(open_with((const char *const[]){"lock", "notes", NULL}), 0);
    assert_int_equal(open_with((const char *const[]){"0000000000000001.tmp", NULL}), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_an_empty_folder_is_taken),
        cmocka_unit_test(test_a_folder_with_other_things_is_refused),
        cmocka_unit_test(test_a_folder_of_a_daemon_is_taken),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
