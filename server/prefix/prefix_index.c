/*
 * Prefix index: names of blocks, entries, and who uses which.
 *
 * Owner: service. Thread: loop only.
 */
#include "server/prefix/prefix_index_impl.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/params.h>

#include "lib/base/assert.h"
#include "server/base/alloc_bytes.h"
#include "server/service.h"
#include "server/session/session_blocks.h"

#define SECRET_BYTES 32

/* Buckets are few enough to be taken at once, and a million entries still are 16 in each. */
#define BUCKETS 65536u

/* Blocks that are published at once: about half a microsecond each, with few layers. */
#define PUBLISHED_PER_STEP 32

#define ENTRY_BYTES kvd_alloc_bytes(sizeof(struct kvd_prefix_entry))

static void advance_slice_run(struct kvd_slice *slice);

int kvd_prefix_index_init(struct kvd_prefix_index *index, struct kvd_service *service)
{
    uint8_t secret[SECRET_BYTES];
    char digest[] = "SHA256";
    OSSL_PARAM params[] = {OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, digest, 0),
        OSSL_PARAM_construct_end()};

    *index = (struct kvd_prefix_index){.service = service};
    TAILQ_INIT(&index->by_use);
    TAILQ_INIT(&index->cold);
    LIST_INIT(&index->advancing);
    index->slice.run = advance_slice_run;
    int err = service->io->ops->random(service->io, secret, sizeof(secret));
    if (err != 0) {
        return err;
    }
    EVP_MAC *mac = EVP_MAC_fetch(NULL, "HMAC", NULL);
    index->mac = mac == NULL ? NULL : EVP_MAC_CTX_new(mac);
    EVP_MAC_free(mac);
    bool is_ready = index->mac != NULL && EVP_MAC_init(index->mac, secret, sizeof(secret), params);
    OPENSSL_cleanse(secret, sizeof(secret));
    return is_ready ? 0 : KVARN_ENOMEM;
}

void kvd_prefix_entry_drop(struct kvd_prefix_index *index, struct kvd_prefix_entry *entry)
{
    LIST_REMOVE(entry, link);
    TAILQ_REMOVE(entry->is_resting ? &index->cold : &index->by_use, entry, use_link);
    index->count--;
    kvd_block_unref_later(index->service, entry->block);
    free(entry);
    kvd_budget_release(&index->service->budget, KVD_BUDGET_SESSIONS, ENTRY_BYTES);
}

static void advance_end(struct kvd_prefix *prefix)
{
    if (prefix->is_advancing) {
        LIST_REMOVE(prefix, link);
        prefix->is_advancing = false;
    }
}

void kvd_prefix_index_fini(struct kvd_prefix_index *index)
{
    struct kvd_prefix_entry *entry;
    struct kvd_prefix_entry *next;

    if (index->service == NULL) {
        return;
    }
    kvd_slices_remove(&index->service->sessions.slices, &index->slice);
    while (!LIST_EMPTY(&index->advancing)) {
        advance_end(LIST_FIRST(&index->advancing));
    }
    TAILQ_CONCAT(&index->by_use, &index->cold, use_link);
    TAILQ_FOREACH_SAFE(entry, &index->by_use, use_link, next)
    {
        entry->is_resting = false;
        kvd_prefix_entry_drop(index, entry);
    }
    if (index->buckets != NULL) {
        free(index->buckets);
        kvd_budget_release(&index->service->budget, KVD_BUDGET_SESSIONS,
            BUCKETS * sizeof(struct kvd_prefix_bucket));
    }
    EVP_MAC_CTX_free(index->mac);
    *index = (struct kvd_prefix_index){0};
}

/* Names. */

/* The secret's hash of two pieces. The inputs are ours and short: it does not fail. */
static void name_make(struct kvd_prefix_index *index, const void *first, size_t first_bytes,
    const void *second, size_t second_bytes, uint8_t ret[KVD_BLOCK_NAME_BYTES])
{
    size_t bytes = 0;

    KVARN_ASSERT(EVP_MAC_init(index->mac, NULL, 0, NULL));
    KVARN_ASSERT(EVP_MAC_update(index->mac, first, first_bytes));
    KVARN_ASSERT(EVP_MAC_update(index->mac, second, second_bytes));
    KVARN_ASSERT(EVP_MAC_final(index->mac, ret, &bytes, KVD_BLOCK_NAME_BYTES));
    KVARN_ASSERT(bytes == KVD_BLOCK_NAME_BYTES);
}

