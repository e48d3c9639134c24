/* A service on the fake io, and the calls of the session layer with what came of them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include <cmocka.h>

#include "server/session/session_blocks.h"
#include "tests/support/session_rig.h"
#include "tests/support/tiles.h"

#define SETTLE_MS_MAX 60000

static const struct kvd_layer_group small_groups[] = {
    {.layers = 2, .kv_heads = 2, .k_dim = 16, .v_dim = 16, .window = 0},
    {.layers = 1, .kv_heads = 1, .k_dim = 24, .v_dim = 8, .window = 100},
};
const struct kvd_shape_desc kvt_shape_small = {.model = "small",
    .group = 64,
    .k_bits = 2,
    .v_bits = 2,
    .sink_tokens = 64,
    .layer_groups = small_groups,
    .layer_group_count = 2};

static const struct kvd_layer_group large_groups[] = {
    {.layers = 1, .kv_heads = 8, .k_dim = 128, .v_dim = 128, .window = 0},
};
const struct kvd_shape_desc kvt_shape_large = {.model = "large",
    .group = 128,
    .k_bits = 2,
    .v_bits = 2,
    .sink_tokens = 128,
    .layer_groups = large_groups,
    .layer_group_count = 1};

static void *source_alloc(struct kvd_chunk_source *source, size_t bytes, uint32_t tenant_id)
{
    struct kvt_rig_source *self = (struct kvt_rig_source *)(void *)source;

    self->asked++;
    if (self->is_empty) {
        self->refused++;
        return NULL;
    }
    return self->inner->chunk_alloc(self->inner, bytes, tenant_id);
}

static void source_free(
    struct kvd_chunk_source *source, void *chunk, size_t bytes, uint32_t tenant_id)
{
    struct kvt_rig_source *self = (struct kvt_rig_source *)(void *)source;

    self->inner->chunk_free(self->inner, chunk, bytes, tenant_id);
}

static void source_purge(struct kvd_chunk_source *source, void *part, size_t bytes)
{
    struct kvt_rig_source *self = (struct kvt_rig_source *)(void *)source;

    self->inner->chunk_purge(self->inner, part, bytes);
}

/* The service reads its jitter from the environment. */
static void env_set(const char *name, uint64_t value)
{
    char text[32];

    (void)snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
    assert_int_equal(setenv(name, text, 1), 0);
}

static void cold_configure(struct kvt_rig *rig, const struct kvt_rig_options *options)
{
    bool is_small = options->cold_segment > 0;

    kvd_io_fake_set_disk(rig->fake, options->disk);
    free(rig->config.cold_dir);
    rig->config.cold_dir = strdup("/cold");
    assert_non_null(rig->config.cold_dir);
    rig->config.cold_segment = is_small ? options->cold_segment : UINT64_C(1) << 20;
    unsigned small = options->cold_segments > 0 ? options->cold_segments : 4;
    rig->config.cold_limit = (is_small ? small : 64) * rig->config.cold_segment;
}

void kvt_rig_init(struct kvt_rig *rig, const struct kvt_rig_options *options)
{
    char why[200] = "";

    memset(rig, 0, sizeof(*rig));
    rig->fake = kvd_io_fake_create(1 + options->life);
    assert_non_null(rig->fake);
    assert_int_equal(kvd_config_init(&rig->config), 0);
    if (options->disk != NULL) {
        cold_configure(rig, options);
    }
    rig->config.workers = options->workers;
    free(rig->config.evict_policy);
    rig->config.evict_policy =
        strdup(options->evict_policy == NULL ? "none" : options->evict_policy);
    assert_non_null(rig->config.evict_policy);
    rig->config.memory_limit =
        options->memory_limit == 0 ? UINT64_C(1) << 30 : options->memory_limit;
    env_set("KVARND_TEST_JITTER_US", options->jitter_us_max);
    env_set("KVARND_TEST_JITTER_SEED", options->jitter_seed);
    assert_int_equal(kvd_service_init(&rig->service, &rig->config, kvd_io_fake_io(rig->fake)), 0);
    rig->source = (struct kvt_rig_source){.base = {.chunk_alloc = source_alloc,
                                              .chunk_free = source_free,
                                              .chunk_purge = source_purge},
        .inner = rig->service.chunk_source};
    rig->service.pages.source = &rig->source.base;
    const struct kvd_shape_desc *desc = options->shape == NULL ? &kvt_shape_small : options->shape;
    if (kvd_shape_register(
            &rig->service.shapes, KVD_TENANT_DEFAULT, desc, &rig->shape, why, sizeof(why)) != 0) {
        fail_msg("shape: %s", why);
    }
    kvt_rig_settle(rig); /* sessions that could not come back are freed in slices */
    rig->budget_start =
        rig->service.budget.used_bytes - rig->service.budget.kind_bytes[KVD_BUDGET_COLD];
}

