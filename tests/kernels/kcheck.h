/*
 * kcheck: every op of kernels.def, every level this machine has, against scalar.
 *
 * A subject says how to prepare an op's input, how to run it and what agreement means. Each array
 * lies in a mapping of its own that ends in a page that may not be touched; what lies around the
 * array holds a pattern that must still be there afterwards.
 */
#ifndef KVARN_TESTS_KERNELS_KCHECK_H
#define KVARN_TESTS_KERNELS_KCHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/kernels/kernels.h"
#include "tests/support/rng.h"

/* What values look like. */
enum kck_kind {
    KCK_NORMAL,
    KCK_OUTLIER, /* normal, one of them huge */
    KCK_EQUAL,
    KCK_ZERO, /* +0 and -0 */
    KCK_TINY, /* denormal */
    KCK_HUGE, /* largest magnitudes */
    KCK_NAN,  /* normal, one NaN */
    KCK_KINDS,
};

/* One case. What does not apply is 0. */
struct kck_shape {
    uint32_t rows, cols, bits; /* of a plane, a tile, or `rows` vectors of `cols` */
    uint32_t tokens;           /* used of a tile */
    size_t count;              /* of values in a row of numbers */
    unsigned shift;            /* values by which arrays end before their guard page */
    enum kck_kind kind;
};

/* Shapes that a subject is tried with. */
enum kck_class {
    KCK_LINE,      /* 0 .. 129 values, and more */
    KCK_QUADS,     /* the same in fours: packing */
    KCK_VECTORS,   /* rotation: every head_dim */
    KCK_PLANES,    /* K and V of tiles of every head_dim and group */
    KCK_TILES,     /* the same, packed, 2 and 4 bits */
    KCK_TILE_PART, /* the same, some of the tokens */
    KCK_ROWS,      /* half rows */
};

#define KCK_IN   8
#define KCK_OUT  4
#define KCK_SIDE 2 /* scalar, and what is checked */

struct kck_buffer {
    uint8_t *base; /* owned mapping */
    uint8_t *at;   /* the array */
    size_t bytes;
};

struct kck {
    struct kck_shape shape;
    struct kvt_rng rng;
    struct kck_buffer in[KCK_IN];
    struct kck_buffer out[KCK_SIDE][KCK_OUT];
    double tolerance;
};

struct kck_subject {
    const char *op;
    enum kck_class class;
    void (*prepare)(struct kck *k); /* fills k->in and places k->out */
    void (*run)(const struct kvarn__kernels *kernels, struct kck *k, int side);
    bool (*agree)(struct kck *k);
};

/* The subjects, one for each op, in no order. */
extern const struct kck_subject kck_codec_subjects[];
extern const size_t kck_codec_count;
extern const struct kck_subject kck_attention_subjects[];
extern const size_t kck_attention_count;

/* Place an array of `count` values of `size` bytes; its contents are the pattern. */
void *kck_in(struct kck *k, int slot, size_t count, size_t size);

/* The same for an output, on both sides. */
void kck_out(struct kck *k, int slot, size_t count, size_t size);

/* Fill with values of the shape's kind, at most `most` in magnitude where that is above 0. */
void kck_fill(struct kck *k, float *x, size_t count, float most);

/* As kck_fill(), rounded to half. */
void kck_fill_half(struct kck *k, uint16_t *x, size_t count, float most);

/*
 * Whether an output's floats agree where sums of terms of about `terms` may cancel: the tolerance
 * is taken of that if it is more than the largest output.
 */
bool kck_sums_agree(const struct kck *k, int slot, double terms);

/* Largest magnitude of an array of floats or halves. */
double kck_most(const struct kck_buffer *buffer, bool is_half);

/* Whether an output's floats (halves) agree within the tolerance; NaN agrees with NaN. */
bool kck_floats_agree(const struct kck *k, int slot);
bool kck_halves_agree(const struct kck *k, int slot);
bool kck_bytes_agree(const struct kck *k, int slot);

#endif
