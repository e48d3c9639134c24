/*
 * Tests of server/read/verify.c, verify_check.c and verify_repair.c: a bit that flips is found
 * where it is, in memory and on disk, and what is known to be wrong is given to nobody
 * (SEMANTICS.md 14).
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
#include "server/read/read.h"
#include "server/read/verify.h"
#include "tests/support/fake_disk.h"
#include "tests/support/session_cold.h"

#define GROUP  64u
#define BLOCKS 6u
#define TOKENS (BLOCKS * GROUP + 10)

/* What a verification came to. */
struct outcome {
    struct kvd_verify_totals totals;
    struct kvd_verify *token;
    uint32_t next_block;
    unsigned done_count;
};

static void done_cb(void *ctx, uint32_t next_block)
{
    struct outcome *outcome = ctx;

    outcome->next_block = next_block;
    outcome->done_count++;
}

static void begin(struct outcome *outcome, struct kvd_session *session, uint32_t first)
{
    struct kvd_verify_args args = {.session = session,
        .block_first = first,
        .blocks_max = KVARN_VERIFY_BLOCKS_MAX,
        .end_ns = UINT64_MAX,
        .totals = &outcome->totals,
        .ctx = outcome,
        .done_cb = done_cb};

    *outcome = (struct outcome){0};
    assert_int_equal(kvd_verify_start(&args, &outcome->token), 0);
    assert_int_equal(outcome->done_count, 0); /* from a later turn */
}

static struct outcome verify(struct kvt_rig *rig, struct kvd_session *session)
{
    struct outcome outcome;

    begin(&outcome, session, 0);
    kvt_rig_settle(rig);
    assert_int_equal(outcome.done_count, 1);
    assert_int_equal(outcome.next_block, UINT32_MAX);
    return outcome;
}

/* One finding, of a block. */
static void assert_found(const struct outcome *outcome, uint32_t block_idx, uint32_t wrong_pages,
    int record_err, enum kvd_verify_outcome became)
{
    assert_int_equal(outcome->totals.finding_count, 1);
    const struct kvd_verify_finding *finding = &outcome->totals.findings[0];
    assert_int_equal(finding->part, KVD_VERIFY_BLOCK);
    assert_int_equal(finding->block_idx, block_idx);
    assert_int_equal(finding->wrong_pages, wrong_pages);
    assert_int_equal(finding->record_err, record_err);
    assert_int_equal(finding->outcome, became);
}

static uint8_t *page_of(const struct kvd_session *session, uint32_t block_idx, uint32_t layer)
{
    const struct kvd_block *block = kvd_session_block(session, block_idx);

    return kvd_page_data(kvd_block_tiles(&session->service->pages, block, layer));
}

static void flip_page(struct kvd_session *session, uint32_t block_idx, uint32_t layer)
{
    page_of(session, block_idx, layer)[77] ^= 0x10;
}

static int attend(struct kvt_rig *rig, struct kvd_session *session, uint32_t first_block,
    uint32_t last_block, float *ret_first)
{
    struct kvt_attend attend = kvt_attend_of(session, 1, 1, 3);

    attend.args.is_causal = false;
    attend.args.first = (uint64_t)first_block * GROUP;
    attend.args.last = (uint64_t)last_block * GROUP;
    attend.op.block_first = first_block;
    attend.op.block_last = last_block;
    int err = kvt_attend_now(rig, &attend);
    if (err == 0 && ret_first != NULL) {
        memcpy(ret_first, attend.out, sizeof(*ret_first));
    }
    if (err == KVARN_EMISS) {
        assert_int_equal(attend.outcome.why.reason, KVARND__MISS_REASON__MISS_CHECKSUM);
    }
    kvt_attend_fini(&attend);
    return err;
}

static struct kvd_session *open_filled(struct kvt_rig *rig, const char *name, uint64_t seed)
{
    struct kvd_session *session = kvt_session_open(rig, name, 0);

    kvt_cold_append(rig, session, NULL, TOKENS, seed);
    return session;
}

