/*
 * Recorded tensors: finds the layers in a folder, reads and checks them.
 *
 * Owner: the command. Thread: main.
 */
#include "client/cli/evaluate_data.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"

#define PATH_BYTES 4096
#define STEM       "layer"
#define STEM_BYTES (sizeof(STEM) - 1)

__attribute__((format(printf, 3, 4))) static int fail(char *error, int err, const char *format, ...)
{
    va_list args;

    KVARN_ASSERT(err < 0);
    va_start(args, format);
    vsnprintf(error, NPY_ERROR_MAX, format, args);
    va_end(args);
    return err;
}

/* ---- The folder ---- */

/* The number of "layer<digits>_k.npy"; false for other names. */
static bool name_parse(const char *name, uint32_t *ret)
{
    const char *digits;
    uint32_t number = 0;
    size_t count;

    if (strncmp(name, STEM, STEM_BYTES) != 0) {
        return false;
    }
    digits = name + STEM_BYTES;
    count = strspn(digits, "0123456789");
    if (count == 0 || count > 6 || strcmp(digits + count, "_k.npy") != 0) {
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        number = number * 10 + (uint32_t)(digits[i] - '0');
    }
    *ret = number;
    return true;
}

/* What is known of a layer before its files are read. */
struct found {
    uint32_t number;
    char stem[16]; /* "layer07" */
};

static int found_compare(const void *a, const void *b)
{
    uint32_t left = ((const struct found *)a)->number;
    uint32_t right = ((const struct found *)b)->number;

    return left < right ? -1 : left > right ? 1 : 0;
}

/* List the layers, ascending. */
static int folder_list(const char *folder, struct found *found, uint32_t *ret_count, char *error)
{
    DIR *dir = opendir(folder);
    const struct dirent *entry;
    uint32_t count = 0;
    uint32_t number;

    if (dir == NULL) {
        return fail(error, KVARN_EIO, "%.300s: %s", folder, strerror(errno));
    }
    while (count <= KVARN_LAYERS_MAX && (entry = readdir(dir)) != NULL) {
        if (!name_parse(entry->d_name, &number)) {
            continue;
        }
        if (count < KVARN_LAYERS_MAX) {
            found[count].number = number;
            snprintf(found[count].stem, sizeof found[count].stem, "%.*s",
                (int)strcspn(entry->d_name, "_"), entry->d_name);
        }
        count++;
    }
    closedir(dir);
    if (count == 0 || count > KVARN_LAYERS_MAX) {
        return fail(error, KVARN_EINVALID,
            "%.300s: expected 1 to %d layers as layerNN_k.npy, layerNN_v.npy, layerNN_q.npy, got "
            "%s",
            folder, KVARN_LAYERS_MAX, count == 0 ? "none" : "more");
    }
    qsort(found, count, sizeof *found, found_compare);
    for (uint32_t i = 1; i < count; i++) {
        if (found[i].number == found[i - 1].number) {
            return fail(error, KVARN_EINVALID, "%.300s: %s and %s are one layer", folder,
                found[i - 1].stem, found[i].stem);
        }
    }
    *ret_count = count;
    return 0;
}

/* ---- One layer ---- */

enum kvarn_dtype evaluate_dtype(const struct npy_array *array)
{
    KVARN_ASSERT(array->type == NPY_F16 || array->type == NPY_F32);
    return array->type == NPY_F32 ? KVARN_F32 : KVARN_F16;
}

static int tensor_load(const char *folder, const struct found *found, const char *what,
    struct npy_array *ret, char *error)
{
    char path[PATH_BYTES];
    int err;

    if (snprintf(path, sizeof path, "%s/%s_%s.npy", folder, found->stem, what) >=
        (int)sizeof path) {
        return fail(error, KVARN_EINVALID, "%.300s...: the path is too long", folder);
    }
    err = npy_read(path, ret, error);
    if (err != 0) {
        return err;
    }
    if (ret->rank != 3 || ret->type == NPY_U8) {
        return fail(error, KVARN_EINVALID,
            "%.300s: expected fp16 or fp32 [heads, tokens, head_dim], got %s of %u dimensions",
            path, npy_type_name(ret->type), ret->rank);
    }
    if (ret->shape[0] == 0 || ret->shape[0] > KVARN_Q_HEADS_MAX || ret->shape[1] == 0 ||
        ret->shape[1] > KVARN_SESSION_TOKENS_MAX || ret->shape[2] == 0 ||
        ret->shape[2] > KVARN_HEAD_DIM_MAX) {
        return fail(error, KVARN_EINVALID,
            "%.300s: [%" PRIu64 ", %" PRIu64 ", %" PRIu64
            "] is outside the limits: at most %d heads of head_dim %d",
            path, ret->shape[0], ret->shape[1], ret->shape[2], KVARN_Q_HEADS_MAX,
            KVARN_HEAD_DIM_MAX);
    }
    return 0;
}

