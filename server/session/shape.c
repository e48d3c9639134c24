/*
 * Shapes: checking a description, deriving sizes, the canonical text and its fingerprint.
 *
 * Owner: service. Thread: loop only.
 */
#include "server/session/shape.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/evp.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"

/* Where the sentence about a refusal goes. */
struct reason {
    char *text; /* borrowed */
    size_t bytes;
};

static int refuse(struct reason *why, int err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static int refuse(struct reason *why, int err, const char *format, ...)
{
    KVARN_ASSERT(err < 0);
    if (why->bytes > 0) {
        va_list args;
        va_start(args, format);
        (void)vsnprintf(why->text, why->bytes, format, args);
        va_end(args);
    }
    return err;
}

void kvd_shape_registry_init(struct kvd_shape_registry *registry)
{
    *registry = (struct kvd_shape_registry){0};
}

static void shape_destroy(struct kvd_shape *shape)
{
    if (shape == NULL) {
        return;
    }
    free(shape->model);
    free(shape->revision);
    free(shape->layer_groups);
    free(shape->layers);
    free(shape);
}

void kvd_shape_registry_fini(struct kvd_shape_registry *registry)
{
    for (uint32_t i = 0; i < registry->count; i++) {
        shape_destroy(registry->shapes[i]);
    }
    free(registry->shapes);
    *registry = (struct kvd_shape_registry){0};
}

static const char *revision_of(const struct kvd_shape_desc *desc)
{
    return desc->revision != NULL ? desc->revision : "";
}

static int check_names(const struct kvd_shape_desc *desc, struct reason *why)
{
    if (desc->model == NULL || desc->model[0] == '\0') {
        return refuse(why, KVARN_EINVALID, "model: expected a name, got none");
    }
    size_t model_bytes = strlen(desc->model);
    if (model_bytes > KVARN_MODEL_NAME_MAX) {
        return refuse(why, KVARN_ETOO_LARGE, "model: expected at most %d bytes, got %zu",
            KVARN_MODEL_NAME_MAX, model_bytes);
    }
    size_t revision_bytes = strlen(revision_of(desc));
    if (revision_bytes > KVARN_MODEL_NAME_MAX) {
        return refuse(why, KVARN_ETOO_LARGE, "revision: expected at most %d bytes, got %zu",
            KVARN_MODEL_NAME_MAX, revision_bytes);
    }
    return 0;
}

static int check_format(const struct kvd_shape_desc *desc, struct reason *why)
{
    if (desc->group != 64 && desc->group != 128) {
        return refuse(
            why, KVARN_EINVALID, "group: expected 64 or 128 tokens, got %" PRIu32, desc->group);
    }
    if (desc->k_bits != 2 && desc->k_bits != 4) {
        return refuse(why, KVARN_EINVALID, "k_bits: expected 2 or 4, got %" PRIu32, desc->k_bits);
    }
    if (desc->v_bits != 2 && desc->v_bits != 4) {
        return refuse(why, KVARN_EINVALID, "v_bits: expected 2 or 4, got %" PRIu32, desc->v_bits);
    }
    if (desc->sink_tokens % desc->group != 0) {
        return refuse(why, KVARN_EINVALID,
            "sink_tokens: expected 0 or a multiple of the group, %" PRIu32 ", got %" PRIu32,
            desc->group, desc->sink_tokens);
    }
    if (desc->sink_tokens > KVARN_SESSION_TOKENS_MAX) {
        return refuse(why, KVARN_ETOO_LARGE,
            "sink_tokens: expected at most %" PRIu64 ", got %" PRIu32,
            (uint64_t)KVARN_SESSION_TOKENS_MAX, desc->sink_tokens);
    }
    return 0;
}

static int check_head_dim(
    uint32_t head_dim, const char *name, uint32_t group_idx, struct reason *why)
{
    if (head_dim > KVARN_HEAD_DIM_MAX) {
        return refuse(why, KVARN_ETOO_LARGE,
            "layer group %" PRIu32 ": expected %s of at most %d, got %" PRIu32, group_idx, name,
            KVARN_HEAD_DIM_MAX, head_dim);
    }
    if (head_dim == 0 || head_dim % KVARN_HEAD_DIM_STEP != 0) {
        return refuse(why, KVARN_EINVALID,
            "layer group %" PRIu32 ": expected %s a positive multiple of %d, got %" PRIu32,
            group_idx, name, KVARN_HEAD_DIM_STEP, head_dim);
    }
    return 0;
}

static struct kvarn_tile_spec spec_of(
    const struct kvd_shape_desc *desc, const struct kvd_layer_group *group)
{
    return (struct kvarn_tile_spec){
        .k_dim = (uint16_t)group->k_dim,
        .v_dim = (uint16_t)group->v_dim,
        .group = (uint16_t)desc->group,
        .k_bits = (uint8_t)desc->k_bits,
        .v_bits = (uint8_t)desc->v_bits,
    };
}

static int check_group(const struct kvd_shape_desc *desc, uint32_t group_idx, struct reason *why)
{
    const struct kvd_layer_group *group = &desc->layer_groups[group_idx];
    if (group->layers == 0) {
        return refuse(why, KVARN_EINVALID,
            "layer group %" PRIu32 ": expected at least 1 layer, got 0", group_idx);
    }
    if (group->kv_heads == 0) {
        return refuse(why, KVARN_EINVALID,
            "layer group %" PRIu32 ": expected at least 1 KV head, got 0", group_idx);
    }
    if (group->kv_heads > KVARN_KV_HEADS_MAX) {
        return refuse(why, KVARN_ETOO_LARGE,
            "layer group %" PRIu32 ": expected at most %d KV heads, got %" PRIu32, group_idx,
            KVARN_KV_HEADS_MAX, group->kv_heads);
    }
    int err = check_head_dim(group->k_dim, "k_dim", group_idx, why);
    if (err == 0) {
        err = check_head_dim(group->v_dim, "v_dim", group_idx, why);
    }
    if (err != 0) {
        return err;
    }
    if (group->window > KVARN_SESSION_TOKENS_MAX) {
        return refuse(why, KVARN_ETOO_LARGE,
            "layer group %" PRIu32 ": expected a window of at most %" PRIu64
            " tokens (0 for full attention), got %" PRIu64,
            group_idx, (uint64_t)KVARN_SESSION_TOKENS_MAX, group->window);
    }
    struct kvarn_tile_spec spec = spec_of(desc, group);
    if (kvarn_tile_spec_check(&spec) != 0) {
        return refuse(why, KVARN_EINVALID,
            "layer group %" PRIu32 ": the format has no tile of k_dim %" PRIu32 ", v_dim %" PRIu32
            ", group %" PRIu32 ", bits %" PRIu32 " and %" PRIu32,
            group_idx, group->k_dim, group->v_dim, desc->group, desc->k_bits, desc->v_bits);
    }
    return 0;
}

/* Everything about a description that can be refused. *ret_layers: layers of all groups. */
static int check_desc(
    const struct kvd_shape_desc *desc, struct reason *why, uint32_t *ret_layer_count)
{
    int err = check_names(desc, why);
    if (err == 0) {
        err = check_format(desc, why);
    }
    if (err != 0) {
        return err;
    }
    if (desc->layer_group_count == 0) {
        return refuse(why, KVARN_EINVALID, "layer_groups: expected at least 1, got 0");
    }
    if (desc->layer_group_count > KVARN_LAYER_GROUPS_MAX) {
        return refuse(why, KVARN_ETOO_LARGE, "layer_groups: expected at most %d, got %" PRIu32,
            KVARN_LAYER_GROUPS_MAX, desc->layer_group_count);
    }
    uint64_t layer_count = 0; /* 512 groups of 2^32 layers do not overflow it */
    for (uint32_t i = 0; i < desc->layer_group_count; i++) {
        err = check_group(desc, i, why);
        if (err != 0) {
            return err;
        }
        layer_count += desc->layer_groups[i].layers;
    }
    if (layer_count > KVARN_LAYERS_MAX) {
        return refuse(why, KVARN_ETOO_LARGE, "layers: expected at most %d in all, got %" PRIu64,
            KVARN_LAYERS_MAX, layer_count);
    }
    *ret_layer_count = (uint32_t)layer_count;
    return 0;
}

/* Text being written into a buffer that may be too short for it. */
struct text {
    char *dst;    /* borrowed */
    size_t room;  /* bytes of dst */
    size_t bytes; /* of the whole text so far, written or not */
};

static void text_add(struct text *text, const char *src, size_t bytes)
{
    if (text->bytes < text->room) {
        size_t room = text->room - text->bytes;
        memcpy(text->dst + text->bytes, src, bytes < room ? bytes : room);
    }
    text->bytes += bytes;
}

static void text_add_string(struct text *text, const char *key, const char *value)
{
    char line[64];
    size_t bytes = strlen(value);
    int n = snprintf(line, sizeof(line), "%s %zu:", key, bytes);
    KVARN_ASSERT(n > 0 && (size_t)n < sizeof(line));
    text_add(text, line, (size_t)n);
    text_add(text, value, bytes);
    text_add(text, "\n", 1);
}

static void text_add_layers(
    struct text *text, uint64_t layer_count, const struct kvd_layer_group *group)
{
    char line[128];
    int n = snprintf(line, sizeof(line),
        "layers %" PRIu64 " %" PRIu32 " %" PRIu32 " %" PRIu32 " %" PRIu64 "\n", layer_count,
        group->kv_heads, group->k_dim, group->v_dim, group->window);
    KVARN_ASSERT(n > 0 && (size_t)n < sizeof(line));
    text_add(text, line, (size_t)n);
}

static bool groups_alike(const struct kvd_layer_group *a, const struct kvd_layer_group *b)
{
    return a->kv_heads == b->kv_heads && a->k_dim == b->k_dim && a->v_dim == b->v_dim &&
           a->window == b->window;
}

size_t kvd_shape_canonical(const struct kvd_shape_desc *desc, char *dst, size_t bytes)
{
    struct text text = {.dst = dst, .room = bytes};
    char head[128];
    text_add(&text, "kvarn-shape 1\n", strlen("kvarn-shape 1\n"));
    text_add_string(&text, "model", desc->model);
    text_add_string(&text, "revision", revision_of(desc));
    int n = snprintf(head, sizeof(head),
        "group %" PRIu32 "\nbits %" PRIu32 " %" PRIu32 "\nsink %" PRIu32 "\n", desc->group,
        desc->k_bits, desc->v_bits, desc->sink_tokens);
    KVARN_ASSERT(n > 0 && (size_t)n < sizeof(head));
    text_add(&text, head, (size_t)n);

    uint32_t i = 0;
    while (i < desc->layer_group_count) {
        const struct kvd_layer_group *group = &desc->layer_groups[i];
        uint64_t layer_count = 0;
        for (; i < desc->layer_group_count && groups_alike(group, &desc->layer_groups[i]); i++) {
            layer_count += desc->layer_groups[i].layers;
        }
        text_add_layers(&text, layer_count, group);
    }
    return text.bytes;
}

/* Returns 0 or KVARN_ENOMEM. */
static int fingerprint_of(
    const struct kvd_shape_desc *desc, uint8_t ret_fingerprint[KVD_FINGERPRINT_BYTES])
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned digest_bytes = 0;
    size_t bytes = kvd_shape_canonical(desc, NULL, 0);
    char *text = malloc(bytes);
    if (text == NULL) {
        return KVARN_ENOMEM;
    }
    size_t again = kvd_shape_canonical(desc, text, bytes);
    KVARN_ASSERT(again == bytes);
    int ok = EVP_Digest(text, bytes, digest, &digest_bytes, EVP_sha256(), NULL);
    free(text);
    if (ok != 1) {
        return KVARN_ENOMEM; /* the one way that hashing a buffer fails */
    }
    KVARN_ASSERT(digest_bytes >= KVD_FINGERPRINT_BYTES);
    memcpy(ret_fingerprint, digest, KVD_FINGERPRINT_BYTES);
    return 0;
}

