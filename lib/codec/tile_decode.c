/* Tile -> rotated rows, floats or halves. */
#include "kvarn/codec.h"
#include "lib/base/assert.h"
#include "lib/format/layout.h"

/* K's rows are channels: it comes out by columns, so that tokens are rows. */
void kvarn_tile_decode(const struct kvarn_tile_spec *spec, const void *tile, float *k, float *v)
{
    const struct kvarn__kernels *kernels = kvarn__kernels_get();
    struct kvarn__tile_view view;

    KVARN_ASSERT(kvarn_tile_spec_check(spec) == 0);
    if (k != NULL) {
        kvarn__tile_k_view(spec, tile, &view);
        kernels->decode_columns(&view, k);
    }
    if (v != NULL) {
        kvarn__tile_v_view(spec, tile, &view);
        kernels->decode_rows(&view, v);
    }
}

void kvarn_tile_decode_half(
    const struct kvarn_tile_spec *spec, const void *tile, uint16_t *k, uint16_t *v)
{
    const struct kvarn__kernels *kernels = kvarn__kernels_get();
    struct kvarn__tile_view view;

    KVARN_ASSERT(kvarn_tile_spec_check(spec) == 0);
    if (k != NULL) {
        kvarn__tile_k_view(spec, tile, &view);
        kernels->decode_columns_half(&view, k);
    }
    if (v != NULL) {
        kvarn__tile_v_view(spec, tile, &view);
        kernels->decode_rows_half(&view, v);
    }
}
