/*
 * Tests of server/session/shape.c: what is refused and why, derived sizes, the canonical text,
 * identity.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/limits.h"
#include "server/session/shape.h"

/* Full attention, then sliding windows with smaller heads and V unlike K. */
static const struct kvd_layer_group groups_mixed[] = {
    {.layers = 2, .kv_heads = 8, .k_dim = 128, .v_dim = 128, .window = 0},
    {.layers = 3, .kv_heads = 4, .k_dim = 80, .v_dim = 64, .window = 512},
};

static struct kvd_shape_desc desc_mixed(void)
{
    return (struct kvd_shape_desc){
        .model = "llama",
        .revision = "r1",
        .group = 128,
        .k_bits = 2,
        .v_bits = 4,
        .sink_tokens = 128,
        .layer_groups = groups_mixed,
        .layer_group_count = 2,
    };
}

static const struct kvd_shape *register_ok(
    struct kvd_shape_registry *registry, uint32_t tenant_id, const struct kvd_shape_desc *desc)
{
    const struct kvd_shape *shape = NULL;
    char why[160] = "";
    assert_int_equal(kvd_shape_register(registry, tenant_id, desc, &shape, why, sizeof(why)), 0);
    assert_non_null(shape);
    assert_string_equal(why, "");
    return shape;
}

static void sizes_are_derived(void **state)
{
    (void)state;
    struct kvd_shape_registry registry;
    struct kvd_shape_desc desc = desc_mixed();
    kvd_shape_registry_init(&registry);
    const struct kvd_shape *shape = register_ok(&registry, 1, &desc);
    assert_int_equal(shape->layer_count, 5);
    assert_int_equal(shape->layer_group_count, 2);
    assert_string_equal(shape->model, "llama");
    assert_string_equal(shape->revision, "r1");
    assert_int_equal(shape->sink_tokens, 128);

    const struct kvd_layer_shape *full = &shape->layers[1];
    const struct kvd_layer_shape *slide = &shape->layers[2];
    struct kvarn_tile_spec spec = {
        .k_dim = 80, .v_dim = 64, .group = 128, .k_bits = 2, .v_bits = 4};
    assert_int_equal(full->window, 0);
    assert_int_equal(full->kv_heads, 8);
    assert_int_equal(slide->window, 512);
    assert_int_equal(slide->spec.k_dim, 80);
    assert_int_equal(slide->spec.v_bits, 4);
    assert_int_equal(slide->tile_bytes, kvarn_tile_bytes(&spec));
    assert_int_equal(slide->tile_page_bytes, 4 * kvarn_tile_bytes(&spec));
    assert_int_equal(full->rows_page_bytes, 8 * 128 * 256 * 2);
    assert_int_equal(slide->rows_page_bytes, 4 * 128 * 144 * 2);
    assert_int_equal(shape->block_rows_bytes, 2 * 524288 + 3 * 147456);
    assert_int_equal(
        shape->block_tiles_bytes, 2 * full->tile_page_bytes + 3 * slide->tile_page_bytes);
    /* The last row of the last V head ends where the page ends. */
    assert_int_equal(kvd_rows_k_offset(slide, 0), 0);
    assert_int_equal(kvd_rows_v_offset(slide, 0), kvd_rows_k_offset(slide, 4));
    assert_int_equal(kvd_rows_v_offset(slide, 4), slide->rows_page_bytes);
    kvd_shape_registry_fini(&registry);
}

static void canonical_text_is_as_documented(void **state)
{
    (void)state;
    static const char expected[] = "kvarn-shape 1\n"
                                   "model 5:llama\n"
                                   "revision 2:r1\n"
                                   "group 128\n"
                                   "bits 2 4\n"
                                   "sink 128\n"
                                   "layers 2 8 128 128 0\n"
                                   "layers 3 4 80 64 512\n";
    struct kvd_shape_desc desc = desc_mixed();
    char text[512];
    size_t bytes = kvd_shape_canonical(&desc, text, sizeof(text));
    assert_int_equal(bytes, sizeof(expected) - 1);
    assert_memory_equal(text, expected, bytes);

    /* The length does not depend on the room, and nothing is written beyond it. */
    memset(text, '#', sizeof(text));
    assert_int_equal(kvd_shape_canonical(&desc, text, 20), bytes);
    assert_memory_equal(text, expected, 20);
    assert_int_equal(text[20], '#');
    assert_int_equal(kvd_shape_canonical(&desc, NULL, 0), bytes);
}

static void fingerprint_is_the_texts_sha256(void **state)
{
    (void)state;
    /* By `printf TEXT | sha256sum | cut -c-32`. */
    static const uint8_t expected[KVD_FINGERPRINT_BYTES] = {0x12, 0x6a, 0x4d, 0x40, 0xd4, 0xe7,
        0xdb, 0xaf, 0xdf, 0xd8, 0x7b, 0xcc, 0x1d, 0xc1, 0xb7, 0xb8};
    struct kvd_shape_registry registry;
    struct kvd_shape_desc desc = desc_mixed();
    kvd_shape_registry_init(&registry);
    const struct kvd_shape *shape = register_ok(&registry, 1, &desc);
    assert_memory_equal(shape->fingerprint, expected, sizeof(expected));
    kvd_shape_registry_fini(&registry);
}

