/*
 * Numeric TCP addresses.
 *
 * Thread: any; plain functions.
 */
#include "server/base/net_address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "lib/base/assert.h"

#define PORT_DIGITS_MAX 5

static int port_parse(const char *text, uint16_t *ret)
{
    unsigned long port = 0;
    size_t digits = strlen(text);

    if (digits == 0 || digits > PORT_DIGITS_MAX || strspn(text, "0123456789") != digits) {
        return KVARN_EINVALID;
    }
    for (size_t i = 0; i < digits; i++) {
        port = port * 10 + (unsigned long)(text[i] - '0');
    }
    if (port > UINT16_MAX) {
        return KVARN_EINVALID;
    }
    *ret = (uint16_t)port;
    return 0;
}

int kvd_net_parse(const char *host_port, struct sockaddr_storage *ret, socklen_t *ret_bytes)
{
    char host[INET6_ADDRSTRLEN];
    const char *colon = strrchr(host_port, ':');
    const char *first = host_port;
    struct sockaddr_storage address;
    uint16_t port;

    if (colon == NULL || port_parse(colon + 1, &port) != 0) {
        return KVARN_EINVALID;
    }
    const char *end = colon;
    bool is_v6 = *first == '[';
    if (is_v6) {
        first++;
        end--;
        if (end <= first || *end != ']') {
            return KVARN_EINVALID;
        }
    }
    size_t host_bytes = (size_t)(end - first);
    if (host_bytes == 0 || host_bytes >= sizeof(host)) {
        return KVARN_EINVALID;
    }
    memcpy(host, first, host_bytes);
    host[host_bytes] = '\0';

    memset(&address, 0, sizeof(address));
    struct sockaddr_in *in = (struct sockaddr_in *)(void *)&address;
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)(void *)&address;
    if (inet_pton(is_v6 ? AF_INET6 : AF_INET, host,
            is_v6 ? (void *)&in6->sin6_addr : (void *)&in->sin_addr) != 1) {
        return KVARN_EINVALID;
    }
    if (is_v6) {
        in6->sin6_family = AF_INET6;
        in6->sin6_port = htons(port);
    } else {
        in->sin_family = AF_INET;
        in->sin_port = htons(port);
    }
    *ret = address;
    *ret_bytes = is_v6 ? (socklen_t)sizeof(*in6) : (socklen_t)sizeof(*in);
    return 0;
}

bool kvd_net_is_loopback(const struct sockaddr_storage *address)
{
    if (address->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)address;
        return (ntohl(in->sin_addr.s_addr) >> 24) == IN_LOOPBACKNET;
    }
    if (address->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)address;
        return memcmp(&in6->sin6_addr, &in6addr_loopback, sizeof(in6addr_loopback)) == 0;
    }
    return false;
}

void kvd_net_format(const struct sockaddr_storage *address, char *out, size_t out_bytes)
{
    char host[INET6_ADDRSTRLEN];

    KVARN_ASSERT(out_bytes > 0);
    if (address->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)address;
        if (inet_ntop(AF_INET, &in->sin_addr, host, sizeof(host)) != NULL) {
            (void)snprintf(out, out_bytes, "%s:%u", host, (unsigned)ntohs(in->sin_port));
            return;
        }
    } else if (address->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)address;
        if (inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof(host)) != NULL) {
            (void)snprintf(out, out_bytes, "[%s]:%u", host, (unsigned)ntohs(in6->sin6_port));
            return;
        }
    }
    (void)snprintf(out, out_bytes, "?");
}
