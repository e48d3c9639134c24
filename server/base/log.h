/*
 * Log: one line an event, key=value, to standard error; journald's priority prefix when it listens.
 * The hot path is silent. Values are user input at times: control bytes and quotes are escaped.
 *
 * Thread: any (one write call a line). The level is set once at start.
 */
#ifndef KVD_LOG_H
#define KVD_LOG_H

#include <stdbool.h>

enum kvd_log_level { KVD_LOG_ERROR, KVD_LOG_WARN, KVD_LOG_INFO, KVD_LOG_DEBUG };

/* "error", "warn", "info" or "debug". */
bool kvd_log_is_level(const char *name);

/* Lines above that level are dropped from now on. Returns 0, or KVARN_EINVALID for another name. */
int kvd_log_set_level(const char *name);

/*
 * kvd_log(KVD_LOG_INFO, "conn_closed", "peer=%s reason=%s", ...): level, event, then key=value
 * pairs. Texts are quoted where they need it, so formats have no quotes of their own. Conversions:
 * d i u x X (with h l ll j z t), s (with .*), f g, p, %%.
 */
void kvd_log(enum kvd_log_level level, const char *event, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