void kvd_prefix_chain_init(struct kvd_prefix_index *index, const struct kvd_shape *shape,
    const uint8_t *salt, size_t salt_bytes, enum kvd_prefix_kind kind, struct kvd_prefix_chain *ret)
{
    struct {
        char what[8];
        uint32_t tenant_id;
        uint32_t kind;
        uint8_t fingerprint[sizeof(shape->fingerprint)];
    } head = {.what = "kvarn-p", .tenant_id = shape->tenant_id, .kind = kind};

    memcpy(head.fingerprint, shape->fingerprint, sizeof(head.fingerprint));
    *ret = (struct kvd_prefix_chain){.kind = kind};
    name_make(index, &head, sizeof(head), salt, salt_bytes, ret->name);
}

void kvd_prefix_chain_next(
    struct kvd_prefix_index *index, struct kvd_prefix_chain *chain, const void *data, size_t bytes)
{
    uint8_t name[KVD_BLOCK_NAME_BYTES];

    name_make(index, chain->name, sizeof(chain->name), data, bytes, name);
    memcpy(chain->name, name, sizeof(chain->name));
    chain->blocks++;
}

/* Entries. */

static struct kvd_prefix_bucket *bucket_of(
    const struct kvd_prefix_index *index, const uint8_t *name)
{
    return &index->buckets[(uint32_t)name[0] | (uint32_t)name[1] << 8];
}
_Static_assert(BUCKETS == 1u << 16, "two bytes of the name find the bucket");

struct kvd_prefix_entry *kvd_prefix_entry_find(const struct kvd_prefix_index *index,
    const uint8_t *name, const struct kvd_shape *shape, uint32_t block_idx)
{
    struct kvd_prefix_entry *entry;

    if (index->buckets == NULL) {
        return NULL;
    }
    LIST_FOREACH(entry, bucket_of(index, name), link)
    {
        if (memcmp(entry->block->name, name, KVD_BLOCK_NAME_BYTES) == 0 && entry->shape == shape &&
            entry->block_idx == block_idx) {
            return entry;
        }
    }
    return NULL;
}

struct kvd_block *kvd_prefix_index_find(const struct kvd_prefix_index *index,
    const struct kvd_prefix_chain *chain, const struct kvd_shape *shape)
{
    KVARN_ASSERT(chain->blocks > 0);
    const struct kvd_prefix_entry *entry =
        kvd_prefix_entry_find(index, chain->name, shape, chain->blocks - 1);

    return entry == NULL ? NULL : entry->block;
}

static struct kvd_prefix_entry *entry_of(
    const struct kvd_prefix_index *index, const struct kvd_block *block)
{
    struct kvd_prefix_entry *entry;

    if (block == NULL || index->buckets == NULL) {
        return NULL;
    }
    LIST_FOREACH(entry, bucket_of(index, block->name), link)
    {
        if (entry->block == block) {
            return entry;
        }
    }
    return NULL;
}

void kvd_prefix_index_touch(
    struct kvd_prefix_index *index, const struct kvd_block *block, const struct kvd_block *before)
{
    struct kvd_prefix_entry *entry = entry_of(index, block);
    struct kvd_prefix_entry *parent = entry_of(index, before);

    if (entry == NULL) {
        return;
    }
    TAILQ_REMOVE(entry->is_resting ? &index->cold : &index->by_use, entry, use_link);
    entry->is_resting = false;
    if (parent != NULL && !parent->is_resting) {
        TAILQ_INSERT_BEFORE(parent, entry, use_link);
    } else {
        TAILQ_INSERT_TAIL(&index->by_use, entry, use_link);
    }
}

