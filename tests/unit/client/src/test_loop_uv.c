/* The asynchronous client against a scripted daemon: pipelining, loss, back-off, close. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <uv.h>

#include "kvarn/client_uv.h"
#include "kvarnd.pb-c.h"
#include "tests/unit/client/fake_daemon.h"

#define CALLS 6

struct script {
    struct fake_frame held[CALLS]; /* borrowed copies: answered in reverse once all are there */
    unsigned held_count;
    unsigned hold; /* how many pings to hold */
    unsigned drop_count;
};

static void ping_answer(struct fake_daemon *fake, const struct fake_frame *frame)
{
    Kvarnd__Status ok = KVARND__STATUS__INIT;
    Kvarnd__PingReply m = KVARND__PING_REPLY__INIT;

    m.status = &ok;
    m.has_uptime_ms = 1;
    m.uptime_ms = frame->header.request_id;
    fake_reply(fake, frame, &m.base, NULL, 0);
}

static bool script_run(struct fake_daemon *fake, const struct fake_frame *frame)
{
    struct script *script = fake->ctx;

    if (frame->header.type != KVARN_FRAME_PING) {
        return fake_reply_usual(fake, frame);
    }
    if (script->drop_count > 0) {
        script->drop_count--;
        return false;
    }
    script->held[script->held_count++] = *frame;
    if (script->held_count < script->hold) {
        return true;
    }
    while (script->held_count > 0) {
        ping_answer(fake, &script->held[--script->held_count]);
    }
    return true;
}

struct seen;

/* One call's own context: its reply must be its own. */
struct sent {
    struct seen *seen;
    uint64_t id;
};

/* What the callbacks saw. */
struct seen {
    unsigned replies, failures, ready, lost, closed;
    struct sent sent[CALLS];
    int errs[CALLS];
    unsigned close_after; /* replies and failures after which the client is closed */
    unsigned submit_on_ready;
};

static void closed(void *ctx)
{
    struct seen *seen = ctx;

    seen->closed++;
}

static void replied(struct kvarn_uv_client *client, int err, struct kvarn_reply *reply, void *ctx)
{
    struct sent *sent = ctx;
    struct seen *seen = sent->seen;
    struct kvarn_ping_result result;

    if (err == 0) {
        assert_int_equal(kvarn_reply_ping(reply, &result), 0);
        assert_int_equal(result.uptime_ms, sent->id); /* the script's daemon says the id */
        sent->id = 0;                                 /* and only once */
        seen->replies++;
    } else {
        assert_null(reply);
        seen->errs[seen->failures++] = err;
    }
    if (seen->replies + seen->failures == seen->close_after) {
        kvarn_uv_close(client, closed, seen);
    }
}

static void pings_submit(struct kvarn_uv_client *client, struct seen *seen, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct kvarn_call *call = NULL;

        assert_int_equal(kvarn_call_ping(5000, &call), 0);
        seen->sent[i].seen = seen;
        assert_int_equal(
            kvarn_uv_submit(client, call, replied, &seen->sent[i], &seen->sent[i].id), 0);
    }
}

static void state_changed(struct kvarn_uv_client *client, int err, void *ctx)
{
    struct seen *seen = ctx;

    if (err != 0) {
        seen->lost++;
        assert_null(kvarn_uv_server(client));
        return;
    }
    seen->ready++;
    assert_non_null(kvarn_uv_server(client));
    if (seen->submit_on_ready > 0) {
        pings_submit(client, seen, seen->submit_on_ready);
        seen->submit_on_ready = 0;
    }
}

static void loop_finish(uv_loop_t *loop)
{
    assert_int_equal(uv_run(loop, UV_RUN_DEFAULT), 0);
    assert_int_equal(uv_loop_close(loop), 0);
}

