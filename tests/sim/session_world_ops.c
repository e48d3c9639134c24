/*
 * Operations of a world: drawn from the script, predicted by the model's lengths, sent, judged.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/evict/session_evict.h"
#include "tests/sim/session_world.h"
#include "tests/support/tiles.h"

/* Pages that a reader holds, and what they must be until it lets go. */
struct world_read {
    struct kvd_session_op op; /* first */
    struct world_op *owner;
    struct kvd_session *session; /* borrowed: settled before it is dropped */
    uint32_t layer, block_first, block_count;
    uint32_t sealed_blocks; /* when its turn came */
    uint64_t length;
    struct kvd_page **pages; /* owned: refs once it had its turn */
    uint8_t **expected;      /* owned copies */
    bool had_turn;
};

static uint32_t draw(struct world *world, uint32_t count)
{
    return kvt_rng_below(&world->script, count);
}

static bool draw_one_in(struct world *world, uint32_t count)
{
    return draw(world, count) == 0;
}

static uint64_t layer_length(const struct world_session *ws, uint32_t layer)
{
    return ws->model.layers[layer].length;
}

static uint32_t draw_count(struct world *world)
{
    static const uint32_t counts[] = {1, 1, 1, 2, 5, 17, 63, 64, 65, 128, 200, 390};

    if (world->tokens_max == WORLD_TOKENS_LONG && draw_one_in(world, 3)) {
        return 1000 + draw(world, 3000);
    }
    return counts[draw(world, sizeof(counts) / sizeof(counts[0]))];
}

/* Layers that have one length, from a random one on; often all. */
static void draw_layers(
    struct world *world, const struct world_session *ws, uint32_t *ret_first, uint32_t *ret_count)
{
    uint32_t layer_count = ws->model.shape->layer_count;
    uint32_t first = draw_one_in(world, 2) ? 0 : draw(world, layer_count);
    uint32_t most = draw_one_in(world, 2) ? layer_count : 1 + draw(world, layer_count);
    uint32_t count = 1;

    while (count < most && first + count < layer_count &&
           layer_length(ws, first + count) == layer_length(ws, first)) {
        count++;
    }
    *ret_first = first;
    *ret_count = count;
}

static void poison(struct world *world, struct kvt_append *append)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    uint32_t layer = append->layer_first + draw(world, append->layer_count);
    const struct kvd_layer_shape *ls = &append->session->shape->layers[layer];
    bool is_v = draw_one_in(world, 2);
    size_t offset = kvt_append_offset(append, layer, is_v, draw(world, ls->kv_heads),
        append->start + draw(world, append->token_count));
    size_t d = draw(world, is_v ? ls->spec.v_dim : ls->spec.k_dim);

    kvarn_from_f32(append->payload + offset + d * kvarn_dtype_bytes(append->dtype), append->dtype,
        &bad[draw(world, 3)], 1);
}

static bool append_is_repeat(const struct world_session *ws, const struct kvt_append *append)
{
    for (uint32_t i = 0; i < append->layer_count; i++) {
        if (ws->last_id[append->layer_first + i] != ws->last_append_id) {
            return false;
        }
    }
    return ws->last_append_id != 0;
}

static bool lengths_are(const struct world_session *ws, uint32_t first, uint32_t count, uint64_t at)
{
    for (uint32_t i = first; i < first + count; i++) {
        if (layer_length(ws, i) != at) {
            return false;
        }
    }
    return true;
}

static bool draw_attend(struct world *world, struct world_op *op, struct world_session *ws,
    uint32_t layer, uint64_t length);

/*
 * Whether one of the blocks of tokens [first, last) was evicted, as its session says: it has to be
 * a MISS then, and right otherwise.
 */
static bool is_missing(const struct world_session *ws, uint64_t first, uint64_t last)
{
    uint32_t group = ws->model.shape->group;

    return first < last && first / group < ws->session->missing_last &&
           (last - 1) / group >= ws->session->missing_first && kvd_session_has_missing(ws->session);
}

/* What an append adds to: rows of a layer that are not sealed, and the block of the next one. */
static bool is_tail_missing(const struct world_session *ws, uint32_t layer)
{
    const struct kvt_model_layer *ml = &ws->model.layers[layer];

    return is_missing(ws, (uint64_t)ml->sealed_blocks * ws->model.shape->group, ml->length + 1);
}

