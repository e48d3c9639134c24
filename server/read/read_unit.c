/*
 * Units of a read: what one job step converts, rows of one layer of one block.
 *
 * Owner: read. Thread: any, on pages that the snapshot holds.
 */
#include "server/read/read_unit.h"

#include "lib/base/xxh3.h"
#include <inttypes.h>
#include <string.h>

#include "lib/base/assert.h"
#include "server/base/kernel_cost.h"

/* Copying and checking bytes that are not in a cache: 8 a nanosecond. */
#define COPY_BYTES_PER_NS 8

struct kvd_read_format kvd_read_format_stored(void)
{
    return (struct kvd_read_format){
        .dtype = KVARN_F16, .is_rotated = true, .has_k = true, .has_v = true};
}

/* Values of one token and head. */
static uint64_t format_dims(const struct kvd_layer_shape *ls, const struct kvd_read_format *format)
{
    return (format->has_k ? ls->spec.k_dim : 0u) + (format->has_v ? ls->spec.v_dim : 0u);
}

uint64_t kvd_read_rows_bytes(
    const struct kvd_layer_shape *ls, const struct kvd_read_format *format, uint64_t token_count)
{
    KVARN_ASSERT(format->has_k || format->has_v);
    return format_dims(ls, format) * ls->kv_heads * token_count * kvarn_dtype_bytes(format->dtype);
}

uint64_t kvd_read_records_bytes(const struct kvd_layer_shape *ls, uint64_t token_count)
{
    KVARN_ASSERT(token_count % ls->spec.group == 0);
    return token_count / ls->spec.group * ls->kv_heads * ls->record_bytes;
}

uint64_t kvd_read_unit_ns(const struct kvd_read_unit *unit, const struct kvd_read_format *format)
{
    const struct kvd_layer_shape *ls = unit->ls;
    uint64_t page_ns = unit->is_tiles ? ls->tile_page_bytes / COPY_BYTES_PER_NS : 0;

    if (unit->is_records) {
        return unit->is_spanned ? page_ns : 2 * page_ns; /* checked, then copied */
    }
    if (unit->is_copied) {
        return kvd_read_rows_bytes(ls, format, unit->row_count) / COPY_BYTES_PER_NS;
    }
    uint32_t rows = unit->is_tiles ? ls->spec.group : unit->row_count; /* tiles decode whole */
    uint64_t values = format_dims(ls, format) * ls->kv_heads * rows;   /* < 2^25 of a block */
    return page_ns + values * kvd_kernel_cost()->read_ps / 1000;
}

size_t kvd_read_scratch_bytes(const struct kvd_layer_shape *ls)
{
    size_t dim = ls->spec.k_dim > ls->spec.v_dim ? ls->spec.k_dim : ls->spec.v_dim;

    return dim * ls->spec.group * sizeof(float);
}

/* The padding of any record. */
static const uint8_t zeros[8];

unsigned kvd_read_record_parts(const struct kvd_layer_shape *ls)
{
    return 4 + (ls->record_map.pad > 0);
}

/* Records as the tiles have them: the kernel gathers their parts out of the page. */
static void unit_run_spans(const struct kvd_read_unit *unit)
{
    const struct kvd_layer_shape *ls = unit->ls;
    struct kvd_buf *buf = unit->bufs;
    const struct kvarn_tile_map *map = &ls->record_map;

    KVARN_ASSERT(map->pad <= sizeof(zeros));
    for (unsigned head = 0; head < ls->kv_heads; head++) {
        const uint8_t *tile = (const uint8_t *)kvd_page_data(unit->page) + head * ls->tile_bytes;
        for (unsigned i = 0; i < 4; i++) {
            *buf++ = (struct kvd_buf){tile + map->part[i].offset, map->part[i].bytes};
        }
        if (map->pad > 0) {
            *buf++ = (struct kvd_buf){zeros, map->pad};
        }
    }
}

static void unit_run_records(const struct kvd_read_unit *unit)
{
    const struct kvd_layer_shape *ls = unit->ls;
    size_t record_bytes = ls->record_bytes;
    uint8_t *dst = unit->dst + kvd_read_records_bytes(ls, unit->run_row);

    KVARN_ASSERT(unit->row_first == 0 && unit->row_count == ls->spec.group);
    for (unsigned head = 0; head < ls->kv_heads; head++) {
        const uint8_t *tile = (const uint8_t *)kvd_page_data(unit->page) + head * ls->tile_bytes;
        kvarn_tile_to_record(&ls->spec, tile, dst + head * record_bytes);
    }
}

/* One head's K or V: where its rows are in a page of rows, and where they go. */
struct side {
    uint32_t dim;
    const uint8_t *rows; /* of a page of rows: row_first */
    uint8_t *dst;        /* of row_first */
    size_t dst_stride;   /* values */
};