static void layer_init(struct kvd_layer_shape *layer, const struct kvd_shape_desc *desc,
    const struct kvd_layer_group *group)
{
    layer->spec = spec_of(desc, group);
    layer->kv_heads = (uint16_t)group->kv_heads;
    layer->window = group->window;
    layer->tile_bytes = kvarn_tile_bytes(&layer->spec);
    layer->tile_page_bytes = layer->kv_heads * layer->tile_bytes;
    layer->record_bytes = kvarn_record_bytes(&layer->spec);
    kvarn_tile_map_init(&layer->record_map, &layer->spec);
    layer->rows_page_bytes = (size_t)layer->kv_heads * desc->group *
                             ((size_t)group->k_dim + group->v_dim) * sizeof(uint16_t);
    KVARN_ASSERT(layer->tile_bytes > 0 && layer->tile_bytes % 64 == 0);
}

static void layers_init(struct kvd_shape *shape, const struct kvd_shape_desc *desc)
{
    uint32_t layer_idx = 0;
    for (uint32_t i = 0; i < desc->layer_group_count; i++) {
        for (uint32_t j = 0; j < desc->layer_groups[i].layers; j++) {
            struct kvd_layer_shape *layer = &shape->layers[layer_idx++];
            layer_init(layer, desc, &desc->layer_groups[i]);
            shape->block_rows_bytes += layer->rows_page_bytes;
            shape->block_tiles_bytes += layer->tile_page_bytes;
        }
    }
    KVARN_ASSERT(layer_idx == shape->layer_count);
}

