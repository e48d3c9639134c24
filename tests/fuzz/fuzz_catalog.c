/*
 * Fuzz target: heads of cold records. The first byte says of which type, the rest is the head.
 *
 * Whatever comes, a decoder refuses it or gives a value within limits.h whose encoding is the input
 * again: no two texts mean the same, and nothing is read that was not there. Owner: libFuzzer or
 * replay.c. Thread: one.
 */
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/cold/cold_catalog.h"
#include "tests/fuzz/fuzz_target.h"

/* A head is at most that long in a file. */
#define INPUT_BYTES_MAX KVARN_COLD_HEAD_BYTES_MAX

/* The encoding is the input; frees it. */
static void must_equal(struct kvd_cold_bytes *encoded, const uint8_t *data, size_t bytes)
{
    KVARN_ASSERT(!encoded->has_failed && encoded->bytes == bytes);
    KVARN_ASSERT(bytes == 0 || memcmp(encoded->data, data, bytes) == 0);
    kvd_cold_bytes_fini(encoded);
}

/* What can be registered comes back from what is written of it. */
static void try_shape(const uint8_t *data, size_t bytes)
{
    struct kvd_shape_registry registry;
    struct kvd_cold_bytes encoded = {0};
    struct kvd_shape_desc desc;
    const struct kvd_shape *shape = NULL;
    void *memory = NULL;
    char why[200];
    int err = kvd_cold_shape_decode(data, bytes, &desc, &memory);

    KVARN_ASSERT(err == 0 || err == KVARN_ECORRUPT);
    if (err != 0) {
        return;
    }
    KVARN_ASSERT(strlen(desc.model) <= KVARN_MODEL_NAME_MAX &&
                 strlen(desc.revision) <= KVARN_MODEL_NAME_MAX);
    KVARN_ASSERT(desc.layer_group_count <= KVARN_LAYER_GROUPS_MAX);
    kvd_shape_registry_init(&registry);
    if (kvd_shape_register(&registry, 1, &desc, &shape, why, sizeof(why)) == 0) {
        const struct kvd_shape *again = NULL;
        struct kvd_shape_desc desc_again;
        void *memory_again = NULL;
        kvd_cold_shape_encode(&encoded, shape);
        KVARN_ASSERT(!encoded.has_failed);
        err = kvd_cold_shape_decode(encoded.data, encoded.bytes, &desc_again, &memory_again);
        KVARN_ASSERT(err == 0);
        err = kvd_shape_register(&registry, 1, &desc_again, &again, why, sizeof(why));
        KVARN_ASSERT(err == 0 && again == shape);
        free(memory_again);
        kvd_cold_bytes_fini(&encoded);
    }
    kvd_shape_registry_fini(&registry);
    free(memory);
}

static void try_session(const uint8_t *data, size_t bytes)
{
    struct kvd_cold_session_head head;
    struct kvd_cold_bytes encoded = {0};
    int err = kvd_cold_session_decode(data, bytes, &head);

    KVARN_ASSERT(err == 0 || err == KVARN_ECORRUPT);
    if (err == 0) {
        size_t name_bytes = strlen(head.name);
        KVARN_ASSERT(name_bytes > 0 && name_bytes <= KVARN_SESSION_NAME_MAX);
        kvd_cold_session_encode(&encoded, &head);
        must_equal(&encoded, data, bytes);
    }
}

static void try_page(const uint8_t *data, size_t bytes)
{
    static struct kvd_cold_page_head head; /* some KiB */
    struct kvd_cold_bytes encoded = {0};
    int err = kvd_cold_page_decode(data, bytes, &head);

    KVARN_ASSERT(err == 0 || err == KVARN_ECORRUPT);
    if (err == 0) {
        KVARN_ASSERT(head.layer_count <= KVARN_LAYERS_MAX);
        kvd_cold_page_encode(&encoded, &head);
        must_equal(&encoded, data, bytes);
    }
}

static void try_map(const uint8_t *data, size_t bytes)
{
    static struct kvd_cold_map_head head;
    struct kvd_cold_bytes encoded = {0};
    int err = kvd_cold_map_decode(data, bytes, &head);

    KVARN_ASSERT(err == 0 || err == KVARN_ECORRUPT);
    if (err == 0) {
        KVARN_ASSERT(head.layer_count <= KVARN_LAYERS_MAX);
        for (uint32_t i = 0; i < head.layer_count; i++) {
            KVARN_ASSERT(head.layers[i].length <= KVARN_SESSION_TOKENS_MAX);
        }
        kvd_cold_map_encode(&encoded, &head);
        must_equal(&encoded, data, bytes);
    }
}

static void try_tail(const uint8_t *data, size_t bytes)
{
    struct kvd_cold_tail_head head;
    struct kvd_cold_bytes encoded = {0};
    int err = kvd_cold_tail_decode(data, bytes, &head);

    KVARN_ASSERT(err == 0 || err == KVARN_ECORRUPT);
    if (err == 0) {
        KVARN_ASSERT(head.page_count <= bytes);
        kvd_cold_tail_encode(&encoded, &head);
        must_equal(&encoded, data, bytes);
    }
    free(head.pages);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (bytes == 0 || bytes > INPUT_BYTES_MAX) {
        return 0;
    }
    switch (data[0] % KVD_COLD_TYPE_COUNT) {
    case KVD_COLD_SHAPE:
        try_shape(data + 1, bytes - 1);
        break;
    case KVD_COLD_SESSION:
        try_session(data + 1, bytes - 1);
        break;
    case KVD_COLD_PAGE:
        try_page(data + 1, bytes - 1);
        break;
    case KVD_COLD_MAP:
        try_map(data + 1, bytes - 1);
        break;
    case KVD_COLD_TAIL:
        try_tail(data + 1, bytes - 1);
        break;
    default:
        break; /* a TOMBSTONE has no head */
    }
    return 0;
}
