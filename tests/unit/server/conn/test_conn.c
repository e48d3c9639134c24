/* Tests of server/conn*.c and request.c: frames, handshake, credit, deadlines, output, handles. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/limits.h"
#include "proto/frame.h"
#include "server/conn/conn.h"
#include "server/conn/conn_impl.h"
#include "tests/support/wire_peer.h"

struct env {
    struct kvt_host host;
    struct kvt_peer peer;
};

static int env_setup(void **state)
{
    struct env *env = calloc(1, sizeof(*env));

    assert_non_null(env);
    kvt_host_init(&env->host, &(struct kvt_host_options){.seed = 1});
    kvt_peer_open(&env->peer, &env->host);
    *state = env;
    return 0;
}

static int env_teardown(void **state)
{
    struct env *env = *state;

    kvt_peer_close(&env->peer);
    kvt_host_fini(&env->host);
    free(env);
    return 0;
}

static uint64_t metric(const struct env *env, enum kvd_metric which)
{
    return env->host.service.metrics.values[which];
}

/* Bytes of one frame; the caller frees them. `message` need not be one. */
static uint8_t *frame_make(
    struct kvarn_frame_header header, const void *message, const void *rest, size_t *ret_bytes)
{
    bool has_trailer = (header.flags & KVARN_FRAME_PAYLOAD_XXH3) != 0;
    size_t rest_bytes =
        (size_t)header.payload_bytes + (has_trailer ? KVARN_FRAME_TRAILER_BYTES : 0);
    size_t bytes = KVARN_FRAME_HEADER_BYTES + header.message_bytes + rest_bytes;
    uint8_t *frame = calloc(1, bytes);

    assert_non_null(frame);
    kvarn_frame_encode(&header, frame);
    if (header.message_bytes > 0) {
        memcpy(frame + KVARN_FRAME_HEADER_BYTES, message, header.message_bytes);
    }
    if (rest != NULL && rest_bytes > 0) {
        memcpy(frame + KVARN_FRAME_HEADER_BYTES + header.message_bytes, rest, rest_bytes);
    }
    *ret_bytes = bytes;
    return frame;
}

static void frame_send(
    struct env *env, struct kvarn_frame_header header, const void *message, const void *rest)
{
    size_t bytes;
    uint8_t *frame = frame_make(header, message, rest, &bytes);

    (void)kvd_fake_peer_send(env->peer.far, frame, bytes);
    free(frame);
    kvt_host_settle(&env->host);
}

/* The next reply has this type, id and error. */
static void expect_answer(struct env *env, unsigned type, uint64_t id, int err)
{
    struct kvt_answer answer;

    assert_true(kvt_peer_take(&env->peer, &answer));
    assert_int_equal(answer.header.type, type);
    assert_int_equal(answer.header.request_id, id);
    assert_int_equal(answer.err, err);
    kvt_answer_fini(&answer);
}

static void expect_closed(struct env *env)
{
    kvt_host_settle(&env->host);
    assert_true(kvd_fake_peer_is_closed(env->peer.far));
    assert_int_equal(env->host.service.conn_count, 0);
}

static void expect_ping_works(struct env *env)
{
    Kvarnd__Ping ping = KVARND__PING__INIT;
    struct kvt_answer answer = kvt_peer_call(&env->peer, KVARN_FRAME_PING, &ping.base, NULL, 0);

    assert_int_equal(answer.err, 0);
    kvt_answer_fini(&answer);
}

/* Handshake. */

static void test_first_call_must_be_hello(void **state)
{
    struct env *env = *state;

    frame_send(
        env, (struct kvarn_frame_header){.type = KVARN_FRAME_PING, .request_id = 7}, NULL, NULL);
    expect_answer(env, KVARN_FRAME_TYPE_ERROR, 7, KVARN_EUNAUTHENTICATED);
    expect_closed(env);
    assert_int_equal(metric(env, KVD_METRIC_protocol_errors), 1);
}