void kvd_prefix_index_walk(const struct kvd_prefix_index *index,
    void (*walk_cb)(void *ctx, const struct kvd_block *block), void *ctx)
{
    const struct kvd_prefix_entry *entry;

    TAILQ_FOREACH(entry, &index->by_use, use_link)
    {
        walk_cb(ctx, entry->block);
    }
    TAILQ_FOREACH(entry, &index->cold, use_link)
    {
        walk_cb(ctx, entry->block);
    }
}

static bool buckets_make(struct kvd_prefix_index *index)
{
    size_t bytes = BUCKETS * sizeof(struct kvd_prefix_bucket);

    if (index->buckets != NULL) {
        return true;
    }
    if (kvd_budget_charge(&index->service->budget, KVD_BUDGET_SESSIONS, bytes) != 0) {
        return false;
    }
    index->buckets = calloc(BUCKETS, sizeof(struct kvd_prefix_bucket));
    if (index->buckets == NULL) {
        kvd_budget_release(&index->service->budget, KVD_BUDGET_SESSIONS, bytes);
    }
    return index->buckets != NULL;
}

/* Add a block. Without memory, or at the limit, it is not shared, which is no error. */
static void entry_add(struct kvd_prefix_index *index, struct kvd_session *session, uint32_t idx)
{
    struct kvd_budget *budget = &index->service->budget;
    struct kvd_block *block = kvd_block_table_at(&session->table, idx);
    struct kvd_prefix_entry *entry = NULL;
    struct kvd_prefix_entry *parent = NULL;

    if (index->count >= KVARN_PREFIX_BLOCKS_MAX) {
        kvd_prefix_entry_drop(index,
            TAILQ_EMPTY(&index->cold) ? TAILQ_FIRST(&index->by_use) : TAILQ_FIRST(&index->cold));
    }
    if (!buckets_make(index) || kvd_budget_charge(budget, KVD_BUDGET_SESSIONS, ENTRY_BYTES) != 0) {
        return;
    }
    entry = calloc(1, sizeof(*entry));
    if (entry == NULL) {
        kvd_budget_release(budget, KVD_BUDGET_SESSIONS, ENTRY_BYTES);
        return;
    }
    entry->block = kvd_block_ref(block);
    entry->shape = session->shape;
    entry->block_idx = idx;
    LIST_INSERT_HEAD(bucket_of(index, block->name), entry, link);
    if (idx > 0 && kvd_block_table_at(&session->table, idx - 1) != NULL) {
        parent = kvd_prefix_entry_find(
            index, kvd_block_table_at(&session->table, idx - 1)->name, session->shape, idx - 1);
    }
    if (parent != NULL && !parent->is_resting) { /* a prefix goes from its end */
        TAILQ_INSERT_BEFORE(parent, entry, use_link);
    } else {
        TAILQ_INSERT_TAIL(&index->by_use, entry, use_link);
    }
    index->count++;
    kvd_metrics_add(&index->service->metrics, KVD_METRIC_prefix_blocks_published, 1);
}

/* Sessions. */

static int prefix_alloc(struct kvd_session *session, size_t salt_bytes)
{
    struct kvd_budget *budget = &session->service->budget;
    size_t bytes = sizeof(struct kvd_prefix) + salt_bytes;

    KVARN_ASSERT(session->prefix == NULL);
    if (kvd_budget_charge(budget, KVD_BUDGET_SESSIONS, bytes) != 0) {
        return KVARN_ENOSPC;
    }
    session->prefix = calloc(1, bytes);
    if (session->prefix == NULL) {
        kvd_budget_release(budget, KVD_BUDGET_SESSIONS, bytes);
        return KVARN_ENOMEM;
    }
    session->prefix->salt_bytes = salt_bytes;
    session->prefix->session = session;
    return 0;
}

int kvd_prefix_enable(struct kvd_session *session, const uint8_t *salt, size_t salt_bytes)
{
    int err = prefix_alloc(session, salt_bytes);

    if (err == 0 && salt_bytes > 0) {
        memcpy(session->prefix->salt, salt, salt_bytes);
    }
    return err;
}

