/* Tiles: a hand-made one decoded, which encoder does what, and the ways out when one overflows. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/limits.h"
#include "lib/format/layout.h"
#include "tests/support/tiles.h"

static uint16_t *halves(uint8_t *tile, uint32_t offset)
{
    return (void *)(tile + offset);
}

/* K[d, g] = (code * k_scale[d] + k_zero[d]) * k_token[g]; V[g, d] likewise with v_channel[d]. */
static void a_tile_made_by_hand_decodes(void **state)
{
    const struct kvarn_tile_spec spec = {64, 80, 64, 4, 2};
    uint8_t *tile = kvt_alloc(kvarn_tile_bytes(&spec));
    float *k = kvt_alloc(64 * 64 * sizeof(float)), *v = kvt_alloc(64 * 80 * sizeof(float));
    struct kvarn__layout at;

    (void)state;
    kvarn__layout_init(&at, &spec);
    /* K, channel 3, token 11: code 13 in the upper half of byte 5 of row 3. */
    tile[at.k_codes + 3 * 32 + 5] = 13 << 4;
    halves(tile, at.k_scale)[3] = kvarn_half_from_f32(0.5f);
    halves(tile, at.k_zero)[3] = kvarn_half_from_f32(-2.0f);
    for (int g = 0; g < 64; g++) {
        halves(tile, at.k_token)[g] = kvarn_half_from_f32(1.0f + (float)g);
    }
    /* V, token 7, channel 42: code 2 at bit 4 of byte 10 of row 7. */
    tile[at.v_codes + 7 * 20 + 10] = 2 << 4;
    halves(tile, at.v_scale)[7] = kvarn_half_from_f32(0.25f);
    halves(tile, at.v_zero)[7] = kvarn_half_from_f32(1.0f);
    halves(tile, at.v_channel)[42] = kvarn_half_from_f32(-3.0f);
    kvarn_tile_decode(&spec, tile, k, v);
    assert_true(k[11 * 64 + 3] == (13 * 0.5f - 2.0f) * 12.0f);
    assert_true(k[12 * 64 + 3] == -2.0f * 13.0f);
    assert_true(k[11 * 64 + 4] == 0.0f);
    assert_true(v[7 * 80 + 42] == (2 * 0.25f + 1.0f) * -3.0f);
    assert_true(v[7 * 80 + 41] == 0.0f && v[8 * 80 + 42] == 0.0f);
    memset(v, 0, 64 * 80 * sizeof(float));
    kvarn_tile_decode(&spec, tile, k, NULL);
    kvarn_tile_decode(&spec, tile, NULL, v);
    assert_true(v[7 * 80 + 42] == -4.5f);
    free(tile);
    free(k);
    free(v);
}

/* Encode; returns the encoder of K. The tile is the caller's. */
static enum kvarn_encoder encode(const struct kvarn_tile_spec *spec, enum kvarn_encoder encoder,
    const float *k, const float *v, uint8_t **ret_tile)
{
    void *scratch = kvt_alloc(kvarn_encode_scratch_bytes(spec));
    uint8_t *tile = kvt_alloc(kvarn_tile_bytes(spec));
    enum kvarn_encoder used = kvarn_tile_encode(spec, encoder, k, v, tile, scratch);

    free(scratch);
    *ret_tile = tile;
    return used;
}

static void default_is_refined_for_2_bits_and_reference_for_4(void **state)
{
    static const struct {
        const char *preset;
        enum kvarn_encoder k;
        bool is_v_refined;
    } rows[] = {{"k2v2", KVARN_ENCODER_REFINED, true}, {"k4v2", KVARN_ENCODER_REFERENCE, true},
        {"k4v4", KVARN_ENCODER_REFERENCE, false}};
    struct kvt_rng rng = {.state = 41};
    float *k = kvt_alloc(64 * 64 * sizeof(float)), *v = kvt_alloc(64 * 64 * sizeof(float));

    (void)state;
    kvt_rows_fill(&rng, k, 64, 64, 1.0);
    kvt_rows_fill(&rng, v, 64, 64, 1.0);
    for (int i = 0; i < 3; i++) {
        struct kvarn_tile_spec spec = {.k_dim = 64, .v_dim = 64, .group = 64};
        struct kvarn__layout at;
        uint8_t *by_default, *refined, *reference;
        assert_int_equal(kvarn_preset_parse(rows[i].preset, &spec.k_bits, &spec.v_bits), 0);
        kvarn__layout_init(&at, &spec);
        assert_int_equal(encode(&spec, KVARN_ENCODER_DEFAULT, k, v, &by_default), rows[i].k);
        assert_int_equal(encode(&spec, KVARN_ENCODER_REFINED, k, v, &refined), rows[i].k);
        assert_int_equal(
            encode(&spec, KVARN_ENCODER_REFERENCE, k, v, &reference), KVARN_ENCODER_REFERENCE);
        assert_memory_equal(by_default, refined, kvarn_tile_bytes(&spec));
        bool is_k_same = memcmp(by_default, reference, at.v_channel) == 0;
        bool is_v_same =
            memcmp(by_default + at.v_channel, reference + at.v_channel, at.end - at.v_channel) == 0;
        assert_int_equal(is_k_same, rows[i].k == KVARN_ENCODER_REFERENCE);
        assert_int_equal(is_v_same, !rows[i].is_v_refined);
        free(by_default);
        free(refined);
        free(reference);
    }
    free(k);
    free(v);
}

