/* Fork over the wire: items one by one, names, modes, and what ends early. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/limits.h"
#include "tests/unit/server/rpc/rpc_rig.h"

#define TEXT(text) ((char *)(uintptr_t)(text))
#define ITEMS_MAX  8

struct fork_words {
    Kvarnd__Fork message;
    Kvarnd__ForkItem items[ITEMS_MAX];
    Kvarnd__ForkItem *pointers[ITEMS_MAX];
};

/* Unnamed copies of one session. */
static void words_init(struct fork_words *words, const struct rpc_session *parent, size_t count)
{
    kvarnd__fork__init(&words->message);
    words->message.n_items = count;
    words->message.items = words->pointers;
    for (size_t i = 0; i < count; i++) {
        kvarnd__fork_item__init(&words->items[i]);
        words->items[i].handle = parent->handle;
        words->pointers[i] = &words->items[i];
    }
}

static struct kvt_answer fork_call(struct rpc_rig *rig, struct fork_words *words)
{
    return kvt_peer_call(&rig->peer, KVARN_FRAME_FORK, &words->message.base, NULL, 0);
}

/* Read all of a session as stored; bytes to be freed. */
static uint8_t *stored(struct rpc_rig *rig, uint64_t handle, uint64_t length, size_t *ret_bytes)
{
    struct rpc_session session = {.handle = handle};
    struct kvt_answer answer = rpc_read_stored(rig, &session, 0, 2, 0, length);
    uint8_t *bytes = malloc(answer.payload_bytes);

    assert_int_equal(answer.err, 0);
    memcpy(bytes, answer.payload, answer.payload_bytes);
    *ret_bytes = answer.payload_bytes;
    kvt_answer_fini(&answer);
    return bytes;
}

static void test_s11_a_copy_reads_as_its_parent_and_goes_its_own_way(void **state)
{
    struct fork_words words;
    struct rpc_rig rig;
    size_t mine_bytes, yours_bytes;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session parent = rpc_open(&rig, "p", 0);
    rpc_append_all(&rig, &parent, 0, 300);
    words_init(&words, &parent, 1);
    words.items[0].has_epoch = 1;
    words.items[0].epoch = parent.epoch;
    struct kvt_answer answer = fork_call(&rig, &words);
    const Kvarnd__ForkReply *reply = answer.message;
    assert_int_equal(answer.err, 0);
    assert_int_equal(reply->n_items, 1);
    assert_int_equal(reply->items[0]->status->code, 0);
    assert_true(reply->items[0]->created && !reply->items[0]->lossy_tail);
    assert_int_equal(reply->items[0]->length, 300);
    struct rpc_session child = {reply->items[0]->handle, reply->items[0]->epoch};
    assert_int_not_equal(child.epoch, parent.epoch);
    kvt_answer_fini(&answer);
    uint8_t *mine = stored(&rig, parent.handle, 300, &mine_bytes);
    uint8_t *yours = stored(&rig, child.handle, 300, &yours_bytes);
    assert_int_equal(mine_bytes, yours_bytes);
    assert_memory_equal(mine, yours, mine_bytes);
    rpc_append_all(&rig, &child, 300, 100);
    rpc_append_all(&rig, &parent, 300, 5);
    free(yours);
    yours = stored(&rig, parent.handle, 300, &yours_bytes); /* the copy's seals are not ours */
    assert_int_equal(mine_bytes, yours_bytes);
    assert_memory_equal(mine, yours, mine_bytes);
    free(mine);
    free(yours);
    rpc_rig_fini(&rig);
}

static void test_items_are_done_or_refused_one_by_one(void **state)
{
    static const struct {
        uint32_t code;
        bool is_lossy;
    } expected[ITEMS_MAX] = {{0, false}, {5, false}, {8, false}, {7, false}, {1, false}, {0, true},
        {1, false}, {0, false}};
    struct fork_words words;
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session parent = rpc_open(&rig, "p", 0);
    rpc_append_all(&rig, &parent, 0, 300);
    words_init(&words, &parent, ITEMS_MAX);
    words.items[1].handle += 99;
    words.items[2].has_length = words.items[5].has_length = 1;
    words.items[2].length = 301;
    words.items[3].has_epoch = 1;
    words.items[3].epoch = parent.epoch + 1;
    words.items[4].name = TEXT("a\tb");
    words.items[5].length = 250;
    words.items[6].has_mode = 1;
    words.items[6].mode = KVARND__OPEN_MODE__EXISTING;
    words.items[7].name = TEXT("copy");
    struct kvt_answer answer = fork_call(&rig, &words);
    const Kvarnd__ForkReply *reply = answer.message;
    assert_int_equal(answer.err, 0);
    assert_int_equal(reply->n_items, ITEMS_MAX);
    for (int i = 0; i < ITEMS_MAX; i++) {
        assert_int_equal(reply->items[i]->status->code, expected[i].code);
        assert_int_equal(reply->items[i]->has_handle, expected[i].code == 0);
        assert_int_equal(reply->items[i]->lossy_tail, expected[i].is_lossy);
        assert_int_equal(reply->items[i]->status->text != NULL, expected[i].code != 0);
    }
    assert_int_equal(reply->items[3]->status->epoch, parent.epoch);
    assert_int_equal(reply->items[5]->length, 250);
    kvt_answer_fini(&answer);
    assert_int_equal(rig.host.service.sessions.count, 4);
    rpc_rig_fini(&rig);
}

