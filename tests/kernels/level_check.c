/*
 * level_check: that the level asked for is the one in use, and that each level calls its own
 * kernels. Needs libkvarn alone, so that it runs wherever that does.
 *
 * usage: level_check [LEVEL]: what KVARN_CPU must have chosen. Exit: 0 all holds, 1 not, 2 usage.
 */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "kvarn/cpu.h"
#include "lib/kernels/kernels.h"

static int failures;

static void check(bool ok, const char *level, const char *what)
{
    if (!ok) {
        printf("FAIL %s: %s\n", level, what);
        failures++;
    }
}

/* Kernels that kernels.def names for a level are those in its table. Returns how many it names. */
static unsigned own_kernels_check(enum kvarn__isa isa, const struct kvarn__kernels *table)
{
    unsigned count = 0;

#define KVARN_KERNEL(of, op, function, tolerance)      \
    if (KVARN__ISA_##of == isa) {                      \
        check(table->op == function, table->isa, #op); \
        count++;                                       \
    }
#include "lib/kernels/kernels.def"
#undef KVARN_KERNEL
    return count;
}

static void level_check(const char *name, enum kvarn__isa isa)
{
    const struct kvarn__kernels *before = kvarn__kernels_get();
    const struct kvarn__kernels *table = kvarn__kernels_of(isa);
    char why[128] = "";
    int err = kvarn_cpu_init(name, why, sizeof(why));

    if (table == NULL) {
        check(err == KVARN_EUNSUPPORTED, name, "is not here, but was not refused");
        check(strstr(why, name) != NULL, name, "was refused without saying so");
        check(kvarn__kernels_get() == before, name, "changed the level in use");
        printf("%-8s not here: %s\n", name, why);
        return;
    }
    check(err == 0, name, "is here, but was refused");
    check(strcmp(kvarn_cpu_active(), name) == 0, name, "was chosen, but is not in use");
    check(kvarn__kernels_get() == table, name, "uses another level's kernels");
    unsigned count = own_kernels_check(isa, table);
    check(count > 0, name, "has no kernel of its own");
    printf("%-8s here, %u kernels of its own\n", name, count);
}

int main(int argc, char **argv)
{
    static const char *const names[KVARN__ISA_COUNT] = {
        [KVARN__ISA_scalar] = "scalar",
        [KVARN__ISA_avx2] = "avx2",
        [KVARN__ISA_avx512] = "avx512",
        [KVARN__ISA_neon] = "neon",
    };
    char why[128] = "";

    if (argc > 2) {
        fputs("usage: level_check [LEVEL]\n", stderr);
        return 2;
    }
    check(kvarn_cpu_init(NULL, why, sizeof(why)) == 0, KVARN_CPU_ENV, why);
    printf("active   %s\n", kvarn_cpu_active());
    if (argc == 2) {
        check(strcmp(kvarn_cpu_active(), argv[1]) == 0, argv[1], "is not the level in use");
    }
    for (int isa = 0; isa < KVARN__ISA_COUNT; isa++) {
        level_check(names[isa], (enum kvarn__isa)isa);
    }
    check(kvarn_cpu_init("avx9", why, sizeof(why)) == KVARN_EINVALID, "avx9", "was not refused");
    return failures == 0 ? 0 : 1;
}
