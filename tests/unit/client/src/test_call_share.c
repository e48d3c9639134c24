/*
 * Builders of Fork, Reorder and MatchPrefix, read back with protobuf-c; their replies, from the
 * golden frames.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client/src/call.h"
#include "client/src/reply.h"
#include "kvarnd.pb-c.h"

static const struct kvarn_session sessions[] = {
    {.handle = 11, .epoch = 1}, {.handle = 22, .epoch = 2}, {.handle = 33, .epoch = 3}};

static void *unpacked(struct kvarn_call *call, const ProtobufCMessageDescriptor *descriptor)
{
    void *message = protobuf_c_message_unpack(descriptor, NULL,
        call->head_bytes - KVARN_FRAME_HEADER_BYTES, call->head + KVARN_FRAME_HEADER_BYTES);

    assert_non_null(message);
    return message;
}

static void fork_says_what_its_arguments_say(void **state)
{
    const struct kvarn_fork_item items[] = {
        {&sessions[0], NULL, KVARN_TOKEN_DEFAULT, KVARN_OPEN_CREATE},
        {&sessions[1], "copy", 200, KVARN_OPEN_EITHER}};
    struct kvarn_fork_args args = {items, 2};
    struct kvarn_call *call = NULL;

    (void)state;
    assert_int_equal(kvarn_call_fork(&args, 250, &call), 0);
    Kvarnd__Fork *m = unpacked(call, &kvarnd__fork__descriptor);
    assert_int_equal(m->n_items, 2);
    assert_int_equal(m->deadline_ms, 250);
    assert_int_equal(m->items[0]->handle, 11);
    assert_int_equal(m->items[0]->epoch, 1);
    assert_null(m->items[0]->name);
    assert_false(m->items[0]->has_length);
    assert_int_equal(m->items[0]->mode, KVARND__OPEN_MODE__CREATE);
    assert_string_equal(m->items[1]->name, "copy");
    assert_int_equal(m->items[1]->length, 200);
    assert_int_equal(m->items[1]->mode, KVARND__OPEN_MODE__EITHER);
    protobuf_c_message_free_unpacked(&m->base, NULL);
    kvarn_call_destroy(call);
    args.item_count = 0;
    assert_int_equal(kvarn_call_fork(&args, 0, &call), KVARN_EINVALID);
}

static void reorder_lists_its_items_one_after_the_other(void **state)
{
    const struct kvarn_reorder_member members[] = {
        {&sessions[0], 1}, {&sessions[1], 0}, {&sessions[2], 0}};
    uint32_t counts[] = {2, 1};
    struct kvarn_reorder_args args = {members, 3, counts, 2};
    struct kvarn_call *call = NULL;

    (void)state;
    assert_int_equal(kvarn_call_reorder(&args, 0, &call), 0);
    Kvarnd__Reorder *m = unpacked(call, &kvarnd__reorder__descriptor);
    assert_int_equal(m->n_items, 2);
    assert_int_equal(m->items[0]->n_handles, 2);
    assert_int_equal(m->items[0]->handles[1], 22);
    assert_int_equal(m->items[0]->epochs[1], 2);
    assert_int_equal(m->items[0]->sources[0], 1);
    assert_int_equal(m->items[1]->n_sources, 1);
    assert_int_equal(m->items[1]->handles[0], 33);
    protobuf_c_message_free_unpacked(&m->base, NULL);
    kvarn_call_destroy(call);
    args.item_members = NULL; /* all are of one */
    assert_int_equal(kvarn_call_reorder(&args, 0, &call), 0);
    m = unpacked(call, &kvarnd__reorder__descriptor);
    assert_int_equal(m->n_items, 1);
    assert_int_equal(m->items[0]->n_epochs, 3);
    protobuf_c_message_free_unpacked(&m->base, NULL);
    kvarn_call_destroy(call);
    args.item_members = counts;
    counts[1] = 2; /* more than there are */
    assert_int_equal(kvarn_call_reorder(&args, 0, &call), KVARN_EINVALID);
    counts[1] = 0; /* one is left over */
    assert_int_equal(kvarn_call_reorder(&args, 0, &call), KVARN_EINVALID);
}

static void match_prefix_carries_ids_or_hashes(void **state)
{
    const uint32_t ids[] = {1, 2, 3};
    struct kvarn_match_prefix_args args = {.shape_id = 7,
        .salt = "lora",
        .salt_bytes = 4,
        .token_ids = ids,
        .token_count = 3,
        .lease_ms = 5};
    struct kvarn_call *call = NULL;

    (void)state;
    assert_int_equal(kvarn_call_match_prefix(&args, 0, &call), 0);
    assert_int_equal(call->payload_bytes, sizeof ids);
    Kvarnd__MatchPrefix *m = unpacked(call, &kvarnd__match_prefix__descriptor);
    assert_int_equal(m->shape_id, 7);
    assert_int_equal(m->salt.len, 4);
    assert_memory_equal(m->salt.data, "lora", 4);
    assert_int_equal(m->token_count, 3);
    assert_false(m->has_hash_count);
    assert_int_equal(m->lease_ms, 5);
    protobuf_c_message_free_unpacked(&m->base, NULL);
    kvarn_call_destroy(call);
    args.hash_count = 1; /* both */
    assert_int_equal(kvarn_call_match_prefix(&args, 0, &call), KVARN_EINVALID);
    args.token_count = 0;
    args.hashes = "0123456789abcdef0123456789abcdef";
    assert_int_equal(kvarn_call_match_prefix(&args, 0, &call), 0);
    assert_int_equal(call->payload_bytes, 32);
    kvarn_call_destroy(call);
}

