/*
 * Tests of server/session/session_queue.c: the order in which operations on layers get their turn,
 * against a model of it; and that one turn of the loop admits no more than its share.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/rng.h"
#include "tests/support/session_rig.h"

#define OPS_MAX 64

/* An operation that notes when it had its turn, and may keep its layers pending. */
struct probe {
    struct kvd_session_op op; /* first */
    bool keeps;
    unsigned turn; /* 0: not yet; else its place among all */
};

static unsigned turns;

static void probe_admit_cb(struct kvd_session_op *op)
{
    struct probe *probe = (struct probe *)(void *)op;

    assert_int_equal(probe->turn, 0);
    assert_false(op->is_queued);
    probe->turn = ++turns;
    for (uint32_t i = 0; probe->keeps && i < op->layer_count; i++) {
        assert_int_equal(kvd_session_want_work(op->session), 0);
        op->session->work->layers[op->layer_first + i].pending++;
    }
}

static struct probe probe_of(uint32_t layer_first, uint32_t layer_count, bool keeps)
{
    return (struct probe){.keeps = keeps,
        .op = {.layer_first = layer_first, .layer_count = layer_count, .admit_cb = probe_admit_cb}};
}

/* What a probe kept has ended. */
static void probe_end(struct kvd_session *session, const struct probe *probe)
{
    for (uint32_t i = 0; i < probe->op.layer_count; i++) {
        session->work->layers[probe->op.layer_first + i].pending--;
    }
    kvd_session_kick(session);
}

struct fixture {
    struct kvt_rig rig;
    struct kvd_session *session;
};

static void fixture_init(struct fixture *fx)
{
    turns = 0;
    kvt_rig_init(&fx->rig, &(struct kvt_rig_options){0});
    fx->session = kvt_session_open(&fx->rig, NULL, 0);
}

static void fixture_fini(struct fixture *fx)
{
    kvt_session_drop(&fx->rig, fx->session);
    kvt_rig_fini(&fx->rig);
}

static void test_s16_operations_on_a_layer_keep_their_order(void **state)
{
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    struct probe writer = probe_of(0, 1, true), second = probe_of(0, 1, false),
                 all = probe_of(0, 3, false), other = probe_of(2, 1, false);
    kvd_session_enqueue(fx.session, &writer.op);
    assert_int_equal(writer.turn, 1);
    kvd_session_enqueue(fx.session, &second.op);
    kvd_session_enqueue(fx.session, &all.op);
    kvd_session_enqueue(fx.session, &other.op); /* behind `all`, which waits */
    assert_int_equal(second.turn + all.turn + other.turn, 0);
    probe_end(fx.session, &writer);
    assert_int_equal(second.turn, 2);
    assert_int_equal(all.turn, 3);
    assert_int_equal(other.turn, 4);
    fixture_fini(&fx);
}

static void test_s16_other_layers_pass(void **state)
{
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    struct probe writer = probe_of(0, 1, true), waits = probe_of(0, 2, false),
                 behind = probe_of(1, 1, false), passes = probe_of(2, 1, false);
    kvd_session_enqueue(fx.session, &writer.op);
    kvd_session_enqueue(fx.session, &waits.op);
    kvd_session_enqueue(fx.session, &behind.op);
    kvd_session_enqueue(fx.session, &passes.op);
    assert_int_equal(passes.turn, 2);
    assert_int_equal(waits.turn + behind.turn, 0);
    kvd_session_op_cancel(&waits.op); /* what waited behind it may go */
    assert_int_equal(waits.turn, 0);
    assert_int_equal(behind.turn, 3);
    probe_end(fx.session, &writer);
    assert_int_equal(turns, 3);
    fixture_fini(&fx);
}

/* Before an operation goes, those before it on any of its layers have gone, and none is pending. */
static bool may_go(const struct probe *probes, unsigned idx, const unsigned *pending)
{
    const struct kvd_session_op *op = &probes[idx].op;

    for (uint32_t l = op->layer_first; l < op->layer_first + op->layer_count; l++) {
        for (unsigned i = 0; i < idx; i++) {
            const struct kvd_session_op *before = &probes[i].op;
            bool is_on = l >= before->layer_first && l < before->layer_first + before->layer_count;
            if (is_on && probes[i].turn == 0) {
                return false;
            }
        }
        if (pending[l] > 0) {
            return false;
        }
    }
    return true;
}

