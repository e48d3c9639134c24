/* Conversions, rotation, transposition and the largest magnitude, NEON. */
#include "lib/kernels/neon/vec.h"

#include "lib/kernels/vector/convert.h"

void kvarn_convert_f32_f16_neon(uint16_t *dst, const float *src, size_t count)
{
    const size_t whole = whole_vectors(count);

    for (size_t i = 0; i < whole; i += VF_LANES) {
        vf_half_store(dst + i, vf_load(src + i));
    }
    kvarn_convert_f32_f16_scalar(dst + whole, src + whole, count - whole);
}

void kvarn_convert_f16_f32_neon(float *dst, const uint16_t *src, size_t count)
{
    const size_t whole = whole_vectors(count);

    for (size_t i = 0; i < whole; i += VF_LANES) {
        vf_store(dst + i, vf_half_load(src + i));
    }
    kvarn_convert_f16_f32_scalar(dst + whole, src + whole, count - whole);
}

void kvarn_convert_f32_bf16_neon(uint16_t *dst, const float *src, size_t count)
{
    const size_t whole = whole_vectors(count);

    for (size_t i = 0; i < whole; i += VF_LANES) {
        vf_bf16_store(dst + i, vf_load(src + i));
    }
    kvarn_convert_f32_bf16_scalar(dst + whole, src + whole, count - whole);
}

void kvarn_convert_bf16_f32_neon(float *dst, const uint16_t *src, size_t count)
{
    const size_t whole = whole_vectors(count);

    for (size_t i = 0; i < whole; i += VF_LANES) {
        vf_store(dst + i, vf_bf16_load(src + i));
    }
    kvarn_convert_bf16_f32_scalar(dst + whole, src + whole, count - whole);
}

void kvarn_fwht_f32_f32_neon(float *x, size_t rows, uint32_t dim)
{
    const uint32_t block = dim & (~dim + 1u);

    if (block < VF_LANES) {
        kvarn_fwht_f32_f32_scalar(x, rows, dim);
        return;
    }
    fwht_rows(x, rows, dim, block);
}

void kvarn_transpose_f32_neon(const float *x, uint32_t rows, uint32_t cols, float *dst)
{
    if (rows % VF_LANES != 0 || cols % VF_LANES != 0) {
        kvarn_transpose_f32_scalar(x, rows, cols, dst);
        return;
    }
    transpose_blocks(x, rows, cols, dst);
}

void kvarn_abs_max_f32_neon(const float *x, size_t count, float *ret_max)
{
    const size_t whole = whole_vectors(count);
    float max = abs_max_vectors(x, whole), rest = 0.0f;

    if (whole < count) {
        kvarn_abs_max_f32_scalar(x + whole, count - whole, &rest);
    }
    *ret_max = rest > max ? rest : max;
}
