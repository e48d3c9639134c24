/*
 * Fast attention's inner loops on AVX2: sums of codes times whole numbers.
 *
 * A step takes 16 bytes of two code rows and interleaves them to words; `vpmaddubsw` adds two code
 * rows at once to sums of 16 bits, one register for the 16 columns of each plane. Codes are shifted
 * down, so that a step adds at most 2 * 255 * 3 (2-bit codes) or 2 * 255 * 15; after so many steps
 * as fit, sums are widened into the result. Sums wrap, and codes lie between 0 and `top`: the sum
 * of numbers times codes is within top / 2 * (sum of their magnitudes) of top / 2 * (sum of
 * numbers). Where that is known to fit 16 bits, sums start at minus that middle and are widened
 * only once.
 *
 * Rows of 32 bytes are interleaved without shuffling across lanes: a "low" register holds columns
 * 0-7 and 16-23, a "high" one 8-15 and 24-31, so that the two halves of a register may belong to
 * two blocks of the packed order.
 */
#include <string.h>

#include "lib/base/assert.h"
#include "lib/kernels/avx2/fast_dot.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))

/* Rows of codes that one call of a loop takes: a pair of them each step. */
#define PAIRS_MAX (FAST_COUNT / 2)

/* How two rows are loaded. */
enum shape {
    SHAPE_ROWS, /* 16 bytes of any rows */
    SHAPE_LOW,  /* rows of 32 bytes: columns 0-7 and 16-23 */
    SHAPE_HIGH, /* rows of 32 bytes: columns 8-15 and 24-31 */
    SHAPES,
};

/* Numbers of two code rows, twice: what a dword broadcast makes a register of. */
struct pairs {
    uint32_t of[FAST_ROWS][PAIRS_MAX];
};

struct loop {
    const uint8_t *data;
    size_t row_bytes;
    uint32_t pairs;
    const struct pairs *numbers; /* borrowed */
    uint32_t steps;              /* pairs after which sums are widened */
    const int32_t *middle;       /* borrowed, [rows]: minus what sums start at */
    int32_t *dst;                /* sums of the lower 8 columns, [rows][FAST_COUNT] */
    uint32_t upper;              /* where the upper 8 columns' sums lie from there */
    struct fast_ahead *ahead;
};

static ALWAYS_INLINE __m256i pair_load(const struct loop *loop, enum shape shape, const uint8_t *p)
{
    if (shape == SHAPE_ROWS) {
        __m128i a = _mm_loadu_si128((const void *)p);
        __m128i b = _mm_loadu_si128((const void *)(p + loop->row_bytes));
        return _mm256_set_m128i(_mm_unpackhi_epi8(a, b), _mm_unpacklo_epi8(a, b));
    }
    __m256i a = _mm256_loadu_si256((const void *)p);
    __m256i b = _mm256_loadu_si256((const void *)(p + 32));
    return shape == SHAPE_LOW ? _mm256_unpacklo_epi8(a, b) : _mm256_unpackhi_epi8(a, b);
}

/* Codes of a plane, down at bit 0. Shifts leak across bytes; the mask takes that away. */
static ALWAYS_INLINE __m256i plane_of(__m256i x, uint32_t plane, uint32_t bits)
{
    const __m256i mask = _mm256_set1_epi8((char)((1u << bits) - 1));

    return _mm256_and_si256(plane == 0 ? x : _mm256_srli_epi16(x, (int)(plane * bits)), mask);
}

/*
 * acc += products. As an intrinsic gcc 12 gives it a new destination each time: a spilled sum,
 * whose way through memory the loop then waits for, and seven moves.
 */
static ALWAYS_INLINE __m256i words_add(__m256i acc, __m256i products)
{
    __asm__("vpaddw %1, %0, %0" : "+x"(acc) : "x"(products));
    return acc;
}

static ALWAYS_INLINE __m256i madd(__m256i acc, __m256i codes, __m256i numbers, int is_signed)
{
    return words_add(acc,
        is_signed ? _mm256_maddubs_epi16(codes, numbers) : _mm256_maddubs_epi16(numbers, codes));
}

