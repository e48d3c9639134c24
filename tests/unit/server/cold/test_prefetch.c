/*
 * Tests of server/cold/prefetch.c, and of cold_restore.c as far as jobs use it: what a job loads,
 * in which order and how much at once, who joins it, and how it ends.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "server/cold/prefetch.h"
#include "server/evict/session_evict.h"
#include "server/prefix/prefix_lease.h"
#include "tests/support/cold_scene.h"

/* Make a job for the last blocks and begin it, if there is something to load. */
static struct kvd_prefetch_job *prefetch(struct kvt_scene *scene, uint32_t last_blocks)
{
    struct kvd_prefetch_job *job = NULL;
    struct kvd_failure why = {0};

    assert_int_equal(kvd_prefetch_create(
                         &scene->rig.service.prefetches, scene->session, last_blocks, &job, &why),
        0);
    while (kvd_prefetch_measure(job)) {
    }
    if (job->blocks == 0) {
        kvd_prefetch_discard(job);
        return NULL;
    }
    kvd_prefetch_start(job);
    return job;
}

static void test_job_brings_all_back(void **state)
{
    (void)state;
    struct kvt_scene scene;
    kvt_scene_init(&scene, 6);
    uint32_t cold = kvt_scene_count(&scene, KVD_BLOCK_COLD);
    const struct kvd_prefetch_job *job = prefetch(&scene, UINT32_MAX);
    assert_int_equal(cold, 6);
    assert_int_equal(job->blocks, 6);
    assert_true(job->bytes > 0);
    assert_int_equal(job->state, KVARND__JOB_STATE__JOB_RUNNING);
    assert_int_equal(job->blocks_done, 0);
    kvt_rig_settle(&scene.rig);
    assert_int_equal(job->state, KVARND__JOB_STATE__JOB_DONE);
    assert_int_equal(job->err, 0);
    assert_int_equal(job->blocks_done, 6);
    assert_int_equal(job->bytes_done, job->bytes);
    assert_string_equal(job->name, "s");
    assert_int_equal(kvt_scene_count(&scene, KVD_BLOCK_COLD), 0);
    assert_false(kvd_session_has_missing(scene.session));
    assert_int_equal(kvt_scene_metric(&scene, KVD_METRIC_prefetch_jobs), 1);
    assert_int_equal(kvt_scene_metric(&scene, KVD_METRIC_prefetch_blocks), 6);
    /* What reads it then touches no disk. */
    uint64_t loaded = kvt_scene_metric(&scene, KVD_METRIC_cold_blocks_loaded);
    assert_int_equal(loaded, 6);
    assert_int_equal(kvt_scene_attend(&scene, 0, 6), 0);
    assert_int_equal(kvt_scene_metric(&scene, KVD_METRIC_cold_blocks_loaded), loaded);
    assert_null(prefetch(&scene, UINT32_MAX)); /* nothing to load */
    assert_int_equal(scene.rig.service.prefetches.count, 0);
    kvt_scene_fini(&scene);
}

static void test_job_takes_the_last_blocks_alone(void **state)
{
    (void)state;
    struct kvt_scene scene;
    kvt_scene_init(&scene, 6);
    /* The open block counts as the last one, and is in memory. */
    const struct kvd_prefetch_job *job = prefetch(&scene, 3);
    assert_int_equal(job->blocks, 2);
    kvt_rig_settle(&scene.rig);
    assert_int_equal(job->state, KVARND__JOB_STATE__JOB_DONE);
    for (uint32_t b = 0; b < 6; b++) {
        assert_int_equal(kvd_session_block(scene.session, b)->state,
            b < 4 ? KVD_BLOCK_COLD : KVD_BLOCK_RESIDENT);
    }
    assert_int_equal(scene.session->missing_last, 4);
    assert_null(prefetch(&scene, 1));
    kvt_scene_fini(&scene);
}

