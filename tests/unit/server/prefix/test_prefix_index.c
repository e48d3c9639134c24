/*
 * Tests of server/prefix/prefix_index.c and prefix_lease.c: names, what is published and what
 * never, one copy of what is equal, references counted exactly (SEMANTICS.md 14, 15).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/evict/session_evict.h"
#include "server/prefix/prefix_lease.h"
#include "server/session/session_blocks.h"
#include "tests/support/rng.h"
#include "tests/support/session_refs.h"
#include "tests/support/session_rig.h"

#define GROUP      64u
#define TOKENS_MAX 1024u

static const struct kvd_layer_group plain_groups[] = {
    {.layers = 2, .kv_heads = 1, .k_dim = 8, .v_dim = 8}};
static const struct kvd_layer_group window_groups[] = {
    {.layers = 1, .kv_heads = 1, .k_dim = 8, .v_dim = 8},
    {.layers = 1, .kv_heads = 1, .k_dim = 8, .v_dim = 8, .window = 100}};
static const struct kvd_shape_desc plain = {.model = "plain",
    .group = GROUP,
    .k_bits = 2,
    .v_bits = 2,
    .sink_tokens = GROUP,
    .layer_groups = plain_groups,
    .layer_group_count = 1};

static struct kvd_session *open_with_salt(struct kvt_rig *rig, const char *salt)
{
    struct kvd_session *session = kvt_session_open(rig, NULL, 0);

    assert_int_equal(kvd_prefix_enable(session, (const uint8_t *)salt, strlen(salt)), 0);
    return session;
}

/* Append tokens with their ids; K and V follow from ids, as they do from a model. */
static void feed(
    struct kvt_rig *rig, struct kvd_session *session, const uint32_t *ids, uint32_t count)
{
    uint64_t start = session->layers[0].length;
    struct kvt_append append = kvt_append_of(session, count, ids[start]);

    append.prefix_data = ids + start;
    assert_int_equal(kvt_append_now(rig, &append), 0);
}

static uint32_t match(struct kvt_rig *rig, const struct kvd_shape *shape, const char *salt,
    const uint32_t *ids, uint32_t count)
{
    struct kvd_prefix_index *index = &rig->service.prefixes;
    struct kvd_prefix_chain chain;
    uint32_t blocks = 0;

    kvd_prefix_chain_init(
        index, shape, (const uint8_t *)salt, strlen(salt), KVD_PREFIX_TOKENS, &chain);
    while ((blocks + 1) * GROUP <= count) {
        kvd_prefix_chain_next(index, &chain, ids + blocks * GROUP, GROUP * sizeof(uint32_t));
        if (kvd_prefix_index_find(index, &chain, shape) == NULL) {
            break;
        }
        blocks++;
    }
    return blocks;
}

static void ids_fill(uint32_t *ids, uint32_t seed)
{
    for (uint32_t i = 0; i < TOKENS_MAX; i++) {
        ids[i] = seed * 100000 + i;
    }
}

static void drop(struct kvt_rig *rig, struct kvd_session *session)
{
    kvt_session_drop(rig, session);
    kvt_rig_settle(rig);
}

static void test_s15_only_who_opts_in_publishes(void **state)
{
    uint32_t ids[TOKENS_MAX];
    struct kvt_rig rig;
    (void)state;

    ids_fill(ids, 1);
    kvt_rig_init(&rig, &(struct kvt_rig_options){.shape = &plain});
    struct kvd_session *shy = kvt_session_open(&rig, NULL, 0);
    feed(&rig, shy, ids, 200);
    assert_int_equal(match(&rig, rig.shape, "", ids, TOKENS_MAX), 0);
    struct kvd_session *session = open_with_salt(&rig, "");
    feed(&rig, session, ids, 100);
    assert_int_equal(match(&rig, rig.shape, "", ids, TOKENS_MAX), 1);
    feed(&rig, session, ids, 100);
    assert_int_equal(match(&rig, rig.shape, "", ids, TOKENS_MAX), 3);
    assert_int_equal(match(&rig, rig.shape, "", ids, 191), 2);
    assert_int_equal(rig.service.prefixes.count, 3);
    drop(&rig, shy);
    drop(&rig, session); /* what was published stays */
    assert_int_equal(match(&rig, rig.shape, "", ids, TOKENS_MAX), 3);
    kvt_rig_fini(&rig);
}

