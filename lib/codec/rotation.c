/* Rotation of vectors by the block-diagonal orthonormal Hadamard matrix. */
#include "kvarn/codec.h"
#include "lib/base/assert.h"
#include "lib/kernels/kernels.h"

uint32_t kvarn_rotation_block(uint32_t head_dim)
{
    return head_dim & (~head_dim + 1u);
}

void kvarn_rotate(float *x, size_t rows, uint32_t head_dim)
{
    KVARN_ASSERT(head_dim > 0 && head_dim <= KVARN_HEAD_DIM_MAX);
    kvarn__kernels_get()->fwht(x, rows, head_dim);
}
