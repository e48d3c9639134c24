/*
 * Reuse model: a watched sample of keys, their times and uses by age, and the index made of them.
 *
 * Owner: eviction policy. Thread: loop only.
 */
#include "server/evict/reuse_model.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"

#define AGE_SHIFT       24 /* the first step ends at 2^24 ns, 16.8 ms */
#define COUNTED_PER_USE 4  /* samples whose time is brought up to date with each use */
#define USES_PER_LEARN  64 /* one class is learnt anew after so many uses */
#define ALL_CLASSES     KVD_REUSE_CLASSES
#define FADE            0.99f

/*
 * Beliefs before anything was seen, weighted as so many uses seen: a class is like all classes; the
 * rate of all falls as 1 / age from what it is one step earlier, but not below a share of
 * PRIOR_SHARE / age, at which 0.3 of what has rested for a time t is used again before 2.7 t.
 * Chosen on the traces of kvarn-bench evict.
 */
#define PRIOR_USES_CLASS 8.0f
#define PRIOR_USES_ALL   4.0f
#define PRIOR_FLOOR      0.03f
#define PRIOR_SHARE      0.3f

/* Any bit of a key may be weak; this spreads it over all (the finaliser of MurmurHash3). */
static uint64_t key_hash(uint64_t key)
{
    key ^= key >> 33;
    key *= UINT64_C(0xff51afd7ed558ccd);
    key ^= key >> 33;
    key *= UINT64_C(0xc4ceb9fe1a85ec53);
    return key ^ (key >> 33);
}

/* Step 0 is below 2^AGE_SHIFT ns; four steps an octave from there on. */
static unsigned age_idx(uint64_t age_ns)
{
    uint64_t steps = age_ns >> (AGE_SHIFT - 2);

    if (steps < 4) {
        return 0;
    }
    unsigned octave = 61u - (unsigned)__builtin_clzll(steps);
    unsigned idx = 1 + 4 * octave + (unsigned)((steps >> octave) & 3);
    return idx < KVD_REUSE_AGES ? idx : KVD_REUSE_AGES - 1;
}

/* Where a step begins, in ns. */
static uint64_t age_first_ns(unsigned idx)
{
    if (idx == 0) {
        return 0;
    }
    return (uint64_t)(4 + (idx - 1) % 4) << (AGE_SHIFT - 2 + (idx - 1) / 4);
}

static float seconds_of(uint64_t ns)
{
    return (float)ns * 1e-9f;
}

static bool is_watched(const struct kvd_reuse_model *model, uint64_t hash)
{
    return model->mask_bits == 0 || hash >> (64 - model->mask_bits) == 0;
}

/* Likely rates of use by age, uses a second. */
static void rates_learn(
    const struct kvd_reuse_model *model, unsigned class_idx, float ret[KVD_REUSE_AGES])
{
    const struct kvd_reuse_class *all = &model->classes[ALL_CLASSES];
    const struct kvd_reuse_class *class = &model->classes[class_idx];
    float before = PRIOR_SHARE / seconds_of(age_first_ns(1));

    for (unsigned a = 0; a < KVD_REUSE_AGES; a++) {
        float age = seconds_of(age_first_ns(a + 1));
        float guess = before * (age - model->widths[a]) / age;
        float least = PRIOR_FLOOR * PRIOR_SHARE / age;
        guess = guess < least ? least : guess;
        float rate = (all->uses[a] + PRIOR_USES_ALL) / (all->seconds[a] + PRIOR_USES_ALL / guess);
        before = rate;
        if (class_idx != ALL_CLASSES) {
            rate =
                (class->uses[a] + PRIOR_USES_CLASS) / (class->seconds[a] + PRIOR_USES_CLASS / rate);
        }
        ret[a] = rate;
    }
}