static void test_s15_nothing_is_found_across_salts_shapes_and_kinds(void **state)
{
    struct kvd_shape_desc desc = plain;
    const struct kvd_shape *other;
    uint32_t ids[TOKENS_MAX];
    char text[192];
    struct kvt_rig rig;
    (void)state;

    ids_fill(ids, 1);
    kvt_rig_init(&rig, &(struct kvt_rig_options){.shape = &plain});
    struct kvd_session *session = open_with_salt(&rig, "a");
    feed(&rig, session, ids, 200);
    desc.model = "other";
    assert_int_equal(kvd_shape_register(&rig.service.shapes, KVD_TENANT_DEFAULT, &desc, &other,
                         text, sizeof(text)),
        0);
    const struct kvd_shape *foreign;
    assert_int_equal(kvd_shape_register(&rig.service.shapes, KVD_TENANT_DEFAULT + 1, &plain,
                         &foreign, text, sizeof(text)),
        0);
    assert_int_equal(match(&rig, rig.shape, "a", ids, TOKENS_MAX), 3);
    assert_int_equal(match(&rig, rig.shape, "b", ids, TOKENS_MAX), 0);
    assert_int_equal(match(&rig, rig.shape, "", ids, TOKENS_MAX), 0);
    assert_int_equal(match(&rig, other, "a", ids, TOKENS_MAX), 0);
    assert_int_equal(match(&rig, foreign, "a", ids, TOKENS_MAX), 0); /* another tenant */
    struct kvd_prefix_chain tokens, hashes;
    kvd_prefix_chain_init(
        &rig.service.prefixes, rig.shape, (const uint8_t *)"a", 1, KVD_PREFIX_TOKENS, &tokens);
    kvd_prefix_chain_init(
        &rig.service.prefixes, rig.shape, (const uint8_t *)"a", 1, KVD_PREFIX_HASHES, &hashes);
    assert_memory_not_equal(tokens.name, hashes.name, sizeof(tokens.name));
    drop(&rig, session);
    kvt_rig_fini(&rig);
}

/* Two sessions store the same: one copy is left, and both read what the first one stored. */
static void test_s15_one_copy_of_what_is_equal(void **state)
{
    uint32_t ids[TOKENS_MAX];
    struct kvt_rig rig;
    (void)state;

    ids_fill(ids, 1);
    kvt_rig_init(&rig, &(struct kvt_rig_options){.shape = &plain});
    struct kvd_session *first = open_with_salt(&rig, "");
    feed(&rig, first, ids, 300);
    uint64_t tiles = rig.service.pages.classes[KVD_PAGE_TILES].pages;
    uint64_t sinks = rig.service.pages.classes[KVD_PAGE_SINK].pages;
    struct kvd_session *second = open_with_salt(&rig, "");
    ids[250] = 7; /* block 3 differs */
    feed(&rig, second, ids, 256);
    assert_int_equal(second->adopted_blocks, 3);
    for (uint32_t b = 0; b < 4; b++) {
        assert_int_equal(kvd_session_block(first, b) == kvd_session_block(second, b), b < 3);
    }
    assert_int_equal(rig.service.pages.classes[KVD_PAGE_SINK].pages, sinks);
    assert_int_equal(rig.service.pages.classes[KVD_PAGE_TILES].pages, tiles + 2);
    assert_int_equal(rig.service.prefixes.count, 5);
    drop(&rig, first);
    drop(&rig, second);
    kvt_rig_fini(&rig);
}

