/*
 * Tells the service manager how the daemon is (systemd's Type=notify); nothing happens when no
 * manager asked to be told.
 *
 * Owner: daemon. Thread: loop only.
 */
#ifndef KVD_SD_NOTIFY_H
#define KVD_SD_NOTIFY_H

/* READY=1 and STATUS=. `status`: one line for people. */
void kvd_sd_notify_ready(const char *status);

/* STOPPING=1 and STATUS=. */
void kvd_sd_notify_stopping(const char *status);

/* STATUS= alone. */
void kvd_sd_notify_status(const char *status);

#endif
