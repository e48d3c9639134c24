/* Append and AppendTiles over the wire: messages, replies, retries, clones. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/limits.h"
#include "tests/unit/server/rpc/rpc_rig.h"

/* What an append of `rows` is answered when its message was changed by `spoil`. */
static int spoiled_err(struct rpc_rig *rig, const struct rpc_session *session,
    const struct rpc_rows *rows, void (*spoil)(Kvarnd__Append *message))
{
    Kvarnd__Append message = rpc_append_message(session, rows);
    size_t bytes;
    uint8_t *payload = rpc_rows_make(rig, rows, &bytes);

    spoil(&message);
    int err = rpc_call_err(rig, KVARN_FRAME_APPEND, &message.base, payload, bytes);
    free(payload);
    return err;
}

static void spoil_handle(Kvarnd__Append *message)
{
    message->handle ^= 1;
}
static void spoil_layer(Kvarnd__Append *message)
{
    message->layer_first = 3;
}
static void spoil_layers(Kvarnd__Append *message)
{
    message->layer_first = 1;
    message->layer_count = UINT32_MAX;
}
static void spoil_no_layers(Kvarnd__Append *message)
{
    message->layer_count = 0;
}
static void spoil_no_tokens(Kvarnd__Append *message)
{
    message->token_count = 0;
}
static void spoil_tokens(Kvarnd__Append *message)
{
    message->token_count = UINT32_MAX;
}
static void spoil_start(Kvarnd__Append *message)
{
    message->start = UINT64_MAX;
}
static void spoil_dtype(Kvarnd__Append *message)
{
    message->dtype = (Kvarnd__DType)-1;
}
static void spoil_layout(Kvarnd__Append *message)
{
    message->layout = (Kvarnd__Layout)2;
}
static void spoil_size(Kvarnd__Append *message)
{
    message->token_count++;
}

static void test_wrong_messages_are_refused(void **state)
{
    struct {
        void (*spoil)(Kvarnd__Append *message);
        int err;
    } cases[] = {{spoil_handle, KVARN_ENOT_FOUND}, {spoil_layer, KVARN_EINVALID},
        {spoil_layers, KVARN_EINVALID}, {spoil_no_layers, KVARN_EINVALID},
        {spoil_no_tokens, KVARN_EINVALID}, {spoil_tokens, KVARN_ETOO_LARGE},
        {spoil_start, KVARN_ETOO_LARGE}, {spoil_dtype, KVARN_EINVALID},
        {spoil_layout, KVARN_EINVALID}, {spoil_size, KVARN_EINVALID}};
    struct rpc_rows rows = {.layer_count = 1, .token_count = 3, .seed = 1};
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(spoiled_err(&rig, &session, &rows, cases[i].spoil), cases[i].err);
    }
    rpc_append_ok(&rig, &session, &rows); /* none of them left a trace */
    rpc_rig_fini(&rig);
}

static void test_reply_says_epoch_length_and_sealed(void **state)
{
    struct rpc_rows rows = {.layer_count = 3, .token_count = 200, .seed = 1};
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    struct kvt_answer answer = rpc_append(&rig, &session, &rows);
    const Kvarnd__AppendReply *reply = answer.message;
    assert_int_equal(answer.err, 0);
    assert_int_equal(answer.payload_bytes, 0);
    assert_int_equal(reply->epoch, session.epoch);
    assert_int_equal(reply->length, 200);
    assert_int_equal(reply->sealed_tokens, 192);
    assert_false(reply->repeated_request);
    kvt_answer_fini(&answer);
    rpc_rig_fini(&rig);
}

static void test_s07_stale_epoch_says_what_holds(void **state)
{
    struct rpc_rows rows = {.layer_count = 1, .token_count = 5, .seed = 1};
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    rpc_append_ok(&rig, &session, &rows);
    struct rpc_session stale = {.handle = session.handle, .epoch = session.epoch + 1};
    rows.start = 5;
    struct kvt_answer answer = rpc_append(&rig, &stale, &rows);
    assert_int_equal(answer.err, KVARN_ESTALE_EPOCH);
    assert_int_equal(answer.status->epoch, session.epoch);
    assert_int_equal(answer.status->n_layer_lengths, 3);
    assert_int_equal(answer.status->layer_lengths[0], 5);
    assert_int_equal(answer.status->layer_lengths[2], 0);
    kvt_answer_fini(&answer);
    rpc_rig_fini(&rig);
}

