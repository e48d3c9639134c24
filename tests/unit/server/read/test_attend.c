/*
 * Tests of server/read/attend.c: attention over sink, tiles and tail, held to its definition in
 * float64 over what the model of the session decodes to; what is refused; how it is cut.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/session_case.h"
#include "tests/support/tiles.h"

/* What a type keeps of a number, with room for the sums. */
static const double limits[] = {[KVARN_F16] = 1e-3, [KVARN_BF16] = 5e-3, [KVARN_F32] = 1e-4};

/* Attend and compare. */
static void attend_check(struct kvt_case *c, struct kvt_attend *attend)
{
    const struct kvd_attend_args *args = &attend->args;

    kvt_model_attend(&c->model, attend, c->session->layers[args->layer].sealed_blocks);
    assert_int_equal(kvt_attend_now(&c->rig, attend), 0);
    double error = kvt_attend_error(attend);
    if (!(error <= limits[args->out_dtype])) {
        fail_msg("error %g, layer %u, first %llu, last %llu, position %llu", error, args->layer,
            (unsigned long long)args->first, (unsigned long long)args->last,
            (unsigned long long)args->position);
    }
    kvt_attend_fini(attend);
}

static struct kvt_attend draw(struct kvt_rng *rng, const struct kvt_case *c, uint64_t length)
{
    uint32_t layer = kvt_rng_below(rng, 3);
    struct kvt_attend attend =
        kvt_attend_of(c->session, layer, 1 + kvt_rng_below(rng, 9), kvt_rng_u64(rng));
    struct kvd_attend_args *args = &attend.args;

    args->q_heads = (1 + kvt_rng_below(rng, 5)) * c->rig.shape->layers[layer].kv_heads;
    args->is_causal = kvt_rng_below(rng, 4) > 0 && layer != 2;
    args->is_batched = kvt_rng_below(rng, 2) == 0;
    args->is_q_rotated = kvt_rng_below(rng, 2) == 0;
    args->is_out_rotated = kvt_rng_below(rng, 2) == 0;
    args->q_dtype = (enum kvarn_dtype)kvt_rng_below(rng, 3);
    args->out_dtype = (enum kvarn_dtype)kvt_rng_below(rng, 3);
    args->scale = 0.05f + (float)kvt_rng_unit(rng);
    args->softcap = kvt_rng_below(rng, 3) == 0 ? 3.0f : 0.0f;
    args->position = kvt_rng_below(rng, (uint32_t)length);
    args->last = kvt_rng_below(rng, (uint32_t)length + 1);
    args->first = kvt_rng_below(rng, (uint32_t)args->last + 1);
    args->window = kvt_rng_below(rng, 2) == 0 ? 0 : 1 + kvt_rng_below(rng, 100);
    return attend;
}

static void test_s19_attention_by_its_definition(void **state)
{
    struct kvt_rng rng = {.state = 19};
    unsigned tried = 0;
    (void)state;

    for (unsigned lag = 0; lag <= 64; lag += 32) {
        struct kvt_case c;
        kvt_case_init(&c, &(struct kvt_rig_options){.workers = lag / 32}, lag);
        /* 160 tokens: the layer with a window has not dropped anything yet. */
        for (unsigned n = 0; n < 5; n++) {
            kvt_case_grow(&c, 32);
            for (unsigned i = 0; i < 60; i++) {
                struct kvt_attend attend = draw(&rng, &c, c.session->layers[0].length);
                attend_check(&c, &attend);
                tried++;
            }
        }
        kvt_case_fini(&c);
    }
    printf("tried %u\n", tried);
    assert_true(tried == 900);
}

static void test_s19_nothing_to_see(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 100);
    for (unsigned i = 0; i < 3; i++) {
        struct kvt_attend attend = kvt_attend_of(c.session, 0, 2, 1);
        attend.args.is_batched = i == 2;
        attend.args.first = i == 0 ? 50 : 90;
        attend.args.last = i == 0 ? 50 : 100;
        attend.args.position = 7;
        assert_int_equal(kvt_attend_now(&c.rig, &attend), 0);
        const float *out = attend.out;
        for (size_t k = 0; k < attend.out_bytes / sizeof(float); k++) {
            assert_true(out[k] == 0.0f);
        }
        for (size_t k = 0; k < attend.lse_bytes / sizeof(float); k++) {
            assert_true(isinf(attend.lse[k]) && attend.lse[k] < 0);
        }
        kvt_attend_fini(&attend);
    }
    /* An empty session, too. */
    struct kvd_session *empty = kvt_session_open(&c.rig, NULL, 0);
    struct kvt_attend attend = kvt_attend_of(empty, 1, 1, 1);
    attend.args.position = 0;
    assert_int_equal(kvt_attend_now(&c.rig, &attend), 0);
    assert_true(isinf(attend.lse[0]));
    kvt_attend_fini(&attend);
    kvt_session_drop(&c.rig, empty);
    kvt_case_fini(&c);
}