static void test_hello_tells_limits(void **state)
{
    struct env *env = *state;
    Kvarnd__Hello hello = KVARND__HELLO__INIT;
    struct kvt_answer answer = kvt_peer_call(&env->peer, KVARN_FRAME_HELLO, &hello.base, NULL, 0);
    const Kvarnd__HelloReply *reply = answer.message;

    assert_int_equal(answer.err, 0);
    assert_int_equal(reply->payload_bytes_max, env->host.config.payload_max);
    assert_int_equal(reply->credit_requests, env->host.config.credit_requests);
    assert_int_equal(reply->credit_bytes, env->host.config.credit_bytes);
    assert_int_equal(reply->server_id, env->host.service.server_id);
    assert_string_equal(reply->tenant, "default");
    kvt_answer_fini(&answer);

    answer = kvt_peer_call(&env->peer, KVARN_FRAME_HELLO, &hello.base, NULL, 0);
    assert_int_equal(answer.err, KVARN_EINVALID); /* once is enough, and no reason to close */
    kvt_answer_fini(&answer);
    expect_ping_works(env);
}

static void test_hello_has_no_payload(void **state)
{
    struct env *env = *state;
    uint8_t payload[16] = {0};

    frame_send(env,
        (struct kvarn_frame_header){
            .type = KVARN_FRAME_HELLO, .request_id = 1, .payload_bytes = sizeof(payload)},
        NULL, payload);
    expect_answer(env, KVARN_FRAME_TYPE_ERROR, 1, KVARN_EPROTOCOL);
    expect_closed(env);
}

static void test_hello_is_small(void **state)
{
    struct env *env = *state;
    uint8_t message[KVARN_HELLO_MESSAGE_BYTES_MAX + 1] = {0};

    frame_send(env,
        (struct kvarn_frame_header){
            .type = KVARN_FRAME_HELLO, .request_id = 1, .message_bytes = sizeof(message)},
        message, NULL);
    expect_answer(env, KVARN_FRAME_TYPE_ERROR, 1, KVARN_EPROTOCOL);
    expect_closed(env);
}

static void test_s25_other_uid_is_refused(void **state)
{
    struct env *env = *state;
    struct kvd_peer who = kvd_io_fake_who();
    struct kvd_stream *stream;
    struct kvt_peer other = {.host = &env->host};
    Kvarnd__Hello hello = KVARND__HELLO__INIT;

    who.uid = 54321;
    other.far = kvd_io_fake_open(env->host.fake, &stream);
    kvd_conn_accept(&env->host.service, stream, &who);
    struct kvt_answer answer = kvt_peer_call(&other, KVARN_FRAME_HELLO, &hello.base, NULL, 0);
    assert_int_equal(answer.err, KVARN_EFORBIDDEN);
    assert_non_null(strstr(answer.status->text, "54321"));
    kvt_answer_fini(&answer);
    kvt_host_settle(&env->host);
    assert_true(kvd_fake_peer_is_closed(other.far));
    assert_int_equal(metric(env, KVD_METRIC_connections_refused), 1);
    kvd_fake_peer_free(other.far);
}

/* Frames. */

static void test_frames_come_in_any_pieces(void **state)
{
    struct env *env = *state;

    for (size_t piece = 1; piece <= 70; piece++) {
        kvd_fake_peer_set_piece(env->peer.far, piece);
        if (piece == 1) {
            kvt_peer_hello(&env->peer);
        }
        expect_ping_works(env);
    }
}

static void test_requests_are_pipelined(void **state)
{
    struct env *env = *state;
    uint8_t bytes[100 * KVARN_FRAME_HEADER_BYTES];

    kvt_peer_hello(&env->peer);
    for (unsigned i = 0; i < 100; i++) {
        struct kvarn_frame_header header = {.type = KVARN_FRAME_PING, .request_id = 1000 + i};
        kvarn_frame_encode(&header, bytes + (size_t)i * KVARN_FRAME_HEADER_BYTES);
    }
    assert_int_equal(kvd_fake_peer_send(env->peer.far, bytes, sizeof(bytes)), sizeof(bytes));
    kvt_host_settle(&env->host);
    for (unsigned i = 0; i < 100; i++) {
        expect_answer(env, KVARN_FRAME_PING, 1000 + i, 0);
    }
    assert_int_equal(metric(env, KVD_METRIC_bytes_in), sizeof(bytes) + KVARN_FRAME_HEADER_BYTES);
}

