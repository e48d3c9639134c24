/* The report of an evaluation: what it derives, and how it reads. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client/cli/evaluate_report.h"

/* Two layers whose figures are easy: layer 3 has twice layer 0's errors. */
static void report_fill(struct evaluate_report *r)
{
    assert_int_equal(evaluate_report_init(r, 2), 0);
    r->folder = "some/folder";
    r->server_version = "1.2.3";
    r->preset = "k2v2";
    r->encoder = "default";
    r->group = 128;
    r->sink_tokens = 128;
    r->tokens = 1024;
    r->query_tokens = 100;
    r->pages_refined = 14;
    for (uint32_t i = 0; i < 2; i++) {
        double factor = 1.0 + i;

        r->layers[i] = (struct evaluate_layer_report){
            .number = i * 3,
            .kv_heads = 2,
            .q_heads = 6,
            .k_dim = 64,
            .v_dim = 32,
            .k_quantised = {.error = 0.04 * factor, .power = 1.0, .count = 10},
            .v_quantised = {.error = 0.10 * factor, .power = 1.0, .count = 10},
            .k_all = {.error = 0.02 * factor, .power = 1.0, .count = 20},
            .v_all = {.error = 0.06 * factor, .power = 1.0, .count = 20},
            .decode = {.error = 0.01 * factor, .power = 1.0, .count = 5},
            .attend = {.error = 0.03 * factor, .power = 1.0, .count = 5},
            .decode_lse = {.squares = 1.0 * factor * factor, .max = 2.0 * factor, .count = 4},
            .attend_lse = {.squares = 4.0 * factor * factor, .max = 3.0 * factor, .count = 4},
        };
    }
    r->bytes = (struct evaluate_bytes){
        .fp16 = 4000,
        .format = 500,
        .sink = 300,
        .tail = 150,
        .reserved = 50,
        .quantised_fp16 = 3200,
    };
    for (int i = 0; i < EVALUATE_SIZES; i++) {
        r->size_tokens[i] = UINT64_C(1000) << i;
        r->size_ratio[i] = 2.0 + i;
    }
    r->append = (struct evaluate_round_trip){7, 41.0, 99.0};
    r->append_attend = (struct evaluate_round_trip){8, 42.0, 98.0};
    r->attend = (struct evaluate_round_trip){9, 43.0, 97.0};
    r->in_steps = (struct evaluate_rate){1024, 4096000, 0.5};
    r->in_bulk = (struct evaluate_rate){1024, 4096000, 0.25};
    r->out_records = (struct evaluate_rate){1024, 4096000, 0.125};
    r->out_rows = (struct evaluate_rate){1024, 4096000, 0.0625};
    for (int i = 0; i < EVALUATE_CHECK_COUNT; i++) {
        r->has_passed[i] = true;
    }
}

/* The report as text or JSON; the caller's to free. */
static char *report_text(const struct evaluate_report *r, bool is_json)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);

    assert_non_null(out);
    if (is_json) {
        struct json json;

        json_init(&json, out);
        evaluate_report_json(r, &json);
        assert_int_equal(json.depth, 0);
    } else {
        evaluate_report_print(r, out);
    }
    assert_int_equal(fclose(out), 0);
    return text;
}

static void says(const struct evaluate_report *r, bool is_json, const char *const *lines)
{
    char *text = report_text(r, is_json);

    for (size_t i = 0; lines[i] != NULL; i++) {
        if (strstr(text, lines[i]) == NULL) {
            fail_msg("no \"%s\" in:\n%s", lines[i], text);
        }
    }
    free(text);
}

