/*
 * The index of a segment that takes records: gathered while they come, hashed on the way.
 *
 * Owner: cold_segment.c. Thread: loop only.
 */
#define XXH_STATIC_LINKING_ONLY /* a copy of a hash state */
#include "lib/base/xxh3.h"
#include <stdlib.h>
#include <string.h>

#include "server/cold/cold_segment_impl.h"

/* First room for pointers to chunks. */
#define CHUNK_ROOM_MIN 8u

_Static_assert(KVARN_COLD_SEGMENT_BYTES_MAX / KVD_SEGMENT_BLOCK / COLD_INDEX_CHUNK_ENTRIES + 4 <
                   KVD_FILE_VECS_MAX,
    "an index and its ends are one write");

static int hash_start(struct cold_segment *cold, struct cold_index *index)
{
    if (index->hash != NULL) {
        return 0;
    }
    if (kvd_budget_charge(cold->budget, KVD_BUDGET_COLD, sizeof(XXH3_state_t)) != 0) {
        return KVARN_ENOMEM;
    }
    index->hash = XXH3_createState();
    if (index->hash == NULL) {
        kvd_budget_release(cold->budget, KVD_BUDGET_COLD, sizeof(XXH3_state_t));
        return KVARN_ENOMEM;
    }
    (void)XXH3_64bits_reset(index->hash);
    return 0;
}

/* Room for one more pointer. */
static int room_grow(struct cold_segment *cold, struct cold_index *index)
{
    uint32_t room = index->chunk_room == 0 ? CHUNK_ROOM_MIN : 2 * index->chunk_room;

    if (index->chunk_count < index->chunk_room) {
        return 0;
    }
    uint8_t **chunks = kvd_segment_alloc(cold, room * sizeof(uint8_t *));
    if (chunks == NULL) {
        return KVARN_ENOMEM;
    }
    if (index->chunk_count > 0) {
        memcpy(chunks, index->chunks, index->chunk_count * sizeof(uint8_t *));
    }
    kvd_segment_free(cold, index->chunks, index->chunk_room * sizeof(uint8_t *));
    index->chunks = chunks;
    index->chunk_room = room;
    return 0;
}

void kvd_segment_index_spare(struct cold_segment *cold)
{
    if (cold->index_spare == NULL) {
        cold->index_spare = kvd_segment_alloc(cold, COLD_INDEX_CHUNK_BYTES);
    }
}

static uint8_t *chunk_take(struct cold_segment *cold)
{
    uint8_t *chunk = kvd_segment_alloc(cold, COLD_INDEX_CHUNK_BYTES);

    if (chunk == NULL) {
        chunk = cold->index_spare;
        cold->index_spare = NULL;
    }
    return chunk;
}

static int chunk_add(struct cold_segment *cold, struct cold_index *index)
{
    int err = hash_start(cold, index);

    err = err != 0 ? err : room_grow(cold, index);
    uint8_t *chunk = err != 0 ? NULL : chunk_take(cold);
    if (chunk == NULL) {
        return KVARN_ENOMEM;
    }
    index->chunks[index->chunk_count++] = chunk;
    return 0;
}

int kvd_segment_index_add(struct cold_segment *cold, struct cold_file *file,
    const struct kvd_record_header *header, uint64_t offset)
{
    struct cold_index *index = &file->index;
    uint32_t at = (uint32_t)(index->count % COLD_INDEX_CHUNK_ENTRIES);

    if (at == 0 && index->count / COLD_INDEX_CHUNK_ENTRIES == index->chunk_count) {
        int err = chunk_add(cold, index);
        if (err != 0) {
            return err;
        }
    }
    uint8_t *entry = index->chunks[index->chunk_count - 1] + (size_t)at * KVD_INDEX_ENTRY_BYTES;
    kvd_index_entry_encode(header, file->salt, offset, entry);
    (void)XXH3_64bits_update(index->hash, entry, KVD_INDEX_ENTRY_BYTES);
    index->count++;
    return 0;
}

void kvd_segment_index_fini(struct cold_segment *cold, struct cold_index *index)
{
    for (uint32_t i = 0; i < index->chunk_count; i++) {
        kvd_segment_free(cold, index->chunks[i], COLD_INDEX_CHUNK_BYTES);
    }
    kvd_segment_free(cold, index->chunks, index->chunk_room * sizeof(uint8_t *));
    if (index->hash != NULL) {
        (void)XXH3_freeState(index->hash);
        kvd_budget_release(cold->budget, KVD_BUDGET_COLD, sizeof(XXH3_state_t));
    }
    *index = (struct cold_index){0};
}

unsigned kvd_segment_index_vecs(struct cold_segment *cold, const struct cold_file *file,
    uint8_t **ret_block, uint64_t *ret_bytes)
{
    const struct cold_index *index = &file->index;
    uint64_t entry_bytes = index->count * KVD_INDEX_ENTRY_BYTES;
    uint64_t bytes = kvd_segment_index_bytes(index->count);
    size_t front_bytes = (size_t)kvd_record_body_offset(0);
    size_t back_bytes = (size_t)(bytes - front_bytes - entry_bytes); /* zeros, then the footer */
    uint8_t *block = calloc(1, front_bytes + back_bytes);
    struct iovec *vecs = cold->write_vecs;
    unsigned count = 0;

    if (block == NULL) {
        return 0;
    }
    struct kvd_record_header header = {.type = KVD_COLD_INDEX,
        .ordinal = file->ordinal_next,
        .durable_ordinal = file->durable_ordinal,
        .body_bytes = entry_bytes,
        .raw_bytes = entry_bytes,
        .head_hash = XXH3_64bits("", 0),
        .body_hash = index->hash != NULL ? XXH3_64bits_digest(index->hash) : XXH3_64bits("", 0)};
    struct kvd_segment_footer footer = {.index_offset = file->end,
        .index_bytes = bytes - KVD_SEGMENT_BLOCK,
        .number = file->number,
        .salt = file->salt,
        .tier_id = cold->tier_id};
    kvd_record_header_encode(&header, file->salt, block);
    kvd_segment_footer_encode(&footer, block + front_bytes + back_bytes - KVD_SEGMENT_BLOCK);
    vecs[count++] = (struct iovec){block, front_bytes};
    for (uint64_t left = entry_bytes; left > 0; count++) {
        size_t step = left < COLD_INDEX_CHUNK_BYTES ? (size_t)left : COLD_INDEX_CHUNK_BYTES;
        vecs[count] = (struct iovec){index->chunks[count - 1], step};
        left -= step;
    }
    vecs[count++] = (struct iovec){block + front_bytes, back_bytes};
    *ret_block = block;
    *ret_bytes = bytes;
    return count;
}