static void test_broken_header_closes(void **state)
{
    struct env *env = *state;
    uint8_t bytes[KVARN_FRAME_HEADER_BYTES];
    struct kvarn_frame_header header = {.type = KVARN_FRAME_PING, .request_id = 5};

    kvt_peer_hello(&env->peer);
    kvarn_frame_encode(&header, bytes);
    bytes[20] ^= 4;
    (void)kvd_fake_peer_send(env->peer.far, bytes, sizeof(bytes));
    kvt_host_settle(&env->host);
    expect_answer(env, KVARN_FRAME_TYPE_ERROR, 0, KVARN_EPROTOCOL);
    expect_closed(env);
}

static void test_reply_from_a_client_closes(void **state)
{
    struct env *env = *state;

    kvt_peer_hello(&env->peer);
    frame_send(env,
        (struct kvarn_frame_header){
            .type = KVARN_FRAME_PING, .request_id = 5, .flags = KVARN_FRAME_REPLY},
        NULL, NULL);
    expect_answer(env, KVARN_FRAME_TYPE_ERROR, 5, KVARN_EPROTOCOL);
    expect_closed(env);
}

static void test_unknown_call_is_skipped(void **state)
{
    struct env *env = *state;
    uint8_t message[100] = {0};
    uint8_t payload[3000] = {0};

    kvt_peer_hello(&env->peer);
    uint64_t used = env->host.service.budget.used_bytes;
    frame_send(env,
        (struct kvarn_frame_header){.type = 200,
            .request_id = 5,
            .message_bytes = sizeof(message),
            .payload_bytes = sizeof(payload)},
        message, payload);
    expect_answer(env, KVARN_FRAME_TYPE_ERROR, 5, KVARN_EUNSUPPORTED);
    assert_int_equal(env->host.service.budget.used_bytes, used);
    expect_ping_works(env);
}

static void test_payload_must_be_what_the_message_implies(void **state)
{
    struct env *env = *state;
    uint8_t payload[100] = {0};
    struct kvt_answer answer;

    kvt_peer_hello(&env->peer);
    frame_send(env,
        (struct kvarn_frame_header){
            .type = KVARN_FRAME_PING, .request_id = 5, .payload_bytes = sizeof(payload)},
        NULL, payload);
    assert_true(kvt_peer_take(&env->peer, &answer));
    assert_int_equal(answer.err, KVARN_EINVALID);
    assert_non_null(strstr(answer.status->text, "implies 0 bytes"));
    assert_non_null(strstr(answer.status->text, "got 100"));
    kvt_answer_fini(&answer);
    expect_ping_works(env);
}

static void test_payload_above_the_limit_costs_nothing(void **state)
{
    struct env *env = *state;
    uint64_t max = env->host.config.payload_max;
    uint8_t bytes[KVARN_FRAME_HEADER_BYTES];
    struct kvarn_frame_header header = {
        .type = KVARN_FRAME_APPEND, .request_id = 5, .payload_bytes = max + 1};

    kvt_peer_hello(&env->peer);
    uint64_t used = env->host.service.budget.used_bytes;
    kvarn_frame_encode(&header, bytes);
    (void)kvd_fake_peer_send(env->peer.far, bytes, sizeof(bytes));
    kvt_host_settle(&env->host);
    expect_answer(env, KVARN_FRAME_APPEND, 5, KVARN_ETOO_LARGE);
    assert_int_equal(env->host.service.budget.used_bytes, used);

    uint8_t *chunk = calloc(1, 1 << 20);
    assert_non_null(chunk);
    for (uint64_t left = max + 1; left > 0;) {
        size_t some = left < 1 << 20 ? (size_t)left : 1 << 20;
        assert_int_equal(kvd_fake_peer_send(env->peer.far, chunk, some), some);
        assert_int_equal(env->host.service.budget.used_bytes, used);
        left -= some;
    }
    free(chunk);
    expect_ping_works(env); /* what was skipped was counted to the byte */
}

