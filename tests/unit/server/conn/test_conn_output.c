/* Tests of server/conn*.c: what a peer may make the daemon keep and do at once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "proto/frame.h"
#include "server/conn/conn.h"
#include "server/conn/conn_impl.h"
#include "tests/unit/server/rpc/rpc_rig.h"

/* What one read takes at most, in requests without a message. */
#define READ_FRAMES (KVD_READ_BUFFER_BYTES / KVARN_FRAME_HEADER_BYTES)

struct env {
    struct rpc_rig rig;
    uint8_t *bytes; /* owned: room for one read */
};

static int env_setup(void **state)
{
    struct env *env = calloc(1, sizeof(*env));

    assert_non_null(env);
    env->bytes = calloc(1, KVD_READ_BUFFER_BYTES);
    assert_non_null(env->bytes);
    rpc_rig_init(&env->rig, &(struct kvt_host_options){.seed = 1}, NULL);
    *state = env;
    return 0;
}

static int env_teardown(void **state)
{
    struct env *env = *state;

    rpc_rig_fini(&env->rig);
    free(env->bytes);
    free(env);
    return 0;
}

static struct kvd_service *service_of(struct env *env)
{
    return &env->rig.host.service;
}

static uint64_t pings_answered(struct env *env)
{
    return service_of(env)->metrics.ops[KVARN_FRAME_PING].count;
}

/* Put pings with ids from `first_id` on at `at`; returns their bytes. */
static size_t pings_put(uint8_t *at, uint64_t first_id, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct kvarn_frame_header header = {
            .version = KVARN_FRAME_VERSION, .type = KVARN_FRAME_PING, .request_id = first_id + i};
        kvarn_frame_encode(&header, at + (size_t)i * KVARN_FRAME_HEADER_BYTES);
    }
    return (size_t)count * KVARN_FRAME_HEADER_BYTES;
}

static void pings_send(struct env *env, struct kvt_peer *peer, uint64_t first_id, unsigned count)
{
    size_t bytes = pings_put(env->bytes, first_id, count);

    assert_int_equal(kvd_fake_peer_send(peer->far, env->bytes, bytes), bytes);
}

/* `count` answers have come, in the order of their requests. */
static void expect_pings(struct kvt_peer *peer, uint64_t first_id, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct kvt_answer answer;
        assert_true(kvt_peer_take(peer, &answer));
        assert_int_equal(answer.header.request_id, first_id + i);
        assert_int_equal(answer.err, 0);
        kvt_answer_fini(&answer);
    }
}

/* An Attend without one query token: its answer has an item and no byte of payload. */
static size_t empty_attend_put(uint8_t *at, const struct rpc_session *session)
{
    Kvarnd__Attend message = KVARND__ATTEND__INIT;
    Kvarnd__AttendParams params = KVARND__ATTEND_PARAMS__INIT;
    Kvarnd__AttendItem item = KVARND__ATTEND_ITEM__INIT;
    Kvarnd__AttendItem *items[] = {&item};

    params.q_heads = 4;
    item.handle = session->handle;
    item.has_query_tokens = 1;
    item.query_tokens = 0;
    message.params = &params;
    message.items = items;
    message.n_items = 1;
    struct kvarn_frame_header header = {.version = KVARN_FRAME_VERSION,
        .type = KVARN_FRAME_ATTEND,
        .request_id = 1,
        .message_bytes = (uint32_t)kvarnd__attend__get_packed_size(&message)};
    kvarn_frame_encode(&header, at);
    (void)kvarnd__attend__pack(&message, at + KVARN_FRAME_HEADER_BYTES);
    return KVARN_FRAME_HEADER_BYTES + header.message_bytes;
}

/*
 * A write that is full just before the empty payload of its last reply: the reply is sent whole,
 * so it must not be waited for.
 */
