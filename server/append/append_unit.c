/*
 * Units of an append: what one job step converts, one layer of one block.
 *
 * Owner: append. Thread: loop, except kvd_append_unit_run() on a worker.
 */
#include "server/append/append_unit.h"

#include "lib/base/xxh3.h"
#include <inttypes.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/service.h"
#include "server/session/session_blocks.h"

uint32_t kvd_append_block_span(const struct kvd_shape *shape, uint64_t start, uint64_t token_count)
{
    uint64_t end = start + token_count;

    return token_count == 0
               ? 0
               : (uint32_t)((end + shape->group - 1) / shape->group - start / shape->group);
}

uint32_t kvd_append_units_from_rows(struct kvd_append_unit *dst, const struct kvd_shape *shape,
    const struct kvd_append_rows *rows, uint64_t token, uint32_t unit_max)
{
    const struct kvd_layer_shape *ls = &shape->layers[rows->layer];
    size_t token_bytes =
        (size_t)ls->kv_heads * (ls->spec.k_dim + ls->spec.v_dim) * kvarn_dtype_bytes(rows->dtype);
    uint64_t end = rows->start + rows->token_count;
    uint32_t count = 0;

    while (token < end && count < unit_max) {
        uint64_t block = token / shape->group;
        uint64_t stop = (block + 1) * shape->group < end ? (block + 1) * shape->group : end;
        dst[count++] = (struct kvd_append_unit){.ls = ls,
            .layer = rows->layer,
            .block_idx = (uint32_t)block,
            .first_token = token,
            .row_first = (uint16_t)(token - block * shape->group),
            .row_count = (uint16_t)(stop - token),
            .is_token_major = rows->is_token_major,
            .is_rotated = rows->is_rotated,
            .dtype = rows->dtype,
            .src = rows->src,
            .src_tokens = rows->token_count,
            .src_row = (uint32_t)(token - rows->start),
            .src_bytes = (size_t)(stop - token) * token_bytes};
        token = stop;
    }
    return count;
}

uint32_t kvd_append_units_from_records(struct kvd_append_unit *dst, const struct kvd_shape *shape,
    uint32_t layer, uint64_t first_token, uint64_t token_count, const uint8_t *src)
{
    const struct kvd_layer_shape *ls = &shape->layers[layer];
    size_t block_bytes = ls->kv_heads * kvarn_record_bytes(&ls->spec);
    uint32_t count = (uint32_t)(token_count / shape->group);

    KVARN_ASSERT(first_token % shape->group == 0 && token_count % shape->group == 0);
    for (uint32_t i = 0; i < count; i++) {
        dst[i] = (struct kvd_append_unit){.ls = ls,
            .layer = layer,
            .block_idx = (uint32_t)(first_token / shape->group) + i,
            .first_token = first_token + (uint64_t)i * shape->group,
            .row_count = (uint16_t)shape->group,
            .is_records = true,
            .src = src + i * block_bytes,
            .src_bytes = block_bytes};
    }
    return count;
}

int kvd_append_unit_place(struct kvd_append_unit *unit, struct kvd_session *session,
    struct kvd_own_log *log, struct kvd_failure *why)
{
    int err = kvd_session_own_block(session, unit->block_idx, log, why);

    if (err != 0) {
        return err;
    }
    if (unit->is_records) {
        const struct kvd_page *tiles = kvd_session_tiles(session, unit->block_idx, unit->layer);
        KVARN_ASSERT(tiles != NULL && tiles->refs == 1);
        unit->dst = kvd_page_data(tiles);
        return 0;
    }
    bool had_rows = kvd_session_rows(session, unit->block_idx, unit->layer) != NULL;
    err = kvd_session_rows_for_write(
        session, unit->layer, unit->block_idx, unit->row_first, &unit->copied, why);
    if (err != 0) {
        return err;
    }
    struct kvd_page *rows = kvd_session_rows(session, unit->block_idx, unit->layer);
    KVARN_ASSERT(rows != NULL);
    unit->is_taken = !had_rows;
    uint32_t end = unit->row_first + unit->row_count;
    if (kvd_page_filled(rows) < end) {
        kvd_page_set_filled(rows, end);
    }
    unit->dst = kvd_page_data(rows);
    unit->copy_src = unit->copied == NULL ? NULL : kvd_page_data(unit->copied);
    return 0;
}

void kvd_append_unit_unplace(struct kvd_append_unit *unit, struct kvd_session *session)
{
    if (unit->copied == NULL && !unit->is_taken) {
        return;
    }
    kvd_page_unref(&session->service->pages,
        kvd_session_swap_rows(session, unit->layer, unit->block_idx, unit->copied));
    unit->copied = NULL;
    unit->is_taken = false;
}

