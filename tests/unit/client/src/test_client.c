/* The blocking client against a scripted daemon: reconnection, repetition, refusals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kvarn/client.h"
#include "kvarnd.pb-c.h"
#include "tests/unit/client/fake_daemon.h"

/* What a script does with the calls that change something. */
struct script {
    unsigned drop_type;  /* frames of this type get no answer, and the connection is dropped ... */
    unsigned drop_count; /* ... this many times */
    unsigned retry_later_count;
    uint64_t epoch_again; /* epoch of sessions opened on later connections; 0: the same */
    bool is_gone_again;   /* sessions are not there on later connections */
};

static void status_set(Kvarnd__Status *status, uint32_t code)
{
    kvarnd__status__init(status);
    status->code = code;
}

static void open_answer(struct fake_daemon *fake, const struct fake_frame *frame)
{
    const struct script *script = fake->ctx;
    uint64_t lengths[] = {0, 0};
    Kvarnd__Status status;
    Kvarnd__OpenSessionReply m = KVARND__OPEN_SESSION_REPLY__INIT;

    status_set(&status, frame->connection_idx > 0 && script->is_gone_again ? 5 : 0);
    m.status = &status;
    m.has_handle = m.has_epoch = m.has_created = 1;
    m.handle = 1000 + frame->connection_idx;
    m.epoch = frame->connection_idx > 0 && script->epoch_again != 0 ? script->epoch_again : 42;
    m.layer_lengths = lengths;
    m.n_layer_lengths = 2;
    fake_reply(fake, frame, &m.base, NULL, 0);
}

static void append_answer(struct fake_daemon *fake, const struct fake_frame *frame)
{
    struct script *script = fake->ctx;
    Kvarnd__Status status;
    Kvarnd__AppendReply m = KVARND__APPEND_REPLY__INIT;

    status_set(&status, 0);
    if (script->retry_later_count > 0) {
        script->retry_later_count--;
        status.code = 9;
        status.has_retry_after_ms = 1;
        status.retry_after_ms = 5;
    }
    m.status = &status;
    m.has_epoch = m.has_length = m.has_repeated_request = 1;
    m.epoch = 42;
    m.length = 2;
    m.repeated_request = frame->connection_idx > 0;
    fake_reply(fake, frame, &m.base, NULL, 0);
}

static bool script_run(struct fake_daemon *fake, const struct fake_frame *frame)
{
    struct script *script = fake->ctx;
    Kvarnd__Status ok;
    Kvarnd__TruncateReply truncated = KVARND__TRUNCATE_REPLY__INIT;

    if (frame->header.type == script->drop_type && script->drop_count > 0) {
        script->drop_count--;
        return false;
    }
    if (fake_reply_usual(fake, frame)) {
        return true;
    }
    if (frame->header.type == KVARN_FRAME_OPEN_SESSION) {
        open_answer(fake, frame);
    } else if (frame->header.type == KVARN_FRAME_APPEND) {
        append_answer(fake, frame);
    } else if (frame->header.type == KVARN_FRAME_TRUNCATE) {
        status_set(&ok, 0);
        truncated.status = &ok;
        truncated.has_epoch = 1;
        truncated.epoch = 43;
        fake_reply(fake, frame, &truncated.base, NULL, 0);
    }
    return true;
}

/* A client with a session open, named or not. */
static struct kvarn_session *session_make(
    struct fake_daemon *fake, const char *name, struct kvarn_client **ret_client)
{
    const struct kvarn_layer_group layers = {.layers = 2, .kv_heads = 1, .k_dim = 8};
    const struct kvarn_shape shape = {
        .model = "m",
        .layer_groups = &layers,
        .layer_group_count = 1,
        .group = 128,
        .k_bits = 2,
        .v_bits = 2,
        .sink_tokens = KVARN_SINK_DEFAULT,
    };
    struct kvarn_register_shape_result registered;
    struct kvarn_open_session_args args = {.name = name};
    struct kvarn_client_options options;
    struct kvarn_session *session = NULL;

