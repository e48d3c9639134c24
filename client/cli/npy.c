/* Reader and writer of .npy files. */
#include "client/cli/npy.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/base/assert.h"

#define MAGIC            "\x93NUMPY"
#define MAGIC_BYTES      6
#define PREFIX_BYTES_V1  10   /* magic, version, u16 of header bytes */
#define PREFIX_BYTES_V2  12   /* u32 instead */
#define HEADER_BYTES_MAX 4096 /* NumPy writes 118 for what we read */

static const struct {
    const char *descr;
    const char *name;
    size_t bytes;
} types[] = {
    [NPY_F16] = {"<f2", "fp16", 2},
    [NPY_F32] = {"<f4", "fp32", 4},
    [NPY_U8] = {"|u1", "uint8", 1},
};

size_t npy_type_bytes(enum npy_type type)
{
    return types[type].bytes;
}

const char *npy_type_name(enum npy_type type)
{
    return types[type].name;
}

__attribute__((format(printf, 4, 5))) static int fail(
    char *error, const char *path, int err, const char *format, ...)
{
    char text[NPY_ERROR_MAX / 2];
    va_list args;

    KVARN_ASSERT(err < 0);
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    snprintf(error, NPY_ERROR_MAX, "%.200s: %s", path, text);
    return err;
}

/* ---- The header's dictionary ---- */

/* What is left of the header, and what to say where it is wrong. */
struct scan {
    const char *at; /* NUL-terminated */
    const char *expected;
};

static void scan_spaces(struct scan *scan)
{
    while (*scan->at == ' ' || *scan->at == '\n' || *scan->at == '\t') {
        scan->at++;
    }
}

/* Take `token` if it comes next. */
static bool scan_token(struct scan *scan, const char *token)
{
    size_t bytes = strlen(token);

    scan_spaces(scan);
    if (strncmp(scan->at, token, bytes) != 0) {
        return false;
    }
    scan->at += bytes;
    return true;
}

/* A quoted text without escapes. */
static bool scan_quoted(struct scan *scan, char *to, size_t room)
{
    char quote;
    size_t count = 0;

    scan_spaces(scan);
    quote = *scan->at;
    if (quote != '\'' && quote != '"') {
        return false;
    }
    scan->at++;
    while (*scan->at != '\0' && *scan->at != quote) {
        if (*scan->at == '\\' || count + 1 >= room) {
            return false;
        }
        to[count++] = *scan->at++;
    }
    to[count] = '\0';
    if (*scan->at != quote) {
        return false;
    }
    scan->at++;
    return true;
}

static bool scan_number(struct scan *scan, uint64_t *ret)
{
    uint64_t value = 0;
    unsigned digits = 0;

    scan_spaces(scan);
    while (*scan->at >= '0' && *scan->at <= '9') {
        if (++digits > 18) { /* below 2^63 whatever they are */
            return false;
        }
        value = value * 10 + (uint64_t)(*scan->at++ - '0');
    }
    *ret = value;
    return digits > 0;
}

static bool scan_descr(struct scan *scan, struct npy_array *array)
{
    char descr[16];

    scan->expected = "descr '<f2', '<f4' or '|u1'";
    if (!scan_quoted(scan, descr, sizeof descr)) {
        return false;
    }
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (strcmp(descr, types[i].descr) == 0) {
            array->type = (enum npy_type)i;
            return true;
        }
    }
    scan->at -= strlen(descr) + 2; /* so that the error shows it */
    return false;
}

static bool scan_shape(struct scan *scan, struct npy_array *array)
{
    scan->expected = "a shape of 1 to 4 dimensions";
    if (!scan_token(scan, "(")) {
        return false;
    }
    while (!scan_token(scan, ")")) {
        if (array->rank == NPY_RANK_MAX || !scan_number(scan, &array->shape[array->rank])) {
            return false;
        }
        array->rank++;
        if (!scan_token(scan, ",")) {
            /* (3) is a number in Python: one dimension is written (3,). */
            return array->rank > 1 && scan_token(scan, ")");
        }
    }
    return array->rank > 0;
}