static void test_message_that_is_none_is_answered(void **state)
{
    struct env *env = *state;
    uint8_t message[4] = {0xff, 0xff, 0xff, 0xff};

    kvt_peer_hello(&env->peer);
    frame_send(env,
        (struct kvarn_frame_header){
            .type = KVARN_FRAME_STATS, .request_id = 5, .message_bytes = sizeof(message)},
        message, NULL);
    expect_answer(env, KVARN_FRAME_STATS, 5, KVARN_EPROTOCOL);
    assert_int_equal(metric(env, KVD_METRIC_protocol_errors), 1);
    expect_ping_works(env);
}

/* A session of one layer, one KV head of 8, group 64; returns its handle. */
static uint64_t session_open(struct env *env, uint64_t *ret_epoch)
{
    Kvarnd__LayerGroup group = KVARND__LAYER_GROUP__INIT;
    Kvarnd__LayerGroup *groups[] = {&group};
    Kvarnd__Shape shape = KVARND__SHAPE__INIT;
    Kvarnd__RegisterShape reg = KVARND__REGISTER_SHAPE__INIT;
    Kvarnd__OpenSession open = KVARND__OPEN_SESSION__INIT;

    group.layers = group.kv_heads = 1;
    group.k_dim = 8;
    shape.model = (char *)(uintptr_t) "m";
    shape.has_group = 1;
    shape.group = 64;
    shape.n_layer_groups = 1;
    shape.layer_groups = groups;
    reg.shape = &shape;
    struct kvt_answer answer =
        kvt_peer_call(&env->peer, KVARN_FRAME_REGISTER_SHAPE, &reg.base, NULL, 0);
    assert_int_equal(answer.err, 0);
    open.has_shape_id = 1;
    open.shape_id = ((const Kvarnd__RegisterShapeReply *)answer.message)->shape_id;
    kvt_answer_fini(&answer);
    answer = kvt_peer_call(&env->peer, KVARN_FRAME_OPEN_SESSION, &open.base, NULL, 0);
    assert_int_equal(answer.err, 0);
    uint64_t handle = ((const Kvarnd__OpenSessionReply *)answer.message)->handle;
    *ret_epoch = ((const Kvarnd__OpenSessionReply *)answer.message)->epoch;
    kvt_answer_fini(&answer);
    return handle;
}

/* Append one token as a frame with a trailer; `flip` spoils it. */
static void append_with_trailer(struct env *env, uint64_t handle, uint64_t epoch, uint64_t flip)
{
    uint8_t packed[64];
    uint8_t rest[32 + KVARN_FRAME_TRAILER_BYTES] = {0};
    Kvarnd__Append append = KVARND__APPEND__INIT;

    append.handle = handle;
    append.epoch = epoch;
    append.token_count = 1;
    size_t message_bytes = kvarnd__append__pack(&append, packed);
    uint64_t hash = XXH3_64bits(rest, 32) ^ flip; /* these machines are little-endian */
    memcpy(rest + 32, &hash, sizeof(hash));
    frame_send(env,
        (struct kvarn_frame_header){.type = KVARN_FRAME_APPEND,
            .flags = KVARN_FRAME_PAYLOAD_XXH3,
            .request_id = 77,
            .message_bytes = (uint32_t)message_bytes,
            .payload_bytes = 32},
        packed, rest);
}

static void test_s24_spoilt_payload_is_refused(void **state)
{
    struct env *env = *state;
    uint64_t epoch;

    kvt_peer_hello(&env->peer);
    uint64_t handle = session_open(env, &epoch);
    append_with_trailer(env, handle, epoch, 1);
    expect_answer(env, KVARN_FRAME_APPEND, 77, KVARN_ECORRUPT);
    assert_int_equal(metric(env, KVD_METRIC_tokens_appended), 0);
    append_with_trailer(env, handle, epoch, 0);
    expect_answer(env, KVARN_FRAME_APPEND, 77, 0);
    assert_int_equal(metric(env, KVD_METRIC_tokens_appended), 1);
}

