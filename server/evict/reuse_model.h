/*
 * Reuse model: learns from what happens how soon things that were used are used again, and says
 * what it is worth, a byte and second, to keep one that has rested for so long.
 *
 * Owner: eviction policy. Thread: loop only. Knows nothing of sessions.
 *
 * A sample of all keys (a share of the hash space that shrinks when there are too many) is watched
 * whether or not they are still held, so that what the policy does cannot bias what it learns. Per
 * class of things the model keeps, by age in logarithmic steps, how much time keys spent there and
 * how often they were used again there. The worth at an age is the best rate of uses a second that
 * keeping on for some time gives (Gittins' index): so a loop longer than the memory keeps a part
 * instead of nothing, and what was just used may be worth less than what is about to return. Where
 * little was seen, the rate is that of all classes, and where nothing was, it falls as 1 / age:
 * that is LRU.
 */
#ifndef KVD_REUSE_MODEL_H
#define KVD_REUSE_MODEL_H

#include <stdint.h>

#include "kvarn/err.h"

#define KVD_REUSE_CLASSES 16
/* Four an octave from 16 ms on: the last one begins at 4.2 hours. */
#define KVD_REUSE_AGES        81
#define KVD_REUSE_SAMPLES_MAX 8192

struct kvd_reuse_sample {
    uint64_t key;
    uint64_t used_ns;
    uint64_t counted_ns; /* age up to which its time is counted */
    int32_t next;        /* in its bucket, or in the free list; -1: end */
    uint8_t class_idx;
    uint8_t is_live;
};

struct kvd_reuse_class {
    float uses[KVD_REUSE_AGES];
    float seconds[KVD_REUSE_AGES];
    float worth[KVD_REUSE_AGES]; /* uses a second */
};

struct kvd_reuse_model {
    struct kvd_reuse_class classes[KVD_REUSE_CLASSES + 1]; /* the last one: all together */
    float evidence[KVD_REUSE_AGES];   /* of all: uses seen at this age or later */
    float widths[KVD_REUSE_AGES];     /* seconds */
    struct kvd_reuse_sample *samples; /* owned */
    int32_t *buckets;                 /* owned: KVD_REUSE_SAMPLES_MAX */
    int32_t free_first;
    uint32_t live_count;
    uint32_t cursor;     /* next sample whose time is counted */
    uint32_t use_count;  /* since the last class was learnt */
    uint32_t class_next; /* to be learnt */
    unsigned mask_bits;  /* keys whose hash begins with so many zeros are watched */
};

/* About 440 KiB, once. Returns 0 or KVARN_ENOMEM. */
int kvd_reuse_model_init(struct kvd_reuse_model *model) KVARN_MUST_CHECK;

/* Accepts a zeroed struct. */
void kvd_reuse_model_fini(struct kvd_reuse_model *model);

/* Memory that a model takes. */
uint64_t kvd_reuse_model_bytes(void);

/*
 * `key` was used (for the first time or again) and is of class `class_idx` from now on. `now_ns`
 * never falls. Constant time, no allocation.
 */
void kvd_reuse_model_use(
    struct kvd_reuse_model *model, uint64_t key, unsigned class_idx, uint64_t now_ns);

/* What a thing of this class that has rested for age_ns is worth: > 0, uses a second. */
float kvd_reuse_model_worth(
    const struct kvd_reuse_model *model, unsigned class_idx, uint64_t age_ns);

/*
 * Uses that the model lately saw of anything that had rested for age_ns or longer: what its word on
 * such things rests on.
 */
float kvd_reuse_model_evidence(const struct kvd_reuse_model *model, uint64_t age_ns);

#endif
