/*
 * Prefix index: stored blocks by what they hold, so that sessions of one tenant share them
 * (SEMANTICS.md 14, 15).
 *
 * Owner: service. Thread: loop only.
 *
 * The name of a block is a keyed hash (HMAC-SHA256, with a secret made at start) of the name of the
 * block before it and of what is in it: token ids, or a hash that the client made. The first name
 * covers tenant, shape, salt and which of the two it is, so that nothing is ever found across
 * those, and nobody can tell what is not there from what is not theirs. An entry holds a reference
 * to its block; without a session that shares it the entry can be dropped at any time.
 *
 * Only sessions that opted in publish, each block once all its layers are stored, and never after a
 * cut into a block. Where another session stored the same before, that block takes the place of the
 * session's own.
 */
#ifndef KVD_PREFIX_INDEX_H
#define KVD_PREFIX_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <bsd/sys/queue.h>

#include "lib/base/limits.h"
#include "server/io/slices.h"
#include "server/session/block_table.h"
#include "server/session/shape.h"

struct kvd_service;
struct kvd_session;
struct kvd_prefix_entry;

LIST_HEAD(kvd_prefix_bucket, kvd_prefix_entry);
TAILQ_HEAD(kvd_prefix_queue, kvd_prefix_entry);
LIST_HEAD(kvd_prefix_list, kvd_prefix);

struct kvd_prefix_index {
    struct kvd_service *service;       /* borrowed */
    void *mac;                         /* owned: EVP_MAC_CTX with the secret */
    struct kvd_prefix_bucket *buckets; /* owned; NULL until the first entry */
    struct kvd_prefix_queue by_use;    /* least recently matched first; blocks before them last */
    struct kvd_prefix_queue cold;      /* whose blocks left memory, and were not matched since */
    uint64_t count;
    struct kvd_prefix_list advancing; /* sessions with more to publish than one turn has time for */
    struct kvd_slice slice;           /* listed while there are any */
};

enum kvd_prefix_kind {
    KVD_PREFIX_TOKENS, /* 32-bit token ids */
    KVD_PREFIX_HASHES, /* 32-byte hashes, one a block */
};

/* Where a chain of names has come to. */
struct kvd_prefix_chain {
    uint8_t name[KVD_BLOCK_NAME_BYTES]; /* of the last block; at first the root's */
    enum kvd_prefix_kind kind;
    uint32_t blocks;
};

/* What a session that opted in keeps. */
struct kvd_prefix {
    LIST_ENTRY(kvd_prefix) link; /* is_advancing */
    struct kvd_session *session; /* borrowed: whose it is */
    bool is_advancing;
    struct kvd_prefix_chain chain; /* has_kind: blocks with a name */
    uint32_t done_blocks;          /* of them: looked up, and published or not */
    uint32_t tail_count;           /* ids of the block behind the chain */
    uint32_t tail[KVARN_GROUP_MAX];
    bool has_kind;  /* the first ids or hashes came */
    bool is_closed; /* nothing is published any more */
    size_t salt_bytes;
    uint8_t salt[]; /* salt_bytes */
};

/* Returns 0, KVARN_ENOMEM or the error of the random source. */
int kvd_prefix_index_init(
    struct kvd_prefix_index *index, struct kvd_service *service) KVARN_MUST_CHECK;

/* Drops all entries. Accepts a zeroed index. */
void kvd_prefix_index_fini(struct kvd_prefix_index *index);

/* The chain before the first block. */
void kvd_prefix_chain_init(struct kvd_prefix_index *index, const struct kvd_shape *shape,
    const uint8_t *salt, size_t salt_bytes, enum kvd_prefix_kind kind,
    struct kvd_prefix_chain *ret);

/* Go on by a block: `group` ids, or a hash. */
void kvd_prefix_chain_next(
    struct kvd_prefix_index *index, struct kvd_prefix_chain *chain, const void *data, size_t bytes);

/*
 * The block that has the chain's name, of this shape and at its place, whatever its state; NULL:
 * there is none.
 */
struct kvd_block *kvd_prefix_index_find(const struct kvd_prefix_index *index,
    const struct kvd_prefix_chain *chain, const struct kvd_shape *shape);

/*
 * A block was matched: it is dropped after those that were not, and before `before` (NULL: it is
 * the first), the block in front of it, so that a prefix goes from its end.
 */
