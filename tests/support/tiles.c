/* Tiles for tests. */
#include "tests/support/tiles.h"

#include <stdlib.h>
#include <string.h>

#define ALIGN 64

const struct kvt_dims kvt_dims[KVT_DIMS_COUNT] = {
    {64, 64}, {80, 80}, {96, 96}, {128, 128}, {192, 192}, {256, 256}, {192, 128}};

void *kvt_alloc(size_t bytes)
{
    size_t rounded = (bytes + ALIGN) / ALIGN * ALIGN;
    void *memory = aligned_alloc(ALIGN, rounded);

    if (memory == NULL) {
        abort();
    }
    memset(memory, 0, rounded);
    return memory;
}

struct kvarn_tile_spec kvt_spec(struct kvt_dims dims, unsigned variant)
{
    static const char *const presets[] = {"k2v2", "k4v2", "k4v4"};
    struct kvarn_tile_spec spec = {
        .k_dim = dims.k_dim, .v_dim = dims.v_dim, .group = variant % 2 == 0 ? 128 : 64};

    if (variant >= KVT_VARIANTS ||
        kvarn_preset_parse(presets[variant / 2], &spec.k_bits, &spec.v_bits) != 0) {
        abort();
    }
    return spec;
}

void kvt_rows_fill(struct kvt_rng *rng, float *x, size_t rows, uint32_t head_dim, double scale)
{
    uint32_t loud = kvt_rng_below(rng, head_dim);

    for (uint32_t d = 0; d < head_dim; d++) {
        double mean = kvt_rng_normal(rng);
        double gain = scale * (d == loud ? 6.0 : 1.0);
        for (size_t r = 0; r < rows; r++) {
            x[r * head_dim + d] = (float)(gain * (mean + kvt_rng_normal(rng)));
        }
    }
    for (size_t r = 0; r < rows; r++) {
        float norm = (float)exp(0.3 * kvt_rng_normal(rng));
        for (uint32_t d = 0; d < head_dim; d++) {
            x[r * head_dim + d] *= norm;
        }
    }
    kvarn_rotate(x, rows, head_dim);
}

void *kvt_tile_make(
    const struct kvarn_tile_spec *spec, enum kvarn_encoder encoder, const float *k, const float *v)
{
    void *tile = kvt_alloc(kvarn_tile_bytes(spec));
    void *scratch = kvt_alloc(kvarn_encode_scratch_bytes(spec));

    (void)kvarn_tile_encode(spec, encoder, k, v, tile, scratch);
    free(scratch);
    return tile;
}

void *kvt_tile_make_aware(
    const struct kvarn_tile_spec *spec, const float *k_factor, const float *k, const float *v)
{
    void *tile = kvt_alloc(kvarn_tile_bytes(spec));
    void *scratch = kvt_alloc(kvarn_encode_scratch_bytes(spec));

    (void)kvarn_tile_encode_aware(spec, k_factor, k, v, tile, scratch);
    free(scratch);
    return tile;
}

double kvt_rel_mse(const float *a, const float *b, size_t count)
{
    double error = 0, power = 0;

    for (size_t i = 0; i < count; i++) {
        double d = (double)a[i] - (double)b[i];
        error += d * d;
        power += (double)b[i] * (double)b[i];
    }
    return error == 0 ? 0 : error / power;
}