static void test_s15_never_after_a_cut_into_a_block(void **state)
{
    static const struct {
        uint64_t cut;
        uint32_t found; /* of the second text, after it */
    } cases[] = {{128, 5}, {150, 2}, {310, 5}, {0, 5}, {30, 0}};
    uint32_t ids[TOKENS_MAX], other[TOKENS_MAX];
    (void)state;

    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct kvt_rig rig;
        ids_fill(ids, 1);
        memcpy(other, ids, sizeof(ids));
        for (uint64_t t = cases[i].cut; t < TOKENS_MAX; t++) {
            other[t] += 50000;
        }
        kvt_rig_init(&rig, &(struct kvt_rig_options){.shape = &plain});
        struct kvd_session *session = open_with_salt(&rig, "");
        feed(&rig, session, ids, 315); /* blocks 0 to 3, and 59 ids of block 4 */
        assert_int_equal(kvt_truncate_now(&rig, session, cases[i].cut), 0);
        feed(&rig, session, other, (uint32_t)(350 - cases[i].cut));
        assert_int_equal(match(&rig, rig.shape, "", other, 350), cases[i].found);
        assert_int_equal(match(&rig, rig.shape, "", ids, 315), 4); /* it was stored once */
        drop(&rig, session);
        kvt_rig_fini(&rig);
    }
}

/* Tokens without ids in between, or a window that has moved on: no more than what is whole. */
static void test_s15_gaps_and_windows_are_not_published(void **state)
{
    struct kvd_shape_desc windows = plain;
    uint32_t ids[TOKENS_MAX];
    struct kvt_rig rig;
    (void)state;

    ids_fill(ids, 1);
    kvt_rig_init(&rig, &(struct kvt_rig_options){.shape = &plain});
    struct kvd_session *session = open_with_salt(&rig, "");
    feed(&rig, session, ids, 70);
    struct kvt_append append = kvt_append_of(session, 10, 1);
    assert_int_equal(kvt_append_now(&rig, &append), 0);
    feed(&rig, session, ids, 300);
    assert_int_equal(match(&rig, rig.shape, "", ids, TOKENS_MAX), 1);
    drop(&rig, session);
    kvt_rig_fini(&rig);

    windows.layer_groups = window_groups;
    windows.layer_group_count = 2;
    kvt_rig_init(&rig, &(struct kvt_rig_options){.shape = &windows});
    session = open_with_salt(&rig, "");
    feed(&rig, session, ids, 600); /* at once: the window layer never had blocks 0 to 5 sealed */
    assert_int_equal(match(&rig, rig.shape, "", ids, TOKENS_MAX), 0);
    drop(&rig, session);
    session = open_with_salt(&rig, "");
    for (int i = 0; i < 12; i++) {
        feed(&rig, session, ids, 50); /* piece by piece it had */
    }
    assert_int_equal(match(&rig, rig.shape, "", ids, TOKENS_MAX), 9);
    drop(&rig, session);
    kvt_rig_fini(&rig);
}

/*
 * A layer of a window is to leave blocks with an append in flight when another layer's seal makes
 * them whole: they stay the session's own until the append is done.
 */
static void test_s15_blocks_that_are_being_left_are_not_published(void **state)
{
    struct kvd_shape_desc windows = plain;
    uint32_t ids[TOKENS_MAX];
    (void)state;

    windows.layer_groups = window_groups;
    windows.layer_group_count = 2;
    ids_fill(ids, 1);
    for (int has_other = 0; has_other < 2; has_other++) {
        struct kvt_rig rig;
        kvt_rig_init(&rig, &(struct kvt_rig_options){.shape = &windows, .workers = 1});
        struct kvd_session *other = open_with_salt(&rig, "");
        if (has_other) { /* its blocks would be adopted */
            feed(&rig, other, ids, 200);
        }
        struct kvd_session *session = open_with_salt(&rig, "");
        struct kvt_append ahead = kvt_append_of(session, 200, 1);
        ahead.layer_first = ahead.layer_count = 1;
        assert_int_equal(kvt_append_now(&rig, &ahead), 0);
        struct kvt_append behind = kvt_append_of(session, 200, 1);
        behind.layer_count = 1;
        behind.prefix_data = ids;
        assert_int_equal(kvt_append_begin(&rig, &behind), 0); /* its seals are in flight now */
        struct kvt_append leaving = kvt_append_of(session, 400, 2);
        leaving.layer_first = leaving.layer_count = 1;
        leaving.start = 200;
        leaving.is_batched = true;
        assert_int_equal(kvt_append_begin(&rig, &leaving), 0);
        assert_false(leaving.outcome.is_done);
        kvt_rig_settle(&rig);
        assert_true(behind.outcome.is_done && behind.outcome.why.err == 0);
        assert_true(leaving.outcome.is_done && leaving.outcome.why.err == 0);
        assert_int_equal(session->layers[1].dropped_blocks, 6);
        kvt_append_fini(&behind);
        kvt_append_fini(&leaving);
        drop(&rig, session);
        drop(&rig, other);
        kvt_rig_fini(&rig);
    }
}

