/*
 * MatchPrefix: how much of a sequence is stored already, and a lease on it.
 *
 * Owner: the request. Thread: loop only. Naming a block takes about a microsecond, so that long
 * sequences are looked up in slices.
 */
#include <inttypes.h>
#include <stddef.h>

#include "lib/base/assert.h"
#include "lib/base/limits.h"
#include "server/conn/conn.h"
#include "server/prefix/prefix_lease.h"
#include "server/read/hits.h"
#include "server/rpc/rpc.h"
#include "server/rpc/rpc_check.h"
#include "server/session/session_blocks.h"

/* A match under way; in the request's memory. */
struct match_call {
    struct kvd_slice slice; /* listed while the rest waits for a turn */
    struct kvd_request *request;
    struct kvd_prefix_lease *lease; /* owned */
    const uint8_t *data;
    size_t block_bytes; /* of data, for one block */
    uint32_t block_count;
    uint32_t cold_blocks; /* of those found, not in memory */
};

static const Kvarnd__MatchPrefix *match_message(const struct kvd_request *request)
{
    return (const void *)request->message;
}

int kvd_rpc_match_prefix_payload(
    const struct kvd_request *request, uint64_t *ret, struct kvd_failure *why)
{
    const Kvarnd__MatchPrefix *message = match_message(request);
    uint64_t count = message->has_hash_count ? message->hash_count : message->token_count;

    if (message->has_token_count == message->has_hash_count) {
        return kvd_fail(why, KVARN_EINVALID, "give either token_count or hash_count, got %s",
            message->has_hash_count ? "both" : "neither");
    }
    if (kvd_rpc_check_salt(&message->salt, why) != 0) {
        return why->err;
    }
    if (count == 0 || count > KVARN_SESSION_TOKENS_MAX) {
        return kvd_fail(why, KVARN_EINVALID, "a count must be 1 to %" PRIu64 ", got %" PRIu64,
            KVARN_SESSION_TOKENS_MAX, count);
    }
    if (message->lease_ms > KVARN_PREFIX_LEASE_MS_MAX) {
        return kvd_fail(why, KVARN_EINVALID, "lease_ms must be at most %d, got %" PRIu32,
            KVARN_PREFIX_LEASE_MS_MAX, message->lease_ms);
    }
    *ret = count * (message->has_hash_count ? KVD_BLOCK_NAME_BYTES : sizeof(uint32_t));
    return 0;
}

static void match_fail(struct match_call *call, const struct kvd_failure *why)
{
    struct kvd_request *request = call->request;

    kvd_prefix_lease_destroy(call->lease);
    kvd_request_fail(request, why);
}

/* Keep what was found, if there is who can use it. */
static int lease_keep(struct match_call *call, struct kvd_failure *why)
{
    struct kvd_request *request = call->request;
    const Kvarnd__MatchPrefix *message = match_message(request);

    if (request->conn == NULL || message->lease_ms == 0 || call->lease->chain.blocks == 0) {
        return 0;
    }
    int err =
        kvd_prefix_lease_insert(kvd_conn_leases(request->conn), call->lease, message->lease_ms);
    if (err == KVARN_ETOO_LARGE) {
        return kvd_fail(why, err, "a connection holds at most %d leases", KVARN_PREFIX_LEASES_MAX);
    }
    return err == 0 ? 0 : kvd_fail(why, err, "no memory for a lease");
}

/* What was found, and that the rest was never stored, as far as the asker may know. */
static void hits_count(const struct match_call *call, uint64_t tokens)
{
    const struct kvd_prefix_lease *lease = call->lease;
    const Kvarnd__MatchPrefix *message = match_message(call->request);
    uint64_t asked = message->has_hash_count ? (uint64_t)message->hash_count * lease->shape->group
                                             : message->token_count;
    struct kvd_metrics *metrics = &call->request->service->metrics;

    kvd_hits_add(
        metrics, KVD_HITS_MATCH, tokens, (uint64_t)call->cold_blocks * lease->shape->group);
    if (asked > tokens) {
        kvd_hits_miss(
            metrics, KVD_HITS_MATCH, asked - tokens, KVARND__MISS_REASON__MISS_NEVER_STORED);
    }
}