/* The first blocks first, some of them at once, and half of all loads left to operations. */
static void test_job_keeps_to_the_order_and_the_bound(void **state)
{
    (void)state;
    struct kvt_scene scene;
    kvt_scene_init(&scene, 100);
    kvd_io_fake_hold_files(scene.rig.fake, true);
    const struct kvd_prefetch_job *job = prefetch(&scene, UINT32_MAX);
    kvt_rig_settle(&scene.rig);
    assert_int_equal(job->blocks, 100);
    assert_int_equal(scene.rig.service.cold.loads, 32);
    for (uint32_t b = 0; b < 100; b++) {
        assert_int_equal(kvd_session_block(scene.session, b)->state,
            b < 32 ? KVD_BLOCK_LOADING : KVD_BLOCK_COLD);
    }
    /* An operation on the last block does not wait behind the job: its load begins at once. */
    struct kvt_attend attend = kvt_scene_attend_of(&scene, 99, 100);
    kvt_attend_begin(&scene.rig, &attend);
    assert_int_equal(scene.rig.service.cold.loads, 33);
    assert_int_equal(kvd_session_block(scene.session, 99)->state, KVD_BLOCK_LOADING);
    kvd_io_fake_hold_files(scene.rig.fake, false);
    kvt_rig_settle(&scene.rig);
    assert_true(attend.outcome.is_done);
    assert_int_equal(attend.outcome.why.err, 0);
    kvt_attend_fini(&attend);
    assert_int_equal(job->state, KVARND__JOB_STATE__JOB_DONE);
    assert_int_equal(kvt_scene_metric(&scene, KVD_METRIC_cold_blocks_loaded), 100);
    kvt_scene_fini(&scene);
}

/* Who needs a block on its way waits for that read: each is read once. */
static void test_operations_join_the_read_in_flight(void **state)
{
    (void)state;
    struct kvt_scene scene;
    kvt_scene_init(&scene, 8);
    kvd_io_fake_hold_files(scene.rig.fake, true);
    const struct kvd_prefetch_job *job = prefetch(&scene, UINT32_MAX);
    struct kvt_attend attend = kvt_scene_attend_of(&scene, 0, 8);
    kvt_attend_begin(&scene.rig, &attend);
    kvt_rig_settle(&scene.rig);
    assert_false(attend.outcome.is_done);
    assert_int_equal(scene.rig.service.cold.loads, 8);
    kvd_io_fake_hold_files(scene.rig.fake, false);
    kvt_rig_settle(&scene.rig);
    assert_true(attend.outcome.is_done);
    assert_int_equal(attend.outcome.why.err, 0);
    kvt_attend_fini(&attend);
    assert_int_equal(job->state, KVARND__JOB_STATE__JOB_DONE);
    assert_int_equal(kvt_scene_metric(&scene, KVD_METRIC_cold_blocks_loaded), 8);
    kvt_scene_fini(&scene);
}

/* A job whose blocks an operation loads before it comes to them ends as done, too. */
static void test_job_joins_what_operations_load(void **state)
{
    (void)state;
    struct kvt_scene scene;
    kvt_scene_init(&scene, 40);
    kvd_io_fake_hold_files(scene.rig.fake, true);
    struct kvt_attend attend = kvt_scene_attend_of(&scene, 0, 40);
    kvt_attend_begin(&scene.rig, &attend);
    assert_int_equal(scene.rig.service.cold.loads, 40);
    const struct kvd_prefetch_job *job = prefetch(&scene, UINT32_MAX);
    assert_int_equal(job->blocks, 40);
    assert_int_equal(job->flight_count, 32);
    kvd_io_fake_hold_files(scene.rig.fake, false);
    kvt_rig_settle(&scene.rig);
    assert_true(attend.outcome.is_done && attend.outcome.why.err == 0);
    kvt_attend_fini(&attend);
    assert_int_equal(job->state, KVARND__JOB_STATE__JOB_DONE);
    assert_int_equal(job->blocks_done, 40);
    assert_int_equal(job->bytes_done, job->bytes);
    assert_int_equal(kvt_scene_metric(&scene, KVD_METRIC_cold_blocks_loaded), 40);
    kvt_scene_fini(&scene);
}