void kvt_rig_settle(struct kvt_rig *rig)
{
    kvd_io_fake_settle(rig->fake);
    while (kvd_workers_backlog(rig->service.workers) > 0) {
        assert_true(kvd_io_fake_wait(rig->fake, SETTLE_MS_MAX));
        kvd_io_fake_settle(rig->fake);
    }
}

void kvt_rig_fini(struct kvt_rig *rig)
{
    kvt_rig_settle(rig);
    kvd_prefix_index_fini(&rig->service.prefixes);
    kvt_rig_settle(rig);
    (void)kvd_page_store_reclaim(&rig->service.pages, UINT64_MAX);
    if (rig->service.sessions.count == 0) {
        /* What was learnt of queries and of use outlives the sessions, and so do records of shapes
         * and of drops; kvd_service_fini() sees to it. */
        const struct kvd_budget *budget = &rig->service.budget;
        assert_int_equal(budget->used_bytes - budget->kind_bytes[KVD_BUDGET_QUERIES] -
                             budget->kind_bytes[KVD_BUDGET_COLD] -
                             budget->kind_bytes[KVD_BUDGET_POLICIES],
            rig->budget_start);
    }
    kvd_service_fini(&rig->service);
    kvd_io_fake_io(rig->fake)->ops->destroy(kvd_io_fake_io(rig->fake));
    kvd_config_fini(&rig->config);
}

struct kvd_session *kvt_session_open(struct kvt_rig *rig, const char *name, uint32_t seal_lag)
{
    struct kvd_session_options options = {.encoder = KVARN_ENCODER_DEFAULT, .seal_lag = seal_lag};
    struct kvd_session *session = NULL;

    assert_int_equal(kvd_session_create(&rig->service, rig->shape, name, &options, &session), 0);
    if (name != NULL) {
        kvd_session_table_insert(&rig->service.sessions, session);
    }
    return session;
}

void kvt_session_drop(struct kvt_rig *rig, struct kvd_session *session)
{
    kvd_session_table_drop(&rig->service.sessions, session);
    kvd_session_unref(session);
}

void kvt_outcome_set(struct kvt_outcome *outcome, const struct kvd_failure *why, bool is_flagged)
{
    outcome->is_done = true;
    outcome->done_count++;
    outcome->is_flagged = is_flagged;
    outcome->why = *why;
    if (why->session != NULL) {
        outcome->epoch = why->session->epoch;
        outcome->why.session = NULL;
    }
}

/* splitmix64's finish, over the place. */
static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* Uniform in +-2 with a mean for each channel and a gain for each token, as keys have them. */
float kvt_value(const struct kvt_values *values, uint32_t layer, bool is_v, uint32_t head,
    uint64_t token, uint32_t dim)
{
    uint64_t channel =
        ((uint64_t)layer << 40) ^ ((uint64_t)is_v << 39) ^ ((uint64_t)head << 20) ^ dim;
    uint64_t place = mix(values->seed * UINT64_C(0x9e3779b97f4a7c15) + (token << 32) + 1) ^ channel;
    float noise = (float)(mix(place) >> 52) / 1024.0f - 2.0f;
    float mean = (float)(mix(channel + 7) >> 60) / 8.0f - 1.0f;
    float gain = 0.5f + (float)(mix(token + 77) >> 61) / 4.0f;

    return (noise + mean) * gain * (values->scale == 0.0f ? 1.0f : values->scale);
}

struct kvt_append kvt_append_of(
    struct kvd_session *session, uint32_t token_count, uint64_t values_seed)
{
    return (struct kvt_append){.session = session,
        .layer_count = session->shape->layer_count,
        .start = kvd_session_pending_length(session, 0),
        .token_count = token_count,
        .values = {.seed = values_seed},
        .epoch = session->epoch};
}

