/*
 * Rounding of rows to levels, shared by the encoders' templates. Include it after a vec.h.
 *
 * Adding 1.5 * 2^23 rounds |x| < 2^22 to the nearest integer, half to even, and leaves the integer
 * in the low bits of the sum. So a code is x * inv_col - low, times 1 / step plus that number (one
 * fused operation each), clamped between the number and the number + top; what is beyond 2^22, and
 * NaN, is clamped as well.
 */
#ifndef KVARN_KERNELS_VECTOR_LEVELS_H
#define KVARN_KERNELS_VECTOR_LEVELS_H

#include <math.h>
#include <stdbool.h>

#include "lib/base/assert.h"
#include "lib/kernels/kernels.h"

#define LEVELS_SHIFT    12582912.0f
#define LEVELS_STEP_MIN 1e-10f

/* Levels of VF_LANES rows, one lane a row, in memory so that rows can pick theirs. */
struct levels {
    _Alignas(64) float step[VF_LANES], inv[VF_LANES], low[VF_LANES];
};

VF_INLINE void levels_set(struct levels *levels, vf step, vf low)
{
    vf_store(levels->step, step);
    vf_store(levels->low, low);
    vf_store(levels->inv, vf_div(vf_set1(1.0f), step));
}

/* d = x * inv_col - low -> the code plus LEVELS_SHIFT */
VF_INLINE vf levels_code(vf d, vf inv_step, vf top)
{
    vf code = vf_fma(d, inv_step, vf_set1(LEVELS_SHIFT));

    return vf_min(vf_max(code, vf_set1(LEVELS_SHIFT)), top);
}

/* One row whose vectors do not come in fours, or of 4 bits. */
VF_INLINE void levels_row_pack(const float *x, uint32_t cols, const float *inv_col,
    struct kvarn__line line, uint32_t bits, uint8_t *dst)
{
    const vf top = vf_set1(LEVELS_SHIFT + (float)((1u << bits) - 1));
    vf inv_step = vf_set1(1.0f / line.step), low = vf_set1(line.low);
    uint8_t bytes[KVARN__ROW_MAX];

    for (uint32_t c = 0; c < cols; c += VF_LANES) {
        vf d = vf_fms(vf_load(x + c), vf_load(inv_col + c), low);
        vf_bytes_store(bytes + c, levels_code(d, inv_step, top));
    }
    KVARN__VECTOR_PACK(bytes, cols, bits, dst);
}

/* Round VF_LANES rows of x * inv_col and pack their codes. */
VF_INLINE void levels_rows_pack(const struct kvarn__plane *plane, const float *x,
    const float *inv_col, const struct levels *levels, uint32_t r)
{
    const uint32_t cols = plane->cols;
    const size_t row_bytes = (size_t)cols * plane->bits / 8;
    const bool is_fours = plane->bits == 2 && cols % (4 * VF_LANES) == 0;

    for (uint32_t i = 0; i < VF_LANES; i++) {
        const float *row = x + (size_t)i * cols;
        uint8_t *dst = plane->codes + (r + i) * row_bytes;
        if (!is_fours) {
            struct kvarn__line line = {.step = levels->step[i], .low = levels->low[i]};
            levels_row_pack(row, cols, inv_col, line, plane->bits, dst);
            continue;
        }
        vf inv_step = vf_set1(levels->inv[i]), low = vf_set1(levels->low[i]);
        for (uint32_t c = 0; c < cols; c += 4 * VF_LANES) {
            vf v[4];
            for (uint32_t j = 0; j < 4; j++) {
                uint32_t at = c + j * VF_LANES;
                v[j] = vf_mul(vf_fms(vf_load(row + at), vf_load(inv_col + at), low), inv_step);
            }
            vf_codes2_store(dst + c / 4, v);
        }
    }
}

/* inv_col = 1 / col, and col as halves. */
static void levels_columns_start(
    const struct kvarn__plane *plane, const float *col, const struct kvarn__work *work)
{
    KVARN_ASSERT(plane->cols <= KVARN__ROW_MAX && plane->cols % VF_LANES == 0);
    for (uint32_t c = 0; c < plane->cols; c += VF_LANES) {
        vf factor = vf_load(col + c);
        vf_store(work->inv_col + c, vf_div(vf_set1(1.0f), factor));
        vf_half_store(plane->other + c, factor);
    }
}

#endif