static void test_job_ends_with_its_session(void **state)
{
    (void)state;
    struct kvt_scene scene;
    kvt_scene_init(&scene, 8);
    kvd_io_fake_hold_files(scene.rig.fake, true);
    const struct kvd_prefetch_job *job = prefetch(&scene, UINT32_MAX);
    kvt_rig_settle(&scene.rig);
    kvt_session_drop(&scene.rig, scene.session);
    scene.session = NULL;
    assert_int_equal(job->state, KVARND__JOB_STATE__JOB_CANCELLED);
    assert_null(job->session);
    assert_true(job->end_ns > 0);
    assert_string_equal(job->name, "s");
    assert_int_equal(scene.rig.service.prefetches.running_count, 0);
    kvd_io_fake_hold_files(scene.rig.fake, false);
    kvt_rig_settle(&scene.rig);
    assert_int_equal(scene.rig.service.cold.loads, 0);
    kvt_scene_fini(&scene);
}

static void test_draining_ends_jobs(void **state)
{
    (void)state;
    struct kvt_scene scene;
    kvt_scene_init(&scene, 100);
    kvd_io_fake_hold_files(scene.rig.fake, true);
    const struct kvd_prefetch_job *job = prefetch(&scene, UINT32_MAX);
    kvt_rig_settle(&scene.rig);
    scene.rig.service.is_draining = true;
    assert_false(kvd_service_is_idle(&scene.rig.service)); /* loads are under way */
    kvd_io_fake_hold_files(scene.rig.fake, false);
    kvt_rig_settle(&scene.rig);
    assert_int_equal(job->state, KVARND__JOB_STATE__JOB_CANCELLED);
    assert_int_equal(kvt_scene_metric(&scene, KVD_METRIC_cold_blocks_loaded), 32);
    assert_true(kvd_service_is_idle(&scene.rig.service));
    kvt_scene_fini(&scene);
}

/* Take what is free until no more is to be had. */
static struct kvd_session *memory_fill(struct kvt_rig *rig)
{
    struct kvd_session *hog = kvt_session_open(rig, NULL, 0);
    int err = 0;

    rig->source.is_empty = true;
    while (err == 0) {
        struct kvt_append append = kvt_append_of(hog, 64, 5);
        err = kvt_append_now(rig, &append);
    }
    assert_true(err == KVARN_ENOSPC || err == KVARN_ERETRY_LATER);
    return hog;
}

/* Without memory the blocks stay on disk, the job says so, and nothing is lost. */
static void test_no_memory_ends_the_job(void **state)
{
    (void)state;
    struct kvt_scene scene;
    kvt_scene_init(&scene, 60);
    struct kvd_session *hog = memory_fill(&scene.rig);
    const struct kvd_prefetch_job *job = prefetch(&scene, UINT32_MAX);
    kvt_rig_settle(&scene.rig);
    assert_int_equal(job->state, KVARND__JOB_STATE__JOB_FAILED);
    assert_int_equal(job->err, KVARN_ENOSPC);
    assert_true(job->blocks_done < 60);
    assert_int_equal(scene.rig.service.cold.loads, 0);
    assert_int_equal(kvt_scene_count(&scene, KVD_BLOCK_COLD), 60 - job->blocks_done);
    assert_int_equal(kvt_scene_count(&scene, KVD_BLOCK_MISSING), 0);
    assert_int_equal(kvt_scene_metric(&scene, KVD_METRIC_cold_loads_failed), 0);
    scene.rig.source.is_empty = false;
    kvt_session_drop(&scene.rig, hog);
    assert_int_equal(kvt_scene_attend(&scene, 0, 60), 0);
    assert_int_equal(kvt_scene_metric(&scene, KVD_METRIC_misses_evicted), 0);
    kvt_scene_fini(&scene);
}