static void test_s24_replies_carry_a_trailer_when_asked(void **state)
{
    struct env *env = *state;
    uint64_t epoch;
    char *features[] = {(char *)(uintptr_t) "payload_xxh3"};
    Kvarnd__Hello hello = KVARND__HELLO__INIT;
    Kvarnd__ReadBlocks read = KVARND__READ_BLOCKS__INIT;

    hello.n_features = 1;
    hello.features = features;
    struct kvt_answer answer = kvt_peer_call(&env->peer, KVARN_FRAME_HELLO, &hello.base, NULL, 0);
    kvt_answer_fini(&answer);
    uint64_t handle = session_open(env, &epoch);
    append_with_trailer(env, handle, epoch, 0);
    expect_answer(env, KVARN_FRAME_APPEND, 77, 0);
    read.handle = handle;
    read.token_last = 1;
    /* Taking an answer apart checks its trailer. */
    answer = kvt_peer_call(&env->peer, KVARN_FRAME_READ_BLOCKS, &read.base, NULL, 0);
    assert_int_equal(answer.err, 0);
    assert_int_equal(answer.payload_bytes, 32);
    assert_true((answer.header.flags & KVARN_FRAME_PAYLOAD_XXH3) != 0);
    kvt_answer_fini(&answer);
}

/* Credit, draining, deadlines. */

static void test_credit_is_kept(void **state)
{
    struct env *env = *state;
    struct kvt_answer answer;

    kvt_peer_hello(&env->peer);
    env->host.config.credit_requests = 0;
    frame_send(
        env, (struct kvarn_frame_header){.type = KVARN_FRAME_PING, .request_id = 5}, NULL, NULL);
    assert_true(kvt_peer_take(&env->peer, &answer));
    assert_int_equal(answer.err, KVARN_ERETRY_LATER);
    assert_true(answer.status->retry_after_ms > 0);
    kvt_answer_fini(&answer);
    assert_int_equal(metric(env, KVD_METRIC_refused_credit), 1);
    assert_int_equal(metric(env, KVD_METRIC_refused_retry_later), 1);
    env->host.config.credit_requests = 1;
    expect_ping_works(env);
}

static void test_draining_takes_no_requests(void **state)
{
    struct env *env = *state;

    kvt_peer_hello(&env->peer);
    env->host.service.is_draining = true;
    frame_send(
        env, (struct kvarn_frame_header){.type = KVARN_FRAME_PING, .request_id = 5}, NULL, NULL);
    expect_answer(env, KVARN_FRAME_PING, 5, KVARN_ESHUTTING_DOWN);
    env->host.service.is_draining = false;
    expect_ping_works(env);
}

static void test_s17_late_request_is_not_executed(void **state)
{
    struct env *env = *state;
    Kvarnd__Ping ping = KVARND__PING__INIT;

    kvt_peer_hello(&env->peer);
    ping.has_deadline_ms = 1;
    ping.deadline_ms = 0;
    struct kvt_answer answer = kvt_peer_call(&env->peer, KVARN_FRAME_PING, &ping.base, NULL, 0);
    assert_int_equal(answer.err, KVARN_EDEADLINE);
    kvt_answer_fini(&answer);
    assert_int_equal(metric(env, KVD_METRIC_refused_deadline), 1);
}

static void test_silent_peer_is_closed(void **state)
{
    struct env *env = *state;

    kvd_io_fake_advance_ms(env->host.fake, env->host.config.header_timeout + 1000);
    expect_closed(env);
    assert_int_equal(metric(env, KVD_METRIC_connections_timed_out), 1);
}

