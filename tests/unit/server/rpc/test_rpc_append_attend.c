/* AppendAttend over the wire: its parts together and one by one, retries, batches, cancels. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/server/rpc/rpc_rig.h"

#define ITEMS_MAX 40
#define Q_HEADS   8 /* a multiple of the KV heads of both shapes */

/* One AppendAttend put together: layer 0, halves, made-up K, V and q. */
struct batch {
    Kvarnd__AppendAttend message;
    Kvarnd__AttendParams params;
    Kvarnd__AppendAttendItem items[ITEMS_MAX];
    Kvarnd__AppendAttendItem *list[ITEMS_MAX];
    uint64_t seeds[ITEMS_MAX]; /* of K and V */
    uint8_t *payload;          /* owned */
    size_t bytes;
};

static void batch_init(struct batch *batch)
{
    memset(batch, 0, sizeof(*batch));
    kvarnd__append_attend__init(&batch->message);
    kvarnd__attend_params__init(&batch->params);
    batch->params.q_heads = Q_HEADS;
    batch->params.has_accuracy = 1;
    batch->params.accuracy = KVARND__ACCURACY__EXACT;
    batch->message.params = &batch->params;
    batch->message.items = batch->list;
}

static Kvarnd__AppendAttendItem *batch_add(
    struct batch *batch, const struct rpc_session *session, uint64_t start, uint32_t token_count)
{
    size_t i = batch->message.n_items++;
    Kvarnd__AppendAttendItem *item = &batch->items[i];

    assert_true(i < ITEMS_MAX);
    kvarnd__append_attend_item__init(item);
    item->handle = session->handle;
    item->epoch = session->epoch;
    item->start = start;
    item->has_token_count = 1;
    item->token_count = token_count;
    batch->list[i] = item;
    batch->seeds[i] = 1;
    return item;
}

static uint32_t query_tokens(const Kvarnd__AppendAttendItem *item)
{
    return item->has_query_tokens ? item->query_tokens : item->token_count;
}

/* q depends on the place of the query token in the sequence alone. */
static uint8_t *q_fill(const struct rpc_rig *rig, const Kvarnd__AppendAttendItem *item, uint8_t *at)
{
    uint32_t dim = rig->shape->layers[0].spec.k_dim;
    uint64_t first = item->start + item->token_count - query_tokens(item);

    for (uint32_t head = 0; head < Q_HEADS; head++) {
        for (uint32_t t = 0; t < query_tokens(item); t++) {
            for (uint32_t d = 0; d < dim; d++) {
                uint16_t x = kvarn_half_from_f32(rpc_value(99, 0, false, head, first + t, d));
                memcpy(at, &x, sizeof(x));
                at += sizeof(x);
            }
        }
    }
    return at;
}

static void batch_fill(const struct rpc_rig *rig, struct batch *batch)
{
    uint32_t dim = rig->shape->layers[0].spec.k_dim;
    size_t count = batch->message.n_items;
    uint8_t *parts[ITEMS_MAX];
    size_t bytes[ITEMS_MAX], q_bytes = 0;

    batch->bytes = 0;
    for (size_t i = 0; i < count; i++) {
        struct rpc_rows rows = {.layer_count = 1,
            .start = batch->items[i].start,
            .token_count = batch->items[i].token_count,
            .seed = batch->seeds[i]};
        parts[i] = rpc_rows_make(rig, &rows, &bytes[i]);
        batch->bytes += bytes[i];
        q_bytes += (size_t)query_tokens(&batch->items[i]) * Q_HEADS * dim * sizeof(uint16_t);
    }
    free(batch->payload);
    batch->bytes += q_bytes;
    batch->payload = malloc(batch->bytes);
    assert_non_null(batch->payload);
    uint8_t *at = batch->payload;
    for (size_t i = 0; i < count; i++) {
        memcpy(at, parts[i], bytes[i]);
        at += bytes[i];
        free(parts[i]);
    }
    for (size_t i = 0; i < count; i++) {
        at = q_fill(rig, &batch->items[i], at);
    }
    assert_ptr_equal(at, batch->payload + batch->bytes);
}

static uint64_t batch_send(struct rpc_rig *rig, struct batch *batch)
{
    return kvt_peer_send(
        &rig->peer, KVARN_FRAME_APPEND_ATTEND, &batch->message.base, batch->payload, batch->bytes);
}

