/*
 * Tests of server/session/lifetime.c on a clock that is moved by hand: TTLs, pins and their budget,
 * priority.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "server/evict/evict_policy.h"
#include "tests/support/session_rig.h"

static void advance(struct kvt_rig *rig, uint64_t ms)
{
    kvd_io_fake_advance_ms(rig->fake, ms);
    kvt_rig_settle(rig);
}

static void append(struct kvt_rig *rig, struct kvd_session *session, uint32_t tokens)
{
    struct kvt_append append = kvt_append_of(session, tokens, 1);

    assert_int_equal(kvt_append_now(rig, &append), 0);
}

static void test_s12_a_session_expires_when_its_ttl_is_over(void **state)
{
    (void)state;
    struct kvt_rig rig;
    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    struct kvd_session *kept = kvt_session_open(&rig, "kept", 0);
    struct kvd_session *brief = kvt_session_open(&rig, "brief", 0);
    append(&rig, brief, 200);
    kvd_lifetime_set_ttl(brief, 5000);
    assert_int_equal(kvd_lifetime_ttl_left_ms(brief), 5000);
    assert_int_equal(kvd_lifetime_ttl_left_ms(kept), 0);
    advance(&rig, 4999);
    assert_false(brief->is_dropped);
    assert_int_equal(kvd_lifetime_ttl_left_ms(brief), 1);
    advance(&rig, 1);
    assert_true(brief->is_dropped);
    assert_null(kvd_session_table_find(&rig.service.sessions, brief->tenant_id, "brief"));
    assert_int_equal(rig.service.metrics.values[KVD_METRIC_sessions_expired], 1);
    advance(&rig, 1000000000);
    assert_false(kept->is_dropped);
    kvd_session_unref(brief);
    kvt_session_drop(&rig, kept);
    kvt_rig_fini(&rig);
}

/* The TTL counts from the last use, and can be changed and taken back. */
static void test_use_renews_a_ttl(void **state)
{
    (void)state;
    struct kvt_rig rig;
    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    struct kvd_session *session = kvt_session_open(&rig, "s", 0);
    kvd_lifetime_set_ttl(session, 1000);
    for (int i = 0; i < 10; i++) {
        advance(&rig, 900);
        assert_false(session->is_dropped);
        append(&rig, session, 10);
    }
    kvd_lifetime_set_ttl(session, 0);
    advance(&rig, 100000);
    assert_false(session->is_dropped);
    kvd_lifetime_set_ttl(session, 50);
    advance(&rig, 50);
    assert_true(session->is_dropped);
    kvd_session_unref(session);
    kvt_rig_fini(&rig);
}

/* A thousand at once go in slices, and the loop is not held: no turn takes them all. */
static void test_s11_many_expire_in_slices(void **state)
{
    (void)state;
    enum { COUNT = 1000 };
    struct kvt_rig rig;
    struct kvd_session *sessions[COUNT];
    unsigned turns = 0;
    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    for (unsigned i = 0; i < COUNT; i++) {
        char name[16];
        (void)snprintf(name, sizeof(name), "s%u", i);
        sessions[i] = kvt_session_open(&rig, name, 0);
        kvd_lifetime_set_ttl(sessions[i], 1000);
    }
    kvd_io_fake_set_tick(rig.fake, 2000000000);
    (void)rig.service.io->ops->now_ns(rig.service.io); /* two seconds later */
    kvd_io_fake_set_tick(rig.fake, 10000);             /* a look at the clock takes 10 us */
    while (kvd_io_fake_turn(rig.fake)) {
        turns++;
    }
    assert_true(turns >= COUNT / 20);
    for (unsigned i = 0; i < COUNT; i++) {
        assert_true(sessions[i]->is_dropped);
        kvd_session_unref(sessions[i]);
    }
    kvd_io_fake_set_tick(rig.fake, 0);
    kvt_rig_settle(&rig);
    kvt_rig_fini(&rig);
}

/* What is in flight ends before its session does. */
static void test_work_in_flight_puts_expiry_off(void **state)
{
    (void)state;
    struct kvt_rig rig;
    kvt_rig_init(&rig, &(struct kvt_rig_options){.shape = &kvt_shape_large});
    struct kvd_session *session = kvt_session_open(&rig, "s", 0);
    struct kvt_append append = kvt_append_of(session, 256, 1);
    kvd_lifetime_set_ttl(session, 1000);
    assert_int_equal(kvt_append_begin(&rig, &append), 0); /* 1 MiB: jobs of later turns */
    assert_false(append.outcome.is_done);
    kvd_io_fake_advance_ms(rig.fake, 1000);
    assert_false(append.outcome.is_done);
    kvt_rig_settle(&rig);
    assert_true(append.outcome.is_done);
    assert_int_equal(append.outcome.why.err, 0);
    advance(&rig, 100);
    assert_false(session->is_dropped); /* the append was a use */
    advance(&rig, 1000);
    assert_true(session->is_dropped);
    kvt_append_fini(&append);
    kvd_session_unref(session);
    kvt_rig_fini(&rig);
}

