/*
 * Table and JSON of an evaluation.
 *
 * Owner: the command. Thread: main.
 */
#include "client/cli/evaluate_report.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "client/cli/ctl.h"
#include "client/cli/printable.h"
#include "lib/base/assert.h"

static const char *const check_texts[EVALUATE_CHECK_COUNT] = {
    [EVALUATE_CHECK_STORED] = "token by token and in bulk store the same records and rows",
    [EVALUATE_CHECK_ATTEND] = "both sessions attend alike, bit for bit",
    [EVALUATE_CHECK_DECODED] = "records decoded here are the rows that the daemon reads back",
    [EVALUATE_CHECK_ROTATED] = "rotated and un-rotated rows are the same vectors",
    [EVALUATE_CHECK_SINGLE] = "one query token at a time gives what many at once give",
    [EVALUATE_CHECK_BYTES] = "the session takes the bytes that kvarnctl size computes",
};

int evaluate_report_init(struct evaluate_report *report, uint32_t layer_count)
{
    KVARN_ASSERT(layer_count > 0);
    memset(report, 0, sizeof *report);
    report->layers = calloc(layer_count, sizeof *report->layers);
    if (report->layers == NULL) {
        return KVARN_ENOMEM;
    }
    report->layer_count = layer_count;
    return 0;
}

void evaluate_report_fini(struct evaluate_report *report)
{
    free(report->layers);
    memset(report, 0, sizeof *report);
}

bool evaluate_report_is_good(const struct evaluate_report *report)
{
    for (int i = 0; i < EVALUATE_CHECK_COUNT; i++) {
        if (!report->has_passed[i]) {
            return false;
        }
    }
    return true;
}

const char *evaluate_check_text(enum evaluate_check check)
{
    KVARN_ASSERT(check < EVALUATE_CHECK_COUNT);
    return check_texts[check];
}

static int time_compare(const void *a, const void *b)
{
    double left = *(const double *)a;
    double right = *(const double *)b;

    return left < right ? -1 : left > right ? 1 : 0;
}

struct evaluate_round_trip evaluate_round_trip_of(double *us, uint64_t count)
{
    struct evaluate_round_trip ret = {.count = count};

    if (count == 0) {
        return ret;
    }
    qsort(us, (size_t)count, sizeof *us, time_compare);
    ret.median_us = us[(count - 1) / 2];
    ret.p99_us = us[(count * 99 + 99) / 100 - 1]; /* the smallest that 99 % do not exceed */
    return ret;
}

/* ---- What is derived ---- */

static uint64_t stored_bytes(const struct evaluate_bytes *b)
{
    return b->format + b->sink + b->tail + b->reserved;
}

static double quotient(double above, double below)
{
    return below > 0.0 ? above / below : 0.0;
}

/* Bits that a value in a tile page takes, padding included; 0 without any. */
static double bits_per_value(const struct evaluate_bytes *b)
{
    return 16.0 * quotient((double)b->format, (double)b->quantised_fp16);
}

static double format_ratio(const struct evaluate_bytes *b)
{
    return quotient((double)b->quantised_fp16, (double)b->format);
}

static double effective_ratio(const struct evaluate_bytes *b)
{
    return quotient((double)b->fp16, (double)stored_bytes(b));
}

static double rate_tokens(const struct evaluate_rate *rate)
{
    return quotient((double)rate->tokens, rate->seconds);
}

/* The columns of errors, of one layer or the mean over layers. */
struct error_row {
    double k_quantised, k_all, v_quantised, v_all;
    double decode, attend;
    double decode_lse_rms, decode_lse_max;
    double attend_lse_rms, attend_lse_max;
};

static struct error_row layer_errors(const struct evaluate_layer_report *l)
{
    return (struct error_row){
        .k_quantised = error_sum_relative(&l->k_quantised),
        .k_all = error_sum_relative(&l->k_all),
        .v_quantised = error_sum_relative(&l->v_quantised),
        .v_all = error_sum_relative(&l->v_all),
        .decode = error_sum_relative(&l->decode),
        .attend = error_sum_relative(&l->attend),
        .decode_lse_rms = lse_error_rms(&l->decode_lse),
        .decode_lse_max = l->decode_lse.max,
        .attend_lse_rms = lse_error_rms(&l->attend_lse),
        .attend_lse_max = l->attend_lse.max,
    };
}