int kvd_prefix_copy(const struct kvd_session *from, struct kvd_session *to)
{
    if (from->prefix == NULL) {
        return 0;
    }
    int err = prefix_alloc(to, from->prefix->salt_bytes);
    if (err == 0) {
        memcpy(to->prefix, from->prefix, sizeof(*from->prefix) + from->prefix->salt_bytes);
        to->prefix->session = to;
        to->prefix->is_advancing = false;
    }
    return err;
}

void kvd_prefix_move(struct kvd_prefix *prefix, struct kvd_session *to)
{
    if (prefix != NULL) {
        prefix->session = to;
    }
}

void kvd_prefix_disable(struct kvd_session *session)
{
    if (session->prefix != NULL) {
        advance_end(session->prefix);
        size_t bytes = sizeof(struct kvd_prefix) + session->prefix->salt_bytes;
        free(session->prefix);
        session->prefix = NULL;
        kvd_budget_release(&session->service->budget, KVD_BUDGET_SESSIONS, bytes);
    }
}

static void root_make(
    const struct kvd_session *session, enum kvd_prefix_kind kind, struct kvd_prefix_chain *ret)
{
    const struct kvd_prefix *prefix = session->prefix;

    kvd_prefix_chain_init(
        &session->service->prefixes, session->shape, prefix->salt, prefix->salt_bytes, kind, ret);
}

/* The name in front of block `idx`, which is the first one or follows a name made ahead. */
static const uint8_t *name_before(const struct kvd_prefix_names *names, uint32_t idx)
{
    return idx == names->first
               ? names->before
               : names->names + (size_t)(idx - names->first - 1) * KVD_BLOCK_NAME_BYTES;
}

/*
 * The block behind the chain gets its name; where the one made ahead does not follow from the
 * chain, the session publishes no more.
 */
static void block_name(struct kvd_session *session, const void *data, size_t bytes,
    const struct kvd_prefix_names *names)
{
    struct kvd_prefix_chain *chain = &session->prefix->chain;
    uint32_t idx = chain->blocks;

    if (names->names == NULL) {
        kvd_prefix_chain_next(&session->service->prefixes, chain, data, bytes);
    } else {
        if (idx < names->first || idx - names->first >= names->count ||
            memcmp(chain->name, name_before(names, idx), sizeof(chain->name)) != 0) {
            session->prefix->is_closed = true;
            return;
        }
        memcpy(chain->name, name_before(names, idx + 1), sizeof(chain->name));
        chain->blocks++;
    }
    kvd_session_name_block(session, idx, chain->name);
}

size_t kvd_prefix_note_bytes(const struct kvd_shape *shape, const struct kvd_prefix_note *note)
{
    if (note->kind == KVD_PREFIX_TOKENS) {
        return note->token_count * sizeof(uint32_t);
    }
    uint64_t end = note->start + note->token_count;
    return (size_t)(end / shape->group - note->start / shape->group) * KVD_BLOCK_NAME_BYTES;
}

/* Blocks that one step names, some tens of microseconds: what a commit does itself. */
#define NAMES_AT_COMMIT_MAX 32

uint32_t kvd_prefix_names_room(
    const struct kvd_session *session, const struct kvd_prefix_note *note)
{
    uint64_t group = session->shape->group;
    uint64_t blocks = (note->start + note->token_count) / group - note->start / group;

    if (session->prefix == NULL || note->data == NULL || blocks <= NAMES_AT_COMMIT_MAX) {
        return 0;
    }
    return (uint32_t)blocks;
}

/* Where the names begin: behind the chain, or at the first token. False: there is nothing to do. */
static bool names_begin(const struct kvd_session *session, const struct kvd_prefix_note *note,
    struct kvd_prefix_names *names)
{
    const struct kvd_prefix *prefix = session->prefix;
    struct kvd_prefix_chain chain = {.kind = note->kind};
    uint64_t known = prefix->chain.blocks;

