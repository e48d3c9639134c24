/*
 * An evaluation's reading back: stored, rotated and un-rotated, compared with what was sent.
 *
 * Owner: the command. Thread: main.
 */
#include "client/cli/evaluate_run.h"

#include <stdlib.h>
#include <string.h>

#include "lib/base/assert.h"

/* Relative squared errors up to which two forms of one vector agree. Records are decoded by the
 * same library on both sides, perhaps by other instructions; fp16 rounds by 2^-12 of a value. */
#define DECODED_ERROR_MAX 1e-9
#define ROTATED_ERROR_MAX 1e-6

#define PASS_US_MIN    200000 /* a speed is measured at least this long */
#define PASS_COUNT_MAX 64

/* How rows came to be here. */
enum form {
    FORM_DECODED,   /* from the stored form, by this program; rotated */
    FORM_ROTATED,   /* as the daemon reads them back in fp32, rotated */
    FORM_UNROTATED, /* as the daemon reads them back in fp16 */
    FORM_COUNT,
};

/* Tokens [first, last) of a layer, in the forms in which they came. */
struct chunk {
    uint32_t layer;
    uint64_t first, last;
    struct kvarn_run *runs; /* owned: of the stored form */
    size_t run_count;
    uint8_t *stored; /* owned: the bytes of the stored form */
    size_t stored_bytes;
    float *k[FORM_COUNT], *v[FORM_COUNT]; /* owned: [head][token][dim] */
};

/* What reading one layer works with. */
struct reading {
    struct evaluate *e; /* borrowed */
    struct kvarn_tile_spec spec;
    float *k_want, *v_want; /* owned: what was sent, [head][all tokens][dim] */
    void *tile;             /* owned: work space, 64-byte aligned */
    float *k_tile, *v_tile; /* owned: work space, one decoded tile */
    struct error_sum decoded, rotated;
    bool is_same_stored;
};

static void chunk_fini(struct chunk *c)
{
    free(c->runs);
    free(c->stored);
    for (int form = 0; form < FORM_COUNT; form++) {
        free(c->k[form]);
        free(c->v[form]);
    }
}

static bool chunk_init(struct chunk *c, const struct evaluate_layer *l)
{
    size_t rows = (size_t)((c->last - c->first) * l->kv_heads);
    bool is_good = true;

    for (int form = 0; form < FORM_COUNT; form++) {
        c->k[form] = calloc(rows * l->k_dim, sizeof(float));
        c->v[form] = calloc(rows * l->v_dim, sizeof(float));
        is_good = is_good && c->k[form] != NULL && c->v[form] != NULL;
    }
    return is_good;
}

static int memory_fail(struct evaluate *e)
{
    return ctl_fail(e->ctl, KVARN_ENOMEM, kvarn_err_text(KVARN_ENOMEM));
}

static struct kvarn_read_blocks_args read_args(
    struct kvarn_session *session, uint32_t layer, uint64_t first, uint64_t last)
{
    return (struct kvarn_read_blocks_args){
        .session = session,
        .layer_first = layer,
        .layer_count = 1,
        .token_first = first,
        .token_last = last,
    };
}

/* ---- Rows out of a reply ---- */

/* Rows [K then V][head][token][dim] of a run to floats. Returns the bytes behind them. */
static const uint8_t *rows_take(struct evaluate *e, const struct chunk *c,
    const struct kvarn_run *run, const uint8_t *data, enum kvarn_dtype dtype, enum form form)
{
    const struct evaluate_layer *l = &e->data->layers[c->layer];
    uint64_t tokens = c->last - c->first;
    uint64_t at = run->first_token - c->first;

    for (int is_v = 0; is_v < 2; is_v++) {
        uint32_t dim = is_v ? l->v_dim : l->k_dim;
        float *to = is_v ? c->v[form] : c->k[form];
        size_t values = (size_t)run->token_count * dim;

        for (uint32_t head = 0; head < l->kv_heads; head++) {
            kvarn_to_f32(to + (head * tokens + at) * dim, data, dtype, values);
            data += values * kvarn_dtype_bytes(dtype);
        }
    }
    return data;
}