static void test_s09_another_start_is_a_conflict(void **state)
{
    struct rpc_rows rows = {.layer_first = 1, .layer_count = 2, .token_count = 5, .seed = 1};
    uint64_t starts[] = {0, 4, 6};
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    rpc_append_ok(&rig, &session, &rows);
    rows.seed = 2;
    for (size_t i = 0; i < sizeof(starts) / sizeof(starts[0]); i++) {
        rows.start = starts[i];
        struct kvt_answer answer = rpc_append(&rig, &session, &rows);
        assert_int_equal(answer.err, KVARN_ECONFLICT);
        assert_int_equal(answer.status->epoch, session.epoch);
        assert_int_equal(answer.status->n_layer_lengths, 2); /* of the layers in the request */
        assert_int_equal(answer.status->layer_lengths[0], 5);
        kvt_answer_fini(&answer);
    }
    rpc_rig_fini(&rig);
}

static void test_s09_identical_retry_answers_ok(void **state)
{
    struct rpc_rows rows = {.layer_count = 3, .token_count = 70, .seed = 1};
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    rpc_append_ok(&rig, &session, &rows);
    struct kvt_answer answer = rpc_append(&rig, &session, &rows);
    const Kvarnd__AppendReply *reply = answer.message;
    assert_int_equal(answer.err, 0);
    assert_true(reply->repeated_request);
    assert_int_equal(reply->length, 70); /* nothing was stored twice */
    assert_int_equal(reply->sealed_tokens, 64);
    kvt_answer_fini(&answer);
    rpc_rig_fini(&rig);
}

/* The same bytes that mean something else are no retry: bits of fp16 are bits of bf16 too. */
static void test_s09_same_bytes_of_other_meaning_conflict(void **state)
{
    struct rpc_rows rows = {.layer_count = 1, .token_count = 4, .seed = 1};
    struct rpc_rig rig;
    size_t bytes;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    uint8_t *payload = rpc_rows_make(&rig, &rows, &bytes);
    for (int i = 0; i < 4; i++) {
        Kvarnd__Append message = rpc_append_message(&session, &rows);
        message.dtype = i == 1 ? KVARND__DTYPE__BF16 : KVARND__DTYPE__F16;
        message.layout = i == 2 ? KVARND__LAYOUT__TOKEN_MAJOR : KVARND__LAYOUT__HEAD_MAJOR;
        message.rotated = i == 3;
        int err = rpc_call_err(&rig, KVARN_FRAME_APPEND, &message.base, payload, bytes);
        assert_int_equal(err, i == 0 ? 0 : KVARN_ECONFLICT);
    }
    free(payload);
    rpc_rig_fini(&rig);
}

static void test_s10_not_finite_is_refused_without_a_trace(void **state)
{
    struct rpc_rows rows = {.layer_count = 2, .token_count = 4, .dtype = KVARN_F32, .seed = 1};
    struct rpc_rig rig;
    size_t bytes;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    Kvarnd__Append message = rpc_append_message(&session, &rows);
    float *payload = (void *)rpc_rows_make(&rig, &rows, &bytes);
    float good = payload[256 + 128 + 64 + 16];
    payload[256 + 128 + 64 + 16] = NAN; /* layer 1, V, head 1, token 1 */
    struct kvt_answer answer =
        kvt_peer_call(&rig.peer, KVARN_FRAME_APPEND, &message.base, payload, bytes);
    assert_int_equal(answer.err, KVARN_EDOMAIN);
    assert_non_null(strstr(answer.status->text, "V of layer 1, head 1, token 1"));
    kvt_answer_fini(&answer);
    payload[256 + 128 + 64 + 16] = good;
    assert_int_equal(rpc_call_err(&rig, KVARN_FRAME_APPEND, &message.base, payload, bytes), 0);
    free(payload);
    rpc_rig_fini(&rig);
}