    if (note->kind == KVD_PREFIX_TOKENS) {
        known = known * session->shape->group + prefix->tail_count;
    } else {
        known = (known + 1) * session->shape->group - 1; /* the chain's next hash is there */
    }
    if (prefix->is_closed || note->start > known ||
        (prefix->has_kind && prefix->chain.kind != note->kind)) {
        return false;
    }
    if (prefix->has_kind) {
        chain = prefix->chain;
    } else {
        root_make(session, note->kind, &chain);
    }
    names->first = chain.blocks;
    memcpy(names->before, chain.name, sizeof(names->before));
    return true;
}

/*
 * What block `idx` is named by: within what the append said, or, for the first block, in `ids`,
 * together with those of its ids that came before.
 */
static const void *names_data(const struct kvd_session *session, const struct kvd_prefix_note *note,
    const struct kvd_prefix_names *names, uint32_t *ids)
{
    const struct kvd_prefix *prefix = session->prefix;
    const uint64_t group = session->shape->group;
    uint64_t idx = (uint64_t)names->first + names->count;

    if (note->kind == KVD_PREFIX_HASHES) {
        return note->data + (idx - note->start / group) * KVD_BLOCK_NAME_BYTES;
    }
    if (names->count > 0) {
        return note->data + (idx * group - note->start) * sizeof(uint32_t);
    }
    uint64_t known = idx * group + prefix->tail_count;
    memcpy(ids, prefix->tail, prefix->tail_count * sizeof(uint32_t));
    memcpy(ids + prefix->tail_count, note->data + (known - note->start) * sizeof(uint32_t),
        (group - prefix->tail_count) * sizeof(uint32_t));
    return ids;
}

bool kvd_prefix_names_add(const struct kvd_session *session, const struct kvd_prefix_note *note,
    struct kvd_prefix_names *names)
{
    const uint64_t group = session->shape->group;
    uint32_t ids[KVARN_GROUP_MAX];

    if (names->names == NULL || session->prefix == NULL ||
        (names->count == 0 && !names_begin(session, note, names))) {
        return false;
    }
    uint32_t idx = names->first + names->count;
    if ((idx + 1) * group > note->start + note->token_count) {
        return false;
    }
    struct kvd_prefix_chain chain = {.kind = note->kind, .blocks = idx};
    const void *data = names_data(session, note, names, ids);
    memcpy(chain.name, name_before(names, idx), sizeof(chain.name));
    kvd_prefix_chain_next(&session->service->prefixes, &chain, data,
        note->kind == KVD_PREFIX_HASHES ? KVD_BLOCK_NAME_BYTES : group * sizeof(uint32_t));
    memcpy(names->names + (size_t)names->count * KVD_BLOCK_NAME_BYTES, chain.name,
        KVD_BLOCK_NAME_BYTES);
    names->count++;
    return true;
}

/* Go on with the ids of some blocks; true: those were the last. */
static bool note_tokens(struct kvd_session *session, const struct kvd_prefix_note *note,
    const struct kvd_prefix_names *names)
{
    struct kvd_prefix *prefix = session->prefix;
    const uint32_t group = session->shape->group;
    uint64_t known = (uint64_t)prefix->chain.blocks * group + prefix->tail_count;
    uint64_t end = note->start + note->token_count;
    unsigned blocks = 0;

    prefix->is_closed = note->start > known; /* tokens in between have no ids */
    while (!prefix->is_closed && known < end) {
        uint32_t missing = group - prefix->tail_count;
        uint32_t count = end - known < missing ? (uint32_t)(end - known) : missing;
        memcpy(&prefix->tail[prefix->tail_count],
            note->data + (known - note->start) * sizeof(uint32_t), count * sizeof(uint32_t));
        prefix->tail_count += count;
        known += count;
        if (prefix->tail_count < group) {
            return true;
        }
        if (blocks++ == NAMES_AT_COMMIT_MAX) {
            prefix->tail_count = 0; /* this block again */
            return false;
        }
        prefix->tail_count = 0;
        block_name(session, prefix->tail, group * sizeof(uint32_t), names);
    }
    return true;
}