size_t kvt_append_offset(
    const struct kvt_append *append, uint32_t layer, bool is_v, uint32_t head, uint64_t token)
{
    const struct kvd_shape *shape = append->session->shape;
    const struct kvd_layer_shape *ls = &shape->layers[layer];
    size_t value_bytes = kvarn_dtype_bytes(append->dtype);
    size_t dim = is_v ? ls->spec.v_dim : ls->spec.k_dim;
    size_t row = token - append->start;
    size_t offset = (size_t)kvd_append_payload_bytes(shape, append->layer_first,
        layer - append->layer_first, append->token_count, append->dtype);

    if (is_v) {
        offset += (size_t)ls->kv_heads * append->token_count * ls->spec.k_dim * value_bytes;
    }
    return offset + (append->is_token_major ? row * ls->kv_heads + head
                                            : (size_t)head * append->token_count + row) *
                        dim * value_bytes;
}

static void append_fill_row(
    struct kvt_append *append, uint32_t layer, bool is_v, uint32_t head, uint64_t token)
{
    const struct kvd_layer_shape *ls = &append->session->shape->layers[layer];
    uint32_t dim = is_v ? ls->spec.v_dim : ls->spec.k_dim;
    float row[KVARN_HEAD_DIM_MAX];

    for (uint32_t d = 0; d < dim; d++) {
        row[d] = kvt_value(&append->values, layer, is_v, head, token, d);
    }
    kvarn_from_f32(append->payload + kvt_append_offset(append, layer, is_v, head, token),
        append->dtype, row, dim);
}

void kvt_append_fill(struct kvt_append *append)
{
    const struct kvd_shape *shape = append->session->shape;

    append->payload_bytes = (size_t)kvd_append_payload_bytes(
        shape, append->layer_first, append->layer_count, append->token_count, append->dtype);
    append->payload = kvt_alloc(append->payload_bytes);
    for (uint32_t i = 0; i < append->layer_count; i++) {
        uint32_t layer = append->layer_first + i;
        for (uint32_t n = 0; n < shape->layers[layer].kv_heads * append->token_count; n++) {
            uint64_t token = append->start + n % append->token_count;
            append_fill_row(append, layer, false, n / append->token_count, token);
            append_fill_row(append, layer, true, n / append->token_count, token);
        }
    }
}

static void append_done_cb(void *ctx, const struct kvd_failure *why, bool is_repeat)
{
    struct kvt_append *append = ctx;

    append->token = NULL;
    kvt_outcome_set(&append->outcome, why, is_repeat);
}

static void append_committed_cb(void *ctx, uint32_t sealed_blocks)
{
    struct kvt_append *append = ctx;

    append->committed_cb(append, sealed_blocks);
}

int kvt_append_begin(struct kvt_rig *rig, struct kvt_append *append)
{
    if (append->payload == NULL) {
        kvt_append_fill(append);
    }
    append->outcome = (struct kvt_outcome){0};
    struct kvd_append_args args = {.session = append->session,
        .epoch = append->epoch,
        .layer_first = append->layer_first,
        .layer_count = append->layer_count,
        .start = append->start,
        .token_count = append->token_count,
        .dtype = append->dtype,
        .is_token_major = append->is_token_major,
        .is_rotated = append->is_rotated,
        .is_batched = append->is_batched,
        .payload = append->payload,
        .payload_hash =
            append->is_batched ? 0 : XXH3_64bits(append->payload, append->payload_bytes),
        .prefix_kind = append->prefix_kind,
        .prefix_data = append->prefix_data,
        .deadline_ns = append->deadline_ns,
        .ctx = append,
        .committed_cb = append->committed_cb == NULL ? NULL : append_committed_cb,
        .done_cb = append_done_cb};
    return kvd_append_start(&rig->service, &args, &append->token);
}

void kvt_append_fini(struct kvt_append *append)
{
    free(append->payload);
    append->payload = NULL;
}

int kvt_append_now(struct kvt_rig *rig, struct kvt_append *append)
{
    int err = kvt_append_begin(rig, append);

    kvt_rig_settle(rig);
    kvt_append_fini(append);
    if (err != 0) {
        return err;
    }
    assert_int_equal(append->outcome.done_count, 1);
    return append->outcome.why.err;
}

static void tiles_done_cb(void *ctx, const struct kvd_failure *why, bool is_repeat)
{
    struct kvt_tiles *tiles = ctx;

    kvt_outcome_set(&tiles->outcome, why, is_repeat);
}

