/*
 * What the kernels cost, by level.
 *
 * Thread: any.
 */
#include "server/base/kernel_cost.h"

#include <string.h>

#include "kvarn/cpu.h"

/* Picoseconds, by `kvarn-bench costs` on one core of a Sapphire Rapids at 2 to 3 GHz, rounded up.
 */
const struct kvd_kernel_cost kvd_kernel_costs[] = {
    {"scalar", {25, 700}, {600, 120}, {850, 220}, 2900, 5000, 3700},
    {"avx2", {35, 15}, {150, 40}, {260, 40}, 400, 520, 500},
    {"avx512", {32, 6}, {80, 20}, {210, 35}, 350, 350, 410},
};
const unsigned kvd_kernel_cost_count = sizeof(kvd_kernel_costs) / sizeof(kvd_kernel_costs[0]);

const struct kvd_kernel_cost *kvd_kernel_cost(void)
{
    const char *level = kvarn_cpu_active();

    for (unsigned i = 1; i < kvd_kernel_cost_count; i++) {
        if (strcmp(kvd_kernel_costs[i].level, level) == 0) {
            return &kvd_kernel_costs[i];
        }
    }
    return &kvd_kernel_costs[0];
}
