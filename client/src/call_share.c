/*
 * Builders of calls that make sessions share what they hold: Fork, Reorder, MatchPrefix; and of
 * Prefetch, which names a prefix likewise.
 */
#include <stdlib.h>

#include "client/src/call_pack.h"
#include "lib/base/limits.h"

static void fork_item_fill(Kvarnd__ForkItem *to, const struct kvarn_fork_item *from)
{
    kvarnd__fork_item__init(to);
    to->handle = from->session->handle;
    to->has_epoch = 1;
    to->epoch = from->session->epoch;
    to->name = text_of(from->name);
    to->has_length = from->length != KVARN_TOKEN_DEFAULT;
    to->length = from->length;
    to->has_mode = 1;
    to->mode = (Kvarnd__OpenMode)from->mode;
}

int kvarn_call_fork(
    const struct kvarn_fork_args *args, uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    Kvarnd__Fork m = KVARND__FORK__INIT;
    Kvarnd__ForkItem *items = NULL;
    Kvarnd__ForkItem **pointers = NULL;
    int err = KVARN_ENOMEM;

    if (args->item_count == 0 || args->item_count > KVARN_BATCH_ITEMS_MAX) {
        return KVARN_EINVALID;
    }
    items = calloc(args->item_count, sizeof *items);
    pointers = calloc(args->item_count, sizeof *pointers);
    if (items == NULL || pointers == NULL) {
        goto out;
    }
    for (size_t i = 0; i < args->item_count; i++) {
        err = KVARN_EINVALID;
        if (args->items[i].session == NULL) {
            goto out;
        }
        fork_item_fill(&items[i], &args->items[i]);
        pointers[i] = &items[i];
    }
    m.items = pointers;
    m.n_items = args->item_count;
    SET_DEADLINE(m, deadline_ms);
    err = kvarn__call_plain(KVARN_FRAME_FORK, &m.base, deadline_ms, ret_call);
out:
    free(items);
    free(pointers);
    return err;
}

/* What the items of a Reorder point at: one entry a member, in their order. */
struct reorder_arrays {
    uint64_t handles[KVARN_BATCH_ITEMS_MAX];
    uint64_t epochs[KVARN_BATCH_ITEMS_MAX];
    uint32_t sources[KVARN_BATCH_ITEMS_MAX];
    Kvarnd__ReorderItem items[KVARN_BATCH_ITEMS_MAX];
    Kvarnd__ReorderItem *pointers[KVARN_BATCH_ITEMS_MAX];
};

static int reorder_fill(struct reorder_arrays *arrays, const struct kvarn_reorder_args *args)
{
    size_t item_count = args->item_members == NULL ? 1 : args->item_count;
    size_t first = 0;

    for (size_t i = 0; i < args->member_count; i++) {
        if (args->members[i].session == NULL) {
            return KVARN_EINVALID;
        }
        arrays->handles[i] = args->members[i].session->handle;
        arrays->epochs[i] = args->members[i].session->epoch;
        arrays->sources[i] = args->members[i].source;
    }
    for (size_t i = 0; i < item_count; i++) {
        Kvarnd__ReorderItem *item = &arrays->items[i];
        size_t count = args->item_members == NULL ? args->member_count : args->item_members[i];

        if (count > args->member_count - first) {
            return KVARN_EINVALID;
        }
        kvarnd__reorder_item__init(item);
        item->n_handles = item->n_epochs = item->n_sources = count;
        item->handles = &arrays->handles[first];
        item->epochs = &arrays->epochs[first];
        item->sources = &arrays->sources[first];
        arrays->pointers[i] = item;
        first += count;
    }
    return first == args->member_count ? 0 : KVARN_EINVALID;
}

