/* Attend over the wire: what items ask for, against attention in double precision; refusals. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/conn/conn.h"
#include "tests/support/attention_f64.h"
#include "tests/unit/server/rpc/rpc_rig.h"

#define LENGTH  200
#define Q_HEADS 4
#define ITEMS   4
/* Floats against doubles over 200 tokens: up to 7e-7 on out, 1.3e-6 on lse of 29 were seen. */
#define TOLERANCE 5e-6

/* One Attend put together; q in floats. */
struct call {
    Kvarnd__Attend message;
    Kvarnd__AttendParams params;
    Kvarnd__AttendItem items[ITEMS];
    Kvarnd__AttendItem *list[ITEMS];
    float *q; /* owned */
    size_t q_bytes;
};

static void call_init(struct call *call, uint32_t layer)
{
    memset(call, 0, sizeof(*call));
    kvarnd__attend__init(&call->message);
    kvarnd__attend_params__init(&call->params);
    call->params.layer = layer;
    call->params.q_heads = Q_HEADS;
    call->params.has_accuracy = 1;
    call->params.accuracy = KVARND__ACCURACY__EXACT;
    call->params.has_q_dtype = 1;
    call->params.q_dtype = KVARND__DTYPE__F32;
    call->message.params = &call->params;
    call->message.items = call->list;
}

static Kvarnd__AttendItem *call_add(
    struct call *call, const struct rpc_session *session, uint32_t query_tokens)
{
    size_t i = call->message.n_items++;

    assert_true(i < ITEMS);
    kvarnd__attend_item__init(&call->items[i]);
    call->list[i] = &call->items[i];
    call->items[i].handle = session->handle;
    call->items[i].has_query_tokens = 1;
    call->items[i].query_tokens = query_tokens;
    return &call->items[i];
}

static void call_fill(const struct rpc_rig *rig, struct call *call)
{
    uint32_t dim = rig->shape->layers[call->params.layer].spec.k_dim;
    size_t count = 0, at = 0;

    for (size_t i = 0; i < call->message.n_items; i++) {
        count += (size_t)Q_HEADS * call->items[i].query_tokens * dim;
    }
    call->q_bytes = count * sizeof(float);
    call->q = malloc(call->q_bytes + 1);
    assert_non_null(call->q);
    for (; at < count; at++) {
        call->q[at] = rpc_value(5, 0, false, 0, at / 4096, (uint32_t)(at % 4096));
    }
}

static struct kvt_answer call_send(struct rpc_rig *rig, struct call *call)
{
    return kvt_peer_call(
        &rig->peer, KVARN_FRAME_ATTEND, &call->message.base, call->q, call->q_bytes);
}

static const Kvarnd__AttendItemReply *item_of(const struct kvt_answer *answer, size_t idx)
{
    const Kvarnd__AttendReply *reply = answer->message;

    assert_int_equal(answer->err, 0);
    assert_true(idx < reply->n_items);
    return reply->items[idx];
}

/* What one item means once all defaults are filled in (SEMANTICS.md 19). */
struct meaning {
    uint32_t layer, query_tokens;
    uint64_t position, first, last, window;
    float scale, softcap;
    bool is_causal;
};

/* Out, rotated, and lse of [query head][query token], by the definition. */
static void expect(struct rpc_rig *rig, const struct rpc_session *session,
    const struct meaning *meaning, const float *q, double *out, double *lse)
{
    const struct kvd_layer_shape *ls = &rig->shape->layers[meaning->layer];
    uint32_t gqa = Q_HEADS / ls->kv_heads;
    size_t q_count = (size_t)Q_HEADS * meaning->query_tokens * ls->spec.k_dim;
    struct rpc_floats rows = rpc_read_floats(rig, session, meaning->layer, 0, LENGTH);
    float *rotated = malloc(q_count * sizeof(float));
    struct kvarn_attention_params params = {.spec = ls->spec,
        .q_heads = gqa,
        .q_tokens = meaning->query_tokens,
        .position = meaning->position,
        .first = meaning->first,
        .last = meaning->last,
        .window = meaning->window,
        .scale = meaning->scale,
        .softcap = meaning->softcap,
        .causal = meaning->is_causal};

    assert_non_null(rotated);
    memcpy(rotated, q, q_count * sizeof(float));
    kvarn_rotate(rotated, (size_t)Q_HEADS * meaning->query_tokens, ls->spec.k_dim);
    for (uint32_t head = 0; head < ls->kv_heads; head++) {
        size_t row = (size_t)head * gqa * meaning->query_tokens;
        kvt_attention_f64(&params, rotated + row * ls->spec.k_dim,
            rows.k + (size_t)head * LENGTH * ls->spec.k_dim,
            rows.v + (size_t)head * LENGTH * ls->spec.v_dim, LENGTH, out + row * ls->spec.v_dim,
            lse + row);
    }
    free(rotated);
    rpc_floats_fini(&rows);
}

