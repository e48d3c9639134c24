/*
 * Looking up a prefix for a call: by token ids, or by hashes of blocks, from the payload.
 *
 * Owner: the request. Thread: loop only. Naming a block takes about a microsecond, so that long
 * sequences are looked up in slices.
 */
#ifndef KVD_RPC_PREFIX_WALK_H
#define KVD_RPC_PREFIX_WALK_H

#include "server/prefix/prefix_lease.h"
#include "server/rpc/request.h"

/* What a message says of a prefix. */
struct kvd_prefix_words {
    uint32_t shape_id;
    const ProtobufCBinaryData *salt; /* borrowed from the message */
    bool has_token_count, has_hash_count;
    uint32_t token_count, hash_count;
};

/* Which blocks count. */
enum kvd_prefix_wanted {
    KVD_PREFIX_RESIDENT, /* those in memory */
    KVD_PREFIX_STORED,   /* those that can be read back, too */
};

/* Bytes of payload that they imply. Returns 0 or KVARN_EINVALID. */
int kvd_prefix_words_payload(
    const struct kvd_prefix_words *words, uint64_t *ret, struct kvd_failure *why) KVARN_MUST_CHECK;

/*
 * Look up the longest prefix of the request's payload. `found_cb` gets it, with a reference to each
 * block, as a lease in no table, which is its own, perhaps from inside; or the request is failed:
 * no such shape, no memory, a deadline or a Cancel before the end.
 */
void kvd_prefix_walk(struct kvd_request *request, const struct kvd_prefix_words *words,
    enum kvd_prefix_wanted wanted,
    void (*found_cb)(struct kvd_request *request, struct kvd_prefix_lease *lease));

#endif
