/*
 * Text of others on a terminal: what a server or another client named cannot steer it.
 *
 * Owner: the caller. Thread: any.
 */
#ifndef KVARNCTL_PRINTABLE_H
#define KVARNCTL_PRINTABLE_H

#include <stddef.h>

/* Holds any name that the wire allows. */
#define PRINTABLE_MAX 512

/*
 * Copy text with '?' for each control character (C0, DEL, and C1 as UTF-8 has it), cut to the room.
 * Returns `to`. text may be NULL: "".
 */
const char *printable_text(const char *text, char *to, size_t room);

#endif
