/*
 * Attention of one session's layer for one batch item: snapshot, cut, walk on workers, merge.
 *
 * Owner: the request. Thread: loop; piece_run() and column_run() on a worker, which read pages that
 * the snapshot holds and write partials and outs of their own.
 *
 * The cut: a column is one KV head and a chunk of query tokens; a piece is a column's walk over a
 * run of blocks. Both depend on lengths alone. Pieces of a column merge in ascending order. With
 * one run a piece finishes its column, and the workers are woken once, not twice.
 */
#include "server/read/attend.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kvarn/attention.h"
#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/base/cache_line.h"
#include "server/base/kernel_cost.h"
#include "server/read/hits.h"
#include "server/service.h"
#include "server/session/session_blocks.h"

/* Query rows of a piece: enough to pay for unpacking a tile, few enough that their q and
 * accumulators (64 x 2 x 128 floats) stay in a core's second-level cache. */
#define CHUNK_ROWS 64

/* Blocks of a piece when there is one chunk: 4,096 tokens are some 100 us of exact kernel for one
 * KV head, so that the 50 us of a wake-up do not rule. With more chunks runs grow in proportion:
 * chunks already feed the workers, and partials stay about as large as the answer. */
#define RUN_BLOCKS 32

/* Beyond this many pieces runs grow instead, so that partials stay few for the longest session. */
#define PIECES_MAX 512

/* Jobs of one item handed out at once. Each that ends hands out the next: so no callback handles
 * many (SEMANTICS.md 18), and items take turns on the workers. */
#define JOBS_IN_FLIGHT_MAX 64

/* What the loop may compute itself: the price of a wake-up (SEMANTICS.md 18 allows 100 us, of which
 * an append and a sample of queries in the same callback take the rest). */
#define INLINE_NS_MAX 50000

/* Dot products stay below 7e11 (kvarn/attention.h), and logits must stay finite. */
#define SCALE_MAX 4e26f

/* Spans given to the kernel at once. */
#define SPANS_MAX 32

struct piece {
    struct kvd_job job; /* first: the worker's handle */
    struct attend *attend;
    uint32_t column_idx;
    uint32_t block_first, block_last;
    float *partial; /* borrowed from attend */
    int err;
    uint32_t bad_head, bad_token;
};

struct column {
    struct kvd_job job; /* first: the worker's handle */
    struct attend *attend;
    uint32_t head;
    uint32_t token_first, token_count;
    int err;
    uint32_t bad_head, bad_token;
};

struct attend {
    struct kvd_service *service;      /* borrowed */
    struct kvd_attend_args args;      /* session is not used after start */
    const struct kvd_layer_shape *ls; /* borrowed from the shape */
    uint32_t sink_blocks;
    uint32_t block_first, block_last; /* the snapshot */
    uint64_t high;                    /* no token from here on is seen */
    uint32_t gqa;                     /* query heads per KV head */
    uint32_t chunk_count, run_count;
    uint32_t run_blocks; /* blocks of a run; the last one may have fewer */
    uint32_t column_count, piece_count;
    uint32_t jobs_next; /* pieces, then columns, handed out so far */
    uint32_t jobs_left; /* of those, not ended */
    size_t charged_bytes;
    struct kvd_page **pages; /* refs, block_last - block_first; array within this allocation */
    struct piece *pieces;    /* within this allocation; by column, runs ascending */
    struct column *columns;  /* within this allocation */
    float *partials;         /* within this allocation */
    void *scratch;           /* within this allocation; for work on the loop, else NULL */
};

/* What the rows of query tokens [t, t + count) can see at most. */
static void rows_range(const struct kvd_attend_args *args, uint32_t t, uint32_t count,
    uint64_t *ret_low, uint64_t *ret_high)
{
    uint64_t p = args->position + t;
    uint64_t low = args->first;
    uint64_t high = args->last;

    if (args->is_causal) {
        if (args->window != 0 && p + 1 > args->window && p + 1 - args->window > low) {
            low = p + 1 - args->window;
        }
        if (p + count < high) {
            high = p + count;
        }
    }
    *ret_low = low;
    *ret_high = high > low ? high : low;
}

