/* The order in which a sum along a row is taken: 8 lanes, then a tree. See kernels.h. */
#ifndef KVARN_KERNELS_SCALAR_LANES_H
#define KVARN_KERNELS_SCALAR_LANES_H

#include <stdint.h>

#define KVARN__LANES 8

static inline float kvarn__lanes_sum(const float lane[KVARN__LANES])
{
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) +
           ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

/* Dot product of two rows; count is a multiple of 8. */
static inline float kvarn__lanes_dot(const float *a, const float *b, uint32_t count)
{
    float lane[KVARN__LANES] = {0};

    for (uint32_t i = 0; i < count; i += KVARN__LANES) {
        for (uint32_t j = 0; j < KVARN__LANES; j++) {
            lane[j] += a[i + j] * b[i + j];
        }
    }
    return kvarn__lanes_sum(lane);
}

#endif