/* Columns between 1e-30 and the end of the range: half a step times a loud column's factor. */
static void semantics_10_a_plane_out_of_range_is_not_balanced(void **state)
{
    const struct kvarn_tile_spec spec = {64, 64, 64, 2, 2};
    struct kvt_rng rng = {.state = 42};
    float *x = kvt_alloc(64 * 64 * sizeof(float)), *k = kvt_alloc(64 * 64 * sizeof(float));
    unsigned unbalanced = 0;

    (void)state;
    for (int i = 0; i < 40; i++) {
        for (int j = 0; j < 64 * 64; j++) {
            float size = kvt_rng_below(&rng, 4 + 8 * (uint32_t)i) == 0 ? 32768.0f : 1e-30f;
            x[j] = kvt_rng_below(&rng, 2) == 0 ? size : -size;
        }
        uint8_t *tile;
        (void)encode(&spec, KVARN_ENCODER_REFERENCE, x, x, &tile);
        struct kvarn__layout at;
        kvarn__layout_init(&at, &spec);
        const uint16_t *token = halves(tile, at.k_token);
        bool is_one = true;
        for (int g = 0; g < 64; g++) {
            is_one &= token[g] == 0x3c00;
        }
        unbalanced += is_one;
        kvarn_tile_decode(&spec, tile, k, NULL);
        for (int j = 0; j < 64 * 64; j++) {
            assert_true(fabsf(k[j]) <= KVARN_DECODED_ABS_MAX);
        }
        free(tile);
    }
    assert_true(unbalanced > 0); /* the way out was taken */
    free(x);
    free(k);
}

static void degenerate_tiles_decode_to_what_they_were(void **state)
{
    static const float values[] = {0.0f, 1.5f, -0.25f, 32768.0f, -32768.0f, 6e-8f};
    const struct kvarn_tile_spec spec = {64, 64, 128, 2, 2};
    const size_t count = 128 * 64;
    float *x = kvt_alloc(count * sizeof(float)), *k = kvt_alloc(count * sizeof(float));
    float *v = kvt_alloc(count * sizeof(float));

    (void)state;
    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        for (int e = KVARN_ENCODER_DEFAULT; e <= KVARN_ENCODER_REFINED; e++) {
            uint8_t *tile;
            for (size_t j = 0; j < count; j++) {
                x[j] = values[i];
            }
            (void)encode(&spec, (enum kvarn_encoder)e, x, x, &tile);
            kvarn_tile_decode(&spec, tile, k, v);
            for (size_t j = 0; j < count; j++) {
                double limit = 2e-3 * fabs((double)values[i]) + 6e-8;
                assert_true(fabs((double)k[j] - (double)values[i]) <= limit);
                assert_true(fabs((double)v[j] - (double)values[i]) <= limit);
            }
            free(tile);
        }
    }
    free(x);
    free(k);
    free(v);
}

/* SEMANTICS 11: a cut re-opens a block from its decoded rows, which must be sealable again. */
static void semantics_11_decoded_rows_can_be_encoded_again(void **state)
{
    const struct kvarn_tile_spec spec = {64, 64, 64, 2, 2};
    struct kvt_rng rng = {.state = 43};
    float *x = kvt_alloc(64 * 64 * sizeof(float));
    uint8_t *record = kvt_alloc(kvarn_record_bytes(&spec));

    (void)state;
    for (int j = 0; j < 64 * 64; j++) {
        x[j] = kvt_rng_below(&rng, 2) == 0 ? 32768.0f : -32768.0f;
    }
    for (int i = 0; i < 300; i++) {
        uint8_t *tile;
        (void)encode(&spec, (enum kvarn_encoder)(i % 3), x, x, &tile);
        kvarn_tile_to_record(&spec, tile, record);
        assert_int_equal(kvarn_record_validate(&spec, record, kvarn_record_bytes(&spec)), 0);
        kvarn_tile_decode(&spec, tile, x, NULL);
        free(tile);
    }
    free(x);
    free(record);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_tile_made_by_hand_decodes),
        cmocka_unit_test(default_is_refined_for_2_bits_and_reference_for_4),
        cmocka_unit_test(semantics_10_a_plane_out_of_range_is_not_balanced),
        cmocka_unit_test(degenerate_tiles_decode_to_what_they_were),
        cmocka_unit_test(semantics_11_decoded_rows_can_be_encoded_again),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
