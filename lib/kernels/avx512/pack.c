/* Codes <-> packed codes, AVX-512: 64 codes a step. */
#include <immintrin.h>

#include "lib/base/assert.h"
#include "lib/kernels/kernels.h"

#define STEP 64

void kvarn_pack_u8_u8_avx512(const uint8_t *codes, size_t count, uint32_t bits, uint8_t *dst)
{
    const __m512i by4 = _mm512_set1_epi16(0x0401), by16 = _mm512_set1_epi32(0x00100001);
    const __m512i bytes16 = _mm512_set1_epi16(0x1001);
    size_t i = 0;

    KVARN_ASSERT((bits == 2 || bits == 4) && count % 4 == 0);
    for (; i + STEP <= count; i += STEP) {
        __m512i c = _mm512_loadu_si512(codes + i);
        if (bits == 2) {
            __m512i quads = _mm512_madd_epi16(_mm512_maddubs_epi16(c, by4), by16);
            _mm_storeu_si128((void *)(dst + i / 4), _mm512_cvtepi32_epi8(quads));
        } else {
            __m512i pairs = _mm512_maddubs_epi16(c, bytes16);
            _mm256_storeu_si256((void *)(dst + i / 2), _mm512_cvtepi16_epi8(pairs));
        }
    }
    kvarn_pack_u8_u8_avx2(codes + i, count - i, bits, dst + i * bits / 8);
}

void kvarn_unpack_u8_u8_avx512(const uint8_t *packed, size_t count, uint32_t bits, uint8_t *codes)
{
    const __m512i at2 = _mm512_set1_epi64(0x0e0c0a0806040200);
    const __m512i at4 = _mm512_set1_epi64(0x1c1814100c080400);
    size_t i = 0;

    KVARN_ASSERT((bits == 2 || bits == 4) && count % 4 == 0);
    for (; i + STEP <= count; i += STEP) {
        __m512i c;
        if (bits == 2) {
            __m512i words = _mm512_cvtepu16_epi64(_mm_loadu_si128((const void *)(packed + i / 4)));
            c = _mm512_and_si512(_mm512_multishift_epi64_epi8(at2, words), _mm512_set1_epi8(3));
        } else {
            __m512i words =
                _mm512_cvtepu32_epi64(_mm256_loadu_si256((const void *)(packed + i / 2)));
            c = _mm512_and_si512(_mm512_multishift_epi64_epi8(at4, words), _mm512_set1_epi8(15));
        }
        _mm512_storeu_si512(codes + i, c);
    }
    kvarn_unpack_u8_u8_avx2(packed + i * bits / 8, count - i, bits, codes + i);
}
