/*
 * Assertions: for our own bugs only, on in every build. Anything that a peer, a file or the system
 * can cause is an error path instead.
 */
#ifndef KVARN_BASE_ASSERT_H
#define KVARN_BASE_ASSERT_H

/* Print the failed expression and abort; never returns. */
_Noreturn void kvarn__assert_fail(const char *expr, const char *file, int line);

#define KVARN_ASSERT(expr) ((expr) ? (void)0 : kvarn__assert_fail(#expr, __FILE__, __LINE__))

#endif