static void semantics_16_replies_come_in_any_order(void **state)
{
    struct script script = {.hold = 4}; /* the daemon's credit: two more wait in the client */
    struct seen seen = {.close_after = CALLS};
    struct kvarn_uv_client *client;
    struct fake_daemon fake;
    uv_loop_t loop;

    (void)state;
    fake_daemon_start(&fake, script_run, &script);
    assert_int_equal(uv_loop_init(&loop), 0);
    assert_int_equal(kvarn_uv_connect(&loop, fake.address, NULL, state_changed, &seen, &client), 0);
    pings_submit(client, &seen, 4);
    assert_int_equal(kvarn_uv_in_flight_count(client), 4);
    assert_int_equal(seen.ready, 0);
    seen.close_after = 4;
    loop_finish(&loop);
    fake_daemon_stop(&fake);
    assert_int_equal(seen.replies, 4);
    assert_int_equal(seen.closed, 1);
    fake_daemon_fini(&fake);
}

static void calls_beyond_credit_wait_their_turn(void **state)
{
    struct script script = {.hold = 1};
    struct seen seen = {.close_after = CALLS, .submit_on_ready = CALLS};
    struct kvarn_uv_client *client;
    struct fake_daemon fake;
    uv_loop_t loop;

    (void)state;
    fake_daemon_start(&fake, script_run, &script);
    assert_int_equal(uv_loop_init(&loop), 0);
    assert_int_equal(kvarn_uv_connect(&loop, fake.address, NULL, state_changed, &seen, &client), 0);
    loop_finish(&loop);
    fake_daemon_stop(&fake);
    assert_int_equal(seen.replies, CALLS);
    fake_daemon_fini(&fake);
}

static void lost_connection_ends_calls_and_is_restored(void **state)
{
    struct script script = {.hold = 1, .drop_count = 1};
    struct seen seen = {.close_after = 3};
    struct kvarn_uv_client *client;
    struct fake_daemon fake;
    uv_loop_t loop;

    (void)state;
    fake_daemon_start(&fake, script_run, &script);
    assert_int_equal(uv_loop_init(&loop), 0);
    assert_int_equal(kvarn_uv_connect(&loop, fake.address, NULL, state_changed, &seen, &client), 0);
    pings_submit(client, &seen, 1);
    while (seen.lost == 0) {
        uv_run(&loop, UV_RUN_ONCE);
    }
    assert_int_equal(seen.failures, 1);
    assert_int_equal(seen.errs[0], KVARN_EIO);
    pings_submit(client, &seen, 2); /* wait for the next connection */
    loop_finish(&loop);
    fake_daemon_stop(&fake);
    assert_int_equal(seen.ready, 2);
    assert_int_equal(seen.replies, 2);
    fake_daemon_fini(&fake);
}

static void close_cancels_what_waits(void **state)
{
    struct seen seen = {0};
    struct kvarn_uv_client *client;
    struct kvarn_call *call = NULL;
    uv_loop_t loop;

    (void)state;
    assert_int_equal(uv_loop_init(&loop), 0);
    assert_int_equal(
        kvarn_uv_connect(&loop, "unix:/nonexistent/s", NULL, state_changed, &seen, &client), 0);
    pings_submit(client, &seen, 2);
    while (seen.lost < 2) { /* it keeps trying */
        uv_run(&loop, UV_RUN_ONCE);
    }
    assert_int_equal(seen.failures, 0);
    kvarn_uv_close(client, closed, &seen);
    assert_int_equal(kvarn_call_ping(0, &call), 0);
    assert_int_equal(kvarn_uv_submit(client, call, replied, &seen.sent[2], NULL), KVARN_ECANCELLED);
    kvarn_call_destroy(call);
    assert_int_equal(seen.failures, 0); /* nothing is called back from within */
    loop_finish(&loop);
    assert_int_equal(seen.failures, 2);
    assert_int_equal(seen.errs[0], KVARN_ECANCELLED);
    assert_int_equal(seen.closed, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(semantics_16_replies_come_in_any_order),
        cmocka_unit_test(calls_beyond_credit_wait_their_turn),
        cmocka_unit_test(lost_connection_ends_calls_and_is_restored),
        cmocka_unit_test(close_cancels_what_waits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