static struct kvarn_attention_params column_params(
    const struct attend *attend, const struct column *column)
{
    const struct kvd_attend_args *args = &attend->args;

    return (struct kvarn_attention_params){.spec = attend->ls->spec,
        .q_heads = attend->gqa,
        .q_tokens = column->token_count,
        .position = args->position + column->token_first,
        .first = args->first,
        .last = args->last,
        .window = args->is_causal ? args->window : 0,
        .scale = args->scale,
        .softcap = args->softcap,
        .causal = args->is_causal,
        .accuracy = args->accuracy};
}

/* Scratch of a job, walk or finish: rows of q (or out, and lse), then the kernel's own. */
static size_t job_scratch_bytes(const struct attend *attend, uint32_t token_count)
{
    struct column column = {.token_count = token_count};
    struct kvarn_attention_params params = column_params(attend, &column);
    size_t rows = (size_t)attend->gqa * token_count;
    size_t dim = attend->ls->spec.k_dim > attend->ls->spec.v_dim ? attend->ls->spec.k_dim
                                                                 : attend->ls->spec.v_dim;
    return kvd_round_64(rows * dim * sizeof(float)) + kvd_round_64(rows * sizeof(float)) +
           kvarn_attention_scratch_floats(&params) * sizeof(float);
}

/* The first row with a value beyond the limit in magnitude, or NaN; `rows` if there is none. */
static size_t first_row_beyond(const float *x, size_t rows, size_t dim, float limit)
{
    for (size_t i = 0; i < rows * dim; i++) {
        if (!(fabsf(x[i]) <= limit)) {
            return i / dim;
        }
    }
    return rows;
}

/* q of one column as the kernel wants it: rotated floats [gqa][tokens][k_dim]. */
static void piece_load_q(struct piece *piece, const struct column *column, float *q)
{
    const struct attend *attend = piece->attend;
    const struct kvd_attend_args *args = &attend->args;
    size_t dim = attend->ls->spec.k_dim;
    size_t count = column->token_count * dim;
    size_t value_bytes = kvarn_dtype_bytes(args->q_dtype);

    for (uint32_t g = 0; g < attend->gqa; g++) {
        size_t head = (size_t)column->head * attend->gqa + g;
        const uint8_t *src = (const uint8_t *)args->q +
                             (head * args->q_tokens + column->token_first) * dim * value_bytes;
        float *dst = q + g * count;
        kvarn_to_f32(dst, src, args->q_dtype, count);
        if (!args->is_q_rotated) {
            kvarn_rotate(dst, column->token_count, (uint32_t)dim);
        }
        /* A value that is not finite makes its whole rotated block so. */
        size_t row = first_row_beyond(dst, column->token_count, dim, KVARN_ROTATED_ABS_MAX);
        if (row < column->token_count) {
            piece->err = KVARN_EDOMAIN;
            piece->bad_head = (uint32_t)head;
            piece->bad_token = column->token_first + (uint32_t)row;
            return;
        }
    }
}

static void span_fill(const struct attend *attend, uint32_t head, uint32_t block_idx,
    struct kvarn_attention_span *ret)
{
    const struct kvd_layer_shape *ls = attend->ls;
    const struct kvd_page *page = attend->pages[block_idx - attend->block_first];
    uint64_t first = (uint64_t)block_idx * ls->spec.group;
    uint64_t count = attend->high - first < ls->spec.group ? attend->high - first : ls->spec.group;
    const uint8_t *data = kvd_page_data(page);

    *ret = (struct kvarn_attention_span){.first_token = first, .token_count = (uint32_t)count};
    if (block_idx >= attend->sink_blocks && block_idx < attend->args.sealed_blocks) {
        ret->form = KVARN_SPAN_TILE;
        ret->tile = data + head * ls->tile_bytes;
    } else {
        ret->form = KVARN_SPAN_HALF;
        ret->k_rows = (const void *)(data + kvd_rows_k_offset(ls, head));
        ret->v_rows = (const void *)(data + kvd_rows_v_offset(ls, head));
    }
}

static void column_run(struct kvd_job *job, void *scratch);

