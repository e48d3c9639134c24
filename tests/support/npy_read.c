/* A tiny reader of NumPy's .npy files for tests. */
#include "tests/support/npy_read.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvarn/codec.h"

#define PREAMBLE_BYTES   10
#define HEADER_BYTES_MAX 4096

static int fail(const char *path, const char *why)
{
    fprintf(stderr, "%s: %s\n", path, why);
    return -1;
}

static int descr_parse(const char *header, char *ret_type, size_t *ret_value_bytes)
{
    if (strstr(header, "'descr': '<f2'") != NULL) {
        *ret_type = 'h';
        *ret_value_bytes = 2;
    } else if (strstr(header, "'descr': '<f4'") != NULL) {
        *ret_type = 'f';
        *ret_value_bytes = 4;
    } else if (strstr(header, "'descr': '|u1'") != NULL) {
        *ret_type = 'b';
        *ret_value_bytes = 1;
    } else {
        return -1;
    }
    return strstr(header, "'fortran_order': False") != NULL ? 0 : -1;
}

static int shape_parse(const char *header, struct kvt_npy *npy)
{
    const char *at = strstr(header, "'shape': (");

    if (at == NULL) {
        return -1;
    }
    at += strlen("'shape': (");
    npy->count = 1;
    for (int i = 0; i < KVT_NPY_DIMS_MAX; i++) {
        npy->shape[i] = 1;
    }
    while (*at != ')') {
        char *end;
        unsigned long long dim = strtoull(at, &end, 10);
        if (end == at || dim > (1u << 28) || npy->dim_count == KVT_NPY_DIMS_MAX) {
            return -1;
        }
        npy->shape[npy->dim_count++] = (size_t)dim;
        npy->count *= (size_t)dim;
        at = end + strspn(end, ", ");
    }
    return npy->dim_count > 0 ? 0 : -1;
}

static int file_parse(FILE *file, const char *path, struct kvt_npy *npy)
{
    uint8_t preamble[PREAMBLE_BYTES];
    char header[HEADER_BYTES_MAX + 1];
    size_t value_bytes = 0;

    if (fread(preamble, 1, sizeof(preamble), file) != sizeof(preamble) ||
        memcmp(preamble, "\x93NUMPY\x01\x00", 8) != 0) {
        return fail(path, "not a .npy file of version 1.0");
    }
    size_t header_bytes = preamble[8] | (size_t)preamble[9] << 8;
    if (header_bytes > HEADER_BYTES_MAX || fread(header, 1, header_bytes, file) != header_bytes) {
        return fail(path, "short header");
    }
    header[header_bytes] = '\0';
    if (descr_parse(header, &npy->type, &value_bytes) != 0 || shape_parse(header, npy) != 0) {
        return fail(path, "a type, order or shape that this reader does not know");
    }
    npy->bytes = npy->count * value_bytes;
    npy->data = malloc(npy->bytes > 0 ? npy->bytes : 1);
    if (npy->data == NULL || fread(npy->data, 1, npy->bytes, file) != npy->bytes ||
        fgetc(file) != EOF) {
        return fail(path, "the data are not as long as the shape says");
    }
    return 0;
}

int kvt_npy_read(const char *path, struct kvt_npy *ret_npy)
{
    struct kvt_npy npy = {0};
    FILE *file = fopen(path, "rb");

    if (file == NULL) {
        return fail(path, "cannot be opened");
    }
    int err = file_parse(file, path, &npy);
    fclose(file);
    if (err != 0) {
        kvt_npy_fini(&npy);
        return err;
    }
    *ret_npy = npy;
    return 0;
}

int kvt_npy_read_at(const char *dir, const char *name, struct kvt_npy *ret_npy)
{
    char path[4096];
    int length = snprintf(path, sizeof(path), "%s/%s", dir, name);

    if (length < 0 || (size_t)length >= sizeof(path)) {
        return fail(name, "path too long");
    }
    return kvt_npy_read(path, ret_npy);
}

void kvt_npy_fini(struct kvt_npy *npy)
{
    free(npy->data);
    *npy = (struct kvt_npy){0};
}

float *kvt_npy_floats(const struct kvt_npy *npy)
{
    float *values = malloc((npy->count > 0 ? npy->count : 1) * sizeof(float));

    if (values == NULL) {
        abort();
    }
    if (npy->type == 'h') {
        kvarn_to_f32(values, npy->data, KVARN_F16, npy->count);
    } else if (npy->type == 'f') {
        memcpy(values, npy->data, npy->bytes);
    } else {
        const uint8_t *bytes = npy->data;
        for (size_t i = 0; i < npy->count; i++) {
            values[i] = (float)bytes[i];
        }
    }
    return values;
}