/* A layer was cut into a block before anything was said of its tokens: not what was stored. */
static void test_s15_never_after_a_cut_that_came_before_the_ids(void **state)
{
    uint32_t ids[TOKENS_MAX];
    struct kvt_rig rig;
    (void)state;

    ids_fill(ids, 1);
    kvt_rig_init(&rig, &(struct kvt_rig_options){.shape = &plain});
    struct kvd_session *session = open_with_salt(&rig, "");
    struct kvt_append append = kvt_append_of(session, 256, 1);
    append.layer_count = 1;
    assert_int_equal(kvt_append_now(&rig, &append), 0);
    assert_int_equal(kvt_truncate_now(&rig, session, 100), 0); /* re-opens block 1 of layer 0 */
    append = kvt_append_of(session, 156, 1);
    append.layer_count = 1;
    append.start = 100;
    assert_int_equal(kvt_append_now(&rig, &append), 0);
    append = kvt_append_of(session, 256, 1);
    append.layer_first = append.layer_count = 1;
    append.start = 0;
    append.prefix_data = ids;
    assert_int_equal(kvt_append_now(&rig, &append), 0);
    assert_int_equal(kvd_session_length(session), 256);
    assert_true(match(&rig, rig.shape, "", ids, TOKENS_MAX) <= 1);
    drop(&rig, session);
    kvt_rig_fini(&rig);
}

#define LONG_TOKENS 3000u

/* What is said of a long sequence: ids, or a hash a block. `other` departs from it at a token. */
struct long_words {
    enum kvd_prefix_kind kind;
    size_t unit_bytes; /* of an id, or a hash */
    uint32_t unit_tokens;
    uint8_t words[LONG_TOKENS * sizeof(uint32_t)], other[LONG_TOKENS * sizeof(uint32_t)];
};

static void long_words_fill(struct long_words *said, enum kvd_prefix_kind kind)
{
    bool is_hashes = kind == KVD_PREFIX_HASHES;

    said->kind = kind;
    said->unit_bytes = is_hashes ? KVD_BLOCK_NAME_BYTES : sizeof(uint32_t);
    said->unit_tokens = is_hashes ? GROUP : 1;
    for (uint32_t i = 0; i < LONG_TOKENS / said->unit_tokens; i++) {
        uint32_t word = 7 * i, contrary = i * said->unit_tokens < 1000 ? word : word + 1;
        memcpy(said->words + i * said->unit_bytes, &word, sizeof(word));
        memcpy(said->other + i * said->unit_bytes, &contrary, sizeof(contrary));
    }
}

/* Blocks of the words that the index finds. */
static uint32_t long_match(struct kvt_rig *rig, const struct long_words *said)
{
    struct kvd_prefix_index *index = &rig->service.prefixes;
    size_t block_bytes = GROUP / said->unit_tokens * said->unit_bytes;
    struct kvd_prefix_chain chain;
    uint32_t blocks = 0;

    kvd_prefix_chain_init(index, rig->shape, NULL, 0, said->kind, &chain);
    for (; blocks < LONG_TOKENS / GROUP; blocks++) {
        kvd_prefix_chain_next(index, &chain, said->words + blocks * block_bytes, block_bytes);
        if (kvd_prefix_index_find(index, &chain, rig->shape) == NULL) {
            break;
        }
    }
    return blocks;
}