static void match_finish(struct match_call *call)
{
    struct kvd_request *request = call->request;
    Kvarnd__MatchPrefixReply reply = KVARND__MATCH_PREFIX_REPLY__INIT;
    Kvarnd__Status status = KVARND__STATUS__INIT;
    struct kvd_failure why = {0};
    uint64_t tokens = (uint64_t)call->lease->chain.blocks * call->lease->shape->group;

    if (lease_keep(call, &why) != 0) {
        match_fail(call, &why);
        return;
    }
    kvd_metrics_add(&request->service->metrics, KVD_METRIC_prefix_tokens_matched, tokens);
    hits_count(call, tokens);
    reply.status = &status;
    reply.has_tokens = 1;
    reply.tokens = tokens;
    if (call->lease->table != NULL) {
        reply.has_lease = reply.has_lease_ms = 1;
        reply.lease = call->lease->id;
        reply.lease_ms = match_message(request)->lease_ms;
    } else {
        kvd_prefix_lease_destroy(call->lease);
    }
    kvd_request_reply(request, &reply.base, NULL, 0);
}

/* Look for the next block; false: there is none. */
static bool match_one(struct match_call *call)
{
    struct kvd_prefix_lease *lease = call->lease;
    struct kvd_prefix_index *index = &call->request->service->prefixes;
    struct kvd_prefix_chain next = lease->chain;
    uint32_t idx = next.blocks;

    kvd_prefix_chain_next(index, &next, call->data + idx * call->block_bytes, call->block_bytes);
    struct kvd_block *block = kvd_prefix_index_find(index, &next, lease->shape);
    if (block == NULL) {
        return false;
    }
    lease->blocks[idx] = kvd_block_ref(block);
    call->cold_blocks += block->state == KVD_BLOCK_RESIDENT ? 0 : 1;
    lease->chain = next;
    kvd_prefix_index_touch(index, block, idx == 0 ? NULL : lease->blocks[idx - 1]);
    return true;
}

static void match_run(struct match_call *call)
{
    struct kvd_slices *slices = &call->request->service->sessions.slices;

    while (call->lease->chain.blocks < call->block_count && match_one(call)) {
        if (!kvd_slices_has_time(slices)) {
            kvd_slices_add(slices, &call->slice);
            return;
        }
    }
    match_finish(call);
}

static void match_slice_run(struct kvd_slice *slice)
{
    match_run((void *)((uint8_t *)slice - offsetof(struct match_call, slice)));
}

static void match_cancel_cb(struct kvd_request *request, int err)
{
    struct match_call *call = request->handler;
    struct kvd_failure why = {0};

    kvd_slices_remove(&request->service->sessions.slices, &call->slice);
    kvd_fail(&why, err, "the prefix was not looked up to its end");
    match_fail(call, &why);
}

void kvd_rpc_match_prefix(struct kvd_request *request)
{
    const Kvarnd__MatchPrefix *message = match_message(request);
    struct kvd_service *service = request->service;
    const struct kvd_shape *shape =
        kvd_shape_find(&service->shapes, KVD_TENANT_DEFAULT, message->shape_id);
    struct match_call *call = kvarn_wire_alloc_take(&request->alloc, sizeof(*call));
    struct kvd_prefix_chain root;
    struct kvd_failure why = {0};

    if (shape == NULL || call == NULL) {
        kvd_fail(&why, shape == NULL ? KVARN_ENOT_FOUND : KVARN_ENOMEM, "no shape %" PRIu32,
            message->shape_id);
        kvd_request_fail(request, &why);
        return;
    }
    bool is_hashes = message->has_hash_count;
    *call = (struct match_call){.slice = {.run = match_slice_run},
        .request = request,
        .data = request->payload,
        .block_bytes = is_hashes ? KVD_BLOCK_NAME_BYTES : shape->group * sizeof(uint32_t),
        .block_count = is_hashes ? message->hash_count : message->token_count / shape->group};
    kvd_prefix_chain_init(&service->prefixes, shape, message->salt.data, message->salt.len,
        is_hashes ? KVD_PREFIX_HASHES : KVD_PREFIX_TOKENS, &root);
    call->lease = kvd_prefix_lease_create(service, shape, &root, call->block_count);
    if (call->lease == NULL) {
        (void)!kvd_session_fail_space(service, call->block_count * sizeof(void *), &why);
        kvd_request_fail(request, &why);
        return;
    }
    request->handler = call;
    request->cancel_cb = match_cancel_cb;
    kvd_slices_begin(&service->sessions.slices);
    match_run(call);
}
