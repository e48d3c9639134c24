/*
 * Variance normalisation, for any vector type: include it after a vec.h.
 *
 * One iteration is one pass over the plane. No logarithms: a factor is multiplied by its clamped
 * deviation, which is what adding logarithms does. Once a row's deviation is measured under the new
 * column factors, the row's next factor and the deviation under that factor are known without
 * looking again; so the same rows, still in the first cache, are added to the columns' sums soon.
 * Rows go in groups of VF_LANES: their sums are brought into one vector by a transposing addition,
 * and square roots, clamps and divisions are done for a group at a time.
 *
 * Sums are of distances from a shift, the mean of the iteration before, so that a mean far from
 * zero costs no digits.
 */
#ifndef KVARN_KERNELS_VECTOR_NORMALISE_H
#define KVARN_KERNELS_VECTOR_NORMALISE_H

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "lib/base/assert.h"
#include "lib/kernels/kernels.h"

#define NORM_STD_MIN    1e-3f
#define NORM_STD_MAX    1e3f
#define NORM_SCALE_MIN  0.74081820f /* expf(-0.3f) */
#define NORM_SCALE_MAX  22026.465f  /* expf(10.0f) */
#define NORM_SPREAD_MIN 1e-8f       /* smallest deviation that an imbalance divides by */

/*
 * A plane has settled when, in one iteration, all factors of an axis move by the same share to
 * within this: what is left then moves from all columns to all rows, which changes no quotient. It
 * is 16 units in the last place, a few times what rounding of the sums moves them by.
 *
 * Rows decide. New column factors are the deviations under the row factors before, whatever the
 * column factors were, and new row factors those under the new column factors: if the rows stay, so
 * does everything in the next iteration, however far columns moved in this one. Only a column whose
 * deviation was clamped has not arrived; then columns must have settled as well.
 */
#define NORM_SETTLED 2e-6f

/* Rows, and vectors of columns, whose sums stay in registers: of 32 registers or of 16. */
#define NORM_SIDE  (VF_LANES == 16 ? 8 : 4)
#define NORM_CHUNK (VF_LANES == 16 ? 8 : 4)

/* Least and largest of something, by lanes. */
struct norm_range {
    vf low, high;
};

/* What an iteration finds: deviations, and shares that factors moved by. */
enum norm_what { NORM_ROWS, NORM_COLS, NORM_ROW_MOVES, NORM_COL_MOVES, NORM_WHATS };

#define NORM_RANGES (2 * NORM_WHATS)

struct norm_state {
    struct norm_range of[NORM_WHATS];
};

/* Sums of (t * inv_col - shift) and its square along VF_LANES rows, one lane a row. */
VF_INLINE void norm_rows_sum(const float *x, uint32_t cols, const float *inv_col,
    const float *shift, vf *ret_sum, vf *ret_square)
{
    vf sums[VF_LANES], squares[VF_LANES];

    for (uint32_t r = 0; r < VF_LANES; r += NORM_SIDE) {
        const float *row = x + (size_t)r * cols;
        vf sum[NORM_SIDE], square[NORM_SIDE], mean[NORM_SIDE];
        for (uint32_t i = 0; i < NORM_SIDE; i++) {
            sum[i] = square[i] = vf_set1(0.0f);
            mean[i] = vf_set1(shift[r + i]);
        }
        for (uint32_t c = 0; c < cols; c += VF_LANES) {
            vf inv = vf_load(inv_col + c);
            for (uint32_t i = 0; i < NORM_SIDE; i++) {
                vf d = vf_fms(vf_load(row + (size_t)i * cols + c), inv, mean[i]);
                sum[i] = vf_add(sum[i], d);
                square[i] = vf_fma(d, d, square[i]);
            }
        }
        for (uint32_t i = 0; i < NORM_SIDE; i++) {
            sums[r + i] = sum[i];
            squares[r + i] = square[i];
        }
    }
    *ret_sum = vf_reduce_add(sums);
    *ret_square = vf_reduce_add(squares);
}

/*
 * Add VF_LANES rows to the sums of `chunk` vectors of columns. A column's own factor is the same
 * for all its values: it comes in when the sums are done.
 */
