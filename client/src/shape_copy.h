/* Deep copies of shapes, kept to be registered again on another connection. */
#ifndef KVARN_CLIENT_SHAPE_COPY_H
#define KVARN_CLIENT_SHAPE_COPY_H

#include "kvarn/client.h"

/* *ret owns its texts and layer groups. Returns 0, KVARN_EINVALID without a model, KVARN_ENOMEM. */
int kvarn__shape_copy_init(
    struct kvarn_shape *ret, const struct kvarn_shape *from) KVARN_MUST_CHECK;

/* Accepts a zeroed struct. */
void kvarn__shape_copy_fini(struct kvarn_shape *shape);

#endif
