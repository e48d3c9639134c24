/*
 * What heads and bodies of cold records mean, as bytes.
 *
 * Owner: none, pure. Thread: any.
 */
#include "server/cold/cold_catalog.h"

#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"

/* Writing. */

void kvd_cold_bytes_fini(struct kvd_cold_bytes *bytes)
{
    free(bytes->data);
    *bytes = (struct kvd_cold_bytes){0};
}

static void add(struct kvd_cold_bytes *bytes, const void *data, size_t count)
{
    if (bytes->bytes + count > bytes->room) {
        size_t room = 2 * (bytes->bytes + count) + 64;
        uint8_t *grown = bytes->has_failed ? NULL : realloc(bytes->data, room);
        if (grown == NULL) {
            bytes->has_failed = true;
            return;
        }
        bytes->data = grown;
        bytes->room = room;
    }
    if (count > 0) {
        memcpy(bytes->data + bytes->bytes, data, count);
        bytes->bytes += count;
    }
}

void kvd_cold_bytes_add(struct kvd_cold_bytes *bytes, const void *data, size_t count)
{
    add(bytes, data, count);
}

static void add_u8(struct kvd_cold_bytes *bytes, uint8_t value)
{
    add(bytes, &value, 1);
}

static void add_u32(struct kvd_cold_bytes *bytes, uint32_t value)
{
    uint8_t raw[4];

    for (unsigned i = 0; i < 4; i++) {
        raw[i] = (uint8_t)(value >> (8 * i));
    }
    add(bytes, raw, sizeof(raw));
}

static void add_u64(struct kvd_cold_bytes *bytes, uint64_t value)
{
    add_u32(bytes, (uint32_t)value);
    add_u32(bytes, (uint32_t)(value >> 32));
}

static void add_text(struct kvd_cold_bytes *bytes, const char *text)
{
    add_u32(bytes, (uint32_t)strlen(text));
    add(bytes, text, strlen(text));
}

void kvd_cold_shape_encode(struct kvd_cold_bytes *bytes, const struct kvd_shape *shape)
{
    add_u32(bytes, shape->group);
    add_u32(bytes, shape->k_bits);
    add_u32(bytes, shape->v_bits);
    add_u32(bytes, shape->sink_tokens);
    add_text(bytes, shape->model);
    add_text(bytes, shape->revision);
    add_u32(bytes, shape->layer_group_count);
    for (uint32_t i = 0; i < shape->layer_group_count; i++) {
        const struct kvd_layer_group *group = &shape->layer_groups[i];
        add_u32(bytes, group->layers);
        add_u32(bytes, group->kv_heads);
        add_u32(bytes, group->k_dim);
        add_u32(bytes, group->v_dim);
        add_u64(bytes, group->window);
    }
}

void kvd_cold_session_encode(struct kvd_cold_bytes *bytes, const struct kvd_cold_session_head *head)
{
    add(bytes, head->fingerprint, sizeof(head->fingerprint));
    add_u32(bytes, head->encoder);
    add_u32(bytes, head->seal_lag);
    add_text(bytes, head->name);
}

void kvd_cold_page_encode(struct kvd_cold_bytes *bytes, const struct kvd_cold_page_head *head)
{
    add(bytes, head->fingerprint, sizeof(head->fingerprint));
    add_u32(bytes, head->block_idx);
    add_u32(bytes, head->layer_count);
    for (uint32_t i = 0; i < head->layer_count; i++) {
        add_u8(bytes, head->layers[i].kind);
        add_u8(bytes, head->layers[i].encoder);
        add_u64(bytes, head->layers[i].checksum);
    }
}

void kvd_cold_map_encode(struct kvd_cold_bytes *bytes, const struct kvd_cold_map_head *head)
{
    add_u64(bytes, head->epoch);
    kvd_cold_id_encode(bytes, head->tail_id);
    add_u32(bytes, head->block_count);
    add_u32(bytes, head->layer_count);
    for (uint32_t i = 0; i < head->layer_count; i++) {
        add_u64(bytes, head->layers[i].length);
        add_u32(bytes, head->layers[i].sealed_blocks);
        add_u32(bytes, head->layers[i].dropped_blocks);
    }
}

void kvd_cold_tail_encode(struct kvd_cold_bytes *bytes, const struct kvd_cold_tail_head *head)
{
    add_u32(bytes, head->page_count);
    for (uint32_t i = 0; i < head->page_count; i++) {
        add_u32(bytes, head->pages[i].layer);
        add_u32(bytes, head->pages[i].block_idx);
        add_u32(bytes, head->pages[i].filled_tokens);
        add_u32(bytes, head->pages[i].encoder);
        add_u64(bytes, head->pages[i].checksum);
    }
}