/* Sums of 16 bits of one query row: up to four planes. */
struct row_sums {
    __m256i of[4];
};

/* Planes [first, first + count) of a register and where the loop is. */
struct step {
    __m256i codes[4];
    const struct pairs *numbers;
    uint32_t pair;
};

static ALWAYS_INLINE void row_add(
    struct row_sums *sums, const struct step *step, uint32_t row, uint32_t planes, int is_signed)
{
    __m256i numbers = _mm256_set1_epi32((int)step->numbers->of[row][step->pair]);

    sums->of[0] = madd(sums->of[0], step->codes[0], numbers, is_signed);
    sums->of[1] = madd(sums->of[1], step->codes[1], numbers, is_signed);
    if (planes == 4) {
        sums->of[2] = madd(sums->of[2], step->codes[2], numbers, is_signed);
        sums->of[3] = madd(sums->of[3], step->codes[3], numbers, is_signed);
    }
}

static ALWAYS_INLINE void eight_widen(int32_t *dst, __m128i words, __m256i middle, bool is_first)
{
    __m256i sum = _mm256_add_epi32(_mm256_cvtepi16_epi32(words), middle);

    if (!is_first) {
        sum = _mm256_add_epi32(sum, _mm256_loadu_si256((const void *)dst));
    }
    _mm256_storeu_si256((void *)dst, sum);
}

/* Widen a query row's sums: the first time into the result, later to it. */
static ALWAYS_INLINE void planes_widen(const struct row_sums *sums, uint32_t planes,
    const struct loop *loop, uint32_t row, int32_t *dst, bool is_first)
{
    const __m256i middle = _mm256_set1_epi32(loop->middle[row]);
    const uint32_t upper = loop->upper;

    dst += (size_t)row * FAST_COUNT;
    for (uint32_t m = 0; m < planes; m++) {
        int32_t *at = dst + m * KVARN__PACKED_COLUMNS;
        eight_widen(at, _mm256_castsi256_si128(sums->of[m]), middle, is_first);
        eight_widen(at + upper, _mm256_extracti128_si256(sums->of[m], 1), middle, is_first);
    }
}

static ALWAYS_INLINE void row_widen(const struct row_sums *sums, uint32_t planes,
    const struct loop *loop, uint32_t row, int32_t *dst, bool is_first)
{
    if (is_first) {
        planes_widen(sums, planes, loop, row, dst, true);
    } else {
        planes_widen(sums, planes, loop, row, dst, false);
    }
}

static ALWAYS_INLINE struct row_sums row_start(const struct loop *loop, uint32_t row)
{
    __m256i start = _mm256_set1_epi16((int16_t)(uint16_t)(0u - (uint32_t)loop->middle[row]));

    return (struct row_sums){{start, start, start, start}};
}

/*
 * Planes [first, first + planes) for `rows` query rows. Query rows are written out one by one: see
 * the loops for AVX-512.
 */
static ALWAYS_INLINE void loop_run(const struct loop *loop, uint32_t rows, uint32_t bits,
    uint32_t first, uint32_t planes, int is_signed, enum shape shape)
{
    const uint32_t steps = loop->steps;
    const uint8_t *p = loop->data;
    int32_t *dst = loop->dst + first * KVARN__PACKED_COLUMNS;
    struct step step = {.numbers = loop->numbers};
    struct fast_ahead ahead = *loop->ahead;

    for (uint32_t begin = 0; begin < loop->pairs; begin += steps) {
        const uint32_t end = loop->pairs - begin < steps ? loop->pairs : begin + steps;
        struct row_sums row0 = row_start(loop, 0), row1 = row_start(loop, 1);
        struct row_sums row2 = row_start(loop, 2), row3 = row_start(loop, 3);
        for (step.pair = begin; step.pair < end; step.pair++) {
            __m256i x = pair_load(loop, shape, p);
            ahead = fast_fetch(ahead, 1, false);
            step.codes[0] = plane_of(x, first, bits);
            step.codes[1] = plane_of(x, first + 1, bits);
            if (planes == 4) {
                step.codes[2] = plane_of(x, first + 2, bits);
                step.codes[3] = plane_of(x, first + 3, bits);
            }
            row_add(&row0, &step, 0, planes, is_signed);
            if (rows > 1) {
                row_add(&row1, &step, 1, planes, is_signed);
            }
            if (rows > 2) {
                row_add(&row2, &step, 2, planes, is_signed);
            }
            if (rows > 3) {
                row_add(&row3, &step, 3, planes, is_signed);
            }
            p += 2 * loop->row_bytes;
        }
        row_widen(&row0, planes, loop, 0, dst, begin == 0);
        if (rows > 1) {
            row_widen(&row1, planes, loop, 1, dst, begin == 0);
        }
        if (rows > 2) {
            row_widen(&row2, planes, loop, 2, dst, begin == 0);
        }
        if (rows > 3) {
            row_widen(&row3, planes, loop, 3, dst, begin == 0);
        }
    }
    *loop->ahead = ahead;
}

