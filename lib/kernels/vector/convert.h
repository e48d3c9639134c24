/*
 * Conversions, rotation, transposition and the largest magnitude, for any vector type: include it
 * after a vec.h. What does not fill a vector is done by the scalar kernels.
 */
#ifndef KVARN_KERNELS_VECTOR_CONVERT_H
#define KVARN_KERNELS_VECTOR_CONVERT_H

#include <math.h>

#include "lib/base/assert.h"
#include "lib/kernels/kernels.h"

#define FWHT_VECTORS_MAX 8 /* of a block that stays in registers */

VF_INLINE size_t whole_vectors(size_t count)
{
    return count - count % VF_LANES;
}

/* Transform `vectors` vectors held in x, in the order of the scalar kernel; scale. */
VF_INLINE void fwht_registers(float *p, uint32_t vectors, vf scale)
{
    vf x[FWHT_VECTORS_MAX];

    for (uint32_t i = 0; i < vectors; i++) {
        x[i] = vf_fwht_lanes(vf_load(p + i * VF_LANES));
    }
    for (uint32_t half = 1; half < vectors; half *= 2) {
        for (uint32_t i = 0; i < vectors; i++) {
            if ((i & half) == 0) {
                vf a = x[i], b = x[i + half];
                x[i] = vf_add(a, b);
                x[i + half] = vf_sub(a, b);
            }
        }
    }
    for (uint32_t i = 0; i < vectors; i++) {
        vf_store(p + i * VF_LANES, vf_mul(x[i], scale));
    }
}

/* Blocks too long for the registers: parts first, then the steps that lie across parts. */
static void fwht_long(float *p, uint32_t block, float scale)
{
    const uint32_t part = FWHT_VECTORS_MAX * VF_LANES;

    for (uint32_t i = 0; i < block; i += part) {
        fwht_registers(p + i, FWHT_VECTORS_MAX, vf_set1(1.0f));
    }
    for (uint32_t half = part; half < block; half *= 2) {
        vf factor = vf_set1(2 * half == block ? scale : 1.0f);
        for (uint32_t i = 0; i < block; i += VF_LANES) {
            if ((i & half) == 0) {
                vf a = vf_load(p + i), b = vf_load(p + i + half);
                vf_store(p + i, vf_mul(vf_add(a, b), factor));
                vf_store(p + i + half, vf_mul(vf_sub(a, b), factor));
            }
        }
    }
}

/* The operation `fwht` for blocks of at least one vector. */
static void fwht_rows(float *x, size_t rows, uint32_t dim, uint32_t block)
{
    const float scale = 1.0f / sqrtf((float)block);

    KVARN_ASSERT(dim <= KVARN_HEAD_DIM_MAX && block >= VF_LANES);
    for (size_t i = 0; i < rows * dim; i += block) {
        switch (block / VF_LANES) {
        case 1:
            fwht_registers(x + i, 1, vf_set1(scale));
            break;
        case 2:
            fwht_registers(x + i, 2, vf_set1(scale));
            break;
        case 4:
            fwht_registers(x + i, 4, vf_set1(scale));
            break;
        case 8:
            fwht_registers(x + i, 8, vf_set1(scale));
            break;
        default:
            fwht_long(x + i, block, scale);
            break;
        }
    }
}

/* The operation `transpose` for rows and cols in whole vectors. */
static void transpose_blocks(const float *x, uint32_t rows, uint32_t cols, float *dst)
{
    for (uint32_t r = 0; r < rows; r += VF_LANES) {
        for (uint32_t c = 0; c < cols; c += VF_LANES) {
            vf v[VF_LANES];
            for (uint32_t i = 0; i < VF_LANES; i++) {
                v[i] = vf_load(x + (size_t)(r + i) * cols + c);
            }
            vf_transpose(v);
            for (uint32_t i = 0; i < VF_LANES; i++) {
                vf_store(dst + (size_t)(c + i) * rows + r, v[i]);
            }
        }
    }
}

#define ABS_MAX_SIDE 4 /* vectors side by side: one maximum after the other waits for itself */

/* Take a vector in: the largest magnitudes, and 0 for finite values and NaN for others, since a
 * maximum alone would lose a NaN. */
VF_INLINE void abs_max_take(const float *x, vf *most, vf *sum)
{
    vf a = vf_abs(vf_load(x));

    *most = vf_max(a, *most);
    *sum = vf_add(*sum, vf_sub(a, a));
}

/* Largest magnitude of whole vectors; NaN counts as Inf. */
static float abs_max_vectors(const float *x, size_t count)
{
    vf most[ABS_MAX_SIDE], sum[ABS_MAX_SIDE];
    float lane[VF_LANES], max = 0.0f;
    size_t i = 0;

    for (uint32_t k = 0; k < ABS_MAX_SIDE; k++) {
        most[k] = sum[k] = vf_set1(0.0f);
    }
    for (; i + ABS_MAX_SIDE * VF_LANES <= count; i += ABS_MAX_SIDE * VF_LANES) {
        for (uint32_t k = 0; k < ABS_MAX_SIDE; k++) {
            abs_max_take(x + i + k * VF_LANES, &most[k], &sum[k]);
        }
    }
    for (; i < count; i += VF_LANES) {
        abs_max_take(x + i, &most[0], &sum[0]);
    }
    for (uint32_t k = 1; k < ABS_MAX_SIDE; k++) {
        most[0] = vf_max(most[0], most[k]);
        sum[0] = vf_add(sum[0], sum[k]);
    }
    vf_store(lane, vf_add(most[0], sum[0]));
    for (uint32_t k = 0; k < VF_LANES; k++) {
        float a = lane[k];
        max = a <= max ? max : isnan(a) ? INFINITY : a;
    }
    return max;
}

#endif