VF_INLINE void norm_columns_chunk(const float *x, uint32_t cols, const struct kvarn__work *work,
    const float *inv_row, uint32_t c, uint32_t chunk)
{
    vf sum[NORM_CHUNK], square[NORM_CHUNK], mean[NORM_CHUNK];

    for (uint32_t j = 0; j < chunk; j++) {
        sum[j] = vf_load(work->num + c + j * VF_LANES);
        square[j] = vf_load(work->den + c + j * VF_LANES);
        mean[j] = vf_load(work->mean_col + c + j * VF_LANES);
    }
    for (uint32_t r = 0; r < VF_LANES; r++) {
        const float *row = x + (size_t)r * cols + c;
        vf inv = vf_set1(inv_row[r]);
        for (uint32_t j = 0; j < chunk; j++) {
            vf d = vf_fms(vf_load(row + j * VF_LANES), inv, mean[j]);
            sum[j] = vf_add(sum[j], d);
            square[j] = vf_fma(d, d, square[j]);
        }
    }
    for (uint32_t j = 0; j < chunk; j++) {
        vf_store(work->num + c + j * VF_LANES, sum[j]);
        vf_store(work->den + c + j * VF_LANES, square[j]);
    }
}

VF_INLINE void norm_columns_sum(
    const float *x, uint32_t cols, const struct kvarn__work *work, const float *inv_row)
{
    uint32_t c = 0;

    for (; c + NORM_CHUNK * VF_LANES <= cols; c += NORM_CHUNK * VF_LANES) {
        norm_columns_chunk(x, cols, work, inv_row, c, NORM_CHUNK);
    }
    for (; c < cols; c += VF_LANES) {
        norm_columns_chunk(x, cols, work, inv_row, c, 1);
    }
}

/* Deviation (ddof 1) and mean from the sums of distances from `shift`. */
VF_INLINE vf norm_std(vf sum, vf square, vf shift, uint32_t count, vf *ret_mean)
{
    vf mean = vf_mul(sum, vf_set1(1.0f / (float)count));
    vf left = vf_sub(square, vf_mul(sum, mean));
    vf var = vf_mul(vf_max(left, vf_set1(0.0f)), vf_set1(1.0f / (float)(count - 1)));

    *ret_mean = vf_add(shift, mean);
    return vf_sqrt(var);
}

/* The next factor. */
VF_INLINE vf norm_factor(vf now, vf std)
{
    vf share = vf_min(vf_max(std, vf_set1(NORM_STD_MIN)), vf_set1(NORM_STD_MAX));
    vf next = vf_max(vf_mul(now, share), vf_set1(NORM_SCALE_MIN));

    return vf_min(next, vf_set1(NORM_SCALE_MAX));
}

VF_INLINE void norm_range_add(struct norm_range *range, vf x)
{
    range->low = vf_min(range->low, x);
    range->high = vf_max(range->high, x);
}

static void norm_state_init(struct norm_state *state)
{
    for (int i = 0; i < NORM_WHATS; i++) {
        state->of[i] = (struct norm_range){vf_set1(INFINITY), vf_set1(0.0f)};
    }
}

/* Add VF_LANES rows, less the columns' shifts, to the sums of one vector of columns. */
VF_INLINE void norm_columns_plain(
    const float *x, uint32_t cols, const struct kvarn__work *work, uint32_t c)
{
    vf shift = vf_load(work->mean_col + c);
    vf sum = vf_load(work->num + c), square = vf_load(work->den + c);

    for (uint32_t r = 0; r < VF_LANES; r++) {
        vf d = vf_sub(vf_load(x + (size_t)r * cols + c), shift);
        sum = vf_add(sum, d);
        square = vf_fma(d, d, square);
    }
    vf_store(work->num + c, sum);
    vf_store(work->den + c, square);
}