/* Layers weigh alike, whatever their numbers' size; of the _max it is the largest. */
static struct error_row mean_errors(const struct evaluate_report *report)
{
    struct error_row mean = {0};
    double weight = 1.0 / (double)report->layer_count;

    KVARN_ASSERT(report->layer_count > 0);
    for (uint32_t i = 0; i < report->layer_count; i++) {
        struct error_row row = layer_errors(&report->layers[i]);

        mean.k_quantised += weight * row.k_quantised;
        mean.k_all += weight * row.k_all;
        mean.v_quantised += weight * row.v_quantised;
        mean.v_all += weight * row.v_all;
        mean.decode += weight * row.decode;
        mean.attend += weight * row.attend;
        mean.decode_lse_rms += weight * row.decode_lse_rms;
        mean.decode_lse_max = fmax(mean.decode_lse_max, row.decode_lse_max);
        mean.attend_lse_rms += weight * row.attend_lse_rms;
        mean.attend_lse_max = fmax(mean.attend_lse_max, row.attend_lse_max);
    }
    return mean;
}

/* ---- Text ---- */

static void bytes_line(FILE *out, const char *what, uint64_t bytes, uint64_t tokens)
{
    char text[CTL_BYTES_TEXT_MAX];

    fprintf(out, "  %-38s %11s %11.1f B a token\n", what, ctl_bytes_text(bytes, text),
        (double)bytes / (double)tokens);
}

static void bytes_print(const struct evaluate_report *r, FILE *out)
{
    const struct evaluate_bytes *b = &r->bytes;

    fprintf(out, "\nBYTES of a session of %" PRIu64 " tokens\n", r->tokens);
    bytes_line(out, "fp16", b->fp16, r->tokens);
    bytes_line(out, "stored", stored_bytes(b), r->tokens);
    bytes_line(out, "  format: tile pages", b->format, r->tokens);
    bytes_line(out, "  sink: first tokens in fp16", b->sink, r->tokens);
    bytes_line(out, "  tail: open blocks in fp16", b->tail, r->tokens);
    bytes_line(out, "  reserved: tile pages of open blocks", b->reserved, r->tokens);
    fprintf(out, "  format    %.4f bits a value, %.2fx smaller than fp16\n", bits_per_value(b),
        format_ratio(b));
    fprintf(out, "  effective %.2fx smaller than fp16 with sink and tail\n", effective_ratio(b));
    fprintf(out, "  by length");
    for (int i = 0; i < EVALUATE_SIZES; i++) {
        fprintf(out, " %.2fx at %" PRIu64 "%s", r->size_ratio[i], r->size_tokens[i],
            i + 1 < EVALUATE_SIZES ? "," : " tokens (computed)\n");
    }
}

static void error_line(FILE *out, const struct error_row *e)
{
    fprintf(out, " %9.5f %8.5f %9.5f %8.5f %8.5f %8.5f %8.5f %8.5f\n", e->k_quantised, e->k_all,
        e->v_quantised, e->v_all, e->decode, e->decode_lse_rms, e->attend, e->attend_lse_rms);
}

static void errors_print(const struct evaluate_report *r, FILE *out)
{
    static const char *const heads[2][11] = {
        {"", "heads", "dim", "K", "K", "V", "V", "decode", "decode", "attend", "attend"},
        {"layer", "KV/q", "K/V", "in tiles", "all", "in tiles", "all", "output", "LSE", "output",
            "LSE"},
    };
    struct error_row mean = mean_errors(r);

    fprintf(out, "\nERROR against fp16: sum of squared errors / sum of squares; of LSE the root "
                 "mean square in nats\n");
    for (int i = 0; i < 2; i++) {
        fprintf(out, "%5s %8s %8s %9s %8s %9s %8s %8s %8s %8s %8s\n", heads[i][0], heads[i][1],
            heads[i][2], heads[i][3], heads[i][4], heads[i][5], heads[i][6], heads[i][7],
            heads[i][8], heads[i][9], heads[i][10]);
    }
    for (uint32_t i = 0; i < r->layer_count; i++) {
        const struct evaluate_layer_report *l = &r->layers[i];
        struct error_row row = layer_errors(l);
        char counts[24];
        char dims[24];

        snprintf(counts, sizeof counts, "%" PRIu32 "/%" PRIu32, l->kv_heads, l->q_heads);
        snprintf(dims, sizeof dims, "%" PRIu32 "/%" PRIu32, l->k_dim, l->v_dim);
        fprintf(out, "%5" PRIu32 " %8s %8s", l->number, counts, dims);
        error_line(out, &row);
    }
    fprintf(out, "%5s %8s %8s", "mean", "", "");
    error_line(out, &mean);
    fprintf(out,
        "  all: with sink and tail. decode: what AppendAttend answered as each token came, "
        "the newest\n  block still exact; attend: the same queries once all is stored.\n");
}