/* Any bit of a page, in any number of jobs; the rest stays, and a cut makes the session whole. */
static void test_s14_wrong_page_goes_missing(void **state)
{
    (void)state;
    for (unsigned workers = 0; workers <= 2; workers += 2) {
        struct kvt_rig rig;
        kvt_rig_init(&rig, &(struct kvt_rig_options){.workers = workers});
        struct kvd_session *session = open_filled(&rig, "s", 1);
        struct outcome seen = verify(&rig, session);
        assert_int_equal(seen.totals.finding_count, 0);
        assert_int_equal(seen.totals.blocks, BLOCKS + 1);
        /* Five sealed blocks of two layers; of the third layer its window's. Sink and tail. */
        assert_int_equal(seen.totals.pages, 2 * (BLOCKS - 1) + 3);
        assert_int_equal(seen.totals.rows_pages, 2 * 2 + 1);
        assert_int_equal(seen.totals.records, 0);

        flip_page(session, 3, 1);
        seen = verify(&rig, session);
        assert_found(&seen, 3, 1, 0, KVD_VERIFY_LOST);
        assert_int_equal(seen.totals.findings[0].layer, 1);
        assert_int_equal(seen.totals.wrong_pages, 1);
        assert_int_equal(rig.service.metrics.values[KVD_METRIC_verify_wrong_pages], 1);
        assert_int_equal(attend(&rig, session, 3, 4, NULL), KVARN_EMISS);
        assert_int_equal(attend(&rig, session, 0, 6, NULL), KVARN_EMISS);
        assert_int_equal(attend(&rig, session, 0, 3, NULL), 0);
        assert_int_equal(attend(&rig, session, 4, 6, NULL), 0);
        seen = verify(&rig, session);
        assert_int_equal(seen.totals.finding_count, 0);

        /* One before and one behind it: blocks between them stay. */
        flip_page(session, 1, 0);
        flip_page(session, 5, 2);
        seen = verify(&rig, session);
        assert_int_equal(seen.totals.finding_count, 2);
        assert_int_equal(session->missing_first, 1);
        assert_int_equal(session->missing_last, 6);
        assert_int_equal(session->cold.restored_blocks, 2);
        assert_int_equal(attend(&rig, session, 2, 3, NULL), 0);
        assert_int_equal(attend(&rig, session, 4, 5, NULL), 0);
        assert_int_equal(attend(&rig, session, 5, 6, NULL), KVARN_EMISS);
        kvt_cold_append(&rig, session, NULL, 1, 5); /* the tail is there */
        assert_int_equal(kvt_truncate_now(&rig, session, 0), 0);
        assert_false(kvd_session_has_missing(session));
        kvt_session_drop(&rig, session);
        kvt_rig_fini(&rig);
    }
}

/* What is shared is looked at with each session, and each parts from it. */
static void test_s14_shared_pages(void **state)
{
    (void)state;
    struct kvt_rig rig;
    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    struct kvd_session *parent = open_filled(&rig, "parent", 1);
    struct kvd_session *child = kvt_fork_now(&rig, parent, UINT64_MAX);
    flip_page(parent, 2, 0);
    struct outcome seen = verify(&rig, parent);
    assert_found(&seen, 2, 1, 0, KVD_VERIFY_LOST);
    assert_int_equal(attend(&rig, parent, 2, 3, NULL), KVARN_EMISS);
    assert_false(kvd_session_has_missing(child));
    seen = verify(&rig, child);
    assert_found(&seen, 2, 1, 0, KVD_VERIFY_LOST);
    assert_int_equal(attend(&rig, child, 2, 3, NULL), KVARN_EMISS);
    kvt_session_drop(&rig, parent);
    assert_int_equal(attend(&rig, child, 3, 6, NULL), 0);
    kvt_session_drop(&rig, child);
    kvt_rig_fini(&rig);
}

/* Nobody finds it by its name any more. */
static void test_s14_prefix_index_lets_go(void **state)
{
    (void)state;
    struct kvt_rig rig;
    uint32_t ids[TOKENS];
    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    struct kvd_session *session = kvt_session_open(&rig, "s", 0);
    assert_int_equal(kvd_prefix_enable(session, NULL, 0), 0);
    for (uint32_t i = 0; i < TOKENS; i++) {
        ids[i] = i;
    }
    struct kvt_append append = kvt_append_of(session, TOKENS, 1);
    append.prefix_data = ids;
    assert_int_equal(kvt_append_now(&rig, &append), 0);
    uint64_t published = rig.service.prefixes.count;
    assert_true(published > 1);
    struct outcome seen = verify(&rig, session);
    assert_int_equal(seen.totals.finding_count, 0);
    flip_page(session, 4, 0); /* of 3 and less a window has gone */
    seen = verify(&rig, session);
    assert_found(&seen, 4, 1, 0, KVD_VERIFY_LOST);
    assert_int_equal(rig.service.prefixes.count, published - 1);
    kvt_session_drop(&rig, session);
    kvt_rig_fini(&rig);
}