static void check_miss(struct kvt_case *c, struct kvt_attend attend, Kvarnd__MissReason reason)
{
    assert_int_equal(kvt_attend_now(&c->rig, &attend), KVARN_EMISS);
    assert_int_equal(attend.outcome.why.reason, reason);
    kvt_attend_fini(&attend);
}

static void test_s04_rows_that_are_not_there_are_a_miss(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 600);
    assert_int_equal(c.session->layers[2].dropped_blocks, 6); /* kept from 384 on */
    struct kvt_attend attend = kvt_attend_of(c.session, 0, 1, 1);
    attend.args.last = 601;
    attend.args.is_causal = false;
    check_miss(&c, attend, KVARND__MISS_REASON__MISS_NEVER_STORED);
    attend = kvt_attend_of(c.session, 2, 1, 1);
    attend.args.window = 0;
    check_miss(&c, attend, KVARND__MISS_REASON__MISS_WINDOW);
    attend = kvt_attend_of(c.session, 2, 1, 1);
    attend.args.position = 482; /* sees 383 */
    check_miss(&c, attend, KVARND__MISS_REASON__MISS_WINDOW);
    attend = kvt_attend_of(c.session, 2, 1, 1);
    attend.args.position = 483;
    attend_check(&c, &attend);
    attend = kvt_attend_of(c.session, 2, 3, 1);
    attend.args.is_causal = false;
    attend.args.first = 384;
    attend_check(&c, &attend);
    assert_int_equal(c.rig.service.metrics.values[KVD_METRIC_misses_window], 2);
    assert_int_equal(c.rig.service.metrics.values[KVD_METRIC_misses_never_stored], 1);
    kvt_case_fini(&c);
}

/* Put one value in q; DOMAIN names its head and token. */
static void check_bad_q(struct kvt_case *c, float value, bool is_rotated, bool is_batched)
{
    struct kvt_attend attend = kvt_attend_of(c->session, 0, 5, 1);

    attend.args.q_dtype = KVARN_F32;
    attend.args.is_q_rotated = is_rotated;
    attend.args.is_batched = is_batched;
    kvt_attend_fill(&attend);
    memcpy(attend.q + ((3 * 5 + 2) * 16 + 9) * sizeof(float), &value, sizeof(value));
    assert_int_equal(kvt_attend_now(&c->rig, &attend), KVARN_EDOMAIN);
    assert_non_null(strstr(attend.outcome.why.text, "query head 3, query token 2"));
    kvt_attend_fini(&attend);
}

static void test_s10_queries_out_of_range_are_refused(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 100);
    for (unsigned i = 0; i < 4; i++) {
        bool is_rotated = i % 2 == 1, is_batched = i / 2 == 1;
        check_bad_q(&c, NAN, is_rotated, is_batched);
        check_bad_q(&c, INFINITY, is_rotated, is_batched);
        check_bad_q(&c, -3.0e38f, is_rotated, is_batched); /* finite, and yet NaN would come out */
        check_bad_q(&c, 140000.0f, is_rotated, is_batched);
    }
    /* At the limit it is answered, with numbers. */
    struct kvt_attend attend = kvt_attend_of(c.session, 0, 1, 1);
    attend.args.q_dtype = KVARN_F32;
    attend.args.is_q_rotated = true;
    kvt_attend_fill(&attend);
    float most = 32768.0f;
    memcpy(attend.q, &most, sizeof(most));
    assert_int_equal(kvt_attend_now(&c.rig, &attend), 0);
    assert_true(isfinite(attend.lse[0]));
    kvt_attend_fini(&attend);
    kvt_case_fini(&c);
}