int kvt_tiles_begin(struct kvt_rig *rig, struct kvt_tiles *tiles)
{
    struct kvd_append_tiles_args args = {.session = tiles->session,
        .epoch = tiles->epoch,
        .runs = tiles->runs,
        .run_count = tiles->run_count,
        .payload = tiles->payload,
        .payload_hash = XXH3_64bits(tiles->payload, tiles->payload_bytes),
        .deadline_ns = tiles->deadline_ns,
        .ctx = tiles,
        .done_cb = tiles_done_cb};

    tiles->outcome = (struct kvt_outcome){0};
    return kvd_append_tiles_start(&rig->service, &args);
}

static void truncate_done_cb(void *ctx, const struct kvd_failure *why, bool is_lossy)
{
    struct kvt_truncate *truncate = ctx;

    truncate->token = NULL;
    kvt_outcome_set(&truncate->outcome, why, is_lossy);
}

int kvt_truncate_begin(struct kvt_rig *rig, struct kvt_truncate *truncate)
{
    struct kvd_truncate_args args = {.session = truncate->session,
        .epoch = truncate->epoch,
        .length = truncate->length,
        .deadline_ns = truncate->deadline_ns,
        .ctx = truncate,
        .done_cb = truncate_done_cb};

    truncate->outcome = (struct kvt_outcome){0};
    return kvd_truncate_start(&rig->service, &args, &truncate->token);
}

int kvt_truncate_now(struct kvt_rig *rig, struct kvd_session *session, uint64_t length)
{
    struct kvt_truncate truncate = {.session = session, .epoch = session->epoch, .length = length};
    int err = kvt_truncate_begin(rig, &truncate);

    kvt_rig_settle(rig);
    if (err != 0) {
        return err;
    }
    assert_int_equal(truncate.outcome.done_count, 1);
    return truncate.outcome.why.err;
}

static void fork_done_cb(
    void *ctx, const struct kvd_failure *why, const struct kvd_fork_result *result)
{
    struct kvt_fork *fork = ctx;

    fork->token = NULL;
    kvt_outcome_set(&fork->outcome, why, result != NULL && result->is_lossy);
    if (result != NULL) {
        fork->child = kvd_session_ref(result->session);
        fork->is_created = result->is_created;
    }
}

int kvt_fork_begin(struct kvt_rig *rig, struct kvt_fork *fork)
{
    struct kvd_fork_args args = {.parent = fork->parent,
        .has_epoch = true,
        .epoch = fork->epoch,
        .has_length = fork->length != UINT64_MAX,
        .length = fork->length,
        .name = fork->name,
        .may_exist = fork->may_exist,
        .deadline_ns = fork->deadline_ns,
        .ctx = fork,
        .done_cb = fork_done_cb};

    fork->outcome = (struct kvt_outcome){0};
    return kvd_fork_start(&rig->service, &args, &fork->token);
}

struct kvd_session *kvt_fork_now(struct kvt_rig *rig, struct kvd_session *parent, uint64_t length)
{
    struct kvt_fork fork = {.parent = parent, .epoch = parent->epoch, .length = length};

    assert_int_equal(kvt_fork_begin(rig, &fork), 0);
    kvt_rig_settle(rig);
    assert_int_equal(fork.outcome.done_count, 1);
    assert_int_equal(fork.outcome.why.err, 0);
    return fork.child;
}

static void reorder_done_cb(void *ctx, const struct kvd_failure *why)
{
    struct kvt_reorder *reorder = ctx;

    reorder->token = NULL;
    kvt_outcome_set(&reorder->outcome, why, false);
}

int kvt_reorder_begin(struct kvt_rig *rig, struct kvt_reorder *reorder)
{
    struct kvd_reorder_args args = {.members = reorder->members,
        .count = reorder->count,
        .deadline_ns = reorder->deadline_ns,
        .ctx = reorder,
        .done_cb = reorder_done_cb};

    reorder->outcome = (struct kvt_outcome){0};
    return kvd_reorder_start(&rig->service, &args, &reorder->token);
}

struct kvt_attend kvt_attend_of(
    struct kvd_session *session, uint32_t layer, uint32_t q_tokens, uint64_t values_seed)
{
    struct kvt_attend attend = {.values = {.seed = values_seed}};

