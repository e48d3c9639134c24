/* OpenSession, CloseSession, DropSession and Truncate over the wire. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/limits.h"
#include "tests/unit/server/rpc/rpc_rig.h"

#define TEXT(text) ((char *)(uintptr_t)(text))

/* OpenSession. */

static Kvarnd__OpenSession open_message(
    const struct rpc_rig *rig, const char *name, Kvarnd__OpenMode mode)
{
    Kvarnd__OpenSession message = KVARND__OPEN_SESSION__INIT;

    message.name = TEXT(name);
    message.has_shape_id = 1;
    message.shape_id = rig->shape->id;
    message.has_mode = 1;
    message.mode = mode;
    return message;
}

static struct kvt_answer open_call(struct rpc_rig *rig, const Kvarnd__OpenSession *message)
{
    return kvt_peer_call(&rig->peer, KVARN_FRAME_OPEN_SESSION, &message->base, NULL, 0);
}

static int open_err(struct rpc_rig *rig, const Kvarnd__OpenSession *message)
{
    return rpc_call_err(rig, KVARN_FRAME_OPEN_SESSION, &message->base, NULL, 0);
}

static void test_open_modes(void **state)
{
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    Kvarnd__OpenSession either = open_message(&rig, "s", KVARND__OPEN_MODE__EITHER);
    Kvarnd__OpenSession create = open_message(&rig, "s", KVARND__OPEN_MODE__CREATE);
    Kvarnd__OpenSession existing = open_message(&rig, "s", KVARND__OPEN_MODE__EXISTING);
    assert_int_equal(open_err(&rig, &existing), KVARN_ENOT_FOUND);
    struct kvt_answer answer = open_call(&rig, &either);
    const Kvarnd__OpenSessionReply *reply = answer.message;
    assert_int_equal(answer.err, 0);
    assert_true(reply->created);
    assert_int_equal(reply->shape_id, rig.shape->id);
    assert_int_equal(reply->n_layer_lengths, 3);
    struct rpc_session session = {.handle = reply->handle, .epoch = reply->epoch};
    kvt_answer_fini(&answer);
    rpc_append_all(&rig, &session, 0, 5);
    assert_int_equal(open_err(&rig, &create), KVARN_ECONFLICT);
    existing.has_shape_id = 0;
    answer = open_call(&rig, &existing);
    reply = answer.message;
    assert_int_equal(answer.err, 0);
    assert_false(reply->created);
    assert_int_equal(reply->epoch, session.epoch);
    assert_int_not_equal(reply->handle, session.handle);
    assert_int_equal(reply->layer_lengths[2], 5);
    assert_int_equal(reply->shape_id, rig.shape->id);
    kvt_answer_fini(&answer);
    assert_int_equal(open_err(&rig, &either), 0);
    rpc_rig_fini(&rig);
}

static void test_open_with_another_shape_names_both(void **state)
{
    struct rpc_shape_words words;
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    (void)rpc_open(&rig, "s", 0);
    rpc_shape_words_init(&words, "other");
    struct kvt_answer other = rpc_shape_call(&rig, &words);
    Kvarnd__OpenSession message = open_message(&rig, "s", KVARND__OPEN_MODE__EITHER);
    message.shape_id = ((const Kvarnd__RegisterShapeReply *)other.message)->shape_id;
    struct kvt_answer answer = open_call(&rig, &message);
    assert_int_equal(answer.err, KVARN_ECONFLICT);
    assert_non_null(strstr(answer.status->text, "shape 1"));
    assert_non_null(strstr(answer.status->text, "shape 2"));
    kvt_answer_fini(&answer);
    kvt_answer_fini(&other);
    rpc_rig_fini(&rig);
}