static void piece_run(struct kvd_job *job, void *scratch)
{
    struct piece *piece = (struct piece *)(void *)job;
    const struct attend *attend = piece->attend;
    const struct column *column = &attend->columns[piece->column_idx];
    struct kvarn_attention_params params = column_params(attend, column);
    size_t rows = (size_t)attend->gqa * column->token_count;
    float *q = scratch;
    float *work =
        (void *)((uint8_t *)scratch + kvd_round_64(rows * attend->ls->spec.k_dim * sizeof(float)));
    struct kvarn_attention_span spans[SPANS_MAX];
    uint64_t low, high;

    KVARN_ASSERT(job_scratch_bytes(attend, column->token_count) <= KVD_WORKER_SCRATCH_BYTES);
    piece_load_q(piece, column, q);
    if (piece->err != 0) {
        return;
    }
    kvarn_attention_partial_init(&params, piece->partial);
    rows_range(&attend->args, column->token_first, column->token_count, &low, &high);
    uint32_t group = attend->ls->spec.group;
    size_t count = 0;
    for (uint32_t b = piece->block_first; b < piece->block_last; b++) {
        if ((uint64_t)(b + 1) * group <= low || (uint64_t)b * group >= high) {
            continue;
        }
        span_fill(attend, column->head, b, &spans[count++]);
        if (count == SPANS_MAX) {
            kvarn_attention_walk(&params, q, spans, count, piece->partial, work);
            count = 0;
        }
    }
    if (count > 0) {
        kvarn_attention_walk(&params, q, spans, count, piece->partial, work);
    }
    if (attend->run_count == 1) {
        column_run(&attend->columns[piece->column_idx].job, scratch); /* nothing to wait for */
    }
}

/* Write one query head's rows of out and lse where the client's layout has them. */
static void column_store_head(struct column *column, uint32_t g, float *out, const float *lse)
{
    const struct attend *attend = column->attend;
    const struct kvd_attend_args *args = &attend->args;
    size_t dim = attend->ls->spec.v_dim;
    size_t head = (size_t)column->head * attend->gqa + g;
    size_t row = head * args->q_tokens + column->token_first;
    size_t bad_row = 0;
    struct kvarn_rows_out to = {
        .dst = (uint8_t *)args->out + row * dim * kvarn_dtype_bytes(args->out_dtype),
        .dtype = args->out_dtype,
        .dst_stride = dim,
        .rows = column->token_count,
        .head_dim = (uint32_t)dim,
        .rotated = args->is_out_rotated};

    int err = kvarn_rows_from_f32(out, &to, &bad_row);
    if (err != 0) {
        column->err = err;
        column->bad_head = (uint32_t)head;
        column->bad_token = column->token_first + (uint32_t)bad_row;
        return;
    }
    memcpy((uint8_t *)args->lse + row * sizeof(float), lse, column->token_count * sizeof(float));
}

/* Merge the column's pieces, finish and store. */
static void column_run(struct kvd_job *job, void *scratch)
{
    struct column *column = (struct column *)(void *)job;
    const struct attend *attend = column->attend;
    struct kvarn_attention_params params = column_params(attend, column);
    size_t dim = attend->ls->spec.v_dim;
    size_t tokens = column->token_count;
    float *out = scratch;
    float *lse =
        (void *)((uint8_t *)scratch + kvd_round_64(attend->gqa * tokens * dim * sizeof(float)));
    const struct piece *pieces =
        &attend->pieces[(size_t)(column - attend->columns) * attend->run_count];

    for (uint32_t i = 1; i < attend->run_count; i++) {
        kvarn_attention_merge(&params, pieces[0].partial, pieces[i].partial);
    }
    kvarn_attention_finish(&params, pieces[0].partial, out, lse);
    for (uint32_t g = 0; g < attend->gqa && column->err == 0; g++) {
        column_store_head(column, g, out + g * tokens * dim, lse + g * tokens);
    }
}

/* Tell the owner and give everything back. */
static void attend_finish(struct attend *attend, const struct kvd_failure *why)
{
    struct kvd_service *service = attend->service;
    size_t charged_bytes = attend->charged_bytes;
    struct kvd_attend_args args = attend->args;

    for (uint32_t i = 0; i < attend->block_last - attend->block_first; i++) {
        kvd_page_unref(&service->pages, attend->pages[i]);
    }
    free(attend);
    kvd_budget_release(&service->budget, KVD_BUDGET_REPLIES, charged_bytes);
    args.done_cb(args.ctx, why);
}

