/*
 * Allocations that fail when a test says so. Programs link it with
 * -Wl,--wrap=calloc,--wrap=realloc,--wrap=aligned_alloc; calls from other libraries are not seen.
 *
 * Thread: one.
 */
#ifndef TESTS_ALLOC_FAIL_H
#define TESTS_ALLOC_FAIL_H

/* The n-th call from now on fails, and no other; 0: none does. Counting begins anew. */
void kvt_alloc_fail_at(unsigned n);

/* Calls since then. */
unsigned kvt_alloc_calls(void);

#endif