static void test_half_a_header_is_closed(void **state)
{
    struct env *env = *state;
    uint8_t bytes[KVARN_FRAME_HEADER_BYTES];
    struct kvarn_frame_header header = {.type = KVARN_FRAME_PING};

    kvt_peer_hello(&env->peer);
    kvarn_frame_encode(&header, bytes);
    (void)kvd_fake_peer_send(env->peer.far, bytes, 20);
    kvd_io_fake_advance_ms(env->host.fake, env->host.config.header_timeout - 1000);
    kvt_host_settle(&env->host);
    assert_false(kvd_fake_peer_is_closed(env->peer.far));
    kvd_io_fake_advance_ms(env->host.fake, 2000);
    expect_closed(env);
}

static void test_large_payload_has_more_time(void **state)
{
    struct env *env = *state;
    uint8_t bytes[KVARN_FRAME_HEADER_BYTES];
    struct kvarn_frame_header header = {.type = 200, .payload_bytes = 64 << 20};

    kvt_peer_hello(&env->peer);
    kvarn_frame_encode(&header, bytes);
    (void)kvd_fake_peer_send(env->peer.far, bytes, sizeof(bytes));
    kvt_host_settle(&env->host); /* the refusal is sent; its payload has yet to come */
    /* 64 MiB at 1 MiB/s on top. */
    kvd_io_fake_advance_ms(env->host.fake, env->host.config.header_timeout + 60000);
    kvt_host_settle(&env->host);
    assert_false(kvd_fake_peer_is_closed(env->peer.far));
    kvd_io_fake_advance_ms(env->host.fake, 10000);
    expect_closed(env);
}

static void test_idle_peer_is_closed_when_asked(void **state)
{
    struct env *env = *state;

    kvt_peer_hello(&env->peer);
    kvd_io_fake_advance_ms(env->host.fake, 3600 * 1000);
    expect_ping_works(env); /* 0: never */
    env->host.config.idle_timeout = 5000;
    kvd_io_fake_advance_ms(env->host.fake, 6000);
    expect_closed(env);
}

/* Output. */

/* Ask for statistics until the daemon no longer reads; returns how often. */
static unsigned stats_until_full(struct env *env)
{
    struct kvarn_frame_header header = {.type = KVARN_FRAME_STATS, .request_id = 1};
    uint8_t bytes[KVARN_FRAME_HEADER_BYTES];
    unsigned count = 0;

    kvarn_frame_encode(&header, bytes);
    while (kvd_fake_peer_is_read(env->peer.far) && count < 1000) {
        size_t sent = kvd_fake_peer_send(env->peer.far, bytes, sizeof(bytes));
        assert_int_equal(sent, sizeof(bytes));
        count++;
        kvt_host_settle(&env->host);
    }
    return count;
}

static void test_slow_reader_is_not_read(void **state)
{
    struct env *env = *state;

    kvt_peer_hello(&env->peer);
    env->host.config.output_max = 100 * 1000;
    kvd_fake_peer_set_rate(env->peer.far, 0);
    unsigned count = stats_until_full(env);
    assert_in_range(count, 2, 999);
    kvd_fake_peer_set_rate(env->peer.far, SIZE_MAX);
    kvt_host_settle(&env->host);
    for (unsigned i = 0; i < count; i++) {
        expect_answer(env, KVARN_FRAME_STATS, 1, 0);
    }
    expect_ping_works(env);
}

