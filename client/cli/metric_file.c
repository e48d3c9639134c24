/* Files of query metrics: writing whole ones, and reading ones that may be anything. */
#include "client/cli/metric_file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"

#define MAGIC        "KVARNMTR"
#define VERSION      1
#define HEAD_BYTES   56
#define HASHED_BYTES 48 /* of the head; the checksum follows */

/* Texts of shapes: two names and a line for each of 512 layer groups. */
#define TEXT_BYTES_MAX (64 * 1024)

static int fail(char *error, const char *path, int err, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static int fail(char *error, const char *path, int err, const char *format, ...)
{
    char text[METRIC_FILE_ERROR_MAX / 2];
    va_list args;

    KVARN_ASSERT(err < 0);
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    snprintf(error, METRIC_FILE_ERROR_MAX, "%.200s: %s", path, text);
    return err;
}

void metric_file_fini(struct metric_file *file)
{
    free(file->text);
    free(file->layers);
    free(file->counts);
    free(file->sums);
    free(file->groups);
    free(file->names);
    memset(file, 0, sizeof *file);
}

uint64_t metric_file_layer_bytes(const struct metric_file *file, uint32_t layer)
{
    const struct metric_file_layer *l = &file->layers[layer];

    return (uint64_t)l->kv_heads * l->k_dim * l->k_dim * sizeof(float);
}

static bool group_is_sane(const struct kvarn_layer_group *group)
{
    return group->layers > 0 && group->layers <= KVARN_LAYERS_MAX && group->kv_heads > 0 &&
           group->kv_heads <= KVARN_KV_HEADS_MAX && group->k_dim > 0 &&
           group->k_dim <= KVARN_HEAD_DIM_MAX;
}

/* Layers and room for their counts. */
static int layers_fill(struct metric_file *file, const struct kvarn_shape *shape)
{
    file->layers = calloc(KVARN_LAYERS_MAX, sizeof *file->layers);
    if (file->layers == NULL) {
        return KVARN_ENOMEM;
    }
    for (size_t i = 0; i < shape->layer_group_count; i++) {
        const struct kvarn_layer_group *group = &shape->layer_groups[i];
        if (!group_is_sane(group) || file->layer_count + group->layers > KVARN_LAYERS_MAX) {
            return KVARN_EINVALID;
        }
        for (uint32_t j = 0; j < group->layers; j++) {
            file->layers[file->layer_count++] =
                (struct metric_file_layer){.kv_heads = group->kv_heads, .k_dim = group->k_dim};
            file->count_count += group->kv_heads;
        }
    }
    file->counts = calloc(file->count_count + 1, sizeof *file->counts);
    return file->counts == NULL ? KVARN_ENOMEM : file->layer_count == 0 ? KVARN_EINVALID : 0;
}

static bool groups_alike(const struct kvarn_layer_group *a, const struct kvarn_layer_group *b)
{
    return a->kv_heads == b->kv_heads && a->k_dim == b->k_dim && a->v_dim == b->v_dim &&
           a->window == b->window;
}

/* The canonical text of a shape with all its defaults filled in, as a daemon gives it. */
static void text_print(FILE *out, const struct kvarn_shape *shape)
{
    const char *revision = shape->revision == NULL ? "" : shape->revision;
    size_t i = 0;

    fprintf(out,
        "kvarn-shape 1\nmodel %zu:%s\nrevision %zu:%s\ngroup %" PRIu32 "\nbits %u %u\nsink %" PRIu32
        "\n",
        strlen(shape->model), shape->model, strlen(revision), revision, shape->group, shape->k_bits,
        shape->v_bits, shape->sink_tokens);
    while (i < shape->layer_group_count) {
        const struct kvarn_layer_group *group = &shape->layer_groups[i];
        uint64_t layers = 0;
        for (; i < shape->layer_group_count && groups_alike(group, &shape->layer_groups[i]); i++) {
            layers += shape->layer_groups[i].layers;
        }
        fprintf(out, "layers %" PRIu64 " %" PRIu32 " %" PRIu32 " %" PRIu32 " %" PRIu64 "\n", layers,
            group->kv_heads, group->k_dim, group->v_dim, group->window);
    }
}

static size_t padded(size_t bytes)
{
    return (bytes + 7) & ~(size_t)7;
}

static void put(uint8_t *to, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++) {
        to[i] = (uint8_t)(value >> (8 * i));
    }
}

