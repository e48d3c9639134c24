/* Prefixes over the wire: ids and hashes with appends, MatchPrefix, and sessions that begin so. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/limits.h"
#include "tests/unit/server/rpc/rpc_rig.h"

#define GROUP      64
#define TOKENS_MAX 512

static void ids_fill(uint32_t *ids)
{
    for (uint32_t i = 0; i < TOKENS_MAX; i++) {
        ids[i] = 1000 + i;
    }
}

static Kvarnd__OpenSession open_message(const struct rpc_rig *rig, uint64_t lease)
{
    Kvarnd__OpenSession message = KVARND__OPEN_SESSION__INIT;

    message.has_shape_id = 1;
    message.shape_id = rig->shape->id;
    message.has_share_prefix = message.share_prefix = 1;
    message.has_salt = 1;
    message.salt.data = (uint8_t *)(uintptr_t) "lora";
    message.salt.len = 4;
    message.has_lease = lease != 0;
    message.lease = lease;
    return message;
}

static struct rpc_session open_sharing(struct rpc_rig *rig, uint64_t lease, uint64_t length)
{
    Kvarnd__OpenSession message = open_message(rig, lease);
    struct kvt_answer answer =
        kvt_peer_call(&rig->peer, KVARN_FRAME_OPEN_SESSION, &message.base, NULL, 0);
    const Kvarnd__OpenSessionReply *reply = answer.message;

    assert_int_equal(answer.err, 0);
    struct rpc_session session = {reply->handle, reply->epoch};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(reply->layer_lengths[i], length);
    }
    kvt_answer_fini(&answer);
    return session;
}

/* All layers, with what is said of the tokens before K and V; bytes less by `short_by`. */
static int append_with(struct rpc_rig *rig, const struct rpc_session *session,
    const struct rpc_rows *rows, const void *note, size_t note_bytes, bool is_hashes,
    size_t short_by)
{
    Kvarnd__Append message = rpc_append_message(session, rows);
    size_t bytes;
    uint8_t *kv = rpc_rows_make(rig, rows, &bytes);
    uint8_t *payload = malloc(note_bytes + bytes);

    memcpy(payload, note, note_bytes);
    memcpy(payload + note_bytes, kv, bytes);
    message.has_token_ids = message.token_ids = !is_hashes;
    message.has_block_hashes = message.block_hashes = is_hashes;
    struct kvt_answer answer = kvt_peer_call(
        &rig->peer, KVARN_FRAME_APPEND, &message.base, payload, note_bytes + bytes - short_by);
    int err = answer.err;
    kvt_answer_fini(&answer);
    free(kv);
    free(payload);
    return err;
}

static struct kvt_answer match_call(
    struct rpc_rig *rig, const void *data, uint32_t count, bool is_hashes, uint32_t lease_ms)
{
    Kvarnd__MatchPrefix message = KVARND__MATCH_PREFIX__INIT;

    message.shape_id = rig->shape->id;
    message.has_salt = 1;
    message.salt.data = (uint8_t *)(uintptr_t) "lora";
    message.salt.len = 4;
    message.has_token_count = !is_hashes;
    message.has_hash_count = is_hashes;
    message.token_count = message.hash_count = count;
    message.has_lease_ms = 1;
    message.lease_ms = lease_ms;
    return kvt_peer_call(&rig->peer, KVARN_FRAME_MATCH_PREFIX, &message.base, data,
        (size_t)count * (is_hashes ? 32 : 4));
}

