/*
 * Tests of server/session/failure.c: words and facts of a refusal, and how a status carries them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "proto/wire_error.h"
#include "server/session/failure.h"
#include "tests/support/session_case.h"

static void test_fail_sets_error_and_words(void **state)
{
    struct kvd_failure why = {.reason = KVARND__MISS_REASON__MISS_WINDOW, .retry_after_ms = 7};
    (void)state;

    assert_int_equal(kvd_fail(&why, KVARN_EINVALID, "layer %d of %s", 3, "x"), KVARN_EINVALID);
    assert_int_equal(why.err, KVARN_EINVALID);
    assert_string_equal(why.text, "layer 3 of x");
    assert_int_equal(why.reason, KVARND__MISS_REASON__MISS_WINDOW); /* facts stay */
    assert_int_equal(why.retry_after_ms, 7);
}

static void test_fail_cuts_long_words(void **state)
{
    struct kvd_failure why = {0};
    char words[400];
    (void)state;

    memset(words, 'w', sizeof(words));
    words[sizeof(words) - 1] = 0;
    assert_int_equal(kvd_fail(&why, KVARN_EINVALID, "%s", words), KVARN_EINVALID);
    assert_int_equal(strlen(why.text), sizeof(why.text) - 1);
}

static void test_status_of_success(void **state)
{
    struct kvd_failure none = {0};
    (void)state;

    for (unsigned i = 0; i < 2; i++) {
        Kvarnd__Status status = KVARND__STATUS__INIT;
        status.code = 99;
        kvd_failure_to_status(i == 0 ? NULL : &none, &status, NULL);
        assert_int_equal(status.code, 0);
        assert_false(status.has_reason || status.has_retry_after_ms || status.has_epoch);
    }
}

static void test_status_carries_what_is_known(void **state)
{
    struct kvd_failure why = {0};
    Kvarnd__Status status = KVARND__STATUS__INIT;
    (void)state;

    why.retry_after_ms = 20;
    assert_int_equal(kvd_fail(&why, KVARN_ERETRY_LATER, "full"), KVARN_ERETRY_LATER);
    kvd_failure_to_status(&why, &status, NULL);
    assert_int_equal(status.code, kvarn_wire_status(KVARN_ERETRY_LATER));
    assert_int_not_equal(status.code, 0);
    assert_string_equal(status.text, "full");
    assert_true(status.has_retry_after_ms);
    assert_int_equal(status.retry_after_ms, 20);
    assert_false(status.has_reason || status.has_epoch);
    why = (struct kvd_failure){.reason = KVARND__MISS_REASON__MISS_NEVER_STORED};
    assert_int_equal(kvd_fail(&why, KVARN_EMISS, "not there"), KVARN_EMISS);
    status = (Kvarnd__Status)KVARND__STATUS__INIT;
    kvd_failure_to_status(&why, &status, NULL);
    assert_true(status.has_reason);
    assert_int_equal(status.reason, KVARND__MISS_REASON__MISS_NEVER_STORED);
    assert_false(status.has_retry_after_ms);
}

/* The state that holds now, not when the refusal was made out: both happen in one turn. */
static void test_s09_conflict_carries_epoch_and_lengths(void **state)
{
    struct kvd_failure why = {.layer_first = 1, .layer_count = 2};
    struct kvt_case c;
    uint64_t lengths[3] = {0, 0, 7777};
    (void)state;

    kvt_case_init(&c, NULL, 0);
    kvt_case_grow(&c, 20);
    struct kvt_append append = kvt_append_of(c.session, 5, 1);
    append.layer_first = 2;
    append.layer_count = 1;
    kvt_case_store(&c, append);
    why.session = c.session;
    assert_int_equal(kvd_fail(&why, KVARN_ECONFLICT, "no"), KVARN_ECONFLICT);
    for (unsigned i = 0; i < 2; i++) {
        Kvarnd__Status status = KVARND__STATUS__INIT;
        kvd_failure_to_status(&why, &status, i == 0 ? NULL : lengths);
        assert_true(status.has_epoch);
        assert_true(status.epoch == c.session->epoch);
        assert_int_equal(status.n_layer_lengths, i == 0 ? 0 : 2);
    }
    assert_int_equal(lengths[0], 20);
    assert_int_equal(lengths[1], 25);
    assert_int_equal(lengths[2], 7777);
    kvt_case_fini(&c);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_fail_sets_error_and_words),
    cmocka_unit_test(test_fail_cuts_long_words),
    cmocka_unit_test(test_status_of_success),
    cmocka_unit_test(test_status_carries_what_is_known),
    cmocka_unit_test(test_s09_conflict_carries_epoch_and_lengths),
};

int main(void)
{
    return cmocka_run_group_tests(tests, NULL, NULL);
}
