/*
 * Sockets of the blocking client: connect, send and receive, each until a point in time.
 *
 * Times are milliseconds of the monotonic clock; KVARN__TIME_NEVER waits for ever. Errors:
 * KVARN_EIO (errno says what, 0 for an orderly end), KVARN_EDEADLINE when the time has come.
 */
#ifndef KVARN_CLIENT_SOCKET_H
#define KVARN_CLIENT_SOCKET_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "client/src/address.h"
#include "kvarn/err.h"

#define KVARN__TIME_NEVER UINT64_MAX

uint64_t kvarn__time_now_ms(void);

/* `ms` from now, saturating; KVARN_DEADLINE_NONE (UINT32_MAX) gives KVARN__TIME_NEVER. */
uint64_t kvarn__time_in_ms(uint32_t ms);

/* Sleep `ms`, or less when `until_ms` comes first. */
void kvarn__time_sleep(uint32_t ms, uint64_t until_ms);

/* *ret_fd is owned by the caller; non-blocking, close-on-exec, TCP_NODELAY where it is TCP. */
int kvarn__socket_connect(
    const struct kvarn__address *address, uint64_t until_ms, int *ret_fd) KVARN_MUST_CHECK;

/* Send some bytes, at least one. */
int kvarn__socket_send(int fd, const struct iovec *iov, int iov_count, uint64_t until_ms,
    size_t *ret_bytes) KVARN_MUST_CHECK;

/* Receive some bytes, at least one. */
int kvarn__socket_receive(
    int fd, void *to, size_t room, uint64_t until_ms, size_t *ret_bytes) KVARN_MUST_CHECK;

#endif
