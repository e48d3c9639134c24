/* kvarnctl tile encode, decode, inspect: the codec on files, without a server. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/cli/ctl.h"
#include "client/cli/npy.h"
#include "lib/base/assert.h"
#include "lib/base/limits.h"

#define CODES_MAX 16 /* levels of 4 bits */

static void *aligned_take(size_t bytes)
{
    return aligned_alloc(64, (bytes + 63) / 64 * 64);
}

/* group and bits from the options; dims are the caller's. */
static int spec_fill(struct ctl *ctl, uint64_t k_dim, uint64_t v_dim, struct kvarn_tile_spec *spec)
{
    if (kvarn_preset_parse(ctl_text(ctl, "preset"), &spec->k_bits, &spec->v_bits) != 0) {
        return ctl_usage(ctl, "--preset: expected k2v2, k4v2 or k4v4");
    }
    if (k_dim > UINT16_MAX || v_dim > UINT16_MAX || ctl_number(ctl, "group") > UINT16_MAX) {
        return ctl_usage(
            ctl, "expected head_dim a multiple of 8, at most 512, and group 128 or 64");
    }
    spec->k_dim = (uint16_t)k_dim;
    spec->v_dim = (uint16_t)v_dim;
    spec->group = (uint16_t)ctl_number(ctl, "group");
    if (kvarn_tile_spec_check(spec) != 0) {
        return ctl_usage(
            ctl, "expected head_dim a multiple of 8, at most 512, and group 128 or 64");
    }
    return CTL_OK;
}

/* ---- encode ---- */

/* First row of which a value is not finite or beyond the format's range; `rows` if none. */
static size_t bad_row_find(const float *x, size_t rows, uint32_t dim)
{
    for (size_t i = 0; i < rows * dim; i++) {
        if (!(fabsf(x[i]) <= KVARN_ROTATED_ABS_MAX)) {
            return i / dim;
        }
    }
    return rows;
}

/* One array of the tile as rotated floats. *ret is the caller's to free. */
static int rows_load(struct ctl *ctl, const struct npy_array *array, float **ret)
{
    size_t rows = (size_t)array->shape[0];
    uint32_t dim = (uint32_t)array->shape[1];
    float *floats = aligned_take(rows * dim * sizeof *floats);
    char text[96];
    size_t bad_row;

    if (floats == NULL) {
        return ctl_fail(ctl, KVARN_ENOMEM, kvarn_err_text(KVARN_ENOMEM));
    }
    kvarn_to_f32(floats, array->data, array->type == NPY_F32 ? KVARN_F32 : KVARN_F16, rows * dim);
    kvarn_rotate(floats, rows, dim);
    bad_row = bad_row_find(floats, rows, dim);
    if (bad_row == rows) {
        *ret = floats;
        return CTL_OK;
    }
    free(floats);
    snprintf(text, sizeof text, "token %zu is not finite, or beyond %.0f when rotated", bad_row,
        (double)KVARN_ROTATED_ABS_MAX);
    return ctl_fail(ctl, KVARN_EDOMAIN, text);
}

static int input_load(struct ctl *ctl, const char *option, struct npy_array *ret)
{
    char error[NPY_ERROR_MAX];
    int err = npy_read(ctl_text(ctl, option), ret, error);

    if (err != 0) {
        return ctl_fail(ctl, err, error);
    }
    if (ret->rank == 2 && ret->type != NPY_U8 && ret->shape[0] == ctl_number(ctl, "group")) {
        return CTL_OK;
    }
    snprintf(error, sizeof error,
        "--%s: expected fp16 or fp32 [%llu, head_dim], got %s with %u dimensions, the first %llu",
        option, (unsigned long long)ctl_number(ctl, "group"), npy_type_name(ret->type), ret->rank,
        (unsigned long long)ret->shape[0]);
    return ctl_fail(ctl, KVARN_EINVALID, error);
}

static int file_write(struct ctl *ctl, const char *path, const void *data, size_t bytes)
{
    FILE *file = fopen(path, "wbe");
    bool is_good;
    char text[NPY_ERROR_MAX];

    if (file != NULL) {
        is_good = fwrite(data, 1, bytes, file) == bytes;
        if (fclose(file) == 0 && is_good) {
            return CTL_OK;
        }
    }
    snprintf(text, sizeof text, "%.200s: %s", path, strerror(errno));
    if (file != NULL) {
        unlink(path);
    }
    return ctl_fail(ctl, KVARN_EIO, text);
}

/* Quantise and write; prints what was done. */
static int tile_store(struct ctl *ctl, const struct kvarn_tile_spec *spec,
    enum kvarn_encoder encoder, float *k, float *v)
{
    size_t record_bytes = kvarn_record_bytes(spec);
    void *tile = aligned_take(kvarn_tile_bytes(spec));
    void *record = aligned_take(record_bytes);
    void *scratch = aligned_take(kvarn_encode_scratch_bytes(spec));
    enum kvarn_encoder used = KVARN_ENCODER_DEFAULT;
    int code;

