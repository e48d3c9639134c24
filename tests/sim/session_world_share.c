/*
 * Operations of a world that make sessions share what they hold: forks and reorders.
 */
#include <stdlib.h>
#include <string.h>

#include "tests/sim/session_world.h"

static uint32_t draw(struct world *world, uint32_t count)
{
    return kvt_rng_below(&world->script, count);
}

static uint64_t committed_of(const struct world_session *ws)
{
    uint64_t length = ws->model.layers[0].length;

    for (uint32_t i = 1; i < ws->model.shape->layer_count; i++) {
        length = ws->model.layers[i].length < length ? ws->model.layers[i].length : length;
    }
    return length;
}

/* Of the whole session, near its end, anywhere, at a block's edge, and beyond. */
static uint64_t draw_length(struct world *world, const struct world_session *ws)
{
    uint64_t committed = committed_of(ws);
    uint64_t length = committed;

    switch (draw(world, 8)) {
    case 0:
        return draw(world, (uint32_t)committed + 1);
    case 1:
        length = draw(world, (uint32_t)committed + 1);
        return length / ws->model.shape->group * ws->model.shape->group;
    case 2:
        return committed - (committed > 20 ? draw(world, 20) : 0);
    case 3:
        return committed + draw(world, 3);
    default:
        return committed;
    }
}

bool world_draw_fork(struct world *world, struct world_op *op, struct world_session *ws)
{
    uint64_t length = draw_length(world, ws);
    uint32_t slot = (uint32_t)(ws - world->sessions);

    op->fork_slot = (slot + 1 + draw(world, WORLD_SESSIONS - 1)) % WORLD_SESSIONS;
    op->fork =
        (struct kvt_fork){.parent = ws->session, .epoch = ws->session->epoch, .length = length};
    if (draw(world, 20) == 0) {
        op->fork.epoch--;
        op->expected_err = KVARN_ESTALE_EPOCH;
    } else if (length > committed_of(ws) || world_cut_misses(ws, length)) {
        op->expected_err = KVARN_EMISS;
    }
    return true;
}

bool world_draw_reorder(struct world *world, struct world_op *op)
{
    uint32_t count = 1 + draw(world, WORLD_SESSIONS);
    uint32_t first = draw(world, WORLD_SESSIONS);

    for (uint32_t i = 0; i < count; i++) {
        op->member_slots[i] = (first + i) % WORLD_SESSIONS;
        struct kvd_session *session = world->sessions[op->member_slots[i]].session;
        op->members[i] = (struct kvd_reorder_member){
            .session = session, .epoch = session->epoch, .source_idx = draw(world, count)};
    }
    if (draw(world, 20) == 0) {
        op->members[draw(world, count)].epoch++;
        op->expected_err = KVARN_ESTALE_EPOCH;
    }
    op->reorder = (struct kvt_reorder){.members = op->members, .count = count};
    return true;
}

void world_apply_reorder(struct world *world, struct world_op *op)
{
    struct kvt_model models[WORLD_SESSIONS];

    for (uint32_t i = 0; i < op->reorder.count; i++) {
        uint32_t from = op->member_slots[op->members[i].source_idx];
        kvt_model_copy(&models[i], &world->sessions[from].model);
    }
    for (uint32_t i = 0; i < op->reorder.count; i++) {
        struct world_session *ws = &world->sessions[op->member_slots[i]];
        kvt_model_fini(&ws->model);
        ws->model = models[i];
        if (op->members[i].source_idx != i) { /* those retries carry the old epoch */
            memset(ws->last_id, 0, sizeof(ws->last_id));
            ws->last_append_id = 0;
        }
    }
}
