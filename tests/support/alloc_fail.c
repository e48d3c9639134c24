/* Allocations that fail when a test says so. */
#include "tests/support/alloc_fail.h"

#include <stdbool.h>
#include <stddef.h>

/* The linker's names: what is called instead, and what was meant. */
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *memory, size_t bytes);
void *__real_aligned_alloc(size_t alignment, size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *memory, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);

static unsigned fail_at;
static unsigned calls;

static bool fails(void)
{
    calls++;
    return calls == fail_at;
}

void kvt_alloc_fail_at(unsigned n)
{
    fail_at = n;
    calls = 0;
}

unsigned kvt_alloc_calls(void)
{
    return calls;
}

void *__wrap_calloc(size_t count, size_t bytes)
{
    return fails() ? NULL : __real_calloc(count, bytes);
}

void *__wrap_realloc(void *memory, size_t bytes)
{
    return fails() ? NULL : __real_realloc(memory, bytes);
}

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
    return fails() ? NULL : __real_aligned_alloc(alignment, bytes);
}
