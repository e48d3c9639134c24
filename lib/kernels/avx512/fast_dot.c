/*
 * Fast attention's inner loops on AVX-512 VNNI: sums of codes times whole numbers.
 *
 * A step takes 16 bytes of each of 4 code rows and interleaves them, so that a dword holds the
 * bytes of one column; `vpdpbusd` then adds four code rows at once to each column. Codes are masked
 * where they are, never shifted: what lies at bit b counts 2^b times, which the caller divides out.
 * The top codes of a byte are not masked at all: the whole byte is multiplied, and what the lower
 * codes gave is subtracted at the end, exactly, since all are whole numbers.
 *
 * `vpdpbusd` multiplies unsigned by signed bytes. Signed numbers (queries) take the bytes as they
 * are. Unsigned numbers (weights) need signed bytes, which masked lower codes are; the whole byte
 * is made so by flipping its top bit, that is subtracting 128.
 *
 * Each loop is a function of its own with constant shape, so that the accumulators of 4 query rows
 * (16 registers) stay in registers.
 */
#include "lib/kernels/avx512/fast_dot.h"
#include "lib/base/assert.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))

/* How 16 bytes of 4 rows are loaded. */
enum shape {
    SHAPE_16,   /* rows of 16 bytes, side by side */
    SHAPE_LOW,  /* the lower half of rows of 32 bytes */
    SHAPE_HIGH, /* their upper half */
    SHAPE_PAIR, /* both halves at once, when few query rows leave registers for them */
    SHAPE_ROWS, /* any rows */
    SHAPE_TAIL, /* any rows, of which fewer than 16 bytes are left */
    SHAPES,
};

struct loop {
    const uint8_t *data; /* the block's first byte; LOW, HIGH, PAIR: the row's */
    size_t row_bytes;
    uint32_t steps;
    uint32_t tail;     /* TAIL: bytes left */
    const uint8_t *of; /* numbers, [rows][FAST_COUNT] */
    int32_t *dst;      /* sums of the block, [rows][FAST_COUNT] */
    struct fast_ahead *ahead;
};

/* Byte r of dword j is byte j of row r. */
static ALWAYS_INLINE __m512i interleave(__m512i rows)
{
    const __m512i first = _mm512_set_epi32(0x3f2f1f0f, 0x3e2e1e0e, 0x3d2d1d0d, 0x3c2c1c0c,
        0x3b2b1b0b, 0x3a2a1a0a, 0x39291909, 0x38281808, 0x37271707, 0x36261606, 0x35251505,
        0x34241404, 0x33231303, 0x32221202, 0x31211101, 0x30201000);

    return _mm512_permutexvar_epi8(first, rows);
}

static ALWAYS_INLINE __m512i rows_join(__m128i a, __m128i b, __m128i c, __m128i d)
{
    __m512i all = _mm512_inserti32x4(_mm512_castsi128_si512(a), b, 1);

    return _mm512_inserti32x4(_mm512_inserti32x4(all, c, 2), d, 3);
}

/* Four rows of a step, interleaved; PAIR: both halves. */
static ALWAYS_INLINE void step_load(
    const struct loop *loop, enum shape shape, const uint8_t *p, __m512i ret[2])
{
    const size_t next = loop->row_bytes;
    const __mmask16 mask = (__mmask16)(shape == SHAPE_TAIL ? (1u << loop->tail) - 1 : 0xffffu);

    if (shape == SHAPE_16) {
        ret[0] = interleave(_mm512_loadu_si512(p));
    } else if (shape == SHAPE_LOW || shape == SHAPE_HIGH || shape == SHAPE_PAIR) {
        __m512i low = _mm512_loadu_si512(p), high = _mm512_loadu_si512(p + 64);
        ret[0] = shape == SHAPE_HIGH ? interleave(_mm512_shuffle_i32x4(low, high, 0xdd))
                                     : interleave(_mm512_shuffle_i32x4(low, high, 0x88));
        ret[1] = interleave(_mm512_shuffle_i32x4(low, high, 0xdd));
    } else if (shape == SHAPE_ROWS) {
        ret[0] = interleave(
            rows_join(_mm_loadu_si128((const void *)p), _mm_loadu_si128((const void *)(p + next)),
                _mm_loadu_si128((const void *)(p + 2 * next)),
                _mm_loadu_si128((const void *)(p + 3 * next))));
    } else {
        ret[0] = interleave(rows_join(_mm_maskz_loadu_epi8(mask, p),
            _mm_maskz_loadu_epi8(mask, p + next), _mm_maskz_loadu_epi8(mask, p + 2 * next),
            _mm_maskz_loadu_epi8(mask, p + 3 * next)));
    }
}

static ALWAYS_INLINE __m512i number_load(const uint8_t *numbers)
{
    int32_t four;

    __builtin_memcpy(&four, numbers, sizeof(four));
    return _mm512_set1_epi32(four);
}