/* dst[i] = the largest lane of x[i]. */
VF_INLINE void norm_lane_maxima(const vf x[NORM_RANGES], float dst[NORM_RANGES])
{
    for (uint32_t at = 0; at < NORM_RANGES; at += VF_LANES) {
        vf some[VF_LANES];
        float lane[VF_LANES];
        for (uint32_t i = 0; i < VF_LANES; i++) {
            some[i] = x[at + i < NORM_RANGES ? at + i : NORM_RANGES - 1];
        }
        vf_store(lane, vf_reduce_max(some));
        for (uint32_t i = 0; i < VF_LANES && at + i < NORM_RANGES; i++) {
            dst[at + i] = lane[i];
        }
    }
}

/* Least and largest of four things, from vectors of them: negated, the least is a largest. */
VF_INLINE void norm_ranges_find(const struct norm_range ranges[NORM_RANGES / 2],
    float low[NORM_RANGES / 2], float high[NORM_RANGES / 2])
{
    vf x[NORM_RANGES];
    float most[NORM_RANGES];

    for (uint32_t i = 0; i < NORM_RANGES / 2; i++) {
        x[2 * i] = vf_sub(vf_set1(0.0f), ranges[i].low);
        x[2 * i + 1] = ranges[i].high;
    }
    norm_lane_maxima(x, most);
    for (uint32_t i = 0; i < NORM_RANGES / 2; i++) {
        low[i] = -most[2 * i];
        high[i] = most[2 * i + 1];
    }
}

static bool norm_is_settled(float low, float high)
{
    return high - low <= NORM_SETTLED * low;
}

/* After an iteration that began with columns' deviations from `least` to `most`. */
static bool norm_is_done(
    const float low[NORM_WHATS], const float high[NORM_WHATS], float least, float most)
{
    const bool have_arrived = least >= NORM_STD_MIN && most <= NORM_STD_MAX;

    return norm_is_settled(low[NORM_ROW_MOVES], high[NORM_ROW_MOVES]) &&
           (have_arrived || norm_is_settled(low[NORM_COL_MOVES], high[NORM_COL_MOVES]));
}

static float norm_spread(float low, float high)
{
    return high / (low > NORM_SPREAD_MIN ? low : NORM_SPREAD_MIN);
}

/* Deviations and means of rows and columns of the plane as it is. */
static void norm_start(const struct kvarn__plane *plane, const struct kvarn__work *work)
{
    const uint32_t rows = plane->rows, cols = plane->cols;

    for (uint32_t c = 0; c < cols; c += VF_LANES) {
        vf_store(work->now_col + c, vf_set1(1.0f));
        vf_store(work->inv_col + c, vf_set1(1.0f));
        vf_store(work->col + c, vf_set1(1.0f));
        vf_store(work->mean_col + c, vf_load(plane->values + c));
    }
    memset(work->num, 0, cols * sizeof(float));
    memset(work->den, 0, cols * sizeof(float));
    for (uint32_t r = 0; r < rows; r += VF_LANES) {
        const float *x = plane->values + (size_t)r * cols;
        float first[VF_LANES];
        vf sum, square, mean;
        for (uint32_t i = 0; i < VF_LANES; i++) {
            first[i] = x[(size_t)i * cols];
        }
        norm_rows_sum(x, cols, work->inv_col, first, &sum, &square);
        vf std = norm_std(sum, square, vf_load(first), cols, &mean);
        vf_store(work->std_row + r, std);
        vf_store(work->mean_row + r, mean);
        vf_store(work->now_row + r, vf_set1(1.0f));
        vf_store(work->inv_row + r, vf_set1(1.0f));
        vf_store(work->row + r, vf_set1(1.0f));
        norm_columns_sum(x, cols, work, work->inv_row + r);
    }
}

/* Columns: sums -> deviations, under the column factors, and means, before them. */
static void norm_columns_finish(
    uint32_t rows, uint32_t cols, const struct kvarn__work *work, struct norm_range *range)
{
    for (uint32_t c = 0; c < cols; c += VF_LANES) {
        vf mean;
        vf std = norm_std(vf_load(work->num + c), vf_load(work->den + c),
            vf_load(work->mean_col + c), rows, &mean);
        std = vf_mul(std, vf_load(work->inv_col + c));
        vf_store(work->std_col + c, std);
        vf_store(work->mean_col + c, mean);
        norm_range_add(range, std);
    }
}

/*
 * New column factors from the deviations. Clears the columns' sums and returns by how much the
 * rows' means are expected to change.
 */
