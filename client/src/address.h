/* Addresses of daemons: "unix:PATH" or "tcp:HOST:PORT", as text and in parts. */
#ifndef KVARN_CLIENT_ADDRESS_H
#define KVARN_CLIENT_ADDRESS_H

#include <stdbool.h>

#include "kvarn/err.h"

struct kvarn__address {
    bool is_tcp;
    char path[108]; /* sun_path's size, NUL included */
    char host[256]; /* longest DNS name, NUL included */
    char port[6];
};

/* Returns 0, or KVARN_EINVALID with *ret untouched. "tcp:[::1]:7700" names an IPv6 host. */
int kvarn__address_parse(const char *text, struct kvarn__address *ret) KVARN_MUST_CHECK;

#endif
