/* Uses installed libkvarn: a tile there and back. Exits 0 when its error is that of the format. */
#include <kvarn/codec.h>
#include <kvarn/version.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define DIM   128
#define GROUP 128

/* Round up to what aligned_alloc() wants. */
static size_t aligned(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static double relative_error(const float *x, const float *y, size_t count)
{
    double error = 0.0;
    double norm = 0.0;
    for (size_t i = 0; i < count; i++) {
        error += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
        norm += (double)x[i] * (double)x[i];
    }
    return sqrt(error / norm);
}

int main(void)
{
    static float k[GROUP * DIM], v[GROUP * DIM], decoded_k[GROUP * DIM], decoded_v[GROUP * DIM];
    struct kvarn_tile_spec spec = {.k_dim = DIM, .v_dim = DIM, .group = GROUP};
    int err = kvarn_preset_parse("k4v4", &spec.k_bits, &spec.v_bits);

    if (err != 0 || kvarn_tile_spec_check(&spec) != 0) {
        (void)fprintf(stderr, "%s\n", kvarn_err_text(err));
        return 1;
    }
    for (size_t i = 0; i < GROUP * DIM; i++) {
        k[i] = sinf((float)i * 0.37f);
        v[i] = cosf((float)i * 0.11f);
    }
    void *tile = aligned_alloc(64, aligned(kvarn_tile_bytes(&spec)));
    void *scratch = aligned_alloc(64, aligned(kvarn_encode_scratch_bytes(&spec)));
    if (tile == NULL || scratch == NULL) {
        return 1;
    }
    (void)kvarn_tile_encode(&spec, KVARN_ENCODER_REFERENCE, k, v, tile, scratch);
    kvarn_tile_decode(&spec, tile, decoded_k, decoded_v);
    double k_error = relative_error(k, decoded_k, GROUP * DIM);
    double v_error = relative_error(v, decoded_v, GROUP * DIM);
    (void)printf("libkvarn %s: tile of %zu bytes, error of K %.4f, of V %.4f\n", KVARN_VERSION,
        kvarn_tile_bytes(&spec), k_error, v_error);
    free(scratch);
    free(tile);
    /* 4 bits over the range of a row: some 3 % of what a sine is, never exact. */
    return k_error > 0.001 && k_error < 0.08 && v_error > 0.001 && v_error < 0.08 ? 0 : 1;
}