static void test_wrong_opens_are_refused(void **state)
{
    const int errs[] = {KVARN_EINVALID, KVARN_ENOT_FOUND, KVARN_EINVALID, KVARN_EINVALID,
        KVARN_EINVALID, KVARN_EINVALID};
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    for (int i = 0; i < 6; i++) {
        Kvarnd__OpenSession message =
            open_message(&rig, i == 5 ? NULL : "s", KVARND__OPEN_MODE__EITHER);
        message.has_shape_id = i != 0;
        message.shape_id += i == 1;
        message.has_seal_lag = i == 2;
        message.seal_lag = 65;
        message.has_encoder = i == 3;
        message.encoder = (Kvarnd__Encoder)4;
        message.mode = (Kvarnd__OpenMode)(i == 4 ? 3 : 0);
        message.mode = i == 5 ? KVARND__OPEN_MODE__EXISTING : message.mode;
        assert_int_equal(open_err(&rig, &message), errs[i]);
    }
    assert_int_equal(rig.host.service.sessions.count, 0);
    rpc_rig_fini(&rig);
}

static void test_names(void **state)
{
    char longest[KVARN_SESSION_NAME_MAX + 2];
    const struct {
        const char *name;
        int err;
    } cases[] = {{"", KVARN_EINVALID}, {"a\nb", KVARN_EINVALID}, {"\x7F", KVARN_EINVALID},
        {"\x1F", KVARN_EINVALID}, {"a b/c:d", 0},
        {"S\xC3\xA9 "
         "ance \xF0\x9F\x8E\xBB",
            0},
        {"\xE2\x82\xAC", 0}, {"cut \xC3", KVARN_EINVALID}, {"\xC0\xAF", KVARN_EINVALID},
        {"\xE0\x80\xAF", KVARN_EINVALID}, {"\xED\xA0\x80", KVARN_EINVALID},
        {"\xF4\x90\x80\x80", KVARN_EINVALID}, {"\xF0\x80\x80\x80", KVARN_EINVALID},
        {"\xFF", KVARN_EINVALID}, {"\x80", KVARN_EINVALID}, {longest, KVARN_EINVALID},
        {longest + 1, 0}};
    struct rpc_rig rig;

    (void)state;
    memset(longest, 'n', sizeof(longest));
    longest[KVARN_SESSION_NAME_MAX + 1] = '\0';
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        Kvarnd__OpenSession message = open_message(&rig, cases[i].name, KVARND__OPEN_MODE__CREATE);
        if (open_err(&rig, &message) != cases[i].err) {
            fail_msg("name %zu", i);
        }
    }
    rpc_rig_fini(&rig);
}

static void test_s13_options_count_at_creation_only(void **state)
{
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    Kvarnd__OpenSession message = open_message(&rig, "s", KVARND__OPEN_MODE__EITHER);
    message.has_encoder = message.has_seal_lag = 1;
    message.encoder = KVARND__ENCODER__REFERENCE;
    message.seal_lag = 64;
    assert_int_equal(open_err(&rig, &message), 0);
    message.encoder = KVARND__ENCODER__REFINED;
    message.seal_lag = 0;
    assert_int_equal(open_err(&rig, &message), 0);
    const struct kvd_session *session =
        kvd_session_table_find(&rig.host.service.sessions, KVD_TENANT_DEFAULT, "s");
    assert_int_equal(session->options.encoder, KVARN_ENCODER_REFERENCE);
    assert_int_equal(session->options.seal_lag, 64);
    rpc_rig_fini(&rig);
}

static void test_s12_unnamed_sessions_end_with_their_connection(void **state)
{
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session unnamed = rpc_open(&rig, NULL, 0);
    struct rpc_session named = rpc_open(&rig, "s", 0);
    rpc_append_all(&rig, &unnamed, 0, 100);
    rpc_append_all(&rig, &named, 0, 100);
    kvt_peer_close(&rig.peer);
    assert_int_equal(rig.host.service.sessions.count, 1);
    kvt_peer_open(&rig.peer, &rig.host);
    kvt_peer_hello(&rig.peer);
    struct rpc_rows rows = {.layer_count = 1, .start = 100, .token_count = 1, .seed = 1};
    struct kvt_answer answer = rpc_append(&rig, &named, &rows);
    assert_int_equal(answer.err, KVARN_ENOT_FOUND); /* handles end with it, too */
    kvt_answer_fini(&answer);
    named = rpc_open(&rig, "s", 0);
    rpc_append_ok(&rig, &named, &rows);
    rpc_rig_fini(&rig);
}

