/*
 * What tests of calls share: one host, one peer, a registered shape, and requests with made-up K
 * and V whose every number is known.
 *
 * Thread: one. What a test cannot go on without fails it here.
 */
#ifndef TESTS_RPC_RIG_H
#define TESTS_RPC_RIG_H

#include "tests/support/wire_peer.h"

struct rpc_rig {
    struct kvt_host host;
    struct kvt_peer peer;
    const struct kvd_shape *shape;
};

/* Two layers of 2 KV heads, K and V 16; one of 1 KV head, K 24, V 8, window 100. Group 64. */
extern const struct kvd_shape_desc rpc_shape_small;

/* One layer of 8 KV heads of 128, group 128: 1 MiB of fp16 are 256 tokens. */
extern const struct kvd_shape_desc rpc_shape_large;

/* `desc` NULL: the small shape. */
void rpc_rig_init(
    struct rpc_rig *rig, const struct kvt_host_options *options, const struct kvd_shape_desc *desc);
void rpc_rig_fini(struct rpc_rig *rig);

/* A RegisterShape with one group of one layer, everything else by default. */
struct rpc_shape_words {
    Kvarnd__RegisterShape message;
    Kvarnd__Shape shape;
    Kvarnd__LayerGroup group;
    Kvarnd__LayerGroup *groups[1];
};
void rpc_shape_words_init(struct rpc_shape_words *words, const char *model);
struct kvt_answer rpc_shape_call(struct rpc_rig *rig, struct rpc_shape_words *words);

/* A session as a client holds it. */
struct rpc_session {
    uint64_t handle;
    uint64_t epoch;
};

/* Open a session of the rig's shape; name NULL: unnamed. */
struct rpc_session rpc_open(struct rpc_rig *rig, const char *name, uint32_t seal_lag);

/* Rows that an append carries: layers, tokens, their form, and whose numbers they are. */
struct rpc_rows {
    uint32_t layer_first, layer_count;
    uint64_t start;
    uint32_t token_count;
    enum kvarn_dtype dtype;
    Kvarnd__Layout layout;
    bool is_rotated;
    uint64_t seed;
};

/* The number at a place, about normal; `seed` sets sessions apart. */
float rpc_value(
    uint64_t seed, uint32_t layer, bool is_v, uint32_t head, uint64_t token, uint32_t d);

/* The payload, to be freed. */
uint8_t *rpc_rows_make(const struct rpc_rig *rig, const struct rpc_rows *rows, size_t *ret_bytes);

/* The message of an append of these rows. */
Kvarnd__Append rpc_append_message(const struct rpc_session *session, const struct rpc_rows *rows);

/* Append and answer; with `ok`, the answer must be OK and is finished here. */
struct kvt_answer rpc_append(
    struct rpc_rig *rig, const struct rpc_session *session, const struct rpc_rows *rows);
void rpc_append_ok(
    struct rpc_rig *rig, const struct rpc_session *session, const struct rpc_rows *rows);

/* All layers, halves, at `start`. */
void rpc_append_all(
    struct rpc_rig *rig, const struct rpc_session *session, uint64_t start, uint32_t token_count);

/* Read tokens of layers as stored. */
struct kvt_answer rpc_read_stored(struct rpc_rig *rig, const struct rpc_session *session,
    uint32_t layer_first, uint32_t layer_count, uint64_t first, uint64_t last);

/* Rotated floats of a layer's tokens, K [head][token][k_dim] then V, out of one stored layer. */
struct rpc_floats {
    uint64_t first, last;
    float *k, *v; /* owned */
};
struct rpc_floats rpc_read_floats(struct rpc_rig *rig, const struct rpc_session *session,
    uint32_t layer, uint64_t first, uint64_t last);
void rpc_floats_fini(struct rpc_floats *floats);

/* A call without payload whose answer is an error: returns it; 0 when it was OK. */
int rpc_call_err(struct rpc_rig *rig, unsigned type, const ProtobufCMessage *message,
    const void *payload, size_t payload_bytes);

#endif
