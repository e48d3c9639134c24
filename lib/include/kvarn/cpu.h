/*
 * Which instruction set libkvarn's kernels use. One choice for the whole process.
 *
 * Levels: "scalar" (plain C, the specification), "avx2" (AVX2, FMA and F16C), "avx512" (F, BW, DQ,
 * VL, VBMI and VNNI), "neon" (AArch64 with dot products). A level that has no kernel of its own for
 * an operation uses the next lower level's.
 */
#ifndef KVARN_CPU_H
#define KVARN_CPU_H

#include <stdbool.h>
#include <stddef.h>

#include "kvarn/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Environment variable that names the level. */
#define KVARN_CPU_ENV "KVARN_CPU"

/*
 * Choose the level. Call it at the start of a program, before other threads use the library; it may
 * be called again to change the level while no other thread does.
 *
 * choice: a level's name; "auto" or "" for the best that this machine has; NULL for what the
 *         environment variable KVARN_CPU says, "auto" where it is not set
 * why:    takes one line, for people, that says what is wrong; may be NULL where why_bytes is 0
 * Returns 0; KVARN_EINVALID for a name that is no level; KVARN_EUNSUPPORTED where the processor,
 * the operating system or this build does not have the level. The level in use is unchanged on
 * failure.
 *
 * A program that never calls it gets what KVARN_CPU says where that is usable, else the best.
 */
KVARN_API int kvarn_cpu_init(const char *choice, char *why, size_t why_bytes) KVARN_MUST_CHECK;

/* Name of the level in use; never NULL. */
KVARN_API const char *kvarn_cpu_active(void);

/* Whether this machine and this build have a level. False for a name that is no level. */
KVARN_API bool kvarn_cpu_has(const char *name);

#ifdef __cplusplus
}
#endif

#endif
