/* Status of a reply or an item, from protobuf to what callers see. */
#ifndef KVARN_CLIENT_REPLY_STATUS_H
#define KVARN_CLIENT_REPLY_STATUS_H

#include "kvarn/client.h"
#include "kvarnd.pb-c.h"

/* Pointers in *ret are borrowed from `status`. */
void kvarn__status_from_wire(struct kvarn_status *ret, const Kvarnd__Status *status);

#endif