    kvarn_client_options_init(&options);
    options.deadline_ms = 5000;
    assert_int_equal(kvarn_client_connect(fake->address, &options, ret_client, NULL), 0);
    assert_int_equal(kvarn_client_register_shape(*ret_client, &shape, &registered), 0);
    assert_int_equal(registered.shape_id, 1);
    args.shape_id = registered.shape_id;
    assert_int_equal(kvarn_client_open_session(*ret_client, &args, &session, NULL), 0);
    assert_int_equal(session->epoch, 42);
    return session;
}

static int append_two(
    struct kvarn_client *client, struct kvarn_session *session, struct kvarn_append_result *ret)
{
    static const char k[32] = "keys";
    static const char v[32] = "values";
    const struct kvarn_span payload[] = {{k, sizeof k}, {v, sizeof v}};
    const struct kvarn_append_args args = {
        .session = session,
        .layer_count = 1,
        .token_count = 2,
        .payload = payload,
        .payload_count = 2,
    };

    return kvarn_client_append(client, &args, ret);
}

static const struct fake_frame *frame_nth(
    const struct fake_daemon *fake, unsigned type, unsigned nth)
{
    for (size_t i = 0; i < fake->frame_count; i++) {
        if (fake->frames[i].header.type == type && nth-- == 0) {
            return &fake->frames[i];
        }
    }
    fail_msg("frame %u of type %u was not sent", nth, type);
    return NULL;
}

static Kvarnd__Append *append_unpack(const struct fake_frame *frame)
{
    Kvarnd__Append *m = kvarnd__append__unpack(NULL, frame->header.message_bytes, frame->message);

    assert_non_null(m);
    return m;
}

static void semantics_9_lost_reply_is_retried(void **state)
{
    struct script script = {.drop_type = KVARN_FRAME_APPEND, .drop_count = 1};
    struct fake_daemon fake;
    struct kvarn_client *client;
    struct kvarn_append_result result;
    struct kvarn_session *session;
    const struct fake_frame *first, *second;
    Kvarnd__Append *a, *b;

    (void)state;
    fake_daemon_start(&fake, script_run, &script);
    session = session_make(&fake, "s", &client);
    assert_int_equal(append_two(client, session, &result), 0);
    assert_true(result.repeated);
    assert_int_equal(session->handle, 1001);
    assert_int_equal(kvarn_client_reconnect_count(client), 1);
    assert_string_equal(kvarn_client_error(client), "");
    kvarn_client_destroy(client);
    fake_daemon_stop(&fake);
    first = frame_nth(&fake, KVARN_FRAME_APPEND, 0);
    second = frame_nth(&fake, KVARN_FRAME_APPEND, 1);
    assert_int_equal(first->header.payload_bytes, 64);
    assert_int_equal(second->header.payload_bytes, 64);
    assert_memory_equal(first->payload, second->payload, 64);
    assert_string_equal((const char *)first->payload + 32, "values");
    a = append_unpack(first);
    b = append_unpack(second);
    /* Byte-identical but for what belongs to the connection (handle) and the clock (deadline). */
    assert_int_equal(a->handle, 1000);
    assert_int_equal(b->handle, 1001);
    assert_true(b->deadline_ms <= a->deadline_ms);
    b->handle = a->handle;
    b->deadline_ms = a->deadline_ms;
    {
        uint8_t x[256], y[256];
        size_t n = kvarnd__append__pack(a, x);

        assert_int_equal(kvarnd__append__pack(b, y), n);
        assert_memory_equal(x, y, n);
    }
    kvarnd__append__free_unpacked(a, NULL);
    kvarnd__append__free_unpacked(b, NULL);
    fake_daemon_fini(&fake);
}

static void append_to_unnamed_session_is_not_retried(void **state)
{
    struct script script = {.drop_type = KVARN_FRAME_APPEND, .drop_count = 1};
    struct fake_daemon fake;
    struct kvarn_client *client;
    struct kvarn_session *session;

    (void)state;
    fake_daemon_start(&fake, script_run, &script);
    session = session_make(&fake, NULL, &client);
    assert_int_equal(append_two(client, session, NULL), KVARN_EIO);
    /* The next call finds that the session ended with its connection. */
    assert_int_equal(append_two(client, session, NULL), KVARN_ENOT_FOUND);
    assert_non_null(strstr(kvarn_client_error(client), "NOT_FOUND"));
    kvarn_client_destroy(client);
    fake_daemon_stop(&fake);
    frame_nth(&fake, KVARN_FRAME_APPEND, 0);
    fake_daemon_fini(&fake);
}

