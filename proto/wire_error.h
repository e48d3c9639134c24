/* KVARN_E... <-> wire status (Status.code): the wire carries the positive number of
 * lib/base/err.def. */
#ifndef KVARN_PROTO_WIRE_ERROR_H
#define KVARN_PROTO_WIRE_ERROR_H

#include <stdint.h>

#include "kvarn/err.h"

/* Wire status of an error; an error that is not in the list becomes INTERNAL's. */
uint32_t kvarn_wire_status(int err);

/* Error of a wire status; a number from a newer peer becomes KVARN_EINTERNAL. */
int kvarn_wire_error(uint32_t status);

/* Label of a MissReason's number ("window"); "unknown" for others. */
const char *kvarn_miss_reason_label(uint32_t reason);

#endif