static void test_a_block_that_is_lost_fails_the_job(void **state)
{
    (void)state;
    struct kvt_scene scene;
    kvt_scene_init(&scene, 8);
    kvd_fake_disk_fail(scene.disk, KVD_FILE_READ, 4, 1, KVARN_EIO);
    const struct kvd_prefetch_job *job = prefetch(&scene, UINT32_MAX);
    kvt_rig_settle(&scene.rig);
    assert_int_equal(job->state, KVARND__JOB_STATE__JOB_FAILED);
    assert_int_equal(job->err, KVARN_EMISS);
    assert_int_equal(job->blocks_done, 7); /* the others came all the same */
    assert_int_equal(kvt_scene_count(&scene, KVD_BLOCK_MISSING), 1);
    assert_int_equal(kvt_scene_metric(&scene, KVD_METRIC_cold_loads_failed), 1);
    kvt_scene_fini(&scene);
}

static void test_a_cut_shortens_the_job(void **state)
{
    (void)state;
    struct kvt_scene scene;
    kvt_scene_init(&scene, 100);
    kvd_io_fake_hold_files(scene.rig.fake, true);
    const struct kvd_prefetch_job *job = prefetch(&scene, UINT32_MAX);
    kvt_rig_settle(&scene.rig);
    struct kvt_truncate truncate = {
        .session = scene.session, .epoch = scene.session->epoch, .length = 64 * 10};
    assert_int_equal(kvt_truncate_begin(&scene.rig, &truncate), 0);
    kvd_io_fake_hold_files(scene.rig.fake, false);
    kvt_rig_settle(&scene.rig);
    assert_true(truncate.outcome.is_done);
    assert_int_equal(truncate.outcome.why.err, 0);
    assert_int_equal(job->state, KVARND__JOB_STATE__JOB_DONE);
    assert_int_equal(kvd_session_block_count(scene.session), 10);
    assert_int_equal(kvt_scene_count(&scene, KVD_BLOCK_COLD), 0);
    assert_true(kvt_scene_metric(&scene, KVD_METRIC_cold_blocks_loaded) < 100);
    kvt_scene_fini(&scene);
}

static void test_jobs_are_bounded(void **state)
{
    (void)state;
    struct kvt_scene scene;
    struct kvd_prefetch_job *jobs[KVARN_PREFETCH_JOBS_MAX + 1];
    struct kvd_failure why = {0};
    kvt_scene_init(&scene, 2);
    struct kvd_prefetches *prefetches = &scene.rig.service.prefetches;
    for (unsigned i = 0; i < KVARN_PREFETCH_JOBS_MAX; i++) {
        assert_int_equal(kvd_prefetch_create(prefetches, scene.session, 9, &jobs[i], &why), 0);
    }
    assert_int_equal(
        kvd_prefetch_create(prefetches, scene.session, 9, &jobs[KVARN_PREFETCH_JOBS_MAX], &why),
        KVARN_ERETRY_LATER);
    kvd_prefetch_discard(jobs[0]);
    why = (struct kvd_failure){0};
    assert_int_equal(kvd_prefetch_create(prefetches, scene.session, 9, &jobs[0], &why), 0);
    for (unsigned i = 0; i < KVARN_PREFETCH_JOBS_MAX; i++) {
        kvd_prefetch_discard(jobs[i]);
    }
    assert_int_equal(prefetches->count, 0);
    kvt_scene_fini(&scene);
}

