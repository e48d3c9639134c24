/* A failed assertion says where and aborts; one that holds does nothing. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/base/assert.h"

static void a_failure_names_the_expression_and_aborts(void **state)
{
    const struct rlimit no_core = {0, 0};
    char text[256] = {0};
    int ends[2], status;

    (void)state;
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        (void)setrlimit(RLIMIT_CORE, &no_core);
        (void)signal(SIGABRT, SIG_DFL);
        (void)dup2(ends[1], STDERR_FILENO);
        KVARN_ASSERT(1 + 1 == 3);
        _exit(0);
    }
    close(ends[1]);
    assert_true(read(ends[0], text, sizeof(text) - 1) > 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGABRT);
    assert_non_null(strstr(text, "1 + 1 == 3"));
    assert_non_null(strstr(text, "test_assert.c"));
    close(ends[0]);
}

static void an_assertion_that_holds_is_evaluated_once(void **state)
{
    int evaluated = 0;

    (void)state;
    KVARN_ASSERT(++evaluated == 1);
    assert_int_equal(evaluated, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_failure_names_the_expression_and_aborts),
        cmocka_unit_test(an_assertion_that_holds_is_evaluated_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
