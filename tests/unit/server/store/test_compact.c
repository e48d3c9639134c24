/*
 * Tests of server/store/compact.c and of what server/store/page_store.c does for it: nearly empty
 * chunks are emptied and given back, what is moved is what it was, what is in use is not moved.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "server/store/compact.h"
#include "tests/support/session_model.h"
#include "tests/support/session_rig.h"

#define COUNT 60

struct fixture {
    struct kvt_rig rig;
    struct kvd_session *sessions[COUNT];
    struct kvt_model models[COUNT];
};

/* Sessions of 8 blocks, their pages side by side. */
static void fixture_init(struct fixture *fx, unsigned workers)
{
    memset(fx, 0, sizeof(*fx));
    kvt_rig_init(
        &fx->rig, &(struct kvt_rig_options){.shape = &kvt_shape_large, .workers = workers});
    for (unsigned i = 0; i < COUNT; i++) {
        fx->sessions[i] = kvt_session_open(&fx->rig, NULL, 0);
        kvt_model_init(&fx->models[i], fx->sessions[i], 2048);
        struct kvt_append append = kvt_append_of(fx->sessions[i], 1000, i);
        kvt_append_fill(&append);
        kvt_model_append(&fx->models[i], &append);
        assert_int_equal(kvt_append_now(&fx->rig, &append), 0);
    }
}

static void session_drop(struct fixture *fx, unsigned i)
{
    kvt_model_fini(&fx->models[i]);
    kvt_session_drop(&fx->rig, fx->sessions[i]);
    fx->sessions[i] = NULL;
}

static void fixture_fini(struct fixture *fx)
{
    for (unsigned i = 0; i < COUNT; i++) {
        if (fx->sessions[i] != NULL) {
            session_drop(fx, i);
        }
    }
    kvt_rig_fini(&fx->rig);
}

/* Drop all but one session in `one_in`. */
static void drop_most(struct fixture *fx, unsigned one_in)
{
    for (unsigned i = 0; i < COUNT; i++) {
        if (i % one_in != one_in - 1) {
            session_drop(fx, i);
        }
    }
    kvt_rig_settle(&fx->rig);
    (void)kvd_page_store_reclaim(&fx->rig.service.pages, UINT64_MAX);
}

static void compact(struct fixture *fx)
{
    struct kvd_compactor *compactor = &fx->rig.service.compactor;
    uint64_t moved;

    do {
        kvd_io_fake_advance_ms(fx->rig.fake, 100000);
        struct kvd_io *io = kvd_io_fake_io(fx->rig.fake);
        moved = fx->rig.service.metrics.values[KVD_METRIC_pages_moved];
        kvd_compactor_tick(compactor, io->ops->now_ns(io));
        kvt_rig_settle(&fx->rig);
    } while (fx->rig.service.metrics.values[KVD_METRIC_pages_moved] > moved);
}

static void models_check(struct fixture *fx)
{
    for (unsigned i = 0; i < COUNT; i++) {
        if (fx->sessions[i] != NULL) {
            assert_int_equal(kvt_model_check(&fx->models[i], fx->sessions[i]), 0);
        }
    }
}

static void test_nearly_empty_chunks_are_given_back(void **state)
{
    struct fixture fx;
    const struct kvd_page_store *pages = &fx.rig.service.pages;
    (void)state;

    fixture_init(&fx, 0);
    drop_most(&fx, 12);
    uint64_t chunks = pages->chunk_count;
    compact(&fx);
    (void)kvd_page_store_reclaim(&fx.rig.service.pages, UINT64_MAX);
    assert_true(fx.rig.service.metrics.values[KVD_METRIC_pages_moved] > 0);
    assert_true(pages->chunk_count < chunks);
    /* What is left of each of three sizes fits its pages, with less than a chunk to spare. */
    uint64_t bytes = 0;
    for (unsigned i = 0; i < KVD_PAGE_CLASS_COUNT; i++) {
        bytes += pages->classes[i].bytes;
    }
    assert_true(pages->chunk_bytes < 2 * bytes);
    models_check(&fx);
    /* And they go on: appends seal what was moved. */
    for (unsigned i = 0; i < COUNT; i++) {
        if (fx.sessions[i] != NULL) {
            struct kvt_append append = kvt_append_of(fx.sessions[i], 300, 100 + i);
            kvt_append_fill(&append);
            kvt_model_append(&fx.models[i], &append);
            assert_int_equal(kvt_append_now(&fx.rig, &append), 0);
        }
    }
    models_check(&fx);
    fixture_fini(&fx);
}

/* Pages that somebody holds, and those of blocks that two sessions share, stay where they are. */
static void test_what_is_in_use_stays(void **state)
{
    struct fixture fx;
    struct kvd_failure why = {0};
    struct kvd_session *copies[COUNT] = {0};
    struct kvd_page *held[COUNT] = {0};
    void *at[COUNT] = {0};
    (void)state;

    fixture_init(&fx, 0);
    drop_most(&fx, 12);
    for (unsigned i = 0; i < COUNT; i++) {
        if (fx.sessions[i] != NULL && i % 24 == 11) {
            held[i] = kvd_page_ref(kvd_session_tiles(fx.sessions[i], 2, 0));
        } else if (fx.sessions[i] != NULL) {
            assert_int_equal(kvd_session_copy(fx.sessions[i], NULL, &copies[i], &why), 0);
            held[i] = kvd_session_tiles(fx.sessions[i], 2, 0);
        }
        at[i] = held[i] == NULL ? NULL : kvd_page_data(held[i]);
    }
    compact(&fx);
    for (unsigned i = 0; i < COUNT; i++) {
        if (held[i] != NULL) {
            assert_ptr_equal(kvd_session_tiles(fx.sessions[i], 2, 0), held[i]);
            assert_ptr_equal(kvd_page_data(held[i]), at[i]);
        }
        if (held[i] != NULL && copies[i] == NULL) {
            kvd_page_unref(&fx.rig.service.pages, held[i]);
        }
        if (copies[i] != NULL) {
            kvd_session_unref(copies[i]);
        }
    }
    models_check(&fx);
    fixture_fini(&fx);
}

/* While appends are in flight their sessions are left alone. */
static void test_work_in_flight_is_left_alone(void **state)
{
    struct fixture fx;
    struct kvt_append appends[COUNT];
    (void)state;

    fixture_init(&fx, 2);
    drop_most(&fx, 6);
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < COUNT; i++) {
            if (fx.sessions[i] == NULL) {
                continue;
            }
            appends[i] = kvt_append_of(fx.sessions[i], 200, 1000 + i);
            kvt_append_fill(&appends[i]);
            kvt_model_append(&fx.models[i], &appends[i]);
            assert_int_equal(kvt_append_begin(&fx.rig, &appends[i]), 0);
        }
        compact(&fx);
        for (unsigned i = 0; i < COUNT; i++) {
            if (fx.sessions[i] != NULL) {
                assert_int_equal(appends[i].outcome.why.err, 0);
                kvt_append_fini(&appends[i]);
            }
        }
        models_check(&fx);
    }
    fixture_fini(&fx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nearly_empty_chunks_are_given_back),
        cmocka_unit_test(test_what_is_in_use_stays),
        cmocka_unit_test(test_work_in_flight_is_left_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
