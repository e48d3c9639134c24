/* Levels of kernels: names, choice, refusal, and that the active one really is the one asked for.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <threads.h>

#include <cmocka.h>

#include "kvarn/cpu.h"
#include "lib/kernels/kernels.h"

static const char *const level_names[KVARN__ISA_COUNT] = {"scalar", "avx2", "avx512", "neon"};

/* Runs first: nobody has chosen a level yet, and eight threads ask for it at once. */
static int table_take(void *arg)
{
    const struct kvarn__kernels **ret = arg;

    *ret = kvarn__kernels_get();
    return 0;
}

static void first_use_is_race_free(void **state)
{
    const struct kvarn__kernels *seen[8];
    thrd_t threads[8];

    (void)state;
    for (int i = 0; i < 8; i++) {
        assert_int_equal(thrd_create(&threads[i], table_take, &seen[i]), thrd_success);
    }
    for (int i = 0; i < 8; i++) {
        assert_int_equal(thrd_join(threads[i], NULL), thrd_success);
        assert_non_null(seen[i]);
        assert_ptr_equal(seen[i], seen[0]);
    }
}

/* A test run under KVARN_CPU=avx9 must not pass by running something else. */
static void environment_is_obeyed(void **state)
{
    const char *name = getenv(KVARN_CPU_ENV);
    char why[128] = "";

    (void)state;
    if (kvarn_cpu_init(NULL, why, sizeof(why)) != 0) {
        fail_msg("%s", why);
    }
    if (name != NULL && name[0] != '\0' && strcmp(name, "auto") != 0) {
        assert_string_equal(kvarn_cpu_active(), name);
    }
    printf("cpu: active %s\n", kvarn_cpu_active());
}

static void each_level_is_chosen_or_refused(void **state)
{
    unsigned chosen = 0;

    (void)state;
    for (int isa = 0; isa < KVARN__ISA_COUNT; isa++) {
        const struct kvarn__kernels *before = kvarn__kernels_get();
        char why[128] = "";
        int err = kvarn_cpu_init(level_names[isa], why, sizeof(why));
        if (kvarn_cpu_has(level_names[isa])) {
            assert_int_equal(err, 0);
            assert_string_equal(kvarn_cpu_active(), level_names[isa]);
            assert_ptr_equal(kvarn__kernels_get(), kvarn__kernels_of((enum kvarn__isa)isa));
            chosen++;
        } else {
            assert_int_equal(err, KVARN_EUNSUPPORTED);
            assert_non_null(strstr(why, level_names[isa]));
            assert_ptr_equal(kvarn__kernels_get(), before);
            assert_null(kvarn__kernels_of((enum kvarn__isa)isa));
        }
    }
    assert_true(chosen >= 1);
    printf("cpu: %u levels\n", chosen);
}

static void unknown_names_are_errors(void **state)
{
    static const char *const names[] = {"avx9", "AVX2", "sca", "scalar ", "auto,avx2", "1"};
    char why[128];

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const struct kvarn__kernels *before = kvarn__kernels_get();
        why[0] = '\0';
        assert_int_equal(kvarn_cpu_init(names[i], why, sizeof(why)), KVARN_EINVALID);
        assert_non_null(strstr(why, names[i]));
        assert_ptr_equal(kvarn__kernels_get(), before);
        assert_false(kvarn_cpu_has(names[i]));
    }
    assert_int_equal(kvarn_cpu_init("avx9", NULL, 0), KVARN_EINVALID);
}

static void auto_takes_the_best(void **state)
{
    char why[128];

    (void)state;
    assert_int_equal(kvarn_cpu_init("auto", why, sizeof(why)), 0);
    const char *best = "scalar";
    for (int isa = 0; isa < KVARN__ISA_COUNT; isa++) {
        best = kvarn_cpu_has(level_names[isa]) ? level_names[isa] : best;
    }
    assert_string_equal(kvarn_cpu_active(), best);
}

/* Every table serves every op, whether by its own kernels or by a lower level's. */
static void every_table_is_complete(void **state)
{
    unsigned checked = 0;

    (void)state;
    for (int isa = 0; isa < KVARN__ISA_COUNT; isa++) {
        const struct kvarn__kernels *table = kvarn__kernels_of((enum kvarn__isa)isa);
        if (table == NULL) {
            continue;
        }
        assert_string_equal(table->isa, level_names[isa]);
#define KVARN_OP(op, params)    \
    assert_non_null(table->op); \
    checked++;
#include "lib/kernels/kernels.def"
#undef KVARN_OP
    }
    assert_true(checked >= 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_use_is_race_free),
        cmocka_unit_test(environment_is_obeyed),
        cmocka_unit_test(each_level_is_chosen_or_refused),
        cmocka_unit_test(unknown_names_are_errors),
        cmocka_unit_test(auto_takes_the_best),
        cmocka_unit_test(every_table_is_complete),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