static bool are_tails_missing(const struct world_session *ws, uint32_t first, uint32_t count)
{
    for (uint32_t i = first; i < first + count; i++) {
        if (is_tail_missing(ws, i)) {
            return true;
        }
    }
    return false;
}

static bool draw_append(struct world *world, struct world_op *op, struct world_session *ws)
{
    struct kvt_append *append = &op->append;
    bool is_retry = ws->last.token_count > 0 && draw_one_in(world, 8);

    if (is_retry) {
        *append = ws->last;
    } else {
        *append = (struct kvt_append){.session = ws->session,
            .token_count = draw_count(world),
            .dtype = (enum kvarn_dtype)draw(world, 3),
            .is_token_major = draw_one_in(world, 2),
            .is_rotated = draw_one_in(world, 3),
            .values = {.seed = kvt_rng_u64(&world->script)}};
        draw_layers(world, ws, &append->layer_first, &append->layer_count);
        append->start = layer_length(ws, append->layer_first);
        if (draw_one_in(world, 12)) {
            append->start += 1 + draw(world, 3);
        }
    }
    append->is_batched = draw_one_in(world, 3);
    append->epoch = ws->session->epoch;
    if (append->start + append->token_count > world->tokens_max) {
        return false;
    }
    kvt_append_fill(append);
    bool is_poisoned = !is_retry && draw_one_in(world, 15);
    if (is_poisoned) {
        poison(world, append);
    }
    bool is_stale = draw_one_in(world, 20);
    append->epoch -= is_stale ? 1 : 0;
    if (is_stale) {
        op->expected_err = KVARN_ESTALE_EPOCH;
    } else if (lengths_are(ws, append->layer_first, append->layer_count, append->start) &&
               are_tails_missing(ws, append->layer_first, append->layer_count)) {
        op->expected_err = KVARN_EMISS;
    } else if (lengths_are(ws, append->layer_first, append->layer_count, append->start)) {
        op->expected_err = is_poisoned ? KVARN_EDOMAIN : 0;
    } else if (is_retry && append_is_repeat(ws, append)) {
        op->expected_flag = true;
    } else {
        op->expected_err = KVARN_ECONFLICT;
    }
    if (append->layer_count == 1 && draw_one_in(world, 2)) {
        uint64_t length = append->start + append->token_count;
        op->has_attend = draw_attend(world, op, ws, append->layer_first, length);
    }
    return true;
}

/* Made-up runs of one layer; returns how many. */
static uint32_t draw_runs(struct world *world, const struct world_session *ws, uint32_t layer,
    struct kvd_append_run *runs)
{
    const struct kvd_shape *shape = ws->model.shape;
    uint64_t token = layer_length(ws, layer);
    uint32_t count = 0;

    if (token < shape->sink_tokens) {
        runs[count++] = (struct kvd_append_run){
            .layer = layer, .first_token = token, .token_count = shape->sink_tokens - token};
        token = shape->sink_tokens;
    }
    uint64_t records = (uint64_t)draw(world, 3) * shape->group;
    if (records > 0) {
        runs[count++] = (struct kvd_append_run){
            .layer = layer, .first_token = token, .token_count = records, .is_records = true};
        token += records;
    }
    uint64_t rows = draw(world, 2 * shape->group);
    if (rows > 0) {
        runs[count++] =
            (struct kvd_append_run){.layer = layer, .first_token = token, .token_count = rows};
    }
    return count;
}

/* Numbers of one run; records are the library's of made-up rows. Returns the bytes. */
static size_t fill_run(struct world *world, const struct kvd_shape *shape,
    const struct kvd_append_run *run, uint8_t *dst)
{
    const struct kvd_layer_shape *ls = &shape->layers[run->layer];
    size_t bytes = (size_t)kvd_append_run_bytes(shape, run);
    size_t record_bytes = kvarn_record_bytes(&ls->spec);

    if (!run->is_records) {
        for (size_t i = 0; i < bytes / 2; i++) {
            uint16_t half = kvarn_half_from_f32((float)kvt_rng_normal(&world->script));
            memcpy(dst + 2 * i, &half, sizeof(half));
        }
        return bytes;
    }
    float *k = kvt_alloc((size_t)ls->spec.group * ls->spec.k_dim * sizeof(float));
    float *v = kvt_alloc((size_t)ls->spec.group * ls->spec.v_dim * sizeof(float));
    for (size_t done = 0; done < bytes; done += record_bytes) {
        kvt_rows_fill(&world->script, k, ls->spec.group, ls->spec.k_dim, 1.0);
        kvt_rows_fill(&world->script, v, ls->spec.group, ls->spec.v_dim, 1.0);
        void *tile = kvt_tile_make(&ls->spec, KVARN_ENCODER_REFERENCE, k, v);
        kvarn_tile_to_record(&ls->spec, tile, dst + done);
        free(tile);
    }
    free(k);
    free(v);
    return bytes;
}

