/*
 * Payload spans of an array: which of its bytes are the rows of some tokens.
 *
 * Owner: the caller. Thread: any.
 */
#ifndef KVARNCTL_SPANS_H
#define KVARNCTL_SPANS_H

#include "client/cli/npy.h"
#include "kvarn/client.h"

/*
 * Point spans at tokens [first, first + count) of each head of an array [heads, tokens, dim]: one
 * span a head. Returns the number of spans, shape[0].
 */
size_t spans_of_tokens(
    struct kvarn_span *spans, const struct npy_array *array, uint64_t first, uint64_t count);

#endif
