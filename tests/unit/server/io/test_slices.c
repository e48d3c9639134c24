/*
 * Tests of server/io/slices.c: work that goes on in later turns, and the share of a turn.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/io/slices.h"
#include "tests/support/io_fake.h"

/* Steps to take, one a run; and the order in which runs came. */
struct work {
    struct kvd_slice slice; /* first */
    struct kvd_slices *slices;
    unsigned steps;
    char name;
};

static char order[64];

static void work_run(struct kvd_slice *slice)
{
    struct work *work = (struct work *)(void *)slice;
    size_t end = strlen(order);

    assert_false(slice->is_listed);
    assert_true(end + 1 < sizeof(order));
    order[end] = work->name;
    order[end + 1] = 0;
    work->steps--;
    if (work->steps > 0) {
        kvd_slices_add(work->slices, slice);
    }
}

struct fixture {
    struct kvd_io_fake *fake;
    struct kvd_slices slices;
};

static void fixture_init(struct fixture *fx)
{
    order[0] = 0;
    fx->fake = kvd_io_fake_create(1);
    assert_non_null(fx->fake);
    assert_int_equal(kvd_slices_init(&fx->slices, kvd_io_fake_io(fx->fake)), 0);
}

static void fixture_fini(struct fixture *fx)
{
    kvd_slices_fini(&fx->slices);
    kvd_io_fake_io(fx->fake)->ops->destroy(kvd_io_fake_io(fx->fake));
}

static struct work work_of(struct fixture *fx, char name, unsigned steps)
{
    return (struct work){
        .slice = {.run = work_run}, .slices = &fx->slices, .steps = steps, .name = name};
}

static void test_slices_take_turns_in_order(void **state)
{
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    struct work a = work_of(&fx, 'a', 3), b = work_of(&fx, 'b', 2), c = work_of(&fx, 'c', 1);
    kvd_slices_add(&fx.slices, &a.slice);
    kvd_slices_add(&fx.slices, &b.slice);
    kvd_slices_add(&fx.slices, &c.slice);
    assert_true(a.slice.is_listed);
    assert_string_equal(order, ""); /* never inside add */
    kvd_io_fake_settle(fx.fake);
    assert_string_equal(order, "abcaba");
    fixture_fini(&fx);
}

static void test_s18_a_turn_has_its_share(void **state)
{
    struct fixture fx;
    unsigned turns = 0;
    (void)state;

    fixture_init(&fx);
    struct work a = work_of(&fx, 'a', 20);
    kvd_io_fake_set_tick(fx.fake, 40000);
    kvd_slices_add(&fx.slices, &a.slice);
    while (a.steps > 0) {
        unsigned before = a.steps;
        (void)kvd_io_fake_turn(fx.fake);
        assert_true(before - a.steps >= 1 && before - a.steps <= 3);
        turns++;
    }
    assert_true(turns >= 7);
    fixture_fini(&fx);
}

static void test_s18_steps_close_together_share_a_turn(void **state)
{
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    kvd_slices_begin(&fx.slices);
    assert_true(kvd_slices_has_time(&fx.slices));
    kvd_io_fake_set_tick(fx.fake, 60000);
    assert_true(kvd_slices_has_time(&fx.slices));  /* 60 us */
    assert_false(kvd_slices_has_time(&fx.slices)); /* 120 us: a long step is no pause */
    assert_false(kvd_slices_has_time(&fx.slices));
    kvd_io_fake_set_tick(fx.fake, 1000);
    kvd_slices_begin(&fx.slices); /* at once: the same turn still */
    assert_false(kvd_slices_has_time(&fx.slices));
    kvd_io_fake_set_tick(fx.fake, 0);
    kvd_io_fake_advance_ms(fx.fake, 1);
    kvd_slices_begin(&fx.slices); /* after a pause: another one */
    assert_true(kvd_slices_has_time(&fx.slices));
    fixture_fini(&fx);
}

static void test_fini_runs_what_is_listed(void **state)
{
    struct kvd_slices none;
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    struct work a = work_of(&fx, 'a', 3), b = work_of(&fx, 'b', 1);
    kvd_slices_add(&fx.slices, &a.slice);
    kvd_slices_add(&fx.slices, &b.slice);
    kvd_slices_fini(&fx.slices);
    assert_string_equal(order, "abaa");
    fixture_fini(&fx);
    memset(&none, 0, sizeof(none));
    kvd_slices_fini(&none);
    assert_null(none.timer);
}

static void test_removed_work_does_not_run(void **state)
{
    struct fixture fx;
    (void)state;

    fixture_init(&fx);
    struct work a = work_of(&fx, 'a', 1), b = work_of(&fx, 'b', 1);
    kvd_slices_add(&fx.slices, &a.slice);
    kvd_slices_add(&fx.slices, &b.slice);
    kvd_slices_remove(&fx.slices, &a.slice);
    assert_false(a.slice.is_listed);
    kvd_slices_remove(&fx.slices, &a.slice); /* it is not there: nothing happens */
    kvd_io_fake_settle(fx.fake);
    assert_string_equal(order, "b");
    fixture_fini(&fx);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_slices_take_turns_in_order),
    cmocka_unit_test(test_s18_a_turn_has_its_share),
    cmocka_unit_test(test_s18_steps_close_together_share_a_turn),
    cmocka_unit_test(test_removed_work_does_not_run),
    cmocka_unit_test(test_fini_runs_what_is_listed),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
