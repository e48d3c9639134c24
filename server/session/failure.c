/*
 * Why something was refused, and how a reply says it.
 *
 * Thread: loop only.
 */
#include "server/session/failure.h"

#include <stdarg.h>
#include <stdio.h>

#include "lib/base/assert.h"
#include "proto/wire_error.h"
#include "server/session/session.h"

int kvd_fail(struct kvd_failure *why, int err, const char *format, ...)
{
    va_list args;

    KVARN_ASSERT(why != NULL && err < 0);
    why->err = err;
    va_start(args, format);
    (void)vsnprintf(why->text, sizeof(why->text), format, args); /* a longer text is cut */
    va_end(args);
    return err;
}

void kvd_failure_to_status(const struct kvd_failure *why, Kvarnd__Status *status, uint64_t *lengths)
{
    if (why == NULL || why->err == 0) {
        status->code = 0;
        return;
    }
    status->code = kvarn_wire_status(why->err);
    /* The generated type has no const; packing only reads. */
    status->text = (char *)(uintptr_t)why->text;
    if (why->reason != KVARND__MISS_REASON__MISS_NONE) {
        status->has_reason = 1;
        status->reason = why->reason;
    }
    if (why->retry_after_ms > 0) {
        status->has_retry_after_ms = 1;
        status->retry_after_ms = why->retry_after_ms;
    }
    if (why->session == NULL) {
        return;
    }
    status->has_epoch = 1;
    status->epoch = why->session->epoch;
    if (lengths == NULL) {
        return;
    }
    KVARN_ASSERT(why->layer_first + why->layer_count <= why->session->shape->layer_count);
    for (uint32_t i = 0; i < why->layer_count; i++) {
        lengths[i] = why->session->layers[why->layer_first + i].length;
    }
    status->n_layer_lengths = why->layer_count;
    status->layer_lengths = lengths;
}
