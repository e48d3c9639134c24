/* Levels of a row of codes in registers, NEON: what both templates that decode ask for. */
#ifndef KVARN_KERNELS_NEON_DECODE_ROW_H
#define KVARN_KERNELS_NEON_DECODE_ROW_H

#include "lib/kernels/neon/vec.h"

/* 2 bits: the bytes of the four levels, for look-ups. 4 bits: levels are computed. */
struct neon_levels {
    uint8x16_t table;
    vf scale, zero;
};

VF_INLINE struct neon_levels neon_levels_init(vf scale, vf zero, uint32_t bits)
{
    const vf codes = {0, 1, 2, 3};
    struct neon_levels levels = {.scale = scale, .zero = zero};

    levels.table =
        vreinterpretq_u8_f32(bits == 2 ? vf_add(vf_mul(codes, scale), zero) : vf_set1(0));
    return levels;
}

/*
 * Levels of 4 codes: a byte of 2-bit codes or two of 4-bit ones. 2 bits: the byte goes to all 16
 * places, each lane's four shift their code to bit 2, and with the place's number in the lowest two
 * bits that names a byte of the table.
 */
VF_INLINE vf neon_levels_at(const struct neon_levels *levels, const uint8_t *packed, uint32_t bits)
{
    const int8x16_t by2 = {2, 2, 2, 2, 0, 0, 0, 0, -2, -2, -2, -2, -4, -4, -4, -4};
    const int32x4_t by4 = {0, -4, -8, -12};

    if (bits == 2) {
        uint8x16_t code = vandq_u8(vshlq_u8(vld1q_dup_u8(packed), by2), vdupq_n_u8(0x0c));
        uint8x16_t place = vreinterpretq_u8_u32(vdupq_n_u32(0x03020100));
        return vreinterpretq_f32_u8(vqtbl1q_u8(levels->table, vorrq_u8(code, place)));
    }
    uint16_t two;
    memcpy(&two, packed, sizeof(two));
    uint32x4_t code = vandq_u32(vshlq_u32(vdupq_n_u32(two), by4), vdupq_n_u32(15));
    return vf_add(vf_mul(vcvtq_f32_u32(code), levels->scale), levels->zero);
}

#endif