static void test_s16_random_operations_against_the_rule(void **state)
{
    struct kvt_rng rng = {.state = 16};
    unsigned tried = 0;
    (void)state;

    for (unsigned round = 0; round < 200; round++) {
        struct probe probes[OPS_MAX];
        bool has_ended[OPS_MAX] = {false};
        unsigned count = 0;
        struct fixture fx;
        fixture_init(&fx);
        while (count < OPS_MAX || turns < OPS_MAX) {
            if (count < OPS_MAX && kvt_rng_below(&rng, 2) == 0) {
                uint32_t first = kvt_rng_below(&rng, 3);
                probes[count] = probe_of(
                    first, 1 + kvt_rng_below(&rng, 3 - first), kvt_rng_below(&rng, 2) == 0);
                count++;
                kvd_session_enqueue(fx.session, &probes[count - 1].op);
            } else if (count > 0) {
                unsigned i = kvt_rng_below(&rng, count);
                if (probes[i].turn > 0 && probes[i].keeps && !has_ended[i]) {
                    has_ended[i] = true;
                    probe_end(fx.session, &probes[i]);
                }
            }
            unsigned pending[3] = {0};
            for (unsigned i = 0; i < count; i++) {
                for (uint32_t l = 0; l < probes[i].op.layer_count; l++) {
                    bool is_pending = probes[i].keeps && probes[i].turn > 0 && !has_ended[i];
                    pending[probes[i].op.layer_first + l] += is_pending;
                }
            }
            for (unsigned i = 0; i < count; i++) {
                assert_true(probes[i].turn > 0 || !may_go(probes, i, pending));
            }
        }
        for (unsigned i = 0; i < count; i++) {
            if (probes[i].keeps && !has_ended[i]) {
                probe_end(fx.session, &probes[i]);
            }
        }
        tried += count;
        fixture_fini(&fx);
    }
    printf("tried %u\n", tried);
}

static void test_s18_a_turn_admits_its_share(void **state)
{
    struct probe probes[20];
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    struct probe writer = probe_of(0, 1, true);
    kvd_session_enqueue(fx.session, &writer.op);
    for (unsigned i = 0; i < 20; i++) {
        probes[i] = probe_of(0, 1, false);
        kvd_session_enqueue(fx.session, &probes[i].op);
    }
    assert_int_equal(turns, 1);
    kvd_io_fake_set_tick(fx.rig.fake, 30000); /* an admission seems to take 30 us */
    probe_end(fx.session, &writer);
    unsigned before = turns;
    assert_true(turns > 1 && turns <= 5);
    /* One that comes now waits behind them, and does not make this turn longer. */
    struct probe last = probe_of(0, 1, false);
    kvd_session_enqueue(fx.session, &last.op);
    assert_int_equal(turns, before);
    while (last.turn == 0) {
        before = turns;
        (void)kvd_io_fake_turn(fx.rig.fake);
        assert_true(turns > before && turns <= before + 5);
    }
    for (unsigned i = 0; i < 20; i++) {
        assert_int_equal(probes[i].turn, 2 + i);
    }
    assert_int_equal(last.turn, 22);
    kvd_io_fake_set_tick(fx.rig.fake, 0);
    fixture_fini(&fx);
}

static void test_s18_sessions_share_a_turn(void **state)
{
    struct probe probes[10];
    struct kvd_session *sessions[10];
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    for (unsigned i = 0; i < 10; i++) {
        sessions[i] = kvt_session_open(&fx.rig, NULL, 0);
        probes[i] = probe_of(0, 1, false);
    }
    kvd_io_fake_set_tick(fx.rig.fake, 15000);
    for (unsigned i = 0; i < 10; i++) { /* as a batch has them, in one callback */
        kvd_session_enqueue(sessions[i], &probes[i].op);
    }
    assert_true(turns >= 1 && turns < 8);
    kvt_rig_settle(&fx.rig);
    for (unsigned i = 0; i < 10; i++) {
        assert_int_equal(probes[i].turn, i + 1);
        kvt_session_drop(&fx.rig, sessions[i]);
    }
    kvd_io_fake_set_tick(fx.rig.fake, 0);
    fixture_fini(&fx);
}

/* Cancelled, and dropped, while its session waits for another turn. */
static void test_late_queue_of_a_dropped_session(void **state)
{
    struct probe probes[20];
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    kvd_io_fake_set_tick(fx.rig.fake, 15000);
    for (unsigned i = 0; i < 20; i++) {
        probes[i] = probe_of(1, 2, false);
        kvd_session_enqueue(fx.session, &probes[i].op);
    }
    unsigned before = turns;
    assert_true(before < 10);
    for (unsigned i = 10; i < 20; i++) {
        kvd_session_op_cancel(&probes[i].op);
    }
    kvd_session_table_drop(&fx.rig.service.sessions, fx.session);
    kvt_rig_settle(&fx.rig);
    assert_int_equal(turns, 10); /* each had its turn: there it finds the session dropped */
    kvd_session_unref(fx.session);
    kvd_io_fake_set_tick(fx.rig.fake, 0);
    kvt_rig_fini(&fx.rig);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_s16_operations_on_a_layer_keep_their_order),
    cmocka_unit_test(test_s16_other_layers_pass),
    cmocka_unit_test(test_s16_random_operations_against_the_rule),
    cmocka_unit_test(test_s18_a_turn_admits_its_share),
    cmocka_unit_test(test_s18_sessions_share_a_turn),
    cmocka_unit_test(test_late_queue_of_a_dropped_session),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
