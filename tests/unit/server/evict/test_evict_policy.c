/*
 * Tests of server/evict/evict_policy.c and its policies: what goes first, what never goes, and
 * counts that stay exact under random operations.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "server/evict/evict_policy.h"
#include "tests/support/rng.h"

#define S     UINT64_C(1000000000)
#define COUNT 64

struct fixture {
    struct kvd_evict_policy *policy;
    struct kvd_evict_entry entries[COUNT];
};

static void fixture_init(struct fixture *fx, enum kvd_evict_kind kind)
{
    memset(fx, 0, sizeof(*fx));
    assert_int_equal(kvd_evict_policy_create(kind, 1, &fx->policy), 0);
    for (unsigned i = 0; i < COUNT; i++) {
        fx->entries[i] = (struct kvd_evict_entry){.key = 1000 + i, .bytes = 100, .cost = 100};
    }
}

static void fixture_fini(struct fixture *fx)
{
    for (unsigned i = 0; i < COUNT; i++) {
        if (fx->entries[i].is_inserted) {
            kvd_evict_remove(fx->policy, &fx->entries[i], KVD_EVICT_GONE);
        }
    }
    assert_int_equal(kvd_evict_policy_count(fx->policy), 0);
    kvd_evict_policy_destroy(fx->policy);
}

/* Entries first to last - 1, one a second from second 1 + first on. */
static void insert_range(struct fixture *fx, unsigned first, unsigned last)
{
    for (unsigned i = first; i < last; i++) {
        assert_int_equal(kvd_evict_insert(fx->policy, &fx->entries[i], (1 + i) * S), 0);
    }
}

static unsigned victim_idx(struct fixture *fx, uint64_t now_ns)
{
    struct kvd_evict_entry *entry = kvd_evict_victim(fx->policy, now_ns, NULL, NULL);

    assert_non_null(entry);
    return (unsigned)(entry - fx->entries);
}

static void test_names(void **state)
{
    (void)state;
    for (unsigned i = 0; i < KVD_EVICT_KIND_COUNT; i++) {
        enum kvd_evict_kind kind = KVD_EVICT_KIND_COUNT;
        const char *name = kvd_evict_kind_name((enum kvd_evict_kind)i);
        assert_int_equal(kvd_evict_kind_parse(name, &kind), 0);
        assert_int_equal(kind, i);
    }
    enum kvd_evict_kind kind = KVD_EVICT_LRU;
    assert_int_equal(kvd_evict_kind_parse("fifo", &kind), KVARN_EINVALID);
    assert_int_equal(kind, KVD_EVICT_LRU);
}

static void test_lru_takes_the_least_recently_used(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_init(&fx, KVD_EVICT_LRU);
    assert_null(kvd_evict_victim(fx.policy, S, NULL, NULL));
    insert_range(&fx, 0, 4);
    kvd_evict_use(fx.policy, &fx.entries[0], 10 * S);
    assert_int_equal(victim_idx(&fx, 11 * S), 1);
    kvd_evict_hold(fx.policy, &fx.entries[1]);
    assert_int_equal(victim_idx(&fx, 11 * S), 2);
    kvd_evict_remove(fx.policy, &fx.entries[2], KVD_EVICT_EVICTED);
    assert_int_equal(victim_idx(&fx, 11 * S), 3);
    fixture_fini(&fx);
}

/* Nothing learned yet: cost is LRU. */
static void test_cost_starts_as_lru(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_init(&fx, KVD_EVICT_COST);
    insert_range(&fx, 0, 32);
    for (unsigned i = 0; i < 32; i++) {
        assert_int_equal(victim_idx(&fx, 100 * S), i);
        kvd_evict_remove(fx.policy, &fx.entries[i], KVD_EVICT_EVICTED);
    }
    fixture_fini(&fx);
}

/* Teach a cost policy that what is used comes back after a second. */
static void teach(struct fixture *fx)
{
    struct kvd_evict_entry busy[50];

    memset(busy, 0, sizeof(busy));
    for (unsigned n = 0; n < 5000; n++) {
        struct kvd_evict_entry *entry = &busy[n % 50];
        uint64_t now_ns = n * S / 50;
        entry->key = 5000 + n % 50;
        entry->bytes = 100;
        if (entry->is_inserted) {
            kvd_evict_use(fx->policy, entry, now_ns);
        } else {
            assert_int_equal(kvd_evict_insert(fx->policy, entry, now_ns), 0);
        }
    }
    for (unsigned i = 0; i < 50; i++) {
        kvd_evict_remove(fx->policy, &busy[i], KVD_EVICT_GONE);
    }
}

