/* What a session should hold, kept the simple way. */
#include "tests/support/session_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "lib/base/assert.h"
#include "server/service.h"
#include "server/session/session_blocks.h"
#include "tests/support/attention_f64.h"
#include "tests/support/tiles.h"

#define PRINTED_MAX 5

static uint32_t sinks_of(const struct kvt_model *model)
{
    return model->shape->sink_tokens / model->shape->group;
}

void kvt_model_init(struct kvt_model *model, const struct kvd_session *session, uint64_t tokens_max)
{
    const struct kvd_shape *shape = session->shape;

    *model = (struct kvt_model){.shape = shape,
        .seal_lag = session->options.seal_lag,
        .encoder = session->options.encoder,
        .layer_count = shape->layer_count,
        .block_room = (uint32_t)(tokens_max / shape->group) + 1};
    model->layers = kvt_alloc(shape->layer_count * sizeof(*model->layers));
    for (uint32_t i = 0; i < shape->layer_count; i++) {
        model->layers[i].ls = &shape->layers[i];
        model->layers[i].blocks = kvt_alloc(model->block_room * sizeof(struct kvt_model_block));
    }
}

static void tiles_forget(struct kvt_model_block *block)
{
    free(block->tiles);
    block->tiles = NULL;
}

static void block_forget(struct kvt_model_block *block)
{
    tiles_forget(block);
    free(block->rows);
    block->rows = NULL;
}

void kvt_model_fini(struct kvt_model *model)
{
    for (uint32_t i = 0; i < model->layer_count; i++) {
        for (uint32_t b = 0; b < model->block_room; b++) {
            block_forget(&model->layers[i].blocks[b]);
        }
        free(model->layers[i].blocks);
    }
    free(model->layers);
}

static void *bytes_copy(const void *from, size_t bytes)
{
    return from == NULL ? NULL : memcpy(kvt_alloc(bytes), from, bytes);
}

void kvt_model_copy(struct kvt_model *model, const struct kvt_model *from)
{
    *model = *from;
    model->layers = bytes_copy(from->layers, from->shape->layer_count * sizeof(*from->layers));
    for (uint32_t i = 0; i < from->shape->layer_count; i++) {
        const struct kvt_model_layer *ml = &from->layers[i];
        struct kvt_model_block *blocks = kvt_alloc(from->block_room * sizeof(*blocks));
        for (uint32_t b = 0; b < from->block_room; b++) {
            blocks[b].rows = bytes_copy(ml->blocks[b].rows, ml->ls->rows_page_bytes);
            blocks[b].tiles = bytes_copy(ml->blocks[b].tiles, ml->ls->tile_page_bytes);
        }
        model->layers[i].blocks = blocks;
    }
}

/* Row `row` of a head's K or V in a block of rows. */
static uint16_t *row_at(
    const struct kvd_layer_shape *ls, uint16_t *rows, bool is_v, uint32_t head, uint64_t row)
{
    size_t dim = is_v ? ls->spec.v_dim : ls->spec.k_dim;
    size_t before = is_v ? (size_t)ls->kv_heads * ls->spec.group * ls->spec.k_dim : 0;

    return rows + before + ((size_t)head * ls->spec.group + row) * dim;
}

static struct kvt_model_block *block_for_rows(struct kvt_model_layer *ml, uint64_t token)
{
    struct kvt_model_block *block = &ml->blocks[token / ml->ls->spec.group];

    if (block->rows == NULL) {
        block->rows = kvt_alloc(ml->ls->rows_page_bytes);
    }
    return block;
}