static void test_a_pin_ends_by_itself_and_holds_expiry_off(void **state)
{
    (void)state;
    struct kvt_rig rig;
    struct kvd_failure why = {0};
    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    struct kvd_session *session = kvt_session_open(&rig, "s", 0);
    append(&rig, session, 200);
    kvd_lifetime_set_ttl(session, 1000);
    assert_int_equal(kvd_lifetime_pin(session, 5000, &why), 0);
    assert_true(rig.service.lifetimes.pinned_bytes > 0);
    assert_int_equal(kvd_lifetime_pin_left_ms(session), 5000);
    advance(&rig, 4999);
    assert_int_equal(kvd_lifetime_pin_left_ms(session), 1);
    assert_false(session->is_dropped);
    advance(&rig, 1);
    assert_int_equal(kvd_lifetime_pin_left_ms(session), 0);
    assert_int_equal(rig.service.lifetimes.pinned_bytes, 0);
    assert_int_equal(rig.service.lifetimes.pinned_count, 0);
    assert_true(session->is_dropped); /* the TTL was over long ago */
    kvd_session_unref(session);
    kvt_rig_fini(&rig);
}

static void test_pins_have_a_budget(void **state)
{
    (void)state;
    struct kvt_rig rig;
    struct kvd_failure why = {0};
    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    struct kvd_lifetimes *lifetimes = &rig.service.lifetimes;
    struct kvd_session *a = kvt_session_open(&rig, "a", 0);
    struct kvd_session *b = kvt_session_open(&rig, "b", 0);
    append(&rig, a, 128);
    append(&rig, b, 128);
    assert_int_equal(kvd_lifetime_pin(a, 1000, &why), 0);
    uint64_t bytes = lifetimes->pinned_bytes;
    lifetimes->pin_bytes_max = 2 * bytes - 1;
    assert_int_equal(kvd_lifetime_pin(b, 1000, &why), KVARN_ENOSPC);
    assert_int_equal(lifetimes->pinned_bytes, bytes);
    assert_int_equal(kvd_lifetime_pin(a, 9000, &why), 0); /* again: not counted twice */
    assert_int_equal(lifetimes->pinned_bytes, bytes);
    assert_int_equal(kvd_lifetime_pin_left_ms(a), 9000);
    append(&rig, a, 640);
    assert_int_equal(kvd_lifetime_pin(a, 1000, &why), KVARN_ENOSPC);
    assert_int_equal(kvd_lifetime_pin_left_ms(a), 9000); /* the earlier one holds */
    kvd_lifetime_unpin(a);
    kvd_lifetime_unpin(a);
    assert_int_equal(lifetimes->pinned_bytes, 0);
    assert_int_equal(kvd_lifetime_pin(b, 1000, &why), 0);
    kvt_session_drop(&rig, b); /* a pin does not keep what its owner drops */
    assert_int_equal(lifetimes->pinned_bytes, 0);
    kvt_session_drop(&rig, a);
    kvt_rig_fini(&rig);
}

static void test_priority_halves_every_ten_minutes(void **state)
{
    (void)state;
    struct kvt_rig rig;
    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    struct kvd_session *session = kvt_session_open(&rig, "s", 0);
    assert_int_equal(kvd_lifetime_priority(session), 0);
    kvd_lifetime_set_priority(session, 64);
    assert_int_equal(kvd_lifetime_priority(session), 64);
    for (uint32_t left = 32; left > 0; left /= 2) {
        advance(&rig, 600000);
        assert_int_equal(kvd_lifetime_priority(session), left);
    }
    kvd_lifetime_set_priority(session, 10);
    assert_int_equal(kvd_lifetime_priority(session), 10);
    kvt_session_drop(&rig, session);
    kvt_rig_fini(&rig);
}

/* An unnamed session's end ends its TTL and its pin. */
static void test_s12_the_end_of_an_unnamed_session_ends_all(void **state)
{
    (void)state;
    struct kvt_rig rig;
    struct kvd_failure why = {0};
    kvt_rig_init(&rig, &(struct kvt_rig_options){0});
    struct kvd_session *session = kvt_session_open(&rig, NULL, 0);
    append(&rig, session, 200);
    kvd_lifetime_set_ttl(session, 1000);
    assert_int_equal(kvd_lifetime_pin(session, 5000, &why), 0);
    kvd_session_unref(session);
    kvt_rig_settle(&rig);
    assert_int_equal(rig.service.lifetimes.pinned_bytes, 0);
    advance(&rig, 10000);
    assert_int_equal(rig.service.metrics.values[KVD_METRIC_sessions_expired], 0);
    kvt_rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_s12_a_session_expires_when_its_ttl_is_over),
        cmocka_unit_test(test_use_renews_a_ttl),
        cmocka_unit_test(test_s11_many_expire_in_slices),
        cmocka_unit_test(test_work_in_flight_puts_expiry_off),
        cmocka_unit_test(test_a_pin_ends_by_itself_and_holds_expiry_off),
        cmocka_unit_test(test_pins_have_a_budget),
        cmocka_unit_test(test_priority_halves_every_ten_minutes),
        cmocka_unit_test(test_s12_the_end_of_an_unnamed_session_ends_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
