/*
 * Fast attention's inner loops on AArch64's dot products: sums of codes times whole numbers.
 *
 * 16 bytes of each of 4 code rows are interleaved first, so that a lane of 32 bits holds the bytes
 * of one column; `sdot` and `udot` then add four code rows at once to each column. Four query rows
 * share what was interleaved. Codes are masked where they are, never shifted: what lies at bit b
 * counts 2^b times, which the caller divides out. Weights are unsigned like the codes; queries are
 * signed, and so are the bytes that they are multiplied with: there the topmost codes come down to
 * bit 0, and their sums go back up at the end.
 *
 * Each loop is a function of its own with constant shape: 16 sums, 8 masked registers and the
 * numbers of 4 query rows stay in 32 registers.
 */
#include <arm_neon.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/kernels/neon/fast_dot.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))

#define QUADS_MAX (FAST_COUNT / 4) /* fours of code rows */
#define QUAD_REGS 4                /* registers of a four, each of 4 columns */

/* 16 columns of bytes, interleaved. */
struct block {
    uint8x16_t of[QUADS_MAX][QUAD_REGS];
};

struct loop {
    const struct block *block; /* borrowed */
    uint32_t quads;            /* even */
    const uint8_t *numbers;    /* borrowed, [rows][FAST_COUNT] */
    int32_t *dst;              /* sums of the block, [rows][FAST_COUNT] */
    struct fast_ahead *ahead;
};

/* Sums of a query row: of a register's columns, or of two registers', up to four planes. */
struct row_sums {
    int32x4_t of[2][4];
};

struct masked {
    uint8x16_t of[2][4];
};

/* Codes of each plane, each where it lies; the topmost of signed products at bit 0. */
static ALWAYS_INLINE void codes_mask(
    uint8x16_t x, uint32_t planes, bool is_signed, uint8x16_t masked[4])
{
    if (planes == 4) {
        masked[0] = vandq_u8(x, vdupq_n_u8(0x03));
        masked[1] = vandq_u8(x, vdupq_n_u8(0x0c));
        masked[2] = vandq_u8(x, vdupq_n_u8(0x30));
        masked[3] = is_signed ? vshrq_n_u8(x, 6) : vandq_u8(x, vdupq_n_u8(0xc0));
    } else {
        masked[0] = vandq_u8(x, vdupq_n_u8(0x0f));
        masked[1] = is_signed ? vshrq_n_u8(x, 4) : vandq_u8(x, vdupq_n_u8(0xf0));
    }
}

/* sum += four bytes of each column times the `which`-th four of a row's eight numbers. */
static ALWAYS_INLINE int32x4_t dot_add(
    int32x4_t sum, uint8x16_t codes, uint8x8_t numbers, int which, bool is_signed)
{
    if (is_signed) {
        int8x16_t bytes = vreinterpretq_s8_u8(codes);
        int8x8_t eight = vreinterpret_s8_u8(numbers);
        return which == 0 ? vdotq_lane_s32(sum, bytes, eight, 0)
                          : vdotq_lane_s32(sum, bytes, eight, 1);
    }
    uint32x4_t unsigned_sum = vreinterpretq_u32_s32(sum);
    return vreinterpretq_s32_u32(which == 0 ? vdotq_lane_u32(unsigned_sum, codes, numbers, 0)
                                            : vdotq_lane_u32(unsigned_sum, codes, numbers, 1));
}

static ALWAYS_INLINE void row_add(struct row_sums *sums, const struct masked *masked,
    uint8x8_t numbers, int which, uint32_t regs, uint32_t planes, bool is_signed)
{
    for (uint32_t i = 0; i < regs; i++) {
        for (uint32_t m = 0; m < planes; m++) {
            sums->of[i][m] = dot_add(sums->of[i][m], masked->of[i][m], numbers, which, is_signed);
        }
    }
}

static ALWAYS_INLINE void row_store(
    const struct row_sums *sums, uint32_t regs, uint32_t planes, bool is_signed, int32_t *dst)
{
    for (uint32_t i = 0; i < regs; i++) {
        for (uint32_t m = 0; m < planes; m++) {
            int32x4_t sum = sums->of[i][m];
            if (is_signed && m + 1 == planes) {
                sum = planes == 4 ? vshlq_n_s32(sum, 6) : vshlq_n_s32(sum, 4);
            }
            vst1q_s32(dst + m * KVARN__PACKED_COLUMNS + i * 4, sum);
        }
    }
}

/* Columns of `regs` registers from the `at`-th on, for `rows` query rows. */
static ALWAYS_INLINE void columns_run(const struct loop *loop, uint32_t at, uint32_t rows,
    uint32_t regs, uint32_t planes, bool is_signed)
{
    struct row_sums sums[FAST_ROWS] = {0};
    struct fast_ahead ahead = *loop->ahead;

    for (uint32_t q = 0; q < loop->quads; q += 2) {
        uint8x8_t numbers[FAST_ROWS];
        ahead = fast_fetch(ahead, 1, false);
        for (uint32_t r = 0; r < rows; r++) {
            numbers[r] = vld1_u8(loop->numbers + r * FAST_COUNT + (size_t)q * 4);
        }
        for (int which = 0; which < 2; which++) {
            struct masked masked;
            for (uint32_t i = 0; i < regs; i++) {
                codes_mask(
                    loop->block->of[q + (uint32_t)which][at + i], planes, is_signed, masked.of[i]);
            }
            for (uint32_t r = 0; r < rows; r++) {
                row_add(&sums[r], &masked, numbers[r], which, regs, planes, is_signed);
            }
        }
    }
    *loop->ahead = ahead;
    for (uint32_t r = 0; r < rows; r++) {
        row_store(&sums[r], regs, planes, is_signed, loop->dst + r * FAST_COUNT + at * 4);
    }
}