/* Read a chunk as rows of one type and keep them. */
static int rows_read(
    struct evaluate *e, struct chunk *c, enum kvarn_dtype dtype, bool is_rotated, enum form form)
{
    const struct evaluate_layer *l = &e->data->layers[c->layer];
    struct kvarn_read_blocks_args args = read_args(e->bulk, c->layer, c->first, c->last);
    struct kvarn_read_blocks_result reply;
    uint64_t at = c->first;
    const uint8_t *data;
    int err;

    args.dtype = dtype;
    args.rotated = is_rotated;
    err = kvarn_client_read_blocks(e->ctl->client, &args, &reply);
    if (err != 0) {
        return ctl_refused(e->ctl, err);
    }
    if (reply.data_bytes !=
        (c->last - c->first) * l->kv_heads * (l->k_dim + l->v_dim) * kvarn_dtype_bytes(dtype)) {
        return ctl_fail(e->ctl, KVARN_EPROTOCOL, "rows of another size than was asked for");
    }
    data = reply.data;
    for (size_t i = 0; i < reply.run_count; i++) {
        const struct kvarn_run *run = &reply.runs[i];

        if (run->form != KVARN_RUN_ROWS || run->first_token != at ||
            run->token_count > c->last - at) {
            return ctl_fail(e->ctl, KVARN_EPROTOCOL, "runs that were not asked for");
        }
        data = rows_take(e, c, run, data, dtype, form);
        at += run->token_count;
    }
    return at == c->last ? CTL_OK : ctl_fail(e->ctl, KVARN_EPROTOCOL, "runs are missing");
}

/* ---- The stored form ---- */

static uint64_t run_bytes(
    const struct evaluate_layer *l, const struct kvarn_tile_spec *spec, const struct kvarn_run *run)
{
    if (run->form == KVARN_RUN_RECORDS) {
        return run->token_count / spec->group * l->kv_heads * kvarn_record_bytes(spec);
    }
    return run->token_count * l->kv_heads * (l->k_dim + l->v_dim) * sizeof(uint16_t);
}

/* True when the runs cover the chunk in order and their bytes are those that came. */
static bool runs_are_good(const struct reading *r, const struct chunk *c)
{
    const struct evaluate_layer *l = &r->e->data->layers[c->layer];
    uint64_t at = c->first;
    uint64_t bytes = 0;

    for (size_t i = 0; i < c->run_count; i++) {
        const struct kvarn_run *run = &c->runs[i];

        if (run->form == KVARN_RUN_ROWS || run->layer != c->layer || run->first_token != at ||
            run->token_count > c->last - at ||
            (run->form == KVARN_RUN_RECORDS && run->token_count % r->spec.group != 0)) {
            return false;
        }
        at += run->token_count;
        bytes += run_bytes(l, &r->spec, run);
    }
    return at == c->last && bytes == c->stored_bytes;
}

/* Read the chunk's stored form from both sessions; keep one, compare the other. */
static int stored_read(struct reading *r, struct chunk *c)
{
    struct evaluate *e = r->e;
    struct kvarn_read_blocks_args args = read_args(e->steps, c->layer, c->first, c->last);
    struct kvarn_read_blocks_result reply;
    int err;

    args.stored = true;
    err = kvarn_client_read_blocks(e->ctl->client, &args, &reply);
    if (err != 0) {
        return ctl_refused(e->ctl, err);
    }
    c->runs = malloc((reply.run_count + 1) * sizeof *c->runs);
    c->stored = malloc(reply.data_bytes + 1);
    if (c->runs == NULL || c->stored == NULL) {
        return memory_fail(e);
    }
    memcpy(c->runs, reply.runs, reply.run_count * sizeof *c->runs);
    memcpy(c->stored, reply.data, reply.data_bytes);
    c->run_count = reply.run_count;
    c->stored_bytes = reply.data_bytes;
    if (!runs_are_good(r, c)) {
        return ctl_fail(e->ctl, KVARN_EPROTOCOL, "stored runs that do not fit the range");
    }
    args.session = e->bulk;
    err = kvarn_client_read_blocks(e->ctl->client, &args, &reply);
    if (err != 0) {
        return ctl_refused(e->ctl, err);
    }
    /* Field by field: padding has no value. */
    bool is_same = reply.run_count == c->run_count && reply.data_bytes == c->stored_bytes &&
                   memcmp(reply.data, c->stored, c->stored_bytes) == 0;
    for (size_t i = 0; is_same && i < c->run_count; i++) {
        is_same = reply.runs[i].form == c->runs[i].form &&
                  reply.runs[i].token_count == c->runs[i].token_count;
    }
    r->is_same_stored = r->is_same_stored && is_same;
    return CTL_OK;
}

