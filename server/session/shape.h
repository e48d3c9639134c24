/*
 * Shapes: what describes a model's cache, checked and with all sizes derived; and their registry.
 *
 * Owner: service. Thread: loop only; a shape is immutable and lives as long as the registry.
 */
#ifndef KVD_SHAPE_H
#define KVD_SHAPE_H

#include <stddef.h>
#include <stdint.h>

#include "kvarn/codec.h"

#define KVD_FINGERPRINT_BYTES 16

/* One layer, sizes derived. */
struct kvd_layer_shape {
    struct kvarn_tile_spec spec;
    uint16_t kv_heads;
    uint64_t window;        /* 0 = full */
    size_t tile_bytes;      /* one tile, padded to 64 */
    size_t tile_page_bytes; /* kv_heads tiles */
    size_t record_bytes;    /* of one tile, and where in it they lie */
    struct kvarn_tile_map record_map;
    size_t rows_page_bytes; /* kv_heads * group * (k_dim + v_dim) halves */
};

/* A rows page is [K then V][KV head][group tokens][D] halves, rotated: these give a head's rows. */
static inline size_t kvd_rows_k_offset(const struct kvd_layer_shape *ls, unsigned head)
{
    return (size_t)head * ls->spec.group * ls->spec.k_dim * sizeof(uint16_t);
}
static inline size_t kvd_rows_v_offset(const struct kvd_layer_shape *ls, unsigned head)
{
    return ((size_t)ls->kv_heads * ls->spec.k_dim + (size_t)head * ls->spec.v_dim) *
           ls->spec.group * sizeof(uint16_t);
}

/* As a client describes it: PROTOCOL.md, RegisterShape. */
struct kvd_layer_group {
    uint32_t layers, kv_heads, k_dim, v_dim;
    uint64_t window;
};

struct kvd_shape {
    uint32_t id; /* index in the registry + 1 */
    uint32_t tenant_id;
    uint8_t fingerprint[KVD_FINGERPRINT_BYTES];
    char *model;    /* owned */
    char *revision; /* owned, "" if none */
    uint32_t group, k_bits, v_bits, sink_tokens;
    struct kvd_layer_group *layer_groups; /* owned */
    uint32_t layer_group_count;
    struct kvd_layer_shape *layers; /* owned */
    uint32_t layer_count;
    size_t block_rows_bytes;  /* all layers' rows pages of a block */
    size_t block_tiles_bytes; /* all layers' tile pages of a block */
};

struct kvd_shape_desc {
    const char *model;    /* borrowed */
    const char *revision; /* borrowed, may be NULL */
    uint32_t group, k_bits, v_bits, sink_tokens;
    const struct kvd_layer_group *layer_groups; /* borrowed */
    uint32_t layer_group_count;
};

struct kvd_shape_registry {
    struct kvd_shape **shapes; /* owned */
    uint32_t count;
};

void kvd_shape_registry_init(struct kvd_shape_registry *registry);
void kvd_shape_registry_fini(struct kvd_shape_registry *registry);

/*
 * Register, or find, a shape of a tenant. Equal descriptions give the same shape.
 * `why` (`why_bytes` of room) gets a sentence naming what was expected and got on failure.
 * Returns 0; KVARN_EINVALID; KVARN_ETOO_LARGE at a limit of lib/base/limits.h; KVARN_ENOMEM.
 */
int kvd_shape_register(struct kvd_shape_registry *registry, uint32_t tenant_id,
    const struct kvd_shape_desc *desc, const struct kvd_shape **ret, char *why,
    size_t why_bytes) KVARN_MUST_CHECK;

/* NULL when no such shape of this tenant. `fingerprint`: KVD_FINGERPRINT_BYTES. */
const struct kvd_shape *kvd_shape_find_fingerprint(
    const struct kvd_shape_registry *registry, uint32_t tenant_id, const uint8_t *fingerprint);

/* NULL when no such shape of this tenant. */
const struct kvd_shape *kvd_shape_find(
    const struct kvd_shape_registry *registry, uint32_t tenant_id, uint32_t id);

/*
 * The canonical text whose SHA-256, cut to its first 16 bytes, is the fingerprint; documented in
 * proto/PROTOCOL.md so that clients can compute it. Lines end with one LF, the last one too; words
 * are parted by one space; numbers are decimal without leading zeros. Strings are given as their
 * length in bytes, a colon and the bytes themselves, so that no content can imitate a line:
 *
 *   kvarn-shape 1
 *   model 5:llama
 *   revision 0:
 *   group 128
 *   bits K V
 *   sink TOKENS
 *   layers COUNT KV_HEADS K_DIM V_DIM WINDOW
 *
 * with one `layers` line per run of equal layers: neighbouring groups that differ in nothing but
 * their count are one line, so that how a client groups its layers does not matter. Defaults are
 * filled in first (no revision is the empty one). The tenant is not part of the text: the same
 * model has the same fingerprint for everybody, and identities are (tenant, fingerprint).
 *
 * Returns the text's length; writes at most `bytes` of it, without a terminating zero.
 */
size_t kvd_shape_canonical(const struct kvd_shape_desc *desc, char *dst, size_t bytes);

#endif