/* The answer of a call of one item is what it means. */
static void compare(struct rpc_rig *rig, const struct rpc_session *session, struct call *call,
    const struct meaning *meaning)
{
    uint32_t dim = rig->shape->layers[meaning->layer].spec.v_dim;
    size_t rows = (size_t)Q_HEADS * meaning->query_tokens;
    double *out = calloc(rows * dim, sizeof(double));
    double *lse = calloc(rows, sizeof(double));

    assert_true(out != NULL && lse != NULL);
    call_fill(rig, call);
    expect(rig, session, meaning, call->q, out, lse);
    struct kvt_answer answer = call_send(rig, call);
    const Kvarnd__AttendItemReply *item = item_of(&answer, 0);
    if (item->status->code != 0) {
        fail_msg("attend: %s", item->status->text);
    }
    assert_int_equal(item->length, LENGTH);
    assert_int_equal(item->sealed_tokens, 192);
    assert_int_equal(answer.payload_bytes, rows * (dim + 1) * sizeof(float));
    float *got = answer.payload;
    kvarn_rotate(got, rows, dim);
    for (size_t i = 0; i < rows * dim; i++) {
        assert_true(fabs((double)got[i] - out[i]) <= TOLERANCE);
    }
    for (size_t i = 0; i < rows; i++) {
        double d = (double)got[rows * dim + i] - lse[i];
        assert_true(isinf(lse[i]) ? got[rows * dim + i] == -INFINITY : fabs(d) <= TOLERANCE);
    }
    kvt_answer_fini(&answer);
    free(call->q);
    free(out);
    free(lse);
}

static void rig_with_session(struct rpc_rig *rig, struct rpc_session *ret)
{
    /* Window layer: 100 + 64 tokens are kept, so that all 200 still lie in the blocks kept. */
    rpc_rig_init(rig, &(struct kvt_host_options){0}, NULL);
    *ret = rpc_open(rig, "s", 0);
    rpc_append_all(rig, ret, 0, LENGTH);
}

static void test_s19_defaults(void **state)
{
    struct rpc_session session;
    struct rpc_rig rig;
    struct call call;

    (void)state;
    rig_with_session(&rig, &session);
    for (uint32_t tokens = 1; tokens <= 70; tokens += 23) {
        struct meaning meaning = {.query_tokens = tokens,
            .position = LENGTH - tokens,
            .last = LENGTH,
            .scale = 0.25f, /* 1 / sqrt(16) */
            .is_causal = true};
        call_init(&call, 0);
        (void)call_add(&call, &session, tokens);
        compare(&rig, &session, &call, &meaning);
    }
    rpc_rig_fini(&rig);
}

static void test_s19_ranges_positions_and_masks(void **state)
{
    const struct meaning cases[] = {
        {.query_tokens = 3, .position = 50, .last = 200, .is_causal = true},
        {.query_tokens = 3, .position = 50, .last = 200, .is_causal = false},
        {.query_tokens = 5, .position = 0, .last = 200, .is_causal = true},
        {.query_tokens = 2, .position = 199, .first = 70, .last = 130, .is_causal = true},
        {.query_tokens = 2, .position = 1000, .last = 200, .is_causal = true},
        {.query_tokens = 2, .position = 60, .first = 100, .last = 200, .is_causal = true},
        {.query_tokens = 2, .position = 60, .first = 100, .last = 100, .is_causal = false},
        {.query_tokens = 9, .position = 120, .last = 200, .window = 30, .is_causal = true},
        {.query_tokens = 1, .position = 150, .last = 200, .softcap = 0.5f, .is_causal = true},
        {.query_tokens = 1, .position = 150, .last = 200, .scale = 2.0f, .is_causal = true},
    };
    struct rpc_session session;
    struct rpc_rig rig;
    struct call call;

    (void)state;
    rig_with_session(&rig, &session);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct meaning meaning = cases[i];
        meaning.scale = meaning.scale == 0 ? 0.125f : meaning.scale;
        call_init(&call, 0);
        Kvarnd__AttendItem *item = call_add(&call, &session, meaning.query_tokens);
        item->has_position = item->has_token_first = item->has_token_last = 1;
        item->position = meaning.position;
        item->token_first = meaning.first;
        item->token_last = meaning.last;
        call.params.has_window = call.params.has_scale = call.params.has_softcap = 1;
        call.params.window = meaning.window;
        call.params.scale = meaning.scale;
        call.params.softcap = meaning.softcap;
        call.params.has_non_causal = 1;
        call.params.non_causal = !meaning.is_causal;
        compare(&rig, &session, &call, &meaning);
    }
    rpc_rig_fini(&rig);
}