    if (tile == NULL || record == NULL || scratch == NULL) {
        code = ctl_fail(ctl, KVARN_ENOMEM, kvarn_err_text(KVARN_ENOMEM));
    } else {
        used = kvarn_tile_encode(spec, encoder, k, v, tile, scratch);
        kvarn_tile_to_record(spec, tile, record);
        code = file_write(ctl, ctl_text(ctl, "out"), record, record_bytes);
    }
    free(tile);
    free(record);
    free(scratch);
    if (code != CTL_OK) {
        return code;
    }
    if (!ctl->is_json) {
        printf("%s: record of %zu bytes, encoder %s\n", ctl_text(ctl, "out"), record_bytes,
            ctl_encoder_name(used));
        return CTL_OK;
    }
    json_object_open(&ctl->json, NULL);
    json_text(&ctl->json, "record", ctl_text(ctl, "out"));
    json_u64(&ctl->json, "record_bytes", record_bytes);
    json_text(&ctl->json, "encoder", ctl_encoder_name(used));
    json_object_close(&ctl->json);
    return CTL_OK;
}

int cmd_tile_encode(struct ctl *ctl)
{
    struct npy_array k = {0};
    struct npy_array v = {0};
    struct kvarn_tile_spec spec = {0};
    enum kvarn_encoder encoder;
    float *k_rows = NULL;
    float *v_rows = NULL;
    int code;

    /* Without queries `aware` would be refined by another name. */
    if (ctl_encoder(ctl_text(ctl, "encoder"), &encoder) != 0 || encoder == KVARN_ENCODER_AWARE) {
        return ctl_usage(ctl, "--encoder: expected reference or refined");
    }
    code = input_load(ctl, "k", &k);
    if (code == CTL_OK) {
        code = input_load(ctl, "v", &v);
    }
    if (code == CTL_OK) {
        code = spec_fill(ctl, k.shape[1], v.shape[1], &spec);
    }
    if (code == CTL_OK) {
        code = rows_load(ctl, &k, &k_rows);
    }
    if (code == CTL_OK) {
        code = rows_load(ctl, &v, &v_rows);
    }
    if (code == CTL_OK) {
        code = tile_store(ctl, &spec, encoder, k_rows, v_rows);
    }
    free(k_rows);
    free(v_rows);
    npy_array_fini(&k);
    npy_array_fini(&v);
    return code;
}

/* ---- decode and inspect ---- */

/* Read and check the record that the command names. *ret is the caller's to free. */
static int record_load(struct ctl *ctl, struct kvarn_tile_spec *spec, uint8_t **ret)
{
    const char *path = ctl->args.positions[0];
    uint64_t k_dim = ctl_number(ctl, "head-dim");
    int code =
        spec_fill(ctl, k_dim, ctl_is_set(ctl, "v-dim") ? ctl_number(ctl, "v-dim") : k_dim, spec);
    char text[NPY_ERROR_MAX];
    uint8_t *record;
    size_t expected;
    size_t got;
    FILE *file;
    int err;

    if (code != CTL_OK) {
        return code;
    }
    expected = kvarn_record_bytes(spec);
    file = fopen(path, "rbe");
    if (file == NULL) {
        snprintf(text, sizeof text, "%.200s: %s", path, strerror(errno));
        return ctl_fail(ctl, KVARN_EIO, text);
    }
    record = aligned_take(expected + 1);
    got = record != NULL ? fread(record, 1, expected + 1, file) : 0;
    fclose(file);
    err = record == NULL ? KVARN_ENOMEM : kvarn_record_validate(spec, record, got);
    if (err == 0) {
        *ret = record;
        return CTL_OK;
    }
    free(record);
    snprintf(text, sizeof text, "%.200s: not a record of this shape: expected %zu bytes, got %s%zu",
        path, expected, got > expected ? "more than " : "", got > expected ? expected : got);
    return ctl_fail(ctl, err, got != expected ? text : kvarn_err_text(err));
}

static int rows_write(
    struct ctl *ctl, const char *option, float *rows, uint16_t group, uint16_t dim)
{
    const struct npy_array array = {
        .type = NPY_F32,
        .rank = 2,
        .shape = {group, dim},
        .data = rows,
        .data_bytes = (size_t)group * dim * sizeof *rows,
    };
    char error[NPY_ERROR_MAX];
    int err = npy_write(ctl_text(ctl, option), &array, error);

    return err == 0 ? CTL_OK : ctl_fail(ctl, err, error);
}