/* 16 registers hold the sums of 12 planes, or of 4 query rows two planes at a time. */
static ALWAYS_INLINE void planes_run(
    const struct loop *loop, uint32_t rows, uint32_t bits, int is_signed, enum shape shape)
{
    if (bits == 4) {
        loop_run(loop, rows, bits, 0, 2, is_signed, shape);
    } else if (rows < 4) {
        loop_run(loop, rows, bits, 0, 4, is_signed, shape);
    } else {
        loop_run(loop, rows, bits, 0, 2, is_signed, shape);
        loop_run(loop, rows, bits, 2, 2, is_signed, shape);
    }
}

typedef void loop_fn(const struct loop *loop);

/* The loops of one kind of numbers, width and shape, for 1 to 4 query rows. */
#define LOOP(name, rows, bits, is_signed, shape)                        \
    static __attribute__((noinline)) void name(const struct loop *loop) \
    {                                                                   \
        planes_run(loop, rows, bits, is_signed, shape);                 \
    }
#define LOOPS(name, bits, is_signed, shape)   \
    LOOP(name##_1, 1, bits, is_signed, shape) \
    LOOP(name##_2, 2, bits, is_signed, shape) \
    LOOP(name##_3, 3, bits, is_signed, shape) \
    LOOP(name##_4, 4, bits, is_signed, shape)
#define SHAPES_OF(name, bits, is_signed)            \
    LOOPS(name##_rows, bits, is_signed, SHAPE_ROWS) \
    LOOPS(name##_low, bits, is_signed, SHAPE_LOW)   \
    LOOPS(name##_high, bits, is_signed, SHAPE_HIGH)
SHAPES_OF(signed_2bit, 2, 1)
SHAPES_OF(signed_4bit, 4, 1)
SHAPES_OF(unsigned_2bit, 2, 0)
SHAPES_OF(unsigned_4bit, 4, 0)

#define ENTRY(name)                            \
    {                                          \
        name##_1, name##_2, name##_3, name##_4 \
    }
#define ENTRIES(name)                                                       \
    {                                                                       \
        [SHAPE_ROWS] = ENTRY(name##_rows), [SHAPE_LOW] = ENTRY(name##_low), \
        [SHAPE_HIGH] = ENTRY(name##_high),                                  \
    }
static loop_fn *const loops_signed[2][SHAPES][FAST_ROWS] = {
    ENTRIES(signed_2bit), ENTRIES(signed_4bit)};
static loop_fn *const loops_unsigned[2][SHAPES][FAST_ROWS] = {
    ENTRIES(unsigned_2bit), ENTRIES(unsigned_4bit)};

static void pairs_load(
    const struct fast_codes *codes, const struct fast_numbers *numbers, struct pairs *pairs)
{
    for (uint32_t r = 0; r < codes->rows; r++) {
        /* Up to 8 beyond the last: there is room. */
        for (uint32_t i = 0; i < codes->count; i += 16) {
            __m128i eight = _mm_load_si128((const void *)(numbers->of[r] + i));
            _mm_storeu_si128((void *)&pairs->of[r][i / 2], _mm_unpacklo_epi16(eight, eight));
            _mm_storeu_si128((void *)&pairs->of[r][i / 2 + 4], _mm_unpackhi_epi16(eight, eight));
        }
    }
}

/*
 * How long sums of 16 bits last and where they start, so that they end within 2^15 of it: at what
 * the numbers make of the middle of the codes, if one row of sums lasts to the end. If not, signed
 * numbers start at 0, and others, whose sums are not negative, at -2^15.
 */
static void middles_choose(const struct fast_codes *codes, const struct fast_numbers *numbers,
    bool is_signed, int32_t middle[FAST_ROWS], struct loop *loop)
{
    const uint32_t top = (1u << codes->bits) - 1;
    const uint32_t fit = 2 * 32767 / top; /* of the sum of the numbers' magnitudes */
    bool is_once = !is_signed || codes->count * 127 <= fit;

    for (uint32_t r = 0; r < codes->rows; r++) {
        is_once = is_once && (is_signed || numbers->sum[r] <= (int32_t)fit);
    }
    for (uint32_t r = 0; r < FAST_ROWS; r++) {
        middle[r] = is_signed ? 0 : 32768;
        if (is_once) {
            middle[r] = r < codes->rows ? (int32_t)top * numbers->sum[r] / 2 : 0;
        }
    }
    loop->middle = middle;
    loop->steps = is_once ? loop->pairs : (is_signed ? 32767u / 254 : 65535u / 510) / top;
}

/* The last bytes of rows that are no multiple of 16, spread out to rows of 16. */
static void tail_run(const struct fast_codes *codes, struct loop *loop, size_t at, loop_fn *run)
{
    uint8_t rows[FAST_COUNT][KVARN__PACKED_COLUMNS];

    KVARN_ASSERT(codes->count <= FAST_COUNT);
    memset(rows, 0, (size_t)codes->count * sizeof(rows[0]));
    for (uint32_t i = 0; i < codes->count; i++) {
        memcpy(rows[i], codes->data + i * codes->row_bytes + at, codes->row_bytes - at);
    }
    loop->data = rows[0];
    loop->row_bytes = sizeof(rows[0]);
    run(loop);
}

static void dot(const struct fast_codes *codes, const struct fast_numbers *numbers,
    struct fast_sums *sums, bool is_signed, loop_fn *const table[SHAPES][FAST_ROWS])
{
    const uint32_t block_codes = KVARN__PACKED_COLUMNS * 8 / codes->bits;
    int32_t middle[FAST_ROWS];
    struct pairs pairs;
    struct loop loop = {.data = codes->data,
        .row_bytes = codes->row_bytes,
        .pairs = codes->count / 2,
        .numbers = &pairs,
        .dst = sums->of[0],
        .upper = 8,
        .ahead = codes->ahead};

    KVARN_ASSERT(codes->rows >= 1 && codes->rows <= FAST_ROWS);
    pairs_load(codes, numbers, &pairs);
    middles_choose(codes, numbers, is_signed, middle, &loop);
    if (codes->row_bytes == 32) {
        loop.upper = block_codes;
        table[SHAPE_LOW][codes->rows - 1](&loop);
        loop.dst += 8;
        table[SHAPE_HIGH][codes->rows - 1](&loop);
        return;
    }
    for (size_t at = 0; at < codes->row_bytes; at += KVARN__PACKED_COLUMNS) {
        if (codes->row_bytes - at < KVARN__PACKED_COLUMNS) {
            tail_run(codes, &loop, at, table[SHAPE_ROWS][codes->rows - 1]);
            return;
        }
        table[SHAPE_ROWS][codes->rows - 1](&loop);
        loop.data += KVARN__PACKED_COLUMNS;
        loop.dst += block_codes;
    }
}

void kvarn__fast_dot_signed_avx2(
    const struct fast_codes *codes, const struct fast_numbers *numbers, struct fast_sums *sums)
{
    dot(codes, numbers, sums, true, loops_signed[codes->bits == 4]);
}

void kvarn__fast_dot_unsigned_avx2(
    const struct fast_codes *codes, const struct fast_numbers *numbers, struct fast_sums *sums)
{
    dot(codes, numbers, sums, false, loops_unsigned[codes->bits == 4]);
}
