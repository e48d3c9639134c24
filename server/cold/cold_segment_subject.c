/*
 * What of each session is on disk, and how long its tombstone must stay.
 *
 * Owner: cold_segment.c. Thread: loop only.
 *
 * A tombstone may go when no record that it stands against can be found any more: each was punched
 * out or lay in a file that is gone, and that is durable. Until then it is live, and moves with
 * rewrites like any other record (SEMANTICS.md 23).
 */
#include <stdlib.h>

#include "lib/base/assert.h"
#include "server/cold/cold_segment_impl.h"

static bool is_counted(const struct kvd_record_header *header)
{
    return header->type == KVD_COLD_SESSION || header->type == KVD_COLD_TAIL ||
           header->type == KVD_COLD_SINK || header->type == KVD_COLD_MAP;
}

static struct cold_subject_list *bucket_of(struct cold_segment *cold, const struct kvd_cold_id *id)
{
    return &cold->subjects[(id->lo ^ id->hi >> 7) % COLD_SUBJECT_BUCKETS];
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
    kvd_budget_release(cold->budget, KVD_BUDGET_COLD, sizeof(*subject));
    free(subject);
}

int kvd_segment_subject_add(struct cold_segment *cold, const struct kvd_record_header *header)
{
    if (!is_counted(header)) {
        return 0;
    }
    struct cold_subject *subject = subject_find(cold, &header->id);
    if (subject == NULL) {
        if (kvd_budget_charge(cold->budget, KVD_BUDGET_COLD, sizeof(*subject)) != 0) {
            return KVARN_ENOMEM;
        }
        subject = calloc(1, sizeof(*subject));
        if (subject == NULL) {
            kvd_budget_release(cold->budget, KVD_BUDGET_COLD, sizeof(*subject));
            return KVARN_ENOMEM;
        }
        subject->id = header->id;
        LIST_INSERT_HEAD(bucket_of(cold, &header->id), subject, link);
    }
    subject->physical++;
    return 0;
}

void kvd_segment_subject_erased(struct cold_segment *cold, const struct kvd_record_header *header)
{
    if (!is_counted(header)) {
        return;
    }
    struct cold_subject *subject = subject_find(cold, &header->id);
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
    struct cold_subject *subject = subject_find(cold, &tombstone->header.id);

    if (subject == NULL) {
        kvd_segment_forget(&cold->base, tombstone); /* nothing is left that it stands against */
        return;
    }
    struct kvd_cold_record *other = subject->tombstone;
    bool is_newer = other == NULL || other->header.sequence < tombstone->header.sequence;
    subject->tombstone = is_newer ? tombstone : other;
    kvd_segment_forget(&cold->base, is_newer ? other : tombstone);
}

void kvd_segment_subjects_fini(struct cold_segment *cold)
{
    struct cold_subject *subject, *next;

    for (unsigned i = 0; i < COLD_SUBJECT_BUCKETS; i++) {
        LIST_FOREACH_SAFE(subject, &cold->subjects[i], link, next)
        {
            subject_free(cold, subject);
        }
    }
}
