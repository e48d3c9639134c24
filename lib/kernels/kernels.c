/* Tables of kernels, one per instruction set, and the choice between them. */
#include "lib/kernels/kernels.h"

static const struct kvarn__kernels kernels_scalar = {
    .isa = "scalar",
#define KVARN_KERNEL(isa, op, function) .op = function,
#include "lib/kernels/kernels.def"
#undef KVARN_KERNEL
};

const struct kvarn__kernels *kvarn__kernels_get(void)
{
    return &kernels_scalar;
}