void kvd_cold_id_encode(struct kvd_cold_bytes *bytes, struct kvd_cold_id id)
{
    add_u64(bytes, id.hi);
    add_u64(bytes, id.lo);
}

/* Reading: an error sticks, and what is read after it is zero. */

struct cursor {
    const uint8_t *data;
    size_t left;
    bool has_failed;
};

static const uint8_t *take(struct cursor *cursor, size_t count)
{
    const uint8_t *data = cursor->data;

    if (cursor->has_failed || count > cursor->left) {
        cursor->has_failed = true;
        return NULL;
    }
    cursor->data += count;
    cursor->left -= count;
    return data;
}

static uint8_t take_u8(struct cursor *cursor)
{
    const uint8_t *raw = take(cursor, 1);

    return raw == NULL ? 0 : raw[0];
}

static uint32_t take_u32(struct cursor *cursor)
{
    const uint8_t *raw = take(cursor, 4);

    return raw == NULL
               ? 0
               : raw[0] | (uint32_t)raw[1] << 8 | (uint32_t)raw[2] << 16 | (uint32_t)raw[3] << 24;
}

static uint64_t take_u64(struct cursor *cursor)
{
    uint64_t low = take_u32(cursor);

    return low | (uint64_t)take_u32(cursor) << 32;
}

/* A text of at most max bytes, without a zero in it, as a C string of max + 1 bytes. */
static void take_text(struct cursor *cursor, char *dst, size_t max)
{
    uint32_t bytes = take_u32(cursor);
    const uint8_t *raw = bytes > max ? NULL : take(cursor, bytes);

    if (raw == NULL || memchr(raw, 0, bytes) != NULL) {
        cursor->has_failed = true;
        dst[0] = '\0';
        return;
    }
    memcpy(dst, raw, bytes);
    dst[bytes] = '\0';
}

static void take_fingerprint(struct cursor *cursor, uint8_t *dst)
{
    const uint8_t *raw = take(cursor, KVD_FINGERPRINT_BYTES);

    if (raw != NULL) {
        memcpy(dst, raw, KVD_FINGERPRINT_BYTES);
    }
}

static int cursor_end(const struct cursor *cursor)
{
    return cursor->has_failed || cursor->left != 0 ? KVARN_ECORRUPT : 0;
}

/* A shape's strings and groups, side by side. */
struct shape_memory {
    char model[KVARN_MODEL_NAME_MAX + 1];
    char revision[KVARN_MODEL_NAME_MAX + 1];
    struct kvd_layer_group groups[KVARN_LAYER_GROUPS_MAX];
};

int kvd_cold_shape_decode(
    const uint8_t *data, size_t bytes, struct kvd_shape_desc *desc, void **ret_memory)
{
    struct cursor cursor = {data, bytes, false};
    struct shape_memory *memory = calloc(1, sizeof(*memory));

    if (memory == NULL) {
        return KVARN_ENOMEM;
    }
    *desc = (struct kvd_shape_desc){.group = take_u32(&cursor),
        .k_bits = 0,
        .model = memory->model,
        .revision = memory->revision,
        .layer_groups = memory->groups};
    desc->k_bits = take_u32(&cursor);
    desc->v_bits = take_u32(&cursor);
    desc->sink_tokens = take_u32(&cursor);
    take_text(&cursor, memory->model, KVARN_MODEL_NAME_MAX);
    take_text(&cursor, memory->revision, KVARN_MODEL_NAME_MAX);
    desc->layer_group_count = take_u32(&cursor);
    cursor.has_failed = cursor.has_failed || desc->layer_group_count > KVARN_LAYER_GROUPS_MAX;
    for (uint32_t i = 0; i < desc->layer_group_count && !cursor.has_failed; i++) {
        struct kvd_layer_group *group = &memory->groups[i];
        group->layers = take_u32(&cursor);
        group->kv_heads = take_u32(&cursor);
        group->k_dim = take_u32(&cursor);
        group->v_dim = take_u32(&cursor);
        group->window = take_u64(&cursor);
    }
    int err = cursor_end(&cursor);
    if (err != 0) {
        free(memory);
        return err;
    }
    *ret_memory = memory;
    return 0;
}

int kvd_cold_session_decode(const uint8_t *data, size_t bytes, struct kvd_cold_session_head *ret)
{
    struct cursor cursor = {data, bytes, false};

    memset(ret, 0, sizeof(*ret));
    take_fingerprint(&cursor, ret->fingerprint);
    ret->encoder = take_u32(&cursor);
    ret->seal_lag = take_u32(&cursor);
    take_text(&cursor, ret->name, KVARN_SESSION_NAME_MAX);
    return ret->name[0] == '\0' ? KVARN_ECORRUPT : cursor_end(&cursor);
}

