/*
 * Looking up a prefix for a call.
 *
 * Owner: the request. Thread: loop only.
 */
#include "server/rpc/rpc_prefix_walk.h"

#include <inttypes.h>
#include <stddef.h>

#include "lib/base/limits.h"
#include "server/rpc/rpc_check.h"
#include "server/session/session_blocks.h"

/* A walk under way; in the request's memory. */
struct prefix_walk {
    struct kvd_slice slice; /* listed while the rest waits for a turn */
    struct kvd_request *request;
    struct kvd_prefix_lease *lease; /* owned */
    const uint8_t *data;
    size_t block_bytes; /* of data, for one block */
    uint32_t block_count;
    enum kvd_prefix_wanted wanted;
    void (*found_cb)(struct kvd_request *request, struct kvd_prefix_lease *lease);
};

int kvd_prefix_words_payload(
    const struct kvd_prefix_words *words, uint64_t *ret, struct kvd_failure *why)
{
    uint64_t count = words->has_hash_count ? words->hash_count : words->token_count;

    if (words->has_token_count == words->has_hash_count) {
        return kvd_fail(why, KVARN_EINVALID, "give either token_count or hash_count, got %s",
            words->has_hash_count ? "both" : "neither");
    }
    if (kvd_rpc_check_salt(words->salt, why) != 0) {
        return why->err;
    }
    if (count == 0 || count > KVARN_SESSION_TOKENS_MAX) {
        return kvd_fail(why, KVARN_EINVALID, "a count must be 1 to %" PRIu64 ", got %" PRIu64,
            KVARN_SESSION_TOKENS_MAX, count);
    }
    *ret = count * (words->has_hash_count ? KVD_BLOCK_NAME_BYTES : sizeof(uint32_t));
    return 0;
}

static bool is_wanted(const struct prefix_walk *walk, const struct kvd_block *block)
{
    return block->state == KVD_BLOCK_RESIDENT ||
           (walk->wanted == KVD_PREFIX_STORED &&
               (block->state == KVD_BLOCK_COLD || block->state == KVD_BLOCK_LOADING));
}

/* Look for the next block; false: there is none. */
static bool walk_one(struct prefix_walk *walk)
{
    struct kvd_prefix_lease *lease = walk->lease;
    struct kvd_prefix_index *index = &walk->request->service->prefixes;
    struct kvd_prefix_chain next = lease->chain;
    uint32_t idx = next.blocks;

    kvd_prefix_chain_next(index, &next, walk->data + idx * walk->block_bytes, walk->block_bytes);
    struct kvd_block *block = kvd_prefix_index_find(index, &next, lease->shape);
    if (block == NULL || !is_wanted(walk, block) ||
        kvd_prefix_lease_add(lease, block, &next) != 0) {
        return false; /* or there is no memory for more of it */
    }
    kvd_prefix_index_touch(index, block, idx == 0 ? NULL : kvd_prefix_lease_block(lease, idx - 1));
    return true;
}

static void walk_run(struct prefix_walk *walk)
{
    struct kvd_slices *slices = &walk->request->service->sessions.slices;

    while (walk->lease->chain.blocks < walk->block_count && walk_one(walk)) {
        if (!kvd_slices_has_time(slices)) {
            kvd_slices_add(slices, &walk->slice);
            return;
        }
    }
    walk->request->cancel_cb = NULL;
    walk->found_cb(walk->request, walk->lease);
}

static void walk_slice_run(struct kvd_slice *slice)
{
    walk_run((void *)((uint8_t *)slice - offsetof(struct prefix_walk, slice)));
}

static void walk_cancel_cb(struct kvd_request *request, int err)
{
    struct prefix_walk *walk = request->handler;
    struct kvd_failure why = {0};

    kvd_slices_remove(&request->service->sessions.slices, &walk->slice);
    kvd_fail(&why, err, "the prefix was not looked up to its end");
    kvd_prefix_lease_destroy(walk->lease);
    kvd_request_fail(request, &why);
}

void kvd_prefix_walk(struct kvd_request *request, const struct kvd_prefix_words *words,
    enum kvd_prefix_wanted wanted,
    void (*found_cb)(struct kvd_request *request, struct kvd_prefix_lease *lease))
{
    struct kvd_service *service = request->service;
    const struct kvd_shape *shape =
        kvd_shape_find(&service->shapes, KVD_TENANT_DEFAULT, words->shape_id);
    struct prefix_walk *walk = kvarn_wire_alloc_take(&request->alloc, sizeof(*walk));
    struct kvd_prefix_chain root;
    struct kvd_failure why = {0};

    if (shape == NULL || walk == NULL) {
        kvd_fail(&why, shape == NULL ? KVARN_ENOT_FOUND : KVARN_ENOMEM, "no shape %" PRIu32,
            words->shape_id);
        kvd_request_fail(request, &why);
        return;
    }
    bool is_hashes = words->has_hash_count;
    *walk = (struct prefix_walk){.slice = {.run = walk_slice_run},
        .request = request,
        .data = request->payload,
        .block_bytes = is_hashes ? KVD_BLOCK_NAME_BYTES : shape->group * sizeof(uint32_t),
        .block_count = is_hashes ? words->hash_count : words->token_count / shape->group,
        .wanted = wanted,
        .found_cb = found_cb};
    kvd_prefix_chain_init(&service->prefixes, shape, words->salt->data, words->salt->len,
        is_hashes ? KVD_PREFIX_HASHES : KVD_PREFIX_TOKENS, &root);
    walk->lease = kvd_prefix_lease_create(service, shape, &root);
    if (walk->lease == NULL) {
        (void)!kvd_session_fail_space(service, sizeof(struct kvd_prefix_lease), &why);
        kvd_request_fail(request, &why);
        return;
    }
    request->handler = walk;
    request->cancel_cb = walk_cancel_cb;
    kvd_slices_begin(&service->sessions.slices);
    walk_run(walk);
}
