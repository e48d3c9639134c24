/* Codes <-> packed codes, scalar: value i of a row in byte i / n at bit (i % n) * bits, n = 8 /
 * bits. */
#include "lib/base/assert.h"
#include "lib/kernels/kernels.h"

void kvarn_pack_u8_u8_scalar(const uint8_t *codes, size_t count, uint32_t bits, uint8_t *dst)
{
    KVARN_ASSERT((bits == 2 || bits == 4) && count % 4 == 0);
    if (bits == 2) {
        for (size_t i = 0; i < count / 4; i++) {
            const uint8_t *c = codes + 4 * i;
            dst[i] = (uint8_t)(c[0] | c[1] << 2 | c[2] << 4 | c[3] << 6);
        }
    } else {
        for (size_t i = 0; i < count / 2; i++) {
            dst[i] = (uint8_t)(codes[2 * i] | codes[2 * i + 1] << 4);
        }
    }
}

void kvarn_unpack_u8_u8_scalar(const uint8_t *packed, size_t count, uint32_t bits, uint8_t *codes)
{
    KVARN_ASSERT((bits == 2 || bits == 4) && count % 4 == 0);
    if (bits == 2) {
        for (size_t i = 0; i < count / 4; i++) {
            uint8_t *c = codes + 4 * i;
            c[0] = packed[i] & 3;
            c[1] = (packed[i] >> 2) & 3;
            c[2] = (packed[i] >> 4) & 3;
            c[3] = packed[i] >> 6;
        }
    } else {
        for (size_t i = 0; i < count / 2; i++) {
            codes[2 * i] = packed[i] & 15;
            codes[2 * i + 1] = packed[i] >> 4;
        }
    }
}