static void test_empty_payload_behind_a_full_write_is_let_go_of(void **state)
{
    struct env *env = *state;
    struct kvt_peer peer;
    struct rpc_session session = rpc_open(&env->rig, "s", 0);
    Kvarnd__OpenSession open = KVARND__OPEN_SESSION__INIT;

    kvt_peer_open(&peer, &env->rig.host);
    kvt_peer_hello(&peer);
    open.name = (char *)(uintptr_t) "s";
    struct kvt_answer answer = kvt_peer_call(&peer, KVARN_FRAME_OPEN_SESSION, &open.base, NULL, 0);
    assert_int_equal(answer.err, 0);
    session.handle = ((const Kvarnd__OpenSessionReply *)answer.message)->handle;
    kvt_answer_fini(&answer);
    size_t bytes = pings_put(env->bytes, 100, KVD_IO_BUFS_MAX - 1);
    bytes += empty_attend_put(env->bytes + bytes, &session);
    uint64_t before = service_of(env)->budget.kind_bytes[KVD_BUDGET_REPLIES];
    assert_int_equal(kvd_fake_peer_send(peer.far, env->bytes, bytes), bytes);
    kvt_host_settle(&env->rig.host);
    expect_pings(&peer, 100, KVD_IO_BUFS_MAX - 1);
    assert_true(kvt_peer_take(&peer, &answer));
    assert_int_equal(answer.header.type, KVARN_FRAME_ATTEND);
    assert_int_equal(answer.payload_bytes, 0);
    kvt_answer_fini(&answer);
    assert_int_equal(service_of(env)->budget.kind_bytes[KVD_BUDGET_REPLIES], before);
    assert_true(kvd_fake_peer_end(peer.far));
    kvt_host_settle(&env->rig.host);
    assert_true(kvd_fake_peer_is_closed(peer.far));
    kvt_peer_close(&peer);
}

/* Answers that are not read are memory of the daemon, however small each is. */
static void test_queued_replies_are_charged(void **state)
{
    enum { COUNT = 1000 };
    struct env *env = *state;
    const struct kvd_budget *budget = &service_of(env)->budget;
    struct kvt_peer *peer = &env->rig.peer;
    uint64_t before = budget->kind_bytes[KVD_BUDGET_REPLIES];

    kvd_fake_peer_set_rate(peer->far, 0);
    pings_send(env, peer, 1000, COUNT);
    kvt_host_settle(&env->rig.host);
    assert_int_equal(pings_answered(env), COUNT);
    assert_true(budget->kind_bytes[KVD_BUDGET_REPLIES] - before >=
                COUNT * (sizeof(struct kvd_outgoing) + KVARN_FRAME_HEADER_BYTES));
    kvd_fake_peer_set_rate(peer->far, SIZE_MAX);
    kvt_host_settle(&env->rig.host);
    expect_pings(peer, 1000, COUNT);
    assert_int_equal(budget->kind_bytes[KVD_BUDGET_REPLIES], before);
}

/* A message that comes in pieces is memory of the daemon before it is whole. */
static void test_half_a_message_is_charged(void **state)
{
    enum { MESSAGE_BYTES = 60000 };
    struct env *env = *state;
    const struct kvd_budget *budget = &service_of(env)->budget;
    struct kvarn_frame_header header = {.version = KVARN_FRAME_VERSION,
        .type = KVARN_FRAME_PING,
        .request_id = 1,
        .message_bytes = MESSAGE_BYTES};
    struct kvt_peer *peer = &env->rig.peer;
    size_t piece = KVARN_FRAME_HEADER_BYTES + 10;
    struct kvt_answer answer;
    uint64_t before = budget->kind_bytes[KVD_BUDGET_CONNS];

    kvarn_frame_encode(&header, env->bytes); /* and zeros: no message */
    assert_int_equal(kvd_fake_peer_send(peer->far, env->bytes, piece), piece);
    assert_true(budget->kind_bytes[KVD_BUDGET_CONNS] >= before + MESSAGE_BYTES);
    size_t rest = KVARN_FRAME_HEADER_BYTES + MESSAGE_BYTES - piece;
    assert_int_equal(kvd_fake_peer_send(peer->far, env->bytes + piece, rest), rest);
    kvt_host_settle(&env->rig.host);
    assert_true(kvt_peer_take(peer, &answer));
    assert_int_equal(answer.err, KVARN_EPROTOCOL);
    kvt_answer_fini(&answer);
    assert_int_equal(budget->kind_bytes[KVD_BUDGET_CONNS], before);
}

/* Leave `left` bytes of the limit. */
static void memory_leave(struct env *env, uint64_t left)
{
    struct kvd_budget *budget = &service_of(env)->budget;

    budget->limit_bytes = budget->used_bytes + left;
}

/* At the limit a connection may still have some answers waiting; one that has many is closed. */
static void test_replies_beyond_the_limit_are_few(void **state)
{
    enum { ROUNDS = 20, COUNT = 100 };
    struct env *env = *state;
    struct kvt_peer peer;
    uint64_t limit = service_of(env)->budget.limit_bytes;
    unsigned rounds = 0;

    kvt_peer_open(&peer, &env->rig.host);
    kvt_peer_hello(&peer);
    memory_leave(env, 0);
    kvd_fake_peer_set_rate(peer.far, 0);
    for (; rounds < ROUNDS && !kvd_fake_peer_is_closed(peer.far); rounds++) {
        size_t bytes = pings_put(env->bytes, 1, COUNT); /* each is answered NO_SPACE */
        (void)kvd_fake_peer_send(peer.far, env->bytes, bytes);
        kvd_io_fake_turn(env->rig.host.fake);
        kvd_io_fake_turn(env->rig.host.fake);
    }
    assert_in_range(rounds, 2, 6); /* 64 KiB */
    service_of(env)->budget.limit_bytes = limit;
    kvt_peer_close(&peer);
}