/* The repair waits for its turn; stopped before that, it is left and told of. */
static void test_busy_sessions_and_stops(void **state)
{
    (void)state;
    struct kvt_rig rig;
    struct outcome seen;
    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    struct kvd_session *session = open_filled(&rig, "s", 1);
    flip_page(session, 2, 0);
    session->work->layers[2].pending++; /* as if an append were at work */
    begin(&seen, session, 0);
    kvt_rig_settle(&rig);
    assert_int_equal(seen.done_count, 0);
    kvd_verify_stop(seen.token);
    assert_int_equal(seen.done_count, 0);
    kvt_rig_settle(&rig);
    assert_int_equal(seen.done_count, 1);
    assert_found(&seen, 2, 1, 0, KVD_VERIFY_LEFT);
    assert_false(kvd_session_has_missing(session));

    begin(&seen, session, 1);
    kvt_rig_settle(&rig);
    session->work->layers[2].pending--;
    kvd_session_kick(session);
    kvt_rig_settle(&rig);
    assert_int_equal(seen.done_count, 1);
    assert_found(&seen, 2, 1, 0, KVD_VERIFY_LOST);

    /* A session that ends meanwhile: nothing more is to be done. */
    begin(&seen, session, 0);
    kvt_session_drop(&rig, session);
    kvt_rig_settle(&rig);
    assert_int_equal(seen.done_count, 1);
    assert_int_equal(seen.next_block, UINT32_MAX);
    kvt_rig_fini(&rig);
}

/* Without memory for a step the call ends where it is. */
static void test_no_memory_is_no_verdict(void **state)
{
    (void)state;
    struct kvt_rig rig;
    struct outcome seen;
    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    struct kvd_session *session = open_filled(&rig, "s", 1);
    struct kvd_budget *budget = &rig.service.budget;
    size_t rest = (size_t)(budget->limit_bytes - budget->used_bytes);
    assert_int_equal(kvd_budget_charge(budget, KVD_BUDGET_STAGING, rest), 0);
    begin(&seen, session, 2);
    kvt_rig_settle(&rig);
    assert_int_equal(seen.done_count, 1);
    assert_int_equal(seen.next_block, 2);
    assert_int_equal(seen.totals.blocks, 0);
    kvd_budget_release(budget, KVD_BUDGET_STAGING, rest);
    begin(&seen, session, 2);
    kvt_rig_settle(&rig);
    assert_int_equal(seen.totals.blocks, BLOCKS - 1);
    kvt_session_drop(&rig, session);
    kvt_rig_fini(&rig);
}

/* Cold. */

struct search {
    struct kvd_fake_disk *disk;
    const uint8_t *data;
    unsigned found;
};

static void flip_in_file(void *ctx, const char *path)
{
    struct search *search = ctx;
    size_t bytes;
    uint8_t *file = kvd_fake_disk_data(search->disk, path, &bytes);

    for (size_t i = 0; i + 64 <= bytes; i++) {
        if (memcmp(file + i, search->data, 64) == 0) {
            file[i + 64] ^= 2;
            search->found++;
            i += 64;
        }
    }
}

/* Flip a bit of the record that begins with these bytes of a page, once. */
static void flip_record(struct kvd_fake_disk *disk, const void *page)
{
    struct search search = {.disk = disk, .data = page};

    (void)kvd_fake_disk_names(disk, flip_in_file, &search);
    assert_int_equal(search.found, 1);
}

struct cold_case {
    struct kvt_rig rig;
    struct kvd_fake_disk *disk;
    struct kvd_session *session;
    uint8_t page[128]; /* the first bytes of the page of layer 1 of block 3 */
    float before;      /* attention over the session when all was right */
};

static void cold_case_init(struct cold_case *c, unsigned workers)
{
    c->disk = kvd_fake_disk_create();
    kvt_rig_init(&c->rig, &(struct kvt_rig_options){.disk = c->disk, .workers = workers});
    c->session = open_filled(&c->rig, "s", 1);
    kvt_cold_spill(&c->rig);
    memcpy(c->page, page_of(c->session, 3, 1), sizeof(c->page));
    assert_int_equal(attend(&c->rig, c->session, 0, BLOCKS, &c->before), 0);
    struct outcome seen = verify(&c->rig, c->session);
    assert_int_equal(seen.totals.finding_count, 0);
    /* Blocks, the session's own record, its map. */
    assert_int_equal(seen.totals.records, BLOCKS + 2);
}