static struct kvt_answer batch_call(struct rpc_rig *rig, struct batch *batch)
{
    return kvt_peer_call(
        &rig->peer, KVARN_FRAME_APPEND_ATTEND, &batch->message.base, batch->payload, batch->bytes);
}

static const Kvarnd__AttendItemReply *item_of(const struct kvt_answer *answer, size_t idx)
{
    const Kvarnd__AttendReply *reply = answer->message;

    assert_int_equal(answer->err, 0);
    assert_true(idx < reply->n_items);
    return reply->items[idx];
}

/* Attend with the same queries as the batch's item, all else by default. */
static struct kvt_answer attend_call(
    struct rpc_rig *rig, const Kvarnd__AppendAttendItem *like, const struct rpc_session *session)
{
    Kvarnd__Attend message = KVARND__ATTEND__INIT;
    Kvarnd__AttendParams params = KVARND__ATTEND_PARAMS__INIT;
    Kvarnd__AttendItem item = KVARND__ATTEND_ITEM__INIT;
    Kvarnd__AttendItem *list[] = {&item};
    size_t bytes = (size_t)query_tokens(like) * Q_HEADS * rig->shape->layers[0].spec.k_dim * 2;
    uint8_t *q = malloc(bytes);

    assert_non_null(q);
    (void)q_fill(rig, like, q);
    params.q_heads = Q_HEADS;
    item.handle = session->handle;
    item.has_query_tokens = 1;
    item.query_tokens = query_tokens(like);
    message.params = &params;
    message.n_items = 1;
    message.items = list;
    struct kvt_answer answer =
        kvt_peer_call(&rig->peer, KVARN_FRAME_ATTEND, &message.base, q, bytes);
    free(q);
    return answer;
}

static void test_both_parts_equal_append_then_attend(void **state)
{
    const struct {
        uint64_t start;
        uint32_t token_count;
    } steps[] = {{0, 1}, {1, 1}, {2, 60}, {62, 1}, {63, 70}, {133, 1}, {134, 5}};
    struct rpc_rig rig;
    struct batch batch;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    /* With a lag of a block nothing behind the sink is sealed here, so that the request that fills
     * a block and a later one read the same rows. */
    struct rpc_session lagging = rpc_open(&rig, NULL, 64);
    struct rpc_session apart = rpc_open(&rig, NULL, 64);
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        struct rpc_rows rows = {.layer_count = 1,
            .start = steps[i].start,
            .token_count = steps[i].token_count,
            .seed = 1};
        batch_init(&batch);
        const Kvarnd__AppendAttendItem *item =
            batch_add(&batch, &lagging, steps[i].start, steps[i].token_count);
        batch_fill(&rig, &batch);
        struct kvt_answer answer = batch_call(&rig, &batch);
        assert_int_equal(item_of(&answer, 0)->status->code, 0);
        assert_true(item_of(&answer, 0)->appended);
        assert_int_equal(item_of(&answer, 0)->epoch, lagging.epoch);
        assert_int_equal(item_of(&answer, 0)->length, steps[i].start + steps[i].token_count);
        rpc_append_ok(&rig, &apart, &rows);
        struct kvt_answer other = attend_call(&rig, item, &apart);
        assert_int_equal(answer.payload_bytes, other.payload_bytes);
        assert_memory_equal(answer.payload, other.payload, other.payload_bytes);
        kvt_answer_fini(&answer);
        kvt_answer_fini(&other);
        free(batch.payload);
    }
    rpc_rig_fini(&rig);
}

/* The request's own rows are fp16, and so is what they make sealable; a later one reads tiles. */
static void test_s03_own_rows_are_read_as_rows(void **state)
{
    struct rpc_rig rig;
    struct batch batch;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){.workers = 1}, NULL);
    struct rpc_session session = rpc_open(&rig, NULL, 0);
    rpc_append_all(&rig, &session, 0, 127);
    for (uint64_t start = 127; start < 129; start++) {
        batch_init(&batch);
        (void)batch_add(&batch, &session, start, 1);
        batch_fill(&rig, &batch);
        struct kvt_answer answer = batch_call(&rig, &batch);
        assert_int_equal(item_of(&answer, 0)->sealed_tokens, start == 127 ? 64 : 128);
        kvt_answer_fini(&answer);
        free(batch.payload);
    }
    rpc_rig_fini(&rig);
}

