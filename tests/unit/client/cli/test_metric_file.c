/* Files of query metrics: there and back, damage, and texts that say something else. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "client/cli/metric_file.h"

static char folder[] = "/tmp/kvarn-metric-XXXXXX";
static char path[64], copy[64];

/* Two groups that are alike and one that is not; the second layer's metric is not known. */
static const struct kvarn_layer_group groups[] = {
    {.layers = 1, .kv_heads = 2, .k_dim = 8, .v_dim = 8},
    {.layers = 1, .kv_heads = 2, .k_dim = 8, .v_dim = 8},
    {.layers = 1, .kv_heads = 1, .k_dim = 16, .v_dim = 8, .window = 77},
};
static const struct kvarn_shape shape = {.model = "m\nodel 9:x",
    .revision = "r",
    .layer_groups = groups,
    .layer_group_count = 3,
    .group = 64,
    .k_bits = 2,
    .v_bits = 4,
    .sink_tokens = 128};
#define SUM_FLOATS (2 * 64 + 256)

static int folder_setup(void **state)
{
    (void)state;
    if (mkdtemp(folder) == NULL) {
        return -1;
    }
    snprintf(path, sizeof path, "%s/a", folder);
    snprintf(copy, sizeof copy, "%s/b", folder);
    return 0;
}

static int folder_teardown(void **state)
{
    (void)state;
    unlink(path);
    unlink(copy);
    return rmdir(folder);
}

static void file_make(struct metric_file *file)
{
    assert_int_equal(metric_file_init(file, &shape), 0);
    assert_int_equal(file->layer_count, 3);
    assert_int_equal(file->count_count, 5);
    assert_int_equal(metric_file_layer_bytes(file, 2), 16 * 16 * 4);
    file->counts[0] = 5;
    file->counts[1] = 6;
    file->counts[4] = 7;
    file->sums_bytes = SUM_FLOATS * sizeof(float);
    file->sums = malloc(file->sums_bytes);
    assert_non_null(file->sums);
    for (unsigned i = 0; i < SUM_FLOATS; i++) {
        file->sums[i] = (float)i;
    }
    memset(file->fingerprint, 0xab, sizeof file->fingerprint);
}

static size_t bytes_read(const char *from, uint8_t *to, size_t room)
{
    FILE *in = fopen(from, "rb");

    assert_non_null(in);
    size_t bytes = fread(to, 1, room, in);
    assert_int_equal(fclose(in), 0);
    assert_true(bytes < room);
    return bytes;
}

static void bytes_write(const char *to, const uint8_t *from, size_t bytes)
{
    FILE *out = fopen(to, "wb");

    assert_non_null(out);
    assert_int_equal(fwrite(from, 1, bytes, out), bytes);
    assert_int_equal(fclose(out), 0);
}

static void there_and_back(void **state)
{
    struct metric_file file = {0}, again = {0};
    char error[METRIC_FILE_ERROR_MAX] = "";
    static uint8_t bytes[2][8192];

    (void)state;
    file_make(&file);
    assert_string_equal(file.text,
        "kvarn-shape 1\nmodel 10:m\nodel 9:x\nrevision 1:r\ngroup 64\nbits 2 4\nsink 128\n"
        "layers 2 2 8 8 0\nlayers 1 1 16 8 77\n");
    assert_int_equal(metric_file_write(path, &file, error), 0);
    assert_int_equal(metric_file_read(path, &again, error), 0);
    assert_string_equal(again.shape.model, shape.model);
    assert_string_equal(again.shape.revision, "r");
    assert_int_equal(again.shape.group, 64);
    assert_int_equal(again.shape.k_bits, 2);
    assert_int_equal(again.shape.v_bits, 4);
    assert_int_equal(again.shape.sink_tokens, 128);
    assert_int_equal(again.shape.layer_group_count, 2); /* like ones are one */
    assert_int_equal(again.shape.layer_groups[1].window, 77);
    assert_int_equal(again.layer_count, 3);
    assert_memory_equal(again.fingerprint, file.fingerprint, 16);
    assert_memory_equal(again.counts, file.counts, 5 * sizeof(uint64_t));
    assert_memory_equal(again.sums, file.sums, file.sums_bytes);
    assert_int_equal(metric_file_write(copy, &again, error), 0);
    size_t count = bytes_read(path, bytes[0], sizeof bytes[0]);
    assert_int_equal(bytes_read(copy, bytes[1], sizeof bytes[1]), count);
    assert_memory_equal(bytes[0], bytes[1], count);
    metric_file_fini(&file);
    metric_file_fini(&again);
}