static void cold_case_fini(struct cold_case *c)
{
    kvd_session_unref(c->session);
    kvt_cold_life_stop(&c->rig);
    kvd_fake_disk_destroy(c->disk);
}

static uint32_t resident_blocks(const struct kvd_session *session)
{
    uint32_t count = 0;

    for (uint32_t b = 0; b < kvd_session_block_count(session); b++) {
        const struct kvd_block *block = kvd_session_block(session, b);
        count += block != NULL && block->state == KVD_BLOCK_RESIDENT ? 1 : 0;
    }
    return count;
}

static void test_s14_wrong_page_is_read_again(void **state)
{
    (void)state;
    for (unsigned workers = 0; workers <= 2; workers += 2) {
        struct cold_case c;
        float after = 0;
        cold_case_init(&c, workers);
        flip_page(c.session, 3, 1);
        struct outcome seen = verify(&c.rig, c.session);
        assert_found(&seen, 3, 1, 0, KVD_VERIFY_DROPPED);
        assert_int_equal(kvd_session_block(c.session, 3)->state, KVD_BLOCK_COLD);
        assert_int_equal(resident_blocks(c.session), BLOCKS); /* of 7 */
        /* Cold blocks are verified where they are, and stay there. */
        seen = verify(&c.rig, c.session);
        assert_int_equal(seen.totals.finding_count, 0);
        assert_int_equal(seen.totals.records, BLOCKS + 2);
        assert_int_equal(resident_blocks(c.session), BLOCKS);
        assert_int_equal(attend(&c.rig, c.session, 0, BLOCKS, &after), 0);
        assert_true(after == c.before);
        assert_false(kvd_session_has_missing(c.session));
        cold_case_fini(&c);
    }
}

static void read_done_cb(
    void *ctx, const struct kvd_failure *why, const struct kvd_read_result *result)
{
    *(int *)ctx = why->err;
    if (why->err == 0) {
        result->payload.release_cb(result->payload.ctx);
    } else if (why->err == KVARN_EMISS) {
        assert_int_equal(why->reason, KVARND__MISS_REASON__MISS_CHECKSUM);
    }
}

/* Block 3 of layers 0 and 1, as stored. */
static int read_block(struct kvt_rig *rig, struct kvd_session *session)
{
    struct kvd_read *token = NULL;
    int err = 1;
    struct kvd_read_args args = {.session = session,
        .layer_count = 2,
        .first = 3 * GROUP,
        .last = 4 * GROUP,
        .is_stored = true,
        .ctx = &err,
        .done_cb = read_done_cb};

    assert_int_equal(kvd_read_start(&rig->service, &args, &token), 0);
    kvt_rig_settle(rig);
    assert_true(err <= 0);
    return err;
}

/* Whoever reads it is told; then it is right again, if the tier has it. */
static void test_s14_readers_have_it_put_right(void **state)
{
    (void)state;
    for (unsigned workers = 0; workers <= 2; workers += 2) {
        struct cold_case c;
        cold_case_init(&c, workers);
        assert_int_equal(read_block(&c.rig, c.session), 0);
        flip_page(c.session, 3, 1);
        assert_int_equal(read_block(&c.rig, c.session), KVARN_EMISS);
        assert_int_equal(kvd_session_block(c.session, 3)->state, KVD_BLOCK_COLD);
        assert_int_equal(c.rig.service.suspect_count, 0);
        assert_int_equal(read_block(&c.rig, c.session), 0);
        cold_case_fini(&c);

        struct kvt_rig rig;
        kvt_rig_init(&rig, &(struct kvt_rig_options){.workers = workers});
        struct kvd_session *session = open_filled(&rig, "s", 1);
        flip_page(session, 3, 0);
        for (unsigned i = 0; i < 3; i++) {
            assert_int_equal(read_block(&rig, session), KVARN_EMISS);
            assert_int_equal(kvd_session_block(session, 3)->state, KVD_BLOCK_RESIDENT);
        }
        assert_int_equal(rig.service.metrics.values[KVD_METRIC_misses_checksum], 3);
        kvt_session_drop(&rig, session);
        kvt_rig_fini(&rig);
    }
}