/* Of equals in time: what is cheap to make again a byte, unshared, of no priority. */
static void test_cost_weighs(void **state)
{
    (void)state;
    struct fixture fx;
    uint64_t now_ns = 101 * S;
    fixture_init(&fx, KVD_EVICT_COST);
    teach(&fx);
    for (unsigned i = 0; i < 8; i++) {
        fx.entries[i].cost = 1000;
        assert_int_equal(kvd_evict_insert(fx.policy, &fx.entries[i], now_ns), 0);
    }
    kvd_evict_update(fx.policy, &fx.entries[3], 100, 500);
    assert_int_equal(victim_idx(&fx, now_ns), 3);
    kvd_evict_update(fx.policy, &fx.entries[5], 400, 1000);
    assert_int_equal(victim_idx(&fx, now_ns), 5);
    fx.entries[5].sharers = 9;
    assert_int_equal(victim_idx(&fx, now_ns), 3);
    fx.entries[3].priority = 10;
    fx.entries[3].priority_ns = now_ns;
    assert_int_not_equal(victim_idx(&fx, now_ns), 3);
    fixture_fini(&fx);
}

/* Priority 10 makes 11 times as much of a thing, and half as much of that after each half-life. */
static void test_priority_decays(void **state)
{
    (void)state;
    struct fixture fx;
    uint64_t set_ns = 101 * S, half_ns = KVD_EVICT_PRIORITY_HALF_LIFE_NS;
    fixture_init(&fx, KVD_EVICT_COST);
    teach(&fx);
    fx.entries[0].priority = 10;
    fx.entries[0].priority_ns = set_ns;
    fx.entries[0].cost = 100;
    fx.entries[1].cost = 300;
    for (unsigned n = 0; n < 6; n++) {
        uint64_t now_ns = set_ns + n * half_ns;
        for (unsigned i = 0; i < 2; i++) {
            assert_int_equal(kvd_evict_insert(fx.policy, &fx.entries[i], now_ns), 0);
        }
        /* 11, 6, 3.5, 2.25, ... times 100 against 300 */
        assert_int_equal(victim_idx(&fx, now_ns), n <= 2 ? 1 : 0);
        for (unsigned i = 0; i < 2; i++) {
            kvd_evict_remove(fx.policy, &fx.entries[i], KVD_EVICT_GONE);
        }
    }
    fixture_fini(&fx);
}

static void test_cost_spares_what_others_depend_on(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_init(&fx, KVD_EVICT_COST);
    insert_range(&fx, 0, 3);
    kvd_evict_depend(fx.policy, &fx.entries[0], 1);
    kvd_evict_depend(fx.policy, &fx.entries[0], 1);
    assert_int_equal(victim_idx(&fx, 10 * S), 1);
    kvd_evict_use(fx.policy, &fx.entries[0], 10 * S);
    kvd_evict_hold(fx.policy, &fx.entries[0]);
    kvd_evict_depend(fx.policy, &fx.entries[0], -1);
    kvd_evict_depend(fx.policy, &fx.entries[0], -1);
    kvd_evict_remove(fx.policy, &fx.entries[1], KVD_EVICT_EVICTED);
    kvd_evict_remove(fx.policy, &fx.entries[2], KVD_EVICT_EVICTED);
    assert_null(kvd_evict_victim(fx.policy, 11 * S, NULL, NULL));
    kvd_evict_release(fx.policy, &fx.entries[0]);
    assert_int_equal(victim_idx(&fx, 11 * S), 0);
    fixture_fini(&fx);
}

/* One pass over many things hardly pushes out what is used again and again. */
static void test_s3fifo_resists_a_scan(void **state)
{
    (void)state;
    struct fixture fx;
    unsigned lost = 0;
    fixture_init(&fx, KVD_EVICT_S3FIFO);
    insert_range(&fx, 0, 20);
    for (unsigned i = 20; i < COUNT; i++) {
        uint64_t now_ns = (100 + i) * S;
        for (unsigned hot = 0; hot < 20; hot++) {
            if (fx.entries[hot].is_inserted) {
                kvd_evict_use(fx.policy, &fx.entries[hot], now_ns);
            }
        }
        assert_int_equal(kvd_evict_insert(fx.policy, &fx.entries[i], now_ns), 0);
        unsigned idx = victim_idx(&fx, now_ns);
        lost += idx < 20;
        kvd_evict_remove(fx.policy, &fx.entries[idx], KVD_EVICT_EVICTED);
    }
    assert_true(lost <= 2);
    fixture_fini(&fx);
}

static void test_s3fifo_remembers_what_left(void **state)
{
    (void)state;
    struct fixture fx;
    fixture_init(&fx, KVD_EVICT_S3FIFO);
    insert_range(&fx, 0, 4);
    kvd_evict_remove(fx.policy, &fx.entries[0], KVD_EVICT_EVICTED);
    assert_int_equal(kvd_evict_insert(fx.policy, &fx.entries[0], 50 * S), 0);
    for (unsigned n = 0; n < 3; n++) {
        unsigned idx = victim_idx(&fx, 60 * S);
        assert_int_not_equal(idx, 0); /* it came back: in the main queue */
        kvd_evict_remove(fx.policy, &fx.entries[idx], KVD_EVICT_EVICTED);
    }
    assert_int_equal(victim_idx(&fx, 60 * S), 0);
    fixture_fini(&fx);
}