int kvd_cold_page_decode(const uint8_t *data, size_t bytes, struct kvd_cold_page_head *ret)
{
    struct cursor cursor = {data, bytes, false};

    memset(ret, 0, sizeof(*ret));
    take_fingerprint(&cursor, ret->fingerprint);
    ret->block_idx = take_u32(&cursor);
    ret->layer_count = take_u32(&cursor);
    if (ret->layer_count > KVARN_LAYERS_MAX) {
        return KVARN_ECORRUPT;
    }
    for (uint32_t i = 0; i < ret->layer_count; i++) {
        ret->layers[i].kind = take_u8(&cursor);
        ret->layers[i].encoder = take_u8(&cursor);
        ret->layers[i].checksum = take_u64(&cursor);
        cursor.has_failed = cursor.has_failed || ret->layers[i].kind > KVD_COLD_PAGE_ROWS;
    }
    return cursor_end(&cursor);
}

int kvd_cold_map_decode(const uint8_t *data, size_t bytes, struct kvd_cold_map_head *ret)
{
    struct cursor cursor = {data, bytes, false};

    memset(ret, 0, sizeof(*ret));
    ret->epoch = take_u64(&cursor);
    ret->tail_id.hi = take_u64(&cursor);
    ret->tail_id.lo = take_u64(&cursor);
    ret->block_count = take_u32(&cursor);
    ret->layer_count = take_u32(&cursor);
    if (ret->layer_count > KVARN_LAYERS_MAX) {
        return KVARN_ECORRUPT;
    }
    for (uint32_t i = 0; i < ret->layer_count; i++) {
        ret->layers[i].length = take_u64(&cursor);
        ret->layers[i].sealed_blocks = take_u32(&cursor);
        ret->layers[i].dropped_blocks = take_u32(&cursor);
        cursor.has_failed = cursor.has_failed || ret->layers[i].length > KVARN_SESSION_TOKENS_MAX;
    }
    return cursor_end(&cursor);
}

int kvd_cold_tail_decode(const uint8_t *data, size_t bytes, struct kvd_cold_tail_head *ret)
{
    struct cursor cursor = {data, bytes, false};

    memset(ret, 0, sizeof(*ret));
    ret->page_count = take_u32(&cursor);
    if (cursor.has_failed || ret->page_count > cursor.left / 24) {
        return KVARN_ECORRUPT;
    }
    ret->pages = calloc(ret->page_count > 0 ? ret->page_count : 1, sizeof(*ret->pages));
    if (ret->pages == NULL) {
        return KVARN_ENOMEM;
    }
    for (uint32_t i = 0; i < ret->page_count; i++) {
        ret->pages[i].layer = take_u32(&cursor);
        ret->pages[i].block_idx = take_u32(&cursor);
        ret->pages[i].filled_tokens = take_u32(&cursor);
        ret->pages[i].encoder = take_u32(&cursor);
        ret->pages[i].checksum = take_u64(&cursor);
    }
    int err = cursor_end(&cursor);
    if (err != 0) {
        free(ret->pages);
        ret->pages = NULL;
    }
    return err;
}

struct kvd_cold_id kvd_cold_id_decode(const uint8_t *data)
{
    struct cursor cursor = {data, 16, false};
    struct kvd_cold_id id = {.hi = take_u64(&cursor)};

    id.lo = take_u64(&cursor);
    return id;
}

struct kvd_cold_id kvd_cold_fingerprint_id(const uint8_t *fingerprint)
{
    return kvd_cold_id_decode(fingerprint);
}

unsigned kvd_cold_page_vecs(
    const struct kvd_layer_shape *ls, void *data, uint32_t filled_tokens, struct iovec *ret_vecs)
{
    uint8_t *bytes = data;
    size_t k_bytes = (size_t)filled_tokens * ls->spec.k_dim * sizeof(uint16_t);
    size_t v_bytes = (size_t)filled_tokens * ls->spec.v_dim * sizeof(uint16_t);

    if (filled_tokens == 0) {
        ret_vecs[0] = (struct iovec){data, ls->tile_page_bytes};
        return 1;
    }
    if (filled_tokens == ls->spec.group) {
        ret_vecs[0] = (struct iovec){data, ls->rows_page_bytes};
        return 1;
    }
    for (unsigned head = 0; head < ls->kv_heads; head++) {
        ret_vecs[head] = (struct iovec){bytes + kvd_rows_k_offset(ls, head), k_bytes};
        ret_vecs[ls->kv_heads + head] =
            (struct iovec){bytes + kvd_rows_v_offset(ls, head), v_bytes};
    }
    return 2 * ls->kv_heads;
}
