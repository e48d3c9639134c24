/* Reorder over the wire: items one by one, what is refused whole, and what ends early. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/limits.h"
#include "tests/unit/server/rpc/rpc_rig.h"

#define BEAMS     3
#define ITEMS_MAX 2

struct reorder_words {
    Kvarnd__Reorder message;
    Kvarnd__ReorderItem items[ITEMS_MAX];
    Kvarnd__ReorderItem *pointers[ITEMS_MAX];
    uint64_t handles[BEAMS], epochs[BEAMS];
    uint32_t sources[BEAMS];
};

/* One item of all sessions. */
static void words_init(struct reorder_words *words, const struct rpc_session *sessions)
{
    kvarnd__reorder__init(&words->message);
    words->message.n_items = 1;
    words->message.items = words->pointers;
    for (int i = 0; i < ITEMS_MAX; i++) {
        kvarnd__reorder_item__init(&words->items[i]);
        words->pointers[i] = &words->items[i];
    }
    for (uint32_t i = 0; i < BEAMS; i++) {
        words->handles[i] = sessions[i].handle;
        words->epochs[i] = sessions[i].epoch;
        words->sources[i] = i;
    }
    words->items[0].n_handles = words->items[0].n_epochs = words->items[0].n_sources = BEAMS;
    words->items[0].handles = words->handles;
    words->items[0].epochs = words->epochs;
    words->items[0].sources = words->sources;
}

static struct kvt_answer reorder_call(struct rpc_rig *rig, struct reorder_words *words)
{
    return kvt_peer_call(&rig->peer, KVARN_FRAME_REORDER, &words->message.base, NULL, 0);
}

static void beams_open(struct rpc_rig *rig, struct rpc_session *sessions)
{
    for (uint32_t i = 0; i < BEAMS; i++) {
        sessions[i] = rpc_open(rig, NULL, 0);
        rpc_append_all(rig, &sessions[i], 0, 100 + 50 * i);
    }
}

static void test_contents_change_places(void **state)
{
    struct rpc_session sessions[BEAMS];
    struct reorder_words words;
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    beams_open(&rig, sessions);
    words_init(&words, sessions);
    words.sources[1] = 2;
    words.sources[2] = 0;
    struct kvt_answer answer = reorder_call(&rig, &words);
    const Kvarnd__ReorderReply *reply = answer.message;
    assert_int_equal(answer.err, 0);
    assert_int_equal(reply->items[0]->status->code, 0);
    assert_int_equal(reply->items[0]->n_epochs, BEAMS);
    assert_int_equal(reply->items[0]->epochs[0], sessions[0].epoch);
    assert_int_equal(reply->items[0]->lengths[0], 100);
    assert_int_equal(reply->items[0]->lengths[1], 200);
    assert_int_equal(reply->items[0]->lengths[2], 100);
    for (int i = 1; i < BEAMS; i++) {
        assert_int_not_equal(reply->items[0]->epochs[i], sessions[i].epoch);
        sessions[i].epoch = reply->items[0]->epochs[i];
    }
    kvt_answer_fini(&answer);
    rpc_append_all(&rig, &sessions[0], 100, 1);
    rpc_append_all(&rig, &sessions[1], 200, 1);
    rpc_append_all(&rig, &sessions[2], 100, 2);
    answer = reorder_call(&rig, &words); /* sent again: its epochs are gone */
    reply = answer.message;
    assert_int_equal(reply->items[0]->status->code, 7);
    assert_int_equal(reply->items[0]->status->epoch, sessions[1].epoch);
    assert_int_equal(reply->items[0]->epochs[2], sessions[2].epoch);
    assert_int_equal(reply->items[0]->lengths[2], 102);
    kvt_answer_fini(&answer);
    rpc_rig_fini(&rig);
}

