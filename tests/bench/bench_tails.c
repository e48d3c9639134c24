/*
 * What idle sessions hold while their tails are in memory, when those have gone to the cold tier,
 * and when all has; and how long the loop is held by it.
 *
 * In process, over the fake io and a disk in memory: bytes are what the service charges, times are
 * processor time of the loop, without the disk's, which are the threads' that io has.
 */
#include "tests/bench/bench_tails.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include "lib/base/assert.h"
#include "server/base/log.h"
#include "server/evict/session_evict.h"
#include "tests/support/fake_disk.h"
#include "tests/support/session_cold.h"

#define LAYERS      32
#define SESSIONS    4
#define TOKENS      200 /* a sink of 128, and 72 rows */
#define LOOP_US_MAX 5000.0
#define MIB         1048576.0

/* The layers of an 8B model. */
static const struct kvd_layer_group groups[] = {
    {.layers = LAYERS, .kv_heads = 8, .k_dim = 128, .v_dim = 128}};
static const struct kvd_shape_desc shape = {.model = "bench-tails",
    .group = 128,
    .k_bits = 2,
    .v_bits = 2,
    .sink_tokens = 128,
    .layer_groups = groups,
    .layer_group_count = 1};

struct tails {
    struct kvd_fake_disk *disk;
    struct kvt_rig rig;
    struct kvd_session *sessions[SESSIONS];
    uint64_t used_start; /* bytes of a service that had a session once, less free slots */
};

static uint64_t used_bytes(struct tails *tails)
{
    (void)kvd_page_store_reclaim(&tails->rig.service.pages, UINT64_MAX);
    return kvd_evictor_used_bytes(&tails->rig.service) - tails->used_start;
}

/* What a session holds of what the service is charged. */
static void row_bytes(
    struct kvb_report *report, struct tails *tails, struct kvb_row *row, double unit_bytes)
{
    double value = (double)used_bytes(tails) / SESSIONS / unit_bytes;

    row->what = "memory";
    row->params = "200 tokens, 32 layers x 8 x 128";
    row->value = row->low = row->high = value;
    kvb_report_row(report, row);
}

static void row_loop(struct kvb_report *report, struct tails *tails, const char *what)
{
    double us = (double)kvd_io_fake_longest_ns(tails->rig.fake) / 1000.0;

    kvb_report_row(report, &(struct kvb_row){.what = what,
                               .variant = "longest callback",
                               .params = "32 layers x 8 x 128",
                               .value = us,
                               .low = us,
                               .high = us,
                               .unit = "us",
                               .goal = {.must = LOOP_US_MAX, .is_limit = true}});
}

static struct kvd_session *session_make(struct tails *tails, unsigned i)
{
    char name[16];

    (void)snprintf(name, sizeof(name), "s%u", i);
    struct kvd_session *session = kvt_session_open(&tails->rig, name, 0);
    kvt_cold_append(&tails->rig, session, NULL, TOKENS, 1 + i);
    kvt_cold_spill(&tails->rig);
    return session;
}

static void tails_init(struct tails *tails)
{
    *tails = (struct tails){.disk = kvd_fake_disk_create()};
    kvt_rig_init(&tails->rig, &(struct kvt_rig_options){.disk = tails->disk,
                                  .workers = 1,
                                  .shape = &shape,
                                  .cold_segment = UINT64_C(64) << 20,
                                  .evict_policy = "cost"});
    struct kvd_session *first = session_make(tails, SESSIONS);
    kvt_session_drop(&tails->rig, first);
    kvt_cold_spill(&tails->rig);
    tails->used_start = used_bytes(tails);
    for (unsigned i = 0; i < SESSIONS; i++) {
        tails->sessions[i] = session_make(tails, i);
    }
}

static void tails_fini(struct tails *tails)
{
    for (unsigned i = 0; i < SESSIONS; i++) {
        kvt_session_drop(&tails->rig, tails->sessions[i]);
    }
    kvt_cold_spill(&tails->rig);
    kvd_session_unref(kvt_session_open(&tails->rig, "last", 0));
    kvt_cold_life_stop(&tails->rig);
    kvd_fake_disk_destroy(tails->disk);
}

void kvb_tails_rows(struct kvb_report *report)
{
    struct tails tails;
    uint64_t freed;

    KVARN_ASSERT(kvd_log_set_level("warn") == 0);
    tails_init(&tails);
    row_bytes(report, &tails,
        &(struct kvb_row){.variant = "idle, in memory",
            .unit = "MiB",
            .note = "sink and tail: 16 MiB of fp16 each"},
        MIB);
    kvd_io_fake_run_clock(tails.rig.fake);
    (void)kvd_io_fake_longest_ns(tails.rig.fake);
    for (unsigned i = 0; i < SESSIONS; i++) {
        KVARN_ASSERT(kvd_cold_tail_out(tails.sessions[i]) > 0);
        kvt_cold_spill(&tails.rig);
        KVARN_ASSERT(kvd_session_has_missing(tails.sessions[i]));
    }
    row_loop(report, &tails, "tail out");
    row_bytes(report, &tails,
        &(struct kvb_row){
            .variant = "idle, tail on disk", .unit = "MiB", .note = "the first to go"},
        MIB);
    for (unsigned i = 0; i < SESSIONS; i++) {
        kvt_cold_append(&tails.rig, tails.sessions[i], NULL, 1, 9);
        kvt_cold_spill(&tails.rig);
    }
    row_loop(report, &tails, "tail back, and a token");
    for (unsigned i = 0; i < SESSIONS; i++) {
        KVARN_ASSERT(kvd_cold_tail_out(tails.sessions[i]) > 0);
        kvt_cold_spill(&tails.rig);
        (void)kvd_session_evict(tails.sessions[i], UINT32_MAX, &freed);
    }
    row_bytes(report, &tails, &(struct kvb_row){.variant = "idle, all on disk", .unit = "B"}, 1);
    tails_fini(&tails);
    KVARN_ASSERT(kvd_log_set_level("info") == 0);
}