static void test_s10_a_scale_beyond_reason_is_refused(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 100);
    static const float scales[] = {NAN, INFINITY, -INFINITY, 5e26f, -5e26f};
    for (unsigned i = 0; i < sizeof(scales) / sizeof(scales[0]); i++) {
        struct kvt_attend attend = kvt_attend_of(c.session, 0, 1, 1);
        attend.args.scale = scales[i];
        assert_int_equal(kvt_attend_now(&c.rig, &attend), KVARN_EDOMAIN);
        assert_non_null(strstr(attend.outcome.why.text, "scale"));
        kvt_attend_fini(&attend);
    }
    /* The largest one that is not: the token with the largest product has all the weight. */
    struct kvt_attend attend = kvt_attend_of(c.session, 0, 1, 1);
    attend.args.scale = -4e26f;
    assert_int_equal(kvt_attend_now(&c.rig, &attend), 0);
    assert_true(isfinite(attend.lse[0]) && isfinite(*(const float *)attend.out));
    kvt_attend_fini(&attend);
    kvt_case_fini(&c);
}

static void test_s10_half_out_of_range_is_refused(void **state)
{
    static const struct {
        enum kvarn_dtype dtype;
        bool is_rotated;
        int err;
    } cases[] = {{KVARN_F16, false, KVARN_EDOMAIN}, {KVARN_F16, true, 0}, {KVARN_F32, false, 0},
        {KVARN_BF16, false, 0}};
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    /* V of 32,768 in all rotated channels is 131,072 in the first one turned back. */
    struct kvt_append append = kvt_append_of(c.session, 10, 1);
    append.dtype = KVARN_F32;
    append.is_rotated = true;
    kvt_append_fill(&append);
    float *values = (void *)append.payload;
    for (size_t i = 0; i < append.payload_bytes / sizeof(float); i++) {
        values[i] = 32768.0f;
    }
    kvt_case_store(&c, append);
    for (unsigned i = 0; i < 4; i++) {
        struct kvt_attend attend = kvt_attend_of(c.session, 0, 1, 1);
        attend.args.out_dtype = cases[i].dtype;
        attend.args.is_out_rotated = cases[i].is_rotated;
        attend.args.scale = 0.0f;
        assert_int_equal(kvt_attend_now(&c.rig, &attend), cases[i].err);
        kvt_attend_fini(&attend);
    }
    kvt_case_fini(&c);
}

static void test_s18_small_items_stay_on_the_loop_unless_batched(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 100);
    for (unsigned i = 0; i < 2; i++) {
        struct kvt_attend attend = kvt_attend_of(c.session, 0, 1, 1);
        attend.args.is_batched = i == 1;
        kvt_attend_begin(&c.rig, &attend);
        assert_int_equal(attend.outcome.is_done, i == 0);
        kvt_rig_settle(&c.rig);
        assert_int_equal(attend.outcome.why.err, 0);
        kvt_attend_fini(&attend);
    }
    kvt_case_fini(&c);
}

static void test_s18_jobs_are_handed_out_as_others_end(void **state)
{
    struct kvt_case c;
    size_t most = 0;
    unsigned turns = 0;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 200);
    struct kvt_attend attend = kvt_attend_of(c.session, 0, 5000, 1); /* 157 chunks, 2 heads */
    attend.args.position = 190;
    kvt_attend_begin(&c.rig, &attend);
    assert_false(attend.outcome.is_done);
    while (!attend.outcome.is_done) {
        size_t backlog = kvd_workers_backlog(c.rig.service.workers);
        most = backlog > most ? backlog : most;
        (void)kvd_io_fake_turn(c.rig.fake);
        turns++;
    }
    assert_int_equal(most, 64);
    assert_int_equal(turns, 2 * 157); /* a job a turn: pieces, which finish their columns */
    assert_int_equal(attend.outcome.why.err, 0);
    kvt_attend_fini(&attend);
    kvt_case_fini(&c);
}

/* One head of 8: long sessions cost little. */
static const struct kvd_layer_group thin_groups[] = {
    {.layers = 1, .kv_heads = 1, .k_dim = 8, .v_dim = 8},
};
static const struct kvd_shape_desc thin = {.model = "thin",
    .group = 64,
    .k_bits = 4,
    .v_bits = 4,
    .sink_tokens = 64,
    .layer_groups = thin_groups,
    .layer_group_count = 1};

#define LONG_TOKENS 12345 /* 193 blocks: seven runs of a chunk */