/* Out 0 and lse -inf where an item failed. */
static void assert_blank(const struct rpc_rig *rig, const struct kvt_answer *answer, size_t idx,
    size_t item_count, bool is_blank)
{
    uint32_t dim = rig->shape->layers[0].spec.v_dim;
    const float *out = answer->payload;
    const float *lse = out + item_count * Q_HEADS * dim;
    bool is_zero = true;

    assert_int_equal(answer->payload_bytes, item_count * Q_HEADS * (dim + 1) * sizeof(float));
    for (size_t i = 0; i < Q_HEADS * dim; i++) {
        is_zero = is_zero && out[idx * Q_HEADS * dim + i] == 0.0f;
    }
    assert_int_equal(is_zero, is_blank);
    for (size_t i = 0; i < Q_HEADS; i++) {
        assert_int_equal(isinf(lse[idx * Q_HEADS + i]) != 0, is_blank);
    }
}

static void test_s16_items_succeed_or_fail_one_by_one(void **state)
{
    const int errs[] = {0, KVARN_ESTALE_EPOCH, KVARN_ECONFLICT, KVARN_EDOMAIN, KVARN_EINVALID, 0};
    struct rpc_session sessions[6];
    struct rpc_rig rig;
    struct batch batch;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    batch_init(&batch);
    for (size_t i = 0; i < 6; i++) {
        sessions[i] = rpc_open(&rig, NULL, 0);
        rpc_append_all(&rig, &sessions[i], 0, 10);
        (void)batch_add(&batch, &sessions[i], 10, 1);
    }
    batch.items[1].epoch++;
    batch.items[2].start = 9;
    batch.items[4].has_token_first = batch.items[4].has_token_last = 1;
    batch.items[4].token_first = 3;
    batch.items[4].token_last = 2;
    batch_fill(&rig, &batch);
    memset(batch.payload + 3 * 128, 0xFF, 2); /* K of item 3 is a NaN */
    struct kvt_answer answer = batch_call(&rig, &batch);
    for (size_t i = 0; i < 6; i++) {
        const Kvarnd__AttendItemReply *item = item_of(&answer, i);
        assert_int_equal(item->status->code, -errs[i]);
        assert_int_equal(item->appended, errs[i] == 0);
        assert_blank(&rig, &answer, i, 6, errs[i] != 0);
    }
    assert_int_equal(item_of(&answer, 1)->status->epoch, sessions[1].epoch);
    assert_int_equal(item_of(&answer, 2)->status->n_layer_lengths, 1);
    assert_int_equal(item_of(&answer, 2)->status->layer_lengths[0], 10);
    kvt_answer_fini(&answer);
    struct rpc_rows rows = {.layer_count = 1, .start = 10, .token_count = 1, .seed = 1};
    for (size_t i = 0; i < 6; i++) {
        struct kvt_answer later = rpc_append(&rig, &sessions[i], &rows);
        const Kvarnd__AppendReply *reply = later.message;
        assert_int_equal(later.err, 0);
        assert_int_equal(reply->repeated_request, errs[i] == 0); /* it was stored, or it was not */
        kvt_answer_fini(&later);
    }
    free(batch.payload);
    rpc_rig_fini(&rig);
}

static void test_s17_stored_item_answers_so_whatever_its_attention(void **state)
{
    struct rpc_rig rig;
    struct batch batch;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = rpc_open(&rig, NULL, 0);
    batch_init(&batch);
    Kvarnd__AppendAttendItem *item = batch_add(&batch, &session, 0, 3);
    item->has_token_last = 1;
    item->token_last = 10;
    item->has_position = 1;
    item->position = 9;
    batch_fill(&rig, &batch);
    struct kvt_answer answer = batch_call(&rig, &batch);
    const Kvarnd__AttendItemReply *reply = item_of(&answer, 0);
    assert_int_equal(reply->status->code, -KVARN_EMISS);
    assert_int_equal(reply->status->reason, KVARND__MISS_REASON__MISS_NEVER_STORED);
    assert_true(reply->appended);
    assert_int_equal(reply->length, 3);
    assert_int_equal(reply->epoch, session.epoch);
    kvt_answer_fini(&answer);
    free(batch.payload);
    rpc_rig_fini(&rig);
}