void kvd_prefix_index_touch(
    struct kvd_prefix_index *index, const struct kvd_block *block, const struct kvd_block *before);

/*
 * Let go of blocks that nobody else holds, the least recently matched first, until `bytes` of pages
 * are let go or 256 entries were looked at. They are freed in slices. What a session has in the
 * cold tier is COLD then, and can be brought back (prefetch.h); other entries are dropped. Returns
 * the bytes.
 */
uint64_t kvd_prefix_index_shrink(struct kvd_prefix_index *index, uint64_t bytes);

/*
 * A block at this place is not what was stored: nobody finds it by this name any more. Nothing if
 * it has none.
 */
void kvd_prefix_index_withdraw(struct kvd_prefix_index *index, const struct kvd_shape *shape,
    uint32_t block_idx, const uint8_t *name);

/* Drop some of the entries that no session has in the cold tier any more, if any. A few us. */
void kvd_prefix_index_tick(struct kvd_prefix_index *index);

/*
 * A block of a session of this shape is in memory again: if the entry of its name is not, it gets
 * this one.
 */
void kvd_prefix_index_renew(struct kvd_prefix_index *index, const struct kvd_shape *shape,
    uint32_t block_idx, struct kvd_block *block);

/* Call back with the block of each entry, the least recently matched first. */
void kvd_prefix_index_walk(const struct kvd_prefix_index *index,
    void (*walk_cb)(void *ctx, const struct kvd_block *block), void *ctx);

/* A session's part. */

/* Opt in. Returns 0, KVARN_ENOSPC or KVARN_ENOMEM. */
int kvd_prefix_enable(
    struct kvd_session *session, const uint8_t *salt, size_t salt_bytes) KVARN_MUST_CHECK;

/* Let a copy be as its original; nothing when that did not opt in. Returns as above. */
int kvd_prefix_copy(const struct kvd_session *from, struct kvd_session *to) KVARN_MUST_CHECK;

/* Free the session's state. */
void kvd_prefix_disable(struct kvd_session *session);

/* What a committed append says of its tokens: ids of all of them, or hashes of the blocks it ends.
 */
struct kvd_prefix_note {
    uint64_t start;
    uint32_t token_count;
    enum kvd_prefix_kind kind;
    const uint8_t *data; /* NULL: nothing was said */
};

/* Names made before the commit, in slices: each costs a microsecond (SEMANTICS.md 18). */
struct kvd_prefix_names {
    uint8_t *names; /* borrowed: room for kvd_prefix_names_room(); NULL: the commit makes them */
    uint8_t before[KVD_BLOCK_NAME_BYTES]; /* of the block in front of the first */
    uint32_t first, count;                /* blocks */
};

/* Blocks to be named ahead; 0: so few that the commit may name them. */
uint32_t kvd_prefix_names_room(
    const struct kvd_session *session, const struct kvd_prefix_note *note);

/* Make one more; false: there is none left to make. */
bool kvd_prefix_names_add(const struct kvd_session *session, const struct kvd_prefix_note *note,
    struct kvd_prefix_names *names);

/*
 * After a commit, while its layers are pending: name some tens of the blocks, again and again until
 * it is true that those were the last. Where names were to be made ahead and are not those that
 * follow from what was said since, by appends to other layers, tokens contradict each other: the
 * session publishes no more.
 */
bool kvd_prefix_note(struct kvd_session *session, const struct kvd_prefix_note *note,
    const struct kvd_prefix_names *names);

/* Bytes of it, in a payload. */
size_t kvd_prefix_note_bytes(const struct kvd_shape *shape, const struct kvd_prefix_note *note);

/* The session was cut to `length`; is_lossy: a layer has decoded rows in place of tiles now. */
void kvd_prefix_cut(struct kvd_session *session, uint64_t length, bool is_lossy);

/* It is this session's now. */
void kvd_prefix_move(struct kvd_prefix *prefix, struct kvd_session *to);

/*
 * Look up and publish what has become whole, in slices where it is much. After a commit and after a
 * seal.
 */
void kvd_prefix_advance(struct kvd_session *session);

/*
 * Begin an empty session with these blocks, of its shape, as if it had stored them. Returns 0 or
 * KVARN_ENOSPC, the session empty.
 */
int kvd_prefix_begin(struct kvd_session *session, const struct kvd_block_table *blocks,
    const struct kvd_prefix_chain *chain) KVARN_MUST_CHECK;

#endif