static float norm_columns_update(
    uint32_t cols, const struct kvarn__work *work, struct norm_range *moves)
{
    float lane[VF_LANES], before = 0.0f, after = 0.0f;
    vf old_sum = vf_set1(0.0f), new_sum = vf_set1(0.0f);

    for (uint32_t c = 0; c < cols; c += VF_LANES) {
        vf now = vf_load(work->now_col + c), old_inv = vf_load(work->inv_col + c);
        vf next = norm_factor(now, vf_load(work->std_col + c));
        vf inv = vf_div(vf_set1(1.0f), next);
        norm_range_add(moves, vf_mul(inv, now));
        vf_store(work->now_col + c, next);
        vf_store(work->inv_col + c, inv);
        vf_store(work->num + c, vf_set1(0.0f));
        vf_store(work->den + c, vf_set1(0.0f));
        old_sum = vf_add(old_sum, old_inv);
        new_sum = vf_add(new_sum, inv);
    }
    vf_store(lane, old_sum);
    for (int i = 0; i < VF_LANES; i++) {
        before += lane[i];
    }
    vf_store(lane, new_sum);
    for (int i = 0; i < VF_LANES; i++) {
        after += lane[i];
    }
    return after / before;
}

/* New row factors of one group under the new column factors. */
VF_INLINE void norm_rows_update(const float *x, uint32_t cols, const struct kvarn__work *work,
    uint32_t r, float drift, struct norm_state *state)
{
    float shift[VF_LANES];
    vf sum, square, mean;
    vf expected = vf_mul(vf_load(work->mean_row + r), vf_set1(drift));

    vf_store(shift, expected);
    norm_rows_sum(x, cols, work->inv_col, shift, &sum, &square);
    vf std = norm_std(sum, square, expected, cols, &mean);
    vf now = vf_load(work->now_row + r);
    vf next = norm_factor(now, vf_mul(std, vf_load(work->inv_row + r)));
    vf inv = vf_div(vf_set1(1.0f), next);
    norm_range_add(&state->of[NORM_ROW_MOVES], vf_mul(inv, now));
    vf after = vf_mul(std, inv);
    vf_store(work->now_row + r, next);
    vf_store(work->inv_row + r, inv);
    vf_store(work->mean_row + r, mean);
    vf_store(work->std_row + r, after);
    norm_range_add(&state->of[NORM_ROWS], after);
}

/* By how much the sum of the rows' inverse factors changed, to move the columns' shifts by. */
static void norm_shifts_move(uint32_t rows, uint32_t cols, const struct kvarn__work *work)
{
    float sum = 0.0f;

    for (uint32_t r = 0; r < rows; r++) {
        sum += work->inv_row[r];
    }
    for (uint32_t c = 0; c < cols; c += VF_LANES) {
        vf_store(
            work->mean_col + c, vf_mul(vf_load(work->mean_col + c), vf_set1(sum / (float)rows)));
    }
}

/*
 * One iteration's pass. Columns follow one group behind, so that what a group's factors wait for
 * (sums across, roots, quotients) is done while another one's columns are added. The first pass
 * does all rows before the columns: row factors then leave 1 for the first time and the columns'
 * shifts follow; later ones hardly move them.
 */
static void norm_pass(const struct kvarn__plane *plane, const struct kvarn__work *work,
    bool is_first, float drift, struct norm_state *state)
{
    const uint32_t rows = plane->rows, cols = plane->cols;
    const size_t group = (size_t)VF_LANES * cols;

    for (uint32_t r = 0; r < rows; r += VF_LANES) {
        const float *x = plane->values + (size_t)r * cols;
        norm_rows_update(x, cols, work, r, drift, state);
        if (!is_first && r > 0) {
            norm_columns_sum(x - group, cols, work, work->inv_row + r - VF_LANES);
        }
    }
    if (!is_first) {
        norm_columns_sum(plane->values + (size_t)rows * cols - group, cols, work,
            work->inv_row + rows - VF_LANES);
        return;
    }
    norm_shifts_move(rows, cols, work);
    for (uint32_t r = 0; r < rows; r += VF_LANES) {
        norm_columns_sum(plane->values + (size_t)r * cols, cols, work, work->inv_row + r);
    }
}

