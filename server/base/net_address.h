/*
 * Numeric TCP addresses: "127.0.0.1:7411", "[::1]:0" <-> sockaddr. No look-ups.
 *
 * Thread: any; plain functions.
 */
#ifndef KVD_NET_ADDRESS_H
#define KVD_NET_ADDRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>

#include "kvarn/err.h"

/* "[" IPv6 with a scope "]:65535" and the end. */
#define KVD_NET_TEXT_MAX 72

/* Parse HOST:PORT. Returns 0, or KVARN_EINVALID when it is not numeric or has no port. */
int kvd_net_parse(
    const char *host_port, struct sockaddr_storage *ret, socklen_t *ret_bytes) KVARN_MUST_CHECK;

/* 127.0.0.0/8 or ::1. */
bool kvd_net_is_loopback(const struct sockaddr_storage *address);

/* Write HOST:PORT of an IPv4 or IPv6 address, cut to the room; "?" for other families. */
void kvd_net_format(const struct sockaddr_storage *address, char *out, size_t out_bytes);

#endif