/* Two layers take long appends at once; the shorter one commits first. */
static void long_appends(struct kvt_rig *rig, const struct long_words *said, bool is_contrary)
{
    struct kvd_session *session = open_with_salt(rig, "");
    struct kvt_append appends[2], first = kvt_append_of(session, 100, 1);

    first.prefix_kind = said->kind;
    first.prefix_data = said->words;
    assert_int_equal(kvt_append_now(rig, &first), 0);
    for (uint32_t i = 0; i < 2; i++) {
        const uint8_t *words = is_contrary && i == 0 ? said->other : said->words;
        appends[i] = kvt_append_of(session, i == 0 ? 2500 : LONG_TOKENS - 100, 1);
        appends[i].layer_first = i;
        appends[i].layer_count = 1;
        appends[i].start = 100;
        appends[i].is_batched = true;
        appends[i].prefix_kind = said->kind;
        appends[i].prefix_data = words + 100 / said->unit_tokens * said->unit_bytes;
        assert_int_equal(kvt_append_begin(rig, &appends[i]), 0);
        assert_false(appends[i].outcome.is_done);
    }
    kvt_rig_settle(rig);
    for (uint32_t i = 0; i < 2; i++) {
        assert_true(appends[i].outcome.is_done && appends[i].outcome.why.err == 0);
        kvt_append_fini(&appends[i]);
    }
    /* What contradicts the first closes the session. */
    assert_int_equal(session->prefix->is_closed, is_contrary);
    assert_int_equal(session->prefix->chain.blocks, (is_contrary ? 2600 : LONG_TOKENS) / GROUP);
    assert_int_equal(long_match(rig, said), is_contrary ? 1 : 2600 / GROUP);
    drop(rig, session);
}

/* Names of long appends are made in slices before the commit; they are the same. */
static void test_s18_long_appends_are_named_ahead(void **state)
{
    static struct long_words said;
    (void)state;

    for (int i = 0; i < 4; i++) {
        struct kvt_rig rig;
        kvt_rig_init(&rig, &(struct kvt_rig_options){.shape = &plain, .workers = 1});
        kvd_io_fake_set_tick(rig.fake, 3000); /* some 30 steps a turn */
        long_words_fill(&said, i / 2 == 0 ? KVD_PREFIX_TOKENS : KVD_PREFIX_HASHES);
        long_appends(&rig, &said, i % 2 != 0);
        kvt_rig_fini(&rig);
    }
}

/* A session begins with a prefix: its pages are the first one's, and it goes on from there. */
static void test_s15_a_session_begins_with_a_prefix(void **state)
{
    uint32_t ids[TOKENS_MAX];
    struct kvd_block_table blocks = {0};
    struct kvd_prefix_chain chain;
    struct kvt_rig rig;
    (void)state;

    ids_fill(ids, 1);
    kvt_rig_init(&rig, &(struct kvt_rig_options){.shape = &plain});
    struct kvd_session *first = open_with_salt(&rig, "s");
    feed(&rig, first, ids, 300);
    kvd_prefix_chain_init(
        &rig.service.prefixes, rig.shape, (const uint8_t *)"s", 1, KVD_PREFIX_TOKENS, &chain);
    for (uint32_t b = 0; b < 4; b++) {
        kvd_prefix_chain_next(
            &rig.service.prefixes, &chain, ids + b * GROUP, GROUP * sizeof(uint32_t));
        struct kvd_block *block = kvd_prefix_index_find(&rig.service.prefixes, &chain, rig.shape);
        assert_non_null(block);
        assert_int_equal(kvd_block_table_reserve(&rig.service, &blocks), 0);
        kvd_block_table_push(&blocks, kvd_block_ref(block));
    }
    struct kvd_session *session = open_with_salt(&rig, "s");
    assert_int_equal(kvd_prefix_begin(session, &blocks, &chain), 0);
    kvd_block_table_clear(&rig.service, &blocks);
    assert_int_equal(kvd_session_length(session), 256);
    assert_int_equal(session->prefix_tokens, 256);
    assert_ptr_equal(kvd_session_block(session, 3), kvd_session_block(first, 3));
    feed(&rig, session, ids, 100); /* ends block 4, which the first one did not reach */
    assert_int_equal(match(&rig, rig.shape, "s", ids, TOKENS_MAX), 5);
    struct kvt_attend attend = kvt_attend_of(session, 0, 1, 1);
    assert_int_equal(kvt_attend_now(&rig, &attend), 0);
    kvt_attend_fini(&attend);
    assert_int_equal(kvt_truncate_now(&rig, session, 100), 0); /* re-opens a shared block: a copy */
    assert_ptr_not_equal(kvd_session_block(session, 1), kvd_session_block(first, 1));
    drop(&rig, first);
    drop(&rig, session);
    kvt_rig_fini(&rig);
}