/* A golden reply, taken in. */
static void reply_read(struct kvarn_reply *reply, const char *name)
{
    char path[512];
    uint8_t *at;
    size_t room;

    (void)snprintf(path, sizeof path, "%s/%s.bin", KVT_FRAMES, name);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    kvarn__reply_init(reply);
    while (reply->stage != KVARN__REPLY_COMPLETE) {
        kvarn__reply_want(reply, &at, &room);
        size_t got = fread(at, 1, room, file);
        assert_true(got > 0);
        assert_int_equal(kvarn__reply_advance(reply, got), 0);
    }
    (void)fclose(file);
}

static void golden_replies_are_read(void **state)
{
    struct kvarn_fork_result fork;
    struct kvarn_reorder_result reorder;
    struct kvarn_match_prefix_result match;
    struct kvarn_reply reply;

    (void)state;
    reply_read(&reply, "fork_reply");
    assert_int_equal(kvarn_reply_fork(&reply, &fork), 0);
    assert_int_equal(fork.item_count, 2);
    assert_int_equal(fork.items[0].handle, 65537);
    assert_int_equal(fork.items[0].length, 299);
    assert_true(fork.items[0].created && !fork.items[0].lossy_tail);
    assert_int_equal(fork.items[1].status.err, KVARN_EMISS);
    assert_int_equal(fork.items[1].status.reason, KVARN_MISS_NEVER_STORED);
    assert_int_equal(kvarn_reply_reorder(&reply, &reorder), KVARN_EPROTOCOL); /* another call's */
    kvarn__reply_reset(&reply);
    reply_read(&reply, "reorder_reply");
    assert_int_equal(kvarn_reply_reorder(&reply, &reorder), 0);
    assert_int_equal(reorder.item_count, 1);
    assert_int_equal(reorder.items[0].session_count, 3);
    assert_int_equal(reorder.items[0].epochs[2], 11);
    assert_int_equal(reorder.items[0].lengths[2], 301);
    kvarn__reply_reset(&reply);
    reply_read(&reply, "match_prefix_reply");
    assert_int_equal(kvarn_reply_match_prefix(&reply, &match), 0);
    assert_int_equal(match.tokens, 256);
    assert_int_equal(match.lease, 3);
    assert_int_equal(match.lease_ms, 10000);
    kvarn__reply_reset(&reply);
}

static void golden_job_replies_are_read(void **state)
{
    struct kvarn_prefetch_result prefetch;
    struct kvarn_list_jobs_result list;
    struct kvarn_reply reply;

    (void)state;
    reply_read(&reply, "prefetch_reply");
    assert_int_equal(kvarn_reply_prefetch(&reply, &prefetch), 0);
    assert_true(prefetch.has_job && prefetch.job_id == 5);
    assert_int_equal(prefetch.blocks, 2);
    assert_int_equal(prefetch.bytes, 40000);
    kvarn__reply_reset(&reply);
    reply_read(&reply, "prefetch_prefix_reply");
    assert_int_equal(kvarn_reply_prefetch(&reply, &prefetch), 0);
    assert_true(!prefetch.has_job && prefetch.tokens == 256);
    kvarn__reply_reset(&reply);
    reply_read(&reply, "prefetch_reply_nothing");
    assert_int_equal(kvarn_reply_prefetch(&reply, &prefetch), 0);
    assert_false(prefetch.has_job);
    assert_int_equal(kvarn_reply_list_jobs(&reply, &list), KVARN_EPROTOCOL); /* another call's */
    kvarn__reply_reset(&reply);
    reply_read(&reply, "list_jobs_reply");
    assert_int_equal(kvarn_reply_list_jobs(&reply, &list), 0);
    assert_int_equal(list.job_count, 2);
    assert_string_equal(list.jobs[0].session, "chat/c");
    assert_int_equal(list.jobs[0].state, KVARN_JOB_RUNNING);
    assert_int_equal(list.jobs[0].blocks_done, 1);
    assert_int_equal(list.jobs[0].run_ms, 3); /* all of its age */
    assert_int_equal(list.jobs[0].err, 0);
    assert_int_equal(list.jobs[1].state, KVARN_JOB_FAILED);
    assert_int_equal(list.jobs[1].bytes_done, 70000);
    assert_int_equal(list.jobs[1].age_ms, 60000);
    assert_int_equal(list.jobs[1].run_ms, 250);
    assert_int_equal(list.jobs[1].err, KVARN_ENOSPC);
    kvarn__reply_reset(&reply);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fork_says_what_its_arguments_say),
        cmocka_unit_test(reorder_lists_its_items_one_after_the_other),
        cmocka_unit_test(match_prefix_carries_ids_or_hashes),
        cmocka_unit_test(golden_replies_are_read),
        cmocka_unit_test(golden_job_replies_are_read),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