static void test_s14_wrong_in_both_is_lost(void **state)
{
    (void)state;
    struct cold_case c;
    cold_case_init(&c, 0);
    flip_record(c.disk, c.page);
    flip_page(c.session, 3, 0);
    struct outcome seen = verify(&c.rig, c.session);
    assert_found(&seen, 3, 1, KVARN_ECORRUPT, KVD_VERIFY_LOST);
    assert_int_equal(kvd_session_block(c.session, 3)->state, KVD_BLOCK_MISSING);
    assert_int_equal(attend(&c.rig, c.session, 3, 4, NULL), KVARN_EMISS);
    assert_int_equal(attend(&c.rig, c.session, 4, 6, NULL), 0);
    cold_case_fini(&c);
}

static void test_wrong_record_is_written_again(void **state)
{
    (void)state;
    struct cold_case c;
    uint64_t freed = 0;
    float after = 0;
    cold_case_init(&c, 0);
    struct kvd_session *child = kvt_fork_now(&c.rig, c.session, UINT64_MAX);
    flip_record(c.disk, c.page);
    struct outcome seen = verify(&c.rig, c.session);
    assert_found(&seen, 3, 0, KVARN_ECORRUPT, KVD_VERIFY_REWRITE);
    kvt_cold_spill(&c.rig);
    seen = verify(&c.rig, c.session);
    assert_int_equal(seen.totals.finding_count, 0);
    assert_int_equal(seen.totals.records, BLOCKS + 2);
    kvt_session_drop(&c.rig, child);
    /* From disk alone it is what it was. */
    assert_int_equal(kvd_session_evict(c.session, BLOCKS, &freed), BLOCKS);
    assert_int_equal(attend(&c.rig, c.session, 0, BLOCKS, &after), 0);
    assert_true(after == c.before);
    cold_case_fini(&c);
}

/* A disk that fails to read is no verdict: the block is as it was, and read when it can be. */
static void test_unread_records_are_told(void **state)
{
    (void)state;
    struct cold_case c;
    uint64_t freed = 0;
    float after = 0;
    cold_case_init(&c, 0);
    assert_int_equal(kvd_session_evict(c.session, BLOCKS, &freed), BLOCKS);
    kvd_fake_disk_fail(c.disk, KVD_FILE_READ, 0, 1000, KVARN_EIO);
    struct outcome seen = verify(&c.rig, c.session);
    assert_int_equal(seen.totals.unread_records, BLOCKS + 2);
    assert_int_equal(seen.totals.finding_count, BLOCKS + 2);
    assert_int_equal(seen.totals.findings[0].record_err, KVARN_EIO);
    assert_int_equal(seen.totals.findings[0].outcome, KVD_VERIFY_LEFT);
    assert_int_equal(seen.totals.wrong_records, 0);
    kvd_fake_disk_fail(c.disk, KVD_FILE_READ, 0, 0, 0);
    assert_int_equal(attend(&c.rig, c.session, 0, BLOCKS, &after), 0);
    assert_true(after == c.before);
    cold_case_fini(&c);
}

/* Each bit of a record's body is one: flipped, it is found, at the block that it is of. */
static void test_s14_bits_of_a_record(void **state)
{
    (void)state;
    struct cold_case c;
    unsigned tried = 0;
    cold_case_init(&c, 0);
    size_t page_bytes = c.rig.shape->layers[1].tile_page_bytes;
    for (unsigned i = 0; i < 24; i++) {
        size_t at = i * (page_bytes - 1) / 23;
        page_of(c.session, 3, 1)[at] ^= (uint8_t)(1u << i % 8);
        struct outcome seen = verify(&c.rig, c.session);
        assert_found(&seen, 3, 1, 0, KVD_VERIFY_DROPPED);
        assert_int_equal(attend(&c.rig, c.session, 0, BLOCKS, NULL), 0); /* it is back */
        tried++;
    }
    print_message("bits flipped = %u, wrong = 0\n", tried);
    cold_case_fini(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_s14_wrong_page_goes_missing),
        cmocka_unit_test(test_s14_shared_pages),
        cmocka_unit_test(test_s14_prefix_index_lets_go),
        cmocka_unit_test(test_busy_sessions_and_stops),
        cmocka_unit_test(test_no_memory_is_no_verdict),
        cmocka_unit_test(test_s14_wrong_page_is_read_again),
        cmocka_unit_test(test_s14_readers_have_it_put_right),
        cmocka_unit_test(test_s14_wrong_in_both_is_lost),
        cmocka_unit_test(test_wrong_record_is_written_again),
        cmocka_unit_test(test_unread_records_are_told),
        cmocka_unit_test(test_s14_bits_of_a_record),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
