/*
 * One table of kernels per level, filled from kernels.def, and the level in use.
 *
 * Thread: any. The tables are filled once, whoever comes first; the level in use is one pointer.
 */
#include "lib/kernels/kernels.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <threads.h>

#include "kvarn/cpu.h"
#include "lib/base/assert.h"

static struct kvarn__kernels tables[KVARN__ISA_COUNT] = {
    [KVARN__ISA_scalar] = {.isa = "scalar"},
    [KVARN__ISA_avx2] = {.isa = "avx2"},
    [KVARN__ISA_avx512] = {.isa = "avx512"},
    [KVARN__ISA_neon] = {.isa = "neon"},
};
static once_flag tables_once = ONCE_FLAG_INIT;
static _Atomic(const struct kvarn__kernels *) active;

/* The level whose kernels serve where `isa` has none; isa itself for the lowest. */
static enum kvarn__isa isa_below(enum kvarn__isa isa)
{
    return isa == KVARN__ISA_avx512 ? KVARN__ISA_avx2 : KVARN__ISA_scalar;
}

static void table_fill(enum kvarn__isa isa)
{
    struct kvarn__kernels *table = &tables[isa];
    const char *name = table->isa;

    if (isa != KVARN__ISA_scalar) {
        *table = tables[isa_below(isa)];
        table->isa = name;
    }
#define KVARN_KERNEL(of, op, function, tolerance) \
    if (KVARN__ISA_##of == isa) {                 \
        table->op = function;                     \
    }
#include "lib/kernels/kernels.def"
#undef KVARN_KERNEL
}

static const struct kvarn__kernels *table_best(void)
{
    for (int isa = KVARN__ISA_COUNT - 1; isa > KVARN__ISA_scalar; isa--) {
        if (kvarn__cpu_supports((enum kvarn__isa)isa)) {
            return &tables[isa];
        }
    }
    return &tables[KVARN__ISA_scalar];
}

static bool is_auto(const char *choice)
{
    return choice == NULL || choice[0] == '\0' || strcmp(choice, "auto") == 0;
}

/* Index of a level; KVARN__ISA_COUNT for a name that is none. */
static enum kvarn__isa isa_find(const char *name)
{
    int isa = KVARN__ISA_scalar;

    while (isa < KVARN__ISA_COUNT && strcmp(name, tables[isa].isa) != 0) {
        isa++;
    }
    return (enum kvarn__isa)isa;
}

/* The table that `choice` means; NULL where it is no level or one that cannot be had. */
static const struct kvarn__kernels *table_choose(const char *choice)
{
    if (is_auto(choice)) {
        return table_best();
    }
    enum kvarn__isa isa = isa_find(choice);
    return isa != KVARN__ISA_COUNT && kvarn__cpu_supports(isa) ? &tables[isa] : NULL;
}

static void tables_init(void)
{
    for (int isa = KVARN__ISA_scalar; isa < KVARN__ISA_COUNT; isa++) {
        table_fill((enum kvarn__isa)isa);
    }
    const struct kvarn__kernels *table = table_choose(getenv(KVARN_CPU_ENV));
    atomic_store_explicit(&active, table != NULL ? table : table_best(), memory_order_release);
}

int kvarn_cpu_init(const char *choice, char *why, size_t why_bytes)
{
    call_once(&tables_once, tables_init);
    const char *name = choice != NULL ? choice : getenv(KVARN_CPU_ENV);
    const struct kvarn__kernels *table = table_choose(name);
    if (table != NULL) {
        atomic_store_explicit(&active, table, memory_order_release);
        return 0;
    }
    KVARN_ASSERT(name != NULL);
    bool is_level = isa_find(name) != KVARN__ISA_COUNT;
    if (why_bytes > 0) {
        (void)snprintf(why, why_bytes, "%s=%.32s: %s", KVARN_CPU_ENV, name,
            is_level ? "this machine or build has no such level"
                     : "not one of scalar, avx2, avx512, neon, auto");
    }
    return is_level ? KVARN_EUNSUPPORTED : KVARN_EINVALID;
}

const char *kvarn_cpu_active(void)
{
    return kvarn__kernels_get()->isa;
}

bool kvarn_cpu_has(const char *name)
{
    enum kvarn__isa isa = isa_find(name);

    return isa != KVARN__ISA_COUNT && kvarn__cpu_supports(isa);
}

const struct kvarn__kernels *kvarn__kernels_get(void)
{
    const struct kvarn__kernels *table = atomic_load_explicit(&active, memory_order_acquire);

    if (table == NULL) {
        call_once(&tables_once, tables_init);
        table = atomic_load_explicit(&active, memory_order_acquire);
    }
    return table;
}

const struct kvarn__kernels *kvarn__kernels_of(enum kvarn__isa isa)
{
    KVARN_ASSERT(isa < KVARN__ISA_COUNT);
    call_once(&tables_once, tables_init);
    return kvarn__cpu_supports(isa) ? &tables[isa] : NULL;
}