/* The tiles of all heads that the library makes of a block's rows. */
static void block_seal(const struct kvt_model *model, struct kvt_model_layer *ml, uint32_t b)
{
    const struct kvd_layer_shape *ls = ml->ls;
    const struct kvarn_tile_spec *spec = &ls->spec;
    struct kvt_model_block *block = &ml->blocks[b];
    size_t k_count = (size_t)spec->group * spec->k_dim, v_count = (size_t)spec->group * spec->v_dim;
    float *k = kvt_alloc(k_count * sizeof(float)), *v = kvt_alloc(v_count * sizeof(float));
    void *scratch = kvt_alloc(kvarn_encode_scratch_bytes(spec));
    bool is_bare_start = b == 0 && model->shape->sink_tokens == 0;

    block->tiles = kvt_alloc(ls->tile_page_bytes);
    for (uint32_t head = 0; head < ls->kv_heads; head++) {
        kvarn_to_f32(k, row_at(ls, block->rows, false, head, 0), KVARN_F16, k_count);
        kvarn_to_f32(v, row_at(ls, block->rows, true, head, 0), KVARN_F16, v_count);
        (void)kvarn_tile_encode(spec, is_bare_start ? KVARN_ENCODER_REFERENCE : model->encoder, k,
            v, block->tiles + head * ls->tile_bytes, scratch);
    }
    free(k);
    free(v);
    free(scratch);
}

/* What follows from a layer's length: SEMANTICS.md 2 and 4. */
static void layer_settle(struct kvt_model *model, struct kvt_model_layer *ml)
{
    const uint64_t group = model->shape->group;
    const uint64_t kept = ml->ls->window + group + model->seal_lag;

    while (ml->ls->window > 0 && ml->length >= kept + (ml->dropped_blocks + 1) * group) {
        ml->dropped_blocks++;
    }
    for (uint32_t b = ml->sealed_blocks; (b + 1) * group + model->seal_lag <= ml->length; b++) {
        ml->sealed_blocks = b + 1;
    }
    for (uint32_t b = sinks_of(model); b < ml->sealed_blocks; b++) {
        if (b >= ml->dropped_blocks && ml->blocks[b].tiles == NULL) {
            block_seal(model, ml, b);
        }
    }
}

/* Numbers of a payload -> rows of one head. */
static void rows_store(struct kvt_model_layer *ml, const struct kvarn_rows_in *in, bool is_v,
    uint32_t head, uint64_t token)
{
    for (size_t r = 0; r < in->rows; r++) {
        struct kvt_model_block *block = block_for_rows(ml, token + r);
        struct kvarn_rows_in one = *in;
        size_t bad_row;
        one.src = (const uint8_t *)in->src + r * in->src_stride * kvarn_dtype_bytes(in->dtype);
        one.rows = 1;
        uint16_t *dst = row_at(ml->ls, block->rows, is_v, head, (token + r) % ml->ls->spec.group);
        if (kvarn_rows_to_half(&one, dst, &bad_row) != 0) {
            abort(); /* the caller asked to store what must be refused */
        }
    }
}

/* Tokens that a layer has room for. */
static uint64_t room_of(const struct kvt_model *model)
{
    return (uint64_t)model->block_room * model->shape->group;
}

void kvt_model_append(struct kvt_model *model, const struct kvt_append *append)
{
    KVARN_ASSERT(append->start + append->token_count <= room_of(model));
    for (uint32_t i = 0; i < append->layer_count; i++) {
        uint32_t layer = append->layer_first + i;
        struct kvt_model_layer *ml = &model->layers[layer];
        for (uint32_t n = 0; n < 2u * ml->ls->kv_heads; n++) {
            bool is_v = n % 2 == 1;
            uint32_t dim = is_v ? ml->ls->spec.v_dim : ml->ls->spec.k_dim;
            struct kvarn_rows_in in = {.src = append->payload + kvt_append_offset(append, layer,
                                                                    is_v, n / 2, append->start),
                .dtype = append->dtype,
                .src_stride = append->is_token_major ? (size_t)ml->ls->kv_heads * dim : dim,
                .rows = append->token_count,
                .head_dim = dim,
                .rotated = append->is_rotated};
            rows_store(ml, &in, is_v, n / 2, append->start);
        }
        ml->length += append->token_count;
        layer_settle(model, ml);
    }
}

/* Blocks of records -> tiles; returns the bytes they took. */
static size_t records_store(
    struct kvt_model_layer *ml, const struct kvd_append_run *run, const uint8_t *src)
{
    const struct kvd_layer_shape *ls = ml->ls;
    size_t record_bytes = kvarn_record_bytes(&ls->spec);
    uint64_t first = run->first_token / ls->spec.group;
    uint64_t count = run->token_count / ls->spec.group;

