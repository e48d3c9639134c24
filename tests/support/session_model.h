/*
 * What a session should hold, kept the simple way: every row as halves, every sealed block as the
 * tiles that the library makes of its rows. Written from SEMANTICS.md 1 to 11, not from the server.
 *
 * Operations are applied in arrival order, whole, at once.
 */
#ifndef TESTS_SESSION_MODEL_H
#define TESTS_SESSION_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/support/session_rig.h"

/* One layer of one block. */
struct kvt_model_block {
    uint16_t *rows; /* owned: as a rows page; NULL: never written */
    uint8_t *tiles; /* owned: as a tile page; NULL: not sealed */
};

struct kvt_model_layer {
    const struct kvd_layer_shape *ls; /* borrowed */
    uint64_t length;
    uint32_t sealed_blocks;         /* sinks counted */
    uint32_t dropped_blocks;        /* left the window */
    struct kvt_model_block *blocks; /* owned: block_room of the model */
};

struct kvt_model {
    const struct kvd_shape *shape; /* borrowed */
    uint32_t seal_lag;
    enum kvarn_encoder encoder;
    uint32_t layer_count; /* of the shape, which may be gone before the model */
    uint32_t block_room;
    struct kvt_model_layer *layers; /* owned */
};

/* Room for `tokens_max` tokens a layer. */
void kvt_model_init(
    struct kvt_model *model, const struct kvd_session *session, uint64_t tokens_max);
void kvt_model_fini(struct kvt_model *model);

/* A model of its own that holds the same. */
void kvt_model_copy(struct kvt_model *model, const struct kvt_model *from);

/* Apply an append that will be, or was, stored: its payload is read. */
void kvt_model_append(struct kvt_model *model, const struct kvt_append *append);

/* Apply runs. */
void kvt_model_tiles(struct kvt_model *model, const struct kvt_tiles *tiles);

/* Apply a truncate; returns whether a sealed block was re-opened. */
bool kvt_model_truncate(struct kvt_model *model, uint64_t length);

/*
 * Compare with what an idle session holds, and check what must always be true of one: pages of each
 * block, references, usage, checksums. Returns the number of differences; the first ones are
 * printed.
 */
unsigned kvt_model_check(const struct kvt_model *model, const struct kvd_session *session);

/*
 * One KV head's rows of tokens [0, length) as a reader sees them who reads `sealed_blocks` blocks
 * as tiles; tokens that left the window are 0. k: [length][k_dim], v: [length][v_dim].
 */
void kvt_model_read(const struct kvt_model *model, uint32_t layer, uint32_t head,
    uint32_t sealed_blocks, float *k, float *v);

/*
 * What an attention must answer that takes its snapshot now and reads `sealed_blocks` blocks as
 * tiles, by definition in float64; q is filled in, numbers that count from the length too.
 */
void kvt_model_attend(
    const struct kvt_model *model, struct kvt_attend *attend, uint32_t sealed_blocks);

/*
 * Largest difference of the answer from that, out and lse together; INFINITY when one of them is
 * not a number or infinite alone.
 */
double kvt_attend_error(const struct kvt_attend *attend);

#endif