/* What one read has brought is bounded as well: 64 KiB hold 2,000 requests. */
static void test_slow_reader_is_not_served_what_was_read(void **state)
{
    enum { COUNT = 200, OUTPUT_MAX = 20 * 1000, REPLY_MAX = 4 * 1000 };
    struct env *env = *state;
    uint8_t bytes[COUNT * KVARN_FRAME_HEADER_BYTES];

    kvt_peer_hello(&env->peer);
    env->host.config.output_max = OUTPUT_MAX;
    uint64_t before = env->host.service.budget.kind_bytes[KVD_BUDGET_CONNS];
    for (unsigned i = 0; i < COUNT; i++) {
        struct kvarn_frame_header header = {.type = KVARN_FRAME_STATS, .request_id = 1000 + i};
        kvarn_frame_encode(&header, bytes + (size_t)i * KVARN_FRAME_HEADER_BYTES);
    }
    kvd_fake_peer_set_rate(env->peer.far, 0);
    assert_int_equal(kvd_fake_peer_send(env->peer.far, bytes, sizeof(bytes)), sizeof(bytes));
    kvt_host_settle(&env->host);
    const struct kvd_op_metrics *op = &env->host.service.metrics.ops[KVARN_FRAME_STATS];
    assert_in_range(op->bytes_out, OUTPUT_MAX / 2, OUTPUT_MAX + REPLY_MAX);
    assert_false(kvd_fake_peer_is_read(env->peer.far));
    kvd_fake_peer_set_rate(env->peer.far, SIZE_MAX);
    kvt_host_settle(&env->host);
    for (unsigned i = 0; i < COUNT; i++) {
        expect_answer(env, KVARN_FRAME_STATS, 1000 + i, 0);
    }
    expect_ping_works(env);
    assert_int_equal(env->host.service.budget.kind_bytes[KVD_BUDGET_CONNS], before);
}

/* A connection that ends with requests held back lets go of them. */
static void test_held_requests_end_with_their_connection(void **state)
{
    struct env *env = *state;
    uint8_t bytes[50 * KVARN_FRAME_HEADER_BYTES];

    kvt_peer_hello(&env->peer);
    env->host.config.output_max = 1;
    for (unsigned i = 0; i < 50; i++) {
        struct kvarn_frame_header header = {.type = KVARN_FRAME_PING, .request_id = i};
        kvarn_frame_encode(&header, bytes + (size_t)i * KVARN_FRAME_HEADER_BYTES);
    }
    kvd_fake_peer_set_rate(env->peer.far, 0);
    (void)kvd_fake_peer_send(env->peer.far, bytes, sizeof(bytes));
    kvt_host_settle(&env->host);
    assert_int_equal(env->host.service.metrics.ops[KVARN_FRAME_PING].count, 1);
    kvd_fake_peer_break(env->peer.far);
    kvd_io_fake_advance_ms(env->host.fake, env->host.config.write_timeout + 1000);
    expect_closed(env);
    assert_int_equal(env->host.service.budget.kind_bytes[KVD_BUDGET_CONNS], 0);
}

static void test_stuck_reader_is_closed(void **state)
{
    struct env *env = *state;

    kvt_peer_hello(&env->peer);
    env->host.config.output_max = 100 * 1000;
    kvd_fake_peer_set_rate(env->peer.far, 0);
    (void)stats_until_full(env);
    kvd_io_fake_advance_ms(env->host.fake, env->host.config.write_timeout - 1000);
    kvt_host_settle(&env->host);
    assert_false(kvd_fake_peer_is_closed(env->peer.far));
    kvd_io_fake_advance_ms(env->host.fake, 2000);
    expect_closed(env);
    assert_int_equal(metric(env, KVD_METRIC_connections_timed_out), 1);
}

static void test_half_closed_peer_gets_its_answers(void **state)
{
    struct env *env = *state;

    kvt_peer_hello(&env->peer);
    kvd_fake_peer_set_rate(env->peer.far, 1000);
    frame_send(
        env, (struct kvarn_frame_header){.type = KVARN_FRAME_STATS, .request_id = 5}, NULL, NULL);
    assert_true(kvd_fake_peer_end(env->peer.far));
    kvt_host_settle(&env->host);
    expect_answer(env, KVARN_FRAME_STATS, 5, 0);
    expect_closed(env);
}

static void test_connections_are_limited(void **state)
{
    struct env *env = *state;
    struct kvd_stream *stream;
    struct kvd_peer who = kvd_io_fake_who();

    env->host.config.connections_max = 1;
    struct kvd_fake_peer *far = kvd_io_fake_open(env->host.fake, &stream);
    kvd_conn_accept(&env->host.service, stream, &who);
    kvt_host_settle(&env->host);
    assert_true(kvd_fake_peer_is_closed(far));
    kvd_fake_peer_free(far);
    assert_int_equal(metric(env, KVD_METRIC_connections_refused), 1);
    kvt_peer_hello(&env->peer);
}