/* A window layer's window binds unless the call narrows it. */
static void test_s19_window_of_the_layer_binds(void **state)
{
    const uint64_t asked[] = {0, 1000, 101, 100, 99, 10, 1};
    struct rpc_session session;
    struct rpc_rig rig;
    struct call call;

    (void)state;
    rig_with_session(&rig, &session);
    for (size_t i = 0; i < sizeof(asked) / sizeof(asked[0]); i++) {
        struct meaning meaning = {.layer = 2,
            .query_tokens = 4,
            .position = LENGTH - 4,
            .last = LENGTH,
            .window = asked[i] == 0 || asked[i] > 100 ? 100 : asked[i],
            .scale = 0.2f,
            .is_causal = true};
        call_init(&call, 2);
        (void)call_add(&call, &session, 4);
        call.params.has_window = call.params.has_scale = 1;
        call.params.window = asked[i];
        call.params.scale = 0.2f;
        compare(&rig, &session, &call, &meaning);
    }
    rpc_rig_fini(&rig);
}

/* q rotated by the client, out left rotated, out in other numbers: the same answer. */
static void test_s20_frames_and_numbers(void **state)
{
    struct rpc_session session;
    struct rpc_rig rig;
    struct call call;

    (void)state;
    rig_with_session(&rig, &session);
    call_init(&call, 0);
    (void)call_add(&call, &session, 2);
    call_fill(&rig, &call);
    struct kvt_answer plain = call_send(&rig, &call);
    const size_t count = 2 * Q_HEADS * 16;
    const float *out = plain.payload;
    const float *lse = out + count;
    assert_int_equal(item_of(&plain, 0)->status->code, 0);
    kvarn_rotate(call.q, 2 * Q_HEADS, 16);
    call.params.has_q_rotated = call.params.q_rotated = 1;
    call.params.has_out_dtype = 1;
    for (int dtype = 0; dtype < 2; dtype++) {
        uint16_t expected[2 * Q_HEADS * 16];
        call.params.out_dtype = (Kvarnd__DType)dtype;
        struct kvt_answer answer = call_send(&rig, &call);
        assert_int_equal(answer.payload_bytes, count * 2 + 2 * Q_HEADS * sizeof(float));
        kvarn_from_f32(expected, (enum kvarn_dtype)dtype, out, count);
        for (size_t i = 0; i < count; i++) {
            float got;
            kvarn_to_f32(&got, (uint16_t *)answer.payload + i, (enum kvarn_dtype)dtype, 1);
            assert_true(fabsf(got - out[i]) <= fabsf(out[i]) * 0x1p-7f + 1e-6f);
        }
        for (size_t i = 0; i < 2 * Q_HEADS; i++) {
            float got;
            memcpy(&got, (uint8_t *)answer.payload + count * 2 + i * sizeof(got), sizeof(got));
            assert_true(fabsf(got - lse[i]) <= 1e-5f);
        }
        kvt_answer_fini(&answer);
    }
    call.params.out_dtype = KVARND__DTYPE__F32;
    call.params.has_out_rotated = call.params.out_rotated = 1;
    struct kvt_answer rotated = call_send(&rig, &call);
    kvarn_rotate(rotated.payload, 2 * Q_HEADS, 16);
    for (size_t i = 0; i < count; i++) {
        assert_true(fabsf(((float *)rotated.payload)[i] - out[i]) <= 1e-6f);
    }
    kvt_answer_fini(&rotated);
    kvt_answer_fini(&plain);
    free(call.q);
    rpc_rig_fini(&rig);
}