/* Pending: a large append runs on a worker that is not waited for until the end. */
static uint64_t send_append(struct rpc_rig *rig, const struct rpc_session *session,
    const struct rpc_rows *rows, uint32_t deadline_ms)
{
    Kvarnd__Append message = rpc_append_message(session, rows);
    size_t bytes;
    uint8_t *payload = rpc_rows_make(rig, rows, &bytes);

    message.has_deadline_ms = deadline_ms != 0;
    message.deadline_ms = deadline_ms;
    uint64_t id = kvt_peer_send(&rig->peer, KVARN_FRAME_APPEND, &message.base, payload, bytes);
    assert_int_not_equal(id, 0);
    free(payload);
    return id;
}

/* Answers by request id: 1 + the error's number, 0 for none. */
static void answers_take(struct rpc_rig *rig, int *errs, size_t count)
{
    struct kvt_answer answer;

    memset(errs, 0, count * sizeof(*errs));
    while (kvt_peer_take(&rig->peer, &answer)) {
        assert_true(answer.header.request_id < count);
        errs[answer.header.request_id] = 1 - answer.err;
        kvt_answer_fini(&answer);
    }
}

static void test_s16_appends_of_a_connection_apply_in_order(void **state)
{
    int errs[64];
    uint64_t ids[12];
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){.workers = 2}, &rpc_shape_large);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    struct rpc_rows rows = {.layer_count = 1, .seed = 1};
    for (size_t i = 0; i < 12; i++) {
        rows.token_count = i % 3 == 0 ? 100 : 1; /* 400 KiB, or rotated on the loop */
        ids[i] = send_append(&rig, &session, &rows, 0);
        rows.start += rows.token_count;
    }
    kvt_host_settle(&rig.host);
    answers_take(&rig, errs, 64);
    for (size_t i = 0; i < 12; i++) {
        assert_int_equal(errs[ids[i]], 1);
    }
    rpc_rig_fini(&rig);
}

static void test_s17_waiting_append_is_cancelled(void **state)
{
    struct rpc_rows rows = {.layer_count = 1, .token_count = 200, .seed = 1};
    Kvarnd__Cancel cancel = KVARND__CANCEL__INIT;
    int errs[64];
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, &rpc_shape_large);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    uint64_t first = send_append(&rig, &session, &rows, 0); /* runs in a later turn */
    rows.start = 200;
    uint64_t second = send_append(&rig, &session, &rows, 0);
    cancel.request_id = second;
    (void)kvt_peer_send(&rig.peer, KVARN_FRAME_CANCEL, &cancel.base, NULL, 0);
    kvt_host_settle(&rig.host);
    answers_take(&rig, errs, 64);
    assert_int_equal(errs[first], 1);
    assert_int_equal(errs[second], 1 - KVARN_ECANCELLED);
    rpc_append_ok(&rig, &session, &rows); /* nothing was stored */
    rpc_rig_fini(&rig);
}

static void test_s17_append_past_its_deadline_stores_nothing(void **state)
{
    struct rpc_rows rows = {.layer_count = 1, .token_count = 200, .seed = 1};
    int errs[64];
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, &rpc_shape_large);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    uint64_t running = send_append(&rig, &session, &rows, 5);
    rows.start = 200;
    uint64_t waiting = send_append(&rig, &session, &rows, 5);
    kvd_io_fake_advance_ms(rig.host.fake, 50);
    kvt_host_settle(&rig.host);
    answers_take(&rig, errs, 64);
    assert_int_equal(errs[running], 1 - KVARN_EDEADLINE);
    assert_int_equal(errs[waiting], 1 - KVARN_EDEADLINE);
    rows.start = 0;
    rpc_append_ok(&rig, &session, &rows);
    rpc_rig_fini(&rig);
}