static void equal_descriptions_are_one_shape(void **state)
{
    (void)state;
    static const struct kvd_layer_group split[] = {
        {.layers = 1, .kv_heads = 8, .k_dim = 128, .v_dim = 128, .window = 0},
        {.layers = 1, .kv_heads = 8, .k_dim = 128, .v_dim = 128, .window = 0},
        {.layers = 3, .kv_heads = 4, .k_dim = 80, .v_dim = 64, .window = 512},
    };
    struct kvd_shape_registry registry;
    struct kvd_shape_desc desc = desc_mixed();
    kvd_shape_registry_init(&registry);
    const struct kvd_shape *a = register_ok(&registry, 1, &desc);
    assert_ptr_equal(register_ok(&registry, 1, &desc), a);
    desc.layer_groups = split;
    desc.layer_group_count = 3;
    assert_ptr_equal(register_ok(&registry, 1, &desc), a);
    assert_int_equal(registry.count, 1);
    desc.revision = NULL;
    const struct kvd_shape *b = register_ok(&registry, 1, &desc);
    assert_ptr_not_equal(b, a);
    desc.revision = "";
    assert_ptr_equal(register_ok(&registry, 1, &desc), b);
    kvd_shape_registry_fini(&registry);
}

static void semantics_14_tenant_is_part_of_identity(void **state)
{
    (void)state;
    struct kvd_shape_registry registry;
    struct kvd_shape_desc desc = desc_mixed();
    kvd_shape_registry_init(&registry);
    const struct kvd_shape *a = register_ok(&registry, 1, &desc);
    const struct kvd_shape *b = register_ok(&registry, 2, &desc);
    assert_ptr_not_equal(a, b);
    assert_memory_equal(a->fingerprint, b->fingerprint, KVD_FINGERPRINT_BYTES);
    assert_ptr_equal(kvd_shape_find(&registry, 1, a->id), a);
    assert_ptr_equal(kvd_shape_find(&registry, 2, b->id), b);
    assert_null(kvd_shape_find(&registry, 2, a->id));
    assert_null(kvd_shape_find(&registry, 1, 0));
    assert_null(kvd_shape_find(&registry, 1, 3));
    assert_null(kvd_shape_find(&registry, 1, UINT32_MAX));
    kvd_shape_registry_fini(&registry);
}

/* Whatever differs gives another text: no field is left out, no two fields can trade bytes. */
static void every_field_counts(void **state)
{
    (void)state;
    struct kvd_shape_registry registry;
    kvd_shape_registry_init(&registry);
    struct kvd_layer_group groups[2];
    struct kvd_shape_desc descs[13];
    for (size_t i = 0; i < 13; i++) {
        descs[i] = desc_mixed();
    }
    descs[1].model = "llama\nrevision 2:r1";
    descs[2].model = "llam";
    descs[3].revision = "r2";
    descs[4].group = 64;
    descs[5].k_bits = 4;
    descs[6].v_bits = 2;
    descs[7].sink_tokens = 0;
    for (uint32_t i = 0; i < 13; i++) {
        memcpy(groups, groups_mixed, sizeof(groups));
        descs[i].layer_groups = groups;
        groups[1].layers += i == 8;
        groups[1].kv_heads += i == 9;
        groups[1].k_dim += i == 10 ? 8 : 0;
        groups[1].v_dim += i == 11 ? 8 : 0;
        groups[1].window += i == 12;
        assert_int_equal(register_ok(&registry, 1, &descs[i])->id, i + 1);
    }
    kvd_shape_registry_fini(&registry);
}

static void expect_refused(const struct kvd_shape_desc *desc, int err, const char *words)
{
    struct kvd_shape_registry registry;
    const struct kvd_shape *shape = NULL;
    char why[160] = "";
    kvd_shape_registry_init(&registry);
    assert_int_equal(kvd_shape_register(&registry, 1, desc, &shape, why, sizeof(why)), err);
    assert_null(shape);
    assert_int_equal(registry.count, 0);
    if (strstr(why, words) == NULL) {
        fail_msg("expected \"%s\" in \"%s\"", words, why);
    }
    /* Too little room is no reason to write past it. */
    char tiny[4] = "abc";
    assert_int_equal(kvd_shape_register(&registry, 1, desc, &shape, tiny, 2), err);
    assert_int_equal(tiny[1], '\0');
    assert_int_equal(tiny[2], 'c');
    assert_int_equal(kvd_shape_register(&registry, 1, desc, &shape, NULL, 0), err);
    kvd_shape_registry_fini(&registry);
}