    for (uint64_t n = 0; n < count * ls->kv_heads; n++) {
        struct kvt_model_block *block = &ml->blocks[first + n / ls->kv_heads];
        if (block->tiles == NULL) {
            block->tiles = kvt_alloc(ls->tile_page_bytes);
        }
        kvarn_tile_from_record(
            &ls->spec, src + n * record_bytes, block->tiles + n % ls->kv_heads * ls->tile_bytes);
    }
    ml->sealed_blocks = (uint32_t)(first + count);
    return (size_t)(count * ls->kv_heads) * record_bytes;
}

static size_t stored_rows_store(
    struct kvt_model_layer *ml, const struct kvd_append_run *run, const uint8_t *src)
{
    const uint8_t *start = src;

    for (uint32_t n = 0; n < 2u * ml->ls->kv_heads; n++) {
        bool is_v = n >= ml->ls->kv_heads;
        uint32_t dim = is_v ? ml->ls->spec.v_dim : ml->ls->spec.k_dim;
        struct kvarn_rows_in in = {.src = src,
            .dtype = KVARN_F16,
            .src_stride = dim,
            .rows = run->token_count,
            .head_dim = dim,
            .rotated = true};
        rows_store(ml, &in, is_v, n % ml->ls->kv_heads, run->first_token);
        src += run->token_count * dim * sizeof(uint16_t);
    }
    return (size_t)(src - start);
}

void kvt_model_tiles(struct kvt_model *model, const struct kvt_tiles *tiles)
{
    const uint8_t *src = tiles->payload;

    for (uint32_t i = 0; i < tiles->run_count; i++) {
        const struct kvd_append_run *run = &tiles->runs[i];
        struct kvt_model_layer *ml = &model->layers[run->layer];
        KVARN_ASSERT(run->first_token + run->token_count <= room_of(model));
        src += run->is_records ? records_store(ml, run, src) : stored_rows_store(ml, run, src);
        ml->length += run->token_count;
        if (i + 1 == tiles->run_count || tiles->runs[i + 1].layer != run->layer) {
            layer_settle(model, ml);
        }
    }
}

/* A sealed block's rows become what its tiles decode to. */
static void block_reopen(struct kvt_model_layer *ml, uint32_t b)
{
    const struct kvd_layer_shape *ls = ml->ls;
    const struct kvarn_tile_spec *spec = &ls->spec;
    struct kvt_model_block *block = block_for_rows(ml, (uint64_t)b * spec->group);
    size_t k_count = (size_t)spec->group * spec->k_dim, v_count = (size_t)spec->group * spec->v_dim;
    float *k = kvt_alloc(k_count * sizeof(float)), *v = kvt_alloc(v_count * sizeof(float));

    for (uint32_t head = 0; head < ls->kv_heads; head++) {
        kvarn_tile_decode(spec, block->tiles + head * ls->tile_bytes, k, v);
        kvarn_from_f32(row_at(ls, block->rows, false, head, 0), KVARN_F16, k, k_count);
        kvarn_from_f32(row_at(ls, block->rows, true, head, 0), KVARN_F16, v, v_count);
    }
    free(k);
    free(v);
    tiles_forget(block);
}

bool kvt_model_truncate(struct kvt_model *model, uint64_t length)
{
    const uint32_t group = model->shape->group;
    bool is_lossy = false;

    for (uint32_t i = 0; i < model->shape->layer_count; i++) {
        struct kvt_model_layer *ml = &model->layers[i];
        if (ml->length <= length) {
            continue;
        }
        uint32_t b = (uint32_t)(length / group);
        if (length % group != 0 && b < ml->sealed_blocks && b >= sinks_of(model)) {
            block_reopen(ml, b);
            is_lossy = true;
        }
        for (uint32_t c = b; c < ml->sealed_blocks; c++) {
            tiles_forget(&ml->blocks[c]);
        }
        ml->length = length;
        ml->sealed_blocks = ml->sealed_blocks < b ? ml->sealed_blocks : b;
        ml->dropped_blocks = ml->dropped_blocks < b ? ml->dropped_blocks : b;
    }
    return is_lossy;
}