static uint64_t get(const uint8_t *from, unsigned bytes)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < bytes; i++) {
        value |= (uint64_t)from[i] << (8 * i);
    }
    return value;
}

/* The parts of the file behind its head, as they lie. This library runs on little-endian only. */
struct parts {
    struct {
        const void *data;
        size_t bytes;
    } part[4];
};

static struct parts parts_of(const struct metric_file *file, const uint8_t zeros[8])
{
    return (struct parts){{{file->text, file->text_bytes},
        {zeros, padded(file->text_bytes) - file->text_bytes},
        {file->counts, file->count_count * sizeof *file->counts}, {file->sums, file->sums_bytes}}};
}

static uint64_t checksum(const uint8_t head[HEAD_BYTES], const struct parts *parts)
{
    XXH3_state_t *state = XXH3_createState();
    uint64_t hash = 0;

    if (state == NULL) {
        return 0; /* such a file is refused when it is read */
    }
    XXH3_64bits_reset(state);
    XXH3_64bits_update(state, head, HASHED_BYTES);
    for (unsigned i = 0; i < 4; i++) {
        if (parts->part[i].bytes > 0) {
            XXH3_64bits_update(state, parts->part[i].data, parts->part[i].bytes);
        }
    }
    hash = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return hash;
}

int metric_file_write(
    const char *path, const struct metric_file *file, char error[METRIC_FILE_ERROR_MAX])
{
    static const uint8_t zeros[8];
    uint8_t head[HEAD_BYTES] = MAGIC;
    struct parts parts = parts_of(file, zeros);
    char *beside = NULL;

    put(head + 8, VERSION, 4);
    put(head + 12, file->text_bytes, 4);
    memcpy(head + 16, file->fingerprint, sizeof file->fingerprint);
    put(head + 32, file->count_count, 8);
    put(head + 40, file->sums_bytes, 8);
    put(head + HASHED_BYTES, checksum(head, &parts), 8);
    if (asprintf(&beside, "%s.part", path) < 0) {
        return fail(error, path, KVARN_ENOMEM, "no memory");
    }
    FILE *out = fopen(beside, "wbe");
    bool is_good = out != NULL && fwrite(head, 1, HEAD_BYTES, out) == HEAD_BYTES;
    for (unsigned i = 0; i < 4 && is_good; i++) {
        is_good = fwrite(parts.part[i].data, 1, parts.part[i].bytes, out) == parts.part[i].bytes;
    }
    int saved = errno;
    if (out != NULL && fclose(out) != 0 && is_good) {
        saved = errno;
        is_good = false;
    }
    if (is_good && rename(beside, path) != 0) {
        saved = errno;
        is_good = false;
    }
    if (!is_good && out != NULL) {
        unlink(beside);
    }
    free(beside);
    return is_good ? 0 : fail(error, path, KVARN_EIO, "%s", strerror(saved));
}

/* A place in the text of a file, which may be anything. */
struct cursor {
    const char *at, *end;
    bool is_bad;
};

static void take_literal(struct cursor *in, const char *literal)
{
    size_t bytes = strlen(literal);

    in->is_bad |= (size_t)(in->end - in->at) < bytes || memcmp(in->at, literal, bytes) != 0;
    in->at += in->is_bad ? 0 : bytes;
}

static uint64_t take_number(struct cursor *in, uint64_t max)
{
    uint64_t value = 0;
    bool has_digit = false;

    while (!in->is_bad && in->at < in->end && *in->at >= '0' && *in->at <= '9' && value <= max) {
        value = value * 10 + (uint64_t)(*in->at++ - '0');
        has_digit = true;
    }
    in->is_bad |= !has_digit || value > max;
    return in->is_bad ? 0 : value;
}