/* Handles. */

static void test_handles_are_never_reused(void **state)
{
    struct env *env = *state;
    struct kvd_conn *conn = LIST_FIRST(&env->host.service.conns);
    uint64_t epoch;
    uint64_t handles[100];

    kvt_peer_hello(&env->peer);
    uint64_t first = session_open(env, &epoch);
    struct kvd_session *session = kvd_conn_handle_find(conn, first);
    assert_non_null(session);
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < 100; i++) {
            assert_int_equal(kvd_conn_handle_add(conn, session, &handles[i]), 0);
            assert_ptr_equal(kvd_conn_handle_find(conn, handles[i]), session);
        }
        uint64_t old = handles[round];
        for (unsigned i = 0; i < 100; i++) {
            assert_true(kvd_conn_handle_remove(conn, handles[i]));
            assert_false(kvd_conn_handle_remove(conn, handles[i]));
        }
        assert_int_equal(kvd_conn_handle_add(conn, session, &handles[0]), 0);
        assert_null(kvd_conn_handle_find(conn, old)); /* its slot serves another now */
        assert_true(kvd_conn_handle_remove(conn, handles[0]));
    }
    assert_int_equal(session->handle_count, 1);
    assert_null(kvd_conn_handle_find(conn, 0));
    assert_null(kvd_conn_handle_find(conn, UINT64_MAX));
}

static void test_handles_are_limited(void **state)
{
    struct env *env = *state;
    struct kvd_conn *conn = LIST_FIRST(&env->host.service.conns);
    uint64_t epoch;
    uint64_t handle;

    kvt_peer_hello(&env->peer);
    struct kvd_session *session = kvd_conn_handle_find(conn, session_open(env, &epoch));
    for (unsigned i = 1; i < KVD_CONN_HANDLES_MAX; i++) {
        assert_int_equal(kvd_conn_handle_add(conn, session, &handle), 0);
    }
    assert_int_equal(kvd_conn_handle_add(conn, session, &handle), KVARN_ETOO_LARGE);
}

static void test_s12_unnamed_session_ends_with_its_connection(void **state)
{
    struct env *env = *state;
    uint64_t epoch;

    kvt_peer_hello(&env->peer);
    (void)session_open(env, &epoch);
    assert_int_equal(env->host.service.sessions.count, 1);
    kvd_fake_peer_break(env->peer.far);
    expect_closed(env);
    assert_int_equal(env->host.service.sessions.count, 0);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, env_setup, env_teardown)
    const struct CMUnitTest tests[] = {
        T(test_first_call_must_be_hello),
        T(test_hello_tells_limits),
        T(test_hello_has_no_payload),
        T(test_hello_is_small),
        T(test_s25_other_uid_is_refused),
        T(test_frames_come_in_any_pieces),
        T(test_requests_are_pipelined),
        T(test_broken_header_closes),
        T(test_reply_from_a_client_closes),
        T(test_unknown_call_is_skipped),
        T(test_payload_must_be_what_the_message_implies),
        T(test_payload_above_the_limit_costs_nothing),
        T(test_message_that_is_none_is_answered),
        T(test_s24_spoilt_payload_is_refused),
        T(test_s24_replies_carry_a_trailer_when_asked),
        T(test_credit_is_kept),
        T(test_draining_takes_no_requests),
        T(test_s17_late_request_is_not_executed),
        T(test_silent_peer_is_closed),
        T(test_half_a_header_is_closed),
        T(test_large_payload_has_more_time),
        T(test_idle_peer_is_closed_when_asked),
        T(test_slow_reader_is_not_read),
        T(test_slow_reader_is_not_served_what_was_read),
        T(test_held_requests_end_with_their_connection),
        T(test_stuck_reader_is_closed),
        T(test_half_closed_peer_gets_its_answers),
        T(test_connections_are_limited),
        T(test_handles_are_never_reused),
        T(test_handles_are_limited),
        T(test_s12_unnamed_session_ends_with_its_connection),
    };
#undef T
    return cmocka_run_group_tests(tests, NULL, NULL);
}