/* Decode the records of a run, [block][head]. */
static int records_decode(
    struct reading *r, struct chunk *c, const struct kvarn_run *run, const uint8_t *data)
{
    const struct evaluate_layer *l = &r->e->data->layers[c->layer];
    size_t record_bytes = kvarn_record_bytes(&r->spec);
    uint64_t tokens = c->last - c->first;
    uint64_t group = r->spec.group;

    for (uint64_t at = run->first_token - c->first;
         at < run->first_token - c->first + run->token_count; at += group) {
        for (uint32_t head = 0; head < l->kv_heads; head++) {
            int err = kvarn_record_validate(&r->spec, data, record_bytes);

            if (err != 0) {
                return ctl_fail(r->e->ctl, err, "a record that is not valid");
            }
            kvarn_tile_from_record(&r->spec, data, r->tile);
            kvarn_tile_decode(&r->spec, r->tile, r->k_tile, r->v_tile);
            memcpy(c->k[FORM_DECODED] + (head * tokens + at) * l->k_dim, r->k_tile,
                group * l->k_dim * sizeof(float));
            memcpy(c->v[FORM_DECODED] + (head * tokens + at) * l->v_dim, r->v_tile,
                group * l->v_dim * sizeof(float));
            data += record_bytes;
        }
    }
    return CTL_OK;
}

static int stored_decode(struct reading *r, struct chunk *c)
{
    const struct evaluate_layer *l = &r->e->data->layers[c->layer];
    const uint8_t *data = c->stored;

    for (size_t i = 0; i < c->run_count; i++) {
        const struct kvarn_run *run = &c->runs[i];
        int code = CTL_OK;

        if (run->form == KVARN_RUN_RECORDS) {
            code = records_decode(r, c, run, data);
        } else {
            rows_take(r->e, c, run, data, KVARN_F16, FORM_DECODED);
        }
        if (code != CTL_OK) {
            /* The analyzer does not see that the chunk still holds both, for chunk_fini(). */
            return code; /* NOLINT(clang-analyzer-unix.Malloc) */
        }
        data += run_bytes(l, &r->spec, run);
    }
    return CTL_OK;
}

/* ---- Comparing ---- */

/* Add the errors of a run's tokens, of K or of V. */
static void run_errors_add(const struct reading *r, const struct chunk *c,
    const struct kvarn_run *run, bool is_v, struct error_sum *sum)
{
    const struct evaluate_data *data = r->e->data;
    const struct evaluate_layer *l = &data->layers[c->layer];
    const float *got = is_v ? c->v[FORM_UNROTATED] : c->k[FORM_UNROTATED];
    const float *want = is_v ? r->v_want : r->k_want;
    uint32_t dim = is_v ? l->v_dim : l->k_dim;
    uint64_t tokens = c->last - c->first;

    for (uint32_t head = 0; head < l->kv_heads; head++) {
        error_sum_add(sum, got + (head * tokens + run->first_token - c->first) * dim,
            want + (head * data->tokens + run->first_token) * dim, (size_t)run->token_count * dim);
    }
}