static void rate_line(FILE *out, const char *what, const struct evaluate_rate *rate)
{
    fprintf(out, "  %-38s %11.0f tokens/s %9.1f MB/s of payload\n", what, rate_tokens(rate),
        quotient((double)rate->bytes, rate->seconds) / 1e6);
}

static void round_trip_line(FILE *out, const char *what, const struct evaluate_round_trip *trip)
{
    fprintf(out, "  %-38s %8.0f us median %8.0f us p99 of %" PRIu64 "\n", what, trip->median_us,
        trip->p99_us, trip->count);
}

static void speed_print(const struct evaluate_report *r, FILE *out)
{
    fprintf(out,
        "\nSPEED of one connection, one request at a time; a token is of all %" PRIu32 " layers\n",
        r->layer_count);
    rate_line(out, "in, token by token, layer by layer", &r->in_steps);
    rate_line(out, "in, in bulk, until sealed", &r->in_bulk);
    rate_line(out, "out, records and rows as stored", &r->out_records);
    rate_line(out, "out, un-rotated fp16", &r->out_rows);
    fprintf(out, "\nROUND TRIP of a request for one layer\n");
    round_trip_line(out, "append of one token", &r->append);
    round_trip_line(out, "append and attend, one token", &r->append_attend);
    round_trip_line(out, "attend, one query token", &r->attend);
}

static void checks_print(const struct evaluate_report *r, FILE *out)
{
    fprintf(out, "\nCHECKS\n");
    for (int i = 0; i < EVALUATE_CHECK_COUNT; i++) {
        fprintf(out, "  %-6s %s\n", r->has_passed[i] ? "ok" : "FAILED", check_texts[i]);
    }
}

void evaluate_report_print(const struct evaluate_report *r, FILE *out)
{
    char version[PRINTABLE_MAX];

    KVARN_ASSERT(r->tokens > 0);
    fprintf(out,
        "kvarnd %s with %s: %" PRIu32 " layers, %" PRIu64 " tokens, queries of the last %" PRIu64
        "\npreset %s, group %" PRIu32 ", sink %" PRIu32 " tokens, seal lag %" PRIu32
        " tokens, encoder %s\n(pages sealed by refined: %" PRIu64 ", by reference: %" PRIu64,
        printable_text(r->server_version, version, sizeof version), r->folder, r->layer_count,
        r->tokens, r->query_tokens, r->preset, r->group, r->sink_tokens, r->seal_lag, r->encoder,
        r->pages_refined, r->pages_reference);
    if (r->pages_aware > 0) {
        fprintf(out, ", by aware: %" PRIu64, r->pages_aware);
    }
    fputs(")\n", out);
    bytes_print(r, out);
    errors_print(r, out);
    speed_print(r, out);
    checks_print(r, out);
}

/* ---- JSON ---- */

static void bytes_json(const struct evaluate_report *r, struct json *json)
{
    const struct evaluate_bytes *b = &r->bytes;

    json_object_open(json, "bytes");
    json_u64(json, "fp16", b->fp16);
    json_u64(json, "stored", stored_bytes(b));
    json_u64(json, "format", b->format);
    json_u64(json, "sink", b->sink);
    json_u64(json, "tail", b->tail);
    json_u64(json, "reserved", b->reserved);
    json_object_close(json);
    json_f64(json, "bits_per_value", bits_per_value(b));
    json_f64(json, "format_ratio", format_ratio(b));
    json_f64(json, "effective_ratio", effective_ratio(b));
    json_array_open(json, "effective_ratio_computed");
    for (int i = 0; i < EVALUATE_SIZES; i++) {
        json_object_open(json, NULL);
        json_u64(json, "tokens", r->size_tokens[i]);
        json_f64(json, "ratio", r->size_ratio[i]);
        json_object_close(json);
    }
    json_array_close(json);
}

