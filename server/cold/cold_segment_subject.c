/*
 * What of each session is on disk, and how long its tombstone must stay.
 *
 * Owner: cold_segment.c. Thread: loop only.
 *
 * A tombstone may go when no record that it stands against can be found any more: each was punched
 * out or lay in a file that is gone, and that is durable. Until then it is live, and moves with
 * rewrites like any other record (SEMANTICS.md 23).
 */
#include "lib/base/assert.h"
#include "server/cold/cold_segment_impl.h"

#define CHUNK_BYTES (COLD_SUBJECT_CHUNK_BUCKETS * sizeof(struct cold_subject_list))

static bool is_counted(uint8_t type)
{
    return type == KVD_COLD_SESSION || type == KVD_COLD_TAIL || type == KVD_COLD_SINK ||
           type == KVD_COLD_MAP;
}

static uint32_t hash_of(const struct kvd_cold_id *id)
{
    return (uint32_t)((id->lo ^ id->hi >> 7) * UINT64_C(0x9E3779B97F4A7C15) >> 32);
}

static struct cold_subject_list *bucket_at(struct cold_segment *cold, uint32_t idx)
{
    return &cold->subjects[idx / COLD_SUBJECT_CHUNK_BUCKETS][idx % COLD_SUBJECT_CHUNK_BUCKETS];
}

/* The largest power of two that is not above the number of buckets. */
static uint32_t base_of(uint32_t bucket_count)
{
    uint32_t base = COLD_SUBJECT_CHUNK_BUCKETS;

    while (2 * base <= bucket_count) {
        base *= 2;
    }
    return base;
}

/* Buckets from base on took over from those base below them, one after the other. */
static struct cold_subject_list *bucket_of(struct cold_segment *cold, const struct kvd_cold_id *id)
{
    uint32_t base = base_of(cold->bucket_count);
    uint32_t idx = hash_of(id) & (2 * base - 1);

    return bucket_at(cold, idx < cold->bucket_count ? idx : idx & (base - 1));
}

static int chunk_add(struct cold_segment *cold)
{
    uint32_t chunk_idx = cold->bucket_count / COLD_SUBJECT_CHUNK_BUCKETS;
    struct cold_subject_list *chunk = kvd_segment_alloc(cold, CHUNK_BYTES);

    if (chunk == NULL) {
        return KVARN_ENOMEM;
    }
    for (uint32_t i = 0; i < COLD_SUBJECT_CHUNK_BUCKETS; i++) {
        LIST_INIT(&chunk[i]);
    }
    cold->subjects[chunk_idx] = chunk;
    return 0;
}

int kvd_segment_subjects_init(struct cold_segment *cold)
{
    int err = chunk_add(cold);

    cold->bucket_count = err == 0 ? COLD_SUBJECT_CHUNK_BUCKETS : 0;
    return err;
}

/*
 * One bucket more when there are more subjects than buckets: lists stay short, and no turn pays for
 * more than one of them. Without memory they grow longer.
 */
static void table_grow(struct cold_segment *cold)
{
    uint32_t idx = cold->bucket_count;
    uint32_t base = base_of(idx);
    struct cold_subject *subject, *next;

    if (cold->subject_count <= idx || idx == COLD_SUBJECT_CHUNKS_MAX * COLD_SUBJECT_CHUNK_BUCKETS ||
        (idx % COLD_SUBJECT_CHUNK_BUCKETS == 0 && chunk_add(cold) != 0)) {
        return;
    }
    cold->bucket_count++;
    LIST_FOREACH_SAFE(subject, bucket_at(cold, idx - base), link, next)
    {
        if ((hash_of(&subject->id) & (2 * base - 1)) == idx) {
            LIST_REMOVE(subject, link);
            LIST_INSERT_HEAD(bucket_at(cold, idx), subject, link);
        }
    }
}

static struct cold_subject *subject_find(struct cold_segment *cold, const struct kvd_cold_id *id)
{
    struct cold_subject *subject;

    LIST_FOREACH(subject, bucket_of(cold, id), link)
    {
        if (subject->id.lo == id->lo && subject->id.hi == id->hi) {
            break;
        }
    }
    return subject;
}

static void subject_free(struct cold_segment *cold, struct cold_subject *subject)
{
    LIST_REMOVE(subject, link);
    cold->subject_count--;
    kvd_segment_free(cold, subject, sizeof(*subject));
}

int kvd_segment_subject_add(struct cold_segment *cold, const struct kvd_record_header *header)
{
    if (!is_counted(header->type)) {
        return 0;
    }
    struct cold_subject *subject = subject_find(cold, &header->id);
    if (subject == NULL) {
        subject = kvd_segment_alloc(cold, sizeof(*subject));
        if (subject == NULL) {
            return KVARN_ENOMEM;
        }
        subject->id = header->id;
        LIST_INSERT_HEAD(bucket_of(cold, &header->id), subject, link);
        cold->subject_count++;
        table_grow(cold);
    }
    subject->physical++;
    return 0;
}

void kvd_segment_subject_erased(
    struct cold_segment *cold, uint8_t type, const struct kvd_cold_id *id)
{
    if (!is_counted(type)) {
        return;
    }
    struct cold_subject *subject = subject_find(cold, id);
    KVARN_ASSERT(subject != NULL && subject->physical > 0);
    subject->physical--;
    if (subject->physical > 0) {
        return;
    }
    struct kvd_cold_record *tombstone = subject->tombstone;
    subject_free(cold, subject);
    if (tombstone != NULL) {
        kvd_segment_forget(&cold->base, tombstone);
    }
}

void kvd_segment_subject_bury(struct cold_segment *cold, struct kvd_cold_record *tombstone)
{
    struct cold_subject *subject = subject_find(cold, &tombstone->id);

    if (subject == NULL) {
        kvd_segment_forget(&cold->base, tombstone); /* nothing is left that it stands against */
        return;
    }
    struct kvd_cold_record *other = subject->tombstone;
    bool is_newer = other == NULL || other->sequence < tombstone->sequence;
    subject->tombstone = is_newer ? tombstone : other;
    kvd_segment_forget(&cold->base, is_newer ? other : tombstone);
}

void kvd_segment_subjects_fini(struct cold_segment *cold)
{
    struct cold_subject *subject, *next;

    for (uint32_t i = 0; i < cold->bucket_count; i++) {
        LIST_FOREACH_SAFE(subject, bucket_at(cold, i), link, next)
        {
            subject_free(cold, subject);
        }
    }
    for (uint32_t i = 0; i < COLD_SUBJECT_CHUNKS_MAX; i++) {
        kvd_segment_free(cold, cold->subjects[i], CHUNK_BYTES);
    }
}
