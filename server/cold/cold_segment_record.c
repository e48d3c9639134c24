/*
 * Records of segment files: what is known of each in memory, and the lists that each file keeps of
 * them by what they are, so that whoever looks for one of a kind finds the first at once.
 *
 * Owner: cold_segment.c. Thread: loop only.
 */
#include "lib/base/assert.h"
#include "server/cold/cold_segment_impl.h"

struct kvd_cold_record *kvd_segment_record_create(struct cold_segment *cold)
{
    return kvd_segment_alloc(cold, sizeof(struct kvd_cold_record));
}

void kvd_segment_record_describe(
    struct kvd_cold_record *record, const struct kvd_record_header *header)
{
    KVARN_ASSERT(record->state == COLD_RECORD_NOWHERE);
    record->id = header->id;
    record->sequence = header->sequence;
    record->tenant_id = header->tenant_id;
    record->head_bytes = header->head_bytes;
    record->body_bytes = (uint32_t)header->body_bytes;
    record->raw_bytes = (uint32_t)header->raw_bytes;
    record->type = header->type;
    record->flags = header->flags;
}

struct kvd_record_header kvd_segment_record_header(const struct kvd_cold_record *record)
{
    return (struct kvd_record_header){.type = record->type,
        .flags = record->flags,
        .tenant_id = record->tenant_id,
        .id = record->id,
        .sequence = record->sequence,
        .head_bytes = record->head_bytes,
        .body_bytes = record->body_bytes,
        .raw_bytes = record->raw_bytes}; /* of a dead one, whatever is there */
}

uint64_t kvd_segment_record_bytes(const struct kvd_cold_record *record)
{
    struct kvd_record_header header = kvd_segment_record_header(record);

    return kvd_record_file_bytes(&header);
}

/* Put it into its file's list of its state, and count it there. */
static void record_enter(struct cold_segment *cold, struct kvd_cold_record *record)
{
    struct cold_file *file = kvd_segment_record_file(cold, record);
    uint64_t bytes = kvd_segment_record_bytes(record);

    TAILQ_INSERT_TAIL(&file->records[record->state], record, link);
    if (kvd_segment_record_is_dead(record)) {
        file->dead_bytes += bytes;
    } else {
        file->live_bytes += bytes;
        cold->stats.live_bytes += bytes;
        cold->stats.records++;
    }
}

static void record_leave(struct cold_segment *cold, struct kvd_cold_record *record)
{
    struct cold_file *file = kvd_segment_record_file(cold, record);
    uint64_t bytes = kvd_segment_record_bytes(record);

    TAILQ_REMOVE(&file->records[record->state], record, link);
    if (kvd_segment_record_is_dead(record)) {
        file->dead_bytes -= bytes;
    } else {
        file->live_bytes -= bytes;
        cold->stats.live_bytes -= bytes;
        cold->stats.records--;
    }
}

static uint32_t place_of(const struct cold_file *file, uint64_t offset)
{
    return file->slot << COLD_PLACE_BLOCK_BITS | (uint32_t)(offset / KVD_SEGMENT_BLOCK);
}

void kvd_segment_record_destroy(struct cold_segment *cold, struct kvd_cold_record *record)
{
    if (record != NULL && record->state != COLD_RECORD_NOWHERE) {
        record_leave(cold, record);
    }
    kvd_segment_free(cold, record, sizeof(*record));
}

void kvd_segment_record_list(struct cold_segment *cold, struct kvd_cold_record *record,
    struct cold_file *file, uint64_t offset)
{
    KVARN_ASSERT(record->state == COLD_RECORD_NOWHERE);
    record->place = place_of(file, offset);
    record->state = COLD_RECORD_LIVE;
    record_enter(cold, record);
}

static void record_die(struct cold_segment *cold, struct kvd_cold_record *record, uint32_t epoch)
{
    KVARN_ASSERT(record->state == COLD_RECORD_LIVE || record->state == COLD_RECORD_MOVING);
    record_leave(cold, record);
    record->state = COLD_RECORD_DEAD;
    record->dead_epoch = epoch;
    record_enter(cold, record);
}

void kvd_segment_record_kill(struct cold_segment *cold, struct kvd_cold_record *record)
{
    record_die(cold, record, cold->epoch);
    cold->dead_epoch = cold->epoch;
    kvd_segment_record_file(cold, record)->dead_epoch = cold->epoch;
}

void kvd_segment_record_kill_ghost(struct cold_segment *cold, struct kvd_cold_record *record)
{
    record_die(cold, record, cold->epoch - 2); /* no put depends on it */
}

void kvd_segment_record_set(
    struct cold_segment *cold, struct kvd_cold_record *record, enum cold_record_state state)
{
    struct cold_file *file = kvd_segment_record_file(cold, record);
    bool is_back = state == COLD_RECORD_LIVE || state == COLD_RECORD_DEAD;

    KVARN_ASSERT(
        is_back ? record->state == (uint8_t)(state + 1) : record->state + 1 == (uint8_t)state);
    TAILQ_REMOVE(&file->records[record->state], record, link);
    record->state = (uint8_t)state;
    if (is_back) {
        TAILQ_INSERT_HEAD(&file->records[state], record, link);
    } else {
        TAILQ_INSERT_TAIL(&file->records[state], record, link);
    }
}

void kvd_segment_record_swap(
    struct cold_segment *cold, struct kvd_cold_record *a, struct kvd_cold_record *ghost)
{
    uint32_t place = a->place;

    KVARN_ASSERT(kvd_segment_record_bytes(a) == kvd_segment_record_bytes(ghost));
    record_leave(cold, a);
    record_leave(cold, ghost);
    a->place = ghost->place;
    ghost->place = place;
    if (a->state == COLD_RECORD_DEAD) {
        kvd_segment_record_file(cold, a)->dead_epoch = cold->dead_epoch;
    }
    record_enter(cold, a);
    record_enter(cold, ghost);
}