/* A session's blocks are evicted: what it published stays, and it goes on publishing. */
static void test_s15_eviction_leaves_what_is_published(void **state)
{
    uint32_t ids[TOKENS_MAX];
    uint64_t freed = 0;
    struct kvt_refs refs;
    struct kvt_rig rig;
    (void)state;

    ids_fill(ids, 1);
    kvt_rig_init(&rig, &(struct kvt_rig_options){.shape = &plain});
    struct kvd_session *session = open_with_salt(&rig, "");
    feed(&rig, session, ids, 300);
    assert_int_equal(kvd_session_evict(session, 2, &freed), 2);
    assert_int_equal(freed, 0); /* the index has them */
    assert_int_equal(match(&rig, rig.shape, "", ids, TOKENS_MAX), 4);
    feed(&rig, session, ids, 100);
    assert_int_equal(match(&rig, rig.shape, "", ids, TOKENS_MAX), 6);
    assert_int_equal(kvd_prefix_index_shrink(&rig.service.prefixes, UINT64_MAX),
        2 * rig.shape->block_tiles_bytes); /* now they go */
    kvt_rig_settle(&rig);
    assert_int_equal(match(&rig, rig.shape, "", ids, TOKENS_MAX), 2);
    assert_int_equal(kvt_truncate_now(&rig, session, 256), 0); /* behind a block that is gone */
    ids[300] = 9;
    feed(&rig, session, ids, 100);
    assert_int_equal(rig.service.prefixes.count, 4); /* its name is not known any more */
    kvt_refs_init(&refs);
    kvt_refs_add_session(&refs, session);
    kvt_refs_add_index(&refs, &rig.service.prefixes);
    assert_int_equal(kvt_refs_check(&refs, &rig.service), 0);
    kvt_refs_fini(&refs);
    drop(&rig, session);
    kvt_rig_fini(&rig);
}

/* Only what nobody else holds goes, and of a prefix the end first. */
static void test_shrink_drops_what_is_unused(void **state)
{
    uint32_t ids[TOKENS_MAX];
    struct kvt_rig rig;
    (void)state;

    ids_fill(ids, 1);
    kvt_rig_init(&rig, &(struct kvt_rig_options){.shape = &plain});
    struct kvd_session *session = open_with_salt(&rig, "");
    feed(&rig, session, ids, 400);
    assert_int_equal(kvd_prefix_index_shrink(&rig.service.prefixes, UINT64_MAX), 0);
    assert_int_equal(match(&rig, rig.shape, "", ids, TOKENS_MAX), 6);
    drop(&rig, session);
    assert_int_equal(
        kvd_prefix_index_shrink(&rig.service.prefixes, 1), rig.shape->block_tiles_bytes);
    kvt_rig_settle(&rig);
    assert_int_equal(match(&rig, rig.shape, "", ids, TOKENS_MAX), 5);
    assert_true(kvd_prefix_index_shrink(&rig.service.prefixes, UINT64_MAX) > 0);
    kvt_rig_settle(&rig);
    assert_int_equal(rig.service.prefixes.count, 0);
    assert_int_equal(rig.service.pages.classes[KVD_PAGE_TILES].pages, 0);
    kvt_rig_fini(&rig);
}

