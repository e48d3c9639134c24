/*
 * kcheck: see kcheck.h.
 *
 * usage: kcheck [--bench] [OP]... Exit: 0 all agree, 1 a case failed or none was tried, 2 usage.
 */
#include "tests/kernels/kcheck.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/base/assert.h"
#include "tests/bench/bench.h"

#define ROOM_BYTES   ((size_t)2 << 20) /* of an array */
#define PATTERN      0xa5
#define AROUND_BYTES 256 /* looked at before an array */
#define SAY_MAX      5   /* failures told of an op */
#define BENCH_MS     5.0

struct tally {
    unsigned long cases, failed;
};

static void buffer_init(struct kck_buffer *buffer)
{
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    uint8_t *base = mmap(
        NULL, ROOM_BYTES + page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    KVARN_ASSERT(base != MAP_FAILED);
    int err = mprotect(base + ROOM_BYTES, page_bytes, PROT_NONE);
    KVARN_ASSERT(err == 0);
    *buffer = (struct kck_buffer){.base = base, .at = base + ROOM_BYTES};
}

static void buffer_place(struct kck_buffer *buffer, size_t count, size_t size, unsigned shift)
{
    size_t bytes = count * size, after = shift * size;

    KVARN_ASSERT(bytes + after + AROUND_BYTES <= ROOM_BYTES);
    buffer->bytes = bytes;
    buffer->at = buffer->base + ROOM_BYTES - after - bytes;
    memset(buffer->at - AROUND_BYTES, PATTERN, AROUND_BYTES + bytes + after);
}

/* Whether nothing was written around the array. */
static bool buffer_is_intact(const struct kck_buffer *buffer)
{
    const uint8_t *end = buffer->base + ROOM_BYTES;

    for (const uint8_t *p = buffer->at - AROUND_BYTES; p < buffer->at; p++) {
        if (*p != PATTERN) {
            return false;
        }
    }
    for (const uint8_t *p = buffer->at + buffer->bytes; p < end; p++) {
        if (*p != PATTERN) {
            return false;
        }
    }
    return true;
}

void *kck_in(struct kck *k, int slot, size_t count, size_t size)
{
    buffer_place(&k->in[slot], count, size, k->shape.shift);
    return k->in[slot].at;
}

void kck_out(struct kck *k, int slot, size_t count, size_t size)
{
    for (int side = 0; side < KCK_SIDE; side++) {
        buffer_place(&k->out[side][slot], count, size, k->shape.shift);
    }
}

/* Drawn from again and again: making each anew would take an emulator most of its time. */
#define NORMALS 8192
static float normals[NORMALS];

static void normals_init(void)
{
    struct kvt_rng rng = {.state = 5};

    for (size_t i = 0; i < NORMALS; i++) {
        normals[i] = (float)kvt_rng_normal(&rng);
    }
}

/* Denormal and huge values as a half has them where the array is one of halves. */
static float value_make(struct kck *k, float tiny, float huge)
{
    float x = normals[kvt_rng_below(&k->rng, NORMALS)];

    switch (k->shape.kind) {
    case KCK_EQUAL:
        return 2.5f;
    case KCK_ZERO:
        return x < 0 ? -0.0f : 0.0f;
    case KCK_TINY:
        return x * tiny;
    case KCK_HUGE:
        return x < 0 ? -huge : huge;
    case KCK_NORMAL:
    case KCK_OUTLIER:
    case KCK_NAN:
    case KCK_KINDS:
        break;
    }
    return x;
}

static void fill(struct kck *k, float *x, size_t count, float tiny, float huge)
{
    for (size_t i = 0; i < count; i++) {
        x[i] = value_make(k, tiny, huge);
    }
    if (count > 0 && (k->shape.kind == KCK_OUTLIER || k->shape.kind == KCK_NAN)) {
        size_t at = kvt_rng_below(&k->rng, (uint32_t)count);
        x[at] = k->shape.kind == KCK_NAN ? NAN : fminf(1e4f, huge);
    }
}

void kck_fill(struct kck *k, float *x, size_t count, float most)
{
    fill(k, x, count, 1e-40f, most > 0 ? most : FLT_MAX);
}

void kck_fill_half(struct kck *k, uint16_t *x, size_t count, float most)
{
    static float values[ROOM_BYTES / sizeof(uint16_t)];

    KVARN_ASSERT(count <= sizeof(values) / sizeof(values[0]));
    fill(k, values, count, 1e-7f, most > 0 ? most : KVARN_HALF_MAX);
    kvarn__kernels_of(KVARN__ISA_scalar)->half_from_f32(x, values, count);
}

static bool is_close(float a, float b, double limit)
{
    if (isnan(a) || isnan(b)) {
        return isnan(a) && isnan(b);
    }
    return a == b || fabs((double)a - (double)b) <= limit;
}

static bool floats_agree(
    const float *want, const float *got, size_t count, double tolerance, double most)
{
    for (size_t i = 0; i < count; i++) {
        most = isfinite(want[i]) ? fmax(most, fabs((double)want[i])) : most;
    }
    for (size_t i = 0; i < count; i++) {
        if (!is_close(got[i], want[i], tolerance * most)) {
            return false;
        }
    }
    return true;
}

bool kck_sums_agree(const struct kck *k, int slot, double terms)
{
    const struct kck_buffer *want = &k->out[0][slot], *got = &k->out[1][slot];

    return floats_agree((const void *)want->at, (const void *)got->at, want->bytes / sizeof(float),
        k->tolerance, terms);
}

bool kck_floats_agree(const struct kck *k, int slot)
{
    return kck_sums_agree(k, slot, 0);
}

double kck_most(const struct kck_buffer *buffer, bool is_half)
{
    static float values[ROOM_BYTES / sizeof(uint16_t)];
    const struct kvarn__kernels *scalar = kvarn__kernels_of(KVARN__ISA_scalar);
    size_t count = buffer->bytes / (is_half ? sizeof(uint16_t) : sizeof(float));
    float most;

    if (is_half) {
        scalar->half_to_f32(values, (const void *)buffer->at, count);
    } else {
        memcpy(values, buffer->at, buffer->bytes);
    }
    scalar->abs_max(values, count, &most);
    return (double)most;
}

bool kck_halves_agree(const struct kck *k, int slot)
{
    static float want[ROOM_BYTES / 2], got[ROOM_BYTES / 2];
    const struct kvarn__kernels *scalar = kvarn__kernels_of(KVARN__ISA_scalar);
    size_t count = k->out[0][slot].bytes / sizeof(uint16_t);

    scalar->half_to_f32(want, (const void *)k->out[0][slot].at, count);
    scalar->half_to_f32(got, (const void *)k->out[1][slot].at, count);
    return floats_agree(want, got, count, k->tolerance, 0);
}

bool kck_bytes_agree(const struct kck *k, int slot)
{
    return memcmp(k->out[0][slot].at, k->out[1][slot].at, k->out[0][slot].bytes) == 0;
}

static bool is_all_intact(const struct kck *k)
{
    bool intact = true;

    for (int i = 0; i < KCK_IN; i++) {
        intact &= buffer_is_intact(&k->in[i]);
    }
    for (int i = 0; i < KCK_OUT; i++) {
        intact &= buffer_is_intact(&k->out[0][i]) && buffer_is_intact(&k->out[1][i]);
    }
    return intact;
}

static void arrays_clear(struct kck *k)
{
    for (int i = 0; i < KCK_IN; i++) {
        buffer_place(&k->in[i], 0, 1, 0);
    }
    for (int i = 0; i < KCK_OUT; i++) {
        kck_out(k, i, 0, 1);
    }
}

static void case_run(struct kck *k, const struct kck_subject *subject,
    const struct kvarn__kernels *kernels, struct kck_shape shape, struct tally *tally)
{
    arrays_clear(k);
    k->shape = shape;
    k->rng.state = shape.count + 1000003 * shape.rows + 10007 * shape.cols + 101 * shape.kind;
    subject->prepare(k);
    subject->run(kvarn__kernels_of(KVARN__ISA_scalar), k, 0);
    subject->run(kernels, k, 1);
    bool intact = is_all_intact(k);
    bool agree = subject->agree(k);
    tally->cases++;
    if (intact && agree) {
        return;
    }
    if (tally->failed++ < SAY_MAX) {
        printf("FAIL %s %s: %s; rows %u cols %u bits %u tokens %u count %zu shift %u kind %d\n",
            kernels->isa, subject->op, intact ? "differs" : "wrote beyond", shape.rows, shape.cols,
            shape.bits, shape.tokens, shape.count, shape.shift, (int)shape.kind);
    }
}

/* All kinds and two alignments of one shape. */
static void shape_run(struct kck *k, const struct kck_subject *subject,
    const struct kvarn__kernels *kernels, struct kck_shape shape, struct tally *tally)
{
    for (int kind = 0; kind < KCK_KINDS; kind++) {
        for (unsigned shift = 0; shift < 4; shift += 3) {
            shape.kind = (enum kck_kind)kind;
            shape.shift = shift;
            case_run(k, subject, kernels, shape, tally);
        }
    }
}

static void line_run(struct kck *k, const struct kck_subject *subject,
    const struct kvarn__kernels *kernels, struct tally *tally)
{
    const size_t step = subject->class == KCK_QUADS ? 4 : 1;

    for (size_t count = 0; count <= 260; count += count < 130 || step == 4 ? step : 13) {
        for (uint32_t bits = 2; bits <= (step == 4 ? 4u : 2u); bits += 2) {
            shape_run(k, subject, kernels, (struct kck_shape){.count = count, .bits = bits}, tally);
        }
    }
}

static const uint32_t head_dims[] = {8, 16, 24, 64, 80, 96, 128, 192, 256, 512};

static void vectors_run(struct kck *k, const struct kck_subject *subject,
    const struct kvarn__kernels *kernels, struct tally *tally)
{
    for (size_t d = 0; d < sizeof(head_dims) / sizeof(head_dims[0]); d++) {
        for (uint32_t rows = 0; rows <= 129; rows += rows < 4 ? 1 : 25) {
            struct kck_shape shape = {.rows = rows, .cols = head_dims[d], .tokens = rows};
            shape_run(k, subject, kernels, shape, tally);
        }
    }
}

/* K [dim][group] and V [group][dim]. */
static void planes_run(struct kck *k, const struct kck_subject *subject,
    const struct kvarn__kernels *kernels, struct tally *tally)
{
    for (size_t d = 0; d < sizeof(head_dims) / sizeof(head_dims[0]); d++) {
        for (int variant = 0; variant < 8; variant++) {
            uint32_t group = variant & 1 ? 64 : 128;
            bool is_v = (variant & 2) != 0;
            struct kck_shape shape = {.rows = is_v ? group : head_dims[d],
                .cols = is_v ? head_dims[d] : group,
                .bits = variant & 4 ? 4 : 2,
                .tokens = group};
            if (subject->class != KCK_TILE_PART) {
                shape_run(k, subject, kernels, shape, tally);
                continue;
            }
            for (uint32_t left = 0; left < group; left = 2 * left + 1) {
                shape.tokens = group - left;
                shape_run(k, subject, kernels, shape, tally);
            }
        }
    }
}

static struct tally subject_run(
    struct kck *k, const struct kck_subject *subject, const struct kvarn__kernels *kernels)
{
    struct tally tally = {0};

    switch (subject->class) {
    case KCK_LINE:
    case KCK_QUADS:
        line_run(k, subject, kernels, &tally);
        break;
    case KCK_VECTORS:
    case KCK_ROWS:
        vectors_run(k, subject, kernels, &tally);
        break;
    case KCK_PLANES:
    case KCK_TILES:
    case KCK_TILE_PART:
        planes_run(k, subject, kernels, &tally);
        break;
    }
    return tally;
}

static const struct kck_subject *subject_find(const char *op)
{
    for (size_t i = 0; i < kck_codec_count; i++) {
        if (strcmp(kck_codec_subjects[i].op, op) == 0) {
            return &kck_codec_subjects[i];
        }
    }
    for (size_t i = 0; i < kck_attention_count; i++) {
        if (strcmp(kck_attention_subjects[i].op, op) == 0) {
            return &kck_attention_subjects[i];
        }
    }
    return NULL;
}

/* The rows of kernels.def. */
struct row {
    enum kvarn__isa isa;
    const char *op;
    double tolerance;
};

static const struct row rows[] = {
#define KVARN_KERNEL(of, op, function, tolerance) {KVARN__ISA_##of, #op, tolerance},
#include "lib/kernels/kernels.def"
#undef KVARN_KERNEL
};

#define ROW_COUNT (sizeof(rows) / sizeof(rows[0]))

struct timed {
    struct kck *k;
    const struct kck_subject *subject;
    const struct kvarn__kernels *kernels;
};

static void timed_run(void *arg)
{
    struct timed *timed = arg;

    timed->subject->run(timed->kernels, timed->k, 1);
}

/* One op at D 128, G 128, 2 bits, K's shape, on the row's level. */
static void row_bench(struct kck *k, const struct row *row, const struct kck_subject *subject)
{
    struct timed timed = {k, subject, kvarn__kernels_of(row->isa)};
    struct kvb_case item = {.run = timed_run, .arg = &timed};

    arrays_clear(k);
    k->shape =
        (struct kck_shape){.rows = 128, .cols = 128, .bits = 2, .tokens = 128, .count = 128 * 128};
    k->rng.state = 1;
    subject->prepare(k);
    subject->run(kvarn__kernels_of(KVARN__ISA_scalar), k, 0);
    kvb_time(&item, 1, BENCH_MS);
    printf("%-20s %-8s %10.3f us [%8.3f %8.3f]\n", row->op, timed.kernels->isa,
        1e6 * item.stats.median, 1e6 * item.stats.low, 1e6 * item.stats.high);
}

static struct tally row_check(
    struct kck *k, const struct row *row, const struct kck_subject *subject)
{
    k->tolerance = row->tolerance;
    struct tally tally = subject_run(k, subject, kvarn__kernels_of(row->isa));
    printf("%-4s %-20s %-8s %lu cases, %lu failed\n", tally.failed == 0 ? "ok" : "FAIL", row->op,
        kvarn__kernels_of(row->isa)->isa, tally.cases, tally.failed);
    return tally;
}

static bool is_asked(const char *op, int count, char **names)
{
    for (int i = 0; i < count; i++) {
        if (strcmp(names[i], op) == 0) {
            return true;
        }
    }
    return count == 0;
}

/* Whether only scalar's kernels are here of what was asked: nothing is then left to compare. */
static bool is_scalar_enough(int count, char **names)
{
    bool is_known = false;

    for (size_t i = 0; i < ROW_COUNT; i++) {
        if (!is_asked(rows[i].op, count, names)) {
            continue;
        }
        is_known = true;
        if (rows[i].isa != KVARN__ISA_scalar && kvarn__kernels_of(rows[i].isa) != NULL) {
            return false;
        }
    }
    return is_known;
}

int main(int argc, char **argv)
{
    static struct kck k;
    bool is_bench = argc > 1 && strcmp(argv[1], "--bench") == 0;
    int names_at = is_bench ? 2 : 1;
    struct tally all = {0};
    unsigned left_out = 0;

    normals_init();
    for (int i = 0; i < KCK_IN; i++) {
        buffer_init(&k.in[i]);
    }
    for (int i = 0; i < KCK_SIDE * KCK_OUT; i++) {
        buffer_init(&k.out[i / KCK_OUT][i % KCK_OUT]);
    }
    for (size_t i = 0; i < ROW_COUNT; i++) {
        const struct kck_subject *subject = subject_find(rows[i].op);
        KVARN_ASSERT(subject != NULL); /* an op of kernels.def that nobody checks */
        if (kvarn__kernels_of(rows[i].isa) == NULL) {
            left_out++;
        } else if (!is_asked(rows[i].op, argc - names_at, argv + names_at)) {
            continue;
        } else if (is_bench) {
            row_bench(&k, &rows[i], subject);
        } else if (rows[i].isa != KVARN__ISA_scalar) {
            struct tally tally = row_check(&k, &rows[i], subject);
            all.cases += tally.cases;
            all.failed += tally.failed;
        }
    }
    if (is_bench) {
        return 0;
    }
    printf("kcheck: %lu cases, %lu failed; %u kernels are for levels that are not here\n",
        all.cases, all.failed, left_out);
    bool is_enough = all.cases > 0 || is_scalar_enough(argc - names_at, argv + names_at);
    return all.failed == 0 && is_enough ? 0 : 1;
}