static void norm_best_take(uint32_t rows, uint32_t cols, const struct kvarn__work *work)
{
    memcpy(work->col, work->now_col, cols * sizeof(float));
    memcpy(work->row, work->now_row, rows * sizeof(float));
}

/* The operation `normalise`, of planes with rows and cols in whole vectors. */
static void norm_plane(const struct kvarn__plane *plane, const struct kvarn__work *work)
{
    const uint32_t rows = plane->rows, cols = plane->cols;
    float low[NORM_WHATS], high[NORM_WHATS];
    struct norm_state state;

    KVARN_ASSERT(rows % VF_LANES == 0 && cols % VF_LANES == 0);
    norm_start(plane, work);
    norm_state_init(&state);
    for (uint32_t r = 0; r < rows; r += VF_LANES) {
        norm_range_add(&state.of[NORM_ROWS], vf_load(work->std_row + r));
    }
    norm_columns_finish(rows, cols, work, &state.of[NORM_COLS]);
    norm_ranges_find(state.of, low, high);
    float least =
        norm_spread(low[NORM_COLS], high[NORM_COLS]) + norm_spread(low[NORM_ROWS], high[NORM_ROWS]);
    for (uint32_t i = 0; i < KVARN__ITERATIONS; i++) {
        const float col_low = low[NORM_COLS], col_high = high[NORM_COLS];
        norm_state_init(&state);
        float drift = norm_columns_update(cols, work, &state.of[NORM_COL_MOVES]);
        norm_pass(plane, work, i == 0, drift, &state);
        norm_columns_finish(rows, cols, work, &state.of[NORM_COLS]);
        norm_ranges_find(state.of, low, high);
        float imbalance = norm_spread(low[NORM_COLS], high[NORM_COLS]) +
                          norm_spread(low[NORM_ROWS], high[NORM_ROWS]);
        if (imbalance <= least) {
            least = imbalance;
            norm_best_take(rows, cols, work);
        }
        if (norm_is_done(low, high, col_low, col_high)) {
            break;
        }
    }
}

/* The operation `balance`, of planes with rows and cols in whole vectors. */
static void norm_balance(const struct kvarn__plane *plane, const struct kvarn__work *work)
{
    const uint32_t rows = plane->rows, cols = plane->cols;

    KVARN_ASSERT(rows % VF_LANES == 0 && cols % VF_LANES == 0);
    for (uint32_t c = 0; c < cols; c += VF_LANES) {
        vf_store(work->mean_col + c, vf_load(plane->values + c));
        vf_store(work->num + c, vf_set1(0.0f));
        vf_store(work->den + c, vf_set1(0.0f));
    }
    for (uint32_t r = 0; r < rows; r += VF_LANES) {
        for (uint32_t c = 0; c < cols; c += VF_LANES) {
            norm_columns_plain(plane->values + (size_t)r * cols, cols, work, c);
        }
    }
    for (uint32_t c = 0; c < cols; c += VF_LANES) {
        vf mean;
        vf std = norm_std(vf_load(work->num + c), vf_load(work->den + c),
            vf_load(work->mean_col + c), rows, &mean);
        vf factor = norm_factor(vf_set1(1.0f), std);
        vf_store(work->col + c, factor);
        vf_store(work->inv_col + c, vf_div(vf_set1(1.0f), factor));
    }
    for (uint32_t r = 0; r < rows; r += VF_LANES) {
        const float *x = plane->values + (size_t)r * cols;
        float first[VF_LANES];
        vf sum, square, mean;
        for (uint32_t i = 0; i < VF_LANES; i++) {
            first[i] = x[(size_t)i * cols] * work->inv_col[0];
        }
        norm_rows_sum(x, cols, work->inv_col, first, &sum, &square);
        vf std = norm_std(sum, square, vf_load(first), cols, &mean);
        vf factor = norm_factor(vf_set1(1.0f), std);
        vf_store(work->row + r, factor);
        vf_store(work->mean_row + r, mean);
        vf_store(work->std_row + r, vf_div(std, factor));
    }
}

#endif