/* One `'key': value`; each key must come once. */
static bool scan_entry(struct scan *scan, struct npy_array *array, unsigned *seen)
{
    char key[32];
    unsigned bit;
    bool is_good = false;

    scan->expected = "the keys 'descr', 'fortran_order' and 'shape', once each";
    if (!scan_quoted(scan, key, sizeof key) || !scan_token(scan, ":")) {
        return false;
    }
    bit = strcmp(key, "descr") == 0 ? 1 : strcmp(key, "fortran_order") == 0 ? 2 : 4;
    if ((*seen & bit) != 0 || (bit == 4 && strcmp(key, "shape") != 0)) {
        return false;
    }
    *seen |= bit;
    if (bit == 1) {
        is_good = scan_descr(scan, array);
    } else if (bit == 2) {
        scan->expected = "fortran_order False";
        is_good = scan_token(scan, "False");
    } else {
        is_good = scan_shape(scan, array);
    }
    return is_good;
}

static bool scan_dictionary(struct scan *scan, struct npy_array *array)
{
    unsigned seen = 0;

    scan->expected = "a dictionary";
    if (!scan_token(scan, "{")) {
        return false;
    }
    while (!scan_token(scan, "}")) {
        if (!scan_entry(scan, array, &seen)) {
            return false;
        }
        if (scan_token(scan, ",")) {
            continue;
        }
        scan->expected = "',' or '}'";
        if (!scan_token(scan, "}")) {
            return false;
        }
        break;
    }
    scan->expected = "the keys 'descr', 'fortran_order' and 'shape', once each";
    if (seen != 7) {
        return false;
    }
    scan->expected = "nothing behind the dictionary";
    scan_spaces(scan);
    return *scan->at == '\0';
}

/* ---- Files ---- */

static int prefix_read(
    FILE *file, const char *path, size_t *ret_header_bytes, size_t *ret_prefix_bytes, char *error)
{
    uint8_t p[PREFIX_BYTES_V2];
    size_t prefix_bytes = PREFIX_BYTES_V1;
    size_t header_bytes;

    if (fread(p, 1, PREFIX_BYTES_V1, file) != PREFIX_BYTES_V1 ||
        memcmp(p, MAGIC, MAGIC_BYTES) != 0) {
        return fail(error, path, KVARN_EINVALID, "expected a .npy file, got other bytes");
    }
    if ((p[6] != 1 && p[6] != 2) || p[7] != 0) {
        return fail(error, path, KVARN_EINVALID, "expected .npy version 1.0 or 2.0, got %u.%u",
            (unsigned)p[6], (unsigned)p[7]);
    }
    header_bytes = (size_t)p[8] | (size_t)p[9] << 8;
    if (p[6] == 2) {
        prefix_bytes = PREFIX_BYTES_V2;
        if (fread(p + PREFIX_BYTES_V1, 1, 2, file) != 2) {
            return fail(error, path, KVARN_EINVALID, "the file ends within its header");
        }
        header_bytes |= (size_t)p[10] << 16 | (size_t)p[11] << 24;
    }
    if (header_bytes > HEADER_BYTES_MAX) {
        return fail(error, path, KVARN_EINVALID, "expected a header of at most %d bytes, got %zu",
            HEADER_BYTES_MAX, header_bytes);
    }
    *ret_header_bytes = header_bytes;
    *ret_prefix_bytes = prefix_bytes;
    return 0;
}

static int header_read(
    FILE *file, const char *path, struct npy_array *array, size_t *ret_data_at, char *error)
{
    char header[HEADER_BYTES_MAX + 1];
    struct scan scan = {.at = header};
    size_t header_bytes = 0;
    size_t prefix_bytes = 0;
    int err = prefix_read(file, path, &header_bytes, &prefix_bytes, error);

    if (err != 0) {
        return err;
    }
    if (fread(header, 1, header_bytes, file) != header_bytes) {
        return fail(error, path, KVARN_EINVALID, "the file ends within its header");
    }
    header[header_bytes] = '\0';
    if (strlen(header) != header_bytes) {
        return fail(error, path, KVARN_EINVALID, "the header holds a NUL byte");
    }
    if (!scan_dictionary(&scan, array)) {
        return fail(
            error, path, KVARN_EINVALID, "expected %s, got \"%.60s\"", scan.expected, scan.at);
    }
    *ret_data_at = prefix_bytes + header_bytes;
    return 0;
}

