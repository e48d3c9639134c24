/* A small seeded generator for tests: the same seed gives the same values everywhere. */
#ifndef KVARN_TESTS_SUPPORT_RNG_H
#define KVARN_TESTS_SUPPORT_RNG_H

#include <math.h>
#include <stdint.h>

struct kvt_rng {
    uint64_t state;
};

/* SplitMix64: passes through every 64-bit state once. */
static inline uint64_t kvt_rng_u64(struct kvt_rng *rng)
{
    uint64_t z = (rng->state += UINT64_C(0x9e3779b97f4a7c15));

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* 0 .. count - 1 */
static inline uint32_t kvt_rng_below(struct kvt_rng *rng, uint32_t count)
{
    return (uint32_t)((kvt_rng_u64(rng) >> 32) * count >> 32);
}

/* [0, 1) */
static inline double kvt_rng_unit(struct kvt_rng *rng)
{
    return (double)(kvt_rng_u64(rng) >> 11) * 0x1p-53;
}

static inline double kvt_rng_normal(struct kvt_rng *rng)
{
    double radius = sqrt(-2.0 * log(1.0 - kvt_rng_unit(rng)));

    return radius * cos(6.283185307179586 * kvt_rng_unit(rng));
}

#endif
