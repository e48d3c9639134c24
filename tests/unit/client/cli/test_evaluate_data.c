/* Recorded tensors: folders that are read, and those that are refused with a reason. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "client/cli/evaluate_data.h"

#define HEADS 2
#define DIM   8

static char folder[64];

static int folder_setup(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/kvarn-evaluate-XXXXXX");
    return mkdtemp(folder) == NULL ? -1 : 0;
}

static int folder_teardown(void **state)
{
    DIR *dir = opendir(folder);
    const struct dirent *entry;
    char path[400];

    (void)state;
    assert_non_null(dir);
    while ((entry = readdir(dir)) != NULL) {
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (entry->d_name[0] != '.') {
            assert_int_equal(unlink(path), 0);
        }
    }
    closedir(dir);
    return rmdir(folder);
}

struct tensor {
    const char *name;
    enum npy_type type;
    unsigned rank;
    uint64_t shape[3];
};

static void tensor_write(const struct tensor *t)
{
    struct npy_array array = {.type = t->type, .rank = t->rank};
    char error[NPY_ERROR_MAX] = "";
    char path[400];

    array.data_bytes = npy_type_bytes(t->type);
    for (unsigned i = 0; i < t->rank; i++) {
        array.shape[i] = t->shape[i];
        array.data_bytes *= (size_t)t->shape[i];
    }
    array.data = calloc(1, array.data_bytes);
    assert_non_null(array.data);
    snprintf(path, sizeof path, "%s/%s", folder, t->name);
    assert_int_equal(npy_write(path, &array, error), 0);
    free(array.data);
}

/* One layer as it should be; then `tensor` in place of one of its files. */
static void layer_write(const char *stem, uint64_t tokens, const struct tensor *tensor)
{
    char names[3][32];

    for (int i = 0; i < 3; i++) {
        struct tensor t = {names[i], NPY_F16, 3, {HEADS, tokens, DIM}};

        snprintf(names[i], sizeof names[i], "%s_%c.npy", stem, "kvq"[i]);
        if (i == 2) {
            t.shape[0] = 2 * HEADS;
            t.shape[1] = tokens / 2;
        }
        tensor_write(&t);
    }
    if (tensor != NULL) {
        tensor_write(tensor);
    }
}

static void refused(const char *text)
{
    struct evaluate_data data = {0};
    char error[NPY_ERROR_MAX] = "";

    assert_true(evaluate_data_load(folder, &data, error) < 0);
    assert_null(data.layers);
    if (strstr(error, text) == NULL) {
        fail_msg("\"%s\" does not say \"%s\"", error, text);
    }
}

static void layers_come_in_order_of_their_numbers(void **state)
{
    static const struct tensor others[] = {
        {"layer02_x.npy", NPY_F16, 3, {1, 1, 1}},
        {"layer_k.npy", NPY_F16, 3, {1, 1, 1}},
        {"xlayer03_k.npy", NPY_F16, 3, {1, 1, 1}},
        {"layer04_k.npy.bak", NPY_F16, 3, {1, 1, 1}},
        {"lay", NPY_F16, 3, {1, 1, 1}},
    };
    struct evaluate_data data;
    char error[NPY_ERROR_MAX] = "";

    (void)state;
    layer_write("layer10", 6, NULL);
    layer_write("layer9", 6, NULL);
    layer_write("layer00", 6, NULL);
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        tensor_write(&others[i]);
    }
    assert_int_equal(evaluate_data_load(folder, &data, error), 0);
    assert_int_equal(data.layer_count, 3);
    assert_int_equal(data.layers[0].number, 0);
    assert_int_equal(data.layers[1].number, 9);
    assert_int_equal(data.layers[2].number, 10);
    assert_int_equal(data.tokens, 6);
    assert_int_equal(data.query_tokens, 3);
    assert_int_equal(data.kv_dtype, KVARN_F16);
    assert_int_equal(data.layers[1].kv_heads, HEADS);
    assert_int_equal(data.layers[1].q_heads, 2 * HEADS);
    assert_int_equal(evaluate_data_fp16_bytes(&data), 3 * 6 * HEADS * (DIM + DIM) * 2);
    evaluate_data_fini(&data);
    evaluate_data_fini(&data); /* a zeroed struct is as good */
}