static void semantics_7_changed_epoch_is_said_after_reconnect(void **state)
{
    struct script script = {.drop_type = KVARN_FRAME_APPEND, .drop_count = 1, .epoch_again = 77};
    struct fake_daemon fake;
    struct kvarn_client *client;
    struct kvarn_session *session;
    struct kvarn_open_session_result opened;

    (void)state;
    fake_daemon_start(&fake, script_run, &script);
    session = session_make(&fake, "s", &client);
    assert_int_equal(append_two(client, session, NULL), KVARN_ESTALE_EPOCH);
    assert_true(kvarn_client_status(client)->has_epoch);
    assert_int_equal(kvarn_client_status(client)->epoch, 77);
    assert_int_equal(kvarn_client_status(client)->layer_count, 2);
    /* It stays so until the caller takes the session as it is. */
    assert_int_equal(append_two(client, session, NULL), KVARN_ESTALE_EPOCH);
    assert_int_equal(kvarn_client_refresh_session(client, session, &opened), 0);
    assert_int_equal(session->epoch, 77);
    assert_int_equal(append_two(client, session, NULL), 0);
    kvarn_client_destroy(client);
    fake_daemon_stop(&fake);
    fake_daemon_fini(&fake);
}

static void session_gone_after_reconnect_is_not_found(void **state)
{
    struct script script = {
        .drop_type = KVARN_FRAME_APPEND, .drop_count = 1, .is_gone_again = true};
    struct fake_daemon fake;
    struct kvarn_client *client;
    struct kvarn_session *session;

    (void)state;
    fake_daemon_start(&fake, script_run, &script);
    session = session_make(&fake, "s", &client);
    assert_int_equal(append_two(client, session, NULL), KVARN_ENOT_FOUND);
    kvarn_client_destroy(client);
    fake_daemon_stop(&fake);
    fake_daemon_fini(&fake);
}

static void truncate_with_lost_reply_is_not_repeated(void **state)
{
    struct script script = {.drop_type = KVARN_FRAME_TRUNCATE, .drop_count = 1};
    struct fake_daemon fake;
    struct kvarn_client *client;
    struct kvarn_session *session;

    (void)state;
    fake_daemon_start(&fake, script_run, &script);
    session = session_make(&fake, "s", &client);
    assert_int_equal(kvarn_client_truncate(client, session, 1, NULL), KVARN_EIO);
    assert_int_equal(kvarn_client_ping(client, NULL), 0);
    assert_int_equal(kvarn_client_truncate(client, session, 1, NULL), 0);
    assert_int_equal(session->epoch, 43);
    kvarn_client_destroy(client);
    fake_daemon_stop(&fake);
    fake_daemon_fini(&fake);
}

static void daemon_that_always_drops_ends_in_io(void **state)
{
    struct script script = {.drop_type = KVARN_FRAME_PING, .drop_count = 100};
    struct fake_daemon fake;
    struct kvarn_client *client;

    (void)state;
    fake_daemon_start(&fake, script_run, &script);
    assert_int_equal(kvarn_client_connect(fake.address, NULL, &client, NULL), 0);
    assert_int_equal(kvarn_client_ping(client, NULL), KVARN_EIO);
    kvarn_client_destroy(client);
    fake_daemon_stop(&fake);
    assert_int_equal(script.drop_count, 97); /* three attempts */
    fake_daemon_fini(&fake);
}