static void test_leases_end_with_their_time_or_their_table(void **state)
{
    struct kvd_prefix_lease_table table = {0};
    struct kvd_prefix_chain root;
    uint32_t ids[TOKENS_MAX];
    struct kvt_rig rig;
    (void)state;

    ids_fill(ids, 1);
    kvt_rig_init(&rig, &(struct kvt_rig_options){.shape = &plain});
    struct kvd_session *session = open_with_salt(&rig, "");
    feed(&rig, session, ids, 64);
    struct kvd_block *block = kvd_block_table_at(&session->table, 0);
    kvd_prefix_chain_init(&rig.service.prefixes, rig.shape, NULL, 0, KVD_PREFIX_TOKENS, &root);
    for (int i = 0; i < 2; i++) {
        struct kvd_prefix_lease *lease = kvd_prefix_lease_create(&rig.service, rig.shape, &root);
        struct kvd_prefix_chain chain = root;
        chain.blocks = 1;
        assert_int_equal(kvd_prefix_lease_add(lease, block, &chain), 0);
        assert_int_equal(kvd_prefix_lease_insert(&table, lease, i == 0 ? 100 : 5000), 0);
        assert_ptr_equal(kvd_prefix_lease_find(&table, lease->id), lease);
    }
    assert_int_equal(block->refs, 4);
    kvd_io_fake_advance_ms(rig.fake, 101);
    kvt_rig_settle(&rig);
    assert_int_equal(table.count, 1);
    assert_null(kvd_prefix_lease_find(&table, 1));
    assert_int_equal(block->refs, 3);
    kvd_prefix_lease_table_fini(&table);
    assert_int_equal(table.count, 0);
    kvt_rig_settle(&rig);
    assert_int_equal(block->refs, 2);
    drop(&rig, session);
    kvt_rig_fini(&rig);
}

/* Random sessions of few texts and salts: references exact, and found is what was stored. */
#define SESSIONS 5
#define TEXTS    3

struct actor {
    struct kvd_session *session;
    uint32_t text, salt;
    bool is_cut; /* into a block: it publishes no more */
};

struct stage {
    struct kvt_rig rig;
    struct kvt_rng rng;
    struct actor actors[SESSIONS];
    uint32_t ids[TEXTS][TOKENS_MAX];
    uint32_t most[2][TEXTS]; /* tokens that a session of this salt and text has published */
};

static const char *const salts[] = {"x", "y"};

static void actor_open(struct stage *stage, struct actor *actor)
{
    *actor = (struct actor){
        .text = kvt_rng_below(&stage->rng, TEXTS), .salt = kvt_rng_below(&stage->rng, 2)};
    actor->session = open_with_salt(&stage->rig, salts[actor->salt]);
}

static void stage_check(struct stage *stage, uint64_t index_entries)
{
    struct kvt_refs refs;

    kvt_refs_init(&refs);
    for (int i = 0; i < SESSIONS; i++) {
        kvt_refs_add_session(&refs, stage->actors[i].session);
    }
    kvt_refs_add_index(&refs, &stage->rig.service.prefixes);
    assert_int_equal(kvt_refs_check(&refs, &stage->rig.service), 0);
    assert_int_equal(stage->rig.service.prefixes.count, index_entries);
    kvt_refs_fini(&refs);
}

static uint64_t entries_expected(const struct stage *stage)
{
    uint64_t count = 0;

    for (int s = 0; s < 2; s++) {
        for (int t = 0; t < TEXTS; t++) {
            count += stage->most[s][t] / GROUP;
        }
    }
    return count;
}

