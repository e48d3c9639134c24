/* .npy files: what NumPy writes, what we write, and hostile headers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "client/cli/npy.h"

static char path[] = "/tmp/kvarn-npy-XXXXXX";

static int file_setup(void **state)
{
    int fd = mkstemp(path);

    (void)state;
    return fd < 0 || close(fd) != 0 ? -1 : 0;
}

static int file_teardown(void **state)
{
    (void)state;
    return unlink(path);
}

/* Write a version `major`.0 file with a header and zeros behind it. */
static void file_make(unsigned major, const char *header, size_t data_bytes)
{
    FILE *file = fopen(path, "wb");
    size_t n = strlen(header);

    assert_non_null(file);
    fwrite("\x93NUMPY", 1, 6, file);
    fputc((int)major, file);
    fputc(0, file);
    fputc((int)(n & 0xff), file);
    fputc((int)(n >> 8 & 0xff), file);
    if (major == 2) {
        fputc(0, file);
        fputc(0, file);
    }
    fwrite(header, 1, n, file);
    while (data_bytes-- > 0) {
        fputc(0, file);
    }
    assert_int_equal(fclose(file), 0);
}

static void refused(const char *header, size_t data_bytes, const char *text)
{
    struct npy_array array = {0};
    char error[NPY_ERROR_MAX] = "";

    file_make(1, header, data_bytes);
    assert_int_equal(npy_read(path, &array, error), KVARN_EINVALID);
    assert_null(array.data);
    if (strstr(error, text) == NULL) {
        fail_msg("\"%s\" does not say \"%s\"", error, text);
    }
    assert_ptr_equal(strstr(error, path), error);
}

static void both_versions_are_read(void **state)
{
    (void)state;
    for (unsigned major = 1; major <= 2; major++) {
        struct npy_array array;
        char error[NPY_ERROR_MAX];

        file_make(major, "{'descr': '<f2', 'fortran_order': False, 'shape': (2, 3, 4), }   \n", 48);
        assert_int_equal(npy_read(path, &array, error), 0);
        assert_int_equal(array.type, NPY_F16);
        assert_int_equal(array.rank, 3);
        assert_int_equal(array.shape[2], 4);
        assert_int_equal(array.data_bytes, 48);
        npy_array_fini(&array);
    }
}

static void what_is_written_is_read(void **state)
{
    float values[6] = {1, -2, 3.5f, 0, 1e30f, -0.0f};
    const struct npy_array out = {NPY_F32, 2, {2, 3}, values, sizeof values};
    struct npy_array in;
    char error[NPY_ERROR_MAX];
    FILE *file;

    (void)state;
    assert_int_equal(npy_write(path, &out, error), 0);
    assert_int_equal(npy_read(path, &in, error), 0);
    assert_int_equal(in.type, NPY_F32);
    assert_int_equal(in.rank, 2);
    assert_int_equal(in.shape[0], 2);
    assert_int_equal(in.shape[1], 3);
    assert_memory_equal(in.data, values, sizeof values);
    npy_array_fini(&in);
    file = fopen(path, "rb");
    assert_non_null(file);
    fseek(file, 0, SEEK_END);
    assert_int_equal((ftell(file) - (long)sizeof values) % 64, 0); /* NumPy aligns the data */
    fclose(file);
}

static void hostile_headers_are_refused(void **state)
{
    (void)state;
    refused("{'descr': '<i8', 'fortran_order': False, 'shape': (1,), }", 8, "got \"'<i8'");
    refused("{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }", 4, "expected descr");
    refused("{'descr': '<f4', 'fortran_order': True, 'shape': (1,), }", 4, "fortran_order False");
    refused("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", 4,
        "expected 8 bytes of data for the shape, got 4");
    refused("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", 5, "got 5");
    refused("{'descr': '<f4', 'fortran_order': False, 'shape': (), }", 4, "1 to 4 dimensions");
    refused("{'descr': '<f4', 'fortran_order': False, 'shape': (1), }", 4, "1 to 4 dimensions");
    refused(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1), }", 4, "1 to 4 dimensions");
    refused("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", 4, "1 to 4 dimensions");
    refused("{'descr': '<f4', 'fortran_order': False, "
            "'shape': (999999999999999999, 999999999999999999), }",
        4, "larger than any file");
    refused("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }", 4,
        "1 to 4 dimensions");
    refused("{'descr': '<f4', 'shape': (1,), }", 4, "once each");
    refused("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", 4,
        "once each");
    refused("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 1}", 4, "once each");
    refused(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), } + evil", 4, "nothing behind");
    refused("{'descr': '<f4\\n', 'fortran_order': False, 'shape': (1,), }", 4, "expected descr");
    refused("", 0, "a dictionary");
}

static void other_files_are_refused(void **state)
{
    struct npy_array array;
    char error[NPY_ERROR_MAX];
    FILE *file;

    (void)state;
    file_make(3, "{}", 0);
    assert_int_equal(npy_read(path, &array, error), KVARN_EINVALID);
    assert_non_null(strstr(error, "got 3.0"));
    file = fopen(path, "wb");
    assert_non_null(file);
    fwrite("\x93NUMPY\x02\x00\xff\xff\xff\xff", 1, 12, file); /* a header of 4 GiB */
    fclose(file);
    assert_int_equal(npy_read(path, &array, error), KVARN_EINVALID);
    assert_non_null(strstr(error, "got 4294967295"));
    assert_int_equal(npy_read("/nonexistent.npy", &array, error), KVARN_EIO);
    assert_non_null(strstr(error, "/nonexistent.npy: "));
    assert_int_not_equal(npy_read("/", &array, error), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_versions_are_read),
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(hostile_headers_are_refused),
        cmocka_unit_test(other_files_are_refused),
    };

    return cmocka_run_group_tests(tests, file_setup, file_teardown);
}