/* Ended jobs are told of for a while, and only so many of them. */
static void test_ended_jobs_are_kept_for_a_while(void **state)
{
    (void)state;
    struct kvt_scene scene;
    kvt_scene_init(&scene, 1);
    struct kvd_prefetches *prefetches = &scene.rig.service.prefetches;
    for (unsigned i = 0; i < KVARN_PREFETCH_ENDED_MAX + 3; i++) {
        assert_non_null(prefetch(&scene, UINT32_MAX));
        kvt_rig_settle(&scene.rig);
        kvt_scene_evict(&scene);
    }
    assert_int_equal(prefetches->ended_count, KVARN_PREFETCH_ENDED_MAX);
    assert_int_equal(TAILQ_FIRST(&prefetches->ended)->id, KVARN_PREFETCH_ENDED_MAX + 3);
    kvd_io_fake_advance_ms(scene.rig.fake, KVARN_PREFETCH_ENDED_MS_MAX - 1000);
    assert_non_null(prefetch(&scene, UINT32_MAX));
    kvt_rig_settle(&scene.rig);
    kvd_io_fake_advance_ms(scene.rig.fake, 2000);
    kvd_prefetches_expire(prefetches);
    assert_int_equal(prefetches->ended_count, 1);
    assert_true(TAILQ_EMPTY(&prefetches->running));
    kvt_scene_fini(&scene);
}

static void test_no_tier_no_job(void **state)
{
    (void)state;
    struct kvt_rig rig;
    struct kvd_prefetch_job *job = NULL;
    struct kvd_failure why = {0};
    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    struct kvd_session *session = kvt_session_open(&rig, "s", 0);
    kvt_cold_append(&rig, session, NULL, 64 * 3, 1);
    assert_int_equal(kvd_prefetch_create(&rig.service.prefetches, session, UINT32_MAX, &job, &why),
        KVARN_EUNSUPPORTED);
    assert_null(job);
    kvt_session_drop(&rig, session);
    kvt_rig_fini(&rig);
}

/* Ids of the tokens of a session that shares its prefix. */
#define IDS (64 * 6)

static void publish(struct kvt_scene *scene, uint32_t *ids)
{
    scene->disk = kvd_fake_disk_create();
    scene->blocks = 6;
    kvt_rig_init(
        &scene->rig, &(struct kvt_rig_options){.disk = scene->disk, .shape = &kvt_scene_shape});
    scene->session = kvt_session_open(&scene->rig, "s", 0);
    assert_int_equal(kvd_prefix_enable(scene->session, NULL, 0), 0);
    for (uint32_t i = 0; i < IDS; i++) {
        ids[i] = i * 7 + 1;
    }
    struct kvt_append append = kvt_append_of(scene->session, IDS, 1);
    append.prefix_data = ids;
    assert_int_equal(kvt_append_now(&scene->rig, &append), 0);
    kvt_cold_spill(&scene->rig);
}

/* The blocks that the index has of it, as a lease; in *ret_resident how many are in memory. */
static struct kvd_prefix_lease *lease_of(
    struct kvt_scene *scene, const uint32_t *ids, uint32_t *ret_resident)
{
    struct kvd_service *service = &scene->rig.service;
    struct kvd_prefix_chain chain;
    *ret_resident = 0;
    kvd_prefix_chain_init(&service->prefixes, scene->rig.shape, NULL, 0, KVD_PREFIX_TOKENS, &chain);
    struct kvd_prefix_lease *lease = kvd_prefix_lease_create(service, scene->rig.shape, &chain);
    assert_non_null(lease);
    while (chain.blocks < IDS / 64) {
        kvd_prefix_chain_next(
            &service->prefixes, &chain, ids + (size_t)chain.blocks * 64, 64 * sizeof(*ids));
        struct kvd_block *block =
            kvd_prefix_index_find(&service->prefixes, &chain, scene->rig.shape);
        if (block == NULL) {
            break;
        }
        assert_int_equal(kvd_prefix_lease_add(lease, block, &chain), 0);
        kvd_prefix_index_touch(&service->prefixes, block,
            chain.blocks == 1 ? NULL : kvd_prefix_lease_block(lease, chain.blocks - 2));
        *ret_resident += block->state == KVD_BLOCK_RESIDENT;
    }
    return lease;
}