static void actor_act(struct stage *stage, struct actor *actor)
{
    uint64_t length = kvd_session_length(actor->session);
    uint32_t count = 1 + kvt_rng_below(&stage->rng, 150);
    uint32_t *most = &stage->most[actor->salt][actor->text];
    uint64_t cut = kvt_rng_below(&stage->rng, (uint32_t)length + 1);

    switch (kvt_rng_below(&stage->rng, 8)) {
    case 0:
        drop(&stage->rig, actor->session);
        actor_open(stage, actor);
        return;
    case 1:
        assert_int_equal(kvt_truncate_now(&stage->rig, actor->session, cut), 0);
        actor->is_cut = actor->is_cut || (cut % GROUP != 0 && cut / GROUP < length / GROUP);
        return;
    case 2: { /* a copy goes on as its original would */
        struct actor *other = &stage->actors[kvt_rng_below(&stage->rng, SESSIONS)];
        if (other == actor) {
            return;
        }
        struct kvd_session *copy = kvt_fork_now(&stage->rig, actor->session, UINT64_MAX);
        drop(&stage->rig, other->session);
        *other = *actor;
        other->session = copy;
        return;
    }
    default:
        if (length + count > TOKENS_MAX) {
            return;
        }
        feed(&stage->rig, actor->session, stage->ids[actor->text], count);
        length += count;
        if (!actor->is_cut && length > *most) {
            *most = (uint32_t)length;
        }
    }
}

static void test_s15_references_are_exact_whatever_is_done(void **state)
{
    static struct stage stage;
    uint64_t adopted = 0, published = 0;
    (void)state;

    for (uint64_t seed = 0; seed < 12; seed++) {
        memset(&stage, 0, sizeof(stage));
        stage.rng.state = seed;
        kvt_rig_init(&stage.rig, &(struct kvt_rig_options){.shape = &plain});
        for (uint32_t t = 0; t < TEXTS; t++) {
            ids_fill(stage.ids[t], t + 1);
        }
        for (int i = 0; i < SESSIONS; i++) {
            actor_open(&stage, &stage.actors[i]);
        }
        for (int step = 0; step < 150; step++) {
            actor_act(&stage, &stage.actors[kvt_rng_below(&stage.rng, SESSIONS)]);
            stage_check(&stage, entries_expected(&stage));
            uint32_t s = kvt_rng_below(&stage.rng, 2), t = kvt_rng_below(&stage.rng, TEXTS);
            assert_int_equal(match(&stage.rig, stage.rig.shape, salts[s], stage.ids[t], TOKENS_MAX),
                stage.most[s][t] / GROUP);
        }
        adopted += stage.rig.service.metrics.values[KVD_METRIC_prefix_blocks_adopted];
        published += stage.rig.service.metrics.values[KVD_METRIC_prefix_blocks_published];
        for (int i = 0; i < SESSIONS; i++) {
            drop(&stage.rig, stage.actors[i].session);
        }
        kvt_rig_fini(&stage.rig);
    }
    printf("12 seeds of 150 steps: %llu blocks published, %llu adopted, wrong 0\n",
        (unsigned long long)published, (unsigned long long)adopted);
    assert_true(published > 100 && adopted > 100);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_s15_only_who_opts_in_publishes),
    cmocka_unit_test(test_s15_nothing_is_found_across_salts_shapes_and_kinds),
    cmocka_unit_test(test_s15_one_copy_of_what_is_equal),
    cmocka_unit_test(test_s15_never_after_a_cut_into_a_block),
    cmocka_unit_test(test_s15_gaps_and_windows_are_not_published),
    cmocka_unit_test(test_s15_blocks_that_are_being_left_are_not_published),
    cmocka_unit_test(test_s15_never_after_a_cut_that_came_before_the_ids),
    cmocka_unit_test(test_s18_long_appends_are_named_ahead),
    cmocka_unit_test(test_s15_a_session_begins_with_a_prefix),
    cmocka_unit_test(test_s15_eviction_leaves_what_is_published),
    cmocka_unit_test(test_shrink_drops_what_is_unused),
    cmocka_unit_test(test_leases_end_with_their_time_or_their_table),
    cmocka_unit_test(test_s15_references_are_exact_whatever_is_done),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