static void shapes_are_registered_again(void **state)
{
    struct script script = {.drop_type = KVARN_FRAME_PING, .drop_count = 1};
    struct fake_daemon fake;
    struct kvarn_client *client;
    struct kvarn_session *second = NULL;
    struct kvarn_open_session_args args = {.name = "t", .shape_id = 1};
    const struct fake_frame *frame;
    Kvarnd__OpenSession *m;

    (void)state;
    fake_daemon_start(&fake, script_run, &script);
    session_make(&fake, "s", &client);
    assert_int_equal(kvarn_client_ping(client, NULL), 0); /* over a second connection */
    assert_int_equal(kvarn_client_open_session(client, &args, &second, NULL), 0);
    kvarn_client_destroy(client);
    fake_daemon_stop(&fake);
    frame_nth(&fake, KVARN_FRAME_REGISTER_SHAPE, 1);
    frame = frame_nth(&fake, KVARN_FRAME_OPEN_SESSION, 1);
    m = kvarnd__open_session__unpack(NULL, frame->header.message_bytes, frame->message);
    assert_non_null(m);
    assert_int_equal(m->shape_id, 101); /* the id of the second registration */
    kvarnd__open_session__free_unpacked(m, NULL);
    fake_daemon_fini(&fake);
}

static void semantics_5_retry_later_is_retried_within_the_deadline(void **state)
{
    struct script script = {.retry_later_count = 3};
    struct fake_daemon fake;
    struct kvarn_client *client;
    struct kvarn_session *session;

    (void)state;
    fake_daemon_start(&fake, script_run, &script);
    session = session_make(&fake, "s", &client);
    assert_int_equal(append_two(client, session, NULL), 0);
    script.retry_later_count = 1000000;
    kvarn_client_set_deadline(client, 50);
    assert_int_equal(append_two(client, session, NULL), KVARN_ERETRY_LATER);
    assert_int_equal(kvarn_client_status(client)->retry_after_ms, 5);
    kvarn_client_destroy(client);
    fake_daemon_stop(&fake);
    fake_daemon_fini(&fake);
}

static void payload_above_the_servers_limit_is_not_sent(void **state)
{
    static char big[(1 << 20) + 8];
    const struct kvarn_span payload = {big, sizeof big};
    struct script script = {0};
    struct fake_daemon fake;
    struct kvarn_client *client;
    struct kvarn_append_args args = {
        .layer_count = 1, .token_count = 1, .payload = &payload, .payload_count = 1};

    (void)state;
    fake_daemon_start(&fake, script_run, &script);
    args.session = session_make(&fake, "s", &client);
    assert_int_equal(kvarn_client_append(client, &args, NULL), KVARN_ETOO_LARGE);
    assert_non_null(strstr(kvarn_client_error(client), "1048576"));
    assert_int_equal(kvarn_client_ping(client, NULL), 0);
    kvarn_client_destroy(client);
    fake_daemon_stop(&fake);
    for (size_t i = 0; i < fake.frame_count; i++) {
        assert_int_not_equal(fake.frames[i].header.type, KVARN_FRAME_APPEND);
    }
    fake_daemon_fini(&fake);
}

static void nobody_there_is_io(void **state)
{
    char error[KVARN_CLIENT_ERROR_MAX];
    struct kvarn_client *client = NULL;

    (void)state;
    assert_int_equal(
        kvarn_client_connect("unix:/nonexistent/socket", NULL, &client, error), KVARN_EIO);
    assert_non_null(strstr(error, "IO"));
    assert_int_equal(kvarn_client_connect("unix:", NULL, &client, error), KVARN_EINVALID);
    assert_int_equal(kvarn_client_connect("tcp:host", NULL, &client, error), KVARN_EINVALID);
    assert_int_equal(kvarn_client_connect("tcp:h:70000", NULL, &client, error), KVARN_EINVALID);
    assert_int_equal(kvarn_client_connect("tcp:::1:80", NULL, &client, error), KVARN_EINVALID);
    assert_null(client);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(semantics_9_lost_reply_is_retried),
        cmocka_unit_test(append_to_unnamed_session_is_not_retried),
        cmocka_unit_test(semantics_7_changed_epoch_is_said_after_reconnect),
        cmocka_unit_test(session_gone_after_reconnect_is_not_found),
        cmocka_unit_test(truncate_with_lost_reply_is_not_repeated),
        cmocka_unit_test(daemon_that_always_drops_ends_in_io),
        cmocka_unit_test(shapes_are_registered_again),
        cmocka_unit_test(semantics_5_retry_later_is_retried_within_the_deadline),
        cmocka_unit_test(payload_above_the_servers_limit_is_not_sent),
        cmocka_unit_test(nobody_there_is_io),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