    attend.args = (struct kvd_attend_args){.session = session,
        .layer = layer,
        .q_heads = 2u * session->shape->layers[layer].kv_heads,
        .q_tokens = q_tokens,
        .position = UINT64_MAX,
        .last = UINT64_MAX,
        .window = session->shape->layers[layer].window,
        .scale = 0.25f,
        .is_causal = true,
        .accuracy = KVARN_ACCURACY_EXACT, /* the model is in double precision */
        .q_dtype = KVARN_F16,
        .out_dtype = KVARN_F32};
    return attend;
}

void kvt_attend_fill(struct kvt_attend *attend)
{
    const struct kvd_attend_args *args = &attend->args;
    const struct kvarn_tile_spec *spec = &args->session->shape->layers[args->layer].spec;
    size_t rows = (size_t)args->q_heads * args->q_tokens;
    size_t value_bytes = kvarn_dtype_bytes(args->q_dtype);
    float row[KVARN_HEAD_DIM_MAX];

    attend->q_bytes = rows * spec->k_dim * value_bytes;
    attend->out_bytes = rows * spec->v_dim * kvarn_dtype_bytes(args->out_dtype);
    attend->lse_bytes = rows * sizeof(float);
    attend->q = kvt_alloc(attend->q_bytes);
    attend->out = kvt_alloc(attend->out_bytes);
    attend->lse = kvt_alloc(attend->lse_bytes);
    for (size_t r = 0; r < rows; r++) {
        for (uint32_t d = 0; d < spec->k_dim; d++) {
            row[d] = kvt_value(
                &attend->values, 999, false, (uint32_t)(r / args->q_tokens), r % args->q_tokens, d);
        }
        kvarn_from_f32(attend->q + r * spec->k_dim * value_bytes, args->q_dtype, row, spec->k_dim);
    }
}

static void attend_done_cb(void *ctx, const struct kvd_failure *why)
{
    struct kvt_attend *attend = ctx;

    kvt_outcome_set(&attend->outcome, why, false);
}

void kvt_attend_resolve(struct kvt_attend *attend, uint64_t length)
{
    struct kvd_attend_args *args = &attend->args;

    args->last = args->last == UINT64_MAX ? length : args->last;
    args->position = args->position == UINT64_MAX ? length - args->q_tokens : args->position;
}

void kvt_attend_snapshot(struct kvt_rig *rig, struct kvt_attend *attend, uint32_t sealed_blocks)
{
    struct kvd_attend_args *args = &attend->args;

    if (attend->q == NULL) {
        kvt_attend_fill(attend);
    }
    kvt_attend_resolve(attend, args->session->layers[args->layer].length);
    args->sealed_blocks = sealed_blocks;
    args->q = attend->q;
    args->out = attend->out;
    args->lse = attend->lse;
    args->ctx = attend;
    args->done_cb = attend_done_cb;
    kvd_attend_start(&rig->service, args);
}

static void attend_admit_cb(struct kvd_session_op *op)
{
    struct kvt_attend *attend = (struct kvt_attend *)(void *)op;
    const struct kvd_session *session = attend->args.session;

    if (session->is_dropped) {
        struct kvd_failure why = {.err = KVARN_ENOT_FOUND};
        kvt_outcome_set(&attend->outcome, &why, false);
        return;
    }
    attend->args.cold = op->cold;
    kvt_attend_snapshot(attend->rig, attend, session->layers[attend->args.layer].sealed_blocks);
}

void kvt_attend_begin(struct kvt_rig *rig, struct kvt_attend *attend)
{
    attend->rig = rig;
    attend->outcome = (struct kvt_outcome){0};
    attend->op.layer_first = attend->args.layer;
    attend->op.layer_count = 1;
    attend->op.admit_cb = attend_admit_cb;
    kvd_session_enqueue(attend->args.session, &attend->op);
}

int kvt_attend_now(struct kvt_rig *rig, struct kvt_attend *attend)
{
    kvt_attend_begin(rig, attend);
    kvt_rig_settle(rig);
    assert_int_equal(attend->outcome.done_count, 1);
    return attend->outcome.why.err;
}

void kvt_attend_fini(struct kvt_attend *attend)
{
    free(attend->q);
    free(attend->out);
    free(attend->lse);
    free(attend->out_expected);
    free(attend->lse_expected);
    attend->q = NULL;
    attend->out = NULL;
    attend->lse = NULL;
    attend->out_expected = NULL;
    attend->lse_expected = NULL;
}
