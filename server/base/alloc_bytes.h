/*
 * What an allocation takes: the size class of the allocator, for what is allocated so often that
 * rounding counts.
 *
 * Owner: none. Thread: any; pure.
 */
#ifndef KVD_ALLOC_BYTES_H
#define KVD_ALLOC_BYTES_H

#include <stddef.h>

/*
 * jemalloc's classes (its manual, SIZE CLASSES): multiples of 16 up to 128, then four between a
 * power of two and the next. 0 for nothing.
 */
static inline size_t kvd_alloc_bytes(size_t bytes)
{
    size_t step = 16;

    while (bytes > 8 * step) {
        step *= 2;
    }
    return (bytes + step - 1) / step * step;
}

#endif
