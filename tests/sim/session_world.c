/* A world of sessions: sending, waiting, comparing. */
#include "tests/sim/session_world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/evict/session_evict.h"
#include "server/session/session_blocks.h"
#include "tests/support/tiles.h"

static const struct kvd_layer_group bare_groups[] = {
    {.layers = 1, .kv_heads = 2, .k_dim = 8, .v_dim = 16, .window = 0},
    {.layers = 1, .kv_heads = 1, .k_dim = 32, .v_dim = 32, .window = 0},
};
static const struct kvd_layer_group window_groups[] = {
    {.layers = 2, .kv_heads = 1, .k_dim = 16, .v_dim = 16, .window = 70},
    {.layers = 1, .kv_heads = 2, .k_dim = 8, .v_dim = 8, .window = 200},
};
static const struct kvd_layer_group long_groups[] = {
    {.layers = 1, .kv_heads = 1, .k_dim = 8, .v_dim = 8, .window = 0},
    {.layers = 1, .kv_heads = 1, .k_dim = 8, .v_dim = 8, .window = 300},
};
/* Pages of 256 KiB and about 40 KiB: chunks are full soon. */
static const struct kvd_layer_group wide_groups[] = {
    {.layers = 2, .kv_heads = 4, .k_dim = 128, .v_dim = 128, .window = 0},
};

/* Without a sink; all layers with windows; long; wide. The first is kvt_shape_small. */
static const struct kvd_shape_desc shapes[WORLD_SHAPES - 1] = {
    {.model = "bare",
        .group = 64,
        .k_bits = 4,
        .v_bits = 2,
        .layer_groups = bare_groups,
        .layer_group_count = 2},
    {.model = "windows",
        .group = 64,
        .k_bits = 2,
        .v_bits = 2,
        .sink_tokens = 64,
        .layer_groups = window_groups,
        .layer_group_count = 2},
    {.model = "long",
        .group = 64,
        .k_bits = 2,
        .v_bits = 2,
        .sink_tokens = 64,
        .layer_groups = long_groups,
        .layer_group_count = 2},
    {.model = "wide",
        .group = 128,
        .k_bits = 2,
        .v_bits = 2,
        .sink_tokens = 128,
        .layer_groups = wide_groups,
        .layer_group_count = 1},
};

static void session_open(struct world *world, struct world_session *ws)
{
    uint32_t group = world->rig.shape->group;
    uint32_t lags[] = {0, kvt_rng_below(&world->script, group + 1), group};

    *ws = (struct world_session){0};
    ws->session = kvt_session_open(&world->rig, NULL, lags[kvt_rng_below(&world->script, 3)]);
    if (kvt_rng_below(&world->script, 3) == 0) {
        ws->session->options.encoder = KVARN_ENCODER_REFERENCE;
    }
    kvt_model_init(&ws->model, ws->session, world->tokens_max + 2 * group);
}

static void session_close(struct world *world, struct world_session *ws)
{
    kvt_model_fini(&ws->model);
    kvt_session_drop(&world->rig, ws->session);
}

void world_init(struct world *world, const struct world_options *options)
{
    uint64_t kind = options->is_short ? WORLD_SHAPES - 1 : options->seed % (WORLD_SHAPES - 1);
    struct kvt_rig_options rig = {.workers = options->workers,
        .jitter_us_max = options->jitter_us_max,
        .jitter_seed = options->timing_seed,
        .shape = kind == 0 ? NULL : &shapes[kind - 1],
        .evict_policy = options->is_evicting ? "cost" : NULL};

    *world = (struct world){.script = {.state = options->seed},
        .timing = {.state = options->timing_seed},
        .tokens_max = kind == WORLD_SHAPES - 2 ? WORLD_TOKENS_LONG : WORLD_TOKENS_MAX,
        .is_short = options->is_short,
        .is_evicting = options->is_evicting};
    TAILQ_INIT(&world->ops);
    TAILQ_INIT(&world->reads);
    kvt_rig_init(&world->rig, &rig);
    for (unsigned i = 0; i < WORLD_SESSIONS; i++) {
        session_open(world, &world->sessions[i]);
    }
}

static void reads_end(struct world *world)
{
    struct world_op *op;

    while ((op = TAILQ_FIRST(&world->reads)) != NULL) {
        TAILQ_REMOVE(&world->reads, op, link);
        world_read_end(world, op);
        world_op_free(op);
    }
}

