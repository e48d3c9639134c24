/*
 * Half precision and bfloat16 <-> float, transposition and largest magnitude, scalar: integer and
 * float tricks without branches, so that compilers turn the loops into vector code.
 */
#include <string.h>

#include "lib/kernels/kernels.h"

static inline uint32_t bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof(u));
    return u;
}

static inline float float_of(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof(x));
    return x;
}

static inline uint16_t half_of(float x)
{
    uint32_t u = bits_of(x);
    uint32_t sign = (u >> 16) & 0x8000u;
    uint32_t a = u & 0x7fffffffu;
    /* Normal: drop 13 bits, half to even, and move the exponent's bias from 127 to 15. A carry out
     * of the largest exponent lands on Inf. */
    uint32_t normal = (a + 0xfffu + ((a >> 13) & 1u) - 0x38000000u) >> 13;
    /* Below 2^-14: adding 0.5 makes the float unit round at 2^-24, half's smallest step. */
    uint32_t small = bits_of(float_of(a) + 0.5f) - 0x3f000000u;
    uint32_t magnitude = a < 0x38800000u ? small : normal;

    magnitude = a >= 0x47800000u ? 0x7c00u : magnitude; /* 65,536 and above */
    magnitude = a > 0x7f800000u ? 0x7e00u : magnitude;  /* NaN */
    return (uint16_t)(sign | magnitude);
}

static inline float half_value(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t shifted = (uint32_t)(h & 0x7fffu) << 13;
    /* The exponent is off by 112; multiplying by 2^112 also makes half's subnormals normal. */
    uint32_t finite = bits_of(float_of(shifted) * 0x1p112f);
    uint32_t special = shifted | 0x7f800000u;

    return float_of(sign | ((h & 0x7c00u) == 0x7c00u ? special : finite));
}

void kvarn_convert_f32_f16_scalar(uint16_t *dst, const float *src, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        dst[i] = half_of(src[i]);
    }
}

void kvarn_convert_f16_f32_scalar(float *dst, const uint16_t *src, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        dst[i] = half_value(src[i]);
    }
}

void kvarn_convert_f32_bf16_scalar(uint16_t *dst, const float *src, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t u = bits_of(src[i]);
        uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
        uint32_t nan = (u >> 16) | 0x40u; /* quiet, and never rounded into Inf */

        dst[i] = (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
    }
}

void kvarn_convert_bf16_f32_scalar(float *dst, const uint16_t *src, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        dst[i] = float_of((uint32_t)src[i] << 16);
    }
}

void kvarn_transpose_f32_scalar(const float *x, uint32_t rows, uint32_t cols, float *dst)
{
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t c = 0; c < cols; c++) {
            dst[(size_t)c * rows + r] = x[(size_t)r * cols + c];
        }
    }
}

void kvarn_abs_max_f32_scalar(const float *x, size_t count, float *ret_max)
{
    uint32_t max = 0;

    /* Magnitudes order as their bits do, with NaN above Inf. */
    for (size_t i = 0; i < count; i++) {
        uint32_t magnitude = bits_of(x[i]) & 0x7fffffffu;
        max = magnitude > max ? magnitude : max;
    }
    *ret_max = float_of(max < 0x7f800000u ? max : 0x7f800000u);
}