static void test_s15_a_prefix_is_found_and_begun_with(void **state)
{
    struct rpc_rows rows = {.layer_count = 3, .token_count = 200, .seed = 1};
    uint32_t ids[TOKENS_MAX];
    struct rpc_rig rig;

    (void)state;
    ids_fill(ids);
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session first = open_sharing(&rig, 0, 0);
    for (rows.start = 0; rows.start < 200; rows.start += 50) { /* the window layer keeps 164 */
        rows.token_count = 50;
        assert_int_equal(append_with(&rig, &first, &rows, ids + rows.start, 50 * 4, false, 0), 0);
    }
    struct kvt_answer answer = match_call(&rig, ids, 300, false, 10000);
    const Kvarnd__MatchPrefixReply *reply = answer.message;
    assert_int_equal(answer.err, 0);
    assert_int_equal(reply->tokens, 192);
    assert_int_equal(reply->lease_ms, 10000);
    uint64_t lease = reply->lease;
    kvt_answer_fini(&answer);
    struct rpc_session second = open_sharing(&rig, lease, 192);
    struct rpc_session third = open_sharing(&rig, lease, 192); /* a lease may be used again */
    for (uint32_t layer = 0; layer < 2; layer++) {
        struct kvt_answer mine = rpc_read_stored(&rig, &first, layer, 1, 0, 192);
        struct kvt_answer yours = rpc_read_stored(&rig, &second, layer, 1, 0, 192);
        assert_int_equal(mine.err, 0);
        assert_int_equal(yours.err, 0);
        assert_int_equal(mine.payload_bytes, yours.payload_bytes);
        assert_memory_equal(mine.payload, yours.payload, mine.payload_bytes);
        kvt_answer_fini(&mine);
        kvt_answer_fini(&yours);
    }
    rpc_append_all(&rig, &third, 192, 30);
    Kvarnd__InspectSession inspect = KVARND__INSPECT_SESSION__INIT;
    inspect.has_handle = 1;
    inspect.handle = third.handle;
    answer = kvt_peer_call(&rig.peer, KVARN_FRAME_INSPECT_SESSION, &inspect.base, NULL, 0);
    const Kvarnd__InspectSessionReply *seen = answer.message;
    assert_true(seen->share_prefix);
    assert_int_equal(seen->prefix_tokens, 192);
    assert_int_equal(seen->shared_pages, 9); /* three blocks of three layers */
    assert_true(seen->shared_bytes > 0);
    kvt_answer_fini(&answer);
    kvd_io_fake_advance_ms(rig.host.fake, 10001);
    kvt_host_settle(&rig.host);
    Kvarnd__OpenSession late = open_message(&rig, lease);
    assert_int_equal(
        rpc_call_err(&rig, KVARN_FRAME_OPEN_SESSION, &late.base, NULL, 0), KVARN_ENOT_FOUND);
    rpc_rig_fini(&rig);
}

static void test_s15_hashes_are_a_name_space_of_their_own(void **state)
{
    struct rpc_rows rows = {.layer_count = 3, .token_count = 150, .seed = 1};
    uint8_t hashes[3 * 32];
    uint32_t ids[TOKENS_MAX];
    struct rpc_rig rig;

    (void)state;
    ids_fill(ids);
    memset(hashes, 7, sizeof(hashes));
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = open_sharing(&rig, 0, 0);
    assert_int_equal(append_with(&rig, &session, &rows, hashes, 2 * 32, true, 0), 0);
    rows.start = 150;
    rows.token_count = 20; /* ends none */
    assert_int_equal(append_with(&rig, &session, &rows, hashes, 0, true, 0), 0);
    rows.start = 170;
    rows.token_count = 30;
    assert_int_equal(append_with(&rig, &session, &rows, hashes + 64, 32, true, 0), 0);
    struct kvt_answer answer = match_call(&rig, hashes, 3, true, 0);
    assert_int_equal(((const Kvarnd__MatchPrefixReply *)answer.message)->tokens, 192);
    assert_false(((const Kvarnd__MatchPrefixReply *)answer.message)->has_lease);
    kvt_answer_fini(&answer);
    hashes[40] = 8; /* of the second block */
    answer = match_call(&rig, hashes, 3, true, 5000);
    assert_int_equal(((const Kvarnd__MatchPrefixReply *)answer.message)->tokens, 64);
    kvt_answer_fini(&answer);
    answer = match_call(&rig, ids, TOKENS_MAX, false, 5000);
    assert_int_equal(((const Kvarnd__MatchPrefixReply *)answer.message)->tokens, 0);
    assert_false(((const Kvarnd__MatchPrefixReply *)answer.message)->has_lease);
    kvt_answer_fini(&answer);
    rpc_rig_fini(&rig);
}