/* Gittins' index of rates: for each age the best rate that keeping on for some time gives. */
static void worth_learn(
    const struct kvd_reuse_model *model, const float rates[KVD_REUSE_AGES], float *ret)
{
    float use_share[KVD_REUSE_AGES], mean_seconds[KVD_REUSE_AGES];

    for (unsigned a = 0; a < KVD_REUSE_AGES; a++) {
        use_share[a] = 1.0f - expf(-rates[a] * model->widths[a]);
        mean_seconds[a] = use_share[a] / rates[a];
    }
    for (unsigned a = 0; a < KVD_REUSE_AGES; a++) {
        float left = 1.0f, uses = 0.0f, seconds = 0.0f, best = 0.0f;
        for (unsigned b = a; b < KVD_REUSE_AGES && left > 1e-4f; b++) {
            uses += left * use_share[b];
            seconds += left * mean_seconds[b];
            left *= 1.0f - use_share[b];
            best = uses > best * seconds ? uses / seconds : best;
        }
        ret[a] = best;
    }
}

/* How many of the uses that were seen came at this age or later. */
static void evidence_learn(struct kvd_reuse_model *model)
{
    float uses = 0.0f;

    for (unsigned a = KVD_REUSE_AGES; a-- > 0;) {
        uses += model->classes[ALL_CLASSES].uses[a];
        model->evidence[a] = uses;
    }
}

static void class_learn(struct kvd_reuse_model *model, unsigned class_idx)
{
    struct kvd_reuse_class *class = &model->classes[class_idx];
    float rates[KVD_REUSE_AGES];

    rates_learn(model, class_idx, rates);
    worth_learn(model, rates, class->worth);
    if (class_idx == ALL_CLASSES) {
        evidence_learn(model);
    }
    for (unsigned a = 0; a < KVD_REUSE_AGES; a++) {
        class->uses[a] *= FADE;
        class->seconds[a] *= FADE;
    }
}

int kvd_reuse_model_init(struct kvd_reuse_model *model)
{
    memset(model, 0, sizeof(*model));
    model->samples = calloc(KVD_REUSE_SAMPLES_MAX, sizeof(*model->samples));
    model->buckets = malloc(KVD_REUSE_SAMPLES_MAX * sizeof(*model->buckets));
    if (model->samples == NULL || model->buckets == NULL) {
        kvd_reuse_model_fini(model);
        return KVARN_ENOMEM;
    }
    for (int32_t i = 0; i < KVD_REUSE_SAMPLES_MAX; i++) {
        model->buckets[i] = -1;
        model->samples[i].next = i + 1 < KVD_REUSE_SAMPLES_MAX ? i + 1 : -1;
    }
    for (unsigned a = 0; a < KVD_REUSE_AGES; a++) {
        model->widths[a] = seconds_of(age_first_ns(a + 1) - age_first_ns(a));
    }
    for (unsigned c = 0; c <= ALL_CLASSES; c++) {
        class_learn(model, c);
    }
    return 0;
}

void kvd_reuse_model_fini(struct kvd_reuse_model *model)
{
    free(model->samples);
    free(model->buckets);
    memset(model, 0, sizeof(*model));
}

uint64_t kvd_reuse_model_bytes(void)
{
    return sizeof(struct kvd_reuse_model) +
           KVD_REUSE_SAMPLES_MAX * (sizeof(struct kvd_reuse_sample) + sizeof(int32_t));
}

static void seconds_add(struct kvd_reuse_model *model, unsigned class_idx, unsigned a, uint64_t ns)
{
    model->classes[class_idx].seconds[a] += seconds_of(ns);
    model->classes[ALL_CLASSES].seconds[a] += seconds_of(ns);
}

/* Count the time that a sample has rested since it was last looked at. */
static void sample_count(
    struct kvd_reuse_model *model, struct kvd_reuse_sample *sample, uint64_t age_ns)
{
    unsigned a = age_idx(sample->counted_ns);

    while (sample->counted_ns < age_ns) {
        uint64_t end_ns = a + 1 < KVD_REUSE_AGES ? age_first_ns(a + 1) : UINT64_MAX;
        end_ns = end_ns < age_ns ? end_ns : age_ns;
        seconds_add(model, sample->class_idx, a, end_ns - sample->counted_ns);
        sample->counted_ns = end_ns;
        a++;
    }
}

static int32_t *bucket_of(struct kvd_reuse_model *model, uint64_t hash)
{
    return &model->buckets[hash % KVD_REUSE_SAMPLES_MAX];
}

static void sample_free(struct kvd_reuse_model *model, int32_t idx)
{
    struct kvd_reuse_sample *sample = &model->samples[idx];
    int32_t *at = bucket_of(model, key_hash(sample->key));

    while (*at != idx) {
        KVARN_ASSERT(*at >= 0);
        at = &model->samples[*at].next;
    }
    *at = sample->next;
    sample->is_live = 0;
    sample->next = model->free_first;
    model->free_first = idx;
    model->live_count--;
}

