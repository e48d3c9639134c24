/*
 * Tests of server/evict/evict.c: which tenant gives first, how much a turn takes, what is charged,
 * and what is done when the process holds more than is reckoned.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "server/evict/evict.h"
#include "server/evict/session_evict.h"
#include "tests/support/session_rig.h"

#define MIB UINT64_C(1048576)

static const struct kvd_layer_group groups[] = {
    {.layers = 32, .kv_heads = 1, .k_dim = 8, .v_dim = 8}};
static const struct kvd_shape_desc shape_desc = {.model = "evict",
    .group = 64,
    .k_bits = 2,
    .v_bits = 2,
    .layer_groups = groups,
    .layer_group_count = 1};

struct fixture {
    struct kvt_rig rig;
    const struct kvd_shape *shapes[3]; /* of tenants 1 to 3 */
};

static void fixture_init(struct fixture *fx, const char *policy, uint64_t memory_limit)
{
    char text[192];

    kvt_rig_init(
        &fx->rig, &(struct kvt_rig_options){
                      .shape = &shape_desc, .evict_policy = policy, .memory_limit = memory_limit});
    fx->shapes[0] = fx->rig.shape;
    for (uint32_t i = 1; i < 3; i++) {
        assert_int_equal(kvd_shape_register(&fx->rig.service.shapes, KVD_TENANT_DEFAULT + i,
                             &shape_desc, &fx->shapes[i], text, sizeof(text)),
            0);
    }
}

/* A session of a tenant, used now, with so many blocks. */
static struct kvd_session *session_of(struct fixture *fx, uint32_t tenant, uint32_t blocks)
{
    fx->rig.shape = fx->shapes[tenant];
    struct kvd_session *session = kvt_session_open(&fx->rig, NULL, 0);
    struct kvt_append append = kvt_append_of(session, blocks * 64, 1);

    assert_int_equal(session->tenant_id, KVD_TENANT_DEFAULT + tenant);
    assert_int_equal(kvt_append_now(&fx->rig, &append), 0);
    kvd_io_fake_advance_ms(fx->rig.fake, 100);
    return session;
}

static uint32_t missing(const struct kvd_session *session)
{
    return session->missing_last - session->missing_first;
}

static void drop_all(struct fixture *fx, struct kvd_session **sessions, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        kvt_session_drop(&fx->rig, sessions[i]);
    }
    kvt_rig_settle(&fx->rig);
    kvt_rig_fini(&fx->rig);
}

/* Who needs memory takes it from its own tenant, however old and large what others have is. */
static void test_a_tenant_gives_first_what_it_needs(void **state)
{
    static const char *const policies[] = {"cost", "lru", "s3fifo"};
    (void)state;

    for (size_t p = 0; p < 3; p++) {
        struct fixture fx;
        fixture_init(&fx, policies[p], 0);
        struct kvd_session *sessions[] = {session_of(&fx, 1, 40), session_of(&fx, 0, 4),
            session_of(&fx, 0, 4), session_of(&fx, 2, 4)};
        struct kvd_session *needy = sessions[2];
        assert_true(kvd_evictor_make_room(&fx.rig.service, needy, 1));
        assert_true(missing(sessions[1]) > 0);
        assert_int_equal(missing(sessions[0]) + missing(needy) + missing(sessions[3]), 0);
        while (missing(sessions[1]) < 4) {
            assert_true(kvd_evictor_make_room(&fx.rig.service, needy, 1));
        }
        /* Its own is all gone: now the one that has most. */
        assert_true(kvd_evictor_make_room(&fx.rig.service, needy, 1));
        assert_true(missing(sessions[0]) > 0);
        assert_int_equal(missing(needy) + missing(sessions[3]), 0);
        drop_all(&fx, sessions, 4);
    }
}

/* Nobody in particular needs it: the tenant that has most gives, not who was idle longest. */
static void test_the_largest_tenant_gives_above_the_mark(void **state)
{
    struct fixture fx;
    (void)state;

    fixture_init(&fx, "lru", 0);
    struct kvd_session *sessions[] = {
        session_of(&fx, 0, 6), session_of(&fx, 1, 40), session_of(&fx, 2, 6)};
    assert_true(kvd_evictor_want(&fx.rig.service, 1));
    kvt_rig_settle(&fx.rig);
    assert_true(missing(sessions[1]) > 0);
    assert_int_equal(missing(sessions[0]) + missing(sessions[2]), 0);
    drop_all(&fx, sessions, 3);
}