/* Spoil a record or a number of a run. Returns the error that must come of it. */
static int spoil_run(struct world *world, const struct kvd_shape *shape,
    const struct kvd_append_run *run, uint8_t *dst)
{
    const struct kvarn_tile_spec *spec = &shape->layers[run->layer].spec;
    size_t bytes = (size_t)kvd_append_run_bytes(shape, run);

    if (!run->is_records) {
        memset(dst + 2 * (size_t)draw(world, (uint32_t)(bytes / 2)), 0xff, 2);
        return KVARN_EDOMAIN;
    }
    size_t record_bytes = kvarn_record_bytes(spec);
    dst += draw(world, (uint32_t)(bytes / record_bytes)) * record_bytes;
    memset(dst, 0xff, record_bytes);
    return kvarn_record_validate(spec, dst, record_bytes);
}

static bool draw_tiles(struct world *world, struct world_op *op, struct world_session *ws)
{
    const struct kvd_shape *shape = ws->model.shape;
    struct kvt_tiles *tiles = &op->tiles;
    uint32_t layer_count = 1 + draw(world, shape->layer_count);
    size_t bytes = 0;

    *tiles =
        (struct kvt_tiles){.session = ws->session, .epoch = ws->session->epoch, .runs = op->runs};
    for (uint32_t i = shape->layer_count - layer_count; i < shape->layer_count; i++) {
        if (layer_length(ws, i) % shape->group == 0 &&
            layer_length(ws, i) + 5 * shape->group <= world->tokens_max) {
            tiles->run_count += draw_runs(world, ws, i, &op->runs[tiles->run_count]);
        }
    }
    for (uint32_t i = 0; i < tiles->run_count; i++) {
        bytes += (size_t)kvd_append_run_bytes(shape, &op->runs[i]);
    }
    if (tiles->run_count == 0) {
        return false;
    }
    uint8_t *payload = kvt_alloc(bytes);
    uint8_t *dst = payload;
    uint32_t bad_run = draw_one_in(world, 10) ? draw(world, tiles->run_count) : UINT32_MAX;
    for (uint32_t i = 0; i < tiles->run_count; i++) {
        size_t run_bytes = fill_run(world, shape, &op->runs[i], dst);
        op->expected_err =
            i == bad_run ? spoil_run(world, shape, &op->runs[i], dst) : op->expected_err;
        dst += run_bytes;
    }
    for (uint32_t i = 0; i < tiles->run_count; i++) {
        if (is_tail_missing(ws, op->runs[i].layer)) {
            op->expected_err = KVARN_EMISS;
        }
    }
    tiles->payload = payload;
    tiles->payload_bytes = bytes;
    return true;
}

/* A cut within a block goes on with the rows before it. */
static bool cut_is_missing(const struct world_session *ws, uint64_t length)
{
    for (uint32_t i = 0; i < ws->model.shape->layer_count; i++) {
        if (length < layer_length(ws, i) &&
            is_missing(ws, length / ws->model.shape->group * ws->model.shape->group, length)) {
            return true;
        }
    }
    return false;
}

/* SEMANTICS.md 4: the next token must find the window - 1 tokens before it. */
bool world_cut_misses(const struct world_session *ws, uint64_t length)
{
    for (uint32_t i = 0; i < ws->model.shape->layer_count; i++) {
        const struct kvt_model_layer *ml = &ws->model.layers[i];
        uint64_t kept_first = (uint64_t)ml->dropped_blocks * ws->model.shape->group;
        uint64_t window = ml->ls->window;
        if (window > 0 && length > 0 && length < ml->length &&
            (length < window ? 0 : length - window + 1) < kept_first) {
            return true;
        }
    }
    return cut_is_missing(ws, length);
}