/* The fourth item is right; the others fail in ways of their own and keep their places. */
static void test_s16_items_succeed_or_fail_one_by_one(void **state)
{
    struct rpc_session session;
    struct rpc_rig rig;
    struct call call;

    (void)state;
    rig_with_session(&rig, &session);
    struct rpc_session empty = rpc_open(&rig, NULL, 0);
    for (uint32_t round = 0; round < 2; round++) {
        const int errs[2][ITEMS] = {{KVARN_EINVALID, KVARN_EMISS, KVARN_EDOMAIN, 0},
            {KVARN_EINVALID, KVARN_EINVALID, KVARN_EINVALID, 0}};
        call_init(&call, 0);
        Kvarnd__AttendItem *first = call_add(&call, &session, round);
        Kvarnd__AttendItem *second = call_add(&call, round == 0 ? &session : &empty, 1);
        Kvarnd__AttendItem *third = call_add(&call, &session, 1);
        (void)call_add(&call, &session, 1);
        call_fill(&rig, &call);
        if (round == 0) { /* no queries; beyond the length; a query that is not finite */
            second->has_token_last = 1;
            second->token_last = LENGTH + 1;
            second->has_position = 1;
            second->position = LENGTH;
            call.q[Q_HEADS * 16 + 3] = INFINITY;
        } else { /* a range upside down; nothing stored and no position; a position too far */
            first->has_token_first = first->has_token_last = 1;
            first->token_first = 2;
            first->token_last = 1;
            third->has_position = 1;
            third->position = UINT64_MAX;
        }
        struct kvt_answer answer = call_send(&rig, &call);
        size_t rows[ITEMS] = {round * Q_HEADS, Q_HEADS, Q_HEADS, Q_HEADS};
        const float *out = answer.payload;
        const float *lse = out + (3 + round) * Q_HEADS * 16;
        for (size_t i = 0; i < ITEMS; i++) {
            assert_int_equal(item_of(&answer, i)->status->code, -errs[round][i]);
            for (size_t r = 0; r < rows[i]; r++) {
                assert_int_equal(isinf(lse[r]) != 0, errs[round][i] != 0);
                assert_int_equal(out[r * 16] == 0.0f, errs[round][i] != 0);
            }
            out += rows[i] * 16;
            lse += rows[i];
        }
        kvt_answer_fini(&answer);
        free(call.q);
    }
    rpc_rig_fini(&rig);
}

/* Heads that do not fit one item's shape: found out for each item by itself. */
static void test_heads_must_fit_the_layer(void **state)
{
    struct rpc_session session;
    struct rpc_rig rig;
    struct call call;

    (void)state;
    rig_with_session(&rig, &session);
    call_init(&call, 0);
    (void)call_add(&call, &session, 1);
    call_fill(&rig, &call);
    call.params.q_heads = 3;
    call.q_bytes = 3 * 16 * sizeof(float);
    struct kvt_answer answer = call_send(&rig, &call);
    assert_int_equal(item_of(&answer, 0)->status->code, -KVARN_EINVALID);
    kvt_answer_fini(&answer);
    free(call.q);
    rpc_rig_fini(&rig);
}

static void test_wrong_messages_are_refused(void **state)
{
    struct rpc_session session;
    struct rpc_rig rig;

    (void)state;
    rig_with_session(&rig, &session);
    for (int i = 0; i < 12; i++) {
        int err = i == 3 ? KVARN_EDOMAIN : (i == 4 ? KVARN_ENOT_FOUND : KVARN_EINVALID);
        struct call call;
        call_init(&call, 0);
        (void)call_add(&call, &session, 1);
        call_fill(&rig, &call);
        call.message.n_items = i == 0 ? 0 : 1;
        call.params.layer = i == 1 ? 3 : 0;
        call.params.q_heads = i == 2 ? 0 : (i == 11 ? UINT32_MAX : Q_HEADS);
        call.params.has_scale = i == 3;
        call.params.scale = NAN;
        call.items[0].handle += i == 4;
        call.params.q_dtype = (Kvarnd__DType)(i == 5 ? 3 : KVARND__DTYPE__F32);
        call.params.has_out_dtype = i == 6;
        call.params.out_dtype = (Kvarnd__DType)3;
        call.params.has_accuracy = i == 7;
        call.params.accuracy = (Kvarnd__Accuracy)3;
        call.params.has_softcap = i == 8 || i == 9;
        call.params.softcap = i == 8 ? -1.0f : INFINITY;
        call.q_bytes -= i == 10 ? 4 : 0;
        struct kvt_answer answer = call_send(&rig, &call);
        assert_int_equal(answer.err, err);
        assert_int_equal(answer.payload_bytes, 0);
        kvt_answer_fini(&answer);
        free(call.q);
    }
    rpc_rig_fini(&rig);
}