void kvt_model_read(const struct kvt_model *model, uint32_t layer, uint32_t head,
    uint32_t sealed_blocks, float *k, float *v)
{
    const struct kvt_model_layer *ml = &model->layers[layer];
    const struct kvarn_tile_spec *spec = &ml->ls->spec;
    size_t k_count = (size_t)spec->group * spec->k_dim, v_count = (size_t)spec->group * spec->v_dim;
    float *block_k = kvt_alloc(k_count * sizeof(float)),
          *block_v = kvt_alloc(v_count * sizeof(float));

    memset(k, 0, ml->length * spec->k_dim * sizeof(float));
    memset(v, 0, ml->length * spec->v_dim * sizeof(float));
    for (uint64_t b = ml->dropped_blocks; b * spec->group < ml->length; b++) {
        struct kvt_model_block *block = &ml->blocks[b];
        uint64_t first = b * spec->group;
        uint64_t count = ml->length - first < spec->group ? ml->length - first : spec->group;
        if (b >= sinks_of(model) && b < sealed_blocks) {
            kvarn_tile_decode(spec, block->tiles + head * ml->ls->tile_bytes, block_k, block_v);
        } else {
            kvarn_to_f32(block_k, row_at(ml->ls, block->rows, false, head, 0), KVARN_F16, k_count);
            kvarn_to_f32(block_v, row_at(ml->ls, block->rows, true, head, 0), KVARN_F16, v_count);
        }
        memcpy(k + first * spec->k_dim, block_k, count * spec->k_dim * sizeof(float));
        memcpy(v + first * spec->v_dim, block_v, count * spec->v_dim * sizeof(float));
    }
    free(block_k);
    free(block_v);
}

/* q of the query heads of one KV head, rotated floats. */
static float *head_query(const struct kvt_attend *attend, uint32_t head, uint32_t gqa)
{
    const struct kvd_attend_args *args = &attend->args;
    uint32_t k_dim = args->session->shape->layers[args->layer].spec.k_dim;
    size_t rows = (size_t)gqa * args->q_tokens;
    float *q = kvt_alloc(rows * k_dim * sizeof(float));

    kvarn_to_f32(q, attend->q + head * rows * k_dim * kvarn_dtype_bytes(args->q_dtype),
        args->q_dtype, rows * k_dim);
    if (!args->is_q_rotated) {
        kvarn_rotate(q, rows, k_dim);
    }
    return q;
}

/* One KV head's part of the answer. */
static void head_expect(const struct kvt_model *model, struct kvt_attend *attend, uint32_t head,
    uint32_t sealed_blocks, const struct kvarn_attention_params *params)
{
    const uint64_t length = model->layers[attend->args.layer].length;
    size_t rows = (size_t)params->q_heads * params->q_tokens;
    size_t dim = params->spec.v_dim;
    float *k = kvt_alloc(length * params->spec.k_dim * sizeof(float));
    float *v = kvt_alloc(length * dim * sizeof(float));
    double *out = kvt_alloc(rows * dim * sizeof(double));
    float *expected = attend->out_expected + head * rows * dim;
    float *q = head_query(attend, head, params->q_heads);

    kvt_model_read(model, attend->args.layer, head, sealed_blocks, k, v);
    kvt_attention_f64(params, q, k, v, length, out, attend->lse_expected + head * rows);
    for (size_t i = 0; i < rows * dim; i++) {
        expected[i] = (float)out[i];
    }
    if (!attend->args.is_out_rotated) {
        kvarn_rotate(expected, rows, (uint32_t)dim);
    }
    free(k);
    free(v);
    free(out);
    free(q);
}