/* A string with its length before it, into `to`, which gets a zero byte; returns what follows. */
static char *take_string(struct cursor *in, char *to)
{
    size_t bytes = (size_t)take_number(in, KVARN_MODEL_NAME_MAX);

    take_literal(in, ":");
    in->is_bad |= (size_t)(in->end - in->at) < bytes;
    if (!in->is_bad) {
        memcpy(to, in->at, bytes);
        in->at += bytes;
        to += bytes;
        in->is_bad |= memchr(to - bytes, '\0', bytes) != NULL;
    }
    *to = '\0';
    return to + 1;
}

static void take_groups(struct cursor *in, struct metric_file *file)
{
    struct kvarn_shape *shape = &file->shape;

    while (!in->is_bad && in->at < in->end && shape->layer_group_count < KVARN_LAYER_GROUPS_MAX) {
        struct kvarn_layer_group *group = &file->groups[shape->layer_group_count++];
        take_literal(in, "layers ");
        group->layers = (uint32_t)take_number(in, UINT32_MAX);
        take_literal(in, " ");
        group->kv_heads = (uint32_t)take_number(in, UINT32_MAX);
        take_literal(in, " ");
        group->k_dim = (uint32_t)take_number(in, UINT32_MAX);
        take_literal(in, " ");
        group->v_dim = (uint32_t)take_number(in, UINT32_MAX);
        take_literal(in, " ");
        group->window = take_number(in, KVARN_SESSION_TOKENS_MAX);
        take_literal(in, "\n");
    }
}

/* Shape of the canonical text. Returns 0, KVARN_EINVALID, KVARN_ENOMEM. */
static int text_parse(struct metric_file *file)
{
    struct cursor in = {.at = file->text, .end = file->text + file->text_bytes};
    struct kvarn_shape *shape = &file->shape;

    file->names = calloc(2, KVARN_MODEL_NAME_MAX + 1);
    file->groups = calloc(KVARN_LAYER_GROUPS_MAX, sizeof *file->groups);
    if (file->names == NULL || file->groups == NULL) {
        return KVARN_ENOMEM;
    }
    shape->layer_groups = file->groups;
    shape->model = file->names;
    take_literal(&in, "kvarn-shape 1\nmodel ");
    char *revision = take_string(&in, file->names);
    shape->revision = revision;
    take_literal(&in, "\nrevision ");
    (void)take_string(&in, revision);
    take_literal(&in, "\ngroup ");
    shape->group = (uint32_t)take_number(&in, UINT32_MAX);
    take_literal(&in, "\nbits ");
    shape->k_bits = (uint8_t)take_number(&in, UINT8_MAX);
    take_literal(&in, " ");
    shape->v_bits = (uint8_t)take_number(&in, UINT8_MAX);
    take_literal(&in, "\nsink ");
    shape->sink_tokens = (uint32_t)take_number(&in, KVARN_SINK_DEFAULT - 1);
    take_literal(&in, "\n");
    take_groups(&in, file);
    return in.is_bad || in.at != in.end ? KVARN_EINVALID : 0;
}

int metric_file_init(struct metric_file *ret, const struct kvarn_shape *shape)
{
    struct metric_file file = {0};
    int err = layers_fill(&file, shape);

    if (err == 0) {
        FILE *out = open_memstream(&file.text, &file.text_bytes);
        if (out != NULL) {
            text_print(out, shape);
        }
        err = out == NULL || fclose(out) != 0 ? KVARN_ENOMEM : text_parse(&file);
    }
    if (err != 0) {
        metric_file_fini(&file);
        return err;
    }
    *ret = file;
    return 0;
}

/* Sums that the counts promise; a layer's counts are all there or none. */
static bool counts_agree(const struct metric_file *file)
{
    const uint64_t *counts = file->counts;
    uint64_t bytes = 0;

    for (uint32_t layer = 0; layer < file->layer_count; layer++) {
        uint32_t heads = file->layers[layer].kv_heads;
        uint32_t there = 0;
        for (uint32_t head = 0; head < heads; head++) {
            there += *counts++ > 0;
        }
        if (there > 0 && there < heads) {
            return false;
        }
        bytes += there > 0 ? metric_file_layer_bytes(file, layer) : 0;
    }
    return bytes == file->sums_bytes;
}

static int read_part(FILE *in, void *to, size_t bytes)
{
    return fread(to, 1, bytes, in) == bytes ? 0 : KVARN_EIO;
}