static void test_sessions_at_once_are_limited(void **state)
{
    Kvarnd__CloseSession close = KVARND__CLOSE_SESSION__INIT;
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){.sessions_max = 2}, NULL);
    (void)rpc_open(&rig, "a", 0);
    struct rpc_session unnamed = rpc_open(&rig, NULL, 0);
    Kvarnd__OpenSession message = open_message(&rig, "c", KVARND__OPEN_MODE__EITHER);
    assert_int_equal(open_err(&rig, &message), KVARN_ENOSPC);
    message.name = TEXT("a"); /* one that exists needs no room */
    assert_int_equal(open_err(&rig, &message), 0);
    close.handle = unnamed.handle;
    assert_int_equal(rpc_call_err(&rig, KVARN_FRAME_CLOSE_SESSION, &close.base, NULL, 0), 0);
    message.name = TEXT("c");
    assert_int_equal(open_err(&rig, &message), 0);
    rpc_rig_fini(&rig);
}

/* Takeover. */

static void test_s07_takeover_makes_others_stale(void **state)
{
    struct rpc_rows rows = {.layer_count = 3, .token_count = 5, .seed = 1};
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session old = rpc_open(&rig, "s", 0);
    rpc_append_ok(&rig, &old, &rows);
    Kvarnd__OpenSession message = open_message(&rig, "s", KVARND__OPEN_MODE__EXISTING);
    message.has_takeover = 1;
    message.takeover = 1;
    struct kvt_answer answer = open_call(&rig, &message);
    const Kvarnd__OpenSessionReply *reply = answer.message;
    assert_int_equal(answer.err, 0);
    assert_int_not_equal(reply->epoch, old.epoch);
    assert_int_equal(reply->layer_lengths[0], 5);
    struct rpc_session mine = {.handle = reply->handle, .epoch = reply->epoch};
    kvt_answer_fini(&answer);
    answer = rpc_append(&rig, &mine, &rows); /* of another epoch: no retry of ours */
    assert_int_equal(answer.err, KVARN_ECONFLICT);
    kvt_answer_fini(&answer);
    rows.start = 5;
    answer = rpc_append(&rig, &old, &rows);
    assert_int_equal(answer.err, KVARN_ESTALE_EPOCH);
    kvt_answer_fini(&answer);
    rpc_append_ok(&rig, &mine, &rows);
    rpc_rig_fini(&rig);
}

/* Another connection, with a session that it holds. */
struct other {
    struct kvt_peer peer;
    struct rpc_session session;
};

static void other_init(struct other *other, struct rpc_rig *rig, const char *name)
{
    Kvarnd__OpenSession message = open_message(rig, name, KVARND__OPEN_MODE__EITHER);

    kvt_peer_open(&other->peer, &rig->host);
    kvt_peer_hello(&other->peer);
    struct kvt_answer answer =
        kvt_peer_call(&other->peer, KVARN_FRAME_OPEN_SESSION, &message.base, NULL, 0);
    assert_int_equal(answer.err, 0);
    const Kvarnd__OpenSessionReply *reply = answer.message;
    other->session = (struct rpc_session){.handle = reply->handle, .epoch = reply->epoch};
    kvt_answer_fini(&answer);
}

static void other_append(
    struct other *other, const struct rpc_rig *rig, uint64_t start, uint32_t token_count)
{
    struct rpc_rows rows = {
        .layer_count = 1, .start = start, .token_count = token_count, .seed = 1};
    Kvarnd__Append message = rpc_append_message(&other->session, &rows);
    size_t bytes;
    uint8_t *payload = rpc_rows_make(rig, &rows, &bytes);

    assert_int_not_equal(
        kvt_peer_send(&other->peer, KVARN_FRAME_APPEND, &message.base, payload, bytes), 0);
    free(payload);
}

static void other_expect(struct other *other, int err)
{
    struct kvt_answer answer;

    assert_true(kvt_peer_take(&other->peer, &answer));
    assert_int_equal(answer.err, err);
    kvt_answer_fini(&answer);
}

/*
 * What another holder sent before the takeover is stored before it and seen in its lengths, though
 * it was still being rotated; what it sends later is stale.
 */