static void v_may_be_narrower_than_k(void **state)
{
    const struct tensor v = {"layer0_v.npy", NPY_F16, 3, {HEADS, 6, DIM / 2}};
    struct evaluate_data data;
    char error[NPY_ERROR_MAX] = "";

    (void)state;
    layer_write("layer0", 6, &v);
    assert_int_equal(evaluate_data_load(folder, &data, error), 0);
    assert_int_equal(data.layers[0].v_dim, DIM / 2);
    assert_int_equal(evaluate_data_fp16_bytes(&data), 6 * HEADS * (DIM + DIM / 2) * 2);
    evaluate_data_fini(&data);
}

static void folders_without_layers_are_refused(void **state)
{
    struct evaluate_data data;
    char error[NPY_ERROR_MAX] = "";

    (void)state;
    refused("got none");
    assert_int_equal(evaluate_data_load("/nonexistent/kv", &data, error), KVARN_EIO);
    assert_non_null(strstr(error, "/nonexistent/kv: No such file"));
}

static void layers_that_lack_a_file_are_refused(void **state)
{
    char path[400];

    (void)state;
    layer_write("layer07", 6, NULL);
    snprintf(path, sizeof path, "%s/layer07_q.npy", folder);
    assert_int_equal(unlink(path), 0);
    refused("layer07_q.npy");
}

static void one_layer_under_two_names_is_refused(void **state)
{
    (void)state;
    layer_write("layer7", 6, NULL);
    layer_write("layer07", 6, NULL);
    refused("are one layer");
}

static void tensors_that_do_not_fit_are_refused(void **state)
{
    static const struct {
        struct tensor tensor;
        const char *text;
    } cases[] = {
        {{"layer0_k.npy", NPY_U8, 3, {HEADS, 6, DIM}}, "got uint8"},
        {{"layer0_k.npy", NPY_F16, 2, {HEADS, 6}}, "of 2 dimensions"},
        {{"layer0_k.npy", NPY_F16, 3, {HEADS, 6, 1024}}, "outside the limits"},
        {{"layer0_k.npy", NPY_F16, 3, {1025, 1, DIM}}, "outside the limits"},
        {{"layer0_v.npy", NPY_F16, 3, {HEADS, 5, DIM}}, "expected K and V of the same heads"},
        {{"layer0_v.npy", NPY_F16, 3, {1, 6, DIM}}, "expected K and V of the same heads"},
        {{"layer0_v.npy", NPY_F32, 3, {HEADS, 6, DIM}}, "in one type"},
        {{"layer0_q.npy", NPY_F16, 3, {3, 3, DIM}}, "a multiple of 2 heads"},
        {{"layer0_q.npy", NPY_F16, 3, {HEADS, 7, DIM}}, "at most 6 tokens"},
        {{"layer0_q.npy", NPY_F16, 3, {HEADS, 3, 2 * DIM}}, "head_dim 8"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        layer_write("layer0", 6, &cases[i].tensor);
        refused(cases[i].text);
    }
}

static void layers_of_other_lengths_are_refused(void **state)
{
    (void)state;
    layer_write("layer0", 6, NULL);
    layer_write("layer1", 8, NULL);
    refused("expected 6 tokens and 3 query tokens as in layer0, got 8 and 4");
}

int main(void)
{
#define FOLDER_TEST(test) cmocka_unit_test_setup_teardown(test, folder_setup, folder_teardown)
    const struct CMUnitTest tests[] = {
        FOLDER_TEST(layers_come_in_order_of_their_numbers),
        FOLDER_TEST(v_may_be_narrower_than_k),
        FOLDER_TEST(folders_without_layers_are_refused),
        FOLDER_TEST(layers_that_lack_a_file_are_refused),
        FOLDER_TEST(one_layer_under_two_names_is_refused),
        FOLDER_TEST(tensors_that_do_not_fit_are_refused),
        FOLDER_TEST(layers_of_other_lengths_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
