/*
 * Packed codes -> values, for any vector type: include it after a vec.h and the definitions of
 *   struct decode_row                      what a row's levels look like in registers
 *   decode_row_init(scale, zero, bits)     make one
 *   decode_vector(codes, c, bits, row)     levels of VF_LANES codes of a packed row from column c
 * on Every value is code * scale + zero, each operation rounded, times the column's factor: the
 * same bits as scalar's.
 */
#ifndef KVARN_KERNELS_VECTOR_DECODE_H
#define KVARN_KERNELS_VECTOR_DECODE_H

#include <stdbool.h>

#include "lib/base/assert.h"
#include "lib/kernels/kernels.h"

struct decode_scales {
    float scale[KVARN__ROW_MAX], zero[KVARN__ROW_MAX], other[KVARN__ROW_MAX];
};

static void decode_scales_load(const struct kvarn__tile_view *view, struct decode_scales *scales)
{
    KVARN_ASSERT(view->rows <= KVARN__ROW_MAX && view->rows % VF_LANES == 0);
    KVARN_ASSERT(view->cols <= KVARN__ROW_MAX && view->cols % VF_LANES == 0);
    for (uint32_t r = 0; r < view->rows; r += VF_LANES) {
        vf_store(scales->scale + r, vf_half_load(view->scale + r));
        vf_store(scales->zero + r, vf_half_load(view->zero + r));
    }
    for (uint32_t c = 0; c < view->cols; c += VF_LANES) {
        vf_store(scales->other + c, vf_half_load(view->other + c));
    }
}

/* One of both is NULL. */
VF_INLINE void decode_store(float *floats, uint16_t *halves, size_t at, vf value)
{
    if (floats != NULL) {
        vf_store(floats + at, value);
    } else {
        vf_half_store(halves + at, value);
    }
}

VF_INLINE void decode_rows_bits(
    const struct kvarn__tile_view *view, uint32_t bits, float *floats, uint16_t *halves)
{
    struct decode_scales scales;
    const size_t row_bytes = (size_t)view->cols * bits / 8;

    decode_scales_load(view, &scales);
    for (uint32_t r = 0; r < view->rows; r++) {
        const uint8_t *codes = view->codes + r * row_bytes;
        struct decode_row row = decode_row_init(scales.scale[r], scales.zero[r], bits);
        for (uint32_t c = 0; c < view->cols; c += VF_LANES) {
            vf value = vf_mul(decode_vector(codes, c, bits, &row), vf_load(scales.other + c));
            decode_store(floats, halves, (size_t)r * view->cols + c, value);
        }
    }
}

/* Columns come out as rows: VF_LANES x VF_LANES values are transposed in registers. */
VF_INLINE void decode_columns_bits(
    const struct kvarn__tile_view *view, uint32_t bits, float *floats, uint16_t *halves)
{
    struct decode_scales scales;
    const size_t row_bytes = (size_t)view->cols * bits / 8;

    decode_scales_load(view, &scales);
    for (uint32_t r = 0; r < view->rows; r += VF_LANES) {
        const uint8_t *codes = view->codes + r * row_bytes;
        for (uint32_t c = 0; c < view->cols; c += VF_LANES) {
            vf v[VF_LANES], other = vf_load(scales.other + c);
            for (uint32_t i = 0; i < VF_LANES; i++) {
                struct decode_row row =
                    decode_row_init(scales.scale[r + i], scales.zero[r + i], bits);
                v[i] = vf_mul(decode_vector(codes + i * row_bytes, c, bits, &row), other);
            }
            vf_transpose(v);
            for (uint32_t i = 0; i < VF_LANES; i++) {
                decode_store(floats, halves, (size_t)(c + i) * view->rows + r, v[i]);
            }
        }
    }
}

static void decode_rows(const struct kvarn__tile_view *view, float *floats, uint16_t *halves)
{
    if (view->bits == 2) {
        decode_rows_bits(view, 2, floats, halves);
    } else {
        decode_rows_bits(view, 4, floats, halves);
    }
}

static void decode_columns(const struct kvarn__tile_view *view, float *floats, uint16_t *halves)
{
    if (view->bits == 2) {
        decode_columns_bits(view, 2, floats, halves);
    } else {
        decode_columns_bits(view, 4, floats, halves);
    }
}

static bool decode_is_whole(const struct kvarn__tile_view *view)
{
    return view->rows % VF_LANES == 0 && view->cols % VF_LANES == 0;
}

#endif
