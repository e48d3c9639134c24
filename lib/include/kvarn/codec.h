/*
 * The KVarN codec: one KV head's keys and values over one group of tokens <-> 2- or 4-bit tiles.
 *
 * Source: KVarN (arXiv:2606.03458); lib/FORMAT.md has the bytes and the arithmetic.
 * Rotated frame: x' = x H / sqrt(n), H block-diagonal over the largest power of two dividing
 * head_dim. All functions are pure: no globals, no allocation, safe on any thread. Buffers of float
 * and half need the alignment of their type; tiles and scratch need 64 bytes.
 */
#ifndef KVARN_CODEC_H
#define KVARN_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kvarn/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Number types of K, V, q and out on the wire and in files. Values are wire values. */
enum kvarn_dtype {
    KVARN_F16 = 0,
    KVARN_BF16 = 1,
    KVARN_F32 = 2,
};

/* Bytes of one value; 0 for an unknown type. */
KVARN_API size_t kvarn_dtype_bytes(enum kvarn_dtype dtype);

/* Encoders: one format, one decoder. Values are wire values. */
enum kvarn_encoder {
    KVARN_ENCODER_DEFAULT = 0,   /* refined for 2-bit tiles, reference for 4-bit ones */
    KVARN_ENCODER_REFERENCE = 1, /* min-max rounding: the paper's codes */
    KVARN_ENCODER_REFINED = 2, /* weighted least squares on 2-bit tiles; 4-bit ones as reference */
    KVARN_ENCODER_AWARE = 3,   /* refined, but 2-bit K is rounded by a query metric */
};

/* What a tile is: dimensions and bits. All tiles of a layer share one. */
struct kvarn_tile_spec {
    uint16_t k_dim; /* head_dim of K: a multiple of 8, <= 512 */
    uint16_t v_dim; /* head_dim of V: likewise, may differ */
    uint16_t group; /* tokens: 128 or 64 */
    uint8_t k_bits; /* 2 or 4 */
    uint8_t v_bits; /* 2 or 4 */
};

/*
 * Fill bits from a preset's name: "k2v2", "k4v2" or "k4v4".
 * Returns 0 or KVARN_EINVALID.
 */
KVARN_API int kvarn_preset_parse(
    const char *name, uint8_t *ret_k_bits, uint8_t *ret_v_bits) KVARN_MUST_CHECK;

/* Returns 0, or KVARN_EINVALID when a field is outside what the format allows. */
KVARN_API int kvarn_tile_spec_check(const struct kvarn_tile_spec *spec) KVARN_MUST_CHECK;

/* Bytes of a record (wire form), a multiple of 8. The spec must have passed its check. */
KVARN_API size_t kvarn_record_bytes(const struct kvarn_tile_spec *spec);

/* Bytes of a tile (form at rest), zero-padded to a multiple of 64. */
KVARN_API size_t kvarn_tile_bytes(const struct kvarn_tile_spec *spec);

/*
 * Bytes of scratch that kvarn_tile_encode() and kvarn_tile_encode_aware() need, 64-byte aligned by
 * the caller.
 */
KVARN_API size_t kvarn_encode_scratch_bytes(const struct kvarn_tile_spec *spec);

/* Size of the largest power-of-two Hadamard block for a head_dim: 128 -> 128, 96 -> 32, 80 -> 16.
 */
KVARN_API uint32_t kvarn_rotation_block(uint32_t head_dim);

/* Rotate `rows` vectors of `head_dim` floats in place. Its own inverse. */
KVARN_API void kvarn_rotate(float *x, size_t rows, uint32_t head_dim);

/* Convert numbers; `count` values. fp16 output beyond 65,504 becomes Inf: the caller checks. */
KVARN_API void kvarn_to_f32(float *dst, const void *src, enum kvarn_dtype dtype, size_t count);
KVARN_API void kvarn_from_f32(void *dst, enum kvarn_dtype dtype, const float *src, size_t count);

/* One half-precision number, round to nearest even. */
KVARN_API uint16_t kvarn_half_from_f32(float x);
KVARN_API float kvarn_half_to_f32(uint16_t h);

/*
 * Worker's values -> rotated half rows, the form of sink and tail.
 *
 * src:   rows of head_dim values of `dtype`, `src_stride` values apart (>= head_dim)
 * dst:   rows of head_dim halves, contiguous
 * Returns 0, or KVARN_EDOMAIN with *ret_row = first offending row when a value is not finite or a
 * rotated |x'| > 32,768; dst then holds garbage. `rotated`: the source already is in the rotated
 * frame.
 */
struct kvarn_rows_in {
    const void *src;
    enum kvarn_dtype dtype;
    size_t src_stride;
    size_t rows;
    uint32_t head_dim;
    bool rotated;
};
KVARN_API int kvarn_rows_to_half(
    const struct kvarn_rows_in *in, uint16_t *dst, size_t *ret_row) KVARN_MUST_CHECK;

/*
 * Rotated float rows -> what a reader asked for: optionally rotated back, in `dtype`.
 *
 * x:     rows x head_dim floats, contiguous; used as work space and overwritten
 * dst:   rows of head_dim values, `dst_stride` values apart
 * Returns 0, or KVARN_EDOMAIN with *ret_row when fp16 output would be beyond 65,504 (SEMANTICS 10).
 */
struct kvarn_rows_out {
    void *dst;
    enum kvarn_dtype dtype;
    size_t dst_stride;
    size_t rows;
    uint32_t head_dim;
    bool rotated;
};
KVARN_API int kvarn_rows_from_f32(
    float *x, const struct kvarn_rows_out *out, size_t *ret_row) KVARN_MUST_CHECK;