/* Text, padding, counts and sums behind a head whose sizes agree with the file's. */
static int body_read(FILE *in, struct metric_file *file, uint8_t zeros[8])
{
    struct metric_file layers = {0};

    file->text = malloc(file->text_bytes + 1);
    file->sums = malloc(file->sums_bytes + 1);
    if (file->text == NULL || file->sums == NULL) {
        return KVARN_ENOMEM;
    }
    int err = read_part(in, file->text, file->text_bytes);
    if (err == 0) {
        file->text[file->text_bytes] = '\0';
        err = read_part(in, zeros, padded(file->text_bytes) - file->text_bytes);
    }
    if (err == 0) {
        err = text_parse(file);
    }
    if (err == 0) {
        err = layers_fill(&layers, &file->shape);
        file->layers = layers.layers;
        file->counts = layers.counts;
        file->layer_count = layers.layer_count;
    }
    if (err == 0 && layers.count_count != file->count_count) {
        err = KVARN_EINVALID;
    }
    if (err == 0) {
        err = read_part(in, file->counts, file->count_count * sizeof *file->counts);
    }
    return err == 0 ? read_part(in, file->sums, file->sums_bytes) : err;
}

/* The head of a file of this many bytes. */
static int head_parse(const uint8_t head[HEAD_BYTES], uint64_t file_bytes, struct metric_file *ret)
{
    uint64_t text_bytes = get(head + 12, 4);
    uint64_t counts = get(head + 32, 8);
    uint64_t sums_bytes = get(head + 40, 8);

    if (memcmp(head, MAGIC, 8) != 0 || get(head + 8, 4) != VERSION) {
        return KVARN_EUNSUPPORTED;
    }
    if (text_bytes > TEXT_BYTES_MAX || counts > (uint64_t)KVARN_LAYERS_MAX * KVARN_KV_HEADS_MAX ||
        sums_bytes > file_bytes ||
        HEAD_BYTES + padded((size_t)text_bytes) + counts * sizeof(uint64_t) + sums_bytes !=
            file_bytes) {
        return KVARN_EINVALID;
    }
    ret->text_bytes = (size_t)text_bytes;
    ret->count_count = (size_t)counts;
    ret->sums_bytes = (size_t)sums_bytes;
    memcpy(ret->fingerprint, head + 16, sizeof ret->fingerprint);
    return 0;
}

static int file_read(FILE *in, const char *path, struct metric_file *file, char *error)
{
    uint8_t head[HEAD_BYTES];
    uint8_t zeros[8] = {0};
    struct stat st;

    if (fstat(fileno(in), &st) != 0 || !S_ISREG(st.st_mode)) {
        return fail(error, path, KVARN_EIO, "expected a regular file");
    }
    if (read_part(in, head, sizeof head) != 0) {
        return fail(error, path, KVARN_EINVALID, "expected a metric file, got %jd bytes",
            (intmax_t)st.st_size);
    }
    int err = head_parse(head, (uint64_t)st.st_size, file);
    if (err == KVARN_EUNSUPPORTED) {
        return fail(error, path, KVARN_EINVALID, "expected a metric file of version %d", VERSION);
    }
    if (err == 0) {
        err = body_read(in, file, zeros);
    }
    if (err == KVARN_ENOMEM || err == KVARN_EIO) {
        return fail(error, path, err, "could not be read to its end");
    }
    struct parts parts = parts_of(file, zeros);
    if (err == 0 && checksum(head, &parts) != get(head + HASHED_BYTES, 8)) {
        return fail(error, path, KVARN_ECORRUPT, "the checksum does not match the content");
    }
    if (err != 0 || !counts_agree(file)) {
        return fail(error, path, KVARN_EINVALID, "the sizes of its parts contradict each other");
    }
    return 0;
}

int metric_file_read(const char *path, struct metric_file *ret, char error[METRIC_FILE_ERROR_MAX])
{
    struct metric_file file = {0};
    FILE *in = fopen(path, "rbe");

    if (in == NULL) {
        return fail(error, path, KVARN_EIO, "%s", strerror(errno));
    }
    int err = file_read(in, path, &file, error);
    fclose(in);
    if (err != 0) {
        metric_file_fini(&file);
        return err;
    }
    *ret = file;
    return 0;
}