static void bad_descriptions_are_refused_in_words(void **state)
{
    (void)state;
    static char long_name[KVARN_MODEL_NAME_MAX + 2];
    memset(long_name, 'x', sizeof(long_name) - 1);
#define REFUSE(field, value, err, words)           \
    do {                                           \
        struct kvd_shape_desc desc = desc_mixed(); \
        desc.field = (value);                      \
        expect_refused(&desc, (err), (words));     \
    } while (0)
    REFUSE(model, NULL, KVARN_EINVALID, "model");
    REFUSE(model, "", KVARN_EINVALID, "model");
    REFUSE(model, long_name, KVARN_ETOO_LARGE, "at most 256 bytes, got 257");
    REFUSE(revision, long_name, KVARN_ETOO_LARGE, "at most 256 bytes, got 257");
    REFUSE(group, 0, KVARN_EINVALID, "64 or 128 tokens, got 0");
    REFUSE(group, 65536 + 128, KVARN_EINVALID, "got 65664");
    REFUSE(k_bits, 3, KVARN_EINVALID, "k_bits: expected 2 or 4, got 3");
    REFUSE(v_bits, 258, KVARN_EINVALID, "v_bits: expected 2 or 4, got 258");
    REFUSE(sink_tokens, 64, KVARN_EINVALID, "multiple of the group, 128, got 64");
    REFUSE(sink_tokens, UINT32_MAX / 128 * 128, KVARN_ETOO_LARGE, "sink_tokens");
    REFUSE(layer_group_count, 0, KVARN_EINVALID, "at least 1, got 0");
    REFUSE(layer_group_count, KVARN_LAYER_GROUPS_MAX + 1, KVARN_ETOO_LARGE, "at most 512, got 513");
#undef REFUSE
}

static void bad_layer_groups_are_refused_in_words(void **state)
{
    (void)state;
#define REFUSE(field, value, err, words)              \
    do {                                              \
        struct kvd_shape_desc desc = desc_mixed();    \
        struct kvd_layer_group groups[2];             \
        memcpy(groups, groups_mixed, sizeof(groups)); \
        groups[1].field = (value);                    \
        desc.layer_groups = groups;                   \
        expect_refused(&desc, (err), (words));        \
    } while (0)
    REFUSE(layers, 0, KVARN_EINVALID, "layer group 1: expected at least 1 layer");
    REFUSE(layers, 511, KVARN_ETOO_LARGE, "at most 512 in all, got 513");
    REFUSE(layers, UINT32_MAX, KVARN_ETOO_LARGE, "got 4294967297");
    REFUSE(kv_heads, 0, KVARN_EINVALID, "at least 1 KV head");
    REFUSE(kv_heads, 257, KVARN_ETOO_LARGE, "at most 256 KV heads, got 257");
    REFUSE(kv_heads, 65537, KVARN_ETOO_LARGE, "got 65537");
    REFUSE(k_dim, 0, KVARN_EINVALID, "k_dim a positive multiple of 8, got 0");
    REFUSE(k_dim, 100, KVARN_EINVALID, "k_dim a positive multiple of 8, got 100");
    REFUSE(k_dim, 520, KVARN_ETOO_LARGE, "k_dim of at most 512, got 520");
    REFUSE(v_dim, 65536 + 64, KVARN_ETOO_LARGE, "v_dim of at most 512, got 65600");
    REFUSE(window, UINT64_MAX, KVARN_ETOO_LARGE, "got 18446744073709551615");
#undef REFUSE
}

static void registry_is_bounded(void **state)
{
    (void)state;
    struct kvd_shape_registry registry;
    struct kvd_shape_desc desc = desc_mixed();
    struct kvd_layer_group group = groups_mixed[0];
    const struct kvd_shape *shape = NULL;
    char why[160] = "";
    kvd_shape_registry_init(&registry);
    desc.layer_groups = &group;
    desc.layer_group_count = 1;
    for (uint32_t i = 0; i < KVARN_SHAPES_MAX; i++) {
        group.window = i;
        assert_int_equal(register_ok(&registry, 1, &desc)->id, i + 1);
    }
    group.window = KVARN_SHAPES_MAX;
    assert_int_equal(
        kvd_shape_register(&registry, 1, &desc, &shape, why, sizeof(why)), KVARN_ETOO_LARGE);
    assert_non_null(strstr(why, "at most 1024"));
    assert_null(shape);
    group.window = 3; /* those that exist are still found */
    assert_int_equal(register_ok(&registry, 1, &desc)->id, 4);
    kvd_shape_registry_fini(&registry);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_derived),
        cmocka_unit_test(canonical_text_is_as_documented),
        cmocka_unit_test(fingerprint_is_the_texts_sha256),
        cmocka_unit_test(equal_descriptions_are_one_shape),
        cmocka_unit_test(semantics_14_tenant_is_part_of_identity),
        cmocka_unit_test(every_field_counts),
        cmocka_unit_test(bad_descriptions_are_refused_in_words),
        cmocka_unit_test(bad_layer_groups_are_refused_in_words),
        cmocka_unit_test(registry_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
