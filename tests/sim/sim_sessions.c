/*
 * Sessions against their model: seeded scripts of appends, retries, records, truncates, forks,
 * reorders, attentions and reads on several sessions, pipelined, references counted anew; the same
 * script with 0, 1 and 4 workers and random delays must give the same bits (SEMANTICS.md 3); and
 * scripts whose memory runs out.
 *
 * KVT_SEEDS in the environment: how many seeds, for longer runs by hand.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/sim/session_world.h"

#define STEPS 150

/* ThreadSanitizer makes this some 15 times slower; there it is the threads that matter. */
#if defined(__SANITIZE_THREAD__)
#define SEEDS 4
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SEEDS 4
#endif
#endif
#ifndef SEEDS
#define SEEDS 12
#endif

static unsigned seed_count(unsigned usual)
{
    const char *text = getenv("KVT_SEEDS");

    return text == NULL ? usual : (unsigned)strtoul(text, NULL, 10);
}

struct tally {
    unsigned tried, wrong, refused, evicted, missed;
    uint64_t moved; /* pages */
    unsigned by_kind[WORLD_KIND_COUNT];
};

/* Run a script; returns the digest of all its answers. */
static uint64_t run(const struct world_options *options, struct tally *tally)
{
    static struct world world;

    world_init(&world, options);
    for (unsigned i = 0; i < STEPS; i++) {
        world_step(&world);
    }
    tally->moved += world.rig.service.metrics.values[KVD_METRIC_pages_moved];
    world_fini(&world);
    tally->tried += world.tried;
    tally->wrong += world.wrong;
    tally->refused += world.refused;
    tally->evicted += world.evicted;
    tally->missed += world.missed;
    for (unsigned i = 0; i < WORLD_KIND_COUNT; i++) {
        tally->by_kind[i] += world.tried_by_kind[i];
    }
    return world.digest;
}

static void tally_print(const char *name, const struct tally *tally)
{
    printf("%s: tried %u (append %u, tiles %u, truncate %u, fork %u, reorder %u, attend %u, read "
           "%u; %u refused for memory), wrong %u\n",
        name, tally->tried, tally->by_kind[WORLD_APPEND], tally->by_kind[WORLD_TILES],
        tally->by_kind[WORLD_TRUNCATE], tally->by_kind[WORLD_FORK], tally->by_kind[WORLD_REORDER],
        tally->by_kind[WORLD_ATTEND], tally->by_kind[WORLD_READ], tally->refused, tally->wrong);
}

static void test_s03_same_bits_with_any_workers(void **state)
{
    static const struct world_options kinds[] = {
        {.workers = 0},
        {.workers = 0, .jitter_us_max = 1},
        {.workers = 1, .jitter_us_max = 200},
        {.workers = 4, .jitter_us_max = 300},
    };
    struct tally tally = {0};
    unsigned differ = 0;
    (void)state;

    for (unsigned seed = 0; seed < seed_count(SEEDS); seed++) {
        uint64_t first_digest = 0;
        for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
            struct world_options options = kinds[i];
            unsigned wrong_before = tally.wrong;
            options.seed = seed;
            options.timing_seed = seed * 31 + i;
            uint64_t digest = run(&options, &tally);
            first_digest = i == 0 ? digest : first_digest;
            if (digest != first_digest) {
                printf("seed %u: other bits with %u workers\n", seed, options.workers);
                differ++;
            }
            if (tally.wrong != wrong_before) {
                printf("seed %u is wrong with %u workers\n", seed, options.workers);
            }
        }
    }
    tally_print("workers 0, 0 out of order, 1, 4", &tally);
    assert_true(tally.tried > 0);
    assert_int_equal(tally.wrong, 0);
    assert_int_equal(differ, 0);
}

static void test_s05_short_memory_stores_whole_or_not(void **state)
{
    struct tally tally = {0};
    (void)state;

    for (unsigned seed = 0; seed < seed_count(SEEDS / 2); seed++) {
        struct world_options options = {
            .seed = seed + 1000, .timing_seed = seed, .workers = seed % 2, .is_short = true};
        (void)run(&options, &tally);
    }
    tally_print("short of memory", &tally);
    assert_true(tally.refused > 0);
    assert_int_equal(tally.wrong, 0);
}

/* What was evicted is a MISS or right, never wrong; cut back and appended to, all is right again.
 */
static void test_p01_evicted_is_a_miss_or_right(void **state)
{
    struct tally tally = {0};
    (void)state;

    for (unsigned seed = 0; seed < seed_count(SEEDS); seed++) {
        struct world_options options = {.seed = seed + 2000,
            .timing_seed = seed,
            .workers = seed % 3,
            .is_short = seed % 2 == 1,
            .is_evicting = true};
        (void)run(&options, &tally);
    }
    tally_print("evicting", &tally);
    printf("%u blocks evicted, %u operations missed, %u pages moved\n", tally.evicted, tally.missed,
        (unsigned)tally.moved);
    unsigned seeds = seed_count(SEEDS);
    assert_true(tally.evicted > 8 * seeds && tally.missed > 8 * seeds);
    assert_int_equal(tally.wrong, 0);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_s03_same_bits_with_any_workers),
    cmocka_unit_test(test_s05_short_memory_stores_whole_or_not),
    cmocka_unit_test(test_p01_evicted_is_a_miss_or_right),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
