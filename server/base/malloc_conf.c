/*
 * The allocator's settings, which jemalloc reads from the symbol `malloc_conf` before main.
 * MALLOC_CONF in the environment wins over them.
 *
 * Owner: jemalloc. Thread: any; a constant.
 *
 * background_thread: memory that decays is given back by a thread of jemalloc's, not by the loop.
 * lg_extent_max_active_fit:20: by default (6) a freed stretch of more than 64 times the request is
 *     not split, so after a large drop new chunks would be mapped beside memory still resident.
 * dirty_decay_ms:1000, muzzy_decay_ms:0: --memory-limit is on resident bytes, so freed memory goes
 *     back within about a second instead of the default ten.
 * abort_conf: a typing error here must not go unseen.
 */
#include "server/base/malloc_conf.h"

#if defined(KVARND_JEMALLOC) && KVARND_JEMALLOC
#define SETTINGS                                                                               \
    "background_thread:true,lg_extent_max_active_fit:20,dirty_decay_ms:1000,muzzy_decay_ms:0," \
    "abort_conf:true"

/* Hidden symbols are not seen by a shared libjemalloc. */
extern const char *malloc_conf __attribute__((visibility("default")));
const char *malloc_conf = SETTINGS;
#else
#define SETTINGS ""
#endif

const char *kvd_malloc_conf_text(void)
{
    return SETTINGS;
}
