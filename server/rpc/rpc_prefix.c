/*
 * MatchPrefix: how much of a sequence is stored already, and a lease on it.
 *
 * Owner: the request. Thread: loop only.
 */
#include <inttypes.h>

#include "lib/base/limits.h"
#include "server/conn/conn.h"
#include "server/read/hits.h"
#include "server/rpc/rpc.h"
#include "server/rpc/rpc_prefix_walk.h"

static const Kvarnd__MatchPrefix *match_message(const struct kvd_request *request)
{
    return (const void *)request->message;
}

static struct kvd_prefix_words match_words(const Kvarnd__MatchPrefix *message)
{
    return (struct kvd_prefix_words){.shape_id = message->shape_id,
        .salt = &message->salt,
        .has_token_count = message->has_token_count,
        .has_hash_count = message->has_hash_count,
        .token_count = message->token_count,
        .hash_count = message->hash_count};
}

int kvd_rpc_match_prefix_payload(
    const struct kvd_request *request, uint64_t *ret, struct kvd_failure *why)
{
    const Kvarnd__MatchPrefix *message = match_message(request);
    struct kvd_prefix_words words = match_words(message);
    int err = kvd_prefix_words_payload(&words, ret, why);

    if (err == 0 && message->lease_ms > KVARN_PREFIX_LEASE_MS_MAX) {
        return kvd_fail(why, KVARN_EINVALID, "lease_ms must be at most %d, got %" PRIu32,
            KVARN_PREFIX_LEASE_MS_MAX, message->lease_ms);
    }
    return err;
}

/* Keep what was found, if there is who can use it. */
static int lease_keep(
    struct kvd_request *request, struct kvd_prefix_lease *lease, struct kvd_failure *why)
{
    const Kvarnd__MatchPrefix *message = match_message(request);

    if (request->conn == NULL || message->lease_ms == 0 || lease->chain.blocks == 0) {
        return 0;
    }
    int err = kvd_prefix_lease_insert(kvd_conn_leases(request->conn), lease, message->lease_ms);
    if (err == KVARN_ETOO_LARGE) {
        return kvd_fail(why, err, "a connection holds at most %d leases", KVARN_PREFIX_LEASES_MAX);
    }
    return err == 0 ? 0 : kvd_fail(why, err, "no memory for a lease");
}

/* What was found, in memory, and that the rest was never stored, as far as the asker may know. */
static void hits_count(
    struct kvd_request *request, const struct kvd_prefix_lease *lease, uint64_t tokens)
{
    const Kvarnd__MatchPrefix *message = match_message(request);
    uint64_t asked = message->has_hash_count ? (uint64_t)message->hash_count * lease->shape->group
                                             : message->token_count;
    struct kvd_metrics *metrics = &request->service->metrics;

    kvd_hits_add(metrics, KVD_HITS_MATCH, tokens, 0);
    if (asked > tokens) {
        kvd_hits_miss(
            metrics, KVD_HITS_MATCH, asked - tokens, KVARND__MISS_REASON__MISS_NEVER_STORED);
    }
}

static void match_found_cb(struct kvd_request *request, struct kvd_prefix_lease *lease)
{
    Kvarnd__MatchPrefixReply reply = KVARND__MATCH_PREFIX_REPLY__INIT;
    Kvarnd__Status status = KVARND__STATUS__INIT;
    struct kvd_failure why = {0};
    uint64_t tokens = (uint64_t)lease->chain.blocks * lease->shape->group;

    if (lease_keep(request, lease, &why) != 0) {
        kvd_prefix_lease_destroy(lease);
        kvd_request_fail(request, &why);
        return;
    }
    kvd_metrics_add(&request->service->metrics, KVD_METRIC_prefix_tokens_matched, tokens);
    hits_count(request, lease, tokens);
    reply.status = &status;
    reply.has_tokens = 1;
    reply.tokens = tokens;
    if (lease->table != NULL) {
        reply.has_lease = reply.has_lease_ms = 1;
        reply.lease = lease->id;
        reply.lease_ms = match_message(request)->lease_ms;
    } else {
        kvd_prefix_lease_destroy(lease);
    }
    kvd_request_reply(request, &reply.base, NULL, 0);
}

void kvd_rpc_match_prefix(struct kvd_request *request)
{
    struct kvd_prefix_words words = match_words(match_message(request));

    kvd_prefix_walk(request, &words, KVD_PREFIX_RESIDENT, match_found_cb);
}