/* One peer's requests, read at once, are served over many turns; others get theirs in between. */
static void test_s18_pipelined_requests_share_the_loop(void **state)
{
    struct env *env = *state;
    struct kvt_peer *greedy = &env->rig.peer;
    struct kvt_peer other;
    uint64_t before = service_of(env)->budget.kind_bytes[KVD_BUDGET_CONNS];

    kvd_io_fake_set_tick(env->rig.host.fake, 1000);
    pings_send(env, greedy, 5000, READ_FRAMES);
    assert_in_range(pings_answered(env), 1, 100);
    assert_false(kvd_fake_peer_is_read(greedy->far));
    kvt_peer_open(&other, &env->rig.host);
    kvt_peer_hello(&other);
    kvt_peer_close(&other); /* settles: all of it is answered, over turns */
    expect_pings(greedy, 5000, READ_FRAMES);
    assert_true(kvd_fake_peer_is_read(greedy->far));
    assert_int_equal(pings_answered(env), READ_FRAMES);
    assert_int_equal(service_of(env)->budget.kind_bytes[KVD_BUDGET_CONNS], before);
}

/* Each turn of it is a turn's work. */
static void test_s18_a_turn_serves_a_turns_worth(void **state)
{
    struct env *env = *state;
    struct kvt_peer *greedy = &env->rig.peer;

    kvd_io_fake_set_tick(env->rig.host.fake, 1000);
    pings_send(env, greedy, 5000, READ_FRAMES);
    for (uint64_t answered = pings_answered(env); answered < READ_FRAMES;) {
        assert_true(kvd_io_fake_turn(env->rig.host.fake));
        uint64_t now = pings_answered(env);
        assert_in_range(now - answered, 0, 100);
        answered = now;
    }
    kvt_host_settle(&env->rig.host);
    expect_pings(greedy, 5000, READ_FRAMES);
}

/* Without memory to wait in they are served all the same. */
static void test_s18_requests_are_not_lost_without_memory_to_wait(void **state)
{
    enum { LEFT = 16 * 1024 };
    struct env *env = *state;
    uint64_t limit = service_of(env)->budget.limit_bytes;

    kvd_io_fake_set_tick(env->rig.host.fake, 1000);
    memory_leave(env, LEFT);
    pings_send(env, &env->rig.peer, 5000, 256);
    kvt_host_settle(&env->rig.host);
    service_of(env)->budget.limit_bytes = limit;
    expect_pings(&env->rig.peer, 5000, 256);
}

/* A connection may end while its requests wait for their turn. */
static void test_s18_requests_that_wait_end_with_their_connection(void **state)
{
    struct env *env = *state;
    struct kvt_peer peer;
    uint64_t before = service_of(env)->budget.kind_bytes[KVD_BUDGET_CONNS];

    kvt_peer_open(&peer, &env->rig.host);
    kvt_peer_hello(&peer);
    kvd_io_fake_set_tick(env->rig.host.fake, 1000);
    pings_send(env, &peer, 1, READ_FRAMES);
    assert_false(kvd_fake_peer_is_read(peer.far));
    kvd_conn_close_all(service_of(env), false);
    kvt_host_settle(&env->rig.host);
    assert_true(kvd_fake_peer_is_closed(peer.far));
    assert_in_range(pings_answered(env), 1, 100);
    assert_true(service_of(env)->budget.kind_bytes[KVD_BUDGET_CONNS] < before);
    kvt_peer_close(&peer);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, env_setup, env_teardown)
    const struct CMUnitTest tests[] = {
        T(test_empty_payload_behind_a_full_write_is_let_go_of),
        T(test_queued_replies_are_charged),
        T(test_half_a_message_is_charged),
        T(test_replies_beyond_the_limit_are_few),
        T(test_s18_pipelined_requests_share_the_loop),
        T(test_s18_a_turn_serves_a_turns_worth),
        T(test_s18_requests_are_not_lost_without_memory_to_wait),
        T(test_s18_requests_that_wait_end_with_their_connection),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