static void test_s16_takeover_takes_its_turn(void **state)
{
    struct rpc_rig rig;
    struct other other;

    (void)state;
    for (unsigned workers = 0; workers < 3; workers++) {
        rpc_rig_init(&rig, &(struct kvt_host_options){.workers = workers}, &rpc_shape_large);
        other_init(&other, &rig, "s");
        Kvarnd__OpenSession message = open_message(&rig, "s", KVARND__OPEN_MODE__EXISTING);
        message.has_takeover = message.takeover = 1;
        other_append(&other, &rig, 0, 200);
        (void)kvt_peer_send(&rig.peer, KVARN_FRAME_OPEN_SESSION, &message.base, NULL, 0);
        other_append(&other, &rig, 200, 1);
        kvt_host_settle(&rig.host);
        other_expect(&other, 0);
        other_expect(&other, KVARN_ESTALE_EPOCH);
        struct kvt_answer answer;
        assert_true(kvt_peer_take(&rig.peer, &answer));
        const Kvarnd__OpenSessionReply *reply = answer.message;
        assert_int_equal(answer.err, 0);
        assert_int_equal(reply->layer_lengths[0], 200);
        kvt_answer_fini(&answer);
        kvt_peer_close(&other.peer);
        rpc_rig_fini(&rig);
    }
}

/* While an open waits its session is dropped: then the name is free, or nothing is there. */
static void test_open_of_a_session_that_is_dropped_meanwhile(void **state)
{
    Kvarnd__DropSession drop = KVARND__DROP_SESSION__INIT;
    struct rpc_rig rig;
    struct other other;

    (void)state;
    drop.name = TEXT("s");
    for (int mode = 0; mode < 3; mode += 2) {
        rpc_rig_init(&rig, &(struct kvt_host_options){0}, &rpc_shape_large);
        other_init(&other, &rig, "s");
        Kvarnd__OpenSession message = open_message(&rig, "s", (Kvarnd__OpenMode)mode);
        other_append(&other, &rig, 0, 200);
        (void)kvt_peer_send(&rig.peer, KVARN_FRAME_OPEN_SESSION, &message.base, NULL, 0);
        (void)kvt_peer_send(&other.peer, KVARN_FRAME_DROP_SESSION, &drop.base, NULL, 0);
        kvt_host_settle(&rig.host);
        struct kvt_answer answer;
        assert_true(kvt_peer_take(&rig.peer, &answer));
        const Kvarnd__OpenSessionReply *reply = answer.message;
        assert_int_equal(answer.err, mode == 0 ? 0 : KVARN_ENOT_FOUND);
        if (mode == 0) {
            assert_true(reply->created);
            assert_int_not_equal(reply->epoch, other.session.epoch);
            assert_int_equal(reply->layer_lengths[0], 0);
        }
        kvt_answer_fini(&answer);
        kvt_peer_close(&other.peer);
        rpc_rig_fini(&rig);
    }
}

/* An open that waits is cancelled, or its connection goes: no handle is left behind. */
static void test_open_that_waits_ends(void **state)
{
    Kvarnd__Cancel cancel = KVARND__CANCEL__INIT;
    struct rpc_rig rig;
    struct other other;

    (void)state;
    for (int gone = 0; gone < 2; gone++) {
        rpc_rig_init(&rig, &(struct kvt_host_options){0}, &rpc_shape_large);
        other_init(&other, &rig, "s");
        Kvarnd__OpenSession message = open_message(&rig, "s", KVARND__OPEN_MODE__EITHER);
        other_append(&other, &rig, 0, 200);
        cancel.request_id =
            kvt_peer_send(&rig.peer, KVARN_FRAME_OPEN_SESSION, &message.base, NULL, 0);
        if (gone) {
            kvd_fake_peer_break(rig.peer.far);
        } else {
            (void)kvt_peer_send(&rig.peer, KVARN_FRAME_CANCEL, &cancel.base, NULL, 0);
            struct kvt_answer answer;
            kvt_host_settle(&rig.host);
            assert_true(kvt_peer_take(&rig.peer, &answer));
            assert_int_equal(answer.header.request_id, cancel.request_id);
            assert_int_equal(answer.err, KVARN_ECANCELLED);
            kvt_answer_fini(&answer);
        }
        kvt_host_settle(&rig.host);
        const struct kvd_session *session =
            kvd_session_table_find(&rig.host.service.sessions, KVD_TENANT_DEFAULT, "s");
        assert_int_equal(session->handle_count, 1);
        kvt_peer_close(&other.peer);
        rpc_rig_fini(&rig);
    }
}