static uint32_t resident_of(struct kvt_scene *scene, const uint32_t *ids, uint32_t *ret_stored)
{
    uint32_t resident;
    struct kvd_prefix_lease *lease = lease_of(scene, ids, &resident);

    *ret_stored = lease->chain.blocks;
    kvd_prefix_lease_destroy(lease);
    kvt_rig_settle(&scene->rig);
    return resident;
}

/* Evicted, let go of by the index, and brought back into it without the session. */
static void test_a_prefix_comes_back(void **state)
{
    (void)state;
    struct kvt_scene scene;
    uint32_t ids[IDS], stored, resident;
    publish(&scene, ids);
    struct kvd_service *service = &scene.rig.service;
    assert_int_equal(resident_of(&scene, ids, &stored), 6);
    assert_int_equal(stored, 6);
    uint32_t all = stored;
    uint64_t freed = 0;
    (void)kvd_session_evict(scene.session, 6, &freed);
    assert_true(kvd_prefix_index_shrink(&service->prefixes, UINT64_MAX) > 0);
    kvt_rig_settle(&scene.rig);
    assert_int_equal(resident_of(&scene, ids, &stored), 0);
    assert_int_equal(stored, all); /* named still */
    struct kvd_prefetch_job *job = NULL;
    struct kvd_failure why = {0};
    struct kvd_prefix_lease *lease = lease_of(&scene, ids, &resident);
    assert_int_equal(kvd_prefetch_create_prefix(&service->prefetches, lease, &job, &why), 0);
    while (kvd_prefetch_measure(job)) {
    }
    assert_int_equal(job->blocks, all);
    kvd_prefetch_start(job);
    kvt_rig_settle(&scene.rig);
    assert_int_equal(job->state, KVARND__JOB_STATE__JOB_DONE);
    assert_int_equal(job->bytes_done, job->bytes);
    assert_true(job->bytes > 0);
    assert_null(job->lease);
    assert_int_equal(resident_of(&scene, ids, &stored), all);
    assert_int_equal(kvt_scene_count(&scene, KVD_BLOCK_COLD), 6); /* the session's own stay */
    /* It can go again, and once the session is gone nothing of it is kept. */
    (void)kvd_prefix_index_shrink(&service->prefixes, UINT64_MAX);
    kvt_rig_settle(&scene.rig);
    assert_int_equal(resident_of(&scene, ids, &stored), 0);
    assert_int_equal(stored, all);
    kvd_prefix_index_tick(&service->prefixes);
    (void)resident_of(&scene, ids, &stored);
    assert_int_equal(stored, all);
    kvt_session_drop(&scene.rig, scene.session);
    scene.session = NULL;
    kvt_cold_spill(&scene.rig);
    struct kvd_cold_stats stats;
    (void)kvd_prefix_index_shrink(&service->prefixes, UINT64_MAX); /* they rest again */
    kvd_prefix_index_tick(&service->prefixes);
    kvt_rig_settle(&scene.rig);
    service->cold.tier->ops->stats(service->cold.tier, &stats);
    assert_true(stats.records <= 2); /* the shape's, and the tombstone */
    (void)resident_of(&scene, ids, &stored);
    assert_int_equal(stored, 0);
    assert_int_equal(service->prefixes.count, 0);
    kvt_scene_fini(&scene);
}

