/* kvarnctl shape export and shape import: query metrics out of a server and into another. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/cli/ctl.h"
#include "client/cli/metric_file.h"
#include "client/cli/printable.h"
#include "lib/base/limits.h"

/* Sums of one request: below every server's default limit, and some milliseconds of the wire. */
#define CHUNK_BYTES_MAX (UINT64_C(16) << 20)
/* KV heads of one request: their counts fit its message. */
#define CHUNK_HEADS_MAX 4096

/* Layers from `first` on that one request takes, at least one. */
static uint32_t chunk_layers(const struct metric_file *file, uint32_t first)
{
    uint64_t bytes = 0;
    uint64_t heads = 0;
    uint32_t layer = first;

    while (layer < file->layer_count) {
        bytes += metric_file_layer_bytes(file, layer);
        heads += file->layers[layer].kv_heads;
        if (layer > first && (bytes > CHUNK_BYTES_MAX || heads > CHUNK_HEADS_MAX)) {
            break;
        }
        layer++;
    }
    return layer - first;
}

static bool hex_parse(const char *text, uint8_t to[16])
{
    if (strlen(text) != 32 || strspn(text, "0123456789abcdefABCDEF") != 32) {
        return false;
    }
    for (unsigned i = 0; i < 16; i++) {
        char digits[3] = {text[2 * i], text[2 * i + 1], '\0'};
        to[i] = (uint8_t)strtoul(digits, NULL, 16);
    }
    return true;
}

/* The fingerprint of what the command line names: a session's shape, or the shape itself. */
static int fingerprint_find(struct ctl *ctl, uint8_t ret[16])
{
    const char *name = ctl->args.positions[0];
    const struct kvarn_inspect_session_args args = {.name = name};
    struct kvarn_inspect_session_result found;
    int err = kvarn_client_inspect_session(ctl->client, &args, &found);

    if (err == KVARN_ENOT_FOUND && hex_parse(name, ret)) {
        return CTL_OK;
    }
    if (err != 0) {
        return ctl_refused(ctl, err);
    }
    memcpy(ret, found.fingerprint, sizeof found.fingerprint);
    return CTL_OK;
}

/* Add what one reply holds. */
static int chunk_add(struct ctl *ctl, struct metric_file *file, size_t *counts_at,
    const struct kvarn_read_metric_result *chunk)
{
    float *sums = realloc(file->sums, file->sums_bytes + chunk->data_bytes + 1);

    if (sums == NULL) {
        return ctl_fail(ctl, KVARN_ENOMEM, "no memory for the sums");
    }
    file->sums = sums;
    if (chunk->count_count > file->count_count - *counts_at) {
        return ctl_fail(ctl, KVARN_EPROTOCOL, "the server changed the shape on the way");
    }
    memcpy((uint8_t *)sums + file->sums_bytes, chunk->data, chunk->data_bytes);
    memcpy(file->counts + *counts_at, chunk->counts, chunk->count_count * sizeof *chunk->counts);
    file->sums_bytes += chunk->data_bytes;
    *counts_at += chunk->count_count;
    return CTL_OK;
}

/* All layers into the file. */
static int metric_fetch(struct ctl *ctl, struct metric_file *file, uint32_t *ret_version)
{
    struct kvarn_read_metric_args args = {.fingerprint = file->fingerprint, .layer_count = 1};
    struct kvarn_read_metric_result chunk;
    uint8_t fingerprint[16];
    size_t counts_at = 0;

    memcpy(fingerprint, file->fingerprint, sizeof fingerprint);
    int err = kvarn_client_read_metric(ctl->client, &args, &chunk);
    if (err != 0) {
        return ctl_refused(ctl, err);
    }
    err = metric_file_init(file, &chunk.shape);
    if (err != 0) {
        return ctl_fail(ctl, err, "the server's shape is outside the limits");
    }
    memcpy(file->fingerprint, fingerprint, sizeof fingerprint);
    while (args.layer_first < file->layer_count) {
        args.layer_count = chunk_layers(file, args.layer_first);
        err = kvarn_client_read_metric(ctl->client, &args, &chunk);
        if (err != 0) {
            return ctl_refused(ctl, err);
        }
        int code = chunk_add(ctl, file, &counts_at, &chunk);
        if (code != CTL_OK) {
            return code;
        }
        args.layer_first += args.layer_count;
        *ret_version = chunk.metric_version;
    }
    return CTL_OK;
}

