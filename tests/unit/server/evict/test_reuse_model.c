/*
 * Tests of server/evict/reuse_model.c: what it learns from streams of known character.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "server/evict/reuse_model.h"

#define MS UINT64_C(1000000)
#define S  UINT64_C(1000000000)

static void test_knows_nothing_at_first(void **state)
{
    (void)state;
    struct kvd_reuse_model model;
    assert_int_equal(kvd_reuse_model_init(&model), 0);

    /* 1 / age: the older the less, in every class alike. */
    float before = kvd_reuse_model_worth(&model, 0, 0);
    for (uint64_t age_ns = 32 * MS; age_ns < 10000 * S; age_ns *= 2) {
        float worth = kvd_reuse_model_worth(&model, 0, age_ns);
        assert_true(worth > 0.0f && worth < before);
        float other = kvd_reuse_model_worth(&model, KVD_REUSE_CLASSES - 1, age_ns);
        assert_true(other > 0.99f * worth && other < 1.01f * worth);
        assert_true(kvd_reuse_model_evidence(&model, age_ns) <= 0.0f);
        before = worth;
    }
    kvd_reuse_model_fini(&model);
}

/* Keys of class 1 come back after 10 s, those of class 2 never: 100 of each start a second. */
static void test_learns_what_returns(void **state)
{
    (void)state;
    struct kvd_reuse_model model;
    uint64_t key = 0, now_ns = S;
    assert_int_equal(kvd_reuse_model_init(&model), 0);
    for (unsigned n = 0; n < 20000; n++, now_ns += 10 * MS) {
        kvd_reuse_model_use(&model, key + 1, 1, now_ns);
        kvd_reuse_model_use(&model, key + 2, 2, now_ns);
        if (n >= 1000) {
            kvd_reuse_model_use(&model, key - 2000 + 1, 1, now_ns);
        }
        key += 2;
    }
    assert_true(kvd_reuse_model_evidence(&model, S) > 100.0f);
    /* About to return is worth more than just used, and than what has missed its time. */
    assert_true(kvd_reuse_model_worth(&model, 1, 9 * S) > kvd_reuse_model_worth(&model, 1, S));
    assert_true(
        kvd_reuse_model_worth(&model, 1, 9 * S) > 3 * kvd_reuse_model_worth(&model, 1, 40 * S));
    /* The other class never is worth as much. */
    for (uint64_t age_ns = S; age_ns < 10 * S; age_ns += S) {
        assert_true(kvd_reuse_model_worth(&model, 1, age_ns) >
                    2 * kvd_reuse_model_worth(&model, 2, age_ns));
    }
    kvd_reuse_model_fini(&model);
}

/* A hundred times as many keys as it can watch, and then fewer again: it goes on learning. */
static void test_watches_a_bounded_share(void **state)
{
    (void)state;
    struct kvd_reuse_model model;
    uint64_t now_ns = S;
    assert_int_equal(kvd_reuse_model_init(&model), 0);
    for (uint64_t key = 0; key < 100 * KVD_REUSE_SAMPLES_MAX; key++, now_ns += MS) {
        kvd_reuse_model_use(&model, key, 0, now_ns);
        assert_true(model.live_count <= KVD_REUSE_SAMPLES_MAX);
    }
    assert_true(model.mask_bits >= 5 && model.live_count > KVD_REUSE_SAMPLES_MAX / 4);
    unsigned bits = model.mask_bits;
    now_ns += 20000 * S; /* all are forgotten as they are looked at */
    for (uint64_t n = 0; n < 8 * KVD_REUSE_SAMPLES_MAX; n++, now_ns += MS) {
        kvd_reuse_model_use(&model, n % 50, 0, now_ns);
    }
    assert_true(model.mask_bits < bits && model.live_count <= 50);
    kvd_reuse_model_fini(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_knows_nothing_at_first),
        cmocka_unit_test(test_learns_what_returns),
        cmocka_unit_test(test_watches_a_bounded_share),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
