/* Codes <-> packed codes, AVX2: 32 codes a step. */
#include <immintrin.h>

#include "lib/base/assert.h"
#include "lib/kernels/kernels.h"

#define STEP 32

void kvarn_pack_u8_u8_avx2(const uint8_t *codes, size_t count, uint32_t bits, uint8_t *dst)
{
    const __m256i by4 = _mm256_set1_epi16(0x0401), by16 = _mm256_set1_epi32(0x00100001);
    const __m256i bytes16 = _mm256_set1_epi16(0x1001);
    size_t i = 0;

    KVARN_ASSERT((bits == 2 || bits == 4) && count % 4 == 0);
    for (; i + STEP <= count; i += STEP) {
        __m256i c = _mm256_loadu_si256((const void *)(codes + i));
        if (bits == 2) {
            __m256i quads = _mm256_madd_epi16(_mm256_maddubs_epi16(c, by4), by16);
            __m128i words =
                _mm_packus_epi32(_mm256_castsi256_si128(quads), _mm256_extracti128_si256(quads, 1));
            _mm_storel_epi64((void *)(dst + i / 4), _mm_packus_epi16(words, words));
        } else {
            __m256i pairs = _mm256_maddubs_epi16(c, bytes16);
            __m128i bytes =
                _mm_packus_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
            _mm_storeu_si128((void *)(dst + i / 2), bytes);
        }
    }
    kvarn_pack_u8_u8_scalar(codes + i, count - i, bits, dst + i * bits / 8);
}

/* A code's bits are spread to a byte each by doubling the gaps. */
void kvarn_unpack_u8_u8_avx2(const uint8_t *packed, size_t count, uint32_t bits, uint8_t *codes)
{
    const __m256i halves = _mm256_set1_epi32(0x000f000f), twos = _mm256_set1_epi8(3);
    const __m256i fours = _mm256_set1_epi8(15);
    size_t i = 0;

    KVARN_ASSERT((bits == 2 || bits == 4) && count % 4 == 0);
    for (; i + STEP <= count; i += STEP) {
        __m256i c;
        if (bits == 2) {
            c = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(packed + i / 4)));
            c = _mm256_and_si256(_mm256_or_si256(c, _mm256_slli_epi32(c, 12)), halves);
            c = _mm256_and_si256(_mm256_or_si256(c, _mm256_slli_epi32(c, 6)), twos);
        } else {
            c = _mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)(packed + i / 2)));
            c = _mm256_and_si256(_mm256_or_si256(c, _mm256_slli_epi16(c, 4)), fours);
        }
        _mm256_storeu_si256((void *)(codes + i), c);
    }
    kvarn_unpack_u8_u8_scalar(packed + i * bits / 8, count - i, bits, codes + i);
}
