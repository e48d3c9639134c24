/*
 * Log gate: how many lines of one event get through, where a peer can cause as many as it likes.
 *
 * Owner: service. Thread: loop only.
 */
#ifndef KVD_LOG_GATE_H
#define KVD_LOG_GATE_H

#include <stdbool.h>
#include <stdint.h>

/* Lines of an event in each stretch of time. */
#define KVD_LOG_GATE_LINES 5
#define KVD_LOG_GATE_NS    UINT64_C(10000000000)

/* Events that have one. */
enum kvd_log_gate_id {
    KVD_LOG_GATE_CONN_REFUSED,
    KVD_LOG_GATE_PEER_NOT_ALLOWED,
    KVD_LOG_GATE_CONN_TIMED_OUT,
    KVD_LOG_GATE_COLD_LOAD_FAILED,
    KVD_LOG_GATE_VERIFY_WRONG,
    KVD_LOG_GATE_COUNT,
};

/* Zeroed: open. */
struct kvd_log_gate {
    uint64_t since_ns; /* of the stretch */
    uint32_t lines;    /* in it */
    uint64_t suppressed;
};

/*
 * May the event have a line now? If so *ret_suppressed is how many had none since the last that
 * had; the line is to say it.
 */
bool kvd_log_gate_pass(struct kvd_log_gate *gate, uint64_t now_ns, uint64_t *ret_suppressed);

#endif
