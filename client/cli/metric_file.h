/*
 * Files of query metrics, as `kvarnctl shape export` writes and `shape import` reads them. The
 * bytes are described in lib/FORMAT.md, section Metric file.
 */
#ifndef KVARNCTL_METRIC_FILE_H
#define KVARNCTL_METRIC_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "kvarn/client.h"

#define METRIC_FILE_ERROR_MAX 512

/* What sizes a layer's part has. */
struct metric_file_layer {
    uint32_t kv_heads, k_dim;
};

struct metric_file {
    char *text; /* owned: the shape's canonical text (PROTOCOL.md), ended by a zero byte */
    size_t text_bytes;
    uint8_t fingerprint[16];
    struct metric_file_layer *layers; /* owned */
    uint32_t layer_count;
    uint64_t *counts; /* owned: [layer][KV head] queries; a layer's all 0: nothing is known of it */
    size_t count_count;
    float *sums; /* owned: of each other layer [KV head][k_dim][k_dim] */
    size_t sums_bytes;
    struct kvarn_shape shape;         /* of the text; points at what follows */
    struct kvarn_layer_group *groups; /* owned */
    char *names;                      /* owned: model and revision, ended by zero bytes */
};

/*
 * Text and layers of a shape; counts all 0, no sums yet. Returns 0, KVARN_EINVALID for a shape with
 * layers outside the limits, or KVARN_ENOMEM.
 */
int metric_file_init(struct metric_file *ret, const struct kvarn_shape *shape) KVARN_MUST_CHECK;

/* Accepts a zeroed struct. */
void metric_file_fini(struct metric_file *file);

/* Bytes of sums that one layer has if its counts are not 0. */
uint64_t metric_file_layer_bytes(const struct metric_file *file, uint32_t layer);

/*
 * Write it: to a file beside, which takes the name when it is whole. Returns 0, or KVARN_EIO or
 * KVARN_ENOMEM with a text in `error` that begins with the path.
 */
int metric_file_write(const char *path, const struct metric_file *file,
    char error[METRIC_FILE_ERROR_MAX]) KVARN_MUST_CHECK;

/*
 * Read and check a file. Returns 0 and fills *ret; KVARN_EIO, KVARN_ENOMEM, KVARN_ECORRUPT for a
 * wrong checksum or KVARN_EINVALID for what is no such file, with a text in `error`.
 */
int metric_file_read(
    const char *path, struct metric_file *ret, char error[METRIC_FILE_ERROR_MAX]) KVARN_MUST_CHECK;

#endif