/* A peer that goes in mid-payload, and one whose append is still rotated. */
static void test_s08_append_of_a_peer_that_dies(void **state)
{
    struct rpc_rows rows = {.layer_count = 1, .token_count = 200, .seed = 1};
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){.workers = 1}, &rpc_shape_large);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    (void)send_append(&rig, &session, &rows, 0);
    kvt_peer_close(&rig.peer);
    kvt_peer_open(&rig.peer, &rig.host);
    kvt_peer_hello(&rig.peer);
    session = rpc_open(&rig, "s", 0);
    struct kvt_answer answer = rpc_append(&rig, &session, &rows);
    const Kvarnd__AppendReply *reply = answer.message;
    assert_int_equal(answer.err, 0); /* it came whole: stored, and recognised as a retry */
    assert_true(reply->repeated_request);
    kvt_answer_fini(&answer);
    rpc_rig_fini(&rig);
}

/* AppendTiles. */

/* Runs as they came from a read, with room to be changed. */
struct tiles {
    Kvarnd__AppendTiles message;
    Kvarnd__Run runs[16];
    Kvarnd__Run *list[16];
    uint8_t *payload;
    size_t bytes;
};

static void tiles_read(struct rpc_rig *rig, const struct rpc_session *from, uint32_t layer_count,
    uint64_t first, uint64_t last, struct tiles *ret)
{
    struct kvt_answer answer = rpc_read_stored(rig, from, 0, layer_count, first, last);
    const Kvarnd__ReadBlocksReply *reply = answer.message;

    if (answer.err != 0) {
        fail_msg("read: %s", answer.status->text);
    }
    kvarnd__append_tiles__init(&ret->message);
    assert_true(reply->n_runs <= 16);
    for (size_t i = 0; i < reply->n_runs; i++) {
        ret->runs[i] = *reply->runs[i];
        ret->list[i] = &ret->runs[i];
    }
    ret->message.n_runs = reply->n_runs;
    ret->message.runs = ret->list;
    ret->bytes = answer.payload_bytes;
    ret->payload = malloc(ret->bytes + 1);
    assert_non_null(ret->payload);
    memcpy(ret->payload, answer.payload, ret->bytes);
    kvt_answer_fini(&answer);
}

static struct kvt_answer tiles_append(
    struct rpc_rig *rig, const struct rpc_session *to, struct tiles *tiles)
{
    tiles->message.handle = to->handle;
    tiles->message.epoch = to->epoch;
    return kvt_peer_call(
        &rig->peer, KVARN_FRAME_APPEND_TILES, &tiles->message.base, tiles->payload, tiles->bytes);
}

static int tiles_append_err(struct rpc_rig *rig, const struct rpc_session *to, struct tiles *tiles)
{
    struct kvt_answer answer = tiles_append(rig, to, tiles);
    int err = answer.err;

    kvt_answer_fini(&answer);
    return err;
}

/* Both sessions hold the same bytes in the same form. */
static void assert_same_stored(struct rpc_rig *rig, const struct rpc_session *a,
    const struct rpc_session *b, uint32_t layer_count, uint64_t first, uint64_t last)
{
    struct kvt_answer left = rpc_read_stored(rig, a, 0, layer_count, first, last);
    struct kvt_answer right = rpc_read_stored(rig, b, 0, layer_count, first, last);
    const Kvarnd__ReadBlocksReply *left_reply = left.message, *right_reply = right.message;

    assert_int_equal(left.err, 0);
    assert_int_equal(right.err, 0);
    assert_int_equal(left_reply->n_runs, right_reply->n_runs);
    for (size_t i = 0; i < left_reply->n_runs; i++) {
        assert_int_equal(left_reply->runs[i]->form, right_reply->runs[i]->form);
        assert_int_equal(left_reply->runs[i]->token_count, right_reply->runs[i]->token_count);
    }
    assert_int_equal(left.payload_bytes, right.payload_bytes);
    assert_memory_equal(left.payload, right.payload, left.payload_bytes);
    kvt_answer_fini(&left);
    kvt_answer_fini(&right);
}

