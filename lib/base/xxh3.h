/*
 * XXH3 of libxxhash, by the widest vectors of the CPU where the library can choose them while it
 * runs: its plain functions are SSE2, and half as fast as AVX-512. The hashes are the same.
 *
 * The choice is made by the first hash of more than 240 bytes and is no matter for two threads at
 * once: make one before there are threads.
 *
 * Define XXH_STATIC_LINKING_ONLY before, for a state on the stack.
 */
#ifndef KVARN_BASE_XXH3_H
#define KVARN_BASE_XXH3_H

#include <xxhash.h>
#ifdef KVARN_XXH3_DISPATCH
#include <xxh_x86dispatch.h> /* redefines XXH3_64bits and its like */
#endif

#endif