/* One head's K or V: where its rows are in the payload and where they go. */
struct head_rows {
    size_t src_offset; /* values from unit->src */
    size_t src_stride; /* values */
    size_t dst_offset; /* bytes from the start of the page to row 0 */
    uint32_t head_dim;
};

static void unit_head(
    const struct kvd_append_unit *unit, unsigned head, bool is_v, struct head_rows *ret)
{
    const struct kvd_layer_shape *ls = unit->ls;
    uint32_t dim = is_v ? ls->spec.v_dim : ls->spec.k_dim;
    size_t base = is_v ? (size_t)ls->kv_heads * unit->src_tokens * ls->spec.k_dim : 0;

    ret->head_dim = dim;
    ret->dst_offset = is_v ? kvd_rows_v_offset(ls, head) : kvd_rows_k_offset(ls, head);
    if (unit->is_token_major) {
        ret->src_offset = base + ((size_t)unit->src_row * ls->kv_heads + head) * dim;
        ret->src_stride = (size_t)ls->kv_heads * dim;
    } else {
        ret->src_offset = base + ((size_t)head * unit->src_tokens + unit->src_row) * dim;
        ret->src_stride = dim;
    }
}

static int unit_store_head(
    const struct kvd_append_unit *unit, unsigned head, bool is_v, struct kvd_append_fault *fault)
{
    struct head_rows hr;
    unit_head(unit, head, is_v, &hr);
    size_t row_bytes = hr.head_dim * sizeof(uint16_t);
    uint8_t *dst = (uint8_t *)unit->dst + hr.dst_offset;
    struct kvarn_rows_in in = {.src = unit->src + hr.src_offset * kvarn_dtype_bytes(unit->dtype),
        .dtype = unit->dtype,
        .src_stride = hr.src_stride,
        .rows = unit->row_count,
        .head_dim = hr.head_dim,
        .rotated = unit->is_rotated};
    size_t row = 0;

    if (unit->copy_src != NULL) {
        memcpy(dst, (const uint8_t *)unit->copy_src + hr.dst_offset, unit->row_first * row_bytes);
    }
    int err = kvarn_rows_to_half(&in, (void *)(dst + unit->row_first * row_bytes), &row);
    if (err != 0) {
        *fault = (struct kvd_append_fault){.err = err,
            .is_v = is_v,
            .layer = unit->layer,
            .head = head,
            .token = unit->first_token + row};
    }
    return err;
}

static void unit_store_records(struct kvd_append_unit *unit, struct kvd_append_fault *fault)
{
    const struct kvd_layer_shape *ls = unit->ls;
    size_t record_bytes = kvarn_record_bytes(&ls->spec);

    for (unsigned head = 0; head < ls->kv_heads; head++) {
        const uint8_t *record = unit->src + head * record_bytes;
        int err = kvarn_record_validate(&ls->spec, record, record_bytes);
        if (err != 0) {
            *fault = (struct kvd_append_fault){.err = err,
                .is_records = true,
                .layer = unit->layer,
                .head = head,
                .token = unit->first_token};
            return;
        }
        kvarn_tile_from_record(&ls->spec, record, (uint8_t *)unit->dst + head * ls->tile_bytes);
    }
    unit->checksum = XXH3_64bits(unit->dst, ls->tile_page_bytes);
}

void kvd_append_unit_run(struct kvd_append_unit *unit, struct kvd_append_fault *fault)
{
    if (unit->is_records) {
        unit_store_records(unit, fault);
        return;
    }
    for (unsigned head = 0; head < unit->ls->kv_heads; head++) {
        if (unit_store_head(unit, head, false, fault) != 0 ||
            unit_store_head(unit, head, true, fault) != 0) {
            return;
        }
    }
}

void kvd_append_unit_commit(const struct kvd_append_unit *unit, struct kvd_session *session)
{
    if (unit->is_records) {
        struct kvd_page *tiles = kvd_session_tiles(session, unit->block_idx, unit->layer);
        kvd_page_set_checksum(tiles, unit->checksum);
        /* The worker's choice, not known here. */
        kvd_page_set_encoder(tiles, KVARN_ENCODER_DEFAULT);
    }
}

void kvd_append_fault_describe(const struct kvd_append_fault *fault, struct kvd_failure *why)
{
    if (fault->is_records) {
        kvd_fail(why, fault->err,
            "record of layer %" PRIu32 ", head %" PRIu32 ", tokens from %" PRIu64
            ": a scale is not finite or the padding is not zero",
            fault->layer, fault->head, fault->token);
        return;
    }
    kvd_fail(why, fault->err,
        "%s of layer %" PRIu32 ", head %" PRIu32 ", token %" PRIu64
        " is not finite or beyond 32768 once rotated",
        fault->is_v ? "V" : "K", fault->layer, fault->head, fault->token);
}