static struct side side_of(const struct kvd_read_unit *unit, const struct kvd_read_format *format,
    unsigned head, bool is_v)
{
    const struct kvd_layer_shape *ls = unit->ls;
    uint32_t dim = is_v ? ls->spec.v_dim : ls->spec.k_dim;
    size_t page_offset = is_v ? kvd_rows_v_offset(ls, head) : kvd_rows_k_offset(ls, head);
    size_t values = is_v && format->has_k ? ls->kv_heads * unit->run_tokens * ls->spec.k_dim : 0;
    struct side side = {.dim = dim,
        .rows = (const uint8_t *)kvd_page_data(unit->page) + page_offset +
                (size_t)unit->row_first * dim * sizeof(uint16_t)};

    if (format->is_token_major) {
        values += (unit->run_row * ls->kv_heads + head) * dim;
        side.dst_stride = (size_t)ls->kv_heads * dim;
    } else {
        values += (head * unit->run_tokens + unit->run_row) * dim;
        side.dst_stride = dim;
    }
    side.dst = unit->dst + values * kvarn_dtype_bytes(format->dtype);
    return side;
}

static void unit_run_copy(const struct kvd_read_unit *unit, const struct kvd_read_format *format)
{
    for (unsigned head = 0; head < unit->ls->kv_heads; head++) {
        for (unsigned is_v = 0; is_v < 2; is_v++) {
            struct side side = side_of(unit, format, head, is_v != 0);
            memcpy(side.dst, side.rows, (size_t)unit->row_count * side.dim * sizeof(uint16_t));
        }
    }
}

static int side_convert(const struct kvd_read_unit *unit, const struct kvd_read_format *format,
    unsigned head, bool is_v, float *scratch, struct kvd_read_fault *fault)
{
    const struct kvd_layer_shape *ls = unit->ls;
    struct side side = side_of(unit, format, head, is_v);
    float *rows = scratch;
    size_t bad_row = 0;

    if (unit->is_tiles) {
        const uint8_t *tile = (const uint8_t *)kvd_page_data(unit->page) + head * ls->tile_bytes;
        kvarn_tile_decode(&ls->spec, tile, is_v ? NULL : scratch, is_v ? scratch : NULL);
        rows += (size_t)unit->row_first * side.dim;
    } else {
        kvarn_to_f32(scratch, side.rows, KVARN_F16, (size_t)unit->row_count * side.dim);
    }
    struct kvarn_rows_out out = {.dst = side.dst,
        .dtype = format->dtype,
        .dst_stride = side.dst_stride,
        .rows = unit->row_count,
        .head_dim = side.dim,
        .rotated = format->is_rotated};
    int err = kvarn_rows_from_f32(rows, &out, &bad_row);
    if (err != 0) {
        *fault = (struct kvd_read_fault){.err = err,
            .is_v = is_v,
            .layer = unit->layer,
            .head = head,
            .token = unit->first_token + bad_row};
    }
    return err;
}

static void unit_run_convert(const struct kvd_read_unit *unit, const struct kvd_read_format *format,
    float *scratch, struct kvd_read_fault *fault)
{
    for (unsigned head = 0; head < unit->ls->kv_heads; head++) {
        if (format->has_k && side_convert(unit, format, head, false, scratch, fault) != 0) {
            return;
        }
        if (format->has_v && side_convert(unit, format, head, true, scratch, fault) != 0) {
            return;
        }
    }
}

void kvd_read_unit_run(const struct kvd_read_unit *unit, const struct kvd_read_format *format,
    void *scratch, struct kvd_read_fault *fault)
{
    KVARN_ASSERT(unit->row_first + unit->row_count <= unit->ls->spec.group);
    KVARN_ASSERT(unit->run_row + unit->row_count <= unit->run_tokens);
    if (unit->is_tiles &&
        !kvd_page_checksum_matches(
            XXH3_64bits(kvd_page_data(unit->page), unit->ls->tile_page_bytes), unit->checksum)) {
        *fault = (struct kvd_read_fault){
            .err = KVARN_EMISS, .layer = unit->layer, .token = unit->first_token};
        return;
    }
    if (unit->is_spanned) {
        unit_run_spans(unit);
    } else if (unit->is_records) {
        unit_run_records(unit);
    } else if (unit->is_copied) {
        unit_run_copy(unit, format);
    } else {
        unit_run_convert(unit, format, scratch, fault);
    }
}

void kvd_read_fault_describe(const struct kvd_read_fault *fault, struct kvd_failure *why)
{
    if (fault->err == KVARN_EMISS) {
        why->reason = KVARND__MISS_REASON__MISS_CHECKSUM;
        kvd_fail(why, fault->err,
            "layer %" PRIu32 ", tokens from %" PRIu64 ": the page does not match its checksum",
            fault->layer, fault->token);
        return;
    }
    kvd_fail(why, fault->err,
        "%s of layer %" PRIu32 ", head %" PRIu32 ", token %" PRIu64
        " is beyond 65504: fp16 cannot hold it",
        fault->is_v ? "V" : "K", fault->layer, fault->head, fault->token);
}