static void test_s09_identical_retry_attends_again(void **state)
{
    struct rpc_rig rig;
    struct batch batch;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = rpc_open(&rig, NULL, 0);
    rpc_append_all(&rig, &session, 0, 100);
    batch_init(&batch);
    (void)batch_add(&batch, &session, 100, 2);
    batch_fill(&rig, &batch);
    struct kvt_answer first = batch_call(&rig, &batch);
    struct kvt_answer second = batch_call(&rig, &batch);
    assert_int_equal(item_of(&second, 0)->status->code, 0);
    assert_true(item_of(&second, 0)->appended);
    assert_int_equal(item_of(&second, 0)->length, 102);
    assert_memory_equal(first.payload, second.payload, first.payload_bytes);
    kvt_answer_fini(&first);
    kvt_answer_fini(&second);
    batch.seeds[0] = 2; /* other numbers at the same place */
    batch_fill(&rig, &batch);
    struct kvt_answer third = batch_call(&rig, &batch);
    assert_int_equal(item_of(&third, 0)->status->code, -KVARN_ECONFLICT);
    assert_false(item_of(&third, 0)->appended);
    kvt_answer_fini(&third);
    free(batch.payload);
    rpc_rig_fini(&rig);
}

/* 40 sessions with 4 KiB each: more than the loop may rotate in one turn. Every one's answer is
 * what it gets alone, with any number of workers; so is a retry, which a worker has to hash. */
static void test_s18_large_batch_equals_single_items(void **state)
{
    struct rpc_session sessions[ITEMS_MAX], single[ITEMS_MAX];
    struct rpc_rig rig;
    struct batch batch, one;

    (void)state;
    for (unsigned workers = 0; workers < 3; workers++) {
        rpc_rig_init(&rig, &(struct kvt_host_options){.workers = workers}, &rpc_shape_large);
        batch_init(&batch);
        for (size_t i = 0; i < ITEMS_MAX; i++) {
            sessions[i] = rpc_open(&rig, NULL, 0);
            single[i] = rpc_open(&rig, NULL, 0);
            (void)batch_add(&batch, &sessions[i], 0, 1);
            batch.seeds[i] = i;
        }
        batch_fill(&rig, &batch);
        struct kvt_answer answer = batch_call(&rig, &batch);
        struct kvt_answer again = batch_call(&rig, &batch);
        assert_int_equal(answer.payload_bytes, again.payload_bytes);
        assert_memory_equal(answer.payload, again.payload, answer.payload_bytes);
        size_t out_bytes = Q_HEADS * 128 * sizeof(float);
        for (size_t i = 0; i < ITEMS_MAX; i++) {
            assert_int_equal(item_of(&answer, i)->status->code, 0);
            assert_int_equal(item_of(&again, i)->status->code, 0);
            batch_init(&one);
            (void)batch_add(&one, &single[i], 0, 1);
            one.seeds[0] = i;
            batch_fill(&rig, &one);
            struct kvt_answer alone = batch_call(&rig, &one);
            assert_memory_equal(
                (uint8_t *)answer.payload + i * out_bytes, alone.payload, out_bytes);
            kvt_answer_fini(&alone);
            free(one.payload);
            batch.seeds[i] = i + i % 2; /* half of them are no retry any more */
        }
        kvt_answer_fini(&answer);
        kvt_answer_fini(&again);
        batch_fill(&rig, &batch);
        struct kvt_answer mixed = batch_call(&rig, &batch);
        for (size_t i = 0; i < ITEMS_MAX; i++) {
            assert_int_equal(item_of(&mixed, i)->status->code, i % 2 == 0 ? 0 : -KVARN_ECONFLICT);
        }
        kvt_answer_fini(&mixed);
        free(batch.payload);
        rpc_rig_fini(&rig);
    }
}

