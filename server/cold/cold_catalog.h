/*
 * What heads and bodies of cold records mean: shapes, sessions, pages, maps, tails, as bytes.
 *
 * Owner: none, pure. Thread: any. Decoding is total: bytes of a file give a value within the limits
 * of limits.h or KVARN_ECORRUPT. COLD.md describes the bytes.
 */
#ifndef KVD_COLD_CATALOG_H
#define KVD_COLD_CATALOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/base/limits.h"
#include "server/cold/cold.h"
#include "server/session/shape.h"

/* Bytes being put together; `data` is owned by who fini's it. */
struct kvd_cold_bytes {
    uint8_t *data;
    size_t bytes, room;
    bool has_failed; /* no memory: what follows is lost */
};

void kvd_cold_bytes_fini(struct kvd_cold_bytes *bytes);

struct kvd_cold_session_head {
    uint8_t fingerprint[KVD_FINGERPRINT_BYTES];
    uint32_t encoder, seal_lag;
    char name[KVARN_SESSION_NAME_MAX + 1];
};

/* What a block's record has of a layer. */
enum kvd_cold_page_kind {
    KVD_COLD_PAGE_NONE,
    KVD_COLD_PAGE_TILES,
    KVD_COLD_PAGE_ROWS, /* of a full sink block */
};

struct kvd_cold_page_layer {
    uint8_t kind;      /* enum kvd_cold_page_kind */
    uint8_t encoder;   /* of tiles */
    uint64_t checksum; /* XXH3-64 of the page, of tiles */
};

struct kvd_cold_page_head {
    uint8_t fingerprint[KVD_FINGERPRINT_BYTES];
    uint32_t block_idx, layer_count;
    struct kvd_cold_page_layer layers[KVARN_LAYERS_MAX];
};

struct kvd_cold_map_layer {
    uint64_t length;
    uint32_t sealed_blocks, dropped_blocks;
};

struct kvd_cold_map_head {
    uint64_t epoch;
    struct kvd_cold_id tail_id; /* of the TAIL that goes with it; zeros: none */
    uint32_t block_count;       /* ids in the body, 16 bytes each */
    uint32_t layer_count;
    struct kvd_cold_map_layer layers[KVARN_LAYERS_MAX];
};

/* One rows page of a tail, in the order of the body. */
struct kvd_cold_tail_page {
    uint32_t layer, block_idx;
    uint32_t filled_tokens; /* 0: it is tiles, and what follows is of them */
    uint32_t encoder;
    uint64_t checksum;
};

struct kvd_cold_tail_head {
    uint32_t page_count;
    struct kvd_cold_tail_page *pages; /* owned by the decoder's caller; borrowed by the encoder */
};

/* Add bytes as they are. */
void kvd_cold_bytes_add(struct kvd_cold_bytes *bytes, const void *data, size_t count);

/* Add the encoding to `bytes`. */
void kvd_cold_shape_encode(struct kvd_cold_bytes *bytes, const struct kvd_shape *shape);
void kvd_cold_session_encode(
    struct kvd_cold_bytes *bytes, const struct kvd_cold_session_head *head);
void kvd_cold_page_encode(struct kvd_cold_bytes *bytes, const struct kvd_cold_page_head *head);
void kvd_cold_map_encode(struct kvd_cold_bytes *bytes, const struct kvd_cold_map_head *head);
void kvd_cold_tail_encode(struct kvd_cold_bytes *bytes, const struct kvd_cold_tail_head *head);
void kvd_cold_id_encode(struct kvd_cold_bytes *bytes, struct kvd_cold_id id);

/*
 * A shape: what `desc` points to lies in *ret_memory, which is the caller's to free. Returns 0,
 * KVARN_ECORRUPT or KVARN_ENOMEM.
 */
int kvd_cold_shape_decode(const uint8_t *data, size_t bytes, struct kvd_shape_desc *desc,
    void **ret_memory) KVARN_MUST_CHECK;

/* Return 0 or KVARN_ECORRUPT. */
int kvd_cold_session_decode(
    const uint8_t *data, size_t bytes, struct kvd_cold_session_head *ret) KVARN_MUST_CHECK;
int kvd_cold_page_decode(
    const uint8_t *data, size_t bytes, struct kvd_cold_page_head *ret) KVARN_MUST_CHECK;
int kvd_cold_map_decode(
    const uint8_t *data, size_t bytes, struct kvd_cold_map_head *ret) KVARN_MUST_CHECK;

/* ret->pages is the caller's to free. Returns 0, KVARN_ECORRUPT or KVARN_ENOMEM. */
int kvd_cold_tail_decode(
    const uint8_t *data, size_t bytes, struct kvd_cold_tail_head *ret) KVARN_MUST_CHECK;

/* 16 bytes of a map's body. */
struct kvd_cold_id kvd_cold_id_decode(const uint8_t *data);

/*
 * Where a page of a tail lies in memory, in the order of the body: of rows the filled ones of each
 * head, K then V; all of tiles. Room for 2 * kv_heads. Returns how many.
 */
unsigned kvd_cold_page_vecs(
    const struct kvd_layer_shape *ls, void *data, uint32_t filled_tokens, struct iovec *ret_vecs);

/* A fingerprint as an id. */
struct kvd_cold_id kvd_cold_fingerprint_id(const uint8_t *fingerprint);

#endif