void kvt_model_attend(
    const struct kvt_model *model, struct kvt_attend *attend, uint32_t sealed_blocks)
{
    const struct kvd_attend_args *args = &attend->args;
    const struct kvt_model_layer *ml = &model->layers[args->layer];
    size_t rows = (size_t)args->q_heads * args->q_tokens;

    if (attend->q == NULL) {
        kvt_attend_fill(attend);
    }
    kvt_attend_resolve(attend, ml->length);
    struct kvarn_attention_params params = {.spec = ml->ls->spec,
        .q_heads = args->q_heads / ml->ls->kv_heads,
        .q_tokens = args->q_tokens,
        .position = args->position,
        .first = args->first,
        .last = args->last,
        .window = args->is_causal ? args->window : 0,
        .scale = args->scale,
        .softcap = args->softcap,
        .causal = args->is_causal};
    attend->out_expected = kvt_alloc(rows * ml->ls->spec.v_dim * sizeof(float));
    attend->lse_expected = kvt_alloc(rows * sizeof(double));
    for (uint32_t head = 0; head < ml->ls->kv_heads; head++) {
        head_expect(model, attend, head, sealed_blocks, &params);
    }
}

/* Difference of a number from its definition, relative to it where that is above 1. */
static double number_error(double got, double expected)
{
    if (isinf(got) && isinf(expected) && (got < 0) == (expected < 0)) {
        return 0;
    }
    double error = fabs(got - expected) / fmax(1, fabs(expected));
    return isfinite(error) ? error : (double)INFINITY;
}

double kvt_attend_error(const struct kvt_attend *attend)
{
    const struct kvd_attend_args *args = &attend->args;
    size_t rows = attend->lse_bytes / sizeof(float);
    size_t count = attend->out_bytes / kvarn_dtype_bytes(args->out_dtype);
    float *got = kvt_alloc(count * sizeof(float));
    double worst = 0;

    kvarn_to_f32(got, attend->out, args->out_dtype, count);
    for (size_t i = 0; i < count; i++) {
        worst = fmax(worst, number_error((double)got[i], (double)attend->out_expected[i]));
    }
    for (size_t i = 0; i < rows; i++) {
        worst = fmax(worst, number_error((double)attend->lse[i], attend->lse_expected[i]));
    }
    free(got);
    return worst;
}

/* What a check found. */
struct check {
    const struct kvd_session *session;
    const struct kvt_model *model;
    unsigned wrong;
    struct kvd_session_usage usage; /* counted page by page */
};

static void check_that(
    struct check *check, bool is_true, const char *what, uint32_t layer, uint32_t b)
{
    if (!is_true && check->wrong++ < PRINTED_MAX) {
        printf("layer %u, block %u: %s\n", layer, b, what);
    }
}

static void usage_count(struct kvd_session_usage *usage, const struct kvd_page *page, bool is_held)
{
    if (page == NULL) {
        return;
    }
    if (is_held) {
        usage->pages[page->page_class]++;
        usage->bytes[page->page_class] += kvd_page_bytes(page);
    } else {
        usage->reserved_bytes += kvd_page_bytes(page);
    }
}

/* Rows of a block below the layer's length. */
static bool rows_equal(const struct kvt_model_layer *ml, const struct kvd_page *page, uint32_t b)
{
    const struct kvd_layer_shape *ls = ml->ls;
    uint64_t first = (uint64_t)b * ls->spec.group;
    uint64_t count = ml->length - first < ls->spec.group ? ml->length - first : ls->spec.group;

    for (uint32_t n = 0; n < 2u * ls->kv_heads; n++) {
        bool is_v = n % 2 == 1;
        size_t bytes = count * (is_v ? ls->spec.v_dim : ls->spec.k_dim) * sizeof(uint16_t);
        if (memcmp(row_at(ls, kvd_page_data(page), is_v, n / 2, 0),
                row_at(ls, ml->blocks[b].rows, is_v, n / 2, 0), bytes) != 0) {
            return false;
        }
    }
    return kvd_page_filled(page) >= count;
}

static void check_tiles(struct check *check, uint32_t layer, uint32_t b)
{
    const struct kvt_model_layer *ml = &check->model->layers[layer];
    const struct kvd_page *page = kvd_session_tiles(check->session, b, layer);
    size_t bytes = ml->ls->tile_page_bytes;

    if (page == NULL || kvd_session_rows(check->session, b, layer) != NULL) {
        check_that(check, false, "a sealed block has other pages than its tiles", layer, b);
        return;
    }
    check_that(check, memcmp(kvd_page_data(page), ml->blocks[b].tiles, bytes) == 0, "tiles differ",
        layer, b);
    check_that(check,
        kvd_page_checksum_matches(kvd_page_checksum(page), XXH3_64bits(kvd_page_data(page), bytes)),
        "bad checksum", layer, b);
}

