/* Verify over the wire: parts that go on where the last one ended, bounded replies, refusals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/limits.h"
#include "tests/unit/server/rpc/rpc_rig.h"

#define TEXT(text) ((char *)(uintptr_t)(text))

struct ask {
    const uint64_t *handle;
    const char *name, *name_first;
    uint32_t block_first, blocks;
    uint32_t deadline_ms;
};

static Kvarnd__Verify message_of(const struct ask *ask)
{
    Kvarnd__Verify message = KVARND__VERIFY__INIT;

    message.has_handle = ask->handle != NULL;
    message.handle = ask->handle == NULL ? 0 : *ask->handle;
    message.name = TEXT(ask->name);
    message.name_first = TEXT(ask->name_first);
    message.has_block_first = ask->block_first > 0;
    message.block_first = ask->block_first;
    message.has_blocks = ask->blocks > 0;
    message.blocks = ask->blocks > 0 ? ask->blocks : message.blocks;
    message.has_deadline_ms = ask->deadline_ms > 0;
    message.deadline_ms = ask->deadline_ms;
    return message;
}

static struct kvt_answer verify_call(struct rpc_rig *rig, const struct ask *ask)
{
    Kvarnd__Verify message = message_of(ask);

    return kvt_peer_call(&rig->peer, KVARN_FRAME_VERIFY, &message.base, NULL, 0);
}

static struct kvd_session *session_of(struct rpc_rig *rig, const char *name)
{
    struct kvd_session *session =
        kvd_session_table_find(&rig->host.service.sessions, KVD_TENANT_DEFAULT, name);

    assert_non_null(session);
    return session;
}

static void flip(struct rpc_rig *rig, const char *name, uint32_t block_idx)
{
    const struct kvd_block *block = kvd_session_block(session_of(rig, name), block_idx);
    uint8_t *data = kvd_page_data(kvd_block_tiles(&rig->host.service.pages, block, 0));

    data[0] ^= 1;
}

static void open_filled(struct rpc_rig *rig, const char *name, uint32_t tokens)
{
    struct rpc_session session = rpc_open(rig, name, 0);

    rpc_append_all(rig, &session, 0, tokens);
}

/* Parts of each size come to the same, one after the other. */
static void test_parts_are_the_whole(void **state)
{
    struct rpc_rig rig;
    char name[32];

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    for (unsigned i = 0; i < 5; i++) {
        (void)snprintf(name, sizeof(name), "s%u", i);
        open_filled(&rig, name, 64 * i + 1); /* i + 1 blocks */
    }
    kvt_host_settle(&rig.host);
    for (uint32_t blocks = 1; blocks <= 16; blocks++) {
        struct ask ask = {.blocks = blocks};
        uint64_t seen = 0, sessions = 0, pages = 0, parts = 0;
        bool more = true;
        while (more) {
            struct kvt_answer answer = verify_call(&rig, &ask);
            const Kvarnd__VerifyReply *reply = answer.message;
            assert_int_equal(answer.err, 0);
            assert_int_equal(reply->n_findings, 0);
            assert_true(reply->blocks >= 1 && reply->blocks <= blocks);
            seen += reply->blocks;
            sessions += reply->sessions;
            pages += reply->pages;
            parts++;
            more = reply->more;
            if (more) {
                (void)snprintf(name, sizeof(name), "%s", reply->next_name);
                ask.name_first = name;
                ask.block_first = reply->next_block;
                assert_true(reply->next_block < reply->session_blocks);
            }
            kvt_answer_fini(&answer);
        }
        assert_int_equal(seen, 1 + 2 + 3 + 4 + 5);
        assert_int_equal(parts, (seen + blocks - 1) / blocks);
        assert_int_equal(sessions, 5);
        assert_int_equal(pages, 3 * (1 + 2 + 3)); /* sink and tail are none */
    }
    rpc_rig_fini(&rig);
}

