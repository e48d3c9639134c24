/*
 * Payload spans of an array.
 *
 * Owner: the caller. Thread: any.
 */
#include "client/cli/spans.h"

#include "lib/base/assert.h"

size_t spans_of_tokens(
    struct kvarn_span *spans, const struct npy_array *array, uint64_t first, uint64_t count)
{
    uint64_t row_bytes = array->shape[2] * npy_type_bytes(array->type);
    const uint8_t *data = array->data;

    KVARN_ASSERT(array->rank == 3 && first + count <= array->shape[1]);
    for (uint64_t head = 0; head < array->shape[0]; head++) {
        spans[head].data = data + (head * array->shape[1] + first) * row_bytes;
        spans[head].bytes = (size_t)(count * row_bytes);
    }
    return (size_t)array->shape[0];
}
