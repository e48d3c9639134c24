/*
 * Text of others on a terminal.
 *
 * Owner: the caller. Thread: any.
 */
#include "client/cli/printable.h"

#include "lib/base/assert.h"

/* Bytes of the control character at `s`, 0 if there is none. `s` ends with NUL. */
static size_t control_bytes(const unsigned char *s)
{
    if (s[0] < 0x20 || s[0] == 0x7f) {
        return 1;
    }
    return s[0] == 0xc2 && s[1] >= 0x80 && s[1] < 0xa0 ? 2 : 0;
}

const char *printable_text(const char *text, char *to, size_t room)
{
    const unsigned char *s = (const unsigned char *)(text != NULL ? text : "");
    size_t used = 0;

    KVARN_ASSERT(room > 0);
    while (*s != '\0' && used + 1 < room) {
        size_t bytes = control_bytes(s);

        to[used++] = bytes == 0 ? (char)*s : '?';
        s += bytes == 0 ? 1 : bytes;
    }
    to[used] = '\0';
    return to;
}
