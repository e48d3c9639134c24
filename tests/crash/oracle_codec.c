/*
 * The oracle's encoder: rows in on standard input, what libkvarn makes of them out on standard
 * output, so that a test in Python can say byte for byte what a daemon of this build must hold.
 *
 * Owner: main. Thread: main only.
 *
 * Request: header (16 bytes, little-endian: u8 encoder, k_bits, v_bits, 0; u16 k_dim, v_dim, group,
 * 0; u16 tiles, 0), then for each tile halves K [group][k_dim] and V [group][v_dim]. Reply: for
 * each tile its record, then the halves that it decodes to, K and V likewise. Ends with its input.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "kvarn/codec.h"

#define HEADER_BYTES 16
#define ALIGNMENT    64

/* Room for one tile in each of its forms; all of it is owned. */
struct work {
    uint16_t *halves;
    float *floats;
    void *tile, *scratch, *record;
};

static void *take(size_t bytes)
{
    void *memory = aligned_alloc(ALIGNMENT, (bytes / ALIGNMENT + 1) * ALIGNMENT);
    if (memory == NULL) {
        abort();
    }
    return memory;
}

static void work_init(struct work *work, const struct kvarn_tile_spec *spec)
{
    size_t values = (size_t)spec->group * ((size_t)spec->k_dim + spec->v_dim);
    work->halves = take(values * sizeof(uint16_t));
    work->floats = take(values * sizeof(float));
    work->tile = take(kvarn_tile_bytes(spec));
    work->scratch = take(kvarn_encode_scratch_bytes(spec));
    work->record = take(kvarn_record_bytes(spec));
}

static void work_fini(struct work *work)
{
    free(work->halves);
    free(work->floats);
    free(work->tile);
    free(work->scratch);
    free(work->record);
}

/* One tile in, its record and its decoded halves out. Returns whether both streams held. */
static bool do_tile(
    struct work *work, const struct kvarn_tile_spec *spec, enum kvarn_encoder encoder)
{
    size_t k_values = (size_t)spec->group * spec->k_dim;
    size_t values = k_values + (size_t)spec->group * spec->v_dim;
    if (fread(work->halves, sizeof(uint16_t), values, stdin) != values) {
        return false;
    }
    kvarn_to_f32(work->floats, work->halves, KVARN_F16, values);
    (void)kvarn_tile_encode(
        spec, encoder, work->floats, work->floats + k_values, work->tile, work->scratch);
    kvarn_tile_to_record(spec, work->tile, work->record);
    kvarn_tile_decode_half(spec, work->tile, work->halves, work->halves + k_values);
    size_t bytes = kvarn_record_bytes(spec);
    return fwrite(work->record, 1, bytes, stdout) == bytes &&
           fwrite(work->halves, sizeof(uint16_t), values, stdout) == values;
}

static uint16_t read_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

int main(void)
{
    uint8_t header[HEADER_BYTES];
    while (fread(header, 1, sizeof(header), stdin) == sizeof(header)) {
        struct kvarn_tile_spec spec = {.k_bits = header[1],
            .v_bits = header[2],
            .k_dim = read_u16(header + 4),
            .v_dim = read_u16(header + 6),
            .group = read_u16(header + 8)};
        if (kvarn_tile_spec_check(&spec) != 0 || header[0] > KVARN_ENCODER_REFINED) {
            (void)fprintf(stderr, "oracle_codec: no such tile\n");
            return 1;
        }
        struct work work;
        work_init(&work, &spec);
        unsigned tiles = read_u16(header + 12);
        bool is_ok = true;
        for (unsigned i = 0; i < tiles && is_ok; i++) {
            is_ok = do_tile(&work, &spec, (enum kvarn_encoder)header[0]);
        }
        work_fini(&work);
        if (!is_ok || fflush(stdout) != 0) {
            return 1;
        }
    }
    return 0;
}
