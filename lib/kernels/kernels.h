/*
 * Kernels: the inner loops of the codec and of attention, one function per operation and
 * instruction set. kernels.def is the list; scalar is the specification.
 *
 * Every count of columns is a multiple of 8. Sums along a row are taken in 8 lanes (lane i adds
 * the values at i, i + 8, ... in order) which are then added as ((0+4)+(2+6))+((1+5)+(3+7)); sums
 * over rows are taken row by row. Outputs never overlap inputs unless said. No kernel fails.
 *
 *   fwht           rotate `rows` vectors of `dim` in place; FORMAT.md, Frames
 *   half_from_f32  round to nearest even; beyond the range Inf; NaN stays NaN
 *   half_to_f32    exact
 *   bf16_from_f32  round to nearest even; NaN stays NaN
 *   bf16_to_f32    exact
 *   transpose      dst[cols][rows] from x[rows][cols]
 *   abs_max        largest magnitude; NaN counts as Inf
 *   normalise      FORMAT.md 7.1: work->col and work->row of the best state. Stops early where
 *                  further iterations would repeat the last
 *   round_plane    FORMAT.md 7.2 from work->col and work->row on, of x instead of the plane's
 *                  values: codes, scale, zero, other. Spoils the rest of `work`
 *   balance        FORMAT.md 7.3: work->col and work->row by deviations, once
 *   refine_plane   FORMAT.md 7.3 from there on, right after `balance` of the same plane; 2 bits
 *   diffuse_plane  FORMAT.md 7.4 from there on, right after `refine_plane` of the same plane, of
 *                  whose output it keeps scale, zero and other and replaces the codes; 2 bits.
 *                  plane.h has the factor's layout
 *   metric_add     a[i][j] += sum over rows of q[row][i] * q[row][j], for j >= i, row after row;
 *                  what is below the diagonal may be overwritten. dim is a multiple of 8
 *   pack, unpack   2 or 4 bits, little end first
 *   decode_rows, decode_rows_half         dst[rows][cols]: (code * scale + zero) * other
 *   decode_columns, decode_columns_half   the same as dst[cols][rows]
 *   qk_tile        dst[row][token] = q[row] . K[token] over the tokens of a K tile
 *   av_tile        acc[row] += sum over tokens of p[row][token] * V[token]
 *   qk_half        as qk_tile, over half rows
 *   av_half        as av_tile, over half rows
 *   softmax_logits  x = x * scale, capped as softcap * tanh(x / softcap) if softcap > 0; *ret_max =
 *                  the largest
 *   softmax_weights  x = exp(x - max); *sum += their sum
 *   attend_tile    fast attention of query rows over a whole tile: attention.h
 * q is [rows][dim], acc [rows][dim], dst and p [rows][tokens of the view].
 */
#ifndef KVARN_KERNELS_KERNELS_H
#define KVARN_KERNELS_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "lib/base/limits.h"
#include "lib/kernels/attention.h"
#include "lib/kernels/cpu.h"
#include "lib/kernels/plane.h"

/* Query rows that one call of an attention kernel takes at most: bounds its work space. */
#define KVARN__QUERY_ROWS_MAX 32

/* Longest row of a tile: tokens of a K row, channels of a V row. */
#define KVARN__ROW_MAX KVARN_HEAD_DIM_MAX

/*
 * K or V of a tile: `rows` packed rows of `cols` values. K: rows are channels, cols tokens. V: rows
 * are tokens, cols channels. `token_count` <= the tile's tokens are used.
 */
struct kvarn__tile_view {
    const uint8_t *codes;  /* borrowed, [rows][cols * bits / 8] */
    const uint16_t *scale; /* borrowed, half [rows] */
    const uint16_t *zero;  /* borrowed, half [rows] */
    const uint16_t *other; /* borrowed, half [cols] */
    uint32_t rows, cols, bits;
    uint32_t token_count;
};

/* Half rows: one per token. */
struct kvarn__rows_view {
    const uint16_t *rows; /* borrowed, [token_count][dim] */
    uint32_t dim;
    uint32_t token_count;
};

#define KVARN_OP(op, params) typedef void kvarn__##op##_fn params;
#include "lib/kernels/kernels.def"
#undef KVARN_OP

#define KVARN_KERNEL(isa, op, function, tolerance) kvarn__##op##_fn function;
#include "lib/kernels/kernels.def"
#undef KVARN_KERNEL

/* One level's kernels. */
struct kvarn__kernels {
    const char *isa;
#define KVARN_OP(op, params) kvarn__##op##_fn *op;
#include "lib/kernels/kernels.def"
#undef KVARN_OP
};

/*
 * The kernels of the level in use (kvarn/cpu.h); never NULL, complete. The first call detects the
 * processor, whichever thread makes it.
 */
const struct kvarn__kernels *kvarn__kernels_get(void);

/* The kernels of one level, for checks and benches; NULL where this machine does not have it. */
const struct kvarn__kernels *kvarn__kernels_of(enum kvarn__isa isa);

#endif