/* More tenants than there are policies: none is left out. */
static void test_tenants_beyond_the_table_share_policies(void **state)
{
    struct kvd_session *sessions[KVD_EVICT_TENANTS_MAX + 4];
    struct fixture fx;
    char text[192];
    (void)state;

    fixture_init(&fx, "lru", 0);
    for (uint32_t i = 0; i < KVD_EVICT_TENANTS_MAX + 4; i++) {
        assert_int_equal(kvd_shape_register(&fx.rig.service.shapes, 100 + i, &shape_desc,
                             &fx.rig.shape, text, sizeof(text)),
            0);
        sessions[i] = kvt_session_open(&fx.rig, NULL, 0);
        struct kvt_append append = kvt_append_of(sessions[i], 64, 1);
        assert_int_equal(kvt_append_now(&fx.rig, &append), 0);
        assert_true(sessions[i]->evict.is_inserted);
    }
    assert_true(kvd_evictor_want(&fx.rig.service, UINT64_C(1) << 40));
    kvt_rig_settle(&fx.rig);
    for (uint32_t i = 0; i + 1 < KVD_EVICT_TENANTS_MAX + 4; i++) {
        assert_int_equal(missing(sessions[i]), 1); /* all but the one used last */
    }
    drop_all(&fx, sessions, KVD_EVICT_TENANTS_MAX + 4);
}

/* A reservation takes what one turn has time for, and the next turn goes on. */
static void test_s18_a_reservation_takes_a_turns_share(void **state)
{
    struct fixture fx;
    (void)state;

    fixture_init(&fx, "lru", 0);
    struct kvd_session *sessions[] = {session_of(&fx, 0, 200), session_of(&fx, 0, 1)};
    kvd_io_fake_set_tick(fx.rig.fake, 10000);
    assert_true(kvd_evictor_make_room(&fx.rig.service, NULL, UINT64_C(1) << 40));
    assert_in_range(missing(sessions[0]), 1, 8);
    kvd_io_fake_set_tick(fx.rig.fake, 0);
    drop_all(&fx, sessions, 2);
}

/*
 * An append without room waits turn by turn while others give: here a chunk is free only when a
 * hundred small blocks have gone.
 */
static void test_s18_an_append_waits_for_what_others_give(void **state)
{
    static const struct kvd_layer_group wide[] = {
        {.layers = 1, .kv_heads = 4, .k_dim = 64, .v_dim = 64}};
    struct kvd_shape_desc desc = shape_desc;
    struct fixture fx;
    char text[192];
    (void)state;

    fixture_init(&fx, "lru", 64 * MIB);
    struct kvd_session *sessions[] = {session_of(&fx, 0, 400), session_of(&fx, 0, 1), NULL};
    desc.layer_groups = wide;
    assert_int_equal(kvd_shape_register(&fx.rig.service.shapes, KVD_TENANT_DEFAULT, &desc,
                         &fx.rig.shape, text, sizeof(text)),
        0);
    sessions[2] = kvt_session_open(&fx.rig, NULL, 0);
    (void)kvd_page_store_reclaim(&fx.rig.service.pages, UINT64_MAX);
    fx.rig.service.budget.limit_bytes = fx.rig.service.budget.used_bytes + MIB;
    kvd_io_fake_set_tick(fx.rig.fake, 10000);
    struct kvt_append append = kvt_append_of(sessions[2], 10, 1);
    assert_int_equal(kvt_append_begin(&fx.rig, &append), 0);
    assert_false(append.outcome.is_done);
    assert_in_range(missing(sessions[0]), 1, 10);
    kvt_rig_settle(&fx.rig);
    assert_true(append.outcome.is_done && append.outcome.why.err == 0);
    kvt_append_fini(&append);
    assert_in_range(missing(sessions[0]), 100, 400);
    assert_int_equal(sessions[2]->layers[0].length, 10);
    kvd_io_fake_set_tick(fx.rig.fake, 0);
    drop_all(&fx, sessions, 3);
}