/*
 * acc += four unsigned bytes times four signed ones, in each dword. In assembly, because gcc 12
 * gives the intrinsic a new register each time: 32 moves and spills in a loop of 21 instructions.
 */
static ALWAYS_INLINE __m512i dot_add(__m512i acc, __m512i u8, __m512i s8)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u8), "v"(s8));
    return acc;
}

/* acc[planes] += codes of one interleaved register times a query row's four numbers. */
static ALWAYS_INLINE void masked_add(
    __m512i *acc, const __m512i *masked, uint32_t planes, __m512i number, int is_signed)
{
    acc[0] = is_signed ? dot_add(acc[0], masked[0], number) : dot_add(acc[0], number, masked[0]);
    acc[1] = is_signed ? dot_add(acc[1], masked[1], number) : dot_add(acc[1], number, masked[1]);
    if (planes == 4) {
        acc[2] =
            is_signed ? dot_add(acc[2], masked[2], number) : dot_add(acc[2], number, masked[2]);
        acc[3] =
            is_signed ? dot_add(acc[3], masked[3], number) : dot_add(acc[3], number, masked[3]);
    }
}

static ALWAYS_INLINE void codes_mask(__m512i x, uint32_t planes, int is_signed, __m512i *masked)
{
    const __m512i top = _mm512_set1_epi8((char)0x80);

    if (planes == 4) {
        masked[0] = _mm512_and_si512(x, _mm512_set1_epi8(0x03));
        masked[1] = _mm512_and_si512(x, _mm512_set1_epi8(0x0c));
        masked[2] = _mm512_and_si512(x, _mm512_set1_epi8(0x30));
    } else {
        masked[0] = _mm512_and_si512(x, _mm512_set1_epi8(0x0f));
    }
    masked[planes - 1] = is_signed ? x : _mm512_xor_si512(x, top);
}

/* The top codes' sum is the whole byte's less the lower codes'. */
static ALWAYS_INLINE void sums_store(const __m512i *acc, uint32_t planes, int32_t *dst)
{
    __m512i lower = acc[0];

    _mm512_storeu_si512(dst, acc[0]);
    if (planes == 4) {
        lower = _mm512_add_epi32(lower, _mm512_add_epi32(acc[1], acc[2]));
        _mm512_storeu_si512(dst + 16, acc[1]);
        _mm512_storeu_si512(dst + 32, acc[2]);
    }
    _mm512_storeu_si512(dst + 16 * (planes - 1), _mm512_sub_epi32(acc[planes - 1], lower));
}

/* Accumulators of one query row: of one block of columns, or of two. */
struct row_sums {
    __m512i of[2][4];
};

/* What a loop over steps has at hand. */
struct step {
    __m512i masked[2][4];
    const uint8_t *numbers; /* of query row 0 */
};

static ALWAYS_INLINE void row_add(struct row_sums *sums, const struct step *step, uint32_t row,
    uint32_t planes, int is_signed, enum shape shape)
{
    __m512i number = number_load(step->numbers + row * FAST_COUNT);

    masked_add(sums->of[0], step->masked[0], planes, number, is_signed);
    if (shape == SHAPE_PAIR) {
        masked_add(sums->of[1], step->masked[1], planes, number, is_signed);
    }
}

static ALWAYS_INLINE void row_store(
    const struct row_sums *sums, uint32_t planes, enum shape shape, int32_t *dst)
{
    sums_store(sums->of[0], planes, dst);
    if (shape == SHAPE_PAIR) {
        sums_store(sums->of[1], planes, dst + 16 * planes);
    }
}

/*
 * Query rows are written out one by one, not looped over: clang 14 takes arrays apart before it
 * unrolls such loops, and would keep the sums in memory.
 */
static ALWAYS_INLINE void loop_run(
    const struct loop *loop, uint32_t rows, uint32_t planes, int is_signed, enum shape shape)
{
    const uint8_t *p = loop->data;
    struct row_sums row0 = {0}, row1 = {0}, row2 = {0}, row3 = {0};
    struct step step = {.numbers = loop->of};
    struct fast_ahead ahead = *loop->ahead;
    __m512i x[2];

    for (uint32_t i = 0; i < loop->steps; i++) {
        step_load(loop, shape, p, x);
        ahead = fast_fetch(ahead, shape == SHAPE_PAIR ? 3 : 1, shape == SHAPE_PAIR);
        codes_mask(x[0], planes, is_signed, step.masked[0]);
        if (shape == SHAPE_PAIR) {
            codes_mask(x[1], planes, is_signed, step.masked[1]);
        }
        row_add(&row0, &step, 0, planes, is_signed, shape);
        if (rows > 1) {
            row_add(&row1, &step, 1, planes, is_signed, shape);
        }
        if (rows > 2) {
            row_add(&row2, &step, 2, planes, is_signed, shape);
        }
        if (rows > 3) {
            row_add(&row3, &step, 3, planes, is_signed, shape);
        }
        p += 4 * loop->row_bytes;
        step.numbers += 4;
    }
    *loop->ahead = ahead;
    row_store(&row0, planes, shape, loop->dst);
    if (rows > 1) {
        row_store(&row1, planes, shape, loop->dst + FAST_COUNT);
    }
    if (rows > 2) {
        row_store(&row2, planes, shape, loop->dst + 2 * FAST_COUNT);
    }
    if (rows > 3) {
        row_store(&row3, planes, shape, loop->dst + 3 * FAST_COUNT);
    }
}