/* The same with hashes. */
static bool note_hashes(struct kvd_session *session, const struct kvd_prefix_note *note,
    const struct kvd_prefix_names *names)
{
    struct kvd_prefix *prefix = session->prefix;
    uint64_t first = note->start / session->shape->group;
    uint64_t last = (note->start + note->token_count) / session->shape->group;
    unsigned blocks = 0;

    prefix->is_closed = first > prefix->chain.blocks;
    while (!prefix->is_closed && prefix->chain.blocks < last) {
        if (blocks++ == NAMES_AT_COMMIT_MAX) {
            return false;
        }
        block_name(session, note->data + (prefix->chain.blocks - first) * KVD_BLOCK_NAME_BYTES,
            KVD_BLOCK_NAME_BYTES, names);
    }
    return true;
}

bool kvd_prefix_note(struct kvd_session *session, const struct kvd_prefix_note *note,
    const struct kvd_prefix_names *names)
{
    struct kvd_prefix *prefix = session->prefix;

    if (prefix == NULL || prefix->is_closed || note->data == NULL) {
        return true;
    }
    if (!prefix->has_kind) {
        prefix->has_kind = true;
        root_make(session, note->kind, &prefix->chain);
    }
    if (prefix->chain.kind != note->kind) {
        prefix->is_closed = true; /* the two name spaces never meet */
        return true;
    }
    return note->kind == KVD_PREFIX_TOKENS ? note_tokens(session, note, names)
                                           : note_hashes(session, note, names);
}

void kvd_prefix_cut(struct kvd_session *session, uint64_t length, bool is_lossy)
{
    struct kvd_prefix *prefix = session->prefix;
    const uint32_t group = session->shape->group;
    uint32_t block = (uint32_t)(length / group);
    uint32_t row = (uint32_t)(length % group);

    if (prefix == NULL) {
        return;
    }
    prefix->is_closed = prefix->is_closed || is_lossy; /* also where no ids have come yet */
    if (!prefix->has_kind || block > prefix->chain.blocks) {
        return;
    }
    if (block == prefix->chain.blocks) {
        prefix->tail_count = prefix->tail_count < row ? prefix->tail_count : row;
        return;
    }
    prefix->is_closed = prefix->is_closed || row > 0;
    prefix->tail_count = 0;
    prefix->done_blocks = prefix->done_blocks < block ? prefix->done_blocks : block;
    root_make(session, prefix->chain.kind, &prefix->chain);
    prefix->chain.blocks = block;
    if (block > 0) {
        const struct kvd_block *before = kvd_session_block(session, block - 1);
        prefix->is_closed =
            prefix->is_closed || before == NULL || before->state != KVD_BLOCK_RESIDENT;
        if (before != NULL) {
            memcpy(prefix->chain.name, before->name, sizeof(prefix->chain.name));
        }
    }
}

/*
 * Is a layer to leave the block when its append in flight commits? That append made the block the
 * session's own for it: nobody else may get it before.
 */
static bool block_is_being_left(const struct kvd_session *session, uint32_t idx)
{
    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        const struct kvd_layer *ly = &session->layers[i];
        if (idx >= ly->dropped_blocks &&
            idx < kvd_session_window_blocks(session, i, kvd_session_pending_length(session, i))) {
            return true;
        }
    }
    return false;
}

/* Are all layers of a block stored, or will never be? */
static bool block_is_settled(const struct kvd_session *session, uint32_t idx)
{
    const struct kvd_block *block = kvd_session_block(session, idx);
    bool is_sink = idx < kvd_session_sink_blocks(session);

    if (block == NULL) {
        return true;
    }
    if (!is_sink && kvd_block_rows_count(block) > 0) {
        return false;
    }
    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        const struct kvd_layer *ly = &session->layers[i];
        uint64_t end = (uint64_t)(idx + 1) * session->shape->group;
        if (is_sink ? ly->length < end : ly->sealed_blocks <= idx) {
            return false;
        }
    }
    return !block_is_being_left(session, idx);
}