static void error_fields(struct json *json, const struct error_row *e)
{
    json_f64(json, "k_quantised", e->k_quantised);
    json_f64(json, "k_all", e->k_all);
    json_f64(json, "v_quantised", e->v_quantised);
    json_f64(json, "v_all", e->v_all);
    json_f64(json, "decode", e->decode);
    json_f64(json, "attend", e->attend);
    json_f64(json, "decode_lse_rms_nats", e->decode_lse_rms);
    json_f64(json, "decode_lse_max_nats", e->decode_lse_max);
    json_f64(json, "attend_lse_rms_nats", e->attend_lse_rms);
    json_f64(json, "attend_lse_max_nats", e->attend_lse_max);
}

static void errors_json(const struct evaluate_report *r, struct json *json)
{
    struct error_row mean = mean_errors(r);

    json_array_open(json, "layers");
    for (uint32_t i = 0; i < r->layer_count; i++) {
        const struct evaluate_layer_report *l = &r->layers[i];
        struct error_row row = layer_errors(l);

        json_object_open(json, NULL);
        json_u64(json, "layer", l->number);
        json_u64(json, "kv_heads", l->kv_heads);
        json_u64(json, "q_heads", l->q_heads);
        json_u64(json, "k_dim", l->k_dim);
        json_u64(json, "v_dim", l->v_dim);
        error_fields(json, &row);
        json_object_close(json);
    }
    json_array_close(json);
    json_object_open(json, "mean");
    error_fields(json, &mean);
    json_object_close(json);
}

static void round_trip_json(
    struct json *json, const char *key, const struct evaluate_round_trip *trip)
{
    json_object_open(json, key);
    json_u64(json, "count", trip->count);
    json_f64(json, "median_us", trip->median_us);
    json_f64(json, "p99_us", trip->p99_us);
    json_object_close(json);
}

static void speed_json(const struct evaluate_report *r, struct json *json)
{
    json_object_open(json, "tokens_per_second");
    json_f64(json, "in_steps", rate_tokens(&r->in_steps));
    json_f64(json, "in_bulk", rate_tokens(&r->in_bulk));
    json_f64(json, "out_records", rate_tokens(&r->out_records));
    json_f64(json, "out_rows", rate_tokens(&r->out_rows));
    json_object_close(json);
    json_object_open(json, "round_trip");
    round_trip_json(json, "append", &r->append);
    round_trip_json(json, "append_attend", &r->append_attend);
    round_trip_json(json, "attend", &r->attend);
    json_object_close(json);
}

void evaluate_report_json(const struct evaluate_report *r, struct json *json)
{
    KVARN_ASSERT(json->depth == 0);
    json_object_open(json, NULL);
    json_text(json, "folder", r->folder);
    json_text(json, "server_version", r->server_version);
    json_u64(json, "tokens", r->tokens);
    json_u64(json, "query_tokens", r->query_tokens);
    json_text(json, "preset", r->preset);
    json_u64(json, "group", r->group);
    json_u64(json, "sink_tokens", r->sink_tokens);
    json_u64(json, "seal_lag", r->seal_lag);
    json_text(json, "encoder", r->encoder);
    json_u64(json, "pages_refined", r->pages_refined);
    json_u64(json, "pages_reference", r->pages_reference);
    json_u64(json, "pages_aware", r->pages_aware);
    bytes_json(r, json);
    errors_json(r, json);
    speed_json(r, json);
    json_array_open(json, "checks");
    for (int i = 0; i < EVALUATE_CHECK_COUNT; i++) {
        json_object_open(json, NULL);
        json_text(json, "check", check_texts[i]);
        json_bool(json, "passed", r->has_passed[i]);
        json_object_close(json);
    }
    json_array_close(json);
    json_object_close(json);
}
