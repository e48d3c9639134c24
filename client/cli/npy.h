/*
 * .npy files: a small, strict reader and writer.
 *
 * Format: NumPy's, versions 1.0 and 2.0, little-endian fp16, fp32 and uint8, C order, 1 to 4
 * dimensions. Anything else is refused with a text that names what was expected and got; sizes are
 * checked against the file before memory is taken.
 */
#ifndef KVARNCTL_NPY_H
#define KVARNCTL_NPY_H

#include <stddef.h>
#include <stdint.h>

#include "kvarn/err.h"

#define NPY_RANK_MAX  4
#define NPY_ERROR_MAX 512

enum npy_type { NPY_F16, NPY_F32, NPY_U8 };

struct npy_array {
    enum npy_type type;
    unsigned rank;
    uint64_t shape[NPY_RANK_MAX];
    void *data; /* owned */
    size_t data_bytes;
};

/* Bytes of one value. */
size_t npy_type_bytes(enum npy_type type);

/* "fp16", "fp32", "uint8". */
const char *npy_type_name(enum npy_type type);

/*
 * Read a file. Returns 0 and fills *ret, to be freed with npy_array_fini(); KVARN_EIO or
 * KVARN_EINVALID or KVARN_ENOMEM with a text in `error` that begins with the path.
 */
int npy_read(const char *path, struct npy_array *ret, char error[NPY_ERROR_MAX]) KVARN_MUST_CHECK;

/* Accepts a zeroed struct. */
void npy_array_fini(struct npy_array *array);

/* Write a file (version 1.0); a file that could not be finished is removed. Errors as npy_read().
 */
int npy_write(
    const char *path, const struct npy_array *array, char error[NPY_ERROR_MAX]) KVARN_MUST_CHECK;

#endif
