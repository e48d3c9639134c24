/*
 * Daemon: composition root. Puts a service on the libuv io, adds listeners and signals, runs,
 * drains.
 *
 * Owner: main. Thread: loop only.
 */
#ifndef KVD_DAEMON_H
#define KVD_DAEMON_H

#include "server/config/config.h"

/*
 * Run until SIGTERM or SIGINT: first signal drains (no new requests, what is in flight finishes
 * within
 * --drain-timeout, replies are flushed), a second one is immediate. Prints one line on standard
 * output when ready to serve: "kvarnd ready" and the listen addresses. Returns the exit code: 0
 * after a clean stop, 1 when it could not start.
 */
int kvd_daemon_run(const struct kvd_config *config);

#endif
