/*
 * Detection of instruction sets: CPUID for what the processor has and XCR0 for what the operating
 * system saves on a context switch; on AArch64 the kernel's auxiliary vector.
 */
#include "lib/kernels/cpu.h"

#include <stdint.h>

#if defined(__x86_64__)
#include <cpuid.h>

#define XCR0_AVX    0x06u /* xmm and the upper halves of ymm */
#define XCR0_AVX512 0xe6u /* also mask registers, upper halves of zmm, zmm16 to zmm31 */

/* Bits of CPUID leaf 1 ecx, leaf 7 ebx and ecx: Intel SDM volume 2A, CPUID. */
#define LEAF1_ECX_AVX2    ((1u << 12) | (1u << 28) | (1u << 29)) /* FMA, AVX, F16C */
#define LEAF1_ECX_OSXSAVE (1u << 27)
#define LEAF7_EBX_AVX2    (1u << 5)
#define LEAF7_EBX_AVX512  ((1u << 16) | (1u << 17) | (1u << 30) | (1u << 31)) /* F DQ BW VL */
#define LEAF7_ECX_AVX512  ((1u << 1) | (1u << 11))                            /* VBMI VNNI */

static inline bool has_all(uint32_t word, uint32_t bits)
{
    return (word & bits) == bits;
}

static uint32_t xcr0_read(void)
{
    uint32_t low, high;

    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static bool x86_supports(bool wants_avx512)
{
    uint32_t eax, ebx, ecx, edx;

    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 ||
        !has_all(ecx, LEAF1_ECX_AVX2 | LEAF1_ECX_OSXSAVE)) {
        return false;
    }
    uint32_t saved = xcr0_read();
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) {
        return false;
    }
    if (!has_all(saved, XCR0_AVX) || !has_all(ebx, LEAF7_EBX_AVX2)) {
        return false;
    }
    return !wants_avx512 || (has_all(saved, XCR0_AVX512) && has_all(ebx, LEAF7_EBX_AVX512) &&
                                has_all(ecx, LEAF7_ECX_AVX512));
}

static bool has_level(enum kvarn__isa isa)
{
    switch (isa) {
    case KVARN__ISA_scalar:
        return true;
    case KVARN__ISA_avx2:
        return x86_supports(false);
    case KVARN__ISA_avx512:
        return x86_supports(true);
    case KVARN__ISA_neon:
    case KVARN__ISA_COUNT:
        break;
    }
    return false;
}

#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>

/* Dot products, and what else -march=armv8.2-a lets a compiler use: CRC, LSE, RDMA, DC CVAP. */
#define HWCAPS_NEEDED (HWCAP_ASIMDDP | HWCAP_CRC32 | HWCAP_ATOMICS | HWCAP_ASIMDRDM | HWCAP_DCPOP)

static bool has_level(enum kvarn__isa isa)
{
    if (isa == KVARN__ISA_neon) {
        return (getauxval(AT_HWCAP) & HWCAPS_NEEDED) == HWCAPS_NEEDED;
    }
    return isa == KVARN__ISA_scalar;
}

#else

static bool has_level(enum kvarn__isa isa)
{
    return isa == KVARN__ISA_scalar;
}
#endif

bool kvarn__cpu_supports(enum kvarn__isa isa)
{
    return has_level(isa);
}