/* What concerns an item alone, beside an item that is done. */
static void test_items_are_done_or_refused_one_by_one(void **state)
{
    static const char *const says[] = {"handle", "must be below 2", "shape"};
    struct rpc_session sessions[BEAMS];
    struct reorder_words words;
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    beams_open(&rig, sessions);
    const struct kvd_shape *small = rig.shape;
    struct kvd_shape_desc desc = rpc_shape_small;
    char text[192];
    desc.model = "other";
    assert_int_equal(kvd_shape_register(&rig.host.service.shapes, KVD_TENANT_DEFAULT, &desc,
                         &rig.shape, text, sizeof(text)),
        0);
    struct rpc_session other = rpc_open(&rig, NULL, 0);
    rig.shape = small;
    for (int i = 0; i < 3; i++) {
        words_init(&words, sessions);
        words.message.n_items = 2;
        words.items[0].n_handles = words.items[0].n_epochs = words.items[0].n_sources = 1;
        words.items[1] = words.items[0];
        words.items[1].n_handles = words.items[1].n_epochs = words.items[1].n_sources = 2;
        words.items[1].handles++;
        words.items[1].epochs++;
        words.items[1].sources++;
        words.sources[1] = 0;
        words.sources[2] = i == 1 ? 2 : 0;
        words.handles[2] = i == 0 ? 4 << 20 : (i == 2 ? other.handle : words.handles[2]);
        struct kvt_answer answer = reorder_call(&rig, &words);
        const Kvarnd__ReorderReply *reply = answer.message;
        assert_int_equal(answer.err, 0);
        assert_int_equal(reply->items[0]->status->code, 0);
        assert_int_equal(reply->items[1]->status->code, i == 0 ? 5 : 1);
        assert_non_null(strstr(reply->items[1]->status->text, says[i]));
        assert_int_equal(reply->items[1]->n_epochs, 0);
        kvt_answer_fini(&answer);
    }
    rpc_rig_fini(&rig);
}

static void test_wrong_reorders_are_refused_whole(void **state)
{
    static const char *const says[] = {
        "items must be", "as many epochs", "as many epochs", "may occur once", "1 to 128"};
    static uint64_t many[KVARN_REORDER_SESSIONS_MAX + 1];
    static uint32_t many_sources[KVARN_REORDER_SESSIONS_MAX + 1];
    struct rpc_session sessions[BEAMS];
    struct reorder_words words;
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    beams_open(&rig, sessions);
    for (int i = 0; i < 5; i++) {
        words_init(&words, sessions);
        words.message.n_items = i == 0 ? 0 : 1;
        words.items[0].n_epochs -= i == 1;
        words.items[0].n_sources -= i == 2;
        words.handles[2] = i == 3 ? words.handles[0] : words.handles[2];
        if (i == 4) {
            words.items[0].handles = words.items[0].epochs = many;
            words.items[0].sources = many_sources;
            words.items[0].n_handles = words.items[0].n_epochs = words.items[0].n_sources =
                KVARN_REORDER_SESSIONS_MAX + 1;
        }
        struct kvt_answer answer = reorder_call(&rig, &words);
        assert_int_equal(answer.err, KVARN_EINVALID);
        assert_non_null(strstr(answer.status->text, says[i]));
        kvt_answer_fini(&answer);
    }
    rpc_rig_fini(&rig);
}

/* Waiting for one of its sessions it is cancelled, or its connection goes. */
static void test_s17_a_waiting_reorder_ends(void **state)
{
    Kvarnd__Cancel cancel = KVARND__CANCEL__INIT;
    struct rpc_session sessions[BEAMS];
    struct reorder_words words;
    struct rpc_rig rig;

    (void)state;
    for (int gone = 0; gone < 2; gone++) {
        rpc_rig_init(&rig, &(struct kvt_host_options){0}, &rpc_shape_large);
        for (int i = 0; i < BEAMS; i++) {
            sessions[i] = rpc_open(&rig, NULL, 0);
        }
        words_init(&words, sessions);
        words.sources[0] = 1;
        struct rpc_rows rows = {.layer_count = 1, .token_count = 200, .seed = 1};
        Kvarnd__Append append = rpc_append_message(&sessions[1], &rows);
        size_t bytes;
        uint8_t *payload = rpc_rows_make(&rig, &rows, &bytes);
        (void)kvt_peer_send(&rig.peer, KVARN_FRAME_APPEND, &append.base, payload, bytes);
        free(payload);
        cancel.request_id =
            kvt_peer_send(&rig.peer, KVARN_FRAME_REORDER, &words.message.base, NULL, 0);
        if (gone) {
            kvd_fake_peer_break(rig.peer.far);
        } else {
            (void)kvt_peer_send(&rig.peer, KVARN_FRAME_CANCEL, &cancel.base, NULL, 0);
        }
        kvt_host_settle(&rig.host);
        struct kvt_answer answer;
        while (!gone && kvt_peer_take(&rig.peer, &answer)) {
            if (answer.header.request_id == cancel.request_id) {
                const Kvarnd__ReorderReply *reply = answer.message;
                assert_int_equal(reply->items[0]->status->code, 11);
            }
            kvt_answer_fini(&answer);
        }
        if (!gone) {
            rpc_append_all(&rig, &sessions[0], 0, 3); /* nobody holds it */
        }
        rpc_rig_fini(&rig);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_contents_change_places),
        cmocka_unit_test(test_items_are_done_or_refused_one_by_one),
        cmocka_unit_test(test_wrong_reorders_are_refused_whole),
        cmocka_unit_test(test_s17_a_waiting_reorder_ends),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