static void check_block(struct check *check, uint32_t layer, uint32_t b)
{
    const struct kvt_model_layer *ml = &check->model->layers[layer];
    const struct kvd_block *block = kvd_session_block(check->session, b);
    const struct kvd_page_store *pages = &check->session->service->pages;
    const struct kvd_page *rows = block == NULL ? NULL : kvd_block_rows(pages, block, layer);
    const struct kvd_page *tiles = block == NULL ? NULL : kvd_block_tiles(pages, block, layer);
    bool is_sink = b < sinks_of(check->model);

    if (b < ml->dropped_blocks) {
        check_that(check, block == NULL || (rows == NULL && tiles == NULL),
            "dropped pages are there", layer, b);
        return;
    }
    bool is_missing = b >= check->session->missing_first && b < check->session->missing_last;
    if (block != NULL && (is_missing || block->state != KVD_BLOCK_RESIDENT)) {
        check_that(check,
            is_missing && block->state == KVD_BLOCK_MISSING && block->miss_reason != 0 &&
                rows == NULL && tiles == NULL && block->rows == NULL && block->tiles == NULL,
            "a missing block is not quite missing", layer, b);
        return;
    }
    if (block == NULL || (tiles == NULL) != is_sink) {
        check_that(check, false, "a kept block has other pages than it should", layer, b);
        return;
    }
    usage_count(&check->usage, rows, true);
    usage_count(&check->usage, tiles, b < ml->sealed_blocks);
    if (!is_sink && b < ml->sealed_blocks) {
        check_tiles(check, layer, b);
    } else if ((uint64_t)b * ml->ls->spec.group < ml->length) {
        check_that(check, rows != NULL && rows_equal(ml, rows, b), "rows differ", layer, b);
    }
    check_that(check, rows == NULL || rows->page_class == (is_sink ? KVD_PAGE_SINK : KVD_PAGE_TAIL),
        "rows are of the wrong class", layer, b);
}

unsigned kvt_model_check(const struct kvt_model *model, const struct kvd_session *session)
{
    struct check check = {.session = session, .model = model};
    struct kvd_session_usage usage;
    uint64_t longest = 0;

    for (uint32_t i = 0; i < model->shape->layer_count; i++) {
        const struct kvd_layer *ly = &session->layers[i];
        const struct kvt_model_layer *ml = &model->layers[i];
        check_that(&check, kvd_session_pending(session, i) == 0, "pending", i, 0);
        check_that(&check, ly->length == ml->length, "length differs", i, 0);
        check_that(&check, kvd_session_pending_length(session, i) == ly->length,
            "pending length differs", i, 0);
        check_that(&check, ly->sealed_blocks == ml->sealed_blocks, "sealed blocks differ", i, 0);
        check_that(&check, ly->dropped_blocks == ml->dropped_blocks, "dropped blocks differ", i, 0);
        longest = ml->length > longest ? ml->length : longest;
    }
    uint64_t blocks = (longest + model->shape->group - 1) / model->shape->group;
    check_that(&check, kvd_session_block_count(session) == blocks, "block count differs", 0, 0);
    check_that(&check, TAILQ_EMPTY(&session->ops), "operations wait", 0, 0);
    for (uint32_t i = 0; i < model->shape->layer_count && check.wrong == 0; i++) {
        for (uint32_t b = 0; b < kvd_session_block_count(session); b++) {
            check_block(&check, i, b);
        }
    }
    for (uint32_t i = 0; i < model->shape->layer_count; i++) {
        uint32_t spare = session->work == NULL ? 0 : session->work->layers[i].spare_rows;
        usage_count(&check.usage, kvd_page_at(&session->service->pages, spare), false);
    }
    kvd_session_usage(session, &usage);
    check_that(&check, memcmp(&usage, &check.usage, sizeof(usage)) == 0, "usage differs", 0, 0);
    return check.wrong;
}