static void test_s21_read_and_append_clone_a_session(void **state)
{
    uint32_t lengths[] = {1, 63, 64, 65, 128, 160, 164, 129};
    uint32_t lags[] = {0, 1, 64};
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){.workers = 1}, NULL);
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        for (size_t l = 0; l < sizeof(lags) / sizeof(lags[0]); l++) {
            struct rpc_session from = rpc_open(&rig, NULL, lags[l]);
            struct rpc_session to = rpc_open(&rig, NULL, lags[l]);
            struct tiles tiles;
            rpc_append_all(&rig, &from, 0, lengths[i]);
            tiles_read(&rig, &from, 3, 0, lengths[i], &tiles);
            struct kvt_answer answer = tiles_append(&rig, &to, &tiles);
            const Kvarnd__AppendTilesReply *reply = answer.message;
            assert_int_equal(answer.err, 0);
            assert_int_equal(reply->epoch, to.epoch);
            assert_int_equal(reply->n_lengths, 3);
            assert_int_equal(reply->lengths[2], lengths[i]);
            kvt_answer_fini(&answer);
            assert_same_stored(&rig, &from, &to, 3, 0, lengths[i]);
            free(tiles.payload);
        }
    }
    rpc_rig_fini(&rig);
}

/* In two pieces, and what comes later is stored alike as well. */
static void test_s21_clone_goes_on_like_its_original(void **state)
{
    struct tiles tiles;
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session from = rpc_open(&rig, NULL, 0);
    struct rpc_session to = rpc_open(&rig, NULL, 0);
    rpc_append_all(&rig, &from, 0, 150);
    for (uint64_t first = 0; first < 150; first += 128) {
        uint64_t last = first + 128 < 150 ? first + 128 : 150;
        tiles_read(&rig, &from, 3, first, last, &tiles);
        assert_int_equal(tiles_append_err(&rig, &to, &tiles), 0);
        assert_int_equal(tiles_append_err(&rig, &to, &tiles), 0); /* the same again: a retry */
        free(tiles.payload);
    }
    rpc_append_all(&rig, &from, 150, 14);
    rpc_append_all(&rig, &to, 150, 14);
    assert_same_stored(&rig, &from, &to, 3, 0, 164);
    rpc_rig_fini(&rig);
}

/* Full blocks that seal_lag keeps as rows are sealed when records follow them. */
static void test_s21_records_behind_rows_kept_open(void **state)
{
    struct tiles tiles;
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){.workers = 1}, NULL);
    struct rpc_session from = rpc_open(&rig, NULL, 0);
    struct rpc_session to = rpc_open(&rig, NULL, 64);
    rpc_append_all(&rig, &from, 0, 192);
    rpc_append_all(&rig, &to, 0, 128); /* block 1 is full and open */
    tiles_read(&rig, &from, 2, 128, 192, &tiles);
    assert_int_equal(tiles.runs[0].form, KVARND__RUN_FORM__RECORDS);
    assert_int_equal(tiles_append_err(&rig, &to, &tiles), 0);
    assert_same_stored(&rig, &from, &to, 2, 0, 192);
    free(tiles.payload);
    rpc_rig_fini(&rig);
}

static void test_s21_rows_of_whole_blocks_are_sealed(void **state)
{
    struct tiles tiles;
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){.workers = 1}, NULL);
    struct rpc_session lagging = rpc_open(&rig, NULL, 64);
    struct rpc_session to = rpc_open(&rig, NULL, 0);
    struct rpc_session same = rpc_open(&rig, NULL, 0);
    rpc_append_all(&rig, &lagging, 0, 130);
    rpc_append_all(&rig, &same, 0, 130);
    tiles_read(&rig, &lagging, 3, 0, 130, &tiles);
    assert_int_equal(tiles.message.n_runs, 3); /* nothing was sealed: rows alone */
    assert_int_equal(tiles_append_err(&rig, &to, &tiles), 0);
    assert_same_stored(&rig, &same, &to, 3, 0, 130);
    free(tiles.payload);
    rpc_rig_fini(&rig);
}