/* A shape of a checked description; NULL without memory. */
static struct kvd_shape *shape_create(const struct kvd_shape_desc *desc, uint32_t layer_count)
{
    struct kvd_shape *shape = calloc(1, sizeof(*shape));
    if (shape == NULL) {
        return NULL;
    }
    shape->model = strdup(desc->model);
    shape->revision = strdup(revision_of(desc));
    shape->layer_groups = calloc(desc->layer_group_count, sizeof(*shape->layer_groups));
    shape->layers = calloc(layer_count, sizeof(*shape->layers));
    if (shape->model == NULL || shape->revision == NULL || shape->layer_groups == NULL ||
        shape->layers == NULL) {
        shape_destroy(shape);
        return NULL;
    }
    shape->group = desc->group;
    shape->k_bits = desc->k_bits;
    shape->v_bits = desc->v_bits;
    shape->sink_tokens = desc->sink_tokens;
    memcpy(shape->layer_groups, desc->layer_groups,
        desc->layer_group_count * sizeof(*shape->layer_groups));
    shape->layer_group_count = desc->layer_group_count;
    shape->layer_count = layer_count;
    layers_init(shape, desc);
    return shape;
}

const struct kvd_shape *kvd_shape_find_fingerprint(
    const struct kvd_shape_registry *registry, uint32_t tenant_id, const uint8_t *fingerprint)
{
    for (uint32_t i = 0; i < registry->count; i++) {
        const struct kvd_shape *shape = registry->shapes[i];
        if (shape->tenant_id == tenant_id &&
            memcmp(shape->fingerprint, fingerprint, KVD_FINGERPRINT_BYTES) == 0) {
            return shape;
        }
    }
    return NULL;
}

