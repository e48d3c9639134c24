/*
 * Recorded tensors of a model: layerNN_k.npy, layerNN_v.npy and layerNN_q.npy in one folder.
 *
 * K and V: [kv_heads, tokens, head_dim], as a worker caches them (K after RoPE, neither rotated by
 * Hadamard). Q: [q_heads, query_tokens, head_dim], queries of the last tokens. fp16 or fp32.
 *
 * Owner: the command. Thread: main.
 */
#ifndef KVARNCTL_EVALUATE_DATA_H
#define KVARNCTL_EVALUATE_DATA_H

#include <stdint.h>

#include "client/cli/npy.h"
#include "kvarn/codec.h"

struct evaluate_layer {
    uint32_t number;          /* NN of the files */
    struct npy_array k, v, q; /* owned */
    uint32_t kv_heads, q_heads;
    uint32_t k_dim, v_dim;
};

struct evaluate_data {
    struct evaluate_layer *layers; /* owned; ascending by number */
    uint32_t layer_count;          /* >= 1 */
    uint64_t tokens;               /* of every layer, >= 1 */
    uint64_t query_tokens;         /* of every layer, 1..tokens */
    enum kvarn_dtype kv_dtype;     /* of every K and V */
};

/*
 * Read a folder. Returns 0 and fills *ret, to be freed with evaluate_data_fini(); KVARN_EIO,
 * KVARN_EINVALID or KVARN_ENOMEM with a text in `error` that names the file, what was expected and
 * what was found.
 */
int evaluate_data_load(
    const char *folder, struct evaluate_data *ret, char error[NPY_ERROR_MAX]) KVARN_MUST_CHECK;

/* Accepts a zeroed struct. */
void evaluate_data_fini(struct evaluate_data *data);

/* Bytes of all K and V in fp16, whatever the files hold. */
uint64_t evaluate_data_fp16_bytes(const struct evaluate_data *data);

/* Number type of an array of floats. */
enum kvarn_dtype evaluate_dtype(const struct npy_array *array);

#endif
