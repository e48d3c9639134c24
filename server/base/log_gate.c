/*
 * Log gate: so many lines in each stretch of time.
 *
 * Owner: service. Thread: loop only.
 */
#include "server/base/log_gate.h"

bool kvd_log_gate_pass(struct kvd_log_gate *gate, uint64_t now_ns, uint64_t *ret_suppressed)
{
    if (gate->lines == 0 || now_ns - gate->since_ns >= KVD_LOG_GATE_NS) {
        gate->since_ns = now_ns;
        gate->lines = 0;
    }
    if (gate->lines == KVD_LOG_GATE_LINES) {
        gate->suppressed++;
        return false;
    }
    gate->lines++;
    *ret_suppressed = gate->suppressed;
    gate->suppressed = 0;
    return true;
}
