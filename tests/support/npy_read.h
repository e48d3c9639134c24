/* A tiny reader of NumPy's .npy files for tests: version 1.0, C order, f2, f4 or u1. */
#ifndef KVARN_TESTS_SUPPORT_NPY_READ_H
#define KVARN_TESTS_SUPPORT_NPY_READ_H

#include <stddef.h>
#include <stdint.h>

#define KVT_NPY_DIMS_MAX 4

struct kvt_npy {
    char type;                      /* 'h' half, 'f' float, 'b' byte */
    uint32_t dim_count;             /* 1 .. KVT_NPY_DIMS_MAX */
    size_t shape[KVT_NPY_DIMS_MAX]; /* axes that are not there are 1 */
    size_t count;                   /* values */
    size_t bytes;
    void *data; /* owned */
};

/* Read a file. Returns 0, or -1 with a line on stderr that says what is wrong. */
int kvt_npy_read(const char *path, struct kvt_npy *ret_npy);

/* As kvt_npy_read() for DIR/NAME. */
int kvt_npy_read_at(const char *dir, const char *name, struct kvt_npy *ret_npy);

void kvt_npy_fini(struct kvt_npy *npy);

/* The values as floats, owned by the caller (free()). */
float *kvt_npy_floats(const struct kvt_npy *npy);

#endif