static void test_names_and_modes(void **state)
{
    struct fork_words words;
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session parent = rpc_open(&rig, "p", 0);
    rpc_append_all(&rig, &parent, 0, 10);
    words_init(&words, &parent, 4);
    for (int i = 0; i < 4; i++) {
        words.items[i].name = TEXT(i == 3 ? "p" : "copy"); /* the parent has its name itself */
        words.items[i].has_mode = 1;
        words.items[i].mode = i == 1 ? KVARND__OPEN_MODE__CREATE : KVARND__OPEN_MODE__EITHER;
    }
    struct kvt_answer answer = fork_call(&rig, &words);
    const Kvarnd__ForkReply *reply = answer.message;
    assert_true(reply->items[0]->status->code == 0 && reply->items[0]->created);
    assert_int_equal(reply->items[1]->status->code, 6);
    assert_true(reply->items[2]->status->code == 0 && !reply->items[2]->created);
    assert_int_equal(reply->items[2]->epoch, reply->items[0]->epoch);
    assert_int_equal(reply->items[2]->length, 10);
    assert_true(reply->items[3]->status->code == 0 && !reply->items[3]->created);
    assert_int_equal(reply->items[3]->epoch, parent.epoch);
    kvt_answer_fini(&answer);
    assert_int_equal(rig.host.service.sessions.count, 2);
    rpc_rig_fini(&rig);
}

static void test_wrong_forks_are_refused(void **state)
{
    struct fork_words words;
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){.sessions_max = 2}, NULL);
    struct rpc_session parent = rpc_open(&rig, "p", 0);
    words_init(&words, &parent, 0);
    struct kvt_answer answer = fork_call(&rig, &words);
    assert_int_equal(answer.err, KVARN_EINVALID);
    kvt_answer_fini(&answer);
    words_init(&words, &parent, 3); /* of an empty session, as far as there is room for sessions */
    answer = fork_call(&rig, &words);
    const Kvarnd__ForkReply *reply = answer.message;
    assert_int_equal(reply->items[0]->status->code, 0);
    assert_int_equal(reply->items[1]->status->code, 12);
    assert_int_equal(reply->items[2]->status->code, 12);
    kvt_answer_fini(&answer);
    rpc_rig_fini(&rig);
}

/* An append that a worker has to do, so that what follows waits. */
static void append_begin(struct rpc_rig *rig, const struct rpc_session *session)
{
    struct rpc_rows rows = {.layer_count = 1, .token_count = 200, .seed = 1};
    Kvarnd__Append append = rpc_append_message(session, &rows);
    size_t bytes;
    uint8_t *payload = rpc_rows_make(rig, &rows, &bytes);

    (void)kvt_peer_send(&rig->peer, KVARN_FRAME_APPEND, &append.base, payload, bytes);
    free(payload);
}

/* A fork that waits is cancelled, or its connection goes: there is no copy. */
static void test_s17_a_waiting_fork_ends(void **state)
{
    Kvarnd__Cancel cancel = KVARND__CANCEL__INIT;
    struct fork_words words;
    struct rpc_rig rig;

    (void)state;
    for (int gone = 0; gone < 2; gone++) {
        rpc_rig_init(&rig, &(struct kvt_host_options){0}, &rpc_shape_large);
        struct rpc_session parent = rpc_open(&rig, "p", 0);
        words_init(&words, &parent, 2);
        words.items[0].name = TEXT("copy");
        append_begin(&rig, &parent);
        cancel.request_id =
            kvt_peer_send(&rig.peer, KVARN_FRAME_FORK, &words.message.base, NULL, 0);
        if (gone) {
            kvd_fake_peer_break(rig.peer.far);
        } else {
            (void)kvt_peer_send(&rig.peer, KVARN_FRAME_CANCEL, &cancel.base, NULL, 0);
        }
        kvt_host_settle(&rig.host);
        struct kvt_answer answer;
        while (!gone && kvt_peer_take(&rig.peer, &answer)) {
            if (answer.header.request_id == cancel.request_id) {
                const Kvarnd__ForkReply *reply = answer.message;
                assert_int_equal(answer.err, 0); /* each item says it */
                assert_int_equal(reply->items[0]->status->code, 11);
                assert_int_equal(reply->items[1]->status->code, 11);
            }
            kvt_answer_fini(&answer);
        }
        assert_int_equal(rig.host.service.sessions.count, 1);
        rpc_rig_fini(&rig);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_s11_a_copy_reads_as_its_parent_and_goes_its_own_way),
        cmocka_unit_test(test_items_are_done_or_refused_one_by_one),
        cmocka_unit_test(test_names_and_modes),
        cmocka_unit_test(test_wrong_forks_are_refused),
        cmocka_unit_test(test_s17_a_waiting_fork_ends),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