/* Take the block that exists in place of the session's own. */
static void block_adopt(struct kvd_session *session, uint32_t idx, struct kvd_block *existing)
{
    struct kvd_service *service = session->service;

    if (kvd_block_table_own_span(service, &session->table, idx) != 0) {
        return; /* two copies, then */
    }
    struct kvd_block *own = kvd_block_table_swap(&session->table, idx, kvd_block_ref(existing));
    kvd_block_unref_later(service, own);
    kvd_cold_changed(session, idx);
    session->adopted_blocks++;
    kvd_metrics_add(&service->metrics, KVD_METRIC_prefix_blocks_adopted, 1);
}

/* A block whose layers are all there: publish it, or take what was published before. */
static void block_publish(struct kvd_session *session, uint32_t idx)
{
    struct kvd_prefix_index *index = &session->service->prefixes;
    struct kvd_block *block = kvd_block_table_at(&session->table, idx);

    if (block == NULL || block->layers_kept < block->layer_count ||
        block->state != KVD_BLOCK_RESIDENT) {
        return; /* a window moved on before it was whole, or it was evicted */
    }
    struct kvd_prefix_entry *entry = kvd_prefix_entry_find(index, block->name, session->shape, idx);
    if (entry == NULL) {
        entry_add(index, session, idx);
    } else if (entry->block->state != KVD_BLOCK_RESIDENT) {
        kvd_prefix_entry_exchange(index, entry, block);
    } else if (entry->block != block) {
        block_adopt(session, idx, entry->block);
    }
}

/* Publish some of what has become whole; false: there may be more. */
static bool advance_some(struct kvd_session *session)
{
    struct kvd_prefix *prefix = session->prefix;
    int count = 0;

    while (!prefix->is_closed && prefix->done_blocks < prefix->chain.blocks &&
           block_is_settled(session, prefix->done_blocks)) {
        if (count++ == PUBLISHED_PER_STEP) {
            return false;
        }
        block_publish(session, prefix->done_blocks++);
    }
    return true;
}

static void advance_slice_run(struct kvd_slice *slice)
{
    struct kvd_prefix_index *index =
        (void *)((uint8_t *)slice - offsetof(struct kvd_prefix_index, slice));
    struct kvd_slices *slices = &index->service->sessions.slices;
    struct kvd_prefix *prefix;

    while ((prefix = LIST_FIRST(&index->advancing)) != NULL) {
        if (prefix->session->is_dropped || advance_some(prefix->session)) {
            advance_end(prefix);
        }
        if (!kvd_slices_has_time(slices)) {
            break;
        }
    }
    if (!LIST_EMPTY(&index->advancing) && !slice->is_listed) {
        kvd_slices_add(slices, slice);
    }
}

void kvd_prefix_advance(struct kvd_session *session)
{
    struct kvd_prefix *prefix = session->prefix;
    struct kvd_prefix_index *index = &session->service->prefixes;

    if (prefix == NULL || session->is_dropped || prefix->is_advancing || advance_some(session)) {
        return;
    }
    LIST_INSERT_HEAD(&index->advancing, prefix, link);
    prefix->is_advancing = true;
    if (!index->slice.is_listed) {
        kvd_slices_add(&session->service->sessions.slices, &index->slice);
    }
}

int kvd_prefix_begin(struct kvd_session *session, const struct kvd_block_table *blocks,
    const struct kvd_prefix_chain *chain)
{
    uint64_t length = (uint64_t)chain->blocks * session->shape->group;

    KVARN_ASSERT(kvd_session_block_count(session) == 0 && blocks->count == chain->blocks);
    int err = kvd_block_table_clone(session->service, blocks, &session->table);
    if (err != 0) {
        return err;
    }
    for (uint32_t i = 0; i < session->shape->layer_count; i++) {
        struct kvd_layer *ly = &session->layers[i];
        ly->length = (uint32_t)length;
        ly->sealed_blocks = chain->blocks;
        /* Their pages stay in the blocks, which are not the session's own. */
        ly->dropped_blocks = kvd_session_window_blocks(session, i, length);
    }
    session->prefix_tokens = (uint32_t)length;
    if (session->prefix != NULL) {
        session->prefix->chain = *chain;
        session->prefix->has_kind = true;
        session->prefix->done_blocks = chain->blocks;
    }
    return 0;
}
