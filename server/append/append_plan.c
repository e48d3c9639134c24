/*
 * What an append stores, laid out: layers and units.
 *
 * Owner: append. Thread: loop only.
 */
#include "server/append/append_plan.h"

#include "lib/base/xxh3.h"

#include "lib/base/assert.h"

uint64_t kvd_append_payload_bytes(const struct kvd_shape *shape, uint32_t layer_first,
    uint32_t layer_count, uint64_t token_count, enum kvarn_dtype dtype)
{
    uint64_t values = 0;

    KVARN_ASSERT(layer_first + layer_count <= shape->layer_count);
    for (uint32_t i = layer_first; i < layer_first + layer_count; i++) {
        const struct kvd_layer_shape *ls = &shape->layers[i];
        values += (uint64_t)ls->kv_heads * (ls->spec.k_dim + ls->spec.v_dim);
    }
    return values * token_count * kvarn_dtype_bytes(dtype);
}

uint64_t kvd_append_run_bytes(const struct kvd_shape *shape, const struct kvd_append_run *run)
{
    const struct kvd_layer_shape *ls = &shape->layers[run->layer];

    if (run->is_records) {
        return run->token_count / shape->group * ls->kv_heads * kvarn_record_bytes(&ls->spec);
    }
    return kvd_append_payload_bytes(shape, run->layer, 1, run->token_count, KVARN_F16);
}

uint64_t kvd_append_plan_units(const struct kvd_append_args *args)
{
    return (uint64_t)args->layer_count *
           kvd_append_block_span(args->session->shape, args->start, args->token_count);
}

uint64_t kvd_append_plan_run_units(const struct kvd_append_tiles_args *args)
{
    uint64_t units = 0;

    for (uint32_t i = 0; i < args->run_count; i++) {
        const struct kvd_append_run *run = &args->runs[i];
        units += kvd_append_block_span(args->session->shape, run->first_token, run->token_count);
    }
    return units;
}

/* Start and count are kept beside the hash, so they are not part of it. */
static uint64_t rows_meaning(const struct kvd_append_args *args)
{
    uint8_t words[] = {0, (uint8_t)args->dtype, args->is_token_major, args->is_rotated};

    return XXH3_64bits(words, sizeof(words));
}

/* Where each form begins. The seed sets runs apart from rows. */
static uint64_t runs_meaning(const struct kvd_append_tiles_args *args)
{
    uint64_t hash = 1;

    for (uint32_t i = 0; i < args->run_count; i++) {
        const struct kvd_append_run *run = &args->runs[i];
        uint64_t words[] = {run->layer, run->first_token, run->token_count, run->is_records};
        hash = XXH3_64bits_withSeed(words, sizeof(words), hash);
    }
    return hash;
}

/* Units that are laid out at once: a microsecond or two. */
#define UNITS_MAX 32

/* Begin with the part that has its turn. */
static void part_begin(struct kvd_append_plan *plan)
{
    if (plan->part_idx == plan->part_count) {
        return;
    }
    if (plan->runs == NULL) {
        plan->rows.layer = plan->layers[plan->part_idx].layer;
    } else {
        const struct kvd_append_run *run = &plan->runs[plan->part_idx];
        plan->rows = (struct kvd_append_rows){.layer = run->layer,
            .start = run->first_token,
            .token_count = (uint32_t)run->token_count,
            .dtype = KVARN_F16,
            .is_rotated = true};
    }
    plan->rows.src = plan->src;
    plan->token = plan->rows.start;
}

static uint64_t part_bytes(const struct kvd_append_plan *plan)
{
    const struct kvd_append_rows *rows = &plan->rows;

    return plan->runs != NULL ? kvd_append_run_bytes(plan->shape, &plan->runs[plan->part_idx])
                              : kvd_append_payload_bytes(
                                    plan->shape, rows->layer, 1, rows->token_count, rows->dtype);
}