static uint64_t longest_of(const struct world_session *ws)
{
    uint64_t longest = 0;

    for (uint32_t i = 0; i < ws->model.shape->layer_count; i++) {
        longest = layer_length(ws, i) > longest ? layer_length(ws, i) : longest;
    }
    return longest;
}

static bool draw_truncate(struct world *world, struct world_op *op, struct world_session *ws)
{
    uint64_t longest = longest_of(ws);
    uint64_t length = longest - (draw(world, 9) < longest ? draw(world, 9) : 0);

    switch (draw(world, 8)) {
    case 0:
        length = draw(world, (uint32_t)longest + 1);
        break;
    case 1:
        length = draw(world, (uint32_t)longest + 1) / ws->model.shape->group;
        length *= ws->model.shape->group;
        break;
    case 2:
        length = longest > 100 ? longest - draw(world, 100) : 0;
        break;
    case 3:
        length = longest + draw(world, 3);
        break;
    default:
        break;
    }
    length = length > longest + 3 ? 0 : length;
    op->truncate = (struct kvt_truncate){
        .session = ws->session, .epoch = ws->session->epoch, .length = length};
    if (draw_one_in(world, 20)) {
        op->truncate.epoch--;
        op->expected_err = KVARN_ESTALE_EPOCH;
    } else if (world_cut_misses(ws, length)) {
        op->expected_err = KVARN_EMISS;
    }
    return true;
}

/* SEMANTICS.md 19: what any query row sees must be stored. */
static int attend_predict(
    const struct world_session *ws, const struct kvt_attend *attend, uint64_t length)
{
    const struct kvd_attend_args *args = &attend->args;
    const struct kvt_model_layer *ml = &ws->model.layers[args->layer];
    uint64_t kept_first = (uint64_t)ml->dropped_blocks * ws->model.shape->group;

    for (uint32_t t = 0; t < args->q_tokens; t++) {
        uint64_t p = args->position + t;
        uint64_t low = args->first;
        uint64_t high = args->last;
        if (args->is_causal) {
            high = p + 1 < high ? p + 1 : high;
            low = args->window > 0 && p + 1 > args->window + low ? p + 1 - args->window : low;
        }
        if (low < high && (low < kept_first || high > length || is_missing(ws, low, high))) {
            return KVARN_EMISS;
        }
    }
    return 0;
}

static bool draw_attend(struct world *world, struct world_op *op, struct world_session *ws,
    uint32_t layer, uint64_t length)
{
    struct kvt_attend *attend = &op->attend;
    struct kvd_attend_args *args = &attend->args;

    *attend = kvt_attend_of(ws->session, layer, 1 + draw(world, 5), kvt_rng_u64(&world->script));
    args->q_heads = (1 + draw(world, 3)) * ws->model.shape->layers[layer].kv_heads;
    args->is_causal = !draw_one_in(world, 4);
    args->is_batched = draw_one_in(world, 2);
    args->is_q_rotated = draw_one_in(world, 3);
    args->is_out_rotated = draw_one_in(world, 3);
    args->q_dtype = (enum kvarn_dtype)draw(world, 3);
    args->out_dtype = (enum kvarn_dtype)draw(world, 3);
    args->softcap = draw_one_in(world, 3) ? 5.0f : 0.0f;
    if (args->q_tokens > length || draw_one_in(world, 5)) {
        args->position = draw(world, (uint32_t)length + 1);
    }
    if (draw_one_in(world, 4)) {
        args->last = draw(world, (uint32_t)length + 2);
        args->first = draw(world, (uint32_t)args->last + 1);
    }
    if (draw_one_in(world, 4)) {
        uint64_t window = 1 + draw(world, 150);
        args->window = args->window == 0 || window < args->window ? window : args->window;
    }
    kvt_attend_resolve(attend, length);
    return true;
}

static void read_admit_cb(struct kvd_session_op *op)
{
    struct world_read *read = (struct world_read *)(void *)op;

    KVARN_ASSERT(!read->had_turn);
    read->had_turn = true;
    read->sealed_blocks = read->session->layers[read->layer].sealed_blocks;
    KVARN_ASSERT(read->session->layers[read->layer].length == read->length);
    for (uint32_t i = 0; i < read->block_count; i++) {
        read->pages[i] = kvd_page_ref(kvd_session_reader_page(
            read->session, read->layer, read->block_first + i, read->sealed_blocks));
    }
}