/* CloseSession, DropSession. */

static void test_close_ends_a_handle(void **state)
{
    Kvarnd__CloseSession message = KVARND__CLOSE_SESSION__INIT;
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session first = rpc_open(&rig, "s", 0);
    struct rpc_session second = rpc_open(&rig, "s", 0);
    message.handle = first.handle;
    assert_int_equal(rpc_call_err(&rig, KVARN_FRAME_CLOSE_SESSION, &message.base, NULL, 0), 0);
    assert_int_equal(
        rpc_call_err(&rig, KVARN_FRAME_CLOSE_SESSION, &message.base, NULL, 0), KVARN_ENOT_FOUND);
    rpc_append_all(&rig, &second, 0, 1);
    rpc_rig_fini(&rig);
}

static void test_drop_by_handle_and_by_name(void **state)
{
    struct rpc_rows rows = {.layer_count = 1, .token_count = 1, .seed = 1};
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    for (int by_name = 0; by_name < 2; by_name++) {
        Kvarnd__DropSession message = KVARND__DROP_SESSION__INIT;
        struct rpc_session session = rpc_open(&rig, "s", 0);
        assert_int_equal(
            rpc_call_err(&rig, KVARN_FRAME_DROP_SESSION, &message.base, NULL, 0), KVARN_EINVALID);
        message.has_handle = 1;
        message.handle = session.handle;
        message.name = TEXT("s");
        assert_int_equal(
            rpc_call_err(&rig, KVARN_FRAME_DROP_SESSION, &message.base, NULL, 0), KVARN_EINVALID);
        message.has_handle = !by_name;
        message.name = by_name ? TEXT("s") : NULL;
        assert_int_equal(rpc_call_err(&rig, KVARN_FRAME_DROP_SESSION, &message.base, NULL, 0), 0);
        assert_int_equal(
            rpc_call_err(&rig, KVARN_FRAME_DROP_SESSION, &message.base, NULL, 0), KVARN_ENOT_FOUND);
        struct kvt_answer answer = rpc_append(&rig, &session, &rows);
        assert_int_equal(answer.err, KVARN_ENOT_FOUND);
        kvt_answer_fini(&answer);
        struct rpc_session again = rpc_open(&rig, "s", 0);
        assert_int_not_equal(again.epoch, session.epoch);
        rpc_append_ok(&rig, &again, &rows);
        message.has_handle = 0;
        message.name = TEXT("s");
        assert_int_equal(rpc_call_err(&rig, KVARN_FRAME_DROP_SESSION, &message.base, NULL, 0), 0);
    }
    rpc_rig_fini(&rig);
}

/* Truncate. */

static Kvarnd__Truncate truncate_message(const struct rpc_session *session, uint64_t length)
{
    Kvarnd__Truncate message = KVARND__TRUNCATE__INIT;

    message.handle = session->handle;
    message.epoch = session->epoch;
    message.length = length;
    return message;
}

