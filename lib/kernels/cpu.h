/* What the processor and the operating system offer, as levels of kernels. */
#ifndef KVARN_KERNELS_CPU_H
#define KVARN_KERNELS_CPU_H

#include <stdbool.h>

/* Levels from low to high; of the two families at most one can be had. */
enum kvarn__isa {
    KVARN__ISA_scalar,
    KVARN__ISA_avx2,
    KVARN__ISA_avx512,
    KVARN__ISA_neon,
    KVARN__ISA_COUNT,
};

/* Ask the processor; the answer never changes. */
bool kvarn__cpu_supports(enum kvarn__isa isa);

#endif