static bool draw_read(struct world *world, struct world_op *op, struct world_session *ws)
{
    uint32_t layer = draw(world, ws->model.shape->layer_count);
    const struct kvt_model_layer *ml = &ws->model.layers[layer];
    uint32_t sinks = ws->model.shape->sink_tokens / ws->model.shape->group;
    uint64_t blocks = (ml->length + ws->model.shape->group - 1) / ws->model.shape->group;

    if (blocks <= ml->dropped_blocks ||
        is_missing(ws, (uint64_t)ml->dropped_blocks * ws->model.shape->group, ml->length)) {
        return false; /* it takes pages without asking */
    }
    struct world_read *read = kvt_alloc(sizeof(*read));
    op->read = read;
    read->owner = op;
    read->session = ws->session;
    read->layer = layer;
    read->block_first = ml->dropped_blocks;
    read->block_count = (uint32_t)blocks - ml->dropped_blocks;
    read->length = ml->length;
    read->pages = kvt_alloc(read->block_count * sizeof(*read->pages));
    read->expected = kvt_alloc(read->block_count * sizeof(*read->expected));
    for (uint32_t i = 0; i < read->block_count; i++) {
        uint32_t b = read->block_first + i;
        bool is_tiles = b >= sinks && b < ml->sealed_blocks;
        size_t bytes = is_tiles ? ml->ls->tile_page_bytes : ml->ls->rows_page_bytes;
        read->expected[i] = kvt_alloc(bytes);
        memcpy(read->expected[i],
            is_tiles ? (void *)ml->blocks[b].tiles : (void *)ml->blocks[b].rows, bytes);
    }
    read->op.layer_first = layer;
    read->op.layer_count = 1;
    read->op.admit_cb = read_admit_cb;
    return true;
}

bool world_draw(struct world *world, struct world_op *op, struct world_session *ws)
{
    static const enum world_kind kinds[] = {WORLD_APPEND, WORLD_APPEND, WORLD_APPEND, WORLD_APPEND,
        WORLD_TILES, WORLD_TRUNCATE, WORLD_FORK, WORLD_REORDER, WORLD_ATTEND, WORLD_ATTEND,
        WORLD_ATTEND, WORLD_READ};
    uint32_t layer = draw(world, ws->model.shape->layer_count);

    op->kind = kinds[draw(world, sizeof(kinds) / sizeof(kinds[0]))];
    switch (op->kind) {
    case WORLD_APPEND:
        return draw_append(world, op, ws);
    case WORLD_TILES:
        return draw_tiles(world, op, ws);
    case WORLD_TRUNCATE:
        return draw_truncate(world, op, ws);
    case WORLD_FORK:
        return world_draw_fork(world, op, ws);
    case WORLD_REORDER:
        return world_draw_reorder(world, op);
    case WORLD_ATTEND:
        (void)draw_attend(world, op, ws, layer, layer_length(ws, layer));
        op->expected_err = attend_predict(ws, &op->attend, layer_length(ws, layer));
        return true;
    default:
        return draw_read(world, op, ws);
    }
}

static void append_committed(void *ctx, uint32_t sealed_blocks)
{
    struct kvt_append *append = ctx;
    struct world_op *op =
        (struct world_op *)(void *)((uint8_t *)append - offsetof(struct world_op, append));

    kvt_attend_snapshot(&op->world->rig, &op->attend, sealed_blocks);
}

int world_send(struct world *world, struct world_op *op, struct world_session *ws)
{
    struct kvt_rig *rig = &world->rig;

    switch (op->kind) {
    case WORLD_APPEND:
        op->append.committed_cb = op->has_attend ? append_committed : NULL;
        return kvt_append_begin(rig, &op->append);
    case WORLD_TILES:
        return kvt_tiles_begin(rig, &op->tiles);
    case WORLD_TRUNCATE:
        return kvt_truncate_begin(rig, &op->truncate);
    case WORLD_FORK:
        return kvt_fork_begin(rig, &op->fork);
    case WORLD_REORDER:
        return kvt_reorder_begin(rig, &op->reorder);
    case WORLD_ATTEND:
        kvt_attend_begin(rig, &op->attend);
        return 0;
    default:
        kvd_session_enqueue(ws->session, &op->read->op);
        return 0;
    }
}

