/* Deep copies of shapes. */
#include "client/src/shape_copy.h"

#include <stdlib.h>
#include <string.h>

int kvarn__shape_copy_init(struct kvarn_shape *ret, const struct kvarn_shape *from)
{
    struct kvarn_shape copy = *from;
    struct kvarn_layer_group *groups = NULL;

    if (from->model == NULL || from->layer_group_count == 0) {
        return KVARN_EINVALID;
    }
    copy.model = strdup(from->model);
    copy.revision = from->revision != NULL ? strdup(from->revision) : NULL;
    groups = calloc(from->layer_group_count, sizeof *groups);
    copy.layer_groups = groups;
    if (copy.model == NULL || (from->revision != NULL && copy.revision == NULL) || groups == NULL) {
        kvarn__shape_copy_fini(&copy);
        return KVARN_ENOMEM;
    }
    memcpy(groups, from->layer_groups, from->layer_group_count * sizeof *groups);
    *ret = copy;
    return 0;
}

void kvarn__shape_copy_fini(struct kvarn_shape *shape)
{
    /* The public struct borrows, this one owns: hence the casts. */
    free((void *)(uintptr_t)shape->model);
    free((void *)(uintptr_t)shape->revision);
    free((void *)(uintptr_t)shape->layer_groups);
    memset(shape, 0, sizeof *shape);
}