/* Layers of which something is known, and the fewest queries of a KV head in them. */
static uint32_t layers_known(const struct metric_file *file, uint64_t *ret_queries)
{
    const uint64_t *counts = file->counts;
    uint64_t fewest = UINT64_MAX;
    uint32_t known = 0;

    for (uint32_t layer = 0; layer < file->layer_count; layer++) {
        known += counts[0] > 0;
        for (uint32_t head = 0; head < file->layers[layer].kv_heads; head++, counts++) {
            fewest = *counts > 0 && *counts < fewest ? *counts : fewest;
        }
    }
    *ret_queries = known > 0 ? fewest : 0;
    return known;
}

static void metric_say(struct ctl *ctl, const struct metric_file *file, uint32_t version)
{
    uint64_t queries = 0;
    uint32_t known = layers_known(file, &queries);
    char text[CTL_BYTES_TEXT_MAX];
    char name[PRINTABLE_MAX];

    if (!ctl->is_json) {
        printf("%s: %" PRIu32 " of %" PRIu32 " layers, at least %" PRIu64
               " queries a KV head, %s; version %" PRIu32 "\n",
            printable_text(file->shape.model, name, sizeof name), known, file->layer_count, queries,
            ctl_bytes_text(file->sums_bytes, text), version);
        return;
    }
    json_object_open(&ctl->json, NULL);
    json_text(&ctl->json, "model", file->shape.model);
    json_hex(&ctl->json, "fingerprint", file->fingerprint, sizeof file->fingerprint);
    json_u64(&ctl->json, "layers", file->layer_count);
    json_u64(&ctl->json, "layers_known", known);
    json_u64(&ctl->json, "queries_min", queries);
    json_u64(&ctl->json, "bytes", file->sums_bytes);
    json_u64(&ctl->json, "metric_version", version);
    json_object_close(&ctl->json);
}

static int export_write(struct ctl *ctl, const struct metric_file *file, uint32_t version)
{
    const char *path = ctl_text(ctl, "out");
    char error[METRIC_FILE_ERROR_MAX];

    if (file->sums_bytes == 0) {
        return ctl_fail(ctl, KVARN_ENOT_FOUND,
            "the server knows too few queries of any layer yet; it learns from the first session "
            "with the encoder aware on");
    }
    int err = metric_file_write(path, file, error);
    if (err != 0) {
        return ctl_fail(ctl, err, error);
    }
    metric_say(ctl, file, version);
    return CTL_OK;
}

int cmd_shape_export(struct ctl *ctl)
{
    struct metric_file file = {0};
    uint32_t version = 0;
    int code = fingerprint_find(ctl, file.fingerprint);

    if (code == CTL_OK) {
        code = metric_fetch(ctl, &file, &version);
    }
    if (code == CTL_OK) {
        code = export_write(ctl, &file, version);
    }
    metric_file_fini(&file);
    return code;
}

/* Hand the layers over, a few at a time; those that nothing is known of are passed over. */
static int metric_give(struct ctl *ctl, const struct metric_file *file, uint32_t *ret_version)
{
    struct kvarn_register_shape_result result = {0};
    const uint64_t *counts = file->counts;
    const uint8_t *sums = (const uint8_t *)file->sums;

    for (uint32_t first = 0; first < file->layer_count;) {
        uint32_t count = chunk_layers(file, first);
        struct kvarn_span span = {.data = sums};
        struct kvarn_register_metric_args args = {.shape = &file->shape,
            .layer_first = first,
            .layer_count = count,
            .counts = counts,
            .payload = &span,
            .payload_count = 1};
        for (uint32_t layer = first; layer < first + count; layer++) {
            span.bytes += counts[0] > 0 ? (size_t)metric_file_layer_bytes(file, layer) : 0;
            counts += file->layers[layer].kv_heads;
            args.count_count += file->layers[layer].kv_heads;
        }
        first += count;
        sums += span.bytes;
        if (span.bytes == 0) {
            continue;
        }
        int err = kvarn_client_register_metric(ctl->client, &args, &result);
        if (err != 0) {
            return ctl_refused(ctl, err);
        }
        if (memcmp(result.fingerprint, file->fingerprint, sizeof result.fingerprint) != 0) {
            return ctl_fail(
                ctl, KVARN_ECORRUPT, "the file's fingerprint is not that of the shape in it");
        }
    }
    *ret_version = result.metric_version;
    return CTL_OK;
}

int cmd_shape_import(struct ctl *ctl)
{
    struct metric_file file = {0};
    char error[METRIC_FILE_ERROR_MAX];
    uint32_t version = 0;
    int err = metric_file_read(ctl->args.positions[0], &file, error);

    if (err != 0) {
        return ctl_fail(ctl, err, error);
    }
    int code = metric_give(ctl, &file, &version);
    if (code == CTL_OK) {
        metric_say(ctl, &file, version);
    }
    metric_file_fini(&file);
    return code;
}