static void append_apply(struct world *world, struct world_op *op, struct world_session *ws)
{
    const struct kvt_append *append = &op->append;
    uint32_t sealed = ws->model.layers[append->layer_first].sealed_blocks;

    if (!op->expected_flag) {
        if (op->has_attend) {
            /* The window as it is before the append drops more of it. */
            uint64_t length = append->start + append->token_count;
            op->expected_attend_err = attend_predict(ws, &op->attend, length);
        }
        uint32_t dropped = ws->model.layers[append->layer_first].dropped_blocks;
        kvt_model_append(&ws->model, append);
        ws->last = *append;
        ws->last.payload = NULL;
        ws->last.committed_cb = NULL;
        ws->last_append_id = ++world->append_ids;
        for (uint32_t i = 0; i < append->layer_count; i++) {
            ws->last_id[append->layer_first + i] = ws->last_append_id;
        }
        if (op->has_attend && op->expected_attend_err == 0) {
            /* Rows stay in the model when it drops them, so it can still read as the snapshot did.
             */
            uint32_t now = ws->model.layers[append->layer_first].dropped_blocks;
            ws->model.layers[append->layer_first].dropped_blocks = dropped;
            kvt_model_attend(&ws->model, &op->attend, sealed);
            ws->model.layers[append->layer_first].dropped_blocks = now;
        }
        return;
    }
    if (op->has_attend) {
        op->expected_attend_err =
            attend_predict(ws, &op->attend, layer_length(ws, append->layer_first));
        if (op->expected_attend_err == 0) {
            kvt_model_attend(&ws->model, &op->attend, sealed);
        }
    }
}

static void last_forget(struct world_session *ws)
{
    memset(ws->last_id, 0, sizeof(ws->last_id));
    ws->last_append_id = 0;
}

void world_apply(struct world *world, struct world_op *op, struct world_session *ws)
{
    if (op->expected_err != 0) {
        return;
    }
    switch (op->kind) {
    case WORLD_APPEND:
        append_apply(world, op, ws);
        break;
    case WORLD_TILES:
        kvt_model_tiles(&ws->model, &op->tiles);
        world->append_ids++;
        for (uint32_t i = 0; i < op->tiles.run_count; i++) {
            ws->last_id[op->runs[i].layer] = world->append_ids;
        }
        break;
    case WORLD_TRUNCATE:
        if (op->truncate.length < longest_of(ws)) {
            last_forget(ws);
        }
        op->expected_flag = kvt_model_truncate(&ws->model, op->truncate.length);
        break;
    case WORLD_FORK:
        kvt_model_copy(&op->fork_model, &ws->model);
        op->expected_flag = kvt_model_truncate(&op->fork_model, op->fork.length);
        break;
    case WORLD_REORDER:
        world_apply_reorder(world, op);
        break;
    case WORLD_ATTEND:
        kvt_model_attend(
            &ws->model, &op->attend, ws->model.layers[op->attend.args.layer].sealed_blocks);
        break;
    default:
        break;
    }
}

/* Rows below the length, or whole tiles. */
static bool read_block_equal(const struct world_read *read, uint32_t i)
{
    const struct kvd_layer_shape *ls = &read->session->shape->layers[read->layer];
    uint32_t b = read->block_first + i;
    uint64_t first = (uint64_t)b * ls->spec.group;
    uint64_t count = read->length - first < ls->spec.group ? read->length - first : ls->spec.group;
    const uint8_t *data = kvd_page_data(read->pages[i]);

    if (read->pages[i]->page_class == KVD_PAGE_TILES) {
        return memcmp(data, read->expected[i], ls->tile_page_bytes) == 0;
    }
    for (uint32_t head = 0; head < ls->kv_heads; head++) {
        size_t k = kvd_rows_k_offset(ls, head), v = kvd_rows_v_offset(ls, head);
        if (memcmp(data + k, read->expected[i] + k, count * ls->spec.k_dim * 2) != 0 ||
            memcmp(data + v, read->expected[i] + v, count * ls->spec.v_dim * 2) != 0) {
            return false;
        }
    }
    return true;
}

static void wrong(struct world *world, const struct world_op *op, const char *what, int got)
{
    static const char *const names[WORLD_KIND_COUNT] = {
        "append", "tiles", "truncate", "attend", "fork", "reorder", "read"};

    if (world->wrong++ < 5) {
        printf("operation %u, %s: %s (expected %d, got %d)\n", op->number, names[op->kind], what,
            op->expected_err, got);
    }
}

