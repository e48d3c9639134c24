/* Fast attention over one tile on NEON: lib/kernels/vector/fast.h with 4 floats. */
#include "lib/kernels/neon/fast_dot.h"
#include "lib/kernels/neon/lanes.h"

#define FAST_NAME(op)     op##_neon
#define fast_dot_signed   kvarn__fast_dot_signed_neon
#define fast_dot_unsigned kvarn__fast_dot_unsigned_neon

VF_INLINE vf vf_from_numbers(const int32_t *p)
{
    return vcvtq_f32_s32(vld1q_s32(p));
}

VF_INLINE bool vf_has_negative(vf x)
{
    return vmaxvq_u32(vcltzq_f32(x)) != 0;
}

VF_INLINE vf vf_zero_masked(vf x, vf logit)
{
    uint32x4_t is_seen = vcgtq_f32(logit, vdupq_n_f32(-__builtin_inff()));

    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x), is_seen));
}

VF_INLINE vf vf_mask(vf x, uint32_t first, uint32_t step, uint32_t low, uint32_t high)
{
    const uint32x4_t lanes = {0, 1, 2, 3};
    uint32x4_t idx = vmlaq_n_u32(vdupq_n_u32(first), lanes, step);
    uint32x4_t is_in =
        vandq_u32(vcgeq_u32(idx, vdupq_n_u32(low)), vcltq_u32(idx, vdupq_n_u32(high)));

    return vbslq_f32(is_in, x, vdupq_n_f32(-__builtin_inff()));
}

VF_INLINE void fold_sum(const vf x[FAST_ROWS], float dst[FAST_ROWS])
{
    vf_store(dst, vf_reduce_add(x));
}

VF_INLINE void fold_max(const vf x[FAST_ROWS], float dst[FAST_ROWS])
{
    vf_store(dst, vf_reduce_max(x));
}

/* 8 halves -> 8 floats. */
VF_INLINE void eight_store(float *dst, uint16x8_t halves)
{
    float16x8_t h = vreinterpretq_f16_u16(halves);

    vf_store(dst, vcvt_f32_f16(vget_low_f16(h)));
    vf_store(dst + 4, vcvt_high_f32_f16(h));
}

/* Loads that take apart by 4 or 2 give the planes of 8 columns. */
static void halves_pack(const uint16_t *src, uint32_t count, uint32_t bits, float *dst)
{
    const uint32_t planes = 8 / bits, block = KVARN__PACKED_COLUMNS * planes;

    for (uint32_t i = 0; i < count; i += block) {
        uint16_t some[KVARN__PACKED_COLUMNS * 4] = {0};
        const uint16_t *from = src + i;
        if (count - i < block) {
            memcpy(some, from, (count - i) * sizeof(*some));
            from = some;
        }
        for (uint32_t c = 0; c < KVARN__PACKED_COLUMNS; c += 8) {
            float *to = dst + i + c;
            if (bits == 2) {
                uint16x8x4_t x = vld4q_u16(from + c * planes);
                eight_store(to, x.val[0]);
                eight_store(to + KVARN__PACKED_COLUMNS, x.val[1]);
                eight_store(to + 2 * KVARN__PACKED_COLUMNS, x.val[2]);
                eight_store(to + 3 * KVARN__PACKED_COLUMNS, x.val[3]);
            } else {
                uint16x8x2_t x = vld2q_u16(from + c * planes);
                eight_store(to, x.val[0]);
                eight_store(to + KVARN__PACKED_COLUMNS, x.val[1]);
            }
        }
    }
}

/* rint(q * scale * inverse) of 4 channels as words, of which those before `end` are there. */
VF_INLINE int16x4_t round_channels(
    const float *q, const float *scale, vf inverse, uint32_t at, uint32_t end)
{
    vf x = vf_set1(0);

    if (at + VF_LANES <= end) {
        x = vf_load(q + at);
    } else if (at < end) {
        x = vf_load_some(q + at, end - at);
    }
    return vqmovn_s32(vcvtnq_s32_f32(vf_mul(vf_mul(x, vf_load(scale + at)), inverse)));
}

VF_INLINE vf numbers_signed(
    const float *q, const float *scale, float inverse, uint32_t count, uint8_t *dst)
{
    const vf by = vf_set1(inverse);
    int32x4_t sum = vdupq_n_s32(0);

    for (uint32_t i = 0; i < (count + 63) / 64 * 64; i += 16) {
        int16x8_t low = vcombine_s16(
            round_channels(q, scale, by, i, count), round_channels(q, scale, by, i + 4, count));
        int16x8_t high = vcombine_s16(round_channels(q, scale, by, i + 8, count),
            round_channels(q, scale, by, i + 12, count));
        int8x16_t bytes = vcombine_s8(vqmovn_s16(low), vqmovn_s16(high));
        vst1q_u8(dst + i, vreinterpretq_u8_s8(bytes));
        sum = vdotq_s32(sum, bytes, vdupq_n_s8(1));
    }
    return vcvtq_f32_s32(sum);
}

/* Conversion of negative values to unsigned gives 0. */
VF_INLINE uint32x4_t round_positive(const float *y, vf inverse)
{
    return vcvtnq_u32_f32(vf_mul(vf_load(y), inverse));
}

/* Numbers of planes m and m + 1 of 4 columns, in the lower two bytes of each. */
VF_INLINE uint32x4_t pairs_of(const float *y, vf inverse)
{
    return vsliq_n_u32(
        round_positive(y, inverse), round_positive(y + KVARN__PACKED_COLUMNS, inverse), 8);
}

VF_INLINE vf numbers_unsigned(
    const float *y, float inverse, uint32_t count, uint32_t bits, uint8_t *dst)
{
    const vf by = vf_set1(inverse);
    uint32x4_t sum = vdupq_n_u32(0);

    for (uint32_t i = 0; i < count; i += 16) {
        uint8x16_t bytes;
        if (bits == 2) {
            /* Four planes: four bytes of one of 4 columns are four tokens. */
            const float *from = y + i / 64 * 64 + i % 64 / 4;
            uint32x4_t low = pairs_of(from, by);
            uint32x4_t high = pairs_of(from + 2 * KVARN__PACKED_COLUMNS, by);
            bytes = vreinterpretq_u8_u32(vsliq_n_u32(low, high, 16));
        } else {
            /* Two planes: two bytes of one of 8 columns are two tokens. */
            const float *from = y + i / 32 * 32 + i % 32 / 2;
            bytes = vreinterpretq_u8_u16(
                vcombine_u16(vmovn_u32(pairs_of(from, by)), vmovn_u32(pairs_of(from + 4, by))));
        }
        vst1q_u8(dst + i, bytes);
        sum = vdotq_u32(sum, bytes, vdupq_n_u8(1));
    }
    return vcvtq_f32_u32(sum);
}

#include "lib/kernels/vector/fast.h"