/* Watch half as many keys from now on. Some 10 us, rarely. */
static void samples_halve(struct kvd_reuse_model *model)
{
    model->mask_bits++;
    for (int32_t i = 0; i < KVD_REUSE_SAMPLES_MAX; i++) {
        struct kvd_reuse_sample *sample = &model->samples[i];
        if (sample->is_live && !is_watched(model, key_hash(sample->key))) {
            sample_free(model, i);
        }
    }
}

/* Bring the next samples up to date; one that has rested beyond all ages is forgotten. */
static void samples_count_some(struct kvd_reuse_model *model, uint64_t now_ns)
{
    for (unsigned n = 0; n < COUNTED_PER_USE; n++) {
        int32_t idx = (int32_t)model->cursor;
        struct kvd_reuse_sample *sample = &model->samples[idx];
        model->cursor = (model->cursor + 1) % KVD_REUSE_SAMPLES_MAX;
        if (!sample->is_live) {
            continue;
        }
        sample_count(model, sample, now_ns - sample->used_ns);
        if (sample->counted_ns > age_first_ns(KVD_REUSE_AGES - 1)) {
            sample_free(model, idx);
        }
    }
    if (model->cursor == 0 && model->mask_bits > 0 &&
        model->live_count < KVD_REUSE_SAMPLES_MAX / 4) {
        model->mask_bits--;
    }
}

static struct kvd_reuse_sample *sample_find(
    struct kvd_reuse_model *model, uint64_t hash, uint64_t key)
{
    for (int32_t i = *bucket_of(model, hash); i >= 0; i = model->samples[i].next) {
        if (model->samples[i].key == key) {
            return &model->samples[i];
        }
    }
    return NULL;
}

/* NULL when the key is no longer among the watched ones. */
static struct kvd_reuse_sample *sample_add(
    struct kvd_reuse_model *model, uint64_t hash, uint64_t key)
{
    while (model->free_first < 0) {
        samples_halve(model);
    }
    if (!is_watched(model, hash)) {
        return NULL;
    }
    int32_t idx = model->free_first;
    int32_t *bucket = bucket_of(model, hash);
    struct kvd_reuse_sample *sample = &model->samples[idx];
    model->free_first = sample->next;
    model->live_count++;
    *sample = (struct kvd_reuse_sample){.key = key, .next = *bucket, .is_live = 1};
    *bucket = idx;
    return sample;
}

void kvd_reuse_model_use(
    struct kvd_reuse_model *model, uint64_t key, unsigned class_idx, uint64_t now_ns)
{
    uint64_t hash = key_hash(key);

    KVARN_ASSERT(class_idx < KVD_REUSE_CLASSES);
    samples_count_some(model, now_ns);
    if (++model->use_count >= USES_PER_LEARN) {
        model->use_count = 0;
        class_learn(model, model->class_next);
        model->class_next = (model->class_next + 1) % (ALL_CLASSES + 1);
    }
    if (!is_watched(model, hash)) {
        return;
    }
    struct kvd_reuse_sample *sample = sample_find(model, hash, key);
    if (sample != NULL) {
        unsigned a = age_idx(now_ns - sample->used_ns);
        sample_count(model, sample, now_ns - sample->used_ns);
        model->classes[sample->class_idx].uses[a] += 1.0f;
        model->classes[ALL_CLASSES].uses[a] += 1.0f;
    } else {
        sample = sample_add(model, hash, key);
    }
    if (sample != NULL) {
        sample->class_idx = (uint8_t)class_idx;
        sample->used_ns = now_ns;
        sample->counted_ns = 0;
    }
}

float kvd_reuse_model_worth(
    const struct kvd_reuse_model *model, unsigned class_idx, uint64_t age_ns)
{
    KVARN_ASSERT(class_idx < KVD_REUSE_CLASSES);
    return model->classes[class_idx].worth[age_idx(age_ns)];
}

float kvd_reuse_model_evidence(const struct kvd_reuse_model *model, uint64_t age_ns)
{
    return model->evidence[age_idx(age_ns)];
}