int kvarn_call_reorder(
    const struct kvarn_reorder_args *args, uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    Kvarnd__Reorder m = KVARND__REORDER__INIT;
    struct reorder_arrays *arrays;
    int err;

    if (args->member_count == 0 || args->member_count > KVARN_BATCH_ITEMS_MAX ||
        (args->item_members != NULL &&
            (args->item_count == 0 || args->item_count > args->member_count))) {
        return KVARN_EINVALID;
    }
    arrays = calloc(1, sizeof *arrays);
    if (arrays == NULL) {
        return KVARN_ENOMEM;
    }
    err = reorder_fill(arrays, args);
    if (err == 0) {
        m.items = arrays->pointers;
        m.n_items = args->item_members == NULL ? 1 : args->item_count;
        SET_DEADLINE(m, deadline_ms);
        err = kvarn__call_plain(KVARN_FRAME_REORDER, &m.base, deadline_ms, ret_call);
    }
    free(arrays);
    return err;
}

/* Ids or hashes of a prefix. Returns 0 or KVARN_EINVALID. */
static int prefix_span(const struct kvarn_match_prefix_args *args, struct kvarn_span *ret)
{
    ret->data = args->hash_count != 0 ? args->hashes : args->token_ids;
    ret->bytes = args->hash_count != 0 ? (size_t)args->hash_count * 32
                                       : args->token_count * sizeof(uint32_t);
    bool is_one = (args->token_count == 0) != (args->hash_count == 0);
    return is_one && ret->data != NULL ? 0 : KVARN_EINVALID;
}

int kvarn_call_match_prefix(
    const struct kvarn_match_prefix_args *args, uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    Kvarnd__MatchPrefix m = KVARND__MATCH_PREFIX__INIT;
    struct kvarn_span span;
    const struct pack_in in = {KVARN_FRAME_MATCH_PREFIX, &m.base, deadline_ms, &span, 1};

    if (prefix_span(args, &span) != 0) {
        return KVARN_EINVALID;
    }
    m.shape_id = args->shape_id;
    m.has_salt = args->salt_bytes != 0;
    m.salt = bytes_of(args->salt, args->salt_bytes);
    m.has_token_count = args->token_count != 0;
    m.token_count = args->token_count;
    m.has_hash_count = args->hash_count != 0;
    m.hash_count = args->hash_count;
    m.has_lease_ms = 1;
    m.lease_ms = args->lease_ms;
    SET_DEADLINE(m, deadline_ms);
    return kvarn__call_pack(&in, ret_call);
}

int kvarn_call_prefetch(
    const struct kvarn_prefetch_args *args, uint32_t deadline_ms, struct kvarn_call **ret_call)
{
    const struct kvarn_match_prefix_args *prefix = args->prefix;
    Kvarnd__Prefetch m = KVARND__PREFETCH__INIT;
    struct kvarn_span span = {0};
    const struct pack_in in = {
        KVARN_FRAME_PREFETCH, &m.base, deadline_ms, &span, prefix != NULL ? 1 : 0};

    if ((args->session != NULL) + (args->name != NULL) + (prefix != NULL) != 1 ||
        (prefix != NULL && (args->last_blocks != 0 || prefix_span(prefix, &span) != 0))) {
        return KVARN_EINVALID;
    }
    m.has_handle = args->session != NULL;
    m.handle = m.has_handle ? args->session->handle : 0;
    m.name = text_of(args->name);
    m.has_last_blocks = args->last_blocks != 0;
    m.last_blocks = args->last_blocks;
    if (prefix != NULL) {
        m.has_shape_id = 1;
        m.shape_id = prefix->shape_id;
        m.has_salt = prefix->salt_bytes != 0;
        m.salt = bytes_of(prefix->salt, prefix->salt_bytes);
        m.has_token_count = prefix->token_count != 0;
        m.token_count = prefix->token_count;
        m.has_hash_count = prefix->hash_count != 0;
        m.hash_count = prefix->hash_count;
    }
    SET_DEADLINE(m, deadline_ms);
    return kvarn__call_pack(&in, ret_call);
}
