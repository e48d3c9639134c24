/*
 * Sizes in whole cache lines, so that the parts of one allocation stay aligned like its start.
 *
 * Owner: nobody. Thread: any.
 */
#ifndef KVD_CACHE_LINE_H
#define KVD_CACHE_LINE_H

#include <stddef.h>

#define KVD_CACHE_LINE_BYTES 64

/* Up to the next multiple of KVD_CACHE_LINE_BYTES. */
static inline size_t kvd_round_64(size_t bytes)
{
    return (bytes + KVD_CACHE_LINE_BYTES - 1) & ~(size_t)(KVD_CACHE_LINE_BYTES - 1);
}

#endif