struct model {
    struct fixture fx;
    bool is_refused[COUNT];
    uint64_t now_ns;
};

static bool model_may_cb(void *ctx, const struct kvd_evict_entry *entry)
{
    struct model *model = ctx;

    assert_true(entry->is_inserted && !entry->is_held);
    return !model->is_refused[entry - model->fx.entries];
}

/* Whether anything may go, as a model says. */
static bool model_has_candidate(const struct model *model, bool is_cost)
{
    for (unsigned i = 0; i < COUNT; i++) {
        const struct kvd_evict_entry *entry = &model->fx.entries[i];
        if (entry->is_inserted && !entry->is_held && !model->is_refused[i] &&
            !(is_cost && entry->dependents > 0)) {
            return true;
        }
    }
    return false;
}

static void model_check(struct model *model, bool is_cost)
{
    uint64_t bytes = 0, count = 0;
    for (unsigned i = 0; i < COUNT; i++) {
        count += model->fx.entries[i].is_inserted;
        bytes += model->fx.entries[i].is_inserted ? model->fx.entries[i].bytes : 0;
    }
    assert_int_equal(kvd_evict_policy_bytes(model->fx.policy), bytes);
    assert_int_equal(kvd_evict_policy_count(model->fx.policy), count);
    struct kvd_evict_entry *victim =
        kvd_evict_victim(model->fx.policy, model->now_ns, model_may_cb, model);
    assert_int_equal(victim != NULL, model_has_candidate(model, is_cost));
    if (victim != NULL) {
        assert_true(victim->is_inserted && !victim->is_held);
        assert_false(model->is_refused[victim - model->fx.entries]);
        assert_true(!is_cost || victim->dependents == 0);
    }
}

static void model_step(struct model *model, struct kvt_rng *rng)
{
    struct kvd_evict_policy *policy = model->fx.policy;
    unsigned idx = kvt_rng_below(rng, COUNT);
    struct kvd_evict_entry *entry = &model->fx.entries[idx];
    enum kvd_evict_reason reason = kvt_rng_below(rng, 2) ? KVD_EVICT_GONE : KVD_EVICT_EVICTED;

    model->now_ns += kvt_rng_below(rng, 1000000000);
    if (!entry->is_inserted) {
        entry->dependents = 0;
        entry->bytes = 1 + kvt_rng_below(rng, 1000);
        entry->cost = kvt_rng_below(rng, 1000);
        entry->group = (uint8_t)kvt_rng_below(rng, KVD_EVICT_GROUPS);
        assert_int_equal(kvd_evict_insert(policy, entry, model->now_ns), 0);
        return;
    }
    switch (kvt_rng_below(rng, 8)) {
    case 0:
        kvd_evict_remove(policy, entry, reason);
        break;
    case 1:
        kvd_evict_hold(policy, entry);
        break;
    case 2:
        kvd_evict_release(policy, entry);
        break;
    case 3:
        kvd_evict_update(policy, entry, 1 + kvt_rng_below(rng, 1000), kvt_rng_below(rng, 1000));
        break;
    case 4:
        kvd_evict_depend(policy, entry, 1);
        break;
    case 5:
        if (entry->dependents > 0) {
            kvd_evict_depend(policy, entry, -1);
        }
        break;
    case 6:
        model->is_refused[idx] = !model->is_refused[idx];
        break;
    default:
        kvd_evict_use(policy, entry, model->now_ns);
    }
}

/* Counts, and that the victim always is one that may go, and is found if there is one. */
static void random_operations(enum kvd_evict_kind kind)
{
    struct kvt_rng rng = {.state = 42 + (uint64_t)kind};
    struct model model;

    memset(&model, 0, sizeof(model));
    fixture_init(&model.fx, kind);
    for (unsigned n = 0; n < 20000; n++) {
        model_step(&model, &rng);
        model_check(&model, kind == KVD_EVICT_COST);
    }
    fixture_fini(&model.fx);
}

static void test_random_operations(void **state)
{
    (void)state;
    random_operations(KVD_EVICT_LRU);
    random_operations(KVD_EVICT_S3FIFO);
    random_operations(KVD_EVICT_COST);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_lru_takes_the_least_recently_used),
        cmocka_unit_test(test_cost_starts_as_lru),
        cmocka_unit_test(test_cost_weighs),
        cmocka_unit_test(test_priority_decays),
        cmocka_unit_test(test_cost_spares_what_others_depend_on),
        cmocka_unit_test(test_s3fifo_resists_a_scan),
        cmocka_unit_test(test_s3fifo_remembers_what_left),
        cmocka_unit_test(test_random_operations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
