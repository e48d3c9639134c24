/*
 * What fast attention's kernel takes: query rows on their way over one tile. Included by kernels.h.
 *
 * Fast attention multiplies packed codes by whole numbers. For a row q and a tile, `mid` the middle
 * of the codes (1.5 or 7.5), each step rounded to float unless it says whole:
 *
 *   w[c] = q[c] * k_scale[c], step = max |w| / 127, u[c] = rint(w[c] * (127 / max |w|))     whole
 *   dot[t] = k_token[t] * (step * sum_c u[c] code[c][t]                                     whole
 *            + sum_c q[c] (k_zero[c] + mid k_scale[c]) - step mid sum_c u[c])
 *   logit = scale * dot, capped; p[t] = exp(logit - max), 0 for what is not seen
 *   y[t] = p[t] * v_scale[t], step = max y / 255, n[t] = rint(y[t] * (255 / max y))         whole
 *   acc[c] += v_channel[c] * (step * sum_t n[t] code[t][c]                                  whole
 *            + sum_t p[t] (v_zero[t] + mid v_scale[t]) - step mid sum_t n[t])
 *
 * The terms with `mid` put what rounding lost back at the middle of the codes, so that only the
 * codes' deviation from it feels the rounding. Where a v_scale is negative, negative y go through
 * the same steps apart, as -y, and are subtracted. A row whose p of a tile sum to no more than
 * KVARN__FAST_SKIP of its sum so far adds them to the sum and leaves the tile's V out: over the
 * 2^20 tiles of the longest session that loses less than 2^-2 of the weight in the worst case that
 * can be thought of, and nothing that can be measured in the caches that were.
 */
#ifndef KVARN_KERNELS_ATTENTION_H
#define KVARN_KERNELS_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

/* Tokens of a span that one query row sees: [low, high) from the span's first; empty: none. */
struct kvarn__seen {
    uint32_t low, high;
};

/* Query rows and what they gathered so far. Nothing is owned. */
struct kvarn__fast_rows {
    const float *q;                 /* [rows][k dim] */
    const struct kvarn__seen *seen; /* [rows] */
    uint32_t rows;                  /* <= KVARN__QUERY_ROWS_MAX */
    float scale, softcap;           /* as kvarn_attention_params */
    float *max;                     /* [rows]: largest logit so far */
    double *sum;                    /* [rows]: of exp(logit - max) */
    float *acc; /* [rows][kvarn__packed_floats()]: sum of exp(logit - max) * V, in packed order */
    const void *ahead; /* what is read next: fetched while this tile is computed; NULL: nothing */
    size_t ahead_bytes;
};

#define KVARN__FAST_SKIP 0x1p-22

/* Columns of bytes that a packed order keeps together: what a 128-bit load holds. */
#define KVARN__PACKED_COLUMNS 16u

/*
 * Packed order: as codes come out of 16 bytes of a row by shifts and masks, all first codes of the
 * 16 bytes, then all second ones, and so on. Rounded up to whole 16 bytes.
 */
static inline size_t kvarn__packed_floats(uint32_t dim, uint32_t bits)
{
    const uint32_t codes = KVARN__PACKED_COLUMNS * 8 / bits;

    return (size_t)(dim + codes - 1) / codes * codes;
}

/* Where value `i` of a row lies in packed order. */
static inline size_t kvarn__packed_idx(uint32_t i, uint32_t bits)
{
    const uint32_t per_byte = 8 / bits;
    const uint32_t codes = KVARN__PACKED_COLUMNS * per_byte;

    return (size_t)i / codes * codes + i % per_byte * KVARN__PACKED_COLUMNS + i % codes / per_byte;
}

#endif