void world_read_end(struct world *world, struct world_op *op)
{
    struct world_read *read = op->read;

    if (!read->had_turn) {
        wrong(world, op, "never had its turn", 0);
        return;
    }
    for (uint32_t i = 0; i < read->block_count; i++) {
        if (!read_block_equal(read, i)) {
            wrong(world, op, "a page changed under its reader", (int)i);
            break;
        }
    }
    for (uint32_t i = 0; i < read->block_count; i++) {
        kvd_page_unref(&world->rig.service.pages, read->pages[i]);
    }
}

void world_read_refs(const struct world_op *op, struct kvt_refs *refs)
{
    for (uint32_t i = 0; op->read->had_turn && i < op->read->block_count; i++) {
        kvt_refs_add_page(refs, op->read->pages[i]);
    }
}

static bool is_shortage(int err)
{
    return err == KVARN_ENOSPC || err == KVARN_ERETRY_LATER || err == KVARN_ENOMEM;
}

static void digest(struct world *world, const void *data, size_t bytes)
{
    const uint8_t *p = data;

    for (size_t i = 0; i < bytes; i++) {
        world->digest = (world->digest ^ p[i]) * UINT64_C(0x100000001b3);
    }
}

static void judge_answer(struct world *world, struct world_op *op, int expected_err)
{
    const struct kvt_attend *attend = &op->attend;
    int err = attend->outcome.why.err;
    double limits[] = {[KVARN_F16] = 1e-3, [KVARN_BF16] = 5e-3, [KVARN_F32] = 2e-4};

    digest(world, &err, sizeof(err));
    if (op->may_fail && is_shortage(err)) {
        world->refused++;
        return;
    }
    if (attend->outcome.done_count != 1 || err != expected_err) {
        wrong(world, op, "its attention ended otherwise", err);
        return;
    }
    if (err != 0) {
        return;
    }
    double error = kvt_attend_error(attend);
    if (!(error <= limits[attend->args.out_dtype])) {
        printf("error %g\n", error);
        wrong(world, op, "its answer is not attention", err);
    }
    digest(world, attend->out, attend->out_bytes);
    digest(world, attend->lse, attend->lse_bytes);
}

void world_judge(struct world *world, struct world_op *op)
{
    const struct kvt_outcome *const outcomes[WORLD_KIND_COUNT] = {
        [WORLD_APPEND] = &op->append.outcome,
        [WORLD_TILES] = &op->tiles.outcome,
        [WORLD_TRUNCATE] = &op->truncate.outcome,
        [WORLD_FORK] = &op->fork.outcome,
        [WORLD_REORDER] = &op->reorder.outcome,
    };
    const struct kvt_outcome *outcome = outcomes[op->kind];

    world->tried++;
    world->tried_by_kind[op->kind]++;
    if (op->kind == WORLD_ATTEND) {
        judge_answer(world, op, op->expected_err);
        world->missed += op->attend.outcome.why.reason == KVARND__MISS_REASON__MISS_EVICTED;
    }
    if (outcome == NULL) {
        return;
    }
    digest(world, &outcome->why.err, sizeof(outcome->why.err));
    world->missed += outcome->why.reason == KVARND__MISS_REASON__MISS_EVICTED;
    if (op->may_fail && is_shortage(outcome->why.err)) {
        world->refused++;
        return;
    }
    if (outcome->done_count != 1 || outcome->why.err != op->expected_err ||
        (outcome->why.err == 0 && outcome->is_flagged != op->expected_flag)) {
        printf("%s\n", outcome->why.text);
        wrong(world, op, outcome->is_flagged ? "flagged, ended otherwise" : "ended otherwise",
            outcome->why.err);
    } else if (op->has_attend && outcome->why.err == 0) {
        judge_answer(world, op, op->expected_attend_err);
    }
}

void world_op_free(struct world_op *op)
{
    if (op->fork_model.layers != NULL) {
        kvt_model_fini(&op->fork_model);
    }
    kvt_append_fini(&op->append);
    kvt_attend_fini(&op->attend);
    free((void *)(uintptr_t)op->tiles.payload);
    if (op->read != NULL) {
        for (uint32_t i = 0; i < op->read->block_count; i++) {
            free(op->read->expected[i]);
        }
        free(op->read->expected);
        free(op->read->pages);
        free(op->read);
    }
    free(op);
}