static void attend_conclude(struct attend *attend)
{
    struct kvd_failure why = {0};

    for (uint32_t i = 0; i < attend->column_count && why.err == 0; i++) {
        const struct column *column = &attend->columns[i];
        if (column->err != 0) {
            kvd_fail(&why, column->err,
                "out of query head %" PRIu32 ", query token %" PRIu32 " is beyond 65504",
                column->bad_head, column->bad_token);
        }
    }
    attend_finish(attend, &why);
}

static void column_done(struct kvd_job *job);
static void piece_done(struct kvd_job *job);

static uint32_t chunk_tokens(const struct attend *attend)
{
    uint32_t tokens = CHUNK_ROWS / attend->gqa;

    tokens = tokens == 0 ? 1 : tokens;
    return tokens < attend->args.q_tokens ? tokens : attend->args.q_tokens;
}

static struct column *column_init(struct attend *attend, uint32_t column_idx)
{
    struct column *column = &attend->columns[column_idx];
    uint32_t tokens = chunk_tokens(attend);
    uint32_t t = column_idx % attend->chunk_count * tokens;
    uint32_t left = attend->args.q_tokens - t;

    *column = (struct column){.attend = attend,
        .head = column_idx / attend->chunk_count,
        .token_first = t,
        .token_count = left < tokens ? left : tokens};
    column->job.run = column_run;
    column->job.done = column_done;
    return column;
}

/* Pieces are made in order: by column, runs ascending. The first of a column makes that too. */
static struct piece *piece_init(struct attend *attend, uint32_t piece_idx)
{
    struct piece *piece = &attend->pieces[piece_idx];
    uint32_t column_idx = piece_idx / attend->run_count;
    uint32_t run = piece_idx % attend->run_count;
    struct column *column =
        run == 0 ? column_init(attend, column_idx) : &attend->columns[column_idx];
    struct kvarn_attention_params params = column_params(attend, column);
    size_t floats = kvarn_attention_partial_floats(&params);
    size_t token_floats = floats / column->token_count;
    size_t tokens_before = (size_t)column->head * attend->args.q_tokens + column->token_first;
    uint32_t first = attend->block_first + run * attend->run_blocks;
    uint32_t left = attend->block_last - first;

    *piece = (struct piece){.attend = attend,
        .column_idx = column_idx,
        .block_first = first,
        .block_last = first + (left < attend->run_blocks ? left : attend->run_blocks),
        .partial =
            attend->partials + tokens_before * token_floats * attend->run_count + run * floats};
    piece->job.run = piece_run;
    piece->job.done = piece_done;
    return piece;
}

static void columns_submit(struct attend *attend, uint32_t count)
{
    struct kvd_workers *workers = attend->service->workers;

    for (; count > 0 && attend->jobs_next < attend->column_count; count--) {
        attend->jobs_left++;
        kvd_workers_submit(workers, &attend->columns[attend->jobs_next++].job);
    }
}

static void column_done(struct kvd_job *job)
{
    struct attend *attend = ((struct column *)(void *)job)->attend;

    KVARN_ASSERT(attend->jobs_left > 0);
    attend->jobs_left--;
    columns_submit(attend, 1);
    if (attend->jobs_left == 0) {
        attend_conclude(attend);
    }
}

/* All pieces are walked: merge and finish the columns. */
static void attend_merge(struct attend *attend)
{
    struct kvd_failure why = {0};

    for (uint32_t i = 0; i < attend->piece_count; i++) {
        const struct piece *piece = &attend->pieces[i];
        if (piece->err != 0) {
            kvd_fail(&why, piece->err,
                "q of query head %" PRIu32 ", query token %" PRIu32
                " is not finite or beyond 32768 once rotated",
                piece->bad_head, piece->bad_token);
            attend_finish(attend, &why);
            return;
        }
    }
    if (attend->run_count == 1) {
        attend_conclude(attend); /* the pieces have finished their columns */
        return;
    }
    if (attend->scratch != NULL) {
        for (uint32_t i = 0; i < attend->column_count; i++) {
            column_run(&attend->columns[i].job, attend->scratch);
        }
        attend_conclude(attend);
        return;
    }
    attend->jobs_next = 0;
    columns_submit(attend, JOBS_IN_FLIGHT_MAX);
}

