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

static void plan_add_rows(
    struct kvd_append_plan *plan, const struct kvd_shape *shape, const struct kvd_append_rows *rows)
{
    plan->unit_count += kvd_append_units_from_rows(&plan->units[plan->unit_count], shape, rows);
}

void kvd_append_plan_rows(struct kvd_append_plan *plan, const struct kvd_append_args *args)
{
    const struct kvd_shape *shape = args->session->shape;
    const uint8_t *src = args->payload;

    plan->meaning = rows_meaning(args);
    for (uint32_t i = 0; i < args->layer_count; i++) {
        uint32_t layer = args->layer_first + i;
        struct kvd_append_rows rows = {.layer = layer,
            .start = args->start,
            .token_count = args->token_count,
            .src = src,
            .dtype = args->dtype,
            .is_token_major = args->is_token_major,
            .is_rotated = args->is_rotated};
        plan->layers[plan->layer_count++] = (struct kvd_append_layer){
            .layer = layer, .token_count = args->token_count, .start = args->start};
        plan_add_rows(plan, shape, &rows);
        src += kvd_append_payload_bytes(shape, layer, 1, args->token_count, args->dtype);
    }
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

static void plan_add_run(struct kvd_append_plan *plan, const struct kvd_shape *shape,
    const struct kvd_append_run *run, const uint8_t *src)
{
    struct kvd_append_layer *al = plan_layer(plan, run);
    struct kvd_append_unit *units = &plan->units[plan->unit_count];

    al->token_count += (uint32_t)run->token_count;
    if (!run->is_records) {
        struct kvd_append_rows rows = {.layer = run->layer,
            .start = run->first_token,
            .token_count = (uint32_t)run->token_count,
            .src = src,
            .dtype = KVARN_F16,
            .is_rotated = true};
        plan_add_rows(plan, shape, &rows);
        return;
    }
    if (al->records.last == 0) {
        al->records.first = (uint32_t)(run->first_token / shape->group);
    }
    KVARN_ASSERT(run->first_token >= shape->sink_tokens);
    al->records.last = (uint32_t)((run->first_token + run->token_count) / shape->group);
    plan->unit_count += kvd_append_units_from_records(
        units, shape, run->layer, run->first_token, run->token_count, src);
}

void kvd_append_plan_runs(struct kvd_append_plan *plan, const struct kvd_append_tiles_args *args)
{
    const struct kvd_shape *shape = args->session->shape;
    const uint8_t *src = args->payload;

    plan->meaning = runs_meaning(args);
    for (uint32_t i = 0; i < args->run_count; i++) {
        plan_add_run(plan, shape, &args->runs[i], src);
        src += kvd_append_run_bytes(shape, &args->runs[i]);
    }
}