typedef void loop_fn(const struct loop *loop);

/* The loops of one kind of numbers, width and shape, for 1 to 4 query rows. */
#define LOOP(name, rows, planes, is_signed, shape)                      \
    static __attribute__((noinline)) void name(const struct loop *loop) \
    {                                                                   \
        loop_run(loop, rows, planes, is_signed, shape);                 \
    }
#define LOOPS(name, planes, is_signed, shape)   \
    LOOP(name##_1, 1, planes, is_signed, shape) \
    LOOP(name##_2, 2, planes, is_signed, shape) \
    LOOP(name##_3, 3, planes, is_signed, shape) \
    LOOP(name##_4, 4, planes, is_signed, shape)
#define SHAPES_OF(name, planes, is_signed)            \
    LOOPS(name##_16, planes, is_signed, SHAPE_16)     \
    LOOPS(name##_low, planes, is_signed, SHAPE_LOW)   \
    LOOPS(name##_high, planes, is_signed, SHAPE_HIGH) \
    LOOPS(name##_pair, planes, is_signed, SHAPE_PAIR) \
    LOOPS(name##_rows, planes, is_signed, SHAPE_ROWS) \
    LOOPS(name##_tail, planes, is_signed, SHAPE_TAIL)
SHAPES_OF(signed_2bit, 4, 1)
SHAPES_OF(signed_4bit, 2, 1)
SHAPES_OF(unsigned_2bit, 4, 0)
SHAPES_OF(unsigned_4bit, 2, 0)

#define ENTRY(name)                            \
    {                                          \
        name##_1, name##_2, name##_3, name##_4 \
    }
#define ENTRIES(name)                                                         \
    {                                                                         \
        [SHAPE_16] = ENTRY(name##_16), [SHAPE_LOW] = ENTRY(name##_low),       \
        [SHAPE_HIGH] = ENTRY(name##_high), [SHAPE_PAIR] = ENTRY(name##_pair), \
        [SHAPE_ROWS] = ENTRY(name##_rows), [SHAPE_TAIL] = ENTRY(name##_tail), \
    }
static loop_fn *const loops_signed[2][SHAPES][FAST_ROWS] = {
    ENTRIES(signed_2bit), ENTRIES(signed_4bit)};
static loop_fn *const loops_unsigned[2][SHAPES][FAST_ROWS] = {
    ENTRIES(unsigned_2bit), ENTRIES(unsigned_4bit)};

/* Both halves at once need 2 * rows * planes accumulators: 16 fit beside the masked codes. */
static int fits_pair(const struct fast_codes *codes)
{
    return codes->rows * (8 / codes->bits) <= 8;
}

static void dot(const struct fast_codes *codes, const struct fast_numbers *numbers,
    struct fast_sums *sums, loop_fn *const table[SHAPES][FAST_ROWS])
{
    const uint32_t block_codes = KVARN__PACKED_COLUMNS * 8 / codes->bits;
    struct loop loop = {.data = codes->data,
        .row_bytes = codes->row_bytes,
        .steps = codes->count / 4,
        .of = numbers->of[0],
        .dst = sums->of[0],
        .ahead = codes->ahead};

    KVARN_ASSERT(codes->rows >= 1 && codes->rows <= FAST_ROWS);
    if (codes->row_bytes == 16) {
        table[SHAPE_16][codes->rows - 1](&loop);
    } else if (codes->row_bytes == 32 && fits_pair(codes)) {
        table[SHAPE_PAIR][codes->rows - 1](&loop);
    } else if (codes->row_bytes == 32) {
        table[SHAPE_LOW][codes->rows - 1](&loop);
        loop.dst += block_codes;
        table[SHAPE_HIGH][codes->rows - 1](&loop);
    } else {
        for (size_t at = 0; at < codes->row_bytes; at += 16) {
            loop.tail = codes->row_bytes - at < 16 ? (uint32_t)(codes->row_bytes - at) : 16;
            table[loop.tail < 16 ? SHAPE_TAIL : SHAPE_ROWS][codes->rows - 1](&loop);
            loop.data += 16;
            loop.dst += block_codes;
        }
    }
}

void kvarn__fast_dot_signed_avx512(
    const struct fast_codes *codes, const struct fast_numbers *numbers, struct fast_sums *sums)
{
    dot(codes, numbers, sums, loops_signed[codes->bits == 4]);
}

void kvarn__fast_dot_unsigned_avx512(
    const struct fast_codes *codes, const struct fast_numbers *numbers, struct fast_sums *sums)
{
    dot(codes, numbers, sums, loops_unsigned[codes->bits == 4]);
}
