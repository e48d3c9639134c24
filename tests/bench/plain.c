/* Loading of plain.h's build of the library, which lies beside this program. */
#include "tests/bench/plain.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

/* A function's address as a pointer to a function: ISO C has no cast for that. */
static int symbol_find(void *library, const char *name, void *ret_function, size_t bytes)
{
    void *symbol = dlsym(library, name);

    memcpy(ret_function, &symbol, bytes);
    return symbol != NULL ? 0 : -1;
}

const struct kvb_plain *kvb_plain_load(void)
{
    static struct kvb_plain plain;

    if (plain.tile_encode != NULL) {
        return &plain;
    }
    void *library = dlopen(KVB_PLAIN, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL ||
        symbol_find(library, "kvarn_to_f32", &plain.to_f32, sizeof(plain.to_f32)) != 0 ||
        symbol_find(library, "kvarn_tile_encode", &plain.tile_encode, sizeof(plain.tile_encode)) !=
            0) {
        fprintf(stderr, "kvarn-bench: no plain C to compare with: %s\n", dlerror());
        return NULL;
    }
    return &plain; /* the library stays loaded */
}