/* Reads stay for a while, so that what they hold is written around. */
static void ops_judge(struct world *world)
{
    struct world_op *op;

    while ((op = TAILQ_FIRST(&world->ops)) != NULL) {
        TAILQ_REMOVE(&world->ops, op, link);
        world_judge(world, op);
        if (op->kind == WORLD_READ) {
            TAILQ_INSERT_TAIL(&world->reads, op, link);
        } else if (op->kind == WORLD_FORK && op->fork.child != NULL) {
            world->born = op;
        } else {
            world_op_free(op);
        }
    }
}

/* Every reference is somebody's, and every page is in a session or with a reader. */
static void refs_check(struct world *world)
{
    struct kvt_refs refs;
    const struct world_op *op;

    kvt_refs_init(&refs);
    for (unsigned i = 0; i < WORLD_SESSIONS; i++) {
        kvt_refs_add_session(&refs, world->sessions[i].session);
    }
    if (world->born != NULL) {
        kvt_refs_add_session(&refs, world->born->fork.child);
    }
    TAILQ_FOREACH(op, &world->reads, link)
    {
        world_read_refs(op, &refs);
    }
    if (kvt_refs_check(&refs, &world->rig.service) > 0) {
        printf("references are wrong after operation %u\n", world->op_count);
        world->wrong++;
    }
    kvt_refs_fini(&refs);
}

static void models_check(struct world *world)
{
    refs_check(world);
    for (unsigned i = 0; i < WORLD_SESSIONS; i++) {
        unsigned differences =
            kvt_model_check(&world->sessions[i].model, world->sessions[i].session);
        if (differences > 0) {
            printf("session %u has %u differences after operation %u\n", i, differences,
                world->op_count);
            world->wrong++;
        }
    }
}

static void ops_forget(struct world_session *ws)
{
    ws->last.token_count = 0;
}

/* Now and then nobody uses some of the sessions for long. */
static void works_drop(struct world *world)
{
    for (unsigned i = 0; i < WORLD_SESSIONS; i++) {
        struct world_session *ws = &world->sessions[i];
        if ((world->op_count + i) % 3 == 0 &&
            kvd_session_open_blocks(ws->session) <= KVD_SESSION_OPEN_BLOCKS_MAX) {
            kvd_session_drop_work(ws->session);
            ops_forget(ws);
        }
    }
}

void world_settle(struct world *world)
{
    kvt_rig_settle(&world->rig);
    ops_judge(world);
    models_check(world);
    works_drop(world);
    models_check(world);
}

/* The copy that was made takes its place, and who had it goes. */
static void born_place(struct world *world)
{
    struct world_op *op = world->born;

    if (op == NULL) {
        return;
    }
    struct world_session *ws = &world->sessions[op->fork_slot];
    reads_end(world);
    session_close(world, ws);
    kvt_rig_settle(&world->rig);
    *ws = (struct world_session){.session = op->fork.child, .model = op->fork_model};
    op->fork_model.layers = NULL;
    world->born = NULL;
    world_op_free(op);
    models_check(world);
}

/* Whether sessions share anything: a refused operation may then have made something their own. */
static bool is_sharing(const struct world *world)
{
    for (unsigned i = 0; i < WORLD_SESSIONS; i++) {
        const struct kvd_session *session = world->sessions[i].session;
        for (uint32_t b = 0; b < kvd_session_block_count(session); b++) {
            const struct kvd_block *block = kvd_session_block(session, b);
            const struct kvd_span *span = session->table.spans[b / KVD_SPAN_BLOCKS];
            if ((block != NULL && block->refs > 1) || span->refs > 1) {
                return true;
            }
        }
    }
    return false;
}

/* Memory that an idle service holds for its sessions, block tables and work aside: they stay. */
static uint64_t held_bytes(struct world *world)
{
    (void)kvd_page_store_reclaim(&world->rig.service.pages, UINT64_MAX);
    uint64_t bytes = world->rig.service.budget.used_bytes;
    for (unsigned i = 0; i < WORLD_SESSIONS; i++) {
        bytes -= kvd_block_table_bytes(&world->sessions[i].session->table);
        bytes -= kvd_session_work_bytes(world->sessions[i].session);
    }
    return bytes;
}