/* Bytes that the shape says, or KVARN_ETOO_LARGE when no file could hold them. */
static int shape_bytes(const struct npy_array *array, uint64_t *ret_bytes)
{
    uint64_t bytes = types[array->type].bytes;

    for (unsigned i = 0; i < array->rank; i++) {
        if (array->shape[i] != 0 && bytes > (uint64_t)INT64_MAX / array->shape[i]) {
            return KVARN_ETOO_LARGE;
        }
        bytes *= array->shape[i];
    }
    *ret_bytes = bytes;
    return 0;
}

static int data_read(
    FILE *file, const char *path, struct npy_array *array, size_t data_at, char *error)
{
    struct stat st;
    uint64_t expected = 0;
    uint64_t got;

    if (fstat(fileno(file), &st) != 0 || !S_ISREG(st.st_mode)) {
        return fail(error, path, KVARN_EIO, "expected a regular file");
    }
    if (shape_bytes(array, &expected) != 0) {
        return fail(error, path, KVARN_EINVALID, "the shape is larger than any file");
    }
    got = (uint64_t)st.st_size - data_at;
    if (expected != got) {
        return fail(error, path, KVARN_EINVALID,
            "expected %llu bytes of data for the shape, got %llu", (unsigned long long)expected,
            (unsigned long long)got);
    }
    array->data = malloc((size_t)expected + 1);
    if (array->data == NULL) {
        return fail(
            error, path, KVARN_ENOMEM, "no memory for %llu bytes", (unsigned long long)expected);
    }
    array->data_bytes = (size_t)expected;
    if (fread(array->data, 1, array->data_bytes, file) != array->data_bytes) {
        return fail(error, path, KVARN_EIO, "could not be read to its end");
    }
    return 0;
}

int npy_read(const char *path, struct npy_array *ret, char error[NPY_ERROR_MAX])
{
    struct npy_array array = {0};
    FILE *file = fopen(path, "rbe");
    size_t data_at = 0;
    int err;

    if (file == NULL) {
        return fail(error, path, KVARN_EIO, "%s", strerror(errno));
    }
    err = header_read(file, path, &array, &data_at, error);
    if (err == 0) {
        err = data_read(file, path, &array, data_at, error);
    }
    fclose(file);
    if (err != 0) {
        npy_array_fini(&array);
        return err;
    }
    *ret = array;
    return 0;
}

void npy_array_fini(struct npy_array *array)
{
    free(array->data);
    memset(array, 0, sizeof *array);
}

/* The whole head of a version 1.0 file; NumPy pads it to a multiple of 64 bytes. */
static size_t head_format(const struct npy_array *array, char head[256])
{
    char shape[96] = "";
    size_t used = 0;
    size_t bytes;

    for (unsigned i = 0; i < array->rank; i++) {
        used += (size_t)snprintf(shape + used, sizeof shape - used, "%s%llu", i == 0 ? "" : ", ",
            (unsigned long long)array->shape[i]);
    }
    bytes = PREFIX_BYTES_V1 + (size_t)snprintf(head + PREFIX_BYTES_V1, 256 - PREFIX_BYTES_V1,
                                  "{'descr': '%s', 'fortran_order': False, 'shape': (%s%s), }",
                                  types[array->type].descr, shape, array->rank == 1 ? "," : "");
    KVARN_ASSERT(bytes < 255);
    do {
        head[bytes++] = ' ';
    } while (bytes % 64 != 0);
    head[bytes - 1] = '\n';
    memcpy(head, MAGIC "\x01", MAGIC_BYTES + 2); /* the literal's NUL is the minor version */
    head[8] = (char)((bytes - PREFIX_BYTES_V1) & 0xff);
    head[9] = (char)((bytes - PREFIX_BYTES_V1) >> 8);
    return bytes;
}

int npy_write(const char *path, const struct npy_array *array, char error[NPY_ERROR_MAX])
{
    char head[256];
    size_t head_bytes = head_format(array, head);
    FILE *file = fopen(path, "wbe");
    bool is_good;
    int saved;

    if (file == NULL) {
        return fail(error, path, KVARN_EIO, "%s", strerror(errno));
    }
    is_good = fwrite(head, 1, head_bytes, file) == head_bytes &&
              fwrite(array->data, 1, array->data_bytes, file) == array->data_bytes;
    saved = errno;
    if (fclose(file) != 0 && is_good) {
        saved = errno;
        is_good = false;
    }
    if (is_good) {
        return 0;
    }
    unlink(path);
    return fail(error, path, KVARN_EIO, "%s", strerror(saved));
}