static void pieces_submit(struct attend *attend, uint32_t count)
{
    struct kvd_workers *workers = attend->service->workers;

    for (; count > 0 && attend->jobs_next < attend->piece_count; count--) {
        struct piece *piece = piece_init(attend, attend->jobs_next++);
        attend->jobs_left++;
        kvd_workers_submit(workers, &piece->job);
    }
}

static void piece_done(struct kvd_job *job)
{
    struct attend *attend = ((struct piece *)(void *)job)->attend;

    KVARN_ASSERT(attend->jobs_left > 0);
    attend->jobs_left--;
    pieces_submit(attend, 1);
    if (attend->jobs_left == 0) {
        attend_merge(attend);
    }
}

static void attend_run(struct attend *attend)
{
    if (attend->scratch == NULL) {
        pieces_submit(attend, JOBS_IN_FLIGHT_MAX);
        return;
    }
    for (uint32_t i = 0; i < attend->piece_count; i++) {
        piece_run(&piece_init(attend, i)->job, attend->scratch);
    }
    attend_merge(attend);
}

/* Tokens of [low, high) that lie in [first, last). */
static uint64_t tokens_within(uint64_t low, uint64_t high, uint64_t first, uint64_t last)
{
    low = low > first ? low : first;
    high = high < last ? high : last;
    return high > low ? high - low : 0;
}

/* What the kernels take for it on one core: walks of all rows over what they may see, and edges. */
static double attend_cost_ns(const struct attend *attend, uint64_t low)
{
    const struct kvd_kernel_cost *cost = kvd_kernel_cost();
    const struct kvd_attend_args *args = &attend->args;
    const struct kvd_walk_cost *tile =
        args->accuracy == KVARN_ACCURACY_EXACT ? &cost->exact : &cost->fast;
    double group = attend->ls->spec.group;
    double rows = (double)attend->gqa * args->q_tokens; /* of one KV head */
    double dims = (double)attend->ls->spec.k_dim + attend->ls->spec.v_dim;
    double chunks = attend->chunk_count;
    double tiles = (double)tokens_within(low, attend->high, (uint64_t)(attend->sink_blocks * group),
        (uint64_t)(args->sealed_blocks * group));
    double halves = (double)(attend->high - low) - tiles;
    double walk_ps = tiles * (tile->value_ps * chunks + tile->row_ps * rows) +
                     halves * (cost->half.value_ps * chunks + cost->half.row_ps * rows);

    return attend->ls->kv_heads * dims * (walk_ps + rows * cost->edge_ps) / 1000;
}

/* Whether the loop does it. */
static bool is_small(const struct attend *attend, uint64_t low)
{
    return !attend->args.is_batched && attend_cost_ns(attend, low) <= INLINE_NS_MAX;
}

/* Fill in counts from the arguments; `ret` is on the stack yet. */
static void attend_plan(struct attend *ret, const struct kvd_attend_args *args, uint64_t low)
{
    uint32_t group = ret->ls->spec.group;

    ret->gqa = args->q_heads / ret->ls->kv_heads;
    ret->block_first = (uint32_t)(low / group);
    ret->block_last =
        ret->high > low ? (uint32_t)((ret->high + group - 1) / group) : ret->block_first;
    uint32_t tokens = chunk_tokens(ret);
    ret->chunk_count = (args->q_tokens + tokens - 1) / tokens;
    ret->column_count = ret->ls->kv_heads * ret->chunk_count;
    uint32_t blocks = ret->block_last - ret->block_first;
    uint32_t runs_max = ret->column_count < PIECES_MAX ? PIECES_MAX / ret->column_count : 1;
    uint64_t run_blocks = (uint64_t)RUN_BLOCKS * ret->chunk_count;
    uint64_t run_blocks_min = (blocks + runs_max - 1) / runs_max;
    run_blocks = run_blocks < run_blocks_min ? run_blocks_min : run_blocks;
    ret->run_blocks = run_blocks < UINT32_MAX ? (uint32_t)run_blocks : UINT32_MAX;
    ret->run_count = blocks == 0 ? 1 : (uint32_t)((blocks + run_blocks - 1) / run_blocks);
    ret->piece_count = ret->column_count * ret->run_count;
}