/* Add a chunk to the layer's figures and to the checks. Rotates the rotated rows back. */
static void chunk_compare(struct reading *r, struct chunk *c)
{
    const struct evaluate_layer *l = &r->e->data->layers[c->layer];
    struct evaluate_layer_report *report = &r->e->report.layers[c->layer];
    size_t rows = (size_t)((c->last - c->first) * l->kv_heads);

    error_sum_add(&r->decoded, c->k[FORM_DECODED], c->k[FORM_ROTATED], rows * l->k_dim);
    error_sum_add(&r->decoded, c->v[FORM_DECODED], c->v[FORM_ROTATED], rows * l->v_dim);
    kvarn_rotate(c->k[FORM_ROTATED], rows, l->k_dim);
    kvarn_rotate(c->v[FORM_ROTATED], rows, l->v_dim);
    error_sum_add(&r->rotated, c->k[FORM_UNROTATED], c->k[FORM_ROTATED], rows * l->k_dim);
    error_sum_add(&r->rotated, c->v[FORM_UNROTATED], c->v[FORM_ROTATED], rows * l->v_dim);
    for (size_t i = 0; i < c->run_count; i++) {
        const struct kvarn_run *run = &c->runs[i];

        run_errors_add(r, c, run, false, &report->k_all);
        run_errors_add(r, c, run, true, &report->v_all);
        if (run->form == KVARN_RUN_RECORDS) {
            run_errors_add(r, c, run, false, &report->k_quantised);
            run_errors_add(r, c, run, true, &report->v_quantised);
        }
    }
}

static int chunk_read(struct reading *r, uint32_t layer, uint64_t first, uint64_t last)
{
    struct chunk c = {.layer = layer, .first = first, .last = last};
    int code = chunk_init(&c, &r->e->data->layers[layer]) ? CTL_OK : memory_fail(r->e);

    if (code == CTL_OK) {
        code = stored_read(r, &c);
    }
    if (code == CTL_OK) {
        code = stored_decode(r, &c);
    }
    if (code == CTL_OK) {
        code = rows_read(r->e, &c, KVARN_F32, true, FORM_ROTATED);
    }
    if (code == CTL_OK) {
        code = rows_read(r->e, &c, KVARN_F16, false, FORM_UNROTATED);
    }
    if (code == CTL_OK) {
        chunk_compare(r, &c);
    }
    chunk_fini(&c);
    return code;
}

/* Tokens of a chunk: whole blocks, so that none is cut. */
static uint64_t chunk_tokens(const struct evaluate *e, uint32_t layer)
{
    const struct evaluate_layer *l = &e->data->layers[layer];
    uint64_t tokens =
        evaluate_request_tokens(e, (uint64_t)l->kv_heads * (l->k_dim + l->v_dim) * sizeof(float));
    uint64_t group = e->options.group;

    return tokens > group ? tokens / group * group : group;
}

static uint64_t chunk_end(const struct evaluate *e, uint64_t first, uint64_t step)
{
    return e->data->tokens - first < step ? e->data->tokens : first + step;
}

static int layer_read(struct reading *r, uint32_t layer)
{
    struct evaluate *e = r->e;
    const struct evaluate_layer *l = &e->data->layers[layer];
    uint64_t step = chunk_tokens(e, layer);
    int code = CTL_OK;

    r->spec = (struct kvarn_tile_spec){(uint16_t)l->k_dim, (uint16_t)l->v_dim,
        (uint16_t)e->options.group, e->options.k_bits, e->options.v_bits};
    KVARN_ASSERT(kvarn_tile_spec_check(&r->spec) == 0); /* the daemon took the shape */
    r->k_want = evaluate_floats(&l->k);
    r->v_want = evaluate_floats(&l->v);
    r->tile = aligned_alloc(64, kvarn_tile_bytes(&r->spec));
    r->k_tile = calloc((size_t)e->options.group * l->k_dim, sizeof(float));
    r->v_tile = calloc((size_t)e->options.group * l->v_dim, sizeof(float));
    if (r->k_want == NULL || r->v_want == NULL || r->tile == NULL || r->k_tile == NULL ||
        r->v_tile == NULL) {
        code = memory_fail(e);
    }
    for (uint64_t first = 0; code == CTL_OK && first < e->data->tokens; first += step) {
        code = chunk_read(r, layer, first, chunk_end(e, first, step));
    }
    free(r->k_want);
    free(r->v_want);
    free(r->tile);
    free(r->k_tile);
    free(r->v_tile);
    return code;
}