static void test_s03_long_sessions_give_the_same_bits_with_any_workers(void **state)
{
    static const uint32_t q_tokens[] = {1, 3, 150};
    uint8_t *first[3] = {NULL, NULL, NULL};
    (void)state;

    for (unsigned workers = 0; workers <= 4; workers += 2) {
        struct kvt_case c;
        kvt_rig_init(&c.rig,
            &(struct kvt_rig_options){
                .shape = &thin, .workers = workers, .jitter_us_max = 100, .jitter_seed = workers});
        c.session = kvt_session_open(&c.rig, NULL, 0);
        kvt_model_init(&c.model, c.session, LONG_TOKENS);
        kvt_case_grow(&c, LONG_TOKENS);
        for (unsigned i = 0; i < 3; i++) {
            struct kvt_attend attend = kvt_attend_of(c.session, 0, q_tokens[i], 1);
            kvt_model_attend(&c.model, &attend, c.session->layers[0].sealed_blocks);
            assert_int_equal(kvt_attend_now(&c.rig, &attend), 0);
            assert_true(kvt_attend_error(&attend) < 1e-4);
            if (first[i] == NULL) {
                first[i] = kvt_alloc(attend.out_bytes + attend.lse_bytes);
                memcpy(first[i], attend.out, attend.out_bytes);
                memcpy(first[i] + attend.out_bytes, attend.lse, attend.lse_bytes);
            }
            assert_memory_equal(first[i], attend.out, attend.out_bytes);
            assert_memory_equal(first[i] + attend.out_bytes, attend.lse, attend.lse_bytes);
            kvt_attend_fini(&attend);
        }
        kvt_case_fini(&c);
    }
    for (unsigned i = 0; i < 3; i++) {
        free(first[i]);
    }
}

static void test_s03_the_snapshot_outlives_what_comes_after(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 220);
    struct kvt_attend attend = kvt_attend_of(c.session, 0, 4, 1);
    attend.args.is_batched = true;
    kvt_model_attend(&c.model, &attend, c.session->layers[0].sealed_blocks);
    kvt_attend_begin(&c.rig, &attend);
    assert_false(attend.outcome.is_done);
    /* Cut, append and seal while its jobs wait: with 0 workers they are done in order. */
    struct kvt_truncate truncate = {.session = c.session, .epoch = c.session->epoch, .length = 210};
    assert_int_equal(kvt_truncate_begin(&c.rig, &truncate), 0);
    assert_int_equal(truncate.outcome.why.err, 0);
    (void)kvt_model_truncate(&c.model, 210);
    struct kvt_append append = kvt_append_of(c.session, 30, 77);
    kvt_append_fill(&append);
    kvt_model_append(&c.model, &append);
    assert_int_equal(kvt_append_begin(&c.rig, &append), 0);
    assert_true(append.outcome.is_done);
    assert_false(attend.outcome.is_done);
    kvt_rig_settle(&c.rig);
    assert_int_equal(attend.outcome.why.err, 0);
    assert_true(kvt_attend_error(&attend) < 1e-4);
    kvt_append_fini(&append);
    kvt_attend_fini(&attend);
    kvt_case_fini(&c);
}

static void test_work_space_is_charged_while_it_is_held(void **state)
{
    struct kvt_case c;
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 200);
    const uint64_t *replies = &c.rig.service.budget.kind_bytes[KVD_BUDGET_REPLIES];
    const uint64_t *tokens = &c.rig.service.metrics.values[KVD_METRIC_tokens_attended];
    uint64_t before = *replies;
    struct kvt_attend attend = kvt_attend_of(c.session, 0, 1, 1);
    attend.args.is_batched = true;
    kvt_attend_begin(&c.rig, &attend);
    assert_true(*replies > before);
    kvt_rig_settle(&c.rig);
    assert_int_equal(*replies, before);
    assert_int_equal(*tokens, 2 * 200);
    kvt_attend_fini(&attend);
    kvt_case_fini(&c);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_s19_attention_by_its_definition),
    cmocka_unit_test(test_s19_nothing_to_see),
    cmocka_unit_test(test_s04_rows_that_are_not_there_are_a_miss),
    cmocka_unit_test(test_s10_queries_out_of_range_are_refused),
    cmocka_unit_test(test_s10_a_scale_beyond_reason_is_refused),
    cmocka_unit_test(test_s10_half_out_of_range_is_refused),
    cmocka_unit_test(test_s18_small_items_stay_on_the_loop_unless_batched),
    cmocka_unit_test(test_s18_jobs_are_handed_out_as_others_end),
    cmocka_unit_test(test_s03_long_sessions_give_the_same_bits_with_any_workers),
    cmocka_unit_test(test_s03_the_snapshot_outlives_what_comes_after),
    cmocka_unit_test(test_work_space_is_charged_while_it_is_held),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