/* Whole blocks of records, from plan->token on. */
static uint32_t records_more(const struct kvd_append_plan *plan, struct kvd_append_unit *units)
{
    const struct kvd_shape *shape = plan->shape;
    const struct kvd_append_run *run = &plan->runs[plan->part_idx];
    uint64_t done = plan->token - run->first_token;
    uint64_t count = run->token_count - done;
    uint64_t count_max = (uint64_t)UNITS_MAX * shape->group;
    struct kvd_append_run before = {
        .layer = run->layer, .token_count = done, .is_records = run->is_records};

    return kvd_append_units_from_records(units, shape, run->layer, plan->token,
        count < count_max ? count : count_max, plan->src + kvd_append_run_bytes(shape, &before));
}

bool kvd_append_plan_more(struct kvd_append_plan *plan)
{
    struct kvd_append_unit *units = &plan->units[plan->unit_count];
    uint32_t count = 0;

    if (plan->part_idx == plan->part_count) {
        return true;
    }
    if (plan->runs != NULL && plan->runs[plan->part_idx].is_records) {
        count = records_more(plan, units);
    } else {
        count = kvd_append_units_from_rows(units, plan->shape, &plan->rows, plan->token, UNITS_MAX);
    }
    plan->unit_count += count;
    if (count > 0) {
        uint64_t blocks_end = ((uint64_t)units[count - 1].block_idx + 1) * plan->shape->group;
        uint64_t end = plan->rows.start + plan->rows.token_count;
        plan->token = blocks_end < end ? blocks_end : end;
    }
    if (plan->token == plan->rows.start + plan->rows.token_count) {
        plan->src += part_bytes(plan);
        plan->part_idx++;
        part_begin(plan);
    }
    return plan->part_idx == plan->part_count;
}

void kvd_append_plan_rows(struct kvd_append_plan *plan, const struct kvd_append_args *args)
{
    plan->meaning = rows_meaning(args);
    for (uint32_t i = 0; i < args->layer_count; i++) {
        plan->layers[plan->layer_count++] = (struct kvd_append_layer){
            .layer = args->layer_first + i, .token_count = args->token_count, .start = args->start};
    }
    plan->shape = args->session->shape;
    plan->rows = (struct kvd_append_rows){.start = args->start,
        .token_count = args->token_count,
        .dtype = args->dtype,
        .is_token_major = args->is_token_major,
        .is_rotated = args->is_rotated};
    plan->src = args->payload;
    plan->part_count = args->layer_count;
    part_begin(plan);
}

/* The plan's entry for a run's layer: the last one, or a new one. */
static struct kvd_append_layer *plan_layer(
    struct kvd_append_plan *plan, const struct kvd_append_run *run)
{
    if (plan->layer_count == 0 || plan->layers[plan->layer_count - 1].layer != run->layer) {
        plan->layers[plan->layer_count++] =
            (struct kvd_append_layer){.layer = run->layer, .start = run->first_token};
    }
    return &plan->layers[plan->layer_count - 1];
}

static void plan_add_run(struct kvd_append_plan *plan, const struct kvd_append_run *run)
{
    const struct kvd_shape *shape = plan->shape;
    struct kvd_append_layer *al = plan_layer(plan, run);

    al->token_count += (uint32_t)run->token_count;
    if (!run->is_records) {
        return;
    }
    if (al->records.last == 0) {
        al->records.first = (uint32_t)(run->first_token / shape->group);
    }
    KVARN_ASSERT(run->first_token >= shape->sink_tokens);
    al->records.last = (uint32_t)((run->first_token + run->token_count) / shape->group);
}

void kvd_append_plan_runs(struct kvd_append_plan *plan, const struct kvd_append_tiles_args *args)
{
    plan->meaning = runs_meaning(args);
    plan->shape = args->session->shape;
    plan->runs = args->runs;
    plan->part_count = args->run_count;
    plan->src = args->payload;
    for (uint32_t i = 0; i < args->run_count; i++) {
        plan_add_run(plan, &args->runs[i]);
    }
    part_begin(plan);
}