/* ---- Speed and bytes ---- */

/* Read all of a session, in one form, again and again for a while. */
static int speed_measure(struct evaluate *e, bool is_stored, struct evaluate_rate *ret)
{
    uint64_t begin_us = ctl_now_us();

    for (int pass = 0;
         pass < PASS_COUNT_MAX && (pass == 0 || ctl_now_us() - begin_us < PASS_US_MIN); pass++) {
        for (uint32_t layer = 0; layer < e->data->layer_count; layer++) {
            uint64_t step = chunk_tokens(e, layer);

            for (uint64_t first = 0; first < e->data->tokens; first += step) {
                struct kvarn_read_blocks_args args =
                    read_args(e->bulk, layer, first, chunk_end(e, first, step));
                struct kvarn_read_blocks_result reply;
                int err;

                args.stored = is_stored;
                err = kvarn_client_read_blocks(e->ctl->client, &args, &reply);
                if (err != 0) {
                    return ctl_refused(e->ctl, err);
                }
                ret->bytes += reply.data_bytes;
            }
        }
        ret->tokens += e->data->tokens;
    }
    ret->seconds = (double)(ctl_now_us() - begin_us) / 1e6;
    return CTL_OK;
}

/* What the session takes, as the daemon says. */
static int bytes_inspect(struct evaluate *e)
{
    const struct kvarn_inspect_session_args args = {.session = e->bulk};
    struct kvarn_inspect_session_result found;
    struct evaluate_bytes *bytes = &e->report.bytes;
    int err = kvarn_client_inspect_session(e->ctl->client, &args, &found);

    if (err != 0) {
        return ctl_refused(e->ctl, err);
    }
    bytes->fp16 = evaluate_data_fp16_bytes(e->data);
    bytes->format = found.tile_bytes;
    bytes->sink = found.sink_bytes;
    bytes->tail = found.tail_bytes;
    bytes->reserved = found.reserved_bytes;
    e->report.pages_reference = found.pages_reference;
    e->report.pages_refined = found.pages_refined;
    e->report.pages_aware = found.pages_aware;
    for (uint32_t i = 0; i < e->report.layer_count; i++) {
        const struct evaluate_layer_report *l = &e->report.layers[i];

        bytes->quantised_fp16 += (l->k_quantised.count + l->v_quantised.count) * sizeof(uint16_t);
    }
    return CTL_OK;
}

int evaluate_read(struct evaluate *e)
{
    struct reading r = {.e = e, .is_same_stored = true};
    int code = CTL_OK;

    for (uint32_t layer = 0; code == CTL_OK && layer < e->data->layer_count; layer++) {
        code = layer_read(&r, layer);
        evaluate_progress(e, "reading back", layer + 1, e->data->layer_count);
    }
    if (code == CTL_OK) {
        e->report.has_passed[EVALUATE_CHECK_STORED] = r.is_same_stored;
        e->report.has_passed[EVALUATE_CHECK_DECODED] =
            error_sum_relative(&r.decoded) <= DECODED_ERROR_MAX;
        e->report.has_passed[EVALUATE_CHECK_ROTATED] =
            error_sum_relative(&r.rotated) <= ROTATED_ERROR_MAX;
        code = speed_measure(e, true, &e->report.out_records);
    }
    if (code == CTL_OK) {
        code = speed_measure(e, false, &e->report.out_rows);
    }
    return code == CTL_OK ? bytes_inspect(e) : code;
}