/* As many findings as a reply may have, with the longest names: it fits, and the next goes on. */
static void test_many_findings_in_parts(void **state)
{
    char name[KVARN_SESSION_NAME_MAX + 1];
    struct rpc_rig rig;
    struct ask ask = {0};
    uint64_t found = 0, lost = 0;
    unsigned parts = 0;
    bool more = true;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    memset(name, 'n', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    for (unsigned i = 0; i < 10; i++) {
        name[0] = (char)('a' + i);
        open_filled(&rig, name, 64 * 21);
        kvt_host_settle(&rig.host);
        for (uint32_t b = 1; b < 21; b++) {
            flip(&rig, name, b);
        }
    }
    char next[KVARN_SESSION_NAME_MAX + 1];
    while (more) {
        struct kvt_answer answer = verify_call(&rig, &ask);
        const Kvarnd__VerifyReply *reply = answer.message;
        assert_int_equal(answer.err, 0);
        assert_true(reply->n_findings <= KVARN_VERIFY_FINDINGS_MAX);
        assert_true(answer.header.message_bytes <= KVARN_MESSAGE_BYTES_MAX);
        for (size_t i = 0; i < reply->n_findings; i++) {
            const Kvarnd__VerifyFinding *finding = reply->findings[i];
            assert_int_equal(strlen(finding->session), KVARN_SESSION_NAME_MAX);
            assert_int_equal(finding->wrong_pages, 1);
            lost += finding->outcome == KVARND__VERIFY_OUTCOME__VERIFY_LOST ? 1 : 0;
        }
        found += reply->n_findings;
        parts++;
        more = reply->more;
        if (more) {
            (void)snprintf(next, sizeof(next), "%s", reply->next_name);
            ask = (struct ask){.name_first = next, .block_first = reply->next_block};
        }
        kvt_answer_fini(&answer);
    }
    assert_int_equal(found, 200);
    assert_int_equal(lost, 200);
    assert_true(parts >= 4 && parts <= 8);
    rpc_rig_fini(&rig);
}

static void test_what_is_refused(void **state)
{
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = rpc_open(&rig, "s", 0);
    const uint64_t nobody = session.handle + 9;
    const struct {
        struct ask ask;
        int err;
    } cases[] = {
        {{.blocks = KVARN_VERIFY_BLOCKS_MAX + 1}, KVARN_EINVALID},
        {{.block_first = 1}, KVARN_EINVALID},
        {{.name = "s", .handle = &session.handle}, KVARN_EINVALID},
        {{.name = "s", .name_first = "s"}, KVARN_EINVALID},
        {{.handle = &session.handle, .name_first = "s"}, KVARN_EINVALID},
        {{.name = "t"}, KVARN_ENOT_FOUND},
        {{.handle = &nobody}, KVARN_ENOT_FOUND},
        {{.name = "s"}, 0},
        {{.handle = &session.handle, .block_first = 7}, 0}, /* behind its end: nothing to do */
        {{.name_first = "t"}, 0},
        {{.name_first = "t", .block_first = 3}, 0},
        {{.blocks = KVARN_VERIFY_BLOCKS_MAX}, 0},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct kvt_answer answer = verify_call(&rig, &cases[i].ask);
        assert_int_equal(answer.err, cases[i].err);
        if (cases[i].err == 0) {
            assert_false(((const Kvarnd__VerifyReply *)answer.message)->more);
        }
        kvt_answer_fini(&answer);
    }
    rpc_rig_fini(&rig);
}

/* Two at work, and no more; a deadline and a Cancel end them. */
static void test_few_at_once_and_ends(void **state)
{
    Kvarnd__Cancel cancel = KVARND__CANCEL__INIT;
    struct kvt_answer answer;
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    open_filled(&rig, "s", 64 * 4 + 1);
    kvt_host_settle(&rig.host);
    flip(&rig, "s", 2);
    session_of(&rig, "s")->work->layers[1].pending++; /* a repair waits for it */
    Kvarnd__Verify message = message_of(&(struct ask){.name = "s", .deadline_ms = 1000});
    (void)kvt_peer_send(&rig.peer, KVARN_FRAME_VERIFY, &message.base, NULL, 0);
    message = message_of(&(struct ask){0});
    uint64_t second = kvt_peer_send(&rig.peer, KVARN_FRAME_VERIFY, &message.base, NULL, 0);
    answer = verify_call(&rig, &(struct ask){0});
    assert_int_equal(answer.err, KVARN_ERETRY_LATER);
    assert_true(answer.status->retry_after_ms > 0);
    kvt_answer_fini(&answer);

    cancel.request_id = second;
    (void)kvt_peer_send(&rig.peer, KVARN_FRAME_CANCEL, &cancel.base, NULL, 0);
    kvt_host_settle(&rig.host);
    for (unsigned i = 0; i < 2; i++) { /* the Cancel, and what it ended */
        assert_true(kvt_peer_take(&rig.peer, &answer));
        bool is_verify = answer.header.type == KVARN_FRAME_VERIFY;
        assert_int_equal(answer.err, is_verify ? KVARN_ECANCELLED : 0);
        kvt_answer_fini(&answer);
    }
    kvd_io_fake_advance_ms(rig.host.fake, 2000);
    kvt_host_settle(&rig.host);
    assert_true(kvt_peer_take(&rig.peer, &answer));
    assert_int_equal(answer.err, KVARN_EDEADLINE);
    kvt_answer_fini(&answer);
    assert_int_equal(rig.host.service.verify_count, 0);

    session_of(&rig, "s")->work->layers[1].pending--;
    kvd_session_kick(session_of(&rig, "s"));
    kvt_host_settle(&rig.host);
    answer = verify_call(&rig, &(struct ask){0});
    assert_int_equal(answer.err, 0);
    assert_int_equal(((const Kvarnd__VerifyReply *)answer.message)->n_findings, 1);
    kvt_answer_fini(&answer);
    rpc_rig_fini(&rig);
}

/* However little memory is left: no verdict without it, and no part without progress. */
static void test_no_memory_is_said(void **state)
{
    unsigned done = 0, refused = 0;
    struct rpc_rig rig;

    (void)state;
    rpc_rig_init(&rig, &(struct kvt_host_options){.memory_limit = 64 << 20}, NULL);
    open_filled(&rig, "s", 64 * 4 + 1);
    kvt_host_settle(&rig.host);
    struct kvd_budget *budget = &rig.host.service.budget;
    (void)kvd_page_store_reclaim(&rig.host.service.pages, UINT64_MAX);
    for (size_t room = 0; room < 8192; room += 64) {
        size_t taken = (size_t)(budget->limit_bytes - budget->used_bytes) - room;
        assert_int_equal(kvd_budget_charge(budget, KVD_BUDGET_STAGING, taken), 0);
        struct kvt_answer answer = verify_call(&rig, &(struct ask){.name = "s"});
        kvd_budget_release(budget, KVD_BUDGET_STAGING, taken);
        if (answer.err == 0) {
            const Kvarnd__VerifyReply *reply = answer.message;
            assert_true(reply->blocks > 0 && reply->n_findings == 0);
            assert_true(reply->more == (reply->blocks < 5));
            done++;
        } else {
            assert_true(answer.err == KVARN_ENOSPC || answer.err == KVARN_ERETRY_LATER);
            refused++;
        }
        kvt_answer_fini(&answer);
    }
    print_message("done = %u, refused = %u\n", done, refused);
    assert_true(done > 10 && refused > 10);
    rpc_rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parts_are_the_whole),
        cmocka_unit_test(test_many_findings_in_parts),
        cmocka_unit_test(test_what_is_refused),
        cmocka_unit_test(test_few_at_once_and_ends),
        cmocka_unit_test(test_no_memory_is_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