/* Takes over `shape` when it succeeds. */
static int registry_add(struct kvd_shape_registry *registry, struct kvd_shape *shape)
{
    KVARN_ASSERT(registry->count < KVARN_SHAPES_MAX);
    if (registry->shapes == NULL) {
        /* All at once: 8 KiB, and nothing to grow. */
        registry->shapes = calloc(KVARN_SHAPES_MAX, sizeof(struct kvd_shape *));
        if (registry->shapes == NULL) {
            return KVARN_ENOMEM;
        }
    }
    registry->shapes[registry->count++] = shape;
    shape->id = registry->count;
    return 0;
}

int kvd_shape_register(struct kvd_shape_registry *registry, uint32_t tenant_id,
    const struct kvd_shape_desc *desc, const struct kvd_shape **ret, char *why, size_t why_bytes)
{
    struct reason reason = {.text = why, .bytes = why_bytes};
    uint8_t fingerprint[KVD_FINGERPRINT_BYTES];
    uint32_t layer_count = 0;
    int err = check_desc(desc, &reason, &layer_count);
    if (err != 0) {
        return err;
    }
    err = fingerprint_of(desc, fingerprint);
    if (err != 0) {
        return refuse(&reason, err, "no memory to register a shape");
    }
    const struct kvd_shape *known = kvd_shape_find_fingerprint(registry, tenant_id, fingerprint);
    if (known != NULL) {
        *ret = known;
        return 0;
    }
    if (registry->count >= KVARN_SHAPES_MAX) {
        return refuse(&reason, KVARN_ETOO_LARGE,
            "shapes: expected at most %d registered, got one more", KVARN_SHAPES_MAX);
    }
    struct kvd_shape *shape = shape_create(desc, layer_count);
    if (shape == NULL) {
        return refuse(&reason, KVARN_ENOMEM, "no memory to register a shape");
    }
    memcpy(shape->fingerprint, fingerprint, KVD_FINGERPRINT_BYTES);
    shape->tenant_id = tenant_id;
    err = registry_add(registry, shape);
    if (err != 0) {
        shape_destroy(shape);
        return refuse(&reason, err, "no memory to register a shape");
    }
    *ret = shape;
    return 0;
}

const struct kvd_shape *kvd_shape_find(
    const struct kvd_shape_registry *registry, uint32_t tenant_id, uint32_t id)
{
    if (id == 0 || id > registry->count) {
        return NULL;
    }
    const struct kvd_shape *shape = registry->shapes[id - 1];
    KVARN_ASSERT(shape->id == id);
    return shape->tenant_id == tenant_id ? shape : NULL;
}