static void every_flipped_byte_and_every_cut_is_refused(void **state)
{
    struct metric_file file = {0}, again = {0};
    char error[METRIC_FILE_ERROR_MAX] = "";
    static uint8_t bytes[8192];

    (void)state;
    file_make(&file);
    assert_int_equal(metric_file_write(path, &file, error), 0);
    metric_file_fini(&file);
    size_t count = bytes_read(path, bytes, sizeof bytes);
    for (size_t i = 0; i < count; i += i < 300 ? 1 : 37) {
        bytes[i] ^= 0x11;
        bytes_write(copy, bytes, count);
        bytes[i] ^= 0x11;
        int err = metric_file_read(copy, &again, error);
        assert_true(err == KVARN_EINVALID || err == KVARN_ECORRUPT);
        assert_null(again.text);
        assert_int_equal(strncmp(error, copy, strlen(copy)), 0);
    }
    for (size_t i = 0; i < count; i += i < 100 ? 1 : 101) {
        bytes_write(copy, bytes, i);
        assert_int_equal(metric_file_read(copy, &again, error), KVARN_EINVALID);
    }
    bytes_write(copy, bytes, count + 1);
    assert_int_equal(metric_file_read(copy, &again, error), KVARN_EINVALID);
}

/* With a checksum that is right, the content must still make sense. */
static void contents_that_contradict_themselves_are_refused(void **state)
{
    static const char *const texts[] = {"", "kvarn-shape 2\n", "kvarn-shape 1\nmodel 300:x\n",
        "kvarn-shape 1\nmodel 1:m\nrevision 0:\ngroup 64\nbits 2 2\nsink 0\n",
        "kvarn-shape 1\nmodel 1:m\nrevision 0:\ngroup 64\nbits 2 2\nsink 0\nlayers 600 1 8 8 0\n",
        "kvarn-shape 1\nmodel 1:m\nrevision 0:\ngroup 64\nbits 2 2\nsink 0\nlayers 1 1 8 8\n",
        "kvarn-shape 1\nmodel 1:m\nrevision 0:\ngroup 64\nbits 2 2\nsink 0\nlayers 1 1 4096 8 0\n"};
    struct metric_file file = {0}, again = {0};
    char error[METRIC_FILE_ERROR_MAX] = "";

    (void)state;
    for (unsigned i = 0; i < 2 + sizeof texts / sizeof *texts; i++) {
        file_make(&file);
        if (i == 0) {
            file.counts[1] = 0; /* half a layer */
        } else if (i == 1) {
            file.counts[2] = file.counts[3] = 1; /* a layer without its sums */
        } else {
            free(file.text);
            file.text = strdup(texts[i - 2]);
            assert_non_null(file.text);
            file.text_bytes = strlen(file.text);
        }
        assert_int_equal(metric_file_write(path, &file, error), 0);
        assert_int_equal(metric_file_read(path, &again, error), KVARN_EINVALID);
        metric_file_fini(&file);
    }
}

static void what_cannot_be_written_or_read_says_why(void **state)
{
    struct metric_file file = {0}, again = {0};
    char error[METRIC_FILE_ERROR_MAX] = "";
    struct kvarn_layer_group wide = {.layers = 513, .kv_heads = 1, .k_dim = 8, .v_dim = 8};
    struct kvarn_shape many = shape;

    (void)state;
    assert_int_equal(metric_file_read("/nonexistent/a", &again, error), KVARN_EIO);
    assert_non_null(strstr(error, "/nonexistent/a: "));
    assert_int_equal(metric_file_read(folder, &again, error), KVARN_EIO);
    file_make(&file);
    assert_int_equal(metric_file_write("/nonexistent/a", &file, error), KVARN_EIO);
    metric_file_fini(&file);
    many.layer_groups = &wide;
    many.layer_group_count = 1;
    assert_int_equal(metric_file_init(&file, &many), KVARN_EINVALID);
    assert_null(file.text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(there_and_back),
        cmocka_unit_test(every_flipped_byte_and_every_cut_is_refused),
        cmocka_unit_test(contents_that_contradict_themselves_are_refused),
        cmocka_unit_test(what_cannot_be_written_or_read_says_why),
    };

    return cmocka_run_group_tests(tests, folder_setup, folder_teardown);
}