/* One charged allocation for all of it. */
static struct attend *attend_create(
    const struct attend *plan, bool on_loop, struct kvd_failure *why)
{
    struct kvd_service *service = plan->service;
    size_t pages = kvd_round_64((plan->block_last - plan->block_first) * sizeof(void *));
    size_t pieces = kvd_round_64(plan->piece_count * sizeof(struct piece));
    size_t columns = kvd_round_64(plan->column_count * sizeof(struct column));
    struct column all = {.token_count = plan->args.q_tokens};
    struct kvarn_attention_params params = column_params(plan, &all);
    size_t partials = kvd_round_64(kvarn_attention_partial_floats(&params) * plan->ls->kv_heads *
                                   plan->run_count * sizeof(float));
    size_t scratch = on_loop ? kvd_round_64(job_scratch_bytes(plan, chunk_tokens(plan))) : 0;
    size_t head = kvd_round_64(sizeof(struct attend));
    size_t bytes = head + pages + pieces + columns + partials + scratch;

    if (kvd_budget_charge(&service->budget, KVD_BUDGET_REPLIES, bytes) != 0) {
        (void)!kvd_session_fail_space(service, bytes, why);
        return NULL;
    }
    uint8_t *memory = aligned_alloc(64, bytes);
    if (memory == NULL) {
        kvd_budget_release(&service->budget, KVD_BUDGET_REPLIES, bytes);
        kvd_fail(why, KVARN_ENOMEM, "attention needs %zu bytes", bytes);
        return NULL;
    }
    struct attend *attend = (void *)memory;
    *attend = *plan;
    attend->charged_bytes = bytes;
    memory += head;
    attend->pages = (void *)memory;
    memory += pages;
    attend->pieces = (void *)memory;
    memory += pieces;
    attend->columns = (void *)memory;
    memory += columns;
    attend->partials = (void *)memory;
    attend->scratch = on_loop ? memory + partials : NULL;
    return attend;
}

void kvd_attend_start(struct kvd_service *service, const struct kvd_attend_args *args)
{
    const struct kvd_session *session = args->session;
    struct kvd_failure why = {0};
    uint64_t low;
    struct attend plan = {.service = service,
        .args = *args,
        .ls = &session->shape->layers[args->layer],
        .sink_blocks = kvd_session_sink_blocks(session)};

    KVARN_ASSERT(args->q_tokens > 0 && args->q_heads > 0);
    KVARN_ASSERT(args->q_heads % plan.ls->kv_heads == 0);
    KVARN_ASSERT(args->sealed_blocks <= session->layers[args->layer].sealed_blocks);
    if (!(fabsf(args->scale) <= SCALE_MAX)) {
        kvd_fail(&why, KVARN_EDOMAIN, "scale is not finite or beyond %g", (double)SCALE_MAX);
        args->done_cb(args->ctx, &why);
        return;
    }
    rows_range(args, 0, args->q_tokens, &low, &plan.high);
    if (kvd_session_check_range(session, args->layer, low, plan.high, &why) != 0) {
        kvd_hits_miss(&service->metrics, KVD_HITS_ATTEND, plan.high - low, (int)why.reason);
        args->done_cb(args->ctx, &why);
        return;
    }
    attend_plan(&plan, args, low);
    struct attend *attend = attend_create(&plan, is_small(&plan, low), &why);
    if (attend == NULL) {
        args->done_cb(args->ctx, &why);
        return;
    }
    for (uint32_t b = attend->block_first; b < attend->block_last; b++) {
        attend->pages[b - attend->block_first] =
            kvd_page_ref(kvd_session_reader_page(session, args->layer, b, args->sealed_blocks));
    }
    kvd_metrics_add(
        &service->metrics, KVD_METRIC_tokens_attended, (attend->high - low) * attend->ls->kv_heads);
    kvd_hits_add(&service->metrics, KVD_HITS_ATTEND, attend->high - low,
        kvd_hits_cold_tokens(&args->cold, session->shape->group, low, attend->high));
    attend_run(attend);
}