static void test_wrong_prefix_calls_are_refused(void **state)
{
    struct rpc_rows rows = {.layer_count = 3, .token_count = 10, .seed = 1};
    Kvarnd__MatchPrefix match = KVARND__MATCH_PREFIX__INIT;
    uint8_t salt[KVARN_PREFIX_SALT_MAX + 1] = {0};
    uint32_t ids[TOKENS_MAX];
    struct rpc_rig rig;

    (void)state;
    ids_fill(ids);
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = open_sharing(&rig, 0, 0);
    assert_int_equal(append_with(&rig, &session, &rows, ids, 40, false, 4), KVARN_EINVALID);
    Kvarnd__Append both = rpc_append_message(&session, &rows);
    both.has_token_ids = both.token_ids = both.has_block_hashes = both.block_hashes = 1;
    assert_int_equal(rpc_call_err(&rig, KVARN_FRAME_APPEND, &both.base, ids, 40), KVARN_EINVALID);
    match.shape_id = rig.shape->id;
    assert_int_equal(
        rpc_call_err(&rig, KVARN_FRAME_MATCH_PREFIX, &match.base, NULL, 0), KVARN_EINVALID);
    match.has_token_count = 1;
    match.token_count = 10;
    match.has_lease_ms = 1;
    match.lease_ms = KVARN_PREFIX_LEASE_MS_MAX + 1;
    assert_int_equal(
        rpc_call_err(&rig, KVARN_FRAME_MATCH_PREFIX, &match.base, ids, 40), KVARN_EINVALID);
    match.lease_ms = 5;
    match.shape_id += 9;
    assert_int_equal(
        rpc_call_err(&rig, KVARN_FRAME_MATCH_PREFIX, &match.base, ids, 40), KVARN_ENOT_FOUND);
    match.has_salt = 1;
    match.salt.data = salt;
    match.salt.len = sizeof(salt);
    assert_int_equal(
        rpc_call_err(&rig, KVARN_FRAME_MATCH_PREFIX, &match.base, ids, 40), KVARN_ETOO_LARGE);
    Kvarnd__OpenSession open = open_message(&rig, 77); /* never given out */
    assert_int_equal(
        rpc_call_err(&rig, KVARN_FRAME_OPEN_SESSION, &open.base, NULL, 0), KVARN_ENOT_FOUND);
    rpc_rig_fini(&rig);
}

/* A lease of another salt, and one that its connection took along. */
static void test_a_lease_is_of_its_salt_and_its_connection(void **state)
{
    struct rpc_rows rows = {.layer_count = 3, .token_count = 70, .seed = 1};
    uint32_t ids[TOKENS_MAX];
    struct kvt_peer other;
    struct rpc_rig rig;

    (void)state;
    ids_fill(ids);
    rpc_rig_init(&rig, &(struct kvt_host_options){0}, NULL);
    struct rpc_session session = open_sharing(&rig, 0, 0);
    assert_int_equal(append_with(&rig, &session, &rows, ids, 70 * 4, false, 0), 0);
    struct kvt_answer answer = match_call(&rig, ids, 70, false, 10000);
    uint64_t lease = ((const Kvarnd__MatchPrefixReply *)answer.message)->lease;
    assert_int_not_equal(lease, 0);
    kvt_answer_fini(&answer);
    Kvarnd__OpenSession open = open_message(&rig, lease);
    open.salt.len = 3;
    assert_int_equal(
        rpc_call_err(&rig, KVARN_FRAME_OPEN_SESSION, &open.base, NULL, 0), KVARN_EINVALID);
    open.salt.len = 4;
    kvt_peer_open(&other, &rig.host);
    kvt_peer_hello(&other);
    answer = kvt_peer_call(&other, KVARN_FRAME_OPEN_SESSION, &open.base, NULL, 0);
    assert_int_equal(answer.err, KVARN_ENOT_FOUND);
    kvt_answer_fini(&answer);
    kvt_peer_close(&other);
    rpc_rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_s15_a_prefix_is_found_and_begun_with),
        cmocka_unit_test(test_s15_hashes_are_a_name_space_of_their_own),
        cmocka_unit_test(test_wrong_prefix_calls_are_refused),
        cmocka_unit_test(test_a_lease_is_of_its_salt_and_its_connection),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
