/*
 * A wall clock that jumps: preloaded into a daemon, adds the seconds that a file holds (8 bytes,
 * mapped, so that a test may change them at any time) to the realtime clock. Other clocks are as
 * they are. libfaketime does this too, but not beside jemalloc.
 *
 * Thread: any.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* Our own, so that they are seen: the tree's code is hidden by default. */
#define VISIBLE __attribute__((visibility("default")))

VISIBLE int clock_gettime(clockid_t clock, struct timespec *ret);
VISIBLE int gettimeofday(struct timeval *restrict ret, void *restrict zone);
VISIBLE time_t time(time_t *ret);

static const volatile int64_t *jump_s; /* NULL: no file */

__attribute__((constructor)) static void jump_map(void)
{
    const char *path = getenv("KVT_CLOCK_JUMP");
    int fd = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);

    if (fd >= 0) {
        void *map = mmap(NULL, sizeof(*jump_s), PROT_READ, MAP_SHARED, fd, 0);
        jump_s = map == MAP_FAILED ? NULL : map;
        (void)close(fd);
    }
}

int clock_gettime(clockid_t clock, struct timespec *ret)
{
    int err = (int)syscall(SYS_clock_gettime, clock, ret);

    if (err == 0 && jump_s != NULL && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        ret->tv_sec += *jump_s;
    }
    return err;
}

int gettimeofday(struct timeval *restrict ret, void *restrict zone)
{
    struct timespec now;
    int err = clock_gettime(CLOCK_REALTIME, &now);

    (void)zone;
    ret->tv_sec = now.tv_sec;
    ret->tv_usec = now.tv_nsec / 1000;
    return err;
}

time_t time(time_t *ret)
{
    struct timespec now;

    if (clock_gettime(CLOCK_REALTIME, &now) != 0) {
        return -1;
    }
    if (ret != NULL) {
        *ret = now.tv_sec;
    }
    return now.tv_sec;
}