static void test_s21_records_not_finite_are_domain(void **state)
{
    const struct kvarn_tile_spec *spec;
    struct kvarn_tile_map map;
    struct tiles tiles;
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session from = rpc_open(&rig, NULL, 0);
    struct rpc_session to = rpc_open(&rig, NULL, 0);
    rpc_append_all(&rig, &from, 0, 128);
    rpc_append_all(&rig, &to, 0, 64);
    tiles_read(&rig, &from, 1, 64, 128, &tiles);
    spec = &rig.shape->layers[0].spec;
    kvarn_tile_map_init(&map, spec);
    tiles.payload[kvarn_record_bytes(spec) + map.part[0].bytes] = 0;
    tiles.payload[kvarn_record_bytes(spec) + map.part[0].bytes + 1] = 0x7C; /* +Inf */
    struct kvt_answer answer = tiles_append(&rig, &to, &tiles);
    assert_int_equal(answer.err, KVARN_EDOMAIN);
    assert_non_null(strstr(answer.status->text, "layer 0, head 1, tokens from 64"));
    kvt_answer_fini(&answer);
    rpc_append_all(&rig, &to, 64, 1); /* nothing was stored */
    free(tiles.payload);
    rpc_rig_fini(&rig);
}

static void test_s17_waiting_tiles_are_cancelled(void **state)
{
    struct rpc_rows rows = {.layer_count = 1, .token_count = 256, .seed = 1};
    Kvarnd__Cancel cancel = KVARND__CANCEL__INIT;
    struct tiles tiles;
    int errs[64];
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, &rpc_shape_large);
    struct rpc_session from = rpc_open(&rig, NULL, 0);
    struct rpc_session to = rpc_open(&rig, NULL, 0);
    rpc_append_all(&rig, &from, 0, 384);
    tiles_read(&rig, &from, 1, 256, 384, &tiles);
    uint64_t running = send_append(&rig, &to, &rows, 0);
    tiles.message.handle = to.handle;
    tiles.message.epoch = to.epoch;
    cancel.request_id = kvt_peer_send(
        &rig.peer, KVARN_FRAME_APPEND_TILES, &tiles.message.base, tiles.payload, tiles.bytes);
    (void)kvt_peer_send(&rig.peer, KVARN_FRAME_CANCEL, &cancel.base, NULL, 0);
    kvt_host_settle(&rig.host);
    answers_take(&rig, errs, 64);
    assert_int_equal(errs[running], 1);
    assert_int_equal(errs[cancel.request_id], 1 - KVARN_ECANCELLED);
    assert_int_equal(tiles_append_err(&rig, &to, &tiles), 0);
    assert_same_stored(&rig, &from, &to, 1, 0, 384);
    free(tiles.payload);
    rpc_rig_fini(&rig);
}

static Kvarnd__Run run_of(uint32_t layer, uint64_t first, uint64_t count, int form)
{
    Kvarnd__Run run = KVARND__RUN__INIT;

    run.layer = layer;
    run.first_token = first;
    run.token_count = count;
    run.form = (Kvarnd__RunForm)form;
    return run;
}

