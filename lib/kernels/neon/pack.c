/* Codes <-> packed codes, NEON: 16 bytes of packed codes a step, by loads that take apart. */
#include <arm_neon.h>

#include "lib/base/assert.h"
#include "lib/kernels/kernels.h"

#define STEP_BYTES 16

void kvarn_pack_u8_u8_neon(const uint8_t *codes, size_t count, uint32_t bits, uint8_t *dst)
{
    const size_t step = STEP_BYTES * 8 / bits;
    size_t i = 0;

    KVARN_ASSERT((bits == 2 || bits == 4) && count % 4 == 0);
    for (; i + step <= count; i += step) {
        uint8x16_t bytes;
        if (bits == 2) {
            uint8x16x4_t c = vld4q_u8(codes + i);
            bytes = vorrq_u8(vorrq_u8(c.val[0], vshlq_n_u8(c.val[1], 2)),
                vorrq_u8(vshlq_n_u8(c.val[2], 4), vshlq_n_u8(c.val[3], 6)));
        } else {
            uint8x16x2_t c = vld2q_u8(codes + i);
            bytes = vorrq_u8(c.val[0], vshlq_n_u8(c.val[1], 4));
        }
        vst1q_u8(dst + i * bits / 8, bytes);
    }
    kvarn_pack_u8_u8_scalar(codes + i, count - i, bits, dst + i * bits / 8);
}

void kvarn_unpack_u8_u8_neon(const uint8_t *packed, size_t count, uint32_t bits, uint8_t *codes)
{
    const size_t step = STEP_BYTES * 8 / bits;
    const uint8x16_t twos = vdupq_n_u8(3);
    size_t i = 0;

    KVARN_ASSERT((bits == 2 || bits == 4) && count % 4 == 0);
    for (; i + step <= count; i += step) {
        uint8x16_t bytes = vld1q_u8(packed + i * bits / 8);
        if (bits == 2) {
            uint8x16x4_t c;
            c.val[0] = vandq_u8(bytes, twos);
            c.val[1] = vandq_u8(vshrq_n_u8(bytes, 2), twos);
            c.val[2] = vandq_u8(vshrq_n_u8(bytes, 4), twos);
            c.val[3] = vshrq_n_u8(bytes, 6);
            vst4q_u8(codes + i, c);
        } else {
            uint8x16x2_t c;
            c.val[0] = vandq_u8(bytes, vdupq_n_u8(15));
            c.val[1] = vshrq_n_u8(bytes, 4);
            vst2q_u8(codes + i, c);
        }
    }
    kvarn_unpack_u8_u8_scalar(packed + i * bits / 8, count - i, bits, codes + i);
}
