/* Parser of daemons' addresses. */
#include "client/src/address.h"

#include <string.h>

#include "lib/base/assert.h"

/* Copy `bytes` of text and end it; fails when it is empty or does not fit. */
static int part_copy(char *to, size_t room, const char *from, size_t bytes)
{
    KVARN_ASSERT(room > 0);
    if (bytes == 0 || bytes >= room) {
        return KVARN_EINVALID;
    }
    memcpy(to, from, bytes);
    to[bytes] = '\0';
    return 0;
}

static int port_check(const char *port)
{
    unsigned value = 0;

    for (const char *c = port; *c != '\0'; c++) {
        if (*c < '0' || *c > '9') {
            return KVARN_EINVALID;
        }
        value = value * 10 + (unsigned)(*c - '0');
    }
    return value >= 1 && value <= 65535 ? 0 : KVARN_EINVALID;
}

static int tcp_parse(const char *text, struct kvarn__address *address)
{
    const char *host = text;
    const char *colon = strrchr(text, ':');
    size_t host_bytes;

    if (colon == NULL) {
        return KVARN_EINVALID;
    }
    host_bytes = (size_t)(colon - text);
    if (host_bytes >= 2 && text[0] == '[' && colon[-1] == ']') {
        host++;
        host_bytes -= 2;
    } else if (memchr(text, ':', host_bytes) != NULL) {
        return KVARN_EINVALID; /* an IPv6 host needs its brackets */
    }
    if (part_copy(address->host, sizeof address->host, host, host_bytes) != 0 ||
        part_copy(address->port, sizeof address->port, colon + 1, strlen(colon + 1)) != 0) {
        return KVARN_EINVALID;
    }
    address->is_tcp = true;
    return port_check(address->port);
}

int kvarn__address_parse(const char *text, struct kvarn__address *ret)
{
    struct kvarn__address address = {0};
    int err = KVARN_EINVALID;

    if (strncmp(text, "unix:", 5) == 0) {
        err = part_copy(address.path, sizeof address.path, text + 5, strlen(text + 5));
    } else if (strncmp(text, "tcp:", 4) == 0) {
        err = tcp_parse(text + 4, &address);
    }
    if (err == 0) {
        *ret = address;
    }
    return err;
}