static void test_s11_truncate_says_what_holds(void **state)
{
    const struct {
        uint64_t length;
        uint64_t lengths[2];
        bool is_lossy, is_new_epoch;
    } steps[] = {{UINT64_MAX, {190, 50}, false, false}, {185, {185, 50}, false, true},
        {100, {100, 50}, true, true}, {64, {64, 50}, false, true}, {0, {0, 0}, false, true}};
    struct rpc_rows rows = {.layer_count = 2, .token_count = 50, .seed = 1};
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){.workers = 1}, NULL);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    rpc_append_all(&rig, &session, 0, 50);
    rows.start = 50;
    rows.token_count = 140;
    rpc_append_ok(&rig, &session, &rows);
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        Kvarnd__Truncate message = truncate_message(&session, steps[i].length);
        struct kvt_answer answer =
            kvt_peer_call(&rig.peer, KVARN_FRAME_TRUNCATE, &message.base, NULL, 0);
        const Kvarnd__TruncateReply *reply = answer.message;
        assert_int_equal(answer.err, 0);
        assert_int_equal(reply->epoch != session.epoch, steps[i].is_new_epoch);
        assert_int_equal(reply->n_layer_lengths, 3);
        assert_int_equal(reply->layer_lengths[0], steps[i].lengths[0]);
        assert_int_equal(reply->layer_lengths[2], steps[i].lengths[1]);
        assert_int_equal(reply->lossy_tail, steps[i].is_lossy);
        session.epoch = reply->epoch;
        kvt_answer_fini(&answer);
    }
    rpc_rig_fini(&rig);
}

static void test_wrong_truncates_are_refused(void **state)
{
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    rpc_append_all(&rig, &session, 0, 50);
    Kvarnd__Truncate message = truncate_message(&session, 3);
    message.epoch++;
    struct kvt_answer answer =
        kvt_peer_call(&rig.peer, KVARN_FRAME_TRUNCATE, &message.base, NULL, 0);
    assert_int_equal(answer.err, KVARN_ESTALE_EPOCH);
    assert_int_equal(answer.status->epoch, session.epoch);
    assert_int_equal(answer.status->layer_lengths[1], 50);
    kvt_answer_fini(&answer);
    message.handle++;
    assert_int_equal(
        rpc_call_err(&rig, KVARN_FRAME_TRUNCATE, &message.base, NULL, 0), KVARN_ENOT_FOUND);
    rpc_rig_fini(&rig);
}

static void test_s17_waiting_truncate_is_cancelled(void **state)
{
    Kvarnd__Cancel cancel = KVARND__CANCEL__INIT;
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, &rpc_shape_large);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    struct rpc_rows rows = {.layer_count = 1, .token_count = 200, .seed = 1};
    Kvarnd__Append append = rpc_append_message(&session, &rows);
    size_t bytes;
    uint8_t *payload = rpc_rows_make(&rig, &rows, &bytes);
    (void)kvt_peer_send(&rig.peer, KVARN_FRAME_APPEND, &append.base, payload, bytes);
    free(payload);
    Kvarnd__Truncate message = truncate_message(&session, 3);
    cancel.request_id = kvt_peer_send(&rig.peer, KVARN_FRAME_TRUNCATE, &message.base, NULL, 0);
    (void)kvt_peer_send(&rig.peer, KVARN_FRAME_CANCEL, &cancel.base, NULL, 0);
    kvt_host_settle(&rig.host);
    struct kvt_answer answer;
    int err = 1;
    while (kvt_peer_take(&rig.peer, &answer)) {
        err = answer.header.request_id == cancel.request_id ? answer.err : err;
        kvt_answer_fini(&answer);
    }
    assert_int_equal(err, KVARN_ECANCELLED);
    rows.start = 200;
    rpc_append_ok(&rig, &session, &rows);
    rpc_rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open_modes),
        cmocka_unit_test(test_open_with_another_shape_names_both),
        cmocka_unit_test(test_wrong_opens_are_refused),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_s13_options_count_at_creation_only),
        cmocka_unit_test(test_s12_unnamed_sessions_end_with_their_connection),
        cmocka_unit_test(test_sessions_at_once_are_limited),
        cmocka_unit_test(test_s07_takeover_makes_others_stale),
        cmocka_unit_test(test_s16_takeover_takes_its_turn),
        cmocka_unit_test(test_open_of_a_session_that_is_dropped_meanwhile),
        cmocka_unit_test(test_open_that_waits_ends),
        cmocka_unit_test(test_close_ends_a_handle),
        cmocka_unit_test(test_drop_by_handle_and_by_name),
        cmocka_unit_test(test_s11_truncate_says_what_holds),
        cmocka_unit_test(test_wrong_truncates_are_refused),
        cmocka_unit_test(test_s17_waiting_truncate_is_cancelled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