static void text_has_ratios_means_and_units(void **state)
{
    static const char *const lines[] = {
        "kvarnd 1.2.3 with some/folder: 2 layers, 1024 tokens, queries of the last 100\n",
        "preset k2v2, group 128, sink 128 tokens, seal lag 0 tokens, encoder default\n",
        "(pages sealed by refined: 14, by reference: 0)\n",
        "  fp16                                      3.91 KiB         3.9 B a token\n",
        "  stored                                      1000 B         1.0 B a token\n",
        "    format: tile pages                         500 B         0.5 B a token\n",
        "  format    2.5000 bits a value, 6.40x smaller than fp16\n",
        "  effective 4.00x smaller than fp16 with sink and tail\n",
        "  by length 2.00x at 1000, 3.00x at 2000, 4.00x at 4000 tokens (computed)\n",
        "    0      2/6    64/32   0.04000  0.02000   0.10000  0.06000  0.01000  0.50000  0.03000  "
        "1.00000\n",
        "    3      2/6    64/32   0.08000  0.04000   0.20000  0.12000  0.02000  1.00000  0.06000  "
        "2.00000\n",
        " mean                     0.06000  0.03000   0.15000  0.09000  0.01500  0.75000  0.04500  "
        "1.50000\n",
        "  in, token by token, layer by layer            2048 tokens/s       8.2 MB/s of payload\n",
        "  out, un-rotated fp16                         16384 tokens/s      65.5 MB/s of payload\n",
        "  attend, one query token                      43 us median       97 us p99 of 9\n",
        "  ok     both sessions attend alike, bit for bit\n",
    };
    const char *all[sizeof lines / sizeof lines[0] + 1] = {NULL};
    struct evaluate_report r;

    (void)state;
    memcpy(all, lines, sizeof lines);
    report_fill(&r);
    says(&r, false, all);
    evaluate_report_fini(&r);
    evaluate_report_fini(&r);
}

static void json_has_the_same_figures(void **state)
{
    static const char *const lines[] = {
        "\"tokens\": 1024,",
        "\"stored\": 1000,",
        "\"bits_per_value\": 2.5,",
        "\"format_ratio\": 6.4,",
        "\"effective_ratio\": 4,",
        "\"layer\": 3,",
        "\"k_quantised\": 0.08,",
        "\"attend\": 0.045,",
        "\"decode_lse_rms_nats\": 0.75,",
        "\"decode_lse_max_nats\": 4,",
        "\"attend_lse_max_nats\": 6\n",
        "\"in_steps\": 2048,",
        "\"out_rows\": 16384\n",
        "\"p99_us\": 97\n",
        "\"passed\": true\n",
        NULL,
    };
    struct evaluate_report r;

    (void)state;
    report_fill(&r);
    says(&r, true, lines);
    evaluate_report_fini(&r);
}

static void nothing_stored_in_tiles_divides_by_nothing(void **state)
{
    static const char *const text[] = {"format    0.0000 bits a value, 0.00x", NULL};
    static const char *const json[] = {"\"bits_per_value\": 0,", "\"format_ratio\": 0,", NULL};
    struct evaluate_report r;

    (void)state;
    report_fill(&r);
    r.bytes.format = 0;
    r.bytes.quantised_fp16 = 0;
    r.in_steps.seconds = 0.0;
    says(&r, false, text);
    says(&r, true, json);
    evaluate_report_fini(&r);
}

static void a_failed_check_is_seen(void **state)
{
    struct evaluate_report r;

    (void)state;
    report_fill(&r);
    assert_true(evaluate_report_is_good(&r));
    for (int i = 0; i < EVALUATE_CHECK_COUNT; i++) {
        char line[128];
        const char *const lines[] = {line, NULL};

        snprintf(line, sizeof line, "  FAILED %s\n", evaluate_check_text((enum evaluate_check)i));
        r.has_passed[i] = false;
        assert_false(evaluate_report_is_good(&r));
        says(&r, false, lines);
        r.has_passed[i] = true;
    }
    evaluate_report_fini(&r);
}

static void round_trips_are_nearest_ranks(void **state)
{
    double us[200];
    struct evaluate_round_trip trip = evaluate_round_trip_of(us, 0);

    (void)state;
    assert_true(trip.count == 0 && trip.median_us == 0.0 && trip.p99_us == 0.0);
    us[0] = 5.0;
    trip = evaluate_round_trip_of(us, 1);
    assert_true(trip.count == 1 && trip.median_us == 5.0 && trip.p99_us == 5.0);
    for (int i = 0; i < 200; i++) {
        us[i] = (double)((i * 77) % 200 + 1); /* 1 .. 200, shuffled */
    }
    trip = evaluate_round_trip_of(us, 200);
    assert_true(trip.median_us == 100.0);
    assert_true(trip.p99_us == 198.0);
    for (int i = 0; i < 100; i++) {
        us[i] = (double)(100 - i);
    }
    trip = evaluate_round_trip_of(us, 100);
    assert_true(trip.median_us == 50.0);
    assert_true(trip.p99_us == 99.0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_has_ratios_means_and_units),
        cmocka_unit_test(json_has_the_same_figures),
        cmocka_unit_test(nothing_stored_in_tiles_divides_by_nothing),
        cmocka_unit_test(a_failed_check_is_seen),
        cmocka_unit_test(round_trips_are_nearest_ranks),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