/* The retry is the same whether the append came alone, by the loop's hash, or in a large batch. */
static void test_s09_retry_across_calls(void **state)
{
    struct rpc_session sessions[ITEMS_MAX];
    struct rpc_rig rig;
    struct batch batch;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){.workers = 1}, &rpc_shape_large);
    batch_init(&batch);
    for (size_t i = 0; i < ITEMS_MAX; i++) {
        struct rpc_rows rows = {.layer_count = 1, .token_count = 1, .seed = 1};
        sessions[i] = rpc_open(&rig, NULL, 0);
        if (i % 2 == 0) {
            rpc_append_ok(&rig, &sessions[i], &rows);
        }
        (void)batch_add(&batch, &sessions[i], 0, 1);
    }
    batch_fill(&rig, &batch);
    struct kvt_answer answer = batch_call(&rig, &batch);
    for (size_t i = 0; i < ITEMS_MAX; i++) {
        assert_int_equal(item_of(&answer, i)->status->code, 0);
        assert_int_equal(item_of(&answer, i)->length, 1);
    }
    kvt_answer_fini(&answer);
    free(batch.payload);
    rpc_rig_fini(&rig);
}

/* What the whole message says wrong is refused whole, and nothing is stored. */
static void test_wrong_messages_are_refused(void **state)
{
    struct rpc_rig rig;
    struct batch batch;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session a = rpc_open(&rig, NULL, 0);
    struct rpc_session b = rpc_open(&rig, "b", 0);
    struct rpc_session same = rpc_open(&rig, "b", 0); /* another handle of b */
    for (int i = 0; i < 11; i++) {
        batch_init(&batch);
        (void)batch_add(&batch, &a, 0, 1);
        (void)batch_add(&batch, i == 0 ? &a : &b, 0, 1);
        (void)batch_add(&batch, i == 1 ? &same : &b, 0, 1);
        batch.message.n_items = i < 2 ? 3 : 2;
        batch_fill(&rig, &batch);
        batch.message.n_items = i == 2 ? 0 : batch.message.n_items;
        batch.params.layer = i == 3 ? 3 : 0;
        batch.message.has_kv_dtype = batch.message.has_kv_layout = batch.params.has_q_dtype = 1;
        batch.params.q_heads = i == 4 ? 0 : Q_HEADS;
        batch.message.kv_dtype = (Kvarnd__DType)(i == 5 ? 9 : 0);
        batch.message.kv_layout = (Kvarnd__Layout)(i == 6 ? 9 : 0);
        batch.params.q_dtype = (Kvarnd__DType)(i == 7 ? 9 : 0);
        batch.items[1].token_count = i == 8 ? 0 : 1;
        batch.items[1].handle += i == 9;
        batch.bytes -= i == 10 ? 2 : 0;
        struct kvt_answer answer = batch_call(&rig, &batch);
        assert_int_equal(answer.err, i == 9 ? KVARN_ENOT_FOUND : KVARN_EINVALID);
        kvt_answer_fini(&answer);
        free(batch.payload);
    }
    rpc_append_all(&rig, &a, 0, 1);
    rpc_append_all(&rig, &b, 0, 1);
    rpc_rig_fini(&rig);
}

/* More query tokens than there are tokens need a position; known before anything is stored. */
static void test_queries_before_the_start_need_a_position(void **state)
{
    struct rpc_rig rig;
    struct batch batch;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = rpc_open(&rig, NULL, 0);
    for (int with_position = 0; with_position < 2; with_position++) {
        batch_init(&batch);
        Kvarnd__AppendAttendItem *item = batch_add(&batch, &session, 0, 2);
        item->has_query_tokens = 1;
        item->query_tokens = 3;
        item->has_position = with_position;
        batch_fill(&rig, &batch);
        struct kvt_answer answer = batch_call(&rig, &batch);
        const Kvarnd__AttendItemReply *reply = item_of(&answer, 0);
        assert_int_equal(reply->status->code, with_position ? 0 : -KVARN_EINVALID);
        assert_int_equal(reply->appended, with_position);
        kvt_answer_fini(&answer);
        free(batch.payload);
    }
    rpc_rig_fini(&rig);
}

