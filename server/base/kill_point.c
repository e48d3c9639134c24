/*
 * Kill points.
 *
 * Owner: none. Thread: any.
 */
#include "server/base/kill_point.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Set once, by the first point that is passed. -1: not looked at; 0: nothing to kill at. */
static atomic_long kill_left = -1;

void kvd_kill_point(const char *point)
{
    long left = atomic_load_explicit(&kill_left, memory_order_relaxed);

    if (left == 0) {
        return;
    }
    const char *wanted = getenv("KVARND_TEST_KILL");
    const char *colon = wanted == NULL ? NULL : strchr(wanted, ':');
    if (colon == NULL) {
        atomic_store_explicit(&kill_left, 0, memory_order_relaxed);
        return;
    }
    if (left < 0) {
        long count = strtol(colon + 1, NULL, 10);
        (void)atomic_compare_exchange_strong(&kill_left, &left, count > 0 ? count : 0);
    }
    size_t bytes = (size_t)(colon - wanted);
    if (strlen(point) == bytes && strncmp(point, wanted, bytes) == 0 &&
        atomic_fetch_sub(&kill_left, 1) == 1) {
        (void)kill(getpid(), SIGKILL);
    }
}
