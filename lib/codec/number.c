/* Conversion between the number types of the wire and float. */
#include <string.h>

#include "kvarn/codec.h"
#include "lib/base/assert.h"
#include "lib/kernels/kernels.h"

size_t kvarn_dtype_bytes(enum kvarn_dtype dtype)
{
    switch (dtype) {
    case KVARN_F16:
    case KVARN_BF16:
        return sizeof(uint16_t);
    case KVARN_F32:
        return sizeof(float);
    }
    return 0;
}

void kvarn_to_f32(float *dst, const void *src, enum kvarn_dtype dtype, size_t count)
{
    KVARN_ASSERT(kvarn_dtype_bytes(dtype) != 0);
    switch (dtype) {
    case KVARN_F16:
        kvarn__kernels_get()->half_to_f32(dst, src, count);
        break;
    case KVARN_BF16:
        kvarn__kernels_get()->bf16_to_f32(dst, src, count);
        break;
    case KVARN_F32:
        memmove(dst, src, count * sizeof(float));
        break;
    }
}

void kvarn_from_f32(void *dst, enum kvarn_dtype dtype, const float *src, size_t count)
{
    KVARN_ASSERT(kvarn_dtype_bytes(dtype) != 0);
    switch (dtype) {
    case KVARN_F16:
        kvarn__kernels_get()->half_from_f32(dst, src, count);
        break;
    case KVARN_BF16:
        kvarn__kernels_get()->bf16_from_f32(dst, src, count);
        break;
    case KVARN_F32:
        memmove(dst, src, count * sizeof(float));
        break;
    }
}

uint16_t kvarn_half_from_f32(float x)
{
    uint16_t h;

    kvarn__kernels_get()->half_from_f32(&h, &x, 1);
    return h;
}

float kvarn_half_to_f32(uint16_t h)
{
    float x;

    kvarn__kernels_get()->half_to_f32(&x, &h, 1);
    return x;
}
