/*
 * Why something was refused: an error with the words and facts that its reply carries.
 *
 * Thread: loop only. A plain value; holds no resources, so it is turned into a reply in the same
 * turn.
 */
#ifndef KVD_FAILURE_H
#define KVD_FAILURE_H

#include <stdbool.h>
#include <stdint.h>

#include "kvarn/err.h"
#include "kvarnd.pb-c.h"

struct kvd_session;

struct kvd_failure {
    int err; /* 0 or KVARN_E... */
    Kvarnd__MissReason reason;
    uint32_t retry_after_ms;           /* RETRY_LATER */
    const struct kvd_session *session; /* borrowed: CONFLICT and STALE_EPOCH report its state */
    uint32_t layer_first, layer_count; /* layers whose lengths are reported */
    char text[192];
};

/* Set err and text (printf-style: names what was expected and got); returns err. `why` not NULL. */
int kvd_fail(struct kvd_failure *why, int err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/*
 * Fill a wire status from a failure (or OK when why is NULL or its err is 0). `lengths`: room for
 * why->layer_count values, borrowed by the status until it is packed; may be NULL to leave them
 * out.
 */
void kvd_failure_to_status(
    const struct kvd_failure *why, Kvarnd__Status *status, uint64_t *lengths);

#endif