/* Few sums leave registers for two columns' registers side by side, and `sdot` waits for its own.
 */
static ALWAYS_INLINE void block_run(
    const struct loop *loop, uint32_t rows, uint32_t planes, bool is_signed)
{
    const uint32_t regs = rows * planes <= 8 ? 2 : 1;

    for (uint32_t at = 0; at < QUAD_REGS; at += regs) {
        columns_run(loop, at, rows, regs, planes, is_signed);
    }
}

typedef void loop_fn(const struct loop *loop);

/* The loops of one kind of numbers and width, for 1 to 4 query rows. */
#define LOOP(name, rows, planes, is_signed)                             \
    static __attribute__((noinline)) void name(const struct loop *loop) \
    {                                                                   \
        block_run(loop, rows, planes, is_signed);                       \
    }
#define LOOPS(name, planes, is_signed)   \
    LOOP(name##_1, 1, planes, is_signed) \
    LOOP(name##_2, 2, planes, is_signed) \
    LOOP(name##_3, 3, planes, is_signed) \
    LOOP(name##_4, 4, planes, is_signed)
LOOPS(signed_2bit, 4, true)
LOOPS(signed_4bit, 2, true)
LOOPS(unsigned_2bit, 4, false)
LOOPS(unsigned_4bit, 2, false)

#define ENTRY(name)                            \
    {                                          \
        name##_1, name##_2, name##_3, name##_4 \
    }
static loop_fn *const loops_signed[2][FAST_ROWS] = {ENTRY(signed_2bit), ENTRY(signed_4bit)};
static loop_fn *const loops_unsigned[2][FAST_ROWS] = {ENTRY(unsigned_2bit), ENTRY(unsigned_4bit)};

/* 16 bytes of a row, zeros where it has fewer. */
static ALWAYS_INLINE uint8x16_t row_load(const uint8_t *p, size_t left)
{
    uint8_t some[KVARN__PACKED_COLUMNS] = {0};

    if (left >= KVARN__PACKED_COLUMNS) {
        return vld1q_u8(p);
    }
    memcpy(some, p, left);
    return vld1q_u8(some);
}

/* Byte r of lane j of register i is byte 4 i + j of row r. */
static void block_load(const struct fast_codes *codes, size_t at, struct block *block)
{
    const size_t next = codes->row_bytes, left = codes->row_bytes - at;
    const uint8_t *p = codes->data + at;

    for (uint32_t i = 0; i < codes->count; i += 4) {
        uint8x16_t a = row_load(p, left), b = row_load(p + next, left);
        uint8x16_t c = row_load(p + 2 * next, left), d = row_load(p + 3 * next, left);
        uint8x16_t ac_low = vzip1q_u8(a, c), ac_high = vzip2q_u8(a, c);
        uint8x16_t bd_low = vzip1q_u8(b, d), bd_high = vzip2q_u8(b, d);
        uint8x16_t *dst = block->of[i / 4];
        dst[0] = vzip1q_u8(ac_low, bd_low);
        dst[1] = vzip2q_u8(ac_low, bd_low);
        dst[2] = vzip1q_u8(ac_high, bd_high);
        dst[3] = vzip2q_u8(ac_high, bd_high);
        p += 4 * next;
    }
}

static void dot(const struct fast_codes *codes, const struct fast_numbers *numbers,
    struct fast_sums *sums, loop_fn *const table[FAST_ROWS])
{
    const uint32_t block_codes = KVARN__PACKED_COLUMNS * 8 / codes->bits;
    struct block block;
    struct loop loop = {.block = &block,
        .quads = codes->count / 4,
        .numbers = numbers->of[0],
        .dst = sums->of[0],
        .ahead = codes->ahead};

    KVARN_ASSERT(codes->rows >= 1 && codes->rows <= FAST_ROWS);
    KVARN_ASSERT(codes->count <= FAST_COUNT && codes->count % 8 == 0);
    for (size_t at = 0; at < codes->row_bytes; at += KVARN__PACKED_COLUMNS) {
        block_load(codes, at, &block);
        table[codes->rows - 1](&loop);
        loop.dst += block_codes;
    }
}

void kvarn__fast_dot_signed_neon(
    const struct fast_codes *codes, const struct fast_numbers *numbers, struct fast_sums *sums)
{
    dot(codes, numbers, sums, loops_signed[codes->bits == 4]);
}

void kvarn__fast_dot_unsigned_neon(
    const struct fast_codes *codes, const struct fast_numbers *numbers, struct fast_sums *sums)
{
    dot(codes, numbers, sums, loops_unsigned[codes->bits == 4]);
}