/* What a session brings back for itself is in the index again, as one copy. */
static void test_a_prefix_comes_back_with_its_session(void **state)
{
    (void)state;
    struct kvt_scene scene;
    uint32_t ids[IDS], stored;
    publish(&scene, ids);
    uint64_t freed = 0;
    (void)kvd_session_evict(scene.session, 6, &freed);
    (void)kvd_prefix_index_shrink(&scene.rig.service.prefixes, UINT64_MAX);
    kvt_rig_settle(&scene.rig);
    assert_int_equal(resident_of(&scene, ids, &stored), 0);
    uint32_t all = stored;
    assert_int_equal(kvt_cold_load(&scene.rig, scene.session), 0);
    assert_int_equal(resident_of(&scene, ids, &stored), all);
    struct kvd_prefix_chain chain;
    kvd_prefix_chain_init(
        &scene.rig.service.prefixes, scene.rig.shape, NULL, 0, KVD_PREFIX_TOKENS, &chain);
    kvd_prefix_chain_next(&scene.rig.service.prefixes, &chain, ids, 64 * sizeof(*ids));
    assert_ptr_equal(kvd_prefix_index_find(&scene.rig.service.prefixes, &chain, scene.rig.shape),
        kvd_session_block(scene.session, 0));
    kvt_scene_fini(&scene);
}

/* What rests does not stand in the way of what can go. */
static void test_resting_entries_keep_no_others_in_memory(void **state)
{
    (void)state;
    static uint32_t many[64 * 300], few[64 * 2];
    struct kvt_scene scene;
    uint32_t ids[IDS];
    uint64_t freed = 0;
    publish(&scene, ids);
    struct kvd_prefix_index *index = &scene.rig.service.prefixes;
    struct kvd_session *long_one = kvt_session_open(&scene.rig, "long", 0);
    assert_int_equal(kvd_prefix_enable(long_one, NULL, 0), 0);
    for (uint32_t i = 0; i < 64 * 300; i++) {
        many[i] = i + 1000000;
    }
    struct kvt_append append = kvt_append_of(long_one, 64 * 300, 2);
    append.prefix_data = many;
    assert_int_equal(kvt_append_now(&scene.rig, &append), 0);
    kvt_cold_spill(&scene.rig);
    assert_int_equal(kvd_session_evict(long_one, 300, &freed), 300);
    while (kvd_prefix_index_shrink(index, UINT64_MAX) > 0) {
    }
    kvt_rig_settle(&scene.rig);
    struct kvd_session *brief = kvt_session_open(&scene.rig, NULL, 0);
    assert_int_equal(kvd_prefix_enable(brief, NULL, 0), 0);
    append = kvt_append_of(brief, 64 * 2, 3);
    append.prefix_data = few; /* zeros */
    assert_int_equal(kvt_append_now(&scene.rig, &append), 0);
    kvt_session_drop(&scene.rig, brief);
    kvt_rig_settle(&scene.rig);
    assert_int_equal(index->count, 6 + 300 + 2);
    assert_true(kvd_prefix_index_shrink(index, UINT64_MAX) > 0);
    assert_int_equal(index->count, 6 + 300);
    kvt_session_drop(&scene.rig, long_one);
    kvt_cold_spill(&scene.rig);
    for (unsigned i = 0; i < 10; i++) {
        kvd_prefix_index_tick(index);
    }
    assert_int_equal(index->count, 6);
    kvt_scene_fini(&scene);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_job_brings_all_back),
        cmocka_unit_test(test_job_takes_the_last_blocks_alone),
        cmocka_unit_test(test_job_keeps_to_the_order_and_the_bound),
        cmocka_unit_test(test_operations_join_the_read_in_flight),
        cmocka_unit_test(test_job_joins_what_operations_load),
        cmocka_unit_test(test_job_ends_with_its_session),
        cmocka_unit_test(test_draining_ends_jobs),
        cmocka_unit_test(test_no_memory_ends_the_job),
        cmocka_unit_test(test_a_block_that_is_lost_fails_the_job),
        cmocka_unit_test(test_a_cut_shortens_the_job),
        cmocka_unit_test(test_jobs_are_bounded),
        cmocka_unit_test(test_ended_jobs_are_kept_for_a_while),
        cmocka_unit_test(test_no_tier_no_job),
        cmocka_unit_test(test_a_prefix_comes_back),
        cmocka_unit_test(test_a_prefix_comes_back_with_its_session),
        cmocka_unit_test(test_resting_entries_keep_no_others_in_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