/*
 * Quantise one tile.
 *
 * k, v:    rotated float rows [group][k_dim], [group][v_dim], all finite. What a worker appends is
 *          within 32,768; rows decoded from a tile may be up to 40,960
 * tile:    kvarn_tile_bytes() bytes, every byte written (padding zero)
 * scratch: kvarn_encode_scratch_bytes() bytes, 64-byte aligned
 * Never fails, and what it writes always passes kvarn_record_validate(): where refined's scales are
 * not finite in half or a value would decode beyond 40,960, K or V is done by reference; where that
 * happens to reference too, by reference without balancing. KVARN_ENCODER_AWARE does as _REFINED,
 * since there is no metric here. Returns the encoder that made the K part (KVARN_ENCODER_REFERENCE
 * or _REFINED).
 */
KVARN_API enum kvarn_encoder kvarn_tile_encode(const struct kvarn_tile_spec *spec,
    enum kvarn_encoder encoder, const float *k, const float *v, void *tile, void *scratch);

/*
 * Query metric of one KV head: what its queries look like, so that K's rounding error can be moved
 * to where they do not look (FORMAT.md, Encoder `aware`).
 *
 * a:       float [dim][dim]: the sum (not the mean) of q' q'^T over rotated queries q'. It is
 *          symmetric, and only its upper triangle with the diagonal is kept and read; what lies
 *          below the diagonal may hold anything, is overwritten by some levels, and need not be
 *          moved with it. All zero: no query yet
 * factor:  float [dim][dim], 64-byte aligned: what the encoder takes instead. Its inside is this
 *          library's own: it may differ between versions and is not to be stored
 */

/*
 * Add `rows` rotated queries [rows][dim] to the metric. They must be finite; squares of queries
 * within 32,768 stay finite for 10^29 rows, but from about 10^7 rows on a float sum no longer feels
 * a row: whoever goes on for ever scales sum and count down now and then.
 */
KVARN_API void kvarn_metric_add(float *a, const float *q, size_t rows, uint32_t dim);

/* Bytes of scratch that kvarn_metric_factor() needs, 64-byte aligned by the caller. */
KVARN_API size_t kvarn_metric_factor_scratch_bytes(uint32_t dim);

/*
 * The factor of a metric of `count` queries: of a / count plus the mean of its diagonal on the
 * diagonal. dim^3 / 6 multiplications: not for a thread that must answer at once.
 * Returns 0; KVARN_EDOMAIN, with the factor untouched, when count is not positive or the metric is
 * no sum of squares of finite queries (not finite, all zero, not positive definite).
 */
KVARN_API int kvarn_metric_factor(
    const float *a, double count, uint32_t dim, float *factor, void *scratch) KVARN_MUST_CHECK;

/*
 * kvarn_tile_encode() with KVARN_ENCODER_AWARE and the factor of this KV head's metric, [k_dim]
 * [k_dim]. V is done as by refined, and so is K where k_factor is NULL or holds what no metric
 * gives (a value that is not finite or beyond 32). A 4-bit K is done by reference.
 * Never fails. Returns the encoder that made the K part: _AWARE, or _REFINED or _REFERENCE.
 */
KVARN_API enum kvarn_encoder kvarn_tile_encode_aware(const struct kvarn_tile_spec *spec,
    const float *k_factor, const float *k, const float *v, void *tile, void *scratch);

/* Dequantise a tile to rotated float rows k [group][k_dim], v [group][v_dim]; either may be NULL.
 */
KVARN_API void kvarn_tile_decode(
    const struct kvarn_tile_spec *spec, const void *tile, float *k, float *v);

/*
 * The same as rotated half rows, the form of sink and tail: each float rounded to nearest. What a
 * valid tile decodes to is in half's range.
 */
KVARN_API void kvarn_tile_decode_half(
    const struct kvarn_tile_spec *spec, const void *tile, uint16_t *k, uint16_t *v);

/* Rearrange: record (wire) <-> tile (rest). Both directions keep every code and scale bit for bit.
 */
KVARN_API void kvarn_tile_from_record(
    const struct kvarn_tile_spec *spec, const void *record, void *tile);
KVARN_API void kvarn_tile_to_record(
    const struct kvarn_tile_spec *spec, const void *tile, void *record);

/*
 * Check a record from outside: size, finite scales, zero padding.
 * Returns 0; KVARN_EINVALID for a wrong size or padding; KVARN_EDOMAIN for a scale that is not
 * finite or a value that decodes beyond 40,960 in magnitude. The limit keeps decoded rows halves,
 * lets them be encoded again, and keeps attention over them finite for queries within 32,768. A row
 * whose two end levels stay within it is not decoded, so that honest records cost a pass over the
 * scales. The record may lie at any address.
 */
KVARN_API int kvarn_record_validate(
    const struct kvarn_tile_spec *spec, const void *record, size_t bytes) KVARN_MUST_CHECK;

/*
 * Where the record's arrays lie inside a tile: a record is the concatenation of these four
 * stretches and `pad` zero bytes, so that a tile can be sent as a record without a copy.
 */
struct kvarn_tile_map {
    struct {
        uint32_t offset; /* bytes from the start of the tile */
        uint32_t bytes;
    } part[4]; /* K codes, K scales, V codes, V scales: the order of the record */
    uint32_t pad;
};
KVARN_API void kvarn_tile_map_init(struct kvarn_tile_map *map, const struct kvarn_tile_spec *spec);

#ifdef __cplusplus
}
#endif

#endif
