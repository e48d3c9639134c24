/* Where a failed assertion ends: the process is wrong about itself and must not go on. */
#include "lib/base/assert.h"

#include <stdio.h>
#include <stdlib.h>

void kvarn__assert_fail(const char *expr, const char *file, int line)
{
    fprintf(stderr, "%s:%d: assertion failed: %s\n", file, line, expr);
    abort();
}