static void test_s21_runs_that_make_no_sense_are_refused(void **state)
{
    const int records = KVARND__RUN_FORM__RECORDS, rows = KVARND__RUN_FORM__ROWS_STORED;
    struct {
        const char *words;
        Kvarnd__Run runs[2];
    } cases[] = {
        {"layers", {run_of(3, 0, 64, rows)}},
        {"token_count", {run_of(0, 0, 0, rows)}},
        {"at most", {run_of(0, 64, UINT64_MAX, records)}},
        {"form", {run_of(0, 64, 64, KVARND__RUN_FORM__ROWS)}},
        {"form", {run_of(0, 64, 64, 77)}},
        {"whole blocks", {run_of(0, 64, 63, records)}},
        {"whole blocks", {run_of(0, 65, 64, records)}},
        {"sink", {run_of(0, 0, 128, records)}},
        {"multiple of 64", {run_of(0, 1, 5, rows)}},
        {"ascend", {run_of(1, 0, 64, rows), run_of(0, 0, 64, rows)}},
        {"gap", {run_of(0, 0, 64, rows), run_of(0, 128, 64, records)}},
        {"gap", {run_of(0, 0, 64, rows), run_of(0, 0, 64, rows)}},
        {"rows come last", {run_of(0, 0, 128, rows), run_of(0, 128, 64, records)}},
    };
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        Kvarnd__AppendTiles message = KVARND__APPEND_TILES__INIT;
        Kvarnd__Run *list[] = {&cases[i].runs[0], &cases[i].runs[1]};
        message.handle = session.handle;
        message.epoch = session.epoch;
        message.n_runs = cases[i].runs[1].base.descriptor == NULL ? 1 : 2;
        message.runs = list;
        struct kvt_answer answer =
            kvt_peer_call(&rig.peer, KVARN_FRAME_APPEND_TILES, &message.base, NULL, 0);
        assert_true(answer.err == KVARN_EINVALID || answer.err == KVARN_ETOO_LARGE);
        if (strstr(answer.status->text, cases[i].words) == NULL) {
            fail_msg("case %zu: %s", i, answer.status->text);
        }
        kvt_answer_fini(&answer);
    }
    rpc_rig_fini(&rig);
}

static void test_append_tiles_without_runs_is_refused(void **state)
{
    Kvarnd__AppendTiles message = KVARND__APPEND_TILES__INIT;
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    message.handle = session.handle;
    message.epoch = session.epoch;
    assert_int_equal(
        rpc_call_err(&rig, KVARN_FRAME_APPEND_TILES, &message.base, NULL, 0), KVARN_EINVALID);
    message.handle++;
    assert_int_equal(
        rpc_call_err(&rig, KVARN_FRAME_APPEND_TILES, &message.base, NULL, 0), KVARN_ENOT_FOUND);
    rpc_rig_fini(&rig);
}

static void test_s05_full_daemon_answers_no_space(void **state)
{
    struct rpc_rows rows = {.layer_count = 1, .token_count = 100, .seed = 1};
    struct rpc_rig rig;
    int err = 0;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){.memory_limit = 4 << 20}, &rpc_shape_large);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    for (int i = 0; i < 1000 && err == 0; i++) {
        struct kvt_answer answer = rpc_append(&rig, &session, &rows);
        err = answer.err;
        rows.start += rows.token_count;
        kvt_answer_fini(&answer);
    }
    assert_int_equal(err, KVARN_ENOSPC);
    rpc_rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wrong_messages_are_refused),
        cmocka_unit_test(test_reply_says_epoch_length_and_sealed),
        cmocka_unit_test(test_s07_stale_epoch_says_what_holds),
        cmocka_unit_test(test_s09_another_start_is_a_conflict),
        cmocka_unit_test(test_s09_identical_retry_answers_ok),
        cmocka_unit_test(test_s09_same_bytes_of_other_meaning_conflict),
        cmocka_unit_test(test_s10_not_finite_is_refused_without_a_trace),
        cmocka_unit_test(test_s16_appends_of_a_connection_apply_in_order),
        cmocka_unit_test(test_s17_waiting_append_is_cancelled),
        cmocka_unit_test(test_s17_append_past_its_deadline_stores_nothing),
        cmocka_unit_test(test_s08_append_of_a_peer_that_dies),
        cmocka_unit_test(test_s21_read_and_append_clone_a_session),
        cmocka_unit_test(test_s21_clone_goes_on_like_its_original),
        cmocka_unit_test(test_s21_records_behind_rows_kept_open),
        cmocka_unit_test(test_s21_rows_of_whole_blocks_are_sealed),
        cmocka_unit_test(test_s21_records_not_finite_are_domain),
        cmocka_unit_test(test_s21_runs_that_make_no_sense_are_refused),
        cmocka_unit_test(test_s17_waiting_tiles_are_cancelled),
        cmocka_unit_test(test_append_tiles_without_runs_is_refused),
        cmocka_unit_test(test_s05_full_daemon_answers_no_space),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