static int layer_check(const struct found *found, const struct evaluate_layer *l, char *error)
{
    KVARN_ASSERT(l->k.shape[0] > 0); /* tensor_load() */
    if (l->v.shape[0] != l->k.shape[0] || l->v.shape[1] != l->k.shape[1] ||
        l->k.shape[0] > KVARN_KV_HEADS_MAX) {
        return fail(error, KVARN_EINVALID,
            "%s: expected K and V of the same heads (at most %d) and tokens, got [%" PRIu64
            ", %" PRIu64 ", ...] and [%" PRIu64 ", %" PRIu64 ", ...]",
            found->stem, KVARN_KV_HEADS_MAX, l->k.shape[0], l->k.shape[1], l->v.shape[0],
            l->v.shape[1]);
    }
    if (l->q.shape[2] != l->k.shape[2] || l->q.shape[0] % l->k.shape[0] != 0 ||
        l->q.shape[1] > l->k.shape[1]) {
        return fail(error, KVARN_EINVALID,
            "%s: expected Q with a multiple of %" PRIu64 " heads, at most %" PRIu64
            " tokens and head_dim %" PRIu64 ", got [%" PRIu64 ", %" PRIu64 ", %" PRIu64 "]",
            found->stem, l->k.shape[0], l->k.shape[1], l->k.shape[2], l->q.shape[0], l->q.shape[1],
            l->q.shape[2]);
    }
    return 0;
}

static int layer_load(
    const char *folder, const struct found *found, struct evaluate_layer *l, char *error)
{
    int err = tensor_load(folder, found, "k", &l->k, error);

    if (err == 0) {
        err = tensor_load(folder, found, "v", &l->v, error);
    }
    if (err == 0) {
        err = tensor_load(folder, found, "q", &l->q, error);
    }
    if (err == 0) {
        err = layer_check(found, l, error);
    }
    if (err != 0) {
        return err;
    }
    l->number = found->number;
    l->kv_heads = (uint32_t)l->k.shape[0];
    l->q_heads = (uint32_t)l->q.shape[0];
    l->k_dim = (uint32_t)l->k.shape[2];
    l->v_dim = (uint32_t)l->v.shape[2];
    return 0;
}

/* Requests carry all layers of a token in one type, so the layers must agree. */
static int layers_check(struct evaluate_data *data, const struct found *found, char *error)
{
    const struct evaluate_layer *first = &data->layers[0];

    for (uint32_t i = 0; i < data->layer_count; i++) {
        const struct evaluate_layer *l = &data->layers[i];

        if (l->k.type != first->k.type || l->v.type != first->k.type) {
            return fail(error, KVARN_EINVALID,
                "%s: expected K and V of all layers in one type; %s has %s, got %s and %s",
                found[i].stem, found[0].stem, npy_type_name(first->k.type),
                npy_type_name(l->k.type), npy_type_name(l->v.type));
        }
        if (l->k.shape[1] != first->k.shape[1] || l->q.shape[1] != first->q.shape[1]) {
            return fail(error, KVARN_EINVALID,
                "%s: expected %" PRIu64 " tokens and %" PRIu64
                " query tokens as in %s, got %" PRIu64 " and %" PRIu64,
                found[i].stem, first->k.shape[1], first->q.shape[1], found[0].stem, l->k.shape[1],
                l->q.shape[1]);
        }
    }
    data->tokens = first->k.shape[1];
    data->query_tokens = first->q.shape[1];
    data->kv_dtype = evaluate_dtype(&first->k);
    return 0;
}

int evaluate_data_load(const char *folder, struct evaluate_data *ret, char error[NPY_ERROR_MAX])
{
    struct evaluate_data data = {0};
    struct found *found = calloc(KVARN_LAYERS_MAX, sizeof *found);
    int err = found == NULL ? fail(error, KVARN_ENOMEM, "out of memory")
                            : folder_list(folder, found, &data.layer_count, error);

    if (err == 0) {
        data.layers = calloc(data.layer_count, sizeof *data.layers);
        err = data.layers == NULL ? fail(error, KVARN_ENOMEM, "out of memory") : 0;
    }
    KVARN_ASSERT(err != 0 || (data.layers != NULL && data.layer_count > 0));
    for (uint32_t i = 0; err == 0 && i < data.layer_count; i++) {
        err = layer_load(folder, &found[i], &data.layers[i], error);
    }
    if (err == 0) {
        err = layers_check(&data, found, error);
    }
    free(found);
    if (err != 0) {
        evaluate_data_fini(&data);
        return err;
    }
    *ret = data;
    return 0;
}

void evaluate_data_fini(struct evaluate_data *data)
{
    for (uint32_t i = 0; data->layers != NULL && i < data->layer_count; i++) {
        npy_array_fini(&data->layers[i].k);
        npy_array_fini(&data->layers[i].v);
        npy_array_fini(&data->layers[i].q);
    }
    free(data->layers);
    memset(data, 0, sizeof *data);
}

uint64_t evaluate_data_fp16_bytes(const struct evaluate_data *data)
{
    uint64_t values = 0;

    for (uint32_t i = 0; i < data->layer_count; i++) {
        values += (uint64_t)data->layers[i].kv_heads *
                  (data->layers[i].k_dim + data->layers[i].v_dim) * data->tokens;
    }
    return values * sizeof(uint16_t);
}