/* Let the next operation meet a source without chunks, or a limit a little above what is held. */
static void memory_squeeze(struct world *world)
{
    struct kvd_budget *budget = &world->rig.service.budget;

    switch (kvt_rng_below(&world->script, 4)) {
    case 0:
        world->rig.source.is_empty = true;
        break;
    case 1:
        budget->limit_bytes = budget->used_bytes + kvt_rng_below(&world->script, 1u << 14);
        break;
    case 2:
        budget->limit_bytes = budget->used_bytes + kvt_rng_below(&world->script, 16u << 20);
        break;
    default:
        break;
    }
}

/* One operation alone, with memory refused; refused whole or done whole. */
static void step_short(struct world *world, struct world_op *op, struct world_session *ws)
{
    uint64_t limit_bytes = world->rig.service.budget.limit_bytes;
    uint64_t held = held_bytes(world);
    bool was_sharing = is_sharing(world);

    op->may_fail = true;
    memory_squeeze(world);
    int err = world_send(world, op, ws);
    kvt_rig_settle(&world->rig);
    world->rig.service.budget.limit_bytes = limit_bytes;
    world->rig.source.is_empty = false;
    assert_int_equal(err, 0);
    const struct kvt_outcome *outcomes[] = {
        [WORLD_APPEND] = &op->append.outcome,
        [WORLD_TILES] = &op->tiles.outcome,
        [WORLD_TRUNCATE] = &op->truncate.outcome,
        [WORLD_FORK] = &op->fork.outcome,
        [WORLD_REORDER] = &op->reorder.outcome,
        [WORLD_ATTEND] = &op->attend.outcome,
    };
    bool is_refused = op->kind != WORLD_READ && outcomes[op->kind]->why.err != 0;
    /* What others lost for its sake is theirs to lose. */
    bool is_held = world->is_evicting ? held_bytes(world) <= held : held_bytes(world) == held;
    if (is_refused && !was_sharing && !is_held) {
        printf("operation %u was refused and left memory charged\n", op->number);
        world->wrong++;
    }
    if (!is_refused) {
        world_apply(world, op, ws);
    }
    world_settle(world);
    born_place(world);
}

/* Take some blocks of a session out of memory. */
static void evict_some(struct world *world)
{
    struct world_session *ws = &world->sessions[kvt_rng_below(&world->script, WORLD_SESSIONS)];
    uint64_t freed = 0;

    world_settle(world);
    /* And let pages move to other chunks. */
    world->rig.service.compactor.free_bytes_min = 0;
    kvd_compactor_tick(&world->rig.service.compactor, UINT64_MAX);
    world_settle(world);
    world->evicted += kvd_session_evict(ws->session, 1 + kvt_rng_below(&world->script, 12), &freed);
    world_settle(world);
}

void world_step(struct world *world)
{
    struct world_session *ws = &world->sessions[kvt_rng_below(&world->script, WORLD_SESSIONS)];

    if (world->is_evicting) {
        world_settle(world); /* what is missing is asked of sessions that have done all before */
        if (kvt_rng_below(&world->script, 6) == 0) {
            evict_some(world);
        }
    }

    if (kvt_rng_below(&world->script, 12) == 0) {
        world_settle(world);
    }
    if (kvt_rng_below(&world->script, 10) == 0) {
        world_settle(world);
        reads_end(world);
    }
    if (kvt_rng_below(&world->script, 60) == 0) {
        world_settle(world);
        reads_end(world);
        session_close(world, ws);
        kvt_rig_settle(&world->rig);
        session_open(world, ws);
        ops_forget(ws);
    }
    struct world_op *op = kvt_alloc(sizeof(*op));
    op->world = world;
    op->number = world->op_count++;
    if (!world_draw(world, op, ws)) {
        world_op_free(op);
        return;
    }
    TAILQ_INSERT_TAIL(&world->ops, op, link);
    if (world->is_short) {
        step_short(world, op, ws);
        return;
    }
    bool is_settling =
        op->kind == WORLD_TRUNCATE || op->kind == WORLD_FORK || op->kind == WORLD_REORDER;
    world_apply(world, op, ws);
    assert_int_equal(world_send(world, op, ws), 0);
    if (is_settling) {
        world_settle(world); /* as its client waits for the new epoch */
        born_place(world);
    }
    for (uint32_t turns = kvt_rng_below(&world->timing, 4); turns > 0; turns--) {
        (void)kvd_io_fake_turn(world->rig.fake);
    }
}

void world_fini(struct world *world)
{
    world_settle(world);
    reads_end(world);
    for (unsigned i = 0; i < WORLD_SESSIONS; i++) {
        session_close(world, &world->sessions[i]);
    }
    kvt_rig_fini(&world->rig);
}