int cmd_tile_decode(struct ctl *ctl)
{
    struct kvarn_tile_spec spec = {0};
    uint8_t *record = NULL;
    void *tile = NULL;
    float *k = NULL;
    float *v = NULL;
    int code = record_load(ctl, &spec, &record);

    if (code != CTL_OK) {
        return code;
    }
    tile = aligned_take(kvarn_tile_bytes(&spec));
    k = aligned_take((size_t)spec.group * spec.k_dim * sizeof *k);
    v = aligned_take((size_t)spec.group * spec.v_dim * sizeof *v);
    if (tile == NULL || k == NULL || v == NULL) {
        code = ctl_fail(ctl, KVARN_ENOMEM, kvarn_err_text(KVARN_ENOMEM));
        goto out;
    }
    kvarn_tile_from_record(&spec, record, tile);
    kvarn_tile_decode(&spec, tile, k, v);
    code = rows_write(ctl, "k", k, spec.group, spec.k_dim);
    if (code == CTL_OK) {
        code = rows_write(ctl, "v", v, spec.group, spec.v_dim);
    }
    if (code == CTL_OK && ctl->is_json) {
        json_object_open(&ctl->json, NULL);
        json_text(&ctl->json, "k", ctl_text(ctl, "k"));
        json_text(&ctl->json, "v", ctl_text(ctl, "v"));
        json_bool(&ctl->json, "rotated", true);
        json_object_close(&ctl->json);
    } else if (code == CTL_OK) {
        printf("%s: rotated fp32 [%u, %u]\n%s: rotated fp32 [%u, %u]\n", ctl_text(ctl, "k"),
            spec.group, spec.k_dim, ctl_text(ctl, "v"), spec.group, spec.v_dim);
    }
out:
    free(record);
    free(tile);
    free(k);
    free(v);
    return code;
}

/* One of the record's parts: where its halves or codes lie (lib/FORMAT.md). */
struct part {
    const char *name;
    size_t count; /* halves, or bytes of codes */
    uint8_t bits; /* 0: halves */
};

static void halves_print(struct ctl *ctl, const struct part *part, const uint8_t *at)
{
    double low = INFINITY;
    double high = -INFINITY;

    KVARN_ASSERT(part->bits == 0);
    for (size_t i = 0; i < part->count; i++) {
        uint16_t half = (uint16_t)(at[2 * i] | at[2 * i + 1] << 8);
        double value = (double)kvarn_half_to_f32(half);

        low = fmin(low, value);
        high = fmax(high, value);
    }
    if (!ctl->is_json) {
        printf("%-10s %6zu values   %12.6g .. %-12.6g\n", part->name, part->count, low, high);
        return;
    }
    json_object_open(&ctl->json, part->name);
    json_u64(&ctl->json, "count", part->count);
    json_f64(&ctl->json, "min", low);
    json_f64(&ctl->json, "max", high);
    json_object_close(&ctl->json);
}

static void codes_print(struct ctl *ctl, const struct part *part, const uint8_t *at)
{
    uint64_t histogram[CODES_MAX] = {0};
    unsigned levels = 1U << part->bits;
    uint64_t total = (uint64_t)part->count * 8 / part->bits;

    KVARN_ASSERT(levels <= CODES_MAX);
    for (size_t i = 0; i < part->count; i++) {
        for (unsigned bit = 0; bit < 8; bit += part->bits) {
            histogram[(at[i] >> bit) & (levels - 1)]++;
        }
    }
    if (ctl->is_json) {
        json_u64_array(&ctl->json, part->name, histogram, levels);
        return;
    }
    printf("%-10s %6llu values  ", part->name, (unsigned long long)total);
    for (unsigned level = 0; level < levels; level++) {
        printf(" %u:%.1f%%", level, 100.0 * (double)histogram[level] / (double)total);
    }
    printf("\n");
}

int cmd_tile_inspect(struct ctl *ctl)
{
    struct kvarn_tile_spec spec = {0};
    uint8_t *record = NULL;
    int code = record_load(ctl, &spec, &record);
    size_t at = 0;

    if (code != CTL_OK) {
        return code;
    }
    KVARN_ASSERT(record != NULL);
    {
        const struct part parts[] = {
            {"k_codes", (size_t)spec.k_dim * spec.group * spec.k_bits / 8, spec.k_bits},
            {"k_scale", spec.k_dim, 0},
            {"k_zero", spec.k_dim, 0},
            {"k_token", spec.group, 0},
            {"v_codes", (size_t)spec.group * spec.v_dim * spec.v_bits / 8, spec.v_bits},
            {"v_channel", spec.v_dim, 0},
            {"v_scale", spec.group, 0},
            {"v_zero", spec.group, 0},
        };
        size_t bytes = kvarn_record_bytes(&spec);
        double values = (double)spec.group * (spec.k_dim + spec.v_dim);

        if (ctl->is_json) {
            json_object_open(&ctl->json, NULL);
            json_u64(&ctl->json, "record_bytes", bytes);
            json_u64(&ctl->json, "tile_bytes", kvarn_tile_bytes(&spec));
            json_f64(&ctl->json, "bits_per_value", 8.0 * (double)bytes / values);
        } else {
            printf("record %zu bytes, tile %zu bytes, %.4f bits a value\n", bytes,
                kvarn_tile_bytes(&spec), 8.0 * (double)bytes / values);
        }
        for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
            if (parts[i].bits == 0) {
                halves_print(ctl, &parts[i], record + at);
            } else {
                codes_print(ctl, &parts[i], record + at);
            }
            at += parts[i].bits == 0 ? parts[i].count * 2 : parts[i].count;
        }
        KVARN_ASSERT(at <= bytes);
    }
    if (ctl->is_json) {
        json_object_close(&ctl->json);
    }
    free(record);
    return CTL_OK;
}