static void test_reply_above_the_limit_is_too_large(void **state)
{
    struct rpc_rig rig;
    struct call call;

    (void)state;
    /* 1,000 query tokens of fp16 are 128,000 bytes, the answer in fp32 with lse 272,000. */
    rpc_rig_init(&rig, &(struct kvt_host_options){.payload_max = 150000}, NULL);
    struct rpc_session session = rpc_open(&rig, NULL, 0);
    call_init(&call, 0);
    (void)call_add(&call, &session, 1000);
    call_fill(&rig, &call);
    call.params.q_dtype = KVARND__DTYPE__F16;
    call.q_bytes /= 2;
    struct kvt_answer answer = call_send(&rig, &call);
    assert_int_equal(answer.err, KVARN_ETOO_LARGE);
    kvt_answer_fini(&answer);
    free(call.q);
    rpc_rig_fini(&rig);
}

/* Two items of two sessions, one of them busy: a deadline ends what waits and nothing else. */
static void test_s17_deadline_ends_what_waits(void **state)
{
    struct rpc_rows rows = {.layer_count = 1, .token_count = 200, .seed = 1};
    struct rpc_rig rig;
    struct call call;
    size_t bytes;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, &rpc_shape_large);
    struct rpc_session busy = rpc_open(&rig, NULL, 0);
    struct rpc_session idle = rpc_open(&rig, NULL, 0);
    rpc_append_all(&rig, &idle, 0, 10);
    Kvarnd__Append append = rpc_append_message(&busy, &rows);
    uint8_t *payload = rpc_rows_make(&rig, &rows, &bytes);
    (void)kvt_peer_send(&rig.peer, KVARN_FRAME_APPEND, &append.base, payload, bytes);
    free(payload);
    call_init(&call, 0);
    (void)call_add(&call, &busy, 1);
    (void)call_add(&call, &idle, 1);
    call.params.q_heads = 8;
    call_fill(&rig, &call);
    call.q = realloc(call.q, call.q_bytes * 2);
    assert_non_null(call.q);
    memset((uint8_t *)call.q + call.q_bytes, 0, call.q_bytes);
    call.message.has_deadline_ms = 1;
    call.message.deadline_ms = 5;
    uint64_t id =
        kvt_peer_send(&rig.peer, KVARN_FRAME_ATTEND, &call.message.base, call.q, call.q_bytes * 2);
    kvd_conn_tick_all(&rig.host.service, UINT64_MAX);
    kvt_host_settle(&rig.host);
    struct kvt_answer answer;
    int seen = 0;
    while (kvt_peer_take(&rig.peer, &answer)) {
        if (answer.header.request_id == id) {
            seen++;
            assert_int_equal(item_of(&answer, 0)->status->code, -KVARN_EDEADLINE);
            assert_int_equal(item_of(&answer, 1)->status->code, 0);
        }
        kvt_answer_fini(&answer);
    }
    assert_int_equal(seen, 1);
    free(call.q);
    rpc_rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_s19_defaults),
        cmocka_unit_test(test_s19_ranges_positions_and_masks),
        cmocka_unit_test(test_s19_window_of_the_layer_binds),
        cmocka_unit_test(test_s20_frames_and_numbers),
        cmocka_unit_test(test_s16_items_succeed_or_fail_one_by_one),
        cmocka_unit_test(test_heads_must_fit_the_layer),
        cmocka_unit_test(test_wrong_messages_are_refused),
        cmocka_unit_test(test_reply_above_the_limit_is_too_large),
        cmocka_unit_test(test_s17_deadline_ends_what_waits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