/* One item waits behind a large append, the other is done: a Cancel tells them apart. */
static void test_s17_cancel_stores_nothing_of_what_waits(void **state)
{
    struct rpc_rows rows = {.layer_count = 1, .token_count = 200, .seed = 1};
    Kvarnd__Cancel cancel = KVARND__CANCEL__INIT;
    struct rpc_rig rig;
    struct batch batch;
    size_t bytes;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, &rpc_shape_large);
    struct rpc_session busy = rpc_open(&rig, NULL, 0);
    struct rpc_session idle = rpc_open(&rig, NULL, 0);
    Kvarnd__Append append = rpc_append_message(&busy, &rows);
    uint8_t *payload = rpc_rows_make(&rig, &rows, &bytes);
    (void)kvt_peer_send(&rig.peer, KVARN_FRAME_APPEND, &append.base, payload, bytes);
    free(payload);
    batch_init(&batch);
    (void)batch_add(&batch, &busy, 200, 1);
    (void)batch_add(&batch, &idle, 0, 1);
    batch_fill(&rig, &batch);
    cancel.request_id = batch_send(&rig, &batch);
    (void)kvt_peer_send(&rig.peer, KVARN_FRAME_CANCEL, &cancel.base, NULL, 0);
    kvt_host_settle(&rig.host);
    struct kvt_answer answer;
    bool is_seen = false;
    while (kvt_peer_take(&rig.peer, &answer)) {
        if (answer.header.request_id == cancel.request_id) {
            is_seen = true;
            assert_int_equal(item_of(&answer, 0)->status->code, -KVARN_ECANCELLED);
            assert_false(item_of(&answer, 0)->appended);
            assert_int_equal(item_of(&answer, 1)->status->code, 0);
            assert_true(item_of(&answer, 1)->appended);
            assert_blank(&rig, &answer, 0, 2, true);
        }
        kvt_answer_fini(&answer);
    }
    assert_true(is_seen);
    rows.start = 200;
    rows.token_count = 1;
    rows.seed = 7;
    rpc_append_ok(&rig, &busy, &rows); /* the cancelled one left no trace */
    free(batch.payload);
    rpc_rig_fini(&rig);
}

/* The session is dropped while its item waits. */
static void test_item_of_a_dropped_session(void **state)
{
    struct rpc_rows rows = {.layer_count = 1, .token_count = 200, .seed = 1};
    Kvarnd__DropSession drop = KVARND__DROP_SESSION__INIT;
    struct rpc_rig rig;
    struct batch batch;
    size_t bytes;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){.workers = 1}, &rpc_shape_large);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    Kvarnd__Append append = rpc_append_message(&session, &rows);
    uint8_t *payload = rpc_rows_make(&rig, &rows, &bytes);
    (void)kvt_peer_send(&rig.peer, KVARN_FRAME_APPEND, &append.base, payload, bytes);
    free(payload);
    batch_init(&batch);
    (void)batch_add(&batch, &session, 200, 1);
    batch_fill(&rig, &batch);
    uint64_t id = batch_send(&rig, &batch);
    drop.name = (char *)(uintptr_t) "s";
    (void)kvt_peer_send(&rig.peer, KVARN_FRAME_DROP_SESSION, &drop.base, NULL, 0);
    kvt_host_settle(&rig.host);
    struct kvt_answer answer;
    int count = 0;
    while (kvt_peer_take(&rig.peer, &answer)) {
        if (answer.header.request_id == id) {
            assert_int_equal(item_of(&answer, 0)->status->code, -KVARN_ENOT_FOUND);
            assert_false(item_of(&answer, 0)->appended);
        }
        count++;
        kvt_answer_fini(&answer);
    }
    assert_int_equal(count, 3);
    free(batch.payload);
    rpc_rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_both_parts_equal_append_then_attend),
        cmocka_unit_test(test_s03_own_rows_are_read_as_rows),
        cmocka_unit_test(test_s16_items_succeed_or_fail_one_by_one),
        cmocka_unit_test(test_s17_stored_item_answers_so_whatever_its_attention),
        cmocka_unit_test(test_s09_identical_retry_attends_again),
        cmocka_unit_test(test_s18_large_batch_equals_single_items),
        cmocka_unit_test(test_s09_retry_across_calls),
        cmocka_unit_test(test_wrong_messages_are_refused),
        cmocka_unit_test(test_queries_before_the_start_need_a_position),
        cmocka_unit_test(test_s17_cancel_stores_nothing_of_what_waits),
        cmocka_unit_test(test_item_of_a_dropped_session),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
