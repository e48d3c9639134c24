/* Fast Walsh-Hadamard transform, scalar: log2(block) passes of additions, then one scaling. */
#include <math.h>

#include "lib/base/assert.h"
#include "lib/kernels/kernels.h"

static void block_transform(float *x, uint32_t block, float scale)
{
    for (uint32_t half = 1; half < block; half *= 2) {
        for (uint32_t start = 0; start < block; start += 2 * half) {
            float *low = x + start;
            float *high = low + half;
            for (uint32_t i = 0; i < half; i++) {
                float a = low[i];
                float b = high[i];
                low[i] = a + b;
                high[i] = a - b;
            }
        }
    }
    for (uint32_t i = 0; i < block; i++) {
        x[i] *= scale;
    }
}

void kvarn_fwht_f32_f32_scalar(float *x, size_t rows, uint32_t dim)
{
    uint32_t block = dim & (~dim + 1u); /* the largest power of two that divides dim */
    float scale = 1.0f / sqrtf((float)block);

    KVARN_ASSERT(dim > 0 && dim <= KVARN_HEAD_DIM_MAX);
    for (size_t i = 0; i < rows * dim; i += block) {
        block_transform(x + i, block, scale);
    }
}