/* What is learnt of use is charged, and is given back in the end. */
static void test_policies_are_charged(void **state)
{
    static const enum kvd_evict_kind kinds[] = {KVD_EVICT_COST, KVD_EVICT_LRU, KVD_EVICT_S3FIFO};
    (void)state;

    for (size_t i = 0; i < 3; i++) {
        struct fixture fx;
        fixture_init(&fx, kvd_evict_kind_name(kinds[i]), 0);
        const uint64_t *charged = &fx.rig.service.budget.kind_bytes[KVD_BUDGET_POLICIES];
        assert_int_equal(*charged, 0);
        struct kvd_session *session = session_of(&fx, 0, 2);
        size_t memory = kvd_evict_policy_memory(kinds[i]);
        assert_true(memory > (kinds[i] == KVD_EVICT_LRU ? 100u : 300000u));
        assert_in_range(*charged, memory + 64, memory + 1024);
        drop_all(&fx, &session, 1);
    }
}

static void test_tokens_are_counted_not_blocks(void **state)
{
    struct fixture fx;
    (void)state;

    fixture_init(&fx, "lru", 0);
    struct kvd_session *session = session_of(&fx, 0, 2);
    struct kvt_append append = kvt_append_of(session, 10, 1);
    assert_int_equal(kvt_append_now(&fx.rig, &append), 0);
    uint64_t freed = 0;
    assert_int_equal(kvd_session_evict(session, 3, &freed), 3);
    assert_int_equal(fx.rig.service.metrics.values[KVD_METRIC_evicted_tokens], 138);
    drop_all(&fx, &session, 1);
}

/* The process holds more than the limit: eviction begins earlier, until it holds less. */
static void test_what_is_resident_lowers_the_marks(void **state)
{
    struct fixture fx;
    uint64_t now_ns = UINT64_C(10000000000);
    (void)state;

    fixture_init(&fx, "lru", 1024 * MIB);
    struct kvd_service *service = &fx.rig.service;
    struct kvd_session *sessions[] = {session_of(&fx, 0, 200), session_of(&fx, 0, 1)};
    assert_true(kvd_evictor_wants_measure(service, now_ns));
    kvd_evictor_measured(service, 1040 * MIB, now_ns); /* within the margin */
    assert_false(kvd_evictor_wants_measure(service, now_ns + 999999999));
    assert_true(kvd_evictor_wants_measure(service, now_ns + 1000000000));
    assert_int_equal(service->evictor.lowered_bytes, 0);
    kvd_evictor_measured(service, 1124 * MIB, now_ns);
    assert_int_equal(service->evictor.lowered_bytes, 100 * MIB);
    kvt_rig_settle(&fx.rig);
    assert_int_equal(missing(sessions[0]), 0); /* far below the mark still */
    for (int i = 0; i < 20; i++) {
        kvd_evictor_measured(service, 1300 * MIB, now_ns);
    }
    /* Half of where eviction ends, at most: 85 % of the limit. */
    uint64_t most = service->evictor.stop_bytes / 2;
    assert_int_equal(service->evictor.lowered_bytes, most);
    kvd_evictor_measured(service, 1024 * MIB, now_ns);
    assert_int_equal(service->evictor.lowered_bytes, most);
    kvd_evictor_measured(service, 1014 * MIB, now_ns); /* it rises by what is free */
    assert_int_equal(service->evictor.lowered_bytes, most - 10 * MIB);
    for (int i = 0; i < 20; i++) {
        kvd_evictor_measured(service, 600 * MIB, now_ns);
    }
    assert_int_equal(service->evictor.lowered_bytes, 0);
    /* Marks that are lowered below what is in use make it go. */
    service->evictor.start_bytes = kvd_evictor_used_bytes(service) + 50 * MIB;
    service->evictor.stop_bytes = kvd_evictor_used_bytes(service) + 49 * MIB;
    kvd_evictor_measured(service, 1074 * MIB, now_ns);
    kvt_rig_settle(&fx.rig);
    assert_int_equal(missing(sessions[0]), 0);
    kvd_evictor_measured(service, 1074 * MIB, now_ns);
    service->evictor.lowered_bytes = 51 * MIB;
    kvd_evictor_check(service);
    kvt_rig_settle(&fx.rig);
    assert_true(missing(sessions[0]) > 0);
    drop_all(&fx, sessions, 2);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_a_tenant_gives_first_what_it_needs),
    cmocka_unit_test(test_the_largest_tenant_gives_above_the_mark),
    cmocka_unit_test(test_tenants_beyond_the_table_share_policies),
    cmocka_unit_test(test_s18_a_reservation_takes_a_turns_share),
    cmocka_unit_test(test_s18_an_append_waits_for_what_others_give),
    cmocka_unit_test(test_policies_are_charged),
    cmocka_unit_test(test_tokens_are_counted_not_blocks),
    cmocka_unit_test(test_what_is_resident_lowers_the_marks),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
